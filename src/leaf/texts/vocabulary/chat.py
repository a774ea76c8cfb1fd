"""Questions to a language model behind any OpenAI-compatible `/chat/completions`.

    chat = Chat("http://localhost:8000/v1", "some-model", key_variable=None)
    answer = chat.ask("Define 'leaf' as JSON.", max_tokens=200, usage=(usage := Usage()))

Answers are streamed: a long one then meets no read timeout, neither ours nor a gateway's, and what a cut one cost is
known from what had arrived. An answer counts as whole once the model has said why it ended, and not before.

Endpoints differ in what else they accept. What one refuses is left out from then on: the JSON mode, the count of tokens
in a stream, streaming, and `max_tokens`, which newer models know as `max_completion_tokens`.
"""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from leaf.service import Again, Pace, Refused, Service

#: Characters of a token, to count where the service does not. English has four and more; rather too many tokens.
CHARACTERS_PER_TOKEN = 3
#: Statuses of a request that may do with one field less.
_UNACCEPTABLE = (400, 422)
#: What can be left out of a request, the first that a refusal names; "stream" is in the name of the one before it.
_OPTIONAL = ("response_format", "stream_options", "stream")
_LIMITS = ("max_tokens", "max_completion_tokens")


@dataclass
class Usage:
    """What was asked and what it took."""

    requests: int = 0
    """All that were sent."""
    retries: int = 0
    """Those of them that repeated one that had failed."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unmetered: int = 0
    """Answers, whole or cut, whose tokens are an estimate from their characters: the service did not count them."""

    def add(self, other: "Usage") -> None:
        """Counts `other` in."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class Answer(NamedTuple):
    """What the model said, whole or up to its limit."""

    text: str
    finish: str
    """Why it ended: `stop`, `length` (the limit of tokens), `content_filter`, or what else the service says."""
    refusal: str = ""
    """Why there is no answer, in the words of whoever refused."""


class Chat:
    """One model of one API root. May be asked from many threads.

    `key_variable`, `timeout` and `pace` are `Service`'s. `temperature` None leaves it to the endpoint. `on_wait(reason,
    seconds)` hears of every wait before another try. Once `stop` is set there are no more tries.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str | None = None,
        timeout: float = 120.0,
        pace: Pace | None = None,
        temperature: float | None = None,
        stream: bool = True,
    ) -> None:
        self.model, self.temperature = model, temperature
        self.service = Service(url, key_variable=key_variable, timeout=timeout, pace=pace, on_retry=self._waits)
        self.on_wait: Callable[[str, float], object] | None = None
        self.stop = threading.Event()
        self._asking = threading.local()
        self._left_out = frozenset[str]() if stream else frozenset({"stream"})

    def ask(
        self,
        prompt: str,
        *,
        max_tokens: int,
        usage: Usage,
        tokens: float = 0,
        on_lost: Callable[[], object] | None = None,
    ) -> Answer:
        """The answer to `prompt`. What it takes is added to `usage`, also where it fails.

        `tokens` count against the pace. `on_lost` is called when the tokens of an answer that did not arrive whole are
        in `usage`; what it raises ends the asking. Raises `LeafError` where no try succeeds and `Refused` where the
        service says no.
        """
        self._asking.usage = usage
        said: list[str] = []
        left_out = self._left_out

        def failed(error: Again) -> None:
            if error.billed:
                _count(usage, {}, prompt, "".join(said))
                said.clear()
                if on_lost is not None:
                    on_lost()

        while True:
            body = self._body(prompt, max_tokens, left_out)
            usage.requests += 1
            try:
                answer, counts = self.service.stream(
                    "/chat/completions",
                    body,
                    lambda events: _read(events, said),
                    tokens=tokens,
                    failed=failed,
                    stop=self.stop,
                )
            except Refused as refused:
                if "content_filter" in refused.code:
                    return Answer("", "content_filter", str(refused))
                less = _unaccepted(body, refused)
                if less is None:
                    raise
                left_out |= {less}
                continue
            if left_out - self._left_out:
                self._left_out |= left_out
            _count(usage, counts, prompt, answer.text)
            return answer

    def _body(self, prompt: str, max_tokens: int, left_out: frozenset[str]) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": prompt}]}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if limit := next((name for name in _LIMITS if name not in left_out), None):
            body[limit] = max_tokens
        if "response_format" not in left_out:
            body["response_format"] = {"type": "json_object"}
        if "stream" not in left_out:
            body["stream"] = True
            if "stream_options" not in left_out:
                body["stream_options"] = {"include_usage": True}
        return body

    def _waits(self, reason: str, seconds: float) -> None:
        self._asking.usage.requests += 1
        self._asking.usage.retries += 1
        if self.on_wait is not None:
            self.on_wait(reason, seconds)


def _unaccepted(body: dict[str, Any], refused: Refused) -> str | None:
    """The field of `body` to do without after such a refusal; None if there is nothing that could help.

    Where the refusal names none of them it is taken to mean the JSON mode, which most often is what is not there.
    """
    if refused.status not in _UNACCEPTABLE:
        return None
    said = json.dumps(refused.error)
    for name in _OPTIONAL:
        if name in body and name in said:
            return name
    if any(name in said for name in _LIMITS):
        return next((name for name in _LIMITS if name in body), None)
    return "response_format" if "response_format" in body else None


def _read(events: Iterator[str], said: list[str]) -> tuple[Answer, dict[str, Any]]:
    """The answer that `events` bring, in pieces or in one, and the service's count of its tokens, if any.

    The text is put into `said` as it comes. Raises `Again` where `events` end before the answer does.
    """
    finish, refusal = "", ""
    counts: dict[str, Any] = {}
    said.clear()
    try:
        for data in events:
            if data.strip() == "[DONE]":
                finish = finish or "stop"
                break
            piece = _piece(data)
            counts = piece.get("usage") or counts
            for choice in piece.get("choices") or []:  # some send null with the usage
                message = choice.get("delta") or choice.get("message") or {}
                said.append(_content(message.get("content")))
                refusal += message.get("refusal") or ""
                finish = choice.get("finish_reason") or finish or ("stop" if "message" in choice else "")
        if not finish:
            raise Again("an answer that does not end")
    except Again:
        if not finish or finish == "error":
            raise
        # It is whole; what was lost comes after its end: the count of its tokens.
    except (AttributeError, KeyError, TypeError) as error:
        raise Again(f"an answer of another shape than OpenAI's ({error})") from error
    text = "".join(said).encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # pairs cut by a piece's end
    return Answer(text, finish, refusal), counts


def _piece(data: str) -> dict[str, Any]:
    try:
        piece = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Again(f"an answer that is not JSON ({error})") from error
    if not isinstance(piece, dict):
        raise Again(f"an answer that is no JSON object but {data[:40]!r}")
    if wrong := piece.get("error"):  # after a good status: it went wrong while the model was answering
        message = wrong.get("message") if isinstance(wrong, dict) else wrong
        raise Again(f"an error instead of an answer: {message}")
    return piece


def _content(content: Any) -> str:
    """The text of a message's content: a string, or parts of which some are text and some are thoughts."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part["type"] == "text")
    if not isinstance(content, str | None):
        raise TypeError(f"content is {content!r}")
    return content or ""


def _count(usage: Usage, counts: dict[str, Any], prompt: str, text: str) -> None:
    asked, said = counts.get("prompt_tokens"), counts.get("completion_tokens")
    if not isinstance(asked, int) or not isinstance(said, int):
        asked, said = num_tokens(prompt), num_tokens(text)
        usage.unmetered += 1
    usage.prompt_tokens += asked
    usage.completion_tokens += said


def num_tokens(text: str) -> int:
    """An estimate, rather too high than too low."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)
