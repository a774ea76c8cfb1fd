"""What adapting a student changed: its error on its own and on guard texts, and its scores, before and after.

Both students answered the same texts and queries, so every difference is paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from leaf.encoder import Vectors
from leaf.evaluation.alignment import mean_with_interval
from leaf.evaluation.compare import TWO_SIDED, evidence, main_scores
from leaf.evaluation.records import Score
from leaf.evaluation.statistics import PAIR_RESAMPLES, RESAMPLES, Interval, mean_difference

#: What the student as it was is called among a run's encoders: the name of the student, and this.
BEFORE = "-before"


@dataclass(frozen=True)
class Change:
    """One quantity of one student before and after, and the difference with its 95 % interval."""

    what: str
    """Texts, or a data set."""
    mode: str
    """`error` (ε, less is better), `standard` or `asymmetric` (scores, more is better)."""
    num: int
    """Texts or queries that it is a mean over."""
    before: float
    after: float
    difference: Interval

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "difference": list(self.difference)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Change":
        """What `to_json` made."""
        return cls(**{**data, "difference": Interval(*data["difference"])})


def error_changes(
    before: Vectors, after: Vectors, teacher: Vectors, groups: Mapping[str, Sequence[int]]
) -> list[Change]:
    """Mean ε = ‖y − ŷ‖₂ (Eq. 2–3) over each group of rows; all vectors `[n, dim]`, of the same texts."""
    old, new = (np.linalg.norm(each - teacher, axis=1).astype(np.float64) for each in (before, after))
    found = []
    for name, chosen in groups.items():
        rows = np.asarray(chosen, dtype=np.int64)
        if len(rows):
            moved = mean_with_interval(new[rows] - old[rows])
            bounds = [moved.value if bound is None else bound for bound in (moved.low, moved.high)]
            interval = Interval(moved.value, *bounds)
            found.append(Change(name, "error", len(rows), float(old[rows].mean()), float(new[rows].mean()), interval))
    return found


def score_changes(scores: Sequence[Score], student: str) -> list[Change]:
    """Every data set's main score in each mode, after the mean of its task where that has several sets."""
    before, after = (
        {(each.dataset, each.mode): each for each in main_scores(scores) if each.encoder == name}
        for name in (student + BEFORE, student)
    )
    by_task: dict[tuple[str, str], list[dict[str, Score]]] = {}
    for key, new in after.items():
        if key in before and (new.mode == "standard" or new.task in TWO_SIDED):
            by_task.setdefault((new.task, new.mode), []).append({"before": before[key], "after": new})
    found = []
    for (task, mode), sets in by_task.items():
        whole = [(f"{task.replace('_', ' ')}, mean of {len(sets)}", sets)] if len(sets) > 1 else []
        for name, some in [*whole, *((each["after"].dataset, [each]) for each in sets)]:
            if pairs := evidence(some, "after", "before"):
                past, now = (float(np.mean([each[when].value for each in some])) for when in ("before", "after"))
                num = sum(each["after"].num_queries for each in some)
                resamples = PAIR_RESAMPLES if some[0]["after"].pairs else RESAMPLES
                found.append(Change(name, mode, num, past, now, mean_difference(pairs, resamples)))
    return found
