"""A vector space has a name and a proof: who defines it, and canary texts with the vectors they must land on.

A student carries `space.json` and `canaries.safetensors`. Whoever holds the student, in whatever form, encodes the
canaries and sees at once whether a pooling was swapped, a head dropped, a prompt forgotten or a foreign model loaded;
neither the teacher nor a data set is needed for it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from leaf.encoder import Encoder, Role, Vectors, normalised
from leaf.errors import LeafError
from leaf.files import atomic_path, digest, write_json
from leaf.models import without_folders

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
    errors: Mapping[Role, float] = field(default_factory=dict)
    """The same for queries and for documents; empty where only the mean over both was kept."""

    @property
    def id(self) -> str:
        """Equal for two artifacts exactly when they answer in the same space, wherever the teacher's folder lies."""
        teacher = {key: without_folders(value) if key == "model" else value for key, value in self.teacher.items()}
        return digest({"teacher": teacher, "dim": self.dim, "normalised": self.normalised})[:16]

    def save(self, folder: Path) -> None:
        """Writes `canaries.safetensors` and `space.json` into `folder`."""
        with atomic_path(folder / CANARIES_FILE) as temporary:
            temporary.write_bytes(save({"vectors": np.ascontiguousarray(self.vectors, dtype=np.float32)}))
        write_json(folder / SPACE_FILE, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """All but the vectors, as plain data."""
        return {
            "id": self.id,
            "teacher": dict(self.teacher),
            "dim": self.dim,
            "normalised": self.normalised,
            "similarity": self.similarity,
            "error": self.error,
            "errors": dict(self.errors),
            "canaries": [{"text": text, "kind": kind} for text, kind in zip(self.texts, self.kinds, strict=True)],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], vectors: Vectors) -> "Space":
        """What `to_json` made, with the vectors of the canaries. Raises `KeyError` or `TypeError` for anything else."""
        return cls(
            teacher=data["teacher"],
            dim=data["dim"],
            normalised=data["normalised"],
            similarity=data["similarity"],
            texts=tuple(canary["text"] for canary in data["canaries"]),
            kinds=tuple(canary["kind"] for canary in data["canaries"]),
            vectors=vectors,
            error=data["error"],
            errors=data.get("errors", {}),
        )

    @classmethod
    def load(cls, folder: Path) -> "Space":
        """The space of a student, index or package. Raises `LeafError` where there is none or it is damaged."""
        try:
            data = json.loads((folder / SPACE_FILE).read_text(encoding="utf-8"))
            return cls.from_json(data, load_file(folder / CANARIES_FILE)["vectors"])
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


def saved_with(space: Space, encoder: Encoder) -> Space:
    """`space` with the errors of `encoder` on its canaries: what `verify` will expect of every copy of it."""
    distances = np.linalg.norm(encode_canaries(encoder, space.texts, space.kinds) - space.vectors, axis=1)
    return replace(space, error=float(distances.mean()), errors=_by_kind(distances, space.kinds))


def _by_kind(distances: Vectors, kinds: Sequence[Role]) -> dict[Role, float]:
    chosen = np.asarray(kinds)
    return {kind: float(distances[chosen == kind].mean()) for kind in dict.fromkeys(kinds)}


def verify(encoder: Encoder, space: Space) -> Verdict:
    """Encodes the canaries and compares them with the teacher's vectors. Raises `LeafError` for another width."""
    if encoder.dim != space.dim:
        raise LeafError(
            f"{encoder.name} answers with {encoder.dim} dimensions and the space has {space.dim}: it is outside the "
            "space (was its Dense module dropped?)"
        )
    encoded = encode_canaries(encoder, space.texts, space.kinds)
    distances = np.linalg.norm(encoded - space.vectors, axis=1)
    error = float(distances.mean())
    kinds = _by_kind(distances, space.kinds)
    lengths = np.linalg.norm(space.vectors, axis=1)
    cosines = normalised(encoded) @ normalised(space.vectors).T
    return Verdict(
        error=error,
        expected=space.error,
        mean_cosine=float(np.diagonal(cosines).mean()),
        matched=float((cosines.argmax(axis=1) == np.arange(len(cosines))).mean()),
        in_space=bool(
            error <= space.error + TOLERANCE * lengths.mean()
            # A prompt forgotten for queries alone would be lost in the mean over both.
            and all(
                found <= space.errors.get(kind, np.inf) + TOLERANCE * lengths.mean() for kind, found in kinds.items()
            )
        ),
    )


def encode_canaries(encoder: Encoder, texts: Sequence[str], kinds: Sequence[Role]) -> Vectors:
    """Every text in its own role, float32 `[n, dim]`."""
    vectors = np.empty((len(texts), encoder.dim), dtype=np.float32)
    for kind, encode in (("query", encoder.encode_query), ("document", encoder.encode_document)):
        rows = [row for row, each in enumerate(kinds) if each == kind]
        if rows:
            vectors[rows] = encode([texts[row] for row in rows])
    return vectors
