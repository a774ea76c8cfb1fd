"""In which batches words are asked for, and again."""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

#: Batches in a row that were cut off after which all begin smaller.
CUT = 3
#: Requests in a row without one definition after which the model or the prompt is at fault, not the words.
FRUITLESS = 20


class Batch(NamedTuple):
    """Words to be asked for in one request."""

    round: int
    words: list[str]
    last: bool
    """What fails now is not asked for again."""


class Rounds:
    """Words that wait. One that failed waits for the next round, whose batches are half as large; at last it is alone,
    twice. Failures of different batches are put together, so that few words do not cost a request each.

    `proven` says that the model has answered well before.
    """

    def __init__(self, words: Iterable[str], batch_words: int, proven: bool = False) -> None:
        self.sizes = [batch_words]
        while self.sizes[-1] > 1:
            self.sizes.append(self.sizes[-1] // 2)
        self.sizes.append(1)
        self._waiting: list[deque[str]] = [deque(words), *(deque[str]() for _ in self.sizes[1:])]
        self._first = 0
        """The round in which a word is asked for first: later than 0 where larger batches are cut off."""
        self._cut, self._proven = 0, proven
        self.fruitless = 0
        """Requests in a row that brought nothing: for words that were not asked for before, or any while none has."""

    def take(self) -> Batch | None:
        """The next batch: a full one of the latest round that has one, else what the earliest has."""
        waiting = [number for number, words in enumerate(self._waiting) if words]
        if not waiting:
            return None
        full = [number for number in waiting if number and len(self._waiting[number]) >= self.sizes[number]]
        source = self._waiting[full[-1] if full else waiting[0]]
        number = max(full[-1] if full else waiting[0], self._first)
        words = [source.popleft() for _ in range(min(len(source), self.sizes[number]))]
        return Batch(number, words, number == len(self.sizes) - 1)

    def put_back(self, batch: Batch) -> None:
        """Takes back a batch that was not sent."""
        self._waiting[batch.round].extendleft(reversed(batch.words))

    def settle(self, batch: Batch, failed: Iterable[str], cut: bool) -> int | None:
        """Puts what `failed` of a batch into the next round; `cut` says that its answer was cut off.

        Returns the size of batches from now on if that is why it changes.
        """
        failed = list(failed)
        if not batch.last:
            self._waiting[batch.round + 1].extend(failed)
        succeeded = len(failed) < len(batch.words)
        self._proven = self._proven or succeeded
        if batch.round == self._first or not self._proven:
            self.fruitless = 0 if succeeded else self.fruitless + 1
        if batch.round != self._first:
            return None
        self._cut = self._cut + 1 if cut else 0
        if self._cut < CUT or self._first >= len(self.sizes) - 2:
            return None
        self._first, self._cut, self.fruitless = self._first + 1, 0, 0
        return self.sizes[self._first]
