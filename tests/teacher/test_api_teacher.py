import contextlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from filelock import FileLock

from embeddings_service import CANARY_TEXTS, Embeddings, answered
from leaf.errors import Halt, LeafError
from leaf.recipe import Api
from leaf.service import OverBudget, Service
from leaf.teacher.api import ApiTeacher
from leaf.teacher.buying import TokenRate
from leaf.teacher.drift import CANARIES, drift
from leaf.teacher.paid import PaidVectors, Purchase
from misbehaving import Misbehaving, Refusal
from serving import FakeEncoder, running

KEY = "sk-sesame-0123456789"
TEXTS = [f"text number {n} of a small corpus" for n in range(40)]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setattr("leaf.service._grow", lambda state: 0.001)
    for name in ("OPENAI_API_KEY", "VOYAGE_API_KEY", "CO_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def opened(tmp_path):
    """Opens teachers on one store, and closes them."""
    with contextlib.ExitStack() as stack:

        def teacher(service, model="openai:m", *, run="", max_cost=None, prompts=None, **settings):
            made = ApiTeacher(
                model,
                Api(**{"url": service.url, "batch_texts": 5, **settings}),  # four, and a witness
                store=tmp_path / "api",
                run=run,
                max_cost=max_cost,
                prompts=prompts,
            )
            stack.callback(made.close)
            return made

        yield teacher


def no_canaries(service):
    """Bodies of requests for other texts than canaries, without the one that went along."""
    bodies = ((body, "input" if "input" in body else "texts") for _, body in service.requests)
    asked = ({**body, field: [text for text in body[field] if text not in CANARY_TEXTS]} for body, field in bodies)
    return [body for body in asked if body.get("input") or body.get("texts")]


# What is sent, and what is read.


@pytest.mark.parametrize(
    ("model", "path", "query", "document"),
    [
        ("openai:m", "/v1/embeddings", {}, {}),
        (
            "voyage:m",
            "/v1/embeddings",
            {"input_type": "query", "truncation": True},
            {"input_type": "document", "truncation": True},
        ),
        (
            "cohere:m",
            "/v1/v2/embed",
            {"input_type": "search_query", "embedding_types": ["float"], "truncate": "END"},
            {"input_type": "search_document", "embedding_types": ["float"], "truncate": "END"},
        ),
    ],
)
def test_each_provider_is_asked_in_its_own_words(opened, model, path, query, document):
    truth = Embeddings()
    texts, width = ("texts", "output_dimension") if model == "cohere:m" else ("input", "dimensions")
    width = "output_dimension" if model == "voyage:m" else width
    encoding = {} if model == "cohere:m" else {"encoding_format": "base64"}
    with Misbehaving(truth) as service:
        teacher = opened(service, model, dimensions=6)
        queries, documents = teacher.encode_query(["one"]), teacher.encode_document(["two"])
    assert {path for path, _ in service.requests} == {path}
    assert no_canaries(service) == [
        {"model": "m", texts: ["one"], width: 6, **encoding, **query},
        {"model": "m", texts: ["two"], width: 6, **encoding, **document},
    ]
    np.testing.assert_array_equal(queries, truth.vectors(["one"], query.get("input_type", ""))[:, :6])
    np.testing.assert_array_equal(documents, truth.vectors(["two"], document.get("input_type", ""))[:, :6])
    assert teacher.dim == 6


@pytest.mark.parametrize("dimensions", [None, 6])
def test_the_json_is_that_of_openais_own_client(opened, dimensions):
    with Misbehaving(Embeddings()) as service:
        opened(service, dimensions=dimensions).encode_document(["one", "two"])
        (ours,) = (body for _, body in service.requests if "one" in body["input"])
        width = {} if dimensions is None else {"dimensions": dimensions}
        openai.OpenAI(base_url=service.url, api_key="k").embeddings.create(model="m", input=ours["input"], **width)
    assert service.requests[-1][1] == ours


@pytest.mark.parametrize("change", [{"lists": True}, {"shuffled": True}, {"lists": True, "shuffled": True}])
def test_lists_for_base64_and_rows_out_of_order_are_the_same_vectors(opened, change):
    truth = Embeddings()
    vars(truth).update(change)
    with Misbehaving(truth) as service:
        np.testing.assert_array_equal(opened(service).encode_document(TEXTS), truth.vectors(TEXTS))


def test_our_own_server_is_a_teacher(opened):
    encoder = FakeEncoder()
    with running(encoder) as url:
        service = type("Server", (), {"url": f"{url}/v1"})
        roles = {"query": "query", "document": "document"}
        teacher = opened(service, "openai:fake", input_types=roles, dimensions=8, batch_texts=None)
        queries, documents = teacher.encode_query(TEXTS), teacher.encode_document(TEXTS)
    np.testing.assert_array_equal(queries, [encoder.vector(text, "query") for text in TEXTS])
    np.testing.assert_array_equal(documents, [encoder.vector(text, "document") for text in TEXTS])


def test_prompts_are_put_before_the_text_and_long_texts_are_cut(opened):
    truth = Embeddings()
    with Misbehaving(truth) as service:
        teacher = opened(service, prompts={"query": "find: "}, characters=5)
        query, document = teacher.encode_query(["abcdefg"]), teacher.encode_document(["abcdefg"])
    np.testing.assert_array_equal(query, truth.vectors(["find: abcde"]))
    np.testing.assert_array_equal(document, truth.vectors(["abcde"]))


def test_identity_is_what_can_change_a_vector_and_nobody_is_asked_for_it(opened):
    with Misbehaving(Embeddings()) as service:
        identity = opened(service, prompts={"query": "find: "}, characters=50, price=1.0, at_once=3).identity()
    assert service.requests == []
    assert identity == {
        "model": "openai:m",
        "url": "127.0.0.1/v1",
        "dimensions": None,
        "input_types": {},
        "characters": 50,
        "prompts": {"query": "find: ", "document": ""},
        "similarity": "cosine",
    }


# Paid once.


@pytest.fixture
def stubborn(monkeypatch):
    """So many tries that no run of bad luck ends the work."""
    monkeypatch.setitem(Service.__init__.__kwdefaults__, "attempts", 100)


def test_through_every_fault_each_text_is_answered_whole_once(opened, stubborn):
    truth = Embeddings()
    texts = [*TEXTS, *TEXTS[:7], "naïve 東京"]
    faults = {"fail": 0.2, "drop": 0.1, "cut": 0.1, "limit": 0.1, "garbage": 0.05}
    with Misbehaving(truth, **faults, seed=4) as service:
        teacher, heard = opened(service, "voyage:m", batch_texts=2, run="a"), []
        queries = teacher.encode_query(texts, advance=heard.append)
        documents = teacher.encode_document(texts[::-1])
        bill = teacher.bill()
    np.testing.assert_array_equal(queries, truth.vectors(texts, "query"))
    np.testing.assert_array_equal(documents, truth.vectors(texts[::-1], "document"))
    assert set(service.faults) == set(faults)
    assert answered(service) == {(role, text): 1 for role in ("query", "document") for text in {*texts}}
    assert sum(heard) == len(texts)
    assert bill["texts_bought"] == 2 * 41
    assert bill["texts_had"] == 2 * 7
    assert bill["requests"] == len(service.requests)
    assert bill["retries"] == len(service.faults)


def test_another_run_and_recipe_finds_what_was_bought(opened):
    truth = Embeddings()
    with Misbehaving(truth) as service:
        first = opened(service, run="a", prompts={"query": "find: "})
        first.encode_query(TEXTS)
        first.close()
        asked, heard = len(service.requests), []
        again = opened(service, run="b", characters=100)
        # No role is told, so a document that reads like a prompted query has its vector.
        vectors = again.encode_document([f"find: {text}" for text in TEXTS], advance=heard.append)
        assert len(service.requests) == asked
        assert sum(heard) == len(TEXTS)
        assert again.bill()["texts_bought"] == 0
        assert again.bill()["texts_had"] == len(TEXTS)
    np.testing.assert_array_equal(vectors, truth.vectors([f"find: {text}" for text in TEXTS]))


def test_requests_are_in_flight_together_and_no_more_than_allowed(opened):
    with Misbehaving(Embeddings(), delay=0.02) as service:
        opened(service, at_once=3).encode_document(TEXTS)
    assert service.most_at_once == 3


def test_a_request_keeps_to_the_tokens_it_may_have(opened):
    texts = ["a" * 4 * n for n in range(1, 40)]  # n + 1 tokens
    with Misbehaving(Embeddings()) as service:
        opened(service, batch_texts=100, batch_tokens=80).encode_document(texts)
    bodies = [body["input"] for _, body in service.requests if not CANARY_TEXTS.issuperset(body["input"])]
    sizes = [sum(1 + len(text.encode()) // 4 for text in texts) for texts in bodies]
    assert max(sizes) <= 80
    assert len(sizes) < 39


_CHILD = """
import sys, os, json, signal
sys.path[:0] = json.loads(sys.argv[1])
from pathlib import Path
from leaf.recipe import Api
from leaf.teacher.api import ApiTeacher
for line in sys.stdin:
    if os.fork():
        print("ready", flush=True)
        os.wait()
        print("gone", flush=True)
        continue
    job = json.loads(line)
    Path(job["pid"]).write_text(str(os.getpid()))
    try:
        teacher = ApiTeacher("openai:m", Api(**job["settings"]), store=Path(job["store"]))
        teacher.encode_document(job["texts"])
    except Exception as error:
        Path(job["pid"]).with_suffix(".error").write_text(str(error))
    os._exit(0)
"""


@pytest.fixture
def in_child(tmp_path):
    """Starts buying processes, one after the other, quickly: forks of one that has imported all they need."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    paths = json.dumps([str(Path(__file__).parents[2] / "src")])
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD, paths], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:

        @contextlib.contextmanager
        def buying(service, texts, **settings):
            pid = tmp_path / "pid"
            pid.unlink(missing_ok=True)
            job = {"pid": str(pid), "store": str(tmp_path / "api"), "texts": texts}
            job["settings"] = {"url": service.url, "batch_texts": 5, **settings}
            parent.stdin.write(json.dumps(job) + "\n")
            parent.stdin.flush()
            assert parent.stdout.readline() == "ready\n"
            while not (pid.exists() and pid.read_text()):
                time.sleep(0.002)
            yield int(pid.read_text())
            assert parent.stdout.readline() == "gone\n"

        yield buying
        parent.stdin.close()


def test_a_process_killed_at_any_moment_loses_no_more_than_was_in_flight(opened, in_child):
    truth, chance = Embeddings(), random.Random(0)
    texts = [f"text number {n}" for n in range(1200)]
    kills = 10
    with Misbehaving(truth, delay=0.01) as service:
        for _ in range(kills):
            last = len(service.requests) + chance.randint(1, 35)
            with in_child(service, texts, at_once=3) as pid:
                while len(service.requests) < last:
                    time.sleep(0.001)
                time.sleep(chance.uniform(0.0, 0.02))
                os.kill(pid, 9)
            time.sleep(0.05)  # what was in flight is answered, to nobody
        assert 100 < len(answered(service)) < 1200, "the kills must fall into the work"
        teacher = opened(service, at_once=3)
        vectors = teacher.encode_document(texts)
    np.testing.assert_array_equal(vectors, truth.vectors(texts))
    counts = answered(service)
    assert len(counts) == 1200
    assert sum(counts.values()) - 1200 <= kills * 3 * 4


def test_a_second_buyer_waits_and_pays_for_the_rest_alone_and_a_reader_does_not_wait(
    opened, in_child, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("leaf.teacher.paid.SILENT_WAIT", 0.1)
    truth = Embeddings()
    texts = [f"text number {n}" for n in range(120)]
    with Misbehaving(truth, delay=0.03) as service:
        opened(service).encode_document(texts[:8])
        with in_child(service, texts[:100], at_once=1):
            while len(answered(service)) < 16:
                time.sleep(0.002)
            reader = opened(service)
            np.testing.assert_array_equal(reader.encode_document(texts[:8]), truth.vectors(texts[:8]))
            assert "waiting" not in capsys.readouterr().err
            vectors = opened(service).encode_document(texts)
            assert "another process is buying vectors into" in capsys.readouterr().err
        assert not (tmp_path / "pid.error").exists()
    np.testing.assert_array_equal(vectors, truth.vectors(texts))
    assert answered(service) == {("", text): 1 for text in texts}


def test_two_stores_of_one_file_in_two_threads_pay_once(opened):
    with Misbehaving(Embeddings(), delay=0.005) as service:
        threads = [threading.Thread(target=opened(service).encode_document, args=[TEXTS]) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answered(service) == {("", text): 1 for text in TEXTS}


def test_two_teachers_in_one_process_share_a_store(opened):
    truth = Embeddings()
    with Misbehaving(truth) as service:
        one, other = opened(service), opened(service)
        one.encode_document(TEXTS[:9])
        np.testing.assert_array_equal(other.encode_document(TEXTS), truth.vectors(TEXTS))
        one.close()
        other.encode_document(["another"])
    assert answered(service) == {("", text): 1 for text in [*TEXTS, "another"]}


def test_calls_from_many_threads_pay_once(opened):
    with Misbehaving(Embeddings(), delay=0.005) as service:
        teacher = opened(service)
        threads = [threading.Thread(target=teacher.encode_document, args=[TEXTS]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answered(service) == {("", text): 1 for text in TEXTS}


def test_an_interrupt_keeps_what_is_in_flight_and_asks_no_more(opened):
    truth = Embeddings()

    def interrupt(count):
        raise KeyboardInterrupt

    with Misbehaving(truth, delay=0.05) as service:
        teacher = opened(service, at_once=3)
        with pytest.raises(KeyboardInterrupt):
            teacher.encode_document(TEXTS, advance=interrupt)
        assert 4 <= len(answered(service)) <= 16  # those in flight, and the one that took the place of the first
        teacher.encode_document(TEXTS)
    assert answered(service) == {("", text): 1 for text in TEXTS}


def test_an_error_is_not_kept_waiting_by_requests_that_wait(opened):
    def answer(path, body):
        if "text number 0 of a small corpus" in body["input"]:
            time.sleep(0.1)
            raise Refusal(400, {"error": {"message": "no such thing"}})
        return truth(path, body) if CANARY_TEXTS.issuperset(body["input"]) else wait()

    def wait():
        raise Refusal(429, None, {"Retry-After": "60"})

    truth = Embeddings()
    with Misbehaving(answer) as service:
        began = time.monotonic()
        with pytest.raises(LeafError, match="no such thing"):
            opened(service).encode_document(TEXTS)
        assert time.monotonic() - began < 10


# The answer is checked.


def breaks_once(change):
    """An `edit` that spoils the first answer with other texts than canaries in it."""
    spoilt = []

    def edit(answer):
        if len(answer["data"]) == 4 and not spoilt:  # three texts and a witness
            spoilt.append(change(answer))
        return answer

    return edit, spoilt


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: answer["data"].pop(),
        lambda answer: answer["data"][0].update(index=1),
        lambda answer: answer["data"][0].update(embedding="not base64!"),
        lambda answer: answer["data"][0].update(embedding=[float("nan")] * 8),
        lambda answer: answer["data"][0].update(embedding=[None] * 8),
        lambda answer: answer["data"][0].update(embedding=[]),
        lambda answer: answer["data"][0].pop("embedding"),
        lambda answer: answer.pop("data"),
    ],
)
def test_an_answer_that_is_not_the_vectors_asked_for_is_asked_for_again(opened, change):
    truth = Embeddings()
    truth.edit, spoilt = breaks_once(change)
    with Misbehaving(truth) as service:
        teacher = opened(service)
        np.testing.assert_array_equal(teacher.encode_document(TEXTS[:3]), truth.vectors(TEXTS[:3]))
        assert spoilt
        assert teacher.bill()["retries"] == 1
        assert teacher.bill()["tokens_lost"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda truth: setattr(truth, "dim", 9), "answered with 9 dimensions, expected 8"),
        (lambda truth: setattr(truth, "scale", 1.1), "length is 0.1000 off 1"),
        (lambda truth: setattr(truth, "tells", "m-2025"), "answered as m-2025, before as m-2024"),
    ],
)
def test_an_answer_of_another_model_stops_and_is_not_kept(opened, change, message):
    truth = Embeddings()
    with Misbehaving(truth) as service:
        teacher = opened(service, at_once=1)
        teacher.encode_document(TEXTS[:8])
        old = vars(truth).copy()
        change(truth)
        with pytest.raises(LeafError, match=message):
            teacher.encode_document(TEXTS)
        vars(truth).update(old)
        vectors = teacher.encode_document(TEXTS)
    np.testing.assert_array_equal(vectors, truth.vectors(TEXTS))
    assert all(count == 1 for (_, text), count in answered(service).items() if text in TEXTS[:8])


def test_vectors_that_were_never_unit_may_have_any_length(opened):
    truth = Embeddings(scale=3.0)
    with Misbehaving(truth) as service:
        np.testing.assert_array_equal(opened(service).encode_document(TEXTS), truth.vectors(TEXTS))


def test_the_width_that_was_asked_for_is_the_width(opened):
    truth = Embeddings()
    truth.edit = lambda answer: json.loads(json.dumps(answer))
    with Misbehaving(truth) as service:
        service.answer = lambda path, body: truth(path, {**body, "dimensions": None})
        with pytest.raises(LeafError, match="answered with 8 dimensions, expected 6"):
            opened(service, dimensions=6).encode_document(TEXTS)


# Drift.


def test_the_noise_of_hosted_models_is_no_change_and_another_model_is(opened):
    truth = Embeddings(dim=1536)
    before = truth.vectors([text for _, text in CANARIES])
    noise = np.random.default_rng(0).normal(0, 2e-4, before.shape)  # twice what is published for ada-002
    assert drift(before, (before + noise).astype(np.float32)) is None
    assert "mean cosine of" in drift(before, np.roll(before, 1, axis=0))
    one = before.copy()
    one[3] = before[4]
    assert "a least of" in drift(before, one)
    assert len({text for _, text in CANARIES}) == len(CANARIES) == 32


def test_a_noisy_model_is_bought_from_without_complaint(opened):
    with Misbehaving(Embeddings(dim=256, noise=3e-4)) as service:
        teacher = opened(service)
        first = teacher.encode_document(TEXTS)
        np.testing.assert_array_equal(teacher.encode_document(TEXTS), first)
        canaries = [body for _, body in service.requests if CANARY_TEXTS.issuperset(body["input"])]
    assert len(canaries) == 2 * 8  # before, since the store was new, and after; the second call buys nothing


def test_a_model_that_changes_stops_the_run_and_leaves_nothing_behind(opened, monkeypatch):
    monkeypatch.setattr("leaf.teacher.api.LOOK_REQUESTS", 20)
    truth = Embeddings()
    texts = [f"text number {n}" for n in range(200)]
    with Misbehaving(truth) as service:
        teacher = opened(service, at_once=2)
        first = teacher.encode_document(texts[:40])
        changed_at = truth.calls + 15
        normal = Embeddings.__call__

        def changing(path, body):
            truth.model = "near" if truth.calls >= changed_at else "true"
            return normal(truth, path, body)

        service.answer = changing
        with pytest.raises(
            LeafError, match=r"has changed: .* mean cosine .* vectors bought since it was last the same"
        ):
            teacher.encode_document(texts)
        with pytest.raises(LeafError, match="has changed"):  # neither by this process …
            teacher.encode_document(texts)
        teacher.close()
        with pytest.raises(LeafError, match="has changed"):  # … nor by the next
            opened(service).encode_document(texts)
        np.testing.assert_array_equal(opened(service).encode_document(texts[:40]), first)

        asked, service.answer, truth.model = len(service.requests), truth, "true"
        bought = {text for _, body in service.requests for text in body["input"]}
        vectors = opened(service).encode_document(texts)
        again = {text for _, body in service.requests[asked:] for text in body["input"]} - CANARY_TEXTS
    np.testing.assert_array_equal(vectors, truth.vectors(texts))
    assert again.isdisjoint(texts[:40])  # confirmed: not paid again
    assert len(again & bought) <= 4 * 22  # set aside: at most what was asked between two looks
    assert all(count <= 2 for count in answered(service).values())


def test_no_call_returns_vectors_of_a_model_that_changed_while_it_bought(opened):
    """Whoever keeps what is returned, a cache of evaluation sets for one, could not take it back."""
    truth = Embeddings()
    normal = Embeddings.__call__

    def changing(path, body):
        truth.model = "near" if len(answered(service)) >= 20 else "true"
        return normal(truth, path, body)

    with Misbehaving(changing) as service:
        teacher = opened(service, at_once=1)
        with pytest.raises(Halt, match="40 vectors bought since it was last the same are set aside"):
            teacher.encode_document(TEXTS)
        service.answer, truth.model = truth, "true"
        np.testing.assert_array_equal(teacher.encode_document(TEXTS), truth.vectors(TEXTS))
    assert set(answered(service).values()) == {2}


def test_two_models_that_take_turns_are_found_out_with_the_first_answer_of_the_other(opened):
    """While a model is replaced, or behind a gateway that has the canaries in its cache, every look may be good."""
    truth = Embeddings()

    def rolling(path, body):
        truth.model = "true" if CANARY_TEXTS.issuperset(body["input"]) or len(answered(service)) < 12 else "other"
        return truth(path, body)

    with Misbehaving(rolling) as service:
        teacher = opened(service, at_once=1)
        with pytest.raises(Halt, match=r"a text that never changes with a vector of cosine .* begin anew"):
            teacher.encode_document(TEXTS)
        assert len(answered(service)) == 16
        service.answer, truth.model = truth, "true"
        np.testing.assert_array_equal(teacher.encode_document(TEXTS), truth.vectors(TEXTS))
    assert sum(answered(service).values()) == len(TEXTS) + 4  # those of the other are paid, and kept by nobody


def test_each_request_has_another_witness_and_the_largest_that_is_allowed_has_none(opened):
    with Misbehaving(Embeddings()) as service:
        opened(service).encode_document(TEXTS)
        bodies = [set(body["input"]) for _, body in service.requests]
        witnesses = [texts & CANARY_TEXTS for texts in bodies if texts - CANARY_TEXTS]
        assert [len(each) for each in witnesses] == [1] * 10
        assert len(set.union(*witnesses)) == 10
        asked = len(service.requests)
        opened(service, batch_texts=1).encode_document(["one", "two"])
        assert {len(body["input"]) for _, body in service.requests[asked:]} == {1}


def test_another_teacher_on_the_store_does_not_believe_what_nobody_confirmed(opened):
    truth = Embeddings()

    def interrupt(count):
        raise KeyboardInterrupt

    with Misbehaving(truth) as service:
        other = opened(service)
        other.encode_document(["one"])
        with pytest.raises(KeyboardInterrupt):
            opened(service, at_once=1).encode_document(TEXTS, advance=interrupt)
        truth.model = "other"
        with pytest.raises(Halt, match="has changed"):
            other.encode_document(TEXTS[:4])


def test_what_a_killed_process_left_is_confirmed_by_the_next_good_look(opened, in_child):
    truth = Embeddings()
    texts = [f"text number {n}" for n in range(100)]
    with Misbehaving(truth, delay=0.01) as service:
        with in_child(service, texts, at_once=1) as pid:
            while len(answered(service)) < 20:
                time.sleep(0.001)
            os.kill(pid, 9)
        time.sleep(0.03)
        truth.model = "other"
        with pytest.raises(LeafError, match="has changed"):
            opened(service).encode_document(texts[:8])  # all of them are there, but nobody knows of which model
        truth.model, left = "true", set(answered(service))
        np.testing.assert_array_equal(opened(service).encode_document(texts), truth.vectors(texts))
    assert len(left) >= 20
    assert all(count <= 2 for count in answered(service).values())


def test_a_long_idle_process_looks_again_before_it_buys(opened, monkeypatch):
    truth = Embeddings()
    with Misbehaving(truth) as service:
        teacher = opened(service)
        teacher.encode_document(TEXTS[:4])
        monkeypatch.setattr("leaf.teacher.api.LOOK_SECONDS", 0.0)
        truth.model = "other"
        with pytest.raises(LeafError, match="has changed"):
            teacher.encode_document(TEXTS[4:8])
    assert set(answered(service)) == {("", text) for text in TEXTS[:4]}


# Money.


def test_the_ceiling_is_never_passed_and_a_higher_one_goes_on(opened, stubborn):
    truth = Embeddings()
    texts = [f"{n} " + "word " * (n % 50) for n in range(300)]
    faults = {"cut": 0.1, "fail": 0.1, "garbage": 0.05}  # cut and garbage: an answer was made, and may be billed
    with Misbehaving(truth, **faults, seed=5) as service:
        for ceiling in (0.004, 0.008):
            with pytest.raises(OverBudget, match="raise --max-cost"):
                opened(service, price=1.0, max_cost=ceiling, run="a").encode_document(texts)
            assert 0.5 * ceiling < truth.tokens / 1e6 <= ceiling
        teacher = opened(service, price=1.0, max_cost=1.0, run="a")
        np.testing.assert_array_equal(teacher.encode_document(texts), truth.vectors(texts))
        bill = teacher.bill()
        other = opened(service, price=1.0, max_cost=1e-9, run="b")  # another run begins with nothing spent
        assert other.bill()["cost"] == 0
        assert len(other.encode_document(texts)) == 300
    assert answered(service) == {("", text): 1 for text in texts}
    assert truth.tokens <= bill["tokens"] + bill["tokens_lost"]
    assert bill["cost"] == pytest.approx((bill["tokens"] + bill["tokens_lost"]) / 1e6, abs=1e-6)


def test_a_ceiling_needs_a_price(opened):
    with pytest.raises(LeafError, match=r"needs the price of openai:m; set teacher\.api\.price"):
        opened(type("Nobody", (), {"url": "http://127.0.0.1:9/v1"}), max_cost=5.0)


def test_the_rate_of_tokens_is_learned():
    rate = TokenRate()
    assert rate.most(100) >= 100  # nothing known: a byte is a token
    for _ in range(3):
        rate.learn(400, 100)
    rate.learn(400, 200)
    assert rate.mean(1600) == 1 + 500  # 500 tokens for 1,600 bytes
    assert rate.most(1600) == 1 + 1200  # half as much again as the densest, 0.5
    for _ in range(64):
        rate.learn(400, 100)
    assert rate.most(1600) == 1 + 600  # the dense one is long ago


def test_a_refused_disk_is_known_before_anything_is_paid(opened, monkeypatch):
    with Misbehaving(Embeddings()) as service:
        teacher = opened(service)
        assert teacher.dim == 8
        usage = type("Usage", (), {"free": 100})
        monkeypatch.setattr("leaf.teacher.buying.shutil.disk_usage", lambda path: usage)
        with pytest.raises(LeafError, match="MB free"):
            teacher.encode_document(TEXTS)
    assert no_canaries(service) == []


# Refusals.


def test_a_key_is_asked_for_only_when_something_is_to_be_bought(opened, monkeypatch, tmp_path):
    teacher = ApiTeacher("voyage:m", Api(), store=tmp_path)
    with pytest.raises(LeafError, match="put it into the environment variable VOYAGE_API_KEY"):
        teacher.encode_query(["one"])
    monkeypatch.setenv("SOME_KEY", KEY)
    with Misbehaving(Embeddings()) as service:
        opened(service, key_variable="SOME_KEY").encode_query(["one"])
        monkeypatch.delenv("SOME_KEY")
        assert len(opened(service, key_variable="SOME_KEY").encode_query([])) == 0
    assert {headers.get("Authorization") for headers in service.headers} == {f"Bearer {KEY}"}


def test_the_providers_key_goes_to_no_other_host(opened, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Misbehaving(Embeddings()) as service:
        opened(service).encode_query(["one"])
    assert not any("Authorization" in headers for headers in service.headers)


def test_a_refused_key_is_an_error_without_the_key(opened, monkeypatch, tmp_path):
    def refuse(path, body):
        raise Refusal(401, {"error": {"message": f"Incorrect API key provided: {KEY}."}})

    monkeypatch.setenv("SOME_KEY", KEY)
    with Misbehaving(refuse) as service:
        with pytest.raises(LeafError, match=r"refuses the key \(401\): Incorrect API key provided: …") as caught:
            opened(service, key_variable="SOME_KEY").encode_query(["one"])
        with pytest.raises(LeafError, match=r"variable of its key as teacher\.api\.key_variable"):
            opened(service).encode_query(["one"])
    assert KEY not in str(caught.value)


def test_the_key_is_in_no_file_and_no_identity(opened, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SOME_KEY", KEY)
    with Misbehaving(Embeddings(), fail=0.3, seed=1) as service:
        teacher = opened(service, key_variable="SOME_KEY", price=1.0)
        teacher.encode_query(TEXTS)
        assert KEY not in json.dumps(teacher.identity()) + json.dumps(teacher.bill())
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(files) >= 2
        assert not any(KEY.encode() in path.read_bytes() for path in files)
    assert KEY not in "".join(capsys.readouterr())


def test_a_text_that_is_too_long_is_known_before_anything_is_paid(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Misbehaving(Embeddings()) as service:
        for method in ("get", "post"):
            monkeypatch.setattr(httpx.Client, method, redirected(getattr(httpx.Client, method), service.url))
        teacher = ApiTeacher("openai:m", Api(), store=tmp_path)
        assert len(teacher.encode_document(["word " * 5000])) == 1  # 6,251 tokens
        with pytest.raises(
            LeafError, match=r"a text of 100,000 characters .* teacher\.api\.characters = \d+"
        ) as caught:
            teacher.encode_document(["short", "word " * 20_000])
        cut = int(str(caught.value).rpartition(" = ")[2])
        assert len(no_canaries(service)) == 1
        teacher = ApiTeacher("openai:m", Api(characters=cut), store=tmp_path)
        teacher.encode_document(["short", "word " * 20_000])
    assert max(len(text) for body in no_canaries(service) for text in body["input"]) // 4 < 8192


def redirected(ask, url):
    return lambda self, address, **rest: ask(self, address.replace("https://api.openai.com/v1", url), **rest)


def limited(truth, refusal):
    """`truth`, but a refusal where `refusal(texts)` gives one."""

    def answer(path, body):
        if (refused := refusal(body["input"])) is not None:
            raise refused
        return truth(path, body)

    return answer


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(400, {"error": {"message": "Requested 346134 tokens, max 300000 tokens per request"}}),
        Refusal(400, {"detail": "The max allowed tokens per submitted batch is 120000. Your batch has 121138 tokens."}),
        Refusal(422, {"error": "batch size `64` > maximum allowed batch size `32`", "error_type": "Validation"}),
        Refusal(413, b"<html>Request Entity Too Large</html>"),
    ],
)
def test_what_is_too_much_is_asked_for_in_halves(opened, refusal):
    truth = Embeddings()
    with Misbehaving(limited(truth, lambda texts: refusal if len(texts) > 5 else None)) as service:
        vectors = opened(service, batch_texts=None).encode_document(TEXTS)
    np.testing.assert_array_equal(vectors, truth.vectors(TEXTS))
    assert answered(service) == {("", text): 1 for text in TEXTS}


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(400, {"error": {"message": "Invalid 'input[2]': maximum input length is 8192 tokens."}}),
        Refusal(400, {"error": {"message": "This model's maximum context length is 512 tokens."}}),
        Refusal(413, {"error": "Input validation error: `inputs` must have less than 512 tokens. Given: 785"}),
    ],
)
def test_a_text_that_is_refused_as_too_long_is_named_and_the_others_are_kept(opened, refusal):
    truth = Embeddings()
    texts = [*TEXTS[:8], "long " * 200]
    with Misbehaving(limited(truth, lambda texts: refusal if max(map(len, texts)) > 500 else None)) as service:
        with pytest.raises(LeafError, match=r"a text of 1,000 characters is too long for openai:m .*api\.characters"):
            opened(service, at_once=1, batch_texts=3).encode_document(texts)
        opened(service, characters=500).encode_document(texts)
    assert answered(service) == {("", text): 1 for text in [*TEXTS[:8], ("long " * 200)[:500]]}


def test_another_refusal_is_not_halved(opened):
    refusal = Refusal(404, {"error": {"message": "The model `m` does not exist", "code": "model_not_found"}})
    with (
        Misbehaving(limited(Embeddings(), lambda texts: refusal)) as service,
        pytest.raises(LeafError, match="404: The model `m` does not exist"),
    ):
        opened(service, batch_texts=None).encode_document(TEXTS)
    assert len(service.requests) == 1


def test_an_empty_text_is_refused(opened):
    with Misbehaving(Embeddings()) as service, pytest.raises(LeafError, match="one of the texts is empty"):
        opened(service).encode_document(["full", ""])


@pytest.mark.parametrize("model", ["openai:", "mistral:m", "a/model"])
def test_a_model_of_no_provider_is_refused(model, tmp_path):
    with pytest.raises(LeafError, match="openai:MODEL or voyage:MODEL or cohere:MODEL"):
        ApiTeacher(model, Api(), store=tmp_path)


def test_a_store_that_cannot_be_used_is_one_line_that_says_what_to_do(tmp_path):
    (tmp_path / "a.sqlite").write_bytes(b"no database " * 100)
    with pytest.raises(
        Halt, match=r"a\.sqlite cannot be used \(file is not a database\); the file is damaged: move it"
    ):
        PaidVectors(tmp_path / "a.sqlite")
    with pytest.raises(Halt, match=r"cannot be made .*LEAF_CACHE"):
        PaidVectors(tmp_path / "a.sqlite" / "b.sqlite")
    store = PaidVectors(tmp_path / "c.sqlite")
    store._sql.execute("PRAGMA max_page_count = 1")  # a full disk, as SQLite sees it
    with pytest.raises(Halt, match=r"\(database or disk is full\); make room"):
        store.add(Purchase("", "query", 1, 1), [b"key"] * 100, np.zeros((100, 1024), np.float32))
    store._sql.execute("PRAGMA max_page_count = 100000")
    store.add(Purchase("", "query", 1, 1), [b"key"], np.zeros((1, 8), np.float32))


def test_a_store_that_another_process_is_just_making_is_waited_for(tmp_path):
    """As SQLite has it, a database that is written to cannot be given another journal, and does not wait for it."""
    file = tmp_path / "a.sqlite"
    other, lock = sqlite3.connect(file, isolation_level=None, check_same_thread=False), FileLock(f"{file}.lock")
    with lock:
        other.execute("BEGIN IMMEDIATE")
        other.execute("CREATE TABLE some (thing)")
        with ThreadPoolExecutor(1) as pool:
            opening = pool.submit(PaidVectors, file)
            time.sleep(0.2)
            other.execute("COMMIT")
            lock.release()
            assert opening.result().facts() == {}


def test_waiting_is_said_now_and_then(opened, capsys, monkeypatch):
    monkeypatch.setattr("leaf.service._grow", lambda state: 1.0 if state.attempt_number == 1 else 0.001)
    with Misbehaving(Embeddings(), fail=0.6, seed=0) as service:
        opened(service, "openai:small", at_once=8, batch_texts=16).encode_document(TEXTS)
    said = [line for line in capsys.readouterr().err.splitlines() if "trying again" in line]
    assert said == ["openai:small: 500: a fault of the server's own; trying again in 1 s"]
