"""The source "Vocabulary" of the paper (Table 1, Appendix C): what a language model says that words mean.

    synthesise("words.txt", Path("vocabulary.jsonl.gz"), llm="http://localhost:8000/v1", model="…", key_variable=None)

Words are asked for in batches, of any OpenAI-compatible endpoint. What comes back is checked word by word. Every answer
is in the journal beside the output before more is asked, so a run can be killed at any moment, and a word that was
answered is never paid for again, also where the list of words has grown since.

A text is one definition. As in the paper's Listing 2 it names its word and so reads alone; one that does not gets the
word put before it ("ebb: the flow of the tide back out to sea").
"""

import gzip
import io
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from leaf.errors import LeafError
from leaf.files import atomic_path, digest
from leaf.progress import progress
from leaf.recipe import TextSource
from leaf.service import Pace
from leaf.texts.sampling import keyed_hash, seed_key
from leaf.texts.sources import read
from leaf.texts.vocabulary.chat import Chat
from leaf.texts.vocabulary.definitions import PLACEHOLDER, buy
from leaf.texts.vocabulary.journal import Journal
from leaf.texts.vocabulary.shelf import Shelf

PROMPT = Path(__file__).with_name("prompt.txt")
#: Longer than any word: who gives a file of texts should hear of it before it is paid for.
LONGEST_WORD = 100


@dataclass(frozen=True)
class Summary:
    """What there is and what it took, earlier runs of the same journal included, apart from `seconds`."""

    words: int
    """Different words that were to be defined."""
    done: int
    rejected: int
    texts: int
    duplicates: int
    blanks: int
    """Rows of the list without a word that can be asked for."""
    requests: int
    retries: int
    """Requests that repeated one that had failed."""
    prompt_tokens: int
    completion_tokens: int
    unmetered: int
    """Answers whose tokens are an estimate: the service did not count them, or they did not arrive whole."""
    cost: float | None
    """US dollars at the prices of this run. None without prices."""
    seconds: float
    """Of this run."""
    out: str
    rejects: str | None
    """File of the words without a definition, each with the reason and the answer. None: there are none."""


def synthesise(
    words: str | Path,
    out: Path,
    *,
    llm: str,
    model: str,
    column: str = "text",
    key_variable: str | None = "OPENAI_API_KEY",
    prompt: Path | None = None,
    temperature: float | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_words: int = 20,
    at_once: int = 8,
    max_output: int | None = None,
    max_cost: float | None = None,
    price_in: float | None = None,
    price_out: float | None = None,
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
    timeout: float = 120.0,
    stream: bool = True,
) -> Summary:
    """Writes `out` (`.jsonl` or `.jsonl.gz`), one `{"text": …, "word": …}` a line, in the order of the words.

    `words` is whatever `leaf.texts.sources` reads, a word a row, in `column` where there are columns. `limit` takes a
    uniform sample; with the same `seed` a larger one contains the smaller. `llm` is the root of the API, `key_variable`
    the environment variable of its key (None or "": no key is sent). `prompt` is a file with `{words}` in it, in place
    of ours. `max_output` caps the tokens of an answer, a model's thoughts included. Prices are US dollars for a million
    tokens; no request is sent that could take the cost past `max_cost`.

    Beside `out` stand `OUT.journal`, all that was bought, and, where words stay without a definition, a file of rejects
    (see `rejects_path`). A journal belongs to one model, prompt and temperature. An `out` that is finished is left as
    it is, and nothing is asked.

    Raises `LeafError` for settings that do not fit, a journal of others, a service that cannot be reached or refuses,
    and where no word gets a definition; `OverBudget` at the ceiling. What was bought by then is in the journal.
    """
    began = time.monotonic()
    if not out.name.endswith((".jsonl", ".jsonl.gz")):
        raise LeafError(f"{out} would not be read as what it is; give an output named .jsonl or .jsonl.gz")
    positive = {
        "batch_words": batch_words,
        "at_once": at_once,
        "timeout": timeout,
        "limit": limit,
        "max_output": max_output,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
    }
    if wrong := [name for name, value in positive.items() if value is not None and value <= 0]:
        raise LeafError(f"{wrong[0]} is {positive[wrong[0]]}; expected more than 0")
    if min(price_in or 0, price_out or 0) < 0:
        raise LeafError(f"prices are {price_in} and {price_out}; expected 0 or more")
    if (price_in is None) != (price_out is None) or (max_cost is not None and price_in is None):
        raise LeafError("a cost needs both prices, in US dollars for a million tokens; give --price-in and --price-out")
    prices = None if price_in is None or price_out is None else (price_in / 1e6, price_out / 1e6)
    template = _template(prompt or PROMPT)
    asked, duplicates, blanks = _words(words, column, seed)
    asked = asked if limit is None else _sample(asked, limit, seed)
    settings = {"model": model, "prompt": digest(template)[:16], "temperature": temperature}
    with _alone(out), Journal(_journal_path(out), settings) as journal:
        shelf = Shelf(journal, prices, max_cost)
        if not shelf.is_finished(out, asked):
            if missing := [word for word in asked if word not in shelf.finished]:
                root = llm.rstrip("/").removesuffix("/chat/completions")
                pace = Pace(requests_per_minute, tokens_per_minute)
                chat = Chat(
                    root, model, key_variable=key_variable, timeout=timeout, pace=pace, temperature=temperature,
                    stream=stream,
                )  # fmt: skip
                try:
                    chat.service.reach()
                    buy(chat, template, missing, shelf, batch_words=batch_words, at_once=at_once, max_output=max_output)
                finally:
                    chat.service.close()
            _write(out, asked, shelf)
        found = [shelf.finished[word] for word in asked]
        return Summary(
            words=len(asked), done=len(asked) - found.count(0), rejected=found.count(0), texts=sum(found),
            duplicates=duplicates, blanks=blanks, **asdict(shelf.usage), cost=shelf.budget.spent if prices else None,
            seconds=time.monotonic() - began, out=str(out), rejects=str(rejects_path(out)) if 0 in found else None,
        )  # fmt: skip


def rejects_path(out: Path) -> Path:
    """Where the words without a definition go: itself a list of words, in its column `word`, for another model."""
    return out.with_name(out.name.removesuffix(".gz").removesuffix(".jsonl") + ".rejects.jsonl")


def _template(path: Path) -> str:
    try:
        template = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LeafError(f"cannot read the prompt {path}: {error}") from error
    if PLACEHOLDER not in template:
        raise LeafError(f"the prompt {path} has no {PLACEHOLDER}, where the words of a batch go as a JSON array")
    return template


def _words(source: str | Path, column: str, seed: int) -> tuple[list[str], int, int]:
    """The different words in order, how many rows repeat one, and how many have none."""
    found: dict[str, None] = {}
    rows = blanks = 0
    for rows, row in enumerate(read(TextSource(source=str(source), column=column, kind="document"), seed), 1):
        word = " ".join(row.text.split()) if isinstance(row.text, str) else ""
        if len(word) > LONGEST_WORD:
            raise LeafError(f"{source}, row {rows:,}: {len(word):,} characters are no word; expected a word a row")
        if not word or re.search("[\ud800-\udfff]", word):  # the latter were no UTF-8
            blanks += 1
        else:
            found.setdefault(word)
    if not found:
        raise LeafError(f"{source} has no word in its {rows:,} rows; expected a word a row")
    return list(found), rows - blanks - len(found), blanks


def _sample(words: list[str], size: int, seed: int) -> list[str]:
    """`size` of the words, in their order: those with the lowest keyed hashes."""
    key = seed_key(seed)
    chosen = set(sorted(words, key=lambda word: keyed_hash(word, key))[:size])
    return [word for word in words if word in chosen]


def _write(out: Path, words: Sequence[str], shelf: Shelf) -> None:
    """Writes the rejects and then, since it tells that all is done, `out`."""
    path, rejects = rejects_path(out), shelf.rejects()
    if here := [word for word in words if not shelf.finished[word]]:
        with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as lines:
            lines.writelines(_line({"word": word, **rejects[word]._asdict()}) for word in here)
    else:
        path.unlink(missing_ok=True)
    if len(here) == len(words):
        raise LeafError(
            f"none of the {len(words):,} words got a definition, the first: {rejects[here[0]].reason}; see {path}, and "
            "give another --out to try another model or prompt"
        )
    definitions = shelf.definitions()
    with (
        atomic_path(out) as temporary,
        _opened(temporary, out.name.endswith(".gz")) as lines,
        progress(f"writing {out.name}", len(words)) as bar,
    ):
        for start in range(0, len(words), 10_000):
            for word in (some := words[start : start + 10_000]):
                for text in definitions.get(word, ()):
                    lines.write(_line({"text": _reads_alone(word, text), "word": word}))
            bar.advance(len(some))
    shelf.finish(out, words)


def _reads_alone(word: str, definition: str) -> str:
    """`definition` if the word stands in it, as a word; else with the word before it."""
    name, text = word.casefold(), definition.casefold()  # half a million patterns would take a minute to compile
    start = text.find(name)
    while start >= 0:
        end = start + len(name)
        if not text[start - 1 : start].isalnum() and not text[end : end + 1].isalnum():
            return definition
        start = text.find(name, start + 1)
    return f"{word}: {definition}"


def _line(record: dict[str, str]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


@contextmanager
def _opened(path: Path, compress: bool) -> Iterator[io.TextIOBase]:
    if not compress:
        with open(path, "w", encoding="utf-8", newline="\n") as lines:
            yield lines
        return
    with (
        open(path, "wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,  # without the time the same texts are the same file
        io.TextIOWrapper(packed, "utf-8", newline="\n") as lines,
    ):
        yield lines


def _journal_path(out: Path) -> Path:
    path = out.with_name(out.name + ".journal")
    if out.exists() and not path.exists():
        raise LeafError(f"{out} exists, but no {path.name} to go on from; move it away or give another --out")
    return path


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keeps a second process from buying the same. The lock goes with the process that holds it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out.with_name(f".{out.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise LeafError(f"{out} is being made by another process; wait for it or give another --out") from error
    try:
        yield
    finally:
        lock.release()
