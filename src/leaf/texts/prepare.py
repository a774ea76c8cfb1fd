"""Turns sources into shards: rejects what is no text, drops repeats, holds out, samples, and counts it all.

Sources are read once, into spools (`leaf.texts.spool`), since reading may mean downloading: a run that is killed goes
on with what it had read. Beside them only hashes are kept, 16 bytes a row, and every choice is made on them: a text's
keyed hash is its ticket in a lottery that the lowest tickets win. So samples are uniform and exact in size, and neither
the order of the rows nor the number of machines that wrote them changes who wins. Texts that are in a benchmark take
no part: they are neither trained on nor held out, and everything else is as if they had not been there.
"""

import enum
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from leaf.errors import LeafError
from leaf.files import write_text
from leaf.progress import progress
from leaf.recipe import Prepare, TextSource
from leaf.texts.leaks import Benchmark, LeakCheck
from leaf.texts.shards import HELD_OUT, shard_digest, shard_name, write_shard
from leaf.texts.sources import Kind, OwnTexts, name_of
from leaf.texts.spool import Spool

HELD_OUT_PAIRS = "held-out-pairs"
#: The folder of what was read so far, inside that of the texts; gone when they are complete.
SPOOLS = ".sources"
#: Characters that the leak check looks at at a time.
BATCH_CHARACTERS = 1 << 23

_Hashes = npt.NDArray[np.uint64]
_Fates = npt.NDArray[np.uint8]


class Fate(enum.IntEnum):
    """What becomes of a row."""

    KEPT = 0
    HELD_OUT = 1
    HELD_OUT_PAIR = 2
    OVER_LIMIT = 3
    DUPLICATE = 4
    NEAR_DUPLICATE = 5
    COPY_OF_HELD_OUT = 6
    IN_BENCHMARK = 7
    REJECTED = 8
    """No text at all: the spool says why."""


#: Fates that count as rejections, as the manifest words them.
_REASONS = {
    Fate.DUPLICATE: "duplicate",
    Fate.NEAR_DUPLICATE: "near duplicate",
    Fate.COPY_OF_HELD_OUT: "copy of a held-out text",
    Fate.IN_BENCHMARK: "in a benchmark",
}


def prepare(
    sources: Sequence[TextSource],
    settings: Prepare,
    folder: Path,
    benchmarks: Sequence[Benchmark] = (),
    *,
    vectors: OwnTexts | None = None,
    vectors_digest: str | None = None,
) -> dict[str, Any]:
    """Writes shards, `held-out.parquet` and, if asked for, `held-out-pairs/`; returns facts for the manifest.

    Where texts repeat, the one read first is kept, so the order of the sources decides its kind and its
    spelling. `benchmarks` are what `settings.leak_check` names: a text that is in one of them (see
    `leaf.texts.leaks`) is rejected like any other, and a pair of which either side is rejected is none.
    `vectors` gives the texts of the source `vectors`, and `vectors_digest` names their content.

    Called again after a failure or a kill, with the same sources, it goes on: what was read is not read again, and
    the files are those of an uninterrupted run, byte for byte. Memory is O(shard) and 17 bytes a row.

    Raises `LeafError` for a source that gives no text, for fewer texts or pairs than are to be held out and, where
    `settings.leaks` is "refuse", for a text in a benchmark, before any of these files is written.
    """
    if settings.leak_check and not benchmarks:
        raise LeafError(
            f"prepare.leak_check asks for {', '.join(settings.leak_check)}, but no benchmark texts came with it; "
            "hand them to prepare(), as `leaf texts` does"
        )
    _check_names(sources)
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    spools = [
        Spool(folder / SPOOLS, number, source, settings, vectors, vectors_digest)
        for number, source in enumerate(sources)
    ]
    _clear_spools(folder / SPOOLS, spools)
    for spool in spools:
        spool.fill()
    rows = _look(spools)
    check = _check_leaks(spools, rows, benchmarks, settings) if benchmarks else None
    _choose(rows, settings)
    facts = _write(rows, spools, settings, folder)
    shutil.rmtree(folder / SPOOLS)
    return {**facts, "leaks": check.facts() if check else None}


def _check_names(sources: Sequence[TextSource]) -> None:
    """Counts are by name, and who adapts a student looks at guard texts and others apart."""
    guards = {name_of(source) for source in sources if source.guard}
    for source in sources:
        if not source.guard and (name := name_of(source)) in guards:
            raise LeafError(f"texts: '{name}' is the name of a source with guard and of one without; set another name")


@dataclass
class _Rows:
    """What is known of all rows: two hashes of each, which of them answer each other, and what becomes of them."""

    exact: _Hashes
    forms: _Hashes
    """The keyed hash of the normal form: identity and lottery ticket in one."""
    guards: npt.NDArray[np.bool_]
    """Whether the row comes from a source with `guard`."""
    held_out: npt.NDArray[np.int8]
    """`held_out` of the row's source: 1 always, −1 never, 0 as it is drawn."""
    pairs: dict[str, tuple[int, int]]
    """Name → the rows of its query and its document."""
    fates: _Fates


def _clear(folder: Path) -> None:
    """Removes what a killed attempt, perhaps with other settings, may have left."""
    for path in (*folder.glob("part-*.parquet"), *folder.glob(".*.tmp"), folder / HELD_OUT):
        path.unlink(missing_ok=True)
    if (folder / HELD_OUT_PAIRS).exists():
        shutil.rmtree(folder / HELD_OUT_PAIRS)


def _clear_spools(folder: Path, spools: Sequence[Spool]) -> None:
    """Removes what was read for sources that are not asked for any more."""
    for path in set(folder.glob("*/")) - {spool.folder for spool in spools}:
        shutil.rmtree(path)


def _look(spools: Sequence[Spool]) -> _Rows:
    """The hashes of all rows in the order of the sources. A source without one usable text is an error."""
    exact, forms, rejected, guards, held_out = [], [], [], [], []
    sides: dict[str, dict[Kind, int]] = {}
    first = 0
    for spool in spools:
        begin, reasons = first, Counter[str]()
        for batch in spool.batches(["exact", "form", "rejected", "kind", "pair"]):
            exact.append(batch["exact"].to_numpy())
            forms.append(batch["form"].to_numpy())
            rejected.append(batch["rejected"].is_valid().to_numpy(zero_copy_only=False))
            guards.append(np.full(batch.num_rows, spool.source.guard))
            held_out.append(np.full(batch.num_rows, {True: 1, False: -1, None: 0}[spool.source.held_out], np.int8))
            reasons.update(_value_counts(batch["rejected"]))
            usable = pc.and_(batch["pair"].is_valid(), batch["rejected"].is_null())
            for row in np.flatnonzero(usable.to_numpy(zero_copy_only=False)).tolist():
                sides.setdefault(batch["pair"][row].as_py(), {})[batch["kind"][row].as_py()] = first + row
            first += batch.num_rows
        if reasons.total() == first - begin:
            told = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
            raise LeafError(
                f"texts '{spool.source.source}': {first - begin:,} rows were read and all of them rejected ({told}); "
                "check that `column` is right"
            )
    pairs = {name: (rows["query"], rows["document"]) for name, rows in sides.items() if len(rows) == 2}
    fates = np.where(np.concatenate(rejected), np.uint8(Fate.REJECTED), np.uint8(Fate.KEPT))
    return _Rows(
        np.concatenate(exact), np.concatenate(forms), np.concatenate(guards), np.concatenate(held_out), pairs, fates
    )


def _check_leaks(spools: Sequence[Spool], rows: _Rows, benchmarks: Sequence[Benchmark], settings: Prepare) -> LeakCheck:
    """Takes texts that are in a benchmark out of `rows`, or refuses them."""
    check = LeakCheck(benchmarks)
    first = 0
    with progress("texts: leak check", len(rows.fates)) as bar:
        for spool in spools:
            for batch in spool.batches(["text", "source"]):
                usable = np.flatnonzero(rows.fates[first : first + batch.num_rows] != Fate.REJECTED)
                texts, names = (batch[column].take(usable).to_pylist() for column in ("text", "source"))
                for start, end in _parts(texts):
                    leaking = [start + position for position in check(texts[start:end], names[start:end])]
                    rows.fates[first + usable[leaking]] = Fate.IN_BENCHMARK
                first += batch.num_rows
                bar.advance(batch.num_rows)
    if settings.leaks == "refuse":
        check.refuse()
    leaking = rows.fates == Fate.IN_BENCHMARK
    rows.pairs = {name: pair for name, pair in rows.pairs.items() if not leaking[list(pair)].any()}
    return check


def _parts(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Cuts `texts` where they have come to `BATCH_CHARACTERS`."""
    start = characters = 0
    for end, text in enumerate(texts, 1):
        characters += len(text)
        if characters >= BATCH_CHARACTERS or end == len(texts):
            yield start, end
            start, characters = end, 0


def _choose(rows: _Rows, settings: Prepare) -> None:
    """Decides the `Fate` of every row that is a text, from hashes alone."""
    usable = np.flatnonzero(rows.fates == Fate.KEPT)
    forms = rows.forms[usable]
    fates = np.full(len(forms), Fate.KEPT, np.uint8)
    repeated = _repeats(forms)
    if settings.dedup != "none":
        fates[_repeats(rows.exact[usable])] = Fate.DUPLICATE
    if settings.dedup == "normalised":
        fates[repeated & (fates == Fate.KEPT)] = Fate.NEAR_DUPLICATE
    if settings.held_out_pairs:
        fates[np.searchsorted(usable, _choose_pairs(rows, forms, settings.held_out_pairs))] = Fate.HELD_OUT_PAIR

    wish = rows.held_out[usable]
    always = np.flatnonzero((fates == Fate.KEPT) & (wish > 0))
    fates[always[np.unique(forms[always], return_index=True)[1]]] = Fate.HELD_OUT
    drawn = (fates == Fate.KEPT) & (wish == 0) & ~np.isin(forms, forms[wish != 0])
    tickets = np.unique(forms[drawn])
    num_held_out = settings.held_out_of(len(tickets))
    if len(tickets) < 2 * num_held_out:
        raise LeafError(
            f"{len(tickets):,} different texts are too few to hold out {num_held_out:,} and train on "
            f"the rest; add texts or lower prepare.held_out to {len(tickets) // 2:,} or less (--set prepare.held_out=…)"
        )
    fates[drawn & ~repeated & (forms <= tickets[num_held_out - 1])] = Fate.HELD_OUT
    fates[(fates == Fate.KEPT) & np.isin(forms, forms[fates == Fate.HELD_OUT])] = Fate.COPY_OF_HELD_OUT

    training = np.flatnonzero(fates == Fate.KEPT)
    by_ticket = training[np.argsort(forms[training], kind="stable")]
    over = _over_limit(rows.guards[usable][by_ticket], settings.guard_ratio, settings.limit)
    fates[by_ticket[over]] = Fate.OVER_LIMIT
    rows.fates[usable] = fates


def _over_limit(guards: npt.NDArray[np.bool_], ratio: float, limit: int | None) -> npt.NDArray[np.bool_]:
    """Which training texts are too many: guards beyond `ratio` times the others, and what is beyond `limit`.

    The texts are in the order of their tickets. With a limit both hold: where guards among the first texts are too
    many, the next of the others take their places.
    """
    num_others = int((~guards).sum())
    most_guards = int(ratio * num_others) if num_others else len(guards)
    kept = ~guards | (np.cumsum(guards) <= most_guards)
    if limit is not None and kept.sum() > limit:
        first = kept & (np.cumsum(kept) <= limit)
        share = int(limit * ratio / (1 + ratio)) if num_others else limit
        most_guards = min(int((first & guards).sum()), share)
        kept = np.where(guards, np.cumsum(guards) <= most_guards, np.cumsum(~guards) <= limit - most_guards)
    return np.asarray(~kept, bool)


def _choose_pairs(rows: _Rows, forms: _Hashes, count: int) -> list[int]:
    """The rows of `count` held-out pairs.

    Only texts that occur once in all sources can be in one: a query that two documents answer would have one
    of them judged wrong, and a text met elsewhere would leak into training.
    """
    known, counts = np.unique(forms, return_counts=True)
    once = set(known[counts == 1].tolist())
    # The ticket mixes both sides. The query's own would take all low tickets of queries, and leave none of
    # these queries for the held-out texts.
    tickets = [
        (int(rows.forms[query] ^ rows.forms[document]), query, document)
        for query, document in rows.pairs.values()
        if int(rows.forms[query]) in once and int(rows.forms[document]) in once
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


def _write(rows: _Rows, spools: Sequence[Spool], settings: Prepare, folder: Path) -> dict[str, Any]:
    shards = _ShardWriter(folder, settings.shard_rows)
    held_out: list[pa.Table] = []
    paired: dict[int, str] = {}
    counts = _Counts()
    kinds: Counter[str] = Counter()
    characters = done = 0
    with progress("texts: writing", len(rows.fates)) as bar:
        for spool in spools:
            for batch in spool.batches(["text", "kind", "source", "rejected"]):
                fate = rows.fates[done : done + batch.num_rows]
                counts.add(spool.source, batch, fate)
                table = pa.Table.from_batches([batch.select(["text", "kind", "source"])])
                training = table.filter(fate == Fate.KEPT)
                shards.add(training)
                kinds.update(_value_counts(training["kind"]))
                characters += pc.sum(pc.utf8_length(training["text"])).as_py() or 0
                held_out.append(table.filter(fate == Fate.HELD_OUT))
                in_pairs = np.flatnonzero(fate == Fate.HELD_OUT_PAIR)
                texts = table["text"].take(in_pairs).to_pylist()
                paired.update(zip((done + in_pairs).tolist(), texts, strict=True))
                done += batch.num_rows
                bar.advance(batch.num_rows)
    # By ticket, that is in random order: the first n held-out texts are a uniform sample too.
    order = np.argsort(rows.forms[rows.fates == Fate.HELD_OUT])
    shard_facts = shards.close()
    num_rows = sum(file["rows"] for file in shard_facts)
    return {
        "shards": shard_facts,
        "held_out": write_shard(folder / HELD_OUT, _plain(held_out).take(order)),
        "held_out_pairs": _write_pairs(rows, paired, folder / HELD_OUT_PAIRS) if paired else None,
        "rows": num_rows,
        "kinds": {kind: kinds[kind] for kind in ("query", "document")},
        "mean_characters": round(characters / num_rows, 1),
        "sources": counts.facts(),
    }


class _Counts:
    """What became of the rows of each source."""

    def __init__(self) -> None:
        self._read: Counter[str] = Counter()
        self._fates: Counter[tuple[str, int]] = Counter()
        self._rejected: Counter[tuple[str, str]] = Counter()
        self._entries: dict[str, TextSource] = {}

    def add(self, source: TextSource, batch: pa.RecordBatch, fates: _Fates) -> None:
        """Counts the rows of `batch`, which come from the entry `source`, with their fates."""
        names, codes = batch["source"].dictionary.to_pylist(), batch["source"].indices.to_numpy()
        for code, name in enumerate(names):
            if not (of_name := codes == code).any():
                continue
            self._entries.setdefault(name, source)
            self._read[name] += int(of_name.sum())
            for fate, count in zip(*np.unique(fates[of_name], return_counts=True), strict=True):
                self._fates[name, int(fate)] += int(count)
            for reason, count in _value_counts(batch["rejected"].filter(pa.array(of_name))).items():
                self._rejected[name, reason] += count

    def facts(self) -> dict[str, dict[str, Any]]:
        """Per source: `read` is the sum of all the other numbers. `entry` names the one that calls its rows so."""
        counts = {}
        for name, num_read in self._read.items():
            rejected = {reason: count for (of, reason), count in self._rejected.items() if of == name}
            for fate, reason in _REASONS.items():
                if self._fates[name, fate]:
                    rejected[reason] = self._fates[name, fate]
            entry = self._entries[name]
            counts[name] = {
                "read": num_read,
                "kept": self._fates[name, Fate.KEPT],
                "held_out": self._fates[name, Fate.HELD_OUT],
                "held_out_pairs": self._fates[name, Fate.HELD_OUT_PAIR],
                "over_limit": self._fates[name, Fate.OVER_LIMIT],
                "rejected": rejected,
                **({"guard": True} if entry.guard else {}),
                **({"entry": name_of(entry)} if name_of(entry) != name else {}),
            }
        return counts


def _value_counts(column: Any) -> dict[str, int]:
    """How often each value is there; nulls are not counted."""
    column = column.drop_null()
    return {each["values"]: each["counts"] for each in column.value_counts().to_pylist()}


def _plain(tables: Sequence[pa.Table]) -> pa.Table:
    """One table without a trace of how it was cut, so that the same rows make the same file."""
    plain = pa.schema([pa.field(name, pa.string()) for name in tables[0].column_names])
    return pa.concat_tables([table.cast(plain) for table in tables]).combine_chunks()


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
        table = _plain(self._pending)
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
