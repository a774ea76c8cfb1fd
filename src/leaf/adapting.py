"""`leaf distill --from STUDENT RECIPE`: an aligned student goes on learning, on one's own texts, for the same teacher.

The recipe's texts are one's own. Texts of sources with `guard = true` keep the student aligned on everything else;
where the recipe has none, the texts that the student was trained on are taken, if its run still has them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leaf.errors import LeafError
from leaf.given import Given
from leaf.light import revision_of
from leaf.models import resolve_model
from leaf.progress import say
from leaf.recipe import Recipe, TextSource
from leaf.run import read_manifest
from leaf.space import Space
from leaf.texts.shards import HELD_OUT


def adapting(
    recipe: str | Path, student: str | Path, overrides: Sequence[str] = (), *, given: Given | None = None
) -> Recipe:
    """`recipe`, with what is `given`, and its student starting from the folder `student`.

    What the recipe leaves out comes from the student: the teacher from its `space.json`, guard texts from its run.
    Raises `LeafError` for a folder that is no aligned student, for a recipe with several students, for a teacher in a
    folder that is not here, and for one behind a server of one's own where the recipe does not say at which URL.
    """
    if given is not None and (given.layers or given.backbone):
        raise LeafError(
            f"--layers and --backbone are for a new student, and --from goes on with '{student}'; leave them out"
        )
    folder = Path(resolve_model(str(student)))
    if not folder.is_dir():
        raise LeafError(f"--from '{student}' is no folder; give that of a student, such as runs/demo/student")
    teacher = Space.load(folder).teacher
    # Absolute, so that the recipe in the run folder is right wherever it is read.
    start = f"student.start={json.dumps(str(folder.resolve()), ensure_ascii=False)}"
    adapted = Recipe.load(recipe, [*overrides, start], under={"teacher": _settings(teacher)}, given=given)
    model = adapted.teacher.model
    was_folder = "weights" in teacher and revision_of(teacher) is None and not model.startswith("package:")
    if model == teacher["model"] and was_folder and not Path(model).is_dir():
        raise LeafError(
            f"the teacher of '{student}' was the folder '{model}', which is not here; say where it is now, with --set "
            "teacher.model=FOLDER"
        )
    if (host := teacher.get("url")) and adapted.teacher.is_api and adapted.teacher.api.url is None:
        raise LeafError(
            f"the teacher of '{student}' was asked at {host}, and these texts would go to its provider; add --set "
            f"teacher.api.url=http://{host}, with the port that it has, or another URL of the same model"
        )
    if any(source.guard for source in adapted.texts):
        return adapted
    texts = folder.parent / "texts"
    if read_manifest(texts) is None:
        say(
            "no guard texts: what the student knows beyond these texts may fade; add general ones, [[texts]] with "
            "guard = true"
        )
        return adapted
    # What the student was trained on would flatter it as it was before: its error is told from texts it never saw.
    guards = (
        TextSource(source=str(texts / "part-*.parquet"), name="guard", guard=True, held_out=False),
        TextSource(source=str(texts / HELD_OUT), name="guard, held out", guard=True, held_out=True),
    )
    return adapted.model_copy(update={"texts": (*adapted.texts, *guards)})


def _settings(teacher: Mapping[str, Any]) -> dict[str, Any]:
    """The `[teacher]` of a recipe that asks for the teacher of this identity again."""
    found = {key: teacher[key] for key in ("model", "prompts", "max_length") if teacher.get(key)}
    if revision := revision_of(teacher) if "weights" in teacher else None:
        found["revision"] = revision
    if api := {key: teacher[key] for key in ("dimensions", "input_types", "characters") if teacher.get(key)}:
        found["api"] = api
    return found
