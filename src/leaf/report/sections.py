"""What a report says beyond its main table, section by section, for Markdown and HTML alike.

A section is there when its record is: curves when truncation or precision was measured, a margin when checkpoints were
kept, a prediction when the run was probed beforehand.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from leaf.errors import LeafError
from leaf.evaluation import curves
from leaf.evaluation.adaptation import Change
from leaf.evaluation.compare import Comparison
from leaf.figures import Figure
from leaf.report import adaptation, alignment, ladder, margin, preflight
from leaf.report.curves import curves_caption, curves_table, draw_curves
from leaf.report.scores import student_table
from leaf.report.words import Table, count
from leaf.run import MANIFEST


class Section(NamedTuple):
    """A heading, sentences, tables with a title each, and figures by file name."""

    title: str
    said: list[str]
    tables: list[tuple[str, Table]]
    figures: dict[str, Figure]


def sections(folder: Path, report: Mapping[str, Any]) -> list[Section]:
    """The sections of the run in `folder`, in order; `report` is the content of `report.json`."""
    return [
        each
        for make in (_ladder, _adaptation, _kept, _curves, _alignment, _margins, _prediction, _vectors)
        for each in make(folder, report)
    ]


def records(folder: Path) -> dict[str, Any]:
    """What `report.json` says of the same: curves without their points, alignments without examples, margins."""
    found: dict[str, Any] = {}
    if (path := folder / "scores" / "curves.json").exists():
        found["curves"] = [asdict(each) for each in curves.read(path).summary]
    if (path := folder / "scores" / "alignment.json").exists():
        found["alignment"] = [
            {key: value for key, value in each.items() if key not in ("examples", "worst")} for each in _read(path)
        ]
    if (path := folder / "scores" / "adaptation.json").exists():
        found["adaptation"] = _read(path)
    margins = {path.stem.removeprefix("margin-"): path for path in sorted((folder / "scores").glob("margin-*.json"))}
    if margins:
        found["margin"] = {mode: _read(path)["margin"] for mode, path in margins.items()}
    return found


def _ladder(folder: Path, report: Mapping[str, Any]) -> Iterator[Section]:
    """What a query costs with each encoder over the teacher's documents, and what is kept of the teacher."""
    found = ladder.report_points(report)
    if len(found) > 1:
        figure = ladder.draw_ladder(found, ladder.machine(report["speed"]))
        said = ladder.caption(found, ladder.machine(report["speed"]))
        yield Section(ladder.TITLE, said, [("Query encoders", ladder.ladder_table(found))], _named("ladder", figure))


def _named(name: str, figure: Figure | None) -> dict[str, Figure]:
    """The figure by its file name; nothing without matplotlib."""
    return {} if figure is None else {name: figure}


def _adaptation(folder: Path, report: Mapping[str, Any]) -> Iterator[Section]:
    """What going on from another student changed, on own and guard texts and in scores."""
    path = folder / "scores" / "adaptation.json"
    if not path.exists():
        return
    for name, data in _read(path).items():
        changes = [Change.from_json(each) for each in data]
        tables = [("Distance to the teacher", adaptation.error_table(changes))]
        if any(each.mode != "error" for each in changes):
            tables.append(("Scores", adaptation.score_table(changes)))
        yield Section(f"Before and after: {name}", adaptation.verdict(changes), tables, {})


def _kept(folder: Path, report: Mapping[str, Any]) -> Iterator[Section]:
    """Per dataset: what each student keeps of its teacher."""
    tables = []
    for student in report["students"]:
        found, averages = ([Comparison.from_json(each) for each in student[key]] for key in ("comparisons", "means"))
        if len(found) > 1:
            tables.append((student["name"], student_table(found, averages)))
    if tables:
        said = (
            "Percent of the teacher's score with 95 % paired bootstrap intervals. Not resolved: the interval of the "
            "difference covers 0, so these queries cannot tell it from none."
        )
        yield Section("What is kept, dataset by dataset", [said], tables, {})


def _curves(folder: Path, report: Mapping[str, Any]) -> Iterator[Section]:
    path = folder / "scores" / "curves.json"
    if not path.exists():
        return
    found = curves.read(path)
    tables = [(student, curves_table(found, student)) for student in found.students]
    yield Section("Fewer dimensions and bits", [curves_caption(found)], tables, draw_curves(found))


def _alignment(folder: Path, report: Mapping[str, Any]) -> Iterator[Section]:
    path = folder / "scores" / "alignment.json"
    if not path.exists():
        return
    for each in _read(path):
        tables = [("Vectors", alignment.closeness_table(each))]
        if each["asymmetric"]:
            tables.append(("Search", alignment.search_table(each)))
        tables.append(("Furthest from the teacher", alignment.worst_table(each)))
        name = f"alignment-{each['student']}"
        figure = alignment.draw_alignment(each, name)
        title = f"Without judgements: {each['student']} on held-out texts"
        yield Section(title, alignment.verdict(each), tables, _named(name, figure))


def _margins(folder: Path, report: Mapping[str, Any]) -> Iterator[Section]:
    for path in sorted((folder / "scores").glob("margin-*.json")):
        each = _read(path)["margin"]
        figure = margin.draw_margin(each)
        tables = [("Checkpoints", margin.checkpoint_table(each))]
        yield Section(f"Robustness margin, {each['mode']}", margin.verdict(each), tables, _named(path.stem, figure))


def _prediction(folder: Path, report: Mapping[str, Any]) -> Iterator[Section]:
    path = folder / "preflight.json"
    if not path.exists():
        return
    probe = _read(path)
    rows, said = preflight.compare(probe, report)
    figure = preflight.draw_rank(probe)
    yield Section("Predicted and reached", said, [("Prediction", rows)], _named("rank", figure))


def _vectors(folder: Path, report: Mapping[str, Any]) -> Iterator[Section]:
    """Where vectors came from that no model here computed: what an API was paid, what an index covers."""
    said = []
    manifests = [_read(path) for path in sorted((folder / "embeddings").glob(f"[!.]*/{MANIFEST}"))]
    bills = [bill for each in (*manifests, _read(folder / "scores" / MANIFEST)) if (bill := each.get("bill"))]
    if bill := max(bills, key=lambda bill: bill["tokens"], default=None):  # each is of the run until then
        cost = "" if bill["cost"] is None else f", ${bill['cost']:,.2f}"
        said.append(
            f"Bought from {report['teacher']['model']}: {count(bill['texts_bought'])} texts in "
            f"{count(bill['requests'])} requests, {count(bill['tokens'])} tokens{cost}."
        )
    for covered in (each["coverage"] for each in manifests if each.get("coverage")):
        said += [f"{line[0].upper()}{line[1:]}." for line in covered["sentence"].splitlines()]
    if said:
        yield Section("Where the vectors came from", said, [], {})


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LeafError(f"{path} is damaged ({error}); delete its folder and run the recipe again") from error
