"""`RemoteEncoder`: a server's vectors as an `Encoder`, and one line for everything a server can do wrong."""

import base64
import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from leaf.encoder import Encoder
from leaf.errors import LeafError
from leaf.runtime import OnnxEncoder
from leaf.runtime.remote import RemoteEncoder
from leaf.space import Space, verify
from onnx_table import USAGE
from serving import FakeEncoder, ask, running

TEXTS = [f"text {number} ü 😀" for number in range(70)]


@contextlib.contextmanager
def foreign(answer):
    """A server that is not ours: `answer(path, body) -> (status, value or bytes)`; yields its URL and what it saw."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            length = int(self.headers.get("content-length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            seen.append((self.path, body, self.headers.get("authorization")))
            status, value = answer(self.path, body)
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *arguments: None  # a client that has given up
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def openai_like(path, body, vector=lambda text: [float(len(text)), 2.0, 3.0], models=("m",)):
    """What a server answers that knows neither base64, nor roles, nor the order."""
    if path.endswith("/models"):
        return 200, {"object": "list", "data": [{"id": name, "object": "model"} for name in models]}
    if not path.endswith("/embeddings"):
        return 404, {"error": {"message": "no such page"}}
    rows = [{"index": index, "embedding": vector(text)} for index, text in enumerate(body["input"])]
    return 200, {"data": rows[::-1]}


def test_it_is_the_encoder_behind_the_server():
    encoder = FakeEncoder(dim=12, scale=2.5, similarity="dot", name="org/small")
    with running(encoder) as url:
        remote = RemoteEncoder(url)
        assert isinstance(remote, Encoder)
        assert (remote.name, remote.dim, remote.similarity) == ("org/small", 12, "dot")
        heard = []
        queries = remote.encode_query(TEXTS, batch_size=32, advance=heard.append)
        documents = remote.encode_document(TEXTS)
        assert heard == [32, 32, 6]
        assert queries.dtype == np.float32
        assert np.array_equal(queries, encoder.encode_query(TEXTS))
        assert np.array_equal(documents, encoder.encode_document(TEXTS))
        assert remote.encode_query([]).shape == (0, 12)
        assert remote.space() is None
        assert RemoteEncoder(f"{url}/v1/", name="mine").name == "mine"
        remote.close()


def test_a_kept_connection_that_was_dropped_is_opened_again():
    encoder = FakeEncoder()
    with running(encoder) as url:
        remote = RemoteEncoder(url)
        remote.endpoint._connection.sock.shutdown(2)
        assert np.array_equal(remote.encode_query(["x"])[0], encoder.vector("x"))


def test_the_space_arrives_whole_and_verifies_the_server():
    encoder = FakeEncoder()
    texts, kinds = ("a", "ü", "c"), ("query", "document", "query")
    vectors = np.stack([encoder.vector(text, kind) for text, kind in zip(texts, kinds, strict=True)])
    space = Space({"model": "teacher", "layers": [1, 2]}, 8, True, "cosine", texts, kinds, vectors, 0.25)
    with running(encoder, space=space) as url:
        remote = RemoteEncoder(url)
        received = remote.space()
        assert received.id == space.id
        assert (received.texts, received.kinds, received.error) == (texts, kinds, 0.25)
        assert np.array_equal(received.vectors, vectors)
        verdict = verify(remote, received)
        assert verdict.in_space
        assert verdict.error == 0


def test_an_onnx_student_answers_over_http_as_it_does_here(table_folder):
    encoder = OnnxEncoder(table_folder)
    texts = ["babe kilo", "dake", "mano tiro lake rena doki", "babe"] * 9
    with running(encoder) as url:
        remote = RemoteEncoder(url)
        assert remote.name == USAGE["name"]
        np.testing.assert_allclose(remote.encode_query(texts), encoder.encode_query(texts), atol=1e-6)
        np.testing.assert_allclose(remote.encode_document(texts), encoder.encode_document(texts), atol=1e-6)
        assert not np.allclose(remote.encode_query(texts), remote.encode_document(texts), atol=1e-3)
        status, _, answer = ask(url, body={"input": texts[:4], "model": remote.model})
    assert status == 200
    assert answer["usage"]["prompt_tokens"] == sum(encoder.count_tokens(texts[:4], "query"))


def test_a_server_of_the_plain_protocol_gets_the_plain_protocol(monkeypatch):
    monkeypatch.setenv("LEAF_API_KEY", "from the environment")
    with foreign(openai_like) as (url, seen):
        remote = RemoteEncoder(f"{url}/openai/v1/embeddings")
        assert (remote.name, remote.dim, remote.similarity) == ("m", 3, "cosine")
        assert remote.encode_document(["four", "x"]).tolist() == [[4, 2, 3], [1, 2, 3]]
        assert remote.space() is None
    paths, bodies, keys = zip(*seen, strict=True)
    assert paths == ("/openai/v1/models", *["/openai/v1/embeddings"] * 2, "/openai/v1/space")
    assert bodies[2] == {"model": "m", "input": ["four", "x"], "encoding_format": "base64"}
    assert set(keys) == {"Bearer from the environment"}


def test_the_model_must_be_said_where_there_are_several_or_no_list():
    with foreign(lambda path, body: openai_like(path, body, models=("a", "b"))) as (url, _):
        with pytest.raises(LeafError, match="has a, b: say which"):
            RemoteEncoder(url)
        assert RemoteEncoder(url, model="b").name == "b"
    with foreign(lambda path, body: (404, b"") if "models" in path else openai_like(path, body)) as (url, _):
        with pytest.raises(LeafError, match="lists no models: say which"):
            RemoteEncoder(url)
        assert RemoteEncoder(url, model="any").dim == 3


def test_a_wrong_key_or_model_is_one_line(monkeypatch):
    monkeypatch.delenv("LEAF_API_KEY", raising=False)
    with running(api_key="right", names=("one", "two")) as url:
        with pytest.raises(LeafError, match=r"asks for another API key .*LEAF_API_KEY"):
            RemoteEncoder(url)
        with pytest.raises(LeafError, match=r"no model 'three'; it has one, two"):
            RemoteEncoder(url, model="three", api_key="right")
        assert RemoteEncoder(url, api_key="right").name == "one"
    with (
        foreign(lambda path, body: (404, {"error": "x"}) if body else openai_like(path, body)) as (url, _),
        pytest.raises(LeafError, match=r"no model 'gpt' .*its models: m"),
    ):
        RemoteEncoder(url, model="gpt")


def test_what_the_server_refuses_is_passed_on_in_one_line():
    with running() as url:
        remote = RemoteEncoder(url)
        with pytest.raises(LeafError, match=r"refused 2 texts with 400: 'input\[1\]' is an empty string"):
            remote.encode_query(["x", ""])
        with pytest.raises(LeafError, match="not JSON"):
            remote.encode_query(["\ud800"])


@pytest.mark.parametrize(
    ("vector", "match"),
    [
        (lambda text: [1.0] * (3 + (text == "x")), "4 dimensions, and 3 before"),
        (lambda text: [1.0, 2.0, float("nan")] if text == "x" else [1.0, 2.0, 3.0], "NaN or infinity"),
        (lambda text: [] if text == "x" else [1.0, 2.0, 3.0], r"shape \(0,\)"),
        (lambda text: "%%%" if text == "x" else [1.0, 2.0, 3.0], "not base64"),
        (lambda text: base64.b64encode(b"12345").decode() if text == "x" else [1.0] * 3, "buffer size"),
        (lambda text: None if text == "x" else [1.0, 2.0, 3.0], "shape"),
    ],
)
def test_a_vector_that_is_none_is_an_error(vector, match):
    with foreign(lambda path, body: openai_like(path, body, vector)) as (url, _):
        remote = RemoteEncoder(url)
        with pytest.raises(LeafError, match=match):
            remote.encode_query(["x"])


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        ((200, b"<html>"), "did not answer as OpenAI's"),
        ((200, {"data": []}), "0 vectors for 1 texts"),
        ((200, {"data": [{"embedding": [1.0]}]}), "'index'"),
        ((200, []), "did not answer as OpenAI's"),
        ((500, b"<h1>oops\n</h1>"), "refused 1 texts with 500: <h1>oops </h1>"),
        ((302, b""), "302"),
    ],
)
def test_an_answer_that_is_no_embedding_is_an_error(answer, match):
    with (
        foreign(lambda path, body: answer if body else openai_like(path, body)) as (url, _),
        pytest.raises(LeafError, match=match),
    ):
        RemoteEncoder(url)


def test_a_space_that_was_altered_is_refused():
    def altered(path, body):
        return (200, space) if path.endswith("/space") else openai_like(path, body)

    canary = {"text": "a", "kind": "query", "embedding": base64.b64encode(np.zeros(3, "<f4").tobytes()).decode()}
    space = {"id": "0" * 16, "teacher": {"model": "t"}, "dim": 3, "normalised": True, "similarity": "cosine"}
    space |= {"error": 0.0, "canaries": [canary]}
    with foreign(altered) as (url, _):
        remote = RemoteEncoder(url)
        with pytest.raises(LeafError, match="was altered"):
            remote.space()
        del space["teacher"]
        with pytest.raises(LeafError, match="KeyError"):
            remote.space()


def test_no_server_and_no_answer_are_one_line():
    with pytest.raises(LeafError, match=r"no server at http://127.0.0.1:1/v1 .*leaf serve MODEL"):
        RemoteEncoder("http://127.0.0.1:1")
    with (
        foreign(lambda path, body: (404, time.sleep(0.5))) as (url, _),
        pytest.raises(LeafError, match=r"did not answer within 0\.1 s"),
    ):
        RemoteEncoder(url, timeout=0.1)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:80", "ftp://x", "http://", "http://x:port", "http://user:pw@x", "http://x/v1?k=1"]
)
def test_what_is_not_a_url_of_a_server_is_refused(url):
    with pytest.raises(LeafError, match="URL"):
        RemoteEncoder(url)
