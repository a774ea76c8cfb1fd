"""Which texts make up which batch: a pure function of (seed, epoch), so a resumed run sees what it would have seen.

And into how few shapes packed batches can be cut, for kernels and graphs that need a fixed one.
"""

import numpy as np
from numpy.typing import NDArray

from leaf.errors import LeafError


class Batches:
    """The batches of every epoch over texts of so many tokens, `lengths` `[n]`, or over `rows` of them alone.

    Each epoch is one global shuffle. Batches hold exactly `batch_size` texts; the last few texts of a shuffle that do
    not fill a batch sit that epoch out. With `window > 1`, texts are sorted by length within each run of `window`
    batches, which are then put in random order again: batches of like lengths, hence little padding, and still a fresh
    random partition every epoch.
    """

    def __init__(
        self,
        lengths: NDArray[np.integer],
        batch_size: int,
        seed: int,
        window: int = 1,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        lengths = lengths if rows is None else lengths[rows]
        if len(lengths) < batch_size:
            raise LeafError(
                f"{len(lengths)} training texts do not fill one batch of {batch_size}; lower train.batch_size"
            )
        self._lengths, self._batch_size, self._seed, self._window = lengths, batch_size, seed, window
        self._rows = rows
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
        if self._rows is not None:
            order = self._rows[order]
        return order.reshape(self.num_batches, self._batch_size)


def token_buckets(totals: NDArray[np.integer], count: int, multiple: int = 64) -> tuple[int, ...]:
    """The at most `count` batch sizes, ascending, that waste the fewest tokens when every batch is filled up to one.

    `totals` are the tokens of sample batches; the largest size holds the largest of them. Sizes are multiples of
    `multiple`, which matrix kernels like. Exact: with few distinct sizes, the best cut is found by dynamic programming.
    """
    sizes, numbers = np.unique(-(-totals // multiple) * multiple, return_counts=True)
    # waste[i, j]: tokens that batches of sizes i to j need beyond their own when all are filled up to size j.
    cumulative = np.concatenate([[0], np.cumsum(numbers)])
    weighted = np.concatenate([[0], np.cumsum(numbers * sizes)])
    first, last = np.arange(len(sizes))[:, None], np.arange(len(sizes))[None]
    waste = sizes * (cumulative[last + 1] - cumulative[first]) - (weighted[last + 1] - weighted[first])
    waste = np.where(first <= last, waste.astype(float), np.inf)
    best, cuts = waste[0], []  # best[j]: least waste of sizes 0 to j with as many buckets as passes so far
    for _ in range(count - 1):
        total = np.concatenate([[0.0], best])[:-1, None] + waste  # the last bucket holds sizes i to j
        cuts.append(total.argmin(axis=0))
        best = total.min(axis=0)
    chosen, index = [], len(sizes) - 1
    for cut in reversed(cuts):
        chosen.append(int(sizes[index]))
        index = int(cut[index]) - 1
        if index < 0:
            break
    else:
        chosen.append(int(sizes[index]))
    return tuple(reversed(chosen))
