"""HTTP services that limit, fail and bill: one client for embedding APIs and for language models.

    service = Service("https://api.openai.com/v1", key_variable="OPENAI_API_KEY", pace=Pace(requests_per_minute=500))
    answer = service.post("/embeddings", {"model": "…", "input": ["…"]}, tokens=1)

A request is tried again where another try can help (a limit, a server's fault, a lost connection, an answer cut short),
as long as the service asks to wait and otherwise with growing, random waits. What a service said no to is an error at
once. Keys come from the environment and go nowhere else. All of it may be called from many threads.
"""

import email.utils
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from leaf.errors import LeafError

#: Answers that another try can change; so can 5xx.
RETRIED = frozenset({408, 409, 425, 429})
#: Codes that services give a 429 which no waiting will change: the account has no credit left.
NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
#: Seconds between two tries grow up to this, unless the service asks for more.
LONGEST_WAIT = 60.0
#: A service that asks for a longer wait than this is not waited for: someone should look at the account.
LONGEST_RETRY_AFTER = 3600.0


class Again(Exception):
    """One try failed in a way that another may not."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Pace:
    """Lets so many requests and so many tokens a minute pass, spread evenly; None is no limit of that kind."""

    def __init__(self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None) -> None:
        self._requests, self._tokens = requests_per_minute, tokens_per_minute
        self._free = self._held = 0.0
        self._lock = threading.Lock()

    def wait(self, tokens: float = 0) -> None:
        """Returns when a request of `tokens` may go."""
        requests = 60 / self._requests if self._requests else 0.0
        seconds = max(requests, 60 * tokens / self._tokens if self._tokens else 0.0)
        with self._lock:
            mine = max(self._free, time.monotonic())
            self._free = mine + seconds
        while (left := max(mine, self._held) - time.monotonic()) > 0:  # it may be held while it waits
            time.sleep(left)

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


class OverBudget(LeafError):
    """The cost ceiling is reached; nothing more was sent."""


class Service:
    """One API root. Raises `LeafError` for a URL that is none and for a key that is not in the environment.

    `key_variable` names the environment variable of the key, sent as a bearer token; None sends none. `timeout` is in
    seconds, for each try. `on_retry(reason, seconds)` hears of every wait.
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
        self.url = url.rstrip("/")
        self.pace = pace or Pace()
        self._attempts, self._on_retry = attempts, on_retry
        bearer = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(
            timeout=timeout,
            headers={**bearer, **(headers or {})},
            limits=httpx.Limits(max_connections=None),
        )

    def post(self, path: str, body: Any, *, tokens: float = 0, check: Callable[[Any], object] | None = None) -> Any:
        """The JSON that the service answers to `body`.

        `tokens` are what the request counts against a limit of tokens. `check(answer)` may raise `Again` for an answer
        that is not what was asked for. Raises `LeafError` where the service refuses, or no try of `attempts` succeeds.
        """
        retrying = Retrying(
            stop=stop_after_attempt(self._attempts),
            wait=_wait,
            retry=retry_if_exception_type(Again),
            before_sleep=self._tell,
            reraise=True,
        )
        try:
            return retrying(self._try, path, body, tokens, check)
        except Again as error:
            raise LeafError(
                f"{self.url}{path} failed {self._attempts} times, last with: {error}; what was bought is kept: run the "
                "same command again later"
            ) from error

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _try(self, path: str, body: Any, tokens: float, check: Callable[[Any], object] | None) -> Any:
        self.pace.wait(tokens)
        try:
            response = self._client.post(self.url + path, json=body)
        except httpx.TransportError as error:  # timeouts, refused and lost connections, answers cut short
            raise Again(f"{type(error).__name__} {error}".strip()) from error
        if response.status_code in RETRIED or response.status_code >= 500:
            wait = retry_after(response.headers)
            if wait > LONGEST_RETRY_AFTER or _code(response) in NO_CREDIT:
                raise LeafError(f"{self.url}{path} will take no more for now: {_reason(response)}; look at the account")
            if wait:
                self.pace.hold(wait)
            raise Again(f"{response.status_code}: {_reason(response)}", wait)
        if response.status_code in (401, 403):
            raise LeafError(f"{self.url}{path} refuses the key ({response.status_code}): {_reason(response)}")
        if not response.is_success:
            raise LeafError(f"{self.url}{path} refused the request with {response.status_code}: {_reason(response)}")
        try:
            answer = response.json()
        except ValueError as error:
            raise Again(f"an answer that is not JSON ({error})") from error
        if check is not None:
            check(answer)
        return answer

    def _tell(self, state: RetryCallState) -> None:
        if self._on_retry is not None and state.outcome is not None and state.next_action is not None:
            self._on_retry(str(state.outcome.exception()), state.next_action.sleep)


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
