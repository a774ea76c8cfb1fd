"""What a probe foretold (`leaf plan --probe`) beside what came of it, and the teacher's rank as a figure.

Everything takes the probe as plain data: the content of `preflight.json`.
"""

from collections.abc import Mapping
from typing import Any

from leaf.figures import COLOURS, INK, STYLE, WIDTH, Figure, to_svg
from leaf.report.words import NONE, Table, decimals

Data = Mapping[str, Any]


def compare(preflight: Data, report: Data) -> tuple[Table, list[str]]:
    """A row for each student that was probed and trained, and what they come to, one sentence each.

    `report` is the content of `report.json`. A retention is compared only where the probe foretold one: without local
    retrieval sets it foretells an overlap. A probe of another recipe or teacher is not compared at all.
    """
    rows = [["student", "ε foretold", "ε reached", "asymmetric % foretold", "asymmetric % reached"]]
    if (preflight["recipe"], preflight["teacher"]["model"]) != (report["name"], report["teacher"]["model"]):
        other = f"{preflight['recipe']} with {preflight['teacher']['model']}"
        return rows, [f"The probe in this folder is of another run ({other}) and is not compared."]
    reached = {student["name"]: student for student in report["students"]}
    verdicts: dict[str, list[bool]] = {"ε": [], "asymmetric retention": []}
    for student in preflight["students"]:
        if (outcome := reached.get(student["name"])) is None:
            continue
        predicted = student["predicted"]
        kept = outcome["retention"]["asymmetric"] if predicted["measure"] == "ndcg@10" else None
        row = [student["name"]]
        for name, foretold, value, digits in (
            ("ε", predicted["epsilon"], outcome["epsilon"], 3),
            ("asymmetric retention", predicted["asymmetric"], kept, 1),
        ):
            if value is None:
                row += [NONE, decimals(outcome["retention"]["asymmetric"], digits)]
                continue
            inside = foretold["low"] <= value <= foretold["high"]
            verdicts[name].append(inside)
            row += [_range(foretold, digits), f"{decimals(value, digits)}{'' if inside else ' (outside)'}"]
        rows.append(row)
    if len(rows) == 1:
        return rows, ["None of the students that were probed was trained."]
    said = [
        f"Before training, a probe of {preflight['sample']['texts']:,} texts foretold ranges: "
        + " and ".join(
            f"{name} came out inside for {sum(each)} of {len(each)}" for name, each in verdicts.items() if each
        )
        + f" student{'' if len(rows) == 2 else 's'}."
    ]
    if not verdicts["asymmetric retention"]:
        said.append("The probe had no retrieval set of its own, and foretold no retention.")
    return rows, said


def draw_rank(preflight: Data) -> Figure | None:
    """The energy kept by the leading directions of the teacher's space, with each student's width; None without plot.

    A lookup table has no width: its rows learn every dimension.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        return None
    teacher = preflight["teacher"]
    energy, dim = teacher["energy"], teacher["dim"]
    widths: dict[int, list[str]] = {}
    for student in preflight["students"]:
        if student["width"] is not None:
            widths.setdefault(min(student["width"], dim), []).append(student["name"].removeprefix("student-"))
    said = []
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH, 2.9), layout="constrained")
        axes = canvas.add_subplot()
        axes.plot(range(dim + 1), [0, *(100 * share for share in energy)], color=INK, linewidth=1.8)
        for position, (width, names) in enumerate(sorted(widths.items())):
            kept, colour = 100 * energy[width - 1], COLOURS[position % len(COLOURS)]
            axes.axvline(width, color=colour, linewidth=1.2, linestyle="--")
            axes.plot(width, kept, "o", markersize=6, color=colour, label=f"{', '.join(names)}: {width} wide")
            said.append(f"{', '.join(names)} with {width} dimensions {kept:.1f} %")
        axes.axvline(teacher["effective_rank"], color=INK, linewidth=1, linestyle=":")
        axes.annotate(
            f"effective rank {teacher['effective_rank']:.0f}",
            (teacher["effective_rank"], 4),
            (-4, 0),
            textcoords="offset points",
            ha="right",
        )
        axes.set(xlim=(0, 1.02 * dim), ylim=(0, 103), xlabel="leading directions", ylabel="% of the energy")
        if widths:
            canvas.legend(loc="outside upper right", ncols=min(2, len(widths)))
        alt = f"Energy of {teacher['name']}'s vectors kept by their leading directions: " + "; ".join(
            [*said, f"effective rank {teacher['effective_rank']:.0f} of {dim}"]
        )
        return Figure("How many directions the teacher's space has", f"{alt}.", to_svg(canvas, "rank", f"{alt}."))


def _range(foretold: Data, digits: int) -> str:
    return f"{foretold['expected']:.{digits}f} ({foretold['low']:.{digits}f}–{foretold['high']:.{digits}f})"
