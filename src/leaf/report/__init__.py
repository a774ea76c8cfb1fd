"""Report: the whole run on one page, for people and for programs.

Reads:  the run's files alone: manifests, `scores/`, `speed/`, the students' `metrics.jsonl` and `space.json`.
Writes: `report.json`, `report.md`, `report.html` (self-contained), `figures/*.svg`, model cards.

    from rich.console import Console

    report = write_report(Path("runs/demo"), recipe)
    print_summary(report, Console())
"""

from collections import ChainMap
from pathlib import Path
from typing import Any

from leaf.files import write_json, write_text
from leaf.recipe import Recipe
from leaf.report.data import read_run
from leaf.report.figures import draw_figures
from leaf.report.pages import render
from leaf.report.sections import records, sections
from leaf.report.summary import print_summary

__all__ = ["print_summary", "write_report"]


def write_report(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Writes the report of the run in `folder` and returns what is in `report.json`.

    Figures need the extra `plot`; without it the pages say so and are otherwise complete. Raises `LeafError`
    naming the file that is missing or damaged. Written again, only the provenance in `report.json` differs.
    """
    report = read_run(folder, recipe)
    report |= records(folder)
    figures, more = draw_figures(report["students"]), sections(folder, report)
    for name, figure in ChainMap(figures, *(each.figures for each in more)).items():
        write_text(folder / "figures" / f"{name}.svg", figure.svg)
    for student in report["students"]:
        write_text(folder / student["path"] / "README.md", render("card.md", report, student=student))
    for page in ("report.md", "report.html"):
        write_text(folder / page, render(page, report, figures=figures, sections=more))
    write_json(folder / "report.json", report)
    return report
