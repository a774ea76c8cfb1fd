"""How sure a comparison is: paired bootstrap over queries.

Two systems answer the same queries, and a hard query is hard for both. Resampling queries jointly keeps that,
which makes the interval of a ratio or a difference much narrower than those of the two scores (Sakai 2006).

    retention(student.per_query, teacher.per_query)  # Interval(value=97.1, low=95.8, high=98.4), in percent
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from leaf.errors import LeafError

RESAMPLES = 10_000
#: Bounds of a 95 % interval, in percent.
BOUNDS = (2.5, 97.5)
#: Resampled values held at once (8 bytes each), whatever the number of queries.
BLOCK = 1 << 21

#: One score per query: by query id, or in the order of the other system's.
Scores: TypeAlias = Mapping[str, float] | Sequence[float] | NDArray[np.floating]
Values: TypeAlias = NDArray[np.float64]


class Interval(NamedTuple):
    """A value and its 95 % percentile interval."""

    value: float
    low: float
    high: float


def retention(student: Scores, teacher: Scores, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean score of the student over the queries, in percent of the teacher's."""
    return mean_retention([(student, teacher)], resamples, seed)


def mean_retention(pairs: Sequence[tuple[Scores, Scores]], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean of `retention` over datasets, from one (student, teacher) pair for each.

    Queries are resampled within their dataset: the interval says how sure the mean is for these datasets, not
    what to expect from others.
    """
    return _interval(_ratio, pairs, resamples, seed)


def difference(first: Scores, second: Scores, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean score of `first` minus that of `second`, in the units of the scores."""
    return _interval(np.subtract, [(first, second)], resamples, seed)


def _ratio(student: Values, teacher: Values) -> Values:
    # Where the teacher finds nothing there is no retention: NaN here, left out of the percentiles below.
    return np.divide(100.0 * student, teacher, out=np.full_like(student, np.nan), where=teacher > 0)


def _interval(
    statistic: Callable[[Values, Values], Values],
    pairs: Sequence[tuple[Scores, Scores]],
    resamples: int,
    seed: int,
) -> Interval:
    """Mean of `statistic(first mean, second mean)` over datasets, which are resampled one by one."""
    if not pairs:
        raise LeafError("no scores to compare")
    rng = np.random.default_rng(seed)
    total, samples = 0.0, np.zeros(resamples)
    for first, second in pairs:
        scores = _paired(first, second)
        total += float(statistic(*scores.mean(axis=1, keepdims=True))[0])
        samples += statistic(*_resampled_means(scores, resamples, rng))
    if not np.isfinite(total):
        raise LeafError("retention is undefined: the teacher's mean score is 0")
    low, high = np.nanpercentile(samples / len(pairs), BOUNDS)
    return Interval(total / len(pairs), float(low), float(high))


def _resampled_means(scores: Values, resamples: int, rng: np.random.Generator) -> Values:
    """Means of `[2, n]` over `resamples` draws of n queries with replacement, `[2, resamples]`."""
    size = scores.shape[1]
    means = np.empty((2, resamples))
    step = max(1, BLOCK // (2 * size))
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        drawn = rng.integers(size, size=(stop - start, size))
        means[:, start:stop] = scores[:, drawn].mean(axis=2)
    return means


def _paired(first: Scores, second: Scores) -> Values:
    """The two as `[2, n]`, one column per query, n ≥ 1 and all finite."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        if odd := first.keys() ^ second.keys():
            raise LeafError(f"the two systems did not answer the same queries: only one has '{min(odd)}'")
        queries = list(first)
        first, second = [first[query] for query in queries], [second[query] for query in queries]
    a, b = (np.asarray(scores, np.float64) for scores in (first, second))
    if a.shape != b.shape or a.ndim != 1:
        raise LeafError(f"scores of shape {a.shape} and {b.shape}, expected one per query from both systems")
    if not len(a):
        raise LeafError("no scores to compare")
    if not np.isfinite([a, b]).all():
        raise LeafError("a score is NaN or infinite, expected one number per query")
    return np.stack([a, b])
