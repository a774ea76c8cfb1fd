"""`leaf speed train`: texts a second of three ways to train the same student on the same batches.

- leaf: `leaf.student.train.train`, as `leaf train` calls it;
- padded: the loop one would write with Transformers and torch, on texts tokenised beforehand;
- Sentence Transformers: its trainer, which tokenises as it goes.

They take turns, so that a slow minute of the machine slows all. All have the same weights, texts, batch size, AdamW and
compute dtype, and no dropout. The first steps of every round are outside the clock.
"""

import copy
import json
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from leaf import recipe
from leaf.errors import LeafError, Stopped
from leaf.packed import pad, to_device
from leaf.progress import say
from leaf.speed.clock import Stopwatch, choose_device
from leaf.speed.mix import sample_lengths
from leaf.speed.record import NAMES, OURS, Round, make_record
from leaf.speed.synthetic import Shape, make_texts, save_backbone
from leaf.student.batches import Batches
from leaf.student.data import Examples
from leaf.student.loss import leaf_loss
from leaf.student.model import Student, build_student
from leaf.student.step import Engine
from leaf.student.train import FAST, LINES_PER_EPOCH, compute_dtype, train

#: Timed steps a round by default: for all rounds about six minutes on two CPU cores, and as many on a large GPU.
CPU_STEPS, GPU_STEPS = 6, 1000
#: Steps before the clock runs, at least, and as a share of those inside.
MIN_WARM_UP, WARM_UP_SHARE = 2, 0.1
#: Largest difference of the first batch's loss between contestants, by compute dtype.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
#: Texts held out: `train` wants some, and evaluates them outside the clock.
HELD_OUT = 8


def time_training(
    shape: Shape,
    *,
    dim: int = 768,
    batch_size: int = 32,
    steps: int | None = None,
    rounds: int = 3,
    device: str | None = None,
    engine: Engine = FAST,
    seed: int = 0,
) -> dict[str, Any]:
    """The record of one run: every contestant trains `steps` steps on the clock in each of `rounds` rounds.

    Raises `LeafError` where the Sentence Transformers trainer cannot run, or the contestants' losses differ.
    """
    device = choose_device(device)
    _check_trainer(device)
    steps = steps or (GPU_STEPS if device.startswith("cuda") else CPU_STEPS)
    with TemporaryDirectory() as folder:
        work = _prepare(Path(folder), shape, dim, batch_size, steps, device, seed)
        padded, trainer = _Padded(work), _Trainer(work)
        losses = _first_losses(work, padded, trainer)
        others = {"padded": padded.run, "sentence_transformers": trainer.run}
        measured: dict[str, list[Round]] = {name: [] for name in others}

        def take_turns(round_: int) -> None:
            for name, run in others.items():
                say(f"round {round_} of {rounds}: {NAMES[name]}")
                measured[name].append(run(work.batches.epoch(round_ - 1)))

        settings = recipe.Train(batch_size=batch_size, cycles=1, epochs_per_cycle=rounds, seed=seed)
        try:
            train(
                work.student,
                work.examples,
                _first(work.examples, HELD_OUT),
                settings,
                Path(folder),
                device=device,
                engine=engine,
                label="leaf",
                on_epoch=take_turns,
            )
        except Stopped as stopped:
            raise LeafError("stopped before the last round; a timing keeps nothing, so run it again") from stopped
        ours = _our_rounds(Path(folder) / "metrics.jsonl", work)
    return make_record(
        "train",
        {
            **asdict(shape),
            "dim": dim,
            "batch_size": batch_size,
            "steps": work.last - work.first,
            "warm_up": work.first,
            "rounds": rounds,
            "device": device,
            "compute_dtype": str(work.dtype).removeprefix("torch."),
            "engine": asdict(engine) if device.startswith("cuda") else None,
            "seed": seed,
            "mean_tokens": float(work.examples.lengths.mean()),
        },
        {OURS: ours, **measured},
        {"first_loss": losses},
        packages=("accelerate",),
    )


@dataclass(frozen=True)
class _Work:
    """What all contestants share."""

    student: Student
    texts: list[str]
    examples: Examples
    """The same texts, tokenised, and their targets."""
    batches: Batches
    first: int
    """Steps of a round before the clock runs."""
    last: int
    """Steps of a round after which the clock stops."""
    dtype: torch.dtype
    device: str

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(
            torch.device(self.device).type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16
        )

    def timed(self, batches: NDArray[np.int64], watch: Stopwatch) -> Round:
        """A round of a contestant that pads every batch to its longest text."""
        lengths = self.examples.lengths[batches[self.first : self.last]]
        computed = int(lengths.max(axis=1).sum()) * lengths.shape[1]
        return Round(lengths.size, int(lengths.sum()), computed, watch.seconds, watch.gpu_memory_gb)


def _prepare(folder: Path, shape: Shape, dim: int, batch_size: int, steps: int, device: str, seed: int) -> _Work:
    warm_up = max(MIN_WARM_UP, int(WARM_UP_SHARE * steps))
    num_batches = steps + warm_up
    # `train` says how fast it is once a line of its metrics, so the clock starts and stops with a line.
    line = max(1, num_batches // LINES_PER_EPOCH)
    lengths = sample_lengths(num_batches * batch_size, seed, shape.max_length)
    texts = make_texts(lengths.tolist(), shape, seed)
    student = build_student(
        recipe.Student(backbone=str(save_backbone(folder / "backbone", shape, seed))),
        "",
        {},
        dim,
        normalise=True,
        max_length=shape.max_length,
        similarity="cosine",
        seed=seed,
    )
    tokens = student.tokenizer(texts, "document")
    assert np.array_equal(tokens.lengths, lengths), "every word is one token"
    targets = np.random.default_rng(seed).standard_normal((len(texts), dim), dtype=np.float32)
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    examples = Examples(
        tokens.ids.astype(np.uint16), np.concatenate([[0], np.cumsum(tokens.lengths)]), targets.astype(np.float16)
    )
    return _Work(
        student=student,
        texts=texts,
        examples=examples,
        batches=Batches(examples.lengths, batch_size, seed),
        first=-(-warm_up // line) * line,
        last=num_batches // line * line,
        dtype=compute_dtype("auto", device),
        device=device,
    )


def _our_rounds(metrics: Path, work: _Work) -> list[Round]:
    """The rounds of `train`, from the lines of its metrics that lie within the clock, an epoch a round."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "texts_per_second" in line]
    num_batches, size = work.batches.num_batches, work.batches.epoch(0).shape[1]
    rounds = []
    for start in range(0, lines[-1]["step"], num_batches):
        inside = [line for line in lines if start + work.first < line["step"] <= start + work.last]
        texts = (work.last - work.first) // len(inside) * size  # of each line
        seconds = [texts / line["texts_per_second"] for line in inside]
        tokens = [line["tokens_per_second"] * each for line, each in zip(inside, seconds, strict=True)]
        computed = [each / (1 - line["padding"]) for line, each in zip(inside, tokens, strict=True)]
        rounds.append(
            Round(
                texts * len(inside),
                round(sum(tokens)),
                round(sum(computed)),
                sum(seconds),
                inside[-1].get("gpu_memory_gb"),
            )
        )
    return rounds


class _Padded(nn.Module):
    """The loop one would write: a batch padded to its longest text, autocast, fused AdamW."""

    def __init__(self, work: _Work) -> None:
        super().__init__()
        self.work = work
        self.backbone: Any = copy.deepcopy(work.student.backbone)
        self.head = copy.deepcopy(work.student.head)
        self.to(work.device)
        self.backbone.set_attn_implementation("sdpa")
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=1e-4, fused=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors of unit length `[n, dim]`."""
        states = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None]
        return nn.functional.normalize(self.head((states * mask).sum(1) / mask.sum(1)), dim=-1)

    def loss(self, rows: NDArray[np.int64]) -> Tensor:
        """The loss of one batch."""
        features = to_device(pad(*self.work.examples.gather(rows), pad_id=0), self.work.device)
        targets = torch.from_numpy(self.work.examples.targets[rows]).to(self.work.device)
        with self.work.autocast():
            loss: Tensor = torch.linalg.vector_norm(self(**features).float() - targets.float(), dim=-1).mean()
        return loss

    def run(self, batches: NDArray[np.int64]) -> Round:
        """Trains on all batches; the clock is on for those between `first` and `last`."""
        watch = Stopwatch(self.work.device)
        for step, rows in enumerate(batches):
            if step == self.work.first:
                watch.start()
            self.optimizer.zero_grad()
            self.loss(rows).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            if step + 1 == self.work.last:
                watch.stop()
        return self.work.timed(batches, watch)


class _Trainer:
    """The trainer of Sentence Transformers with a loss of ten lines; all that is not named is its default."""

    def __init__(self, work: _Work) -> None:
        self.work = work
        self.model: SentenceTransformer = copy.deepcopy(work.student.model).to(work.device)
        self.model.model_card_data.widget = [{}]  # its model card would look for examples, behind a bar of their own

    def first_loss(self, rows: NDArray[np.int64]) -> Tensor:
        """The loss of one batch of strings."""
        features = to_device(self.model.preprocess([self.work.texts[row] for row in rows]), self.work.device)
        targets = torch.from_numpy(self.work.examples.targets[rows]).to(self.work.device)
        with self.work.autocast():
            loss: Tensor = _Distance(self.model)([features], targets)
        return loss

    def run(self, batches: NDArray[np.int64]) -> Round:
        """Trains on all batches, in this order; the clock is on for those between `first` and `last`."""
        # Imported here, because `leaf speed train` says in one line what is missing where these fail.
        from datasets import Dataset
        from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
        from sentence_transformers.base.sampler import DefaultBatchSampler
        from torch.utils.data import SequentialSampler
        from transformers import PrinterCallback, TrainerCallback

        work, watch = self.work, Stopwatch(self.work.device)

        class Clock(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == work.first:
                    watch.start()
                if state.global_step == work.last:
                    watch.stop()

        model = copy.deepcopy(self.model)  # the trainer wraps it, once more each round
        rows = batches.ravel()
        texts, targets = [work.texts[row] for row in rows], work.examples.targets[rows].astype(np.float32)
        # Labels as tensors: read as lists, its default, they cost several times as much.
        dataset = Dataset.from_dict({"text": texts, "label": targets})
        dataset = dataset.with_format("torch", columns=["label"], output_all_columns=True)
        on_gpu = work.device.startswith("cuda")
        with TemporaryDirectory() as folder:
            trainer = SentenceTransformerTrainer(
                model=model,
                args=SentenceTransformerTrainingArguments(
                    output_dir=folder,
                    num_train_epochs=1,
                    per_device_train_batch_size=batches.shape[1],
                    learning_rate=1e-4,
                    bf16=work.dtype == torch.bfloat16,
                    use_cpu=not on_gpu,
                    dataloader_pin_memory=on_gpu,
                    # The batches of the others, not an order of its own: short rounds differ in length by chance.
                    batch_sampler=lambda dataset, **options: DefaultBatchSampler(SequentialSampler(dataset), **options),
                    report_to="none",
                    save_strategy="no",
                    logging_strategy="no",
                    disable_tqdm=True,
                ),
                train_dataset=dataset,
                loss=_Distance(model),
                callbacks=[Clock()],
            )
            trainer.remove_callback(PrinterCallback)  # it prints to stdout
            trainer.train()
        return work.timed(batches, watch)


class _Distance(nn.Module):
    """The loss as a module of Sentence Transformers: mean distance between vectors and labels."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, sentence_features: Any, labels: Tensor) -> Tensor:
        (features,) = sentence_features
        vectors = self.model(features)["sentence_embedding"]
        loss: Tensor = torch.linalg.vector_norm(vectors.float() - labels.float(), dim=-1).mean()
        return loss


@torch.no_grad()
def _first_losses(work: _Work, padded: _Padded, trainer: _Trainer) -> dict[str, float]:
    """The loss of one batch before training, by contestant. Raises `LeafError` where they are not the same."""
    rows, student = work.batches.epoch(0)[0], work.student.to(work.device)
    student.use_packing(work.device == "cpu" or work.dtype == torch.bfloat16)
    targets = torch.from_numpy(work.examples.targets[rows]).to(work.device)
    features = to_device(student.collate(*work.examples.gather(rows)), work.device)
    losses = {
        OURS: leaf_loss(student(features, work.dtype), targets).item(),
        "padded": padded.loss(rows).item(),
        "sentence_transformers": trainer.first_loss(rows).item(),
    }
    if max(losses.values()) - min(losses.values()) > TOLERANCE[work.dtype]:
        raise LeafError(f"the contestants do not compute the same loss ({losses}); their times cannot be compared")
    return losses


def _first(examples: Examples, count: int) -> Examples:
    end = examples.offsets[count]
    return Examples(examples.tokens[:end], examples.offsets[: count + 1], examples.targets[:count])


def _check_trainer(device: str) -> None:
    missing = [name for name in ("accelerate", "datasets") if find_spec(name) is None]
    if missing:
        raise LeafError(f"the Sentence Transformers trainer needs {' and '.join(missing)}; pip install 'leaf[speed]'")
    if device.startswith("cuda") and torch.cuda.device_count() > 1:
        raise LeafError(
            f"the Sentence Transformers trainer would spread over all {torch.cuda.device_count()} GPUs; show it one "
            "with CUDA_VISIBLE_DEVICES=0"
        )
