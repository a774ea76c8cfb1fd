"""Data sets of the hub, streamed: only what is read is fetched, and reading can go on where it stopped.

A folder laid out like one of its repositories (files, and a README.md that names configurations) is read likewise.
"""

import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leaf.errors import LeafError, first_line
from leaf.models import hub_revision
from leaf.recipe import TextSource
from leaf.texts.tables import BATCH_ROWS, Record, require, rows_of


class Streamed(NamedTuple):
    """A data set that is open for reading."""

    dataset: Any
    """`datasets.IterableDataset`; of Parquet, only the columns that the source reads are fetched."""
    columns: list[str] | None
    """What it reads of each row. None where the data set does not say which columns it has before it is read."""
    revision: str | None
    """The commit, None for a folder."""


def open_hub(source: TextSource, name: str, revision: str | None = None) -> Streamed:
    """The data set `name` at a commit, by default the one that the source's revision stands for now.

    Raises `LeafError` where there is no such data set, configuration, split or column, or no way to reach it.
    """
    if find_spec("datasets") is None:
        raise LeafError(f"{source.source} is read through datasets; pip install 'leaf[hub]'")
    if not Path(name).is_dir():
        revision = revision or hub_revision(name, "dataset", source.revision)
    import datasets

    try:
        builder = datasets.load_dataset_builder(name, name=source.config, revision=revision)
        dataset = builder.as_streaming_dataset(split=source.split)
        if dataset.column_names is None:  # it does not declare its features
            return Streamed(dataset, None, revision)
        columns = require(source, source.source, dataset.column_names)
        if hasattr(builder.config, "columns") and hasattr(builder.config, "batch_size"):  # Parquet
            builder.config.columns = columns  # of the questions of a question-and-passage set, only the questions
            builder.config.batch_size = BATCH_ROWS  # its default is a row group, which may be a whole file
            dataset = builder.as_streaming_dataset(split=source.split)
    except LeafError:
        raise
    except (OSError, EOFError, zlib.error, ValueError, RuntimeError) as error:  # no such split, a script, a cut file
        raise LeafError(f"{source.source}: {first_line(error)}") from error
    return Streamed(dataset.select_columns(columns), columns, revision)


def read_hub(
    source: TextSource, name: str, seed: int, state: dict[str, Any] | None
) -> Iterator[tuple[list[Record], dict[str, Any] | None]]:
    """Rows of a data set, and the state that goes on behind them: plain JSON data, None where there is none.

    Files are read in stored order, or with `sample = "files"` in one that `seed` and the number of files decide. The
    state names the commit, so that what goes on is what was begun.
    """
    dataset, columns, revision = open_hub(source, name, state["revision"] if state else None)
    num_files = max(1, dataset.num_shards if hasattr(dataset, "num_shards") else dataset.n_shards)
    order = file_order(source, seed, num_files)
    begun = state["file"] if state else 0
    for position in range(begun, num_files):
        file = dataset.shard(num_shards=num_files, index=order[position]).with_format("arrow")
        if state and position == begun and state["inside"]:
            file.load_state_dict(state["inside"])
        tables = failing_as(source, iter(file.iter(batch_size=BATCH_ROWS)))
        for table in tables:
            if columns is None:
                columns = require(source, source.source, table.column_names)
            here = _state(file)
            yield (
                list(rows_of(table, columns)),
                here and {"revision": revision, "file": position, "inside": here},
            )
        yield [], {"revision": revision, "file": position + 1, "inside": None}


def file_order(source: TextSource, seed: int, num_files: int) -> list[int]:
    """The order in which files are read: another for every seed where files are sampled."""
    if source.sample == "rows":
        return list(range(num_files))
    return list(map(int, np.random.default_rng([seed % 2**64, num_files]).permutation(num_files)))


def _state(dataset: Any) -> dict[str, Any] | None:
    """Where reading stands; None for what cannot say."""
    try:
        return dict(dataset.state_dict())
    except (AttributeError, NotImplementedError, TypeError):
        return None


def failing_as(source: TextSource, found: Iterator[Any]) -> Iterator[Any]:
    """What is `found`, with whatever stops it as a `LeafError`."""
    while True:
        try:
            each = next(found, None)
        except Exception as error:  # the HTTP libraries behind it share no base class that outlives their releases
            raise LeafError(f"{source.source}: reading stopped ({first_line(error)}); run again to go on") from error
        if each is None:
            return
        yield each
