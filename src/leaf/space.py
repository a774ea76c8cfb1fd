"""A vector space has a name and a proof: who defines it, and canary texts with the vectors they must land on.

A student carries `space.json` and `canaries.safetensors`. Whoever holds the student, in whatever form, encodes the
canaries and sees at once whether a pooling was swapped, a head dropped, a prompt forgotten or a foreign model loaded;
neither the teacher nor a data set is needed for it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from leaf.encoder import Encoder, Role, Vectors
from leaf.errors import LeafError
from leaf.files import atomic_path, digest, write_json

SPACE_FILE, CANARIES_FILE = "space.json", "canaries.safetensors"
NUM_CANARIES = 64
#: How much further from the teacher than at saving a mean canary may lie, in units of the mean vector length. Rounding
#: to int8 costs a few hundredths; a lost head, pooling or prompt costs several tenths.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Space:
    """The identity of a vector space and its canaries."""

    teacher: Mapping[str, Any]
    """Everything that can change a teacher vector (`identity()` of the teacher)."""
    dim: int
    normalised: bool
    similarity: str
    texts: tuple[str, ...]
    kinds: tuple[Role, ...]
    vectors: Vectors
    """The teacher's vectors of `texts`, float32 `[n, dim]`."""
    error: float = 0.0
    """Mean ‖y − ŷ‖₂ over the canaries of the encoder that this space was saved with; 0 for the teacher."""

    @property
    def id(self) -> str:
        """Equal for two artifacts exactly when they answer in the same space."""
        return digest({"teacher": self.teacher, "dim": self.dim, "normalised": self.normalised})[:16]

    def save(self, folder: Path) -> None:
        """Writes `canaries.safetensors` and `space.json` into `folder`."""
        with atomic_path(folder / CANARIES_FILE) as temporary:
            temporary.write_bytes(save({"vectors": np.ascontiguousarray(self.vectors, dtype=np.float32)}))
        write_json(
            folder / SPACE_FILE,
            {
                "id": self.id,
                "teacher": dict(self.teacher),
                "dim": self.dim,
                "normalised": self.normalised,
                "similarity": self.similarity,
                "error": self.error,
                "canaries": [{"text": text, "kind": kind} for text, kind in zip(self.texts, self.kinds, strict=True)],
            },
        )

    @classmethod
    def load(cls, folder: Path) -> "Space":
        """The space of a student, index or package. Raises `LeafError` where there is none or it is damaged."""
        try:
            data = json.loads((folder / SPACE_FILE).read_text(encoding="utf-8"))
            vectors = load_file(folder / CANARIES_FILE)["vectors"]
            return cls(
                teacher=data["teacher"],
                dim=data["dim"],
                normalised=data["normalised"],
                similarity=data["similarity"],
                texts=tuple(canary["text"] for canary in data["canaries"]),
                kinds=tuple(canary["kind"] for canary in data["canaries"]),
                vectors=vectors,
                error=data["error"],
            )
        except FileNotFoundError as error:
            raise LeafError(
                f"{folder} has no {SPACE_FILE} with {CANARIES_FILE}; only what leaf made says which space it lives in"
            ) from error
        except Exception as error:
            raise LeafError(f"{folder}: {SPACE_FILE} or {CANARIES_FILE} is damaged ({error})") from error


@dataclass(frozen=True)
class Verdict:
    """What `verify` measured."""

    error: float
    """Mean ‖y − ŷ‖₂ over the canaries."""
    expected: float
    """The same when the artifact was saved."""
    mean_cosine: float
    matched: float
    """Share of canaries whose nearest teacher vector is their own: near 1 in the space, near 1/64 outside it."""
    in_space: bool


def canary_error(encoder: Encoder, texts: Sequence[str], kinds: Sequence[Role], vectors: Vectors) -> float:
    """Mean ‖y − ŷ‖₂ of an encoder over canaries."""
    return float(np.linalg.norm(_encode(encoder, texts, kinds) - vectors, axis=1).mean())


def verify(encoder: Encoder, space: Space) -> Verdict:
    """Encodes the canaries and compares them with the teacher's vectors. Raises `LeafError` for another width."""
    if encoder.dim != space.dim:
        raise LeafError(
            f"{encoder.name} answers with {encoder.dim} dimensions and the space has {space.dim}: it is outside the "
            "space (was its Dense module dropped?)"
        )
    encoded = _encode(encoder, space.texts, space.kinds)
    error = float(np.linalg.norm(encoded - space.vectors, axis=1).mean())
    lengths = np.linalg.norm(space.vectors, axis=1)
    cosines = (encoded / np.maximum(np.linalg.norm(encoded, axis=1), 1e-12)[:, None]) @ (
        space.vectors / np.maximum(lengths, 1e-12)[:, None]
    ).T
    return Verdict(
        error=error,
        expected=space.error,
        mean_cosine=float(np.diagonal(cosines).mean()),
        matched=float((cosines.argmax(axis=1) == np.arange(len(cosines))).mean()),
        in_space=bool(error <= space.error + TOLERANCE * lengths.mean()),
    )


def _encode(encoder: Encoder, texts: Sequence[str], kinds: Sequence[Role]) -> Vectors:
    vectors = np.empty((len(texts), encoder.dim), dtype=np.float32)
    for kind, encode in (("query", encoder.encode_query), ("document", encoder.encode_document)):
        rows = [row for row, each in enumerate(kinds) if each == kind]
        if rows:
            vectors[rows] = encode([texts[row] for row in rows])
    return vectors
