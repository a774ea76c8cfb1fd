"""Random rows of an array that is larger than the memory.

They are read through the file: a touched page of a map counts as resident together with its neighbours, which on a
recent Linux are 2 MiB for a row of 768 bytes, so that a few batches of a large corpus would fill the memory.
"""

import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaf.errors import LeafError


class Pieces:
    """Random pieces of an array: of a mapped one read through its file, of any other (and on Windows) copied."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._flat, self._file, self._mapped = array.reshape(-1), -1, mapping(array)
        if self._mapped is not None and hasattr(os, "preadv"):
            self._file = os.open(self._mapped.filename, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)

    def read(self, starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> NDArray[Any]:
        """`flat[start : start + length]` of each, end to end. Raises `LeafError` for a file that became shorter."""
        ends = np.cumsum(lengths, dtype=np.int64)
        out = np.empty(int(ends[-1]) if len(ends) else 0, dtype=self._flat.dtype)
        done = 0
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            piece = out[done:end]
            if self._file < 0:
                piece[:] = self._flat[start : start + end - done]
            # The kernel sees single small reads and fetches the pages of the row alone; the map would fetch the
            # read-ahead window around each, MiBs for a row where the corpus does not fit in memory.
            elif os.preadv(self._file, [piece.data], self._mapped.offset + start * out.itemsize) != piece.nbytes:
                path = Path(self._mapped.filename)
                raise LeafError(f"{path} became shorter while it was read; delete {path.parent} and run again")
            done = end
        return out


def mapping(array: NDArray[Any]) -> Any:
    """`array` if it maps a file, else None; a slice of a map is None too, since it does not know where it begins."""
    base: Any = array.base
    return array if isinstance(array, np.memmap) and isinstance(base, mmap.mmap) else None
