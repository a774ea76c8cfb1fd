"""What turns text into vectors. Teacher, student, ONNX student and a pair of them are all an `Encoder`.

Evaluation, search and speed take an `Encoder` and cannot tell which they hold. Prompts belong to the encoder, one per
role, so nobody else ever concatenates a prompt. This file needs numpy alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from leaf.errors import LeafError

#: The side of a search that a text is on: which of the prompts it takes.
Role: TypeAlias = Literal["query", "document"]
#: Float32 `[n, dim]`, a row for each text.
Vectors: TypeAlias = NDArray[np.float32]
#: Called with the number of texts that have just been encoded.
Advance: TypeAlias = Callable[[int], object]


@runtime_checkable
class Encoder(Protocol):
    """Anything that answers in a vector space.

    `encode_query` and `encode_document` return float32 `[n, dim]`, rows in the order of `texts`, and apply the prompt
    of their role. `similarity` is what the space is compared with: the cosine, or the plain dot product.
    """

    @property
    def name(self) -> str:
        """A short name for tables."""

    @property
    def dim(self) -> int:
        """Width of the vectors."""

    @property
    def similarity(self) -> Literal["cosine", "dot"]:
        """How two vectors of this space are compared."""

    def encode_query(self, texts: Sequence[str], *, batch_size: int = 32, advance: Advance | None = None) -> Vectors:
        """Vectors of queries, float32 `[n, dim]`."""

    def encode_document(self, texts: Sequence[str], *, batch_size: int = 32, advance: Advance | None = None) -> Vectors:
        """Vectors of documents, float32 `[n, dim]`."""


class AsymmetricEncoder:
    """Two encoders of one space as one `Encoder`: queries by the small one, documents by the large one (Fig. 2).

    Raises `LeafError` when the widths differ, since then the two cannot share a space.
    """

    def __init__(self, queries: Encoder, documents: Encoder) -> None:
        if queries.dim != documents.dim:
            raise LeafError(
                f"{queries.name} answers with {queries.dim} dimensions and {documents.name} with {documents.dim}: "
                "they do not share a vector space; use a student distilled from this document encoder"
            )
        self.queries = queries
        self.documents = documents
        self.name = f"{queries.name} | {documents.name}"
        self.dim = queries.dim
        # The index was made by the document encoder, so its way of comparing is the one that holds.
        self.similarity: Literal["cosine", "dot"] = documents.similarity

    def encode_query(self, texts: Sequence[str], *, batch_size: int = 32, advance: Advance | None = None) -> Vectors:
        """Vectors of queries by the query encoder, float32 `[n, dim]`."""
        return self.queries.encode_query(texts, batch_size=batch_size, advance=advance)

    def encode_document(self, texts: Sequence[str], *, batch_size: int = 32, advance: Advance | None = None) -> Vectors:
        """Vectors of documents by the document encoder, float32 `[n, dim]`."""
        return self.documents.encode_document(texts, batch_size=batch_size, advance=advance)


def row_cosines(first: NDArray[Any], second: NDArray[Any]) -> Vectors:
    """Cosine of every row of one `[n, dim]` to the same row of the other, float32 `[n]`.

    Two zero vectors, such as a lookup table's of a text without tokens, are alike: 1. One alone is like nothing: 0.
    """
    one, other = (np.linalg.norm(each, axis=1).astype(np.float32) for each in (first, second))
    lengths = one * other
    alike = ((one == 0) & (other == 0)).astype(np.float32)
    dots = np.einsum("nd,nd->n", first, second, dtype=np.float32)
    cosines: Vectors = np.divide(dots, lengths, out=alike, where=lengths > 0)
    return cosines


def normalised(vectors: Vectors) -> Vectors:
    """Rows of `[n, d]` scaled to length 1; zero rows stay zero."""
    # In float64, since the squares of large float32 values overflow.
    length = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))[:, None]
    unit: Vectors = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0, casting="same_kind")
    return unit
