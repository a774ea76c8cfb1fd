"""Documents from files: BEIR folders, JSONL, CSV, TSV and Parquet with metadata, plain text.

    documents = DocumentFiles(["data/scifact", "more.jsonl.gz"])
    len(documents), next(iter(documents))

Of a table, the column `text` is the text, `title` the title, `_id` or `id` the id, and every other column that holds
plain values is metadata. Nothing is repaired: a row that is no document is an error that names its place.
"""

import glob
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from leaf.errors import LeafError, first_line
from leaf.parquet import open_parquet
from leaf.progress import say
from leaf.search.store import RESERVED, Document

TABLES = (".jsonl", ".csv", ".tsv")
PROSE = (".txt", ".md", ".rst")
FORMATS = (
    ".jsonl, .csv, .tsv, .txt (each also as .gz), .parquet, a BEIR folder, a folder of .parquet, or a folder of .txt, "
    ".md and .rst files"
)
IDS = ("_id", "id", "docid", "doc_id")
#: Rows of a table decoded at a time.
ROWS = 2048
#: Bytes of CSV read at a time: the longest row, and what the types of columns are told from.
CSV_BLOCK = 32 << 20


class DocumentFiles:
    """Documents of files, folders and globs, in their order; read anew at every iteration, in O(batch) memory.

    `text`, `id` and `title` name columns; None takes the usual ones. Where there is no id, documents are numbered over
    all files, from 1. `vectors` names a Parquet column of vectors, or an .npy file `[n, dim]` of rows in this order.
    Raises `LeafError` for what cannot be read, when it is read.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        *,
        text: str = "text",
        id: str | None = None,
        title: str | None = None,
        vectors: str | None = None,
    ) -> None:
        self._text, self._id, self._title, self._vectors = text, id, title, vectors
        self.files = [file for path in paths for each in _globbed(path) for file in _files(each)]
        self._said: set[str] = set()

    def __len__(self) -> int:
        """How many documents there are; of text files the lines that are not empty."""
        return sum(_count(file, self._texts) for file in self.files)

    def __iter__(self) -> Iterator[Document]:
        number = 0
        for file in self.files:
            for where, row in _rows(file, self._texts):
                number += 1
                yield self._prose(file, row) if file.whole else self._document(where, row, number)

    @property
    def _texts(self) -> list[str]:
        """Columns that are text whatever they look like: 007 is another id than 7."""
        return [self._text, self._title or "title", *([self._id] if self._id is not None else IDS)]

    def vectors(self) -> Iterator[Any] | None:
        """A vector for each document, None where no vectors were named."""
        if self._vectors is None:
            return None
        if self._vectors.endswith(".npy"):
            try:
                rows = np.load(self._vectors, mmap_mode="r")
            except (OSError, ValueError, EOFError) as error:
                raise LeafError(f"cannot read {self._vectors}: {first_line(error)}") from error
            if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind not in "fiu":
                what = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, np.ndarray) else "several arrays"
                raise LeafError(f"{self._vectors} holds {what}, expected numbers [documents, dim]")
            return iter(rows)
        return self._column(self._vectors)

    def _column(self, name: str) -> Iterator[Any]:
        for file in self.files:
            if _suffix(file) != ".parquet":
                raise LeafError(
                    f"{file.path} holds no column of vectors; give Parquet files, or vectors as an .npy file"
                )
            with _readable(file), open_parquet(file.path) as opened:
                if name not in opened.schema_arrow.names:
                    raise LeafError(
                        f"{file.path} has no column '{name}' of vectors; it has {_listed(opened.schema_arrow.names)}"
                    )
                for batch in opened.iter_batches(ROWS, columns=[name]):
                    yield from _matrix(batch.column(0), file, name)

    def _document(self, where: str, row: dict[str, Any], number: int) -> Document:
        row = dict(row)
        if self._text not in row:
            raise LeafError(f"{where} has no '{self._text}'; it has {_listed(row)}: name the text with --column")
        text = row.pop(self._text)
        title = row.pop(self._title or "title", None)
        wanted = self._id or next((name for name in IDS if name in row), None)
        if self._id is not None and self._id not in row:
            raise LeafError(f"{where} has no '{self._id}'; it has {_listed(row)}: name the id with --id-column")
        if wanted is None and "id" not in self._said:
            self._said.add("id")
            say(f"no column of ids ({', '.join(IDS)}): documents are numbered from 1")
        key = row.pop(wanted) if wanted is not None else number
        if not isinstance(text, str) or not isinstance(title, str | None):
            raise LeafError(f"{where}: the text is {text!r:.40}, expected a string; leave that row out")
        if key is None:
            raise LeafError(f"{where} has an empty id; every document needs one of its own")
        return Document(str(key), text, title or "", self._metadata(row))

    def _metadata(self, row: dict[str, Any]) -> dict[str, Any]:
        metadata = {}
        for name, value in row.items():
            if name in RESERVED or not name or not isinstance(value, str | int | float | bool | None):
                if name not in self._said and name != self._vectors:
                    self._said.add(name)
                    say(f"column '{name}' is left out: {'a reserved name' if name in RESERVED else 'no plain values'}")
            elif value is not None:
                metadata[name] = value
        return metadata

    def _prose(self, file: "_File", row: dict[str, Any]) -> Document:
        return Document(file.name, row["text"], metadata={"file": file.name})


@dataclass(frozen=True)
class _File:
    """A file of documents; with `whole`, one document of a folder, `name`d by its place there."""

    path: Path
    name: str = ""
    whole: bool = False


def _globbed(path: str | Path) -> list[Path]:
    path = Path(path).expanduser()
    found = [] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
    return found or [path]


def _files(path: Path) -> list[_File]:
    if path.is_dir():
        for corpus in ("corpus.jsonl", "corpus.jsonl.gz"):
            if (path / corpus).is_file():
                return [_File(path / corpus)]
        if found := sorted(path.glob("*.parquet")):
            return [_File(each) for each in found]
        prose = sorted(each for each in path.rglob("*") if each.suffix.lower() in PROSE and each.is_file())
        if not prose:
            raise LeafError(f"folder {path} holds no documents; they are read from {FORMATS}")
        return [_File(each, each.relative_to(path).as_posix(), whole=True) for each in prose]
    if not path.is_file():
        raise LeafError(f"no file '{path}'; documents are read from {FORMATS}")
    if _suffix(file := _File(path)) not in (*TABLES, *PROSE, ".parquet"):
        raise LeafError(f"cannot read {path}: documents are read from {FORMATS}")
    return [file]


def _suffix(file: _File) -> str:
    return Path(file.path.name.lower().removesuffix(".gz")).suffix


def _open(file: _File) -> Any:
    opened = gzip.open if file.path.name.lower().endswith(".gz") else open
    return opened(file.path, "rt", encoding="utf-8-sig", newline="")


def _count(file: _File, texts: Sequence[str]) -> int:
    if file.whole:
        return 1
    with _readable(file):
        if _suffix(file) == ".parquet":
            with open_parquet(file.path) as opened:
                return int(opened.metadata.num_rows)
        if _suffix(file) in (".csv", ".tsv"):
            return sum(batch.num_rows for batch in _csv(file, texts))
        with _open(file) as lines:
            return sum(1 for line in lines if line.strip())


def _rows(file: _File, texts: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where a row is, and its columns."""
    with _readable(file):
        suffix = _suffix(file)
        if file.whole:
            yield str(file.path), {"text": file.path.read_text(encoding="utf-8-sig")}
        elif suffix == ".parquet":
            with open_parquet(file.path) as opened:
                plain = [field.name for field in opened.schema_arrow if not pa.types.is_nested(field.type)]
                for batch in opened.iter_batches(ROWS, columns=plain):
                    yield from ((str(file.path), row) for row in batch.to_pylist())
        elif suffix in (".csv", ".tsv"):
            for batch in _csv(file, texts):
                for start in range(0, batch.num_rows, ROWS):
                    yield from ((str(file.path), row) for row in batch.slice(start, ROWS).to_pylist())
        else:
            with _open(file) as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        where = f"{file.path}, line {number}"
                        yield where, _json(line, where) if suffix == ".jsonl" else {"text": line.strip()}


def _csv(file: _File, texts: Sequence[str]) -> Any:
    """Batches of a CSV or TSV file with the types of its first block, but `texts`; TSV has no quotes."""
    tabs = _suffix(file) == ".tsv"
    parsing = pacsv.ParseOptions(
        delimiter="\t" if tabs else ",", quote_char=False if tabs else '"', newlines_in_values=not tabs
    )
    return pacsv.open_csv(
        file.path,
        read_options=pacsv.ReadOptions(block_size=CSV_BLOCK),
        parse_options=parsing,
        convert_options=pacsv.ConvertOptions(strings_can_be_null=False, column_types=dict.fromkeys(texts, pa.string())),
    )


def _json(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LeafError(f"{where} is not valid JSON ({first_line(error)}); expected one object per line") from error
    if not isinstance(row, dict):
        raise LeafError(f"{where} is {line.strip():.40}, expected an object such as {{'_id': …, 'text': …}}")
    return row


def _matrix(column: Any, file: _File, name: str) -> Any:
    """A column of lists as a matrix."""
    if column.null_count:
        raise LeafError(f"{file.path}: column '{name}' lacks a vector in some row; give every document one")
    if not pa.types.is_nested(column.type) or not _is_number(column.type.value_type):
        raise LeafError(f"{file.path}: column '{name}' holds {column.type}, expected lists of numbers")
    rows = np.asarray(column.flatten(), dtype=np.float32)
    if len(set(pc.list_value_length(column).to_pylist())) > 1:
        raise LeafError(f"{file.path}: vectors in column '{name}' differ in length; give all of them one width")
    return rows.reshape(len(column), -1)


def _is_number(type: pa.DataType) -> bool:
    return bool(pa.types.is_floating(type) or pa.types.is_integer(type))


def _listed(names: Any) -> str:
    return ", ".join(map(str, names)) or "nothing"


@contextmanager
def _readable(file: _File) -> Iterator[None]:
    """Whatever reading somebody's file stumbles over, as a `LeafError`."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise LeafError(f"{file.path} is not UTF-8 (byte {error.start}); convert it first") from error
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise LeafError(f"cannot read {file.path}: {first_line(error)}; is the file complete?") from error
