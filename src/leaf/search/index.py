"""An index and its verbs: text goes in with the teacher, questions are asked with the student.

    index = Index.create("my-index", leaf.load(TEACHER), documents, model=TEACHER)
    index.put(more)                                     # adds, updates, and skips what has not changed
    index.search(["a question"], student, k=10, where="lang == 'en'")

Which encoder asks is decided at every search: the documents stay as they are. Anything outside their space is refused.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import numpy as np

from leaf.encoder import Encoder, Role, Vectors, normalised, row_cosines
from leaf.errors import LeafError, first_line
from leaf.files import digest, user_cache
from leaf.light import LightEncoder
from leaf.models import short_name
from leaf.progress import progress
from leaf.search import store as stores
from leaf.search.admission import MIN_MATCHED, admit, check_documents, space_carried
from leaf.search.filters import Filter, check, parse
from leaf.search.store import Document, Hit, Settings, Store, Stored, check_document
from leaf.search.unfinished import Unfinished
from leaf.space import NUM_CANARIES, Space

#: Documents encoded and handed to the store at a time.
CHUNK = 512
#: Characters of one query; the models read a few thousand, and the rest would only be tokenised.
MAX_QUERY = 65_536
#: Characters of a canary, cut from the first documents.
CANARY_CHARACTERS = 300
#: Canaries where the documents give too few that differ: one document has one, and any encoder finds that among one.
CANARIES = (
    "how do I bake bread without an oven", "The treaty was signed in the spring of 1648.", "train from Lisbon to Porto",
    "Mitochondria turn sugar into energy that a cell can use.", "python list index out of range",
    "She painted the harbour at dawn.", "symptoms of iron deficiency", "The court dismissed the appeal.",
    "cheap flights in October", "Sharks have no bones, only cartilage.", "resetting a forgotten password",
    "The orchestra rehearsed the second movement twice.", "tax rate for a small company",
    "A volcano on the island erupted last night.", "best age to plant apple trees", "The goalkeeper saved a penalty.",
)  # fmt: skip

#: Documents whose given vectors are compared with the encoder's own, and how near they must be. Texts may have been cut
#: or joined in another way when their vectors were made, so near is not equal.
NUM_COMPARED, MIN_GIVEN_COSINE, SAME_COSINE = 16, 0.95, 1e-3

How = Literal["add", "update", "put"]
#: Who encodes documents, or what opens that encoder once there is something to encode; None: who made the index.
Opening: TypeAlias = Encoder | Callable[[], Encoder] | None


@dataclass(frozen=True)
class Changes:
    """What a change did, in documents."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0


class Index:
    """Documents in a store, and what encoders do with them. Close it, or use it in a `with`.

    Searching is safe from any thread. One process changes an index at a time; others see the change when it is whole.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._admitted: dict[int, Encoder] = {}

    @classmethod
    def open(cls, target: str | Path, table: str | None = None) -> Self:
        """The index in a folder, or in a database (`postgresql://…`). Raises `LeafError` where there is none."""
        return cls(stores.open_store(str(target), table))

    @classmethod
    def create(
        cls,
        target: str | Path,
        encoder: Encoder | Space,
        documents: Iterable[Document],
        *,
        model: str = "",
        precision: Stored | None = None,
        truncate_dim: int | None = None,
        queries: Sequence[str] = (),
        vectors: Iterable[Any] | None = None,
        batch_size: int = 32,
        table: str | None = None,
    ) -> Self:
        """A new index of `documents`, encoded by `encoder`, a teacher (or a student, for its own documents).

        `model` is what `leaf.load` opens that encoder with; it is kept for later additions and for questions.
        `precision` None takes the store's usual one, `truncate_dim` None all dimensions. `queries` are encoders that
        ask by default. With `vectors`, rows of the documents in their order, the encoder gives the canaries and is
        compared with the first rows; where it cannot be asked, a `Space` (of one of its students) stands for it.
        Raises `LeafError` where there is an index with documents already, and for whatever `put` refuses.
        """
        target = str(target)
        if stores.exists(target, table):
            with stores.open_store(target, table) as there:
                if len(there):
                    raise LeafError(
                        f"{there.name} is an index of {len(there):,} documents already; add to it, or name another "
                        "place"
                    )
        if isinstance(encoder, Space) and vectors is None:
            raise LeafError("a space alone encodes nothing; give vectors, or the documents' encoder")
        total = len(documents) if isinstance(documents, Sized) else None
        stream = iter(documents)
        first = list(itertools.islice(stream, NUM_CANARIES))
        if not first:
            raise LeafError("no documents: an index is made from at least one")
        dim = encoder.dim if truncate_dim is None else truncate_dim
        if not 1 <= dim <= encoder.dim:
            raise LeafError(f"the vectors have {encoder.dim} dimensions: {dim} is not within 1 to that many")
        own_documents = False
        if isinstance(encoder, Space):
            space, model = encoder, model or str(encoder.teacher["model"])
        else:
            carried = space_carried(encoder)
            space = carried or space_of_documents(encoder, [each.body for each in first])
            own_documents = carried is not None and not isinstance(encoder, LightEncoder)
        if vectors is not None:
            rows = iter(vectors)
            given = list(itertools.islice(rows, len(first)))
            if isinstance(encoder, Encoder):
                _check_given(first, given, encoder)
            vectors = itertools.chain(given, rows)
        settings = Settings(
            dim=dim,
            similarity="dot" if space.similarity == "dot" else "cosine",
            precision=precision or stores.usual_precision(target),
            model=beside([model], target)[0],
            own_documents=own_documents,
            queries=tuple(beside(queries, target)),
        )
        index = cls(stores.create_store(target, space, settings, table))
        asked = None if isinstance(encoder, Space) else encoder
        index._change("put", itertools.chain(first, stream), asked, vectors, batch_size, total=total, checked=True)
        return index

    @property
    def space(self) -> Space:
        """The vector space of the documents."""
        return self.store.space

    @property
    def settings(self) -> Settings:
        """How vectors are kept."""
        return self.store.settings

    def __len__(self) -> int:
        """How many documents there are."""
        return len(self.store)

    def add(self, documents: Iterable[Document], encoder: Encoder | None = None, **how: Any) -> Changes:
        """Adds new documents, all or none. Raises `LeafError` for an id that is there already, or comes twice."""
        return self._change("add", documents, encoder, **how)

    def update(self, documents: Iterable[Document], encoder: Encoder | None = None, **how: Any) -> Changes:
        """Replaces documents, all or none. Raises `LeafError` for an id that is not there, or comes twice."""
        return self._change("update", documents, encoder, **how)

    def put(self, documents: Iterable[Document], encoder: Opening = None, **how: Any) -> Changes:
        """Adds what is new, replaces what has changed, and encodes nothing else; all or none.

        `encoder` None is the one that the index was made with, opened (as by a function that is given) only when there
        is a text to encode. `vectors` are rows of the documents in their order, which are then not encoded. The first
        of them are compared with what `encoder` gives, or, where it is None, the index's own if that is a folder on
        this machine; vectors of a model that would have to be fetched or paid for are taken at their word. With
        `prune`, documents that are not among these are deleted.

        A process that is killed leaves the index as it was, and vectors that it had encoded are not encoded again.
        Raises `LeafError` for an id that comes twice, for an encoder of another space, for bad vectors and metadata.
        """
        return self._change("put", documents, encoder, **how)

    def delete(self, ids: Iterable[str]) -> Changes:
        """Takes documents out. Raises `LeafError` for an id that is not there, and then deletes none."""
        ids = list(dict.fromkeys(ids))
        with self.store.writing() as writer:
            known = writer.known(ids)
            if strange := [each for each in ids if each not in known]:
                raise LeafError(f"no document '{strange[0]}' in {self.store.name}; nothing was deleted")
            writer.delete(ids)
        return Changes(deleted=len(ids))

    def encode(self, queries: Sequence[str], encoder: Encoder) -> Vectors:
        """Queries as they are compared, float32 `[n, settings.dim]`.

        Raises `LeafError` for an encoder of another space, and for a query that is empty or longer than `MAX_QUERY`.
        """
        if isinstance(queries, str):
            raise LeafError("queries arrived as one string, expected a list of them; write [query]")
        for query in queries:
            if not query.strip():
                raise LeafError("the query is empty; ask for something")
            if len(query) > MAX_QUERY:
                raise LeafError(f"the query has {len(query):,} characters, expected at most {MAX_QUERY:,}; shorten it")
        self.admit(encoder)
        return self.settings.prepare(encoder.encode_query(queries))

    def search(
        self,
        queries: Sequence[str],
        encoder: Encoder,
        k: int = 10,
        *,
        where: str | Filter | None = None,
        exact: bool = False,
    ) -> list[list[Hit]]:
        """The `k` best documents for each query, best first, among those that meet `where` (`leaf.search.filters`).

        `exact` compares with every document, whatever the size. Raises `LeafError` as `encode` does, and for a
        condition on a column that is not there.
        """
        return self.find(self.encode(queries, encoder), k, where=where, exact=exact)

    def find(
        self, vectors: Vectors, k: int = 10, *, where: str | Filter | None = None, exact: bool = False
    ) -> list[list[Hit]]:
        """`search` for queries that are encoded already, by `encode`: float32 `[n, settings.dim]`."""
        if k < 1:
            raise LeafError(f"{k} documents were asked for, expected 1 or more")
        condition = parse(where) if isinstance(where, str) else where
        if condition is not None:
            check(condition, self.store.columns())
        return self.store.search(vectors, k, where=condition, exact=exact)

    def admit(self, encoder: Encoder) -> None:
        """Raises `LeafError`, with the reason, unless `encoder` answers in the space of the documents."""
        if id(encoder) not in self._admitted:
            admit(encoder, self.space)
            self._admitted[id(encoder)] = encoder  # kept, so that its id stays its own

    def ask_with(self, queries: Sequence[str]) -> None:
        """Makes these encoders the ones that ask by default, the first one first; see `encoders`."""
        self.store.configure(replace(self.settings, queries=tuple(beside(queries, self.store.name))))

    def encoders(self) -> dict[str, str]:
        """Who may ask, by a short name: what `leaf.load` takes of each. The default first, the documents' own last."""
        base = None if stores.is_url(self.store.name) else Path(os.path.realpath(self.store.name))
        found: dict[str, str] = {}
        for model in filter(None, (*self.settings.queries, self.settings.model)):
            near = base / model if base is not None else None
            path = os.path.normpath(near) if near is not None and near.exists() else model
            name = short_name(path)
            found[name if name not in found else model] = path
        return found

    @property
    def document_model(self) -> str:
        """Who encodes documents, as `leaf.load` takes it. Raises `LeafError` where the index does not say."""
        if not self.settings.model:
            raise LeafError(f"{self.store.name} does not say who encoded it; name the documents' encoder")
        return list(self.encoders().values())[-1]

    def close(self) -> None:
        """Lets go of files and connections."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _change(
        self,
        how: How,
        documents: Iterable[Document],
        encoder: Opening,
        vectors: Iterable[Any] | None = None,
        batch_size: int = 32,
        *,
        prune: bool = False,
        total: int | None = None,
        checked: bool = False,
    ) -> Changes:
        if total is None and isinstance(documents, Sized):
            total = len(documents)
        opened = encoder if isinstance(encoder, Encoder) else None
        compared = vectors is None or checked
        if vectors is None and opened is not None and not checked:
            check_documents(opened, self.space, own_documents=self.settings.own_documents)
        added = updated = unchanged = deleted = 0
        seen: set[str] = set()
        unfinished = Unfinished(self._scratch(), {"space": self.space.id, "model": self.settings.model})
        with self.store.writing() as writer, progress("indexing", total) as bar:
            for chunk, rows in _chunks(documents, vectors, self.space.dim):
                _check_new(chunk, seen)
                known = writer.known([each.id for each in chunk])
                _check_strict(how, chunk, known, self.store.name)
                changed = [at for at, each in enumerate(chunk) if known.get(each.id) != each.digest]
                bar.advance(len(chunk) - len(changed))
                if changed:
                    texts = [chunk[at].body for at in changed]
                    if rows is not None:
                        found = rows[changed]
                        if not compared:
                            self.settings.prepare(found)  # NaN is wrong whoever made them
                            if (asked := opened or self._local(encoder)) is not None:
                                _check_given([chunk[at] for at in changed], list(found), asked)
                            compared = True
                        bar.advance(len(changed))
                    else:
                        if opened is None:
                            opened = self._opened(encoder)
                        found = unfinished.encode(texts, opened, batch_size, bar.advance)
                    writer.put([chunk[at] for at in changed], self.settings.prepare(found))
                replaced = sum(chunk[at].id in known for at in changed)
                updated, added = updated + replaced, added + len(changed) - replaced
                unchanged += len(chunk) - len(changed)
            if prune:
                if not seen:
                    raise LeafError("no documents arrived, and to prune would take out all there are; delete them")
                gone = sorted(writer.all_ids() - seen)
                writer.delete(gone)
                deleted = len(gone)
        unfinished.remove()
        return Changes(added, updated, unchanged, deleted)

    def _local(self, opening: Opening) -> Encoder | None:
        """The documents' encoder where it is a folder on this machine: no hub, server or API is asked."""
        if not self.settings.model or not Path(self.document_model).is_dir():
            return None
        try:
            return self._opened(opening)
        except ImportError:  # its weights take torch, which whoever brings vectors need not have
            return None

    def _opened(self, opening: Opening) -> Encoder:
        from leaf.loading import load

        encoder = opening() if opening is not None and not isinstance(opening, Encoder) else load(self.document_model)
        check_documents(encoder, self.space, own_documents=self.settings.own_documents)
        return encoder

    def _scratch(self) -> Path:
        """Where vectors are kept until the change that they belong to is whole."""
        if stores.is_url(self.store.name):
            return user_cache() / "indexing" / digest(self.store.name)[:16]
        return Path(self.store.name) / ".unfinished"


def beside(models: Sequence[str], target: str) -> list[str]:
    """Models as an index in `target` remembers them: folders by the way from there, so that both can move together."""
    if stores.is_url(target):
        return list(models)
    # From where the folder really is, since `..` leads up from there; a link in its name may go elsewhere.
    base = os.path.realpath(target)
    return [os.path.relpath(model, base) if model and Path(model).exists() else model for model in models]


def space_of_documents(encoder: Encoder, texts: Sequence[str]) -> Space:
    """The space that a teacher's documents lie in, with canaries from the first of them in both roles.

    Raises `LeafError` for an encoder that does not say who it is.
    """
    identity = getattr(encoder, "identity", None)
    if not callable(identity):
        raise LeafError(
            f"{encoder.name} does not say who it is, so nothing could tell its space from another; index with a model "
            "folder, a hub id, an API or a student's package"
        )
    half = list(dict.fromkeys(text[:CANARY_CHARACTERS] for text in texts))[: NUM_CANARIES // 2]
    half += [each for each in CANARIES if each not in half][: max(0, len(CANARIES) - len(half))]
    roles: tuple[Role, ...] = ("query", "document")
    vectors = np.concatenate([encoder.encode_query(half), encoder.encode_document(half)])
    lengths = np.linalg.norm(vectors, axis=1)
    return Space(
        teacher=identity(),
        dim=encoder.dim,
        normalised=bool(np.abs(lengths - 1).max() < 1e-3),
        similarity=encoder.similarity,
        texts=(*half, *half),
        kinds=tuple(role for role in roles for _ in half),
        vectors=vectors,
    )


def _chunks(
    documents: Iterable[Document], vectors: Iterable[Any] | None, dim: int
) -> Iterator[tuple[list[Document], Vectors | None]]:
    """Documents some at a time, with their rows where there are any. Raises `LeafError` where the two do not match."""
    stream, rows = iter(documents), iter(vectors) if vectors is not None else None
    while chunk := list(itertools.islice(stream, CHUNK)):
        if rows is None:
            yield chunk, None
            continue
        some = list(itertools.islice(rows, len(chunk)))
        if len(some) < len(chunk):
            raise LeafError("there are fewer vectors than documents; they must be rows in the same order")
        found = _rows(some)
        if found.shape != (len(chunk), dim):
            raise LeafError(f"vectors of shape {found.shape[1:]} were given and the space has {dim} dimensions")
        yield chunk, found
    if rows is not None and next(rows, None) is not None:
        raise LeafError("there are more vectors than documents; they must be rows in the same order")


def _check_new(chunk: Sequence[Document], seen: set[str]) -> None:
    """Raises `LeafError` for a document that no store takes, and for an id that came before; adds to `seen`."""
    for document in chunk:
        check_document(document)
        if document.id in seen:
            raise LeafError(f"the id '{document.id}' comes twice among the documents; every document needs its own")
        seen.add(document.id)


def _check_strict(how: How, chunk: Sequence[Document], known: Any, name: str) -> None:
    for document in chunk:
        if how == "add" and document.id in known:
            raise LeafError(f"'{document.id}' is in {name} already; update it, or give the document another id")
        if how == "update" and document.id not in known:
            raise LeafError(f"no document '{document.id}' in {name} to update; add it")


def _rows(vectors: Sequence[Any]) -> Vectors:
    """Given vectors as a matrix. Raises `LeafError` for what is none."""
    try:
        return np.asarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise LeafError(f"the vectors are no matrix of numbers ({first_line(error)}); give [documents, dim]") from error


def _check_given(documents: Sequence[Document], vectors: Sequence[Any], encoder: Encoder) -> None:
    """Raises `LeafError` unless `vectors` are those that `encoder` gives the documents."""
    found = _rows(vectors[:NUM_COMPARED])
    if found.ndim != 2 or found.shape[1] != encoder.dim:
        raise LeafError(
            f"vectors of shape {found.shape[1:]} were given and {encoder.name} has {encoder.dim} dimensions"
        )
    own = encoder.encode_document([each.body for each in documents[:NUM_COMPARED]])
    own = own[: len(found)]
    cosines = normalised(found) @ normalised(own).T
    # Texts that say the same lie as near as their own.
    in_order = np.diagonal(cosines) >= cosines.max(axis=1) - SAME_COSINE
    if in_order.mean() < MIN_MATCHED:
        raise LeafError(
            f"the vectors are not those of {encoder.name}, or in another order: of the first {len(found)}, "
            f"{int(in_order.sum())} lie nearest to what it gives their own document; give them in the documents' order"
        )
    least = float(np.median(row_cosines(found, own)))
    if least < MIN_GIVEN_COSINE:
        raise LeafError(
            f"the vectors are not those of {encoder.name}: their median cosine to what it gives the first {len(own)} "
            f"documents is {least:.2f}, expected {MIN_GIVEN_COSINE} or more; name the model that made them"
        )
