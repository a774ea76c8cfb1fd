import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leaf.parquet import open_parquet


def test_the_first_rows_of_a_file_that_is_one_row_group_take_little_memory(tmp_path):
    noise = np.random.default_rng(0).integers(0, 2**62, (40_000, 40))  # some 30 MB that zstd cannot shrink much
    pq.write_table(pa.table({"text": [" ".join(map(str, row)) for row in noise]}), tmp_path / "one.parquet")
    size, before = (tmp_path / "one.parquet").stat().st_size, pa.total_allocated_bytes()
    with open_parquet(tmp_path / "one.parquet") as file:
        assert file.num_row_groups == 1
        batch = next(file.iter_batches(100))
        assert batch.num_rows == 100
        assert pa.total_allocated_bytes() - before < size / 3
