"""`leaf serve --index`: a search page, and the API that it asks, beside `/v1/embeddings` of the default encoder.

    serve_index(index, {"student": lambda: leaf.load("runs/mine/student"), "teacher": lambda: leaf.load(TEACHER)})

`GET /` is the page, one file that asks nobody else; `GET /v1/index` says what is searched and who may ask;
`POST /v1/search` searches. Each encoder has a `Batcher`: questions of the same moment go through it together, and a
full queue, a timeout and a client that left are what they are for embeddings. Nothing of the index is kept here, so
what another process adds is found at once. FastAPI is imported only when serving.
"""

import asyncio
import base64
import hashlib
import logging
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from leaf.errors import LeafError, first_line
from leaf.models import short_name, without_folders
from leaf.runtime.server import Settings, check_installed, create_app, run
from leaf.runtime.server.protocol import Refusal
from leaf.search import protocol
from leaf.search.admission import space_carried
from leaf.search.askers import Askers, Encoders
from leaf.search.filters import check, parse
from leaf.search.index import Index
from leaf.search.store import is_url

if TYPE_CHECKING:
    from fastapi import FastAPI
    from prometheus_client import Histogram

    from leaf.runtime.server.batching import Batcher, Encoded
    from leaf.runtime.server.metrics import Metrics

#: Threads that search. Numpy spreads one search of a folder over the cores, and several of them only take turns with
#: the interpreter: of 2,000 documents, 16 connections got 560 answers a second from one thread, 450 from two and 180
#: from six. A database answers several at a time.
FOLDER_THREADS, DATABASE_THREADS = 1, 8
PAGE = Path(__file__).with_name("page.html")
logger = logging.getLogger("leaf.serve")


def serve_index(index: Index, encoders: Encoders, settings: Settings | None = None) -> None:
    """Serves `index` until SIGTERM or Ctrl-C. Raises `LeafError` as `create_search_app`, and for a taken port."""
    settings = settings or Settings()
    app = create_search_app(index, encoders, settings)
    run(app, settings, f"{len(index):,} documents of {index.store.name}, asked by {next(iter(encoders))},", "/")


def create_search_app(index: Index, encoders: Encoders, settings: Settings) -> Any:
    """The ASGI application (a `FastAPI`) with the page, the search API and the routes of `leaf serve`.

    The default encoder is opened and admitted here, each of the others when somebody first asks with it. Raises
    `LeafError` without the extra `serve`, and for a default that cannot be opened or is of another space.
    """
    check_installed()
    if not encoders:
        raise LeafError(f"no encoder to ask {index.store.name} with; name a student of its teacher")
    default = next(iter(encoders))
    encoder = encoders[default]()
    index.admit(encoder)
    if not settings.names:
        settings = settings.model_copy(update={"names": (default,)})
    extend = partial(_extend, index, encoders, settings)
    return create_app(encoder, settings, space=space_carried(encoder), extend=extend)


def _extend(
    index: Index, encoders: Encoders, settings: Settings, app: "FastAPI", batcher: "Batcher", metrics: "Metrics"
) -> Callable[[], AbstractAsyncContextManager[None]]:
    """Adds the routes of search to `app`; what is returned is entered while it serves."""
    from fastapi import Request, Response
    from prometheus_client import Histogram

    from leaf.runtime.server import app as web
    from leaf.runtime.server.metrics import SECONDS

    names = tuple(encoders)
    askers = Askers(index, encoders, settings, batcher, metrics)
    seconds = Histogram(
        "leaf_search_seconds", "One query in the index.", ["model"], buckets=SECONDS, registry=metrics.registry
    )
    threads = DATABASE_THREADS if is_url(index.store.name) else FOLDER_THREADS
    pool = ThreadPoolExecutor(threads, thread_name_prefix="leaf-search")
    page = PAGE.read_text(encoding="utf-8")
    headers = {"content-security-policy": content_security_policy(page), "cache-control": "no-cache"}
    headers |= {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
    schema = {"required": True, "content": {"application/json": {"schema": protocol.request_schema(settings, names)}}}

    async def in_thread(work: Callable[[], bytes]) -> Response:
        try:
            answer = asyncio.get_running_loop().run_in_executor(pool, work)
            content = await asyncio.wait_for(answer, settings.timeout)
        except TimeoutError:
            raise web.overloaded(f"The index did not answer within {settings.timeout:g} s.") from None
        except LeafError as error:
            logger.error("%s: %s", index.store.name, error)
            raise Refusal(503, first_line(error), code="index_unavailable") from error
        return Response(content, media_type="application/json")

    @app.get("/", include_in_schema=False, openapi_extra=web.NO_KEY)
    async def the_page() -> Response:
        return Response(page, headers=headers, media_type="text/html")

    @app.get("/v1/index", response_model=protocol.IndexAnswer, responses=web.errors(401, 503))
    async def the_index() -> Response:
        """What is searched, and who may ask."""
        return await in_thread(lambda: to_json(_describe(index, askers.cards())))

    @app.post(
        "/v1/search",
        response_model=protocol.SearchAnswer,
        responses=web.errors(400, 401, 404, 408, 409, 413, 415, 500, 503),
        openapi_extra={"requestBody": schema},
    )
    async def search(request: Request) -> Response:
        """The best documents for one query."""
        wanted = protocol.parse_request(await web.read_body(request, settings), settings, names)
        chosen = await askers.batcher(wanted.model)
        try:
            encoded = await web.encode(chosen, [wanted.query], "query", request, settings.timeout)
        except Refusal as refusal:
            if refusal.param == "input":
                raise Refusal(400, refusal.message.replace("input 0", "the query"), param="query") from refusal
            raise
        if encoded is None:
            return Response(status_code=web.CLIENT_LEFT)
        return await in_thread(lambda: _search(index, wanted, encoded, seconds))

    return askers.running


def _describe(index: Index, encoders: list[protocol.EncoderCard]) -> protocol.IndexAnswer:
    settings = index.settings
    # Documents of an index in standard mode are a student's own, in the space of its teacher.
    documents_model = settings.model if settings.own_documents else str(index.space.teacher.get("model", ""))
    teacher = short_name(without_folders(documents_model))
    return protocol.IndexAnswer(
        documents=len(index), space=index.space.id, teacher=teacher, dim=settings.dim, precision=settings.precision,
        columns=index.store.columns(), encoders=encoders,
    )  # fmt: skip


def _search(index: Index, wanted: protocol.SearchRequest, encoded: "Encoded", seconds: "Histogram") -> bytes:
    """The JSON of a `SearchAnswer`. Raises `Refusal` for the condition, and whatever the store raises."""
    columns = index.store.columns() if wanted.where else {}
    try:
        condition = parse(wanted.where) if wanted.where else None
        if condition is not None:
            check(condition, columns)
    except (LeafError, RecursionError) as error:
        raise Refusal(400, first_line(error), param="where") from error
    began = time.perf_counter()
    vectors = index.settings.prepare(encoded.vectors)
    (hits,) = index.store.search(vectors, wanted.k, where=condition, exact=wanted.exact)
    took = time.perf_counter() - began
    seconds.labels(wanted.model).observe(took)
    ms = {"encode": round(1000 * encoded.seconds, 3), "search": round(1000 * took, 3)}
    return to_json({"model": wanted.model, "hits": [asdict(hit) for hit in hits], "ms": ms, "documents": len(index)})


def content_security_policy(page: str) -> str:
    """Lets `page` run its own script and style, ask this server, and nothing else: by their hashes, not by 'inline'."""
    hashes = {
        tag: "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"
        for tag, content in re.findall(r"<(script|style)>(.*?)</\1>", page, flags=re.DOTALL)
    }
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
