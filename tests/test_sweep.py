"""From the grid of a recipe to its students, their runs and their record."""

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest

from leaf.errors import LeafError
from leaf.evaluation import records
from leaf.pipeline import Pipeline
from leaf.recipe import STUDENT_NAME, Recipe
from leaf.student.metrics import held_out_curve
from leaf.sweep import MAX_NAME, borrow, expand, points
from tiny import sentences

RESULTS = Path(__file__).parent.parent / "results"
STUDIES = ("pooling", "schedule", "batch-size", "segments", "losses", "data-scaling", "start")


def recipe(**changes) -> Recipe:
    base = {
        "name": "small",
        "teacher": {"model": "t"},
        "student": {"layers": [0], "train": {"lr": 1e-3}},
        "texts": [{"source": "a.parquet", "kind": "query"}],
        "sweep": {"grid": {"student.pooling": ["mean", "cls"]}},
    }
    return Recipe.parse({**base, **changes})


def swept(**sweep) -> Recipe:
    return recipe(sweep=sweep)


def names(recipe: Recipe) -> list[str]:
    return [student.name for student in expand(recipe).students]


def test_a_grid_is_every_combination_and_the_last_field_varies_fastest():
    varied = swept(grid={"train.schedule": ["constant", "linear"], "train.limit": [100, 200], "student.bias": [True]})
    expanded = expand(varied)
    assert names(varied) == [
        "student-schedule-constant-limit-100-bias-true",
        "student-schedule-constant-limit-200-bias-true",
        "student-schedule-linear-limit-100-bias-true",
        "student-schedule-linear-limit-200-bias-true",
    ]
    settings = [(train.schedule, train.limit) for train in map(expanded.train_of, expanded.students)]
    assert settings == [("constant", 100), ("constant", 200), ("linear", 100), ("linear", 200)]
    # What is not varied is the base student's own: its layers and its learning rate.
    assert {(each.layers, expanded.train_of(each).lr) for each in expanded.students} == {((0,), 1e-3)}
    assert expanded.sweep == varied.sweep


def test_cases_change_settings_together_and_combine_with_a_grid():
    cases = [
        {"name": "b16", "train": {"batch_size": 16}},
        {"name": "b64-fitted", "train.batch_size": 64, "train.lr": 2e-3},
    ]
    expanded = expand(swept(cases=cases))
    assert [each.name for each in expanded.students] == ["student-b16", "student-b64-fitted"]
    train = [expanded.train_of(each) for each in expanded.students]
    assert [(each.batch_size, each.lr) for each in train] == [(16, 1e-3), (64, 2e-3)]
    both = swept(cases=cases, grid={"train.seed": [0, 1]})
    seeded = [f"student-{case}-seed-{seed}" for case in ("b16", "b64-fitted") for seed in (0, 1)]
    assert names(both) == seeded


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("student.pooling", ["cls"], ["student-pooling-cls"]),
        ("train.batch_size", [16], ["student-batch-size-16"]),
        ("train.kinds", [["query"], ["query", "document"]], ["student-kinds-query", "student-kinds-query-document"]),
        ("train.loss", ["leaf", "leaf+minilm"], ["student-loss-leaf", "student-loss-leaf-minilm"]),
        ("train.lr", [1e-4, 1e-5], ["student-lr-0.0001", "student-lr-1e-05"]),
        ("student.layers", [[], [0, 5]], ["student-layers-none", "student-layers-0-5"]),
        ("student.backbone", ["nreimers/MiniLM-L6"], ["student-backbone-nreimers-minilm-l6"]),
    ],
)
def test_a_student_is_named_for_what_is_varied(key, values, expected):
    assert names(swept(grid={key: values})) == expected


def test_a_long_name_is_cut_and_stays_the_same_and_its_own():
    grid = {"student.backbone": [f"package:a_very_long_package_name_of_somebody/models/of/size/{n}" for n in (1, 2)]}
    first, second = names(swept(grid=grid))
    assert len(first) <= MAX_NAME
    assert re.fullmatch(STUDENT_NAME, first)
    assert first != second
    assert [first, second] == names(swept(grid=grid))


def test_dotted_keys_with_and_without_quotes_are_one(tmp_path):
    text = recipe().to_toml().partition("[sweep")[0]
    for grid in ('"train.lr" = [1e-3]\n"student.bias" = [true]', "train.lr = [1e-3]\nstudent.bias = [true]"):
        (tmp_path / "r.toml").write_text(f"{text}[sweep.grid]\n{grid}\n")
        loaded = Recipe.load(tmp_path / "r.toml")
        assert loaded.sweep.grid == {"train.lr": (1e-3,), "student.bias": (True,)}
        assert Recipe.parse(tomllib.loads(loaded.to_toml())) == loaded
    changed = Recipe.load(tmp_path / "r.toml", ["sweep.grid.train.lr=[1e-2, 1e-1]"])
    assert names(changed) == ["student-lr-0.01-bias-true", "student-lr-0.1-bias-true"]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({}, r"'sweep': nothing is varied; give \[sweep\.grid\]"),
        ({"grid": {"train.batchsize": [1]}}, r"unknown key 'train\.batchsize' \(did you mean 'batch_size'\?\)"),
        ({"grid": {"student.poling": ["cls"]}}, r"unknown key 'student\.poling' \(did you mean 'pooling'\?\)"),
        ({"grid": {"train.lr": [-1]}}, r"'train\.lr': input should be greater than 0, got -1"),
        ({"grid": {"student.pooling": ["mean", "max"]}}, r"'student\.pooling': input should be 'mean' or 'cls'"),
        (
            {"grid": {"teacher.model": ["a"]}},
            r"'teacher\.model' cannot be varied; write student\.FIELD or train\.FIELD",
        ),
        ({"grid": {"student.name": ["a"]}}, r"'student\.name' cannot be varied"),
        ({"grid": {"lr": [1]}}, "'lr' cannot be varied"),
        ({"grid": {"train.lr": 1e-3}}, r"'sweep\.grid\.train\.lr': input should be a list, got 0\.001"),
        ({"grid": {"train.lr": []}}, r"'sweep\.grid\.train\.lr'.*at least 1 item"),
        ({"grid": {"train.lr": [1], "train": {"lr": [2]}}}, r"'train\.lr' is given twice, with quotes and without"),
        ({"cases": [{"train.lr": 1.0}]}, "a case needs a name of a-z, 0-9, dots and hyphens, got None"),
        ({"cases": [{"name": "A b", "train.lr": 1.0}]}, "got 'A b'"),
        ({"cases": [{"name": "a", "train.rate": 1.0}]}, r"unknown key 'train\.rate'"),
        (
            {"cases": [{"name": "a", "train.lr": 1.0}], "grid": {"train.lr": [1.0]}},
            r"'train\.lr' is in the grid and in case 'a'",
        ),
        ({"gird": {"train.lr": [1.0]}}, r"unknown key 'sweep\.gird' \(did you mean 'grid'\?\)"),
    ],
)
def test_a_mistake_in_a_sweep_is_one_line_that_names_the_field(sweep, message):
    with pytest.raises(LeafError, match=message) as error:
        swept(**sweep)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (
            {"grid": {"train.lr": [0.1, 0.1]}},
            r"two points are called student-lr-0\.1 .*train\.lr = 0\.1; train\.lr = 0\.1",
        ),
        ({"cases": [{"name": "a"}, {"name": "a", "train.lr": 1.0}]}, "two points are called student-a"),
        ({"student": "student-x", "grid": {"train.lr": [1.0]}}, r"sweep\.student is 'student-x', .* it has student$"),
    ],
)
def test_points_that_cannot_be_told_apart_or_have_no_base_are_refused(sweep, message):
    with pytest.raises(LeafError, match=message):
        expand(swept(**sweep))


def test_a_sweep_may_name_which_student_is_varied_and_the_others_are_left_out():
    students = [{"name": "student-a", "layers": []}, {"name": "student-b", "layers": [0, 5]}]
    data = recipe().model_dump(mode="json", exclude_none=True)
    data |= {"students": students, "sweep": {"student": "student-b", "grid": {"student.bias": [True, False]}}}
    expanded = expand(Recipe.parse(data))
    assert [each.layers for each in expanded.students] == [(0, 5), (0, 5)]
    assert expand(expanded) is expanded
    plain = recipe(sweep=None)
    assert expand(plain) is plain


@pytest.mark.parametrize("study", STUDIES)
def test_the_studies_load_and_share_their_teacher_and_texts(study):
    loaded, common = Recipe.load(RESULTS / study / "recipe.toml"), Recipe.load(RESULTS / "common.toml")
    assert (loaded.teacher, loaded.texts, loaded.prepare) == (common.teacher, common.texts, common.prepare)
    assert common.sweep is None
    assert len(expand(loaded).students) > 1


# --- a sweep that is run -------------------------------------------------------------------------------------------


def tiny(folder, teacher, grid, **changes):
    """A recipe over 200 made-up sentences, written to `folder`, whose grid varies a lookup table."""
    kinds = [("queries", sentences(100)), ("documents", sentences(220)[100:])]
    for kind, texts in kinds:
        (folder / f"{kind}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    beir = folder / "beir"
    (beir / "qrels").mkdir(parents=True, exist_ok=True)
    pairs = [(f"q{row}", f"d{row}", text) for row, text in enumerate(sentences(260)[220:])]
    (beir / "corpus.jsonl").write_text("\n".join(json.dumps({"_id": d, "title": "", "text": t}) for _, d, t in pairs))
    questions = [{"_id": q, "text": " ".join(t.split()[:3])} for q, _, t in pairs]
    (beir / "queries.jsonl").write_text("\n".join(map(json.dumps, questions)))
    lines = ["query-id\tcorpus-id\tscore", *(f"{q}\t{d}\t1" for q, d, _ in pairs)]
    (beir / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    data = {
        "name": "tiny",
        "teacher": {"model": str(teacher), "name": "tiny-teacher"},
        "student": {"layers": [], "ridge_texts": 0},
        "texts": [
            {"source": str(folder / "queries.jsonl"), "kind": "query"},
            {"source": str(folder / "documents.jsonl"), "kind": "document"},
        ],
        "prepare": {"held_out": 20, "shard_rows": 64},
        "train": {"batch_size": 16, "cycles": 1, "epochs_per_cycle": 2, "lr": 0.05},
        "evaluate": {"data": [str(beir)], "bm25": False},
        "sweep": {"grid": grid},
        **changes,
    }
    path = folder / "sweep.toml"
    path.write_text(Recipe.parse(data).to_toml())
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher_folder):
    """A sweep over two kinds of texts, run, and its record."""
    folder = tmp_path_factory.mktemp("sweep")
    path = tiny(folder, teacher_folder, {"train.kinds": [["query"], ["query", "document"]]})
    with Pipeline(Recipe.load(path), folder / "out", device="cpu").open() as pipeline:
        record = pipeline.sweep()
    return path, folder / "out", record


def test_the_record_has_the_numbers_of_manifests_metrics_and_scores(finished):
    _, out, record = finished
    assert record == json.loads((out / "sweep.json").read_text())
    assert record["axes"] == {"train.kinds": [["query"], ["query", "document"]]}
    assert [each["name"] for each in record["points"]] == ["student-kinds-query", "student-kinds-query-document"]
    scores = {(each.encoder, each.mode, each.measure): each.value for each in records.read(out / "scores")}
    for each in record["points"]:
        manifest = json.loads((out / each["name"] / "manifest.json").read_text())
        for key in ("error", "last_error", "steps", "num_texts", "seconds", "provenance"):
            assert each[key] == manifest[key], key
        curve = held_out_curve(out / each["name"] / "metrics.jsonl")
        assert list(zip(each["curve"]["steps"], each["curve"]["errors"], strict=True)) == curve
        assert each["curve"]["errors"][-1] == each["last_error"]
        assert each["ndcg@10"] == {mode: scores[each["name"], mode, "ndcg@10"] for mode in ("standard", "asymmetric")}
    assert record["teacher"]["ndcg@10"] == scores["tiny-teacher", "teacher", "ndcg@10"] > 0
    assert record["datasets"] == ["beir"]
    queries, both = record["points"]
    assert queries["num_texts"] < both["num_texts"]  # the setting reached the training
    assert record["base"]["train.lr"] == 0.05
    assert "train.kinds" not in record["base"]


def test_a_finished_sweep_has_a_page_and_the_figure_of_what_was_varied(finished):
    _, out, record = finished
    page = (out / "sweep.md").read_text()
    for each in record["points"]:
        assert f"{each['last_error']:.4f}" in page
    assert "](figures/sweep-kinds.svg)" in page
    assert "nDCG@10" in (out / "figures" / "sweep-kinds.svg").read_text()


def test_run_again_nothing_is_trained_and_a_grown_grid_trains_the_new_point_alone(finished, run, tmp_path):
    path, out, record = finished
    shutil.copytree(out, tmp_path / "out")
    out = tmp_path / "out"
    code, printed, said = run("sweep", path, "--out", out, "--device", "cpu", "--json")
    assert code == 0, said
    again = json.loads(printed)
    assert again["points"] == record["points"]
    assert "held-out ε" not in said  # what a training says when it ends
    grown = 'sweep.grid.train.kinds=[["query"], ["document"], ["query", "document"]]'
    wider = tmp_path / "wider.toml"
    wider.write_text(path.read_text().partition("[sweep")[0] + "[sweep.grid]\n" + grown.removeprefix("sweep.grid."))
    before = {name: (out / name / "manifest.json").read_bytes() for name in (each["name"] for each in record["points"])}
    code, printed, said = run("sweep", wider, "--out", out, "--device", "cpu")
    assert code == 0, said
    assert {name: (out / name / "manifest.json").read_bytes() for name in before} == before
    assert "student-kinds-document: held-out ε" in said
    assert len([line for line in said.splitlines() if "held-out ε" in line]) == 1
    rows = [line.split() for line in printed.splitlines()]
    assert [row[0] for row in rows if row and row[0] in ("queries", "documents", "both")] == [
        "queries",
        "documents",
        "both",
    ]
    points = json.loads((out / "sweep.json").read_text())["points"]
    assert all(each["ndcg@10"] for each in points)
    assert Recipe.load(out / "recipe.toml") == Recipe.load(wider)  # as it was written: the grid, not its students


def test_a_run_folder_is_not_given_to_a_recipe_that_differs_in_more_than_its_grid(finished, run, tmp_path):
    path, out, _ = finished
    before = (out / "recipe.toml").read_bytes()
    code, _, said = run("sweep", path, "--out", out, "--set", "train.lr=0.01")
    assert code == 2
    assert "belongs to another recipe (train.lr was 0.05, is now 0.01)" in said
    assert (out / "recipe.toml").read_bytes() == before


def test_the_ordinary_stages_work_on_the_students_of_a_sweep(finished, run):
    path, out, record = finished
    code, printed, said = run("report", path, "--out", out, "--device", "cpu", "--json")
    assert code == 0, said
    assert [each["name"] for each in json.loads(printed)["students"]] == [each["name"] for each in record["points"]]


def test_texts_and_vectors_of_another_run_are_linked_and_the_teacher_rests(
    finished, teacher_folder, tmp_path, monkeypatch
):
    path, out, _ = finished
    changes = {"evaluate": {"data": []}, "name": "other"}
    base = Recipe.load(path).model_dump(mode="json", exclude_none=True)
    other = Recipe.parse({**base, **changes, "sweep": {"grid": {"train.lr": [0.01, 0.1]}}})
    monkeypatch.setattr("leaf.pipeline.prepare", lambda *_: pytest.fail("texts were read again"))
    monkeypatch.setattr("leaf.pipeline.embed", lambda *_: pytest.fail("texts were encoded again"))
    with Pipeline(other, tmp_path / "out", device="cpu", texts_from=out).open() as pipeline:
        second = pipeline.sweep()
    assert (tmp_path / "out" / "texts").is_symlink()
    assert (tmp_path / "out" / "texts").resolve() == (out / "texts").resolve()
    first, last = second["points"]
    assert (first["settings"], last["settings"]) == ({"train.lr": 0.01}, {"train.lr": 0.1})
    assert first["last_error"] != last["last_error"]
    assert first["ndcg@10"] is None
    assert not (tmp_path / "out" / "scores").exists()
    monkeypatch.undo()
    changed = other.model_copy(update={"prepare": other.prepare.model_copy(update={"held_out": 10})})
    with (
        pytest.raises(LeafError, match=r"was made from other inputs \(prepare\.held_out was 20, is now 10\)"),
        Pipeline(changed, tmp_path / "third", device="cpu", texts_from=out).open() as pipeline,
    ):
        pipeline.sweep()


def test_a_run_without_finished_texts_lends_none(tmp_path):
    with pytest.raises(LeafError, match="has no finished texts to take; give a run folder in which `leaf embed`"):
        borrow(tmp_path / "a", tmp_path / "b")


def test_a_recipe_without_a_grid_is_no_sweep(run, tmp_path, teacher_folder):
    path = tiny(tmp_path, teacher_folder, {"train.lr": [0.1]}, sweep=None)
    code, _, said = run("sweep", path, "--out", tmp_path / "out")
    assert code == 2
    assert "recipe 'tiny' varies nothing; give it a [sweep.grid]" in said


def test_points_come_with_the_settings_they_set():
    (point,) = points(swept(grid={"train.lr": [0.1]}).sweep)
    assert point == ("student-lr-0.1", None, {"train.lr": 0.1})
