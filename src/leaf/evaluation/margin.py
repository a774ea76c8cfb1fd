"""How much approximation error search can bear: the robustness margin (§3.3, Fig. 7 and 11).

    result = margin(checkpoints, teacher_scores, epochs_per_cycle=10)
    result.margin              # ε at which the trend of the scores reaches the teacher's; None: see `reason`
    write(result, checkpoints, teacher_scores, folder / "margin.json")

Two readings of the same points. The paper's draws a line through (ε, score) of every kept checkpoint and reads off
where it meets the teacher's score: that leans on the trend being straight, and where all checkpoints are further away
than that, on its going on so. The other leans on no line: which checkpoints do these queries not show to be worse?
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from leaf.errors import LeafError
from leaf.evaluation.alignment import Estimate
from leaf.evaluation.statistics import BLOCK, BOUNDS, RESAMPLES
from leaf.files import write_json

#: Said where checkpoints are kept for nothing.
NOT_MEASURED = (
    "checkpoints are kept and no robustness margin will be measured, which takes retrieval sets in evaluate.data "
    '(benchmarks do not count): --set evaluate.data=["FOLDER"], or train.keep_checkpoints=false'
)

#: Dataset → query → score, 0 to 1.
Scores: TypeAlias = Mapping[str, Mapping[str, float]]
Mode: TypeAlias = Literal["standard", "asymmetric"]
Values: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Checkpoint:
    """A student as it was kept after one epoch."""

    student: str
    epoch: int
    """Counted through all cycles from 1; 0 is before training."""
    error: float
    """Mean held-out ε = ‖y − ŷ‖₂ (Eq. 3)."""
    scores: Scores
    mode: Mode = "standard"
    """What the scores were measured in; the paper's figure has `standard`."""


@dataclass(frozen=True)
class Point:
    """A checkpoint in the figure. Scores are means over datasets of means over queries, 0 to 1."""

    student: str
    epoch: int
    error: float
    score: float
    difference: Estimate
    """Score minus the teacher's, paired by query."""

    @property
    def measurably_worse(self) -> bool:
        """Whether the whole interval of the difference is below 0."""
        return self.difference.high is not None and self.difference.high < 0


@dataclass(frozen=True)
class Margin:
    """What `margin` found. `dataclasses.asdict` makes plain JSON of it.

    Intervals say how sure a number is for these checkpoints and datasets when the queries are drawn anew; that
    another training would give other checkpoints is not in them. `r_squared` says how much of that scatter there is.
    """

    mode: Mode
    num_queries: Mapping[str, int]
    """By dataset."""
    teacher: float
    points: Sequence[Point]
    """By ε, the nearest to the teacher first."""
    num_left_out: int
    """Checkpoints before training and from the first epoch of a cycle."""
    slope: Estimate
    """Score per unit of ε of the least-squares line."""
    intercept: float
    """The line's score at ε = 0."""
    r_squared: float | None
    """Share of the variance of the scores that the line explains; None where all scores are equal."""
    margin: Estimate | None
    """ε at which the line meets the teacher's score. No bounds where the interval of the slope reaches 0, for then
    the queries do not tell how far away a crossing is."""
    reason: str | None
    """Why there is no margin, or why it has no bounds."""
    extrapolated: bool
    """Whether the margin lies outside the ε of the checkpoints, where nothing was measured."""
    furthest_equal: Point | None
    """The checkpoint with the largest ε that these queries do not show to be worse than the teacher. Few queries
    show little: read it with its interval. None where all are measurably worse."""


def margin(
    points: Sequence[Checkpoint],
    teacher: Scores,
    *,
    epochs_per_cycle: int | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Margin:
    """The robustness margin from checkpoints of one or several students of one teacher.

    `epochs_per_cycle` leaves out what the paper leaves out, the first epoch of every cycle, where the learning rate
    is highest and scores vary most, and epoch 0; None keeps all. Queries are resampled within their dataset,
    jointly for all checkpoints and the teacher.

    Raises `LeafError` for fewer than 3 checkpoints, one ε for all, two modes, or other queries than the teacher's.
    """
    kept = _kept(points, epochs_per_cycle)
    scores, samples = _resampled([*(point.scores for point in kept), teacher], resamples, seed)
    error = np.array([point.error for point in kept])
    slope, intercept = map(float, _line(error, scores[:-1]))
    slopes, intercepts = _line(error, samples[:, :-1])
    low, high = _bounds(slopes)
    crossing, reason = _crossing(slope, intercept, scores[-1])
    bounds: tuple[float | None, float | None] = (None, None)
    if crossing is not None and high < 0:
        falling = slopes < 0
        crossings = (samples[falling, -1] - intercepts[falling]) / slopes[falling]
        bounds = _bounds(np.maximum(crossings, 0))  # a line below the teacher leaves no margin at all
    elif crossing is not None:
        reason = "the 95 % interval of the slope reaches 0, so these queries set no bounds to where the lines cross"
    drawn = [
        Point(each.student, each.epoch, each.error, float(score), Estimate(float(score - scores[-1]), *_bounds(gaps)))
        for each, score, gaps in zip(kept, scores, (samples[:, :-1] - samples[:, -1:]).T, strict=False)
    ]
    return Margin(
        mode=kept[0].mode,
        num_queries={dataset: len(values) for dataset, values in teacher.items()},
        teacher=float(scores[-1]),
        points=drawn,
        num_left_out=len(points) - len(kept),
        slope=Estimate(slope, low, high),
        intercept=intercept,
        r_squared=_r_squared(error, scores[:-1], slope, intercept),
        margin=None if crossing is None else Estimate(crossing, *bounds),
        reason=reason,
        extrapolated=crossing is not None and not error[0] <= crossing <= error[-1],
        furthest_equal=next((point for point in reversed(drawn) if not point.measurably_worse), None),
    )


def write(result: Margin, points: Sequence[Checkpoint], teacher: Scores, path: Path) -> None:
    """Writes the margin and all it was computed from as one JSON file."""
    checkpoints = [asdict(point) for point in points]
    write_json(path, {"margin": asdict(result), "teacher": teacher, "checkpoints": checkpoints})


def read(path: Path) -> tuple[list[Checkpoint], dict[str, dict[str, float]]]:
    """The checkpoints and the teacher's scores in a file of `write`, or in one with these two keys alone."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return [Checkpoint(**each) for each in data["checkpoints"]], data["teacher"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LeafError(f"{path} cannot be read as a margin ({error}); measure it again") from error


def _kept(points: Sequence[Checkpoint], epochs_per_cycle: int | None) -> list[Checkpoint]:
    """The checkpoints that count, by ε."""
    if epochs_per_cycle is not None and epochs_per_cycle < 2:
        raise LeafError(f"epochs_per_cycle is {epochs_per_cycle}: without its first epoch nothing is left of a cycle")
    kept = [each for each in points if epochs_per_cycle is None or (each.epoch and (each.epoch - 1) % epochs_per_cycle)]
    if len(kept) < 3:
        left_out = f" ({len(points) - len(kept)} left out as first of a cycle)" if len(kept) < len(points) else ""
        raise LeafError(f"{len(kept)} checkpoints{left_out}, expected at least 3: two points are always on a line")
    if len(modes := sorted({each.mode for each in kept})) > 1:
        raise LeafError(f"checkpoints were scored in two modes ({', '.join(modes)}); a trend is over one of them")
    if odd := [each for each in kept if not 0 <= each.error < float("inf")]:
        raise LeafError(f"{odd[0].student}, epoch {odd[0].epoch}: ε is {odd[0].error}, expected a distance")
    if len({each.error for each in kept}) == 1:
        raise LeafError(f"all {len(kept)} checkpoints have ε = {kept[0].error:g}; a trend needs different ones")
    (label, most), *_ = Counter((each.student, each.epoch) for each in kept).most_common(1)
    if most > 1:
        raise LeafError(f"epoch {label[1]} of {label[0]} is there {most} times; give each checkpoint once")
    return sorted(kept, key=lambda each: (each.error, each.student, each.epoch))


def _resampled(systems: Sequence[Scores], resamples: int, seed: int) -> tuple[Values, Values]:
    """Scores of all systems `[m]`, and over draws of the queries `[resamples, m]`, means over datasets."""
    datasets = list(systems[-1])
    if not all(systems[-1].values()) or sum(map(len, systems[-1].values())) < 2:
        raise LeafError("the teacher has a dataset without scores, or fewer than 2 queries: nothing to be sure of")
    for scores in systems:
        if odd := scores.keys() ^ systems[-1].keys():
            raise LeafError(f"a checkpoint and the teacher were not scored on the same datasets: '{min(odd)}'")
    rng = np.random.default_rng(seed)
    value, samples = np.zeros(len(systems)), np.zeros((resamples, len(systems)))
    for dataset in datasets:
        values = _matrix([scores[dataset] for scores in systems], dataset)
        value += values.mean(axis=0)
        size = len(values)
        for start in range(0, resamples, step := max(1, BLOCK // size)):
            part = samples[start : start + step]
            drawn = rng.integers(size, size=(len(part), size)) + size * np.arange(len(part))[:, None]
            part += np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape) @ values / size
    return value / len(datasets), samples / len(datasets)


def _matrix(systems: Sequence[Mapping[str, float]], dataset: str) -> Values:
    """Scores `[queries, systems]`, one row per query."""
    queries = list(systems[-1])
    for scores in systems:
        if odd := scores.keys() ^ systems[-1].keys():
            raise LeafError(f"{dataset}: a checkpoint and the teacher did not answer the same queries: '{min(odd)}'")
    values = np.array([[scores[query] for scores in systems] for query in queries], np.float64)
    if not np.isfinite(values).all():
        raise LeafError(f"{dataset}: a score is NaN or infinite, expected one number per query")
    return values


def _line(error: Values, scores: Values) -> tuple[Values, Values]:
    """Slope and intercept of the least-squares line through scores `[…, m]` at ε `[m]`, each `[…]`."""
    centred = error - error.mean()
    # Equal scores have slope 0, not the rounding error of a sum.
    slope = np.where(np.ptp(scores, axis=-1) > 0, scores @ centred / (centred @ centred), 0.0)
    return slope, scores.mean(axis=-1) - slope * error.mean()


def _crossing(slope: float, intercept: float, teacher: float) -> tuple[float | None, str | None]:
    """ε at which the line meets the teacher's score, or why there is none."""
    if slope >= 0:
        return None, "the scores do not fall as ε grows, so the trend has no margin to read off"
    if intercept <= teacher:
        return None, "the trend is below the teacher's score at every ε above 0"
    return (teacher - intercept) / slope, None


def _r_squared(error: Values, scores: Values, slope: float, intercept: float) -> float | None:
    if not np.ptp(scores):
        return None
    residuals = scores - (slope * error + intercept)
    around = scores - scores.mean()
    return float(1 - residuals @ residuals / (around @ around))


def _bounds(samples: Values) -> tuple[float, float]:
    low, high = np.percentile(samples, BOUNDS)
    return float(low), float(high)
