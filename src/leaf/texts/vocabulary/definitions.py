"""Which answers of a language model count as definitions, and how all words get theirs.

    buy(chat, template, words, shelf)

What does not come back as it was asked for is asked again in smaller batches, at last alone, and then is a reject.
Every answer is on the shelf, that is on disk, before its thread sends more.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from leaf.errors import LeafError
from leaf.progress import progress, say
from leaf.service import OverBudget, Refused
from leaf.texts.vocabulary.chat import Answer, Chat, Usage, num_tokens
from leaf.texts.vocabulary.rounds import FRUITLESS, Batch, Rounds
from leaf.texts.vocabulary.shelf import Reject, Shelf

#: What stands in a prompt for the JSON array of the words.
PLACEHOLDER = "{words}"
#: Characters of a definition: the shortest that says something, and far more than the 30 words that are asked for.
SHORTEST, LONGEST = 8, 1000
#: Definitions of a word: three times what is asked for.
MOST = 18
#: Tokens that an answer may have, by itself and for each word: two to three times what the prompt asks for, and for 20
#: words less than the 4,096 that some models stop at.
ALLOWED, ALLOWED_PER_WORD = 1000, 150
#: Tokens that the definitions of a word take on average, to keep to a limit of tokens a minute.
EXPECTED_PER_WORD = 80
#: Characters of an answer that are kept with a reject.
KEPT = 2000


class Outcome(NamedTuple):
    """What came of asking for some words."""

    valid: dict[str, list[str]]
    failed: dict[str, str]
    """Word → reason."""
    answer: str
    cut: bool = False
    """The model had more to say than it was allowed."""


def judge(words: Sequence[str], answer: Answer) -> Outcome:
    """Which of `words` are answered as they were to be, and why the others are not.

    The answer is one JSON object, bare or in a fence, from word to list of definitions. An entry that is wrong fails
    alone, as does a word that is answered twice; entries for words that nobody asked for are left out.
    """

    def none(reason: str, cut: bool = False) -> Outcome:
        return Outcome({}, dict.fromkeys(words, reason), answer.refusal or answer.text, cut)

    if answer.finish == "length":
        return none("the answer was cut off", cut=True)
    if answer.refusal or answer.finish == "content_filter":
        return none(f"refused: {answer.refusal or 'the content filter of the service'}"[:300])
    if not answer.text.strip():
        return none("an empty answer")
    fenced = _FENCE.fullmatch(answer.text)
    try:
        entries = json.loads(fenced[1] if fenced else answer.text, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        return none(f"not JSON: {error}")
    if not isinstance(entries, tuple):  # objects are tuples of pairs here, so that a word shows that comes twice
        return none("no JSON object")
    times, given = Counter(word for word, _ in entries), dict(entries)
    outcome = Outcome({}, {}, answer.text)
    for word in words:
        if times[word] != 1:
            outcome.failed[word] = f"answered {times[word]} times" if times[word] else "not answered"
            continue
        try:
            outcome.valid[word] = list(dict.fromkeys(_DEFINITIONS.validate_python(given[word])))
        except ValidationError as error:
            first = error.errors()[0]
            where = f"definition {int(first['loc'][0]) + 1}: " if first["loc"] else ""
            outcome.failed[word] = where + first["msg"].removeprefix("Value error, ")
    return outcome


_FENCE = re.compile(r"\s*```(?:json)?[ \t]*\n(.*)\n[ \t]*```\s*", re.DOTALL | re.IGNORECASE)


def _one_line(definition: str) -> str:
    """`definition` with its white space collapsed. Raises `ValueError` where it can be none."""
    line = " ".join(definition.split())
    if not SHORTEST <= len(line) <= LONGEST:
        raise ValueError(f"{len(line):,} characters, expected {SHORTEST} to {LONGEST:,}")
    if re.search("[\x00-\x1f\x7f\ud800-\udfff]", line):
        raise ValueError("a control character, or half of a surrogate pair")
    return line


_DEFINITIONS = TypeAdapter(
    Annotated[
        list[Annotated[str, Field(strict=True), AfterValidator(_one_line)]],
        Field(strict=True, min_length=1, max_length=MOST),
    ]
)


def buy(
    chat: Chat,
    template: str,
    words: Sequence[str],
    shelf: Shelf,
    *,
    batch_words: int = 20,
    at_once: int = 8,
    max_output: int | None = None,
) -> None:
    """Asks for all of `words` until every one is on the `shelf`, `at_once` requests in flight.

    `max_output` caps the tokens of an answer. Raises `LeafError` where the service does not let it go on or nothing
    comes of any request, and `OverBudget`. Whatever ends it, the answers in flight are waited for and kept.
    """
    rounds, buyer = Rounds(words, batch_words, shelf.has_any), _Buyer(chat, template, shelf, max_output)
    running: dict[Future[Outcome], Batch] = {}
    known = len(shelf.finished)
    with (
        progress("defining words", known + len(words), known) as bar,
        ThreadPoolExecutor(at_once, thread_name_prefix="vocabulary") as pool,
    ):
        chat.on_wait = lambda reason, seconds: bar.advance(0, f"waiting {seconds:.0f} s: {reason}"[:100])
        try:
            while True:
                while len(running) < at_once and (batch := rounds.take()):
                    reserved = buyer.price(batch)
                    try:
                        shelf.budget.reserve(reserved)
                    except OverBudget:
                        if not running:
                            raise
                        rounds.put_back(batch)  # those in flight may cost less than what is set aside for them
                        break
                    running[pool.submit(buyer.buy, batch, reserved)] = batch
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    batch = running.pop(future)
                    outcome = future.result()
                    _settle(rounds, batch, outcome, chat.model)
                    bar.advance(len(outcome.valid) + len(outcome.failed) * batch.last, shelf.note())
        except BaseException:
            chat.stop.set()
            if running:
                say(f"waiting for {len(running)} requests in flight: what they answer is kept")
            raise


def _settle(rounds: Rounds, batch: Batch, outcome: Outcome, model: str) -> None:
    size = rounds.settle(batch, outcome.failed, outcome.cut)
    if size is not None:
        say(f"answers about {len(batch.words)} words are cut off; asking about {size} at a time")
    if rounds.fruitless >= FRUITLESS:
        raise LeafError(
            f"{model} gave no definition in {FRUITLESS} requests in a row, last: {next(iter(outcome.failed.values()))} "
            f"({outcome.answer[:80]!r}); try another model or prompt, or fewer words in a batch"
        )


class _Buyer:
    """Asks for one batch at a time, in as many threads as call it, and puts what comes on the shelf."""

    def __init__(self, chat: Chat, template: str, shelf: Shelf, max_output: int | None) -> None:
        self._chat, self._template, self._shelf, self._max_output = chat, template, shelf, max_output

    def price(self, batch: Batch) -> float:
        """The most that a request for `batch` should cost, US dollars."""
        tokens = num_tokens(self._prompt(batch.words))
        return self._shelf.cost(Usage(prompt_tokens=tokens, completion_tokens=self._allowed(batch.words)))

    def buy(self, batch: Batch, reserved: float) -> Outcome:
        """What comes of asking for `batch`, for which `reserved` dollars are set aside."""
        usage, budget, kept_aside = Usage(), self._shelf.budget, [reserved]

        def on_lost() -> None:
            """Sets as much aside for another try as the lost ones have cost."""
            more = reserved + self._shelf.cost(usage) - sum(kept_aside)
            budget.reserve(more)
            kept_aside.append(more)

        outcome = Outcome({}, {}, "")
        try:
            outcome = self._ask(batch.words, usage, on_lost)
            return outcome
        finally:
            final = outcome.failed if batch.last else {}
            rejects = {word: Reject(reason, outcome.answer[:KEPT]) for word, reason in final.items()}
            self._shelf.put(outcome.valid, rejects, usage)
            budget.settle(sum(kept_aside), self._shelf.cost(usage))

    def _ask(self, words: list[str], usage: Usage, on_lost: Callable[[], None]) -> Outcome:
        prompt = self._prompt(words)
        expected = num_tokens(prompt) + EXPECTED_PER_WORD * len(words)
        try:
            answer = self._chat.ask(
                prompt, max_tokens=self._allowed(words), usage=usage, tokens=expected, on_lost=on_lost
            )
        except Refused as refused:
            if refused.status == 404:
                raise LeafError(
                    f"{refused}; is '{self._chat.model}' the name of a model there, and {self._chat.service.url} the "
                    "root of the API?"
                ) from refused
            # Where others were answered, it is these words that the service will not have.
            if refused.status not in (400, 413, 422) or not self._shelf.has_any:
                raise
            return Outcome({}, dict.fromkeys(words, str(refused)), "")
        return judge(words, answer)

    def _prompt(self, words: list[str]) -> str:
        return self._template.replace(PLACEHOLDER, json.dumps(words, ensure_ascii=False))

    def _allowed(self, words: list[str]) -> int:
        return self._max_output or ALLOWED + ALLOWED_PER_WORD * len(words)
