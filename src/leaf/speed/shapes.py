"""Models of a named architecture with random weights: how fast a model is does not depend on what it has learnt.

    shape:bert-base           12 layers, 768-d, CLS pooling: arctic-embed-m, the teacher of leaf-ir
    shape:bert-large          24 layers, 1024-d, CLS pooling: mxbai-embed-large, the teacher of leaf-mt
    shape:minilm-lN[-dDIM]    N layers of width 384, mean, a head to DIM (768): leaf-ir is minilm-l6, leaf-mt -d1024
    shape:table[-dDIM]        a lookup table, no layers

They are saved as Sentence Transformers folders and exported like any student, so that every contestant runs through
the same runtime.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from leaf.errors import LeafError
from leaf.files import digest, file_digest, user_cache
from leaf.progress import say
from leaf.provenance import versions
from leaf.runtime.artifact import FILES, FOLDER
from leaf.texts.installed import entries

PREFIX = "shape:"
#: Docstrings that the ranges of int8 are measured on.
NUM_CALIBRATION = 32
KNOWN = "bert-base, bert-large, minilm-l6 (any number of layers), table; the last two with -d1024 for other vectors"
_NAME = re.compile(r"(?:(bert-base|bert-large)|minilm-l([1-9]\d?)(?:-d(\d+))?|table(?:-d(\d+))?)")


@dataclass(frozen=True)
class Architecture:
    """What decides how long a text takes."""

    layers: int
    width: int
    heads: int
    intermediate: int
    dim: int
    """Width of the vectors; a linear head leads there where it is not the model's own."""
    pooling: Literal["cls", "mean"] = "mean"
    max_length: int = 512


_TEACHERS = {
    "bert-base": Architecture(12, 768, 12, 3072, 768, "cls"),
    "bert-large": Architecture(24, 1024, 16, 4096, 1024, "cls"),
}


def architecture(name: str) -> Architecture:
    """The architecture called `name`, without `shape:`. Raises `LeafError` for an unknown one."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise LeafError(f"no shape '{name}'; there are {KNOWN}")
    teacher, layers, dim, table_dim = found.groups()
    if teacher:
        return _TEACHERS[teacher]
    if layers:
        return Architecture(int(layers), 384, 12, 1536, int(dim or 768))
    return Architecture(0, 384, 12, 1536, int(table_dim or 768))


def export_shapes(wanted: Sequence[tuple[str, str]], tokenizer: Path) -> dict[str, Path]:
    """Folders of exported models by name, for (name, precision) pairs; `tokenizer` is the tokenizer.json they get.

    They stay in the user's cache folder, under all that decides what is in them, the code that exports included.
    Raises `LeafError` where there is nothing to export with.
    """
    folders = {}
    for name in dict.fromkeys(each for each, _ in wanted):
        precisions = [precision for each, precision in wanted if each == name]
        folder = _folder(name, tokenizer)
        if not all((folder / FOLDER / FILES[each]).is_file() for each in precisions):
            say(f"exporting {PREFIX}{name} with random weights to {folder}")
            _export(name, tokenizer, folder, precisions)
        folders[name] = folder
    return folders


def _folder(name: str, tokenizer: Path) -> Path:
    here = Path(__file__)
    sources = [here, here.with_name("synthetic.py"), *sorted((here.parent.parent / "export").glob("*.py"))]
    code = [file_digest(path) for path in sources]
    key = digest([asdict(architecture(name)), file_digest(tokenizer), code, versions()])
    return user_cache() / "shapes" / f"{name}-{key[:16]}"


def _export(name: str, tokenizer: Path, folder: Path, precisions: Sequence[str]) -> None:
    try:
        from leaf.export.onnx import Texts, export_model
        from leaf.speed.synthetic import random_model
    except ImportError as error:
        raise LeafError(
            f"{PREFIX}{name} is exported here, which needs {error.name}; pip install 'leaf[train,onnx]'"
        ) from error
    # Ranges of random weights mean nothing, but int8 has to have some.
    texts = [each.summary or each.body for each in islice(entries([]), NUM_CALIBRATION)]
    export_model(
        random_model(architecture(name), tokenizer),
        folder,
        name=name,
        prompts={"query": "", "document": ""},
        precisions=precisions,
        calibration=Texts(texts, ["document"] * len(texts)),
    )
