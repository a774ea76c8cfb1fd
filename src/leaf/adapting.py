"""`leaf distill --from STUDENT RECIPE`: an aligned student goes on learning, on one's own texts, for the same teacher.

The recipe's texts are one's own. Texts of sources with `guard = true` keep the student aligned on everything else;
where the recipe has none, the texts that the student was trained on are taken, if its run still has them.
"""

from collections.abc import Sequence
from pathlib import Path

from leaf.errors import LeafError
from leaf.models import resolve_model
from leaf.progress import say
from leaf.recipe import Recipe, TextSource
from leaf.run import read_manifest
from leaf.space import Space


def adapting(recipe: str | Path, student: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """`recipe` with its student starting from the folder `student`.

    What the recipe leaves out comes from the student: the teacher from its `space.json`, guard texts from its run.
    Raises `LeafError` for a folder that is no aligned student, and for a recipe with several students.
    """
    folder = Path(resolve_model(str(student)))
    if not folder.is_dir():
        raise LeafError(f"--from '{student}' is no folder; give that of a student, such as runs/demo/student")
    teacher = Space.load(folder).teacher
    known = {key: teacher[key] for key in ("model", "prompts", "max_length") if teacher.get(key)}
    adapted = Recipe.load(recipe, [*overrides, f"student.start={_quoted(str(student))}"], under={"teacher": known})
    if any(source.guard for source in adapted.texts):
        return adapted
    texts = folder.parent / "texts"
    if read_manifest(texts) is None:
        say(
            "no guard texts: what the student knows beyond these texts may fade; add general ones, [[texts]] with "
            "guard = true"
        )
        return adapted
    guard = TextSource(source=str(texts / "part-*.parquet"), name="guard", guard=True)
    return adapted.model_copy(update={"texts": (*adapted.texts, guard)})


def _quoted(text: str) -> str:
    """A literal string of TOML, in which a Windows path stays as it is."""
    return f"'{text}'"
