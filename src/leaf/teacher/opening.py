"""The teacher of a recipe, whatever it is: a local model, an API, vectors that are already there."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from leaf.encoder import Role
from leaf.errors import LeafError
from leaf.files import user_cache
from leaf.models import short_name
from leaf.recipe import Teacher as Settings
from leaf.teacher.embed import TeacherEncoder
from leaf.vector_files import key_of

#: Models that are asked over HTTP begin so; what follows is the provider's own name.
API_SCHEMES = ("openai:", "voyage:", "cohere:")
#: A model that cannot be asked: its vectors are all there is.
VECTORS_SCHEME = "vectors:"


class Teacher(TeacherEncoder, Protocol):
    """What every kind of teacher can say of itself."""

    prompts: dict[Role, str]
    folder: str | None
    """Its weights, to begin a student from; None where there are only vectors of it."""

    @property
    def max_length(self) -> int | None:
        """Tokens after which it cuts a text; None where there is no limit, or it is not known."""

    @property
    def num_parameters(self) -> int | None:
        """Parameters; None where they are not known."""


def is_api(settings: Settings) -> bool:
    """Whether the teacher is asked over HTTP, for money."""
    return settings.model.startswith(API_SCHEMES)


def is_remote(settings: Settings) -> bool:
    """Whether the teacher has no weights here: an API, or a model that cannot be asked at all."""
    return settings.model.startswith((*API_SCHEMES, VECTORS_SCHEME))


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

    `embeddings` is the run's cache. `compute_dtype = "auto"` follows vectors that are there already, else what `sample`,
    texts of the run, allow on this hardware. What an API answers is kept in the user's cache, for every run; `run` names
    the one that `max_cost` (US dollars) is for.
    """
    name = settings.name or short_name(settings.model.removeprefix(VECTORS_SCHEME))
    inner: Teacher | None = None
    if is_api(settings):
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
    elif not settings.model.startswith(VECTORS_SCHEME):
        inner = _local(settings, device, embeddings, sample)
    if settings.vectors is not None:
        from leaf.teacher.vectors import OwnedTeacher

        return OwnedTeacher(settings.vectors, inner, embeddings / ".owned", name=name)
    if inner is None:
        raise LeafError(f"teacher.model '{settings.model}' cannot be asked; give its vectors in teacher.vectors")
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
