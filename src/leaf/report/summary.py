"""The report in a terminal: one table, the example searches, and where the files are."""

from typing import Any

from rich.console import Console
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from leaf.evaluation.adaptation import Change
from leaf.report import words
from leaf.report.adaptation import error_table, score_table

#: Columns that a pipe is given, which has no width of its own; a terminal keeps its own.
PIPE_WIDTH = 100
#: Wider than any table.
WHOLE = 1000
#: Columns of names.
LEFT = ("encoder", "computed by", "mode", "task", "dataset", "measure", "held-out texts")
#: Documents shown of each example search.
SHOWN = 3


def print_summary(report: dict[str, Any], console: Console) -> None:
    """Prints the scores, what the best student finds for the example queries, and where the files are."""
    width = console.width if console.is_terminal else max(console.width, PIPE_WIDTH)

    def line(text: str = "", style: str = "") -> None:
        shown = Text(text, style)
        shown.truncate(width, overflow="ellipsis")
        console.print(shown, soft_wrap=True)

    teacher = report["teacher"]
    line(f"{report['name']}: students of {teacher['name']}, {teacher['dim']} dimensions", "bold")
    line()
    print_table(words.results(report), console, width)
    for sentence in words.caption(report):
        line(sentence, "dim")
    for name, changes in report.get("adaptation", {}).items():
        line()
        line(f"{name}, before and after", "bold")
        print_table(error_table([Change.from_json(each) for each in changes]), console, width)
        if len(scores := score_table([Change.from_json(each) for each in changes])) > 1:
            print_table(scores, console, width)
    best = max(report["students"], key=lambda each: (each["retention"]["asymmetric"] or 0, -each["epsilon"]))
    if report["examples"]:
        line()
        line(f"Searches by {best['name']} in {teacher['name']}'s index (✓: the teacher finds it too)", "bold")
    for example in report["examples"]:
        asymmetric = {each["encoder"]: each for each in example["answers"] if each["mode"] == "asymmetric"}
        line(f"“{example['query']}”")
        for document in asymmetric[best["name"]]["documents"][:SHOWN]:
            found = "✓" if document["teacher_too"] else " "
            line(f"  {document['score']:.2f} {found} {document['id']}: {document['text']}", "dim")
        shared = ", ".join(f"{name} {answer['overlap']}" for name, answer in asymmetric.items())
        line(f"  of the teacher's top {len(example['answers'][0]['documents'])}: {shared}")
    line()
    for name in ("report.html", *(student["path"] for student in report["students"])):
        console.print(Text(f"{report['folder']}/{name}"), soft_wrap=True)  # whole, however long: to be copied


def print_table(rows: words.Table, console: Console, width: int | None = None) -> None:
    """Prints rows, the first of them a header: names to the left, numbers to the right.

    A terminal folds at its own width, or at `width`; a pipe gets whole rows.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in rows[0]:
        table.add_column(title, justify="left" if title in LEFT else "right")
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    width = width or (console.width if console.is_terminal else WHOLE)
    lines = console.render(table, console.options.update(max_width=width))
    console.print(Segments(lines), soft_wrap=True, end="")
