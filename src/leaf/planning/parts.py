"""The teacher and the students of a recipe with the work each of them has."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from leaf.encoder import Role
from leaf.errors import LeafError
from leaf.models import short_name
from leaf.planning.architecture import Architecture
from leaf.planning.lengths import CHARACTERS_PER_TOKEN, Reader
from leaf.planning.models import API_DIMENSIONS, Model, find_model, from_model
from leaf.planning.rates import Step
from leaf.planning.sampling import vector_width
from leaf.planning.texts import Texts, Tokens
from leaf.recipe import Recipe, Student, Teacher
from leaf.run import read_manifest
from leaf.teacher.providers import provider_of, request_limits, student_prompts


@dataclass(frozen=True)
class Taught:
    """The teacher pass: over every training and held-out text whose vector is not there yet."""

    settings: Teacher
    model: Model
    reader: Reader
    texts: float
    tokens: float
    flops: float | None
    """Of all texts; None where its size is not known, or where it is no model of ours to run."""
    is_done: bool

    def record(self, evaluation: Mapping[str, Any]) -> dict[str, Any]:
        """The teacher as JSON; `evaluation` is what `count_sets` found, for an API encodes these texts too."""
        shape = self.model.architecture
        record: dict[str, Any] = {
            "name": self.settings.name or short_name(self.model.name),
            "model": self.model.name,
            "facts_from": self.model.origin,
            "parameters": shape.published_parameters if shape else None,
            "matrices": shape.matrices if shape else None,
            "layers": shape.layers if shape else None,
            "width": shape.width if shape else None,
            "dim": self.model.dim,
            "max_length": self.reader.max_length,
            "texts": round(self.texts),
            "tokens": round(self.tokens),
            "flops": self.flops,
            "is_done": self.is_done,
            "api": None,
        }
        if self.settings.is_api:
            record["api"] = _bill(self.settings, self.texts + evaluation["texts"], self.tokens + evaluation["tokens"])
        return record


@dataclass(frozen=True)
class Trained:
    """One student and its training."""

    name: str
    backbone: Model
    architecture: Architecture | None
    """Of the student: the layers that it keeps; 0 of them for a table."""
    dim: int | None
    reader: Reader
    parameters: int | None
    texts: int
    """Training texts of an epoch."""
    tokens: float
    """Of an epoch."""
    squares: float
    """Squared lengths of an epoch."""
    epochs: int
    batch_size: int
    accumulation: int
    keeps_checkpoints: bool
    rows_apart: bool
    """Whether rows of words are learned by Adagrad instead of AdamW."""
    is_done: bool

    @property
    def steps(self) -> int:
        """Optimizer steps: whole batches of an epoch, times epochs."""
        return self.texts // self.batch_size * self.epochs

    @property
    def visits(self) -> int:
        """Texts that training reads, over all epochs."""
        return self.texts * self.epochs

    @property
    def slice_tokens(self) -> float:
        """Tokens that are in memory at once."""
        return self.tokens / max(self.texts, 1) * self.batch_size / self.accumulation

    @property
    def step(self) -> Step | None:
        """What a step takes; None where the size is not known."""
        if self.architecture is None or self.parameters is None or self.dim is None or not self.texts:
            return None
        means = self.tokens / self.texts, self.squares / self.texts
        return Step(self.architecture, self.dim, self.parameters, self.batch_size, *means, self.rows_apart)

    def record(self) -> dict[str, Any]:
        """The student as JSON."""
        step = self.step
        return {
            "name": self.name,
            "backbone": self.backbone.name,
            "facts_from": self.backbone.origin,
            "layers": self.architecture.layers if self.architecture else None,
            "width": self.architecture.width if self.architecture else None,
            "parameters": self.parameters,
            "network": self.architecture.network if self.architecture else None,
            "max_length": self.reader.max_length,
            "texts": self.texts,
            "epochs": self.epochs,
            "visits": self.visits,
            "batch_size": self.batch_size,
            "steps": self.steps,
            "tokens": self.tokens * self.epochs,
            "flops": step.flops * self.steps if step else None,
            "is_done": self.is_done,
        }


def plan_teacher(recipe: Recipe, texts: Texts, folder: Path | None) -> Taught:
    """The teacher of `recipe` and its pass over `texts`. `folder` is the run's, where it has finished texts."""
    model = _teacher(recipe.teacher)
    reader = reader_of(recipe, model)
    share = (texts.training + texts.held_out) / texts.training if texts.training else 0.0
    cannot_be_asked = recipe.teacher.is_remote and not recipe.teacher.is_api
    wanted = Tokens() if cannot_be_asked else texts.tokens(reader, owned=False)
    shape = model.architecture
    flops = None if shape is None else shape.flops(wanted.tokens, wanted.squares) * share
    done = folder is not None and any(
        manifest.parent.name != "evaluation" and (read_manifest(manifest.parent) or {}).get("rows") is not None
        for manifest in (folder / "embeddings").glob("[!.]*/manifest.json")
    )
    return Taught(recipe.teacher, model, reader, wanted.texts * share, wanted.tokens * share, flops, done)


def plan_student(recipe: Recipe, student: Student, teacher: Model, texts: Texts, folder: Path | None) -> Trained:
    """One student of `recipe`, taught by `teacher`."""
    train = recipe.train_of(student)
    try:
        student = from_model(recipe, student)
    except LeafError:  # more layers than there are: a warning, not a reason to plan nothing
        student = recipe.from_model(student, None)
    backbone = _backbone(student, teacher)
    shape = backbone.architecture
    if shape is not None and student.layers is not None and student.start is None:
        shape = shape.with_layers(student.layers if isinstance(student.layers, int) else len(student.layers))
    if shape is not None and student.wants_phrases:
        shape = replace(shape, vocabulary=shape.vocabulary + student.phrases)
    if shape is not None and student.layers == () and student.start is None:  # folded into the teacher's width
        shape = Architecture.table(shape.vocabulary, teacher.dim or shape.width, student.hidden)
    dim, is_table = teacher.dim, shape is not None and not shape.layers
    own = {**_prompts(recipe, teacher), **student.prompts} if student.start is None else backbone.prompts
    prompts = {"query": "", "document": "", **student_prompts(recipe.teacher, own)}
    limits = [student.max_length or reader_of(recipe, teacher).max_length, backbone.max_length]
    limit = min((each for each in limits if each is not None), default=None)
    reader = Reader(backbone.tokenizer, limit, prompts["query"], prompts["document"], is_table)
    read = texts.tokens(reader, kinds=train.kinds)
    rows = min(round(read.texts), train.limit or round(read.texts))
    share = rows / read.texts if read.texts else 0.0
    short = shorter(student.phrases) if student.wants_phrases else 1.0
    return Trained(
        student.name,
        backbone,
        shape,
        dim,
        reader,
        _parameters(shape, dim, student) if shape is not None and dim is not None else None,
        rows,
        read.tokens * share * short,
        read.squares * share * short**2,
        train.cycles * train.epochs_per_cycle,
        train.batch_size,
        train.accumulation,
        train.keep_checkpoints,
        train.row_lr is not None,
        folder is not None and read_manifest(folder / student.name) is not None,
    )


def shorter(phrases: int) -> float:
    """Tokens of a text with so many phrases for each without: a line through two records, by the logarithm.

    A million short texts of 30.49M word pieces have 21.78M tokens with 30,000 phrases and 18.94M with 117,000
    (results/ladder: third.json, table.json).
    """
    return min(1.0, max(0.5, 0.62 - 0.068 * math.log(phrases / 117_000)))


def reader_of(recipe: Recipe, teacher: Model) -> Reader:
    """How the teacher reads: an API whole texts, unless the recipe cuts them."""
    prompts, limit = _prompts(recipe, teacher), teacher.max_length
    if recipe.teacher.is_api and recipe.teacher.api.characters:
        cut = round(recipe.teacher.api.characters / CHARACTERS_PER_TOKEN)
        limit = cut if limit is None else min(limit, cut)
    return Reader(teacher.tokenizer, limit, prompts["query"], prompts["document"])


def _teacher(settings: Teacher) -> Model:
    width = vector_width(settings.vectors) if settings.vectors is not None else None
    if settings.is_api:
        dim = settings.api.dimensions or API_DIMENSIONS.get(settings.model) or width
        return Model(settings.model, "an API", dim=dim, max_length=settings.max_length)
    if settings.is_remote:
        return Model(settings.model, "its vectors", dim=width)
    found = find_model(settings.model, settings.revision)
    limits = [each for each in (settings.max_length, found.max_length) if each is not None]
    return replace(found, max_length=min(limits, default=None), dim=found.dim or width)


def _backbone(student: Student, teacher: Model) -> Model:
    if student.start is not None:
        return find_model(student.start)
    return teacher if student.backbone == "teacher" else find_model(student.backbone, student.revision)


def _prompts(recipe: Recipe, teacher: Model) -> dict[Role, str]:
    empty: dict[Role, str] = {"query": "", "document": ""}
    return {**empty, **teacher.prompts, **recipe.teacher.prompts}


def _bill(teacher: Teacher, texts: float, tokens: float) -> dict[str, Any]:
    """Dollars and seconds for so many texts and tokens; None for what the recipe gives no number for."""
    api = teacher.api
    batch_texts, batch_tokens = request_limits(provider_of(teacher.model)[0], api)
    requests = max(math.ceil(texts / batch_texts), math.ceil(tokens / batch_tokens))
    minutes = [requests / api.requests_per_minute] if api.requests_per_minute else []
    minutes += [tokens / api.tokens_per_minute] if api.tokens_per_minute else []
    return {
        "texts": round(texts),
        "tokens": round(tokens),
        "price": api.price,
        "cost": None if api.price is None else tokens / 1e6 * api.price,
        "requests": requests,
        "seconds": 60 * max(minutes) if minutes else None,
    }


def _parameters(shape: Architecture, dim: int, student: Student) -> int:
    """Of all that is trained: of a table its rows and its network, of any other the encoder and its head."""
    if not shape.layers:
        return shape.rows + shape.network
    return shape.parameters + shape.width * dim + (dim if student.bias else 0)
