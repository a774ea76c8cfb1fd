"""Batches made ready ahead of the step, in a thread of their own: gathered, packed and, for a GPU, in pinned memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leaf.packed import Features, to_device
from leaf.student.data import Examples
from leaf.student.model import Student

#: Batches between two times that the store gives touched pages back.
RELEASE_EVERY = 256
#: Share of a GPU's free memory that the targets may take to live there instead of travelling with every batch.
RESIDENT_SHARE = 0.4
#: Rows copied to the GPU at a time.
COPY_ROWS = 1 << 16


@dataclass(frozen=True)
class Batch:
    """Some texts and what the teacher made of them."""

    features: Features
    targets: Tensor
    """`[n, d]` in the cache's dtype or, where all targets live on the GPU, the rows `[n]` to take there."""
    num_tokens: int
    """Tokens of the texts."""
    bucket: int | None = None
    """Tokens of the bucket that this batch was filled up to; None for a batch of a shape of its own."""

    @property
    def num_texts(self) -> int:
        """Texts in this batch."""
        return len(self.targets)

    @property
    def num_computed(self) -> int:
        """Tokens that the model computes on, padding included."""
        return int(self.features["input_ids"].numel())

    def to(self, device: str) -> "Batch":
        """The batch on `device`; copies from pinned memory do not wait."""
        return replace(
            self, features=to_device(self.features, device), targets=self.targets.to(device, non_blocking=True)
        )

    def copy_(self, other: "Batch") -> None:
        """Overwrites this batch's tensors with those of a batch of the same shape."""
        for name, value in self.features.items():
            if isinstance(value, Tensor):
                value.copy_(other.features[name], non_blocking=True)
        self.targets.copy_(other.targets, non_blocking=True)


class Loader:
    """Makes the batches of one split for one student.

    With `buckets` (token counts, ascending), packed batches are filled up to the least bucket that holds them, with
    dummy texts at the end.
    """

    def __init__(self, student: Student, examples: Examples, device: str, buckets: Sequence[int] = ()) -> None:
        self._student, self._examples, self._buckets = student, examples, buckets
        self._longest = int(examples.lengths.max())
        self._on_gpu = device.startswith("cuda")
        self._resident = _resident(examples, device) if self._on_gpu else None
        self._made = 0

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """The texts `rows`, shortest first: the order within a batch is free, and equal lengths are best together."""
        rows = rows[np.argsort(self._examples.lengths[rows], kind="stable")]
        ids, lengths = self._examples.gather(rows)
        num_tokens, bucket = len(ids), self.bucket(len(ids))
        if bucket is not None:
            dummies = self._dummies(bucket, bucket - num_tokens)
            ids = np.concatenate([ids, np.zeros(bucket - num_tokens, dtype=ids.dtype)])
            lengths = np.concatenate([lengths, dummies])
        features = self._student.collate(ids, lengths)
        if self._on_gpu and "runs" in features:
            # Facts that compiled code would be made anew for. Flash attention asks for a bound and reads no runs.
            features = {**features, "max_length": self._longest, "runs": ()}
        targets = torch.from_numpy(rows if self._resident is not None else self._examples.batch_targets(rows))
        if self._on_gpu:
            features = {
                name: each.pin_memory() if isinstance(each, Tensor) else each for name, each in features.items()
            }
            targets = targets.pin_memory()
        self._made += 1
        if self._made % RELEASE_EVERY == 0:
            self._examples.release()
        return Batch(features, targets, num_tokens, bucket)

    def targets_of(self, batch: Batch) -> Tensor:
        """The teacher's vectors `[n, d]` of a batch that is on the device."""
        return batch.targets if self._resident is None else self._resident.index_select(0, batch.targets)

    def bucket(self, num_tokens: int) -> int | None:
        """The bucket of a batch of so many tokens; None for a batch that is larger than all, or padded."""
        if not self._student.packed:
            return None
        # The dummy texts have at least one token each.
        return next((size for size in self._buckets if num_tokens + self._num_dummies(size) <= size), None)

    def _num_dummies(self, bucket: int) -> int:
        """Dummy texts of a bucket, always as many: enough that none is longer than the longest text."""
        smaller = max((size for size in self._buckets if size < bucket), default=0)
        return -(-(bucket - smaller) // self._longest) + 1

    def _dummies(self, bucket: int, gap: int) -> NDArray[np.int64]:
        """Lengths of the dummy texts that fill `gap` tokens, as equal as can be."""
        count = self._num_dummies(bucket)
        return gap // count + (np.arange(count) < gap % count)


def _resident(examples: Examples, device: str) -> Tensor | None:
    free, _ = torch.cuda.mem_get_info(device)
    targets: NDArray[Any] = examples.targets
    if targets.nbytes > RESIDENT_SHARE * free:
        return None
    resident = torch.empty(targets.shape, dtype=torch.from_numpy(targets[:1].copy()).dtype, device=device)
    for start in range(0, len(targets), COPY_ROWS):
        resident[start : start + COPY_ROWS] = torch.from_numpy(np.ascontiguousarray(targets[start : start + COPY_ROWS]))
        examples.release()
    return resident
