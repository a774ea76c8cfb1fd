"""Files of texts as records (column → value): Parquet, JSONL, CSV, TSV, plain text; all but Parquet also gzipped.

for path in files("data/*.jsonl.gz"):
    for record in records(TextSource(source=str(path), kind="query"), path):
        print(record)
"""

import csv
import glob
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from leaf.errors import LeafError, first_line
from leaf.parquet import open_parquet
from leaf.recipe import TextSource

#: Rows decoded at a time. Documents can be long, so this is well below Parquet's default.
BATCH_ROWS = 4096
#: Characters that are passed on at a time: a batch of long documents is cut here.
BATCH_CHARACTERS = 1 << 23

TEXT_FORMATS = (".jsonl", ".csv", ".tsv", ".txt")
FORMATS = ".parquet, .jsonl, .csv, .tsv, .txt (the last four also as .gz), or a folder of .parquet"


class Malformed(NamedTuple):
    """Stands where a text would be when its line could not be parsed at all."""

    line: str


#: What a format yields: a mapping from column to value, or a line that is none.
Record = Mapping[str, object] | Malformed


def files(spec: str) -> list[Path]:
    """The files that a path, a glob or a folder of Parquet names, sorted. Raises `LeafError` where there is none."""
    path = Path(spec).expanduser()
    if path.is_dir():
        found = sorted(path.glob("*.parquet"))
    elif path.is_file():
        found = [path]
    else:
        found = sorted(each for each in map(Path, glob.glob(str(path), recursive=True)) if each.is_file())
    if not found:
        raise LeafError(f"no file '{spec}'; texts are read from {FORMATS}, or hub:OWNER/NAME")
    for each in found:
        _suffix(each)
    return found


def records(source: TextSource, path: Path) -> Iterator[Record]:
    """The rows of one file; of Parquet only the columns that `source` reads.

    Raises `LeafError` for a file that is damaged or lacks a column.
    """
    with readable(path):
        suffix = _suffix(path)
        if suffix == ".parquet":
            yield from _parquet(source, path)
            return
        opened = gzip.open if path.name.lower().endswith(".gz") else open
        # surrogateescape keeps bytes that are not UTF-8 as lone surrogates: one bad line stays one bad line.
        with opened(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            match suffix:
                case ".jsonl":
                    yield from _jsonl(source, path, lines)
                case ".txt":
                    require(source, path, ["text"])
                    yield from ({"text": line.rstrip("\r\n")} for line in lines)
                case _:
                    yield from _delimited(source, path, lines, "\t" if suffix == ".tsv" else ",")


def num_rows(path: Path) -> int | None:
    """How many rows a file has, where its metadata say so."""
    if _suffix(path) != ".parquet":
        return None
    with readable(path), open_parquet(path) as file:
        return int(file.metadata.num_rows)


def require(source: TextSource, where: object, present: Sequence[str]) -> list[str]:
    """The columns that `source` reads, each of which is `present` once; else a `LeafError`."""
    wanted = [source.column, *source.where]
    wanted += [source.source_column] if source.source_column else []
    wanted += [] if source.kind else [source.kind_column]
    for column in wanted:
        if (count := list(present).count(column)) == 1:
            continue
        if count:
            raise LeafError(f"{where} has {count} columns '{column}'; rename all but the one that is meant")
        fix = "name the right one, `column` in a recipe or --column"
        if column == source.kind_column and not source.kind:
            fix = 'say kind = "query" or "document" in a recipe (--queries, --documents), or name it in kind_column'
        raise LeafError(f"{where} has no column '{column}' (it has {', '.join(present)}); {fix}")
    return list(dict.fromkeys(wanted))


def rows_of(table: Any, columns: Sequence[str]) -> Iterator[dict[str, object]]:
    """The rows of an Arrow table or batch; a column that it lacks is None."""
    names = table.schema.names
    values = [_values(table.column(column)) if column in names else [None] * table.num_rows for column in columns]
    return (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))


def _suffix(path: Path) -> str:
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in TEXT_FORMATS and not name.endswith(".parquet"):
        raise LeafError(f"cannot read {path}: texts are read from {FORMATS}")
    return suffix


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever reading somebody's file stumbles over, as a `LeafError`."""
    try:
        yield
    except (OSError, EOFError, zlib.error, csv.Error, pa.ArrowException) as error:
        raise LeafError(f"cannot read {path}: {first_line(error)}; is the file complete?") from error


def _parquet(source: TextSource, path: Path) -> Iterator[Record]:
    with open_parquet(path) as file:
        columns = require(source, path, file.schema_arrow.names)
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            yield from rows_of(batch, columns)


def _values(column: Any) -> list[object]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:  # Parquet does not check that strings are UTF-8
        raw = column.cast(pa.large_binary()).to_pylist()
        return [value if value is None else value.decode("utf-8", "surrogateescape") for value in raw]


def _jsonl(source: TextSource, path: Path, lines: Iterable[str]) -> Iterator[Record]:
    checked = False
    for line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            yield Malformed(line)
            continue
        if not checked:
            require(source, path, list(record))
            checked = True
        yield record


def _delimited(source: TextSource, path: Path, lines: Iterable[str], delimiter: str) -> Iterator[Record]:
    """CSV with the usual quotes, or TSV without: there they belong to the text, as in BEIR's files."""
    csv.field_size_limit(2**31 - 1)  # by default fields over 128 KiB raise; long texts are `prepare`'s business
    unquoted = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    reader = csv.reader(lines) if delimiter == "," else unquoted
    header = next(reader, [])
    require(source, path, header)
    for row in reader:
        if row:
            yield (dict(zip(header, row, strict=False)) if len(row) == len(header) else Malformed(delimiter.join(row)))
