"""What the kinds of blocks print, of records written by hand, and `leaf report PAGE…`."""

import json
import re

import pytest

from leaf.errors import LeafError
from leaf.report.documents import Request
from leaf.report.studies import KINDS

MADE = {
    "commit": "abc",
    "time": "2026-01-02T03:04:05+00:00",
    "python": "3.11.7",
    "versions": {"torch": "2.0", "numpy": "1.0"},
    "hardware": {"cpu": "A CPU", "cpus": 8, "threads": 4},
}


def student(name, layers, epsilon, **changes):
    """5,000 texts twice in 100 seconds: 100 texts/s."""
    scores = {
        "one": {"standard": 0.5, "asymmetric": 0.6},
        "two": {"standard": 0.25, "asymmetric": 0.35},
        "alike": {"standard": 0.75, "asymmetric": 0.75},
    }
    return {
        "name": name, "layers": layers, "parameters": 1_234_567, "epsilon": epsilon, "num_texts": 5000, "epochs": 2,
        "steps": 80, "seconds": 100.0, "scores": scores, "latency_ms": 1.5, "errors": [0.9, epsilon], "best_epoch": 1,
        "retention": {"standard": 75.0, "asymmetric": 95.0},
        "intervals": {"standard": [70.0, 80.0], "asymmetric": [91.0, 99.0]},
    } | changes  # fmt: skip


def report(*students, sts=True, timed=True):
    made = {
        "teacher": {"name": "big", "dim": 16, "latency_ms": 9.0, "scores": {"one": 0.7, "two": 0.3, "alike": 0.8}},
        "students": list(students),
        "datasets": {name: {"task": "retrieval"} for name in ("one", "two")},
        "baselines": {"bm25": {"one": 0.6, "two": 0.2}},
        "speed": {"device": "cpu", "cpu": "A CPU", "threads": 1, "num_queries": 100},
        "measured": MADE,
    }
    if sts:
        made["datasets"]["alike"] = {"task": "sts"}
    if not timed:
        made["teacher"]["latency_ms"] = None
        made["students"] = [{**each, "latency_ms": None} for each in students]
    return made


@pytest.fixture
def printed(tmp_path):
    """What a kind prints of a record, and the figures beside it."""

    def make(kind, record, *words):
        (tmp_path / "report.json").write_text(json.dumps(record), encoding="utf-8")
        request = Request(tmp_path / "page.md", ("report.json", *words))
        return KINDS[kind](request), {path.name: figure for path, figure in request.figures.items()}

    return make


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_a_ladder_has_a_row_for_each_student(printed):
    pytest.importorskip("matplotlib")
    text, figures = printed("ladder", report(student("s", 2, 0.25), student("t", 0, 0.5, latency_ms=0.1)))
    header, _, first, second = cells(text)
    assert header == ["student", "layers", "parameters", "trained", "texts/s", "ε", "standard", "% kept", "asymmetric",
                      "% kept", "STS", "ms a query"]  # fmt: skip
    # The means of 0.5 and 0.25, and of 0.6 and 0.35.
    assert first == ["s", "2", "1.2M", "1 min 40 s", "100", "0.250", "37.5", "75.0 (70.0–80.0)", "47.5",
                     "95.0 (91.0–99.0)", "75.0", "1.50"]  # fmt: skip
    assert second[:2] == ["t", "0"]
    assert "Trained on 5,000 texts." in text
    assert "nDCG@10: the mean of 2 sets; the teacher's 50.0, that of BM25 40.0. STS, Spearman: alike;" in text
    assert "alike; the teacher's 80.0." in text
    assert "s, PyTorch: 1,500 µs, 95.0 % (91.0 to 99.0)" in figures["cost.svg"].alt
    assert f"![{figures['cost.svg'].alt}](cost.svg)" in text


def test_a_ladder_leaves_out_what_was_not_measured(printed):
    pytest.importorskip("matplotlib")
    never = {"steps": 0, "epochs": 0, "seconds": 0.0}
    found = report(student("s", 2, 0.25, num_texts=9000), student("whole", 6, 0.0, **never), sts=False, timed=False)
    text, figures = printed("ladder", found)
    header, _, first, second = cells(text)
    assert header == ["student", "layers", "parameters", "texts", "trained", "texts/s", "ε", "standard", "% kept",
                      "asymmetric", "% kept"]  # fmt: skip
    assert first[3:6] == ["9,000", "1 min 40 s", "180"]
    assert second[3:6] == ["5,000", "not trained", "–"]
    assert "STS" not in text
    assert "ms:" not in text
    assert figures == {}


def test_a_setting_says_the_machine_the_commit_and_how_long_it_took(printed):
    text, _ = printed("setting", report(student("s", 2, 0.25), student("t", 0, 0.5)))
    assert text == (
        "8 cores, A CPU, 4 threads; commit `abc`, 2026-01-02; Python 3.11.7, torch 2.0; "
        "training took 3 min 20 s in all."
    )
    other = {**MADE, "commit": "def", "hardware": {"gpus": ["A GPU"]}}
    points = [{"seconds": 5.0, "provenance": each} for each in (MADE, MADE, other)]
    text, _ = printed("setting", {"points": points, "provenance": other})
    assert text == "A GPU; commit `abc`, `def`, 2026-01-02; Python 3.11.7, torch 2.0; training took 15 s in all."
    assert printed("took", {"points": points})[0] == "15 s"
    text, _ = printed("setting", {"provenance": {"part": MADE}})
    assert text.startswith("8 cores")
    with pytest.raises(LeafError, match="does not say what made it"):
        printed("setting", {"provenance": {}})


def test_an_example_stands_side_by_side_with_what_the_teacher_finds_marked(printed):
    def answer(encoder, mode, overlap, *documents):
        keys = "id", "score", "text", "teacher_too"
        return {"encoder": encoder, "mode": mode, "overlap": overlap,
                "documents": [dict(zip(keys, each, strict=True)) for each in documents]}  # fmt: skip

    answers = [
        answer("big", "teacher", 2, ("a", 0.75, "one | two", True), ("b", 0.5, "", True)),
        answer("s", "asymmetric", 1, ("a", 0.625, "one | two", True), ("c", 0.5, "word " * 30, False)),
        answer("s", "standard", 1, ("d", 0.5, "four", False), ("b", 0.25, "", True)),
        answer("t", "asymmetric", 0, ("d", 0.5, "four", False), ("e", 0.25, "", False)),
    ]
    text, _ = printed("example", {"examples": [{"query": "why?", "dataset": "news", "answers": answers}]}, "s")
    assert text.splitlines() == [
        "“why?” in news (✓: the teacher finds it too)",
        "",
        "|  | teacher | asymmetric, 1 of 2 | standard, 1 of 2 |",
        "|--|--|--|--|",
        "| 1 | 0.75 one \\| two | 0.62 ✓ one \\| two | 0.50 four |",
        f"| 2 | 0.50 b | 0.50 {'word ' * 13}… | 0.25 ✓ b |",
    ]
    with pytest.raises(LeafError, match=r"no answers of 'gone' in report\.json, expected one of s, t"):
        printed("example", {"examples": [{"query": "why?", "dataset": "news", "answers": answers}]}, "gone")
    with pytest.raises(LeafError, match=r"no examples: set evaluate\.examples"):
        printed("example", {"examples": []}, "s")


def test_a_figure_is_asked_for_by_name(printed):
    pytest.importorskip("matplotlib")
    text, figures = printed("figure", report(student("s", 2, 0.25)), "retention")
    said = "Percent of the teacher's nDCG@10, with 95 % intervals: s standard 75.0 (70.0 to 80.0); "
    assert text == f"![{said}s asymmetric 95.0 (91.0 to 99.0).](retention.svg)"
    assert list(figures) == ["retention.svg"]
    with pytest.raises(LeafError, match=r"no figure 'gone' of report\.json, expected one of retention, error, cost"):
        printed("figure", report(student("s", 2, 0.25)), "gone")


def test_files_of_students_stand_in_one_table(tmp_path):
    def manifest(error, **files):
        values = {"bytes": 2_500_000, "added_error": 0.01, "min_cosine": 0.5}
        return {
            "student_error": error,
            "num_texts": 1000,
            "files": {key: {"file": f"{key}.onnx", "error": error + 0.01, **values, "batch_cosine": cosine}
                      for key, cosine in files.items()},
        }  # fmt: skip

    for name, record in {"a": manifest(0.25, fp32=0.75, q8=0.5), "b": manifest(0.5, fp16=0.875)}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    text = KINDS["onnx"](Request(tmp_path / "page.md", ("a.json", "b.json")))
    assert cells(text)[2:4] == [
        ["a", "PyTorch", "", "0.2500", "", ""],
        ["", "`fp32.onnx`", "2.5", "0.2600", "+0.0100", "0.5000"],
    ]
    assert [row[0] for row in cells(text)[2:]] == ["a", "", "", "b", ""]
    # 1 − 0.5 and 1 − 0.875.
    assert text.endswith("at least 1 − 5e-01, in the float16 files 1 − 1e-01.")


def test_a_table_of_a_recipe_is_that_of_the_code(tmp_path):
    text = KINDS["recipe"](Request(tmp_path / "page.md", ("train",)))
    assert re.search(r"^\| `batch_size` \| `\d+` \| .", text, flags=re.MULTILINE)
    with pytest.raises(LeafError, match=r"no table 'trains' of a recipe, expected one of teacher, teacher\.api"):
        KINDS["recipe"](Request(tmp_path / "page.md", ("trains",)))


@pytest.mark.parametrize(
    ("kind", "record", "message"),
    [
        ("curves", report(student("s", 2, 0.25)), "has no curves: set evaluate.truncate"),
        ("margin", report(student("s", 2, 0.25)), "has no margin: set train.keep_checkpoints"),
        ("adaptation", report(student("s", 2, 0.25)), "is of no run that adapted"),
        ("scores", [], "has scores of 0 encoders"),
        ("speed", {}, "no part '' of `leaf speed`"),
    ],
)
def test_a_record_without_what_a_kind_shows_is_refused(printed, kind, record, message):
    with pytest.raises(LeafError, match=re.escape(message)):
        printed(kind, record)


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "record.json").write_text('{"score": 0.5}')
    (tmp_path / "pages" / "a.md").write_text("<!-- leaf: value record.json score x100 .0f -->49<!-- /leaf --> %\n")
    return tmp_path


def test_pages_are_checked_then_written(place, run):
    page = place / "pages" / "a.md"
    code, out, _ = run("report", "pages", "--check")
    assert (code, out.splitlines()) == (
        1,
        ["pages/a.md:1 value record.json score x100 .0f", "1 of 1 blocks on 1 page differ from their records"],
    )
    assert "-->49<" in page.read_text()
    code, out, _ = run("report", "pages/a.md")
    assert (code, out.splitlines()[-1]) == (0, "1 of 1 blocks on 1 page written anew")
    assert page.read_text() == "<!-- leaf: value record.json score x100 .0f -->50<!-- /leaf --> %\n"
    assert run("report", "pages", "--check")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.md"], "no page gone.md"),
        (["pages", "demo"], "'demo' is no Markdown file and no folder, which the others are"),
        (["demo", "ladder"], "'ladder' is no Markdown file and no folder; recipes are reported one by one"),
        (["demo", "--check"], "--check says nothing about a recipe"),
        (["pages", "--set", "train.lr=1"], "--set says nothing about pages"),
        (["pages", "--json"], "--json says nothing about pages"),
        (["nowhere"], "no recipe 'nowhere'"),
    ],
)
def test_what_is_neither_pages_nor_a_recipe_is_refused(place, run, arguments, message):
    code, out, err = run("report", *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_a_recipe_that_ships_goes_before_a_folder_of_its_name(place, run):
    (place / "demo").mkdir()
    (place / "demo" / "a.md").write_text("<!-- /leaf -->")
    assert "closes no block" in run("report", "./demo")[2]
    assert "closes no block" not in run("report", "demo")[2]
