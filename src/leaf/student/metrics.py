"""What training reports while it runs: `metrics.jsonl` always, TensorBoard and trackio where the recipe names them.

The file holds one JSON object a line, of two kinds. A line of an evaluation has `held_out_error`: one from before
training, one after every epoch and, with `train.evaluations`, some within it, whose `epoch` is a fraction. The lines
between are progress. `loss` and `train_loss` are of the whole loss; where one was added to Eq. 3, `leaf_loss` is its
part:

    {"epoch": 1, "step": 500, "lr": 1e-4, "train_loss": 0.41, "held_out_error": 0.43, "seconds": 60.2}
    {"step": 520, "lr": 1e-4, "loss": 0.40, "texts_per_second": 1043.2, "padding": 0.04, …}
    {"epoch": 1.5, "step": 750, "held_out_error": 0.42, "seconds": 91.0}

Needs no torch, so that a report can read the file.
"""

import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, Self

from leaf.errors import LeafError

#: The project of trackio that all runs are in: `trackio show --project leaf`.
PROJECT = "leaf"


class Tracker(Protocol):
    """Draws curves elsewhere. `metrics.jsonl` stays the record: what a tracker loses, it loses alone."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Takes the values of one step."""

    def close(self) -> None:
        """Writes what is still waiting."""


class Metrics:
    """`metrics.jsonl` at `path`, cut to `size` bytes: what a killed run wrote after its resume point goes.

    With `path` None nothing is written: so in every process of a distributed training but the first. Raises
    `LeafError` where the file is shorter than `size` or damaged. Leaving the `with` block closes the trackers.
    """

    def __init__(self, path: Path | None, size: int = 0, trackers: Sequence[Tracker] = ()) -> None:
        self._path, self._trackers = path, trackers
        self.size = size
        """Bytes written so far: what a resume point keeps, to be given back as `size`."""
        self.last_error = math.nan
        """The held-out ε written last; NaN before the first."""
        if path is not None:
            _cut(path, size)
            self.last_error = (held_out_curve(path) or [(0, math.nan)])[-1][1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, record: dict[str, Any]) -> None:
        """Appends one line, then hands its numbers to every tracker, at `record["step"]`."""
        self.last_error = record.get("held_out_error", self.last_error)
        if self._path is not None:
            with open(self._path, "ab") as file:
                file.write(json.dumps(record).encode() + b"\n")
                self.size = file.tell()
        values = {name: value for name, value in record.items() if name != "step" and isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.log(values, record["step"])

    def close(self) -> None:
        """Closes every tracker; the file is complete after each line."""
        for tracker in self._trackers:
            tracker.close()


def _cut(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    if (found := path.stat().st_size) < size:  # truncating would fill it up with zeros
        raise LeafError(
            f"{path} has {found} bytes and its resume point expects {size}; delete {path.parent} and train again"
        )
    os.truncate(path, size)


def held_out_errors(path: Path) -> list[float]:
    """Held-out ε by epoch, the first from before training; all other lines are passed over. No file, no values."""
    return [error for epoch, _, error in _evaluations(path) if epoch.is_integer()]


def held_out_curve(path: Path) -> list[tuple[int, float]]:
    """(optimizer steps done, held-out ε) of every evaluation, also within an epoch (Fig. 10). No file, no values."""
    return [(step, error) for _, step, error in _evaluations(path)]


def _evaluations(path: Path) -> list[tuple[float, int, float]]:
    """(epoch, step, held-out ε) of every evaluation, in the order written."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        records = [record for line in lines if "held_out_error" in (record := json.loads(line))]
        return [
            (float(record["epoch"]), int(record.get("step", 0)), float(record["held_out_error"])) for record in records
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise LeafError(f"{path} is damaged ({error}); delete {path.parent} and train again") from error


def open_trackers(
    names: Sequence[str], folder: Path, run: str, config: Mapping[str, Any], step: int = 0
) -> list[Tracker]:
    """The trackers called `names`, of a training that starts at `step`, or goes on from there.

    TensorBoard's events go to `folder / "tensorboard"`. `run` and `config` are what trackio shows; a resumed training
    goes on in the latest run of that name, so no other training should have it.
    """
    check_trackers(names)  # all of them, before the first writes anything
    return [
        TensorBoardTracker(folder / name, step) if name == "tensorboard" else TrackioTracker(PROJECT, run, config, step)
        for name in names
    ]


def check_trackers(names: Sequence[str]) -> None:
    """Raises `LeafError` where a tracker's package is missing, which is better known before hours of other work."""
    for name in names:
        _imported(name)


class TensorBoardTracker:
    """Event files in `folder`, for `tensorboard --logdir`. What came after `step`, the resume point, is not shown."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        _imported("tensorboard")
        # The resume point has seen its own step; a training from the start writes step 0 again.
        purge = step + 1 if step else 0
        self._writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(folder, purge_step=purge)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Writes the values to disk at once: a resumed training does not repeat what came before its resume point."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        self._writer.close()


class TrackioTracker:
    """A run in trackio's local database, under `TRACKIO_DIR` or the Hugging Face cache; no network is needed.

    From `step` 0 the run is a new one. Otherwise it is the latest of that name, and since trackio cannot drop what was
    logged after the resume point, those steps are in it twice.
    """

    def __init__(self, project: str, run: str, config: Mapping[str, Any], step: int = 0) -> None:
        self._trackio: Any = _imported("trackio")
        with redirect_stdout(sys.stderr):  # where trackio greets; our stdout holds results alone
            self._trackio.init(
                project=project,
                name=run,
                config=dict(config),
                resume="allow" if step else "never",
                embed=False,  # no server in a notebook
                auto_log_gpu=False,  # no threads that watch the hardware
                auto_log_cpu=False,
            )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Queues the values; a thread of trackio writes them within a second."""
        self._trackio.log(dict(values), step=step)

    def close(self) -> None:
        """Waits until the values are in the database."""
        with redirect_stdout(sys.stderr):
            self._trackio.finish()


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise LeafError(f"train.trackers names '{name}', which is not installed; pip install 'leaf[track]'") from error


class Rates:
    """Texts, tokens and padding of the steps since the last reading."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start()

    def add(self, texts: int, tokens: int, padded_tokens: int) -> None:
        """Counts one step; `padded_tokens` are those the model computed, padding included."""
        self._texts += texts
        self._tokens += tokens
        self._padded_tokens += padded_tokens

    def read(self) -> dict[str, float]:
        """`texts_per_second`, `tokens_per_second` and `padding`, the share of computed tokens that are none.

        Counting starts again. At least one step must have been added.
        """
        assert self._padded_tokens, "no step was added since the last reading"
        seconds = self._clock() - self._since
        rates = {
            "texts_per_second": self._texts / seconds,
            "tokens_per_second": self._tokens / seconds,
            "padding": 1 - self._tokens / self._padded_tokens,
        }
        self._start()
        return rates

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What runs inside, such as an evaluation, takes no time from the steps."""
        began = self._clock()
        yield
        self._since += self._clock() - began

    def _start(self) -> None:
        self._texts = self._tokens = self._padded_tokens = 0
        self._since = self._clock()


def gpu_memory_gb(device: str) -> float | None:
    """The most GPU memory that tensors have held so far, in 10⁹ bytes; None where `device` is not CUDA."""
    if not device.startswith("cuda"):
        return None
    import torch

    return torch.cuda.max_memory_allocated(device) / 1e9
