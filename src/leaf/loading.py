"""`leaf.load`: any model that this package can encode with, as an `Encoder`."""

import importlib.util
from pathlib import Path
from typing import Literal

from leaf.encoder import Encoder
from leaf.errors import LeafError
from leaf.files import user_cache
from leaf.light import is_light, load_light
from leaf.models import resolve_model
from leaf.runtime.artifact import FOLDER, split_precision
from leaf.teacher.providers import PROVIDERS


def load(
    model: str | Path,
    *,
    device: str | None = None,
    name: str | None = None,
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
) -> Encoder:
    """The encoder behind `model`: a folder, a hub id, `package:NAME/FOLDER`, an ONNX file, a student's ONNX file of one
    precision (`DIR:q8`), the URL of a server, or an API: `openai:MODEL`, `voyage:MODEL`, `cohere:MODEL`.

    Its `encode_query` and `encode_document` apply the prompts that the model ships and return float32 `[n, dim]`.
    `device` is torch's name for one; None takes a GPU where there is one. In bfloat16 only matrix products are rounded,
    which moves vectors by cosines of some 1e-5. An ONNX file, a server and an API compute as they do: both settings are
    for torch. Where torch is not installed, a student folder is read by its ONNX files. What an API answers is paid for
    once and kept in the user's cache; its key comes from the environment (`leaf.teacher.api`). Raises `LeafError` when
    there is no such model or no hub to fetch it from.
    """
    text = str(model)
    if text.startswith(("http://", "https://")):
        from leaf.runtime.remote import RemoteEncoder

        return RemoteEncoder(text, name=name)
    if text.partition(":")[0] in PROVIDERS:
        from leaf.recipe import Api
        from leaf.teacher.api import ApiTeacher

        return ApiTeacher(text, Api(), name=name, store=user_cache() / "api")
    folder, precision = split_precision(text)
    if precision is not None:
        from leaf.runtime.encoder import OnnxEncoder

        return OnnxEncoder(folder, precision=precision, name=name)
    if is_light(model):
        return load_light(model, device=device, name=name, compute_dtype=compute_dtype)
    if text.endswith(".onnx") or (importlib.util.find_spec("torch") is None and has_onnx(text)):
        from leaf.runtime.encoder import OnnxEncoder

        return OnnxEncoder(model, name=name)
    from leaf.teacher.model import SentenceTransformerEncoder

    return SentenceTransformerEncoder(text, device=device, name=name, compute_dtype=compute_dtype)


def load_for_serving(
    model: str,
    *,
    precision: str | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> Encoder:
    """The encoder for a server: ONNX files where `model` has them, else what `load` gives.

    Threads that wait leave their cores to the rest of the machine. `precision` and `threads` are for ONNX files; a
    light package chooses its own threads. Raises `LeafError` where they are given and there are no such files.
    """
    folder, named = split_precision(model)
    if named is not None:
        if precision not in (None, named):
            raise LeafError(f"{model} names {named} and --precision {precision}; name one of them")
        model, precision = folder, named
    if is_light(model) and threads is None:
        return load_light(model, device=device, precision=precision or "fp32")
    if not is_light(model) and (model.endswith(".onnx") or has_onnx(model) or precision is not None):
        from leaf.runtime.encoder import OnnxEncoder

        return OnnxEncoder(model, precision=precision, threads=threads, spinning=False)
    if threads is not None:
        raise LeafError(f"{model} has no ONNX files of its own, which --threads is for; run `leaf export {model}`")
    return load(model, device=device)


def has_onnx(model: str) -> bool:
    """Whether `model`, with or without a precision (`DIR:q8`), is a folder with ONNX files."""
    if model.startswith(("http://", "https://")):
        return False
    return (Path(resolve_model(split_precision(model)[0])) / FOLDER).is_dir()
