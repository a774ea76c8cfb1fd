"""A sample of the training texts, without the texts stage: each source is read once, far enough, and nothing is kept.

Which texts win is a lottery of hashes, as in `prepare`: the order of the rows and the machine do not matter, only
`prepare.seed`. Where the run folder holds finished texts of this recipe, the sample is drawn from those.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leaf.encoder import Role, Vectors
from leaf.errors import LeafError
from leaf.progress import say
from leaf.recipe import Prepare, TextSource
from leaf.texts.shards import read_shard
from leaf.texts.sources import name_of, read
from leaf.texts.spool import rejection
from leaf.vector_files import read_vectors

#: Characters read of one source before the rest of it is taken to be like its beginning. A source on this machine is
#: read at some 40 M characters a second, one on the hub as fast as it is sent.
LOCAL_CHARACTERS, HUB_CHARACTERS = 1 << 28, 1 << 24


class Place(NamedTuple):
    """Where a finished text is: file of its shard, and of its vectors, and row."""

    file: str
    row: int


@dataclass(frozen=True)
class TextSample:
    """Texts as the recipe would train on them: in the proportions of its sources."""

    texts: list[str]
    kinds: list[Role]
    num_training: int
    """Texts that the recipe will train on, as far as reading could tell: repeats are not known before the stage."""
    pairs: list[tuple[str, str]] = field(default_factory=list)
    """(query, document) that answer each other, none of whose texts is in the sample."""
    notes: list[str] = field(default_factory=list)

    def of(self, kind: Role) -> list[str]:
        """The texts of one kind, in order."""
        return [text for text, each in zip(self.texts, self.kinds, strict=True) if each == kind]


def from_sources(sources: Sequence[TextSource], settings: Prepare, num_texts: int, num_pairs: int) -> TextSample:
    """A uniform sample of `num_texts` texts (all, where there are fewer) and at most `num_pairs` pairs.

    Raises `LeafError` as reading does, for an unreachable hub, a missing column or file, and where no text is usable.
    """
    drawn = [_draw(source, settings, num_texts, num_pairs) for source in sources]
    if not any(source.rows for source in drawn):
        raise LeafError(
            f"empty corpus: none of the {sum(source.read for source in drawn):,} rows that were read is a usable text; "
            "check that `column` is right"
        )
    total = sum(source.rows for source in drawn)
    # In the sources' proportions; of one that has too few, all.
    winners: dict[bytes, tuple[str, Role]] = {}
    for source in drawn:
        for ticket, row in sorted(source.winners.items())[: round(num_texts * source.rows / total)]:
            winners.setdefault(ticket, row)
    pairs = sorted(pair for source in drawn for pair in source.pairs)[:num_pairs]
    apart = {text for _, query, document in pairs for text in (query, document)}
    rows = [row for _, row in sorted(winners.items()) if row[0] not in apart]
    available = max(total - settings.held_out_of(total) - 2 * settings.held_out_pairs, 1)
    return TextSample(
        [text for text, _ in rows],
        [kind for _, kind in rows],
        min(available, settings.limit or available),
        [(query, document) for _, query, document in pairs],
        [note for source in drawn for note in source.notes],
    )


def from_shards(folder: Path, manifest: Mapping[str, Any], num_texts: int, seed: int) -> tuple[TextSample, list[Place]]:
    """A uniform sample of the finished training texts in `folder`, in random order, and where each of them is."""
    shards = manifest["shards"]
    total = sum(shard["rows"] for shard in shards)
    chosen = np.random.default_rng(seed).permutation(total)[:num_texts]
    rows: list[Any] = [None] * len(chosen)
    first = 0
    for shard in shards:
        held = read_shard(folder / shard["file"])
        for position in np.flatnonzero((chosen >= first) & (chosen < first + shard["rows"])):
            row = int(chosen[position]) - first
            rows[position] = held.texts[row], held.kinds[row], Place(shard["file"], row)
        first += shard["rows"]
    texts, kinds, places = zip(*rows, strict=True)
    return TextSample(list(texts), list(kinds), total), list(places)


def cached_vectors(embeddings: Path, places: Sequence[Place], dim: int) -> Vectors:
    """The teacher's vectors of the texts at `places`, float32 `[n, dim]`, from a finished cache."""
    vectors = np.empty((len(places), dim), np.float32)
    for file in sorted({place.file for place in places}):
        wanted = [(position, place.row) for position, place in enumerate(places) if place.file == file]
        first = 0
        for group in read_vectors(embeddings / file):
            for position, row in wanted:
                if first <= row < first + len(group):
                    vectors[position] = group[row - first]
            first += len(group)
    return vectors


@dataclass
class _Drawn:
    """One source after reading."""

    rows: int
    """Usable rows that it gives to the recipe."""
    read: int
    winners: dict[bytes, tuple[str, Role]]
    """The texts with the lowest tickets, by ticket."""
    pairs: list[tuple[bytes, str, str]]
    notes: list[str]


def _draw(source: TextSource, settings: Prepare, num_texts: int, num_pairs: int) -> _Drawn:
    on_hub = source.source.startswith("hub:") and not Path(source.source.removeprefix("hub:")).is_dir()
    budget = HUB_CHARACTERS if on_hub else LOCAL_CHARACTERS
    texts, pairs = _Lottery(num_texts, settings.seed), _Lottery(num_pairs, settings.seed)
    usable = count = characters = 0
    sides: dict[str, dict[Role, str]] = {}
    rejected: Counter[str] = Counter()
    ended = True
    # `rows` would make reading count the whole source first; the lottery is a uniform sample of it anyway.
    for row in read(source.model_copy(update={"rows": None}), settings.seed):
        count += 1
        if (reason := rejection(row.text, settings.max_characters)) is not None:
            rejected[reason] += 1
            continue
        assert isinstance(row.text, str)
        usable += 1
        characters += len(row.text)
        texts.enter(row.text, (row.text, row.kind))
        if row.pair is not None and num_pairs:
            both = sides.setdefault(row.pair, {})
            both[row.kind] = row.text
            if len(both) == 2:
                del sides[row.pair]
                pairs.enter(row.pair, (both["query"], both["document"]))
        if characters >= budget:
            ended = False
            break
    if count == 0:
        where = f" where {source.where}" if source.where else ""
        raise LeafError(f"texts '{source.source}' has no rows{where}; correct it or leave it out")
    name, notes = name_of(source), []
    if usable < count / 2:
        worst, lost = rejected.most_common(1)[0]
        notes.append(f"{name}: {count - usable:,} of {count:,} rows are no usable text ({worst}: {lost:,})")
    if not ended:
        share = "" if source.rows else "; its share of the texts is not known, and taken to be what was read"
        notes.append(f"{name}: only its first {count:,} rows were read{share}")
    expected = min(usable, source.rows or usable) if ended else source.rows or usable
    say(f"texts: {name}: {count:,} rows read")
    return _Drawn(expected, count, texts.winners, [(ticket, *pair) for ticket, pair in pairs.winners.items()], notes)


class _Lottery:
    """Keeps the `size` entries whose keys have the lowest keyed hashes. Equal keys are one entry, the first."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._key = size, seed.to_bytes(16, "little", signed=True)
        self._entries: dict[bytes, Any] = {}
        self._bar: bytes | None = None
        """Tickets from here on have lost already."""

    def enter(self, key: str, entry: Any) -> None:
        ticket = hashlib.blake2b(key.encode(), digest_size=8, key=self._key).digest()
        if self._bar is not None and ticket >= self._bar:
            return
        self._entries.setdefault(ticket, entry)
        if len(self._entries) > 2 * self._size:
            self._prune()

    @property
    def winners(self) -> dict[bytes, Any]:
        """The winning entries by ticket."""
        self._prune()
        return self._entries

    def _prune(self) -> None:
        kept = heapq.nsmallest(self._size, self._entries)
        if len(kept) < len(self._entries):
            self._bar = kept[-1] if kept else b""
            self._entries = {ticket: self._entries[ticket] for ticket in kept}
