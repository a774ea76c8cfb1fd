"""Vectors in fewer dimensions and fewer bits, and encoders that answer with them (paper, Fig. 5 and 6).

    from leaf import AsymmetricEncoder
    from leaf.compression import Compressed, Int8

    int8 = Int8.calibrate(teacher_documents, dim=256)     # once, for a teacher and all of its students
    small = AsymmetricEncoder(
        Compressed(student, 256, "int8", int8), Compressed(teacher, 256, "int8", int8)
    )

A vector is cut to its leading dimensions, scaled back to length 1 where the space is compared by cosine, and
then rounded. A student may use what its teacher's vectors allow, in an index that is the teacher's; so nothing
here ever looks at a student: one calibration, made from the teacher's documents, serves queries and documents
of both. Needs numpy alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import NDArray

from leaf.encoder import Advance, Encoder, Role, Vectors, normalised
from leaf.errors import LeafError
from leaf.evaluation.retrieval import Similarity

#: What one vector is stored as.
Stored: TypeAlias = Literal["float32", "int8", "binary"]
#: What queries and documents are; `int8xbinary` is int8 queries over binary documents: an index of one bit a dimension,
#: asked with the detail that a query alone can afford.
Precision: TypeAlias = Literal["float32", "int8", "binary", "int8xbinary"]
Codes: TypeAlias = NDArray[np.int8]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
#: The largest int8 code. −128 stays unused, so that −x is stored as the opposite of x.
LARGEST = 127
#: Share of a dimension's values that calibration may let saturate.
CLIPPED = 1e-3
#: float32 holds every whole number up to here.
EXACT = 2**24


@dataclass(frozen=True)
class Int8:
    """How real numbers become int8 codes: `round(127 x / limit)`, saturating at ±127. Zero stays zero.

    One scale for all dimensions, on purpose. The dot product of two codes is then the real one times a constant, and
    that integer is all a vector database computes; with a scale (or an offset) per dimension it would weigh
    dimensions by how little they vary, and no longer be the similarity of the space.
    """

    limit: float
    """What is stored as 127, in the units of the vectors; larger values saturate."""
    dim: int
    """The dimension that it was calibrated for. Vectors cut shorter are longer per dimension once renormalised."""

    @classmethod
    def calibrate(cls, documents: Vectors, dim: int | None = None, similarity: Similarity = "cosine") -> "Int8":
        """The scale for the leading `dim` dimensions (None: all) of a teacher's `documents`, float32 `[n, d]`.

        `limit` is the least one that lets no dimension saturate in more than one of 1000 documents; of fewer
        documents, the largest absolute value. A quantile over all values would be blind to the one dimension in
        which many models put most of the length. 1000 documents or more of the kind that is searched are plenty.
        """
        if not len(documents):
            raise LeafError("no vectors to calibrate int8 from: give document vectors of the teacher, 1000 or more")
        vectors = truncate(documents, documents.shape[1] if dim is None else dim, similarity)
        last = len(vectors) - 1 - int(CLIPPED * len(vectors))
        limit = float(np.partition(np.abs(vectors), last, axis=0)[last].max())
        if limit == 0:
            raise LeafError("vectors to calibrate int8 from are all zero, expected document vectors of the teacher")
        return cls(limit, vectors.shape[1])

    def codes(self, vectors: Vectors) -> Codes:
        """int8 `[n, dim]` of float32 `[n, dim]`, −127 to 127."""
        if vectors.shape[1] != self.dim:
            raise LeafError(
                f"vectors of {vectors.shape[1]} dimensions and an int8 calibration for {self.dim}: calibrate for each"
            )
        # In float64, where a small factor and a large value cannot overflow.
        scaled = np.rint(_finite(vectors) * np.float64(LARGEST / self.limit))
        return np.clip(scaled, -LARGEST, LARGEST).astype(np.int8)


def truncate(vectors: Vectors, dim: int, similarity: Similarity = "cosine") -> Vectors:
    """The leading `dim` dimensions of `[n, d]`, scaled to length 1 where the space is compared by cosine.

    A dot product keeps its lengths. Zero rows stay zero.
    """
    if not 1 <= dim <= vectors.shape[1]:
        raise LeafError(f"{dim} dimensions asked of vectors that have {vectors.shape[1]}: ask for 1 to that many")
    vectors = _finite(vectors[:, :dim])
    return normalised(vectors) if similarity == "cosine" else vectors


def signs(vectors: Vectors) -> Codes:
    """+1 where a value is above zero and −1 elsewhere, int8 `[n, d]`.

    The dot product of two such rows is d − 2 · (their Hamming distance), so search by one is search by the other.
    """
    return np.where(_finite(vectors) > 0, np.int8(1), np.int8(-1))


def pack(vectors: Vectors) -> NDArray[np.uint8]:
    """The same signs as databases store them: eight to a byte, first dimension highest, uint8 `[n, ceil(d / 8)]`.

    A last byte that is not full is filled with zeros, which add nothing to a Hamming distance.
    """
    return np.packbits(_finite(vectors) > 0, axis=1)


def exactly(queries: Vectors, documents: Vectors) -> tuple[Vectors, Vectors]:
    """Both, in a type in which every dot product of these whole numbers (`[nq, d]`, `[nd, d]`) is exact.

    By Cauchy and Schwarz no partial sum, in whatever order, exceeds ‖q‖ ‖d‖, and float32 is exact up to 2²⁴: up to
    1040 dimensions of int8 whatever they hold, and thousands of real ones. Beyond, float64, exact up to 2⁵³.
    """
    if _longest(queries) * _longest(documents) <= EXACT:
        return queries, documents
    # Search adds up in the type it is given; its annotation names the usual one.
    return cast(Vectors, queries.astype(np.float64)), cast(Vectors, documents.astype(np.float64))


def sample(documents: Iterable[Vectors], rows: int = 2_000) -> Vectors:
    """Vectors to calibrate from, float32 `[n, d]`: up to `rows` of each array, evenly spaced, so always the same ones.

    From arrays that are loaded one by one it keeps no more than the sample.
    """
    chosen = [each[np.linspace(0, len(each) - 1, min(rows, len(each))).round().astype(int)] for each in documents]
    if not chosen:
        raise LeafError("no datasets to take vectors from for the calibration of int8")
    return np.concatenate(chosen)


@dataclass(frozen=True)
class Compression:
    """One way to store vectors: so many leading dimensions in some precision."""

    dim: int
    precision: Precision = "float32"
    similarity: Similarity = "cosine"
    """How the vectors are compared before compression."""
    calibration: Int8 | None = None
    """Needed for int8, made for `dim` dimensions."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise LeafError(f"precision '{self.precision}' is unknown, expected one of {', '.join(PRECISIONS)}")
        if "int8" in self.precision and self.calibration is None:
            raise LeafError(f"{self.precision} needs a calibration: Int8.calibrate(teacher_documents, dim={self.dim})")
        if self.calibration is not None and self.calibration.dim != self.dim:
            raise LeafError(
                f"an int8 calibration for {self.calibration.dim} dimensions does not fit {self.dim}: "
                f"use Int8.calibrate(teacher_documents, dim={self.dim})"
            )

    @property
    def compared_by(self) -> Similarity:
        """How compressed vectors are compared: codes by their dot product, whole numbers."""
        return self.similarity if self.precision == "float32" else "dot"

    def stored_as(self, role: Role) -> Stored:
        """The type of one side; only `int8xbinary` has two."""
        if self.precision == "int8xbinary":
            return "int8" if role == "query" else "binary"
        return self.precision

    def bytes_per_vector(self, role: Role = "document") -> int:
        """Bytes that one stored vector takes."""
        return {"float32": 4 * self.dim, "int8": self.dim, "binary": -(-self.dim // 8)}[self.stored_as(role)]

    def stored(self, vectors: Vectors, role: Role = "document") -> NDArray[Any]:
        """What an index keeps of float32 `[n, d]`: float32 or int8 `[n, dim]`, or packed uint8 `[n, ceil(dim / 8)]`."""
        if self.stored_as(role) == "binary":
            return pack(truncate(vectors, self.dim, "dot"))  # a length has no part in a sign
        return self._codes(vectors, role)

    def compress(self, vectors: Vectors, role: Role) -> Vectors:
        """The same values as float32 `[n, dim]`, ready to be compared; a bit is −1 or +1.

        Whole vectors in float32 come back as they are.
        """
        return self._codes(vectors, role).astype(np.float32, copy=False)

    def _codes(self, vectors: Vectors, role: Role) -> NDArray[Any]:
        stored_as = self.stored_as(role)
        if stored_as == "binary":
            return signs(truncate(vectors, self.dim, "dot"))
        if stored_as == "float32" and self.dim == vectors.shape[1]:
            return vectors
        vectors = truncate(vectors, self.dim, self.similarity)
        # int8 without a calibration was refused when this was made.
        return self.calibration.codes(vectors) if stored_as == "int8" and self.calibration else vectors


class Compressed:
    """An `Encoder` whose vectors are compressed: what it returns are the exact stored values, as float32 `[n, dim]`.

    Codes are compared by dot product, so `similarity` is "dot" for all but float32. `calibration` is one for all
    encoders of a space and both roles. Of a pair, compress the two encoders rather than the pair (see above):
    the teacher's side then stays one object, encoded once for all of its students.

    Raises `LeafError` for more dimensions than the encoder has, and for int8 without a calibration for `dim`.
    """

    def __init__(
        self,
        encoder: Encoder,
        dim: int | None = None,
        precision: Precision = "float32",
        calibration: Int8 | None = None,
    ) -> None:
        dim = encoder.dim if dim is None else dim
        if not 1 <= dim <= encoder.dim:
            raise LeafError(f"{encoder.name} answers with {encoder.dim} dimensions: {dim} is not within 1 to that many")
        self.encoder = encoder
        self.compression = Compression(dim, precision, encoder.similarity, calibration)
        size = f"{dim}d" if dim < encoder.dim else ""
        self.name = " ".join(each for each in (encoder.name, size, precision) if each not in ("", "float32"))
        self.dim = dim
        self.similarity: Similarity = self.compression.compared_by

    def identity(self) -> dict[str, Any] | None:
        """Everything that can change a vector; None where the encoder does not tell, as for one behind an API."""
        own = getattr(self.encoder, "identity", None)
        encoder = own() if callable(own) else None
        return None if encoder is None else {"encoder": encoder, "compression": asdict(self.compression)}

    def encode_query(self, texts: Sequence[str], *, batch_size: int = 32, advance: Advance | None = None) -> Vectors:
        """Compressed vectors of queries, float32 `[n, dim]`."""
        vectors = self.encoder.encode_query(texts, batch_size=batch_size, advance=advance)
        return self.compression.compress(vectors, "query")

    def encode_document(self, texts: Sequence[str], *, batch_size: int = 32, advance: Advance | None = None) -> Vectors:
        """Compressed vectors of documents, float32 `[n, dim]`."""
        vectors = self.encoder.encode_document(texts, batch_size=batch_size, advance=advance)
        return self.compression.compress(vectors, "document")


def _longest(vectors: Vectors) -> float:
    """The greatest length of a row."""
    return float(np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64).max(initial=0)))


def _finite(vectors: Vectors) -> Vectors:
    """The vectors, refused where NaN or inf would turn into an ordinary code."""
    odd = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(odd):
        raise LeafError(f"NaN or inf in vector {odd[0]} of {len(vectors)}: it has no code; encode its text again")
    return vectors
