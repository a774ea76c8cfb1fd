"""Texts as token ids and teacher vectors as targets, flat on disk and memory-mapped: RAM stays O(batch).

Texts are tokenised once, however many epochs follow. Token ids lie end to end in one array, `offsets[i]:offsets[i + 1]`
being text i; targets are one `[n, dim]` array in the dtype of the cache. Files are written through `write`, not
through a memory map, so that a full disk is an error and not a crash.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaf.encoder import Role
from leaf.errors import LeafError
from leaf.files import atomic_path, digest, write_json
from leaf.progress import progress
from leaf.teacher.cache import read_vectors
from leaf.texts.shards import read_shard

#: Texts tokenised in one call; large enough for the tokenizer's own threads to be busy.
TOKENIZE_ROWS = 2048
#: (texts, role) → token ids of each, prompt and special tokens included, cut at the student's maximum length.
Tokenize = Callable[[Sequence[str], Role], list[list[int]]]


@dataclass(frozen=True)
class Examples:
    """One split as the training loop reads it: token ids and targets of text i."""

    tokens: NDArray[Any]
    offsets: NDArray[np.int64]
    targets: NDArray[Any]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per text, `[n]`."""
        return np.diff(self.offsets)

    def texts(self, indices: Iterable[int]) -> list[NDArray[Any]]:
        """The token ids of some texts."""
        return [self.tokens[self.offsets[index] : self.offsets[index + 1]] for index in indices]


def build_examples(
    texts: Path,
    embeddings: Path,
    shards: Sequence[dict[str, Any]],
    tokenize: Tokenize,
    vocabulary_size: int,
    scratch: Path,
    key: dict[str, Any],
) -> Examples:
    """Tokens and targets of `shards`, built in `scratch`, or mapped where `key` shows they were built before.

    `key` is what the tokens depend on (tokenizer, prompts, length, texts). Targets are shared between keys.
    """
    rows = sum(shard["rows"] for shard in shards)
    targets_path = scratch / f"targets-{digest([shard['digest'] for shard in shards])[:12]}.npy"
    folder = scratch / f"tokens-{digest([key, [shard['digest'] for shard in shards]])[:12]}"
    if not targets_path.exists():
        _write_targets(targets_path, [embeddings / shard["file"] for shard in shards], rows)
    if not (folder / "tokens.json").exists():
        _write_tokens(folder, [texts / shard["file"] for shard in shards], rows, tokenize, vocabulary_size)
    header = json.loads((folder / "tokens.json").read_text())
    return Examples(
        tokens=np.memmap(folder / "tokens.bin", dtype=header["dtype"], mode="r"),
        offsets=np.load(folder / "offsets.npy"),
        targets=np.load(targets_path, mmap_mode="r"),
    )


def _write_targets(path: Path, parts: Sequence[Path], rows: int) -> None:
    """Teacher vectors of all parts as one `.npy`: float32 if any part had to be, else float16."""
    first = [next(read_vectors(part)) for part in parts]
    dtype = np.result_type(*(vectors.dtype for vectors in first))
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (rows, first[0].shape[1]),
    }
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_2_0(file, header)
        written = 0
        for part in parts:
            for vectors in read_vectors(part):
                file.write(np.ascontiguousarray(vectors, dtype=dtype).data)
                written += len(vectors)
    if written != rows:
        raise LeafError(
            f"the cache of teacher vectors has {written} rows and the texts have {rows}; delete {parts[0].parent} and "
            "run again"
        )


def _write_tokens(folder: Path, shards: Sequence[Path], rows: int, tokenize: Tokenize, vocabulary_size: int) -> None:
    dtype = np.dtype(np.uint16 if vocabulary_size <= 1 << 16 else np.uint32)
    lengths = np.empty(rows, dtype=np.int64)
    done = 0
    with (
        progress("tokenising", rows) as bar,
        atomic_path(folder / "tokens.bin") as temporary,
        open(temporary, "wb") as file,
    ):
        for path in shards:
            shard = read_shard(path)
            for start in range(0, len(shard.texts), TOKENIZE_ROWS):
                ids = _tokenize_kinds(
                    shard.texts[start : start + TOKENIZE_ROWS],
                    shard.kinds[start : start + TOKENIZE_ROWS],
                    tokenize,
                )
                lengths[done : done + len(ids)] = [len(each) for each in ids]
                file.write(np.fromiter((token for each in ids for token in each), dtype=dtype).data)
                done += len(ids)
                bar.advance(len(ids))
    with atomic_path(folder / "offsets.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, np.concatenate([[0], np.cumsum(lengths)]))
    # Written last: its presence means that the tokens are complete.
    write_json(folder / "tokens.json", {"dtype": str(dtype), "rows": rows, "tokens": int(lengths.sum())})


def _tokenize_kinds(texts: Sequence[str], kinds: Sequence[str], tokenize: Tokenize) -> list[list[int]]:
    ids: list[list[int]] = [[]] * len(texts)
    roles: tuple[Role, ...] = ("query", "document")
    for role in roles:
        rows = [row for row, kind in enumerate(kinds) if kind == role]
        for row, tokens in zip(rows, tokenize([texts[row] for row in rows], role), strict=True):
            ids[row] = tokens
    return ids
