"""How fast encoders answer: texts in, vectors out, tokenisation included (paper, App. G, Table 8 and Figure 12).

    timed = take_turns(
        {"student": student, "teacher": teacher}, {"query": queries, "document": documents}, against=["teacher"]
    )
    timed["ratios"]["query"]["student"]["teacher"]["median"]  # times as many queries a second

All contestants encode the same batch one right after the other, so that a slow minute of the machine hits every one of
them, and ratios are taken within a round.
"""

import statistics
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from leaf.encoder import Encoder, Role
from leaf.errors import LeafError
from leaf.progress import Bar, progress

#: Queries encoded before the clock runs: the first ones pay for allocation and code paths.
WARM_UP = 10
#: The paper's: batch sizes, repetitions of each, and the milliseconds within which an answer feels immediate.
BATCH_SIZES = (1, 2, 4, 8, 16, 24)
ROUNDS = 7
WITHIN_MS = 100.0
ROLES: tuple[Role, ...] = ("query", "document")

#: Tokenises texts as an encoder does, without encoding them, and says how many tokens each has.
CountTokens: TypeAlias = Callable[[Sequence[str], Role], Sequence[int]]


@dataclass(frozen=True)
class Plan:
    """What is timed, how often, and for how long at most."""

    batch_sizes: Sequence[int] = BATCH_SIZES
    rounds: int = ROUNDS
    """Rounds of a contestant that is not too slow for them; each draws its batches anew."""
    min_rounds: int = 3
    patience_s: float = 90.0
    """Seconds on one kind of text that another round may not exceed, once a contestant has had `min_rounds`."""
    sample_s: float = 0.05
    """A quicker batch is encoded as often as fills this, and the mean is one sample, as `timeit` does it."""
    lone_queries: int = 150
    """Queries a round that each contestant encodes one at a time."""
    lone_s: float = 1.5
    """Seconds after which it stops, once it has had a tenth of them."""
    within_ms: float = WITHIN_MS
    seed: int = 0


def take_turns(
    encoders: Mapping[str, Encoder],
    texts: Mapping[Role, Sequence[str]],
    *,
    against: Sequence[str] = (),
    plan: Plan | None = None,
    tokenisers: Mapping[str, CountTokens] | None = None,
) -> dict[str, Any]:
    """Times every encoder on queries and on documents in batches of each size, and on single queries.

    Returns JSON data: `contestants`, by name and kind of text the rates (mean ± sd over all batch sizes and rounds),
    the least latency, the largest batch within `plan.within_ms` (by medians), all samples, percentiles of one query;
    and `ratios`, by kind of text and name the rate divided by that of each of `against`. `tokenisers` are timed apart.
    Raises `LeafError` for fewer texts than the largest batch has.
    """
    plan = plan or Plan()
    check_texts(texts, plan)
    return _Contest(encoders, texts, plan, tokenisers or {}).run(against)


def check_texts(texts: Mapping[Role, Sequence[str]], plan: Plan) -> None:
    """Raises `LeafError` where there are fewer texts of a kind than the largest batch of the plan has."""
    largest = max(plan.batch_sizes)
    for role in ROLES:
        if len(texts[role]) < largest:
            raise LeafError(
                f"{len(texts[role])} texts of kind {role} are fewer than the largest batch, {largest}; give more texts "
                "or smaller batches"
            )


def query_latency(encoder: Encoder, queries: Sequence[str], num_queries: int = 100) -> dict[str, Any]:
    """Milliseconds from a query text to its vector, one query at a time: median, 10th and 90th percentile."""
    return query_latencies({encoder.name: encoder}, queries, num_queries, num_queries)[encoder.name]


def query_latencies(
    encoders: Mapping[str, Encoder], queries: Sequence[str], num_queries: int = 100, at_a_turn: int = 20
) -> dict[str, dict[str, Any]]:
    """`query_latency` of several encoders, by name; they take turns of `at_a_turn` queries, each encoder the same."""
    for encoder in encoders.values():
        for query in queries[:WARM_UP]:
            encoder.encode_query([query])
    asked = [queries[index % len(queries)] for index in range(num_queries)]
    timed: dict[str, list[float]] = {name: [] for name in encoders}
    for start in range(0, num_queries, at_a_turn):
        for name, encoder in encoders.items():
            if start:  # another encoder has had the cores and their caches
                encoder.encode_query(asked[:1])
            timed[name] += _one_at_a_time(encoder, asked[start : start + at_a_turn])
    return {name: _latency(name, each) for name, each in timed.items()}


def _latency(name: str, timed: Sequence[float]) -> dict[str, Any]:
    deciles = statistics.quantiles(timed, n=10)
    return {
        "encoder": name,
        "what": "one query, tokenisation included",
        "median_ms": statistics.median(timed),
        "p10_ms": deciles[0],
        "p90_ms": deciles[-1],
        "num_queries": len(timed),
    }


class _Contest:
    """The samples of one contest, in seconds, and who still takes part."""

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        texts: Mapping[Role, Sequence[str]],
        plan: Plan,
        tokenisers: Mapping[str, CountTokens],
    ) -> None:
        self.encoders, self.texts, self.plan, self.tokenisers = encoders, texts, plan, tokenisers
        self.samples: dict[tuple[str, Role], dict[int, list[float]]] = {
            (name, role): {size: [] for size in plan.batch_sizes} for name in encoders for role in ROLES
        }
        self.tokenising: dict[tuple[str, Role], dict[int, list[float]]] = {
            (name, role): {size: [] for size in plan.batch_sizes} for name in tokenisers for role in ROLES
        }
        self.lone: dict[str, list[float]] = {name: [] for name in encoders}

    def run(self, against: Sequence[str]) -> dict[str, Any]:
        plan, names = self.plan, list(self.encoders)
        turns = len(ROLES) * plan.rounds * len(plan.batch_sizes) * len(names)
        with progress("timing", turns + (plan.rounds + 1) * len(names)) as bar:
            self._warm_up(bar)
            for role in ROLES:
                in_play = dict.fromkeys(names, 0.0)  # seconds so far
                for round_ in range(plan.rounds):
                    self._round(role, round_, in_play, bar)
                    in_play = {name: spent for name, spent in in_play.items() if not self._enough(name, role, spent)}
        return {
            "contestants": {name: self._contestant(name) for name in names},
            "ratios": {
                role: {
                    name: {each: self._ratio(name, each, role) for each in against if each != name} for name in names
                }
                for role in ROLES
            },
        }

    def _warm_up(self, bar: Bar) -> None:
        for name, encoder in self.encoders.items():
            bar.advance(0, name)
            for query in self.texts["query"][:WARM_UP]:
                encoder.encode_query([query])
            encoder.encode_document(self.texts["document"][: min(2, max(self.plan.batch_sizes))])
            bar.advance()

    def _round(self, role: Role, round_: int, in_play: dict[str, float], bar: Bar) -> None:
        generator = np.random.default_rng((self.plan.seed, ROLES.index(role), round_))
        names = list(self.encoders)
        names = names[round_ % len(names) :] + names[: round_ % len(names)]  # nobody always comes after the same
        for size in self.plan.batch_sizes:
            batch = self._draw(role, size, generator)
            for name in names:
                bar.advance(0, f"{name}, {size} × {role}, round {round_ + 1} of {self.plan.rounds}")
                if name in in_play:
                    began = time.perf_counter()
                    self._sample(name, role, batch)
                    in_play[name] += time.perf_counter() - began
                bar.advance()
        if role == "query":
            queries = self._draw(role, min(self.plan.lone_queries, len(self.texts[role])), generator)
            for name in names:
                bar.advance(0, f"{name}, one query at a time, round {round_ + 1} of {self.plan.rounds}")
                if name in in_play:
                    self.encoders[name].encode_query(queries[:1])
                    self.lone[name] += _one_at_a_time(self.encoders[name], queries, self.plan.lone_s)
                bar.advance()

    def _draw(self, role: Role, number: int, generator: np.random.Generator) -> list[str]:
        return [self.texts[role][row] for row in generator.choice(len(self.texts[role]), number, replace=False)]

    def _sample(self, name: str, role: Role, batch: Sequence[str]) -> None:
        encoder, size = self.encoders[name], len(batch)
        encode = encoder.encode_query if role == "query" else encoder.encode_document
        self.samples[name, role][size].append(_seconds(lambda: encode(batch, batch_size=size), self.plan.sample_s))
        if tokenise := self.tokenisers.get(name):
            seconds = _seconds(lambda: tokenise(batch, role), self.plan.sample_s / 5)
            self.tokenising[name, role][size].append(seconds)

    def _enough(self, name: str, role: Role, spent: float) -> bool:
        """Whether another round, as long as those before, would try our patience."""
        done = len(self.samples[name, role][self.plan.batch_sizes[0]])
        return done >= self.plan.min_rounds and spent * (done + 1) / done > self.plan.patience_s

    def _contestant(self, name: str) -> dict[str, Any]:
        p50, p95, p99 = np.percentile(self.lone[name], [50, 95, 99]).tolist()
        latency = {"p50": p50, "p95": p95, "p99": p99, "num_queries": len(self.lone[name])}
        return {**{role: self._role(name, role) for role in ROLES}, "latency_ms": latency}

    def _role(self, name: str, role: Role) -> dict[str, Any]:
        samples = self.samples[name, role]
        rates = [size / seconds for size, times in samples.items() for seconds in times]
        milliseconds = {size: [1000 * seconds for seconds in times] for size, times in samples.items()}
        quickest = min(milliseconds, key=lambda size: statistics.fmean(milliseconds[size]))
        within = [size for size, times in milliseconds.items() if statistics.median(times) <= self.plan.within_ms]
        tokenising = self.tokenising.get((name, role))
        return {
            "per_second": {**_mean_sd(rates), "median": statistics.median(rates), "samples": len(rates)},
            "min_latency_ms": {**_mean_sd(milliseconds[quickest]), "batch_size": quickest},
            "max_n": max(within, default=None),
            "rounds": len(samples[self.plan.batch_sizes[0]]),
            "batches": {
                str(size): {
                    "median_ms": statistics.median(times),
                    "samples_ms": [round(each, 4) for each in times],
                    "tokenise_ms": 1000 * statistics.median(tokenising[size]) if tokenising else None,
                }
                for size, times in milliseconds.items()
            },
        }

    def _ratio(self, name: str, other: str, role: Role) -> dict[str, float]:
        """How many times as many texts a second `name` encodes: means over batch sizes, divided within a round."""
        ours, theirs = self._rates(name, role), self._rates(other, role)
        ratios = [mine / his for mine, his in zip(ours, theirs, strict=False)]  # who was too slow has fewer rounds
        return {
            "median": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
            "rounds": len(ratios),
        }

    def _rates(self, name: str, role: Role) -> list[float]:
        """Texts a second of each round, mean over batch sizes."""
        samples = self.samples[name, role]
        rounds = zip(*samples.values(), strict=True)
        return [statistics.fmean(size / each for size, each in zip(samples, times, strict=True)) for times in rounds]


def _seconds(call: Callable[[], object], at_least: float) -> float:
    """Seconds of one call: of the only one, or where that is short, the mean of as many as take `at_least`."""
    timer = timeit.Timer(call, timer=time.perf_counter)
    once = timer.timeit(1)
    if once >= at_least:
        return once
    number = round(at_least / max(once, 1e-7)) or 1  # a coarse clock may say 0
    return timer.timeit(number) / number


def _one_at_a_time(encoder: Encoder, queries: Sequence[str], at_most_s: float = float("inf")) -> list[float]:
    """Milliseconds of each query; where all would take longer than `at_most_s`, of a tenth of them at least."""
    timed: list[float] = []
    for query in queries:
        if sum(timed) > 1000 * at_most_s and len(timed) >= len(queries) / 10:
            break
        began = time.perf_counter()
        encoder.encode_query([query])
        timed.append(1000 * (time.perf_counter() - began))
    return timed


def _mean_sd(values: Sequence[float]) -> dict[str, float | None]:
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}
