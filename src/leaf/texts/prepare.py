"""Turns sources into shards: rejects what is no text, drops repeats, holds out, samples, and counts it all.

Sources are read once, into a temporary file, since reading may mean downloading. Beside it only hashes are
kept, 16 bytes a row, and every choice is made on them: a text's keyed hash is its ticket in a lottery that
the lowest tickets win. So samples are uniform and exact in size, and neither the order of the rows nor the
number of machines that wrote them changes who wins. Texts that are in a benchmark never reach that file: they
are neither trained on nor held out, and everything else is as if they had not been there.
"""

import enum
import hashlib
import json
import shutil
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from leaf.errors import LeafError
from leaf.files import write_text
from leaf.progress import LINE_INTERVAL, progress, say
from leaf.recipe import Prepare, TextSource
from leaf.texts.forms import normal_form
from leaf.texts.leaks import Benchmark, LeakCheck
from leaf.texts.shards import HELD_OUT, shard_digest, shard_name, write_shard
from leaf.texts.sources import Kind, Malformed, Row, name_of, read

HELD_OUT_PAIRS = "held-out-pairs"
#: Rows of the temporary file written and read at a time.
BATCH_ROWS = 8192
#: … or so many characters, whichever is less.
BATCH_CHARACTERS = 1 << 23
#: Why a text that the leak check found is not kept.
IN_BENCHMARK = "in a benchmark"

_Hashes = npt.NDArray[np.uint64]


class _Text(NamedTuple):
    """A `Row` whose text is usable."""

    text: str
    kind: Kind
    source: str
    pair: str | None


class Fate(enum.IntEnum):
    """What becomes of a usable row."""

    KEPT = 0
    HELD_OUT = 1
    HELD_OUT_PAIR = 2
    OVER_LIMIT = 3
    DUPLICATE = 4
    NEAR_DUPLICATE = 5
    COPY_OF_HELD_OUT = 6


#: Fates that count as rejections, as the manifest words them.
_REASONS = {
    Fate.DUPLICATE: "duplicate",
    Fate.NEAR_DUPLICATE: "near duplicate",
    Fate.COPY_OF_HELD_OUT: "copy of a held-out text",
}


def prepare(
    sources: Sequence[TextSource], settings: Prepare, folder: Path, benchmarks: Sequence[Benchmark] = ()
) -> dict[str, Any]:
    """Writes shards, `held-out.parquet` and, if asked for, `held-out-pairs/`; returns facts for the manifest.

    Where texts repeat, the one read first is kept, so the order of the sources decides its kind and its
    spelling. `benchmarks` are what `settings.leak_check` names: a text that is in one of them (see
    `leaf.texts.leaks`) is rejected like any other, and a pair of which either side is rejected is none.

    Raises `LeafError` for sources that give nothing, for fewer texts or pairs than are to be held out and, where
    `settings.leaks` is "refuse", for a text in a benchmark, before anything is written.
    """
    if settings.leak_check and not benchmarks:
        raise LeafError(
            f"prepare.leak_check asks for {', '.join(settings.leak_check)}, but no benchmark texts came with it; "
            "hand them to prepare(), as `leaf texts` does"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    spool = folder / ".rows.tmp"
    try:
        rows = _collect(sources, settings, spool, benchmarks)
        fates = _choose(rows, settings)
        return _write(rows, fates, settings, spool, folder)
    finally:
        spool.unlink(missing_ok=True)


@dataclass
class _Rows:
    """What is known of the rows in the spool: two hashes of each, and which of them answer each other."""

    exact: _Hashes
    forms: _Hashes
    """The keyed hash of the normal form: identity and lottery ticket in one."""
    pairs: dict[str, tuple[int, int]]
    """Name → the rows of its query and its document."""
    read: Counter[str] = field(default_factory=Counter)
    rejected: dict[str, Counter[str]] = field(default_factory=dict)
    leaks: dict[str, Any] | None = None
    """What the leak check found; None where none was asked for."""


def _clear(folder: Path) -> None:
    """Removes what a killed attempt, perhaps with other settings, may have left."""
    for path in (*folder.glob("part-*.parquet"), *folder.glob(".*.tmp"), folder / HELD_OUT):
        path.unlink(missing_ok=True)
    if (folder / HELD_OUT_PAIRS).exists():
        shutil.rmtree(folder / HELD_OUT_PAIRS)


def _collect(sources: Sequence[TextSource], settings: Prepare, spool: Path, benchmarks: Sequence[Benchmark]) -> _Rows:
    """Reads every source once and writes the usable rows to `spool`, in order."""
    key = settings.seed.to_bytes(16, "little", signed=True)
    exact, forms = array("Q"), array("Q")
    sides: dict[str, dict[Kind, int]] = {}
    read_counts: Counter[str] = Counter()
    rejected: dict[str, Counter[str]] = defaultdict(Counter)
    schema = pa.schema({"text": pa.string(), "kind": pa.string(), "source": pa.string()})
    check = LeakCheck(benchmarks) if benchmarks else None
    usable = _usable(_rows(sources, settings.seed), settings.max_characters, read_counts, rejected)
    with pq.ParquetWriter(spool, schema, compression="zstd") as writer:
        for batch in _batches(usable):
            leaking = check([row.text for row in batch], [row.source for row in batch]) if check else set()
            for position in leaking:
                rejected[batch[position].source][IN_BENCHMARK] += 1
            kept = [row for position, row in enumerate(batch) if position not in leaking]
            for row in kept:
                if row.pair is not None:
                    sides.setdefault(row.pair, {})[row.kind] = len(forms)
                exact.append(_hash(row.text, key))
                forms.append(_hash(normal_form(row.text), key))
            columns = [[row.text for row in kept], [row.kind for row in kept], [row.source for row in kept]]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    if check and settings.leaks == "refuse":
        check.refuse()
    if not forms:
        reasons = sum(rejected.values(), Counter()).most_common()
        raise LeafError(
            f"empty corpus: {sum(read_counts.values()):,} rows were read and all of them rejected "
            f"({', '.join(f'{reason} {count:,}' for reason, count in reasons)}); check that `column` is right"
        )
    pairs = {name: (rows["query"], rows["document"]) for name, rows in sides.items() if len(rows) == 2}
    facts = check.facts() if check else None
    return _Rows(np.asarray(exact, np.uint64), np.asarray(forms, np.uint64), pairs, read_counts, rejected, facts)


def _usable(
    rows: Iterable[Row], max_characters: int, read_counts: Counter[str], rejected: dict[str, Counter[str]]
) -> Iterator[_Text]:
    """The rows that are texts; counts the others by reason."""
    for row in rows:
        read_counts[row.source] += 1
        reason = rejection(row.text, max_characters)
        if reason is not None:
            rejected[row.source][reason] += 1
            continue
        assert isinstance(row.text, str)
        yield _Text(row.text, row.kind, row.source, row.pair)


def _batches(rows: Iterable[_Text]) -> Iterator[list[_Text]]:
    """Lists of up to `BATCH_ROWS` rows, shorter where texts are long."""
    batch: list[_Text] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row.text)
        if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _rows(sources: Iterable[TextSource], seed: int) -> Iterator[Row]:
    for source in sources:
        began = said = time.monotonic()
        count = 0
        for count, row in enumerate(read(source, seed), 1):
            yield row
            if count % BATCH_ROWS == 0 and time.monotonic() - said >= LINE_INTERVAL:
                said = time.monotonic()
                say(f"texts: {name_of(source)}: {count:,} rows so far")
        if count == 0:
            where = f" where {source.where}" if source.where else ""
            raise LeafError(f"texts '{source.source}' has no rows{where}; correct it or leave it out")
        say(f"texts: {name_of(source)}: {count:,} rows read in {time.monotonic() - began:.1f} s")


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


def _hash(text: str, key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest(), "little")


def _choose(rows: _Rows, settings: Prepare) -> npt.NDArray[np.uint8]:
    """The `Fate` of every row, decided from hashes alone."""
    forms = rows.forms
    fates = np.full(len(forms), Fate.KEPT, np.uint8)
    repeated = _repeats(forms)
    if settings.dedup != "none":
        fates[_repeats(rows.exact)] = Fate.DUPLICATE
    if settings.dedup == "normalised":
        fates[repeated & (fates == Fate.KEPT)] = Fate.NEAR_DUPLICATE
    if settings.held_out_pairs:
        fates[_choose_pairs(rows, settings.held_out_pairs)] = Fate.HELD_OUT_PAIR

    tickets = np.unique(forms[fates == Fate.KEPT])
    if len(tickets) < 2 * settings.held_out:
        raise LeafError(
            f"{len(tickets):,} different texts are too few to hold out {settings.held_out:,} and train on "
            f"the rest; add texts or lower prepare.held_out to {len(tickets) // 2:,} or less"
        )
    winners = (fates == Fate.KEPT) & (forms <= tickets[settings.held_out - 1])
    fates[winners & ~repeated] = Fate.HELD_OUT
    fates[winners & repeated] = Fate.COPY_OF_HELD_OUT

    if settings.limit is not None:
        training = np.flatnonzero(fates == Fate.KEPT)
        by_ticket = training[np.argsort(forms[training], kind="stable")]
        fates[by_ticket[settings.limit :]] = Fate.OVER_LIMIT
    return fates


def _choose_pairs(rows: _Rows, count: int) -> list[int]:
    """The rows of `count` held-out pairs.

    Only texts that occur once in all sources can be in one: a query that two documents answer would have one
    of them judged wrong, and a text met elsewhere would leak into training.
    """
    _, inverse, counts = np.unique(rows.forms, return_inverse=True, return_counts=True)
    once = counts[inverse] == 1
    # The ticket mixes both sides. The query's own would take all low tickets of queries, and leave none of
    # these queries for the held-out texts.
    tickets = [
        (int(rows.forms[query] ^ rows.forms[document]), query, document)
        for query, document in rows.pairs.values()
        if once[query] and once[document]
    ]
    if len(tickets) < count:
        raise LeafError(
            f"the sources have {len(tickets):,} pairs whose texts occur only once, fewer than "
            f"prepare.held_out_pairs = {count:,}; lower it, or add packages to installed-docs"
        )
    return [row for _, *pair in sorted(tickets)[:count] for row in pair]


def _repeats(hashes: _Hashes) -> npt.NDArray[np.bool_]:
    """True for every row whose hash an earlier row has."""
    repeated = np.ones(len(hashes), dtype=bool)
    repeated[np.unique(hashes, return_index=True)[1]] = False
    return repeated


def _write(rows: _Rows, fates: npt.NDArray[np.uint8], settings: Prepare, spool: Path, folder: Path) -> dict[str, Any]:
    shards = _ShardWriter(folder, settings.shard_rows)
    held_out: list[pa.Table] = []
    paired: dict[int, str] = {}
    outcomes: Counter[tuple[str, int]] = Counter()
    kinds: Counter[str] = Counter()
    characters = done = 0
    with progress("texts: writing", len(fates)) as bar, pq.ParquetFile(spool) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            fate = fates[done : done + batch.num_rows]
            table = pa.Table.from_batches([batch])
            training = table.filter(fate == Fate.KEPT)
            shards.add(training)
            kinds.update(training["kind"].to_pylist())
            characters += pc.sum(pc.utf8_length(training["text"])).as_py() or 0
            held_out.append(table.filter(fate == Fate.HELD_OUT))
            in_pairs = np.flatnonzero(fate == Fate.HELD_OUT_PAIR)
            texts = table["text"].take(in_pairs).to_pylist()
            paired.update(zip((done + in_pairs).tolist(), texts, strict=True))
            outcomes.update(zip(table["source"].to_pylist(), fate.tolist(), strict=True))
            done += batch.num_rows
            bar.advance(batch.num_rows)
    # By ticket, that is in random order: the first n held-out texts are a uniform sample too.
    order = np.argsort(rows.forms[fates == Fate.HELD_OUT])
    files = shards.close()
    num_rows = sum(file["rows"] for file in files)
    return {
        "shards": files,
        "held_out": write_shard(folder / HELD_OUT, pa.concat_tables(held_out).take(order)),
        "held_out_pairs": _write_pairs(rows, paired, folder / HELD_OUT_PAIRS) if paired else None,
        "rows": num_rows,
        "kinds": {kind: kinds[kind] for kind in ("query", "document")},
        "mean_characters": round(characters / num_rows, 1),
        "sources": _counts(rows, outcomes),
        "leaks": rows.leaks,
    }


def _counts(rows: _Rows, outcomes: Counter[tuple[str, int]]) -> dict[str, dict[str, Any]]:
    """Per source: `read` is the sum of all the other numbers."""
    counts: dict[str, dict[str, Any]] = {}
    for source, read_rows in rows.read.items():
        rejected = rows.rejected.get(source, Counter())
        rejected.update({reason: outcomes[source, fate] for fate, reason in _REASONS.items() if outcomes[source, fate]})
        counts[source] = {
            "read": read_rows,
            "kept": outcomes[source, Fate.KEPT],
            "held_out": outcomes[source, Fate.HELD_OUT],
            "held_out_pairs": outcomes[source, Fate.HELD_OUT_PAIR],
            "over_limit": outcomes[source, Fate.OVER_LIMIT],
            "rejected": dict(rejected),
        }
    return counts


class _ShardWriter:
    """Cuts a stream of tables into files of `shard_rows` rows."""

    def __init__(self, folder: Path, shard_rows: int) -> None:
        self._folder, self._shard_rows = folder, shard_rows
        self._pending: list[pa.Table] = []
        self._files: list[dict[str, Any]] = []

    def add(self, rows: pa.Table) -> None:
        self._pending.append(rows)
        while sum(table.num_rows for table in self._pending) >= self._shard_rows:
            self._flush()

    def close(self) -> list[dict[str, Any]]:
        if any(table.num_rows for table in self._pending):
            self._flush()
        return self._files

    def _flush(self) -> None:
        table = pa.concat_tables(self._pending)
        path = self._folder / shard_name(len(self._files))
        self._files.append(write_shard(path, table.slice(0, self._shard_rows)))
        self._pending = [table.slice(self._shard_rows)]


def _write_pairs(rows: _Rows, texts: dict[int, str], folder: Path) -> dict[str, Any]:
    """A retrieval set in BEIR's layout, in which each query has one relevant document. Ordered by name."""
    pairs = sorted(
        (name, texts[query], texts[document]) for name, (query, document) in rows.pairs.items() if query in texts
    )
    # The prefix keeps ids of queries and documents apart: evaluation drops a hit with the id of its query.
    corpus = ({"_id": name, "title": "", "text": document} for name, _, document in pairs)
    queries = ({"_id": f"q:{name}", "text": query} for name, query, _ in pairs)
    for file, records in (("corpus.jsonl", corpus), ("queries.jsonl", queries)):
        write_text(folder / file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    qrels = "".join(f"q:{name}\t{name}\t1\n" for name, _, _ in pairs)
    write_text(folder / "qrels" / "test.tsv", f"query-id\tcorpus-id\tscore\n{qrels}")
    both = [text for _, query, document in pairs for text in (query, document)]
    return {
        "folder": folder.name,
        "pairs": len(pairs),
        "digest": shard_digest(both, ["query", "document"] * len(pairs)),
    }
