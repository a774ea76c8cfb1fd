"""The web application: routes, limits and errors, around a `Batcher`.

The only 5xx are 503 (more work than the queue takes, or than fits the timeout; with Retry-After) and 500 (the encoder
failed on a text that a request may contain; logged). Another package may add routes (`extend`), which get the same
errors, key and counts.
"""

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import leaf
from leaf.encoder import Encoder, Role
from leaf.errors import LeafError
from leaf.runtime.server import protocol
from leaf.runtime.server.batching import Batcher, Encoded, QueueFull
from leaf.runtime.server.metrics import Metrics
from leaf.runtime.server.protocol import Refusal
from leaf.runtime.server.settings import Settings
from leaf.space import Space, verify

#: Encoded before the port opens where there is no space to verify.
CANARIES = ("how do I read a file line by line", "Open the file and iterate over it: each step yields one line.")
#: Seconds that a client should wait after 503.
RETRY_AFTER = 1
#: The status that proxies log for a client that left; it is never sent.
CLIENT_LEFT = 499
#: Of a route that asks for no key, as OpenAPI writes it.
NO_KEY: dict[str, Any] = {"security": []}
#: Adds routes to the application, and gives what is entered while it serves.
Extend: TypeAlias = Callable[[FastAPI, Batcher, Metrics], Callable[[], AbstractAsyncContextManager[None]]]


@dataclass(frozen=True)
class Served:
    """What is served, as measured at the start."""

    names: tuple[str, ...]
    dim: int
    similarity: Literal["cosine", "dot"]
    normalised: bool
    space: Space | None

    @property
    def space_id(self) -> str | None:
        """The id of the space, None for a model that does not say."""
        return self.space.id if self.space else None


def probe(encoder: Encoder, settings: Settings, space: Space | None) -> Served:
    """Encodes canaries: a model that cannot encode, or has left its space, is found before anyone asks it.

    Raises `LeafError`.
    """
    if space is not None:
        verdict = verify(encoder, space)
        if not verdict.in_space:
            raise LeafError(
                f"{encoder.name} is not in the space {space.id} that it comes with: mean canary error "
                f"{verdict.error:.3f}, {space.error:.3f} when it was saved; export the student again"
            )
    vectors = np.concatenate([encoder.encode_query(CANARIES), encoder.encode_document(CANARIES)])
    if vectors.shape != (2 * len(CANARIES), encoder.dim) or not np.isfinite(vectors).all():
        raise LeafError(f"{encoder.name} answers {vectors.shape} or NaN to {2 * len(CANARIES)} plain sentences")
    unit = np.abs(np.linalg.norm(vectors, axis=1) - 1) < 1e-3
    return Served(settings.names or (encoder.name,), encoder.dim, encoder.similarity, bool(unit.all()), space)


def create_app(
    encoder: Encoder, settings: Settings, *, space: Space | None = None, extend: Extend | None = None
) -> FastAPI:
    """The application that serves `encoder`. Raises `LeafError` for an encoder outside `space`."""
    served = probe(encoder, settings, space)
    metrics = Metrics()
    batcher = Batcher(encoder, settings, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with batcher.running(), extension():
            yield

    app = FastAPI(
        title="leaf",
        version=leaf.__version__,
        description=f"Embeddings of {served.names[0]}, in the form of OpenAI's API.",
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
    )
    _add_embeddings(app, batcher, served, settings)
    _add_descriptions(app, served, metrics)
    extension = extend(app, batcher, metrics) if extend else contextlib.nullcontext
    _add_errors(app)
    app.openapi = partial(_openapi, app, settings)  # type: ignore[method-assign]
    key = settings.api_key.get_secret_value() if settings.api_key else None
    app.add_middleware(Gate, routes=app.routes, metrics=metrics, api_key=key)
    if settings.cors:  # added last, so outermost: a refusal needs CORS headers too, and a preflight carries no key
        methods, headers = ["GET", "POST"], ["*"]
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors, allow_methods=methods, allow_headers=headers, max_age=3600
        )
    return app


def _add_embeddings(app: FastAPI, batcher: Batcher, served: Served, settings: Settings) -> None:
    schema = protocol.request_schema(settings, served.names, served.dim)

    @app.post(
        "/v1/embeddings",
        response_model=protocol.EmbeddingAnswer,
        responses=errors(400, 401, 404, 408, 413, 415, 500, 503),
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
    )
    async def embeddings(request: Request) -> Response:
        """Vectors of one text or a list of texts."""
        body = await read_body(request, settings)
        wanted = protocol.parse(body, settings, served.names, served.dim)
        encoded = await encode(batcher, wanted.texts, wanted.role, request, settings.timeout)
        if encoded is None:
            return Response(status_code=CLIENT_LEFT)
        vectors = protocol.truncate(encoded.vectors, wanted.dim, normalised=served.normalised)
        content = await protocol.render(
            vectors, as_base64=wanted.as_base64, model=served.names[0], num_tokens=encoded.num_tokens
        )
        return Response(content, media_type="application/json")


def _add_descriptions(app: FastAPI, served: Served, metrics: Metrics) -> None:
    created = int(time.time())
    cards = {
        name: protocol.ModelCard(
            id=name,
            object="model",
            created=created,
            owned_by="leaf",
            dim=served.dim,
            similarity=served.similarity,
            normalised=served.normalised,
            space=served.space_id,
        )
        for name in served.names
    }
    space = _space_answer(served.space) if served.space else None
    plain_text: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}

    @app.get("/v1/models", responses=errors(401))
    async def models() -> protocol.ModelList:
        """The names that requests may ask for."""
        return protocol.ModelList(object="list", data=list(cards.values()))

    @app.get("/v1/models/{name:path}", responses=errors(401, 404))
    async def model(name: str) -> protocol.ModelCard:
        """One of them."""
        if name not in cards:
            there = " or ".join(map(repr, cards))
            raise Refusal(404, f"The model {name!r} does not exist; this server has {there}.", code="model_not_found")
        return cards[name]

    @app.get("/v1/space", response_model=protocol.SpaceAnswer, responses=errors(401, 404))
    async def the_space() -> Response:
        """Which vector space the answers lie in, with canary texts and the teacher's vectors of them."""
        if space is None:
            raise Refusal(404, "This model carries no space.json: it does not say which vector space it answers in.")
        return Response(space, media_type="application/json")

    @app.get("/health", openapi_extra=NO_KEY)
    async def health() -> protocol.Health:
        """Ready whenever it answers. Needs no key."""
        return protocol.Health(status="ok", model=served.names[0], dim=served.dim, space=served.space_id)

    @app.get("/metrics", response_class=Response, responses={**plain_text, **errors(401)})
    async def the_metrics() -> Response:
        """Requests, texts, tokens, batch sizes and times, for Prometheus."""
        return Response(metrics.text(), headers={"content-type": "text/plain; version=0.0.4; charset=utf-8"})


def _space_answer(space: Space) -> bytes:
    answer = space.to_json()
    for canary, vector in zip(answer["canaries"], space.vectors, strict=True):
        canary["embedding"] = protocol.to_base64(vector).decode()
    return to_json(answer)


async def read_body(request: Request, settings: Settings) -> bytes:
    """The body, counted as it arrives. Raises `Refusal`: 415, 413, 408."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, f"The content type is {kind[:80] or 'missing'}; send application/json.")
    too_large = Refusal(413, f"The body is longer than {settings.max_body_bytes} bytes; send fewer texts at a time.")
    announced = request.headers.get("content-length", "0")
    if not announced.isascii() or not announced.isdigit() or int(announced[:20]) > settings.max_body_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(settings.timeout):
            async for chunk in request.stream():
                body += chunk
                if len(body) > settings.max_body_bytes:
                    raise too_large
    except TimeoutError:
        message = f"The body did not arrive within {settings.timeout:g} s."
        raise Refusal(408, message, headers={"connection": "close"}) from None
    except ClientDisconnect:
        raise Refusal(400, "The body ended early.") from None
    return bytes(body)


async def encode(
    batcher: Batcher, texts: Sequence[str], role: Role, request: Request, timeout: float
) -> Encoded | None:
    """The vectors of a request whose body is read; None when the client has left.

    Raises `Refusal`: 400 for bad texts, 503 for a full queue and after `timeout` seconds, 500.
    """
    try:
        answer = batcher.submit(texts, role)
    except QueueFull:
        raise overloaded("More texts are waiting than this server takes; try again.") from None
    left = asyncio.ensure_future(request.receive())  # the body is read: all that can still come is the disconnect
    either: set[asyncio.Future[Any]] = {answer, left}
    try:
        await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        if left.done():
            return None
        raise overloaded(f"No vectors within {timeout:g} s: more is asked than this machine can encode.")
    except LeafError as error:
        raise Refusal(400, str(error), param="input") from error
    except Refusal:
        raise
    except Exception as error:  # what the encoder raised; the batcher has logged it
        raise Refusal(500, "The model failed on this request; the server's log says why.") from error
    finally:
        left.cancel()
        answer.cancel()


def overloaded(message: str) -> Refusal:
    """503, with the time after which to try again."""
    return Refusal(503, message, code="overloaded", headers={"retry-after": str(RETRY_AFTER)})


def _add_errors(app: FastAPI) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return _answer(error)

    async def not_found(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        # Not request.url, which is made with the Host header and raises on a bad one.
        what = f"{request.method} {request.scope['path'][:200]}"
        return _answer(Refusal(error.status_code, f"{what}: {error.detail}; see /docs.", headers=error.headers))

    async def failed(request: Request, error: Exception) -> Response:
        return _answer(Refusal(500, "The server made a mistake; its log says which."))

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(HTTPException, not_found)
    app.add_exception_handler(Exception, failed)


def _answer(refusal: Refusal) -> Response:
    headers = dict(refusal.headers or {})
    return Response(refusal.body(), status_code=refusal.status, headers=headers, media_type="application/json")


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What `responses` of a route says of these statuses."""
    return {status: {"model": protocol.ErrorAnswer} for status in statuses}


def _openapi(app: FastAPI, settings: Settings) -> dict[str, Any]:
    if not app.openapi_schema:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        if settings.api_key:
            schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema


class Gate:
    """Asks for the key and counts, around every route so that none is forgotten. Plain ASGI: every request passes."""

    def __init__(self, app: ASGIApp, *, routes: Sequence[Any], metrics: Metrics, api_key: str | None) -> None:
        self._app, self._metrics = app, metrics
        self._expected = f"Bearer {api_key}".encode() if api_key else None
        self._paths = {path for route in routes if (path := getattr(route, "path", None))}
        self._open = {route.path for route in routes if getattr(route, "openapi_extra", None) == NO_KEY}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = scope["path"]
        with self._metrics.in_flight.track_inprogress():
            try:
                app: Callable[..., Any] = self._app if self._allowed(scope) else _answer(UNAUTHORISED)
                await app(scope, receive, watched)
            finally:
                endpoint = path if path in self._paths else "/v1/models" if path.startswith("/v1/models/") else "other"
                self._metrics.requests.labels(endpoint, str(status)).inc()

    def _allowed(self, scope: Scope) -> bool:
        if self._expected is None or scope["path"] in self._open:
            return True
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        return hmac.compare_digest(scheme.capitalize() + b" " + key.strip(), self._expected)


UNAUTHORISED = Refusal(
    401,
    "The API key is missing or wrong; send 'Authorization: Bearer KEY'.",
    code="invalid_api_key",
    headers={"www-authenticate": "Bearer"},
)
