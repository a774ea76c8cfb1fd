"""What the texts stage leaves behind: Parquet shards of texts, and how they are read and named by content.

shard = read_shard(Path("runs/demo/texts/part-00000.parquet"))
print(len(shard.texts), shard.kinds[0])
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from leaf.encoder import Role
from leaf.errors import LeafError, first_line
from leaf.files import atomic_path

HELD_OUT = "held-out.parquet"
_NAMES = pa.dictionary(pa.int32(), pa.string())
#: The text is the first column, which `mean_bytes` counts on.
SCHEMA = pa.schema({"text": pa.string(), "kind": _NAMES, "source": _NAMES})


class Shard(NamedTuple):
    """The texts of one file with the role of each (`query` or `document`), in row order."""

    texts: list[str]
    kinds: list[Role]


def read_shard(path: Path) -> Shard:
    """The texts and kinds of one shard. A damaged file is a `LeafError`."""
    with undamaged(path):
        table = pq.read_table(path, columns=["text", "kind"])
        return Shard(table["text"].to_pylist(), table["kind"].to_pylist())


def read_sources(path: Path) -> list[str]:
    """The source of each text of a shard, in row order. A damaged file is a `LeafError`."""
    with undamaged(path):
        return list(pq.read_table(path, columns=["source"])["source"].to_pylist())


def mean_bytes(path: Path) -> float:
    """Mean bytes of a text of one shard, by the file's footer: no text is read.

    Parquet keeps a text that repeats once, so this is less where many do. A damaged file is a `LeafError`.
    """
    with undamaged(path):
        footer = pq.read_metadata(path)
        columns = [footer.row_group(number).column(0) for number in range(footer.num_row_groups)]
        return float(sum(column.total_uncompressed_size for column in columns) / max(1, footer.num_rows))


@contextmanager
def undamaged(path: Path) -> Iterator[None]:
    """Whatever reading a file of ours stumbles over, as a `LeafError`."""
    try:
        yield
    except (OSError, KeyError, UnicodeDecodeError, json.JSONDecodeError, pa.ArrowException) as error:
        raise LeafError(f"{path} is damaged ({first_line(error)}); delete {path.parent} and run again") from error


def shard_name(number: int) -> str:
    """The file name of a training shard."""
    return f"part-{number:05}.parquet"


def shard_digest(texts: Iterable[str], kinds: Iterable[str]) -> str:
    """SHA-256 (hex) of the rows' texts and kinds, which does not depend on how Parquet encodes them.

    Every field is preceded by its length, so that no two different shards feed the hash the same bytes.
    """
    content = hashlib.sha256()
    for row in zip(texts, kinds, strict=True):
        for field in row:
            data = field.encode()
            content.update(len(data).to_bytes(8, "little"))
            content.update(data)
    return content.hexdigest()


def write_shard(path: Path, rows: pa.Table) -> dict[str, Any]:
    """Writes `rows` (see `SCHEMA`) and returns the file's name, rows, bytes and digest."""
    with atomic_path(path) as temporary:
        pq.write_table(rows.cast(SCHEMA), temporary, compression="zstd")
    return {
        "file": path.name,
        "rows": rows.num_rows,
        "bytes": path.stat().st_size,
        "digest": shard_digest(*(_values(rows, column) for column in ("text", "kind"))),
    }


def _values(rows: pa.Table, column: str) -> Iterator[str]:
    """A column as Python strings, a few at a time: all would take more memory than the table."""
    for batch in rows.select([column]).to_batches(max_chunksize=4096):
        yield from batch.column(0).to_pylist()
