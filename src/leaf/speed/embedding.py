"""`leaf speed embed`: texts a second of the teacher pass and of `SentenceTransformer.encode`, strings in, vectors out.

Tokenisation is inside the clock, and both sort by length. Sentence Transformers is timed in the same compute dtype, and
in float32, which it computes in unless told otherwise.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from leaf.encoder import Vectors
from leaf.progress import progress
from leaf.speed.clock import Stopwatch, choose_device
from leaf.speed.mix import sample_lengths
from leaf.speed.record import NAMES, OURS, Round, make_record
from leaf.speed.synthetic import Shape, make_texts, save_teacher
from leaf.student.train import compute_dtype
from leaf.teacher.model import SentenceTransformerEncoder, load_sentence_transformer
from leaf.teacher.packed import PackedPass
from leaf.vector_files import min_cosine

#: Texts a round by default: a minute or so on two cores of a CPU, under half a minute on a large GPU.
CPU_TEXTS, GPU_TEXTS = 512, 20_000
#: Share of the texts that every contestant encodes before the first round, outside the clock.
WARM_UP_SHARE = 0.1
#: Texts among which the nearest vector is looked for.
COMPARED = 2000


def time_embedding(
    shape: Shape,
    *,
    num_texts: int | None = None,
    batch_size: int = 32,
    rounds: int = 3,
    device: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The record of one run: every contestant encodes the same texts in each of `rounds` rounds."""
    device = choose_device(device)
    num_texts = num_texts or (GPU_TEXTS if device.startswith("cuda") else CPU_TEXTS)
    lengths = sample_lengths(num_texts, seed, shape.max_length)
    texts = make_texts(lengths.tolist(), shape, seed)
    dtype = compute_dtype("auto", device)
    with TemporaryDirectory() as folder:
        contestants, packed = _contestants(save_teacher(Path(folder), shape, seed), batch_size, dtype, device)
    warm_up = texts[: max(batch_size, int(WARM_UP_SHARE * num_texts))]
    padded = _padded_tokens(texts, lengths, batch_size)
    vectors: dict[str, Vectors] = {}
    measured: dict[str, list[Round]] = {name: [] for name in contestants}
    with progress("timing", (rounds + 1) * len(contestants)) as bar:
        for round_ in range(rounds + 1):
            for name, encode in contestants.items():
                bar.advance(0, NAMES[name])
                if round_ == 0:
                    encode(warm_up)
                else:
                    watch = Stopwatch(device)
                    watch.start()
                    vectors[name] = encode(texts)
                    watch.stop()
                    computed = int(lengths.sum()) if name == OURS and packed else padded
                    measured[name].append(
                        Round(num_texts, int(lengths.sum()), computed, watch.seconds, watch.gpu_memory_gb)
                    )
                bar.advance()
    return make_record(
        "embed",
        {
            **asdict(shape),
            "texts": num_texts,
            "batch_size": batch_size,
            "rounds": rounds,
            "device": device,
            "compute_dtype": str(dtype).removeprefix("torch."),
            "packed": packed,
            "seed": seed,
            "mean_tokens": float(lengths.mean()),
        },
        measured,
        {name: _agreement(vectors[OURS], vectors[name]) for name in vectors if name != OURS},
    )


def _contestants(
    folder: Path, batch_size: int, dtype: torch.dtype, device: str
) -> tuple[dict[str, Callable[[Sequence[str]], Vectors]], bool]:
    """A function from texts to vectors for each contestant, and whether ours goes without padding."""
    name: Literal["bfloat16", "float32"] = "bfloat16" if dtype == torch.bfloat16 else "float32"
    ours = SentenceTransformerEncoder(str(folder), compute_dtype=name, device=device)
    model = load_sentence_transformer(str(folder), device=device)

    def theirs(autocast: bool) -> Callable[[Sequence[str]], Vectors]:
        def encode(texts: Sequence[str]) -> Vectors:
            with torch.autocast(torch.device(device).type, dtype=torch.bfloat16) if autocast else nullcontext():
                vectors: Vectors = model.encode(list(texts), batch_size=batch_size, show_progress_bar=False)
            return vectors

        return encode

    contestants = {
        OURS: lambda texts: ours.encode_document(texts, batch_size=batch_size),
        "sentence_transformers": theirs(dtype == torch.bfloat16),
    }
    if dtype == torch.bfloat16:
        contestants["sentence_transformers_float32"] = theirs(False)
    return contestants, PackedPass.fits(ours.model, dtype)


def _agreement(ours: Vectors, theirs: Vectors) -> dict[str, float]:
    """The least cosine, and for how many of some texts the nearest of the others' vectors is that of the same text.

    The vectors of a random model lie close together, so that a high cosine alone would say little.
    """
    some = slice(COMPARED)
    nearest = (ours[some] @ theirs[some].T).argmax(axis=1)
    return {"min_cosine": min_cosine(ours, theirs), "matched": float((nearest == np.arange(len(nearest))).mean())}


def _padded_tokens(texts: Sequence[str], lengths: NDArray[np.int64], batch_size: int) -> int:
    """Tokens that Sentence Transformers computes on: it sorts by characters and pads each batch to its longest."""
    order = np.argsort([-len(text) for text in texts], kind="stable")
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return sum(int(lengths[batch].max()) * len(batch) for batch in batches)
