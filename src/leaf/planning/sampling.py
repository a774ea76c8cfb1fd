"""A few hundred texts of each source that is on this machine, and how many it has, in a fraction of a second; how many
there are in evaluation sets.

Parquet says how many rows it has, and any part of it can be read. Files of lines are read from the beginning: to the
end where they are short, else their size says how far that was.
"""

import gzip
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leaf.encoder import Role
from leaf.errors import LeafError
from leaf.evaluation.datasets import TABLES
from leaf.parquet import open_parquet
from leaf.planning.lengths import CHARACTERS_PER_TOKEN
from leaf.recipe import OwnedVectors, TextSource
from leaf.teacher.dump import is_database, open_dump
from leaf.texts import installed
from leaf.texts.sources import Row, as_rows
from leaf.texts.tables import BATCH_ROWS, Malformed, readable, records, require, rows_of

#: Texts of a sample, and its characters: a long document counts for many short ones.
NUM_TEXTS, NUM_CHARACTERS = 400, 1 << 20
#: Files of Parquet and row groups that a sample is spread over, and source files of Python.
NUM_FILES, NUM_GROUPS, NUM_MODULES = 50, 8, 80
#: A row group larger than this is not read whole.
MAX_GROUP_BYTES = 1 << 28
#: Rows of files of lines that are read at most, and characters of their texts, or bytes.
MAX_ROWS, MAX_BYTES = 20_000, 1 << 25
T = TypeVar("T")


class Sample(NamedTuple):
    """Some texts of a source, evenly spread over what was read of it."""

    texts: list[tuple[str, Role]]
    rows: int
    """Rows that the source has."""
    is_exact: bool
    """Whether all of them were counted."""


def sample_files(paths: Sequence[Path], source: TextSource) -> Sample:
    """A sample of files of texts. Raises `LeafError` as reading does."""
    tables = [path for path in paths if path.suffix == ".parquet"]
    lines = [path for path in paths if path.suffix != ".parquet"]
    found = [sample_tables(tables, source)] if tables else []
    found += [sample_lines(lines, source)] if lines else []
    texts = [text for each in found for text in each.texts]
    return Sample(thin(texts), sum(each.rows for each in found), all(each.is_exact for each in found))


def sample_tables(paths: Sequence[Path], source: TextSource) -> Sample:
    """A sample of Parquet files: rows evenly spaced over a few of their row groups."""
    looked_into = spread(paths, NUM_FILES)
    groups, total = [], 0
    for path in looked_into:
        with readable(path):
            metadata = pq.read_metadata(path)
        total += metadata.num_rows
        each = (metadata.row_group(number) for number in range(metadata.num_row_groups))
        groups += [(path, number, group) for number, group in enumerate(each) if group.num_rows]
    if len(looked_into) < len(paths):
        total = round(total * _bytes(paths) / _bytes(looked_into))
    groups = spread(groups, NUM_GROUPS)
    read_rows = sum(group.num_rows for _, _, group in groups)
    rows: list[Row] = []
    looked = 0
    for path, number, group in groups:
        with readable(path), open_parquet(path) as file:
            columns = require(source, path, file.schema_arrow.names)
            if group.total_byte_size > MAX_GROUP_BYTES:  # its beginning stands for it
                first = next(file.iter_batches(BATCH_ROWS, row_groups=[number], columns=columns))
                table = pa.Table.from_batches([first])
            else:
                table = file.read_row_group(number, columns=columns)
        wanted = max(1, round(NUM_TEXTS * group.num_rows / read_rows)) * (8 if source.where else 1)
        table = table.take(spread(range(len(table)), wanted))
        looked += len(table)
        rows += as_rows(source, rows_of(table, columns))
    is_exact = not source.where and len(looked_into) == len(paths)
    return Sample(thin(_usable(rows)), round(total * len(rows) / looked) if looked else 0, is_exact)


def sample_lines(paths: Sequence[Path], source: TextSource) -> Sample:
    """A sample of files of lines: their beginning."""
    rows: list[Row] = []
    looked = characters = 0
    is_whole = True
    for record in itertools.chain.from_iterable(records(source, path) for path in paths):
        if looked >= MAX_ROWS or characters >= MAX_BYTES:
            is_whole = False
            break
        looked += 1
        characters += len(record.line if isinstance(record, Malformed) else str(record.get(source.column)))
        rows += as_rows(source, [record])
    texts = thin(_usable(rows))
    if is_whole:
        return Sample(texts, len(rows), True)
    lines = count_lines(paths[0]).lines * _bytes(paths) / _bytes(paths[:1])
    return Sample(texts, round(lines * len(rows) / looked), False)


def _usable(rows: Sequence[Row]) -> list[tuple[str, Role]]:
    return [(row.text, row.kind) for row in rows if isinstance(row.text, str) and row.text.strip()]


class Lines(NamedTuple):
    """Lines of a file and their bytes, unpacked."""

    lines: int
    bytes: int
    is_exact: bool
    """False for a large file, of which the beginning was read."""


def count_lines(path: Path) -> Lines:
    """The lines of a file, gzipped or not. Raises `LeafError` for one that is damaged."""
    with readable(path), open(path, "rb") as raw:
        stream: Any = gzip.GzipFile(fileobj=raw) if path.name.endswith(".gz") else raw
        lines = done = 0
        last = b"\n"
        while done < MAX_BYTES and (block := stream.read(1 << 20)):
            lines, done, last = lines + block.count(b"\n"), done + len(block), block[-1:]
        if done < MAX_BYTES or not stream.read(1):
            return Lines(lines + (last != b"\n"), done, True)
        scale = path.stat().st_size / raw.tell()
        return Lines(round(lines * scale), round(done * scale), False)


def count_sets(data: Sequence[str], pairs: int, pair_tokens: float) -> dict[str, Any]:
    """Texts and tokens of the evaluation sets in `data` that are on this machine, and which of them are not.

    Tokens are the files' bytes over the characters of a token: a little too many, for the keys of JSON are counted.
    """
    found: dict[str, Any] = {"sets": 0, "texts": 0, "tokens": 0.0, "missing": [], "is_exact": True}
    for name in data:
        if name == "held-out-pairs":
            found["sets"] += 1
            found["texts"] += 2 * pairs
            found["tokens"] += 2 * pairs * pair_tokens
            continue
        path = Path(name).expanduser()
        files = _set_files(path)
        if not files:
            found["missing"].append(name)
        found["sets"] += sum(not each.name.startswith("queries") for each in files)
        for each in files:
            try:
                counted = count_lines(each)
            except LeafError:
                found["missing"].append(str(each))
                continue
            # A table has a header, and most have two texts a row.
            texts = counted.lines if "jsonl" in each.name else 2 * max(counted.lines - 1, 0)
            found["texts"] += texts
            found["tokens"] += counted.bytes / CHARACTERS_PER_TOKEN
            found["is_exact"] &= counted.is_exact
    return found


def _set_files(path: Path) -> list[Path]:
    """Files of texts that are scored: corpora, queries and test tables."""
    if path.is_file():
        return [path] if path.name.endswith(TABLES) else []
    return sorted(
        each
        for each in path.rglob("*")
        if each.name.removesuffix(".gz") in ("corpus.jsonl", "queries.jsonl")
        or (each.name.endswith(TABLES) and each.parent.name != "qrels" and not each.name.startswith(("train.", "dev.")))
    )


def sample_installed(packages: Sequence[str]) -> Sample:
    """Docstrings of some modules of the standard library and `packages`; their share of the bytes is the scale."""
    # By size, so that the sample has large and small ones in their proportions.
    modules = sorted(installed.modules(packages), key=lambda module: module.path.stat().st_size)
    chosen = spread(modules, NUM_MODULES)
    texts: list[tuple[str, Role]] = []
    for module in chosen:
        for _, doc in installed.docstrings(module):
            summary, body = installed.split(doc)
            texts += [(summary, "query")] if summary else []
            texts += [(body, "document")] if body else []
    scale = _bytes([module.path for module in modules]) / max(_bytes([module.path for module in chosen]), 1)
    return Sample(thin(texts), round(len(texts) * scale), False)


def owned_as_source(vectors: OwnedVectors) -> TextSource:
    """The texts beside vectors that are owned, as files of texts."""
    kind: dict[str, Any] = {"kind_column": vectors.kind} if vectors.kind else {"kind": "document"}
    return TextSource(source=vectors.source, column=vectors.text, **kind)


def vector_width(vectors: OwnedVectors) -> int | None:
    """Dimensions of vectors that are owned; None where they are in a database, or not there."""
    if is_database(vectors):
        return None
    try:
        with open_dump(vectors) as dump:
            return next((rows.vectors.shape[1] for rows in dump.rows if len(rows.texts)), None)
    except LeafError:
        return None


def thin(texts: list[tuple[str, Role]], num_texts: int = NUM_TEXTS) -> list[tuple[str, Role]]:
    """At most `num_texts` of `texts` and so many characters, evenly spaced."""
    characters = sum(len(text) for text, _ in texts)
    count = min(num_texts, len(texts), max(20, round(len(texts) * NUM_CHARACTERS / max(characters, 1))))
    return spread(texts, count)


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of `items`, evenly spaced, the first and the last among them."""
    return [items[i] for i in sorted(set(np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)))]


def _bytes(paths: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in paths)
