"""Vectors of evaluation sets: each side encoded once per encoder, checked, and kept for every score that needs it.

The teacher's documents serve the teacher and the asymmetric score of every student, now and in the next run; a
student's queries serve its standard and its asymmetric score. On disk, vectors lie under everything that can change
them, by the rules of the training cache (`leaf.vector_files`): the encoder's identity, the role, the texts' digest.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from leaf.encoder import Advance, AsymmetricEncoder, Encoder, Role, Vectors
from leaf.errors import LeafError
from leaf.evaluation.datasets import Dataset, RetrievalSet, Side
from leaf.files import digest
from leaf.vector_files import check_part, read_vectors, write_part

#: Texts in one file: what an interrupted evaluation loses at most.
PART_TEXTS = 65_536

Key: TypeAlias = tuple[int, Role, str]


class VectorCache:
    """Vectors of (encoder, role, texts), computed on first use, kept in memory and, with a `folder`, on disk.

    In memory they are keyed by the encoder object and the texts, so that neither two encoders of one name nor two sets
    of one name are mixed up; on disk by `encoder.identity()`, and encoders without one are not written there. Nor are
    others than those in `persist`, where it is given. Texts that occur twice are encoded once.
    """

    def __init__(self, folder: Path | None = None, persist: Sequence[Encoder] | None = None) -> None:
        self.folder, self._persist = folder, persist
        # The encoder is kept beside its vectors: a freed one could pass its id() on to another.
        self._vectors: dict[Key, tuple[Encoder, Vectors]] = {}
        self._identities: dict[int, tuple[Encoder, dict[str, Any] | None]] = {}
        self._texts: dict[tuple[str, Side], _Texts] = {}

    def vectors(
        self, encoder: Encoder, dataset: Dataset, side: Side, *, batch_size: int = 32, advance: Advance | None = None
    ) -> Vectors:
        """Vectors float32 `[n, dim]` of one side of a dataset; `advance` hears of texts that have just been encoded.

        Raises `LeafError` for vectors of another shape and for NaN.
        """
        texts, what = self._texts_of(dataset, side), f"{side} of {dataset.name}"
        return self._vectors_of(encoder, texts, role_of(side), what, batch_size, advance)

    def encode(
        self, encoder: Encoder, texts: Sequence[str], role: Role, what: str, *, batch_size: int = 32,
        advance: Advance | None = None,
    ) -> Vectors:  # fmt: skip
        """Vectors float32 `[len(texts), dim]` of any texts in one role; `what` names them in messages."""
        return self._vectors_of(encoder, _Texts(texts), role, what, batch_size, advance)

    def holds(self, encoder: Encoder, dataset: Dataset, side: Side) -> bool:
        """Whether the vectors of a side are there already, in memory or on disk."""
        return self._num_missing(encoder, self._texts_of(dataset, side), role_of(side)) == 0

    def num_missing(self, work: Iterable[tuple[Encoder, Dataset]]) -> int:
        """How many texts have yet to be encoded to score these encoders on these datasets."""
        missing: dict[Key, int] = {}
        for encoder, dataset in work:
            queries, documents = sides_of(encoder, dataset)
            for side in dataset.sides:
                part, texts = documents if side == "documents" else queries, self._texts_of(dataset, side)
                key = (id(part), role_of(side), texts.digest)
                if key not in missing:
                    missing[key] = self._num_missing(part, texts, role_of(side))
        return sum(missing.values())

    def forget(self) -> None:
        """Frees the memory, but for what could only be had by encoding again: without a folder, or an identity.

        What was not to be persisted goes too: whoever named the encoders to keep is done with the others.
        """
        if self.folder is not None:
            self._vectors = {
                key: kept
                for key, kept in self._vectors.items()
                if self._persists(kept[0]) and self._identity(kept[0]) is None
            }

    def _persists(self, encoder: Encoder) -> bool:
        return self._persist is None or any(each is encoder for each in self._persist)

    def _texts_of(self, dataset: Dataset, side: Side) -> "_Texts":
        key = (dataset.digest, side)
        if key not in self._texts:
            self._texts[key] = _Texts(dataset.sides[side])
        return self._texts[key]

    def _vectors_of(
        self, encoder: Encoder, texts: "_Texts", role: Role, what: str, batch_size: int, advance: Advance | None
    ) -> Vectors:
        key = (id(encoder), role, texts.digest)
        if key not in self._vectors:
            parts = [self._part(encoder, part, role, what, batch_size, advance) for part in texts.parts]
            vectors = np.concatenate(parts) if parts else np.empty((0, encoder.dim), np.float32)
            self._vectors[key] = encoder, vectors if texts.rows is None else vectors[texts.rows]
        return self._vectors[key][1]

    def _num_missing(self, encoder: Encoder, texts: "_Texts", role: Role) -> int:
        if (id(encoder), role, texts.digest) in self._vectors:
            return 0
        paths = [(part, self._path(encoder, part, role)) for part in texts.parts]
        return sum(len(part.texts) for part, path in paths if path is None or not path.exists())

    def _part(
        self, encoder: Encoder, part: "_Part", role: Role, what: str, batch_size: int, advance: Advance | None
    ) -> Vectors:
        path = self._path(encoder, part, role)
        key: dict[str, Any] = {"role": role, "texts": part.digest}
        if path is not None:
            key["encoder"] = self._identity(encoder)
            if path.exists():
                check_part(path, key)
                return np.concatenate(list(read_vectors(path)))
        encode = encoder.encode_query if role == "query" else encoder.encode_document
        vectors = checked(encode(part.texts, batch_size=batch_size, advance=advance), len(part.texts), encoder, what)
        if path is not None:
            # float32: a score must not depend on whether its vectors were cached.
            write_part(path, vectors, key, "float32")
        return vectors

    def _path(self, encoder: Encoder, part: "_Part", role: Role) -> Path | None:
        if self.folder is None or not self._persists(encoder):
            return None
        if (identity := self._identity(encoder)) is None:
            return None
        return self.folder / digest({"encoder": identity, "role": role})[:16] / f"{part.digest[:32]}.parquet"

    def _identity(self, encoder: Encoder) -> dict[str, Any] | None:
        """What the encoder's vectors depend on; read once, since it digests the weights."""
        if id(encoder) not in self._identities:
            identity = getattr(encoder, "identity", None)
            self._identities[id(encoder)] = encoder, identity() if callable(identity) else None
        return self._identities[id(encoder)][1]


class _Part(NamedTuple):
    """Texts that are one file."""

    texts: list[str]
    digest: str


class _Texts:
    """The texts of a side: each different one once, in parts, with the digests that name them."""

    def __init__(self, texts: Sequence[str]) -> None:
        different = list(dict.fromkeys(texts))
        starts = range(0, len(different), PART_TEXTS)
        some = [different[start : start + PART_TEXTS] for start in starts]
        self.parts = [_Part(part, digest(part)) for part in some]
        self.digest = digest([list(texts) if len(different) < len(texts) else [], [part.digest for part in self.parts]])
        self.rows: NDArray[np.int64] | None = None
        """Row of each text among the different ones; None where none is repeated."""
        if len(different) < len(texts):
            row = {text: position for position, text in enumerate(different)}
            self.rows = np.array([row[text] for text in texts], np.int64)


def role_of(side: Side) -> Role:
    """The role that the texts of a side are encoded in: a task without two sides has documents only."""
    return "query" if side == "queries" else "document"


def sides_of(encoder: Encoder, dataset: Dataset) -> tuple[Encoder, Encoder]:
    """What encodes the queries and what the documents of a dataset; only retrieval has two sides."""
    if not isinstance(encoder, AsymmetricEncoder):
        return encoder, encoder
    return encoder.queries, encoder.documents if isinstance(dataset, RetrievalSet) else encoder.queries


def checked(vectors: Vectors, num_texts: int, encoder: Encoder, what: str) -> Vectors:
    """The vectors of an encoder as float32 `[num_texts, dim]`; anything else is refused, never scored."""
    vectors = np.asarray(vectors, np.float32)
    if vectors.shape != (num_texts, encoder.dim):
        raise LeafError(
            f"{encoder.name}: vectors of shape {vectors.shape} for {what}, expected ({num_texts}, {encoder.dim})"
        )
    odd = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(odd):
        kind = "NaN" if np.isnan(vectors[odd[0]]).any() else "inf"
        raise LeafError(f"{encoder.name}: {kind} in vector {odd[0]} of {what} ({len(odd)} such in {num_texts})")
    return vectors
