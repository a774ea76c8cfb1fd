"""The leak check: which training texts are in a benchmark, so that its scores measure what was learned, not remembered.

    benchmarks = Benchmarks([("scifact", ["Cells of the liver divide in response to a loss of tissue mass."])])
    benchmarks.leaks(["And yet cells of the liver divide, in response to a loss of tissue mass!"])

A text leaks when it is a benchmark text, or holds a sentence of one:

1. *equal*: its normal form is that of a query or document, by the same rule that finds duplicates (`normal_form`);
2. *contains*: its words, in lower case and without punctuation, contain all words of a sentence of a query or document
   in a row, if the sentence has eight words or more. A text of eight words or more that has no such sentence counts as
   one sentence.

Hashes only find candidates, which are then compared word by word. Every sentence is filed under one window of eight
words, its rarest in all benchmarks, so that a phrase that begins thousands of sentences ("the aim of this study was to
investigate …") costs no thousands of comparisons. What is kept is O(benchmarks): normal forms, and the sentences at 4
bytes a word.
"""

from array import array
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, repeat
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from leaf.errors import LeafError
from leaf.progress import progress
from leaf.texts.forms import normal_form, sentences, words

#: Words from which on a sentence is nobody's by chance, and the length of the windows that are looked up.
MIN_WORDS = 8
#: Leaks that the manifest shows of each benchmark, and how much of their texts.
NUM_EXAMPLES = 3
EXAMPLE_CHARACTERS = 200

#: A name, and the queries and documents.
Benchmark: TypeAlias = tuple[str, Iterable[str]]
_Integers: TypeAlias = npt.NDArray[np.int64]
_Hashes: TypeAlias = npt.NDArray[np.uint64]


class Leak(NamedTuple):
    """A text that is in a benchmark."""

    row: int
    """Its position among the texts asked about."""
    benchmark: str
    how: Literal["equal", "contains"]
    words: str
    """What it shares with the benchmark: all of its own words (equal), or those of a sentence."""


class Benchmarks:
    """The texts of benchmarks, filed so that a training text finds itself among them."""

    def __init__(self, benchmarks: Sequence[Benchmark]) -> None:
        self.names = [name for name, _ in benchmarks]
        self._forms: dict[str, tuple[int, ...]] = {}
        # From 1: 0 is every word that no benchmark has, and the gap between two texts.
        word_ids: dict[str, int] = defaultdict(count(1).__next__)
        ids, lengths, owners = array("i"), array("q"), array("i")
        with progress("texts: filing benchmarks", len(benchmarks)) as bar:
            for number, (_, texts) in enumerate(benchmarks):
                for text in texts:
                    form = normal_form(text)
                    if number not in (known := self._forms.get(form, ())):
                        self._forms[form] = (*known, number)
                    for sentence in _long_sentences(text):
                        ids.extend(map(word_ids.__getitem__, sentence))
                        lengths.append(len(sentence))
                        owners.append(number)
                bar.advance()
        self._word_ids, self._words = word_ids, list(word_ids)
        self._hash = _RollingHash(len(word_ids) + 1)
        self._sentences = _Sentences.file(
            np.asarray(ids, np.int32), np.asarray(lengths, np.int64), np.asarray(owners, np.int64), self._hash
        )

    def leaks(self, texts: Sequence[str]) -> list[Leak]:
        """Every (text, benchmark) that leaks, once, ordered by text; equal where it is both equal and contains."""
        split = [words(text) for text in texts]
        found: dict[tuple[int, int], Leak] = {}
        for row, text in enumerate(texts):
            for number in self._forms.get(normal_form(text), ()):
                found[row, number] = Leak(row, self.names[number], "equal", " ".join(split[row]))
        for row, sentence in self._contained(split):
            number = int(self._sentences.owners[sentence])
            if (row, number) not in found:
                shared = " ".join(self._words[word - 1] for word in self._sentences.words(sentence).tolist())
                found[row, number] = Leak(row, self.names[number], "contains", shared)
        return [found[key] for key in sorted(found)]

    def _contained(self, texts: Iterable[list[str]]) -> Iterator[tuple[int, int]]:
        """(row, number of a sentence) wherever the words of a text contain those of a sentence."""
        row_words: list[str] = []
        ends = []
        for text in texts:
            row_words += text
            row_words.append("")  # no word: a sentence that goes on in the next text is in neither
            ends.append(len(row_words))
        ids = np.fromiter(map(self._word_ids.get, row_words, repeat(0)), np.int32, count=len(row_words))
        for start, sentence in self._sentences.candidates(self._hash.prefixes(ids)):
            expected = self._sentences.words(sentence)
            if np.array_equal(ids[start : start + len(expected)], expected):
                yield bisect_right(ends, start), sentence


def _long_sentences(text: str) -> list[list[str]]:
    """Those of `MIN_WORDS` words or more; where there is none, the whole text if that is so long.

    Where there is one, the whole text adds nothing: who contains the text contains the sentence.
    """
    parts = sentences(text)
    if long := [part for part in parts if len(part) >= MIN_WORDS]:
        return long
    whole = list(chain.from_iterable(parts))
    return [whole] if len(whole) >= MIN_WORDS else []


class _RollingHash:
    """Hashes of any run of words in constant time each: sum over k of v[word k] · r^k, modulo 2^64."""

    BASE = 0x9E3779B97F4A7C15  # any odd number has an inverse modulo 2^64

    def __init__(self, num_words: int) -> None:
        self._values = np.random.default_rng(0).integers(0, 2**64, num_words, dtype=np.uint64)

    def prefixes(self, ids: npt.NDArray[np.int32]) -> "_Prefixes":
        """What the hashes of all runs in `ids` are made from."""
        powers = self._powers(self.BASE, len(ids))
        sums = np.zeros(len(ids) + 1, np.uint64)
        np.cumsum(self._values[ids] * powers, out=sums[1:])
        return _Prefixes(sums, self._powers(pow(self.BASE, -1, 2**64), len(ids)))

    @staticmethod
    def _powers(base: int, count: int) -> _Hashes:
        factors = np.full(count, base, np.uint64)
        factors[:1] = 1
        return np.cumprod(factors, dtype=np.uint64)


@dataclass(frozen=True)
class _Prefixes:
    """Sums up to each word, and r^-k, which makes a hash independent of where the run stands."""

    sums: _Hashes
    inverse_powers: _Hashes

    def __len__(self) -> int:
        return len(self.inverse_powers)

    def hashes(self, starts: _Integers, ends: _Integers) -> _Hashes:
        """The hash of each run of words from `starts` up to `ends`."""
        return (self.sums[ends] - self.sums[starts]) * self.inverse_powers[starts]

    def windows(self) -> _Hashes:
        """The hash of every run of `MIN_WORDS` words, by where it starts."""
        return (self.sums[MIN_WORDS:] - self.sums[:-MIN_WORDS]) * self.inverse_powers[: len(self) - MIN_WORDS + 1]


@dataclass(frozen=True)
class _Sentences:
    """Sentences sorted by the hash of their rarest window."""

    ids: npt.NDArray[np.int32]
    """The words of all sentences, one behind the other."""
    starts: _Integers
    lengths: _Integers
    owners: _Integers
    """The number of the benchmark."""
    hashes: _Hashes
    offsets: _Integers
    """Where the rarest window begins in its sentence."""
    keys: _Hashes
    """The different hashes of rarest windows, sorted."""
    firsts: _Integers
    """The first sentence of each key, and one past the last."""
    seen: npt.NDArray[np.bool_]
    """By the highest bits of a hash, whether there is a key with them: spares most windows the search."""

    @classmethod
    def file(
        cls, ids: npt.NDArray[np.int32], lengths: _Integers, owners: _Integers, hashing: _RollingHash
    ) -> "_Sentences":
        """Sorts the sentences; one that a benchmark has several times is filed once."""
        starts = np.cumsum(lengths) - lengths
        prefixes = hashing.prefixes(ids)
        hashes = prefixes.hashes(starts, starts + lengths)
        once = np.unique(hashes + owners.astype(np.uint64), return_index=True)[1]
        starts, lengths, owners, hashes = starts[once], lengths[once], owners[once], hashes[once]

        num_windows = lengths - MIN_WORDS + 1
        of_sentence = np.repeat(np.arange(len(lengths)), num_windows)
        first_window = np.cumsum(num_windows) - num_windows
        offset = np.arange(len(of_sentence)) - first_window[of_sentence]
        windows = prefixes.windows()[starts[of_sentence] + offset] if len(of_sentence) else np.empty(0, np.uint64)
        _, inverse, counts = np.unique(windows, return_inverse=True, return_counts=True)
        # The least of (how often, where) is the rarest window, and the first of several.
        rarest = (counts[inverse] << 32) | offset
        offsets = np.minimum.reduceat(rarest, first_window) & 0xFFFFFFFF if len(lengths) else first_window
        anchors = windows[first_window + offsets]

        order = np.argsort(anchors, kind="stable")
        keys, firsts = np.unique(anchors[order], return_index=True)
        bits = max(16, len(keys).bit_length() + 5)
        seen = np.zeros(1 << bits, bool)
        seen[keys >> np.uint64(64 - bits)] = True
        return cls(
            ids, starts[order], lengths[order], owners[order], hashes[order], offsets[order],
            keys, np.append(firsts, len(order)), seen,
        )  # fmt: skip

    def words(self, sentence: int) -> npt.NDArray[np.int32]:
        """The ids of a sentence's words."""
        start = self.starts[sentence]
        return self.ids[start : start + self.lengths[sentence]]

    def candidates(self, texts: _Prefixes) -> Iterable[tuple[int, int]]:
        """(position, sentence) wherever a run of words has the hash of a sentence."""
        if len(texts) < MIN_WORDS or not len(self.keys):
            return []
        windows = texts.windows()
        shift = np.uint64(64 - (len(self.seen).bit_length() - 1))
        hits = np.flatnonzero(self.seen[windows >> shift])
        key = np.minimum(np.searchsorted(self.keys, windows[hits]), len(self.keys) - 1)
        found = self.keys[key] == windows[hits]
        hits, key = hits[found], key[found]
        counts = self.firsts[key + 1] - self.firsts[key]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        sentence = np.repeat(self.firsts[key], counts) + within
        start = np.repeat(hits, counts) - self.offsets[sentence]
        end = start + self.lengths[sentence]
        inside = (start >= 0) & (end <= len(texts))
        start, end, sentence = start[inside], end[inside], sentence[inside]
        same = texts.hashes(start, end) == self.hashes[sentence]
        return zip(start[same].tolist(), sentence[same].tolist(), strict=True)


class LeakCheck:
    """Finds the leaks among texts and counts them by benchmark and by source, with a few examples."""

    def __init__(self, benchmarks: Sequence[Benchmark]) -> None:
        self._filed = Benchmarks(benchmarks)
        self._num_texts = 0
        self._benchmarks: dict[str, Counter[str]] = {name: Counter() for name in self._filed.names}
        self._sources: dict[str, Counter[str]] = {}
        self._examples: dict[str, list[dict[str, str]]] = {name: [] for name in self._filed.names}

    def __call__(self, texts: Sequence[str], sources: Sequence[str]) -> set[int]:
        """The positions of the texts that leak; `sources` names where each text came from."""
        hows: dict[int, set[str]] = {}
        for leak in self._filed.leaks(texts):
            hows.setdefault(leak.row, set()).add(leak.how)
            self._benchmarks[leak.benchmark][leak.how] += 1
            if len(examples := self._examples[leak.benchmark]) < NUM_EXAMPLES:
                text, shared = _cut(texts[leak.row]), _cut(leak.words)
                examples.append({"source": sources[leak.row], "how": leak.how, "text": text, "words": shared})
        for row, found in hows.items():
            # Once in its source, however many benchmarks it is in.
            self._sources.setdefault(sources[row], Counter())["equal" if "equal" in found else "contains"] += 1
        self._num_texts += len(hows)
        return set(hows)

    def facts(self) -> dict[str, Any]:
        """For the manifest: `sources` add up to `texts`; `benchmarks`, which may share texts, do not."""
        return {
            "texts": self._num_texts,
            "sources": {name: _both(counts) for name, counts in self._sources.items()},
            "benchmarks": {
                name: {**_both(counts), "examples": self._examples[name]} for name, counts in self._benchmarks.items()
            },
        }

    def refuse(self) -> None:
        """Raises `LeafError` with the counts and an example if there was a leak."""
        if not self._num_texts:
            return
        said = {"equal": "equal to a text", "contains": "with a sentence"}
        counts = ", ".join(
            f"{number:,} {said[how]} of {name}"
            for name, each in self._benchmarks.items()
            for how, number in sorted(each.items(), reverse=True)
        )
        example = next(examples[0] for examples in self._examples.values() if examples)
        raise LeafError(
            f"training texts in a benchmark: {self._num_texts:,} ({counts}), such as '{example['text']}' from "
            f"{example['source']}; take them out of their sources, or drop them with prepare.leaks = 'drop'"
        )


def _both(counts: Counter[str]) -> dict[str, int]:
    return {how: counts[how] for how in ("equal", "contains")}


def _cut(text: str) -> str:
    return text if len(text) <= EXAMPLE_CHARACTERS else text[: EXAMPLE_CHARACTERS - 1] + "…"
