"""A robustness margin (`leaf.evaluation.margin`) for people: a sentence or two, and the figure of §3.3 (Fig. 7).

Everything takes the margin as plain data: `dataclasses.asdict` of it, or `margin` in its JSON file.
"""

from collections.abc import Mapping
from typing import Any

from leaf.figures import COLOURS, INK, STYLE, WIDTH, Figure, to_svg
from leaf.report.alignment import estimate
from leaf.report.words import Table, count, points

Data = Mapping[str, Any]
#: The shaded region.
SHADE = "#0f9d6b"


def verdict(margin: Data) -> list[str]:
    """What the checkpoints allow to say about how much error search bears, one sentence each."""
    number, datasets = len(margin["points"]), margin["num_queries"]
    said = [f"{number} checkpoints in {margin['mode']} mode; the teacher scores {points(margin['teacher'])}."]
    slope = margin["slope"]
    change = {key: slope[key] / 10 for key in ("value", "low", "high")}
    fit = "" if margin["r_squared"] is None else f", R² {margin['r_squared']:.2f}"
    said.append(f"A line through them changes by {estimate(change, 1, 100)} points for 0.1 more ε{fit}.")
    if margin["margin"] is None:
        said.append(f"No margin: {margin['reason']}.")
    else:
        read = f"It meets the teacher's score at ε = {estimate(margin['margin'])}"
        if margin["extrapolated"]:
            first, last = margin["points"][0]["error"], margin["points"][-1]["error"]
            read += f", outside the {first:.3f} to {last:.3f} that was measured"
        said.append(f"{read}." if margin["reason"] is None else f"{read}; {margin['reason']}.")
    queries = f"{count(sum(datasets.values()))} queries of {len(datasets)} dataset{'s' if len(datasets) > 1 else ''}"
    furthest = margin["furthest_equal"]
    if furthest is None:
        said.append(f"Without the line: {queries} show every checkpoint to be worse than the teacher.")
    else:
        said.append(
            f"Without the line: the furthest checkpoint that {queries} do not show to be worse than the teacher is "
            f"{furthest['student']}, epoch {furthest['epoch']}, at ε = {furthest['error']:.3f} "
            f"({estimate(furthest['difference'], 1, 100)} points)."
        )
    return said


def checkpoint_table(margin: Data) -> Table:
    """Every checkpoint with its ε, its score and the difference to the teacher in points, the nearest first."""
    rows = [["student", "epoch", "ε", "score", "minus the teacher's"]]
    for each in margin["points"]:
        difference = estimate(each["difference"], 1, 100)
        rows.append([each["student"], str(each["epoch"]), f"{each['error']:.3f}", points(each["score"]), difference])
    return rows


def draw_margin(margin: Data, measure: str = "nDCG@10") -> Figure | None:
    """Score against ε, as in Fig. 7; None without matplotlib.

    A bar is the interval of the difference to the teacher, laid at the teacher's score: one that reaches the teacher's
    line belongs to a checkpoint that is not measurably worse. The line is dashed where no checkpoint was measured.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        return None
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH, 3.4), layout="constrained")
        axes = canvas.add_subplot()
        teacher, found = 100 * margin["teacher"], margin["margin"]
        for position, student in enumerate(dict.fromkeys(each["student"] for each in margin["points"])):
            own = [each for each in margin["points"] if each["student"] == student]
            colour, errors = COLOURS[1:][position % (len(COLOURS) - 1)], [each["error"] for each in own]
            low, high = ([teacher + 100 * each["difference"][end] for each in own] for end in ("low", "high"))
            axes.vlines(errors, low, high, color=colour, linewidth=1, alpha=0.35)
            axes.plot(errors, [100 * each["score"] for each in own], "o", markersize=4.5, color=colour, label=student)
        first, last = margin["points"][0]["error"], margin["points"][-1]["error"]
        crossing = found["value"] if found else first
        right = min(1.05 * max(last, crossing), 2 * last)  # a nearly level line meets the teacher's anywhere

        def trend(start: float, stop: float, style: str) -> None:
            line = [100 * (margin["intercept"] + margin["slope"]["value"] * error) for error in (start, stop)]
            axes.plot((start, stop), line, style, color=INK, linewidth=1.2)

        trend(first, last, "-")
        trend(min(first, crossing), first, "--")
        trend(last, max(last, crossing), "--")
        axes.axhline(teacher, color=INK, linewidth=1, linestyle=":")
        # On the left, since no checkpoint is near ε = 0.
        axes.annotate(f"teacher {teacher:.1f}", (0, teacher), (4, 4), textcoords="offset points")
        if found:
            axes.axvspan(0, crossing, color=SHADE, alpha=0.15, linewidth=0, label="robustness margin")
            axes.plot(crossing, teacher, "D", markersize=5, color=SHADE)
            if found["low"] is not None:
                axes.plot((found["low"], found["high"]), (teacher, teacher), color=SHADE, linewidth=3, alpha=0.6)
        if equal := margin["furthest_equal"]:
            spot = equal["error"], 100 * equal["score"]
            axes.plot(
                *spot, "o", markersize=9, markerfacecolor="none", color=INK, label="furthest not measurably worse"
            )
        axes.margins(y=0.12)
        axes.set(xlim=(0, right), xlabel="mean held-out ε", ylabel=f"{measure}, {margin['mode']}")
        canvas.legend(loc="outside upper right", ncols=2)
        alt = " ".join([f"{measure} of checkpoints against their distance ε to the teacher.", *verdict(margin)])
        return Figure("Score against the distance to the teacher", alt, to_svg(canvas, f"margin-{margin['mode']}", alt))
