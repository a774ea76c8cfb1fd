"""Vectors on disk: Parquet parts, row-aligned with the texts they are of, each saying what made it.

The teacher's vectors of training texts (`embeddings/<key>/`) and those of evaluation sets are kept so. A part carries
the encoder's identity and the digest of its texts in its own footer, so a part from elsewhere is an error that names
the field, wherever it was copied to.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from leaf.encoder import Vectors, row_cosines
from leaf.errors import LeafError
from leaf.files import atomic_path
from leaf.parquet import open_parquet
from leaf.run import difference

#: A row may be stored in float16 when rounding keeps its cosine above this, and its norm within 1 %.
MIN_COSINE = 0.9999
#: A teacher is normalised when every norm is this close to 1; float16 rounding alone moves a norm by up to 5e-4.
UNIT_NORM_TOLERANCE = 1e-3
#: Rows in a Parquet row group: the most that a reader holds at once.
ROW_GROUP = 8192
_KEY = b"leaf"


@dataclass(frozen=True)
class Part:
    """One file of vectors, as the manifest lists it."""

    file: str
    rows: int
    dtype: str
    """float16 or float32: what this part stores."""
    min_norm: float
    max_norm: float
    min_cosine: float
    """The least cosine between a row and its float16 rounding."""


def write_part(path: Path, vectors: Vectors, key: dict[str, Any], storage_dtype: str) -> Part:
    """Writes float32 `vectors` `[n, dim]` under `key`, in float16 where every row survives it.

    Raises `LeafError` for a vector that is not finite.
    """
    norms, rounded, worst = np.empty(len(vectors), vectors.dtype), np.empty(vectors.shape, np.float16), 1.0
    for start in range(0, len(vectors), ROW_GROUP):  # all rows at once would need twice the memory of the vectors again
        rows = slice(start, start + ROW_GROUP)
        finite = np.isfinite(vectors[rows]).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise LeafError(
                f"the teacher returned NaN or infinity for row {row} of {path.stem}; nothing of this shard was kept: "
                "check the teacher's weights, or set teacher.compute_dtype = 'float32'"
            )
        norms[rows] = np.linalg.norm(vectors[rows], axis=1)
        rounded[rows] = vectors[rows].astype(np.float16)
        worst = min(worst, min_cosine(vectors[rows], rounded[rows].astype(np.float32)))
    stored = rounded if storage_dtype == "float16" and worst >= MIN_COSINE else vectors
    part = Part(
        file=path.name,
        rows=len(vectors),
        dtype=str(stored.dtype),
        min_norm=float(norms.min(initial=np.inf)),
        max_norm=float(norms.max(initial=-np.inf)),
        min_cosine=worst,
    )
    column = pa.FixedSizeListArray.from_arrays(pa.array(stored.ravel()), vectors.shape[1])
    table = pa.table({"vector": column}).replace_schema_metadata(
        {_KEY: json.dumps({"key": key, "part": part.__dict__}).encode()}
    )
    with atomic_path(path) as temporary:
        # Exact, the smallest of the codecs tried, and five times as fast to read as plain zstd.
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            use_byte_stream_split=True,
            use_dictionary=False,
            row_group_size=ROW_GROUP,
        )
    return part


def key_of(path: Path) -> dict[str, Any]:
    """The key that a part was written under. Raises `LeafError` for a file that is none."""
    return dict(_footer(path)["key"])


def check_part(path: Path, key: dict[str, Any]) -> Part:
    """The `Part` of a file that an earlier run finished, after checking that it belongs to `key`."""
    held = _footer(path)
    if held["key"] != key:
        raise LeafError(
            f"{path} holds vectors of another encoder or other texts ({difference(held['key'], key)}); choose another "
            f"--out, or delete {path.parent} to compute them again"
        )
    return Part(**held["part"])


def _footer(path: Path) -> Any:
    try:
        return json.loads((pq.read_schema(path).metadata or {})[_KEY])
    except (pa.ArrowInvalid, KeyError, ValueError) as error:
        raise LeafError(f"{path} is damaged or not a part of an embedding cache; delete it and run again") from error


def read_vectors(path: Path) -> Iterator[NDArray[Any]]:
    """The vectors of a part in row order, `[≤ 8192, dim]` at a time, in the dtype they are stored in.

    Raises `LeafError` for a file that is cut short or damaged, and for a vector that is not finite.
    """
    try:
        with open_parquet(path) as file:
            for group in range(file.num_row_groups):
                column = file.read_row_group(group).column("vector").combine_chunks()
                values = column.flatten().to_numpy(zero_copy_only=False)
                vectors = values.reshape(len(column), -1)
                if not np.isfinite(vectors).all():
                    raise LeafError(f"{path} holds NaN or infinite vectors; delete it and run again")
                yield vectors
    except (pa.ArrowInvalid, OSError) as error:
        raise LeafError(f"{path} is missing or damaged ({error}); delete it and run again") from error


def is_normalised(parts: list[Part]) -> bool:
    """Whether every teacher vector has unit length: measured, never assumed (§2, Norm of Eq. 1)."""
    return all(
        abs(part.min_norm - 1) <= UNIT_NORM_TOLERANCE and abs(part.max_norm - 1) <= UNIT_NORM_TOLERANCE
        for part in parts
    )


def min_cosine(vectors: Vectors, rounded: Vectors) -> float:
    """The least cosine between rows and their rounding; 0 where rounding overflowed or changed a norm by over 1 %."""
    if not np.isfinite(rounded).all():
        return 0.0
    before, after = np.linalg.norm(vectors, axis=1), np.linalg.norm(rounded, axis=1)
    if (np.abs(after - before) > 1e-2 * before).any():
        return 0.0
    return float(min(row_cosines(vectors, rounded).min(initial=1.0), 1.0))
