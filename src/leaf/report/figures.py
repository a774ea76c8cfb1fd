"""The figures of a report: what students keep, and how near they came while training."""

from collections.abc import Mapping, Sequence
from typing import Any

from leaf.evaluation.compare import MODES
from leaf.figures import COLOURS, GREY, INK, STYLE, WIDTH, Figure, to_svg

MODE_COLOURS = {"standard": GREY, "asymmetric": COLOURS[0]}

Student = Mapping[str, Any]


def draw_figures(students: Sequence[Student]) -> dict[str, Figure]:
    """The figures that there is data for, by name; none without matplotlib (`pip install 'leaf[plot]'`)."""
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        return {}
    figures = {}
    with matplotlib.rc_context(STYLE):
        for name, title, draw in (
            ("retention", "Share of the teacher's nDCG@10 that is kept", _retention),
            ("error", "Held-out distance to the teacher while training", _error),
        ):
            canvas = Canvas(layout="constrained")
            alt = draw(canvas, students)
            if alt is not None:
                figures[name] = Figure(title, alt, to_svg(canvas, name, alt))
    return figures


def _retention(canvas: Any, students: Sequence[Student]) -> str | None:
    """Bars from 0, so that their lengths compare; whiskers are the 95 % intervals."""
    students = [student for student in students if all(student["intervals"].values())]
    if not students:
        return None
    canvas.set_size_inches(WIDTH, 1.1 + 0.75 * len(students))
    axes = canvas.add_subplot()
    highest, said = 100.0, []
    for row, student in enumerate(students):
        for mode, shift in zip(MODES, (0.2, -0.2), strict=True):
            value, (low, high) = student["retention"][mode], student["intervals"][mode]
            bar = {"color": MODE_COLOURS[mode], "label": mode if row == 0 else None}
            whisker = {"ecolor": INK, "elinewidth": 1.2, "capsize": 3}
            reach = [[max(0, value - low)], [max(0, high - value)]]  # rounding can put a bound past the value
            axes.barh(row - shift, value, 0.36, xerr=reach, error_kw=whisker, **bar)
            axes.annotate(
                f"{value:.1f}", (max(high, 100), row - shift), (6, 0), textcoords="offset points", va="center"
            )
            highest = max(highest, high)
            said.append(f"{student['name']} {mode} {value:.1f} ({low:.1f} to {high:.1f})")
    axes.axvline(100, color=INK, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(students)), [student["name"] for student in students])
    axes.set(xlim=(0, highest + 9), ylim=(len(students) - 0.5, -0.5), xlabel="% of the teacher's nDCG@10")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    canvas.legend(loc="outside upper right", ncols=2)
    return "Percent of the teacher's nDCG@10, with 95 % intervals: " + "; ".join(said) + "."


def _error(canvas: Any, students: Sequence[Student]) -> str | None:
    """Held-out ε after each epoch; epoch 0 is before training, and a ring marks the epoch that was kept."""
    students = [student for student in students if student["errors"]]
    if not students:
        return None
    canvas.set_size_inches(WIDTH, 2.9)
    axes = canvas.add_subplot()
    said = []
    for position, student in enumerate(students):
        errors, colour = student["errors"], COLOURS[position % len(COLOURS)]
        axes.plot(errors, color=colour, linewidth=1.8, marker="o", markersize=3, label=student["name"])
        kept = student["best_epoch"]
        if kept is not None and kept < len(errors):
            axes.plot(kept, errors[kept], "o", markersize=8, markerfacecolor="none", color=colour)
        said.append(f"{student['name']} from {errors[0]:.3f} to {min(errors):.3f} in {len(errors) - 1} epochs")
    axes.set(xlabel="epoch (0: before training)", ylabel="held-out ε", ylim=(0, None))
    axes.locator_params(axis="x", integer=True)
    canvas.legend(loc="outside upper right", ncols=min(3, len(students)))
    return "Mean held-out distance ε to the teacher's vectors by epoch: " + "; ".join(said) + "."
