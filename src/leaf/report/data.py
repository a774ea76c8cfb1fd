"""Everything a report says, read from the run's files into one plain dict.

That dict is `report.json`; pages, cards, figures and the printed summary are made from nothing else, so they
cannot disagree.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from leaf.errors import LeafError
from leaf.evaluation import records
from leaf.evaluation.compare import MODES, compare, main_scores, means
from leaf.evaluation.records import Score
from leaf.exported import EXPORTED, PRECISIONS
from leaf.models import hub_id, short_name
from leaf.provenance import provenance
from leaf.recipe import Recipe
from leaf.recipe import Student as StudentSettings
from leaf.run import read_manifest
from leaf.student.metrics import held_out_errors
from leaf.texts.sources import name_of

#: What a student's manifest tells the report, besides what its schema names.
TRAINING = (
    "max_length",
    "ridge_texts",
    "best_epoch",
    "epochs",
    "steps",
    "num_texts",
    "num_tokens",
    "seconds",
)

#: What a record of `speed/` tells the report.
LATENCY = ("median_ms", "p10_ms", "p90_ms")

#: What a recipe says about the terms of a source.
LICENCE = ("licence", "commercial")

Json = TypeVar("Json", dict[str, Any], list[Any])
#: The scores of one encoder in one mode: dataset → record.
Scores = Mapping[str, Score]


def read_run(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """The content of `report.json` for the run in `folder`. DESIGN.md has its schema; other keys are extras.

    Raises `LeafError` where a stage is not complete or a file is damaged.
    """
    manifest = _manifest(folder / "scores")
    found = main_scores(records.read(folder / "scores"))
    order = {name: position for position, name in enumerate(manifest.get("datasets", []))}
    found.sort(key=lambda score: order.get(score.dataset, len(order)))
    teacher, bm25 = (_select(found, mode) for mode in ("teacher", "bm25"))
    students = [_student(folder, recipe, each, found) for each in recipe.students]
    space = _read(folder / recipe.students[0].name / "space.json", {})
    speed = _read(folder / "speed" / "teacher.json", {})
    hardware = speed.get("provenance", {}).get("hardware", {})
    return {
        "name": recipe.name,
        "description": recipe.description,
        "folder": folder.as_posix(),
        "teacher": {
            **recipe.teacher.model_dump(include={"model", "revision", "max_length"}),
            "name": recipe.teacher.name or short_name(recipe.teacher.model),
            "dim": space.get("dim"),
            "space": {key: space.get(key) for key in ("id", "normalised", "similarity")},
            "prompts": {**space.get("teacher", {}).get("prompts", {}), **recipe.teacher.prompts},
            "parameters": manifest.get("teacher_parameters"),
            "scores": {dataset: score.value for dataset, score in teacher.items()},
            "latency_ms": speed.get("median_ms"),
            "latency": _latency(speed),
        },
        "students": students,
        "baselines": {"bm25": {dataset: score.value for dataset, score in bm25.items()}},
        "datasets": {
            each.dataset: {"task": each.task, "measure": each.measure, "num_queries": each.num_queries}
            for each in found
        },
        "texts": _texts(folder, recipe),
        "examples": _examples(folder / "scores" / "examples.json"),
        "speed": {
            **{key: speed.get(key) for key in ("device", "num_queries")},
            **{key: hardware.get(key) for key in ("cpu", "threads")},
        },
        "notes": _notes(recipe, teacher, manifest.get("not_measured", {})),
        "measured": manifest.get("provenance", {}),
        "provenance": provenance(),
    }


def _student(folder: Path, recipe: Recipe, settings: StudentSettings, found: Sequence[Score]) -> dict[str, Any]:
    manifest = _manifest(folder / settings.name)
    scores = {mode: _select(found, mode, settings.name) for mode in MODES}
    compared, averages = compare(found, settings.name), means(found, settings.name)
    kept = next((each.retention for each in averages if each.task == "retrieval"), {})
    speed = _read(folder / "speed" / f"{settings.name}.json", {})
    above = recipe.above(settings)
    return {
        "name": settings.name,
        "path": settings.name,
        "layers": manifest["layers"],
        "parameters": manifest["parameters"],
        "epsilon": manifest["error"],
        "scores": {
            dataset: {mode: scores[mode][dataset].value for mode in MODES}
            for dataset in scores["standard"]
            if dataset in scores["asymmetric"]
        },
        "retention": {mode: kept[mode].value if mode in kept else None for mode in MODES},
        "intervals": {mode: [kept[mode].low, kept[mode].high] if mode in kept else None for mode in MODES},
        "retention_by_dataset": {
            mode: {
                each.name: each.retention[mode]._asdict()
                for each in compared
                if each.task == "retrieval" and mode in each.retention
            }
            for mode in MODES
        },
        "comparisons": [each.to_json() for each in compared],
        "means": [each.to_json() for each in averages],
        "latency_ms": speed.get("median_ms"),
        "latency": _latency(speed),
        "exported": _exported(folder, settings.name, found),
        "errors": held_out_errors(folder / settings.name / "metrics.jsonl"),
        "backbone": recipe.from_model(settings, None).backbone,
        **({"above": above.name} if above else {}),
        "pooling": settings.pooling,
        "onnx": _read(folder / settings.name / "onnx" / "manifest.json", {}) or None,
        "train": recipe.train_of(settings).model_dump(mode="json"),
        **{key: manifest.get(key) for key in TRAINING},
    }


def _exported(folder: Path, student: str, found: Sequence[Score]) -> dict[str, dict[str, Any]]:
    """Of each ONNX file that was scored: how long a query takes, and what it keeps of the teacher, asymmetric.

    Empty where the run was scored on other retrieval sets besides: retention over fewer sets compares with no other.
    """
    manifest = read_manifest(folder / EXPORTED)
    if manifest is None:
        return {}
    teacher = [each for each in found if each.mode == "teacher" and each.task == "retrieval"]
    scores = [each for each in records.read(folder / EXPORTED) if each.mode == "asymmetric"]
    if {each.dataset for each in teacher} != {each.dataset for each in scores}:
        return {}
    exported = {}
    for precision in PRECISIONS:
        name = f"{student}-{precision}"
        if name in manifest["encoders"]:
            [mean] = means([*teacher, *scores], name)
            latency = _latency(_read(folder / "speed" / "exported" / f"{name}.json", {}))
            if latency and "asymmetric" in mean.retention:
                exported[precision] = {"latency": latency, "retention": list(mean.retention["asymmetric"])}
    return exported


def _latency(speed: Mapping[str, Any]) -> dict[str, float] | None:
    """Percentiles of the time of one query, None where it was not timed."""
    return {key: speed[key] for key in LATENCY if key in speed} or None


def _select(found: Sequence[Score], mode: str, encoder: str | None = None) -> dict[str, Score]:
    return {each.dataset: each for each in found if each.mode == mode and encoder in (None, each.encoder)}


def _texts(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Counts and licence per text source. What nobody wrote into the recipe stays None.

    Rows that a column of their file names (`source_column`) have the licence of its entry.
    """
    entries = {name_of(source): source for source in recipe.texts}
    hub = [each.source.removeprefix("hub:") for each in recipe.texts if each.source.startswith("hub:")]
    sources: dict[str, dict[str, Any]] = {}
    for name, counts in _manifest(folder / "texts").get("sources", {}).items():
        entry = entries.get(counts.get("entry", name))
        said = {"licence": entry.licence, "commercial": entry.commercial} if entry else dict.fromkeys(LICENCE)
        sources[name] = {"kept": counts.get("kept"), "held_out": counts.get("held_out"), **said}
    return {
        "sources": sources,
        "not_commercial": [name for name, each in sources.items() if each["commercial"] is False],
        "hub": [name for name in dict.fromkeys(hub) if hub_id(name)],
    }


def _examples(path: Path) -> list[dict[str, Any]]:
    """The example searches, each document marked with whether the teacher found it too."""
    examples = _read(path, [])
    for example in examples:
        teachers = {document["id"] for document in example["answers"][0]["documents"]}
        for document in (each for answer in example["answers"] for each in answer["documents"]):
            document["text"] = " ".join(document["text"].split())  # a document's lines would break the tables
            document["teacher_too"] = document["id"] in teachers
    return examples


def _notes(recipe: Recipe, teacher: Scores, not_measured: Mapping[str, str]) -> list[str]:
    """What a reader of the numbers should know."""
    notes = [f"{score.dataset}: {note}" for score in teacher.values() for note in score.notes]
    for name, score in teacher.items():
        if score.task == "retrieval" and score.value <= 0:
            notes.append(f"{name}: the teacher finds nothing, so there is no retention; left out of the mean")
    if "held-out-pairs" in teacher:
        notes.append("held-out-pairs comes from the sources of the training texts: it measures the domain trained on")
    notes += [f"asked for and not measured: {name} ({reason})" for name, reason in not_measured.items()]
    return notes


def _manifest(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    if manifest is None:
        raise LeafError(f"{folder} is not complete (no manifest.json); run the recipe again to finish it")
    return manifest


def _read(path: Path, missing: Json) -> Json:
    """The JSON in `path`, or `missing` where there is no such file; another type than that one is damage."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return missing
    except (OSError, ValueError) as error:
        raise LeafError(f"{path} is damaged ({error}); delete its folder and run the recipe again") from error
    if not isinstance(value, type(missing)):
        raise LeafError(f"{path} holds a JSON {type(value).__name__}; delete its folder and run the recipe again")
    return value
