"""Where texts come from: one stream of `Row`s, whatever they are stored in, in O(batch) memory.

    for row in read(TextSource(source="data/*.parquet", rows=50_000), seed=0):
        print(row.kind, row.text)

Nothing is cleaned here. A value that is not a usable text is passed on as it was found, so that `prepare` can
count it.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from leaf.errors import LeafError, first_line
from leaf.files import file_digest, quick_digest
from leaf.models import hub_revision, resolve_model, short_name
from leaf.progress import say
from leaf.recipe import TextSource
from leaf.texts import installed
from leaf.texts.hub import file_order, read_hub
from leaf.texts.sampling import Sample, tickets
from leaf.texts.tables import BATCH_CHARACTERS, BATCH_ROWS, Malformed, Record, files, records

Kind = Literal["query", "document"]
#: The texts of `teacher.vectors` with their kinds, in an order that stays.
OwnTexts = Callable[[], Iterable[tuple[str, Kind]]]


class Row(NamedTuple):
    """One text as it was found."""

    text: object
    """A str when all is well. Bytes that were not UTF-8 are lone surrogates in it."""
    kind: Kind
    source: str
    pair: str | None = None
    """Shared by the query and the document that answer each other."""


class Batch(NamedTuple):
    """Rows of one source that follow each other."""

    rows: list[Row]
    state: dict[str, Any] | None
    """JSON data with which `batches` goes on behind these rows. None where it cannot go on just there."""


def read(source: TextSource, seed: int, *, vectors: OwnTexts | None = None) -> Iterator[Row]:
    """The rows of one `[[texts]]` entry in the order they are read; `seed` draws the sample if it asks for one.

    Memory is O(batch), or O(sample) for a sample of rows. Raises `LeafError` for a source that cannot be read, a
    missing column and an unknown kind.
    """
    found = batches(source, seed, vectors=vectors)
    if source.rows is None:
        return (row for batch in found for row in batch.rows)
    if source.sample == "files":
        return itertools.islice((row for batch in found for row in batch.rows), source.rows)
    return _sampled(source, source.rows, seed, found)


def batches(
    source: TextSource, seed: int, state: dict[str, Any] | None = None, *, vectors: OwnTexts | None = None
) -> Iterator[Batch]:
    """All rows of one entry, whatever sample it asks for: from the start, or from the `state` of an earlier batch.

    With `sample = "files"` files come in a random order that follows from `seed` and from how many there are; inside a
    file, rows keep their order. Raises as `read` does. `vectors` gives the texts of the source `vectors`.
    """
    check_fields(source)
    scheme, rest = scheme_of(source)
    match scheme:
        case "hub":
            return (Batch(list(as_rows(source, found)), after) for found, after in read_hub(source, rest, seed, state))
        case "file":
            return _file_batches(source, rest, seed, state)
        case "tokenizer":
            rows = _vocabulary(source, rest)
        case "vectors":
            rows = _own_texts(source, vectors)
        case _:
            rows = _installed(source)
    return (Batch(chunk, None) for chunk in _chunks(rows))


def say_all_taken(source: TextSource, count: int) -> None:
    """Tells that a source has no more rows than it was asked for, if so."""
    if source.rows is not None and count < source.rows:
        say(f"texts: {name_of(source)} has {count:,} of the {source.rows:,} rows asked for; taking them all")


def _sampled(source: TextSource, size: int, seed: int, found: Iterable[Batch]) -> Iterator[Row]:
    sample, name, first = Sample(size), name_of(source), 0
    kept: list[tuple[int, Row]] = []
    for batch in found:
        offered = tickets(seed, name, first, len(batch.rows))
        kept += ((int(offered[position]), batch.rows[position]) for position in sample.offer(offered))
        first += len(batch.rows)
        if len(kept) > 2 * size + BATCH_ROWS:
            kept = [each for each in kept if each[0] <= sample.bar()]
    say_all_taken(source, first)
    bar = int(sample.bar())
    yield from (row for ticket, row in kept if ticket <= bar)


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Cuts where rows are many, or their texts long."""
    chunk: list[Row] = []
    characters = 0
    for row in rows:
        chunk.append(row)
        characters += len(row.text) if isinstance(row.text, str) else 0
        if len(chunk) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def name_of(source: TextSource) -> str:
    """What the `source` column and the counts call a source that has no name of its own."""
    if source.name:
        return source.name
    scheme, rest = scheme_of(source)
    if scheme == "file":
        return Path(rest).name.split(".")[0] or rest
    return f"tokenizer-{short_name(rest)}" if scheme == "tokenizer" else short_name(rest) or scheme


def common_name(names: Sequence[str]) -> str:
    """The words that names of one data set begin with, and how many they are: `LoTTE (20)`."""
    if len(names) == 1:
        return names[0]
    alike = itertools.takewhile(lambda words: len(set(words)) == 1, zip(*map(str.split, names), strict=False))
    return f"{' '.join(words[0] for words in alike) or names[0]} ({len(names)})"


def identity(source: TextSource, vectors: str | None = None) -> dict[str, Any]:
    """All that decides which rows `read` gives, as JSON data: the settings, and the content behind `source`.

    Paths are left out, so that moving files changes nothing. Asks no network: a hub data set is its name and
    revision. `vectors` is the digest of `teacher.vectors`, which is the content of the source `vectors`.
    """
    scheme, rest = scheme_of(source)
    settings = source.model_dump(mode="json", exclude={"source", *ABOUT}, exclude_defaults=True)
    content: dict[str, Any]
    match scheme:
        case "file":
            content = {"files": [_file_identity(path) for path in files(rest)]}
        case "hub" if Path(rest).is_dir():
            paths = sorted(path for path in Path(rest).rglob("*") if path.is_file())
            content = {"files": [_file_identity(path) for path in paths]}
        case "hub":
            content = {"hub": rest}
        case "tokenizer" if Path(folder := resolve_model(rest)).is_dir():
            content = {"tokenizer": file_digest(tokenizer_file(folder, None))}
        case "tokenizer":
            content = {"tokenizer": rest}
        case "vectors":
            content = {"vectors": vectors}
        case _:
            content = {"versions": installed.versions(source.packages)}
    return {"kind_of_source": scheme, "name": name_of(source), **settings, **content}


#: What is said about a source, and changes none of its rows.
ABOUT = {"name", "licence", "commercial", "about"}


def scheme_of(source: TextSource) -> tuple[str, str]:
    """What kind of source it is (`file`, `hub`, `tokenizer`, `vectors` or `installed-docs`), and which one."""
    if source.source in ("installed-docs", "vectors"):
        return source.source, ""
    scheme, separator, rest = source.source.partition(":")
    return (scheme, rest) if separator and scheme in ("hub", "tokenizer") else ("file", source.source)


def check_fields(source: TextSource) -> None:
    """A setting that its source would ignore is an error: whoever wrote it expects it to do something."""
    table = {"column", "kind_column", "source_column", "where", "kind", "sample"}
    used = {
        "file": table,
        "hub": {*table, "config", "split", "revision"},
        "tokenizer": {"kind", "revision"},
        "vectors": set(),
        "installed-docs": {"packages"},
    }[scheme_of(source)[0]] | {"source", "rows", "guard", "held_out", *ABOUT}
    for name in source.model_dump(exclude_defaults=True):
        if name not in used:
            raise LeafError(f"texts '{source.source}': {name} has no meaning for this kind of source; leave it out")


def as_rows(source: TextSource, found: Iterable[Record]) -> Iterator[Row]:
    """Records as rows, without those that `where` leaves out. Raises `LeafError` for an unknown kind."""
    name = name_of(source)
    kinds: dict[object, Kind] = {"query": "query", "document": "document", "doc": "document"}
    for record in found:
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


def _file_batches(source: TextSource, spec: str, seed: int, state: dict[str, Any] | None) -> Iterator[Batch]:
    """Goes on with a whole file: reading one again up to a row would cost what decoding it costs."""
    found = files(spec)
    order = file_order(source, seed, len(found))
    for position in range(state["file"] if state else 0, len(found)):
        yield from (Batch(chunk, None) for chunk in _chunks(as_rows(source, records(source, found[order[position]]))))
        yield Batch([], {"file": position + 1})


def _file_identity(path: Path) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "digest": quick_digest(path)}


def _vocabulary(source: TextSource, model: str) -> Iterator[Row]:
    """Every token of a vocabulary as a text of its own (the paper's Table 1, "BERT tokens").

    A token is written as it reads inside a text: without the marker of a word's continuation (`##ing` gives
    `ing`) or beginning (`Ġthe`). Special tokens and BERT's reserved `[unused7]` stand for no text and are
    left out; what is only a part of a character in a byte-level vocabulary has none either.
    """
    from tokenizers import Tokenizer

    path = tokenizer_file(resolve_model(model), source.revision)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises the bare class
        raise LeafError(f"cannot read {path}: {first_line(error)}") from error
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


def tokenizer_file(model: str, revision: str | None) -> Path:
    """Where the `tokenizer.json` of a folder or hub id lies, fetched if need be; `LeafError` where there is none."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    if Path(model).is_dir():
        path = Path(model) / "tokenizer.json"
        if not path.is_file():
            raise LeafError(f"{model} has no tokenizer.json; save it once with a fast tokenizer of Transformers")
        return path
    cached = try_to_load_from_cache(model, "tokenizer.json", revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    sha = hub_revision(model, "model", revision)
    try:
        return Path(hf_hub_download(model, "tokenizer.json", revision=sha))
    except (EntryNotFoundError, OSError) as error:
        raise LeafError(f"tokenizer:{model} has no tokenizer.json to be had ({first_line(error)})") from error


def _own_texts(source: TextSource, vectors: OwnTexts | None) -> Iterator[Row]:
    """The texts whose teacher vectors are there already, which cost nothing to train on."""
    if vectors is None:
        raise LeafError(
            "texts 'vectors' are those of teacher.vectors, which is not set; set it, or name another source"
        )
    name = name_of(source)
    return (Row(text, kind, name) for text, kind in vectors())


def _installed(source: TextSource) -> Iterator[Row]:
    name = name_of(source)
    for entry in installed.entries(source.packages):
        pair = entry.name if entry.summary and entry.body else None
        if entry.summary:
            yield Row(entry.summary, "query", name, pair)
        if entry.body:
            yield Row(entry.body, "document", name, pair)
