"""What is known of a model without loading it: from its folder, the hub's local cache, or the table of known models."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leaf.encoder import Role
from leaf.errors import LeafError
from leaf.models import resolve_model
from leaf.planning.architecture import Architecture
from leaf.planning.known import MODELS
from leaf.teacher.providers import PROVIDERS

#: Teachers that have no weights to be had: an API, or a model that is nothing but its vectors.
APIS, VECTORS = tuple(f"{name}:" for name in PROVIDERS), "vectors:"
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
    try:
        architecture = Architecture.of(config)
    except (KeyError, TypeError):  # a config of a known kind that lacks a size
        architecture = None
    dim = architecture.width if architecture else None
    for module in modules:
        if str(module["type"]).endswith("Dense"):
            dim = (_json(folder / module["path"] / "config.json") or {}).get("out_features", dim)
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
