"""Fills the cache of teacher vectors, one text shard at a time; a shard that is there is never computed again."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from leaf.encoder import Encoder, Vectors
from leaf.errors import LeafError
from leaf.files import digest
from leaf.progress import Bar, progress
from leaf.texts.shards import read_shard
from leaf.vector_files import Part, check_part, is_normalised, write_part


class TeacherEncoder(Encoder, Protocol):
    """An `Encoder` that can say what its vectors depend on."""

    def identity(self) -> dict[str, Any]:
        """Everything that can change a vector, as plain JSON."""


def cache_key(teacher: TeacherEncoder, storage_dtype: str) -> dict[str, Any]:
    """What a cache holds: the teacher's identity and the storage asked for. Each part adds the digest of its texts."""
    return {"teacher": teacher.identity(), "storage_dtype": storage_dtype}


def cache_folder(embeddings: Path, key: Mapping[str, Any]) -> Path:
    """The folder of `key` inside `embeddings/`. Raises `LeafError` when only another teacher's cache is there."""
    folder = embeddings / digest(key)[:16]
    foreign = next((path for path in sorted(embeddings.glob("*/*.parquet")) if path.parent != folder), None)
    if foreign is not None and not folder.exists():
        check_part(foreign, {**key, "texts": None})  # raises, and names the first field that differs
    return folder


def embed(
    texts: Path,
    shards: Sequence[Mapping[str, Any]],
    teacher: TeacherEncoder,
    folder: Path,
    key: Mapping[str, Any],
    batch_size: int = 32,
) -> dict[str, Any]:
    """Writes one part of vectors per text shard into `folder`; returns the facts for its manifest.

    `shards` are the texts manifest's entries (`file`, `rows`, `digest`). Each part is whole or absent, so a killed run
    goes on with the first missing shard. Memory is O(shard). Raises `LeafError` for parts of another teacher or other
    texts, for vectors that are not finite or have the wrong width, and before starting when the disk is too small.
    """
    parts: dict[str, Part] = {}
    missing = []
    for shard in shards:
        path = folder / shard["file"]
        if path.exists():
            parts[shard["file"]] = check_part(path, {**key, "texts": shard["digest"]})
        else:
            missing.append(shard)
    num_texts = sum(shard["rows"] for shard in shards)
    to_do = sum(shard["rows"] for shard in missing)
    _check_disk(folder, to_do * teacher.dim * (2 if key["storage_dtype"] == "float16" else 4))
    with progress("embedding", num_texts, completed=num_texts - to_do) as bar:
        for shard in missing:
            vectors = _encode_shard(texts / shard["file"], teacher, batch_size, bar)
            part_key = {**key, "texts": shard["digest"]}
            parts[shard["file"]] = write_part(folder / shard["file"], vectors, part_key, key["storage_dtype"])
    ordered = [parts[shard["file"]] for shard in shards]
    return {
        "parts": [asdict(part) for part in ordered],
        "rows": num_texts,
        "dim": teacher.dim,
        "similarity": teacher.similarity,
        "normalised": is_normalised(ordered),
        "min_cosine_float16": min(part.min_cosine for part in ordered),
    }


def _encode_shard(path: Path, teacher: TeacherEncoder, batch_size: int, bar: Bar) -> Vectors:
    """Teacher vectors of one shard in row order, each text under the prompt of its kind."""
    shard = read_shard(path)
    vectors = np.empty((len(shard.texts), teacher.dim), dtype=np.float32)
    kinds = np.asarray(shard.kinds)
    for kind, encode in (("query", teacher.encode_query), ("document", teacher.encode_document)):
        rows = np.flatnonzero(kinds == kind)
        if len(rows) == 0:
            continue
        encoded = encode([shard.texts[row] for row in rows], batch_size=batch_size, advance=bar.advance)
        if encoded.shape != (len(rows), teacher.dim):
            raise LeafError(
                f"{teacher.name} returned vectors of shape {encoded.shape} for {len(rows)} texts; expected "
                f"({len(rows)}, {teacher.dim})"
            )
        vectors[rows] = encoded
    return vectors


def _check_disk(folder: Path, needed: int) -> None:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise LeafError(
            f"the vectors need about {needed / 1e6:,.0f} MB and {existing} has {free / 1e6:,.0f} MB free; "
            "choose an --out on a larger disk"
        )
