"""The training loop: nothing but `mean ‖y − ŷ‖₂`, AdamW, and a learning rate that falls in cycles (§2.2).

An ablation may add a loss (App. B). The held-out error is by Eq. 3 alone whatever is trained with.

Batches, learning rate and dropout are pure functions of (seed, step). A run that is killed therefore goes on from its
last resume point with exactly the steps it would have made, and on a CPU ends with the very same weights (on a GPU,
where kernels are not bound to one order of summation, with `Engine(deterministic=True)`).
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leaf.ahead import ahead
from leaf.encoder import Encoder
from leaf.errors import LeafError, Stopped
from leaf.hardware import native_bfloat16
from leaf.packed import to_device, token_batches
from leaf.progress import progress
from leaf.recipe import Train
from leaf.student.ablation import AddedLoss
from leaf.student.batches import Batches, token_buckets
from leaf.student.checkpoint import CheckpointWriter, TrainState, load_checkpoint
from leaf.student.data import Examples
from leaf.student.distributed import World
from leaf.student.loader import Batch, Loader
from leaf.student.loss import distances
from leaf.student.metrics import Metrics, Rates, gpu_memory_gb, open_trackers
from leaf.student.model import Student
from leaf.student.optimizer import Optimizer
from leaf.student.ridge import Head, fit_head, random_head
from leaf.student.schedule import learning_rate
from leaf.student.step import Engine, Step

#: Tokens per forward pass where nothing is learned from them.
EVALUATION_TOKENS = 16_384
#: Batches kept ready. A step takes milliseconds, and a page that the store has to fetch from disk may take several.
BATCHES_AHEAD = 8
#: Steps between two readings of the loss on a GPU: a reading waits for the device. On a CPU it is free.
GPU_READ_EVERY = 50
#: Lines in `metrics.jsonl` per epoch, besides the epoch's own.
LINES_PER_EPOCH = 20
#: Shapes of packed batches. Each costs some 10 s of compilation; five waste a few percent of tokens on filling up.
NUM_BUCKETS = 5
#: Steps before a trace begins, and in it.
TRACE_SKIPS, TRACE_STEPS = 10, 5
ALONE = World()
FAST = Engine()


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
    rows: NDArray[np.int64] | None = None,
    added: AddedLoss | None = None,
    engine: Engine = FAST,
    world: World = ALONE,
    label: str = "training",
    trace: Path | None = None,
    on_epoch: Callable[[int], object] | None = None,
) -> Outcome:
    """Trains `student` in place and leaves it with the weights of its best epoch by held-out error.

    Resume points and `metrics.jsonl` go to `folder`; called again with the same arguments, it goes on from there.
    `rows` are the examples to train on, None for all. `added` is the loss that `settings.loss` adds to Eq. 3. `trace`
    is a file for torch's profiler, written after a few steps. `on_epoch(epoch)` is called after every epoch, with the
    student as it is then, in the main process. Raises `LeafError` when the loss is not finite, before the optimizer has
    moved, and `Stopped` after SIGTERM, when a resume point has been written.
    """
    assert (added is not None) == (settings.loss != "leaf"), "train.loss and the loss that was built differ"
    with _deterministic_kernels(engine.deterministic):
        training = _Training(student, examples, held_out, settings, folder, device, rows, added, engine, world)
        with training.open(label, trace):
            training.begin()
            while training.epoch < training.epochs:
                training.run_epoch()
                training.end_epoch()
                if on_epoch and world.is_main:
                    on_epoch(training.epoch)
                training.save()
    return training.outcome()


class _Training:
    """A training run: what it holds while it runs, and its parts in the order in which they happen."""

    def __init__(
        self,
        student: Student,
        examples: Examples,
        held_out: Examples,
        settings: Train,
        folder: Path,
        device: str,
        rows: NDArray[np.int64] | None,
        added: AddedLoss | None,
        engine: Engine,
        world: World,
    ) -> None:
        self.student, self.held_out, self.settings = student, held_out, settings
        self.folder, self.device, self.world = folder, device, world
        self.batches = Batches(examples.lengths, settings.batch_size, settings.seed, settings.length_window, rows)
        self.epochs = settings.cycles * settings.epochs_per_cycle
        if settings.batch_size % (world.size * settings.accumulation):
            raise LeafError(
                f"train.batch_size {settings.batch_size} does not divide into {settings.accumulation} slices "
                f"(train.accumulation) in {world.size} processes; make it a multiple of "
                f"{settings.accumulation * world.size}"
            )
        on_gpu, dtype = device.startswith("cuda"), compute_dtype(settings.compute_dtype, device)
        student.to(device)
        self.mapping: torch.nn.Module = torch.nn.Identity()
        if added is not None:
            added.to(device)
            self.mapping = added.mapping
        _set_dropout(student, settings.dropout)
        # Sparse gradients are of no use to graphs, which want fixed shapes, nor to an all-reduce.
        sparse = not on_gpu and world.size == 1
        self.optimizer = Optimizer(student, self.mapping.parameters(), settings, sparse=sparse, dtype=dtype)
        self.state = _resume(folder, student, self.mapping, self.optimizer)
        world.copy_from_main([*student.state_dict().values(), *self.mapping.state_dict().values()])
        # Flash attention computes in 16 bits only, so a float32 run on a GPU is padded. Added losses know padding only.
        student.use_packing(added is None and (not on_gpu or dtype == torch.bfloat16))
        fixed_shapes = on_gpu and student.packed and (engine.compile or engine.graphs)
        slices = self.batches.epoch(0).reshape(-1, settings.batch_size // (settings.accumulation * world.size))
        totals = examples.lengths[slices].sum(axis=1)
        self.loader = Loader(student, examples, device, token_buckets(totals, NUM_BUCKETS) if fixed_shapes else ())
        self.step = Step(student, self.optimizer, self.loader, settings, dtype, device, world, added)
        if fixed_shapes and engine.compile:
            self.step.compile()
        if fixed_shapes and engine.graphs:
            one_per_bucket = {self.loader.bucket(int(total)): rows for rows, total in zip(slices, totals, strict=True)}
            self.step.capture([self.loader.batch(rows) for bucket, rows in one_per_bucket.items() if bucket])
        self.read_every = GPU_READ_EVERY if on_gpu else 1
        self.line_every = max(1, self.batches.num_batches // LINES_PER_EPOCH)
        parts = range(1, settings.evaluations)
        self.evaluate_after = {part * self.batches.num_batches // settings.evaluations for part in parts}
        self.rates = Rates()
        self.error = math.nan

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self.state.step // self.batches.num_batches

    @contextmanager
    def open(self, label: str, trace: Path | None) -> Iterator[None]:
        """The files, threads and handlers of a run; leaving waits for the last resume point."""
        main = self.world.is_main
        trackers = open_trackers(
            self.settings.trackers if main else (),
            self.folder,
            "/".join(self.folder.parts[-3:]),  # run folder, checkpoints, student: no two trainings share it
            self.settings.model_dump(mode="json"),
            self.state.step,
        )
        with ExitStack() as stack:
            metrics = Metrics(self.folder / "metrics.jsonl" if main else None, self.state.metrics_bytes, trackers)
            self.metrics = stack.enter_context(metrics)
            self.writer = stack.enter_context(CheckpointWriter(self.folder / "resume.pt"))
            total = self.epochs * self.batches.num_batches
            self.bar = stack.enter_context(progress(label, total, completed=self.state.step))
            self.stop_asked = stack.enter_context(_sigterm())
            self.traced = stack.enter_context(_tracing(trace if main else None))
            self.saved_at = time.monotonic()
            self.began = self.saved_at - self.state.seconds
            yield

    def begin(self) -> None:
        """Before the first step: the error that training starts from."""
        if self.state.step == 0:
            self._evaluate()
            self.metrics.write({"epoch": 0, "step": 0, "held_out_error": self.error})
        else:
            self.error = self.metrics.last_error

    def run_epoch(self) -> None:
        """The steps of the current epoch that have not been made yet."""
        state, epoch, num_batches = self.state, self.epoch, self.batches.num_batches
        self.student.train(self.settings.dropout > 0)
        to_do = self.batches.epoch(epoch)[state.step % num_batches :]
        unread = 0
        for slices in ahead(map(self._make, to_do), BATCHES_AHEAD):
            lr = learning_rate(state.step, num_batches, self.settings)
            if self.settings.dropout:
                torch.manual_seed((self.settings.seed << 32) + state.step * self.world.size + self.world.rank)
            self.step.run(slices, lr)
            state.step += 1
            unread += 1
            for batch in slices:
                self.rates.add(batch.num_texts, batch.num_tokens, batch.num_computed)
            self.traced()
            done = state.step % num_batches or num_batches
            evaluate = done in self.evaluate_after
            if evaluate or done == num_batches or done % self.line_every == 0 or done % self.read_every == 0:
                self._read(unread, lr, write_line=done % self.line_every == 0)
                unread = 0
                if evaluate:
                    self._evaluate_within(state.step / num_batches)
                if done < num_batches:  # after an epoch, both wait for the evaluation
                    self._save_or_stop()

    def end_epoch(self) -> None:
        """The held-out error; the weights are kept if it is the least so far."""
        state, num_batches = self.state, self.batches.num_batches
        self._evaluate()
        self.metrics.write(
            {
                "epoch": self.epoch,
                "step": state.step,
                "lr": learning_rate(state.step - 1, num_batches, self.settings),
                "train_loss": state.loss_sum / num_batches,
                "held_out_error": self.error,
                "seconds": self._seconds(),
            }
        )
        state.loss_sum = 0.0
        if self.error < state.best_error:
            state.best_error, state.best_epoch = self.error, self.epoch
            state.best_weights = {name: value.cpu().clone() for name, value in self.student.state_dict().items()}

    def save(self) -> None:
        """A resume point for where training stands now."""
        self.saved_at = time.monotonic()
        self.state.mapping = self.mapping.state_dict()
        self.state.metrics_bytes, self.state.seconds = self.metrics.size, self._seconds()
        if self.world.is_main:
            self.writer.save(self.state, self.student.state_dict(), self.optimizer.state_dict())

    def outcome(self) -> Outcome:
        """What was reached; puts the best epoch's weights into the student, on the CPU."""
        self.student.eval().cpu().use_packing(False)
        last_weights = {name: value.clone() for name, value in self.student.state_dict().items()}
        self.student.load_state_dict(self.state.best_weights)
        return Outcome(
            error=self.state.best_error,
            best_epoch=self.state.best_epoch,
            last_error=self.error,
            last_weights=last_weights,
            epochs=self.epochs,
            steps=self.state.step,
            seconds=self.state.seconds,
        )

    def _evaluate(self) -> None:
        self.student.eval()
        with self.rates.paused():
            self.error = held_out_error(self.student, self.held_out, self.device)

    def _evaluate_within(self, epoch: float) -> None:
        """A point of the curve of Fig. 10. Only whole epochs are candidates for the best."""
        self._evaluate()
        line = {"epoch": epoch, "step": self.state.step, "held_out_error": self.error, "seconds": self._seconds()}
        self.metrics.write(line)
        self.student.train(self.settings.dropout > 0)

    def _read(self, unread: int, lr: float, *, write_line: bool) -> None:
        """Looks at the last `unread` steps: stops on a non-finite number, moves the bar, writes a line of metrics."""
        reading = self.step.read()
        self.state.loss_sum += reading.loss_sum
        loss = reading.loss_sum / unread
        self.bar.advance(
            unread, f"loss {loss:.4f}" + ("" if math.isnan(self.error) else f"  held-out ε {self.error:.4f}")
        )
        if write_line:
            line = {"step": self.state.step, "lr": lr, "loss": loss, "gradient_norm": reading.gradient_norm}
            if self.settings.loss != "leaf":
                line["leaf_loss"] = reading.leaf_sum / unread
            line |= {**self.rates.read(), "seconds": self._seconds()}
            if (memory := gpu_memory_gb(self.device)) is not None:
                line["gpu_memory_gb"] = memory
            self.metrics.write(line)

    def _save_or_stop(self) -> None:
        if self.world.any(self.stop_asked(), self.device):
            self.save()
            self.writer.wait()
            raise Stopped(f"training stopped after step {self.state.step:,}, which is saved")
        if time.monotonic() - self.saved_at > 60 * self.settings.checkpoint_minutes:
            self.save()

    def _seconds(self) -> float:
        return round(time.monotonic() - self.began, 3)

    def _make(self, rows: NDArray[np.int64]) -> list[Batch]:
        return [self.loader.batch(part) for part in self._slices(rows)]

    def _slices(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """This process's share of a batch, cut for gradient accumulation: every slice has equally many texts."""
        return np.split(rows[self.world.rank :: self.world.size], self.settings.accumulation)


def start_table(student: Student, teacher: Encoder) -> None:
    """Gives every row of a lookup table the teacher's vector of its token alone, asked for as a query.

    Word embeddings know a token in company, before a Transformer has read it; the teacher's vectors are in the space
    already, those of tokens that training hardly meets too. On 60k texts, ε begins at 0.74 instead of 0.85 (LOG.md).
    """
    texts = student.token_texts()
    with progress("asking the teacher for every token", len(texts)) as bar:
        student.set_rows(torch.from_numpy(teacher.encode_query(texts, batch_size=256, advance=bar.advance)))


def start_head(
    student: Student, examples: Examples, num_texts: int, device: str, rows: NDArray[np.int64] | None = None
) -> Head | None:
    """Fits the student's head in closed form on `num_texts` texts, spread evenly over the training texts.

    The training texts are all examples, or `rows` of them.

    With `num_texts = 0` the head stays random: None, after a table has been widened to the teacher's dimension.
    """
    if num_texts == 0:
        if student.is_table:
            dim, width = examples.targets.shape[1], student.first.embedding_dim
            student.set_head(random_head(dim, width))
        return None
    available = len(examples) if rows is None else len(rows)
    num_texts = min(num_texts, available)
    chosen = np.linspace(0, available - 1, num_texts).astype(np.int64)
    rows = chosen if rows is None else rows[chosen]
    # Neighbours of like length pad each other little. The fit holds out every tenth row, hence every length alike.
    rows = rows[np.argsort(examples.lengths[rows], kind="stable")]
    student.to(device).eval()
    student.use_packing(device == "cpu")
    features = []
    with torch.inference_mode(), progress("fitting the head", num_texts) as bar:
        for batch in token_batches(examples.lengths, rows, EVALUATION_TOKENS):
            pooled = student.pool(to_device(student.collate(*examples.gather(batch)), device))
            features.append(pooled.cpu())
            bar.advance(len(batch))
    head = fit_head(
        torch.cat(features),
        torch.from_numpy(examples.batch_targets(rows)),
        bias=student.is_table or student.head.bias is not None,
        normalise=student.normalises,
    )
    student.cpu().set_head(head)
    return head


def held_out_error(student: Student, held_out: Examples, device: str) -> float:
    """Mean `ε = ‖y − ŷ‖₂` over the held-out texts, computed in float32 whatever training computes in (§3.3)."""
    order = held_out.lengths.argsort(kind="stable")
    packed = student.packed
    student.use_packing(device == "cpu")  # flash attention, which packing takes on a GPU, has no float32
    total = 0.0
    with torch.inference_mode():
        for rows in token_batches(held_out.lengths, order, EVALUATION_TOKENS):
            vectors = student(to_device(student.collate(*held_out.gather(rows)), device))
            targets = torch.from_numpy(held_out.batch_targets(rows)).to(device)
            total += distances(vectors, targets).double().sum().item()
    student.use_packing(packed)
    return total / len(held_out)


def compute_dtype(wanted: Literal["auto", "float32", "bfloat16"], device: str) -> torch.dtype:
    """The dtype of forward and backward: for `auto`, bfloat16 where the hardware multiplies it natively."""
    lower = native_bfloat16(device) if wanted == "auto" else wanted == "bfloat16"
    return torch.bfloat16 if lower else torch.float32


def _resume(folder: Path, student: Student, mapping: torch.nn.Module, optimizer: Optimizer) -> TrainState:
    resumed = load_checkpoint(folder / "resume.pt")
    if resumed is None:
        return TrainState()
    state, weights, moments = resumed
    student.load_state_dict(weights)
    mapping.load_state_dict(state.mapping)
    optimizer.load_state_dict(moments)
    return state


def _set_dropout(student: Student, rate: float) -> None:
    # With rate 0 the student trains in eval mode, which is the same and also silences dropout that is not a module.
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = rate


@contextmanager
def _deterministic_kernels(wanted: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def _sigterm() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM is only noted: yields a function that says whether it has come."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield lambda: False
        return
    previous = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _tracing(path: Path | None) -> Iterator[Callable[[], object]]:
    """Yields what to call after every step; with a path, a trace of a few steps is written there."""
    if path is None:
        yield lambda: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.profiler.profile(
        schedule=torch.profiler.schedule(skip_first=TRACE_SKIPS, wait=0, warmup=1, active=TRACE_STEPS, repeat=1),
        on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(path)),
    ) as profiler:
        yield profiler.step
