"""What moves the weights: AdamW and, where a rate is set for them, Adagrad for the rows of the words (`train.row_lr`)
and Muon for matrices (`train.matrix_lr`).

A batch meets a few thousand rows of a vocabulary, and AdamW moves all of them. A rare row that a text meets once goes
on for some twenty steps on what is left of the momentum, and as one visit fills a thousandth of the second moment
(β₂ = 0.999), each step is long: Σ 0.1·0.9ᵏ / √0.001 is some 31 learning rates, in every dimension, by the one text.
Adagrad (Duchi, Hazan and Singer, 2011, https://jmlr.org/papers/v12/duchi11a.html) moves only rows that were met, by
lr·g/√(Σ g²): rare ones far, frequent ones ever less. It wants no schedule, and with sparse gradients, on a CPU, a step
costs what its batch met instead of the whole vocabulary (results/rows has the numbers).

Muon (`muon.py`) knows matrices as such: what a batch says rarely moves a layer as far as what every batch says. Its
steps are as long as AdamW's at the same rate (LOG.md has the numbers).
"""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from leaf.recipe import Train
from leaf.student.model import Student
from leaf.student.muon import Muon


class Optimizer:
    """AdamW over the student and `others`; rows and matrices apart where `settings` say so. Waits for no device."""

    def __init__(
        self,
        student: Student,
        others: Iterable[nn.Parameter],
        settings: Train,
        *,
        sparse: bool,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`sparse`: whether gradients of rows may be sparse, which is faster on a CPU and is not all-reduced.

        `dtype` is what Muon's directions are computed in.
        """
        self._trained = [each for each in chain(student.parameters(), others) if each.requires_grad]
        self._rows, self._adagrad, self._muon, dense = student.rows, None, None, self._trained
        if settings.row_lr is not None:
            self._adagrad = torch.optim.Adagrad([self._rows], lr=settings.row_lr)
            dense = [each for each in self._trained if each is not self._rows]
        student.use_sparse_rows(sparse and self._adagrad is not None)
        matrices = _matrices(student, dense) if settings.matrix_lr is not None else []
        if matrices:
            self._faster = (settings.matrix_lr or 0.0) / settings.lr
            self._muon = Muon(matrices, lr=settings.lr, weight_decay=settings.weight_decay, dtype=dtype)
            taken = set(map(id, matrices))
            dense = [each for each in dense if id(each) not in taken]
        self._adamw = (
            torch.optim.AdamW(
                dense,
                lr=settings.lr,
                betas=settings.betas,
                weight_decay=settings.weight_decay,
                fused=True,  # one pass over the weights instead of several, on the CPU too
            )
            if dense  # of a table everything is rows
            else None
        )

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained."""
        return self._trained

    def zero_grad(self, *, set_to_none: bool) -> None:
        """Before a backward pass."""
        for each in self._each():
            each.zero_grad(set_to_none=set_to_none)

    def gradients(self) -> list[Tensor]:
        """The gradients that there are, to be read and changed in place; of a sparse one the values, each row once."""
        for parameter in self._trained:
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
        found = [each.grad for each in self._trained if each.grad is not None]
        return [each.values() if each.is_sparse else each for each in found]

    def step(self, lr: float, broken: Tensor) -> None:
        """One step on what `gradients` gave; none where `broken`, on the device, is true.

        AdamW's is at the rate `lr`, Muon's at as much of `matrix_lr` as that is of `settings.lr`.
        """
        if self._adamw is not None:
            for group in self._adamw.param_groups:
                group["lr"] = lr
            # The same door that torch's GradScaler uses: AdamW's fused kernel leaves weights and moments as they are.
            self._adamw.found_inf = broken.float()  # type: ignore[attr-defined]
            self._adamw.step()
        if self._muon is not None:
            self._muon.param_groups[0]["lr"] = lr * self._faster
            self._muon.step(broken)
        if self._adagrad is not None:
            if (gradient := self._rows.grad) is not None:  # without momentum one of zeros moves nothing
                (gradient.values() if gradient.is_sparse else gradient).masked_fill_(broken, 0.0)
            unchecked = torch.sparse.check_sparse_tensor_invariants(enable=False)  # type: ignore[no-untyped-call]
            with unchecked:  # as it is anyway; torch warns where nobody has said so
                self._adagrad.step()

    def state_dict(self) -> dict[str, Any]:
        """The moments, for a resume point."""
        return {type(each).__name__: each.state_dict() for each in self._each()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the moments of a resume point."""
        for each in self._each():
            each.load_state_dict(state[type(each).__name__])

    def _each(self) -> list[torch.optim.Optimizer]:
        return [each for each in (self._adamw, self._adagrad, self._muon) if each is not None]


def _matrices(student: Student, trained: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Those of `trained` that map vectors to vectors: of layers, head and network; no tables of tokens or positions."""
    tables = {id(each.weight) for each in student.modules() if isinstance(each, nn.Embedding | nn.EmbeddingBag)}
    return [each for each in trained if each.ndim == 2 and id(each) not in tables]
