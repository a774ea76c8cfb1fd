"""An index in MongoDB Vector Search (Atlas, or a self-managed server with `mongot`), written by its documentation.

It has not been run against a server: its commands are tested by their form against a stand-in, no more.

    store = MongoStore.open("mongodb+srv://cluster.example.net/library", "papers")

    papers             one document each: _id, title, text, digest, metadata {…}, embedding
    papers_leaf        one document: settings, space with its canaries, types of the metadata columns, who is writing
    papers_incoming    a change on its way

`embedding` is a BSON vector of float32 (binary, subtype 9). For int8 and binary the server makes its own smaller codes
from it (`quantization` of the index: `scalar`, `binary`): that needs one vector a document, one index definition, and
queries as they are, where codes of ours would need all three twice. Its binary codes are plain signs, so a binary index
holds vectors turned by `leaf.search.codes.rotation`, which leaves every inner product as it is. Hits are scored here,
by the float32 vectors that come with them: the server's own score, (1 + cosine) / 2, is of the codes for `scalar`, and
ties are its own affair. All vectors are of length 1 and compared by `dotProduct`, as the documentation recommends.

What is whole and what is not. A change is laid down in `papers_incoming` first, where no search looks; one write to
`papers_leaf` then says that it is complete, and a server-side `$merge` moves it over. A writer that is killed before
that write has changed nothing; one that is killed after it has its change moved over by the next writer. While it is
moved (documents one by one, not in a transaction, whose time and size servers limit), readers see part of it. And
`mongot` follows the collection with a delay of its own: a search may lag behind `get` and `rows`. A new metadata column
makes the server build the search index again; until that is done, conditions on the column find nothing.
"""

import itertools
import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import Any, Self, TypeAlias
from urllib.parse import unquote

import numpy as np
from bson.binary import Binary, BinaryVectorDtype
from bson.errors import BSONError
from pymongo import MongoClient, ReplaceOne
from pymongo.database import Database
from pymongo.errors import ConfigurationError, ConnectionFailure, PyMongoError
from pymongo.operations import SearchIndexModel

from leaf.encoder import Vectors
from leaf.errors import LeafError
from leaf.search.codes import rotation
from leaf.search.databases import best, restored, said, spare, without_password
from leaf.search.filters import AllOf, AnyOf, Compare, Filter, Not
from leaf.search.store import Document, Hit, Settings, check_width, widened
from leaf.space import Space

_Found: TypeAlias = dict[str, Any]

#: Form of the collections.
VERSION = 1
#: Name of the search index.
INDEX = "leaf"
#: What the server makes of float32 for the search, by our precision.
QUANTIZATION = {"float32": "none", "int8": "scalar", "binary": "binary"}
#: Most dimensions, and most candidates of one search.
MAX_DIM, MAX_CANDIDATES = 8192, 10_000
#: Candidates for each document asked for, as the documentation recommends, and the least.
CANDIDATES_EACH, CANDIDATES = 20, 200
#: Most documents that a condition may leave which `$vectorSearch` cannot check itself.
MAX_IDS = 10_000
#: Seconds for which a writer is believed to be alive after its last word, and that a server has to answer.
LEASE, CONNECT_TIMEOUT = 600, 10
#: Documents read, or deleted, at a time.
BATCH = 1024
#: A condition that no document meets: no id is empty.
NEVER: _Found = {"_id": {"$eq": ""}}
_OPERATORS = {"==": "$eq", "<": "$lt", "<=": "$lte", ">": "$gt", ">=": "$gte"}


class MongoStore:
    """See `leaf.search.store.Store`. Safe from any thread: pymongo keeps a pool of connections.

    Raises `LeafError` for a server that does not answer, and for whatever it refuses, in one line without the password.
    """

    def __init__(self, url: str, table: str) -> None:
        self._url = url
        self.name = f"{without_password(url)} (collection {table})"
        self._settings: Settings
        self._space: Space
        with self._saying():
            self._database = _connect(url)
            self._documents, self._leaf, self._incoming = (
                self._database[name] for name in (table, f"{table}_leaf", f"{table}_incoming")
            )

    @classmethod
    def open(cls, url: str, table: str) -> Self:
        """The index in the collection `table`. Raises `LeafError` where there is none."""
        store = cls(url, table)
        try:
            with store._saying():
                store._settings, store._space = store._load()
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def create(cls, url: str, table: str, space: Space, settings: Settings) -> Self:
        """A new, empty index in the collection `table`; one that is there without documents makes room.

        Raises `LeafError` for an index with documents, for another collection of that name, and for vectors that the
        server cannot search: float16, more than 8,192 dimensions, binary of a width that no 8 divides, and dot products
        of vectors that are not of length 1.
        """
        _check_searchable(space, settings)
        store = cls(url, table)
        with store._saying():
            store._make_room()
            # First, so that one that was left half made is known as an index without documents.
            store._leaf.insert_one(
                {
                    "_id": "index",
                    "version": VERSION,
                    # As text: names of a teacher's fields, and of columns, may hold what names of fields may not.
                    "settings": json.dumps(settings.to_json()),
                    "space": json.dumps(space.to_json()),
                    "canaries": np.ascontiguousarray(space.vectors, dtype="<f4").tobytes(),
                    "columns": "{}",
                    "indexed": "[]",
                }
            )
            store._database.create_collection(table)
            store._documents.create_search_index(
                SearchIndexModel(definition=_definition(settings, ()), name=INDEX, type="vectorSearch")
            )
        store._settings, store._space = settings, space
        return store

    @classmethod
    def exists(cls, url: str, table: str) -> bool:
        """Whether there is an index in the collection `table`. Raises `LeafError` where the server does not answer."""
        with closing(cls(url, table)) as store, store._saying():
            return store._leaf.find_one({"_id": "index"}) is not None

    @property
    def space(self) -> Space:
        """The vector space of the documents."""
        return self._space

    @property
    def settings(self) -> Settings:
        """How vectors are kept, as of opening or the last change through this object."""
        return self._settings

    def __len__(self) -> int:
        with self._saying():
            return self._documents.count_documents({})

    def columns(self) -> dict[str, str]:
        """Metadata column → `str`, `int`, `float`, `bool`."""
        with self._saying():
            columns: dict[str, str] = json.loads(self._state()["columns"])
            return columns

    def configure(self, settings: Settings) -> None:
        """Replaces `queries` and `model`. Raises `LeafError` while another process is writing."""
        with self._saying():
            kept = Settings.from_json(json.loads(self._state()["settings"]))
            changed = replace(kept, queries=settings.queries, model=settings.model)
            self._change_if_free({"$set": {"settings": json.dumps(changed.to_json())}})
        self._settings = changed

    def search(self, vectors: Vectors, k: int, *, where: Filter | None = None, exact: bool = False) -> list[list[Hit]]:
        """See `Store.search`.

        A condition on a part of a text, on titles or on texts is looked up first: `$vectorSearch` has no operator for
        the one, and the search index holds none of the others. Raises `LeafError` where more than `MAX_IDS` documents
        meet it, and while the server still builds the search index.
        """
        check_width(vectors, self._settings, self.name)
        columns, condition = self.columns(), _condition(where)
        with self._saying():
            if condition is not None and where is not None and not _prefilters(where):
                condition = self._looked_up(condition)
            answers = []
            for query in self._turned(vectors):
                found = list(self._documents.aggregate(self._pipeline(query, spare(k), condition, exact=exact)))
                if not found:
                    self._check_index()
                answers.append(best(*self._decode(found, columns), query, k, self._settings.similarity))
            return answers

    def get(self, ids: Sequence[str]) -> list[Document | None]:
        """Documents by id, None for one that is not there."""
        columns = self.columns()
        with self._saying():
            rows = self._documents.find({"_id": {"$in": list(ids)}}, {"embedding": 0, "digest": 0})
            found = {row["_id"]: _document(row, columns) for row in rows}
        return [found.get(each) for each in ids]

    def rows(self) -> Iterator[tuple[list[Document], Vectors]]:
        """Everything, ordered by id. It is no snapshot: a change that is moved over meanwhile may be seen in part."""
        columns = self.columns()
        with self._saying():
            cursor = self._documents.find({}, {"digest": 0}).sort("_id", 1)
            while some := list(itertools.islice(cursor, BATCH)):
                documents, vectors = self._decode(some, columns)
                yield documents, self._turned(vectors, back=True)

    @contextmanager
    def writing(self) -> Iterator["MongoWriter"]:
        """A change. Raises `LeafError` while another process is writing, and `LEASE` seconds after one was killed."""
        token = uuid.uuid4().hex
        with self._saying():
            self._change_if_free({"$set": {"writer": {"token": token, "until": time.time() + LEASE}}})
        writer = None
        try:
            with self._saying():
                if self._state().get("pending"):  # by a writer that was killed
                    self._move()
                self._incoming.drop()
                writer = MongoWriter(self, token, json.loads(self._state()["columns"]))
            yield writer
            with self._saying():
                writer.finish()
        finally:
            with suppress(PyMongoError):
                if writer is not None and not writer.complete:
                    self._incoming.drop()
                self._leaf.update_one({"_id": "index", "writer.token": token}, {"$unset": {"writer": ""}})

    def close(self) -> None:
        """Closes the connections."""
        self._database.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextmanager
    def _saying(self) -> Iterator[None]:
        try:
            yield
        except ConfigurationError as error:
            raise LeafError(
                f"{without_password(self._url)}: {said(error, self._url)}; write mongodb://HOST/DATABASE"
            ) from error
        except ConnectionFailure as error:
            raise LeafError(
                f"cannot connect to {without_password(self._url)} ({said(error, self._url)[:200]}); is the server up, "
                "and may this machine reach it?"
            ) from error
        except (PyMongoError, BSONError, OverflowError, UnicodeEncodeError) as error:
            raise LeafError(f"{self.name}: the server says: {said(error, self._url)[:300]}") from error

    def _state(self) -> _Found:
        state = self._leaf.find_one({"_id": "index"})
        if state is None:
            raise LeafError(f"no index in {self.name}; make one, or name the right collection")
        return state

    def _load(self) -> tuple[Settings, Space]:
        state = self._state()
        try:
            if state["version"] > VERSION:
                raise LeafError(f"{self.name} was made by a newer release; upgrade leaf, or index again")
            space = json.loads(state["space"])
            vectors = np.frombuffer(bytes(state["canaries"]), "<f4").reshape(-1, space["dim"]).astype(np.float32)
            return Settings.from_json(json.loads(state["settings"])), Space.from_json(space, vectors)
        except (KeyError, TypeError) as error:
            raise LeafError(f"{self.name} is no index, or damaged ({error!r}); name another, or index again") from error

    def _make_room(self) -> None:
        if self._leaf.find_one({"_id": "index"}) is not None:
            if count := self._documents.count_documents({}):
                raise LeafError(f"{self.name} is an index of {count:,} documents already; add to it, or name another")
            self._change_if_free({"$set": {"version": VERSION}})
            for collection in (self._documents, self._incoming, self._leaf):
                collection.drop()
        elif taken := {self._documents.name, self._leaf.name} & set(self._database.list_collection_names()):
            raise LeafError(f"{self.name}: a collection '{min(taken)}' is there and is no index; name another")

    def _change_if_free(self, update: _Found) -> None:
        free = {"_id": "index", "$or": [{"writer": None}, {"writer.until": {"$lt": time.time()}}]}
        if self._leaf.update_one(free, update).matched_count == 0:
            self._state()  # that there is one
            raise LeafError(
                f"{self.name} is being changed by another process; try again when it is done (one that was killed is "
                f"forgotten after {LEASE // 60} minutes)"
            )

    def _move(self) -> None:
        """Puts a complete change in place. Done twice, it changes nothing the second time."""
        put: list[_Found] = [
            {"$match": {"gone": {"$exists": False}}},
            {
                "$merge": {
                    "into": self._documents.name,
                    "on": "_id",
                    "whenMatched": "replace",
                    "whenNotMatched": "insert",
                }
            },
        ]
        self._incoming.aggregate(put)
        gone = self._incoming.find({"gone": {"$exists": True}}, {"_id": 1})
        while ids := [each["_id"] for each in itertools.islice(gone, BATCH)]:
            self._documents.delete_many({"_id": {"$in": ids}})
        state = self._state()
        columns = sorted(json.loads(state["columns"]))
        if columns != json.loads(state["indexed"]):
            settings = Settings.from_json(json.loads(state["settings"]))
            self._documents.update_search_index(INDEX, _definition(settings, columns))
        self._leaf.update_one({"_id": "index"}, {"$set": {"indexed": json.dumps(columns)}, "$unset": {"pending": ""}})
        self._incoming.drop()

    def _pipeline(self, query: Vectors, limit: int, condition: _Found | None, *, exact: bool) -> list[_Found]:
        stage: _Found = {"index": INDEX, "path": "embedding", "queryVector": _sent(query), "limit": limit}
        if exact or limit > MAX_CANDIDATES:
            stage["exact"] = True
        else:
            stage["numCandidates"] = min(max(CANDIDATES, CANDIDATES_EACH * limit), MAX_CANDIDATES)
        if condition is not None:
            stage["filter"] = condition
        return [{"$vectorSearch": stage}, {"$project": {"digest": 0}}]

    def _looked_up(self, condition: _Found) -> _Found:
        ids = [each["_id"] for each in self._documents.find(condition, {"_id": 1}).limit(MAX_IDS + 1)]
        if len(ids) > MAX_IDS:
            raise LeafError(
                f"more than {MAX_IDS:,} documents meet this condition, and MongoDB Vector Search can test no part of a "
                "text, no title and no text; narrow it by other metadata, or compare a whole column"
            )
        return {"_id": {"$in": ids}} if ids else NEVER

    def _check_index(self) -> None:
        """Raises `LeafError` where nothing is found because the search index is not there, or not ready."""
        state = next(iter(self._documents.list_search_indexes(INDEX)), None)
        if state is None:
            raise LeafError(f"{self.name} has no search index '{INDEX}'; index the documents again")
        if not state.get("queryable"):
            raise LeafError(
                f"the server still builds the search index of {self.name} ({state.get('status', 'no status')}); try "
                "again later"
            )

    def _turned(self, vectors: Vectors, *, back: bool = False) -> Vectors:
        """Vectors as they lie in the collection: turned in a binary index, else as they are."""
        if self._settings.precision != "binary":
            return vectors
        matrix = rotation(self._settings.dim)
        return vectors @ (matrix.T if back else matrix)

    def _decode(self, rows: Sequence[_Found], columns: Mapping[str, str]) -> tuple[list[Document], Vectors]:
        # Two bytes say that it is a vector, and of float32.
        values = np.frombuffer(b"".join(bytes(row["embedding"])[2:] for row in rows), "<f4")
        vectors: Vectors = values.reshape(len(rows), self._settings.dim).astype(np.float32)
        return [_document(row, columns) for row in rows], vectors


class MongoWriter:
    """One change of a `MongoStore`, laid down beside the documents until it is complete."""

    def __init__(self, store: MongoStore, token: str, columns: Mapping[str, str]) -> None:
        self._store, self._token, self._columns = store, token, dict(columns)
        self._changed: dict[str, str | None] = {}
        self.complete = False
        """Whether the change will take place, now or by the next writer."""

    def known(self, ids: Sequence[str]) -> Mapping[str, str]:
        """See `Writer.known`."""
        with self._store._saying():
            self._hold()
            rows = self._store._documents.find({"_id": {"$in": list(ids)}}, {"digest": 1})
            found: dict[str, str | None] = {row["_id"]: row["digest"] for row in rows}
        found |= {each: self._changed[each] for each in ids if each in self._changed}
        return {each: digest for each, digest in found.items() if digest is not None}

    def all_ids(self) -> set[str]:
        """See `Writer.all_ids`."""
        with self._store._saying():
            self._hold()
            ids = {row["_id"] for row in self._store._documents.find({}, {"_id": 1})}
        return {each for each in ids | self._changed.keys() if self._changed.get(each, "") is not None}

    def put(self, documents: Sequence[Document], vectors: Vectors) -> None:
        """See `Writer.put`. Of documents with one id the last stays."""
        check_width(vectors, self._store.settings, self._store.name)
        self._columns = widened(self._columns, documents)
        rows = zip(documents, self._store._turned(vectors), strict=True)
        found = {document.id: _row(document, vector) for document, vector in rows}
        self._lay_down(found)
        self._changed |= {each: row["digest"] for each, row in found.items()}

    def delete(self, ids: Sequence[str]) -> None:
        """See `Writer.delete`."""
        self._lay_down({each: {"_id": each, "gone": True} for each in ids})
        self._changed |= dict.fromkeys(ids)

    def finish(self) -> None:
        """Says that the change is complete, and moves it over."""
        if not self._changed:
            return
        self._hold({"pending": True, "columns": json.dumps(self._columns)})
        self.complete = True
        self._store._move()

    def _lay_down(self, rows: Mapping[str, _Found]) -> None:
        with self._store._saying():
            self._hold()
            writes = [ReplaceOne({"_id": each}, row, upsert=True) for each, row in rows.items()]
            if writes:
                self._store._incoming.bulk_write(writes, ordered=False)

    def _hold(self, change: Mapping[str, Any] | None = None) -> None:
        """Says that this writer is alive, and more. Raises `LeafError` where another has begun since its last word."""
        held = {"_id": "index", "writer.token": self._token}
        update = {"$set": {"writer.until": time.time() + LEASE, **(change or {})}}
        if self._store._leaf.update_one(held, update).matched_count == 0:
            raise LeafError(
                f"{self._store.name}: this change was silent for {LEASE // 60} minutes, and another process has begun "
                "one; begin again"
            )


def _connect(url: str) -> Database[_Found]:
    # Connected when it is first asked, so that a URL without a database leaves nothing behind.
    client: MongoClient[_Found] = MongoClient(
        url, connect=False, serverSelectionTimeoutMS=1000 * CONNECT_TIMEOUT, appname="leaf"
    )
    return client.get_default_database()


def _check_searchable(space: Space, settings: Settings) -> None:
    if settings.precision not in QUANTIZATION:
        raise LeafError(
            f"MongoDB Vector Search has no {settings.precision}; choose precision int8, binary or float32 (the server "
            "keeps float32 beside each)"
        )
    if settings.dim > MAX_DIM:
        raise LeafError(f"MongoDB Vector Search holds up to {MAX_DIM:,} dimensions, not {settings.dim:,}; keep fewer")
    if settings.precision == "binary" and settings.dim % 8:
        raise LeafError(
            f"binary takes widths that 8 divides, not {settings.dim}; keep {settings.dim // 8 * 8}, or int8"
        )
    if settings.similarity == "dot" and (not space.normalised or settings.dim < space.dim):
        raise LeafError(
            "MongoDB Vector Search takes dot products of vectors of length 1 only, and those of this space are not; "
            "choose a folder or PostgreSQL"
        )


def _definition(settings: Settings, columns: Sequence[str]) -> _Found:
    """What the search index holds: vectors, and what conditions may ask about."""
    vector = {
        "type": "vector",
        "path": "embedding",
        "numDimensions": settings.dim,
        "similarity": "dotProduct",
        "quantization": QUANTIZATION[settings.precision],
    }
    return {"fields": [vector, *({"type": "filter", "path": path} for path in ("_id", *map(_path, columns)))]}


def _condition(where: Filter | None) -> _Found | None:
    """MQL of a condition, of operators that `find` and the `filter` of `$vectorSearch` share, but for `$regex`."""
    match where:
        case None:
            return None
        case Not(inner=inner):
            return {"$nor": [_condition(inner)]}
        case AllOf(parts=parts):
            return {"$and": [_condition(part) for part in parts]}
        case AnyOf(parts=parts):
            return {"$or": [_condition(part) for part in parts]}
        case Compare():
            return _compare(where)


def _compare(compare: Compare) -> _Found:
    own = compare.field in ("id", "title", "text")
    path = {"id": "_id", "title": "title", "text": "text"}[compare.field] if own else _path(compare.field)
    value = compare.value
    match compare.operator:
        case "missing":
            return NEVER if own else {path: {"$exists": False}}
        case "!=":  # alone it would hold for what is missing
            return {"$and": [{path: {"$exists": True}}, {path: {"$ne": value}}]}
        case "in":
            assert isinstance(value, tuple), "the parser makes it so"
            return {path: {"$in": list(value)}} if value else NEVER
        case "starts":
            assert isinstance(value, str), "the parser makes it so"
            return _starting(path, value)
        case "contains":
            return {path: {"$regex": re.escape(str(value))}}
        case operator:
            return {path: {_OPERATORS[operator]: value}}


def _starting(path: str, prefix: str) -> _Found:
    """Text from `prefix` to the next text that does not begin with it."""
    shorter = prefix.rstrip("\U0010ffff")
    if not shorter:
        return {path: {"$gte": prefix}}
    # Half surrogates lie between, and are no text.
    after = "\ue000" if shorter[-1] == "\ud7ff" else chr(ord(shorter[-1]) + 1)
    return {"$and": [{path: {"$gte": prefix}}, {path: {"$lt": shorter[:-1] + after}}]}


def _prefilters(where: Filter) -> bool:
    """Whether `$vectorSearch` can check a condition itself."""
    match where:
        case Not(inner=inner):
            return _prefilters(inner)
        case AllOf(parts=parts) | AnyOf(parts=parts):
            return all(map(_prefilters, parts))
        case Compare(field=name, operator=operator):
            return operator != "contains" and name not in ("title", "text")


def _key(name: str) -> str:
    """A column's name as the name of a field, in which dots and dollars have meanings."""
    return name.replace("%", "%25").replace(".", "%2E").replace("$", "%24")


def _path(column: str) -> str:
    return f"metadata.{_key(column)}"


def _sent(vector: Vectors) -> Binary:
    return Binary.from_vector(vector.tolist(), BinaryVectorDtype.FLOAT32)


def _row(document: Document, vector: Vectors) -> _Found:
    metadata = {_key(name): value for name, value in document.metadata.items() if value is not None}
    for name, value in metadata.items():
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise LeafError(f"document '{document.id}': metadata '{name}' is beyond 64 bits; keep it as text")
    return {
        "_id": document.id,
        "title": document.title,
        "text": document.text,
        "digest": document.digest,
        "metadata": metadata,
        "embedding": _sent(vector),
    }


def _document(row: Mapping[str, Any], columns: Mapping[str, str]) -> Document:
    metadata = {unquote(name): value for name, value in row["metadata"].items()}
    return Document(row["_id"], row["text"], row["title"], restored(metadata, columns))
