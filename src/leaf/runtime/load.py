"""How many connections a server on this machine holds: each asks one query after another, and every answer is checked.

    python -m leaf.runtime.load http://127.0.0.1:8000 --connections 500 --seconds 60 --out results/speed/serve.json

Standard library and numpy. It talks to this machine alone: a tool that opens hundreds of connections has no business
elsewhere. The server and this tool share the cores, so the rate is a lower bound.
"""

import argparse
import asyncio
import base64
import ipaddress
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from leaf.encoder import Vectors
from leaf.errors import LeafError
from leaf.files import write_json
from leaf.progress import progress, say
from leaf.provenance import provenance
from leaf.runtime.remote import Endpoint, RemoteEncoder
from leaf.runtime.server import raise_file_limit

QUERIES = (
    "how do I read a file line by line",
    "difference between a list and a tuple",
    "what causes high blood pressure",
    "capital of the largest country in south america",
    "why does my connection time out",
    "is it safe to eat raw eggs",
    "sort a dictionary by value",
    "how long does it take to boil an egg",
    "best way to learn a foreign language as an adult",
    "who wrote the first computer program",
    "symptoms of vitamin d deficiency in children",
    "convert a string to an integer without raising",
    "when was the printing press invented and by whom",
    "how to remove coffee stains from a white shirt",
    "meaning of the word serendipity",
    "train from the airport to the city centre late at night",
)
#: A vector may differ from the same text's alone by what int8 activations cost in a mixed batch (cosine 0.979), and not
#: by what another text would (below 0.9).
MIN_COSINE = 0.95
#: Seconds a connection waits after a failure, so that a dead server is not hammered.
PAUSE = 0.1


@dataclass
class Outcome:
    """What all connections saw."""

    latencies: list[float] = field(default_factory=list)
    """Seconds from sending a request to its whole answer, of answers that were right."""
    errors: Counter[str] = field(default_factory=Counter)
    num_connected: int = 0
    """Connections opened; more than asked for when some broke."""


def load(
    url: str, *, connections: int, seconds: float, queries: Sequence[str] = QUERIES, timeout: float = 60.0
) -> dict[str, Any]:
    """Keeps `connections` connections busy for `seconds`; the record of what they saw.

    Every answer must have status 200, the right width, finite numbers, and be the vector that its query has when asked
    alone. Raises `LeafError` for a server that is not on this machine, or none.
    """
    host, port = _loopback(url)
    raise_file_limit()
    encoder = RemoteEncoder(url)
    alone = np.concatenate([encoder.encode_query([query]) for query in queries])
    encoder.close()
    requests = [_request(encoder.endpoint, {"model": encoder.model, "input": query}) for query in queries]
    outcome = Outcome()

    async def run() -> float:
        began = time.perf_counter()
        until = began + seconds
        asking = [
            _ask(host, port, requests, alone, outcome, start=index, until=until, timeout=timeout)
            for index in range(connections)
        ]
        with progress("load", total=math.ceil(seconds)) as bar:
            ticking = asyncio.create_task(_tick(bar.advance))
            await asyncio.gather(*asking)
            ticking.cancel()
        return time.perf_counter() - began

    took = asyncio.run(run())
    milliseconds = 1000 * np.array(outcome.latencies or [math.nan])
    p50, p95, p99 = np.percentile(milliseconds, [50, 95, 99]).tolist()
    answered = len(outcome.latencies)
    return {
        "what": "one query per request over kept connections; client and server on one machine",
        "model": encoder.model,
        "dim": encoder.dim,
        "connections": connections,
        "connections_opened": outcome.num_connected,
        "seconds": took,
        "answers": answered,
        "errors": dict(outcome.errors),
        "answers_per_second": answered / took,
        "latency_ms": {"p50": p50, "p95": p95, "p99": p99, "max": float(milliseconds.max())} if answered else None,
        "num_queries": len(queries),
        "provenance": provenance(),
    }


def _loopback(url: str) -> tuple[str, int]:
    """Host and port. Raises `LeafError` for a host that is not this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    with suppress(ValueError):
        if host == "localhost" or ipaddress.ip_address(host).is_loopback:
            if parts.scheme != "http":
                raise LeafError(f"'{url}': the load tool speaks plain http; give http://{host}:PORT")
            return host, parts.port or 80
    raise LeafError(f"'{url}' is not this machine; the load tool asks 127.0.0.1, ::1 or localhost alone")


def _request(endpoint: Endpoint, body: Mapping[str, Any]) -> bytes:
    content = json.dumps({**body, "encoding_format": "base64"}).encode()
    headers = {**endpoint.headers, "Host": b"localhost", "Content-Length": b"%d" % len(content)}
    lines = [f"POST {endpoint.root}/embeddings HTTP/1.1".encode()]
    lines += [name.encode() + b": " + value for name, value in headers.items()]
    return b"\r\n".join([*lines, b"", content])


async def _tick(advance: Any) -> None:
    while True:
        await asyncio.sleep(1)
        advance()


async def _ask(
    host: str,
    port: int,
    requests: Sequence[bytes],
    alone: Vectors,
    outcome: Outcome,
    *,
    start: int,
    until: float,
    timeout: float,
) -> None:
    """One connection: asks until `until`, begins again where it breaks."""
    turn = start
    while time.perf_counter() < until:
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError) as error:
            outcome.errors[f"connect: {type(error).__name__}"] += 1
            await asyncio.sleep(PAUSE)
            continue
        outcome.num_connected += 1
        try:
            while time.perf_counter() < until:
                query = turn % len(requests)
                turn += 1
                began = time.perf_counter()
                async with asyncio.timeout(timeout):
                    writer.write(requests[query])
                    status, content = await _answer(reader)
                took = time.perf_counter() - began
                if wrong := _wrong(status, content, alone[query]):
                    outcome.errors[wrong] += 1
                    await asyncio.sleep(PAUSE)
                else:
                    outcome.latencies.append(took)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            outcome.errors[f"answer: {type(error).__name__}"] += 1
            await asyncio.sleep(PAUSE)
        finally:
            writer.close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    lengths = [line.partition(b":")[2] for line in lines if line.lower().startswith(b"content-length:")]
    return int(first.split()[1]), await reader.readexactly(int(lengths[0]) if lengths else 0)


def _wrong(status: int, content: bytes, expected: Vectors) -> str | None:
    """What is wrong with an answer, None when it is the vector that was asked for."""
    if status != 200:
        return f"status {status}"
    vector = np.frombuffer(base64.b64decode(json.loads(content)["data"][0]["embedding"]), dtype="<f4")
    if vector.shape != expected.shape:
        return f"width {len(vector)}"
    if not np.isfinite(vector).all():
        return "not finite"
    cosine = float(vector @ expected) / max(float(np.linalg.norm(vector) * np.linalg.norm(expected)), 1e-12)
    return None if cosine >= MIN_COSINE else "the vector of another text"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 when any answer was missing or wrong."""
    parser = argparse.ArgumentParser(prog="python -m leaf.runtime.load", description=__doc__.split("\n\n")[0])
    parser.add_argument("url", help="http://127.0.0.1:PORT")
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--queries", type=Path, help="a text file, one query a line; default: a few built-in ones")
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    options = parser.parse_args(arguments)
    queries: Sequence[str] = QUERIES
    try:
        if options.queries:
            queries = [
                line.strip() for line in options.queries.read_text(encoding="utf-8").splitlines() if line.strip()
            ]
            if not queries:
                raise LeafError(f"{options.queries} has no queries; put one on each line")
        record = load(options.url, connections=options.connections, seconds=options.seconds, queries=queries)
    except (LeafError, OSError) as error:
        say(f"error: {error}")
        return 2
    if options.out:
        write_json(options.out, record)
    latency = record["latency_ms"] or {}
    say(
        f"{record['connections']} connections, {record['seconds']:.0f} s: {record['answers']:,} answers, "
        f"{record['answers_per_second']:.0f} a second; "
        + ", ".join(f"{name} {value:.0f} ms" for name, value in latency.items())
        + f"; errors: {record['errors'] or 'none'}"
    )
    print(json.dumps(record))
    return 1 if record["errors"] or not record["answers"] else 0


if __name__ == "__main__":
    sys.exit(main())
