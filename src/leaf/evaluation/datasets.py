"""Evaluation sets on disk: BEIR folders (retrieval) and tables of sentence pairs (STS), checked row by row.

A set is either loaded whole or refused with the file, the line and what was expected there; nothing is
repaired.
"""

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from leaf.errors import LeafError

QRELS_HEADER = ("query-id", "corpus-id", "score")
STS_HEADER = ("sentence1", "sentence2", "score")
#: File names that say which part of a set they are, so that the folder is what names the set.
SPLITS = ("test", "dev", "train")


@dataclass(frozen=True, eq=False)
class RetrievalSet:
    """Queries, documents, and how relevant each judged document is to a query."""

    name: str
    queries: Mapping[str, str]
    """Query id → text. Only queries with at least one relevant document: the others have no nDCG."""
    documents: Mapping[str, str]
    """Document id → title and text."""
    qrels: Mapping[str, Mapping[str, float]]
    """Query id → document id → relevance; more than 0 is relevant, 0 and less is judged and not relevant."""
    num_left_out: int = 0
    """Queries without a relevant document, which are not scored."""

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

    name: str
    pairs: tuple[tuple[str, str], ...]
    scores: tuple[float, ...]
    """One per pair, on any scale: only their order counts."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of pairs and scores."""
        return _digest(zip(self.pairs, self.scores, strict=True))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the score should know."""
        return ()


Dataset: TypeAlias = RetrievalSet | StsSet


def load(path: str | Path) -> Dataset:
    """Reads a BEIR folder or a `*.tsv[.gz]` table of sentence pairs; anything malformed is a `LeafError`."""
    path = Path(path)
    if path.is_dir():
        return _load_retrieval(path)
    if not path.is_file():
        raise LeafError(f"no evaluation set at {path}: give a BEIR folder or a .tsv[.gz] file")
    if not path.name.endswith((".tsv", ".tsv.gz")):
        raise LeafError(f"{path} is not an evaluation set: give a BEIR folder or a .tsv[.gz] file")
    return _load_sts(path)


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


def _load_sts(path: Path) -> StsSet:
    pairs, scores = [], []
    for where, (first, second, score) in _table(path, STS_HEADER):
        if not (first.strip() and second.strip()):
            raise LeafError(f"{where}: an empty sentence, expected text")
        pairs.append((first, second))
        scores.append(_number(score, where))
    if len(set(scores)) < 2:
        raise LeafError(f"{path}: all {len(scores)} scores are equal, so there is no order to agree with")
    stem = path.name.partition(".")[0]
    return StsSet(path.resolve().parent.name if stem in SPLITS else stem, tuple(pairs), tuple(scores))


def _find(folder: Path, name: str) -> Path:
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if not found:
        raise LeafError(
            f"{folder} has no {name}[.gz]: a BEIR folder holds corpus.jsonl[.gz], queries.jsonl[.gz] and qrels/test.tsv"
        )
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
        reason = "; classification and clustering sets come in a later version" if header == STS_HEADER else ""
        raise LeafError(f"{where}: the header is {cells}, expected tab-separated {', '.join(header)}{reason}")
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
