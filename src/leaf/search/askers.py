"""Who may ask an index that is served: the default encoder is there from the start, the others when first asked with.

Loading a teacher takes long, or cannot be done at all (without torch, say), and must neither hold up a question to
somebody else nor end the server: it happens once, in a thread, and what went wrong is told to who asked with it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from leaf.encoder import Encoder
from leaf.errors import LeafError, first_line
from leaf.models import short_name
from leaf.runtime.server import Settings
from leaf.runtime.server.protocol import Refusal
from leaf.search.index import Index
from leaf.search.protocol import EncoderCard

if TYPE_CHECKING:
    from leaf.runtime.server.batching import Batcher
    from leaf.runtime.server.metrics import Metrics

#: Short names, and what opens each encoder. The default first, the documents' own last.
Encoders: TypeAlias = Mapping[str, Callable[[], Encoder]]
logger = logging.getLogger("leaf.serve")


@dataclass(eq=False)
class Asker:
    """A query encoder, which has a `batcher` once it is opened and admitted."""

    name: str
    opening: Callable[[], Encoder]
    batcher: "Batcher | None" = None
    task: "asyncio.Task[None] | None" = None
    """Opens it: the first who asks starts it, and all who ask meanwhile wait for it."""
    status: int = 503
    error: str | None = None


class Askers:
    """The query encoders of an index, by name."""

    def __init__(
        self, index: Index, encoders: Encoders, settings: Settings, default: "Batcher", metrics: "Metrics"
    ) -> None:
        self._index, self._settings, self._metrics = index, settings, metrics
        self._askers = {name: Asker(name, opening) for name, opening in encoders.items()}
        self._default, *_, self._last = [*self._askers, *self._askers]
        self._askers[self._default].batcher = default

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Encodes while the context lasts, with whatever is opened meanwhile."""
        async with AsyncExitStack() as self._stack:
            yield

    async def batcher(self, name: str) -> "Batcher":
        """That of an encoder, opened if need be. Raises `Refusal`: 409 for one of another space, 503."""
        from leaf.runtime.server.app import overloaded

        asker = self._askers[name]
        if asker.batcher is None:
            asker.task = asker.task or asyncio.create_task(self._open(asker))
            try:
                await asyncio.wait_for(asyncio.shield(asker.task), self._settings.timeout)
            except TimeoutError:
                raise overloaded(f"{name} is still being opened; try again.") from None
        if asker.batcher is None:
            code = "model_refused" if asker.status == 409 else "model_unavailable"
            raise Refusal(asker.status, asker.error or "", param="model", code=code)
        return asker.batcher

    async def _open(self, asker: Asker) -> None:
        from leaf.runtime.server.batching import Batcher

        encoder: Encoder | None = None
        try:
            encoder = await asyncio.to_thread(asker.opening)
            await asyncio.to_thread(self._index.admit, encoder)
        except Exception as error:
            if not isinstance(error, LeafError | ImportError):
                logger.exception("%s cannot be opened", asker.name)
            if encoder is not None and isinstance(error, LeafError):
                asker.status, asker.error = 409, first_line(error)
            else:
                asker.status, asker.error = 503, f"{asker.name} cannot be opened: {first_line(error)}"
                asker.task = None  # what is missing now may be there when the next one asks
            return
        batcher = Batcher(encoder, self._settings, self._metrics)
        await self._stack.enter_async_context(batcher.running())
        asker.batcher, asker.error = batcher, None

    def cards(self) -> list[EncoderCard]:
        """What `GET /v1/index` says of them."""
        alone_and_student = len(self._askers) == 1 and self._last != short_name(self._index.settings.model)
        teacher = None if alone_and_student else self._last
        return [
            EncoderCard(
                name=name,
                loaded=bool(each.batcher),
                default=name == self._default,
                teacher=name == teacher,
                error=each.error,
            )
            for name, each in self._askers.items()
        ]
