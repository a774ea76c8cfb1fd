"""Fills the cache of teacher vectors, one text shard at a time; a shard that is there is never computed again.

Several processes, on one machine or many that share the folder, may each take a `share` of the shards.
"""

import functools
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from leaf.ahead import ahead
from leaf.encoder import Advance, Encoder, Vectors
from leaf.errors import LeafError
from leaf.files import digest
from leaf.progress import progress
from leaf.texts.shards import Shard, mean_bytes, read_shard
from leaf.vector_files import Part, check_part, is_normalised, write_part

#: `leaf.planning.lengths.CHARACTERS_PER_TOKEN`, of English: near enough to say which texts a teacher cuts.
BYTES_PER_TOKEN = 4.6


class TeacherEncoder(Encoder, Protocol):
    """An `Encoder` that can say what its vectors depend on."""

    def identity(self) -> dict[str, Any]:
        """Everything that can change a vector, as plain JSON."""


class Identified(Protocol):
    """What a cache key is made of: a teacher, wherever it is."""

    def identity(self) -> dict[str, Any]:
        """Everything that can change a vector, as plain JSON."""


def cache_key(teacher: Identified, storage_dtype: str) -> dict[str, Any]:
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
    *,
    share: tuple[int, int] = (0, 1),
) -> dict[str, Any] | None:
    """Writes one part of vectors per text shard into `folder`; returns the facts for its manifest.

    `shards` are the texts manifest's entries (`file`, `rows`, `digest`). Each part is whole or absent, so a killed run
    goes on with the first missing shard. `share` is (rank, world): this process takes every world-th shard from the
    rank-th on, and gets None as long as parts of others are missing; whoever comes last gets the facts, which are the
    same for all.

    While a shard is encoded the next is read and the last is written. Memory is some four times the vectors of a shard:
    for 65,536 texts of 1024 dimensions 1.1 GB. Raises `LeafError` for parts of another teacher or other texts, for
    vectors that are not finite or have the wrong width, and before starting for a bad `share` or too small a disk.
    """
    rank, world = share
    if not 0 <= rank < world:
        raise LeafError(
            f"rank {rank} of {world} was given, expected 0 to {world - 1 if world > 0 else 'world - 1'}; under Slurm "
            "it is --rank $SLURM_PROCID --world $SLURM_NTASKS"
        )
    parts = held_parts(folder, shards, key)
    own = shards[rank::world]
    missing = [shard for shard in own if shard["file"] not in parts]
    check_disk(folder, missing, teacher.dim, key)
    num_texts, to_do = (sum(shard["rows"] for shard in some) for some in (own, missing))
    contents = ahead((read_shard(texts / shard["file"]) for shard in missing), 1)
    writing: Future[Part] | None = None
    # Leaving the executor waits for it: vectors that are bought are kept, whatever stops the shard after them.
    each = work_per_text(texts, missing, key)
    work = sum(shard["rows"] * each[shard["file"]] for shard in missing)
    with (
        progress("embedding", num_texts, completed=num_texts - to_do, work=work) as bar,
        ThreadPoolExecutor(1) as writer,
    ):
        for shard, content in zip(missing, contents, strict=True):
            advance = functools.partial(bar.advance, each=each[shard["file"]])
            vectors = encode_shard(content, teacher, batch_size, advance)
            if writing is not None:
                writing.result()
            part_key = {**key, "texts": shard["digest"]}
            writing = writer.submit(write_part, folder / shard["file"], vectors, part_key, key["storage_dtype"])
            del vectors  # the writer's alone, so that it is gone when the next ones are there
        if writing is not None:
            writing.result()
    return facts(folder, shards, key, teacher.dim, teacher.similarity)


def encode_shard(shard: Shard, teacher: Encoder, batch_size: int, advance: Advance | None = None) -> Vectors:
    """Teacher vectors of one shard in row order, float32 `[n, dim]`, each text under the prompt of its kind."""
    vectors = np.empty((len(shard.texts), teacher.dim), dtype=np.float32)
    kinds = np.asarray(shard.kinds)
    for kind, encode in (("query", teacher.encode_query), ("document", teacher.encode_document)):
        rows = np.flatnonzero(kinds == kind)
        if len(rows) == 0:
            continue
        encoded = encode([shard.texts[row] for row in rows], batch_size=batch_size, advance=advance)
        if encoded.shape != (len(rows), teacher.dim):
            raise LeafError(
                f"{teacher.name} returned vectors of shape {encoded.shape} for {len(rows)} texts; expected "
                f"({len(rows)}, {teacher.dim})"
            )
        vectors[rows] = encoded
    return vectors


def work_per_text(texts: Path, shards: Sequence[Mapping[str, Any]], key: Mapping[str, Any]) -> dict[str, float]:
    """What a text of each shard takes, by file, in bytes that the teacher reads: for the time left, and no more.

    Shards hold one source after another, and a passage takes a hundred times as long as a word.
    """
    tokens, characters = (key["teacher"].get(limit) for limit in ("max_length", "characters"))
    most = tokens * BYTES_PER_TOKEN if tokens else characters or float("inf")
    return {shard["file"]: min(mean_bytes(texts / shard["file"]), most) for shard in shards}


def held_parts(folder: Path, shards: Sequence[Mapping[str, Any]], key: Mapping[str, Any]) -> dict[str, Part]:
    """The parts that are there, by file. Raises `LeafError` for one of another teacher or of other texts."""
    return {
        shard["file"]: check_part(path, {**key, "texts": shard["digest"]})
        for shard in shards
        if (path := folder / shard["file"]).exists()
    }


def facts(
    folder: Path, shards: Sequence[Mapping[str, Any]], key: Mapping[str, Any], dim: int, similarity: str
) -> dict[str, Any] | None:
    """What the manifest of a complete cache says; None while parts are missing."""
    held = held_parts(folder, shards, key)
    if len(held) < len(shards):
        return None
    parts = [held[shard["file"]] for shard in shards]
    return {
        "parts": [asdict(part) for part in parts],
        "rows": sum(shard["rows"] for shard in shards),
        "dim": dim,
        "similarity": similarity,
        "normalised": is_normalised(parts),
        "min_cosine_float16": min(part.min_cosine for part in parts),
    }


def check_disk(folder: Path, missing: Sequence[Mapping[str, Any]], dim: int, key: Mapping[str, Any]) -> None:
    """Raises `LeafError` unless the disk of `folder` has room for the vectors of the missing shards."""
    needed = sum(shard["rows"] for shard in missing) * dim * (2 if key["storage_dtype"] == "float16" else 4)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise LeafError(
            f"the vectors need about {needed / 1e6:,.0f} MB and {existing} has {free / 1e6:,.0f} MB free; "
            "choose an --out on a larger disk"
        )
