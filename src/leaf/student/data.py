"""Texts as token ids and teacher vectors as targets, flat on disk and memory-mapped: RAM stays O(batch).

Texts are tokenised once, however many epochs follow. Token ids lie end to end in one array, `offsets[i]:offsets[i + 1]`
being text i; targets are one `[n, dim]` array in the dtype of the cache. Files are written through `write`, not
through a memory map, so that a full disk is an error and not a crash. Random rows are read through the file as well;
`leaf.pieces` says why.
"""

import json
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import DTypeLike, NDArray

from leaf.ahead import ahead
from leaf.encoder import Role
from leaf.errors import LeafError
from leaf.files import atomic_path, digest, write_json
from leaf.parquet import open_parquet
from leaf.pieces import Pieces, mapping
from leaf.progress import progress
from leaf.texts.shards import Shard, undamaged
from leaf.tokens import ROLES, Tokenizer, Tokens
from leaf.vector_files import read_vectors

#: Texts tokenised in one call; large enough for the tokenizer's own threads to be busy.
TOKENIZE_ROWS = 2048
#: Batches of texts that are read, and that are tokenised, before they are asked for.
AHEAD = 2


@dataclass(frozen=True)
class Examples:
    """One split as the training loop reads it: token ids and targets of text i."""

    tokens: NDArray[Any]
    """Token ids of all texts end to end, uint16 or uint32."""
    offsets: NDArray[np.int64]
    """Where each text begins in `tokens`, and where the last one ends, `[n + 1]`."""
    targets: NDArray[Any]
    """The teacher's vectors, `[n, dim]`, float16 or float32."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens per text, `[n]`: the one thing held in memory for every text."""
        lengths = np.empty(len(self), dtype=np.int32)
        np.subtract(self.offsets[1:], self.offsets[:-1], out=lengths, casting="same_kind")
        return lengths

    def gather(self, rows: NDArray[np.integer]) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """Token ids of the texts `rows` end to end, in the dtype stored, and the tokens of each, `[len(rows)]`."""
        lengths = self.lengths[rows]
        return self._token_pieces.read(self.offsets[rows], lengths), lengths

    def batch_targets(self, rows: NDArray[np.integer]) -> NDArray[Any]:
        """The teacher's vectors of the texts `rows`, `[len(rows), dim]`, a copy in the dtype stored."""
        dim = self.targets.shape[1]
        return self._target_pieces.read(rows.astype(np.int64) * dim, np.full(len(rows), dim)).reshape(-1, dim)

    def release(self) -> None:
        """Gives the memory of all mapped pages touched so far back to the system; they can be read again.

        What `gather` and `batch_targets` touch is the offsets, 8 bytes a text. A pass over `targets` itself touches
        all of it. Does nothing for arrays in memory, or on Windows.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            for array in (self.tokens, self.offsets, self.targets):
                if (mapped := mapping(array)) is not None:
                    mapped.base.madvise(mmap.MADV_DONTNEED)

    @cached_property
    def _token_pieces(self) -> Pieces:
        return Pieces(self.tokens)

    @cached_property
    def _target_pieces(self) -> Pieces:
        return Pieces(self.targets)


def open_examples(folder: Path, targets: Path) -> Examples:
    """The store whose tokens are in `folder` and whose targets are the file `targets`, memory-mapped."""
    header = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    return Examples(
        tokens=np.memmap(folder / "tokens.bin", dtype=header["dtype"], mode="r"),
        offsets=np.load(folder / "offsets.npy", mmap_mode="r"),
        targets=np.load(targets, mmap_mode="r"),
    )


def build_examples(
    texts: Path,
    embeddings: Path,
    shards: Sequence[dict[str, Any]],
    tokenizer: Tokenizer,
    vocabulary_size: int,
    scratch: Path,
) -> Examples:
    """Tokens and targets of `shards`, built in `scratch`, or mapped where they were built before.

    Tokens are built again when the texts or the tokenizer's identity change. Targets are shared between tokenizers.
    Raises `LeafError` for a damaged file, and for files that do not hold the rows that `shards` promises.
    """
    rows = sum(shard["rows"] for shard in shards)
    digests = [shard["digest"] for shard in shards]
    targets_path = scratch / f"targets-{digest(digests)[:12]}.npy"
    folder = scratch / f"tokens-{digest([tokenizer.identity(), digests])[:12]}"
    if not targets_path.exists():
        _write_targets(targets_path, [embeddings / shard["file"] for shard in shards], rows)
    if not (folder / "tokens.json").exists():
        _write_tokens(folder, [texts / shard["file"] for shard in shards], rows, tokenizer, vocabulary_size)
    return open_examples(folder, targets_path)


def choose_rows(
    texts: Path, shards: Sequence[dict[str, Any]], kinds: Sequence[Role], limit: int | None, seed: int
) -> NDArray[np.int64] | None:
    """Rows of the texts of `shards` that are of `kinds`, at most `limit` of them, ascending; None where all are taken.

    The sample is uniform and follows from `seed`; of two limits, the smaller one's is part of the larger one's. Raises
    `LeafError` where no text is left.
    """
    total = sum(shard["rows"] for shard in shards)
    if set(kinds) < set(ROLES):
        rows = np.flatnonzero(np.concatenate([_are_of(kinds, texts / shard["file"]) for shard in shards]))
    elif limit is None or limit >= total:
        return None
    else:
        rows = np.arange(total)
    if len(rows) == 0:
        raise LeafError(
            f"none of the {total} training texts is of train.kinds = {list(kinds)}; name the other kind, or add texts "
            "of this one"
        )
    if limit is not None and limit < len(rows):
        # A third word, because (seed, epoch) are the orders of the epochs.
        generator = np.random.Generator(np.random.PCG64([seed, 0, 1]))
        rows = np.sort(rows[generator.permutation(len(rows))[:limit]])
    return rows


def _write_targets(path: Path, parts: Sequence[Path], rows: int) -> None:
    """Teacher vectors of all parts as one `.npy`: float32 if any part had to be, else float16."""
    first = [next(read_vectors(part)) for part in parts]
    dtype = np.result_type(*(vectors.dtype for vectors in first))
    written = 0
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        _write_header(file, dtype, (rows, first[0].shape[1]))
        for vectors in ahead((vectors for part in parts for vectors in read_vectors(part)), AHEAD):
            file.write(np.ascontiguousarray(vectors, dtype=dtype).data)
            written += len(vectors)
        if written != rows:
            raise LeafError(
                f"the cache of teacher vectors has {written} rows and the texts have {rows}; delete {parts[0].parent} "
                "and run again"
            )


def _write_tokens(folder: Path, shards: Sequence[Path], rows: int, tokenizer: Tokenizer, vocabulary_size: int) -> None:
    dtype = np.dtype(np.uint16 if vocabulary_size <= 1 << 16 else np.uint32)
    # Reading, tokenising and writing each have a thread; the tokenizer spreads its share over all cores.
    batches = ahead((batch for path in shards for batch in _read_texts(path)), AHEAD)
    tokenised = ahead((_tokenize_kinds(batch, tokenizer) for batch in batches), AHEAD)
    written = end = 0
    with (
        progress("tokenising", rows) as bar,
        atomic_path(folder / "tokens.bin") as tokens_path,
        atomic_path(folder / "offsets.npy") as offsets_path,
        open(tokens_path, "wb") as tokens_file,
        open(offsets_path, "wb") as offsets_file,
    ):
        _write_header(offsets_file, np.int64, (rows + 1,))
        offsets_file.write(np.zeros(1, dtype=np.int64).data)
        for tokens in tokenised:
            if (largest := tokens.ids.max(initial=0)) >= vocabulary_size:
                raise LeafError(
                    f"the tokenizer made token id {largest}, but the model embeds {vocabulary_size} tokens only; "
                    "choose a backbone whose tokenizer fits its embeddings"
                )
            tokens_file.write(tokens.ids.astype(dtype).data)
            offsets_file.write((end + np.cumsum(tokens.lengths)).data)
            written += len(tokens.lengths)
            end += len(tokens.ids)
            bar.advance(len(tokens.lengths))
        if written != rows:
            raise LeafError(
                f"{shards[0].parent} holds {written} texts and its manifest names {rows}; delete it and run again"
            )
    # Written last: its presence means that the tokens are complete.
    write_json(folder / "tokens.json", {"dtype": str(dtype), "rows": rows, "tokens": end})


def _read_texts(path: Path) -> Iterator[Shard]:
    """A shard, at most `TOKENIZE_ROWS` rows at a time. A damaged file is a `LeafError`."""
    with undamaged(path), open_parquet(path) as file:
        for batch in file.iter_batches(TOKENIZE_ROWS, columns=["text", "kind"]):
            shard = Shard(batch["text"].to_pylist(), batch["kind"].to_pylist())
            if unknown := set(shard.kinds).difference(ROLES):
                raise KeyError(f"no kind {unknown.pop()!r}")
            yield shard


def _are_of(kinds: Sequence[Role], path: Path) -> NDArray[np.bool_]:
    """Whether each text of a shard is of one of `kinds`, `[n]`. A damaged file is a `LeafError`."""
    with undamaged(path):
        column = pq.read_table(path, columns=["kind"])["kind"].cast(pa.string())
        found: NDArray[np.bool_] = pc.is_in(column, value_set=pa.array(kinds)).to_numpy()
        return found


def _tokenize_kinds(shard: Shard, tokenizer: Tokenizer) -> Tokens:
    """The tokens of `shard` in row order, each text with the prompt of its own kind."""
    kinds = np.array(shard.kinds)
    lengths = np.zeros(len(kinds), dtype=np.int64)
    parts: list[tuple[NDArray[np.int64], Tokens]] = []
    for role in ROLES:
        rows = np.flatnonzero(kinds == role)
        tokens = tokenizer([shard.texts[row] for row in rows], role)
        lengths[rows] = tokens.lengths
        parts.append((rows, tokens))
    ids = np.empty(int(lengths.sum()), dtype=np.uint32)
    starts = np.cumsum(lengths) - lengths
    for rows, tokens in parts:
        # How far each text moves from its place among those of its role to its place among all.
        moves = starts[rows] - (np.cumsum(tokens.lengths) - tokens.lengths)
        ids[np.arange(len(tokens.ids)) + np.repeat(moves, tokens.lengths)] = tokens.ids
    return Tokens(ids, lengths)


def _write_header(file: BinaryIO, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_2_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
