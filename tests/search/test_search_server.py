"""`leaf serve --index`: the API finds what comparing with every document finds, and refuses in one line."""

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from html.parser import HTMLParser

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from leaf.errors import LeafError
from leaf.runtime import server as runtime_server
from leaf.runtime.server import Settings
from leaf.search import Document, Index
from leaf.search.server import PAGE, create_search_app
from runtime.test_server_fuzz import CHECKS
from searching import DOCUMENTS, Opened, Teacher, WordEncoder, make_app, make_index, ranking, usual
from serving import ask, running_app


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    with make_index(tmp_path_factory.mktemp("index") / "index") as index:
        yield index


@pytest.fixture(scope="module")
def client(index):
    app, _ = make_app(index, max_characters=1000, max_body_bytes=20_000_000)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def found(answer):
    return [hit["id"] for hit in answer.json()["hits"]]


# What is found


@pytest.mark.parametrize("model", ["small", "tiny", "teacher"])
def test_hits_are_those_of_comparing_with_every_document(client, model):
    query = "how to read a file"
    answer = client.post("/v1/search", json={"query": query, "model": model, "k": 7}).json()
    expected = ranking(usual().encoders[model], query)[:7]
    assert [hit["id"] for hit in answer["hits"]] == [each for each, _ in expected]
    np.testing.assert_allclose([hit["score"] for hit in answer["hits"]], [score for _, score in expected], atol=1e-5)
    by_id = {each.id: each for each in DOCUMENTS}
    for hit in answer["hits"]:
        document = by_id[hit["id"]]
        assert (hit["title"], hit["text"], hit["metadata"]) == (document.title, document.text, document.metadata)
    assert (answer["model"], answer["documents"]) == (model, len(DOCUMENTS))
    assert 0 < answer["ms"]["encode"] < 5000
    assert 0 < answer["ms"]["search"] < 5000


def test_the_first_encoder_asks_by_default_and_ten_come_back(client):
    answer = client.post("/v1/search", json={"query": "json", "model": None, "k": None, "where": None, "exact": None})
    assert answer.json()["model"] == "small"
    assert found(answer) == [each for each, _ in ranking(usual().encoders["small"], "json")[:10]]


def test_a_condition_leaves_only_what_meets_it(client):
    answer = client.post("/v1/search", json={"query": "open", "where": "topic in ['zip', 'json'] and number < 30"})
    assert len(answer.json()["hits"]) == 6  # json's six verbs; zip comes last of the topics
    assert {hit["metadata"]["topic"] for hit in answer.json()["hits"]} == {"json"}
    assert found(client.post("/v1/search", json={"query": "open", "where": "topic == 'none'"})) == []
    blank = client.post("/v1/search", json={"query": "open", "where": " ", "exact": True, "k": 100.0})
    assert len(found(blank)) == len(DOCUMENTS)


def test_what_another_process_adds_is_found_at_once(tmp_path):
    with make_index(tmp_path / "index", DOCUMENTS[:5]) as index, TestClient(make_app(index)[0]) as client:
        with Index.open(tmp_path / "index") as other:
            other.put([Document("new", "volcano", metadata={"fresh": True})], Teacher("teacher"))
        answer = client.post("/v1/search", json={"query": "volcano", "where": "fresh"}).json()
        assert ([hit["id"] for hit in answer["hits"]], answer["documents"]) == (["new"], 6)
        described = client.get("/v1/index").json()
        assert (described["documents"], described["columns"]["fresh"]) == (6, "bool")


def test_the_index_says_what_it_holds_and_who_may_ask(index):
    with TestClient(make_app(index)[0]) as client:
        answer = client.get("/v1/index").json()
        assert answer == {
            "documents": 61,  # 10 topics of 6 verbs, and one more
            "space": index.space.id,
            "teacher": "teacher",
            "dim": 32,
            "precision": "float32",
            "columns": {"topic": "str", "number": "int", "old": "bool", "url": "str"},
            "encoders": [
                {"name": "small", "loaded": True, "default": True, "teacher": False, "error": None},
                {"name": "tiny", "loaded": False, "default": False, "teacher": False, "error": None},
                {"name": "teacher", "loaded": False, "default": False, "teacher": True, "error": None},
            ],
        }
        client.post("/v1/search", json={"query": "x", "model": "tiny"})
        assert [each["loaded"] for each in client.get("/v1/index").json()["encoders"]] == [True, True, False]


def test_embeddings_of_the_default_encoder_are_offered_by_the_same_name(client):
    answer = client.post("/v1/embeddings", json={"input": "json", "model": "small"}).json()
    assert np.array_equal(np.float32(answer["data"][0]["embedding"]), usual().encoders["small"].vector("json"))
    assert client.get("/health").json()["model"] == "small"


# What is refused


GOOD = {"query": "x"}


@pytest.mark.parametrize(
    ("body", "status", "param", "match"),
    [
        (b"{", 400, None, "not JSON"),
        (b'{"query": "\\ud800"}', 400, None, "not JSON"),
        (b"[" * 100_000, 400, None, "recursion limit"),
        ([], 400, None, "is a list; send an object with 'query'"),
        ({}, 400, "query", "'query' is missing"),
        ({"query": ["x"]}, 400, "query", "'query' is a list"),
        ({"query": ""}, 400, "query", "blank"),
        ({"query": " \n"}, 400, "query", "blank"),
        ({"query": "x" * 1001}, 400, "query", "1001 characters; it takes at most 1000"),
        ({"query": "x" * 10_000_000}, 400, "query", "10000000 characters; it takes at most 1000"),
        ({"query": "nothing"}, 400, "query", "the query has no vector"),
        (GOOD | {"model": "gpt"}, 404, "model", "'gpt' does not exist; this server has 'small' or 'tiny' or 'teacher'"),
        (GOOD | {"model": 3}, 400, "model", "'model' is a number"),
        (GOOD | {"k": 0}, 400, "k", "'k' is '0'; it must be an integer from 1 to 100"),
        (GOOD | {"k": 101}, 400, "k", "from 1 to 100"),
        (GOOD | {"k": 2.5}, 400, "k", "'2.5'"),
        (GOOD | {"k": True}, 400, "k", "a boolean"),
        (GOOD | {"k": "3"}, 400, "k", "a string"),
        (b'{"query": "x", "k": 1e999}', 400, "k", "inf"),
        (b'{"query": "x", "k": ' + b"9" * 400 + b"}", 400, "k", "from 1 to 100"),
        (GOOD | {"where": 1}, 400, "where", "'where' is a number"),
        (GOOD | {"where": "x" * 4001}, 400, "where", "4001 characters"),
        (GOOD | {"where": "topic = 'json'"}, 400, "where", "cannot read the condition"),
        (GOOD | {"where": "tpic == 'json'"}, 400, "where", "no metadata column 'tpic'; there are"),
        (GOOD | {"where": "number == 'json'"}, 400, "where", "compare like with like"),
        (GOOD | {"where": "__import__('os').system('true')"}, 400, "where", "is no condition"),
        (GOOD | {"where": "not " * 990 + "old"}, 400, "where", "recursion|cannot read|too many"),
        (GOOD | {"where": "(" * 1990 + "old" + ")" * 1990}, 400, "where", "cannot read"),
        (GOOD | {"where": "\x00"}, 400, "where", "cannot read"),
        (GOOD | {"exact": 1}, 400, "exact", "'exact' is a number"),
        (GOOD | {"top": 1}, 400, "top", "Unknown field 'top'; known are query, model, k, where, exact"),
        (b" " * 20_000_001, 413, None, "longer than 20000000 bytes"),
    ],
)
def test_a_bad_request_is_refused_in_one_line(client, body, status, param, match):
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = client.post("/v1/search", content=content, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert re.search(match, error["message"])
    assert "\n" not in error["message"]
    assert len(error["message"]) < 500


def test_wrong_types_methods_and_paths_are_json_errors(client):
    assert client.post("/v1/search", content=b"query=x").status_code == 415
    assert client.get("/v1/search").status_code == 405
    assert client.post("/", json=GOOD).status_code == 405
    assert "error" in client.get("/v1/indexes").json()


@pytest.fixture(scope="module")
def operation(index):
    with running_app(*make_app(index, max_characters=40)) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")["/v1/search"]["POST"]


@pytest.mark.parametrize("mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE])
def test_every_answer_is_one_that_the_openapi_document_describes(operation, mode):
    # What a condition may say, a schema cannot.
    checks = [check for check in CHECKS if check.__name__ != "positive_data_acceptance"]

    @hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(case=operation.as_strategy(generation_mode=mode))
    def explore(case):
        case.call_and_validate(checks=checks)

    explore()


def test_an_encoder_of_another_space_is_refused_with_the_reason_and_opened_once(index):
    opened = Opened(small=WordEncoder("small", 0.2), foreign=WordEncoder("foreign", seed="another"))
    with TestClient(make_app(index, opened)[0]) as client:
        for _ in range(2):
            answer = client.post("/v1/search", json=GOOD | {"model": "foreign"})
            assert answer.status_code == 409
            assert answer.json()["error"]["code"] == "model_refused"
            assert "foreign does not answer in the space of org/teacher" in answer.json()["error"]["message"]
        card = client.get("/v1/index").json()["encoders"][1]
        assert (card["loaded"], card["error"]) == (False, answer.json()["error"]["message"])
        assert client.post("/v1/search", json=GOOD).status_code == 200
    assert opened.count["foreign"] == 1


def test_an_encoder_that_cannot_be_opened_says_why_until_it_can(index, caplog):
    opened = Opened(small=WordEncoder("small", 0.2), teacher=ModuleNotFoundError("No module named 'torch'\nat all"))
    with TestClient(make_app(index, opened)[0]) as client:
        answer = client.post("/v1/search", json=GOOD | {"model": "teacher"})
        assert answer.status_code == 503
        message = "teacher cannot be opened: No module named 'torch'"
        assert answer.json()["error"] == {
            "message": message, "type": "server_error", "param": "model", "code": "model_unavailable"
        }  # fmt: skip
        assert client.get("/v1/index").json()["encoders"][1]["error"] == message
        assert not caplog.records, "a missing package is no mistake of the server"
        opened.encoders["teacher"] = Teacher("teacher")
        assert client.post("/v1/search", json=GOOD | {"model": "teacher"}).status_code == 200
        assert client.get("/v1/index").json()["encoders"][1]["error"] is None


def test_the_default_encoder_must_be_there_before_anything_is_served(index):
    settings = Settings(api_key=None)
    with pytest.raises(LeafError, match="does not answer in the space"):
        create_search_app(index, Opened(foreign=WordEncoder("foreign", seed="another")).openers(), settings)
    with pytest.raises(LeafError, match="no such student"):
        create_search_app(index, Opened(gone=LeafError("no such student")).openers(), settings)
    with pytest.raises(LeafError, match="no encoder to ask"):
        create_search_app(index, {}, settings)


def test_a_missing_extra_is_one_line_before_a_model_is_opened(index, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "leaf.runtime.server.app", raising=False)
    monkeypatch.delattr(runtime_server, "app", raising=False)
    opened = usual()
    with pytest.raises(LeafError, match=r"serving needs fastapi: pip install 'leaf\[serve\]'"):
        create_search_app(index, opened.openers(), Settings(api_key=None))
    assert opened.count["small"] == 0


def test_an_index_that_fails_is_a_503_and_a_failing_encoder_a_500(index, client, monkeypatch, caplog):
    answer = client.post("/v1/search", json={"query": "poison"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert "poisoned" in caplog.text
    assert "poisoned" not in answer.text

    def gone(*arguments, **options):
        raise LeafError("the database does not answer\nconnection refused")

    monkeypatch.setattr(index.store, "search", gone)
    answer = client.post("/v1/search", json=GOOD)
    assert answer.status_code == 503
    assert answer.json()["error"]["message"] == "the database does not answer"
    assert answer.json()["error"]["code"] == "index_unavailable"


# Many at a time


def test_a_slow_encoder_is_opened_once_and_holds_nobody_else_up(index):
    opened = usual()
    teacher = opened.encoders["teacher"]
    opening = threading.Event()
    openers = opened.openers()
    open_teacher = openers["teacher"]
    openers["teacher"] = lambda: opening.wait(10) and open_teacher()
    settings = Settings(port=0, api_key=None, timeout=5)
    with running_app(create_search_app(index, openers, settings), settings) as url:
        answers = []
        body = GOOD | {"model": "teacher"}
        threads = [
            threading.Thread(target=lambda: answers.append(ask(url, path="/v1/search", body=body))) for _ in "1234"
        ]
        teacher.gate.clear()
        for thread in threads:
            thread.start()
        for release in (opening, teacher.gate):  # while it is opened, and while it encodes
            assert ask(url, path="/v1/search", body=GOOD)[0] == 200
            assert ask(url, "GET", "/v1/index")[2]["encoders"][2]["error"] is None
            release.set()
        for thread in threads:
            thread.join()
        assert [status for status, _, _ in answers] == [200] * 4
    assert opened.count["teacher"] == 1


def test_an_encoder_that_is_not_open_in_time_is_a_503_and_goes_on_opening(index):
    opened, opening = usual(), threading.Event()
    openers = opened.openers()
    open_tiny = openers["tiny"]
    openers["tiny"] = lambda: opening.wait(10) and open_tiny()
    with TestClient(create_search_app(index, openers, Settings(api_key=None, timeout=0.1))) as client:
        answer = client.post("/v1/search", json=GOOD | {"model": "tiny"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["message"] == "tiny is still being opened; try again."
        opening.set()
        answers = (client.post("/v1/search", json=GOOD | {"model": "tiny"}) for _ in range(50))
        assert any(answer.status_code == 200 for answer in answers)
    assert opened.count["tiny"] == 1


# Who may ask, and what it tells


def test_the_page_needs_no_key_and_the_api_does(index):
    app, _ = make_app(index, api_key="sésame", cors=("https://page.example",))
    with TestClient(app) as client:
        assert client.get("/").status_code == client.get("/health").status_code == 200
        for method, path in (
            ("GET", "/v1/index"),
            ("POST", "/v1/search"),
            ("POST", "/v1/embeddings"),
            ("GET", "/docs"),
        ):
            answer = client.request(method, path, json=GOOD, headers={"origin": "https://page.example"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert answer.headers["access-control-allow-origin"] == "https://page.example"
        key = {"authorization": "Bearer sésame".encode()}
        assert client.post("/v1/search", json=GOOD, headers=key).status_code == 200
        assert client.get("/openapi.json", headers=key).json()["security"] == [{"key": []}]


def test_searches_are_counted(index):
    with TestClient(make_app(index)[0]) as client:
        client.get("/")
        client.get("/v1/index")
        client.get("/nowhere")
        for body in (GOOD, GOOD | {"model": "tiny"}, GOOD | {"model": "tiny"}, {}):
            client.post("/v1/search", json=body)
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(client.get("/metrics").text)
            for sample in family.samples
        }
    for endpoint, status, count in (
        ("/", 200, 1),
        ("/v1/index", 200, 1),
        ("/v1/search", 200, 3),
        ("/v1/search", 400, 1),
    ):
        assert samples["leaf_requests_total", endpoint, str(status)] == count
    assert samples["leaf_requests_total", "other", "404"] == 1
    assert (samples["leaf_search_seconds_count", "small"], samples["leaf_search_seconds_count", "tiny"]) == (1, 2)
    assert samples["leaf_texts_total", "query"] == 3
    assert samples["leaf_queue_texts",] == 0


class Blocks(HTMLParser):
    """The contents of `script` and `style`, and every address that the page names."""

    def __init__(self, page):
        super().__init__()
        self.blocks, self.addresses, self.styles = {}, [], 0
        self._inside = None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self._inside = tag if tag in ("script", "style") else None
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action", "srcset")]
        self.styles += sum(name == "style" or name.startswith("on") for name, _ in attributes)

    def handle_data(self, data):
        if self._inside:
            self.blocks.setdefault(self._inside, []).append(data)

    def handle_endtag(self, tag):
        self._inside = None


def test_the_page_may_run_its_own_script_and_style_and_ask_this_server_alone(client):
    answer = client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.content == PAGE.read_bytes()
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    page = Blocks(answer.text)
    for tag in ("script", "style"):
        (content,) = page.blocks[tag]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert (policy["default-src"], policy["connect-src"], policy["frame-ancestors"]) == ("'none'", "'self'", "'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert page.styles == 0, "the policy would drop inline styles and handlers"
    assert [address for address in page.addresses if not address.startswith("data:")] == ["docs"]
    assert "innerHTML" not in answer.text
    assert "insertAdjacentHTML" not in answer.text


SERVER = """
import sys
sys.path[:0] = {path!r}
from leaf.runtime.server import Settings
from leaf.search import Index
from leaf.search.server import serve_index
from searching import usual
serve_index(Index.open({folder!r}), usual().openers(), Settings(port=0))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")
def test_it_serves_until_sigterm_without_torch_and_exits_with_0(index):
    source = SERVER.format(path=sys.path, folder=index.store.name)
    check = "import sys; assert 'torch' not in sys.modules, 'torch'"
    with subprocess.Popen([sys.executable, "-c", f"{source}\n{check}"], stderr=subprocess.PIPE, text=True) as process:
        line = process.stderr.readline()
        assert line.startswith(f"serving 61 documents of {index.store.name}, asked by small, at http://127.0.0.1:"), (
            line
        )
        url = line.split()[-1].removesuffix("/")
        assert ask(url, path="/v1/search", body=GOOD)[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
        assert process.stderr.read() == ""


def test_the_server_of_embeddings_knows_nothing_of_search():
    check = "import leaf.runtime.server.app, sys; sys.exit(any(name.startswith('leaf.search') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
