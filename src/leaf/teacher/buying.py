"""One request to an embedding API, from its estimate to its place in the store: what it may cost, what it did, whether
the answer can be believed.
"""

import hashlib
import itertools
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from leaf.encoder import Role, Vectors, row_cosines
from leaf.errors import Halt, LeafError
from leaf.progress import say
from leaf.recipe import Api
from leaf.service import Again, Budget, Pace, Refused, Service
from leaf.teacher.drift import MIN_WITNESS_COSINE
from leaf.teacher.paid import PaidVectors, Purchase
from leaf.teacher.providers import provider_of, request_limits, tokens_of, too_much, vectors_of
from leaf.vector_files import UNIT_NORM_TOLERANCE

#: Seconds between two lines about waiting.
SAY_INTERVAL = 15.0


class TokenRate:
    """Tokens for a byte of UTF-8, learned from what the last answers say they used.

    Of a byte, since that is 0.2 to 0.5 tokens in most scripts, where a character is anything from 0.2 to 2. A byte is
    taken for a token until an answer says otherwise: no common tokenizer makes more of it.
    """

    LAST = 64

    def __init__(self, seen: Sequence[tuple[int, int]] = ()) -> None:
        self._seen = tuple(seen)[-self.LAST :]

    def learn(self, num_bytes: int, tokens: int) -> None:
        """An answer to so many bytes cost so many tokens."""
        self._seen = (*self._seen, (max(1, num_bytes), tokens))[-self.LAST :]

    def mean(self, num_bytes: int) -> int:
        """Tokens of so many bytes, as they are on the whole."""
        seen = self._seen or ((1, 1),)
        return 1 + int(num_bytes * sum(tokens for _, tokens in seen) / sum(each for each, _ in seen))

    def most(self, num_bytes: int) -> int:
        """Tokens of so many bytes that are half as dense again as the densest request of late."""
        return 1 + int(num_bytes * max((1.5 * tokens / each for each, tokens in self._seen), default=1.0))


class Buyer:
    """Asks one model for vectors, within a budget. May be called from many threads once it is `ready`.

    Everything that can be checked about an answer is: the number of vectors and their order, that they are finite,
    their width and length, the name of the model that answered, and the vector of a *witness*: a canary that goes along
    with the texts, another one each time. While a model is replaced, old and new may take turns to answer, and a look
    now and then could meet the old one alone. Raises `LeafError` for a ceiling without a price.
    """

    def __init__(self, model: str, settings: Api, store: PaidVectors, run: str, max_cost: float | None) -> None:
        self.provider, self._model = provider_of(model)
        if max_cost is not None and settings.price is None:
            raise LeafError(f"a ceiling of ${max_cost:g} needs the price of {model}; set teacher.api.price")
        own = settings.url is None
        self.model_id, self.settings, self.store, self.run = model, settings, store, run
        self.input_types: Mapping[Role, str] = settings.input_types or self.provider.input_types
        self.batch_texts, self._batch_tokens = request_limits(self.provider, settings)
        self._max_text_tokens = self.provider.max_text_tokens if own else None
        roles: tuple[Role, ...] = ("query", "document")
        self._rates = {role: TokenRate(store.rates(role, TokenRate.LAST)) for role in roles}
        spent = store.spent(run)
        self._budget = Budget(max_cost, self.cost(spent["tokens"] + spent["lost"]))
        self.answered_as: str | None = None
        self.asked = 0
        """Answered requests since the last good look at the canaries."""
        self._service: Service | None = None
        self._counting = threading.Lock()
        self._said = -SAY_INTERVAL
        self.learn()

    def learn(self) -> None:
        """Takes over what the store knows of the model."""
        self.facts = self.store.facts()
        canaries, vectors = self.store.canaries()
        known = [] if vectors is None else list(zip(canaries, vectors, strict=True))
        self._witnesses = {
            role: itertools.cycle([(text, vector) for (each, text), vector in known if each == role])
            for role in self._rates
        }
        self._heaviest = max((_weight([text]) for _, text in canaries), default=0)

    def ready(self) -> None:
        """Sees that there is a key, and somebody to ask. Raises `LeafError` where not."""
        if self._service is not None:
            return
        own = self.provider.key_variable if self.settings.url is None else None
        service = Service(
            self.settings.url or self.provider.url,
            key_variable=own if self.settings.key_variable is None else self.settings.key_variable,
            timeout=self.settings.timeout,
            pace=Pace(self.settings.requests_per_minute, self.settings.tokens_per_minute),
            on_retry=self._say,
        )
        service.reach()
        self._service = service

    def close(self) -> None:
        """Closes the connections."""
        if self._service is not None:
            self._service.close()

    def key(self, role: Role, text: str) -> bytes:
        """What a text is kept under. Where no role is told there is none: its vector is the same in both."""
        return hashlib.sha256(f"{self.input_types.get(role, '')}\0{text}".encode()).digest()[:16]

    def cost(self, tokens: float) -> float:
        """US dollars; 0 where no price is known."""
        return tokens * (self.settings.price or 0.0) / 1e6

    def check(self, texts: Collection[str], role: Role) -> None:
        """Raises `LeafError`, before anything is paid, for texts that cannot be encoded and a disk without room."""
        limit, rate = self._max_text_tokens, self._rates[role]
        for text in texts:
            if not text:
                raise LeafError(f"one of the texts is empty, and {self.model_id} has no vector for that: take it out")
            weight = _weight([text])
            if limit is not None and 0.7 * rate.mean(weight) > limit:  # 0.7: some texts are less dense than the mean
                cut = int(len(text) * limit / rate.most(weight))
                raise LeafError(
                    f"a text of {len(text):,} characters is about {rate.mean(weight):,} tokens, and {self.model_id} "
                    f"takes {limit:,}: cut texts with teacher.api.characters = {cut}"
                )
        folder = self.store.file.parent
        needed, free = len(texts) * (self.facts["dim"] * 4 + 64) * 1.2, shutil.disk_usage(folder).free
        if needed > free:
            raise LeafError(
                f"the vectors to be bought need about {needed / 1e6:,.0f} MB and {folder} has {free / 1e6:,.0f} MB "
                "free; make room there before they are paid"
            )

    def batches(self, role: Role, wanted: Mapping[bytes, str]) -> Iterator[list[bytes]]:
        """Keys of the texts of each request, with room for a witness; what one tells of tokens counts for the next."""
        batch: list[bytes] = []
        weight = self._heaviest
        for key, text in wanted.items():
            weight += _weight([text])
            if batch and (len(batch) >= self.batch_texts - 1 or self._rates[role].most(weight) > self._batch_tokens):
                yield batch
                batch, weight = [], self._heaviest + _weight([text])
            batch.append(key)
        if batch:
            yield batch

    def reserve(self, role: Role, texts: Sequence[str]) -> float:
        """Sets aside what these texts may cost, and returns it. Raises `OverBudget`."""
        cost = self.cost(self._rates[role].most(self._heaviest + _weight(texts)))
        self._budget.reserve(cost)
        return cost

    def ask(
        self,
        role: Role,
        texts: Sequence[str],
        keys: Sequence[bytes] = (),
        reserved: float | None = None,
        stop: threading.Event | None = None,
    ) -> Vectors:
        """The vectors of one request's texts, float32 `[n, dim]`; they are in the store, under `keys`, on return.

        Without `keys` (the canaries) only what they cost is, and there is no witness. `reserved` was set aside for
        them; None does it here. Once `stop` is set, no further try begins. What a service finds too much is asked for
        in halves.
        """
        assert self._service is not None
        reserved = self.reserve(role, texts) if reserved is None else reserved
        witness, expected = next(self._witnesses[role]) if keys and len(texts) < self.batch_texts else (None, None)
        sent = [*texts, witness] if witness is not None else [*texts]
        weight = _weight(sent)
        most, tries, lost = self._rates[role].most(weight), 0, 0
        vectors = np.empty((0, 0), dtype=np.float32)

        def check(answer: Any) -> None:
            nonlocal vectors
            vectors = vectors_of(answer, len(sent))

        def failed(error: Again) -> None:
            nonlocal tries, lost, reserved
            tries += 1
            if error.billed:
                lost += most
                self._budget.settle(reserved or 0.0, self.cost(most))
                reserved = 0.0
                reserved = self.reserve(role, texts)

        body = self.provider.body(self._model, sent, self.settings.dimensions, self.input_types.get(role))
        mean = self._rates[role].mean(weight)
        try:
            answer = self._service.post(self.provider.path, body, tokens=mean, check=check, failed=failed, stop=stop)
        except LeafError as error:
            self._budget.settle(reserved, 0.0)
            if lost:
                self.store.add(Purchase(self.run, role, weight, 0, lost, tries))
            if isinstance(error, Refused):
                return self._ask_less(error, role, texts, keys, stop)
            raise
        tokens = tokens_of(answer) or mean
        self._budget.settle(reserved, self.cost(tokens))
        with self._counting:
            self._rates[role].learn(weight, tokens)
            self.asked += 1
        wrong = self._wrong(vectors, answer.get("model"), expected)
        vectors = vectors[: len(texts)]
        purchase = Purchase(self.run, role, weight, tokens, lost, tries + 1)
        self.store.add(purchase, *((keys, vectors) if keys and not wrong else ()))
        if wrong:
            raise Halt(f"{self.model_id} {wrong}; what was bought before is kept. {self.another_model()}")
        return vectors

    def _ask_less(
        self, refused: Refused, role: Role, texts: Sequence[str], keys: Sequence[bytes], stop: threading.Event | None
    ) -> Vectors:
        """The same texts in halves, where they were too many; else raises what `refused` comes to."""
        if refused.status in (401, 403) and self.settings.url and not self.settings.key_variable:
            raise Halt(f"{refused}; name the environment variable of its key as teacher.api.key_variable")
        if not too_much(refused.status, str(refused)):
            raise refused
        if len(texts) == 1:
            raise LeafError(
                f"a text of {len(texts[0]):,} characters is too long for {self.model_id} ({refused}): cut texts with "
                "teacher.api.characters"
            ) from refused
        half = (len(texts) + 1) // 2
        if "batch size" in str(refused):  # of texts, whatever their length: text-embeddings-inference takes 32
            self.batch_texts = min(self.batch_texts, half)
        parts = (slice(None, half), slice(half, None))
        return np.concatenate([self.ask(role, texts[part], keys[part], stop=stop) for part in parts])

    def _wrong(self, vectors: Vectors, answered_as: str | None, witness: Vectors | None) -> str | None:
        """What makes an answer one of another model than the store's; None where nothing does.

        `witness` is what the last vector should be.
        """
        before = self.facts.get("answered_as")
        if before and answered_as and answered_as != before:
            return f"answered as {answered_as}, before as {before}"
        dim = self.facts.get("dim") or self.settings.dimensions or vectors.shape[1]
        if vectors.shape[1] != dim:
            return f"answered with {vectors.shape[1]} dimensions, expected {dim}"
        off = abs(np.linalg.norm(vectors, axis=1) - 1)
        if self.facts.get("unit") and (off > UNIT_NORM_TOLERANCE).any():
            return f"answered a vector whose length is {off.max():.4f} off 1, which all lengths before were"
        if witness is not None and (cosine := row_cosines(vectors[-1:], witness[None])[0]) < MIN_WITNESS_COSINE:
            return f"answered a text that never changes with a vector of cosine {cosine:.4f} to what it had"
        self.answered_as = answered_as
        return None

    def another_model(self) -> str:
        """What to do about vectors that are another model's."""
        return (
            f"If the model has changed, ask for a dated version of it, or begin anew: with another --out, and with "
            f"{self.store.file} moved away"
        )

    def _say(self, reason: str, seconds: float) -> None:
        with self._counting:
            quiet = seconds < 1 or time.monotonic() - self._said < SAY_INTERVAL
            self._said = self._said if quiet else time.monotonic()
        if not quiet:
            say(f"{self.model_id}: {reason}; trying again in {seconds:.0f} s")


def _weight(texts: Sequence[str]) -> int:
    """Bytes of UTF-8."""
    return sum(len(text.encode()) for text in texts)
