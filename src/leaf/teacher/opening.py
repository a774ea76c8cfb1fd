"""The teacher of a recipe, whatever it is: a local model, an API, vectors that are already there."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from leaf.encoder import Role
from leaf.files import user_cache
from leaf.recipe import VECTORS_SCHEME
from leaf.recipe import Teacher as Settings
from leaf.teacher.embed import TeacherEncoder
from leaf.vector_files import key_of

#: Where a run keeps its copy of vectors that were there before it.
OWNED = ".owned"


class Teacher(TeacherEncoder, Protocol):
    """What every kind of teacher can say of itself."""

    prompts: dict[Role, str]

    @property
    def folder(self) -> str | None:
        """Its weights, to begin a student from; None where there are only vectors of it."""

    @property
    def max_length(self) -> int | None:
        """Tokens after which it cuts a text; None where there is no limit, or it is not known."""

    @property
    def num_parameters(self) -> int | None:
        """Parameters; None where they are not known."""

    def bill(self) -> dict[str, Any] | None:
        """What the run has paid for its vectors; None where nobody is paid."""

    def close(self) -> None:
        """Lets go of files and connections."""


def open_teacher(
    settings: Settings,
    *,
    device: str,
    embeddings: Path,
    sample: Callable[[], Sequence[str]],
    run: str = "",
    max_cost: float | None = None,
) -> Teacher:
    """The teacher of `settings`.

    `embeddings` is the run's cache. `compute_dtype = "auto"` follows vectors that are there already, else what
    `sample`, texts of the run, allow on this hardware. What an API answers is kept in the user's cache, for every run;
    `run` names the one that `max_cost` (US dollars) is for.
    """
    inner: Teacher | None = None
    if settings.is_api:
        from leaf.teacher.api import ApiTeacher

        inner = ApiTeacher(
            settings.model,
            settings.api,
            name=settings.name,
            prompts=settings.prompts,
            store=user_cache() / "api",
            run=run,
            max_cost=max_cost,
        )
    elif not settings.is_remote:
        inner = _local(settings, device, embeddings, sample)
    if settings.vectors is not None:
        from leaf.teacher.vectors import OwnedTeacher

        # A model that cannot be asked gives its space the name that it has in the recipe, whatever tables call it.
        name = inner.name if inner is not None else settings.model.removeprefix(VECTORS_SCHEME)
        return OwnedTeacher(settings.vectors, inner, embeddings / OWNED, name=name)
    assert inner is not None, "the recipe has no teacher that is neither asked nor owned"
    return inner


def _local(settings: Settings, device: str, embeddings: Path, sample: Callable[[], Sequence[str]]) -> Teacher:
    from leaf.teacher.model import SentenceTransformerEncoder

    dtype = settings.compute_dtype
    if dtype == "auto":
        dtype = known_dtype(embeddings) or dtype
    teacher = SentenceTransformerEncoder(
        settings.model,
        name=settings.name,
        revision=settings.revision,
        prompts=settings.prompts,
        max_length=settings.max_length,
        compute_dtype="bfloat16" if dtype == "bfloat16" else "float32",
        device=device,
    )
    if dtype == "auto":
        teacher.use_bfloat16_where_exact(sample())
    return teacher


def known_dtype(embeddings: Path) -> Literal["float32", "bfloat16"] | None:
    """What the vectors in a run's cache were computed in; None where there are none.

    A cache may come from other hardware: a teacher pass on GPUs is trained on elsewhere.
    """
    part = next(iter(sorted(embeddings.glob("*/*.parquet"))), None)
    dtype = key_of(part)["teacher"].get("compute_dtype") if part is not None else None
    return dtype if dtype in ("float32", "bfloat16") else None
