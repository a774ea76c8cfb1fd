"""What an index holds, and the one interface of the places it can lie in: a folder, PostgreSQL, MongoDB.

    from leaf.search.filters import parse

    with open_store("runs/demo/index") as store:
        hits = store.search(vectors, 10, where=parse("module == 'json'"))

A store knows documents, vectors and settings. It knows no encoder: `leaf.search.index.Index` puts both together.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol, Self, TypeAlias, get_args

import numpy as np

from leaf.compression import Int8, truncate
from leaf.encoder import Vectors
from leaf.errors import LeafError
from leaf.search.filters import Filter
from leaf.space import Space

#: What a document may carry besides its text. None is a value that is missing.
Value: TypeAlias = str | int | float | bool | None
#: What is searched first. All but float32 keep float16 vectors beside it, by which the best are ranked.
Stored: TypeAlias = Literal["float32", "float16", "int8", "binary"]
STORED: tuple[Stored, ...] = get_args(Stored)
#: Names that metadata may not take: they are columns of their own.
RESERVED = ("id", "title", "text", "digest")


@dataclass(frozen=True)
class Document:
    """One document. `body` is what is encoded."""

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Value] = field(default_factory=dict)

    @property
    def body(self) -> str:
        """Title and text with a space between, stripped, as BEIR, mteb and `leaf evaluate` join them."""
        return f"{self.title} {self.text}".strip()

    @property
    def digest(self) -> str:
        """16 hex digits of title, text and metadata: what an unchanged document is known by."""
        content = [self.title, self.text, {name: self.metadata[name] for name in sorted(self.metadata)}]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")).hexdigest()[:16]


@dataclass(frozen=True)
class Hit:
    """A document that was found. `score` is the cosine, or the dot product where the space is compared by it."""

    id: str
    score: float
    text: str
    title: str = ""
    metadata: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """How an index keeps its vectors; decided when it is made."""

    dim: int
    """Leading dimensions that are kept, scaled back to length 1 where the space is compared by cosine."""
    similarity: Literal["cosine", "dot"]
    precision: Stored = "int8"
    limit: float | None = None
    """What int8 stores as 127 (`leaf.compression.Int8`), calibrated on the first documents; None until then."""
    model: str = ""
    """Who encoded the documents, as `leaf.load` takes it."""
    own_documents: bool = False
    """Whether that is a student, which searches its own documents (standard mode), rather than the teacher."""
    queries: tuple[str, ...] = ()
    """Encoders that ask by default, the first one first; folders relative to the index where they lie beside it."""

    def __post_init__(self) -> None:
        if self.precision not in STORED:
            raise LeafError(f"precision '{self.precision}' is unknown, expected one of {', '.join(STORED)}")

    def prepare(self, vectors: Vectors) -> Vectors:
        """Vectors as an encoder gives them, as they are compared: float32 `[n, dim]`, of length 1 for the cosine.

        Raises `LeafError` for NaN, and for fewer dimensions than are kept.
        """
        return truncate(vectors, self.dim, self.similarity)

    def calibrated(self, documents: Vectors) -> "Settings":
        """These settings with `limit`, from prepared document vectors `[n, dim]`; as they are where that is done."""
        if self.precision != "int8" or self.limit is not None:
            return self
        return replace(self, limit=Int8.calibrate(documents, self.dim, self.similarity).limit)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "queries": list(self.queries)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Settings":
        """What `to_json` made. Raises `KeyError` or `TypeError` for anything else."""
        return cls(**{**data, "queries": tuple(data["queries"])})


class Writer(Protocol):
    """One change of a store. Readers see nothing of it before its end, and nothing at all if it raises."""

    def known(self, ids: Sequence[str]) -> Mapping[str, str]:
        """Id → `Document.digest` of those of `ids` that are there now."""

    def all_ids(self) -> set[str]:
        """The ids of all documents that are there now."""

    def put(self, documents: Sequence[Document], vectors: Vectors) -> None:
        """Adds documents, or replaces those of the same id. `vectors` float32 `[n, dim]`, prepared by the settings.

        Raises `LeafError` for a metadata column whose type does not fit what is there.
        """

    def delete(self, ids: Sequence[str]) -> None:
        """Takes documents out; an id that is not there is none of its business."""


class Store(Protocol):
    """Where documents and their vectors lie. One writer at a time, any number of readers, from any thread."""

    name: str
    """For people: a folder, or a URL without its password."""

    @property
    def space(self) -> Space:
        """The vector space of the documents."""

    @property
    def settings(self) -> Settings:
        """How vectors are kept."""

    def __len__(self) -> int:
        """How many documents there are."""

    def columns(self) -> dict[str, str]:
        """Metadata column → its type: `str`, `int`, `float`, `bool`."""

    def writing(self) -> AbstractContextManager[Writer]:
        """A change, all of it or nothing. Raises `LeafError` while another process is writing."""

    def configure(self, settings: Settings) -> None:
        """Replaces what may change later: `queries` and `model`."""

    def search(self, vectors: Vectors, k: int, *, where: Filter | None = None, exact: bool = False) -> list[list[Hit]]:
        """The `k` best documents for each of `vectors` (float32 `[n, dim]`, prepared), best first; fewer if there are.

        Of equal scores the greater id wins, as in trec_eval. `exact` compares with every document.
        """

    def get(self, ids: Sequence[str]) -> list[Document | None]:
        """Documents by id, None for one that is not there."""

    def rows(self) -> Iterator[tuple[list[Document], Vectors]]:
        """Everything, some documents at a time with their vectors, float32 `[n, dim]`, in an order that stays."""

    def close(self) -> None:
        """Lets go of files and connections."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def is_url(target: str) -> bool:
    """Whether `target` names a database rather than a folder."""
    return target.startswith(("postgresql://", "postgres://", "mongodb://", "mongodb+srv://"))


def usual_precision(target: str) -> Stored:
    """What an index in `target` holds unless it is told: int8 where the store has it (pgvector has not)."""
    return "float16" if target.startswith("postgres") else "int8"


def open_store(target: str, table: str | None = None) -> Store:
    """The index in `target`: a folder, or the URL of a database with the name of the table (None: `leaf`).

    Raises `LeafError` where there is none, it is damaged, or the database does not answer.
    """
    if not is_url(target):
        from leaf.search.folder import FolderStore

        return FolderStore.open(target)
    if target.startswith("postgres"):
        from leaf.search.postgres import PostgresStore

        return PostgresStore.open(target, table or "leaf")
    from leaf.search.mongodb import MongoStore

    return MongoStore.open(target, table or "leaf")


def create_store(target: str, space: Space, settings: Settings, table: str | None = None) -> Store:
    """A new, empty index in `target`. Raises `LeafError` where there is one already."""
    if not is_url(target):
        from leaf.search.folder import FolderStore

        return FolderStore.create(target, space, settings)
    if target.startswith("postgres"):
        from leaf.search.postgres import PostgresStore

        return PostgresStore.create(target, table or "leaf", space, settings)
    from leaf.search.mongodb import MongoStore

    return MongoStore.create(target, table or "leaf", space, settings)


def exists(target: str, table: str | None = None) -> bool:
    """Whether there is an index in `target`."""
    if not is_url(target):
        from leaf.search.folder import FolderStore

        return FolderStore.exists(target)
    if target.startswith("postgres"):
        from leaf.search.postgres import PostgresStore

        return PostgresStore.exists(target, table or "leaf")
    from leaf.search.mongodb import MongoStore

    return MongoStore.exists(target, table or "leaf")


def check_document(document: Document) -> None:
    """Raises `LeafError` for a document that no store takes: no id, no text, metadata that is no plain value."""
    if not document.id:
        raise LeafError("a document has an empty id; every document needs one of its own")
    if not document.body:
        raise LeafError(f"document '{document.id}' has no text; leave it out, or give it one")
    texts = (each for each in document.metadata.values() if isinstance(each, str))
    try:
        for each in (document.id, document.title, document.text, *document.metadata, *texts):
            each.encode()
    except UnicodeEncodeError as error:
        raise LeafError(
            f"document {document.id!a:.80} has half a character, {error.object[error.start]!a}, which is no Unicode "
            "text; repair it, or leave it out"
        ) from error
    for name, value in document.metadata.items():
        if name in RESERVED or not name:
            raise LeafError(f"document '{document.id}': metadata may not be named '{name}'; rename that column")
        if not isinstance(value, (str, int, float, bool, type(None))):
            raise LeafError(
                f"document '{document.id}': metadata '{name}' is a {type(value).__name__}, expected text, a number, "
                "true, false or null; leave it out or turn it into text"
            )
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise LeafError(f"document '{document.id}': metadata '{name}' takes more than 64 bits; turn it into text")
        if isinstance(value, float) and not math.isfinite(value):
            raise LeafError(f"document '{document.id}': metadata '{name}' is {value}; leave it out where it is missing")


def check_width(vectors: Vectors, settings: Settings, name: str) -> None:
    """Raises `LeafError` unless vectors are `[n, settings.dim]`."""
    if vectors.ndim != 2 or vectors.shape[1] != settings.dim:
        raise LeafError(
            f"vectors of shape {list(vectors.shape)} arrived and {name} holds {settings.dim} dimensions; prepare them "
            "by its settings"
        )


def widened(columns: Mapping[str, str], documents: Sequence[Document]) -> dict[str, str]:
    """Metadata columns with those of `documents`. Raises `LeafError` where a value does not fit its column."""
    found = dict(columns)
    for document in documents:
        for name, value in document.metadata.items():
            if value is None:
                continue
            # numpy's floats and texts are Python's too.
            kind = next(each.__name__ for each in (bool, int, float, str) if isinstance(value, each))
            known = found.setdefault(name, kind)
            if {kind, known} == {"int", "float"}:
                found[name] = "float"
            elif kind != known:
                raise LeafError(
                    f"document '{document.id}': metadata '{name}' is {value!r:.40} and that column holds {known}; give "
                    "one column one type"
                )
    return found


def ranked(ids: Sequence[str], scores: Sequence[float] | np.ndarray[Any, Any], k: int) -> list[int]:
    """Positions of the `k` highest scores, best first; of equal scores the greater id first."""
    order = sorted(range(len(ids)), key=lambda each: ids[each], reverse=True)
    return sorted(order, key=lambda each: -float(scores[each]))[:k]
