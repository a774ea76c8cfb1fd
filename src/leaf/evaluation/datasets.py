"""Evaluation sets on disk: BEIR folders (retrieval) and tables (everything else), checked row by row.

    <name>/corpus.jsonl  queries.jsonl  qrels/test.tsv    retrieval
    <name>/test.tsv      sentence1, sentence2, score      sts
                         sentence1, sentence2, label      pair classification
                         text, label                      clustering, or with train.tsv beside it classification

A table may as well be a file of its own, `<name>.tsv`, and all but `qrels` may be gzipped. A set is either loaded whole
or refused with the file, the line and what was expected there; nothing is repaired.

Which texts of a classification or clustering set count is drawn here, since it decides what has to be encoded: as mteb
draws them, so that its numbers are ours.
"""

import gzip
import hashlib
import json
import math
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np

from leaf.errors import LeafError
from leaf.evaluation.records import Task

QRELS_HEADER = ("query-id", "corpus-id", "score")
STS_HEADER = ("sentence1", "sentence2", "score")
PAIR_HEADER = ("sentence1", "sentence2", "label")
LABEL_HEADER = ("text", "label")
#: File names that say which part of a set they are, so that the folder is what names the set.
SPLITS = ("test", "dev", "train")
TABLES = (".tsv", ".tsv.gz")

#: mteb's: the seed of everything drawn; the classifiers of a set, and the training texts of a label each is fitted on.
SEED, NUM_CLASSIFIERS, TEXTS_PER_LABEL = 42, 10, 8
#: Texts of a clustering set that are encoded and clustered: as many as mteb draws for one clustering. Fewer cost less
#: and lift the score, as they do for random vectors: with all-MiniLM-L6-v2 from 0.520 on all 6,000 arXiv titles to
#: 0.528 on 2,048 of them, from 0.422 on all 7,896 newsgroup subjects to 0.433 (means of ten seeds, each ± 0.002).
MAX_CLUSTERED_TEXTS = 16_384

#: The parts of a set that are encoded apart. Only queries are encoded with a query's prompt.
Side: TypeAlias = Literal["queries", "documents", "sentences", "train", "texts"]


@dataclass(frozen=True, eq=False)
class RetrievalSet:
    """Queries, documents, and how relevant each judged document is to a query."""

    task: ClassVar[Task] = "retrieval"

    name: str
    queries: Mapping[str, str]
    """Query id → text. Only queries with at least one relevant document: the others have no nDCG."""
    documents: Mapping[str, str]
    """Document id → title and text."""
    qrels: Mapping[str, Mapping[str, float]]
    """Query id → document id → relevance; more than 0 is relevant, 0 and less is judged and not relevant."""
    num_left_out: int = 0
    """Queries without a relevant document, which are not scored."""

    @property
    def sides(self) -> Mapping[Side, Sequence[str]]:
        """The texts to encode, by side."""
        return {"queries": list(self.queries.values()), "documents": list(self.documents.values())}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides a score. Compression and the name do not, so they do not count."""
        return _digest(chain(self.queries.items(), self.documents.items(), self.qrels.items()))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the score should know, each with its count; usually empty."""
        relevant = [(q, d) for q, judged in self.qrels.items() for d, score in judged.items() if score > 0]
        facts = {
            "queries without a relevant document, not scored": self.num_left_out,
            # trec_eval and BEIR leave them in the ideal ranking too, so published numbers are comparable.
            "relevant documents outside the corpus, counted as missed": sum(
                d not in self.documents for _, d in relevant
            ),
            "relevant documents with the id of their query, dropped as its copy": sum(
                q == d and d in self.documents for q, d in relevant
            ),
        }
        return tuple(f"{fact}: {count}" for fact, count in facts.items() if count)


@dataclass(frozen=True, eq=False)
class StsSet:
    """Pairs of sentences and how similar people find them."""

    task: ClassVar[Task] = "sts"

    name: str
    pairs: tuple[tuple[str, str], ...]
    scores: tuple[float, ...]
    """One per pair, on any scale: only their order counts."""

    @property
    def sides(self) -> Mapping[Side, Sequence[str]]:
        """The texts to encode: all first sentences, then all second ones."""
        return {"sentences": _both_sides(self.pairs)}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of pairs and scores."""
        return _digest(zip(self.pairs, self.scores, strict=True))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the score should know."""
        return ()


@dataclass(frozen=True, eq=False)
class PairSet:
    """Pairs of sentences, and whether they mean the same."""

    task: ClassVar[Task] = "pair_classification"

    name: str
    pairs: tuple[tuple[str, str], ...]
    labels: tuple[int, ...]
    """One per pair: 1 where both mean the same, else 0."""

    @property
    def sides(self) -> Mapping[Side, Sequence[str]]:
        """The texts to encode: all first sentences, then all second ones."""
        return {"sentences": _both_sides(self.pairs)}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of pairs and labels."""
        return _digest(zip(self.pairs, self.labels, strict=True))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the score should know."""
        return ()


@dataclass(frozen=True, eq=False)
class ClassificationSet:
    """Labelled texts to fit classifiers on, and others to try them on."""

    task: ClassVar[Task] = "classification"

    name: str
    train: tuple[tuple[str, str], ...]
    """(text, label); every label of `test` is among them."""
    test: tuple[tuple[str, str], ...]
    """(text, label)."""

    @cached_property
    def samples(self) -> tuple[tuple[int, ...], ...]:
        """Rows of `train` that each of the classifiers is fitted on: of every label the first few after a shuffle."""
        labels = [label for _, label in self.train]
        rows = list(range(len(labels)))
        samples = []
        for _ in range(NUM_CLASSIFIERS):
            # Always the same shuffle, of what the last one left: mteb's samples depend on it.
            np.random.RandomState(SEED).shuffle(rows)
            seen: Counter[str] = Counter()
            sample = []
            for row in rows:
                seen[labels[row]] += 1
                if seen[labels[row]] <= TEXTS_PER_LABEL:
                    sample.append(row)
            samples.append(tuple(sample))
        return tuple(samples)

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Rows of `train` that any classifier is fitted on, ascending: the only ones that need a vector."""
        return tuple(sorted(set(chain.from_iterable(self.samples))))

    @property
    def sides(self) -> Mapping[Side, Sequence[str]]:
        """The texts to encode: `train` those of `rows`, `texts` the test texts."""
        return {"train": [self.train[row][0] for row in self.rows], "texts": [text for text, _ in self.test]}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of both parts, texts and labels."""
        return _digest((self.train, self.test))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the score should know, with its count; usually empty."""
        few = sum(count < TEXTS_PER_LABEL for count in Counter(label for _, label in self.train).values())
        return (f"labels with fewer than {TEXTS_PER_LABEL} training texts: {few}",) if few else ()


@dataclass(frozen=True, eq=False)
class ClusteringSet:
    """Texts, and the groups that people put them in."""

    task: ClassVar[Task] = "clustering"

    name: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    """One per text."""

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """Which texts are clustered, in the order they were drawn: no more than `MAX_CLUSTERED_TEXTS`."""
        return tuple(random.Random(SEED).sample(range(len(self.texts)), min(len(self.texts), MAX_CLUSTERED_TEXTS)))

    @property
    def sides(self) -> Mapping[Side, Sequence[str]]:
        """The texts to encode: those of `rows`."""
        return {"texts": [self.texts[row] for row in self.rows]}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of texts and labels."""
        return _digest(zip(self.texts, self.labels, strict=True))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the score should know, with its count; empty for small sets."""
        left_out = len(self.texts) - len(self.rows)
        return (f"texts beyond a random {MAX_CLUSTERED_TEXTS}, not clustered: {left_out}",) if left_out else ()


Dataset: TypeAlias = RetrievalSet | StsSet | ClassificationSet | ClusteringSet | PairSet

#: What tells a folder that holds a set from one that holds folders of sets.
BEIR_PARTS = ("corpus.jsonl", "corpus.jsonl.gz", "queries.jsonl", "queries.jsonl.gz", "qrels")
LAYOUT = "corpus.jsonl[.gz], queries.jsonl[.gz] and qrels/test.tsv for retrieval, else test.tsv[.gz]"


def load(path: str | Path) -> Dataset:
    """Reads a set: a BEIR folder, a folder with `test.tsv[.gz]`, or a `*.tsv[.gz]` file, whose header says what it is.

    Anything malformed is a `LeafError`. A set is named after its folder, or after its file where that is not a split's.
    """
    path = Path(path)
    if path.is_dir():
        return _load_retrieval(path) if _holds(path, BEIR_PARTS) else _load_table(_find(path, "test.tsv"))
    if not path.is_file():
        raise LeafError(f"no evaluation set at {path}: give a folder or a .tsv[.gz] file")
    if not path.name.endswith(TABLES):
        raise LeafError(f"{path} is not an evaluation set: give a folder or a .tsv[.gz] file")
    return _load_table(path)


def load_all(path: str | Path) -> list[Dataset]:
    """The set at `path`, or every set in the folders below it, by task and name.

    Raises `LeafError` where there is none, where one is malformed, and where two have the same name, which their scores
    are filed under.
    """
    found: dict[str, tuple[Path, Dataset]] = {}
    for place in _places(Path(path)):
        dataset = load(place)
        other, _ = found.setdefault(dataset.name, (place, dataset))
        if other != place:
            raise LeafError(f"two sets are called '{dataset.name}', {other} and {place}: rename one")
    if not found:
        raise LeafError(f"no evaluation set below {path}: a set is a folder with {LAYOUT}, or a .tsv[.gz] file")
    order = get_args(Task)
    return sorted((dataset for _, dataset in found.values()), key=lambda each: (order.index(each.task), each.name))


def load_texts(folder: str | Path) -> tuple[list[str], list[str]]:
    """Queries and documents of a BEIR folder, all of them: its judgements are not read, and may be missing."""
    folder = Path(folder)
    queries, documents = _find(folder, "queries.jsonl"), _find(folder, "corpus.jsonl")
    return list(_texts(queries, ("text",)).values()), list(_texts(documents, ("title", "text")).values())


def _places(path: Path) -> Iterator[Path]:
    """Where the sets are. Below a set none is looked for, nor in hidden folders."""
    splits = [split + ending for split in SPLITS for ending in TABLES]
    if not path.is_dir() or _holds(path, (*BEIR_PARTS, *splits)):
        yield path
        return
    for each in sorted(path.iterdir()):
        if not each.name.startswith(".") and (each.is_dir() or each.name.endswith(TABLES)):
            yield from _places(each)


def _holds(folder: Path, names: Iterable[str]) -> bool:
    return any((folder / name).exists() for name in names)


def _load_retrieval(folder: Path) -> RetrievalSet:
    documents = _texts(_find(folder, "corpus.jsonl"), ("title", "text"))
    texts = _texts(_find(folder, "queries.jsonl"), ("text",))
    qrels_path = folder / "qrels" / "test.tsv"
    qrels: dict[str, dict[str, float]] = {}
    for where, (query, document, score) in _table(qrels_path, QRELS_HEADER):
        if query not in texts:
            raise LeafError(f"{where}: query '{query}' is judged but not in queries.jsonl")
        relevance = _number(score, where)
        if qrels.setdefault(query, {}).setdefault(document, relevance) != relevance:
            raise LeafError(f"{where}: document '{document}' is judged twice, and differently, for query '{query}'")

    qrels = {query: judged for query, judged in qrels.items() if max(judged.values()) > 0}
    if not qrels:
        raise LeafError(f"{qrels_path} names no relevant document: expected scores above 0")
    # A few published sets judge documents that they do not hold (see `notes`), but never all of them.
    if not any(document in documents for judged in qrels.values() for document in judged):
        example = next(iter(next(iter(qrels.values()))))
        raise LeafError(f"{qrels_path}: no judged document (such as '{example}') is in the corpus of {folder}")
    queries = {query: text for query, text in texts.items() if query in qrels}
    return RetrievalSet(folder.resolve().name, queries, documents, qrels, len(texts) - len(queries))


def _load_table(path: Path) -> Dataset:
    where, line = next(_lines(path), (str(path), ""))
    header = tuple(line.split("\t"))
    loaders: Mapping[tuple[str, ...], Callable[[Path], Dataset]] = {
        STS_HEADER: _load_sts,
        PAIR_HEADER: _load_pairs,
        LABEL_HEADER: _load_labelled,
    }
    if header not in loaders:
        expected = " or ".join(", ".join(names) for names in loaders)
        raise LeafError(f"{where}: the header is {list(header)}, expected tab-separated {expected}")
    return loaders[header](path)


def _load_sts(path: Path) -> StsSet:
    pairs, scores = [], []
    for where, (first, second, score) in _table(path, STS_HEADER):
        pairs.append((_filled(first, where, "sentence"), _filled(second, where, "sentence")))
        scores.append(_number(score, where))
    if len(set(scores)) < 2:
        raise LeafError(f"{path}: all {len(scores)} scores are equal, so there is no order to agree with")
    return StsSet(_name(path), tuple(pairs), tuple(scores))


def _load_pairs(path: Path) -> PairSet:
    pairs, labels = [], []
    for where, (first, second, label) in _table(path, PAIR_HEADER):
        pairs.append((_filled(first, where, "sentence"), _filled(second, where, "sentence")))
        if label not in ("0", "1"):
            raise LeafError(f"{where}: the label is '{label}', expected 1 for the same meaning and 0 for another")
        labels.append(int(label))
    if len(set(labels)) < 2:
        raise LeafError(f"{path}: all {len(labels)} labels are {labels[0]}, so there is nothing to tell apart")
    return PairSet(_name(path), tuple(pairs), tuple(labels))


def _load_labelled(path: Path) -> ClassificationSet | ClusteringSet:
    """A classification set where training texts lie beside the table, else a clustering set."""
    split = _stem(path)
    if split == "train":
        raise LeafError(f"{path} holds the training texts of a set: give its test.tsv[.gz], or the folder of both")
    test = _labelled(path)
    if split not in SPLITS or not _holds(path.parent, ("train.tsv", "train.tsv.gz")):
        texts, labels = zip(*(row for _, row in test), strict=True)
        return ClusteringSet(_name(path), texts, labels)
    train_path = _find(path.parent, "train.tsv")
    train = tuple(row for _, row in _labelled(train_path))
    known = {label for _, label in train}
    for where, (_, label) in test:
        if label not in known:
            raise LeafError(f"{where}: no text of {train_path.name} has the label '{label}', so none could be right")
    return ClassificationSet(_name(path), train, tuple(row for _, row in test))


def _labelled(path: Path) -> list[tuple[str, tuple[str, str]]]:
    """(place for messages, (text, label)) of each row."""
    rows = [
        (where, (_filled(text, where, "text"), _filled(label, where, "label")))
        for where, (text, label) in _table(path, LABEL_HEADER)
    ]
    if len({label for _, (_, label) in rows}) < 2:
        raise LeafError(f"{path}: all {len(rows)} labels are '{rows[0][1][1]}', so there is nothing to tell apart")
    return rows


def _filled(cell: str, where: str, what: str) -> str:
    if not cell.strip():
        raise LeafError(f"{where}: an empty {what}, expected text")
    return cell


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".tsv")


def _name(path: Path) -> str:
    return path.resolve().parent.name if _stem(path) in SPLITS else _stem(path)


def _both_sides(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [pair[position] for position in (0, 1) for pair in pairs]


def _find(folder: Path, name: str) -> Path:
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if not found:
        raise LeafError(f"{folder} has no {name}[.gz]: a set is a folder with {LAYOUT}")
    if len(found) > 1:
        raise LeafError(f"{folder} has both {name} and {name}.gz: delete the one that is out of date")
    return found[0]


def _texts(path: Path, parts: tuple[str, ...]) -> dict[str, str]:
    """Id → text of a `.jsonl` file: its parts with a space between, stripped, as BEIR and mteb join them."""
    texts: dict[str, str] = {}
    for where, line in _lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise LeafError(f"{where}: not valid JSON ({error.msg})") from error
        if not isinstance(row, dict):
            raise LeafError(f"{where}: {line[:40]} is not an object, expected {{'_id': …, 'text': …}}")
        key, *values = (_string(row, field, where) for field in ("_id", *parts))
        if key in texts:
            raise LeafError(f"{where}: the id '{key}' is there twice")
        texts[key] = " ".join(values).strip()
        if not texts[key]:
            raise LeafError(f"{where}: the text of '{key}' is empty; fill it in, or take it out of the set")
    if not texts:
        raise LeafError(f"{path} is empty, expected one JSON object per line")
    return texts


def _string(row: Mapping[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if field == "title" and value is None:
        return ""
    if not isinstance(value, str):
        problem = f"is {value!r}, expected a string" if field in row else "is missing"
        raise LeafError(f"{where}: '{field}' {problem}")
    return value


def _table(path: Path, header: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """(place for messages, cells) of each row below the header. No quoting: a tab always ends a cell."""
    rows = ((where, line.split("\t")) for where, line in _lines(path))
    where, cells = next(rows, (str(path), []))
    if tuple(cells) != header:
        raise LeafError(f"{where}: the header is {cells}, expected tab-separated {', '.join(header)}")
    where = ""
    for where, cells in rows:
        if len(cells) != len(header):
            raise LeafError(f"{where}: {len(cells)} columns, expected {len(header)}: {', '.join(header)}")
        yield where, cells
    if not where:
        raise LeafError(f"{path} has a header and no rows")


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise LeafError(f"{where}: the score is '{text}', expected a number")
    return number


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(`file:line`, text) of every line that is not empty."""
    # newline="\n": a lone carriage return inside a text is no line end.
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8", newline="\n")
            if path.suffix == ".gz"
            else open(path, encoding="utf-8", newline="\n")
        ) as handle:
            for number, line in enumerate(handle, start=1):
                if line := line.rstrip("\r\n"):
                    yield f"{path}:{number}", line
    except FileNotFoundError as error:
        raise LeafError(f"{path} is missing: a BEIR folder holds corpus, queries and qrels/test.tsv") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise LeafError(f"{path} cannot be read: {error}") from error


def _digest(parts: Iterable[object]) -> str:
    content = hashlib.sha256()
    for part in parts:
        content.update(json.dumps(part).encode() + b"\n")
    return content.hexdigest()
