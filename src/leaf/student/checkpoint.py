"""Resume points: everything a training run needs to go on as if it had never stopped, in one atomic file."""

import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

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


def save_checkpoint(path: Path, state: TrainState, model: dict[str, Tensor], optimizer: dict[str, Any]) -> None:
    """Writes a resume point; a process killed while it writes leaves the one before."""
    with atomic_path(path) as temporary:
        torch.save({"state": asdict(state), "model": model, "optimizer": optimizer}, temporary)


def load_checkpoint(path: Path) -> tuple[TrainState, dict[str, Tensor], dict[str, Any]] | None:
    """The resume point at `path`, or None where there is none. A damaged one is a `LeafError`."""
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, pickle.UnpicklingError, EOFError) as error:
        raise LeafError(f"{path} is damaged; delete it to train this student from the start") from error
    return TrainState(**saved["state"]), saved["model"], saved["optimizer"]
