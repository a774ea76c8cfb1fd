"""A student as ONNX files that every runtime reads, each compared with PyTorch and with the teacher before it is kept.

    export_student(Path("runs/demo/student-2l"))

    student-2l/onnx/model.onnx  model_fp16.onnx  model_quantized.onnx  model_q4.onnx  model_q4f16.onnx  manifest.json
    student-2l/config.json  tokenizer.json  tokenizer_config.json  special_tokens_map.json

How a file must be used (prompts, lengths, special tokens) is written into it: `leaf.runtime` needs nothing else.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize

from leaf.encoder import Role, Vectors, row_cosines
from leaf.errors import LeafError
from leaf.export import quantize
from leaf.export.graph import to_graph
from leaf.export.layout import write_layout
from leaf.files import atomic_path, digest, file_digest
from leaf.progress import progress, say
from leaf.recipe import Export
from leaf.run import Stage, read_manifest
from leaf.runtime.artifact import FILES, FOLDER, FORMAT, KEY, Usage
from leaf.runtime.encoder import OnnxEncoder
from leaf.space import Space, encode_canaries
from leaf.teacher.model import SentenceTransformerEncoder
from leaf.tokens import Tokenizer

#: Files are made and compared here; then the folder takes its name, so that what has that name is whole.
BUILDING = ".onnx.tmp"
#: What `leaf export` writes unless told otherwise.
PRECISIONS = Export().precisions
#: How much further from the teacher than PyTorch a file may lie on average, in units of the mean vector length, to be
#: kept: for int8 a fifteenth of a usual student's own distance, for four bits all that the canaries tolerate.
MAX_ADDED = {"fp32": 1e-4, "fp16": 2e-3, "q8": 0.02, "q8-portable": 0.025, "q4": 0.05, "q4f16": 0.05}
#: Least cosine of a text alone to the same text in a padded batch: float16 rounds at other places there.
MIN_BATCH_COSINE = {**dict.fromkeys(FILES, 0.9999), "fp16": 0.998, "q4f16": 0.998}
#: Least closeness of fp32 to PyTorch, row by row and as a share of the mean vector length: another order of sums moves
#: a vector by 1e-6. How far both are from the teacher could agree by chance.
MAX_FP32_DISTANCE = 1e-3
#: Files of Sentence Transformers that decide about vectors besides weights.
SETTINGS = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")
#: Texts that ranges are measured on, and texts that files are compared on; of the latter a few in one padded batch.
NUM_CALIBRATION, NUM_COMPARED, NUM_PADDED = 256, 1024, 32


@dataclass(frozen=True)
class Texts:
    """Texts in their roles, and the teacher's vectors of them where they are known."""

    texts: Sequence[str]
    kinds: Sequence[Role]
    vectors: Vectors | None = None
    """float32 `[n, dim]`."""

    def head(self, count: int) -> "Texts":
        """The first `count`."""
        vectors = None if self.vectors is None else self.vectors[:count]
        return Texts(self.texts[:count], self.kinds[:count], vectors)


@dataclass(frozen=True)
class Exported:
    """What was measured of one file."""

    file: str
    bytes: int
    error: float
    """Mean ‖y − ŷ‖₂ to the teacher's vectors."""
    added_error: float
    """The same, less that of PyTorch."""
    min_cosine: float
    """Least cosine of a row to PyTorch's."""
    max_distance: float
    """Largest distance of a row to PyTorch's."""
    batch_cosine: float
    """Least cosine of a text alone to the same text in a padded batch."""

    def fault(self, precision: str, length: float) -> str | None:
        """Why this file must not be kept, where vectors are `length` long on average; None where it may."""
        added, batch = self.added_error / length, self.batch_cosine
        if precision == "fp32" and not self.max_distance <= MAX_FP32_DISTANCE * length:
            return f"a vector is {self.max_distance:.4f} away from PyTorch's"
        if not added <= MAX_ADDED[precision]:  # not a number is no small number
            return f"it adds {added:.4f} to the distance from the teacher, at most {MAX_ADDED[precision]} was expected"
        if not batch >= MIN_BATCH_COSINE[precision]:
            least = MIN_BATCH_COSINE[precision]
            return f"a text in a padded batch has cosine {batch:.5f} to itself alone, at least {least} was expected"
        return None


def export_model(
    model: SentenceTransformer,
    folder: Path,
    *,
    name: str,
    prompts: Mapping[Role, str],
    precisions: Sequence[str] = PRECISIONS,
    calibration: Texts,
    space: str | None = None,
    subfolder: str = FOLDER,
) -> dict[str, Path]:
    """Writes ONNX files of `model` into `folder/onnx` and what runtimes need into `folder`; returns files by precision.

    Nothing is compared here; see `export_student`. `calibration` is what the ranges of q8 are measured on. Raises
    `LeafError` for an unknown precision, a stack that is no single graph, and a tokenizer without a Rust one.
    """
    if odd := [each for each in precisions if each not in FILES]:
        raise LeafError(f"no precision '{odd[0]}'; expected some of {', '.join(FILES)}")
    tokenizer = Tokenizer(model[0], prompts)
    if not tokenizer.is_direct:
        raise LeafError(
            f"{name}: its tokenizer has no fast (Rust) form that makes the same tokens, and no runtime without Python "
            "could make them; choose a backbone with one"
        )
    usage = _usage(model, name, tokenizer, space)
    (folder / subfolder).mkdir(parents=True, exist_ok=True)
    write_layout(folder, model, usage)
    graphs = _Graphs(model, tokenizer, calibration)
    written = {}
    with progress(f"exporting {name}", len(precisions)) as bar:
        for precision in (each for each in FILES if each in precisions):
            graph = graphs.of(precision)
            metadata = {**asdict(usage), "precision": precision, "format": FORMAT}
            helper.set_model_props(graph, {KEY: json.dumps(metadata, ensure_ascii=False)})
            onnx.checker.check_model(graph)
            written[precision] = folder / subfolder / FILES[precision]
            with atomic_path(written[precision]) as temporary:
                onnx.save(graph, str(temporary))
            bar.advance(note=precision)
    return written


def export_student(
    folder: Path,
    precisions: Sequence[str] = PRECISIONS,
    *,
    held_out: Texts | None = None,
    calibration: Texts | None = None,
) -> dict[str, Any]:
    """Adds ONNX files to the student in `folder`, keeps those that hold up, and returns what `manifest.json` says.

    `held_out` are texts with the teacher's vectors that files are compared on, `calibration` those that the ranges of
    q8 are measured on; without them, both are the canaries. A file that strays from the teacher, or whose vectors
    depend on the batch, is deleted and named under `refused`. Done before with the same weights, texts and code, it
    returns at once. Raises `LeafError` for a folder without a space, and where not even fp32 agrees with PyTorch.
    """
    space = Space.load(folder)
    canaries = Texts(space.texts, space.kinds, space.vectors)
    compared = (held_out or canaries).head(NUM_COMPARED)
    calibrated = (calibration or canaries).head(NUM_CALIBRATION)
    assert compared.vectors is not None
    stage = Stage(folder / FOLDER, _inputs(folder, precisions, space, compared, calibrated))
    known = read_manifest(stage.folder)
    if (
        known is not None
        and known.get("fingerprint") == stage.fingerprint
        and all((stage.folder / each["file"]).is_file() for each in known["files"].values())
    ):
        return known
    building = Stage(folder / BUILDING, stage.inputs)
    shutil.rmtree(building.folder, ignore_errors=True)
    encoder = SentenceTransformerEncoder(str(folder), device="cpu")
    files = export_model(
        encoder.model,
        folder,
        name=folder.name,
        prompts=encoder.prompts,
        precisions=precisions,
        calibration=calibrated,
        space=space.id,
        subfolder=BUILDING,
    )
    expected = encode_canaries(encoder, compared.texts, compared.kinds)
    student_error = _mean_distance(expected, compared.vectors)
    length = float(np.linalg.norm(compared.vectors, axis=1).mean())
    kept, refused = {}, {}
    with progress(f"comparing {folder.name} with PyTorch", len(files)) as bar:
        for precision, file in files.items():
            found = _compare(OnnxEncoder(file), compared, expected, student_error)
            fault = found.fault(precision, length)
            if fault is None:
                kept[precision] = asdict(found)
            else:
                file.unlink()
                refused[precision] = fault
                say(f"{file.name} was not kept: {fault}")
            bar.advance(note=precision)
    if "fp32" in refused:
        shutil.rmtree(building.folder)
        raise LeafError(f"{folder}: the graph is not the model ({refused['fp32']}); please report this backbone")
    manifest = building.close(
        files=kept,
        refused=refused,
        student_error=student_error,
        num_texts=len(compared.texts),
        texts="held-out" if held_out else "canaries",
        calibration="texts" if calibration else "canaries",
    )
    # All that was there goes: files of other weights, and of precisions that are not wanted any more.
    shutil.rmtree(stage.folder, ignore_errors=True)
    building.folder.rename(stage.folder)
    return manifest


def read_calibration(files: Sequence[Path]) -> Texts | None:
    """Texts from files, one a line, each as a query and as a document in turn; None for no files.

    Raises `LeafError` for a file that is not there, not UTF-8 or empty.
    """
    lines = []
    for file in files:
        try:
            lines += [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise LeafError(
                f"{file} cannot be read as UTF-8 text ({error}); give text files, one text a line"
            ) from error
    if files and not lines:
        raise LeafError(f"{files[0]} holds no text; give text files, one text a line")
    every = max(1, len(lines) // NUM_CALIBRATION)
    kinds: list[Role] = ["query", "document"]
    return Texts(lines[::every], [kinds[row % 2] for row in range(len(lines[::every]))]) if lines else None


def _inputs(
    folder: Path, precisions: Sequence[str], space: Space, compared: Texts, calibrated: Texts
) -> dict[str, Any]:
    """What decides about the files."""
    files = (path.relative_to(folder) for path in folder.rglob("*"))
    own = sorted(each for each in files if each.parts[0] not in (FOLDER, BUILDING) and _matters(each))
    code = sorted(Path(__file__).parent.glob("*.py"))
    return {
        "files": {each.as_posix(): file_digest(folder / each) for each in own},
        "space": space.id,
        "precisions": [each for each in FILES if each in precisions],
        "compared": digest([list(compared.texts), list(compared.kinds)]),
        "calibration": digest([list(calibrated.texts), list(calibrated.kinds)]),
        "code": digest([file_digest(path) for path in code]),
    }


def _matters(file: Path) -> bool:
    # Weights, prompts, lengths, the stack. Not the tokenizer, which the export itself sets right.
    is_module = file.name == "config.json" and len(file.parts) > 1
    return file.suffix == ".safetensors" or is_module or file.name in SETTINGS


class _Graphs:
    """The graph of every precision, each made when asked for; the float32 one, which the others start from, once."""

    def __init__(self, model: SentenceTransformer, tokenizer: Tokenizer, calibration: Texts) -> None:
        self._exact = to_graph(model)
        self._tokenizer, self._calibration = tokenizer, calibration

    def of(self, precision: str) -> onnx.ModelProto:
        if precision == "fp32":
            return self._exact
        if precision == "fp16":
            return quantize.to_fp16(self._exact)
        if precision in ("q8", "q8-portable"):
            return quantize.to_q8(self._exact, self._feeds(), portable=precision == "q8-portable")
        four_bits = quantize.to_q4(self._exact)
        return four_bits if precision == "q4" else quantize.to_fp16(four_bits)

    def _feeds(self) -> list[quantize.Feed]:
        """Calibration texts one by one: padding would be measured too."""
        feeds: list[quantize.Feed] = []
        for text, kind in zip(self._calibration.texts, self._calibration.kinds, strict=True):
            if len(ids := self._tokenizer([text], kind).ids):
                row = ids.astype(np.int64)[None]
                feeds.append({"input_ids": row, "attention_mask": np.ones_like(row)})
        return feeds


def _usage(model: SentenceTransformer, name: str, tokenizer: Tokenizer, space: str | None) -> Usage:
    dim = model.get_embedding_dimension()
    assert isinstance(dim, int)
    identity = tokenizer.identity()
    return Usage(
        name=name,
        precision="fp32",
        dim=dim,
        normalised=isinstance(model[-1], Normalize),
        similarity="dot" if model.similarity_fn_name == "dot" else "cosine",
        prompts=dict(tokenizer.prompts),
        max_length=tokenizer.max_length,
        add_special_tokens=not tokenizer.is_table,
        split_special_tokens=identity["split_special_tokens"],
        pad_token_id=_pad_token_id(model),
        space=space,
    )


def _pad_token_id(model: SentenceTransformer) -> int:
    return int(getattr(getattr(model[0], "tokenizer", None), "pad_token_id", 0) or 0)


def _compare(encoder: OnnxEncoder, texts: Texts, expected: Vectors, student_error: float) -> Exported:
    assert texts.vectors is not None
    vectors = encode_canaries(encoder, texts.texts, texts.kinds)
    error = _mean_distance(vectors, texts.vectors)
    rows = [row for row, kind in enumerate(texts.kinds) if kind == texts.kinds[0]][:NUM_PADDED]
    tokens = encoder.tokenise([texts.texts[row] for row in rows], texts.kinds[0])
    alone = np.concatenate([encoder.encode_tokens([each]) for each in tokens])
    return Exported(
        file=encoder.path.name,
        bytes=encoder.path.stat().st_size,
        error=error,
        added_error=error - student_error,
        min_cosine=float(row_cosines(vectors, expected).min()),
        max_distance=float(np.linalg.norm(vectors - expected, axis=1).max()),
        batch_cosine=float(row_cosines(encoder.encode_tokens(tokens), alone).min()),
    )


def _mean_distance(first: Vectors, second: Vectors) -> float:
    return float(np.linalg.norm(first - second, axis=1).mean())
