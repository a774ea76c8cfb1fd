from pathlib import Path

import pyarrow as pa
import pytest

from leaf.errors import LeafError
from leaf.texts.shards import Shard, read_shard, shard_digest, write_shard


def write(path: Path, *texts: str) -> dict[str, object]:
    rows = {"text": list(texts), "kind": ["query"] * len(texts), "source": ["s"] * len(texts)}
    return write_shard(path, pa.table(rows))


def test_a_shard_comes_back_as_it_was_written(tmp_path: Path) -> None:
    facts = write(tmp_path / "part-00000.parquet", "first", "zweiter, größer\n")
    assert read_shard(tmp_path / "part-00000.parquet") == Shard(["first", "zweiter, größer\n"], ["query"] * 2)
    assert (facts["file"], facts["rows"]) == ("part-00000.parquet", 2)


def test_the_digest_tells_apart_rows_that_join_to_the_same_bytes() -> None:
    digests = {
        shard_digest(["ab", "c"], ["query", "query"]),
        shard_digest(["a", "bc"], ["query", "query"]),
        shard_digest(["c", "ab"], ["query", "query"]),
        shard_digest(["ab", "c"], ["query", "document"]),
        shard_digest(["abqueryc"], ["query"]),
    }
    assert len(digests) == 5
    # printf '\x01\0\0\0\0\0\0\0a\x05\0\0\0\0\0\0\0query' | sha256sum
    assert shard_digest(["a"], ["query"]) == "a485ebeeff81fa60df35ef9474008687a40c4f9ff31e45211defe5917e5f944f"


def test_a_truncated_shard_is_named_with_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "part-00000.parquet"
    write(path, "text")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(LeafError, match=rf"part-00000.parquet is damaged \(.*\); delete {tmp_path} and run again"):
        read_shard(path)
