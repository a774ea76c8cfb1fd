"""How much of a space do vectors that are owned say? Training texts, directions, and how near queries lie.

A student learns the space where it has targets. With an index of documents alone, the regions and directions that only
queries use are learned from whatever queries the teacher was asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaf.encoder import Role, Vectors, normalised
from leaf.progress import progress
from leaf.spectrum import spectrum
from leaf.teacher.owned import Owned
from leaf.texts.shards import read_shard
from leaf.tokens import ROLES
from leaf.vector_files import read_vectors

#: Vectors that are looked at: enough for every direction of a space of some thousand dimensions.
MAX_OWNED, MAX_QUERIES = 20_000, 2_000
#: Energy of the owned vectors that the covered directions hold.
ENERGY = 0.99
#: Share of the queries' energy in those directions below which there is a warning.
ENOUGH = 0.9


@dataclass(frozen=True)
class Coverage:
    """What `coverage` measured. `None` stands where there were no queries, or one vector alone."""

    texts: dict[Role, tuple[int, int]]
    """How many of the training texts had a vector, and how many there are, by kind."""
    dim: int
    owned: int
    """Owned vectors that were looked at."""
    effective_rank: float
    """Directions that they need, 1 to `dim`: `leaf.spectrum`."""
    directions: int
    """Leading directions that hold 99 % of their energy (mean squared length)."""
    queries: int
    """Vectors of queries that were looked at."""
    query_energy: float | None
    """Share of the queries' energy in those directions."""
    query_nearest: float | None
    """Median cosine of a query to its nearest owned vector."""
    owned_nearest: float | None
    """Median cosine of an owned vector to its nearest other."""

    def to_json(self) -> dict[str, Any]:
        """Itself as plain data."""
        return asdict(self)

    def sentence(self) -> str:
        """It in one or two lines for people; the second warns where the queries use directions that are not covered."""
        had = [f"{some:,} of {all_:,} {_PLURALS[kind]}" for kind, (some, all_) in self.texts.items() if all_]
        parts = [f"owned vectors: {' and '.join(had)} had one" if had else "owned vectors"]
        parts.append(
            f"effective rank {self.effective_rank:.0f}; 99 % of their energy lies in {self.directions} of {self.dim} "
            "directions"
        )
        if self.query_energy is not None:
            parts[-1] += f", and {100 * self.query_energy:.0f} % of the queries'"
        if self.query_nearest is not None and self.owned_nearest is not None:
            parts.append(
                f"median cosine to the nearest owned vector: queries {self.query_nearest:.2f}, owned vectors "
                f"{self.owned_nearest:.2f}"
            )
        lines = ["; ".join(parts)]
        if self.query_energy is not None and self.query_energy < ENOUGH:
            lines.append(
                f"warning: {100 * (1 - self.query_energy):.0f} % of the queries' energy lies in directions that the "
                "owned vectors hardly use: train on more queries, or on texts of their subjects"
            )
        return "\n".join(lines)


_PLURALS: dict[Role, str] = {"query": "queries", "document": "documents"}


def coverage(
    owned: Vectors, queries: Vectors | None = None, texts: Mapping[Role, tuple[int, int]] | None = None
) -> Coverage:
    """Measures `owned` `[n, d]`, at least one vector, against `queries` `[m, d]` of the same teacher.

    Of each the first 20,000 and 2,000 are looked at: give samples. `texts` is passed on, see `Coverage.texts`.
    """
    owned = owned[:MAX_OWNED]
    shape = spectrum(owned)
    # Sums of many shares are off by some 1e-16: a subspace that holds all of 99 % should not need one direction more.
    directions = int(np.searchsorted(shape.energy, ENERGY - 1e-9)) + 1
    queries = queries[:MAX_QUERIES] if queries is not None and len(queries) else None
    inside = None
    if queries is not None:
        inside = float(np.square(queries @ shape.basis[:, :directions]).sum() / np.square(queries, dtype=float).sum())
    unit = normalised(owned)
    return Coverage(
        texts=dict(texts or {}),
        dim=owned.shape[1],
        owned=len(owned),
        effective_rank=shape.effective_rank,
        directions=directions,
        queries=0 if queries is None else len(queries),
        query_energy=inside,
        query_nearest=None if queries is None else float(np.median(_nearest(normalised(queries), unit))),
        owned_nearest=float(np.median(_nearest(unit[:MAX_QUERIES], unit, itself=True))) if len(unit) > 1 else None,
    )


def coverage_of(
    owned: Owned,
    texts: Path,
    embeddings: Path,
    shards: Sequence[Mapping[str, Any]],
    held_out: Mapping[str, Any],
) -> Coverage:
    """The coverage of a run: `shards` and `held_out` are entries of its texts manifest, `embeddings` its vectors.

    Owned documents are sampled (queries, where no document is owned). Queries are the held-out ones, which are a
    uniform sample of all.
    """
    had, all_ = dict.fromkeys(ROLES, 0), dict.fromkeys(ROLES, 0)
    with progress("counting owned texts", sum(shard["rows"] for shard in shards)) as bar:
        for entry in shards:
            shard = read_shard(texts / entry["file"])
            for kind in ROLES:
                some = [text for text, each in zip(shard.texts, shard.kinds, strict=True) if each == kind]
                had[kind] += int((owned.find(some, kind) >= 0).sum())
                all_[kind] += len(some)
            bar.advance(len(shard.texts))
    sampled: Role = "document" if owned.facts["kinds"]["document"] else "query"
    kinds = np.array(read_shard(texts / held_out["file"]).kinds)
    vectors = np.concatenate(list(read_vectors(embeddings / held_out["file"])))
    return coverage(
        owned.vectors(owned.sample(sampled, MAX_OWNED)),
        vectors[kinds == "query"][:MAX_QUERIES].astype(np.float32),
        {kind: (had[kind], all_[kind]) for kind in ROLES},
    )


def _nearest(vectors: Vectors, others: Vectors, *, itself: bool = False) -> NDArray[np.float32]:
    """The greatest dot product of each row of `vectors` `[m, d]` with a row of `others`, `[m]`.

    With `itself`, row i of `others` is left out for row i.
    """
    found = np.empty(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), 256):  # 20 MB at a time
        scores = vectors[start : start + 256] @ others.T
        if itself:
            rows = np.arange(len(scores))
            scores[rows, start + rows] = -np.inf
        found[start : start + 256] = scores.max(axis=1)
    return found
