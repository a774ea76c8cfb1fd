"""A student from a teacher and two files of texts, without a recipe."""

import json
import tomllib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import leaf
from leaf.errors import LeafError
from leaf.given import TABLE, Given
from leaf.recipe import Recipe, Student
from leaf.student.model import build_student
from tiny import save_bert, sentences

SMALL = ["prepare.held_out=20", "train.batch_size=16", "train.epochs_per_cycle=1", "export.precisions=[]"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """queries.txt, and passages.parquet with its texts in a column `body`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("leaf.pipeline.TIMED_QUERIES", 5)
    texts = sentences(140)
    Path("queries.txt").write_text("\n".join(texts[:60]) + "\n")
    pq.write_table(pa.table({"body": texts[60:], "page": range(80)}), "passages.parquet")
    return texts


def own(teacher, *more):
    return [
        "--teacher",
        teacher,
        "--queries",
        "queries.txt",
        "--documents",
        "passages.parquet",
        "--column",
        "body",
        *more,
    ]


def small(*settings):
    return [word for each in (*SMALL, *settings) for word in ("--set", each)]


def assert_one_line(result, *words):
    code, out, err = result
    assert (code, out) == (2, ""), err
    (line,) = [line for line in err.splitlines() if line.startswith("leaf: error: ")]
    assert "Traceback" not in err
    for word in words:
        assert word in line, line


def test_a_teacher_and_two_files_become_a_student_in_its_space(files, run, teacher_folder):
    code, out, err = run("distill", *own(teacher_folder), "--out", "runs/mine", *small())
    assert code == 0, err
    assert "runs/mine/student" in out
    assert "student: half or more of its 7 steps are warm-up" in err
    report = json.loads(Path("runs/mine/report.json").read_text())
    (student,) = report["students"]
    # The teacher has 4 layers; 140 texts less 20 held out, in batches of 16, once.
    assert (report["name"], student["name"], student["layers"], student["steps"]) == ("mine", "student", 2, 120 // 16)
    kinds = json.loads(Path("runs/mine/texts/manifest.json").read_text())["kinds"]
    assert (kinds["query"] > 0, kinds["document"] > 0, sum(kinds.values())) == (True, True, 120)
    assert run("verify", "runs/mine/student")[0] == 0
    # What it did stands in the run folder, and is a recipe to go on with; so does what `leaf recipes` writes.
    assert run("report", "runs/mine/recipe.toml")[0] == 0
    code, written, _ = run("recipes", *own(teacher_folder), "--name", "mine", *small())
    assert code == 0
    assert Recipe.parse(tomllib.loads(written)) == Recipe.load("runs/mine/recipe.toml")
    # The same from Python goes on from there, which is to say that nothing is left to do.
    again = leaf.distill(
        teacher=str(teacher_folder), queries="queries.txt", documents=["passages.parquet"], column="body", layers=2,
        name="mine", overrides=SMALL,
    )  # fmt: skip
    assert again["students"][0]["epsilon"] == student["epsilon"]


def test_several_numbers_of_layers_are_a_ladder_over_the_same_vectors(files, run, teacher_folder):
    Path("queries.txt").write_text("\n".join(sentences(600, seed=1)) + "\n")  # a table's batch is of 512
    code, _, err = run("distill", *own(teacher_folder, "--layers", 0, "--layers", 1), "--name", "two", *small())
    assert code == 0, err
    manifests = [
        json.loads(Path(f"runs/two/{name}/manifest.json").read_text()) for name in ("student-table", "student-1l")
    ]
    assert [each["layers"] for each in manifests] == [0, 1]
    assert manifests[0]["inputs"]["train"]["lr"] == TABLE["lr"] != manifests[1]["inputs"]["train"]["lr"]
    assert [each["inputs"]["train"]["batch_size"] for each in manifests] == [16, 16]  # what is set is for both


def test_a_stage_and_a_plan_take_the_same_options(files, run, teacher_folder):
    code, out, err = run("plan", *own(teacher_folder), "--name", "mine", "--json", *small())
    assert code == 0, err
    record = json.loads(out)
    assert (record["recipe"], record["texts"]["rows"], record["students"][0]["layers"]) == ("mine", 140, 2)
    assert "student: half or more of its 7 steps are warm-up (train.warmup_steps = 50)" in "\n".join(record["warnings"])
    assert run("texts", *own(teacher_folder), "--name", "mine", *small())[0] == 0
    assert json.loads(Path("runs/mine/texts/manifest.json").read_text())["kinds"].keys() == {"query", "document"}
    code, out, _ = run("texts", *own(teacher_folder), "--check")
    assert [line.split()[-1] for line in out.splitlines()[1:]] == ["ok", "ok"]


def test_what_is_given_replaces_what_a_recipe_has():
    base = {
        "name": "r",
        "teacher": {"model": "old", "name": "Old", "prompts": {"query": "q: "}, "storage_dtype": "float32"},
        "student": {"backbone": "b", "revision": "1", "bias": False, "layers": [0]},
        "texts": [{"source": "theirs.txt", "kind": "query"}],
        "prepare": {"held_out": 7, "leak_check": ["more"]},
        "evaluate": {"bm25": False, "data": ["theirs"]},
    }
    given = Given(
        "new",
        documents=["d.jsonl.gz"],
        texts=[Path("t.TXT")],
        column="body",
        layers=[3],
        backbone="c",
        data=["set"],
        name="n",
    )
    assert given.complete(base) == {
        "name": "n",
        "teacher": {"model": "new", "storage_dtype": "float32"},  # how it is stored is not the old model's
        "student": {"backbone": "c", "bias": False, "layers": 3},
        "texts": [{"source": "d.jsonl.gz", "kind": "document", "column": "body"}, {"source": "t.TXT"}],
        "prepare": {"held_out": 7, "leak_check": ["more", "evaluate"]},
        "evaluate": {"bm25": False, "data": ["set"]},
    }
    assert Given().complete(base) == base
    assert base["student"]["layers"] == [0]  # what was read is left alone


def test_a_table_has_training_of_its_own_where_the_recipe_has_none():
    data = {"student": {"layers": 2, "train": {"lr": 0.5}}}
    table = Given(layers=[0]).complete(data)["student"]
    assert table == {"layers": 0, "train": {**TABLE, "lr": 0.5}}


def test_several_students_stand_from_the_most_layers_down_each_on_the_one_above():
    students = Given(layers=[0, 1, 12, 2], backbone="b").complete({"student": {"revision": "1"}})["students"]
    assert [(each["name"], each["backbone"]) for each in students] == [
        ("student-12l", "b"),
        ("student-2l", "student-12l"),
        ("student-1l", "student-2l"),
        ("student-table", "b"),
    ]
    assert not any("revision" in each for each in students)


def test_settings_come_after_what_is_given():
    recipe = Recipe.load(
        "leaf-fast", ["teacher.vectors=dump.parquet", "teacher.revision=v2"], given=Given("t", documents=["d.txt"])
    )
    assert (recipe.teacher.revision, recipe.teacher.vectors.source) == ("v2", "dump.parquet")
    assert Recipe.load("leaf-fast", ["student.bias=false"], given=Given("t", ["q.txt"], layers=[1])).students == (
        Student(layers=1, bias=False),
    )


def test_a_setting_of_training_is_for_every_student_whatever_its_own_says(tmp_path):
    table = Recipe.load("leaf-fast", ["train.epochs_per_cycle=40"], given=Given("t", ["q.txt"], layers=[0]))
    trained = table.train_of(table.students[0])
    assert (trained.epochs_per_cycle, trained.batch_size) == (40, TABLE["batch_size"])
    ladder = Recipe.load("ladder", ["train.epochs_per_cycle=2"])
    assert {ladder.train_of(each).epochs_per_cycle for each in ladder.students} == {2}
    assert ladder.train_of(ladder.students[-1]).row_lr == 0.03  # what nobody set stays


def test_a_recipe_of_ones_own_begins_from_the_default_one(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'extends = "leaf-fast"\nname = "mine"\n[teacher]\nmodel = "t"\n[[texts]]\nsource = "q.txt"\nkind = "query"\n'
    )
    given = Given("t", queries=["q.txt"], name="mine")
    assert Recipe.load(tmp_path / "mine.toml") == Recipe.load("leaf-fast", given=given)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["distill"], ["--teacher MODEL", "--queries FILE"]),
        (["distill", "--teacher", "t"], ["'texts' is missing", "--documents FILE"]),
        (["distill", "--queries", "queries.txt"], ["'teacher' is missing; give --teacher MODEL"]),
        (["distill", "--teacher", "openai:m", "--queries", "queries.txt"], ["of openai:m there are", "--backbone"]),
        (["distill", "--teacher", "t", "--queries", "nowhere.txt"], ["--queries nowhere.txt: no file"]),
        (["distill", "--teacher", "t", "--documents", "empty.txt"], ["--documents empty.txt: empty.txt is empty"]),
        (["distill", "--teacher", "t", "--documents", "a.pdf"], ["--documents a.pdf: cannot read", ".parquet, .jsonl"]),
        (["distill", "--teacher", "t", "--documents", "passages.parquet"], ["it has body, page", "--column"]),
        (["plan", "--teacher", "t", "--documents", "passages.parquet", "--column", "page"], ["'page'", "holds int"]),
        (["texts", "--teacher", "t", "--texts", "passages.parquet", "--column", "body"], ["'kind'", "--queries"]),
        (["distill", "--teacher", "t", "--queries", "queries.txt", "--column", "body"], ["none of the texts given"]),
        (["distill", "--teacher", "t", "--documents", "p", "passages.parquet"], ["is no recipe", "'*.parquet'"]),
        (["distill", "--teacher", "t", "--queries", "installed-docs"], ["--queries installed-docs", "no meaning"]),
        (["distill", "demo", "--layers", "2"], ["varies one [student], and this recipe has 2"]),
        (["distill", "--from", "runs/x/student", "--queries", "queries.txt"], ["--from needs a RECIPE"]),
        (["distill", "mine.toml", "--from", "runs/x/student", "--layers", "2"], ["--layers", "leave them out"]),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_by_its_option(files, run, arguments, words):
    Path("empty.txt").touch()
    Path("a.pdf").touch()
    assert_one_line(run(*arguments), *words)


def test_more_layers_than_the_teacher_has_is_one_line(files, run, teacher_folder):
    result = run("distill", *own(teacher_folder, "--layers", 5), "--name", "mine")
    assert_one_line(result, "student.layers = 5, but the backbone has 4 layers")
    assert not Path("runs/mine/texts").exists()  # and comes before anything is read or encoded
    code, out, _ = run("plan", *own(teacher_folder, "--layers", 5))
    assert code == 0
    assert "but the backbone has 4 layers" in " ".join(out.split())


def test_texts_of_an_evaluation_set_are_not_trained_on(files, run, teacher_folder):
    beir = Path("beir")
    (beir / "qrels").mkdir(parents=True)
    (beir / "corpus.jsonl").write_text(json.dumps({"_id": "d", "title": "", "text": sentences(9, seed=9)[0]}) + "\n")
    (beir / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": files[3].upper()}) + "\n")
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    code, out, err = run("texts", *own(teacher_folder, "--data", "beir"), "--name", "mine", *small(), "--json")
    assert code == 0, err
    assert json.loads(out)["rows"] == 140 - 20 - 1


def test_a_students_weights_are_those_of_the_layers_that_a_number_picks(tmp_path):
    folder = str(save_bert(tmp_path / "bert", layers=6))

    def build(layers):
        settings = Student(backbone=folder, layers=layers)
        prompts = {"query": "", "document": ""}
        return build_student(settings, None, prompts, 24, normalise=True, max_length=None, similarity="cosine", seed=0)

    by_number, by_list, all_of_them = build(3).state_dict(), build([0, 2, 5]).state_dict(), build(6)
    assert by_number.keys() == by_list.keys()
    assert all(by_number[key].equal(by_list[key]) for key in by_number)
    assert all_of_them.num_layers == 6
    with pytest.raises(LeafError, match=r"student\.layers = 7, but the backbone has 6 layers"):
        build(7)


def test_a_whole_recipe_takes_nothing_more():
    recipe = Recipe.load("leaf-fast", given=Given("t", queries=["q.txt"]))
    with pytest.raises(LeafError, match="a Recipe is complete"):
        leaf.distill(recipe, layers=1)
