"""Resume points: everything a training run needs to go on as if it had never stopped, in one atomic file.

Training waits only for the copy to host memory; a thread writes the file.
"""

import pickle
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from leaf.errors import LeafError
from leaf.files import atomic_path


@dataclass
class TrainState:
    """Where training stands. Batches, learning rate and dropout follow from `step`, so no generator is saved."""

    step: int = 0
    """Optimizer steps done."""
    loss_sum: float = 0.0
    """Sum of batch losses since the last evaluation."""
    metrics_bytes: int = 0
    """Length of the metrics file: what a killed run wrote after this point is cut off."""
    seconds: float = 0.0
    """Training time so far, over all runs."""
    best_error: float = float("inf")
    """Least held-out error of any epoch."""
    best_epoch: int = -1
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    mapping: dict[str, Tensor] = field(default_factory=dict)
    """The map that a loss added to Eq. 3 trains along (App. B): of no student, hence apart from its weights."""


class CheckpointWriter:
    """Writes resume points to `path`, one at a time; leaving the `with` block waits for the last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()

    def save(self, state: TrainState, model: dict[str, Tensor], optimizer: dict[str, Any]) -> None:
        """Copies everything to host memory and returns; a process killed meanwhile leaves the resume point before.

        Waits for the one before it, and raises what went wrong there.
        """
        self.wait()
        saved = _copy({"state": asdict(state), "model": model, "optimizer": optimizer})
        self._writing = self._thread.submit(self._write, saved)

    def wait(self) -> None:
        """Returns when the last resume point is on disk; raises what went wrong."""
        if self._writing is not None:
            self._writing.result()

    def _write(self, saved: dict[str, Any]) -> None:
        with atomic_path(self._path) as temporary:
            torch.save(saved, temporary)


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu() if value.is_cuda else value.detach().clone()
    if isinstance(value, dict):
        return {key: _copy(each) for key, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list) else value


def load_checkpoint(path: Path) -> tuple[TrainState, dict[str, Tensor], dict[str, Any]] | None:
    """The resume point at `path`, or None where there is none. A damaged one is a `LeafError`."""
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, pickle.UnpicklingError, EOFError) as error:
        raise LeafError(f"{path} is damaged; delete it to train this student from the start") from error
    return TrainState(**saved["state"]), saved["model"], saved["optimizer"]
