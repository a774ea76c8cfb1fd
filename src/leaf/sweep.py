"""A sweep: one student in many variants, over one set of texts and teacher vectors (Fig. 4, 8 to 10, Tables 4, 5).

    [sweep.grid]
    student.pooling = ["mean", "cls"]
    train.lr = [1e-4, 1e-3]

`expand` turns the grid into students, which the ordinary stages train one after another; a point that is finished is
skipped like any finished student. `read_sweep` gathers what came of them. The run folder keeps the recipe as it was
written, so that a grid may grow: the students that are there stay, and the new points join them (`regrid`).
"""

import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from leaf.errors import LeafError
from leaf.evaluation import records
from leaf.evaluation.records import Score
from leaf.files import digest, write_text
from leaf.models import short_name
from leaf.provenance import provenance
from leaf.recipe import Recipe, Student, Sweep
from leaf.run import MANIFEST, read_manifest
from leaf.student.metrics import held_out_curve

#: Characters of a student's name; a longer one is cut and gets a digest of its settings.
MAX_NAME = 60
MODES = ("standard", "asymmetric")
#: What a point of the record takes from its student's manifest as it is.
FACTS = ("layers", "parameters", "error", "best_epoch", "last_error", "epochs", "steps", "num_texts", "seconds")


class Point(NamedTuple):
    """One point of a grid."""

    name: str
    """The student's name in the run."""
    case: str | None
    settings: dict[str, Any]
    """`student.FIELD` or `train.FIELD` → value, where the point sets it."""


def points(sweep: Sweep) -> list[Point]:
    """The points of `sweep`: cases first, then the grid's fields in their order, the last one varying fastest.

    Raises `LeafError` where two points have one name: a value given twice, or two that are spelled alike.
    """
    fields = list(sweep.grid)
    found: dict[str, Point] = {}
    for case in sweep.cases or ({},):
        shared = {key: value for key, value in case.items() if key != "name"}
        for values in itertools.product(*sweep.grid.values()):
            chosen = dict(zip(fields, values, strict=True))
            point = Point(_name(case.get("name"), chosen), case.get("name"), {**shared, **chosen})
            if (other := found.setdefault(point.name, point)) is not point:
                raise LeafError(
                    f"sweep: two points are called {point.name} ({_short(other.settings)}; {_short(point.settings)}); "
                    "leave one out, or give each a name of its own in [[sweep.cases]]"
                )
    return list(found.values())


def expand(recipe: Recipe) -> Recipe:
    """`recipe` with a student for every point of its sweep in the place of its students; without a sweep, itself.

    Each is the one that the sweep names, with the point's settings on top. A recipe that has these students
    already is returned as it is. Raises `LeafError` where the sweep's student is not there or a point is not valid.
    """
    if recipe.sweep is None:
        return recipe
    wanted = points(recipe.sweep)
    if {point.name for point in wanted} <= {student.name for student in recipe.students}:
        return recipe
    base = _base(recipe, recipe.sweep)
    data = recipe.model_dump(mode="json")
    data["students"] = [_variant(base, point) for point in wanted]
    return Recipe.parse(data, origin=f"sweep of {base.name}")


def regrid(folder: Path, recipe: Recipe) -> None:
    """Gives the run in `folder` to `recipe` where the two differ in the sweep alone; anything else is left alone.

    Nothing is mixed: every student has the inputs that it was made from in its manifest. Scores are made for all
    students in one go, so they will be made again.
    """
    path = folder / "recipe.toml"
    if recipe.sweep is None or not path.is_file():
        return
    known, wanted = (each.model_dump(mode="json") for each in (Recipe.load(path), recipe))
    if known["sweep"] is None or known == wanted or {**known, "sweep": wanted["sweep"]} != wanted:
        return
    (folder / "scores" / MANIFEST).unlink(missing_ok=True)
    write_text(path, recipe.to_toml())


def borrow(folder: Path, source: Path) -> None:
    """Links the finished texts and teacher vectors of the run in `source` into `folder`: the teacher is paid once.

    What is in `folder` already stays. Whether the texts are those of this recipe is checked where they are read, as
    in any run. Raises `LeafError` where `source` has no finished texts.
    """
    if read_manifest(source / "texts") is None:
        raise LeafError(f"{source} has no finished texts to take; give a run folder in which `leaf embed` has finished")
    vectors = sorted(manifest.parent for manifest in (source / "embeddings").glob(f"[!.]*/{MANIFEST}"))
    for finished in (source / "texts", *vectors):
        link = folder / finished.relative_to(source)
        if link.exists():
            continue
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)  # a link to a folder that has gone
        # Relative, so that two runs that move together stay together.
        link.symlink_to(os.path.relpath(finished.resolve(), link.parent.resolve()), target_is_directory=True)


def read_sweep(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """The content of `sweep.json` for the run in `folder`, plain JSON data; its students must be finished.

        {"name", "description", "folder",
         "base": {setting: value, of those that no point sets},
         "axes": {"train.lr": [values]}, "cases": [names],
         "teacher": {"name", "model", "ndcg@10"}, "datasets": [retrieval sets of the mean],
         "points": [{"name", "case", "settings": {axis: value},
                     "error": held-out ε of the kept epoch, "last_error": at the end, "curve": {"steps", "errors"},
                     "steps", "epochs", "num_texts", "seconds", "batch_size", "lr", "final_lr",
                     "ndcg@10": {"standard", "asymmetric"} or null, "provenance", and more of the manifest}],
         "provenance"}

    nDCG@10 is the mean over the retrieval sets that every point was scored on, 0 to 1; null before they are scored.
    """
    sweep = recipe.sweep
    assert sweep is not None, "only the recipe of a sweep gets here"
    recipe = expand(recipe)
    students = {student.name: student for student in recipe.students}
    wanted = points(sweep)
    axes = list(dict.fromkeys(key for point in wanted for key in point.settings))
    found = [_point(folder, recipe, point, students[point.name], axes) for point in wanted]
    scores = _scores(folder, {each["name"]: each.pop("fingerprint") for each in found})
    teacher = recipe.teacher.name or short_name(recipe.teacher.model)
    datasets = _common(scores, [("teacher", teacher), *itertools.product(MODES, [each["name"] for each in found])])
    for each in found:
        each["ndcg@10"] = {mode: _mean(scores, mode, each["name"], datasets) for mode in MODES} if datasets else None
    return {
        "name": recipe.name,
        "description": recipe.description,
        "folder": folder.as_posix(),
        "base": {key: value for key, value in _settings(recipe, recipe.students[0]).items() if key not in axes},
        "axes": {axis: _distinct([each["settings"][axis] for each in found]) for axis in axes},
        "cases": [case["name"] for case in sweep.cases],
        "teacher": {
            "name": teacher,
            "model": recipe.teacher.model,
            "ndcg@10": _mean(scores, "teacher", teacher, datasets) if datasets else None,
        },
        "datasets": datasets,
        "points": found,
        "provenance": provenance(),
    }


def _name(case: str | None, settings: Mapping[str, Any]) -> str:
    """`student-batch-size-16-schedule-cosine`; too long a name ends in a digest of its settings instead."""
    parts = [case] if case else []
    parts += [f"{_slug(key.partition('.')[2])}-{_slug(value)}" for key, value in settings.items()]
    name = "-".join(["student", *parts])
    if len(name) <= MAX_NAME:
        return name
    tail = digest([case, settings])[:8]
    return f"{name[: MAX_NAME - len(tail) - 1].rstrip('-.')}-{tail}"


def _slug(value: Any) -> str:
    """`value` in the letters of a student's name: `leaf+minilm` → `leaf-minilm`, [0, 5] → `0-5`, [] → `none`."""
    text = "-".join(map(_slug, value)) if isinstance(value, list | tuple) else str(value)
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "none"


def _short(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())


def _base(recipe: Recipe, sweep: Sweep) -> Student:
    known = {student.name: student for student in recipe.students}
    if sweep.student is None:
        return recipe.students[0]
    if sweep.student not in known:
        raise LeafError(f"sweep.student is '{sweep.student}', which the recipe has not; it has {', '.join(known)}")
    return known[sweep.student]


def _variant(base: Student, point: Point) -> dict[str, Any]:
    data = {**base.model_dump(mode="json"), "name": point.name}
    data["train"] = dict(data["train"])
    for key, value in point.settings.items():
        table, _, field = key.partition(".")
        (data["train"] if table == "train" else data)[field] = value
    return data


def _settings(recipe: Recipe, student: Student) -> dict[str, Any]:
    """Every setting of one student that a sweep can vary, by its name in a grid."""
    tables = {
        "student": student.model_dump(mode="json", exclude={"name", "train"}),
        "train": recipe.train_of(student).model_dump(mode="json"),
    }
    return {f"{table}.{field}": value for table, fields in tables.items() for field, value in fields.items()}


def _point(folder: Path, recipe: Recipe, point: Point, student: Student, axes: Sequence[str]) -> dict[str, Any]:
    manifest = read_manifest(folder / point.name)
    if manifest is None:
        raise LeafError(f"{folder / point.name} is not complete; run `leaf sweep` with this recipe again to finish it")
    settings = _settings(recipe, student)
    curve = held_out_curve(folder / point.name / "metrics.jsonl")
    if not curve:
        raise LeafError(f"{folder / point.name} has no held-out ε in its metrics.jsonl; delete that folder, run again")
    return {
        "name": point.name,
        "case": point.case,
        "settings": {axis: settings[axis] for axis in axes},
        **{key: settings[f"train.{key}"] for key in ("batch_size", "lr", "final_lr")},
        **{key: manifest[key] for key in FACTS},
        "curve": {"steps": [step for step, _ in curve], "errors": [error for _, error in curve]},
        "ndcg@10": None,
        "fingerprint": manifest["fingerprint"],
        "provenance": manifest["provenance"],
    }


def _scores(folder: Path, students: Mapping[str, str]) -> list[Score]:
    """nDCG@10 on the retrieval sets, if these very students were scored, by name and fingerprint; else nothing."""
    manifest = read_manifest(folder / "scores")
    if manifest is None or manifest["inputs"].get("students") != students:
        return []
    return [each for each in records.read(folder / "scores") if (each.task, each.measure) == ("retrieval", "ndcg@10")]


def _common(scores: Sequence[Score], wanted: Sequence[tuple[str, str]]) -> list[str]:
    """The sets on which every (mode, encoder) has a score: means over different sets do not compare."""
    by_set: dict[str, set[tuple[str, str]]] = {}
    for each in scores:
        by_set.setdefault(each.dataset, set()).add((each.mode, each.encoder))
    return [dataset for dataset, found in by_set.items() if found.issuperset(wanted)]


def _mean(scores: Sequence[Score], mode: str, encoder: str, datasets: Sequence[str]) -> float:
    values = {each.dataset: each.value for each in scores if (each.mode, each.encoder) == (mode, encoder)}
    return sum(values[dataset] for dataset in datasets) / len(datasets)


def _distinct(values: Sequence[Any]) -> list[Any]:
    return list({json.dumps(value): value for value in values}.values())
