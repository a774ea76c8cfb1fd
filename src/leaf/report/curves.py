"""The paper's Fig. 5 and 6 for a run: nDCG@10 by dimension and by precision, a figure and a table per student.

curves = read(folder / "curves.json")
figures |= draw_curves(curves)                  # {"curves-student": Figure}
rows = curves_table(curves, "student")
"""

from collections.abc import Callable, Sequence
from typing import Any

from leaf.compression import Precision
from leaf.evaluation.curves import CurveMode, Curves, Summary
from leaf.evaluation.statistics import Interval
from leaf.figures import INK, STYLE, Figure, to_svg
from leaf.report import words
from leaf.report.figures import MODE_COLOURS

#: In this order in legend and table: what is inherited first, then by whom.
LINES: dict[CurveMode, dict[str, Any]] = {
    "teacher": {"color": INK, "linestyle": "--", "marker": "D", "markersize": 4},
    "standard": {"color": MODE_COLOURS["standard"], "marker": "s", "markersize": 4.5},
    "asymmetric": {"color": MODE_COLOURS["asymmetric"], "marker": "o", "markersize": 5},
}
PRECISION_WORDS: dict[Precision, str] = {
    "float32": "float32",
    "int8": "int8",
    "int8xbinary": "int8 × binary",
    "binary": "binary",
}
#: Inches: wider than the other figures, for two panels.
SIZE = (6.8, 3.0)
#: Points of nDCG@10 that a panel is high at least, so that a tenth of a point does not look like a cliff. Each panel
#: has its own scale: halving the dimension thrice may cost ten times what a precision does.
HEIGHT = 10.0
#: Shortest distance of two tick labels below the axis, in factors of the dimension.
APART = 1.3


def draw_curves(curves: Curves) -> dict[str, Figure]:
    """One figure per student by name, `curves-<student>`; none without matplotlib, or for a single size.

    Intervals are in the table, not here: a score's own interval says how much queries differ from each other, which is
    far more than teacher and student differ on the same ones.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        return {}
    figures = {}
    with matplotlib.rc_context(STYLE):
        for student in curves.students:
            canvas = Canvas(figsize=SIZE, layout="constrained")
            alt = _draw(canvas, curves, student)
            if alt is not None:
                name = f"curves-{student}"
                title = f"nDCG@10 by dimension and precision, {student}"
                figures[name] = Figure(title, alt, to_svg(canvas, name, alt))
    return figures


def curves_table(curves: Curves, student: str) -> words.Table:
    """All sizes of one student: nDCG@10 of teacher and student, and what is kept of it with 95 % intervals.

    The teacher's percentage is of its own full size: what the size costs. The student's is of the teacher at the same
    size: whether that is inherited.
    """
    shown = {(each.size, each.mode): each for each in curves.summary if each.encoder in (curves.teacher, student)}
    kept = "% of the teacher"
    header = ["dimensions", "precision", "bytes a vector", "teacher", "% of full size", "standard", kept]
    rows = [[*header, "asymmetric", kept]]
    for size in dict.fromkeys(each.size for each in curves.summary):
        teacher, standard, asymmetric = (shown[size, mode] for mode in LINES)
        row = [words.count(teacher.dim), PRECISION_WORDS[teacher.precision], words.count(teacher.bytes_per_document)]
        row += [words.points(teacher.value), _percent(teacher.of_full_size)]
        for each in (standard, asymmetric):
            row += [words.points(each.value), _percent(each.of_teacher)]
        rows.append(row)
    return rows


def curves_caption(curves: Curves) -> str:
    """What the columns of the table mean."""
    num = len(curves.digests)
    sets = f"mean over {num} datasets" if num > 1 else f"on {next(iter(curves.digests))}"
    return (
        f"nDCG@10, {sets}. % of full size: of the teacher's {curves.dim} dimensions in float32. % of the teacher: at "
        "the same dimensions and precision. In brackets: 95 % paired bootstrap interval over queries. Bytes: of a "
        "document; int8 × binary is int8 queries over binary documents. int8 is calibrated once, on documents of the "
        "teacher."
    )


def _draw(canvas: Any, curves: Curves, student: str) -> str | None:
    """Draws the panels that there is more than one size for and says what they show; None where there are none."""
    mine = [each for each in curves.summary if each.encoder in (curves.teacher, student)]
    by_dim = [each for each in mine if each.precision == "float32"]
    by_precision = [each for each in mine if each.dim == curves.dim]
    dims = sorted({each.dim for each in by_dim})
    precisions = [each for each in PRECISION_WORDS if any(each == one.precision for one in by_precision)]
    panels = (["dim"] if len(dims) > 1 else []) + (["precision"] if len(precisions) > 1 else [])
    if not panels:
        return None
    axes = dict(zip(panels, canvas.subplots(1, len(panels), squeeze=False)[0], strict=True))
    axes[panels[0]].set_ylabel("nDCG@10")
    said = []
    if "dim" in axes:
        _by_dim(axes["dim"], by_dim, dims)
        said.append("in float32 by dimension: " + _said(by_dim, lambda each: str(each.dim)))
    if "precision" in axes:
        _by_precision(axes["precision"], by_precision, precisions, curves.dim)
        said.append(f"in {curves.dim} dimensions: " + _said(by_precision, lambda e: PRECISION_WORDS[e.precision]))
    handles, labels = axes[panels[0]].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper right", ncols=len(LINES))
    return f"nDCG@10 of {student} and its teacher, " + "; ".join(said) + "."


def _by_dim(axis: Any, shown: Sequence[Summary], dims: Sequence[int]) -> None:
    """Lines over a logarithmic axis, since dimensions are halved; every one measured is a tick."""
    for mode, style in LINES.items():
        points = sorted((each.dim, 100 * each.value) for each in shown if each.mode == mode)
        axis.plot(*zip(*points, strict=True), label=mode, linewidth=1.6, **style)
    _frame(axis, shown)
    axis.set_xscale("log")
    labelled: list[int] = []
    for dim in reversed(dims):  # the largest is labelled whatever else is
        if not labelled or labelled[-1] / dim >= APART:
            labelled.append(dim)
    axis.set_xticks(dims, [str(dim) if dim in labelled else "" for dim in dims], minor=False)
    axis.set_xticks([], minor=True)
    axis.set_xlabel("dimensions (float32)")


def _by_precision(axis: Any, shown: Sequence[Summary], precisions: Sequence[Precision], dim: int) -> None:
    """Points side by side, not joined: there is nothing between two precisions."""
    values = {(each.mode, each.precision): 100 * each.value for each in shown}
    for shift, (mode, style) in zip((-0.2, 0, 0.2), LINES.items(), strict=True):
        places = [position + shift for position in range(len(precisions))]
        heights = [values[mode, precision] for precision in precisions]
        axis.plot(places, heights, label=mode, **style | {"linestyle": ""})
    _frame(axis, shown)
    for edge in range(1, len(precisions)):
        axis.axvline(edge - 0.5, color=INK, linewidth=0.6, alpha=0.25)
    names = [PRECISION_WORDS[each].replace("× ", "×\n") for each in precisions]
    axis.set_xticks(range(len(precisions)), names)
    axis.tick_params(axis="x", length=0)
    axis.set(xlim=(-0.5, len(precisions) - 0.5), xlabel=f"precision ({dim} dimensions)")


def _frame(axis: Any, shown: Sequence[Summary]) -> None:
    """The vertical axis around the values: at least `HEIGHT` points, whole ones at the ticks, no grid across."""
    lowest, highest = (100 * edge(each.value for each in shown) for edge in (min, max))
    half = max(HEIGHT, 1.2 * (highest - lowest)) / 2
    axis.set_ylim((lowest + highest) / 2 - half, (lowest + highest) / 2 + half)
    axis.locator_params(axis="y", integer=True)
    axis.grid(axis="x", visible=False)


def _said(shown: Sequence[Summary], name: Callable[[Summary], str]) -> str:
    """The values of one panel in words, `name` being that of a point on its horizontal axis."""
    parts = []
    for mode in LINES:
        values = ", ".join(f"{name(each)} {100 * each.value:.1f}" for each in shown if each.mode == mode)
        parts.append(f"{mode} {values}")
    return "; ".join(parts)


def _percent(interval: Interval | None) -> str:
    """`98.0 (96.9–99.1)`."""
    return words.NONE if interval is None else f"{interval.value:.1f} ({interval.low:.1f}–{interval.high:.1f})"
