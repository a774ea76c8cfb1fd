"""Timing of encoders by a clock that only the encoders move, so that every number can be worked out by hand."""

import subprocess
import sys

import numpy as np
import pytest

from leaf.errors import LeafError
from leaf.runtime import speed
from leaf.runtime.speed import Plan, query_latency, take_turns

TEXTS = {
    "query": [f"query {number}" for number in range(40)],
    "document": [f"document {number}" for number in range(40)],
}


class Clock:
    """Seconds; by the number of the call, the machine is so many times as slow."""

    def __init__(self):
        self.now, self.calls, self.slowness = 0.0, 0, lambda call: 1

    def spend(self, milliseconds):
        self.now += self.slowness(self.calls) * milliseconds / 1000
        self.calls += 1


class Made:
    """An encoder that takes `fixed` ms a batch and `each` ms a text, ten times as long for documents."""

    similarity, dim = "cosine", 2

    def __init__(self, clock, fixed, each):
        self.name, self.clock, self.fixed, self.each, self.batches = "made", clock, fixed, each, []

    def encode_query(self, texts, *, batch_size=32, advance=None):
        return self._encode(texts, batch_size, 1)

    def encode_document(self, texts, *, batch_size=32, advance=None):
        return self._encode(texts, batch_size, 10)

    def _encode(self, texts, batch_size, times):
        assert len(texts) <= batch_size, "a batch goes in whole"
        self.batches.append(tuple(texts))
        self.clock.spend(times * (self.fixed + self.each * len(texts)))
        return np.zeros((len(texts), 2), dtype=np.float32)


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(speed.time, "perf_counter", lambda: made.now)
    return made


def test_rates_latencies_and_the_largest_batch_in_time_are_those_of_table_8(clock):
    plan = Plan(batch_sizes=(1, 2, 4), rounds=2, within_ms=35)
    timed = take_turns({"one": Made(clock, 10, 10)}, TEXTS, plan=plan)["contestants"]["one"]
    # Queries: batches of 20, 30 and 50 ms, so 50, 66.7 and 80 a second, each twice.
    rates = np.repeat([1 / 0.02, 2 / 0.03, 4 / 0.05], 2)
    queries = timed["query"]
    assert queries["per_second"]["mean"] == pytest.approx(rates.mean())
    assert queries["per_second"]["sd"] == pytest.approx(rates.std(ddof=1))
    assert queries["per_second"]["samples"] == 6
    assert queries["min_latency_ms"] == {"mean": pytest.approx(20), "sd": pytest.approx(0, abs=1e-9), "batch_size": 1}
    assert queries["max_n"] == 2
    assert [queries["batches"][size]["median_ms"] for size in ("1", "2", "4")] == pytest.approx([20, 30, 50])
    # Documents take ten times as long: no batch is within 35 ms.
    assert timed["document"]["per_second"]["mean"] == pytest.approx(rates.mean() / 10)
    assert timed["document"]["max_n"] is None
    assert timed["latency_ms"] == {**dict.fromkeys(("p50", "p95", "p99"), pytest.approx(20)), "num_queries": 80}


def test_percentiles_are_of_queries_that_come_alone(clock):
    class Uneven(Made):
        def encode_query(self, texts, **options):
            self.each = 1 + int(texts[0].split()[1])
            return super().encode_query(texts, **options)

    timed = take_turns({"one": Uneven(clock, 0, 0)}, TEXTS, plan=Plan(batch_sizes=(1,), rounds=1))["contestants"]["one"]
    # 40 queries of 1, 2 … 40 ms: the middle one 20.5, and the 39 steps between make p95 1 + 0.95 · 39 = 38.05.
    assert timed["latency_ms"]["p50"] == pytest.approx(20.5)
    assert timed["latency_ms"]["p95"] == pytest.approx(38.05)
    assert timed["latency_ms"]["p99"] == pytest.approx(39.61)


def test_a_slow_round_moves_rates_and_not_ratios(clock):
    # Calls of both: 22 to warm up; 8 a round of queries (2 batches, one to warm up, one alone), 4 a round of documents.
    clock.slowness = lambda call: 1 if call < 22 else 1 + (call - 22) // 8 if call < 62 else 1 + (call - 62) // 4
    encoders = {"student": Made(clock, 0, 1), "teacher": Made(clock, 0, 7)}
    plan = Plan(batch_sizes=(1, 4), rounds=5, lone_queries=1, sample_s=0)
    timed = take_turns(encoders, TEXTS, against=["teacher"], plan=plan)
    for role, times in (("query", 1), ("document", 10)):
        # Texts of 7 ms in the first round, twice that in the second, up to five times.
        expected = 1000 / (7 * times * np.repeat([1, 2, 3, 4, 5], 2))
        per_second = timed["contestants"]["teacher"][role]["per_second"]
        assert (per_second["mean"], per_second["sd"]) == pytest.approx((expected.mean(), expected.std(ddof=1)))
        ratio = timed["ratios"][role]["student"]["teacher"]
        assert ratio == {**dict.fromkeys(("median", "min", "max"), pytest.approx(7)), "rounds": 5}
        assert timed["ratios"][role]["teacher"] == {}


def test_all_contestants_encode_the_same_batches_and_every_round_draws_others(clock):
    encoders = {name: Made(clock, 100, 1) for name in ("one", "two", "three")}  # too slow to be repeated in a sample
    take_turns(encoders, TEXTS, plan=Plan(batch_sizes=(1, 3), rounds=2, lone_queries=2))
    one, two, three = (sorted(each.batches) for each in encoders.values())
    assert one == two == three
    drawn = [batch for batch in encoders["one"].batches if len(batch) == 3]
    assert len(drawn) == len(set(drawn)) == 4


def test_each_round_begins_with_another_contestant(clock):
    order = []

    class Noted(Made):
        def _encode(self, texts, batch_size, times):
            if len(texts) == 3 and times == 1:
                order.append(self.name)
            return super()._encode(texts, batch_size, times)

    encoders = {name: Noted(clock, 100, 1) for name in ("a", "b", "c")}
    for name, encoder in encoders.items():
        encoder.name = name
    take_turns(encoders, TEXTS, plan=Plan(batch_sizes=(3,), rounds=4, lone_queries=1))
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"


@pytest.mark.parametrize(("patience_s", "rounds"), [(0.5, 3), (1.4, 4), (100, 7)])
def test_who_is_too_slow_sits_out_after_the_least_number_of_rounds(clock, patience_s, rounds):
    plan = Plan(batch_sizes=(1, 2), rounds=7, min_rounds=3, patience_s=patience_s, lone_queries=1, sample_s=0)
    encoders = {"slow": Made(clock, 0, 100), "quick": Made(clock, 0, 1)}
    timed = take_turns(encoders, TEXTS, against=["slow"], plan=plan)
    had = {name: timed["contestants"][name]["query"]["rounds"] for name in encoders}
    # 0.3 s a round: two rounds would take more than 0.5 s, but three are the least; five would take more than 1.4 s.
    assert had == {"slow": rounds, "quick": 7}
    ratio = timed["ratios"]["query"]["quick"]["slow"]
    assert ratio == {**dict.fromkeys(("median", "min", "max"), pytest.approx(100)), "rounds": rounds}


def test_a_quick_batch_is_repeated_until_it_fills_a_sample(clock):
    made = Made(clock, 0, 2)
    take_turns({"one": made}, TEXTS, plan=Plan(batch_sizes=(3,), rounds=1, lone_queries=1, sample_s=0.06))
    batches = [batch for batch in made.batches if len(batch) == 3 and batch[0].startswith("query")]
    assert len(batches) == 1 + 10  # 6 ms each: once to see how long it takes, then ten times for 60 ms
    assert len(set(batches)) == 1


def test_tokenising_is_timed_apart(clock):
    def count_tokens(texts, role):
        clock.spend(3 * len(texts) if role == "query" else 5 * len(texts))
        return [1] * len(texts)

    plan = Plan(batch_sizes=(1, 2), rounds=1)
    timed = take_turns({"one": Made(clock, 0, 10)}, TEXTS, plan=plan, tokenisers={"one": count_tokens})
    one = timed["contestants"]["one"]
    assert one["query"]["batches"]["2"]["tokenise_ms"] == pytest.approx(6)
    assert one["document"]["batches"]["2"]["tokenise_ms"] == pytest.approx(10)
    assert one["query"]["batches"]["2"]["median_ms"] == pytest.approx(20)


def test_fewer_texts_than_the_largest_batch_are_refused(clock):
    few = {**TEXTS, "document": TEXTS["document"][:3]}
    with pytest.raises(LeafError, match="3 texts of kind document are fewer than the largest batch, 4"):
        take_turns({"one": Made(clock, 1, 1)}, few, plan=Plan(batch_sizes=(1, 4)))


def test_the_latency_of_a_run_is_that_of_single_queries(clock):
    record = query_latency(Made(clock, 3, 1), TEXTS["query"], num_queries=70)
    assert (record["median_ms"], record["p10_ms"]) == pytest.approx((4, 4))
    assert record["num_queries"] == 70


def test_timing_exported_models_needs_no_torch():
    check = "import leaf.speed.query, sys; sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
