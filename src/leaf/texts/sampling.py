"""A uniform sample of a stream of rows whose number nobody knows: exact in size, in one pass, in O(sample) memory.

Every row has a ticket, 64 bits that follow from the seed, the source's name and the row's number; the lowest tickets
are in. So a sample is the same whenever it is drawn again, and a smaller one is part of a larger one.
"""

import hashlib

import numpy as np
import numpy.typing as npt

Tickets = npt.NDArray[np.uint64]

#: The increment and the multipliers of SplitMix64 (Steele, Lea and Flood 2014).
_GAMMA, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
#: The ticket that no row is above.
_ALL = np.uint64(2**64 - 1)


def tickets(seed: int, name: str, first: int, count: int) -> Tickets:
    """The tickets of rows `first` … `first + count - 1`, `[count]`. No two rows of one source have the same one."""
    start = np.uint64(keyed_hash(name, seed_key(seed)))
    mixed = start + np.arange(first + 1, first + count + 1, dtype=np.uint64) * _GAMMA
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), np.uint64)


class Sample:
    """The `size` lowest of the tickets that it was offered so far; None takes them all."""

    #: Tickets beyond `size` that are held before the highest are dropped, at least.
    SLACK = 8192

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._held: list[Tickets] = []
        self._num_held = 0
        self._bar = _ALL

    def offer(self, offered: Tickets) -> npt.NDArray[np.int64]:
        """The positions of those that may be in the sample. The others are not, whatever comes behind them."""
        positions = np.flatnonzero(offered <= self._bar)
        if self._size is None:
            return positions
        self._held.append(offered[positions])
        self._num_held += len(positions)
        if self._num_held > self._size + max(self._size // 4, self.SLACK):
            self._drop()
        return positions

    def bar(self) -> np.uint64:
        """The highest ticket in the sample: of the rows offered so far, those up to it are the sample."""
        if self._size is not None and self._num_held > self._size:
            self._drop()
        return self._bar

    def _drop(self) -> None:
        assert self._size is not None
        held = np.concatenate(self._held)
        held = np.partition(held, self._size - 1)[: self._size]
        self._held, self._num_held, self._bar = [held], self._size, held.max()


def keyed_hash(text: str, key: bytes) -> int:
    """64 bits of `text` under a key: BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "little")


def seed_key(seed: int) -> bytes:
    """The key that a seed stands for."""
    return seed.to_bytes(16, "little", signed=True)
