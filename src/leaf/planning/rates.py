"""How long a pass and a step take: rates that were measured, and what they say of other hardware.

CPU: this project's own records, carried over by FLOPs and cores. GPU: a prototype on one H200 (no record of this
project yet), at two batch sizes and three models; other GPUs by the ratio of their peaks, or of their memory's speed
where that is less.
"""

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from leaf.planning.architecture import Architecture
from leaf.provenance import hardware as this_hardware
from leaf.speed.mix import sample_lengths

CPU = "cpu"


class Gpu(NamedTuple):
    """A GPU as its vendor's data sheet has it."""

    name: str
    tflops: float
    """Peak of dense matrix products, 10¹² a second: in bfloat16, or in float32 where there is none."""
    gigabytes_per_second: float
    memory_gb: int
    note: str = ""


GPUS = {
    "a100-40gb": Gpu("A100 40 GB", 312, 1555, 40),
    "a100-80gb": Gpu("A100 80 GB", 312, 2039, 80),
    "h100": Gpu("H100 SXM", 989, 3350, 80),
    "h200": Gpu("H200", 989, 4800, 141),
    "l4": Gpu("L4", 121, 300, 24),
    "t4": Gpu("T4", 8.1, 320, 16, "no bfloat16, so float32"),
    "rtx-4090": Gpu("RTX 4090", 165, 1008, 24),
}
#: Shown where no hardware is named.
SHOWN = ("h200", "h100", "a100-40gb", "rtx-4090", "l4", "t4")


class Measured(NamedTuple):
    """A rate of this project, as its record has it. A test holds these equal to `results/`."""

    record: str
    what: Literal["train", "embed", "table"]
    layers: int
    width: int
    dim: int
    mean_tokens: float
    texts_per_second: float
    cpu: str = "AMD EPYC"
    cpus: int = 2


MEASURED = (
    Measured("results/speed/train-cpu.json", "train", 6, 384, 768, 192.58, 18.21),
    Measured("results/ladder/from-teacher.json", "train", 2, 384, 384, 40.92, 202.9),
    Measured("results/ladder/from-teacher.json", "train", 1, 384, 384, 40.92, 288.0),
    Measured("results/ladder/from-teacher.json", "table", 0, 384, 384, 38.93, 15767),
    Measured("results/speed/embed-cpu.json", "embed", 12, 384, 384, 191.95, 22.57),
)
#: The table of the record above, and its batch.
TABLE, TABLE_BATCH = Architecture.table(30522, 384), 512
#: Seconds that AdamW takes on that CPU for each parameter that it moves, from three passes of the same table
#: (results/rows/sweep.json: 150.9 s with AdamW, 87.5 s with Adagrad; 3,309 steps, 23.0M parameters).
ADAMW_SECONDS = (150.9 - 87.5) / 3309 / 23_037_312
#: Float32 takes so many times as long as bfloat16 on a CPU that multiplies both (LOG.md: 8.9k and 5.4k tokens/s).
FLOAT32_FACTOR = 1.65

#: A prototype on one H200, texts/s on the paper's mix of lengths: training 6 layers of width 384 with a 768-d head by
#: batch size, and the teacher pass of 12 layers by width.
PROTOTYPE = "H200"
TRAINING = {32: 9_850, 256: 14_130}
PASS = {384: 26_500, 768: 11_700}
_STUDENT = Architecture(6, 384, 1536, 30522, 512, 2)
#: AdamW with float32 weights reads weight, gradient and two moments and writes weight and moments: bytes a parameter.
#: Adagrad has one moment. On a GPU it reads all rows, as graphs want; on a CPU those of the batch.
ADAMW_BYTES, ADAGRAD_BYTES = 28, 20
#: A table student reads, writes and accumulates a row of floats for every token.
TABLE_BYTES = 12

#: Table 4 of the paper, one A100 40 GB: minutes of an epoch of 200k × 32 texts, by batch size.
PAPER_MINUTES = {16: 259, 32: 185, 64: 171, 128: 160, 256: 152}
PAPER_EPOCH = 200_000 * 32
PAPER_BUDGET_HOURS = 100


@dataclass(frozen=True)
class Step:
    """One student's step: what decides how long it takes."""

    architecture: Architecture
    dim: int
    parameters: int
    batch_size: int
    tokens: float
    """Mean tokens of a text."""
    squares: float
    """Mean squared tokens of a text."""
    rows_apart: bool = False
    """Whether Adagrad learns the rows of words, and AdamW the rest."""

    @property
    def adamw(self) -> int:
        """Parameters that AdamW moves, at every step all of them."""
        return self.parameters - (self.architecture.rows if self.rows_apart else 0)

    @property
    def flops(self) -> float:
        """FLOPs of a training step: a forward pass, and twice as much backward; a table's rows count for nothing."""
        forward = forward_flops(self.architecture, self.dim, self.tokens, self.squares) + 2 * self.architecture.network
        return 3 * self.batch_size * forward


def hardware_keys(name: str) -> list[str]:
    """The keys of `GPUS`, or `cpu`, that a name stands for: `A100` for both kinds. None for an unknown name."""
    return [key for key in (CPU, *GPUS) if f"{key}-".startswith(f"{name.lower()}-")]


def forward_flops(architecture: Architecture, dim: int | None, tokens: float, squares: float) -> float:
    """FLOPs of a forward pass over one text of so many tokens; with a head to `dim` dimensions where it is given."""
    if not architecture.layers:
        return 0.0
    return architecture.flops(tokens, squares) + 2 * architecture.width * (dim or 0)


def paper_rate(batch_size: int) -> float | None:
    """Texts a second of the paper's own training, one A100; None for a batch size that it does not report."""
    minutes = PAPER_MINUTES.get(batch_size)
    return PAPER_EPOCH / (60 * minutes) if minutes else None


def pass_rate(hardware: str, architecture: Architecture, gpus: int = 1) -> float:
    """FLOP/s of a forward pass over many texts."""
    if hardware == CPU:
        return cpu_rate("embed", architecture.layers)
    return _reach(GPUS[hardware]) * utilisation(architecture.width) * gpus


def step_parts(hardware: str, step: Step, gpus: int = 1) -> dict[str, float]:
    """Seconds of a training step, by what they go into.

    On a GPU: a constant for what is launched however small the batch is, the optimizer at the speed of the memory, and
    the matrix products (of a table, its rows at the speed of the memory), of which each of `gpus` does its share. The
    exchange of gradients between them is not counted. On a CPU all of it is in the measured rate, but for AdamW over
    the rows of a table, which may be most of a step.
    """
    shape = step.architecture
    if hardware == CPU:
        if shape.layers:
            return {"products": step.flops / cpu_rate("train", shape.layers)}
        known = next(each for each in MEASURED if each.what == "table")
        per_text = 1 / known.texts_per_second - ADAMW_SECONDS * TABLE.rows / TABLE_BATCH
        # Texts of 22 tokens take as long as those of 39 (results/ladder/first.json).
        size = max(1.0, step.tokens / known.mean_tokens) * shape.width / known.width
        faster = cores() / known.cpus
        parts = {"rows": step.batch_size * per_text * size / faster, "optimizer": ADAMW_SECONDS * step.adamw / faster}
        return {**parts, "products": step.flops / cpu_rate("train", 1)} if shape.network else parts
    gpu = GPUS[hardware]
    bandwidth = gpu.gigabytes_per_second * 1e9
    moved = ADAMW_BYTES * step.adamw + ADAGRAD_BYTES * (step.parameters - step.adamw)
    parts = {"launched": _launch_seconds(), "optimizer": moved / bandwidth}
    if not shape.layers:  # a network's products are few beside what is moved
        return {**parts, "rows": TABLE_BYTES * step.batch_size * step.tokens * shape.width / bandwidth / gpus}
    rate = _reach(gpu) * utilisation(shape.width) * _training_share()
    return {**parts, "products": step.flops / rate / gpus}


def cpu_rate(what: Literal["train", "embed"], layers: int) -> float:
    """FLOP/s of this machine's CPU: of the record whose model has about as many layers, by cores."""
    records = (each for each in MEASURED if each.what == what)
    known = min(records, key=lambda each: abs(np.log(each.layers / max(layers, 1))))
    shape = _STUDENT.with_layers(known.layers)
    squares = _mix()[1] if known.mean_tokens > 100 else known.mean_tokens**2  # the short texts of the ladder
    forward = forward_flops(shape, known.dim if what == "train" else None, known.mean_tokens, squares)
    rate = known.texts_per_second * forward * (3 if what == "train" else 1) * cores() / known.cpus
    return rate if has_bfloat16() else rate / FLOAT32_FACTOR


def utilisation(width: int) -> float:
    """Share of its peak that an H200 reached in the teacher pass of a model of this width, between the two measured."""
    tokens, squares = _mix()
    peak = GPUS["h200"].tflops * 1e12
    widths = sorted(PASS)
    shares = [PASS[each] * Architecture(12, each, 4 * each, 30522).flops(tokens, squares) / peak for each in widths]
    return float(np.interp(width, widths, shares))


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16, as Linux tells it; elsewhere taken not to."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def cpu_name() -> str:
    """This machine's CPU in a few words."""
    return f"this CPU, {cores()} cores"


def cpu_is_measured() -> bool:
    """Whether this is the CPU that the records are of."""
    return this_hardware()["cpu"] == MEASURED[0].cpu and cores() == MEASURED[0].cpus


def memory_bytes() -> int | None:
    """Main memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _reach(gpu: Gpu) -> float:
    """The peak that counts: narrow models wait for memory, so a GPU with little of it does not profit from the rest."""
    reference = GPUS["h200"]
    share = min(gpu.tflops / reference.tflops, gpu.gigabytes_per_second / reference.gigabytes_per_second)
    return reference.tflops * 1e12 * share


@cache
def _mix() -> tuple[float, float]:
    """Mean tokens and mean squared tokens of the paper's mix, which the prototype was timed on."""
    lengths = sample_lengths(4000, 0).astype(float)
    return float(lengths.mean()), float((lengths**2).mean())


@cache
def _fit() -> tuple[float, float]:
    """Seconds of a step of no texts, and of each text more, through the prototype's two batch sizes."""
    small, large = sorted(TRAINING)
    times = small / TRAINING[small], large / TRAINING[large]
    slope = (times[1] - times[0]) / (large - small)
    return times[0] - small * slope, slope


def _launch_seconds() -> float:
    """What a step takes however small it is, AdamW apart."""
    parameters = _STUDENT.parameters + 384 * 768 + 768
    return _fit()[0] - ADAMW_BYTES * parameters / (GPUS["h200"].gigabytes_per_second * 1e9)


@cache
def _training_share() -> float:
    """Utilisation of training beside that of the teacher pass, at equal width."""
    tokens, squares = _mix()
    rate = 3 * forward_flops(_STUDENT, 768, tokens, squares) / _fit()[1]
    return rate / (GPUS["h200"].tflops * 1e12 * utilisation(384))
