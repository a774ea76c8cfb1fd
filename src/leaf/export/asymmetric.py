"""The asymmetric package: student and teacher in one folder that routes queries to one and documents to the other.

    asymmetric(Path("runs/demo/student-2l"), Path("package"))               # both towers
    asymmetric(Path("runs/demo/student-2l"), Path("package"), light=True)   # the student, and the teacher's name

    model = SentenceTransformer("package")                                  # no leaf, no code from a hub
    model.similarity(model.encode_query("…"), model.encode_document("…"))

The **full** package is a `Router` of Sentence Transformers with two routes. `encode` without a task takes the route
"document": the teacher's vectors, which are never outside the space.

The **light** package is the same folder without the document route; `asymmetric.json` names the teacher instead, and
`leaf.load` fetches it when documents are first encoded (`leaf.light`). Of the ways to leave the teacher out, this is
the one that cannot silently do the wrong thing: a folder that plain Sentence Transformers loads as the student alone
would encode documents with the student and fill an index that nobody asked for. A router with the one route "query"
and no default raises on `encode_document` ("No route found for task type 'document'") and on `encode` without a task,
in every release, without any code of ours. Who wants standard mode takes the student's own folder.

Neither is kept unless it is proven: loaded again by plain Sentence Transformers, the vectors of all canary texts are
those of the student and of the teacher, row by row.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer

from leaf.encoder import Encoder, Vectors, row_cosines
from leaf.errors import LeafError
from leaf.export.package_card import package_card
from leaf.export.publish import module_files
from leaf.files import write_json, write_text
from leaf.light import ASYMMETRIC_FILE, check_teacher, load_light, revision_of
from leaf.models import hub_id, hub_revision, resolve_model
from leaf.progress import say
from leaf.space import Space, saved_with
from leaf.teacher.model import SentenceTransformerEncoder

ROUTER_FILE = "router_config.json"
#: Where releases before 5.4 and other readers find each module; newer ones know these too.
MODULE_PATH = "sentence_transformers.models."
#: How alike a vector of the package and of the model it was made from must be.
MIN_COSINE = 0.9999
#: What the light package takes along at its top, so that ONNX Runtime and Transformers.js find a model there.
RUNTIME_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
#: Pooling modes in the words of older releases; newer ones read both.
_POOLING = {
    "cls": "cls_token",
    "mean": "mean_tokens",
    "max": "max_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Package:
    """What `asymmetric` made and measured."""

    folder: Path
    light: bool
    teacher: str
    """The teacher as it was loaded."""
    space: Space
    """The student's space with the error of this package: canaries of kind "document" go through the teacher."""
    query_cosine: float
    """The least cosine of a query vector of the package to the student's own."""
    document_cosine: float | None
    """The same for documents and the teacher; None for a light package, which holds none."""


def asymmetric(
    student: str | Path,
    out: Path,
    *,
    teacher: str | Path | None = None,
    light: bool = False,
    device: str | None = "cpu",
) -> Package:
    """Writes the asymmetric package of `student`, a folder or hub id, into `out` and proves it; see above.

    `teacher` is a folder, a hub id or `package:NAME/FOLDER`; None takes the one that the student's `space.json` names,
    at the revision named there. Prompts and maximum lengths are the space's. Weights are stored in the narrowest
    floating type that holds them exactly and are loaded in float32. Raises `LeafError` for a folder that is no student,
    for a teacher whose canary vectors are not the space's, and for an `out` that holds something else.
    """
    student = _folder(student)
    _check_target(student, out)
    space = Space.load(student)
    queries = SentenceTransformerEncoder(str(student), device=device)
    say(f"checking that {teacher or space.teacher['model']} is the teacher of {student.name}")
    documents = _load_teacher(space, teacher, device)
    check_teacher(documents, space)
    building = out.with_name(f".{out.name}.tmp")
    if building.exists():
        shutil.rmtree(building)
    building.mkdir(parents=True)
    try:
        routes = {"query": _copy_route(student, building)}
        if light:
            _copy_runtime(student, building)
            write_json(building / ASYMMETRIC_FILE, {"format": 1, "teacher": _pointer(documents)})
        else:
            routes["document"] = _save_route("document", documents.model, building)
        _write_router(building, routes, None if light else "document")
        _write_config(student, building, {"query": queries.prompts["query"], "document": documents.prompts["document"]})
        space.save(building)
        package = _prove(building, queries, documents, space, light)
        package.space.save(building)
        write_text(building / "README.md", package_card(student, package.space, out, documents.model_id, light=light))
        if out.exists():
            shutil.rmtree(out)
        building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return replace(package, folder=out)


def _folder(student: str | Path) -> Path:
    """Where the student lies; one from a hub is fetched whole."""
    found = resolve_model(str(student))
    if Path(found).is_dir():
        return Path(found)
    hub_revision(found, "model")  # the one line that says why there is no such model
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(found))


def _check_target(student: Path, out: Path) -> None:
    if not (student / "modules.json").is_file() or (student / ROUTER_FILE).exists():
        raise LeafError(
            f"{student} is no student folder (modules.json of a student expected); give runs/NAME/student-…"
        )
    if out.exists() and any(out.iterdir()) and not (out / ROUTER_FILE).exists():
        raise LeafError(f"{out} holds something other than an asymmetric package; choose an empty or a new folder")


def _load_teacher(space: Space, teacher: str | Path | None, device: str | None) -> SentenceTransformerEncoder:
    known = space.teacher
    if "weights" not in known:
        raise LeafError(
            f"{known['model']} has no weights to put into a package, or to name in one; ship the student alone, and "
            "let its teacher go on encoding documents where it does"
        )
    return SentenceTransformerEncoder(
        str(teacher or known["model"]),
        revision=None if teacher else revision_of(known),
        prompts=known["prompts"],
        max_length=known["max_length"],
        device=device,
    )


def _pointer(documents: SentenceTransformerEncoder) -> dict[str, Any]:
    """What `leaf.light` needs to find this teacher again and to know it."""
    identity = documents.identity()
    return {
        "model": documents.model_id,
        "revision": revision_of(identity) if hub_id(documents.model_id) else None,
        **{key: identity[key] for key in ("weights", "prompts", "max_length", "modules", "dim", "similarity")},
    }


def _copy_route(student: Path, package: Path) -> dict[str, str]:
    """Copies the student's modules, byte by byte, and returns their types by folder."""
    modules = json.loads((student / "modules.json").read_text(encoding="utf-8"))
    types = {}
    for index, module in enumerate(modules):
        kind = module["type"].rsplit(".", 1)[-1]
        folder = package / f"query_{index}_{kind}"
        types[folder.name] = MODULE_PATH + kind
        if module["path"]:
            shutil.copytree(student / module["path"], folder)
            continue
        folder.mkdir()
        for file in module_files(student):
            shutil.copyfile(file, folder / file.name)
    return types


def _copy_runtime(student: Path, package: Path) -> None:
    """The ONNX files, where they were exported, laid out as the runtimes without torch want them."""
    if not (student / "onnx").is_dir():
        return
    shutil.copytree(student / "onnx", package / "onnx")
    for name in RUNTIME_FILES:
        if (student / name).is_file():
            shutil.copyfile(student / name, package / name)


def _save_route(route: str, model: SentenceTransformer, package: Path) -> dict[str, str]:
    """Saves every module of `model` in words that old and new releases read; returns their types by folder."""
    types = {}
    modules: list[Any] = list(model)
    for index, module in enumerate(modules):
        kind = type(module).__name__
        folder = package / f"{route}_{index}_{kind}"
        folder.mkdir()
        module.save(str(folder))
        known = type(module).__module__.startswith("sentence_transformers.")
        types[folder.name] = MODULE_PATH + kind if known else f"{type(module).__module__}.{kind}"
        if isinstance(module, Transformer):
            _narrow(folder)
        if kind in _CONFIGS:
            file, plain = _CONFIGS[kind]
            write_json(folder / file, plain(json.loads((folder / file).read_text(encoding="utf-8")), module))
        for weights in folder.rglob("*.safetensors"):
            weights.chmod(0o644)  # safetensors lets only the owner read
    return types


def _narrow(folder: Path) -> None:
    """Stores weights as the checkpoint had them: transformers writes what it computed with, float32.

    `config.json` goes on saying float32, so every reader computes in it.
    """
    for path in folder.glob("*.safetensors"):
        weights = load_file(path)
        dtype = next((dtype for dtype in (torch.float16, torch.bfloat16) if _holds(dtype, weights.values())), None)
        if dtype is not None:
            narrow = {name: each.to(dtype) if each.is_floating_point() else each for name, each in weights.items()}
            save_file(narrow, path, metadata={"format": "pt"})


def _holds(dtype: torch.dtype, weights: Any) -> bool:
    """Whether every one of `weights` survives a trip through `dtype` unchanged."""
    return all(torch.equal(each.to(dtype).to(each.dtype), each) for each in weights if each.is_floating_point())


def _plain_transformer(config: dict[str, Any], module: Any) -> dict[str, Any]:
    plain = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings",
    }
    length = module.max_seq_length
    known = {"max_seq_length": int(length)} if length is not None and length < 1e9 else {}
    # What an older release does not know it could not do either; a plain encoder needs none of it said.
    return {**known, "do_lower_case": False} if config == plain else {**config, **known}


def _plain_pooling(config: dict[str, Any], module: Any) -> dict[str, Any]:
    if not isinstance(config["pooling_mode"], str):  # several at once, whose order flags would lose
        return config
    return {
        "word_embedding_dimension": config["embedding_dimension"],
        **{f"pooling_mode_{old}": mode == config["pooling_mode"] for mode, old in _POOLING.items()},
        "include_prompt": config["include_prompt"],
    }


def _plain_dense(config: dict[str, Any], module: Any) -> dict[str, Any]:
    default = ("module_input_name", "module_output_name")
    return {key: value for key, value in config.items() if key not in default or value != "sentence_embedding"}


#: Per kind of module, the file with its settings and how to say them in words that older releases know too.
_CONFIGS: dict[str, tuple[str, Callable[[dict[str, Any], Any], dict[str, Any]]]] = {
    "Transformer": ("sentence_bert_config.json", _plain_transformer),
    "Pooling": ("config.json", _plain_pooling),
    "Dense": ("config.json", _plain_dense),
}


def _write_router(package: Path, routes: dict[str, dict[str, str]], default: str | None) -> None:
    write_json(
        package / ROUTER_FILE,
        {
            "types": {name: kind for types in routes.values() for name, kind in types.items()},
            "structure": {route: list(types) for route, types in routes.items()},
            # Without a default and without "empty keys", an input of no known role is an error.
            "parameters": {"default_route": default, "allow_empty_key": default is not None, "route_mappings": {}},
        },
    )
    write_json(package / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": f"{MODULE_PATH}Router"}])


def _write_config(student: Path, package: Path, prompts: dict[str, str]) -> None:
    name = "config_sentence_transformers.json"
    config = json.loads((student / name).read_text(encoding="utf-8"))
    write_json(package / name, {**config, "prompts": prompts, "default_prompt_name": None})


def _prove(
    package: Path, queries: SentenceTransformerEncoder, documents: SentenceTransformerEncoder, space: Space, light: bool
) -> Package:
    """Loads the package as anybody would and compares every canary text, in both roles, with the models it is of."""
    model, texts = SentenceTransformer(str(package), device="cpu"), list(space.texts)
    query_cosine = _least("query", model.encode_query(texts, show_progress_bar=False), queries.encode_query(texts))
    document_cosine = None
    if light:
        _refuses_documents(model, texts)
        loaded: Encoder = load_light(package, teacher=documents.model_id, device="cpu")
    else:
        vectors = model.encode_document(texts, show_progress_bar=False)
        document_cosine = _least("document", vectors, documents.encode_document(texts))
        loaded = SentenceTransformerEncoder(str(package), device="cpu")
    return Package(package, light, documents.model_id, saved_with(space, loaded), query_cosine, document_cosine)


def _least(role: str, found: Vectors, expected: Vectors) -> float:
    """The least cosine of two sets of vectors, row by row, which must be high and the lengths equal."""
    least = float(row_cosines(found, expected).min())
    lengths = np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    if least < MIN_COSINE or np.abs(lengths - 1).max() > 1e-3:
        raise LeafError(
            f"the package was not kept: after loading it again, a {role} vector has cosine {least:.5f} to the model it "
            f"comes from and {MIN_COSINE} was expected; this {role} encoder cannot be routed by Sentence Transformers"
        )
    return least


def _refuses_documents(model: SentenceTransformer, texts: Sequence[str]) -> None:
    for encode in (model.encode_document, model.encode):
        try:
            encode(list(texts[:1]), show_progress_bar=False)
        except ValueError:  # no such route
            continue
        raise LeafError(
            "the light package was not kept: this release of Sentence Transformers encodes documents with its student; "
            "leave out --light"
        )
