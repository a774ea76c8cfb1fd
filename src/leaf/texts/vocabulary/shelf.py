"""The definitions that were bought: all of them in a journal on disk, here which words have them and what they took."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from leaf.files import digest, quick_digest
from leaf.service import Budget
from leaf.texts.vocabulary.chat import Usage
from leaf.texts.vocabulary.journal import Journal


class Reject(NamedTuple):
    """Why a word has no definition."""

    reason: str
    answer: str
    """What the model said, as far as it is kept."""


class Shelf:
    """Words that are finished, over all runs of one journal, with what they took.

    `prices` are US dollars for a token that goes in and one that comes out. Without them nothing has a cost.
    """

    def __init__(self, journal: Journal, prices: tuple[float, float] | None = None, max_cost: float | None = None):
        self._journal, self._prices, self._lock = journal, prices, threading.Lock()
        self.finished: dict[str, int] = {}
        """Word → number of its definitions, 0 for a reject."""
        self.usage = Usage()
        self._end: Any = None
        names = [field.name for field in fields(Usage)]
        for record in journal.records():
            self._end = record.get("finished", self._end)
            self._count(record, Usage(**{name: record.get(name, 0) for name in names}))
        self.has_any = any(self.finished.values())
        """Whether the model has ever answered as it should."""
        self.budget = Budget(max_cost, self.cost(self.usage))

    def cost(self, usage: Usage) -> float:
        """US dollars."""
        into, out_of = self._prices or (0.0, 0.0)
        return usage.prompt_tokens * into + usage.completion_tokens * out_of

    def put(self, done: Mapping[str, list[str]], rejects: Mapping[str, Reject], usage: Usage) -> None:
        """Writes down what a request brought, and counts it when it is on disk."""
        if not done and not rejects and not usage.prompt_tokens:
            return
        record = {"done": done, "rejected": {word: why._asdict() for word, why in rejects.items()}, **asdict(usage)}
        self._journal.append(record)
        with self._lock:
            self._count(record, usage)
            self.has_any = self.has_any or bool(done)

    def note(self) -> str:
        """What it took so far, in a few words."""
        if self._prices:
            return f"${self.budget.spent:,.2f}"
        return f"{self.usage.prompt_tokens + self.usage.completion_tokens:,} tokens"

    def definitions(self) -> dict[str, list[str]]:
        """All that was bought."""
        return {word: said for record in self._journal.records() for word, said in record.get("done", {}).items()}

    def rejects(self) -> dict[str, Reject]:
        """All that could not be had."""
        found = (record.get("rejected", {}) for record in self._journal.records())
        return {word: Reject(**why) for rejected in found for word, why in rejected.items()}

    def is_finished(self, out: Path, words: Sequence[str]) -> bool:
        """Whether `out` is what these words gave."""
        return out.is_file() and self._end == [digest(words), quick_digest(out)]

    def finish(self, out: Path, words: Sequence[str]) -> None:
        """Notes that `out` is what these words gave."""
        self._journal.append({"finished": [digest(words), quick_digest(out)]})

    def _count(self, record: Mapping[str, Any], usage: Usage) -> None:
        self.finished |= dict.fromkeys(record.get("rejected", {}), 0)
        self.finished |= {word: len(said) for word, said in record.get("done", {}).items()}
        self.usage.add(usage)
