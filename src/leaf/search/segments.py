"""The files of an index: segments that are written once and never changed.

    segments/000003-1f0a/
      documents.parquet   id, title, text, digest and the metadata: for people and their tools
      rows.arrow          the same, mapped into memory; made again from documents.parquet where it is missing
      vectors.npy         float16 or float32 [rows, dim], as prepared: what hits are scored by
      graph.usearch       what is looked at first, in a segment of many documents; bits.npy in a binary index
      deleted-5.npy       which rows are gone since generation 5

A change writes new segments, and new lists of what is gone from old ones; the manifest that names them comes last.
"""

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from leaf.compression import Int8
from leaf.encoder import Vectors, normalised
from leaf.errors import LeafError, first_line
from leaf.files import atomic_path, file_digest, quick_digest
from leaf.parquet import open_parquet
from leaf.search.codes import BIT_CANDIDATES, BLOCK, GRAPH_CANDIDATES, SEARCHING, Bits, Graph, Rows
from leaf.search.filters import AllOf, AnyOf, Compare, Filter, Not
from leaf.search.store import RESERVED, Document, Hit, Settings

DOCUMENTS, ROWS, VECTORS, GRAPH, BITS = "documents.parquet", "rows.arrow", "vectors.npy", "graph.usearch", "bits.npy"
#: Rows of one batch of `rows.arrow`, and of one row group of the Parquet file.
BATCH = 4096
#: Vectors that int8 is calibrated from.
CALIBRATED = 10_000
TYPES = {"str": pa.large_string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Part:
    """Some documents with their vectors, on their way into a segment: `PATH.arrow` and `PATH.npy`."""

    path: Path
    gone: Mask

    @classmethod
    def write(cls, path: Path, table: pa.Table, vectors: Vectors) -> Self:
        """Keeps documents and their vectors, float32 `[n, dim]`, on disk until the change is whole."""
        write_rows(path.with_suffix(".arrow"), iter([table]))
        np.save(path.with_suffix(".npy"), vectors)
        return cls(path, np.zeros(len(table), bool))

    @property
    def live(self) -> int:
        """Documents that are not gone."""
        return len(self.gone) - int(self.gone.sum())

    def digest(self, row: int) -> str:
        """`Document.digest` of one row."""
        found: str = self._table().column("digest")[row].as_py()
        return found

    def batches(self) -> Iterator[tuple[pa.Table, Vectors]]:
        """What is not gone."""
        kept = ~self.gone
        yield self._table().filter(pa.array(kept)), np.load(self.path.with_suffix(".npy"))[kept]

    def _table(self) -> pa.Table:
        return pa.ipc.open_file(pa.memory_map(str(self.path.with_suffix(".arrow")))).read_all()


class Segment:
    """One segment and which of its rows are gone. `facts` is its entry in the manifest. Safe from any thread."""

    def __init__(self, folder: Path, facts: dict[str, Any], settings: Settings, columns: Mapping[str, str]) -> None:
        self.folder, self.facts, self.settings = folder, facts, settings
        #: Columns of whole numbers may have become floats since.
        self._floats = [name for name, kind in columns.items() if kind == "float"]
        self.rows: int = facts["rows"]
        self.gone: Mask | None = None
        if facts["deletions"] is not None:
            self.gone = read_deletions(folder / facts["deletions"], self.rows, facts["deleted"])

    @property
    def live(self) -> int:
        """Documents that are not gone."""
        return self.rows - (0 if self.gone is None else int(self.gone.sum()))

    @property
    def has_codes(self) -> bool:
        """Whether it is searched by a graph or by bits, rather than whole."""
        return GRAPH in self.facts["files"] or BITS in self.facts["files"]

    def check(self, *, whole: bool = False) -> None:
        """Raises `LeafError` for a file that is missing or not as it was written; `whole` reads all of every file."""
        for name, known in self.facts["files"].items():
            path = self.folder / name
            if not path.is_file():
                if name == ROWS and (self.folder / DOCUMENTS).is_file():
                    continue
                raise LeafError(f"{path} is missing; restore it, or index the documents again")
            if (size := path.stat().st_size) != known["bytes"]:
                raise LeafError(
                    f"{path} is damaged: {size:,} bytes, expected {known['bytes']:,}; restore it, or index the "
                    "documents again"
                )
            if quick_digest(path) != known["quick"] or (whole and file_digest(path) != known["sha256"]):
                raise LeafError(f"{path} is damaged: not what was written; restore it, or index the documents again")

    def open(self) -> None:
        """Maps every file, so that it can still be read when a writer has removed it."""
        _ = self.vectors, self._batches
        if self.has_codes:
            _ = self._codes

    @functools.cached_property
    def vectors(self) -> NDArray[Any]:
        """float16 or float32 `[rows, dim]`, mapped from the file."""
        vectors: NDArray[Any] = np.asarray(np.load(self.folder / VECTORS, mmap_mode="r"))
        if vectors.shape != (self.rows, self.settings.dim):
            raise LeafError(f"{self.folder / VECTORS} is damaged: shape {vectors.shape}; index the documents again")
        return vectors

    def take(self, rows: Rows | slice) -> Vectors:
        """Vectors of `rows` as they are compared, float32 `[n, dim]`: for the cosine of length 1, after float16 too."""
        found = self.vectors[rows]
        if found.dtype == np.float32:
            return np.asarray(found)
        exact: Vectors = found.astype(np.float32)
        return normalised(exact) if self.settings.similarity == "cosine" else exact

    @functools.cached_property
    def _codes(self) -> Graph | Bits:
        if GRAPH in self.facts["files"]:
            return Graph(self.folder / GRAPH, self.settings)
        return Bits(self.folder / BITS)

    def search(self, vectors: Vectors, k: int, allowed: Mask | None) -> list[tuple[Rows, Vectors]]:
        """For each of float32 `[n, dim]` the best rows that are `allowed` (None: all that are not gone), with scores.

        At least `k` of them where there are so many.
        """
        if allowed is None and self.gone is not None:
            allowed = ~self.gone
        codes = self._codes
        if isinstance(codes, Bits):
            # The nearest by bits are less sure the more there are.
            count = int(BIT_CANDIDATES * k * max(1.0, self.rows / 100_000) ** 0.5)
            found = codes.candidates(vectors, count, allowed)
        else:
            found = self._from_graph(codes, vectors, k, allowed)
        return [(rows, self.take(rows) @ query) for rows, query in zip(found, vectors, strict=True)]

    def compare(self, vectors: Vectors, rows: Rows) -> list[tuple[Rows, Vectors]]:
        """`search` by comparing each of float32 `[n, dim]` with just these `rows`."""
        stored = self.take(rows)
        return [(rows, stored @ query) for query in vectors]

    def _from_graph(self, graph: Graph, vectors: Vectors, k: int, allowed: Mask | None) -> list[Rows]:
        count = max(GRAPH_CANDIDATES * k, 1)
        if allowed is None:
            found = graph.candidates(vectors, min(count, self.rows))
            # Some documents of a graph cannot be reached in it, which shows where nearly all are asked for.
            return found if min(map(len, found)) >= min(k, self.rows) else [np.arange(self.rows)] * len(vectors)
        rows = np.flatnonzero(allowed)
        if len(rows) ** 2 <= count * self.rows:  # it would have to give more candidates than there are rows to score
            return [rows] * len(vectors)
        # The graph knows nothing of what is allowed: it is asked for more until enough of its answers are.
        enough = min(k, len(rows))
        count = min(int(count / max(allowed.mean(), 1e-9)) + 1, self.rows)
        while True:
            found = [some[allowed[some]] for some in graph.candidates(vectors, count)]
            if min(map(len, found)) >= enough:
                return found
            if count >= self.rows:
                return [rows] * len(vectors)
            count = min(4 * max(count, SEARCHING), self.rows)

    @functools.cached_property
    def _batches(self) -> list[pa.RecordBatch]:
        path = self.folder / ROWS
        if not path.is_file():
            write_rows(path, read_documents(self.folder / DOCUMENTS))
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        return [reader.get_batch(at) for at in range(reader.num_record_batches)]

    @functools.cached_property
    def table(self) -> pa.Table:
        """id, title, text, digest and metadata of every row, mapped from the file."""
        return pa.Table.from_batches(self._batches)

    def ids(self) -> list[str]:
        """The id of every row."""
        return [each for batch in self._batches for each in batch.column("id").to_pylist()]

    def id(self, row: int) -> str:
        """The id of one row."""
        found: str = self._columns[row // BATCH]["id"][row % BATCH].as_py()
        return found

    def digest(self, row: int) -> str:
        """`Document.digest` of one row."""
        found: str = self._batches[row // BATCH].column("digest")[row % BATCH].as_py()
        return found

    def hit(self, row: int, score: float) -> Hit:
        """The document in `row`, found with `score`."""
        found = self._record(row)
        return Hit(found.pop("id"), score, found.pop("text"), found.pop("title"), found)

    def document(self, row: int) -> Document:
        """The document in `row`."""
        found = self._record(row)
        return Document(found.pop("id"), found.pop("text"), found.pop("title"), found)

    @functools.cached_property
    def _columns(self) -> list[dict[str, Any]]:
        # Arrow makes a new object at every call for a column, and documents are looked up a thousand times a second.
        names = [name for name in self.table.schema.names if name != "digest"]
        return [{name: batch.column(name) for name in names} for batch in self._batches]

    def _record(self, row: int) -> dict[str, Any]:
        columns, at = self._columns[row // BATCH], row % BATCH
        found = {name: value for name, column in columns.items() if (value := column[at].as_py()) is not None}
        for name in self._floats:
            if name in found:
                found[name] = float(found[name])
        return found

    def matching(self, condition: Filter) -> Mask:
        """Which rows meet `condition` and are not gone, `[rows]`."""
        mask = matches(condition, self.table)
        return mask if self.gone is None else mask & ~self.gone

    def batches(self) -> Iterator[tuple[pa.Table, Vectors]]:
        """What is not gone, a batch at a time."""
        with open(self.folder / VECTORS, "rb") as handle:  # read, not mapped: the pages need not stay
            dtype, dim = _skip_header(handle), self.settings.dim
            for at, batch in enumerate(self._batches):
                stored = np.fromfile(handle, dtype, batch.num_rows * dim).reshape(-1, dim)
                kept = slice(None) if self.gone is None else ~self.gone[at * BATCH : at * BATCH + batch.num_rows]
                table = pa.Table.from_batches([batch])
                yield table if self.gone is None else table.filter(pa.array(kept)), stored[kept].astype(np.float32)


def write_segment(
    folder: Path,
    sources: Sequence[Part | Segment],
    columns: dict[str, str],
    settings: Settings,
    *,
    with_codes: bool,
    advance: Callable[[int], object],
) -> dict[str, Any]:
    """Writes what is not gone from `sources` as one new segment; returns its entry for the manifest."""
    rows = sum(source.live for source in sources)
    schema = pa.schema(
        [(name, TYPES["str"]) for name in RESERVED] + [(name, TYPES[kind]) for name, kind in columns.items()]
    )
    stored_type = np.float32 if settings.precision == "float32" else np.float16
    folder.mkdir(parents=True)
    with (
        pq.ParquetWriter(folder / DOCUMENTS, schema, compression="zstd") as parquet,
        pa.OSFile(str(folder / ROWS), "wb") as sink,
        pa.ipc.new_file(sink, schema) as mapped,
        open(folder / VECTORS, "wb") as handle,
    ):
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(stored_type)),
            "fortran_order": False,
            "shape": (rows, settings.dim),
        }
        np.lib.format.write_array_header_1_0(handle, header)
        for table, vectors in _rebatched(sources, schema):
            parquet.write_table(table, row_group_size=BATCH)
            mapped.write_table(table, max_chunksize=BATCH)
            handle.write(np.ascontiguousarray(vectors, dtype=stored_type).tobytes())
            advance(0 if with_codes else len(table))
    if with_codes:
        blocks = read_blocks(folder / VECTORS, settings)
        if settings.precision == "binary":
            Bits.write(folder / BITS, blocks, rows, settings.dim)
            advance(rows)
        else:
            Graph.write(folder / GRAPH, blocks, settings, advance)
    files = {
        path.name: {"bytes": _synced(path), "quick": quick_digest(path), "sha256": file_digest(path)}
        for path in sorted(folder.iterdir())
    }
    return {"name": folder.name, "rows": rows, "deleted": 0, "deletions": None, "files": files}


def calibration(sources: Sequence[Part | Segment], settings: Settings) -> float:
    """`Settings.limit` of an int8 index, from vectors of all sources, evenly drawn."""
    step = max(1, sum(source.live for source in sources) // CALIBRATED)
    # Copies: a view would keep all vectors in memory.
    sample = [vectors[::step].copy() for source in sources for _, vectors in source.batches()]
    return Int8.calibrate(np.concatenate(sample), settings.dim, settings.similarity).limit


def read_blocks(path: Path, settings: Settings) -> Iterator[Vectors]:
    """The vectors of a segment in blocks of float32 `[n, dim]`, in the memory of one block."""
    with open(path, "rb") as handle:
        dtype = _skip_header(handle)
        while len(block := np.fromfile(handle, dtype, BLOCK * settings.dim)):
            yield block.reshape(-1, settings.dim).astype(np.float32)


def write_rows(path: Path, tables: Iterator[pa.Table]) -> None:
    """`rows.arrow` of tables of `BATCH` rows."""
    with atomic_path(path) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        writer = None
        for table in tables:
            writer = writer or pa.ipc.new_file(sink, table.schema)
            writer.write_table(table, max_chunksize=BATCH)
        if writer is not None:
            writer.close()


def read_documents(path: Path) -> Iterator[pa.Table]:
    """The documents of a Parquet file, in tables of `BATCH` rows."""
    with open_parquet(path) as file:
        for batch in file.iter_batches(BATCH):
            yield pa.Table.from_batches([batch])


def table_of(documents: Sequence[Document], columns: dict[str, str]) -> pa.Table:
    """Documents as a table with the metadata `columns`."""
    arrays: dict[str, Any] = {
        "id": pa.array([each.id for each in documents], TYPES["str"]),
        "title": pa.array([each.title for each in documents], TYPES["str"]),
        "text": pa.array([each.text for each in documents], TYPES["str"]),
        "digest": pa.array([each.digest for each in documents], TYPES["str"]),
    }
    for name, kind in columns.items():
        arrays[name] = pa.array([each.metadata.get(name) for each in documents], TYPES[kind])
    return pa.table(arrays)


def matches(condition: Filter, table: pa.Table) -> Mask:
    """Which rows of a table meet `condition`, `[rows]`."""
    match condition:
        case Not(inner=inner):
            return ~matches(inner, table)
        case AllOf(parts=parts):
            return np.asarray(np.all([matches(part, table) for part in parts], axis=0))
        case AnyOf(parts=parts):
            return np.asarray(np.any([matches(part, table) for part in parts], axis=0))
        case Compare(field=name, operator=operator, value=value):
            if name not in table.schema.names:  # a column that came with later documents
                return np.full(table.num_rows, operator == "missing")
            column = table.column(name)
            if pa.types.is_floating(column.type) and value is not None:  # Arrow refuses whole numbers beyond 2⁵³
                value = tuple(map(float, value)) if isinstance(value, tuple) else float(value)
            met = _COMPARISONS[operator](column, value)
            return np.asarray(pc.fill_null(met, False).combine_chunks().to_numpy(zero_copy_only=False), dtype=bool)


def _is_in(column: Any, values: Any) -> Any:
    if any(isinstance(each, float) for each in values) and pa.types.is_integer(column.type):
        column = column.cast(pa.float64())
    return pc.is_in(column, pa.array(values, column.type))


_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal,
    "in": _is_in, "starts": pc.starts_with, "contains": pc.match_substring,
    "missing": lambda column, _: pc.is_null(column),
}  # fmt: skip


def _rebatched(sources: Sequence[Part | Segment], schema: pa.Schema) -> Iterator[tuple[pa.Table, Vectors]]:
    """Everything of the sources in batches of exactly `BATCH` rows, but the last."""
    tables: list[pa.Table] = []
    vectors: list[Vectors] = []
    waiting = 0
    for source in sources:
        for table, some in source.batches():
            tables.append(_conform(table, schema))
            vectors.append(some)
            waiting += len(some)
            while waiting >= BATCH:
                joined, rows = pa.concat_tables(tables), np.concatenate(vectors)
                yield joined.slice(0, BATCH).combine_chunks(), rows[:BATCH]
                tables, vectors, waiting = [joined.slice(BATCH)], [rows[BATCH:]], waiting - BATCH
    if waiting:
        yield pa.concat_tables(tables).combine_chunks(), np.concatenate(vectors)


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of `schema`; those that a table lacks are missing values."""
    columns = [
        table.column(field.name).cast(field.type, safe=False)  # whole numbers beyond 2⁵³ are rounded, as by Python
        if field.name in table.schema.names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _skip_header(handle: Any) -> np.dtype[Any]:
    np.lib.format.read_magic(handle)
    _, _, dtype = np.lib.format.read_array_header_1_0(handle)
    return dtype


def _synced(path: Path) -> int:
    """Bytes of a file, which are on the disk from now on: the manifest that names it must not get there first."""
    with open(path, "rb+") as handle:
        os.fsync(handle.fileno())
    return path.stat().st_size


def read_deletions(path: Path, rows: int, deleted: int) -> Mask:
    """Which rows are gone, `[rows]`. Raises `LeafError` unless those are `deleted` rows."""
    try:
        packed = np.load(path)
        if packed.shape != (-(-rows // 8),):
            raise ValueError(f"{packed.shape} bytes")
        gone = np.unpackbits(packed, count=rows).astype(bool)
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise LeafError(f"{path} is missing or damaged ({first_line(error)}); restore it, or index again") from error
    if (found := int(gone.sum())) != deleted:
        raise LeafError(f"{path} is damaged: {found:,} rows are gone, expected {deleted:,}; restore it, or index again")
    return gone


def write_deletions(path: Path, gone: Mask) -> None:
    """One bit for each row."""
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.save(handle, np.packbits(gone))


def remove_folder(folder: Path) -> None:
    """Removes what nothing refers to any more; what another process still has open goes with a later change."""
    shutil.rmtree(folder, ignore_errors=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an index. Raises `LeafError` where it is damaged."""
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key in ("version", "generation", "settings", "columns", "segments"):
            _ = manifest[key]
    except (ValueError, KeyError, TypeError) as error:
        raise LeafError(f"{path} is damaged ({error!r:.80}); restore it, or index the documents again") from error
    return manifest
