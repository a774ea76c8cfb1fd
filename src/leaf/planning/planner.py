"""`leaf plan RECIPE`: what a run will take, before any of it is spent. No network, no torch, a second or two."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leaf.models import short_name
from leaf.planning import storage
from leaf.planning.hours import hours, paper
from leaf.planning.parts import Taught, Trained, plan_student, plan_teacher
from leaf.planning.rates import memory_bytes
from leaf.planning.sampling import count_sets
from leaf.planning.texts import Texts, plan_texts
from leaf.planning.warn import warnings
from leaf.recipe import Recipe
from leaf.run import Run
from leaf.sweep import expand


def plan(recipe: Recipe, folder: Path | None = None, *, hardware: str | None = None, gpus: int = 1) -> dict[str, Any]:
    """What `recipe` costs, as plain JSON: texts, tokens, disk, memory, hours, dollars, each with where it is from.

    `folder` is the run's (default `runs/NAME`): what is finished there is counted instead of estimated. `hardware` is a
    key of `leaf.planning.rates.GPUS`, its beginning (`a100`), or `cpu`; None and an unknown name show several. `gpus`
    share the teacher pass and every batch. What cannot be known is left out and said in `warnings`; `LeafError` is
    raised for a damaged run folder alone.
    """
    run = Run(folder or Path("runs") / recipe.name)
    conflict = run.conflict(recipe) if recipe.sweep is None else None  # a grid may grow (`leaf.sweep.regrid`)
    recipe = expand(recipe)
    texts = plan_texts(recipe, run)
    own = run.folder if texts.is_measured and conflict is None else None
    teacher = plan_teacher(recipe, texts, own)
    students = [plan_student(recipe, each, teacher.model, texts, own) for each in recipe.students]
    evaluation = count_sets(recipe.evaluate.data, texts.pairs, texts.tokens(teacher.reader).mean)
    record: dict[str, Any] = {
        "recipe": recipe.name,
        "description": recipe.description,
        "folder": str(run.folder),
        "conflict": conflict,
        "texts": _texts(texts, teacher, students),
        "teacher": teacher.record(evaluation),
        "students": [each.record() for each in students],
        "evaluation": {**evaluation, "benchmarks": list(recipe.evaluate.benchmarks)},
        "hardware": hours(hardware, gpus, teacher, students, evaluation),
        "paper": paper(students),
        "disk": storage.bill(_disk(recipe, teacher, texts, students), run.folder),
        "download": _download(recipe, texts, teacher, students),
        "memory": {"stages": _memory(recipe, teacher, texts, students), "machine": memory_bytes()},
    }
    record["warnings"] = warnings(record, recipe, texts.sources, hardware)
    return record


def _texts(texts: Texts, teacher: Taught, students: Sequence[Trained]) -> dict[str, Any]:
    sources = []
    for source in texts.sources:
        read = source.lengths(teacher.reader)
        by_student = [source.lengths(each.reader).share_cut(each.reader.max_length) for each in students]
        told = [share for share in by_student if share is not None]
        sources.append(
            {
                "name": source.name,
                "source": source.source,
                "rows": source.rows,
                "rows_from": source.rows_from,
                "trained": source.trained,
                "query_share": source.query_share,
                "mean_tokens": read.mean(teacher.reader.max_length),
                "tokens_from": read.origin,
                "cut_by_teacher": read.share_cut(teacher.reader.max_length),
                "cut_by_students": max(told) if len(told) == len(by_student) and told else None,
                "characters": source.characters,
                "megabytes": source.megabytes,
                "licence": source.licence,
            }
        )
    return {
        "sources": sources,
        "rows": texts.rows,
        "training": texts.training,
        "held_out": texts.held_out,
        "held_out_pairs": texts.pairs,
        "is_measured": texts.is_measured,
        "max_length": {"teacher": teacher.reader.max_length, "students": [each.reader.max_length for each in students]},
    }


def _disk(recipe: Recipe, teacher: Taught, texts: Texts, students: Sequence[Trained]) -> list[storage.Item]:
    rows = texts.training + texts.held_out
    items = [_shards(texts)]
    if teacher.model.dim is not None:
        items.append(storage.vectors(rows, teacher.model.dim, recipe.teacher.storage_dtype))
        items.append(storage.targets(rows, teacher.model.dim, recipe.teacher.storage_dtype))
    share = rows / texts.training if texts.training else 0
    readers = {each.reader: each.architecture.vocabulary for each in students if each.architecture is not None}
    names = {each.reader: each.name for each in reversed(students)}
    files = {}  # students that read alike share one
    for reader, vocabulary in readers.items():
        item = storage.tokens(texts.tokens(reader).tokens * share, rows, vocabulary)
        files[reader] = item if len(readers) == 1 else item._replace(what="tokens of " + names[reader])
    kept = [storage.Saved(each.parameters, each.epochs, each.keeps_checkpoints) for each in students if each.parameters]
    return [*items, *files.values(), *storage.students(kept, recipe.export.precisions)]


def _shards(texts: Texts) -> storage.Item:
    if texts.shard_bytes is not None:
        return storage.Item("text shards", texts.shard_bytes, "finished: measured")
    characters = sum(source.trained * source.characters for source in texts.sources)
    size = sum(source.trained * source.characters * source.shard_bytes for source in texts.sources)
    held_out = 1 + texts.held_out / max(texts.training, 1)
    left = size / max(characters, 1)
    how = f"{characters * held_out / 1e6:,.1f}M characters × {left:.2f} bytes that zstd leaves"
    return storage.Item("text shards", size * held_out, how)


def _memory(recipe: Recipe, teacher: Taught, texts: Texts, students: Sequence[Trained]) -> list[dict[str, Any]]:
    steps = [
        {
            "name": each.name,
            "parameters": each.parameters,
            "tokens": each.slice_tokens,
            "layers": each.architecture.layers,
            "width": each.architecture.width,
        }
        for each in students
        if each.architecture is not None and each.parameters is not None
    ]
    shape = teacher.model.architecture
    parameters = shape.parameters if shape is not None and teacher.flops else None
    return storage.memory(texts.rows, texts.training, recipe.prepare.shard_rows, teacher.model.dim, parameters, steps)


def _download(recipe: Recipe, texts: Texts, teacher: Taught, students: Sequence[Trained]) -> dict[str, Any]:
    """Bytes to fetch: the sources' own word, and four bytes a parameter for models that are not here."""
    wanted = {each.backbone.name: each.backbone for each in students}
    wanted[teacher.model.name] = teacher.model
    absent = [each for each in wanted.values() if not each.is_local and each.architecture is not None]
    models = {short_name(each.name): 4 * each.architecture.parameters for each in absent if each.architecture}
    on_hub = dict.fromkeys(each.source for each in texts.sources if each.source.startswith("hub:") and not each.texts)
    told = {each.source for each in texts.sources if each.megabytes}
    silent = [source for source in on_hub if source not in told]
    return {"texts": sum(each.megabytes for each in texts.sources) * 1e6, "models": models, "unknown": silent}
