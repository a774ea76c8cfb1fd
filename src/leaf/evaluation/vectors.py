"""Vectors of datasets: each side encoded once per encoder, checked, and kept for every score that needs it.

The teacher's documents serve the teacher and the asymmetric score of every student; a student's queries serve
its standard and its asymmetric score.
"""

from collections.abc import Iterable
from typing import Literal, TypeAlias

import numpy as np

from leaf.encoder import Advance, AsymmetricEncoder, Encoder, Vectors
from leaf.errors import LeafError
from leaf.evaluation.datasets import Dataset, RetrievalSet, StsSet

Side: TypeAlias = Literal["queries", "documents", "sentences"]


class VectorCache:
    """Vectors of (encoder, dataset, side), computed on first use and kept in memory as long as the cache.

    Keyed by the encoder object and the dataset's content, so that neither two encoders of one name nor two
    datasets of one name are ever mixed up.
    """

    def __init__(self) -> None:
        # The encoder is kept beside its vectors: a freed one could pass its id() on to another.
        self._vectors: dict[tuple[int, str, Side], tuple[Encoder, Vectors]] = {}

    def holds(self, encoder: Encoder, dataset: Dataset, side: Side) -> bool:
        """Whether these vectors are there already."""
        return (id(encoder), dataset.digest, side) in self._vectors

    def vectors(
        self,
        encoder: Encoder,
        dataset: Dataset,
        side: Side,
        *,
        batch_size: int = 32,
        advance: Advance | None = None,
    ) -> Vectors:
        """Vectors float32 `[n, dim]` of one side; `advance` hears only of texts encoded by this call."""
        key = (id(encoder), dataset.digest, side)
        if key not in self._vectors:
            encode = encoder.encode_query if side == "queries" else encoder.encode_document
            texts = _texts(dataset, side)
            vectors = encode(texts, batch_size=batch_size, advance=advance)
            self._vectors[key] = encoder, checked(vectors, len(texts), encoder, f"{side} of {dataset.name}")
        return self._vectors[key][1]

    def num_missing(self, work: Iterable[tuple[Encoder, Dataset]]) -> int:
        """How many texts have yet to be encoded to score these encoders on these datasets."""
        missing: dict[tuple[int, str, Side], int] = {}
        for encoder, dataset in work:
            queries, documents = sides_of(encoder, dataset)
            parts: dict[Side, Encoder] = {"queries": queries, "documents": documents}
            if isinstance(dataset, StsSet):
                parts = {"sentences": queries}
            for side, part in parts.items():
                if not self.holds(part, dataset, side):
                    missing[id(part), dataset.digest, side] = len(_texts(dataset, side))
        return sum(missing.values())


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


def _texts(dataset: Dataset, side: Side) -> list[str]:
    """The texts of one side; of an sts set, all first sentences and then all second ones."""
    if isinstance(dataset, StsSet):
        return [pair[position] for position in (0, 1) for pair in dataset.pairs]
    return list((dataset.queries if side == "queries" else dataset.documents).values())
