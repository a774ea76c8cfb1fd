"""`--from STUDENT`: a student goes on, for the same teacher, on other texts, and the report shows both sides of it."""

import json
import shutil

import numpy as np
import pytest

import leaf
from leaf.adapting import adapting
from leaf.errors import LeafError
from leaf.evaluation.adaptation import Change, error_changes
from leaf.export.onnx import export_student
from leaf.pipeline import Pipeline
from leaf.recipe import Recipe
from leaf.space import Space, verify
from tiny import WORDS, save_teacher, sentences

GENERAL, OWN = WORDS[:512], WORDS[512:]


def of_words(words, count, seed):
    """Sentences of these words alone."""
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(words, generator.integers(3, 13))) for _ in range(count)]


def write(path, texts):
    path.write_text("\n".join(texts))
    return str(path)


@pytest.fixture(scope="module")
def general(tmp_path_factory, teacher_folder):
    """A finished run on general words, with a two-layer student and a table."""
    folder = tmp_path_factory.mktemp("general")
    recipe = Recipe.parse(
        {
            "name": "general",
            "teacher": {"model": str(teacher_folder)},
            "students": [
                {"name": "student-2l", "layers": [0, 3], "ridge_texts": 0},
                {"name": "student-table", "layers": [], "ridge_texts": 300, "train": {"epochs_per_cycle": 1}},
            ],
            "texts": [{"source": write(folder / "general.txt", of_words(GENERAL, 700, 1)), "kind": "document"}],
            "prepare": {"held_out": 60},
            "train": {"cycles": 1, "epochs_per_cycle": 4, "lr": 2e-3, "batch_size": 16},
            "export": {"precisions": []},
        }
    )
    leaf.distill(recipe, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.toml").write_text(
        f"""
name = "own"
[[texts]]
source = "{write(folder / "own.txt", of_words(OWN, 500, 2))}"
kind = "query"
[prepare]
held_out = 120
[train]
cycles = 1
epochs_per_cycle = 4
lr = 1e-3
batch_size = 16
[export]
precisions = []
"""
    )
    return folder / "own.toml"


@pytest.mark.parametrize("student", ["student-2l", "student-table"])
def test_a_student_gets_nearer_on_its_own_texts_and_the_guard_is_reported_beside(general, own, tmp_path, student):
    recipe = adapting(own, general / student)
    assert [(source.guard, source.held_out) for source in recipe.texts] == [
        (False, None),
        (True, False),  # what the student was trained on, and what it was not
        (True, True),
    ]
    report = leaf.distill(recipe, tmp_path / "run")
    changes = {each["what"]: Change.from_json(each) for each in report["adaptation"]["student"]}
    mine, guard = changes["own texts"], changes["guard texts"]
    assert mine.difference.high < 0
    assert mine.after < 0.9 * mine.before
    # Half of what it is trained on is what it was trained on before, so it cannot have lost much of that.
    assert guard.after < 1.05 * guard.before
    assert (mine.num, guard.num) == (120, 60)
    # What it began from, as the earlier run measured it on the very same texts.
    earlier = json.loads((general / student / "manifest.json").read_text())["error"]
    assert guard.before == pytest.approx(earlier, rel=1e-3)
    page = (tmp_path / "run" / "report.md").read_text()
    assert "Before and after: student" in page
    assert "On own texts, ε fell" in page
    space = Space.load(tmp_path / "run" / "student")
    assert verify(leaf.load(tmp_path / "run" / "student"), space).in_space
    assert space.id == Space.load(general / student).id


def test_training_goes_on_from_the_very_weights(general, own, tmp_path):
    """With a learning rate of nothing the student stays what it was."""
    recipe = adapting(own, general / "student-2l", ["train.lr=1e-12", "train.final_lr=0", "train.epochs_per_cycle=1"])
    with Pipeline(recipe, tmp_path / "run").open() as pipeline:
        pipeline.texts()
        pipeline.embed()
        pipeline.train()
    texts = sentences(20)
    before, after = leaf.load(general / "student-2l"), leaf.load(tmp_path / "run" / "student")
    np.testing.assert_allclose(after.encode_query(texts), before.encode_query(texts), atol=1e-6)
    assert after.prompts == before.prompts == {"query": "ba be: ", "document": ""}


def test_the_guard_is_no_larger_than_the_ratio_allows(general, own, tmp_path):
    recipe = adapting(own, general / "student-2l", ["prepare.guard_ratio=0.25"])
    with Pipeline(recipe, tmp_path / "run").open() as pipeline:
        sources = pipeline.texts()["sources"]
    assert sources["guard"]["kept"] == sources["own"]["kept"] // 4
    assert sources["guard, held out"]["kept"] == 0


def test_a_student_of_another_teacher_is_refused(general, own, tmp_path):
    other = save_teacher(tmp_path / "other", seed=9)
    recipe = adapting(own, general / "student-2l", [f"teacher.model={json.dumps(str(other))}"])
    with Pipeline(recipe, tmp_path / "run").open() as pipeline:
        pipeline.texts()
        with pytest.raises(LeafError, match="is not the teacher of this space"):
            pipeline.embed()
    assert not list((tmp_path / "run").glob("embeddings/*/*.parquet")), "vectors that no student can use"


def test_another_start_is_another_student(general, own, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(general / "student-2l", start)
    recipe = adapting(own, start)
    with Pipeline(recipe, tmp_path / "run").open() as pipeline:
        pipeline.texts()
        pipeline.embed()
        pipeline.train()
    shutil.rmtree(start)
    shutil.copytree(general / "student-table", start)
    with Pipeline(recipe, tmp_path / "run").open() as pipeline, pytest.raises(LeafError, match=r"other inputs \(start"):
        pipeline.train()


def test_what_is_no_student_is_one_line(general, own, tmp_path, teacher_folder, capsys):
    with pytest.raises(LeafError, match=r"has no space\.json"):
        adapting(own, teacher_folder)
    with pytest.raises(LeafError, match="no folder"):
        adapting(own, "./nowhere")
    lone = tmp_path / "lone"
    shutil.copytree(general / "student-2l", lone)
    assert len(adapting(own, lone).texts) == 1
    assert "no guard texts" in capsys.readouterr().err


def test_a_teacher_that_was_found_from_another_folder_is_missed_before_anything_is_read(
    own, tmp_path, teacher_folder, monkeypatch
):
    shutil.copytree(teacher_folder, tmp_path / "models" / "teacher")
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.load(own, ["teacher.model=models/teacher", "student.layers=[0]"])
    with Pipeline(recipe, "run").open() as pipeline:
        pipeline.texts()
        pipeline.embed()
        pipeline.train()
    monkeypatch.chdir(tmp_path / "models")
    with pytest.raises(LeafError, match=r"was the folder 'models/teacher', which is not here; .*teacher\.model=FOLDER"):
        adapting(own, "../run/student")
    found = adapting(own, "../run/student", ["teacher.model=teacher"])
    assert found.teacher.prompts == {"query": "ba be: ", "document": ""}
    assert found.students[0].start == str(tmp_path / "run" / "student")


def test_what_was_exported_from_the_start_makes_no_other_start_and_any_path_will_do(general, own, tmp_path):
    start = tmp_path / 'it\'s "ours" \\ ñ' / "student"
    shutil.copytree(general / "student-table", start)
    recipe = adapting(own, start)
    with Pipeline(recipe, tmp_path / "run").open() as pipeline:
        pipeline.texts()
        pipeline.embed()
        first = pipeline.train()
    export_student(start, ["fp32"])
    with Pipeline(adapting(own, start), tmp_path / "run").open() as pipeline:
        assert pipeline.train() == first
    shutil.rmtree(start)
    with Pipeline(recipe, tmp_path / "run").open() as pipeline, pytest.raises(LeafError, match="no folder '"):
        pipeline.train()


def test_a_recipe_of_several_students_is_refused_in_one_line(general, run):
    code, _, err = run("distill", "demo", "--from", general / "student-2l")
    assert code == 2
    assert "--from adapts a single [student]" in err


def test_distill_from_is_the_command_for_it(general, own, tmp_path, run):
    code, out, err = run("distill", own, "--from", general / "student-2l", "--out", tmp_path / "run")
    assert code == 0, err
    assert "student, before and after" in out
    assert "own texts" in out
    assert "guard texts" in out
    assert "start" in (tmp_path / "run" / "recipe.toml").read_text()


def test_errors_are_means_over_the_rows_of_each_group():
    teacher = np.zeros((4, 2), np.float32)
    before = np.array([[3, 4], [0, 1], [0, 2], [0, 0]], np.float32)  # distances 5, 1, 2, 0
    after = np.array([[0, 1], [0, 1], [0, 4], [0, 0]], np.float32)  # 1, 1, 4, 0
    own, guard = error_changes(before, after, teacher, {"own": [0, 1], "guard": [2, 3], "none": []})
    assert (own.before, own.after, own.difference.value, own.num) == (3, 1, -2, 2)
    assert (guard.before, guard.after, guard.difference.value) == (1, 2, 1)
    assert own.difference.low <= -2 <= own.difference.high
