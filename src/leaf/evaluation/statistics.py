"""How sure a comparison is: paired bootstrap over queries, or over whatever a score is computed from.

Two systems answer the same queries, and a hard query is hard for both. Resampling queries jointly keeps that,
which makes the interval of a ratio or a difference much narrower than those of the two scores (Sakai 2006).

    retention(student.per_query, teacher.per_query)  # Interval(value=97.1, low=95.8, high=98.4), in percent

A score that is no mean (Spearman's correlation, average precision) is computed anew for every resample of its pairs:
give `Correlation(pairs)` or `AveragePrecision(pairs)` instead of values.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leaf.errors import LeafError

RESAMPLES = 10_000
#: For scores over pairs: a resample costs a sort, and a bound moves by less than a tenth of the interval's width.
PAIR_RESAMPLES = 2_000
#: Bounds of a 95 % interval, in percent.
BOUNDS = (2.5, 97.5)
#: Resampled values held at once (8 bytes each), whatever the number of queries.
BLOCK = 1 << 21

Values: TypeAlias = NDArray[np.float64]
Rows: TypeAlias = NDArray[np.int64]


class Interval(NamedTuple):
    """A value and its 95 % percentile interval."""

    value: float
    low: float
    high: float

    def covers(self, value: float) -> bool:
        """Whether `value` lies inside: a difference that covers 0 is not resolved by these queries."""
        return self.low <= value <= self.high


class Resampled(Protocol):
    """A score that can be computed again from a resample of its items."""

    @property
    def size(self) -> int:
        """Items: queries, or pairs."""

    def score(self) -> float:
        """The score of all items."""

    def resampled(self, drawn: Rows) -> Values:
        """Scores `[b]` of the resamples `drawn`, item numbers `[b, size]`."""


@dataclass(frozen=True)
class Mean:
    """The mean of one value a query."""

    values: Values

    @property
    def size(self) -> int:
        """Queries."""
        return len(self.values)

    def score(self) -> float:
        """The mean."""
        return float(self.values.mean())

    def resampled(self, drawn: Rows) -> Values:
        """Means of the resamples, `[b]`."""
        means: Values = self.values[drawn].mean(axis=1)
        return means


class Correlation:
    """Spearman's correlation of (similarity, gold) pairs, `[n, 2]`."""

    def __init__(self, pairs: ArrayLike) -> None:
        similarity, gold = _columns(pairs)
        self.size = len(gold)
        self._ranked = tuple(_Ranked(values) for values in (similarity, gold))

    def score(self) -> float:
        """The correlation over all pairs."""
        return float(self.resampled(np.arange(self.size)[None])[0])

    def resampled(self, drawn: Rows) -> Values:
        """Correlations of the resamples, `[b]`; NaN where all values of one side are equal."""
        weights = _counts(drawn)
        a, b = (ranked.midranks(weights) - (self.size + 1) / 2 for ranked in self._ranked)
        products, squares_a, squares_b = ((weights * each).sum(axis=1) for each in (a * b, a * a, b * b))
        lengths = np.sqrt(squares_a * squares_b)
        found: Values = np.divide(products, lengths, out=np.full(len(drawn), np.nan), where=lengths > 0)
        return found


class AveragePrecision:
    """Average precision of (similarity, label) pairs, `[n, 2]`, labels 1 and 0: `Σ_k (R_k − R_{k−1}) P_k`."""

    def __init__(self, pairs: ArrayLike) -> None:
        similarity, labels = _columns(pairs)
        self.size = len(labels)
        self._labels = labels
        self._ranked = _Ranked(-similarity)

    def score(self) -> float:
        """Average precision over all pairs."""
        return float(self.resampled(np.arange(self.size)[None])[0])

    def resampled(self, drawn: Rows) -> Values:
        """Average precisions of the resamples, `[b]`; NaN where no positive pair was drawn."""
        weights = _counts(drawn)
        hits = self._ranked.totals(weights * self._labels)  # positives at each threshold
        above = np.cumsum(self._ranked.totals(weights), axis=1)
        positives = hits.sum(axis=1)
        precision = np.divide(np.cumsum(hits, axis=1), above, out=np.zeros_like(above), where=above > 0)
        gained = (hits * precision).sum(axis=1)
        found: Values = np.divide(gained, positives, out=np.full(len(drawn), np.nan), where=positives > 0)
        return found


#: One score per query (by query id, or in the order of the other system's), or a score that resamples itself.
Scores: TypeAlias = Mapping[str, float] | Sequence[float] | NDArray[np.floating] | Resampled


def retention(student: Scores, teacher: Scores, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Score of the student over the queries, in percent of the teacher's."""
    return mean_retention([(student, teacher)], resamples, seed)


def mean_retention(pairs: Sequence[tuple[Scores, Scores]], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean of `retention` over datasets, from one (student, teacher) pair for each.

    Queries are resampled within their dataset: the interval says how sure the mean is for these datasets, not
    what to expect from others.
    """
    interval = _interval(_ratio, pairs, resamples, seed)
    if not np.isfinite(interval.value):
        raise LeafError("retention is undefined: the teacher's mean score is 0")
    return interval


def difference(first: Scores, second: Scores, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Score of `first` minus that of `second`, in the units of the scores."""
    return mean_difference([(first, second)], resamples, seed)


def mean_difference(pairs: Sequence[tuple[Scores, Scores]], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean of `difference` over datasets, resampled as in `mean_retention`."""
    return _interval(np.subtract, pairs, resamples, seed)


def _ratio(student: Values, teacher: Values) -> Values:
    # Where the teacher finds nothing there is no retention: NaN here, left out of the percentiles below.
    return np.divide(100.0 * student, teacher, out=np.full_like(student, np.nan), where=teacher > 0)


def _interval(
    statistic: Callable[[Values, Values], Values],
    pairs: Sequence[tuple[Scores, Scores]],
    resamples: int,
    seed: int,
) -> Interval:
    """Mean of `statistic(first score, second score)` over datasets, which are resampled one by one."""
    if not pairs:
        raise LeafError("no scores to compare")
    rng = np.random.default_rng(seed)
    total, samples = 0.0, np.zeros(resamples)
    for first, second in pairs:
        a, b = _paired(first, second)
        total += float(statistic(np.array([a.score()]), np.array([b.score()]))[0])
        samples += statistic(*_resample(a, b, resamples, rng))
    low, high = np.nanpercentile(samples / len(pairs), BOUNDS) if np.isfinite(samples).any() else (np.nan, np.nan)
    return Interval(total / len(pairs), float(low), float(high))


def _resample(a: Resampled, b: Resampled, resamples: int, rng: np.random.Generator) -> tuple[Values, Values]:
    """Scores of both over `resamples` draws of all their items with replacement, the same draws for both."""
    first, second = np.empty(resamples), np.empty(resamples)
    step = max(1, BLOCK // (2 * a.size))
    for start in range(0, resamples, step):
        part = slice(start, min(start + step, resamples))
        drawn = rng.integers(a.size, size=(part.stop - start, a.size))
        first[part], second[part] = a.resampled(drawn), b.resampled(drawn)
    return first, second


def _paired(first: Scores, second: Scores) -> tuple[Resampled, Resampled]:
    """The two over the same items, at least one, all finite."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        if odd := first.keys() ^ second.keys():
            raise LeafError(f"the two systems did not answer the same queries: only one has '{min(odd)}'")
        queries = list(first)
        first, second = [first[query] for query in queries], [second[query] for query in queries]
    a, b = (
        scores if isinstance(scores, Correlation | AveragePrecision | Mean) else Mean(np.asarray(scores, np.float64))
        for scores in (first, second)
    )
    if isinstance(a, Mean) and isinstance(b, Mean):
        if a.values.shape != b.values.shape or a.values.ndim != 1:
            raise LeafError(
                f"scores of shape {a.values.shape} and {b.values.shape}, expected one per query from both systems"
            )
        if not np.isfinite([a.values, b.values]).all():
            raise LeafError("a score is NaN or infinite, expected one number per query")
    if a.size != b.size:
        raise LeafError(f"the two systems were scored on {a.size} and on {b.size} items, expected the same")
    if not a.size:
        raise LeafError("no scores to compare")
    return a, b


class _Ranked:
    """Values `[n]` in ascending order, equal ones together."""

    def __init__(self, values: Values) -> None:
        self._order = np.argsort(values, kind="stable")
        _, self._group, counts = np.unique(values, return_inverse=True, return_counts=True)
        self._starts = np.cumsum(counts) - counts

    def totals(self, weights: Values) -> Values:
        """Sum of the weights `[b, n]` of each group of equal values, `[b, groups]`, ascending by value."""
        sums: Values = np.add.reduceat(weights[:, self._order], self._starts, axis=1)
        return sums

    def midranks(self, weights: Values) -> Values:
        """Rank of each value, `[b, n]`, where value i occurs `weights[:, i]` times; equal ones share a mean rank."""
        totals = self.totals(weights)
        ranks: Values = (np.cumsum(totals, axis=1) - (totals - 1) / 2)[:, self._group]
        return ranks


def _columns(pairs: ArrayLike) -> tuple[Values, Values]:
    array = np.asarray(pairs, np.float64)
    if array.ndim != 2 or array.shape[1] != 2:
        raise LeafError(f"pairs of shape {array.shape}, expected (similarity, gold) for each")
    if not np.isfinite(array).all():
        raise LeafError("a pair's similarity or gold value is NaN or infinite")
    return array[:, 0], array[:, 1]


def _counts(drawn: Rows) -> Values:
    """How often each item was drawn, `[b, n]`."""
    size = drawn.shape[1]
    flat = (drawn + size * np.arange(len(drawn))[:, None]).ravel()
    return np.bincount(flat, minlength=drawn.size).reshape(drawn.shape).astype(np.float64)
