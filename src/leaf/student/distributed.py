"""Training on several devices: one process each, started by `torchrun --nproc-per-node N -m leaf train RECIPE`.

On several machines that share the run folder, each starts its own with `--nnodes`, `--node-rank`, `--rdzv-endpoint`.

A batch stays the recipe's `batch_size` texts whatever the number of processes: each takes its share of the rows, and
the mean of the gradients is the gradient of the batch. Gradients travel as one buffer, once a step.
"""

import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from leaf.errors import LeafError


@dataclass(frozen=True)
class World:
    """This process among all of them; the default is a process alone."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to people."""
        return self.rank == 0

    def wait(self) -> None:
        """Returns when every process has come here."""
        if self.size > 1:
            dist.barrier()

    def check_shared(self, folder: Path, device: str) -> None:
        """Returns when every process has come here; a `LeafError` in all of them unless all see the same `folder`."""
        if self.size == 1:
            return
        token = torch.tensor(secrets.randbits(62), device=device)
        dist.broadcast(token, src=0)
        mark = folder / f".seen-{token.item():x}"
        if self.is_main:
            mark.touch()
        self.wait()
        missing = self.any(not mark.exists(), device)
        if self.is_main:
            mark.unlink()
        if missing:
            raise LeafError(
                f"{folder} is not the same folder for all {self.size} processes; machines that train together need an "
                "--out that they share, such as one on NFS"
            )

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Overwrites tensors with the main process's."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def mean(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors by their mean over all processes, in place."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        for tensor, mean in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def any(self, flag: bool, device: str) -> bool:
        """Whether `flag` is true in any process; all of them must ask."""
        if self.size == 1:
            return flag
        value = torch.tensor(float(flag), device=device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())


def launched_processes() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def join(device: str) -> Iterator[tuple[World, str]]:
    """Meets the other processes that torchrun started; yields this one's `World` and its own device."""
    if launched_processes() == 1:
        yield World(), device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
