"""One optimizer step: forward, backward, one move of AdamW; on a GPU compiled and replayed as a CUDA graph.

A small student at batch 32 does a few milliseconds of arithmetic a step, and launching its kernels one by one takes
longer than running them. `torch.compile` merges kernels; a CUDA graph launches all that is left at once. A graph has
fixed shapes, so packed batches are filled up to one of a few sizes ("buckets") with dummy texts, which no loss sees.

Nothing in a step waits for the GPU. The loss and the check for non-finite numbers stay there: a step that went wrong
is skipped by the optimizer, and `Step.read` says so when it is next asked.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from leaf.errors import LeafError
from leaf.packed import Features
from leaf.progress import progress
from leaf.recipe import Train
from leaf.student.ablation import AddedLoss
from leaf.student.distributed import World
from leaf.student.loader import Batch, Loader
from leaf.student.loss import leaf_loss
from leaf.student.model import Student
from leaf.student.optimizer import Optimizer

#: Runs before a graph is captured: the first compiles, the others settle the allocator.
WARM_UP = 3


@dataclass(frozen=True)
class Engine:
    """How steps are executed: what changes the speed and, on a GPU, the rounding, but never what is computed."""

    compile: bool = True
    """Merge kernels with `torch.compile`. CUDA only, packed only."""
    graphs: bool = True
    """Replay captured CUDA graphs. CUDA only, packed only."""
    deterministic: bool = False
    """Only kernels that give the same bits every time, so that a resumed run is exact on a GPU too. Slower."""


@dataclass(frozen=True)
class Reading:
    """What the steps since the last reading came to."""

    loss_sum: float
    """Sum of the steps' losses, each before its step."""
    leaf_sum: float
    """The part of `loss_sum` that is Eq. 3: all of it, unless a loss is added."""
    gradient_norm: float
    """Norm of the last step's gradient, before clipping."""


class Step:
    """Runs optimizer steps on a student, in one process or many.

    The optimizer holds what is trained: the student and, with a loss `added` to Eq. 3, the map that belongs to it.
    """

    def __init__(
        self,
        student: Student,
        optimizer: Optimizer,
        loader: Loader,
        settings: Train,
        dtype: torch.dtype,
        device: str,
        world: World,
        added: AddedLoss | None = None,
    ) -> None:
        self._student, self._optimizer, self._loader = student, optimizer, loader
        self._settings, self._dtype, self._device, self._world = settings, dtype, device, world
        self._added = added
        self._loss_of: Callable[..., Tensor] = self._loss
        self._graphs: dict[int, tuple[Batch, Callable[[], object], Tensor]] | None = None
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._batch_loss = torch.zeros((), device=device)
        self._leaf_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._batch_leaf = torch.zeros((), device=device)
        self._norm = torch.zeros((), device=device)
        self._broken = torch.zeros((), dtype=torch.bool, device=device)

    def compile(self) -> None:
        """Compiles the loss; it happens when a shape is first seen."""
        torch.compiler.reset()  # or the shapes of an earlier student would count towards the limit on recompiling
        # Graphs need fixed shapes, and kernels made for one shape are the faster ones.
        self._loss_of = torch.compile(self._loss, dynamic=False)

    def capture(self, examples: Sequence[Batch], graph: "Capture | None" = None) -> None:
        """Captures a graph for the shape of each example batch; batches of no bucket run without one.

        `graph` stands in for CUDA's in tests.
        """
        for parameter in self._optimizer.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self._graphs = {}
        with progress("compiling and capturing", len(examples)) as bar:
            for batch in examples:
                assert batch.bucket is not None
                fixed = batch.to(self._device)
                replay, loss = (graph or _cuda_graph)(functools.partial(self._forward_backward, fixed))
                self._graphs[batch.bucket] = (fixed, replay, loss)
                bar.advance()

    def run(self, slices: Sequence[Batch], lr: float) -> None:
        """One step on the texts of `slices`, one forward and backward pass each; waits for nothing.

        The slices hold equally many texts, and so do those of the other processes: the mean of their gradients is the
        gradient of the mean distance over the whole batch.
        """
        self._zero_gradients()
        self._batch_loss.zero_()
        self._batch_leaf.zero_()
        for batch in slices:
            self._batch_loss += self._replay(batch)
        gradients = self._optimizer.gradients()
        self._world.mean([*gradients, self._batch_loss, self._batch_leaf])
        self._norm = torch.nn.utils.get_total_norm(gradients)
        broken = ~(torch.isfinite(self._norm) & torch.isfinite(self._batch_loss))
        if self._settings.clip_norm is not None:
            # As torch's clip_grad_norm_, which knows no sparse gradients.
            torch._foreach_mul_(gradients, (self._settings.clip_norm / (self._norm + 1e-6)).clamp(max=1.0))
        self._optimizer.step(lr, broken)
        self._broken |= broken
        self._loss_sum += self._batch_loss
        self._leaf_sum += self._batch_leaf

    def read(self) -> Reading:
        """Waits for the device; sums since the last reading. Raises `LeafError` if a step met a non-finite number."""
        if self._broken.item():
            raise LeafError(
                f"the loss or its gradient is not finite (loss {self._batch_loss.item():.4g}, gradient norm "
                f"{self._norm.item():.4g}); training stopped before the optimizer moved. Lower train.lr, set "
                "train.clip_norm = 1.0 or train.compute_dtype = 'float32', then run again"
            )
        loss_sum = self._loss_sum.item()
        reading = Reading(loss_sum, self._leaf_sum.item() if self._added else loss_sum, self._norm.item())
        self._loss_sum.zero_()
        self._leaf_sum.zero_()
        return reading

    def _replay(self, batch: Batch) -> Tensor:
        """Forward and backward pass of one slice, through its graph if it has one; returns its part of the loss."""
        if self._graphs is None or batch.bucket is None:
            return self._forward_backward(batch.to(self._device))
        fixed, replay, loss = self._graphs[batch.bucket]
        fixed.copy_(batch)
        replay()
        return loss

    def _forward_backward(self, batch: Batch) -> Tensor:
        # Compiled code is made for the buckets' shapes: a rare batch that is larger than all of them goes without.
        loss_of = self._loss if batch.bucket is None else self._loss_of
        loss = loss_of(batch.features, self._loader.targets_of(batch)) / self._settings.accumulation
        torch.autograd.backward(loss)
        return loss.detach()

    def _loss(self, features: Features, targets: Tensor) -> Tensor:
        """The loss of a slice: Eq. 3, and the loss that is added to it, if any."""
        if self._added is None:
            # The dummy texts that fill up a bucket come last and have no target.
            return leaf_loss(self._student(features, self._dtype)[: len(targets)], targets)
        vectors, added = self._added(features, self._dtype)
        leaf = leaf_loss(vectors, targets)
        self._batch_leaf += leaf.detach() / self._settings.accumulation
        return leaf + added

    def _zero_gradients(self) -> None:
        # A captured backward pass adds to gradients at fixed addresses; elsewhere it is cheaper to drop them.
        self._optimizer.zero_grad(set_to_none=self._graphs is None)


#: Takes a function on fixed inputs; returns what runs it again, and the tensor that then holds its result.
Capture: TypeAlias = Callable[[Callable[[], Tensor]], tuple[Callable[[], object], Tensor]]


def _cuda_graph(function: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # The loader's thread pins memory meanwhile, which the stricter modes would take for a mistake of this thread.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        loss = function()
    return graph.replay, loss
