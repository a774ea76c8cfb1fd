import numpy as np
import pyarrow.parquet as pq
import pytest

from leaf.encoder import row_cosines
from leaf.errors import LeafError
from leaf.vector_files import check_part, is_normalised, read_vectors, write_part

KEY = {"teacher": {"model": "a", "max_length": 128}, "texts": "t"}


def unit(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def read(path) -> np.ndarray:
    return np.concatenate(list(read_vectors(path)))


def test_ordinary_vectors_are_stored_in_float16_and_come_back_as_rounded(tmp_path):
    vectors = unit(20_000, 16)
    part = write_part(tmp_path / "p.parquet", vectors, KEY, "float16")
    assert (part.dtype, part.rows) == ("float16", 20_000)
    assert read(tmp_path / "p.parquet").dtype == np.float16
    np.testing.assert_array_equal(read(tmp_path / "p.parquet"), vectors.astype(np.float16))
    assert max(len(group) for group in read_vectors(tmp_path / "p.parquet")) <= 8192


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda v: v * 1e-7, id="underflow"),  # float16's least step is 6e-8: mantissas are lost
        pytest.param(lambda v: v * 1e6, id="overflow"),  # float16 ends at 65504
    ],
)
def test_one_row_that_float16_would_damage_keeps_its_whole_part_in_float32(tmp_path, spoil):
    vectors = unit(100, 16)
    vectors[37] = spoil(vectors[37])
    with np.errstate(over="ignore"):
        part = write_part(tmp_path / "p.parquet", vectors, KEY, "float16")
    assert part.dtype == "float32"
    assert part.min_cosine < 0.9999
    np.testing.assert_array_equal(read(tmp_path / "p.parquet"), vectors)


def test_float32_is_kept_where_it_is_asked_for(tmp_path):
    assert write_part(tmp_path / "p.parquet", unit(5, 4), KEY, "float32").dtype == "float32"


def test_normalisation_is_measured_over_every_row(tmp_path):
    vectors = unit(100, 16)
    assert is_normalised([write_part(tmp_path / "p.parquet", vectors, KEY, "float16")])
    vectors[99] *= 1.01
    assert not is_normalised([write_part(tmp_path / "q.parquet", vectors, KEY, "float16")])


def test_nan_is_refused_when_written_and_when_read(tmp_path):
    vectors = unit(10, 4)
    vectors[3, 1] = np.nan
    with pytest.raises(LeafError, match=r"NaN or infinity for row 3 of part-00002; nothing of this shard was kept"):
        write_part(tmp_path / "part-00002.parquet", vectors, KEY, "float16")
    assert list(tmp_path.iterdir()) == []

    write_part(tmp_path / "p.parquet", unit(10, 4), KEY, "float32")
    table = pq.read_table(tmp_path / "p.parquet")
    spoiled = table["vector"].combine_chunks().flatten().to_numpy().copy()
    spoiled[5] = np.nan
    column = type(table["vector"].combine_chunks()).from_arrays(spoiled, 4)
    pq.write_table(table.set_column(0, "vector", column), tmp_path / "p.parquet")
    with pytest.raises(LeafError, match="holds NaN or infinite vectors; delete it and run again"):
        read(tmp_path / "p.parquet")


def test_a_part_of_another_teacher_is_an_error_that_names_the_field(tmp_path):
    write_part(tmp_path / "p.parquet", unit(5, 4), KEY, "float16")
    check_part(tmp_path / "p.parquet", KEY)
    other = {**KEY, "teacher": {"model": "a", "max_length": 256}}
    with pytest.raises(LeafError, match=r"another encoder or other texts \(teacher\.max_length was 128, is now 256\)"):
        check_part(tmp_path / "p.parquet", other)


@pytest.mark.parametrize("size", [0, 100, -10])
def test_a_truncated_part_is_one_clear_error(tmp_path, size):
    path = tmp_path / "p.parquet"
    write_part(path, unit(500, 16), KEY, "float16")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(LeafError, match=r"p\.parquet is damaged .*delete it and run again"):
        check_part(path, KEY)
    with pytest.raises(LeafError, match=r"p\.parquet is missing or damaged"):
        read(path)


def test_cosines_of_rows_and_of_zero_vectors():
    first = np.array([[3, 4], [1, 0], [0, 0], [0, 0]], np.float32)
    second = np.array([[4, 3], [-2, 0], [0, 0], [1, 0]], np.float32)
    np.testing.assert_allclose(row_cosines(first, second), [24 / 25, -1, 1, 0], atol=1e-6)
    assert row_cosines(first, second).dtype == np.float32
