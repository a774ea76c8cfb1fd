"""`leaf serve`: answers as OpenAI's API does, batches without changing a vector, and refuses in one line."""

import asyncio
import base64
import contextlib
import http.client
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from leaf.errors import LeafError
from leaf.runtime import server as serving_module
from leaf.runtime.load import load
from leaf.runtime.load import main as load_main
from leaf.runtime.server import Settings, create_app, serve
from leaf.runtime.server.batching import QueueFull
from leaf.space import Space
from serving import FakeEncoder, ask, drive, raw, running

TEXTS = ["how do I read a file", "the capital of France", "poached eggs", "ünïcödé 😀", "a" * 3000]


@pytest.fixture(scope="module")
def encoder():
    return FakeEncoder()


@pytest.fixture(scope="module")
def url(encoder):
    with running(encoder, max_texts=64, max_characters=5000, max_body_bytes=400_000) as url:
        yield url


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


def vectors_of(answer):
    return np.array([row.embedding for row in answer.data], dtype=np.float32)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def wait_until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


# The protocol, as the openai client sees it


def test_the_openai_client_gets_the_encoders_vectors_in_order(client, encoder):
    answer = client.embeddings.create(input=TEXTS, model="fake")  # base64, the client's default
    assert np.array_equal(vectors_of(answer), [encoder.vector(text) for text in TEXTS])
    assert [row.index for row in answer.data] == [0, 1, 2, 3, 4]
    assert {row.object for row in answer.data} == {"embedding"}
    assert answer.object == "list"
    assert answer.model == "fake"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 6 + 4 + 2 + 2 + 1  # words of TEXTS


def test_numbers_and_base64_are_the_same_float32(client, encoder):
    numbers = client.embeddings.create(input="one text", model="fake", encoding_format="float").data[0].embedding
    packed = client.embeddings.create(input="one text", model="fake", encoding_format="base64").data[0].embedding
    assert np.array_equal(np.array(numbers, dtype=np.float32), encoder.vector("one text"))
    assert base64.b64decode(packed) == encoder.vector("one text").astype("<f4").tobytes()


def test_dimensions_cuts_and_scales_back_to_unit_length(client, encoder):
    answer = client.embeddings.create(input=TEXTS, model="fake", dimensions=3)
    expected = unit(np.array([encoder.vector(text)[:3] for text in TEXTS]))
    np.testing.assert_allclose(vectors_of(answer), expected, atol=1e-6)


def test_vectors_that_are_not_unit_length_are_cut_and_not_scaled():
    encoder = FakeEncoder(scale=3.0, similarity="dot")
    with running(encoder) as url:
        _, _, answer = ask(url, body={"input": "x", "model": "fake", "dimensions": 2})
        assert np.array_equal(np.float32(answer["data"][0]["embedding"]), encoder.vector("x")[:2])
        assert ask(url, "GET", "/v1/models")[2]["data"][0]["normalised"] is False


@pytest.mark.parametrize(
    ("input_type", "role"),
    [
        (None, "query"),
        ("query", "query"),
        ("search_query", "query"),
        ("document", "document"),
        ("search_document", "document"),
        ("passage", "document"),
    ],
)
def test_input_type_chooses_the_prompt_and_a_text_is_a_query_by_default(client, encoder, input_type, role):
    extra = {"input_type": input_type} if input_type else {}
    answer = client.embeddings.create(input="x", model="fake", extra_body=extra)
    assert np.array_equal(vectors_of(answer)[0], encoder.vector("x", role))


def test_errors_become_the_openai_clients_exceptions(client):
    with pytest.raises(openai.NotFoundError, match="'gpt' does not exist; this server has 'fake'") as missing:
        client.embeddings.create(input="x", model="gpt")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="integer from 1 to 8") as bad:
        client.embeddings.create(input="x", model="fake", dimensions=9)
    assert (bad.value.type, bad.value.param) == ("invalid_request_error", "dimensions")
    with pytest.raises(openai.BadRequestError, match="token ids of another tokenizer"):
        client.embeddings.create(input=[1, 2, 3], model="fake")
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("gpt")


def test_the_openai_client_lists_and_retrieves_models(client):
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").owned_by == "leaf"


def test_several_names_are_one_model_and_answers_carry_the_first():
    with running(names=("org/small", "text-embedding-3-small")) as url:
        status, _, answer = ask(url, body={"input": "x", "model": "text-embedding-3-small"})
        assert (status, answer["model"]) == (200, "org/small")
        assert [card["id"] for card in ask(url, "GET", "/v1/models")[2]["data"]] == [
            "org/small",
            "text-embedding-3-small",
        ]
        assert ask(url, "GET", "/v1/models/org/small")[2]["id"] == "org/small"
        assert ask(url, body={"input": "x", "model": "fake"})[0] == 404


GOOD = {"input": "x", "model": "fake"}


@pytest.mark.parametrize(
    ("body", "status", "match"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"[" * 100_000, 400, "recursion limit"),
        (b'{"input": "\\ud800", "model": "fake"}', 400, "not JSON"),
        (b'{"input": "\xff", "model": "fake"}', 400, "not JSON"),
        (b'{"input": "x", "model": "fake", "dimensions": NaN}', 400, "not JSON"),
        (b'{"input": "x", "model": "fake", "dimensions": ' + b"9" * 5000 + b"}", 400, "out of range"),
        (b'{"input": "x", "model": "fake", "dimensions": ' + b"9" * 400 + b"}", 400, "from 1 to 8"),
        (b'{"input": "x", "model": "fake", "dimensions": 1e999}', 400, "from 1 to 8"),
        (b"[]", 400, "is a list"),
        (b"null", 400, "missing or null"),
        ({"model": "fake"}, 400, "'input' is missing"),
        ({"input": "x"}, 400, "'model' is missing"),
        (GOOD | {"model": 3}, 400, "'model' is a number"),
        (GOOD | {"model": "m" * 10_000}, 404, "does not exist"),
        (GOOD | {"input": ""}, 400, "'input' is an empty string"),
        (GOOD | {"input": []}, 400, "empty list"),
        (GOOD | {"input": ["x", ""]}, 400, r"'input\[1\]' is an empty string"),
        (GOOD | {"input": ["x", None]}, 400, r"'input\[1\]' is missing or null"),
        (GOOD | {"input": [["x"]]}, 400, "token ids"),
        (GOOD | {"input": [[1, 2]]}, 400, "check_embedding_ctx_length"),
        (GOOD | {"input": [True]}, 400, "a boolean"),
        (GOOD | {"input": {"text": "x"}}, 400, "an object"),
        (GOOD | {"input": ["x"] * 65}, 400, "65 texts; one request takes at most 64"),
        (GOOD | {"input": "x" * 5001}, 400, "5001 characters; one text takes at most 5000"),
        (GOOD | {"dimensions": 0}, 400, "'dimensions' is 0"),
        (GOOD | {"dimensions": 2.5}, 400, "'dimensions' is 2.5"),
        (GOOD | {"dimensions": True}, 400, "a boolean|True"),
        (GOOD | {"dimensions": "3"}, 400, "a string"),
        (GOOD | {"encoding_format": "hex"}, 400, "float, base64"),
        (GOOD | {"input_type": "clustering"}, 400, "search_document"),
        (GOOD | {"input_type": {}}, 400, "an object"),
        (GOOD | {"input_typ": "query"}, 400, "Unknown field 'input_typ'"),
        (GOOD | {"input": "nothing"}, 400, "input 0 has no vector"),
        (b" " * 400_001, 413, "longer than 400000 bytes"),
    ],
)
def test_a_bad_request_is_refused_in_openais_words(url, body, status, match):
    answered, _, answer = ask(url, body=body)
    assert answered == status
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert re.search(match, error["message"])
    assert "\n" not in error["message"]
    assert len(error["message"]) < 400


@pytest.mark.parametrize("text", ["\x00", " ", "\u202e", "\ufffe", "a\x00b", "\U0010ffff", "\n\n"])
def test_odd_but_valid_text_is_encoded(url, encoder, text):
    status, _, answer = ask(url, body=GOOD | {"input": text, "dimensions": 8.0, "user": {"any": ["thing"]}})
    assert status == 200
    assert np.array_equal(np.float32(answer["data"][0]["embedding"]), encoder.vector(text))


def test_wrong_type_method_and_path_are_json_errors(url):
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        status, _, answer = ask(url, body=GOOD, headers={"Content-Type": kind})
        assert status == 415
        assert "send application/json" in answer["error"]["message"]
    assert ask(url, body=GOOD, headers={"Content-Type": "Application/JSON; charset=utf-8"})[0] == 200
    status, headers, answer = ask(url, "GET", "/v1/embeddings")
    assert (status, headers["allow"]) == (405, "POST")
    assert answer["error"]["type"] == "invalid_request_error"
    assert ask(url, "POST", "/v1/embeddings/", GOOD)[0] == 404
    assert ask(url, "GET", "/v1/%00%ff/../..")[0] == 404


def test_the_documents_are_there(url):
    assert "swagger" in ask(url, "GET", "/docs")[2]
    assert "/v1/embeddings" in ask(url, "GET", "/openapi.json")[2]["paths"]
    health = ask(url, "GET", "/health")
    assert health[0] == 200
    assert health[2] == {"status": "ok", "model": "fake", "dim": 8, "space": None}


# Bytes that no client sends


def chunked(*chunks):
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n", b"400"),
        (b"GET / HTTP/9.9\r\n\r\n", b"4"),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"4"),
        (HEAD + b"Content-Length: -1\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: 99999999999999999999\r\n\r\n", b"4"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b'{"input": "x", ', b'"model": "fake"}'), b"200"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(*[b" " * 60_000] * 8), b"413"),
        (HEAD + b"Expect: 100-continue\r\nContent-Length: 500000\r\n\r\n", b"413"),
        (b"GET /nowhere HTTP/1.1\r\nHost: [\r\n\r\n", b"404"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", b"200"),
    ],
)
def test_strange_bytes_get_an_answer_and_never_a_5xx(url, data, status):
    assert raw(url, data).startswith(b"HTTP/1.1 " + status)
    assert ask(url, body=GOOD)[0] == 200


def test_a_body_that_ends_early_or_never_comes_harms_nobody(url):
    assert not raw(url, HEAD + b"Content-Length: 100\r\n\r\n{", half_close=True).startswith(b"HTTP/1.1 5")
    with running(timeout=0.2) as impatient:
        assert raw(impatient, HEAD + b"Content-Length: 100\r\n\r\n{").startswith(b"HTTP/1.1 408")
        assert ask(impatient, body=GOOD)[0] == 200


def test_a_client_that_reads_only_after_writing_all_sees_the_413(url):
    status, _, answer = ask(url, body=b" " * 30_000_000)
    assert (status, answer["error"]["param"]) == (413, None)


def test_an_answer_does_not_wait_for_a_delayed_acknowledgement(url):
    # With Nagle's algorithm on the server's side the fastest of these takes 40 ms.
    seconds = []
    parts = urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(parts.hostname, parts.port)) as connection:
        for _ in range(20):
            began = time.perf_counter()
            connection.request("POST", "/v1/embeddings", json.dumps(GOOD), {"Content-Type": "application/json"})
            assert connection.getresponse().read()
            seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.02


# Batching


def test_batched_vectors_are_those_of_one_by_one_and_batches_hold_several_requests():
    encoder = FakeEncoder()
    words = [f"word {number}" for number in range(200)]

    async def work(batcher):
        encoder.gate.clear()
        threading.Timer(0.1, encoder.gate.set).start()
        jobs = [batcher.submit([word], role) for word in words for role in ("query", "document")]
        return [answer.vectors[0] for answer in await asyncio.gather(*jobs)]

    vectors = drive(work, encoder, max_batch=16)
    assert np.array_equal(vectors, [encoder.vector(word, role) for word in words for role in ("query", "document")])
    assert len(encoder.batches) == 13 + 13  # 200 / 16 of each role, rounded up
    assert max(len(texts) for _, texts in encoder.batches) == 16
    assert {role for role, texts in encoder.batches for _ in texts} == {"query", "document"}


def test_a_free_encoder_starts_at_once():
    encoder = FakeEncoder()

    async def work(batcher):
        for word in ("one", "two", "three"):
            await batcher.submit([word], "query")

    drive(work, encoder)
    assert [texts for _, texts in encoder.batches] == [["one"], ["two"], ["three"]]


def test_a_query_waits_for_one_batch_of_a_long_list_and_not_for_all():
    encoder = FakeEncoder()
    long = [f"long {number}" for number in range(100)]

    async def work(batcher):
        encoder.gate.clear()
        first = batcher.submit(long, "query")
        await asyncio.sleep(0.05)
        second = batcher.submit(["short"], "query")
        encoder.gate.set()
        await second
        done = first.done()
        return done, (await first).vectors

    done, vectors = drive(work, encoder, max_batch=10)
    assert not done
    assert np.array_equal(vectors, [encoder.vector(text) for text in long])
    # long 0-9 was running; long was first in the queue and took its turn; then came short, with nine of long.
    assert ["short" in texts for _, texts in encoder.batches].index(True) == 2


def test_long_texts_do_not_share_a_batch_beyond_the_characters_it_may_have():
    encoder = FakeEncoder()
    texts = ["a" * 40, "b" * 50, "c" * 20, "d" * 200, "e"]
    drive(lambda batcher: batcher.submit(texts, "document"), encoder, max_batch_characters=100)
    # 40 + 50 and not 20 more; 20 and not 200 more; 200 alone though too long; 1.
    assert [len(batch) for _, batch in encoder.batches] == [2, 1, 1, 1]


def test_an_exception_of_the_encoder_fails_its_request_alone(caplog):
    encoder = FakeEncoder()

    async def work(batcher):
        encoder.gate.clear()
        threading.Timer(0.1, encoder.gate.set).start()
        jobs = [batcher.submit([text], "query") for text in ("first", "good", "poison", "nothing", "fine")]
        return await asyncio.gather(*jobs, return_exceptions=True)

    _, good, poison, nothing, fine = drive(work, encoder)
    assert np.array_equal(good.vectors[0], encoder.vector("good"))
    assert np.array_equal(fine.vectors[0], encoder.vector("fine"))
    assert str(poison) == "poisoned"
    assert isinstance(nothing, LeafError)
    assert len(caplog.records) == 1, "once, and not for what the caller did"
    assert "poisoned" in caplog.text


def test_a_failing_encoder_is_a_500_that_says_so_and_the_next_request_works(url):
    status, _, answer = ask(url, body=GOOD | {"input": ["x", "poison"]})
    assert status == 500
    assert answer["error"]["type"] == "server_error"
    assert "poisoned" not in answer["error"]["message"], "internals stay in the log"
    assert ask(url, body=GOOD)[0] == 200


def test_texts_of_a_client_that_left_are_not_encoded():
    encoder = FakeEncoder()
    with running(encoder) as url:
        encoder.gate.clear()
        encoder.batches.clear()
        body = json.dumps(GOOD | {"input": "left"}).encode()
        port = int(url.rpartition(":")[2])
        holder = threading.Thread(target=ask, args=(url,), kwargs={"body": GOOD | {"input": "running"}})
        holder.start()
        wait_until(lambda: in_flight(url) == 2)  # itself, and the request that asks
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            wait_until(lambda: in_flight(url) == 3)
        wait_until(lambda: in_flight(url) == 2)
        encoder.gate.set()
        holder.join()
        assert ask(url, body=GOOD)[0] == 200
        assert [texts for _, texts in encoder.batches] == [["running"], ["x"]]
        assert 'leaf_requests_total{endpoint="/v1/embeddings",status="499"} 1.0' in ask(url, "GET", "/metrics")[2]


def in_flight(url):
    lines = ask(url, "GET", "/metrics")[2].splitlines()
    return float(next(line for line in lines if line.startswith("leaf_requests_in_flight ")).split()[1])


def test_a_full_queue_is_a_503_with_retry_after():
    encoder = FakeEncoder()

    async def work(batcher):
        encoder.gate.clear()
        running = batcher.submit(["running"], "query")
        await asyncio.sleep(0.05)
        waiting = [batcher.submit(["a", "b"], "query"), batcher.submit(["c", "d"], "document")]
        with pytest.raises(QueueFull):
            batcher.submit(["e"], "query")
        waiting[0].cancel()
        await asyncio.sleep(0.01)
        waiting.append(batcher.submit(["f", "g"], "query"))  # who left makes room at once
        encoder.gate.set()
        await asyncio.gather(running, *waiting[1:])
        return [texts for _, texts in encoder.batches]

    assert drive(work, encoder, max_queue=4) == [["running"], ["c", "d"], ["f", "g"]]

    with running(encoder, max_queue=1, timeout=0.3) as url:
        assert ask(url, body=GOOD | {"input": ["more", "than", "the", "queue"]})[0] == 200
        encoder.gate.clear()
        statuses = []

        def one():
            status, headers, answer = ask(url, body=GOOD)
            statuses.append((status, headers["retry-after"], answer["error"]["code"]))

        threads = [threading.Thread(target=one) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        encoder.gate.set()
        # One was running and one waiting, until the timeout; two were turned away. To a client it is all overload.
        assert statuses == [(503, "1", "overloaded")] * 4
        assert ask(url, body=GOOD)[0] == 200


def test_an_encoder_that_cannot_count_tokens_reports_none():
    class Uncounted(FakeEncoder):
        count_tokens = None

    with running(Uncounted()) as url:
        assert ask(url, body=GOOD)[2]["usage"] == {"prompt_tokens": 0, "total_tokens": 0}


# Who may ask


PROTECTED = ["/v1/embeddings", "/v1/models", "/v1/space", "/metrics", "/openapi.json", "/docs", "/nowhere"]


def test_every_path_but_health_asks_for_the_key():
    with running(api_key="sésame 1") as url:
        for path in PROTECTED:
            for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic sésame 1"}):
                headers = {name: value.encode() for name, value in header.items()}
                status, answered, answer = ask(url, "GET", path, headers=headers)
                assert (status, answered["www-authenticate"]) == (401, "Bearer")
                assert answer["error"]["code"] == "invalid_api_key"
        assert ask(url, "GET", "/health")[0] == 200
        right = {"Authorization": "bearer sésame 1".encode()}
        assert ask(url, "GET", "/metrics", headers=right)[0] == 200
        assert ask(url, body=GOOD, headers=right)[0] == 200
        assert ask(url, "GET", "/openapi.json", headers=right)[2]["security"] == [{"key": []}]


def test_the_openai_client_sees_a_wrong_key_as_such():
    with running(api_key="right") as url:
        with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong").embeddings.create(input="x", model="fake")
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="right")
        assert len(client.embeddings.create(input="x", model="fake").data[0].embedding) == 8


def test_the_key_comes_from_the_environment_and_an_empty_one_is_refused(monkeypatch):
    monkeypatch.delenv("LEAF_API_KEY", raising=False)
    assert Settings().api_key is None
    monkeypatch.setenv("LEAF_API_KEY", "secret\n")
    assert Settings().api_key.get_secret_value() == "secret"
    assert "secret" not in repr(Settings())
    monkeypatch.setenv("LEAF_API_KEY", " ")
    with pytest.raises(LeafError, match="LEAF_API_KEY is set but empty"):
        Settings()


def test_browsers_may_read_answers_only_where_cors_says_so(url):
    page = {"Origin": "https://page.example"}
    assert "access-control-allow-origin" not in ask(url, body=GOOD, headers=page)[1]
    preflight = page | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, x-any",
    }
    assert ask(url, "OPTIONS", "/v1/embeddings", headers=preflight)[0] == 405
    with running(cors=("https://page.example",), api_key="key") as open_url:
        status, headers, _ = ask(open_url, "OPTIONS", "/v1/embeddings", headers=preflight)  # carries no key
        assert (status, headers["access-control-allow-origin"]) == (200, "https://page.example")
        assert "x-any" in headers["access-control-allow-headers"]
        refused = ask(open_url, body=GOOD, headers=page)
        assert (refused[0], refused[1]["access-control-allow-origin"]) == (401, "https://page.example")
        other = ask(open_url, body=GOOD, headers={"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other[1]


# What it tells


def test_the_metrics_count_what_happened():
    with running() as url:
        ask(url, body=GOOD | {"input": ["one two", "three"]})
        ask(url, body=GOOD | {"input_type": "document"})
        ask(url, body=b"{")
        ask(url, "GET", "/a/b/c")
        status, headers, text = ask(url, "GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["leaf_requests_total", "/v1/embeddings", "200"] == 2
    assert samples["leaf_requests_total", "/v1/embeddings", "400"] == 1
    assert samples["leaf_requests_total", "other", "404"] == 1
    assert samples["leaf_texts_total", "query"] == 2
    assert samples["leaf_tokens_total", "query"] == 3
    assert samples["leaf_tokens_total", "document"] == 1
    assert samples["leaf_batch_texts_sum",] == 3
    assert samples["leaf_batch_texts_count",] == samples["leaf_encode_seconds_count",] == 2
    assert samples["leaf_queue_seconds_count",] == 2
    assert 0 < samples["leaf_encode_seconds_sum",] < 5
    assert samples["leaf_requests_in_flight",] == 1
    assert samples["leaf_queue_texts",] == 0


def make_space(encoder, error=0.0):
    texts, kinds = ("a", "b", "c"), ("query", "document", "query")
    vectors = np.stack([encoder.vector(text, kind) for text, kind in zip(texts, kinds, strict=True)])
    return Space({"model": "teacher"}, encoder.dim, True, encoder.similarity, texts, kinds, vectors, error)


def test_the_space_is_handed_on_with_its_canary_vectors():
    encoder = FakeEncoder()
    space = make_space(encoder)
    with running(encoder, space=space) as url:
        status, _, answer = ask(url, "GET", "/v1/space")
        assert ask(url, "GET", "/health")[2]["space"] == answer["id"] == space.id
    assert status == 200
    assert answer["teacher"] == {"model": "teacher"}
    assert [(canary["text"], canary["kind"]) for canary in answer["canaries"]][1] == ("b", "document")
    vector = np.frombuffer(base64.b64decode(answer["canaries"][1]["embedding"]), "<f4")
    assert np.array_equal(vector, encoder.vector("b", "document"))


def test_a_model_without_a_space_says_so(url):
    status, _, answer = ask(url, "GET", "/v1/space")
    assert status == 404
    assert "no space.json" in answer["error"]["message"]


def test_a_model_outside_its_space_is_not_served():
    space = make_space(FakeEncoder())
    with pytest.raises(LeafError, match="not in the space"):
        create_app(FakeEncoder(scale=-1.0), Settings(api_key=None), space=space)
    with pytest.raises(LeafError, match="dropped"):
        create_app(FakeEncoder(dim=4), Settings(api_key=None), space=space)
    with pytest.raises(LeafError, match="or NaN"):
        create_app(FakeEncoder(scale=math.nan), Settings(api_key=None))


# Starting and stopping


def test_a_taken_port_and_a_missing_extra_are_one_line(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LeafError, match=f"port {port} .*choose another --port"):
            serve(FakeEncoder(), Settings(port=port, api_key=None))
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "leaf.runtime.server.app", raising=False)
    monkeypatch.delattr(serving_module, "app", raising=False)
    with pytest.raises(LeafError, match=r"serving needs fastapi: pip install 'leaf\[serve\]'"):
        create_app(FakeEncoder(), Settings(api_key=None))


def test_settings_need_no_web_framework():
    check = (
        "import leaf.runtime.server, leaf.runtime.remote, leaf.runtime.load, sys; "
        "sys.exit(bool({'fastapi', 'uvicorn', 'prometheus_client', 'torch'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


SERVER = """
import sys
sys.path[:0] = {path!r}
from serving import FakeEncoder
from leaf.runtime.server import Settings, serve
serve(FakeEncoder(seconds={seconds}), Settings(port=0, grace={grace}))
"""


def start_server(seconds, grace):
    source = SERVER.format(path=sys.path, seconds=seconds, grace=grace)
    process = subprocess.Popen([sys.executable, "-c", source], stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    assert line.startswith("serving fake (8-d, no space.json) at http://127.0.0.1:"), line
    return process, line.split()[-1].removesuffix("/v1")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")
def test_sigterm_finishes_what_is_in_flight_and_exits_with_0():
    process, url = start_server(seconds=0.3, grace=10)
    with process:
        answers = []
        threads = [
            threading.Thread(target=lambda text=text: answers.append(ask(url, body=GOOD | {"input": text})))
            for text in ("one", "two", "three")
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: in_flight(url) == 4)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert process.wait(timeout=10) == 0
        assert [status for status, _, _ in answers] == [200, 200, 200]
        with pytest.raises(ConnectionRefusedError):
            ask(url, body=GOOD)
        assert process.stderr.read() == ""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")
def test_a_connection_that_never_finishes_delays_the_end_by_the_grace_period_only():
    process, url = start_server(seconds=0.0, grace=1)
    with process, socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as hanging:
        hanging.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        wait_until(lambda: in_flight(url) == 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


# Load


def test_a_hundred_connections_get_their_own_vectors(capsys, tmp_path):
    with running(FakeEncoder(dim=64)) as url:
        code = load_main([url, "--connections", "100", "--seconds", "2", "--out", str(tmp_path / "load.json")])
    record = json.loads((tmp_path / "load.json").read_text())
    assert record == json.loads(capsys.readouterr().out)
    assert record["errors"] == {}
    assert code == 0
    assert record["connections"] == record["connections_opened"] == 100
    assert record["answers"] >= 100  # one a connection at least; how many more is for an idle machine to say
    assert 0 < record["latency_ms"]["p50"] <= record["latency_ms"]["p95"] <= record["latency_ms"]["p99"] < 20_000


def test_the_load_tool_notices_wrong_vectors_and_refusals():
    class Drifting(FakeEncoder):
        def vector(self, text, role="query"):
            return super().vector(f"{text} {len(self.batches) > 21}", role)

    with running(Drifting(dim=64)) as url:  # 2 canary batches, one probe, 16 queries alone; then it drifts
        record = load(url, connections=2, seconds=0.3)
        assert set(record["errors"]) == {"the vector of another text"}
    with running(FakeEncoder(), max_queue=1) as url:
        assert set(load(url, connections=20, seconds=0.3)["errors"]) == {"status 503"}


@pytest.mark.parametrize("url", ["http://example.com", "http://10.0.0.1:80", "http://127.0.0.1.example.com", "nothing"])
def test_the_load_tool_asks_this_machine_alone(url):
    with pytest.raises(LeafError, match="not this machine"):
        load(url, connections=1, seconds=1)
