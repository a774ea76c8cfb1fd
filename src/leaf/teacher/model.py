"""Sentence Transformers models as `Encoder`s: the teacher, and every student that this package saves.

A plain Transformers folder is loaded as Sentence Transformers does it, with mean pooling.
"""

import pickle
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer

from leaf.encoder import Advance, Role, Vectors
from leaf.errors import LeafError
from leaf.files import digest, file_digest
from leaf.hardware import native_bfloat16
from leaf.models import HubUnreachable, hub_revision, resolve_model, short_name
from leaf.teacher.packed import PackedPass
from leaf.vector_files import MIN_COSINE, min_cosine

#: Batches encoded between two calls of `advance`; Sentence Transformers sorts by length within such a chunk.
BATCHES_PER_CHUNK = 8
#: Prompt names that mean "document", in Sentence Transformers' order.
DOCUMENT_PROMPTS = ("document", "passage", "corpus")
#: Files of a model folder that can change its vectors.
IDENTITY_SUFFIXES = {".safetensors", ".bin", ".json", ".txt", ".model"}


class SentenceTransformerEncoder:
    """A Sentence Transformers model that applies the prompt of each role.

    `prompts` overrides the model's own, `max_length` (tokens) shortens it. Weights are float32 whatever the checkpoint
    stores (transformers 5 would compute a float16 checkpoint in float16, even on a CPU); with `compute_dtype`
    "bfloat16" only the matrix products are rounded, and pooling and norm are not. May be called from many threads, one
    call at a time.
    Raises `LeafError` when there is no such model, or no hub to fetch it from.
    """

    def __init__(
        self,
        model: str,
        *,
        name: str | None = None,
        revision: str | None = None,
        prompts: Mapping[Role, str] | None = None,
        max_length: int | None = None,
        compute_dtype: Literal["float32", "bfloat16"] = "float32",
        device: str | None = None,
    ) -> None:
        self.model_id = model
        self.name = name or short_name(model)
        self.folder = resolve_model(model)
        self.model = load_sentence_transformer(self.folder, revision, device)
        if max_length is not None:
            self.model.max_seq_length = max_length if self.max_length is None else min(max_length, self.max_length)
        own: Mapping[str, str | None] = self.model.prompts
        self.prompts: dict[Role, str] = {
            "query": own.get("query") or "",
            "document": next((prompt for each in DOCUMENT_PROMPTS if (prompt := own.get(each))), ""),
            **(prompts or {}),
        }
        self.compute_dtype = compute_dtype
        self._packed: dict[torch.dtype, PackedPass | None] = {}
        self._one_call = threading.Lock()  # the packed pass changes how the model attends while it runs
        self.dim = _dimension(self.model)
        # Sentence Transformers' own default is the cosine.
        self.similarity: Literal["cosine", "dot"] = "dot" if self.model.similarity_fn_name == "dot" else "cosine"

    @property
    def max_length(self) -> int | None:
        """Tokens after which a text is cut, special tokens included; None where the model has no limit."""
        length = self.model.max_seq_length
        return None if length is None or length == float("inf") else int(length)

    @property
    def num_parameters(self) -> int:
        """Parameters of the whole model."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def bill(self) -> None:
        """Nobody is paid for its vectors."""

    def close(self) -> None:
        """There is nothing to let go of."""

    def use_bfloat16_where_exact(self, sample: Sequence[str]) -> None:
        """Computes in bfloat16 from here on, if the hardware has it and every text of `sample` hardly moves.

        The bar is that of float16 storage: cosine ≥ 0.9999 to the float32 vector.
        """
        if not native_bfloat16(str(self.model.device)):
            return
        exact = {role: self.encode(sample, role) for role in self.prompts}
        self.compute_dtype = "bfloat16"
        if min(min_cosine(exact[role], self.encode(sample, role)) for role in self.prompts) < MIN_COSINE:
            self.compute_dtype = "float32"

    def identity(self) -> dict[str, Any]:
        """Everything that can change this model's vectors, as plain JSON: the teacher half of a cache key."""
        config = getattr(self.model.transformers_model, "config", None)
        commit = getattr(config, "_commit_hash", None)
        return {
            "model": self.model_id,
            "weights": commit or folder_digest(Path(self.folder)),
            "prompts": dict(self.prompts),
            "modules": [_describe(module) for module in self.model],
            "max_length": self.max_length,
            "dim": self.dim,
            "similarity": self.similarity,
            "compute_dtype": self.compute_dtype,
        }

    def encode_query(self, texts: Sequence[str], *, batch_size: int = 32, advance: Advance | None = None) -> Vectors:
        """Vectors of queries, float32 `[n, dim]`."""
        return self.encode(texts, "query", batch_size=batch_size, advance=advance)

    def encode_document(self, texts: Sequence[str], *, batch_size: int = 32, advance: Advance | None = None) -> Vectors:
        """Vectors of documents, float32 `[n, dim]`."""
        return self.encode(texts, "document", batch_size=batch_size, advance=advance)

    def encode(
        self, texts: Sequence[str], role: Role, *, batch_size: int = 32, advance: Advance | None = None
    ) -> Vectors:
        """Vectors of texts in one role, float32 `[n, dim]`; `advance` hears of every finished chunk."""
        with self._one_call:
            if (packed := self._packed_pass()) is not None and len(texts) > 0:
                return packed.encode(texts, role, advance)
            return self._encode(texts, role, batch_size, advance)

    def _encode(self, texts: Sequence[str], role: Role, batch_size: int, advance: Advance | None) -> Vectors:
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        # Longest first: padding is least among neighbours, and a batch that does not fit in memory fails at once.
        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        for start in range(0, len(order), batch_size * BATCHES_PER_CHUNK):
            rows = order[start : start + batch_size * BATCHES_PER_CHUNK]
            with self._autocast():
                vectors[rows] = self.model.encode(
                    [texts[row] for row in rows],
                    prompt=self.prompts[role] or None,
                    task=role,  # an asymmetric package has a route for each; others ignore it
                    batch_size=batch_size,
                    convert_to_numpy=True,
                    show_progress_bar=False,
                )
            if advance:
                advance(len(rows))
        return vectors

    def _packed_pass(self) -> PackedPass | None:
        """The faster way to the same vectors, for models and devices that have one."""
        dtype = getattr(torch, self.compute_dtype)
        if dtype not in self._packed:
            fits = PackedPass.fits(self.model, dtype)
            self._packed[dtype] = PackedPass(self.model, self.prompts, dtype) if fits else None
        return self._packed[dtype]

    def _autocast(self) -> AbstractContextManager[object]:
        if self.compute_dtype == "float32":
            return nullcontext()
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16)


def load_sentence_transformer(
    model: str, revision: str | None = None, device: str | None = None
) -> SentenceTransformer:
    """Loads a folder or hub id in float32, or raises a `LeafError` that says in one line what is missing."""
    folder = Path(model)
    if folder.is_dir() and not any((folder / file).is_file() for file in ("modules.json", "config.json")):
        raise LeafError(
            f"{model} holds no model (no modules.json and no config.json); give a Sentence Transformers or "
            "Transformers folder"
        )
    local_only = False
    if not folder.is_dir():
        try:
            revision = hub_revision(model, "model", revision)
        except HubUnreachable:
            if not isinstance(try_to_load_from_cache(model, "config.json", revision=revision), str):
                raise
            local_only = True  # an earlier run has fetched it
    try:
        return SentenceTransformer(
            model,
            revision=revision,
            device=device,
            local_files_only=local_only,
            model_kwargs={"dtype": torch.float32},
        ).eval()
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
            raise
        raise LeafError(
            f"{model} holds weights as a pickle that torch refuses (`pytorch_model.bin`: code in it, or damage); give "
            "the weights as `model.safetensors`, which is read instead where both are there"
        ) from error
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise LeafError(f"{model} holds no usable model: {reason[:200]}") from error


def _dimension(model: SentenceTransformer) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dimension = model.get_embedding_dimension()
    assert isinstance(dimension, int), "a text model knows its dimension"
    return dimension


def _describe(module: torch.nn.Module) -> str:
    """Name and settings of a module, for the cache key: `Pooling{"pooling_mode": "mean", …}`."""
    name = type(module).__name__
    if name in ("Transformer", "StaticEmbedding"):
        return name  # its settings are in the weights' digest, max_length and compute_dtype
    get_config = getattr(module, "get_config_dict", None)
    config = get_config() if callable(get_config) else {}
    return f"{name}{config}" if config else name


def folder_digest(folder: Path) -> str:
    """SHA-256 over names and contents of the files that can change a vector."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in IDENTITY_SUFFIXES and not {"onnx", "openvino"} & {*path.relative_to(folder).parts}
    )
    return digest([[str(path.relative_to(folder)), file_digest(path)] for path in files])
