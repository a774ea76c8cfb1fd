"""A folder of plain files in which the student searches its teacher's vectors, in the browser of whoever opens it.

    export_web("runs/demo/student-2l", "my-index", Path("site"))
    python -m http.server -d site

Any file host serves it, from any path; no server computes anything and nothing that is typed leaves the page. The
student runs in WebAssembly (onnxruntime-web), on one thread: more need two headers (COOP, COEP) that plain file hosts
do not send. The vectors lie beside it as int8, one byte for each dimension, and every document is compared with every
question: 100,000 × 384 take some 40 ms in plain JavaScript.

    index.html, search.js, style.css    the page
    worker.js, rank.js, tokens.js       load, encode and search, off the page's thread
    runtime/                            onnxruntime-web and @huggingface/tokenizers
    student/                            the ONNX file and its tokenizer; `OnnxEncoder` takes this folder too
    vectors.i8                          int8 [n, dim] of the documents, in descending order of their ids
    documents/0000.json …               ids, titles, texts and metadata in the same order, loaded as they are found
    space.json, canaries.safetensors    whose vectors these are
    manifest.json                       what the page needs to know, with sizes and digests; written last

A score is the dot product of the question's float32 vector with the rounded one of a document. That the browser does
what Python does is checked: token ids at export, where node is there, and again, with a vector, when the page loads.
"""

import html
import json
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from leaf import __version__
from leaf.compression import LARGEST, Codes, Int8
from leaf.encoder import Vectors
from leaf.errors import LeafError
from leaf.evaluation.retrieval import tie_order
from leaf.files import digest, file_digest, user_cache, write_json, write_text
from leaf.models import short_name, without_folders
from leaf.progress import progress, say
from leaf.runtime.artifact import TOKENIZER
from leaf.runtime.encoder import OnnxEncoder
from leaf.search.admission import admit
from leaf.search.store import Settings, Store, open_store
from leaf.space import Space

KIND, FORMAT = "leaf web", 1
MANIFEST, VECTORS = "manifest.json", "vectors.i8"
PAGE = ("README.txt", "index.html", "search.js", "style.css", "worker.js", "rank.js", "tokens.js")
#: What the page takes from npm's packages. Modules are renamed to `.js`: some file hosts know no other ending.
RUNTIME = {
    "ort.js": "onnxruntime-web/dist/ort.wasm.min.mjs",
    "ort-wasm.js": "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs",
    "ort-wasm.wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    "tokenizers.js": "@huggingface/tokenizers/dist/tokenizers.min.mjs",
    "tokenizers.LICENSE.txt": "@huggingface/tokenizers/LICENSE",
}
NPM_SECONDS = 600
#: Vectors that int8 is calibrated from where the index has not done so.
CALIBRATED = 10_000
#: Characters of the documents in one file: a few requests for a page of results, and none of them large.
CHUNK_CHARACTERS = 128 * 1024
#: Furthest from 1 that a stored vector's length may be where vectors are compared by cosine; float16 rounds to 5e-4.
LENGTH_TOLERANCE = 0.01
#: Questions, beside the first canaries, that a tokenizer must read alike in Python and JavaScript.
AWKWARD = (
    "",
    "What's in foo_bar.baz(qux=1)?",
    "ÀÉÎ œuvre ﬁn naïve",
    "漢字 कखग ру́сский ΚΑΛΗΜΕΡΑ ΚΟΣΜΟΣ",
    "  a\r\n\tb\u200b c ",
    "a [SEP] b </s> c",
    "👩‍🚀 ☕",
    "words " * 600,
)
NUM_CANARIES_CHECKED = 8


def export_web(
    student: str | Path,
    index: str,
    out: Path,
    *,
    precision: str = "q8",
    title: str | None = None,
    max_documents: int = 200_000,
) -> dict[str, Any]:
    """Writes the page that asks `index` with `student` into the folder `out`, whole or not at all.

    `student` is an exported student (a folder, a hub id, an ONNX file), `index` what `leaf.search.store.open_store`
    takes. An earlier page in `out` is replaced. Returns what was written: `files` (name → bytes), `documents`, `dim`,
    `precision`, `student`, `bytes_total`.

    Raises `LeafError` for a student of another space or without its ONNX file, an index that is empty, damaged or
    larger than `max_documents`, an `out` that holds something else, and where npm cannot fetch the runtime.
    """
    _check_target(out)
    encoder = OnnxEncoder(student, precision=None if str(student).endswith(".onnx") else precision)
    with open_store(index) as store:
        admit(encoder, store.space)
        _check_size(store, max_documents)
        modules = node_modules()
        with _replacing(out) as folder:
            paths = _copy_student(folder, encoder)
            starts, settings = _write_documents(folder, store)
            _share(store.space).save(folder)
            manifest = _manifest(encoder, store, settings, starts, paths)
            manifest["title"] = title or manifest["title"]
            _copy_page(folder, modules, manifest)
            _check_tokens(folder, manifest)
            manifest["files"] = {
                name: {"bytes": path.stat().st_size, "sha256": file_digest(path)} for name, path in _files(folder)
            }
            write_text(folder / MANIFEST, json.dumps(manifest, ensure_ascii=False, separators=(",", ":")))
    sizes = {name: path.stat().st_size for name, path in _files(out)}
    return {
        "files": sizes,
        "documents": manifest["documents"],
        "dim": settings.dim,
        "precision": encoder.usage.precision,
        "student": encoder.usage.name,
        "bytes_total": sum(sizes.values()),
    }


def node_modules() -> Path:
    """A folder with the files in `RUNTIME`, fetched by npm once for every version of the lock file.

    Raises `LeafError` where npm is missing or cannot fetch them.
    """
    lock = _source("package-lock.json")
    folder = user_cache() / "web" / digest(lock)[:16]
    if folder.is_dir():
        return folder
    if shutil.which("npm") is None:
        raise LeafError(
            "npm is not installed, and the page's runtime (onnxruntime-web) is fetched by it once; install Node.js 20 "
            f"or newer, or copy {folder} from a machine that has exported a page"
        )
    say("fetching onnxruntime-web with npm (once)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        for name in ("package.json", "package-lock.json"):
            (Path(scratch) / name).write_text(_source(name), encoding="utf-8")
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        try:
            subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=NPM_SECONDS, check=True)
        except (subprocess.SubprocessError, OSError) as error:
            told = str(getattr(error, "stderr", None) or error).strip().splitlines()
            raise LeafError(
                f"npm could not fetch the page's runtime ({told[0] if told else 'no reason given':.200}); connect to "
                f"npm's registry, or copy {folder} from a machine that has exported a page"
            ) from error
        # Of 140 MB, the 14 that are needed.
        chosen = Path(scratch) / "chosen"
        for name in RUNTIME.values():
            (chosen / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(scratch) / "node_modules" / name, chosen / name)
        try:
            chosen.rename(folder)
        except OSError:  # another process was as fast
            if not folder.is_dir():
                raise
    return folder


def _check_target(out: Path) -> None:
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() and not _is_page(out):
        raise LeafError(f"{out} holds something other than an exported page; choose an empty or a new folder")


def _is_page(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["kind"] == KIND)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _check_size(store: Store, max_documents: int) -> None:
    if not len(store):
        raise LeafError(f"{store.name} holds no documents; add some before making a page of it")
    if len(store) > max_documents:
        raise LeafError(
            f"{store.name} holds {len(store):,} documents and a page takes {max_documents:,}: whoever opens it would "
            f"load {len(store) * store.settings.dim / 1e6:,.0f} MB of vectors; serve the index, or raise the limit"
        )


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """An empty folder beside `out` that takes its place on a clean exit; what was there before is removed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:12]
    building, old = out.with_name(f".{out.name}.{mark}.tmp"), out.with_name(f".{out.name}.{mark}.old")
    building.mkdir()
    try:
        yield building
        if out.exists():
            out.rename(old)
        building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _copy_page(folder: Path, modules: Path, manifest: dict[str, Any]) -> None:
    student = manifest["student"]
    words = {
        **{name: str(manifest[name]) for name in ("title", "teacher", "dim")},
        **{name: str(student[name]) for name in ("name", "precision")},
        "documents": f"{manifest['documents']:,}",
    }
    for name in PAGE:
        content = _source(name)
        for word, text in words.items():
            content = content.replace(f"{{{{ {word} }}}}", html.escape(text) if name.endswith(".html") else text)
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "runtime").mkdir()
    for name, source in RUNTIME.items():
        shutil.copyfile(modules / source, folder / "runtime" / name)


def _copy_student(folder: Path, encoder: OnnxEncoder) -> dict[str, str]:
    """The student's files; their names in the folder, by what they are."""
    (folder / "student").mkdir()
    paths = {"model": encoder.path.name, "tokenizer": TOKENIZER, "tokenizer_config": "tokenizer_config.json"}
    shutil.copyfile(encoder.path, folder / "student" / paths["model"])
    shutil.copyfile(encoder.tokenizer_path, folder / "student" / TOKENIZER)
    config = encoder.tokenizer_path.with_name(paths["tokenizer_config"])
    write_text(folder / "student" / config.name, config.read_text(encoding="utf-8") if config.is_file() else "{}")
    return {what: f"student/{name}" for what, name in paths.items()}


def _write_documents(folder: Path, store: Store) -> tuple[list[int], Settings]:
    """Writes vectors and documents; returns the first row of each file of documents, and the settings with a limit."""
    ids: list[str] = []
    texts: list[str] = []
    codes: list[Codes] = []
    waiting: list[Vectors] = []
    settings = replace(store.settings, precision="int8")

    def encode() -> None:
        nonlocal settings
        if waiting:
            settings = settings.calibrated(np.concatenate(waiting))
            codes.extend(Int8(_limit(settings), settings.dim).codes(each) for each in waiting)
            waiting.clear()

    with progress("reading documents", len(store)) as bar:
        for documents, vectors in store.rows():
            _check_vectors(store, [each.id for each in documents], vectors)
            waiting.append(vectors)
            for each in documents:
                ids.append(each.id)
                record = {"id": each.id, "title": each.title, "text": each.text, "metadata": dict(each.metadata)}
                texts.append(json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
            if settings.limit is not None or sum(map(len, waiting)) >= CALIBRATED:
                encode()
            bar.advance(len(documents))
        encode()
    if len(ids) != len(store):
        raise LeafError(f"{store.name} was changed while it was read; export again")
    # In the order in which ties are won, so that the page need not know ids to rank.
    order = tie_order(ids)
    np.concatenate(codes)[order].tofile(folder / VECTORS)
    return _write_chunks(folder / "documents", [texts[row] for row in order]), settings


def _check_vectors(store: Store, ids: list[str], vectors: Vectors) -> None:
    if vectors.shape != (len(ids), store.settings.dim):
        raise LeafError(
            f"{store.name} is damaged: vectors of shape {vectors.shape} for {len(ids)} documents of "
            f"{store.settings.dim} dimensions; index again"
        )
    lengths = np.linalg.norm(vectors, axis=1)
    odd = ~np.isfinite(lengths)
    if store.settings.similarity == "cosine":
        odd |= np.abs(lengths - 1) > LENGTH_TOLERANCE
    if odd.any():
        row = int(odd.argmax())
        raise LeafError(
            f"{store.name} is damaged: the vector of document '{ids[row]}' has length {lengths[row]:.3g}, expected "
            f"{'1' if store.settings.similarity == 'cosine' else 'a number'}; update that document, or index again"
        )


def _write_chunks(folder: Path, texts: list[str]) -> list[int]:
    folder.mkdir()
    starts = [0]
    size = 0
    for row, text in enumerate(texts):
        if size and size + len(text) > CHUNK_CHARACTERS:
            starts.append(row)
            size = 0
        size += len(text)
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(texts)], strict=True)):
        content = "[\n" + ",\n".join(texts[start:end]) + "\n]\n"
        (folder / f"{number:04}.json").write_bytes(content.encode("utf-8", "replace"))
    return starts


def _manifest(
    encoder: OnnxEncoder, store: Store, settings: Settings, starts: list[int], paths: dict[str, str]
) -> dict[str, Any]:
    """All that the page must know, but for the sizes of its files."""
    usage = encoder.usage
    npm: dict[str, str] = json.loads(_source("package.json"))["dependencies"]
    return {
        "kind": KIND,
        "format": FORMAT,
        "leaf": __version__,
        "runtime": npm,
        "title": f"Search {len(store):,} documents",
        "student": {
            "name": usage.name,
            "precision": usage.precision,
            "prompt": usage.prompts["query"],
            "max_length": usage.max_length,
            "add_special_tokens": usage.add_special_tokens,
            "split_special_tokens": usage.split_special_tokens,
            **paths,
        },
        "teacher": short_name(without_folders(str(store.space.teacher["model"]))),
        "space": store.space.id,
        "documents": len(store),
        "dim": settings.dim,
        "similarity": settings.similarity,
        # A question's vector is cut to `dim`, scaled to length 1 if so, and its dot products with codes by this.
        "normalise": settings.similarity == "cosine",
        "scale": _limit(settings) / LARGEST,
        "chunks": {"name": "documents/{}.json", "starts": starts},
        "check": _expected(encoder, store.space, settings),
    }


def _expected(encoder: OnnxEncoder, space: Space, settings: Settings) -> dict[str, Any]:
    """What Python makes of some questions: token ids of all, and the vector of the first, as it is compared."""
    canaries = [text for text, kind in zip(space.texts, space.kinds, strict=True) if kind == "query"] or space.texts
    questions = [*canaries[:NUM_CANARIES_CHECKED], *AWKWARD]
    vector = settings.prepare(encoder.encode_query(questions[:1]))[0]
    return {
        "questions": questions,
        "ids": encoder.tokenise(questions, "query"),
        "vector": [round(float(each), 5) for each in vector],
    }


def _check_tokens(folder: Path, manifest: dict[str, Any]) -> None:
    """Raises `LeafError` where JavaScript splits a question otherwise; without node, the page finds out itself."""
    if shutil.which("node") is None:
        return
    script = """
        import { readFileSync } from "node:fs";
        import { tokeniser } from "./tokens.js";
        const { student, questions } = JSON.parse(readFileSync(0));
        const json = (name) => JSON.parse(readFileSync(name));
        const tokenise = tokeniser(json(student.tokenizer), json(student.tokenizer_config), student);
        console.log(JSON.stringify(questions.map(tokenise)));
    """
    own = folder / "package.json"
    write_json(own, {"type": "module"})  # else node takes `.js` for CommonJS
    try:
        done = subprocess.run(
            ["node", "--input-type=module", "--eval", script],
            input=json.dumps({"student": manifest["student"], "questions": manifest["check"]["questions"]}),
            cwd=folder,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=60,
            check=True,
        )
        found = json.loads(done.stdout)
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        told = re.search(r"^\w*Error.*", str(getattr(error, "stderr", "")), re.MULTILINE)
        raise LeafError(
            f"the tokenizer of {manifest['student']['name']} does not run in JavaScript "
            f"({told[0] if told else type(error).__name__:.200}); serve the student instead"
        ) from error
    finally:
        own.unlink()
    for question, ids, expected in zip(manifest["check"]["questions"], found, manifest["check"]["ids"], strict=True):
        if ids != expected:
            raise LeafError(
                f"JavaScript splits {question!r:.60} into {len(ids)} tokens, not as Python does into {len(expected)}; "
                f"the page would ask outside the space of {manifest['teacher']}; serve the student instead"
            )


def _share(space: Space) -> Space:
    """The space without folders of this machine."""
    return replace(space, teacher={**space.teacher, "model": without_folders(str(space.teacher["model"]))})


def _limit(settings: Settings) -> float:
    assert settings.limit is not None, "int8 has been calibrated"
    return settings.limit


def _source(name: str) -> str:
    return (files("leaf") / "export" / "web" / name).read_text(encoding="utf-8")


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Every file below `folder` with its name there."""
    return [(path.relative_to(folder).as_posix(), path) for path in sorted(folder.rglob("*")) if path.is_file()]
