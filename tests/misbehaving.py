"""A local HTTP service that fails the way real ones do, for the tests of everything that asks one.

    with Misbehaving(answer, fail=0.2, drop=0.1, seed=0) as service:
        Service(service.url).post("/embeddings", {...})
    service.requests  # every request that arrived: (path, body)
    service.answered  # those whose answer was sent whole

`answer(path, body) -> object` is what the service would say if all went well, `Events` if it says it in pieces; it may
raise `Refusal(status, body)`.
"""

import json
import random
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Refusal(Exception):
    def __init__(self, status: int, body: object = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = (
            status,
            body or {"error": {"message": f"refused {status}"}},
            headers or {},
        )


class Events(list[object]):
    """An answer as server-sent events: a string is sent as it is, anything else as JSON."""

    def __bytes__(self) -> bytes:
        data = (each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in self)
        return b"".join(f"data: {each}\n\n".encode() for each in data)


class Misbehaving:
    """Shares of requests, each between 0 and 1, drawn from `seed` in order of arrival."""

    def __init__(
        self,
        answer: Callable[[str, Any], object],
        *,
        fail: float = 0.0,  # 500 before anything is done
        limit: float = 0.0,  # 429 with Retry-After
        retry_after: str = "0",
        drop: float = 0.0,  # the connection is closed before anything is done
        cut: float = 0.0,  # half of the answer, then the connection is closed
        garbage: float = 0.0,  # 200 with a body that is not JSON
        stall: float = 0.0,  # no answer for `stall_seconds`
        stall_seconds: float = 2.0,
        delay: float = 0.0,  # seconds before each answer
        seed: int = 0,
    ) -> None:
        self.answer, self.delay, self.retry_after, self.stall_seconds = answer, delay, retry_after, stall_seconds
        self.shares = {
            "fail": fail, "limit": limit, "drop": drop, "cut": cut, "garbage": garbage, "stall": stall,
        }  # fmt: skip
        self.requests: list[tuple[str, Any]] = []
        self.answered: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.faults: list[str] = []
        self._random, self._lock = random.Random(seed), threading.Lock()
        self.at_once = self.most_at_once = 0

    def __enter__(self) -> "Misbehaving":
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet: two would wait 40 ms for an acknowledgement

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.handle(self, body)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # of 5, many clients at once find it full and come back a second later

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def handle(self, handler: BaseHTTPRequestHandler, body: Any) -> None:
        with self._lock:
            self.requests.append((handler.path, body))
            self.headers.append(dict(handler.headers))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            fault, drawn = None, self._random.random()
            for name, share in self.shares.items():
                if drawn < share:
                    fault = name
                    break
                drawn -= share
            if fault:
                self.faults.append(fault)
        try:
            self._answer(handler, body, fault)
        except OSError:
            handler.close_connection = True
        finally:
            with self._lock:
                self.at_once -= 1

    def _answer(self, handler: BaseHTTPRequestHandler, body: Any, fault: str | None) -> None:
        time.sleep(self.delay + (self.stall_seconds if fault == "stall" else 0))
        if fault == "drop":
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
        elif fault == "fail":
            self._send(handler, 500, {"error": {"message": "a fault of the server's own"}})
        elif fault == "limit":
            headers = {"Retry-After": self.retry_after}
            self._send(handler, 429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, headers)
        elif fault == "garbage":
            self._send(handler, 200, b"<html>upstream said nothing</html>")
        else:
            try:
                status, said, headers = 200, self.answer(handler.path, body), {}
            except Refusal as refusal:
                status, said, headers = refusal.status, refusal.body, refusal.headers
            if isinstance(said, Events):
                said, headers = bytes(said), {"Content-Type": "text/event-stream"}
            self._send(handler, status, said, headers, cut=fault == "cut")
            if status == 200 and fault is None:
                with self._lock:
                    self.answered.append((handler.path, body))

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        body: object,
        headers: dict[str, str] | None = None,
        *,
        cut: bool = False,
    ) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
