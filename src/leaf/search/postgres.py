"""An index in PostgreSQL with pgvector 0.8 or newer: documents in one table, what the index is in another.

    store = PostgresStore.open("postgresql://localhost/library", "papers")

    papers         id, title, text, digest, metadata (jsonb), embedding; in a binary index also bits
    papers_leaf    one row: settings, space with its canaries, types of the metadata columns

`embedding` is `vector(dim)` for float32 and `halfvec(dim)` otherwise; `bits` are the signs of vectors turned by
`leaf.search.codes.rotation`, since the plain signs of pgvector's `binary_quantize` find much less. Up to `INDEXED_FROM`
documents every search compares with all of them; beyond, a graph (HNSW) is built at the end of the change that gets
there, and kept up by PostgreSQL. Measured with 100,000 texts, all-MiniLM-L6-v2's 384 dimensions and two cores:
comparing with all takes the server 50 ms; the graph over halfvec has recall@10 0.996 in about 3 ms and is built in 40
s; bits, of which the best are scored by halfvec, have 0.993 in about 15 ms.

A change is one transaction, so a killed writer leaves nothing and readers never wait. Conditions are found by reading
the metadata of every candidate; for columns that are asked about often,

    CREATE INDEX ON papers USING gin (metadata jsonb_path_ops)        -- for == and in
    CREATE INDEX ON papers (((metadata -> 'year')::numeric))          -- for < and >= of numbers

Searches of one store are made one after another, by one connection; a server that needs more opens more stores.
"""

import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from decimal import Decimal
from typing import Any, Self, TypeVar

import numpy as np
import psycopg
from psycopg import errors, sql
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types.json import Json, Jsonb

from leaf.encoder import Vectors, normalised
from leaf.errors import LeafError
from leaf.search.codes import rotated_bits
from leaf.search.databases import best, restored, said, spare, without_password
from leaf.search.filters import AllOf, AnyOf, Compare, Filter, Not
from leaf.search.store import Document, Hit, Settings, check_width, widened
from leaf.space import Space

#: Form of the tables.
VERSION = 1
#: From how many documents on there is a graph: comparing with 20,000 × 384 takes 14 ms, asking a graph 3 ms.
INDEXED_FROM = 20_000
#: Neighbours of a document in the graph, candidates kept while building it, and while searching it, as in a folder.
NEIGHBOURS, BUILDING, SEARCHING = 16, 128, 256
#: Most candidates that pgvector keeps while searching a graph.
MOST_SEARCHING = 1_000
#: The least number of documents found by bits that are scored by their vectors, and for each document asked for.
BIT_CANDIDATES, BIT_CANDIDATES_EACH = 1_000, 20
#: Most dimensions that pgvector's graphs take.
INDEXABLE = {"float32": 2_000, "float16": 4_000, "binary": 64_000}
#: Most dimensions of its types.
MAX_DIM = 16_000
#: Bytes of memory that one document takes in a graph beside its vector, and bounds for all of it.
GRAPH_BYTES, GRAPH_MEMORY = 1_000, (64 << 20, 2 << 30)
#: Longest name of a table; PostgreSQL cuts names silently after 63 bytes, and `_leaf` is appended.
NAME_BYTES = 58
#: Documents read at a time.
BATCH = 1024
#: Seconds that a server has to answer, and after which a silent connection is kept awake.
CONNECT_TIMEOUT, KEEPALIVE = 10, 60

_Answer = TypeVar("_Answer")
_Connection = psycopg.Connection[Any]


class _Sent(bytes):
    """A value in the form in which PostgreSQL receives it."""


class _SentDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: _Sent) -> bytes:
        return bytes(obj)


class PostgresStore:
    """See `leaf.search.store.Store`. Safe from any thread.

    Raises `LeafError` for a server that does not answer, and for whatever it refuses, in one line without the password.
    """

    def __init__(self, url: str, table: str) -> None:
        self._url = url
        self.name = f"{without_password(url)} (table {table})"
        self._names = _Names(table)
        self._settings: Settings
        self._space: Space
        self._lock = threading.Lock()
        self._connection: _Connection | None = None

    @classmethod
    def open(cls, url: str, table: str) -> Self:
        """The index in `table` (`NAME` or `SCHEMA.NAME`). Raises `LeafError` where there is none."""
        store = cls(url, table)
        try:
            store._settings, store._space = store._read(store._load)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def create(cls, url: str, table: str, space: Space, settings: Settings) -> Self:
        """A new, empty index in `table`; one that is there without documents makes room.

        Raises `LeafError` for an index with documents, for another table of that name, for int8, for more than 16,000
        dimensions, and where the extension `vector` cannot be had.
        """
        store = cls(url, table)
        _check_precision(settings)
        with store._saying(), closing(store._connect()) as connection, connection.transaction():
            _need_extension(connection)
            store._make_room(connection)
            for statement in store._names.creation(settings):
                connection.execute(statement)
            connection.execute(
                store._names.fill("INSERT INTO {leaf} VALUES (%s, %s, %s, %s, %s)"),
                [VERSION, Json(settings.to_json()), Json(space.to_json()), _canaries(space), Json({})],
            )
        store._settings, store._space = settings, space
        return store

    @classmethod
    def exists(cls, url: str, table: str) -> bool:
        """Whether there is an index in `table`. Raises `LeafError` where the server does not answer."""
        with closing(cls(url, table)) as store:
            return store._read(store._names.are_there)

    @property
    def space(self) -> Space:
        """The vector space of the documents."""
        return self._space

    @property
    def settings(self) -> Settings:
        """How vectors are kept, as of opening or the last change through this object."""
        return self._settings

    def __len__(self) -> int:
        count: int = self._read(lambda connection: self._names.count(connection))
        return count

    def columns(self) -> dict[str, str]:
        """Metadata column → `str`, `int`, `float`, `bool`."""
        return self._read(lambda connection: self._state(connection)[0])

    def configure(self, settings: Settings) -> None:
        """Replaces `queries` and `model`. Raises `LeafError` while another process is writing."""
        with self._saying(), closing(self._connect()) as connection, connection.transaction():
            kept = Settings.from_json(self._hold(connection))
            changed = replace(kept, queries=settings.queries, model=settings.model)
            connection.execute(self._names.fill("UPDATE {leaf} SET settings = %s"), [Json(changed.to_json())])
        self._settings = changed

    def search(self, vectors: Vectors, k: int, *, where: Filter | None = None, exact: bool = False) -> list[list[Hit]]:
        """See `Store.search`. Without a graph every search is exact."""
        check_width(vectors, self._settings, self.name)
        condition, values = _condition(where)
        similarity, wanted = self._settings.similarity, spare(k)

        def ask(connection: _Connection) -> list[list[Hit]]:
            with connection.transaction():
                columns, indexed = self._state(connection)
                whole = exact or not indexed
                _plan(connection, self._settings, wanted, whole=whole, filtered=where is not None)
                found = []
                for query in vectors:
                    rows = self._nearest(connection, query, wanted, condition, values, whole=whole)
                    if not whole and where is not None and len(rows) < wanted:
                        # pgvector gives up after 20,000 places of the graph; the few that meet the condition are
                        # compared one by one.
                        _plan(connection, self._settings, wanted, whole=True, filtered=True)
                        rows = self._nearest(connection, query, wanted, condition, values, whole=True)
                        _plan(connection, self._settings, wanted, whole=False, filtered=True)
                    documents, stored = self._decode(rows, columns)
                    found.append(best(documents, stored, query, k, similarity))
                return found

        return self._read(ask)

    def get(self, ids: Sequence[str]) -> list[Document | None]:
        """Documents by id, None for one that is not there."""
        query = self._names.fill("SELECT id, title, text, metadata FROM {table} WHERE id = ANY(%s)")

        def ask(connection: _Connection) -> dict[str, Document]:
            columns = self._state(connection)[0]
            rows = connection.execute(query, [list(ids)]).fetchall()
            return {row[0]: _document(row, columns) for row in rows}

        found = self._read(ask)
        return [found.get(each) for each in ids]

    def rows(self) -> Iterator[tuple[list[Document], Vectors]]:
        """Everything as it is now, ordered by id, read a batch at a time through a connection of its own."""
        query = self._names.fill("SELECT id, title, text, metadata, embedding FROM {table} ORDER BY id")
        with self._saying(), closing(self._connect()) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True
            with connection.transaction(), connection.cursor("leaf", binary=True) as cursor:
                columns = self._state(connection)[0]
                cursor.execute(query)
                while rows := cursor.fetchmany(BATCH):
                    yield self._decode(rows, columns)

    @contextmanager
    def writing(self) -> Iterator["PostgresWriter"]:
        """A change, in one transaction. Raises `LeafError` while another process is writing."""
        with closing(self._connect(autocommit=False)) as connection:
            try:
                with self._saying():
                    # Encoding goes on between two statements, and a graph takes its time.
                    for limit in ("idle_in_transaction_session_timeout", "statement_timeout"):
                        connection.execute(f"SET LOCAL {limit} = 0")
                    settings = Settings.from_json(self._hold(connection))
                    writer = PostgresWriter(self, connection, settings, self._state(connection)[0])
                yield writer
                with self._saying():
                    writer.finish()
                    connection.commit()
            finally:
                # Answered when the row is free; by the end of the connection alone it would be a moment later.
                with suppress(psycopg.Error):
                    connection.rollback()

    def close(self) -> None:
        """Closes the connection."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _connect(self, *, autocommit: bool = True) -> _Connection:
        try:
            connection = psycopg.connect(
                self._url,
                autocommit=autocommit,
                connect_timeout=CONNECT_TIMEOUT,
                keepalives_idle=KEEPALIVE,  # a firewall forgets a connection that waits for an encoder
                client_encoding="UTF8",
                prepare_threshold=None,  # a plan without the values would not know how many rows are asked for
            )
        except psycopg.Error as error:
            raise LeafError(
                f"cannot connect to {without_password(self._url)} ({_reason(error, self._url)}); is the server up, "
                "and the password in PGPASSWORD or ~/.pgpass?"
            ) from error
        connection.adapters.register_dumper(_Sent, _SentDumper)
        return connection

    def _read(self, work: Callable[[_Connection], _Answer]) -> _Answer:
        with self._lock, self._saying():
            kept = self._connection
            if kept is not None and not kept.closed:
                try:
                    return work(kept)
                except psycopg.OperationalError:
                    # A server that was started again, or a firewall, has ended it: once more on a new one.
                    if not kept.closed:
                        raise
            self._connection = self._connect()
            return work(self._connection)

    @contextmanager
    def _saying(self) -> Iterator[None]:
        try:
            yield
        except errors.LockNotAvailable as error:
            raise LeafError(f"{self.name} is being changed by another process; try again when it is done") from error
        except (errors.UndefinedTable, errors.InvalidSchemaName) as error:
            raise LeafError(f"no index in {self.name}; make one, or name the right table") from error
        except errors.UndefinedColumn as error:
            raise self._names.foreign(self.name) from error
        except (psycopg.Error, UnicodeEncodeError) as error:
            raise LeafError(f"{self.name}: the server says: {said(error, self._url)}") from error

    def _load(self, connection: _Connection) -> tuple[Settings, Space]:
        query = self._names.fill("SELECT version, settings, space, canaries FROM {leaf}")
        row = connection.execute(query).fetchone()
        if row is None:
            raise self._names.foreign(self.name)
        version, settings, space, canaries = row
        if version > VERSION:
            raise LeafError(f"{self.name} was made by a newer release; upgrade leaf, or index again")
        try:
            vectors = np.frombuffer(canaries, "<f4").reshape(-1, space["dim"]).astype(np.float32)
            return Settings.from_json(settings), Space.from_json(space, vectors)
        except (KeyError, TypeError, ValueError) as error:
            raise LeafError(f"{self.name} is damaged ({error!r}); index the documents again") from error

    def _hold(self, connection: _Connection) -> dict[str, Any]:
        """The settings, of which no other process gets hold before the end of the transaction."""
        row = connection.execute(self._names.fill("SELECT settings FROM {leaf} FOR UPDATE NOWAIT")).fetchone()
        if row is None:
            raise self._names.foreign(self.name)
        settings: dict[str, Any] = row[0]
        return settings

    def _state(self, connection: _Connection) -> tuple[dict[str, str], bool]:
        """Types of the metadata columns, and whether there is a graph."""
        row = connection.execute(
            self._names.fill(
                "SELECT columns, EXISTS (SELECT FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid JOIN pg_am ON "
                "pg_am.oid = relam WHERE indrelid = {name}::regclass AND amname = 'hnsw' AND indisvalid) FROM {leaf}"
            )
        ).fetchone()
        if row is None:
            raise self._names.foreign(self.name)
        return row[0], row[1]

    def _make_room(self, connection: _Connection) -> None:
        if self._names.are_there(connection):
            self._hold(connection)
            if count := self._names.count(connection):
                raise LeafError(f"{self.name} is an index of {count:,} documents already; add to it, or name another")
            connection.execute(self._names.fill("DROP TABLE {table}, {leaf}"))
        elif self._names.any_is_there(connection):
            raise self._names.foreign(self.name)

    def _nearest(
        self, connection: _Connection, query: Vectors, count: int, condition: sql.Composable, values: list[Any], *,
        whole: bool,
    ) -> list[Any]:  # fmt: skip
        dim, kind = sql.Literal(self._settings.dim), _kind(self._settings)
        parts = {"condition": condition, "dim": dim, "kind": sql.SQL(kind), "count": sql.Literal(count)}
        if whole:
            # float16 documents, but not a query rounded to it; of equal distances the greater id.
            statement = (
                "SELECT id, title, text, metadata, embedding FROM {table} WHERE {condition} "
                "ORDER BY embedding::vector({dim}) <#> %b::vector({dim}), id DESC LIMIT {count}"
            )
            values = [*values, _sent(query[None], "vector")[0]]
        elif self._settings.precision == "binary":
            statement = (
                "SELECT id, title, text, metadata, embedding FROM (SELECT * FROM {table} WHERE {condition} "
                "ORDER BY bits <~> %b::bit({dim}) LIMIT {candidates}) AS near "
                "ORDER BY embedding <#> %b::halfvec({dim}) LIMIT {count}"
            )
            parts["candidates"] = sql.Literal(max(BIT_CANDIDATES, BIT_CANDIDATES_EACH * count))
            values = [*values, _sent_bits(query[None])[0], _sent(query[None], kind)[0]]
        else:
            statement = (
                "SELECT id, title, text, metadata, embedding FROM {table} WHERE {condition} "
                "ORDER BY embedding <#> %b::{kind}({dim}) LIMIT {count}"
            )
            values = [*values, _sent(query[None], kind)[0]]
        return connection.execute(self._names.fill(statement, **parts), values, binary=True).fetchall()

    def _decode(self, rows: Sequence[Any], columns: Mapping[str, str]) -> tuple[list[Document], Vectors]:
        """Documents, and their vectors as they are compared, float32 `[n, dim]`."""
        value = ">f4" if _kind(self._settings) == "vector" else ">f2"
        sent = np.frombuffer(
            b"".join(row[4] for row in rows), [("header", ">i4"), ("values", value, (self._settings.dim,))]
        )
        vectors: Vectors = sent["values"].astype(np.float32)
        if value == ">f2" and self._settings.similarity == "cosine":
            vectors = normalised(vectors)
        return [_document(row, columns) for row in rows], vectors


class PostgresWriter:
    """One change of a `PostgresStore`, in a transaction that holds the row of its settings."""

    def __init__(
        self, store: PostgresStore, connection: _Connection, settings: Settings, columns: Mapping[str, str]
    ) -> None:
        self._store, self._connection, self._settings = store, connection, settings
        self._columns = dict(columns)
        self._names = store._names

    def known(self, ids: Sequence[str]) -> Mapping[str, str]:
        """See `Writer.known`."""
        with self._store._saying():
            query = self._names.fill("SELECT id, digest FROM {table} WHERE id = ANY(%s)")
            return dict(self._connection.execute(query, [list(ids)]).fetchall())

    def all_ids(self) -> set[str]:
        """See `Writer.all_ids`."""
        with self._store._saying():
            return {row[0] for row in self._connection.execute(self._names.fill("SELECT id FROM {table}"))}

    def put(self, documents: Sequence[Document], vectors: Vectors) -> None:
        """See `Writer.put`. Of documents with one id the last stays."""
        check_width(vectors, self._settings, self._store.name)
        self._columns = widened(self._columns, documents)
        for document in documents:
            _check_text(document)
        binary = self._settings.precision == "binary"
        columns = [_sent(vectors, _kind(self._settings)), *([_sent_bits(vectors)] if binary else [])]
        rows = {
            each.id: (each.id, each.title, each.text, each.digest, _metadata(each), *kept)
            for each, *kept in zip(documents, *columns, strict=True)
        }
        self.delete(list(rows))
        names = "id, title, text, digest, metadata, embedding" + (", bits" if binary else "")
        statement = self._names.fill("COPY {table} ({names}) FROM STDIN (FORMAT BINARY)", names=sql.SQL(names))
        with self._store._saying(), self._connection.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows.values():
                copy.write_row(row)

    def delete(self, ids: Sequence[str]) -> None:
        """See `Writer.delete`."""
        with self._store._saying():
            self._connection.execute(self._names.fill("DELETE FROM {table} WHERE id = ANY(%s)"), [list(ids)])

    def finish(self) -> None:
        """Keeps the types of the columns, and builds the graph where there are documents enough for the first time."""
        connection = self._connection
        connection.execute(self._names.fill("UPDATE {leaf} SET columns = %s"), [Json(self._columns)])
        rows = self._names.count(connection)
        indexable = self._settings.dim <= INDEXABLE[self._settings.precision]
        if rows < INDEXED_FROM or not indexable or self._store._state(connection)[1]:
            return
        least, most = GRAPH_MEMORY
        memory = min(max(least, rows * (_bytes(self._settings) + GRAPH_BYTES)), most)
        connection.execute(
            "SELECT set_config('maintenance_work_mem', %s || 'kB', true) FROM pg_settings WHERE name = "
            "'maintenance_work_mem' AND setting::bigint < %s",
            [memory >> 10, memory >> 10],
        )
        try:
            with connection.transaction():
                connection.execute(self._names.graph(self._settings))
        except (errors.DiskFull, errors.OutOfMemory):
            # Workers share memory in /dev/shm, of which a container may have too little; one process needs none.
            connection.execute("SET LOCAL max_parallel_maintenance_workers = 0")
            connection.execute(self._names.graph(self._settings))
        connection.execute(self._names.fill("ANALYZE {table}"))


class _Names:
    """The two tables of an index, and the statements that name them."""

    def __init__(self, table: str) -> None:
        parts = table.split(".", 1)
        if not all(parts) or len(parts[-1].encode("utf-8", "replace")) > NAME_BYTES or "\x00" in table:
            raise LeafError(
                f"'{table}' is no name of a table; expected NAME or SCHEMA.NAME, NAME of {NAME_BYTES} bytes at most"
            )
        self.table = sql.Identifier(*parts)
        self.leaf = sql.Identifier(*parts[:-1], f"{parts[-1]}_leaf")

    def fill(self, statement: str, **parts: sql.Composable) -> sql.Composed:
        """`statement` with `{table}`, `{leaf}` and `{name}` (the first as a string), and other parts, in place."""
        name = sql.Literal(self.table.as_string())
        return sql.SQL(statement).format(table=self.table, leaf=self.leaf, name=name, **parts)

    def creation(self, settings: Settings) -> list[sql.Composed]:
        """What makes both. Ids and texts compare by code points, as everywhere else here."""
        bits = f", bits bit({settings.dim}) NOT NULL" if settings.precision == "binary" else ""
        embedding = f"embedding {_kind(settings)}({settings.dim}) NOT NULL{bits}"
        return [
            self.fill(
                'CREATE TABLE {table} (id text COLLATE "C" PRIMARY KEY, title text COLLATE "C" NOT NULL, '
                'text text COLLATE "C" NOT NULL, digest text NOT NULL, metadata jsonb NOT NULL, {embedding})',
                embedding=sql.SQL(embedding),
            ),
            # Beside the row while there is room: comparing with every vector would look each one up otherwise.
            self.fill("ALTER TABLE {table} ALTER embedding SET STORAGE MAIN"),
            # json, not jsonb: kept as it was written, down to the order of keys and characters that jsonb refuses.
            self.fill(
                "CREATE TABLE {leaf} (version integer NOT NULL, settings json NOT NULL, space json NOT NULL, "
                "canaries bytea NOT NULL, columns json NOT NULL)"
            ),
        ]

    def graph(self, settings: Settings) -> sql.Composed:
        """What builds the graph."""
        column = "bits" if settings.precision == "binary" else "embedding"
        way = "bit_hamming_ops" if settings.precision == "binary" else f"{_kind(settings)}_ip_ops"
        return self.fill(
            "CREATE INDEX ON {table} USING hnsw ({over}) WITH (m = {m}, ef_construction = {building})",
            over=sql.SQL(f"{column} {way}"),
            m=sql.Literal(NEIGHBOURS),
            building=sql.Literal(BUILDING),
        )

    def are_there(self, connection: _Connection) -> bool:
        """Whether both tables are there, with the columns of an index."""
        row = connection.execute(
            "SELECT count(*) FROM pg_attribute WHERE NOT attisdropped AND (attrelid, attname) IN ((to_regclass(%s), "
            "'embedding'), (to_regclass(%s), 'canaries'))",
            [self.table.as_string(), self.leaf.as_string()],
        ).fetchone()
        return row is not None and row[0] == 2

    def any_is_there(self, connection: _Connection) -> bool:
        """Whether a name is taken."""
        row = connection.execute(
            "SELECT coalesce(to_regclass(%s), to_regclass(%s)) IS NOT NULL",
            [self.table.as_string(), self.leaf.as_string()],
        ).fetchone()
        return row is not None and row[0]

    def count(self, connection: _Connection) -> int:
        """Number of documents."""
        row = connection.execute(self.fill("SELECT count(*) FROM {table}")).fetchone()
        assert row is not None, "count(*) answers with a row"
        count: int = row[0]
        return count

    def foreign(self, name: str) -> LeafError:
        """The error for tables that are not an index."""
        return LeafError(f"{name}: a table of that name is there and is no index; name another")


def _check_precision(settings: Settings) -> None:
    if settings.precision == "int8":
        raise LeafError("pgvector has no int8; choose precision float16, or binary, which searches by bits first")
    if settings.dim > MAX_DIM:
        raise LeafError(f"pgvector holds up to {MAX_DIM:,} dimensions, not {settings.dim:,}; keep fewer")


def _need_extension(connection: _Connection) -> None:
    try:
        with connection.transaction():
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    except errors.InsufficientPrivilege as error:
        raise LeafError(
            "the extension vector is not in this database, and this user may not add it; ask its owner for CREATE "
            "EXTENSION vector"
        ) from error
    except (errors.FeatureNotSupported, errors.UndefinedFile) as error:
        raise LeafError("the server has no extension vector; install pgvector 0.8 or newer on it") from error
    row = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    assert row is not None, "it was created above"
    if tuple(map(int, row[0].split(".")[:2])) < (0, 8):
        raise LeafError(f"pgvector {row[0]} is too old, 0.8 or newer is needed; ALTER EXTENSION vector UPDATE")


def _plan(connection: _Connection, settings: Settings, count: int, *, whole: bool, filtered: bool) -> None:
    """How the transaction searches from here on: through the graph, or with no index that may leave something out."""
    # A condition leaves few of the candidates, and those are worth as many as without one.
    kept = MOST_SEARCHING if filtered or settings.precision == "binary" else SEARCHING
    values = {
        "enable_indexscan": "off" if whole else "on",
        "enable_seqscan": "on" if whole or filtered else "off",  # what it costs is misjudged where texts are long
        "jit": "off",  # takes longer to compile than to search
        # Another round until enough rows meet the condition.
        "hnsw.iterative_scan": "strict_order",
        "hnsw.ef_search": str(min(max(kept, count), MOST_SEARCHING)),
    }
    calls = ", ".join("set_config(%s, %s, true)" for _ in values)
    connection.execute(f"SELECT {calls}", [each for pair in values.items() for each in pair])


def _condition(where: Filter | None) -> tuple[sql.Composable, list[Any]]:
    """SQL of a condition and the values for its places. It is never NULL: what is missing meets nothing."""
    match where:
        case None:
            return sql.SQL("TRUE"), []
        case Not(inner=inner):
            condition, values = _condition(inner)
            return sql.SQL("NOT {}").format(condition), values
        case AllOf(parts=parts) | AnyOf(parts=parts):
            found = [_condition(part) for part in parts]
            joined = sql.SQL(" AND " if isinstance(where, AllOf) else " OR ").join([each for each, _ in found])
            return sql.SQL("({})").format(joined), [value for _, some in found for value in some]
        case Compare():
            text, values = _compare(where)
            return sql.SQL("({})").format(sql.SQL(text)), values


def _compare(compare: Compare) -> tuple[str, list[Any]]:
    name, operator, value = compare.field, compare.operator, compare.value
    own = name in ("id", "title", "text")
    if operator == "missing":
        return ("FALSE", []) if own else ("NOT metadata ? %s::text", [name])
    if operator == "==":
        return (f"{name} = %s", [value]) if own else ("metadata @> %s", [Jsonb({name: value})])
    if operator == "!=":
        if own:
            return f"{name} <> %s", [value]
        return "metadata ? %s::text AND NOT metadata @> %s", [name, Jsonb({name: value})]
    if operator == "in":
        assert isinstance(value, tuple), "the parser makes it so"
        if own:
            return f"{name} = ANY(%s::text[])", [list(value)]
        return "metadata @> ANY(%s::jsonb[])", [[Jsonb({name: each}) for each in value]]
    number = not isinstance(value, str)
    column = "(metadata -> %s::text)::numeric" if number else '(metadata ->> %s::text) COLLATE "C"'
    column, values = (name, []) if own else (column, [name])
    if operator == "starts":
        return f"coalesce(starts_with({column}, %s), FALSE)", [*values, value]
    if operator == "contains":
        return f"coalesce(strpos({column}, %s) > 0, FALSE)", [*values, value]
    # The shortest decimals that are this float, as jsonb holds them.
    bound = Decimal(repr(value)) if number else value
    return f"coalesce({column} {operator} %s, FALSE)", [*values, bound]


def _kind(settings: Settings) -> str:
    return "vector" if settings.precision == "float32" else "halfvec"


def _bytes(settings: Settings) -> int:
    return {"float32": 4 * settings.dim, "float16": 2 * settings.dim}.get(settings.precision, settings.dim // 8)


def _sent(vectors: Vectors, kind: str) -> list[_Sent]:
    """Rows of float32 `[n, dim]` as `vector_recv` and `halfvec_recv` of pgvector read them: width, 0, values."""
    value = ">f4" if kind == "vector" else ">f2"
    rows = np.zeros(len(vectors), [("dim", ">i2"), ("unused", ">i2"), ("values", value, (vectors.shape[1],))])
    rows["dim"] = vectors.shape[1]
    with np.errstate(over="ignore"):  # the server refuses what has become infinite
        rows["values"] = vectors
    return [_Sent(row.tobytes()) for row in rows]


def _sent_bits(vectors: Vectors) -> list[_Sent]:
    """Signs of the turned vectors as `bit_recv` reads them: how many, and eight to a byte."""
    header = struct.pack(">i", vectors.shape[1])
    return [_Sent(header + row.tobytes()) for row in rotated_bits(vectors)]


def _canaries(space: Space) -> bytes:
    return np.ascontiguousarray(space.vectors, dtype="<f4").tobytes()


def _metadata(document: Document) -> Jsonb:
    return Jsonb({name: value for name, value in document.metadata.items() if value is not None})


def _document(row: Sequence[Any], columns: Mapping[str, str]) -> Document:
    return Document(row[0], row[2], row[1], restored(row[3], columns))


def _check_text(document: Document) -> None:
    """Raises `LeafError` for characters that PostgreSQL does not store."""
    values = [each for each in document.metadata.values() if isinstance(each, str)]
    for each in (document.id, document.title, document.text, *document.metadata, *values):
        try:
            each.encode()
        except UnicodeEncodeError as error:
            raise LeafError(f"document {document.id!r} holds half of a surrogate pair; take it out") from error
        if "\x00" in each:
            raise LeafError(f"document {document.id!r} holds a NUL character, which PostgreSQL refuses; take it out")


def _reason(error: psycopg.Error, url: str) -> str:
    """Why there is no connection; of several addresses that were tried, the last one's reason."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    return said(Exception(lines[-1]), url) if lines and lines[0].startswith("Multiple") else said(error, url)
