"""The files of an exported student: which one a name means, and what it says about its own use.

An ONNX graph knows nothing of prompts, lengths or special tokens, and a query side that guesses them leaves the
teacher's space. So `leaf export` writes them into the file, and nothing here is ever guessed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from leaf.encoder import Role
from leaf.errors import LeafError
from leaf.models import HubUnreachable, hub_revision, resolve_model

FOLDER = "onnx"
#: ONNX file of each precision, which is what its weights are stored as; inputs and outputs are the same in all. The
#: names are those that Transformers.js looks for.
FILES: Mapping[str, str] = {
    "fp32": "model.onnx",
    "fp16": "model_fp16.onnx",
    "q8": "model_quantized.onnx",
    "q8-portable": "model_portable_quantized.onnx",
    "q4": "model_q4.onnx",
    "q4f16": "model_q4f16.onnx",
}
TOKENIZER = "tokenizer.json"
#: All that is fetched from a hub besides the one ONNX file. Never the PyTorch weights, and never the teacher.
FETCHED = (TOKENIZER, "space.json", "canaries.safetensors")
#: Key of the metadata in the ONNX file, and the newest format of it that is understood.
KEY, FORMAT = "leaf", 1


@dataclass(frozen=True)
class Usage:
    """How vectors are made with an ONNX file."""

    name: str
    precision: str
    dim: int
    normalised: bool
    """Whether vectors have length 1."""
    similarity: Literal["cosine", "dot"]
    prompts: Mapping[Role, str]
    max_length: int | None
    """Tokens after which a text is cut, special tokens included; None where there is no limit."""
    add_special_tokens: bool
    split_special_tokens: bool
    """Whether `[SEP]` written in a text is taken apart like other words."""
    pad_token_id: int
    space: str | None
    """The `Space.id` that the vectors live in; None where the student carries no space."""

    @classmethod
    def parse(cls, text: str | None, path: Path) -> "Usage":
        """What the metadata `text` of the file `path` says. Raises `LeafError` where there is none, or a newer one."""
        if text is None:
            raise LeafError(
                f"{path} has no '{KEY}' metadata; only ONNX files made by `leaf export` say how they must be used"
            )
        try:
            data = json.loads(text)
            if data["format"] > FORMAT:
                raise LeafError(
                    f"{path} was written in format {data['format']} and this leaf reads {FORMAT}; "
                    "pip install --upgrade leaf"
                )
            return cls(**{field.name: data[field.name] for field in fields(cls)})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise LeafError(
                f"{path} has damaged '{KEY}' metadata ({type(error).__name__}: {error}); run `leaf export` again"
            ) from error


def split_precision(model: str) -> tuple[str, str | None]:
    """`DIR:q8` → (`DIR`, `q8`): a student's ONNX file of one precision; (`model`, None) for any other name."""
    folder, _, precision = model.rpartition(":")
    return (folder, precision) if folder and precision in FILES else (model, None)


def find_onnx(model: str | Path, precision: str | None) -> Path:
    """The ONNX file of `model`: that file, or the one of `precision` (None: fp32) in a student folder or on the hub.

    Raises `LeafError` where there is none, naming the precisions that there are.
    """
    if precision not in (None, *FILES):
        raise LeafError(f"no precision '{precision}'; expected one of {', '.join(FILES)}")
    if str(model).endswith(".onnx"):
        path = Path(model)
        if not path.is_file():
            raise LeafError(f"no file '{model}'; give an ONNX file made by `leaf export`, or its student folder")
        return path
    precision = precision or "fp32"
    source = resolve_model(str(model))
    folder = Path(source)
    if not folder.is_dir():
        return _fetch(source, precision)
    folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    if not (folder / FILES[precision]).is_file():
        raise _not_exported(str(model), precision, [path.name for path in folder.glob("*.onnx")])
    return folder / FILES[precision]


def find_tokenizer(onnx: Path) -> Path:
    """`tokenizer.json` beside the ONNX file or in the folder above. Raises `LeafError` where there is none."""
    # Through absolute(), not resolve(): files of the hub's cache are links into a folder without names.
    for folder in onnx.absolute().parents[:2]:
        if (folder / TOKENIZER).is_file():
            return folder / TOKENIZER
    raise LeafError(f"no {TOKENIZER} beside {onnx} or in the folder above; copy it there from the student's folder")


def _fetch(repository: str, precision: str) -> Path:
    """The ONNX file in the hub's local cache, fetched if the hub has a newer one."""
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

    file = f"{FOLDER}/{FILES[precision]}"
    is_cached = False
    try:
        hub_revision(repository, "model")
    except HubUnreachable:
        if not isinstance(try_to_load_from_cache(repository, file), str):
            raise
        is_cached = True  # an earlier run has fetched it
    try:
        # By branch and not by commit, since only a branch can be found again without a network.
        folder = Path(snapshot_download(repository, allow_patterns=[file, *FETCHED], local_files_only=is_cached))
    except Exception as error:  # as in hub_revision, which also explains the rest
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise HubUnreachable(
            f"the hub does not hand out {file} of {repository} ({reason}); log in, or connect"
        ) from error
    if not (folder / file).is_file():
        raise _not_exported(repository, precision, [Path(name).name for name in HfApi().list_repo_files(repository)])
    return folder / file


def _not_exported(model: str, precision: str, names: list[str]) -> LeafError:
    there = [each for each, name in FILES.items() if name in names]
    if not there:
        return LeafError(f"{model} holds no ONNX files ({FOLDER}/{FILES[precision]}); run `leaf export {model}`")
    return LeafError(f"{model} was not exported as {precision}; there is {', '.join(there)}: name one of them")
