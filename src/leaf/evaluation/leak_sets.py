"""The evaluation sets that training texts are checked against (`prepare.leak_check`), found by path.

    for each in leak_sets(["data/eval", "evaluate"], recipe.evaluate.data):
        print(each.name, each.digest)

Sets are found and named as by `datasets.load_all`, but no text is read before it is asked for: a finished stage needs
the digests alone, and the texts of one set are let go before those of the next.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from leaf.errors import LeafError
from leaf.evaluation import datasets
from leaf.files import digest

#: In place of a path: the recipe's own `evaluate.data`.
EVALUATE = "evaluate"
#: Entry of `evaluate.data` that needs no check: the run holds these texts out itself.
HELD_OUT_PAIRS = "held-out-pairs"
CORPUS = ("corpus.jsonl", "corpus.jsonl.gz")
TABLES = (".tsv", ".tsv.gz")
#: Columns of a table that hold texts; the others are scores and labels.
TEXT_COLUMNS = ("text", "sentence1", "sentence2")


@dataclass(frozen=True)
class LeakSet:
    """One evaluation set: a BEIR folder, or tables."""

    name: str
    paths: tuple[Path, ...]
    """The folder, or every table."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of what the files hold. How they are compressed and where they lie do not count."""
        return digest([_content_digest(file) for path in self.paths for file in _files(path)])

    def texts(self) -> Iterator[str]:
        """Every query that is scored and every document; of tables, every text of every row.

        A document's title is a line of its own: joined by a space, as models read them, a title and the sentence behind
        it would be one sentence that is nowhere else. Raises `LeafError` for a set that is damaged.
        """
        for path in self.paths:
            yield from _beir_texts(path) if path.is_dir() else _table_texts(path)


def leak_sets(names: Iterable[str], evaluated: Sequence[str] = ()) -> list[LeakSet]:
    """The sets behind `names`, each once; `evaluate` stands for those of `evaluated`, the recipe's `evaluate.data`.

    A name is a BEIR folder, a `.tsv[.gz]` file, or a folder with any number of them at any depth. The tables test, dev
    and train of one folder are one set, and to name one is to name all: what a classifier is fitted on is a part of the
    benchmark too. Raises `LeafError` for a path without a set, and for two sets of one name.
    """
    found: dict[str, LeakSet] = {}
    for name in names:
        for path in _own(evaluated) if name == EVALUATE else [name]:
            for each in _at(Path(path)):
                known = found.setdefault(each.name, each)
                if known.paths[0].resolve() != each.paths[0].resolve():
                    raise LeafError(
                        f"prepare.leak_check: two sets are called '{each.name}', {known.paths[0]} and "
                        f"{each.paths[0]}: rename one"
                    )
    return list(found.values())


def _own(evaluated: Sequence[str]) -> list[str]:
    paths = [path for path in evaluated if path != HELD_OUT_PAIRS]
    if not paths:
        raise LeafError(
            "prepare.leak_check says 'evaluate', but evaluate.data names no set to check against; name one there, or "
            "the path of one here"
        )
    return paths


def _at(path: Path) -> list[LeakSet]:
    if path.is_file() and path.name.endswith(TABLES):
        stem = _stem(path)
        return [_split_set(path.parent) if stem in datasets.SPLITS else LeakSet(stem, (path,))]
    if not path.is_dir():
        raise LeafError(
            f"prepare.leak_check: '{path}' is no folder and no .tsv[.gz] file; give the path of a set or of a folder "
            "of sets (of a public benchmark, its local copy), or 'evaluate'"
        )
    sets = list(_below(path))
    if not sets:
        raise LeafError(f"prepare.leak_check: {path} has no BEIR folder and no .tsv[.gz] file, in itself or below")
    return sets


def _below(folder: Path) -> Iterator[LeakSet]:
    """The sets in a tree. Below a set none is looked for, nor in hidden folders."""
    if any((folder / name).is_file() for name in CORPUS):
        yield LeakSet(folder.resolve().name, (folder,))
        return
    if (parts := _split_set(folder)).paths:
        yield parts
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _below(path)
        elif path.name.endswith(TABLES):
            yield LeakSet(_stem(path), (path,))


def _split_set(folder: Path) -> LeakSet:
    """The tables of `folder` that are parts of one set."""
    tables = (folder / (split + ending) for split in datasets.SPLITS for ending in TABLES)
    return LeakSet(folder.resolve().name, tuple(path for path in tables if path.is_file()))


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".tsv")


def _files(path: Path) -> list[Path]:
    """The files that decide which texts a set has."""
    if path.is_file():
        return [path]
    names = (*CORPUS, "queries.jsonl", "queries.jsonl.gz", "qrels/test.tsv")
    return [path / name for name in names if (path / name).is_file()]


def _content_digest(path: Path) -> str:
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except (OSError, EOFError, zlib.error) as error:
        raise LeafError(f"{path} cannot be read: {error}") from error


def _beir_texts(folder: Path) -> Iterator[str]:
    dataset = datasets.load(folder)  # checks every line of the corpus as well
    assert isinstance(dataset, datasets.RetrievalSet)
    yield from dataset.queries.values()
    for line in _lines(_files(folder)[0]):
        row = json.loads(line)
        yield f"{row.get('title') or ''}\n{row['text']}"


def _table_texts(path: Path) -> Iterator[str]:
    lines = _lines(path)
    header = next(lines, "").split("\t")
    columns = [position for position, name in enumerate(header) if name in TEXT_COLUMNS]
    if not columns:
        raise LeafError(f"{path}: the header is {header}, expected {' or '.join(TEXT_COLUMNS)} among its columns")
    for number, line in enumerate(lines, start=1):
        cells = line.split("\t")
        if len(cells) != len(header):
            raise LeafError(f"{path}: row {number} has {len(cells)} columns, expected {len(header)}")
        yield from (cells[position] for position in columns)


def _lines(path: Path) -> Iterator[str]:
    """Every line that is not empty."""
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8", newline="\n")
            if path.suffix == ".gz"
            else open(path, encoding="utf-8", newline="\n")
        ) as handle:
            yield from (stripped for line in handle if (stripped := line.rstrip("\r\n")))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise LeafError(f"{path} cannot be read: {error}") from error
