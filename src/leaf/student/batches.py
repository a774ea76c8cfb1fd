"""Which texts make up which batch: a pure function of (seed, epoch), so a resumed run sees what it would have seen."""

import numpy as np
from numpy.typing import NDArray

from leaf.errors import LeafError


class Batches:
    """The batches of every epoch over `len(lengths)` texts.

    Each epoch is one global shuffle. Batches hold exactly `batch_size` texts; the last few texts of a shuffle that do
    not fill a batch sit that epoch out. With `window > 1`, texts are sorted by length within each run of `window`
    batches, which are then put in random order again: batches of like lengths, hence little padding, and still a fresh
    random partition every epoch.
    """

    def __init__(self, lengths: NDArray[np.integer], batch_size: int, seed: int, window: int = 1) -> None:
        if len(lengths) < batch_size:
            raise LeafError(
                f"{len(lengths)} training texts do not fill one batch of {batch_size}; lower train.batch_size"
            )
        self._lengths, self._batch_size, self._seed, self._window = lengths, batch_size, seed, window
        self.num_batches = len(lengths) // batch_size

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Text indices of one epoch, `[num_batches, batch_size]`."""
        generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
        order = generator.permutation(len(self._lengths))[: self.num_batches * self._batch_size]
        if self._window > 1:
            size = self._window * self._batch_size
            for start in range(0, len(order), size):
                chunk = order[start : start + size]
                # Stable, so that equal lengths keep the order of the shuffle on every platform.
                chunk = chunk[np.argsort(self._lengths[chunk], kind="stable")].reshape(-1, self._batch_size)
                order[start : start + size] = chunk[generator.permutation(len(chunk))].ravel()
        return order.reshape(self.num_batches, self._batch_size)
