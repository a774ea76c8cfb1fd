"""What to expect of training: how much of the starting error is left, and what that does to a search.

The error comes from finished runs (`MEASURED`): what training left of the closed-form start, carried over to another
number of texts and of layers. It is a rule of thumb with a range, and says which runs it stands on. The search is
simulated on the user's own sets: teacher vectors of queries are moved off by errors of that size, in two ways:

    own      each query by its own starting error, shrunk: the student stays wrong where it was wrong
    foreign  each query by the starting error of some other text: what is left has nothing to do with the query

Trained students were found between the two. On seven whole sets and at their final ε, the ladder's table, 1 and 2
layers kept 94.1, 97.3 and 98.7 %; own errors gave 92.5, 95.7 and 97.9, foreign ones 95.7, 97.4 and 98.9. Random
directions would have been far too hopeful: 98.9, 99.7 and 100.1.

Shapes: n queries or texts, d dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from leaf.encoder import Vectors
from leaf.evaluation.statistics import Interval, mean_retention
from leaf.preflight.searches import Search

Values: TypeAlias = NDArray[np.float64]
#: Draws of foreign errors, averaged.
DRAWS = 4
#: Halvings in the search for a strength: finer than float32.
HALVINGS = 30


class Measured(NamedTuple):
    """A finished run: where a student's held-out ε began in closed form, and where training took it."""

    record: str
    """Where the numbers are, inside this repository."""
    student: str
    layers: int
    of_layers: int
    """Layers of the backbone, the teacher's own, of which `layers` were kept."""
    texts: int
    epochs: int
    start: float
    final: float

    @property
    def ratio(self) -> float:
        """Share of the starting error that was left."""
        return self.final / self.start

    @property
    def useful(self) -> float:
        """`useful_texts` of this run."""
        return useful_texts(self.texts, self.epochs)


MEASURED = (
    Measured("results/demo/report.json", "student-table", 0, 6, 17_722, 12, 0.6712, 0.4982),
    Measured("results/demo/report.json", "student-2l", 2, 6, 17_722, 3, 0.6561, 0.3909),
    Measured("results/ladder/from-teacher.json", "student-table", 0, 6, 200_000, 20, 0.8645, 0.5520),
    Measured("results/ladder/from-teacher.json", "student-1l", 1, 6, 200_000, 3, 0.8497, 0.4412),
    Measured("results/ladder/from-teacher.json", "student-2l", 2, 6, 200_000, 3, 0.7480, 0.3463),
)
#: The ratio falls as `useful_texts ** -exponent`: between two of the runs by 0.03 (tables) and by 0.10 (2 layers).
EXPONENTS = (0.03, 0.10)
#: … and as `exp(-slope · share of the layers kept)`: not at all, or as from 1 layer of 6 to 2.
SLOPES = (0.0, 0.7)
#: Runs that a prediction stands on: the nearest.
NEIGHBOURS = 3
#: What is added to both ends of a ratio's range, as a share: sampling here and seeds there; and for a backbone other
#: than the teacher's own, of which no run has been measured.
MARGIN, FOREIGN_MARGIN = 0.05, 0.25
#: Repeats after which another epoch has given most of what it can (Muennighoff et al. 2023, Eq. 5: fitted there for
#: language models, taken over here).
REPEATS = 15.4


def useful_texts(texts: int, epochs: int) -> float:
    """What `epochs` passes over `texts` are worth in texts that are all different (Muennighoff et al. 2023, Eq. 5)."""
    return texts * (1 + REPEATS * (1 - math.exp(-(epochs - 1) / REPEATS)))


@dataclass(frozen=True)
class Ratio:
    """The share of the starting error that training is expected to leave."""

    low: float
    expected: float
    high: float
    basis: tuple[str, ...]
    """The runs it stands on, and where it goes beyond them."""


def expected_ratio(
    layers: int, of_layers: int | None, texts: int, epochs: int, measured: Sequence[Measured] = MEASURED
) -> Ratio:
    """What training leaves of the start for a student of `layers` layers (0: a lookup table).

    `of_layers` is how many the teacher has, None for a backbone that is not the teacher's. `expected` is the nearest
    measured run with the middle of `EXPONENTS` and `SLOPES`; the range is that of the nearest runs with both ends of
    each, and a margin. Tables are compared with tables only.
    """
    useful = useful_texts(texts, epochs)
    own = of_layers is not None or layers == 0

    def carried(run: Measured, exponent: float, slope: float) -> float:
        deeper = layers / of_layers - run.layers / run.of_layers if of_layers else 0.0
        return float(run.ratio * (useful / run.useful) ** -exponent * math.exp(-slope * deeper))

    def distance(run: Measured) -> float:
        return abs(math.log(carried(run, EXPONENTS[1], 0) / run.ratio)) + abs(
            math.log(carried(run, 0, SLOPES[1]) / run.ratio)
        )

    kin = sorted((run for run in measured if (run.layers == 0) == (layers == 0)), key=distance)[:NEIGHBOURS]
    candidates = [carried(run, exponent, slope) for run in kin for exponent in EXPONENTS for slope in SLOPES]
    expected = carried(kin[0], sum(EXPONENTS) / 2, sum(SLOPES) / 2)
    margin = MARGIN if own else FOREIGN_MARGIN
    basis = [f"{run.record}, {run.student}: {run.start:.3f} → {run.final:.3f}" for run in kin]
    most = max(run.useful for run in kin)
    if useful > 2 * most or useful < min(run.useful for run in kin) / 2:
        basis.append("more (or fewer) texts than in any of them: carried further than was measured")
    if not own:
        basis.append("no run from another backbone than the teacher's own was measured: a wider guess")
    return Ratio(
        min(candidates) * (1 - margin), min(expected, 1.0), min(max(candidates) * (1 + margin), 1.0), tuple(basis)
    )


def expected_epsilon(start: float, bound: float, ratio: Ratio) -> Interval:
    """Held-out ε after training, with its range: only what the rank does not forbid (`bound`) can shrink."""
    reducible = max(start**2 - bound**2, 0.0)

    def left(share: float) -> float:
        return float(math.sqrt(min(bound, start) ** 2 + share**2 * reducible))

    return Interval(left(ratio.expected), left(ratio.low), left(ratio.high))


def start_with(error: float, half_error: float, texts: int, wanted: int) -> float:
    """The error of a ridge head fitted on `wanted` texts, from those fitted on `texts` and on half of these.

    The excess of few texts falls as `texts ** -0.8`: so it did on the ladder's texts between 1,000 and 10,000 of them,
    where 4,000 foretold the error of 10,000 within 0.003.
    """
    if wanted <= texts:
        return error
    power = 0.8
    return float(error - max(half_error - error, 0.0) * (1 - (texts / wanted) ** power) / (2**power - 1))


def moved(vectors: Vectors, residuals: Vectors, strength: float, *, normalise: bool) -> Vectors:
    """`vectors` `[n, d]` moved by `strength` times `residuals` `[n, d]`, and back onto the sphere if `normalise`."""
    shifted: Vectors = vectors + np.float32(strength) * residuals
    if not normalise:
        return shifted
    lengths = np.linalg.norm(shifted, axis=1, keepdims=True)
    unit: Vectors = np.divide(shifted, lengths, out=np.zeros_like(shifted), where=lengths > 0)
    return unit


def strength_for(vectors: Vectors, residuals: Vectors, epsilon: float, *, normalise: bool) -> float:
    """The strength at which `moved` lies `epsilon` off on average, by bisection; the most that is tried is 16."""
    low, high = 0.0, 16.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        distance = np.linalg.norm(moved(vectors, residuals, middle, normalise=normalise) - vectors, axis=1).mean()
        low, high = (middle, high) if distance < epsilon else (low, middle)
    return high if epsilon > 0 else 0.0


class Simulation:
    """Searches by queries that are off, as a student's are.

    `texts` are teacher vectors `[n, d]` of texts that the start was not fitted on and `start` the student's vectors of
    them; `starts` the student's vectors of the queries of each search.
    """

    def __init__(
        self,
        searches: Sequence[Search],
        starts: Sequence[Vectors],
        texts: Vectors,
        start: Vectors,
        *,
        normalise: bool,
        seed: int,
    ) -> None:
        self._searches, self._starts = searches, starts
        self._texts, self._errors = texts, start - texts
        self._normalise = normalise
        generator = np.random.default_rng(seed)
        self._mixed = self._errors[generator.permutation(len(texts))]
        self._draws = [
            [generator.integers(len(texts), size=len(vectors)) for _ in range(DRAWS)] for vectors in self._starts
        ]

    def own(self, epsilon: float) -> list[Values]:
        """Scores of each search's queries, moved by their own errors."""
        strength = strength_for(self._texts, self._errors, epsilon, normalise=self._normalise)
        return [
            search.scores(self._moved(search.query_vectors, start - search.query_vectors, strength))
            for search, start in zip(self._searches, self._starts, strict=True)
        ]

    def foreign(self, epsilon: float) -> list[Values]:
        """Scores of each search's queries, moved by errors of other texts; the mean of a few draws."""
        strength = strength_for(self._texts, self._mixed, epsilon, normalise=self._normalise)
        return [
            np.mean(
                [search.scores(self._moved(search.query_vectors, self._errors[rows], strength)) for rows in draws],
                axis=0,
            )
            for search, draws in zip(self._searches, self._draws, strict=True)
        ]

    def _moved(self, vectors: Vectors, residuals: Vectors, strength: float) -> Vectors:
        return moved(vectors, residuals, strength, normalise=self._normalise)


def retention(searches: Sequence[Search], scores: Sequence[Values]) -> Interval:
    """Mean over the searches of the score in percent of the teacher's, with its paired interval over queries."""
    return mean_retention([(each, search.teacher_scores) for search, each in zip(searches, scores, strict=True)])


def expected_retention(
    searches: Sequence[Search], simulation: Simulation, epsilon: Interval, floor: float, ceiling: float
) -> Interval:
    """Retention at `epsilon`, in percent, with its range: never below `floor`, the start's, nor above `ceiling`.

    The range goes from own errors at the worst ε to foreign ones at the best; the interval of so few queries is
    added in squares. What is expected is the mean of both kinds of error.
    """
    both = zip(simulation.own(epsilon.value), simulation.foreign(epsilon.value), strict=True)
    middle = retention(searches, [(own + foreign) / 2 for own, foreign in both])
    worst = retention(searches, simulation.own(epsilon.high)).value
    best = retention(searches, simulation.foreign(epsilon.low)).value
    down = math.hypot(max(middle.value - worst, 0), middle.value - middle.low)
    up = math.hypot(max(best - middle.value, 0), middle.high - middle.value)
    ceiling = max(floor, ceiling)  # so few queries can turn them round
    return Interval(
        *(min(max(each, floor), ceiling) for each in (middle.value, middle.value - down, middle.value + up))
    )
