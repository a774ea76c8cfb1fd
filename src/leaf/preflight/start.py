"""A student before training: the backbone as it comes, under a head in closed form (`leaf.student.ridge`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leaf.encoder import Advance, Role, Vectors
from leaf.errors import LeafError
from leaf.packed import to_device, token_batches
from leaf.student.data import Examples
from leaf.student.model import Student
from leaf.student.ridge import Head, fit_head
from leaf.student.train import EVALUATION_TOKENS
from leaf.tokens import ROLES

#: A fit on fewer texts says nothing.
MIN_FIT = 20


@dataclass(frozen=True)
class Start:
    """What a student can do before training."""

    student: Student
    head: Head
    error: float
    """Mean ε on texts that the head was not fitted on."""
    half_error: float
    """The same for a head fitted on half of the texts: how much more texts would still help."""
    num_fitted: int
    checked: Vectors
    """Vectors of the texts that `error` is over, `[n, d]`."""
    device: str

    @property
    def width(self) -> int:
        """Dimensions that the head reads, d'."""
        return int(self.head.weight.shape[1])

    def encode(self, texts: Sequence[str], role: Role, advance: Advance | None = None) -> Vectors:
        """Vectors of texts in one role, float32 `[n, d]`."""
        return _lifted(pooled(self.student, texts, role, self.device, advance), self.head, self.student.normalises)


def fit_start(
    student: Student,
    texts: Sequence[str],
    kinds: Sequence[Role],
    vectors: Vectors,
    fitted: NDArray[np.int64],
    checked: NDArray[np.int64],
    device: str,
    advance: Advance | None = None,
) -> Start:
    """The start of `student` on a sample of texts with the teacher's `vectors` `[n, d]`.

    The head is fitted on the rows `fitted` and checked on the rows `checked`, which have none in common.
    """
    if len(fitted) < MIN_FIT:
        raise LeafError(
            f"{len(fitted)} texts of the sample are of the kinds that are trained on, too few to fit a head; probe more"
        )
    student.to(device).eval()
    student.use_packing(device == "cpu")

    def pool(some: Sequence[str], role: Role) -> Tensor:
        return pooled(student, some, role, device, advance)

    features = by_kind(pool, texts, kinds)
    targets = torch.from_numpy(np.asarray(vectors, np.float32))
    bias = student.is_table or student.head.bias is not None

    def fit(rows: NDArray[np.int64]) -> tuple[Head, Vectors, float]:
        head = fit_head(features[rows], targets[rows], bias=bias, normalise=student.normalises)
        found = _lifted(features[checked], head, student.normalises)
        return head, found, float(np.linalg.norm(found - vectors[checked], axis=1).mean())

    head, found, error = fit(fitted)
    return Start(student, head, error, fit(fitted[::2])[2], len(fitted), found, device)


def by_kind(encode: Callable[[list[str], Role], Tensor], texts: Sequence[str], kinds: Sequence[Role]) -> Tensor:
    """What `encode` makes of texts of one kind, `[n, width]`, put back into the order of `texts`."""
    parts = {role: [row for row, kind in enumerate(kinds) if kind == role] for role in ROLES}
    made = {role: encode([texts[row] for row in rows], role) for role, rows in parts.items() if rows}
    together = torch.cat(list(made.values()))
    rows = torch.tensor([row for role in made for row in parts[role]])
    return torch.empty_like(together).index_copy_(0, rows, together)


def pooled(student: Student, texts: Sequence[str], role: Role, device: str, advance: Advance | None = None) -> Tensor:
    """Pooled states of texts in one role, float32 `[n, d']`."""
    tokens = student.tokenizer(texts, role)
    offsets = np.concatenate([[0], np.cumsum(tokens.lengths)])
    examples = Examples(tokens.ids, offsets, np.empty((len(texts), 0), np.float32))
    order = np.argsort(tokens.lengths, kind="stable")  # neighbours of like length pad each other little
    parts = []
    with torch.inference_mode():
        for rows in token_batches(tokens.lengths, order, EVALUATION_TOKENS):
            parts.append(student.pool(to_device(student.collate(*examples.gather(rows)), device)).cpu())
            if advance:
                advance(len(rows))
    states = torch.cat(parts)
    return torch.empty_like(states).index_copy_(0, torch.from_numpy(order), states)


def _lifted(states: Tensor, head: Head, normalise: bool) -> Vectors:
    vectors = states @ head.weight.T + head.bias
    found: Vectors = (torch.nn.functional.normalize(vectors, dim=-1) if normalise else vectors).numpy()
    return found
