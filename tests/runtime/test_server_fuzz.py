"""`leaf serve` against requests that nobody thought of: from its OpenAPI document, from any JSON, from any bytes."""

import http.client
import json
from urllib.parse import urlsplit

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_schema_conformance,
    status_code_conformance,
)

from serving import FakeEncoder, ask, running

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    positive_data_acceptance,
    negative_data_rejection,
]
few = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
many = settings(few, max_examples=120)


@pytest.fixture(scope="module")
def url():
    with running(FakeEncoder(), max_texts=4, max_characters=40) as url:
        yield url


@pytest.fixture(scope="module")
def operations(url):
    document = schemathesis.openapi.from_url(f"{url}/openapi.json")
    return {f"{each.ok().method.upper()} {each.ok().path}": each.ok() for each in document.get_all_operations()}


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("POST /v1/embeddings", schemathesis.GenerationMode.POSITIVE),
        ("POST /v1/embeddings", schemathesis.GenerationMode.NEGATIVE),
        ("GET /v1/models/{name}", schemathesis.GenerationMode.POSITIVE),
        ("GET /v1/models", schemathesis.GenerationMode.POSITIVE),
        ("GET /v1/space", schemathesis.GenerationMode.POSITIVE),
        ("GET /health", schemathesis.GenerationMode.POSITIVE),
    ],
)
def test_every_answer_is_one_that_the_openapi_document_describes(operations, path, mode):
    @few
    @given(case=operations[path].as_strategy(generation_mode=mode))
    def one(case):
        case.call_and_validate(checks=CHECKS)

    one()


def test_the_openapi_document_holds_every_operation(operations):
    gets = {f"GET {path}" for path in ("/v1/models", "/v1/models/{name}", "/v1/space", "/health", "/metrics")}
    assert operations.keys() == {"POST /v1/embeddings", *gets}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
nearly = st.fixed_dictionaries(
    {"input": st.text() | st.lists(st.text()) | json_values, "model": st.just("fake") | st.text()},
    optional={
        "dimensions": st.integers() | st.floats() | json_values,
        "encoding_format": st.sampled_from(["float", "base64"]) | json_values,
        "input_type": st.sampled_from(["query", "document"]) | json_values,
        "user": json_values,
    },
)


@pytest.fixture(scope="module")
def connection(url):
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=20)
    yield connection
    connection.close()


def post(connection, body):
    connection.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def check(status, answer, num_texts):
    if status == 200:
        assert len(answer["data"]) == num_texts
        assert [row["index"] for row in answer["data"]] == list(range(num_texts))
        assert all(isinstance(row["embedding"], str) or np.isfinite(row["embedding"]).all() for row in answer["data"])
    else:
        assert 400 <= status < 500, answer
        assert isinstance(answer["error"]["message"], str)


@many
@given(body=nearly | json_values)
@example(body={"input": "\ud800", "model": "fake"})
def test_any_json_is_answered_or_refused(connection, body):
    status, answer = post(connection, json.dumps(body).encode())
    wanted = body.get("input") if isinstance(body, dict) else None
    check(status, answer, len(wanted) if isinstance(wanted, list) else 1)


@many
@given(data=st.data())
def test_any_bytes_are_answered_or_refused(connection, data):
    good = json.dumps({"input": ["a", "b"], "model": "fake", "dimensions": 3}).encode()
    start = data.draw(st.integers(0, len(good)))
    stop = data.draw(st.integers(start, len(good)))
    body = good[:start] + data.draw(st.binary(max_size=20)) + good[stop:]
    status, answer = post(connection, body)
    check(status, answer, len(answer.get("data", [])))


def test_after_all_that_it_still_answers(url):
    status, _, answer = ask(url, body={"input": "x", "model": "fake"})
    assert status == 200
    assert np.array_equal(np.float32(answer["data"][0]["embedding"]), FakeEncoder().vector("x"))
