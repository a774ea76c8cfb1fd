import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leaf.errors import LeafError
from leaf.recipe import Prepare, TextSource
from leaf.texts.prepare import prepare
from leaf.texts.sampling import Sample, tickets
from leaf.texts.shards import read_shard
from leaf.texts.sources import name_of, read


def drawn(size: int, total: int, batch: int, seed: int = 0) -> set[int]:
    """The rows of a sample, offered `batch` at a time."""
    sample, offered = Sample(size), {}
    for first in range(0, total, batch):
        given = tickets(seed, "name", first, min(batch, total - first))
        offered.update({first + position: int(given[position]) for position in sample.offer(given).tolist()})
    return {row for row, ticket in offered.items() if ticket <= int(sample.bar())}


def test_tickets_are_those_of_splitmix64() -> None:
    # The published test vector of SplitMix64 with state 1234567: its first outputs. blake2b is replaced by that state.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    key = np.uint64(1234567)
    from leaf.texts import sampling

    class Digest:
        def digest(self) -> bytes:
            return int(key).to_bytes(8, "little")

    original, sampling.hashlib.blake2b = sampling.hashlib.blake2b, lambda *_, **__: Digest()  # type: ignore[misc, assignment]
    try:
        assert tickets(0, "", 0, 3).tolist() == expected
        assert tickets(0, "", 1, 2).tolist() == expected[1:]
    finally:
        sampling.hashlib.blake2b = original  # type: ignore[misc]


@pytest.mark.parametrize(("size", "total"), [(1, 5), (100, 100), (100, 101), (1000, 50_000), (20_000, 60_000)])
def test_a_sample_is_exact_in_size_and_the_lowest_tickets_whatever_the_batches(size: int, total: int) -> None:
    lowest = set(np.argsort(tickets(0, "name", 0, total))[:size].tolist())
    for batch in (total, 997, 10_000):
        assert drawn(size, total, batch) == lowest
    assert len(lowest) == size


def test_samples_are_uniform_nested_and_follow_seed_and_name() -> None:
    rows = drawn(2_000, 40_000, 4096)
    assert drawn(500, 40_000, 4096) < rows
    # Of a uniform sample each tenth of the rows has 200 ± 13 (hypergeometric); five deviations are 65.
    counts = np.histogram(sorted(rows), bins=10, range=(0, 40_000))[0]
    assert np.abs(counts - 200).max() < 65
    assert len(rows & drawn(2_000, 40_000, 4096, seed=1)) < 160  # by chance 100 ± 10
    assert tickets(0, "a", 0, 1) != tickets(0, "b", 0, 1)


def test_memory_and_spool_of_a_sample_stay_near_its_size() -> None:
    sample, offered = Sample(10_000), 0
    for first in range(0, 1_000_000, 10_000):
        offered += len(sample.offer(tickets(0, "name", first, 10_000)))
        assert sum(map(len, sample._held)) < 10_000 + 8192 + 10_000
    # k (1 + ln(n / k)) = 56,000 rows would pass the k-th lowest ticket so far; the bar lags a little behind it.
    assert 50_000 < offered < 75_000


def write_files(folder: Path, suffix: str) -> TextSource:
    folder.mkdir()
    for part in range(6):
        texts = [f"file {part} row {n}" for n in range(50)]
        if suffix == ".parquet":
            pq.write_table(pa.table({"text": texts}), folder / f"train-{part}.parquet")
        else:
            (folder / f"train-{part}.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    return TextSource(source=str(folder / f"*{suffix}"), kind="query", sample="files", rows=120, name="f")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("on_hub", [True, False])
def test_a_sample_of_files_is_whole_files_in_an_order_of_the_seed(tmp_path: Path, suffix: str, on_hub: bool) -> None:
    source = write_files(tmp_path / "data", suffix)
    if on_hub:
        pytest.importorskip("datasets")
        source = source.model_copy(update={"source": f"hub:{tmp_path / 'data'}"})
    orders = set()
    for seed in range(4):
        rows = [str(row.text).split() for row in read(source, seed)]
        assert rows == [str(row.text).split() for row in read(source, seed)]
        parts = list(dict.fromkeys(row[1] for row in rows))
        assert [row[3] for row in rows] == [str(n) for n in [*range(50), *range(50), *range(20)]]
        orders.add(tuple(parts))
    assert len(orders) > 1
    facts = prepare([source], Prepare(held_out=10), tmp_path / "texts")
    assert facts["sources"]["f"]["read"] == 120


@pytest.mark.parametrize("sample", ["rows", "files"])
def test_prepare_and_read_draw_the_same_rows(tmp_path: Path, sample: str) -> None:
    source = write_files(tmp_path / "data", ".jsonl").model_copy(update={"sample": sample})
    prepare([source], Prepare(held_out=10, seed=4), tmp_path / "texts")
    found = [text for path in (tmp_path / "texts").glob("*.parquet") for text in read_shard(path).texts]
    assert sorted(found) == sorted(str(row.text) for row in read(source, 4))
    assert len(found) == 120


def test_a_sample_larger_than_the_source_is_all_of_it_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for sample in ("rows", "files"):
        source = write_files(tmp_path / sample, ".jsonl").model_copy(update={"sample": sample, "rows": 1000})
        assert prepare([source], Prepare(held_out=10), tmp_path / "texts")["sources"]["f"]["read"] == 300
        assert "f has 300 of the 1,000 rows asked for; taking them all" in capsys.readouterr().err


def test_rows_that_are_no_texts_take_part_in_the_sample(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": f"text {n}" if n % 2 else None}) + "\n" for n in range(400)]
    path.write_text("".join(lines))
    counts = prepare([TextSource(source=str(path), kind="query", rows=100)], Prepare(held_out=5), tmp_path / "t")
    rows = counts["sources"]["rows"]
    assert rows["read"] == 100 == rows["kept"] + rows["held_out"] + rows["rejected"]["not a string"]
    assert 25 < rows["rejected"]["not a string"] < 75  # 50 ± 4.3


# Guards


def guarded(folder: Path, ours: int, guards: int) -> list[TextSource]:
    found = []
    for name, count, guard in (("ours", ours, False), ("general", guards, True)):
        path = folder / f"{name}.txt"
        path.write_text("".join(f"{name} text number {n}\n" for n in range(count)))
        if count:
            found.append(TextSource(source=str(path), kind="query", guard=guard))
    return found


@pytest.mark.parametrize(("ratio", "kept"), [(1.0, 1.0), (0.5, 0.5), (3.0, 3.0)])
def test_guards_are_so_many_for_each_of_the_others(tmp_path: Path, ratio: float, kept: float) -> None:
    facts = prepare(guarded(tmp_path, 100, 1000), Prepare(held_out=110, guard_ratio=ratio), tmp_path / "texts")
    ours, general = facts["sources"]["ours"], facts["sources"]["general"]
    assert general["kept"] == int(kept * ours["kept"])
    assert ours["over_limit"] == 0
    assert general["read"] == 1000 == general["kept"] + general["held_out"] + general["over_limit"]
    assert 2 <= ours["held_out"] <= 25  # drawn from all texts: 10 ± 3 of the 110
    assert (general.get("guard"), "guard" in ours) == (True, False)


@pytest.mark.parametrize(("ratio", "limit"), [(1.0, 60), (1.0, 101), (0.25, 80), (2.0, 90)])
def test_with_a_limit_both_hold(tmp_path: Path, ratio: float, limit: int) -> None:
    sources = guarded(tmp_path, 100, 1000)
    facts = prepare(sources, Prepare(held_out=10, guard_ratio=ratio, limit=limit), tmp_path / "texts")
    ours, general = facts["sources"]["ours"]["kept"], facts["sources"]["general"]["kept"]
    assert ours + general == limit == facts["rows"]
    assert general <= ratio * ours
    assert general > 0.4 * ratio * ours  # not merely none


def test_without_guards_or_without_others_nothing_is_left_out(tmp_path: Path) -> None:
    for ours, guards in ((50, 0), (0, 50)):
        facts = prepare(guarded(tmp_path, ours, guards), Prepare(held_out=10, guard_ratio=0.1), tmp_path / "texts")
        assert facts["rows"] == 40
    few = prepare(guarded(tmp_path, 100, 50), Prepare(held_out=10), tmp_path / "texts")
    assert few["rows"] == 140


def test_guards_and_others_of_one_name_could_not_be_told_apart_afterwards(tmp_path: Path) -> None:
    sources = [source.model_copy(update={"name": "docs"}) for source in guarded(tmp_path, 60, 60)]
    with pytest.raises(LeafError, match="'docs' is the name of a source with guard and of one without"):
        prepare(sources, Prepare(held_out=10), tmp_path / "texts")


# The texts of teacher.vectors


def test_the_texts_of_owned_vectors_are_a_source(tmp_path: Path) -> None:
    source = TextSource(source="vectors", rows=60)
    texts = [(f"text number {n}", "query" if n % 3 else "document") for n in range(100)]
    facts = prepare(
        [source], Prepare(held_out=10), tmp_path / "texts", vectors=lambda: iter(texts), vectors_digest="abc"
    )  # type: ignore[arg-type]
    assert facts["sources"]["vectors"]["read"] == 60
    found = [read_shard(path) for path in (tmp_path / "texts").glob("*.parquet")]
    assert {pair for shard in found for pair in zip(shard.texts, shard.kinds, strict=True)} < set(texts)
    assert facts["kinds"]["query"] > facts["kinds"]["document"] > 0
    assert name_of(source) == "vectors"


def test_without_owned_vectors_the_source_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(LeafError, match=r"those of teacher\.vectors, which is not set"):
        list(read(TextSource(source="vectors"), 0))
    with pytest.raises(LeafError, match="column has no meaning"):
        read(TextSource(source="vectors", column="body"), 0)
