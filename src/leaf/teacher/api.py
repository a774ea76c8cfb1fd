"""A teacher behind an API: OpenAI's, every server that speaks its protocol, Voyage AI's, Cohere's.

    from leaf.files import user_cache

    teacher = ApiTeacher("voyage:voyage-3.5", Api(price=0.06), store=user_cache() / "api")
    teacher.encode_document(["a text"])  # asked for and paid once; from the store ever after

Vectors cost money and the model is out of sight, so three things are kept: no text is paid for twice (`paid`), no
answer is believed unchecked (`buying`), and vectors of two models never meet (`drift`).
"""

import re
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np

from leaf.encoder import Advance, Role, Vectors
from leaf.errors import Halt
from leaf.files import digest
from leaf.models import short_name
from leaf.progress import say
from leaf.recipe import Api
from leaf.service import OverBudget
from leaf.teacher.buying import Buyer
from leaf.teacher.drift import CANARIES, by_role, drift
from leaf.teacher.paid import PaidVectors
from leaf.teacher.providers import provider_of
from leaf.vector_files import UNIT_NORM_TOLERANCE

#: Answered requests, and seconds, after which the canaries are looked at again: the most that a changed model can cost.
LOOK_REQUESTS = 1000
LOOK_SECONDS = 600.0


class ApiTeacher:
    """An `Encoder` that buys what was never asked for before. May be called from many threads, one call at a time.

    `model` is `PROVIDER:MODEL`. `prompts` are put before the texts, for instruction models behind servers of one's own;
    the providers are told each text's role instead. `store` is the folder of bought vectors, on a local disk. `run`
    names what spending is counted for, over all its processes; `max_cost` is its ceiling in US dollars and needs
    `settings.price`. Nothing is sent, and no key looked for, before a text is missing from the store.

    A call that buys ends with a look at the canaries, two requests more, so every vector it returns is of the one model
    that the store is of: give it many texts. While it buys, other processes that want to wait.

    Raises `LeafError` for an unknown provider and a ceiling without a price and, when encoding, for a text too long or
    empty; `Halt` for a missing or refused key, a service that fails, a ceiling that is reached (`OverBudget`) and a
    model that has changed. Whatever was answered before an error is kept.
    """

    similarity: Literal["cosine", "dot"] = "cosine"
    max_length: int | None = None
    folder: str | None = None
    num_parameters: int | None = None

    def __init__(
        self,
        model: str,
        settings: Api,
        *,
        name: str | None = None,
        prompts: Mapping[Role, str] | None = None,
        store: Path,
        run: str = "",
        max_cost: float | None = None,
    ) -> None:
        provider, own_name = provider_of(model)
        parts = urlsplit(settings.url or "")
        #: Who answers, and in which form. A server of one's own may move to another port: the canaries tell.
        self._source = {
            "model": model,
            "url": f"{parts.hostname}{parts.path.rstrip('/')}" if settings.url else None,
            "dimensions": settings.dimensions,
            "input_types": dict(settings.input_types or provider.input_types),
        }
        self.name = name or short_name(own_name)
        self.prompts: dict[Role, str] = {"query": "", "document": "", **(prompts or {})}
        self._settings = settings
        readable = re.sub(r"[^\w.]+", "-", model)[:80]
        self._store = PaidVectors(store / f"{readable}-{digest(self._source)[:16]}.sqlite")
        self._buyer = Buyer(model, settings, self._store, run, max_cost)
        self._one_call = threading.RLock()
        self._had = 0
        self._looked: float | None = None  # the last good look; None: not by this teacher, or it has changed since

    @property
    def dim(self) -> int:
        """Width of the vectors; asks for the canaries where the store is new."""
        with self._one_call:
            if not self._buyer.facts:
                self._buyer.learn()  # another process may have been first
            if not self._buyer.facts:
                with self._buying():
                    pass  # that begins with the canaries
            return int(self._buyer.facts["dim"])

    def identity(self) -> dict[str, Any]:
        """Everything that can change this model's vectors, as plain JSON: the teacher half of a cache key.

        Nobody is asked for it, and weights nobody can see: that the model stays the same is what the canaries are for.
        """
        return {
            **self._source,
            "characters": self._settings.characters,
            "prompts": dict(self.prompts),
            "similarity": self.similarity,
        }

    def encode_query(self, texts: Sequence[str], *, batch_size: int = 32, advance: Advance | None = None) -> Vectors:
        """Vectors of queries, float32 `[n, dim]`; `batch_size` is of no account, requests have their own."""
        return self._encode(texts, "query", advance)

    def encode_document(self, texts: Sequence[str], *, batch_size: int = 32, advance: Advance | None = None) -> Vectors:
        """Vectors of documents, float32 `[n, dim]`; `batch_size` is of no account, requests have their own."""
        return self._encode(texts, "document", advance)

    def bill(self) -> dict[str, Any]:
        """What the run has bought, over all its processes, for a manifest; `texts_had` is of this process alone.

        `tokens_lost` are of tries whose answer never came, as estimated: they may be on the provider's bill, and count.
        """
        spent = self._store.spent(self._buyer.run)
        cost = None if self._settings.price is None else round(self._buyer.cost(spent["tokens"] + spent["lost"]), 6)
        return {
            "texts_bought": spent["texts"],
            "texts_had": self._had,
            "requests": spent["requests"],
            "retries": spent["retries"],
            "tokens": spent["tokens"],
            "tokens_lost": spent["lost"],
            "cost": cost,
        }

    def close(self) -> None:
        """Closes connections and store."""
        self._buyer.close()
        self._store.close()

    def _encode(self, texts: Sequence[str], role: Role, advance: Advance | None) -> Vectors:
        with self._one_call:
            vectors = np.empty((len(texts), self.dim), dtype=np.float32)
            sent = [self.prompts[role] + text[: self._settings.characters] for text in texts]
            missing: dict[bytes, list[int]] = {}
            for row, text in enumerate(sent):
                missing.setdefault(self._buyer.key(role, text), []).append(row)

            def fill(found: Mapping[bytes, Vectors]) -> int:
                rows = [(missing.pop(key), vector) for key, vector in found.items()]
                for of_text, vector in rows:
                    vectors[of_text] = vector
                count = sum(len(of_text) for of_text, _ in rows)
                if advance and count:
                    advance(count)
                return count

            self._had += sum(map(fill, self._store.find([*missing])))
            if missing:
                with self._buying():
                    self._had += sum(map(fill, self._store.find([*missing])))
                    wanted = {key: sent[rows[0]] for key, rows in missing.items()}
                    self._buyer.check(wanted.values(), role)
                    with closing(self._buy(role, wanted)) as bought:
                        self._had += sum(fill(found) - len(found) for found in bought)
                    if wanted:
                        self._look()
            return vectors

    @contextmanager
    def _buying(self) -> Iterator[None]:
        """Inside, nobody else buys, and the model was lately the same; what a killed process left is confirmed."""
        self._buyer.ready()
        with self._store.buying():
            if self._look_is_due() or self._store.has_unconfirmed():
                self._look()
            yield

    def _look_is_due(self) -> bool:
        stale = self._looked is None or time.monotonic() - self._looked > LOOK_SECONDS
        return stale or self._buyer.asked >= LOOK_REQUESTS

    def _look(self) -> None:
        """Encodes the canaries: keeps their vectors if the store is new, compares them if it is not."""
        self._looked = None
        self._buyer.learn()
        known, before = self._store.canaries()
        size = self._buyer.batch_texts
        answers = [
            self._buyer.ask(role, texts[start : start + size])
            for role, texts in by_role(known or CANARIES).items()
            for start in range(0, len(texts), size)
        ]
        if len({answer.shape[1] for answer in answers}) > 1:
            raise Halt(f"{self.name} answers with vectors of several widths; look at the server's model")
        now = np.concatenate(answers)
        if before is None:
            unit = bool((abs(np.linalg.norm(now, axis=1) - 1) <= UNIT_NORM_TOLERANCE).all())
            self._store.begin(CANARIES, now, dim=now.shape[1], unit=unit, answered_as=self._buyer.answered_as)
            self._buyer.learn()
        elif (changed := drift(before, now)) is not None:
            count = self._store.set_aside()
            raise Halt(
                f"the model behind {self._buyer.model_id} has changed: {changed}. {count:,} vectors bought since it "
                f"was last the same are set aside. {self._buyer.another_model()}"
            )
        self._store.confirm()
        self._looked, self._buyer.asked = time.monotonic(), 0

    def _buy(self, role: Role, wanted: Mapping[bytes, str]) -> Generator[dict[bytes, Vectors], None, None]:
        """The vectors of texts that are not in the store, request by request as they are answered."""
        stop = threading.Event()
        pending: dict[Future[Vectors], list[bytes]] = {}
        batches = self._buyer.batches(role, wanted)
        batch = next(batches, None)
        with ThreadPoolExecutor(self._settings.at_once) as pool:
            try:
                while batch or pending:
                    if batch and len(pending) < self._settings.at_once and not self._look_is_due():
                        texts = [wanted[key] for key in batch]
                        try:
                            reserved = self._buyer.reserve(role, texts)
                        except OverBudget:  # what is in flight may turn out cheaper
                            if not pending:
                                raise
                        else:
                            pending[pool.submit(self._buyer.ask, role, texts, batch, reserved, stop)] = batch
                            batch = next(batches, None)
                            continue
                    if not pending:
                        self._look()
                        continue
                    for done in wait(pending, return_when=FIRST_COMPLETED).done:
                        yield dict(zip(pending.pop(done), done.result(), strict=True))
            finally:
                stop.set()  # what is in flight is paid, so it is waited for and kept; nothing more is asked
                if late := wait(pending, timeout=1).not_done:
                    say(f"{self._buyer.model_id}: waiting for the answers of {len(late)} requests, which are paid")
