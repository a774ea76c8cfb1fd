"""Micro-batching: what many connections ask at the same time goes through the encoder together.

Nothing waits on purpose. A free encoder starts at once with whatever is there; what arrives while it is busy forms the
next batch. Long requests are cut and take turns with the others, so one list of 2048 texts delays a query by one batch,
not by sixty. Queries and documents have different prompts and are batched apart.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from leaf.encoder import Encoder, Role, Vectors
from leaf.errors import LeafError
from leaf.runtime.server.metrics import Metrics
from leaf.runtime.server.settings import Settings

logger = logging.getLogger("leaf.serve")


class QueueFull(Exception):
    """More texts are waiting than `max_queue` allows."""


class Encoded(NamedTuple):
    """Vectors, float32 `[n, dim]`, how many tokens the texts had, and the encoder's time for their batches."""

    vectors: Vectors
    num_tokens: int
    seconds: float


@dataclass(eq=False)
class Job:
    """The texts of one request, on their way."""

    texts: Sequence[str]
    role: Role
    vectors: Vectors
    answer: asyncio.Future[Encoded]
    """Cancelled by whoever no longer wants it; what is left of the job is then dropped."""
    arrived: float = field(default_factory=time.perf_counter)
    taken: int = 0
    """Texts that batches have taken so far."""
    num_tokens: int = 0
    seconds: float = 0.0


class Piece(NamedTuple):
    """Texts `start:stop` of a job, in one batch."""

    job: Job
    start: int
    stop: int

    @property
    def texts(self) -> Sequence[str]:
        """Its texts."""
        return self.job.texts[self.start : self.stop]


class Batcher:
    """Collects texts into batches and encodes them in one worker thread.

    One thread, because onnxruntime spreads a batch over the cores by itself, and releases the interpreter meanwhile.
    """

    def __init__(self, encoder: Encoder, settings: Settings, metrics: Metrics) -> None:
        self._encoder, self._settings, self._metrics = encoder, settings, metrics
        # Not part of the Encoder protocol: only an encoder that tokenises here can count.
        self._count_tokens = getattr(encoder, "count_tokens", None)
        # Ordered, and not deques: jobs whose client has left are taken out of the middle.
        self._queues: dict[Role, OrderedDict[Job, None]] = {"query": OrderedDict(), "document": OrderedDict()}
        self._last_role: Role = "document"
        self._num_waiting = 0
        self._wake = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Encodes while the context lasts."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="leaf-encode")
        loop = asyncio.create_task(self._run(thread))
        try:
            yield
        finally:
            loop.cancel()
            thread.shutdown(wait=False, cancel_futures=True)

    def submit(self, texts: Sequence[str], role: Role) -> asyncio.Future[Encoded]:
        """The future vectors of `texts`; cancel it to give up. Raises `QueueFull`.

        The future raises `LeafError` where the texts are to blame, else what the encoder raised.
        """
        # Nothing is turned away from an empty queue, or a list longer than the queue could never be encoded.
        if self._num_waiting and self._num_waiting + len(texts) > self._settings.max_queue:
            raise QueueFull
        vectors = np.empty((len(texts), self._encoder.dim), dtype=np.float32)
        job = Job(texts, role, vectors, asyncio.get_running_loop().create_future())
        job.answer.add_done_callback(lambda _: self._drop(job))
        self._queues[role][job] = None
        self._add_waiting(len(texts))
        self._wake.set()
        return job.answer

    async def _run(self, thread: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            batch = self._next_batch()
            if not batch:
                self._wake.clear()
                continue
            began = time.perf_counter()
            for piece in batch:
                if piece.start == 0:
                    self._metrics.queue_seconds.observe(began - piece.job.arrived)
            self._metrics.batch_texts.observe(sum(piece.stop - piece.start for piece in batch))
            outcomes = await loop.run_in_executor(thread, self._encode, batch)
            self._metrics.encode_seconds.observe(time.perf_counter() - began)
            for piece, outcome in zip(batch, outcomes, strict=True):
                self._deliver(piece, outcome)

    def _next_batch(self) -> list[Piece]:
        """Texts of one role, oldest request first; roles take turns. Empty when nothing waits."""
        role: Role = "query" if self._last_role == "document" else "document"
        if not self._queues[role]:
            role = self._last_role
        self._last_role = role
        queue, batch, num_texts, num_characters = self._queues[role], list[Piece](), 0, 0
        while queue:
            job = next(iter(queue))
            start = stop = job.taken
            if job.answer.done():  # and its callback has not run yet
                self._drop(job)
                continue
            while (
                stop < len(job.texts)
                and num_texts < self._settings.max_batch
                and (not num_texts or num_characters + len(job.texts[stop]) <= self._settings.max_batch_characters)
            ):
                num_characters += len(job.texts[stop])
                num_texts, stop = num_texts + 1, stop + 1
            if stop == start:
                break
            batch.append(Piece(job, start, stop))
            job.taken = stop
            self._add_waiting(start - stop)
            if stop < len(job.texts):
                queue.move_to_end(job)
                break
            del queue[job]
        return batch if batch or not any(self._queues.values()) else self._next_batch()

    def _encode(self, batch: list[Piece]) -> list[Encoded | Exception]:
        """One outcome per piece. Runs in the worker thread."""
        try:
            whole = self._encode_texts([text for piece in batch for text in piece.texts], batch[0].job.role)
        except Exception as error:
            # Alone, each request learns whether it was to blame.
            return [error] if len(batch) == 1 else [self._encode([piece])[0] for piece in batch]
        outcomes: list[Encoded | Exception] = []
        row = 0
        for piece in batch:
            size = piece.stop - piece.start
            vectors, counts = (part[row : row + size] for part in whole[:2])
            row += size
            # A lookup table has no tokens for some texts. Neither NaN nor a vector of zeros is an answer.
            bad = np.flatnonzero(~(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)))
            if len(bad):
                outcomes.append(
                    LeafError(f"input {piece.start + bad[0]} has no vector: the model finds nothing to read in it")
                )
            else:
                outcomes.append(Encoded(vectors, int(counts.sum()), whole[2]))
        return outcomes

    def _encode_texts(self, texts: list[str], role: Role) -> tuple[Vectors, np.ndarray, float]:
        encode = self._encoder.encode_query if role == "query" else self._encoder.encode_document
        began = time.perf_counter()
        vectors = encode(texts, batch_size=self._settings.max_batch)
        seconds = time.perf_counter() - began
        if vectors.shape != (len(texts), self._encoder.dim):
            raise RuntimeError(f"{self._encoder.name} answered {vectors.shape} for {len(texts)} texts")
        counts = self._count_tokens(texts, role) if self._count_tokens else [0] * len(texts)
        return vectors, np.asarray(counts), seconds

    def _deliver(self, piece: Piece, outcome: Encoded | Exception) -> None:
        job = piece.job
        if isinstance(outcome, Exception):
            if not isinstance(outcome, LeafError):
                logger.error("%s failed on a request", self._encoder.name, exc_info=outcome)
            if not job.answer.done():
                job.answer.set_exception(outcome)
            return
        self._metrics.texts.labels(job.role).inc(piece.stop - piece.start)
        self._metrics.tokens.labels(job.role).inc(outcome.num_tokens)
        job.vectors[piece.start : piece.stop] = outcome.vectors
        job.num_tokens += outcome.num_tokens
        job.seconds += outcome.seconds
        if piece.stop == len(job.texts) and not job.answer.done():
            job.answer.set_result(Encoded(job.vectors, job.num_tokens, job.seconds))

    def _drop(self, job: Job) -> None:
        """Forgets what no batch has taken: the client left, or an earlier piece failed. Nothing is left of others."""
        self._queues[job.role].pop(job, None)
        self._add_waiting(job.taken - len(job.texts))
        job.taken = len(job.texts)

    def _add_waiting(self, num_texts: int) -> None:
        self._num_waiting += num_texts
        self._metrics.waiting.inc(num_texts)
