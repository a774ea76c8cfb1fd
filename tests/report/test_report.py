"""The report stage, on a run folder written by hand: numbers are worked out in comments, pages are parsed."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from leaf.errors import LeafError
from leaf.evaluation import records
from leaf.evaluation.records import Score
from leaf.recipe import Recipe
from leaf.report import print_summary, write_report
from leaf.report.pages import markdown
from leaf.report.words import verdict

RECIPE = Recipe.parse(
    {
        "name": "small",
        "teacher": {"model": "someone/big-teacher", "prompts": {"query": "search: "}, "max_length": 128},
        "students": [
            {"name": "student-table", "layers": []},
            {"name": "student-2l", "layers": [0, 5], "train": {"epochs_per_cycle": 2, "cycles": 1}},
        ],
        "texts": [
            {"source": "hub:someone/questions", "kind": "query", "licence": "MIT"},
            {"source": "installed-docs", "packages": ["numpy"]},
        ],
        "evaluate": {"examples": ["how do I read a file"]},
    }
)
#: Per-query nDCG@10. `easy`: teacher 0.8, `hard`: teacher 0.2.
#: Asymmetric student-2l: easy 0.72 = 90 %, hard 0.20 = 100 %. Mean of ratios 95 %, ratio of means 92 %.
VALUES: dict[str, dict[str, dict[str, list[float]]]] = {
    "easy": {
        "teacher": {"big-teacher": [0.6, 1.0, 0.8, 0.8]},
        "bm25": {"bm25": [0.5, 0.5, 0.5, 0.5]},
        "standard": {"student-table": [0.2, 0.6, 0.4, 0.4], "student-2l": [0.4, 0.8, 0.6, 0.6]},
        "asymmetric": {"student-table": [0.4, 0.8, 0.6, 0.6], "student-2l": [0.52, 0.92, 0.72, 0.72]},
    },
    "hard": {
        "teacher": {"big-teacher": [0.0, 0.4]},
        "bm25": {"bm25": [0.1, 0.1]},
        "standard": {"student-table": [0.0, 0.2], "student-2l": [0.0, 0.3]},
        "asymmetric": {"student-table": [0.1, 0.2], "student-2l": [0.2, 0.2]},
    },
}
EVIL = "<script>alert('x')</script> | a_b*c\n[link](javascript:x)"


def score(dataset: str, mode: Any, encoder: str, values: list[float]) -> Score:
    return Score(
        dataset=dataset,
        task="retrieval",
        measure="ndcg@10",
        mode=mode,
        value=sum(values) / len(values),
        num_queries=len(values),
        encoder=encoder,
        queries=encoder,
        documents=encoder,
        compute_dtype="float32",
        dataset_digest="0",
        notes=(),
        provenance={},
        per_query={f"q{number}": value for number, value in enumerate(values)},
    )


def sts(mode: Any, encoder: str, value: float) -> Score:
    return Score("similar", "sts", "spearman", mode, value, 50, encoder, encoder, encoder, "float32", "0", (), {})


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def answer(encoder: str, mode: str, *ids: str) -> dict[str, Any]:
    documents = [{"id": each, "score": 0.9 - 0.1 * rank, "text": f"{each}: {EVIL}"} for rank, each in enumerate(ids)]
    return {"encoder": encoder, "mode": mode, "overlap": 1, "documents": documents}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete run: two students, two retrieval sets, one STS set, one example search."""
    run = tmp_path / "runs" / "small"
    put(
        run / "texts" / "manifest.json",
        {
            "fingerprint": "t",
            "sources": {
                "questions": {"read": 90, "kept": 80, "held_out": 5, "rejected": {}},
                "installed-docs": {"read": 20_000, "kept": 12_345, "held_out": 95, "rejected": {"empty": 3}},
            },
        },
    )
    for name, layers, errors in (
        ("student-table", 0, [0.8, 0.6, 0.5, 0.55]),
        ("student-2l", 2, [0.7, 0.45, 0.4]),
    ):
        best = min(errors)
        put(
            run / name / "manifest.json",
            {
                "fingerprint": name,
                "layers": layers,
                "parameters": 11_700_000 + layers * 1_800_000,
                "max_length": 128,
                "ridge_texts": 10_000,
                "error": best,
                "best_epoch": errors.index(best),
                "epochs": len(errors) - 1,
                "steps": 100,
                "num_texts": 12_425,
                "num_tokens": 900_000,
                "seconds": 41.5,
            },
        )
        space = {"id": "abc", "dim": 384, "normalised": True, "similarity": "cosine"}
        put(
            run / name / "space.json",
            {**space, "teacher": {"prompts": {"query": "search: ", "document": ""}}},
        )
        (run / name / "metrics.jsonl").write_text(
            "".join(json.dumps({"epoch": epoch, "held_out_error": each}) + "\n" for epoch, each in enumerate(errors))
        )
        put(run / "speed" / f"{name}.json", {"median_ms": 0.25 + layers, "device": "cpu", "num_queries": 100})
    hardware = {"provenance": {"hardware": {"cpu": "A CPU", "threads": 2}}}
    put(run / "speed" / "teacher.json", {"median_ms": 8.5, "device": "cpu", "num_queries": 100, **hardware})
    scores = [
        score(dataset, mode, encoder, values)
        for dataset, modes in VALUES.items()
        for mode, encoders in modes.items()
        for encoder, values in encoders.items()
    ]
    scores += [sts("teacher", "big-teacher", 0.8)]
    scores += [sts(mode, name, 0.75) for mode in ("standard", "asymmetric") for name in ("student-table", "student-2l")]
    records.write(scores, run / "scores")
    answers = [answer("big-teacher", "teacher", "d1", "d2")]
    for name in ("student-table", "student-2l"):
        answers += [answer(name, "asymmetric", "d2", "d3"), answer(name, "standard", "d3", "d2")]
    put(
        run / "scores" / "examples.json",
        [{"query": "how do I read a file", "dataset": "easy", "answers": answers}],
    )
    put(
        run / "scores" / "manifest.json",
        {
            "fingerprint": "s",
            "datasets": ["hard", "easy", "similar"],
            "provenance": {"leaf": "0.1.0", "time": "then"},
        },
    )
    return run


class Page(HTMLParser):
    """What a browser would load, the ids, and the words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.loads += [value or "" for key, value in values.items() if key in ("src", "href", "xlink:href", "srcset")]
        if values.get("id"):
            self.ids.append(str(values["id"]))

    def handle_data(self, data: str) -> None:
        self.words += data


def files(folder: Path) -> Mapping[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_schema_is_the_one_that_programs_were_promised(folder: Path) -> None:
    returned = write_report(folder, RECIPE)
    report = json.loads((folder / "report.json").read_text())
    assert report == returned
    assert {"name", "teacher", "students", "baselines", "provenance"} <= report.keys()
    assert report["teacher"]["model"] == "someone/big-teacher"
    assert report["teacher"]["dim"] == 384
    assert report["teacher"]["scores"] == pytest.approx({"hard": 0.2, "easy": 0.8, "similar": 0.8})
    assert report["baselines"] == {"bm25": pytest.approx({"hard": 0.1, "easy": 0.5})}
    table, small = report["students"]
    assert (table["name"], table["path"], table["layers"], table["epsilon"]) == (
        "student-table",
        "student-table",
        0,
        0.5,
    )
    assert (small["layers"], small["parameters"], small["epsilon"]) == (2, 15_300_000, 0.4)
    assert small["scores"]["easy"] == pytest.approx({"standard": 0.6, "asymmetric": 0.72})
    assert small["scores"]["similar"] == {"standard": 0.75, "asymmetric": 0.75}


def test_retention_is_the_mean_of_the_ratios_and_leaves_sts_out(folder: Path) -> None:
    small = write_report(folder, RECIPE)["students"][1]
    # asymmetric: (0.72/0.8 + 0.2/0.2) / 2 = 95 %. standard: (0.6/0.8 + 0.15/0.2) / 2 = 75 %.
    assert small["retention"] == pytest.approx({"asymmetric": 95.0, "standard": 75.0})
    per_dataset = small["retention_by_dataset"]["asymmetric"]
    assert per_dataset.keys() == {"easy", "hard"}
    assert per_dataset["easy"]["value"] == pytest.approx(90.0)
    low, high = small["intervals"]["asymmetric"]
    assert low < 95 < high
    # Each query of `easy` loses exactly 0.08, so the ratio depends on the teacher's mean alone, 0.6 to 1.
    assert 100 - 8 / 0.6 <= per_dataset["easy"]["low"] < per_dataset["easy"]["high"] <= 100 - 8 / 1.0 + 1e-9


def test_the_pages_say_what_the_teachers_documents_add_and_claim_no_more(folder: Path) -> None:
    write_report(folder, RECIPE)
    # `easy`: +0.2 and +0.12 on every query; `hard` is better on one query and worse on the other.
    for page in ("report.md", "report.html"):
        text = (folder / page).read_text()
        assert re.search(r"Asymmetric minus standard, in points: student-table \+12\.5 \(", text)
        assert re.search(r"student-2l (\+8\.5 \(|not resolved)", text)


def test_one_dataset_is_named_instead_of_averaged(folder: Path) -> None:
    for path in (folder / "scores").rglob("*.json"):
        if path.name.startswith(("hard", "similar")):
            path.unlink()
    report = write_report(folder, RECIPE)
    assert report["students"][1]["retention"]["asymmetric"] == pytest.approx(90.0)
    html = (folder / "report.html").read_text()
    assert "nDCG@10 on easy, 4 queries" in html
    for page in (html, (folder / "report.md").read_text()):
        assert "mean over" not in page
        assert "Per dataset" not in page


def test_the_html_loads_nothing_and_uses_no_id_twice(folder: Path) -> None:
    write_report(folder, RECIPE)
    html = (folder / "report.html").read_text()
    page = Page(html)
    assert page.tags.count("svg") == 3  # retention, error, ladder
    assert all(each.startswith("#") for each in page.loads)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "@import" not in html
    assert "url(http" not in html
    assert len(page.ids) == len(set(page.ids))
    assert "prefers-color-scheme: dark" in html
    for number in ("95.0", "75.0", "46.0", "37.5", "0.400", "15.3M", "8.50"):  # 46.0: mean of 72 and 20
        assert number in page.words


def test_texts_of_others_are_shown_and_never_run(folder: Path) -> None:
    write_report(folder, RECIPE)
    html, text = ((folder / name).read_text() for name in ("report.html", "report.md"))
    assert "alert('x')" in Page(html).words
    assert "<script" not in html
    assert "<script" not in text
    assert r"\| a\_b\*c \[link\](javascript:x)" in text  # one line, no table cell, no emphasis, no link


def test_a_line_of_markdown_keeps_its_words_and_loses_its_meaning() -> None:
    assert markdown("*a* <b> `c`") == r"\*a\* &lt;b&gt; \`c\`"
    assert markdown("it's #1") == r"it's \#1"


def test_the_card_has_front_matter_for_a_hub_and_usage_that_names_the_real_models(folder: Path) -> None:
    write_report(folder, RECIPE)
    card = (folder / "student-2l" / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["base_model"] == "someone/big-teacher"
    assert matter["datasets"] == ["someone/questions"]
    assert {
        "sentence-transformers",
        "feature-extraction",
        "sentence-similarity",
        "leaf",
        "asymmetric",
    } <= set(matter["tags"])
    assert (matter["library_name"], matter["pipeline_tag"]) == (
        "sentence-transformers",
        "sentence-similarity",
    )
    assert "license" not in matter  # nobody named one for the weights
    for snippet in re.findall(r"```python\n(.*?)```", body, re.DOTALL):
        compile(snippet, "card", "exec")
    assert 'SentenceTransformer("someone/big-teacher")' in body
    assert "teacher.max_seq_length = 128" in body
    assert '- query: `"search: "`' in body
    assert "| questions | 80 | 5 | MIT |" in body
    assert "| installed-docs | 12,345 | 95 | not stated |" in body
    assert "| easy | nDCG@10 | 4 | 80.0 | 60.0 | 72.0 | 90.0 % (" in body
    assert "keeps 95.0 %" in body
    assert "2509.12539" in body


@pytest.mark.parametrize(
    ("value", "low", "high", "says"),
    [
        (98.0, 97.0, 99.0, "keeps 98.0 %"),
        (101.0, 99.0, 103.0, "cannot tell from none"),
        (99.0, 97.0, 101.0, "cannot tell from none"),
        (102.0, 101.0, 103.0, "scores above its teacher: 102.0 %"),
    ],
)
def test_only_an_interval_clear_of_100_makes_a_claim(value: float, low: float, high: float, says: str) -> None:
    student = {"retention": {"standard": value}, "intervals": {"standard": [low, high]}}
    assert says in verdict(student, "standard")
    assert ("scores above" in verdict(student, "standard")) == (low > 100)


def test_figures_are_small_accessible_text_in_both_themes(folder: Path) -> None:
    write_report(folder, RECIPE)
    shown = {
        "retention": ["asymmetric", "95.0"],
        "error": ["student-table", "epoch"],
        "ladder": ["table", "µs a query"],
    }
    for name, words in shown.items():
        svg = (folder / "figures" / f"{name}.svg").read_text()
        assert len(svg) < 60_000
        assert all(word in re.sub(r"<[^>]*>", " ", svg) for word in words)  # as text, not as outlines
        assert 'role="img" aria-label="' in svg
        assert "currentColor" in svg
        assert "<metadata" not in svg


def test_a_student_that_answers_exactly_like_its_teacher_has_a_whisker_of_no_length(folder: Path) -> None:
    for dataset, modes in VALUES.items():
        values = [value / 3 for value in modes["teacher"]["big-teacher"]]
        same = [score(dataset, mode, "student-2l", values) for mode in ("standard", "asymmetric")]
        records.write([score(dataset, "teacher", "big-teacher", values), *same], folder / "scores")
    small = write_report(folder, RECIPE)["students"][1]
    assert small["intervals"]["standard"] == pytest.approx([100, 100])
    assert "cannot tell from none" in (folder / "student-2l" / "README.md").read_text()


def test_writing_again_changes_nothing_but_the_provenance(folder: Path) -> None:
    first = write_report(folder, RECIPE)
    before = files(folder)
    second = write_report(folder, RECIPE)
    after = files(folder)
    assert {name for name in before if before[name] != after.get(name)} <= {"report.json"}
    assert before.keys() == after.keys()
    assert {key for key in first if first[key] != second[key]} <= {"provenance"}


def test_without_matplotlib_the_report_is_complete_and_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_report(folder, RECIPE)
    assert not (folder / "figures").exists()
    html = Page((folder / "report.html").read_text())
    assert "svg" not in html.tags
    assert "pip install 'leaf[plot]'" in html.words
    assert "95.0" in html.words
    assert "pip install 'leaf[plot]'" in (folder / "report.md").read_text()


def test_a_run_without_data_examples_and_timing_still_has_a_report(folder: Path) -> None:
    manifest = (folder / "scores" / "manifest.json").read_text()
    shutil.rmtree(folder / "scores")
    shutil.rmtree(folder / "speed")
    put(folder / "scores" / "manifest.json", json.loads(manifest))
    for name in ("student-table", "student-2l"):
        (folder / name / "metrics.jsonl").unlink()
    report = write_report(folder, RECIPE)
    assert report["students"][0]["retention"] == {"standard": None, "asymmetric": None}
    assert report["baselines"] == {"bm25": {}}
    assert "No retrieval dataset was scored" in (folder / "report.html").read_text()
    assert "Not measured." in (folder / "student-2l" / "README.md").read_text()
    printed = summary(report, 100)
    assert "nDCG" not in printed
    assert "0.400" in printed


def test_progress_lines_between_the_epochs_are_no_part_of_the_error_curve(folder: Path) -> None:
    expected = write_report(folder, RECIPE)["students"][1]["errors"]
    path = folder / "student-2l" / "metrics.jsonl"
    epochs = path.read_text().splitlines(keepends=True)
    assert len(expected) == len(epochs) > 1
    progress = [{"step": 10, "lr": 0.1, "loss": 9.0, "texts_per_second": 5.0, "seconds": 1.5}] * 2
    path.write_text("".join(json.dumps(line) + "\n" for line in progress).join(epochs))
    report = write_report(folder, RECIPE)
    assert report["students"][1]["errors"] == expected
    assert f"in {len(epochs) - 1} epochs" in (folder / "figures" / "error.svg").read_text()


def test_a_teacher_that_finds_nothing_has_no_retention_and_says_so(folder: Path) -> None:
    records.write([score("hard", "teacher", "big-teacher", [0.0, 0.0])], folder / "scores")
    report = write_report(folder, RECIPE)
    assert report["students"][1]["retention"]["asymmetric"] == pytest.approx(90.0)  # `easy` alone
    assert any("hard: the teacher finds nothing" in note for note in report["notes"])


@pytest.mark.parametrize(
    "name",
    [
        "scores/manifest.json",
        "scores/examples.json",
        "scores/easy.teacher.big-teacher.ndcg@10.json",
        "student-table/space.json",
        "student-2l/metrics.jsonl",
        "student-2l/manifest.json",
        "speed/teacher.json",
        "texts/manifest.json",
    ],
)
def test_a_damaged_file_is_named(folder: Path, name: str) -> None:
    path = folder / name
    path.write_text(path.read_text()[:-9])
    with pytest.raises(LeafError, match=re.escape(str(path))):
        write_report(folder, RECIPE)


@pytest.mark.parametrize("stage", ["texts", "scores", "student-2l"])
def test_an_unfinished_stage_is_named(folder: Path, stage: str) -> None:
    (folder / stage / "manifest.json").unlink()
    with pytest.raises(LeafError, match=f"{stage} is not complete"):
        write_report(folder, RECIPE)


def test_students_scored_on_other_queries_than_the_teacher_are_refused(folder: Path) -> None:
    records.write([score("easy", "asymmetric", "student-2l", [0.5, 0.5])], folder / "scores")
    with pytest.raises(LeafError, match="other queries of easy"):
        write_report(folder, RECIPE)


def summary(report: dict[str, Any], width: int) -> str:
    console = Console(file=StringIO(), width=width, highlight=False)
    print_summary(report, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_the_summary_has_every_system_and_fits_100_columns_in_a_pipe(folder: Path) -> None:
    report = write_report(folder, RECIPE)
    printed = summary(report, 80)
    lines = [line.rstrip() for line in printed.splitlines()]
    assert max(map(len, lines[:-3])) <= 100  # the last three are paths, which are never cut
    table = {tuple(line.split()[:2]): line.split() for line in lines}
    assert table["teacher", "50.0"][1:] == ["50.0", "80.0", "–", "8.50"]
    assert table["BM25", "30.0"] == ["BM25", "30.0"]
    assert table["student-2l", "standard"][2:4] == ["37.5", "75.0"]
    assert table["student-2l", "standard"][-3:] == ["0.400", "15.3M", "2.25"]
    assert table["student-2l", "asymmetric"][2:4] == ["46.0", "95.0"]  # 46 is the mean of 72 and 20
    assert "of the teacher's top 2: student-table 1, student-2l 1" in printed
    assert "0.90 ✓ d2: d2: <script>" in printed
    assert "0.80   d3: d3: <script>" in printed
    assert lines[-3:] == [f"{folder}/report.html", f"{folder}/student-table", f"{folder}/student-2l"]
    assert "\x1b" not in printed


def test_reading_and_writing_a_report_needs_no_torch() -> None:
    code = "import sys, leaf.report; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_card_names_the_licence_of_every_source_and_those_that_forbid_commercial_use(folder: Path) -> None:
    path = folder / "texts" / "manifest.json"
    manifest = json.loads(path.read_text())
    counts = {"read": 9, "kept": 7, "held_out": 1, "rejected": {}}
    manifest["sources"] |= {
        "MS MARCO": counts,
        "wiki": {**counts, "entry": "mixed"},
        "a|b": {**counts, "entry": "mixed"},
    }
    put(path, manifest)
    texts = [
        *(each.model_dump() for each in RECIPE.texts),
        {"source": "hub:someone/marco", "name": "MS MARCO", "licence": "research only", "commercial": False},
        {"source": f"hub:{folder}", "name": "mixed", "licence": "CC-BY", "commercial": True, "source_column": "from"},
    ]
    write_report(folder, RECIPE.model_validate({**RECIPE.model_dump(), "texts": texts}))
    card = (folder / "student-2l" / "README.md").read_text()
    table = card.partition("## Texts")[2].partition("##")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert rows == [
        "| questions | 80 | 5 | MIT |",
        "| installed-docs | 12,345 | 95 | not stated |",
        "| MS MARCO | 7 | 1 | research only |",
        "| wiki | 7 | 1 | CC-BY |",
        r"| a\|b | 7 | 1 | CC-BY |",
    ]
    assert "**Their licences forbid commercial use**: MS MARCO.\n" in table
    matter = card.split("---")[1]
    assert '- "someone/marco"' in matter
    assert str(folder) not in matter  # a folder is no data set of the hub
    write_report(folder, RECIPE)
    assert "forbid commercial use" not in (folder / "student-2l" / "README.md").read_text()
