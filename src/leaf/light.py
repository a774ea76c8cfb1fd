"""The light asymmetric package: a student that knows its teacher and fetches it only to encode documents.

A folder with the student in it and, in `asymmetric.json`, the teacher by name, revision and settings. Queries never
touch the teacher: with ONNX files in the folder they need no torch either.

    encoder = load_light("package")
    encoder.encode_query(["…"])       # the student; nothing is downloaded
    encoder.encode_document(["…"])    # loads the teacher, checks it against the canaries, then encodes

Nothing here can encode documents with the student by accident. Plain Sentence Transformers finds a `Router` with the
one route "query" and raises on `encode_document` and on `encode` without a task; `leaf` refuses a teacher whose weights
are not the ones recorded or whose canary vectors do not lie in the space. `leaf.export.asymmetric` writes it.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from leaf.encoder import Advance, Encoder, Role, Vectors, row_cosines
from leaf.errors import LeafError
from leaf.models import short_name
from leaf.space import CANARIES_FILE, Space, encode_canaries

ASYMMETRIC_FILE = "asymmetric.json"
#: A teacher is the space's own when every canary lands this close. Half precision in computing and storing the
#: canaries moves a cosine by less than 1e-4 each; another revision of a model moves it by far more.
MIN_TEACHER_COSINE = 0.999
#: How an identity names weights: a commit of the hub (SHA-1), or the digest of a folder (SHA-256).
COMMIT_LENGTH = 40


class LightEncoder:
    """An `Encoder` over a light package: queries by the student, documents by the teacher, which is loaded when needed.

    `precision` chooses among the ONNX files; where the folder has none, or `device` is named, the student runs in
    torch. `teacher` stands in for the recorded name, for a copy that lies elsewhere; it must be the same weights.
    Raises `LeafError` for a folder that is no light package.
    """

    def __init__(
        self,
        folder: Path,
        *,
        teacher: str | None = None,
        device: str | None = None,
        name: str | None = None,
        precision: str = "fp32",
        compute_dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        self.folder, self.space = folder, Space.load(folder)
        self.teacher = read_teacher(folder)
        self._model, self._device, self._compute_dtype = teacher or self.teacher["model"], device, compute_dtype
        self.queries = self._query_encoder(precision)
        self.name = name or folder.name
        self.dim = self.space.dim
        self.similarity: Literal["cosine", "dot"] = "dot" if self.space.similarity == "dot" else "cosine"
        self.prompts: dict[Role, str] = dict(self.teacher["prompts"])

    def encode_query(self, texts: Sequence[str], *, batch_size: int = 32, advance: Advance | None = None) -> Vectors:
        """Vectors of queries by the student, float32 `[n, dim]`."""
        return self.queries.encode_query(texts, batch_size=batch_size, advance=advance)

    def encode_document(self, texts: Sequence[str], *, batch_size: int = 32, advance: Advance | None = None) -> Vectors:
        """Vectors of documents by the teacher, float32 `[n, dim]`; raises `LeafError` where it cannot be had."""
        return self.documents.encode_document(texts, batch_size=batch_size, advance=advance)

    @functools.cached_property
    def documents(self) -> Encoder:
        """The teacher, fetched and checked when first asked for."""
        try:
            from leaf.teacher.model import SentenceTransformerEncoder
        except ImportError as error:
            raise LeafError(
                f"{self.folder}: documents are encoded by {self._model}, which needs torch ({error.name} is missing); "
                "pip install 'leaf[train]', or encode documents elsewhere"
            ) from error
        encoder = SentenceTransformerEncoder(
            self._model,
            revision=self.teacher["revision"],
            prompts=self.teacher["prompts"],
            max_length=self.teacher["max_length"],
            device=self._device,
            compute_dtype=self._compute_dtype,
        )
        found, expected = encoder.identity()["weights"], self.teacher["weights"]
        if found != expected:
            raise LeafError(
                f"{self._model} has weights {found[:12]} and {self.folder} was made with {expected[:12]}: another "
                "revision of the teacher is another space; give the teacher that the student was distilled from"
            )
        check_teacher(encoder, self.space)
        return encoder

    def identity(self) -> dict[str, Any]:
        """Everything that can change this encoder's vectors: the student's identity and the teacher's."""
        queries: Any = self.queries
        return {"queries": queries.identity(), "documents": self.teacher, "compute_dtype": self._compute_dtype}

    def _query_encoder(self, precision: str) -> Encoder:
        if self._device is None and (self.folder / "onnx").is_dir():
            from leaf.runtime.encoder import OnnxEncoder

            return OnnxEncoder(self.folder, precision=precision)
        from leaf.teacher.model import SentenceTransformerEncoder

        return SentenceTransformerEncoder(str(self.folder), device=self._device, compute_dtype=self._compute_dtype)


def is_light(model: str | Path) -> bool:
    """Whether `model`, a folder or a hub id, is a light package. Of a hub it asks for one small file.

    False where the hub cannot be reached: what is then loaded raises on documents all the same.
    """
    if Path(model).is_dir():
        return (Path(model) / ASYMMETRIC_FILE).is_file()
    if str(model).startswith((".", "/", "~", "package:", "http")) or str(model).count("/") != 1:
        return False
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(str(model), ASYMMETRIC_FILE)
    except Exception:  # no such file, no such repository, no network: the errors of three libraries
        return False
    return True


def load_light(
    model: str | Path,
    *,
    teacher: str | None = None,
    device: str | None = None,
    name: str | None = None,
    precision: str = "fp32",
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
) -> LightEncoder:
    """The encoder of a light package, a folder or a hub id; see `LightEncoder`. Never loads the teacher by itself."""
    if Path(model).is_dir():
        folder = Path(model)
    else:
        folder, name = _fetch(str(model), precision if device is None else None), name or short_name(str(model))
    return LightEncoder(
        folder, teacher=teacher, device=device, name=name, precision=precision, compute_dtype=compute_dtype
    )


def _fetch(model: str, precision: str | None) -> Path:
    """A light package from the hub: with the one ONNX file where there is one, else with the weights for torch."""
    from huggingface_hub import snapshot_download

    from leaf.runtime.artifact import FILES, FOLDER

    if precision is not None and precision in FILES:
        wanted = f"{FOLDER}/{FILES[precision]}"
        folder = Path(snapshot_download(model, allow_patterns=["*.json", CANARIES_FILE, wanted]))
        if (folder / wanted).is_file():
            return folder
    return Path(snapshot_download(model, ignore_patterns=[f"{FOLDER}/*"]))


def read_teacher(folder: Path) -> dict[str, Any]:
    """Whom `asymmetric.json` names: `model`, `revision`, `weights`, `prompts`, `max_length`. `LeafError` if damaged."""
    try:
        teacher: dict[str, Any] = json.loads((folder / ASYMMETRIC_FILE).read_text(encoding="utf-8"))["teacher"]
        for key in ("model", "revision", "weights", "prompts", "max_length"):
            _ = teacher[key]
    except FileNotFoundError as error:
        raise LeafError(
            f"{folder} has no {ASYMMETRIC_FILE}: it is no light package; `leaf export` makes one"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LeafError(f"{folder}: {ASYMMETRIC_FILE} is damaged ({error!r}); export the package again") from error
    return teacher


def revision_of(identity: Mapping[str, Any]) -> str | None:
    """The hub commit in an encoder's identity, None for weights in a folder."""
    weights = str(identity["weights"])
    return weights if len(weights) == COMMIT_LENGTH else None


def check_teacher(encoder: Encoder, space: Space) -> None:
    """Raises `LeafError` unless `encoder` gives every canary its vector of the space: it is then the teacher."""
    if encoder.dim != space.dim:
        raise LeafError(
            f"{encoder.name} answers with {encoder.dim} dimensions and the space has {space.dim}: it is not the "
            f"teacher of this space; give {space.teacher['model']}"
        )
    encoded = encode_canaries(encoder, space.texts, space.kinds)
    least = float(row_cosines(encoded, space.vectors).min())
    lengths = np.linalg.norm(encoded, axis=1) / np.linalg.norm(space.vectors, axis=1)
    if least < MIN_TEACHER_COSINE or np.abs(lengths - 1).max() > 0.01:
        raise LeafError(
            f"{encoder.name} is not the teacher of this space (a canary has cosine {least:.4f} to its own vector, "
            f"{MIN_TEACHER_COSINE} was expected); give {space.teacher['model']} with the weights it was distilled from"
        )
