"""Where texts come from: one stream of `Row`s, whatever they are stored in, in O(batch) memory.

    for row in read(TextSource(source="data/*.parquet", rows=50_000), seed=0):
        print(row.kind, row.text)

Nothing is cleaned here. A value that is not a usable text is passed on as it was found, so that `prepare` can
count it.
"""

import csv
import glob
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leaf.errors import LeafError
from leaf.files import file_digest, quick_digest
from leaf.models import hub_revision, resolve_model, short_name
from leaf.progress import say
from leaf.recipe import TextSource
from leaf.texts import installed

Kind = Literal["query", "document"]
#: Rows decoded at a time. Documents can be long, so this is well below Parquet's default.
BATCH_ROWS = 4096

_FORMATS = ".parquet, .jsonl, .csv, .tsv, .txt (the last four also as .gz), or a folder of .parquet"


class Row(NamedTuple):
    """One text as it was found."""

    text: object
    """A str when all is well. Bytes that were not UTF-8 are lone surrogates in it."""
    kind: Kind
    source: str
    pair: str | None = None
    """Shared by the query and the document that answer each other."""


class Malformed(NamedTuple):
    """Stands where a text would be when its line could not be parsed at all."""

    line: str


#: What a format yields: a mapping from column to value, or a line that is none.
Record = Mapping[str, object] | Malformed


def read(source: TextSource, seed: int) -> Iterator[Row]:
    """The rows of one `[[texts]]` entry in stored order; `seed` draws the sample if it asks for one.

    Raises `LeafError` for a source that cannot be read, a missing column and an unknown kind.
    """
    _check_fields(source)
    rows = _rows(source)
    if source.rows is None:
        return rows
    total = _count(source)
    if total <= source.rows:
        say(f"texts: {name_of(source)} has {total:,} of the {source.rows:,} rows asked for; taking them all")
        return rows
    chosen = np.zeros(total, dtype=bool)
    chosen[np.random.default_rng(seed).choice(total, source.rows, replace=False, shuffle=False)] = True
    return itertools.compress(rows, chosen.tobytes())


def name_of(source: TextSource) -> str:
    """What the `source` column and the counts call a source that has no name of its own."""
    if source.name:
        return source.name
    scheme, rest = _scheme(source)
    if scheme == "file":
        return Path(rest).name.split(".")[0] or rest
    return f"tokenizer-{short_name(rest)}" if scheme == "tokenizer" else short_name(rest) or scheme


def identity(source: TextSource) -> dict[str, Any]:
    """All that decides which rows `read` gives, as JSON data: the settings, and the content behind `source`.

    Paths are left out, so that moving files changes nothing. Asks no network: a hub data set is its name and
    revision.
    """
    scheme, rest = _scheme(source)
    settings = source.model_dump(mode="json", exclude={"source", "name", "licence"}, exclude_defaults=True)
    content: dict[str, Any]
    match scheme:
        case "file":
            content = {"files": [_file_identity(path) for path in _files(rest)]}
        case "hub" if Path(rest).is_dir():
            paths = sorted(path for path in Path(rest).rglob("*") if path.is_file())
            content = {"files": [_file_identity(path) for path in paths]}
        case "hub":
            content = {"hub": rest}
        case "tokenizer" if Path(folder := resolve_model(rest)).is_dir():
            content = {"tokenizer": file_digest(_tokenizer_file(folder, None))}
        case "tokenizer":
            content = {"tokenizer": rest}
        case _:
            content = {"versions": installed.versions(source.packages)}
    return {"kind_of_source": scheme, "name": name_of(source), **settings, **content}


def _scheme(source: TextSource) -> tuple[str, str]:
    if source.source == "installed-docs":
        return "installed-docs", ""
    scheme, separator, rest = source.source.partition(":")
    return (scheme, rest) if separator and scheme in ("hub", "tokenizer") else ("file", source.source)


def _check_fields(source: TextSource) -> None:
    """A setting that its source would ignore is an error: whoever wrote it expects it to do something."""
    table = {"column", "kind_column", "source_column", "where", "kind"}
    used = {
        "file": table,
        "hub": {*table, "config", "split", "revision"},
        "tokenizer": {"kind", "revision"},
        "installed-docs": {"packages"},
    }[_scheme(source)[0]] | {"source", "name", "rows", "licence"}
    for name in source.model_dump(exclude_defaults=True):
        if name not in used:
            raise LeafError(f"texts '{source.source}': {name} has no meaning for this kind of source; leave it out")


def _rows(source: TextSource) -> Iterator[Row]:
    scheme, rest = _scheme(source)
    if scheme == "installed-docs":
        return _installed(source)
    if scheme == "tokenizer":
        return _vocabulary(source, rest)
    return _table(source, _records(source))


def _count(source: TextSource) -> int:
    """How many rows the source has: from metadata where there is any, else by reading it once more."""
    scheme, rest = _scheme(source)
    if scheme == "file" and not source.where and all(_suffix(path) == ".parquet" for path in _files(rest)):
        return sum(_num_rows(path) for path in _files(rest))
    if scheme == "hub" and not source.where:
        splits = _hub(source, rest).info.splits or {}
        if source.split in splits and splits[source.split].num_examples:
            return int(splits[source.split].num_examples)
    return sum(1 for _ in _rows(source))


# Tables: files and hub data sets


def _table(source: TextSource, records: Iterable[Record]) -> Iterator[Row]:
    name = name_of(source)
    kinds: dict[object, Kind] = {"query": "query", "document": "document", "doc": "document"}
    for record in records:
        if isinstance(record, Malformed):
            yield Row(record, source.kind or "document", name)
            continue
        if any(str(record.get(column)) != value for column, value in source.where.items()):
            continue
        kind = source.kind or kinds.get(str(record.get(source.kind_column)))
        if kind is None:
            raise LeafError(
                f"texts '{source.source}': column '{source.kind_column}' holds "
                f"{record.get(source.kind_column)!r}, expected query, document or doc; say "
                'kind = "query" or kind = "document" in the recipe'
            )
        known = record.get(source.source_column) if source.source_column else None
        yield Row(record.get(source.column), kind, name if known is None else str(known))


def _records(source: TextSource) -> Iterator[Record]:
    scheme, rest = _scheme(source)
    if scheme == "hub":
        yield from _hub_records(source, rest)
        return
    for path in _files(rest):
        with _readable(path):
            yield from _file_records(source, path)


def _require(source: TextSource, where: object, present: Sequence[str]) -> list[str]:
    """The columns that `source` reads, all of which are among `present`."""
    wanted = [source.column, *source.where]
    wanted += [source.source_column] if source.source_column else []
    wanted += [] if source.kind else [source.kind_column]
    for column in wanted:
        if column in present:
            continue
        fix = "name the right column in the recipe"
        if column == source.kind_column and not source.kind:
            fix = 'say kind = "query" or kind = "document" in the recipe, or name the column in kind_column'
        raise LeafError(f"{where} has no column '{column}' (it has {', '.join(present)}); {fix}")
    return list(dict.fromkeys(wanted))


def _files(spec: str) -> list[Path]:
    path = Path(spec).expanduser()
    if path.is_dir():
        found = sorted(path.glob("*.parquet"))
    elif path.is_file():
        found = [path]
    else:
        found = sorted(each for each in map(Path, glob.glob(str(path), recursive=True)) if each.is_file())
    if not found:
        raise LeafError(f"no file '{spec}'; texts are read from {_FORMATS}, or hub:OWNER/NAME")
    for each in found:
        _suffix(each)
    return found


def _suffix(path: Path) -> str:
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in (".jsonl", ".csv", ".tsv", ".txt") and not name.endswith(".parquet"):
        raise LeafError(f"cannot read {path}: texts are read from {_FORMATS}")
    return suffix


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, csv.Error, pa.ArrowException) as error:
        raise LeafError(f"cannot read {path}: {_first_line(error)}; is the file complete?") from error


def _file_records(source: TextSource, path: Path) -> Iterator[Record]:
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
                _require(source, path, ["text"])
                yield from ({"text": line.rstrip("\r\n")} for line in lines)
            case _:
                yield from _delimited(source, path, lines, "\t" if suffix == ".tsv" else ",")


def _num_rows(path: Path) -> int:
    with _readable(path), pq.ParquetFile(path) as file:
        return int(file.metadata.num_rows)


def _parquet(source: TextSource, path: Path) -> Iterator[Record]:
    with pq.ParquetFile(path) as file:
        columns = _require(source, path, file.schema_arrow.names)
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            values = [_values(batch.column(column)) for column in columns]
            yield from (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))


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
            _require(source, path, list(record))
            checked = True
        yield record


def _delimited(source: TextSource, path: Path, lines: Iterable[str], delimiter: str) -> Iterator[Record]:
    """CSV with the usual quotes, or TSV without: there they belong to the text, as in BEIR's files."""
    csv.field_size_limit(2**31 - 1)  # by default fields over 128 KiB raise; long texts are `prepare`'s business
    unquoted = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    reader = csv.reader(lines) if delimiter == "," else unquoted
    header = next(reader, [])
    _require(source, path, header)
    for row in reader:
        if row:
            yield (dict(zip(header, row, strict=False)) if len(row) == len(header) else Malformed(delimiter.join(row)))


def _file_identity(path: Path) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "digest": quick_digest(path)}


# The hub


def _hub_records(source: TextSource, name: str) -> Iterator[Record]:
    dataset = _hub(source, name)
    columns: list[str] | None = dataset.column_names
    if columns is not None:  # unknown where the data set does not declare its features
        dataset = dataset.select_columns(_require(source, source.source, columns))
    records = iter(dataset)
    while True:
        try:
            record = next(records, None)
        except Exception as error:  # the HTTP libraries behind it share no base class that outlives their releases
            raise LeafError(f"{source.source}: reading stopped ({_first_line(error)}); run again") from error
        if record is None:
            return
        if columns is None:
            columns = _require(source, source.source, list(record))
        yield record


def _hub(source: TextSource, name: str) -> Any:
    """A streaming data set: of the hub, or of a local folder laid out like one of its repositories."""
    if find_spec("datasets") is None:
        raise LeafError(f"{source.source} is read through datasets; pip install 'leaf[hub]'")
    # With the commit pinned, counting and reading see the same rows.
    revision = None if Path(name).is_dir() else hub_revision(name, "dataset", source.revision)
    import datasets

    try:
        return datasets.load_dataset(name, name=source.config, split=source.split, revision=revision, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:  # no such split or configuration, a script, no files
        raise LeafError(f"{source.source}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# Tokenizers and installed documentation


def _vocabulary(source: TextSource, model: str) -> Iterator[Row]:
    """Every token of a vocabulary as a text of its own (the paper's Table 1, "BERT tokens").

    A token is written as it reads inside a text: without the marker of a word's continuation (`##ing` gives
    `ing`) or beginning (`Ġthe`). Special tokens and BERT's reserved `[unused7]` stand for no text and are
    left out; what is only a part of a character in a byte-level vocabulary has none either.
    """
    from tokenizers import Tokenizer

    path = _tokenizer_file(resolve_model(model), source.revision)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises the bare class
        raise LeafError(f"cannot read {path}: {_first_line(error)}") from error
    continuation = getattr(tokenizer.model, "continuing_subword_prefix", None) or ""
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    vocabulary = sorted((number, token) for token, number in tokenizer.get_vocab().items())
    for number, token in vocabulary:
        if number in special or _UNUSED.fullmatch(token):
            continue
        text = tokenizer.decode([number], skip_special_tokens=False).strip().removeprefix(continuation)
        if _REPLACEMENT not in text:
            yield Row(text, source.kind or "document", name_of(source))


_UNUSED = re.compile(r"\[unused\d+\]|<unused_?\d+>")
#: What byte-level decoders put where bytes are not a whole character.
_REPLACEMENT = "\ufffd"


def _tokenizer_file(model: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if Path(model).is_dir():
        path = Path(model) / "tokenizer.json"
        if not path.is_file():
            raise LeafError(f"{model} has no tokenizer.json; save it once with a fast tokenizer of Transformers")
        return path
    cached = try_to_load_from_cache(model, "tokenizer.json", revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    sha = hub_revision(model, "model", revision)
    return Path(hf_hub_download(model, "tokenizer.json", revision=sha))


def _installed(source: TextSource) -> Iterator[Row]:
    name = name_of(source)
    for entry in installed.entries(source.packages):
        pair = entry.name if entry.summary and entry.body else None
        if entry.summary:
            yield Row(entry.summary, "query", name, pair)
        if entry.body:
            yield Row(entry.body, "document", name, pair)
