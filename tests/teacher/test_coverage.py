import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leaf.recipe import OwnedVectors
from leaf.teacher.coverage import coverage, coverage_of
from leaf.teacher.owned import Owned
from leaf.texts.shards import HELD_OUT, shard_name, write_shard
from leaf.vector_files import write_part
from tiny import sentences

DIM = 8


def axes(*chosen: int) -> np.ndarray:
    """A vector in both directions of each of these axes."""
    return np.concatenate([np.eye(DIM, dtype=np.float32)[list(chosen)], -np.eye(DIM, dtype=np.float32)[list(chosen)]])


def test_directions_are_those_that_the_vectors_use_each_as_much_as_the_others():
    found = coverage(axes(0, 1, 2, 3))
    assert found.effective_rank == pytest.approx(4)
    assert (found.dim, found.owned, found.directions, found.queries) == (DIM, 8, 4, 0)
    assert (found.query_energy, found.query_nearest) == (None, None)


def test_a_direction_with_less_than_one_percent_of_the_energy_does_not_count():
    # Energies 1, 1 and 0.1² = 0.01: the third is 0.5 % of all.
    weak = axes(0, 1, 2) * np.array([1, 1, 0.1, 1, 1, 1, 1, 1], dtype=np.float32)
    assert coverage(weak).directions == 2
    # With 0.2² = 0.04 it is 2 %.
    assert coverage(weak * np.array([1, 1, 2, 1, 1, 1, 1, 1], dtype=np.float32)).directions == 3


def test_the_energy_of_queries_is_what_of_their_squared_length_lies_in_those_directions():
    queries = np.zeros((2, DIM), dtype=np.float32)
    queries[0, [0, 7]] = 3, 4  # 9 of 25 inside
    queries[1, [1, 2]] = 3, 4  # 25 of 25
    found = coverage(axes(0, 1, 2, 3), queries)
    assert found.query_energy == pytest.approx(34 / 50)
    assert found.queries == 2
    lines = found.sentence().splitlines()
    assert "effective rank 4; 99 % of their energy lies in 4 of 8 directions, and 68 % of the queries'" in lines[0]
    assert lines[1].startswith("warning: 32 % of the queries' energy lies in directions that the owned vectors hardly")
    assert len(coverage(axes(0, 1, 2, 3), queries[1:]).sentence().splitlines()) == 1


def test_nearness_is_a_median_cosine_whatever_the_lengths_and_never_to_itself():
    # 0°, 60° and 90° on a circle, at other lengths: nearest others at 60°, 30°, 30°.
    degrees = np.radians([0, 60, 90])
    owned = np.zeros((3, DIM), dtype=np.float32)
    owned[:, 0], owned[:, 1] = np.cos(degrees), np.sin(degrees)
    owned *= np.array([[1], [5], [9]], dtype=np.float32)
    # A query at 45° is 15° from the nearest.
    query = np.zeros((1, DIM), dtype=np.float32)
    query[0, :2] = 2
    found = coverage(owned, query)
    assert found.owned_nearest == pytest.approx(np.cos(np.radians(30)), abs=1e-6)
    assert found.query_nearest == pytest.approx(np.cos(np.radians(15)), abs=1e-6)


def test_a_single_vector_and_no_queries_are_said_as_they_are():
    found = coverage(axes(0)[:1], np.empty((0, DIM), dtype=np.float32))
    assert (found.owned_nearest, found.query_energy, found.directions) == (None, None, 1)
    assert found.sentence() == "owned vectors; effective rank 1; 99 % of their energy lies in 1 of 8 directions"


def test_the_coverage_of_a_run_counts_texts_by_kind_and_takes_the_held_out_queries(tmp_path):
    everything = sentences(40)
    kinds = ["query" if row % 4 == 0 else "document" for row in range(40)]
    shards = []
    for file, rows in ((shard_name(0), slice(0, 16)), (shard_name(1), slice(16, 32)), (HELD_OUT, slice(32, 40))):
        columns = {"text": everything[rows], "kind": kinds[rows], "source": ["s"] * len(everything[rows])}
        shards.append(write_shard(tmp_path / "texts" / file, pa.table(columns)))
    # Half of the 24 training documents and a held-out one are owned, all in the plane of axes 0 and 1.
    documents = [text for text, kind in zip(everything, kinds, strict=True) if kind == "document"]
    owned = [*documents[:24:2], documents[-1]]
    vectors = [axes(0, 1)[row % 4] for row in range(len(owned))]
    pq.write_table(pa.table({"text": owned, "vector": vectors}), tmp_path / "dump.parquet")
    # The two held-out queries lie half in that plane.
    held_out = np.eye(DIM, dtype=np.float32)[[row % 2 for row in range(8)]]
    held_out[[0, 4]] = np.array([1, 0, 0, 1, 0, 0, 0, 0]) / np.sqrt(2)
    write_part(tmp_path / "embeddings" / HELD_OUT, held_out, {}, "float32")

    found = coverage_of(
        Owned(OwnedVectors(source=str(tmp_path / "dump.parquet")), tmp_path / "owned"),
        tmp_path / "texts",
        tmp_path / "embeddings",
        shards[:2],
        shards[2],
    )
    assert found.texts == {"query": (0, 8), "document": (12, 24)}
    assert (found.owned, found.queries, found.directions) == (13, 2, 2)
    assert found.query_energy == pytest.approx(0.5)
    assert found.sentence().startswith("owned vectors: 0 of 8 queries and 12 of 24 documents had one; effective rank 2")
    assert json.loads(json.dumps(found.to_json()))["texts"] == {"query": [0, 8], "document": [12, 24]}
