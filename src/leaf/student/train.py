"""The training loop: nothing but `mean ‖y − ŷ‖₂`, AdamW, and a learning rate that falls in cycles (§2.2).

Batches, learning rate and dropout are pure functions of (seed, step). A run that is killed therefore goes on from its
last resume point with exactly the steps it would have made, and on a CPU ends with the very same weights.
"""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from leaf.errors import LeafError
from leaf.hardware import native_bfloat16
from leaf.progress import progress
from leaf.recipe import Train
from leaf.student.batches import Batches
from leaf.student.checkpoint import TrainState, load_checkpoint, save_checkpoint
from leaf.student.data import Examples
from leaf.student.loss import distances, leaf_loss
from leaf.student.model import Student
from leaf.student.ridge import Head, fit_head, random_head
from leaf.student.schedule import learning_rate

#: Texts per forward pass where nothing is learned from them.
EVALUATION_BATCH = 256
#: Up to so many tokens, attention written out trains faster in bfloat16 on a CPU than torch's fused kernel, whose
#: backward pass is slow there: 316 against 225 texts/s (LOG.md, 2026-11-20). Longer texts need the memory.
SHORT = 256


@dataclass(frozen=True)
class Outcome:
    """What training reached. The student holds the weights of the best epoch."""

    error: float
    """Held-out ε of the best epoch: mean ‖y − ŷ‖₂."""
    best_epoch: int
    last_error: float
    """Held-out ε of the last epoch."""
    last_weights: dict[str, Tensor]
    """Weights after the last epoch; the same as the student's where the last epoch was the best."""
    epochs: int
    steps: int
    seconds: float


def train(
    student: Student,
    examples: Examples,
    held_out: Examples,
    settings: Train,
    folder: Path,
    *,
    device: str,
    label: str = "training",
    on_epoch: Callable[[int], object] | None = None,
) -> Outcome:
    """Trains `student` in place and leaves it with the weights of its best epoch by held-out error.

    Resume points and `metrics.jsonl` go to `folder`; called again with the same arguments, it goes on from there.
    `on_epoch(epoch)` is called after every epoch, with the student as it is then. Raises `LeafError` when the loss is
    not finite, before the optimizer has moved.
    """
    batches = Batches(examples.lengths, settings.batch_size, settings.seed, settings.length_window)
    steps_per_epoch, epochs = batches.num_batches, settings.cycles * settings.epochs_per_cycle
    dtype = compute_dtype(settings.compute_dtype, device)
    student.to(device)
    _set_dropout(student, settings.dropout)
    if device == "cpu" and dtype == torch.bfloat16 and examples.lengths.max() <= SHORT:
        student.set_attention("eager")
    optimizer = torch.optim.AdamW(
        student.parameters(),
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,  # one pass over the weights instead of several, on the CPU too
    )
    state = _resume(folder, student, optimizer)
    metrics = _Metrics(folder / "metrics.jsonl", state.metrics_bytes)
    error, last_saved, began = math.nan, time.monotonic(), time.monotonic() - state.seconds
    if state.step == 0:
        error = held_out_error(student, held_out, device)
        metrics.write({"epoch": 0, "step": 0, "held_out_error": error})

    def save() -> None:
        state.metrics_bytes, state.seconds = metrics.size, time.monotonic() - began
        save_checkpoint(folder / "resume.pt", state, student.state_dict(), optimizer.state_dict())

    with progress(label, epochs * steps_per_epoch, completed=state.step) as bar:
        for epoch in range(state.step // steps_per_epoch, epochs):
            order = batches.epoch(epoch)
            student.train(settings.dropout > 0)
            for index in range(state.step - epoch * steps_per_epoch, steps_per_epoch):
                lr = learning_rate(state.step, steps_per_epoch, settings)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                if settings.dropout:
                    torch.manual_seed((settings.seed << 32) + state.step)
                loss = _step(student, optimizer, examples, order[index], settings, device, dtype)
                state.step += 1
                state.loss_sum += loss
                bar.advance(note=f"loss {loss:.4f}" + ("" if math.isnan(error) else f"  held-out ε {error:.4f}"))
                epoch_done = index == steps_per_epoch - 1  # then the resume point comes after the evaluation
                if not epoch_done and time.monotonic() - last_saved > 60 * settings.checkpoint_minutes:
                    save()
                    last_saved = time.monotonic()
            student.eval()
            error = held_out_error(student, held_out, device)
            metrics.write(
                {
                    "epoch": epoch + 1,
                    "step": state.step,
                    "lr": lr,
                    "train_loss": state.loss_sum / steps_per_epoch,
                    "held_out_error": error,
                    "seconds": round(time.monotonic() - began, 3),
                }
            )
            if error < state.best_error:
                state.best_error, state.best_epoch = error, epoch + 1
                state.best_weights = {name: value.cpu().clone() for name, value in student.state_dict().items()}
            state.loss_sum = 0.0
            if on_epoch:
                on_epoch(epoch + 1)
            save()
            last_saved = time.monotonic()

    student.eval().cpu().set_attention("sdpa")
    last_weights = {name: value.clone() for name, value in student.state_dict().items()}
    student.load_state_dict(state.best_weights)
    return Outcome(
        error=state.best_error,
        best_epoch=state.best_epoch,
        last_error=metrics.last["held_out_error"],
        last_weights=last_weights,
        epochs=epochs,
        steps=state.step,
        seconds=state.seconds,
    )


def start_head(student: Student, examples: Examples, num_texts: int, device: str) -> Head | None:
    """Fits the student's head in closed form on `num_texts` texts, spread evenly over the training texts.

    With `num_texts = 0` the head stays random: None, after a table has been widened to the teacher's dimension.
    """
    if num_texts == 0:
        if student.is_table:
            dim, width = examples.targets.shape[1], student.first.embedding_dim
            student.set_head(random_head(dim, width))
        return None
    num_texts = min(num_texts, len(examples))
    rows = np.linspace(0, len(examples) - 1, num_texts).astype(np.int64)
    # Neighbours of like length pad each other little. The fit holds out every tenth row, hence every length alike.
    rows = rows[np.argsort(examples.lengths[rows], kind="stable")]
    student.to(device).eval()
    features = []
    with torch.inference_mode(), progress("fitting the head", num_texts) as bar:
        for start in range(0, num_texts, EVALUATION_BATCH):
            batch = rows[start : start + EVALUATION_BATCH]
            pooled = student.pool(_to(student.collate(examples.texts(batch)), device))
            features.append(pooled["sentence_embedding"].cpu())
            bar.advance(len(batch))
    head = fit_head(
        torch.cat(features),
        torch.from_numpy(examples.targets[rows]),
        bias=student.is_table or student.head.bias is not None,
        normalise=student.normalises,
    )
    student.cpu().set_head(head)
    return head


def held_out_error(student: Student, held_out: Examples, device: str) -> float:
    """Mean `ε = ‖y − ŷ‖₂` over the held-out texts, computed in float32 whatever training computes in (§3.3)."""
    order = held_out.lengths.argsort(kind="stable")
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(order), EVALUATION_BATCH):
            rows = order[start : start + EVALUATION_BATCH]
            vectors = student(_to(student.collate(held_out.texts(rows)), device))
            targets = torch.from_numpy(held_out.targets[rows]).to(device)
            total += distances(vectors, targets).double().sum().item()
    return total / len(held_out)


def compute_dtype(wanted: Literal["auto", "float32", "bfloat16"], device: str) -> torch.dtype:
    """The dtype of forward and backward: for `auto`, bfloat16 where the hardware multiplies it natively."""
    lower = native_bfloat16(device) if wanted == "auto" else wanted == "bfloat16"
    return torch.bfloat16 if lower else torch.float32


def _step(
    student: Student,
    optimizer: torch.optim.Optimizer,
    examples: Examples,
    rows: Any,
    settings: Train,
    device: str,
    dtype: torch.dtype,
) -> float:
    """One optimizer step on the texts `rows`; returns their mean distance before it."""
    targets = torch.from_numpy(examples.targets[rows]).to(device, non_blocking=True)
    loss = leaf_loss(student(_to(student.collate(examples.texts(rows)), device), dtype), targets)
    value = loss.item()
    if not math.isfinite(value):
        raise LeafError(
            f"the loss is {value}; training stopped before the optimizer moved. Lower train.lr, set "
            "train.clip_norm = 1.0 or train.compute_dtype = 'float32', then run again"
        )
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    if settings.clip_norm is not None:
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), settings.clip_norm)
        if not torch.isfinite(norm):
            raise LeafError(
                f"the gradient's norm is {norm.item()}; training stopped before the optimizer moved: lower train.lr"
            )
    optimizer.step()
    return value


def _resume(folder: Path, student: Student, optimizer: torch.optim.Optimizer) -> TrainState:
    resumed = load_checkpoint(folder / "resume.pt")
    if resumed is None:
        return TrainState()
    state, weights, moments = resumed
    student.load_state_dict(weights)
    optimizer.load_state_dict(moments)
    return state


def _set_dropout(student: Student, rate: float) -> None:
    # With rate 0 the student trains in eval mode, which is the same and also silences dropout that is not a module.
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate


def _to(features: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    return {name: value.to(device, non_blocking=True) for name, value in features.items()}


class _Metrics:
    """`metrics.jsonl`: one line an epoch. On resume, lines written after the resume point are cut off."""

    def __init__(self, path: Path, size: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, size)
        self._path = path
        self.size = size
        lines = path.read_text(encoding="utf-8").splitlines()
        self.last: dict[str, Any] = json.loads(lines[-1]) if lines else {}

    def write(self, record: dict[str, Any]) -> None:
        self.last = record
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            self.size = file.tell()
