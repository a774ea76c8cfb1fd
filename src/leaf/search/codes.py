"""What an index looks at first: a graph over small codes, or one bit a dimension. Rows found here are scored again.

Measured with 100,000 texts, all-MiniLM-L6-v2's 384 dimensions and two cores: a graph of 32 neighbours that keeps 160
candidates has recall@10 0.992 in 0.6 ms, in int8 as in float16, since what it misses it misses by its shape; int8 takes
two thirds of the memory and a third of the time. Bits need no graph: comparing a query with all of them takes 0.3 ms,
a graph over bits 2 ms for as many candidates.
"""

import functools
import mmap
import os
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaf.compression import Int8
from leaf.encoder import Vectors
from leaf.errors import LeafError
from leaf.files import atomic_path
from leaf.search.store import Settings

Rows = NDArray[np.int64]
#: Neighbours of a document in the graph, candidates kept while building it, and while searching it.
NEIGHBOURS, BUILDING, SEARCHING = 32, 200, 160
#: Candidates for each document asked for: of the graph, and by bits.
GRAPH_CANDIDATES, BIT_CANDIDATES = 4, 60
#: Documents put into a graph at a time.
BLOCK = 16_384
#: Documents of a new graph that are put in by one thread. Of 20,000 random ones 8 to 14 were out of reach without it,
#: and 0 to 4 with it.
FIRST = 1000


@functools.lru_cache(maxsize=4)
def rotation(dim: int) -> Vectors:
    """The orthogonal matrix that vectors are multiplied with before their signs are taken, float32 `[dim, dim]`.

    Always the same one for a width. Models put much of a vector's length into few dimensions, of which a sign keeps
    nothing; turned at random, every dimension carries its share (the idea of RaBitQ, arXiv 2405.12497). With
    all-MiniLM-L6-v2, 0.99 of the ten nearest among 100,000 are within the 400 nearest by bits; unturned, 0.89.
    """
    gaussian = np.random.default_rng(dim).standard_normal((dim, dim))
    orthogonal, upper = np.linalg.qr(gaussian)
    turned: Vectors = (orthogonal * np.sign(np.diag(upper))).astype(np.float32)  # unique, and uniform over rotations
    return turned


def rotated_bits(vectors: Vectors) -> NDArray[np.uint8]:
    """Signs of the turned vectors, eight to a byte, first dimension highest: uint8 `[n, ceil(dim / 8)]`."""
    return np.packbits(vectors @ rotation(vectors.shape[1]) > 0, axis=1)


class Bits:
    """Bits of all documents of a segment, compared with a query one by one.

    They lie as words of 64 bits, one row of the array for each word: `[words, n]` uint64, mapped from the file.
    """

    def __init__(self, path: Path) -> None:
        self._words: NDArray[np.uint64] = np.load(path, mmap_mode="r")

    @staticmethod
    def write(path: Path, blocks: Iterator[Vectors], rows: int, dim: int) -> None:
        """Writes the bits of `rows` vectors, which come in blocks of float32 `[n, dim]`."""
        words = np.empty((-(-dim // 64), rows), dtype=np.uint64)
        start = 0
        for block in blocks:
            words[:, start : start + len(block)] = _words(block)
            start += len(block)
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            np.save(handle, words)

    def candidates(self, vectors: Vectors, count: int, allowed: NDArray[np.bool_] | None) -> list[Rows]:
        """For each of float32 `[n, dim]` about `count` rows, the nearest by bits, among those `allowed`."""
        return [self._nearest(query, count, allowed) for query in _words(vectors).T]

    def _nearest(self, query: NDArray[np.uint64], count: int, allowed: NDArray[np.bool_] | None) -> Rows:
        distance = np.zeros(self._words.shape[1], dtype=np.uint16)
        for word, own in zip(self._words, query, strict=True):
            distance += np.bitwise_count(word ^ own)
        if allowed is not None:
            distance[~allowed] = np.iinfo(np.uint16).max
        # Distances are few and small, so counting them finds the bar faster than any sorting.
        found = np.cumsum(np.bincount(np.minimum(distance, 64 * len(query) + 1), minlength=64 * len(query) + 2)[:-1])
        bar = int(np.searchsorted(found, min(count, found[-1])))
        return np.flatnonzero(distance <= bar).astype(np.int64)


class Graph:
    """An HNSW graph over a segment (usearch), mapped from its file: what a search does not touch is not read.

    The codes in it are int8, scaled by one calibration, or float16; both compared by their dot product.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self._path, self._settings = path, settings
        # Mapped once and now: a writer may remove the file while searches still go on.
        with open(path, "rb") as handle:
            self._mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        #: Views of the file; None for one that is not opened yet.
        self._views: queue.LifoQueue[Any] = queue.LifoQueue()
        for _ in range(os.cpu_count() or 1):
            self._views.put(None)

    @contextmanager
    def _view(self) -> Iterator[Any]:
        """A view of the file for one search: two of them share its pages, and nothing that a search writes to.

        Searches in one view wait for each other, whichever threads they come from.
        """
        view = self._views.get()
        try:
            view = self._open() if view is None else view
            yield view
        finally:
            self._views.put(view)

    def _open(self) -> Any:
        index = _empty(self._settings)
        try:
            index.view(self._mapped)
        except Exception as error:  # usearch raises what its C++ has
            raise LeafError(f"{self._path} is damaged ({error}); index the documents again") from error
        return index

    @staticmethod
    def write(path: Path, blocks: Iterator[Vectors], settings: Settings, advance: Callable[[int], object]) -> None:
        """Writes the graph of vectors that come in blocks of float32 `[n, dim]`, all cores at work."""
        index = _empty(settings)
        row = 0
        for block in blocks:
            codes = _codes(block, settings)
            # Threads that add to a graph of nothing overlook each other, and a document that they lose is never found.
            for start, stop, threads in ((0, 0 if row else FIRST, 1), (0 if row else FIRST, len(block), 0)):
                if len(some := codes[start:stop]):
                    keys = np.arange(row + start, row + start + len(some), dtype=np.uint64)
                    index.add(keys, some, threads=threads)
            row += len(block)
            advance(len(block))
        with atomic_path(path) as temporary:
            index.save(str(temporary))

    def candidates(self, vectors: Vectors, count: int) -> list[Rows]:
        """For each of float32 `[n, dim]` the rows of about `count` near documents, nearest first."""
        if self._settings.similarity == "dot":
            # A query's length changes no ranking, and one longer or shorter than documents would saturate or vanish.
            vectors = vectors / np.maximum(np.abs(vectors).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
            vectors *= np.float32(self._settings.limit or 1)
        codes = _codes(vectors, self._settings)
        with self._view() as view:
            if len(codes) == 1:
                return [view.search(codes[0], count, threads=1).keys.astype(np.int64)]
            found = view.search(codes, count, threads=0)
        return [keys[:n].astype(np.int64) for keys, n in zip(found.keys, found.counts, strict=True)]


def _empty(settings: Settings) -> Any:
    from usearch.index import Index

    dtype = "i8" if settings.precision == "int8" else "f16"
    index = Index(
        ndim=settings.dim, metric="ip", dtype=dtype, connectivity=NEIGHBOURS, expansion_add=BUILDING,
        expansion_search=SEARCHING,
    )  # fmt: skip
    return index


def _codes(vectors: Vectors, settings: Settings) -> NDArray[Any]:
    if settings.precision != "int8":
        return vectors.astype(np.float16)
    assert settings.limit is not None, "an int8 index is calibrated before its first graph"
    return Int8(settings.limit, settings.dim).codes(vectors)


def _words(vectors: Vectors) -> NDArray[np.uint64]:
    """Bits of `[n, dim]` as uint64 `[words, n]`; what fills up the last word is zero, and no difference."""
    packed = rotated_bits(vectors)
    padded = np.zeros((len(packed), -(-packed.shape[1] // 8) * 8), dtype=np.uint8)
    padded[:, : packed.shape[1]] = packed
    return np.ascontiguousarray(padded.view(np.uint64).T)
