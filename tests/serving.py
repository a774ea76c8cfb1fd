"""A fake encoder and a real server around it, for the tests of `leaf.runtime.server`, `remote` and `load`."""

import asyncio
import hashlib
import http.client
import json
import socket
import threading
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import numpy as np

from leaf.runtime.server import Settings, create_app, listen, web_server


class FakeEncoder:
    """Guarantees: the vector of a text depends on the text and its role alone, never on its batch; unit length unless
    `scale` says otherwise; a token is a word. `batches` keeps what was encoded together. `gate` holds the encoder."""

    def __init__(self, dim=8, scale=1.0, similarity="cosine", name="fake", seconds=0.0):
        self.dim, self.scale, self.similarity, self.name, self.seconds = dim, scale, similarity, name, seconds
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()

    def encode_query(self, texts, *, batch_size=32, advance=None):
        return self._encode(texts, "query")

    def encode_document(self, texts, *, batch_size=32, advance=None):
        return self._encode(texts, "document")

    def count_tokens(self, texts, role):
        return [len(text.split()) for text in texts]

    def _encode(self, texts, role):
        assert self.gate.wait(timeout=20)
        self.batches.append((role, list(texts)))
        if "poison" in texts:
            raise RuntimeError("poisoned")
        time.sleep(self.seconds)
        return np.stack([self.vector(text, role) for text in texts])

    def vector(self, text, role="query"):
        seed = int.from_bytes(hashlib.sha256(f"{role}: {text}".encode()).digest()[:8], "little")
        vector = np.random.default_rng(seed).normal(size=self.dim)
        vector *= self.scale / np.linalg.norm(vector)
        return np.full(self.dim, np.nan, np.float32) if text == "nothing" else vector.astype(np.float32)


@contextmanager
def running(encoder=None, *, space=None, **settings):
    """The URL of a real uvicorn on a free port."""
    settings = Settings(**{"port": 0, "api_key": None, **settings})
    with running_app(create_app(encoder or FakeEncoder(), settings, space=space), settings) as url:
        yield url


@contextmanager
def running_app(app, settings):
    """The URL of a real uvicorn with `app` on a free port."""
    server = web_server(app, settings)
    listener = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


def ask(url, method="POST", path="/v1/embeddings", body=None, headers=None):
    """(status, headers, parsed body) of one request; `body` is bytes or a JSON value."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request(method, path, content, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        answer = response.read()
        is_json = response.headers.get("content-type") == "application/json"
        return response.status, response.headers, json.loads(answer) if is_json else answer.decode()
    finally:
        connection.close()


def raw(url, data, *, half_close=False):
    """What the server answers to bytes sent as they are, until it closes or is quiet."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as connection:
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
                connection.settimeout(0.3)  # more may come, but a kept connection is not closed
        except (TimeoutError, ConnectionResetError):
            pass
        return answer


def drive(work, encoder, **settings):
    """Runs `await work(batcher)` with a batcher around `encoder` and returns what it returns."""
    from leaf.runtime.server.batching import Batcher
    from leaf.runtime.server.metrics import Metrics

    async def main():
        batcher = Batcher(encoder, Settings(api_key=None, **settings), Metrics())
        async with batcher.running():
            return await work(batcher)

    return asyncio.run(main())
