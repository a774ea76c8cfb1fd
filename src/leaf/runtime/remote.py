"""An `Encoder` that lives behind a URL: any server with OpenAI's `/v1/embeddings`, `leaf serve` first among them.

    encoder = RemoteEncoder("http://127.0.0.1:8000")
    encoder.encode_query(["how do I read a file line by line"])  # float32 [1, dim]

For `leaf verify URL` and `leaf evaluate --queries URL`. Standard library only, one kept connection, one request at
a time, no retries of refusals. There is no `identity()`: what stands behind a URL can change, so no cache on disk may
keep its vectors.
"""

import base64
import binascii
import http.client
import json
import os
import ssl
import threading
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np

from leaf.encoder import Advance, Role, Vectors
from leaf.errors import LeafError
from leaf.space import Space

API_KEY_VARIABLE = "LEAF_API_KEY"
PROBE = "how do I read a file line by line"


class RemoteEncoder:
    """Encodes over HTTP.

    `url` is the server (`http://host:8000`) or its API root (`https://host/openai/v1`). `model` may be left out where
    the server lists one model, or is `leaf serve`. `api_key` is sent as a bearer token; None takes `LEAF_API_KEY`.
    `timeout` is in seconds, for each request. `leaf serve` is told which texts are queries and which documents and
    applies its prompts; the plain protocol has no such field, so other servers encode both alike.

    Raises `LeafError` when there is no server, it wants another key, or it does not have the model; so do the encoding
    methods, also for an answer of the wrong shape or with NaN in it.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
        name: str | None = None,
    ) -> None:
        self.endpoint = Endpoint(url, api_key or os.environ.get(API_KEY_VARIABLE), timeout)
        cards = self._models()
        self._ours = any(card.get("owned_by") == "leaf" for card in cards)
        there = [card["id"] for card in cards]
        if model is None and (len(there) == 1 or self._ours):
            model = there[0]
        if model is None:
            found = f"has {', '.join(there[:10])}" if there else "lists no models"
            raise LeafError(f"{self.endpoint.url} {found}: say which model to ask for")
        if self._ours and model not in there:
            raise LeafError(f"{self.endpoint.url} has no model '{model}'; it has {', '.join(there)}")
        self.model = model
        self.name = name or model
        self.similarity: Literal["cosine", "dot"] = "cosine"
        if self._ours and cards[there.index(model)].get("similarity") == "dot":
            self.similarity = "dot"
        self._dim: int | None = None
        self._dim = self._encode([PROBE], "query").shape[1]

    @property
    def dim(self) -> int:
        """Width of the vectors, as the server answered it to a first text."""
        assert self._dim is not None
        return self._dim

    def encode_query(self, texts: Sequence[str], *, batch_size: int = 32, advance: Advance | None = None) -> Vectors:
        """Vectors of queries, float32 `[n, dim]`."""
        return self._encode_all(texts, "query", batch_size, advance)

    def encode_document(self, texts: Sequence[str], *, batch_size: int = 32, advance: Advance | None = None) -> Vectors:
        """Vectors of documents, float32 `[n, dim]`."""
        return self._encode_all(texts, "document", batch_size, advance)

    def space(self) -> Space | None:
        """The space that the server says it answers in; None where it does not say.

        Raises `LeafError` when what it says does not have the id that it gives.
        """
        status, data = self.endpoint.ask("GET", "/space")
        if status != 200 or not isinstance(data, dict) or "canaries" not in data:
            return None
        try:
            vectors = np.stack([_vector(canary["embedding"]) for canary in data["canaries"]])
            space = Space.from_json(data, vectors)
        except (KeyError, TypeError, ValueError) as error:
            raise LeafError(f"{self.endpoint.url}/space is not what `leaf serve` answers ({error!r})") from error
        if space.id != data["id"]:
            raise LeafError(f"{self.endpoint.url}/space says {data['id']} and describes {space.id}: it was altered")
        return space

    def close(self) -> None:
        """Closes the connection; the next call opens another."""
        self.endpoint.close()

    def _models(self) -> list[dict[str, Any]]:
        status, data = self.endpoint.ask("GET", "/models")
        if status != 200 or not isinstance(data, dict) or not isinstance(data.get("data"), list):
            return []  # text-embeddings-inference has no such page
        return [card for card in data["data"] if isinstance(card, dict) and isinstance(card.get("id"), str)]

    def _encode_all(self, texts: Sequence[str], role: Role, batch_size: int, advance: Advance | None) -> Vectors:
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(texts), batch_size):
            batch = list(texts[start : start + batch_size])
            vectors[start : start + len(batch)] = self._encode(batch, role)
            if advance:
                advance(len(batch))
        return vectors

    def _encode(self, texts: list[str], role: Role) -> Vectors:
        request = {"model": self.model, "input": texts, "encoding_format": "base64"}
        if self._ours:
            request["input_type"] = role
        status, data = self.endpoint.ask("POST", "/embeddings", request)
        if status == 404:
            there = ", ".join(card["id"] for card in self._models()[:10]) or "none that it lists"
            raise LeafError(f"{self.endpoint.url} has no model '{self.model}' or no /embeddings; its models: {there}")
        if status != 200:
            raise LeafError(f"{self.endpoint.url} refused {len(texts)} texts with {status}: {_reason(data)}")
        try:
            rows = sorted(data["data"], key=lambda row: row["index"])
            if [row["index"] for row in rows] != list(range(len(texts))):
                raise ValueError(f"{len(rows)} vectors for {len(texts)} texts")
            vectors = np.stack([_vector(row["embedding"]) for row in rows])
        except (KeyError, TypeError, ValueError) as error:
            raise LeafError(f"{self.endpoint.url}/embeddings did not answer as OpenAI's does: {error}") from error
        if self._dim not in (None, vectors.shape[1]):
            raise LeafError(f"{self.endpoint.url} answered {vectors.shape[1]} dimensions, and {self._dim} before")
        if not np.isfinite(vectors).all():
            raise LeafError(f"{self.endpoint.url} answered NaN or infinity; look at the server's model")
        return vectors


def _vector(value: Any) -> Vectors:
    """A vector from base64 of little-endian float32, or from a list by servers that know no base64."""
    if isinstance(value, str):
        try:
            value = np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4")
        except binascii.Error as error:
            raise ValueError(f"an embedding is not base64 ({error})") from error
    vector = np.asarray(value, dtype=np.float32)
    if vector.ndim != 1 or not vector.size:
        raise ValueError(f"an embedding has the shape {vector.shape}")
    return vector


def _reason(data: Any) -> str:
    """The message of an error body, in one line."""
    error = data.get("error", data) if isinstance(data, dict) else data
    message = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(message).split())[:300]


class Endpoint:
    """One kept connection to one API root."""

    def __init__(self, url: str, api_key: str | None, timeout: float) -> None:
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname, parts.port
        except ValueError as error:
            raise LeafError(f"'{url}' is not a URL ({error}); give one such as http://127.0.0.1:8000") from error
        if parts.scheme not in ("http", "https") or not self._host:
            raise LeafError(f"'{url}' is not a URL of a server; give one such as http://127.0.0.1:8000")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise LeafError(f"the URL of {self._host} has more than a path in it; give the key as {API_KEY_VARIABLE}")
        self.root = parts.path.rstrip("/").removesuffix("/embeddings").rstrip("/") or "/v1"
        self._scheme, self._timeout = parts.scheme, timeout
        self.url = f"{parts.scheme}://{parts.netloc}{self.root}"
        self.headers = {"Content-Type": b"application/json", "Accept": b"application/json"}
        if api_key and api_key.strip():
            self.headers["Authorization"] = b"Bearer " + api_key.strip().encode()
        self._connection: http.client.HTTPConnection | None = None
        self._lock = threading.Lock()

    def ask(self, method: Literal["GET", "POST"], path: str, body: Any = None) -> tuple[int, Any]:
        """Status and parsed body, None for a body that is not JSON. Raises `LeafError`: no server, or another key."""
        content = None if body is None else json.dumps(body).encode()
        try:
            with self._lock:
                status, answer = self._ask(method, self.root + path, content)
        except TimeoutError as error:
            raise LeafError(f"{self.url} did not answer within {self._timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise LeafError(f"no server at {self.url} ({why}); start one with: leaf serve MODEL") from error
        if status in (401, 403):
            raise LeafError(f"{self.url} asks for another API key ({status}); put it into {API_KEY_VARIABLE}")
        try:
            return status, json.loads(answer)
        except ValueError:
            return status, answer.decode(errors="replace") if status != 200 else None

    def close(self) -> None:
        """Closes the connection, if there is one."""
        if self._connection:
            self._connection.close()
        self._connection = None

    def _ask(self, method: str, path: str, content: bytes | None) -> tuple[int, bytes]:
        for kept in (self._connection is not None, False):
            if self._connection is None:
                self._connection = self._connect()
            try:
                self._connection.request(method, path, content, self.headers)
                response = self._connection.getresponse()
                return response.status, response.read()
            except (ConnectionError, http.client.RemoteDisconnected):
                self.close()
                if not kept:  # a kept connection may have been dropped while idle; a new one has no such excuse
                    raise
            except BaseException:
                self.close()
                raise
        raise AssertionError("the second round returns or raises")

    def _connect(self) -> http.client.HTTPConnection:
        assert self._host is not None
        if self._scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
