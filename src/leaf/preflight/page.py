"""The probe on one page: warnings first, then what to expect of each student, then the grounds for it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

Record = Mapping[str, Any]
#: Columns that a pipe is given, which has no width of its own.
PIPE_WIDTH = 110
#: Characters of an example query.
EXAMPLE = 45


def print_page(record: Record, console: Console) -> None:
    """Prints the record of a probe."""
    width = console.width if console.is_terminal else max(console.width, PIPE_WIDTH)

    def line(text: str = "", style: str = "") -> None:
        for each in Text(text, style).wrap(console, width):
            console.print(each, soft_wrap=True)

    def table(rows: Sequence[Sequence[str]]) -> None:
        shown = console.render(_table(rows), console.options.update(max_width=width))
        console.print(Segments(shown), soft_wrap=True, end="")

    teacher, sample = record["teacher"], record["sample"]
    line(f"{record['recipe']}: what to expect of students of {teacher['name']}", "bold")
    line(
        f"from {sample['texts']:,} of about {sample['training_texts']:,} training texts and "
        f"{sum(each['queries'] for each in record['datasets'].values()):,} queries, {record['seconds']:.0f} s",
        "dim",
    )
    line()
    for warning in record["warnings"]:
        line(f"! {warning}", "yellow")
    for note in record["notes"]:
        line(f"  {note}", "dim")
    if not record["warnings"]:
        line("No warnings.", "green")
    line()
    table(_students(record))
    for sentence in _caption(record):
        line(sentence, "dim")
    line()
    line(_space(teacher))
    if record["forms"]:
        line()
        _print_forms(record["forms"], line, table)
    line()
    table(_lengths(record["tokens"]))
    line("cut: texts longer than the tokenizer takes. Unknown: tokens that are in no vocabulary.", "dim")


def _students(record: Record) -> list[list[str]]:
    measure = "retention %" if record["students"][0]["predicted"]["measure"] == "ndcg@10" else "overlap@10 %"
    rows = [["student", "ε before", "lowest ε", "expected ε", f"{measure} before", f"expected {measure}", "at most"]]
    for student in record["students"]:
        predicted = student["predicted"]
        rows.append(
            [
                student["name"],
                f"{student['epsilon_start']:.3f}",
                f"{student['rank_bound']:.3f}",
                _range(predicted["epsilon"], 3),
                f"{student['floor']:.1f}",
                _range(predicted["asymmetric"], 1),
                f"{student['ceiling']:.1f}",
            ]
        )
    return rows


def _caption(record: Record) -> Iterable[str]:
    sets = record["datasets"]
    if record["students"][0]["predicted"]["measure"] == "ndcg@10":
        yield (
            "Asymmetric retention: queries by the student, documents by the teacher, in percent of the teacher's "
            f"nDCG@10, mean of {', '.join(sets)}."
        )
        cut = [name for name, each in sets.items() if each["documents"] < each["all_documents"]]
        if cut:
            yield (f"Of {', '.join(cut)} only a part of the documents was searched, and the rest reckoned with.")
    else:
        yield "Overlap@10: share of the teacher's ten nearest sample texts that the student's query finds too."
    yield "Before: the untrained backbone under a closed-form head. Lowest, at most: what the width of the head allows."
    basis = dict.fromkeys(each for student in record["students"] for each in student["basis"])
    yield "Expected ε is carried over from finished runs, a rule of thumb: " + "; ".join(basis) + "."


def _space(teacher: Record) -> str:
    energy = teacher["energy"]
    marks = [next(rank for rank, kept in enumerate(energy, 1) if kept >= share) for share in (0.5, 0.9, 0.99)]
    length = "unit length" if teacher["normalised"] else "no unit length"
    return (
        f"The space: {teacher['dim']} dimensions, {length}; half of the energy in {marks[0]} directions, 90 % in "
        f"{marks[1]}, 99 % in {marks[2]}; effective rank {teacher['effective_rank']:.0f}; "
        f"{100 * teacher['mean_share']:.0f} % is the mean vector's."
    )


def _print_forms(forms: Record, line: Any, table: Any) -> None:
    near = forms["nearest"]
    line(
        f"The queries: {100 * forms['covered']:.0f} % of {forms['evaluation_queries']:,} evaluation queries are of a "
        f"form that the {forms['training_queries']:,} training queries of the sample have; {100 * near['far']:.0f} % "
        "are further from every training text than 95 % of held-out training queries (5 % would be no shift; median "
        f"cosine to the nearest {near['evaluation'][2]:.2f} against {near['training'][2]:.2f})."
    )
    if forms["worst"]:
        rows = [["form that is hardly trained on", "evaluation %", "training %", "example"]]
        for form in forms["worst"]:
            example = " ".join(form["example"].split())
            short = example if len(example) <= EXAMPLE else example[: EXAMPLE - 1] + "…"
            rows.append([form["form"], f"{100 * form['evaluation']:.1f}", f"{100 * form['training']:.1f}", short])
        table(rows)


def _lengths(entries: Sequence[Record]) -> list[list[str]]:
    rows = [["texts", "read by", "mean tokens", "limit", "texts cut %", "tokens cut %", "unknown %"]]
    everybody = [name for entry in entries for name in entry["encoders"]]
    for group in dict.fromkeys(group for entry in entries for group in entry["rates"]):
        alike: dict[tuple[str, ...], list[Record]] = {}  # what looks the same in print is one row
        for entry in entries:
            rates = entry["rates"][group]
            limit = "none" if rates["max_length"] is None else str(rates["max_length"])
            shares = f"{100 * rates['texts_cut']:.0f}", f"{100 * rates['tokens_cut']:.0f}"
            alike.setdefault((limit, *shares, f"{100 * rates['tokens_unknown']:.2f}"), []).append(entry)
        for cells, same in alike.items():
            names = [name for entry in same for name in entry["encoders"]]
            who = "all" if len(names) == len(everybody) else ", ".join(names)
            rows.append([group, who, f"{same[0]['rates'][group]['mean_tokens']:.0f}", *cells])
    return rows


def _range(interval: Record, digits: int) -> str:
    expected, low, high = (f"{interval[key]:.{digits}f}" for key in ("expected", "low", "high"))
    return f"{expected} ({low}–{high})"


def _table(rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    words = {"student", "texts", "read by", "example", "form that is hardly trained on"}
    for title in rows[0]:
        table.add_column(title, justify="left" if title in words else "right")
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    return table
