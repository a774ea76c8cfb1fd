"""`leaf verify`: does what answers here live in the space it claims? One verdict for each form that a student comes in.

A folder has its PyTorch weights and its ONNX files, a server has a URL, an index has vectors of its teacher; all carry,
or can be asked for, the space and its canaries, so neither the teacher nor a data set is needed.
"""

import functools
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from leaf.encoder import Encoder
from leaf.errors import LeafError
from leaf.light import is_light, load_light
from leaf.loading import load
from leaf.models import resolve_model
from leaf.runtime.artifact import FILES, FOLDER, find_onnx
from leaf.space import CANARIES_FILE, SPACE_FILE, Space, Verdict
from leaf.space import verify as check


@dataclass(frozen=True)
class Form:
    """One form of what is verified, and what came of it."""

    name: str
    space: Space
    verdict: Verdict


def verify(target: str, model: str | None = None, device: str | None = None) -> Iterator[Form]:
    """The verdict on every form of `target`: a folder, an ONNX file, the URL of a server, a hub id.

    With `model`, the one verdict on that encoder in the space of `target`, which may then be anything with a
    `space.json`, such as an index. Raises `LeafError` where there is no space, or nothing to encode with.
    """
    if target.startswith(("http://", "https://")):
        space, forms = _server(target)
    else:
        folder = _folder(target)
        space, forms = Space.load(folder), _forms(target, folder, device)
    if model is not None:
        forms = {model: lambda: load(model, device=device)}
    if not forms:
        raise LeafError(f"{target} holds a space and no model; name the encoder to check with --model MODEL")
    for name, opened in forms.items():
        yield Form(name, space, check(opened(), space))


def space_of(model: str) -> Space | None:
    """The space that a model on this machine carries, None where it carries none."""
    folder = _folder(model)
    return Space.load(folder) if (folder / SPACE_FILE).is_file() else None


def _server(url: str) -> tuple[Space, dict[str, Callable[[], Encoder]]]:
    from leaf.runtime.remote import RemoteEncoder

    encoder = RemoteEncoder(url)
    space = encoder.space()
    if space is None:
        raise LeafError(
            f"{url} does not say which space it answers in (no /v1/space); check it with --model against one"
        )
    return space, {url: lambda: encoder}


def _folder(target: str) -> Path:
    """Where the space of `target` lies."""
    if target.endswith(".onnx"):
        above = find_onnx(target, None).absolute().parents[:2]
        return next((each for each in above if (each / SPACE_FILE).is_file()), above[0])
    folder = Path(resolve_model(target))
    if folder.is_dir():
        return folder
    from leaf.models import hub_revision

    hub_revision(target, "model")  # the one line that says why there is no such model
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(target, allow_patterns=[SPACE_FILE, CANARIES_FILE]))


def _forms(target: str, folder: Path, device: str | None) -> dict[str, Callable[[], Encoder]]:
    if target.endswith(".onnx"):
        return {target: lambda: _load_file(Path(target), folder)}
    if not Path(resolve_model(target)).is_dir():
        return {target: lambda: load(target, device=device)}
    forms: dict[str, Callable[[], Encoder]] = {}
    if (folder / "modules.json").is_file() and importlib.util.find_spec("torch") is not None:
        forms[target] = lambda: load(target, device=device)
    for file in FILES.values():
        path = folder / FOLDER / file
        if path.is_file():
            forms[str(path)] = functools.partial(_load_file, path, folder)
    return forms


def _load_file(path: Path, folder: Path) -> Encoder:
    """The encoder of one ONNX file; in a light package, with the teacher for documents, as its space expects."""
    precision = next((key for key, file in FILES.items() if file == path.name), None)
    if precision is None or not is_light(folder):
        return load(path)
    return load_light(folder, precision=precision)
