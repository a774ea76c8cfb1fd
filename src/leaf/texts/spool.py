"""One source, read once into pieces on disk, so that a run that is killed does not read it again.

    spool = Spool(folder, 0, source, Prepare())
    spool.fill()                               # goes on where an earlier process stopped
    for batch in spool.batches(["text", "kind"]):
        ...

A piece is a Parquet file of rows, and `state.json` says how many pieces count and where the source goes on behind
them. It is written after its pieces, so what a kill leaves without it is thrown away. Hub data sets go on inside a
file, local files with the next one; a source that cannot say where it stands is read from its start again.

Of a sample only rows that may be in it are written: those whose ticket is among the lowest so far. That is about
`rows · (1 + ln(all / rows))` rows, of which the lowest tickets are the sample in the end.
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from leaf.errors import LeafError
from leaf.files import atomic_path, digest, write_json
from leaf.parquet import open_parquet
from leaf.progress import LINE_INTERVAL, say
from leaf.recipe import Prepare, TextSource
from leaf.texts.forms import normal_form
from leaf.texts.sampling import Sample, Tickets, keyed_hash, seed_key, tickets
from leaf.texts.shards import undamaged
from leaf.texts.sources import Batch, OwnTexts, Row, batches, identity, name_of, say_all_taken
from leaf.texts.tables import Malformed

#: Rows of a piece …
PIECE_ROWS = 65_536
#: … or so many characters, whichever comes first …
PIECE_CHARACTERS = 1 << 25
#: … or so many seconds after the last one, where it is known how to go on.
PIECE_SECONDS = 60.0
#: Rows of a piece that are looked at at a time.
BATCH_ROWS = 8192
#: Changed when pieces change shape, so that those of an older version are read again.
FORMAT = 1

_NAMES = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    {
        "text": pa.string(),  # null where `rejected` says why
        "kind": _NAMES,
        "source": _NAMES,
        "pair": pa.string(),
        "rejected": _NAMES,
        "ticket": pa.uint64(),
        "exact": pa.uint64(),  # keyed hashes of the text and of its normal form
        "form": pa.uint64(),
    }
)


class Spool:
    """The rows of one source that are in its sample, rejected ones included, in the order they were read."""

    def __init__(
        self,
        parent: Path,
        number: int,
        source: TextSource,
        settings: Prepare,
        vectors: OwnTexts | None = None,
        vectors_digest: str | None = None,
    ) -> None:
        self.source, self._settings, self._vectors = source, settings, vectors
        read_as = {"seed": settings.seed, "max_characters": settings.max_characters, "format": FORMAT}
        self.folder = parent / f"{number:03}-{digest({**identity(source, vectors_digest), **read_as})[:16]}"
        self._state: dict[str, Any] = {"pieces": 0, "read": 0, "reader": None, "done": False}
        # Of a sample of files every row counts until there are enough; of a sample of rows any may.
        self._most = source.rows if source.sample == "files" else None
        self._sample = Sample(None if self._most else source.rows)

    def fill(self) -> None:
        """Reads what no earlier process has read. Raises `LeafError` for a source that cannot be read or is empty."""
        self._resume()
        name = name_of(self.source)
        if self._state["done"]:
            say(f"texts: {name}: {self._state['read']:,} rows were read before")
            return
        began = said = committed = time.monotonic()
        num_read = first = self._state["read"]
        pending = _Pending(self._settings)
        for batch in batches(self.source, self._settings.seed, self._state["reader"], vectors=self._vectors):
            rows = batch.rows if self._most is None else batch.rows[: self._most - num_read]
            offered = tickets(self._settings.seed, name, num_read, len(rows))
            pending.add(rows, offered, self._sample.offer(offered))
            num_read += len(rows)
            if self._most is not None and num_read >= self._most:
                break
            now = time.monotonic()
            if pending.full:
                self._write(pending)
            if batch.state is not None and (pending.started or now - committed >= PIECE_SECONDS):
                self._commit(pending, batch, num_read)
                committed = now
            if now - said >= LINE_INTERVAL:
                said = now
                say(f"texts: {name}: {num_read:,} rows so far")
        if num_read == 0:
            where = f" where {self.source.where}" if self.source.where else ""
            raise LeafError(f"texts '{self.source.source}' has no rows{where}; correct it or leave it out")
        self._commit(pending, Batch([], None), num_read, done=True)
        say_all_taken(self.source, num_read)
        say(f"texts: {name}: {num_read - first:,} rows read in {time.monotonic() - began:.1f} s")

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """These columns (see `SCHEMA`) of the rows in the sample, a part of a piece at a time."""
        bar = self._sample.bar()
        everything = self._most is not None or self.source.rows is None
        wanted = list(columns) if everything else [*columns, "ticket"]
        for batch in self._pieces(wanted):
            inside = batch if everything else batch.filter(pc.less_equal(batch["ticket"], pa.scalar(bar)))
            yield inside.select(columns)

    def _pieces(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for number in range(self._state["pieces"]):
            with undamaged(path := self._piece(number)), open_parquet(path) as file:
                yield from file.iter_batches(BATCH_ROWS, columns=columns)

    def _resume(self) -> None:
        """Takes over what an earlier process left, without the pieces that its state does not know."""
        path = self.folder / "state.json"
        if path.is_file():
            with undamaged(path):
                self._state = json.loads(path.read_text(encoding="utf-8"))
        elif self.folder.exists():
            say(f"texts: {name_of(self.source)}: it cannot go on where it stopped; reading it from its start")
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        known = {self._piece(number) for number in range(self._state["pieces"])}
        for path in [*self.folder.glob("*.parquet"), *self.folder.glob(".*.tmp")]:
            if path not in known:
                path.unlink()
        for batch in self._pieces(["ticket"]):
            self._sample.offer(batch["ticket"].to_numpy())
        if self._state["read"] and not self._state["done"]:
            say(f"texts: {name_of(self.source)}: going on after {self._state['read']:,} rows")

    def _commit(self, pending: "_Pending", batch: Batch, num_read: int, *, done: bool = False) -> None:
        self._write(pending)
        pending.started = False
        self._state |= {"read": num_read, "reader": batch.state, "done": done}
        write_json(self.folder / "state.json", self._state)

    def _write(self, pending: "_Pending") -> None:
        if pending.rows:
            with atomic_path(self._piece(self._state["pieces"])) as temporary:
                pq.write_table(pending.take(), temporary, compression="zstd", write_statistics=False)
            self._state["pieces"] += 1

    def _piece(self, number: int) -> Path:
        return self.folder / f"piece-{number:05}.parquet"


class _Pending:
    """Rows of the next piece, column by column."""

    def __init__(self, settings: Prepare) -> None:
        self._key = seed_key(settings.seed)
        self._max_characters = settings.max_characters
        self._columns: list[Any] = [[] for _ in SCHEMA]
        self.rows = self._characters = 0
        self.started = False
        """Whether a piece was due since the state was last written."""

    @property
    def full(self) -> bool:
        """Whether the piece is large enough to be written."""
        return self.rows >= PIECE_ROWS or self._characters >= PIECE_CHARACTERS

    def add(self, rows: Sequence[Row], offered: Tickets, positions: Any) -> None:
        """Takes those at `positions`."""
        texts, kinds, sources, pairs, rejected, ticket, exact, forms = self._columns
        chosen = rows if len(positions) == len(rows) else [rows[position] for position in positions]
        for row in chosen:
            text = row.text
            reason = rejection(text, self._max_characters)
            if reason is None:
                assert isinstance(text, str)
                texts.append(text)
                exact.append(keyed_hash(text, self._key))
                forms.append(keyed_hash(normal_form(text), self._key))
                self._characters += len(text)
            else:
                texts.append(None)
                exact.append(0)
                forms.append(0)
            rejected.append(reason)
            kinds.append(row.kind)
            sources.append(row.source)
            pairs.append(row.pair)
        ticket.append(offered[positions])
        self.rows += len(chosen)
        self.started = self.started or self.full

    def take(self) -> pa.Table:
        """The piece; afterwards there is none."""
        self._columns[5] = np.concatenate(self._columns[5])
        arrays = [pa.array(column, field.type) for column, field in zip(self._columns, SCHEMA, strict=True)]
        self._columns = [[] for _ in SCHEMA]
        self.rows = self._characters = 0
        return pa.Table.from_arrays(arrays, schema=SCHEMA)


def rejection(text: object, max_characters: int) -> str | None:
    """Why `text` cannot be used, None if it can."""
    if isinstance(text, Malformed):
        return "malformed"
    if not isinstance(text, str):
        return "not a string"
    if not text.strip():
        return "empty"
    if len(text) > max_characters:
        return "too long"
    if "\0" in text:
        return "NUL"
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates: bytes that were not UTF-8, or half of a JSON \ud83d\ude00
        return "not UTF-8"
    return None
