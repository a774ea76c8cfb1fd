"""A dump of texts with their vectors, read in O(batch) memory: Parquet, or a query to PostgreSQL with pgvector.

    with open_dump(OwnedVectors(source="dump.parquet")) as dump:
        for rows in dump.rows:
            print(rows.texts[0], rows.vectors[0])

Parquet may hold lists of float16, float32 or float64, or strings such as `[0.1, 0.2]`, which is how pgvector prints a
vector. PostgreSQL may answer with `vector`, `halfvec`, `real[]`, `double precision[]` or such strings.
"""

import functools
import glob
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from leaf.encoder import Role
from leaf.errors import LeafError, first_line
from leaf.files import quick_digest
from leaf.parquet import open_parquet
from leaf.recipe import OwnedVectors
from leaf.teacher.columns import (
    POSTGRES_TYPES,
    Matrix,
    Unusable,
    holds_vectors,
    is_string,
    of_arrow,
    of_postgres,
    of_strings,
)

#: Rows decoded at a time: 8 MB of float32 vectors of 1024 dimensions.
BATCH_ROWS = 2048
#: Seconds that a database has to answer; psycopg itself would wait for two minutes.
CONNECT_TIMEOUT = 10
#: PostgreSQL's types of strings, by their internal names.
_STRINGS = frozenset({"text", "varchar", "bpchar"})
_KINDS: dict[object, Role] = {"query": "query", "document": "document", "doc": "document"}


class Rows(NamedTuple):
    """Some rows of a dump, each with a text and a vector."""

    texts: list[str]
    kinds: list[Role]
    vectors: Matrix
    """`[n, dim]`, float16 or float32."""


@dataclass(frozen=True)
class Dump:
    """A dump that is open."""

    total: int
    """Rows that will be read."""
    rows: Iterator[Rows]
    skipped: Counter[str]
    """What had no text or no vector to offer; it counts while `rows` is read."""


@contextmanager
def open_dump(settings: OwnedVectors) -> Iterator[Dump]:
    """The rows of `settings.source`.

    A row without a text (null, or nothing but white space) or without a vector (null, or all zeros) is skipped and
    counted. Raises `LeafError` for a source that cannot be read, a column that is missing or of another type and, with
    the row, for a vector of another width than those before or with a value that is not finite.
    """
    skipped: Counter[str] = Counter()
    if is_database(settings):
        with _database(settings) as (total, batches):
            yield Dump(total, _usable(batches, skipped), skipped)
        return
    files = _files(settings.source)
    batches = (batch for path in files for batch in _parquet(path, settings))
    yield Dump(sum(map(_num_rows, files)), _usable(batches, skipped), skipped)


def identity(settings: OwnedVectors) -> dict[str, Any]:
    """What decides which rows `open_dump` gives, as JSON data.

    Files are known by their content, so that they may move. A database is not asked: it is its address and the query.
    """
    columns = settings.model_dump(mode="json", include={"text", "vector", "kind"})
    if is_database(settings):
        return {"database": settings.source, "query": settings.query, **columns}
    files = [{"name": path.name, "digest": quick_digest(path)} for path in _files(settings.source)]
    return {"files": files, **columns}


def is_database(settings: OwnedVectors) -> bool:
    """Whether the source is a database rather than files."""
    return settings.source.startswith(("postgresql://", "postgres://"))


class _Batch(NamedTuple):
    """Rows as they were found."""

    where: str
    first: int
    """Number of the first row in its file or answer, from 0."""
    texts: list[Any]
    kinds: list[Any] | None
    vectors: Matrix
    """Of the rows that have one, `[≤ n, dim]`."""
    present: NDArray[np.bool_]
    """Which rows have one, `[n]`."""


def _usable(batches: Iterator[_Batch], skipped: Counter[str]) -> Iterator[Rows]:
    width = None
    for batch in batches:
        present, vectors = np.flatnonzero(batch.present), batch.vectors
        if len(vectors):
            width = width or vectors.shape[1]
            if vectors.shape[1] != width:
                problem = f"holds {vectors.shape[1]} numbers where rows before hold {width}"
                raise _bad_vector(batch.where, batch.first + int(present[0]), problem)
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            raise _bad_vector(batch.where, batch.first + int(present[np.argmin(finite)]), "holds NaN or infinity")
        nonzero = vectors.any(axis=1)
        # Places among the vectors, and rows of the batch.
        pairs = [(place, int(present[place])) for place in np.flatnonzero(nonzero).tolist()]
        kept = [(place, row) for place, row in pairs if batch.texts[row] is not None and batch.texts[row].strip()]
        skipped["vectors that are null"] += len(batch.texts) - len(present)
        skipped["vectors that are all zeros"] += len(present) - len(pairs)
        skipped["texts that are null or empty"] += len(pairs) - len(kept)
        yield Rows(
            [batch.texts[row] for _, row in kept],
            [_kind(batch, row) for _, row in kept],
            vectors[[place for place, _ in kept]],
        )


def _kind(batch: _Batch, row: int) -> Role:
    if batch.kinds is None:
        return "document"
    if (kind := _KINDS.get(batch.kinds[row])) is None:
        raise LeafError(
            f"row {batch.first + row} of {batch.where} is of kind {batch.kinds[row]!r}, expected query or document; "
            "name the right column in teacher.vectors.kind, or none where all texts are documents"
        )
    return kind


def _bad_vector(where: str, row: int, problem: str) -> LeafError:
    return LeafError(f"the vector in row {row} of {where} {problem}; correct that row, or leave it out")


def _converted(
    where: str, first: int, present: NDArray[np.bool_], convert: Callable[[Any], Matrix], values: Any
) -> Matrix:
    try:
        return convert(values)
    except Unusable as error:
        raise _bad_vector(where, first + int(np.flatnonzero(present)[error.row]), str(error)) from error


def _check_columns(settings: OwnedVectors, where: str, present: list[str]) -> list[str]:
    """The columns to read, each once, all of which are `present`."""
    wanted = {"text": settings.text, "vector": settings.vector, "kind": settings.kind}
    for setting, column in wanted.items():
        if column is not None and column not in present:
            raise LeafError(
                f"{where} has no column '{column}' (it has {', '.join(present)}); name the right one in "
                f"teacher.vectors.{setting}"
            )
    return [column for column in dict.fromkeys(wanted.values()) if column is not None]


def _wrong_type(where: str, column: str, type_: object, expected: str) -> LeafError:
    return LeafError(f"column '{column}' of {where} holds {type_}, expected {expected}; name the right column")


# Parquet


def _files(source: str) -> list[Path]:
    path = Path(source).expanduser()
    pattern = str(path / "*.parquet") if path.is_dir() else str(path)
    found = [path] if path.is_file() else sorted(filter(Path.is_file, map(Path, glob.glob(pattern, recursive=True))))
    if not found:
        raise LeafError(
            f"teacher.vectors: no file '{source}'; give Parquet (a file, a glob, a folder) or postgresql://HOST/DATABASE"
        )
    return found


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise LeafError(f"cannot read {path}: {first_line(error)}; is it Parquet, and complete?") from error


def _num_rows(path: Path) -> int:
    with _readable(path), pq.ParquetFile(path) as file:
        return int(file.metadata.num_rows)


def _parquet(path: Path, settings: OwnedVectors) -> Iterator[_Batch]:
    with _readable(path), open_parquet(path) as file:
        schema, first = file.schema_arrow, 0
        columns = _check_columns(settings, str(path), schema.names)
        for column in columns:
            type_ = schema.field(column).type
            if column == settings.vector and not holds_vectors(type_):
                raise _wrong_type(str(path), column, type_, "lists of float16, float32 or float64, or strings")
            if column != settings.vector and not is_string(type_):
                raise _wrong_type(str(path), column, type_, "strings")
        for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
            texts = batch.column(settings.text).to_pylist()
            kinds = batch.column(settings.kind).to_pylist() if settings.kind else None
            values = batch.column(settings.vector)
            present = values.is_valid().to_numpy(zero_copy_only=False)
            vectors = _converted(str(path), first, present, of_arrow, values.drop_null())
            yield _Batch(str(path), first, texts, kinds, vectors, present)
            first += len(texts)


# PostgreSQL


@contextmanager
def _database(settings: OwnedVectors) -> Iterator[tuple[int, Iterator[_Batch]]]:
    """How many rows the query gives, and the rows, both of one snapshot; nothing can be written through it."""
    import psycopg
    from psycopg.adapt import Loader
    from psycopg.pq import Format

    class AsSent(Loader):
        """The bytes of a value: psycopg would make a Python float of every number."""

        format = Format.BINARY

        def load(self, data: bytes | bytearray | memoryview) -> bytes:
            return bytes(data)

    try:
        connection = psycopg.connect(settings.source, connect_timeout=CONNECT_TIMEOUT, client_encoding="UTF8")
    except psycopg.Error as error:
        raise LeafError(
            f"cannot connect to {settings.source} ({first_line(error)}); is the server up, and the password in "
            "PGPASSWORD or ~/.pgpass?"
        ) from error
    with connection:
        connection.read_only = True
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        for array in ("float4", "float8"):
            connection.adapters.register_loader(psycopg.postgres.types[array].array_oid, AsSent)
        query = (settings.query or "").strip().rstrip(";").encode()
        try:
            # The end of a line, because a query may end in a comment.
            counted = connection.execute(b"SELECT count(*) FROM (" + query + b"\n) AS dump").fetchone()
            assert counted is not None, "count(*) answers with a row"
            with connection.cursor("leaf", binary=True) as cursor:  # named: the rows stay at the server
                cursor.execute(query)
                yield counted[0], _answers(connection, cursor, settings)
        except psycopg.Error as error:
            raise LeafError(f"teacher.vectors.query: {settings.source} says: {first_line(error)}") from error


def _answers(connection: Any, cursor: Any, settings: OwnedVectors) -> Iterator[_Batch]:
    where, first = "the answer to teacher.vectors.query", 0
    oids = {column.name: column.type_code for column in cursor.description}
    types = {}
    for column in _check_columns(settings, where, list(oids)):
        types[column] = connection.execute("SELECT typname FROM pg_type WHERE oid = %s", [oids[column]]).fetchone()[0]
        if column == settings.vector and types[column] not in POSTGRES_TYPES | _STRINGS:
            raise _wrong_type(where, column, types[column], "vector, halfvec, real[], double precision[] or text")
        if column != settings.vector and types[column] not in _STRINGS:
            raise _wrong_type(where, column, types[column], "text (cast it with ::text)")
    type_ = types[settings.vector]
    convert = of_strings if type_ in _STRINGS else functools.partial(of_postgres, type_=type_)
    while rows := cursor.fetchmany(BATCH_ROWS):
        columns = dict(zip(oids, zip(*rows, strict=True), strict=True))
        present = np.array([value is not None for value in columns[settings.vector]])
        values = [value for value in columns[settings.vector] if value is not None]
        vectors = _converted(where, first, present, convert, values)
        kinds = list(columns[settings.kind]) if settings.kind else None
        yield _Batch(where, first, list(columns[settings.text]), kinds, vectors, present)
        first += len(rows)
