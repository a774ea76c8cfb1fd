"""A few hundred texts of each source that is on this machine, and how many it has, in a fraction of a second.

Parquet says how many rows it has, and any part of it can be read. Files of lines are read from the beginning: to the
end where they are short, else their size says how far that was.
"""

import ast
import gzip
import importlib.util
import sysconfig
from collections.abc import Iterator, Sequence
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from leaf.encoder import Role
from leaf.errors import LeafError
from leaf.recipe import OwnedVectors, TextSource
from leaf.texts import installed
from leaf.texts.sources import read

#: Texts of a sample, and its characters: a long document counts for many short ones.
NUM_TEXTS, NUM_CHARACTERS = 400, 1 << 20
#: Files of Parquet and row groups that a sample is spread over, and source files of Python.
NUM_FILES, NUM_GROUPS, NUM_MODULES = 50, 8, 80
#: A row group larger than this is not read whole.
MAX_GROUP_BYTES = 1 << 28
#: Rows, and bytes on disk, of a file of lines that are read at most.
MAX_ROWS, MAX_BYTES = 20_000, 1 << 25
T = TypeVar("T")
_KINDS: dict[str, Role] = {"query": "query", "document": "document", "doc": "document"}
#: Folders of a package that `installed-docs` passes over, roughly.
_SKIPPED = {
    "test", "tests", "testing", "conftest", "benchmarks", "vendor", "externals", "examples",
    "idlelib", "lib2to3", "turtledemo", "pydoc_data", "ensurepip", "site-packages",
}  # fmt: skip


class Sample(NamedTuple):
    """Some texts of a source, evenly spread over what was read of it."""

    texts: list[tuple[str, Role]]
    rows: int
    """Rows that the source has."""
    is_exact: bool
    """Whether all of them were counted."""


def sample_tables(paths: Sequence[Path], source: TextSource, num_texts: int = NUM_TEXTS) -> Sample:
    """A sample of Parquet files: rows evenly spaced over a few of their row groups.

    Raises as pyarrow does for damaged files, and `KeyError` for a missing column.
    """
    looked_into = spread(paths, NUM_FILES)
    groups, total = [], 0
    for path in looked_into:
        metadata = pq.read_metadata(path)
        total += metadata.num_rows
        each = (metadata.row_group(number) for number in range(metadata.num_row_groups))
        groups += [(path, number, group) for number, group in enumerate(each) if group.num_rows]
    if len(looked_into) < len(paths):
        total = round(total * _bytes(paths) / _bytes(looked_into))
    groups = spread(groups, NUM_GROUPS)
    read_rows = sum(group.num_rows for _, _, group in groups)
    columns = [source.column, *source.where, *([] if source.kind else [source.kind_column])]
    texts: list[tuple[str, Role]] = []
    looked = matched = 0
    for path, number, group in groups:
        with pq.ParquetFile(path) as file:
            if group.total_byte_size > MAX_GROUP_BYTES:  # its beginning stands for it
                first = next(file.iter_batches(4096, row_groups=[number], columns=list(dict.fromkeys(columns))))
                table = pa.Table.from_batches([first])
            else:
                table = file.read_row_group(number, columns=list(dict.fromkeys(columns)))
        if missing := [column for column in columns if column not in table.column_names]:
            raise KeyError(missing[0])
        wanted = max(1, round(num_texts * group.num_rows / read_rows)) * (8 if source.where else 1)
        table = table.take(spread(range(len(table)), wanted))
        for row in table.to_pylist():
            looked += 1
            if any(str(row[column]) != value for column, value in source.where.items()):
                continue
            matched += 1
            kind = source.kind or _KINDS.get(str(row[source.kind_column]))
            if isinstance(row[source.column], str) and kind:
                texts.append((row[source.column], kind))
    is_exact = not source.where and len(looked_into) == len(paths)
    return Sample(thin(texts), round(total * matched / looked) if looked else 0, is_exact)


def sample_lines(paths: Sequence[Path], source: TextSource) -> Sample:
    """A sample of files of lines. Raises `LeafError` as reading does."""
    rows = list(islice(read(source.model_copy(update={"rows": None}), 0), MAX_ROWS))
    texts = [(row.text, row.kind) for row in rows if isinstance(row.text, str) and row.text.strip()]
    if len(rows) < MAX_ROWS:
        return Sample(thin(texts), len(rows), True)
    scale = _bytes(paths) / _bytes(paths[:1])
    return Sample(thin(texts), round(count_lines(paths[0]).lines * scale), False)


class Lines(NamedTuple):
    """Lines of a file and their bytes, unpacked."""

    lines: int
    bytes: int
    is_exact: bool
    """False for a large file, of which the beginning was read."""


def count_lines(path: Path) -> Lines:
    """The lines of a file, gzipped or not."""
    with open(path, "rb") as raw:
        stream: Any = gzip.GzipFile(fileobj=raw) if path.name.endswith(".gz") else raw
        lines = done = 0
        last = b"\n"
        while done < MAX_BYTES and (block := stream.read(1 << 20)):
            lines, done, last = lines + block.count(b"\n"), done + len(block), block[-1:]
        if done < MAX_BYTES or not stream.read(1):
            return Lines(lines + (last != b"\n"), done, True)
        scale = path.stat().st_size / raw.tell()
        return Lines(round(lines * scale), round(done * scale), False)


def sample_installed(packages: Sequence[str]) -> Sample:
    """Docstrings of some modules of the standard library and `packages`; their share of the bytes is the scale."""
    library = Path(sysconfig.get_path("stdlib"))
    folders = [library]
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise LeafError(f"no package '{package}' is installed")
        folders += [Path(each) for each in (spec.submodule_search_locations or ())]
    # By size, so that the sample has large and small ones in their proportions.
    files = sorted((each for folder in folders for each in _modules(folder)), key=lambda path: path.stat().st_size)
    chosen = spread(files, NUM_MODULES)
    texts: list[tuple[str, Role]] = []
    read_bytes = 0
    for path in chosen:
        source = path.read_bytes()
        read_bytes += len(source)
        texts += _docstrings(source)
    return Sample(thin(texts), round(len(texts) * _bytes(files) / max(read_bytes, 1)), False)


def owned_as_source(vectors: OwnedVectors) -> TextSource:
    """The texts beside vectors that are owned, as files of texts."""
    kind: dict[str, Any] = {"kind_column": vectors.kind} if vectors.kind else {"kind": "document"}
    return TextSource(source=vectors.source, column=vectors.text, **kind)


def vector_width(vectors: OwnedVectors) -> int | None:
    """Dimensions of vectors that are owned; None where they are in a database, or not there."""
    for path in table_files(vectors.source):
        try:
            with pq.ParquetFile(path) as file:
                column = next(file.iter_batches(1, columns=[vectors.vector])).column(0)
            return len(column[0])
        except (OSError, StopIteration, TypeError, IndexError, pa.ArrowException):
            return None
    return None


def table_files(spec: str) -> list[Path]:
    """The files behind a path, a glob, or a folder of Parquet; none where there are none."""
    path = Path(spec).expanduser()
    if path.is_dir():
        return sorted(path.glob("*.parquet"))
    return (
        [path]
        if path.is_file()
        else sorted(each for each in map(Path, glob(str(path), recursive=True)) if each.is_file())
    )


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


def _modules(folder: Path) -> Iterator[Path]:
    is_library = folder == Path(sysconfig.get_path("stdlib"))
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py":
            if path.stem not in _SKIPPED and not path.stem.startswith("_" if is_library else "test_"):
                yield path
        elif path.is_dir() and path.name not in _SKIPPED and (not path.name.startswith("_") or path.name == "_core"):
            yield from _modules(path)


def _docstrings(source: bytes) -> Iterator[tuple[str, Role]]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in _public(tree):
        summary, body = installed.split(ast.get_docstring(node, clean=False) or "")
        if summary:
            yield summary, "query"
        if body:
            yield body, "document"


def _public(node: ast.Module | ast.ClassDef) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef]:
    """A module or class and the public definitions in it, without those inside functions."""
    yield node
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from _public(child)
        elif isinstance(child, ast.FunctionDef) and not child.name.startswith("_"):
            yield child
