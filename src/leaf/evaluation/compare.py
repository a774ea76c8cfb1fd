"""What a student keeps of its teacher, dataset by dataset and over all, with paired intervals: scores made into claims.

rows = compare(scores, "student-2l")          # one Comparison a dataset, main measures only
means(rows)                                   # one a task, over its datasets
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from leaf.errors import LeafError
from leaf.evaluation.records import MAIN_MEASURES, Score, Task
from leaf.evaluation.statistics import (
    PAIR_RESAMPLES,
    RESAMPLES,
    AveragePrecision,
    Correlation,
    Interval,
    Scores,
    mean_difference,
    mean_retention,
)

MODES: tuple[Literal["standard"], Literal["asymmetric"]] = ("standard", "asymmetric")
#: Tasks whose score has a query and a document side; for the others both modes are one.
TWO_SIDED = ("retrieval", "reranking")


@dataclass(frozen=True)
class Comparison:
    """One student beside its teacher and BM25 on one dataset, or on the mean over a task's datasets."""

    name: str
    """The dataset's, or the task's for a mean."""
    task: Task
    measure: str
    num_queries: int
    scores: Mapping[str, float]
    """`teacher`, `bm25`, `standard`, `asymmetric`, as far as they were measured."""
    retention: Mapping[str, Interval]
    """Mode → percent of the teacher's score. Empty where the teacher scores 0 or nothing was kept to resample."""
    gain: Interval | None
    """Asymmetric − standard, in units of the score; None for tasks without two sides."""

    def to_json(self) -> dict[str, Any]:
        """Plain data; intervals as `[value, low, high]`."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What `to_json` made."""
        kept = {mode: Interval(*each) for mode, each in data["retention"].items()}
        return cls(**{**data, "retention": kept, "gain": data["gain"] and Interval(*data["gain"])})


def main_scores(scores: Sequence[Score]) -> list[Score]:
    """One record for each encoder, mode and dataset: the task's main measure, or the first where mteb has another."""
    found: dict[tuple[str, str, str], Score] = {}
    for score in scores:
        key = (score.dataset, score.mode, score.encoder)
        if key not in found or score.measure == MAIN_MEASURES[score.task]:
            found[key] = score
    return list(found.values())


def compare(scores: Sequence[Score], student: str) -> list[Comparison]:
    """The comparisons of one student, one per dataset, in the order of the scores.

    Raises `LeafError` when student and teacher were scored on other queries.
    """
    systems = _systems(scores, student)
    return [_comparison(name, [each]) for name, each in systems.items() if _is_scored(each)]


def means(scores: Sequence[Score], student: str) -> list[Comparison]:
    """The means over the datasets of each task: scores averaged, retention as the mean of ratios per dataset."""
    by_task: dict[Task, list[dict[str, Score]]] = defaultdict(list)
    for each in _systems(scores, student).values():
        if _is_scored(each):
            by_task[_own(each).task].append(each)
    return [_comparison(task, sets) for task, sets in by_task.items()]


def _systems(scores: Sequence[Score], student: str) -> dict[str, dict[str, Score]]:
    """Dataset → what was scored on it: teacher, bm25, and the student's modes."""
    found: dict[str, dict[str, Score]] = defaultdict(dict)
    for score in main_scores(scores):
        if score.mode in ("teacher", "bm25") or score.encoder == student:
            found[score.dataset][score.mode] = score
    return found


def _is_scored(systems: Mapping[str, Score]) -> bool:
    """Whether the student was scored on this dataset, if only as an encoder of queries."""
    return any(mode in systems for mode in MODES)


def _own(systems: Mapping[str, Score]) -> Score:
    """One of the student's scores on a dataset."""
    return next(systems[mode] for mode in MODES if mode in systems)


def _comparison(name: str, sets: Sequence[Mapping[str, Score]]) -> Comparison:
    first = _own(sets[0])
    modes = [mode for mode in ("teacher", "bm25", *MODES) if all(mode in each for each in sets)]
    # More than a dataset: the same resamples for all, so that one that is costly decides.
    resamples = PAIR_RESAMPLES if any(_own(each).pairs for each in sets) else RESAMPLES
    retention: dict[str, Interval] = {}
    for mode in MODES:
        pairs = evidence(sets, mode, "teacher") if {mode, "teacher"} <= set(modes) else None
        # A dataset in which the teacher finds nothing has no retention.
        pairs = pairs and [pair for pair, each in zip(pairs, sets, strict=True) if each["teacher"].value > 0]
        if pairs:
            retention[mode] = mean_retention(pairs, resamples)
    gains = evidence(sets, "asymmetric", "standard") if first.task in TWO_SIDED and set(MODES) <= set(modes) else None
    return Comparison(
        name=name,
        task=first.task,
        measure=first.measure,
        num_queries=sum(_own(each).num_queries for each in sets),
        scores={mode: sum(each[mode].value for each in sets) / len(sets) for mode in modes},
        retention=retention,
        gain=mean_difference(gains, resamples) if gains else None,
    )


def evidence(sets: Sequence[Mapping[str, Score]], first: str, second: str) -> list[tuple[Scores, Scores]] | None:
    """What the scores of two systems were computed from, per dataset; None where a number alone was kept.

    Each of `sets` is one dataset's: system → score. Raises `LeafError` where the two were scored on other queries.
    """
    found = []
    for each in sets:
        pair = _items(each[first]), _items(each[second])
        if pair[0] is None or pair[1] is None:
            return None
        if isinstance(pair[0], Mapping) and isinstance(pair[1], Mapping) and pair[0].keys() != pair[1].keys():
            raise LeafError(
                f"'{each[first].encoder}' and '{each[second].encoder}' were scored on other queries of "
                f"{each[first].dataset}; evaluate again"
            )
        found.append((pair[0], pair[1]))
    return found


def _items(score: Score) -> Scores | None:
    if score.pairs:
        return AveragePrecision(score.pairs) if score.measure == "ap" else Correlation(score.pairs)
    return score.per_query or None
