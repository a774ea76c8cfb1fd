"""What a run keeps on disk and in memory, worked out stage by stage."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

#: Bytes of a parameter in an exported file (`results/int8/`: the demo's two-layer student).
ONNX_BYTES = {"fp32": 4.0, "fp16": 2.0, "q8": 1.08, "q8-portable": 1.08, "q4": 0.73, "q4f16": 0.62}
#: What byte-stream-split and zstd leave of float16 vectors: 0.852 and 0.868 of two runs' of 384 dimensions.
VECTORS_LEFT = 0.86
#: Weights, AdamW's two moments and the best epoch's weights, each float32.
RESUME_BYTES = 16
#: Hashes of a row: kept, and at most while texts are chosen (measured on 2M rows).
HASH_BYTES, CHOOSING_BYTES = 16, 60
#: A text while training: its length, its place in the epoch's order, its offset in the token file.
TEXT_BYTES = 4 + 8 + 8
#: What a layer keeps of a token for the backward pass, times its width: Korthikanti et al., arXiv 2205.05198, §4.1.
ACTIVATION_BYTES = 34
#: torch, transformers and the rest, in memory.
LIBRARIES = 600_000_000


class Item(NamedTuple):
    """One line of the bill."""

    what: str
    bytes: float
    how: str
    """The arithmetic."""
    stays: bool = True
    """Whether it is there when the run is over."""


class Saved(NamedTuple):
    """A student as far as files are concerned."""

    parameters: int
    epochs: int
    keeps_checkpoints: bool


def vectors(rows: float, dim: int, dtype: str) -> Item:
    """The cache of the teacher's vectors."""
    size = 2 if dtype == "float16" else 4
    how = f"{rows:,.0f} texts × {dim:,} × {size} bytes × {VECTORS_LEFT} that zstd leaves"
    return Item("teacher vectors", rows * dim * size * VECTORS_LEFT, how)


def targets(rows: float, dim: int, dtype: str) -> Item:
    """The same as one flat file, for random access while training."""
    size = 2 if dtype == "float16" else 4
    return Item("targets", rows * dim * size, f"{rows:,.0f} texts × {dim:,} × {size} bytes", stays=False)


def tokens(number: float, rows: float, vocabulary: int) -> Item:
    """The token file of one student's tokenizer."""
    size = 2 if vocabulary <= 1 << 16 else 4
    how = f"{number / 1e6:,.1f}M tokens × {size} bytes + {rows:,.0f} offsets × 8"
    return Item("token files", number * size + 8 * rows, how, stays=False)


def students(trained: Sequence[Saved], precisions: Sequence[str]) -> list[Item]:
    """Weights, ONNX files, resume points and kept checkpoints of all students."""
    if not trained:
        return []
    parameters = sum(each.parameters for each in trained)
    onnx = sum(ONNX_BYTES[each] for each in precisions)
    resume = RESUME_BYTES * (parameters + max(each.parameters for each in trained))
    kept = [each for each in trained if each.keeps_checkpoints]
    items = [
        Item("students", parameters * (4 + onnx), f"{_millions(parameters)} × (4 + {onnx:.2f} bytes in ONNX files)"),
        Item(
            "resume points", resume, f"{RESUME_BYTES} bytes a parameter, and one more copy while it is replaced", False
        ),
    ]
    if kept:
        size = sum(4 * each.parameters * each.epochs for each in kept)
        how = f"{sum(each.epochs for each in kept)} epochs × {_millions(kept[0].parameters)} × 4 bytes"
        items.append(Item("kept checkpoints", size, how))
    return items


def free_space(folder: Path) -> tuple[str, int]:
    """The existing folder that `folder` will be made in, and the bytes free there."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return str(existing), shutil.disk_usage(existing).free


def bill(items: Sequence[Item], folder: Path) -> dict[str, Any]:
    """The record of `items` beside what is free: what stays, and the most at any one time, which is while training."""
    where, free = free_space(folder)
    return {
        "items": [item._asdict() for item in items],
        "stays": sum(item.bytes for item in items if item.stays),
        "most": sum(item.bytes for item in items),
        "free": free,
        "where": where,
    }


def memory(
    rows: float,
    training: float,
    shard_rows: int,
    dim: int | None,
    teacher: int | None,
    steps: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """What each stage holds in memory on a CPU. `steps` are the students: parameters, tokens a step, layers, width."""
    stages = [("texts", CHOOSING_BYTES * rows, f"{CHOOSING_BYTES} bytes a row while choosing, {HASH_BYTES} before")]
    if teacher is not None and dim is not None:
        shard = min(shard_rows, rows)
        size = 4.0 * teacher + 8 * shard * dim
        stages.append(
            ("teacher pass", size, f"{_millions(teacher)} × 4 bytes + a shard of {shard:,.0f} vectors, twice")
        )
    if steps:

        def size_of(step: Mapping[str, Any]) -> float:
            activations = ACTIVATION_BYTES * step["tokens"] * step["layers"] * step["width"]
            return float(RESUME_BYTES * step["parameters"] + activations + TEXT_BYTES * training)

        most = max(steps, key=size_of)
        how = (
            f"{most['name']}: {RESUME_BYTES} bytes a parameter, {TEXT_BYTES} a text, {ACTIVATION_BYTES} × width for "
            f"each of {most['tokens']:,.0f} tokens and {most['layers']} layers"
        )
        stages.append(("training", size_of(most), how))
    return [{"stage": name, "bytes": size + LIBRARIES, "how": how} for name, size, how in stages]


def _millions(parameters: float) -> str:
    return f"{parameters / 1e6:,.1f}M"
