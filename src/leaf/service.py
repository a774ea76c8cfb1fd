"""HTTP services that limit, fail and bill: one client for embedding APIs and for language models.

    service = Service("https://api.openai.com/v1", key_variable="OPENAI_API_KEY", pace=Pace(requests_per_minute=500))
    answer = service.post("/embeddings", {"model": "…", "input": ["…"]}, tokens=1)

A request is tried again where another try can help (a limit, a server's fault, a lost connection, an answer cut short),
as long as the service asks to wait and otherwise with growing, random waits. What a service said no to is an error at
once. Keys come from the environment and go nowhere else. All of it may be called from many threads.
"""

import email.utils
import itertools
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_attempt,
    wait_random_exponential,
)

from leaf.errors import Halt, LeafError

#: Timeouts, refused and lost connections, answers cut short; the second where the cut was inside a compressed answer.
LOST = (httpx.TransportError, httpx.DecodingError)
#: Answers that another try can change; so can 5xx.
RETRIED = frozenset({408, 409, 425, 429})
#: Codes that services give a 429 which no waiting will change: the account has no credit left.
NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
#: Seconds between two tries grow up to this, unless the service asks for more.
LONGEST_WAIT = 60.0
#: A service that asks for a longer wait than this is not waited for: someone should look at the account.
LONGEST_RETRY_AFTER = 3600.0
#: Times `timeout` that an answer is waited for at most. A service that is only slow is billing for every try.
MOST_PATIENCE = 4

T = TypeVar("T")


class Again(Exception):
    """One try failed in a way that another may not. `billed`: the service may have done the work, and bill for it."""

    def __init__(self, reason: str, wait: float = 0.0, *, billed: bool = True) -> None:
        super().__init__(reason)
        self.wait, self.billed = wait, billed


class Pace:
    """Lets so many requests and so many tokens a minute pass, spread evenly; None is no limit of that kind."""

    def __init__(self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None) -> None:
        self._requests, self._tokens = requests_per_minute, tokens_per_minute
        self._free = self._held = 0.0
        self._lock = threading.Lock()

    def wait(self, tokens: float = 0, stop: threading.Event | None = None) -> None:
        """Returns when a request of `tokens` may go, or when `stop` is set."""
        requests = 60 / self._requests if self._requests else 0.0
        seconds = max(requests, 60 * tokens / self._tokens if self._tokens else 0.0)
        with self._lock:
            mine = max(self._free, time.monotonic())
            self._free = mine + seconds
        stop = stop or threading.Event()
        while (left := max(mine, self._held) - time.monotonic()) > 0:  # it may be held while it waits
            if stop.wait(left):
                return

    def hold(self, seconds: float) -> None:
        """Holds every request back for `seconds`: a limit that one of them met is a limit for all."""
        with self._lock:
            self._held = max(self._held, time.monotonic() + seconds)


class Budget:
    """What a run has spent, and the most it may: US dollars.

    `reserve` before a request, `settle` after it with what it cost in the end. `spent` may begin with what earlier
    runs paid. Without `limit` it only counts.
    """

    def __init__(self, limit: float | None = None, spent: float = 0.0) -> None:
        self.limit, self.spent = limit, spent
        self._reserved = 0.0
        self._lock = threading.Lock()

    def reserve(self, cost: float) -> None:
        """Sets `cost` aside. Raises `OverBudget` where that could pass the limit."""
        with self._lock:
            if self.limit is not None and self.spent + self._reserved + cost > self.limit:
                raise OverBudget(
                    f"the next request could take the cost past ${self.limit:,.2f} (${self.spent:,.4f} spent); what "
                    "was bought is kept: raise --max-cost and run the same command to go on"
                )
            self._reserved += cost

    def settle(self, reserved: float, cost: float) -> None:
        """Replaces what was set aside for a request by its `cost`, 0 where it was not billed."""
        with self._lock:
            self._reserved -= reserved
            self.spent += cost


class OverBudget(Halt):
    """The cost ceiling is reached; nothing more was sent."""


class Refused(Halt):
    """The service said no to a request: `status` is HTTP's, `code` and `error` are what its body says of it."""

    def __init__(self, message: str, status: int, code: str, error: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.error = status, code, error


class Service:
    """One API root. Raises `LeafError` for a URL that is none and for a key that is not in the environment.

    `key_variable` names the environment variable of the key, sent as a bearer token; None sends none. `timeout` is the
    longest silence in seconds; after one that was longer, it is twice as long, up to four times. `on_retry(reason,
    seconds)` hears of every wait.
    """

    def __init__(
        self,
        url: str,
        *,
        key_variable: str | None = None,
        timeout: float = 60.0,
        attempts: int = 10,
        pace: Pace | None = None,
        headers: Mapping[str, str] | None = None,
        on_retry: Callable[[str, float], object] | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise LeafError(f"'{url}' is not the URL of a service; give one such as https://api.openai.com/v1")
        if parts.username or parts.password or parts.query:
            raise LeafError(f"the URL of {parts.hostname} has more than a path in it; keys come from the environment")
        key = os.environ.get(key_variable, "").strip() if key_variable else ""
        if key_variable and not key:
            raise LeafError(f"{parts.hostname} wants a key; put it into the environment variable {key_variable}")
        if not re.fullmatch(r"[!-~]*", key):  # the HTTP client would say so with the key in its message
            raise LeafError(f"the key in {key_variable} has characters that no key has, such as a line break")
        self.url = url.rstrip("/")
        self.pace = pace or Pace()
        self._key, self._key_variable = key, key_variable
        self._attempts, self._on_retry = attempts, on_retry
        self._timeout, self._most_timeout = timeout, MOST_PATIENCE * timeout
        bearer = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(headers={**bearer, **(headers or {})}, limits=httpx.Limits(max_connections=None))

    def post(
        self,
        path: str,
        body: Any,
        *,
        tokens: float = 0,
        check: Callable[[Any], object] | None = None,
        failed: Callable[[Again], object] | None = None,
        stop: threading.Event | None = None,
    ) -> Any:
        """The JSON that the service answers to `body`.

        `tokens` are what the request counts against a limit of tokens. `check(answer)` may raise `Again` for an answer
        that is not what was asked for. `failed` hears of every try that came to nothing, and may raise. Once `stop` is
        set, a try in flight is finished and no other begins. Raises `Halt` where the service refuses (`Refused`), no
        try of `attempts` succeeds, or `stop` was set before one did.
        """
        stop = stop or threading.Event()
        return self._persist(path, lambda: self._try(path, body, tokens, check, stop), failed, stop)

    def stream(
        self,
        path: str,
        body: Any,
        read: Callable[[Iterator[str]], T],
        *,
        tokens: float = 0,
        failed: Callable[[Again], object] | None = None,
        stop: threading.Event | None = None,
    ) -> T:
        """What `read(events)` makes of an answer that comes in pieces; otherwise as `post`.

        `events` are the data of server-sent events, or one string where the service answers in one piece. `timeout`
        is then the longest silence, not the longest answer. Where the connection is lost, `events` raises `Again`;
        `read` may raise it for an answer that is not what was asked for.
        """
        stop = stop or threading.Event()
        return self._persist(path, lambda: self._try_stream(path, body, read, tokens, stop), failed, stop)

    def reach(self) -> None:
        """Raises `Halt` where nobody listens at the URL: a mistyped one is then known before any waiting."""
        try:
            self._client.get(self.url + "/models", timeout=self._timeout)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Halt(f"{self.url} cannot be reached ({error}); is the URL right, and the server up?") from error
        except httpx.HTTPError:  # somebody is there
            pass

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _persist(
        self,
        path: str,
        attempt: Callable[[], T],
        failed: Callable[[Again], object] | None,
        stop: threading.Event,
    ) -> T:
        def try_once() -> T:
            try:
                return attempt()
            except Again as error:
                if failed is not None:
                    failed(error)
                raise

        retrying = Retrying(
            stop=stop_after_attempt(self._attempts),
            wait=_wait,
            retry=retry_if_exception_type(Again),
            before_sleep=self._tell,
            sleep=sleep_using_event(stop),
            reraise=True,
        )
        try:
            return retrying(try_once)
        except Again as error:
            raise Halt(
                f"{self.url}{path} failed {self._attempts} times, last with: {error}; what was bought is kept: run the "
                "same command again later"
            ) from error

    def _try(
        self, path: str, body: Any, tokens: float, check: Callable[[Any], object] | None, stop: threading.Event
    ) -> Any:
        self._wait_turn(path, tokens, stop)
        timeout = self._timeout
        try:
            response = self._client.post(self.url + path, json=body, timeout=timeout)
        except LOST as error:
            raise self._lost(error, timeout) from error
        self._check_status(path, response)
        try:
            answer = response.json()
        except ValueError as error:
            raise Again(f"an answer that is not JSON ({error})") from error
        if check is not None:
            check(answer)
        return answer

    def _try_stream(
        self, path: str, body: Any, read: Callable[[Iterator[str]], T], tokens: float, stop: threading.Event
    ) -> T:
        self._wait_turn(path, tokens, stop)
        timeout = self._timeout
        try:
            with self._client.stream("POST", self.url + path, json=body, timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                self._check_status(path, response)
                return read(_events(response, lambda error: self._lost(error, timeout)))
        except LOST as error:
            raise self._lost(error, timeout) from error

    def _wait_turn(self, path: str, tokens: float, stop: threading.Event) -> None:
        self.pace.wait(tokens, stop)
        if stop.is_set():
            raise Halt(f"{self.url}{path} was not asked again: the work was stopped")

    def _check_status(self, path: str, response: httpx.Response) -> None:
        if response.status_code in RETRIED or response.status_code >= 500:
            wait = retry_after(response.headers)
            if wait > LONGEST_RETRY_AFTER or _code(response) in NO_CREDIT:
                reason = self._reason(response)
                raise Halt(f"{self.url}{path} will take no more for now: {reason}; look at the account")
            if wait:
                self.pace.hold(wait)
            raise Again(f"{response.status_code}: {self._reason(response)}", wait, billed=False)
        if response.status_code in (401, 403):
            fix = f"; the one that was sent is in {self._key_variable}" if self._key else ""
            raise self._refused(response, f"{self.url}{path} refuses the key ({response.status_code})", fix)
        if not response.is_success:
            raise self._refused(response, f"{self.url}{path} refused the request with {response.status_code}")

    def _refused(self, response: httpx.Response, what: str, fix: str = "") -> Refused:
        said = f"{what}: {self._reason(response)}{fix}"
        return Refused(said, response.status_code, _code(response), _error(response))

    def _reason(self, response: httpx.Response) -> str:
        """What the service says, without the key: some repeat the one they refuse."""
        reason = _reason(response)
        return reason.replace(self._key, "…") if self._key else reason

    def _lost(self, error: httpx.RequestError, timeout: float) -> Again:
        if isinstance(error, httpx.ReadTimeout):
            self._timeout = min(max(self._timeout, 2 * timeout), self._most_timeout)
            return Again(f"no answer within {timeout:g} s")
        sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        return Again(f"{type(error).__name__} {error}".strip(), billed=sent)

    def _tell(self, state: RetryCallState) -> None:
        if self._on_retry is not None and state.outcome is not None and state.next_action is not None:
            self._on_retry(str(state.outcome.exception()), state.next_action.sleep)


def _events(response: httpx.Response, lost: Callable[[httpx.RequestError], Again]) -> Iterator[str]:
    """The data of each server-sent event; the whole body where the answer is none of those.

    https://html.spec.whatwg.org/multipage/server-sent-events.html. Lines are cut as bytes: `str.splitlines`, which
    `iter_lines` goes by, would also cut at U+2028, which JSON may hold.
    """
    try:
        if "text/event-stream" not in response.headers.get("content-type", ""):
            yield response.read().decode("utf-8", "replace")
            return
        rest, data = b"", list[str]()
        for piece in itertools.chain(response.iter_bytes(), [b"\n\n"]):  # an end ends the last event, too
            *lines, rest = (rest + piece).split(b"\n")
            for line in (line.removesuffix(b"\r").decode("utf-8", "replace") for line in lines):
                if line.startswith("data:"):
                    data.append(line.removeprefix("data:").removeprefix(" "))
                elif not line and data:
                    yield "\n".join(data)
                    data = []
    except LOST as error:
        raise lost(error) from error


_grow = wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT)


def _wait(state: RetryCallState) -> float:
    """Random and growing, so that many threads do not come back at once; never sooner than the service said."""
    error = state.outcome.exception() if state.outcome is not None else None
    return max(getattr(error, "wait", 0.0), _grow(state))


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a service asks to wait, from `retry-after-ms` or `Retry-After` (seconds or a date); 0 if none."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return max(0.0, float(milliseconds) / 1000)
        if (said := headers.get("retry-after")) is None:
            return 0.0
        try:
            return max(0.0, float(said))
        except ValueError:
            return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _error(response: httpx.Response) -> Any:
    try:
        data = response.json()
    except ValueError:
        return response.text
    return data.get("error", data) if isinstance(data, dict) else data


def _code(response: httpx.Response) -> str:
    error = _error(response)
    return str(error.get("code") or error.get("type") or "") if isinstance(error, dict) else ""


def _reason(response: httpx.Response) -> str:
    """The message of an error body in one line."""
    error = _error(response)
    message = error.get("message") or error.get("detail") or error if isinstance(error, dict) else error
    text = message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)
    return " ".join(text.split())[:300] or "no reason given"
