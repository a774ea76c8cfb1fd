"""What the stages of a recipe have to show to people: their manifests and records as tables."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaf.cli.common import stdout, table_of
from leaf.errors import LeafError

if TYPE_CHECKING:
    from leaf.evaluation.records import Score
    from leaf.evaluation.statistics import Interval
    from leaf.evaluation.suite import Measured

NOTE = (
    "Scores in points of 100; % kept: of the teacher's score, with its 95 % paired bootstrap interval. Not resolved: "
    "the interval of the difference covers 0, so these queries cannot tell it from none."
)


def print_report(report: dict[str, Any]) -> None:
    """The report in short."""
    from leaf.report import print_summary

    print_summary(report, stdout)


def print_texts(manifest: Mapping[str, Any]) -> None:
    """What became of the rows of each source."""
    table = table_of("source", "read", "kept", "held-out", "rejected", numeric="read,kept,held-out")
    for name, counts in manifest["sources"].items():
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts["rejected"].items() if count)
        table.add_row(name, f"{counts['read']:,}", f"{counts['kept']:,}", f"{counts['held_out']:,}", reasons or "none")
    stdout.print(table)
    if leaks := manifest.get("leaks"):
        found = {name: each["equal"] + each["contains"] for name, each in leaks["benchmarks"].items()}
        where = ", ".join(f"{name} {count:,}" for name, count in found.items() if count)
        stdout.print(
            f"leak check: {leaks['texts']:,} texts dropped that are in a benchmark{f' ({where})' if where else ''}; "
            f"{len(found)} checked",
            soft_wrap=True,
        )


def print_vectors(manifest: Mapping[str, Any] | None, share: tuple[int, int] = (0, 1)) -> None:
    """What the cache holds, and the bill; None is that of a rank that was not the last."""
    if manifest is None:
        stdout.print(f"the shards of rank {share[0]} of {share[1]} are done; others have some left", soft_wrap=True)
        return
    stored = " and ".join(sorted({part["dtype"] for part in manifest["parts"]}))
    unit = "unit length" if manifest["normalised"] else "not normalised"
    stdout.print(f"{manifest['rows']:,} vectors, {manifest['dim']} dimensions, {stored}, {unit}")
    if bill := manifest.get("bill"):
        cost = "" if bill["cost"] is None else f", ${bill['cost']:,.2f}"
        stdout.print(
            f"bought: {bill['texts_bought']:,} texts, {bill['tokens']:,} tokens{cost}; {bill['texts_had']:,} were "
            "there already",
            soft_wrap=True,
        )


def print_students(manifests: Mapping[str, Mapping[str, Any]]) -> None:
    """A row for each student that was trained."""
    table = table_of(
        "student",
        "layers",
        "parameters",
        "held-out ε",
        "best epoch",
        "seconds",
        numeric="layers,parameters,held-out ε,seconds",
    )
    for name, each in manifests.items():
        table.add_row(
            name,
            str(each["layers"]),
            f"{each['parameters'] / 1e6:.1f}M",
            f"{each['error']:.4f}",
            f"{each['best_epoch']} of {each['epochs']}",
            f"{each['seconds']:.0f}",
        )
    stdout.print(table)


def print_sweep(record: dict[str, Any]) -> None:
    """The tables of a sweep."""
    from leaf.report.sweep import print_sweep as show

    show(record, stdout)


def print_measured(measured: "Measured") -> None:
    """Scores, then curves, then what could not be measured."""
    print_scores(measured.scores)
    if measured.curves is not None:
        from leaf.report.curves import curves_table
        from leaf.report.summary import print_table

        for student in measured.curves.students:
            stdout.print(f"\n{student}, in fewer dimensions and bits: nDCG@10, mean over sets", style="bold")
            print_table(curves_table(measured.curves, student), stdout)
    if measured.not_measured:  # each has said why when it came to it
        stdout.print(f"Not measured: {', '.join(measured.not_measured)}", soft_wrap=True)


def print_alignments(alignments: Sequence[dict[str, Any]]) -> None:
    """Each student beside its teacher."""
    from leaf.report.alignment import print_alignment

    for alignment in alignments:
        print_alignment(alignment, stdout)


def print_scores(scores: "Sequence[Score]") -> None:
    """A table for each student beside its teacher, or one for an encoder alone."""
    from leaf.evaluation.compare import compare, means
    from leaf.report.scores import lone_table, student_table
    from leaf.report.summary import print_table

    names = dict.fromkeys(each.encoder for each in scores if each.mode in ("standard", "asymmetric"))
    teachers = any(each.mode == "teacher" for each in scores)
    for position, name in enumerate(names):
        if position:
            stdout.print()
        if teachers or len(names) > 1:
            stdout.print(f"{name}, beside its teacher" if teachers else name, style="bold")
        own = [each for each in scores if each.encoder == name or each.mode == "bm25"]
        rows = student_table(compare(scores, name), means(scores, name)) if teachers else lone_table(own)
        print_table(rows, stdout)
    if teachers:
        stdout.print(NOTE, style="dim", soft_wrap=True)


def check_figure(path: Path) -> None:
    """Raises `LeafError` for a figure that could not be written, before anything is measured for it."""
    if path.suffix != ".svg":
        raise LeafError(f"--figure {path} is no .svg, which is what is drawn; give FILE.svg")
    if importlib.util.find_spec("matplotlib") is None:
        raise LeafError("--figure needs matplotlib; pip install 'leaf[plot]'")


def draw_points(
    kept: "Mapping[str, Interval | None]", latencies: Mapping[str, Mapping[str, Any]], path: Path, *, quiet: bool
) -> None:
    """Draws quality against the time of a query into `path`, and unless it is to be quiet, prints the same table."""
    from leaf.files import write_text
    from leaf.provenance import hardware
    from leaf.report import ladder
    from leaf.report.summary import print_table

    found = ladder.points(kept, latencies)
    timed = next(iter(latencies.values()))
    where = ladder.machine({**hardware(), **timed})
    figure = ladder.draw_ladder(found, where)
    if figure is None:
        raise LeafError(f"{path}: a figure needs two encoders; give --queries STUDENT beside the teacher")
    write_text(path, figure.svg)
    if not quiet:
        stdout.print()
        print_table(ladder.ladder_table(found), stdout)
        for sentence in ladder.caption(found, where):
            stdout.print(sentence, style="dim", soft_wrap=True)
        stdout.print(str(path), soft_wrap=True)


def print_exported(manifests: Mapping[str, Mapping[str, Any]]) -> None:
    """Every ONNX file beside PyTorch."""
    columns = ("student", "file", "MB", "ε", "added", "least cosine")
    table = table_of(*columns, numeric="MB,ε,added,least cosine")
    for name, manifest in manifests.items():
        table.add_row(name, "PyTorch", "", f"{manifest['student_error']:.4f}")
        for each in manifest["files"].values():
            shown = f"{each['bytes'] / 1e6:.1f}", f"{each['error']:.4f}", f"{each['added_error']:+.4f}"
            table.add_row("", each["file"], *shown, f"{each['min_cosine']:.5f}")
    stdout.print(table)
    for name, manifest in manifests.items():
        where = f"{manifest['num_texts']:,} {manifest['texts']}" + (" texts" if manifest["texts"] == "held-out" else "")
        stdout.print(f"{name}: mean distance to the teacher's vectors of {where}", style="dim", soft_wrap=True)
