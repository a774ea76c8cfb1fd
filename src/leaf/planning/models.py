"""What is known of a model without loading it: from its folder, the hub's local cache, or the table of known models."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from leaf.encoder import Role
from leaf.errors import LeafError
from leaf.models import resolve_model
from leaf.planning.architecture import Architecture
from leaf.recipe import Recipe, Student

#: Prompt names that mean "document", in Sentence Transformers' order.
_DOCUMENT = ("document", "passage", "corpus")


@dataclass(frozen=True)
class Model:
    """An encoder as far as it is known; None is what is not."""

    name: str
    origin: str
    """Where the facts are from, in words."""
    architecture: Architecture | None = None
    dim: int | None = None
    max_length: int | None = None
    tokenizer: Path | None = None
    """Its `tokenizer.json`, where that is on this machine."""
    is_local: bool = False
    prompts: dict[Role, str] = field(default_factory=dict)


def find_model(name: str, revision: str | None = None) -> Model:
    """The facts about `name`, a folder, `package:…` or a hub id. Never asks the network, never raises."""
    try:
        folder = Path(resolve_model(name))
    except LeafError as error:
        return Model(name, str(error))
    if folder.is_dir():
        return _of_folder(name, folder, "its config.json")
    if (cached := _cached(name, revision)) is not None:
        return _of_folder(name, cached, "the hub's cache")
    if (known := MODELS.get(name)) is not None:
        shape = known.architecture
        return Model(name, "the table of known models", shape, shape.width, known.max_length)
    return Model(name, f"{name} is neither on this machine nor among the known models")


def from_model(recipe: Recipe, student: Student) -> Student:
    """`student` as it would begin with nothing trained above it, from a model (`Recipe.from_model`).

    Raises `LeafError` where it, or one above it, asks for layers that are not there, as far as that is known here.
    """
    begun = recipe.from_model(student, None)
    own = begun.backbone == "teacher"
    model = (recipe.teacher.model, recipe.teacher.revision) if own else (begun.backbone, begun.revision)
    if student.start is None and (shape := find_model(*model).architecture) is not None:
        begun = recipe.from_model(student, shape.layers)
        begun.kept_layers(shape.layers)
    return begun


def check_layers(recipe: Recipe) -> None:
    """Raises `LeafError` where a student asks for layers that its backbone has not, as far as that is known here."""
    for student in recipe.students:
        from_model(recipe, student)


def _cached(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(path).parent if isinstance(path, str) else None


def _of_folder(name: str, folder: Path, origin: str) -> Model:
    modules = _json(folder / "modules.json") or [{"type": "Transformer", "path": ""}]
    first = folder / str(modules[0].get("path", ""))
    config = _json(first / "config.json") or {}
    is_table = str(modules[0]["type"]).endswith("StaticEmbedding")
    try:
        architecture = _table(first / "model.safetensors") if is_table else Architecture.of(config)
    except (KeyError, TypeError):  # a config of a known kind that lacks a size
        architecture = None
    dim = architecture.width if architecture else None
    network = 0
    for module in modules:
        if str(module["type"]).endswith("Dense"):
            dense = _json(folder / module["path"] / "config.json") or {}
            dim = dense.get("out_features", dim)
            network += (dense.get("in_features", 0) + bool(dense.get("bias", True))) * dense.get("out_features", 0)
    if architecture is not None and is_table:
        architecture = replace(architecture, network=network)
    told = _json(folder / "config_sentence_transformers.json") or {}
    own = told.get("prompts") or {}
    prompts: dict[Role, str] = {
        "query": own.get("query") or "",
        "document": next((own[each] for each in _DOCUMENT if own.get(each)), ""),
    }
    kind = config.get("model_type", "no config.json")
    return Model(
        name,
        origin if architecture else f"{name}: sizes of this kind of model are not known here ({kind})",
        architecture,
        dim,
        _max_length(first, config),
        next((path for path in (first / "tokenizer.json", folder / "tokenizer.json") if path.is_file()), None),
        True,
        prompts,
    )


def _table(path: Path) -> Architecture | None:
    """A lookup table has as many rows as tokens."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as weights:
            rows, width = weights.get_slice("embedding.weight").get_shape()
    except (OSError, SafetensorError, ValueError):
        return None
    return Architecture.table(rows, width)


def _max_length(folder: Path, config: dict[str, Any]) -> int | None:
    """Tokens after which the model cuts, as Sentence Transformers decides it."""
    told = (_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
    if told:
        return int(told)
    limits = [(_json(folder / "tokenizer_config.json") or {}).get("model_max_length")]
    limits.append(config.get("max_position_embeddings"))
    known = [int(limit) for limit in limits if isinstance(limit, int | float) and limit < 1e9]
    return min(known) if known else None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


# Models that recipes name often, for planning where there is no network and no copy

_MINI = Architecture(6, 384, 1536, 30522, 512, 2)
_SMALL = _MINI.with_layers(12)
_BASE = Architecture(12, 768, 3072, 30522, 512, 2)
_LARGE = Architecture(24, 1024, 4096, 30522, 512, 2)
_MODERN = Architecture(22, 768, 1152, 50368, gated=True, biased=False, norms_biased=False)
_MULTI_SMALL = Architecture(12, 384, 1536, 250037, 512, 2)
_MULTI_BASE = Architecture(12, 768, 3072, 250002, 514, 1)
_MULTI_LARGE = Architecture(24, 1024, 4096, 250002, 514, 1)
_LONG_LARGE = Architecture(24, 1024, 4096, 250002, 8194, 1)
_NOMIC = Architecture(12, 768, 3072, 30528, types=2, gated=True, biased=False)
_QWEN = Architecture(
    28, 1024, 3072, 151669, gated=True, biased=False, norms_biased=False, query_width=2048, key_width=1024
)


class Known(NamedTuple):
    """An architecture and the tokens after which the published model cuts a text."""

    architecture: Architecture
    max_length: int


#: By hub id. Vectors are as wide as the model.
MODELS = {
    "nreimers/MiniLM-L6-H384-uncased": Known(_MINI, 512),
    "sentence-transformers/all-MiniLM-L6-v2": Known(_MINI, 256),
    "Snowflake/snowflake-arctic-embed-xs": Known(_MINI, 512),
    "microsoft/MiniLM-L12-H384-uncased": Known(_SMALL, 512),
    "sentence-transformers/all-MiniLM-L12-v2": Known(_SMALL, 128),
    "BAAI/bge-small-en-v1.5": Known(_SMALL, 512),
    "intfloat/e5-small-v2": Known(_SMALL, 512),
    "thenlper/gte-small": Known(_SMALL, 512),
    "Snowflake/snowflake-arctic-embed-s": Known(_SMALL, 512),
    "google-bert/bert-base-uncased": Known(_BASE, 512),
    "BAAI/bge-base-en-v1.5": Known(_BASE, 512),
    "intfloat/e5-base-v2": Known(_BASE, 512),
    "thenlper/gte-base": Known(_BASE, 512),
    "Snowflake/snowflake-arctic-embed-m": Known(_BASE, 512),
    "Snowflake/snowflake-arctic-embed-m-v1.5": Known(_BASE, 512),
    "sentence-transformers/all-mpnet-base-v2": Known(Architecture(12, 768, 3072, 30527, 514), 384),
    "nomic-ai/nomic-embed-text-v1.5": Known(_NOMIC, 8192),
    "answerdotai/ModernBERT-base": Known(_MODERN, 8192),
    "google-bert/bert-large-uncased": Known(_LARGE, 512),
    "BAAI/bge-large-en-v1.5": Known(_LARGE, 512),
    "intfloat/e5-large-v2": Known(_LARGE, 512),
    "mixedbread-ai/mxbai-embed-large-v1": Known(_LARGE, 512),
    "Snowflake/snowflake-arctic-embed-l": Known(_LARGE, 512),
    "intfloat/multilingual-e5-small": Known(_MULTI_SMALL, 512),
    "intfloat/multilingual-e5-base": Known(_MULTI_BASE, 512),
    "intfloat/multilingual-e5-large": Known(_MULTI_LARGE, 512),
    "BAAI/bge-m3": Known(_LONG_LARGE, 8192),
    "Snowflake/snowflake-arctic-embed-l-v2.0": Known(_LONG_LARGE, 8192),
    "Qwen/Qwen3-Embedding-0.6B": Known(_QWEN, 32768),
}

#: Dimensions of vectors from APIs where a recipe does not ask for others, as the providers document them.
API_DIMENSIONS = {
    "openai:text-embedding-3-small": 1536,
    "openai:text-embedding-3-large": 3072,
    "openai:text-embedding-ada-002": 1536,
    "voyage:voyage-3.5": 1024,
    "voyage:voyage-3.5-lite": 1024,
    "voyage:voyage-3-large": 1024,
    "voyage:voyage-3": 1024,
    "voyage:voyage-3-lite": 512,
    "voyage:voyage-code-3": 1024,
    "cohere:embed-v4.0": 1536,
    "cohere:embed-english-v3.0": 1024,
    "cohere:embed-multilingual-v3.0": 1024,
    "cohere:embed-english-light-v3.0": 384,
}
