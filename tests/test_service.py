import threading
import time
from email.utils import formatdate

import pytest

from leaf.errors import Halt, LeafError
from leaf.service import Again, Budget, OverBudget, Pace, Refused, Service, retry_after
from misbehaving import Events, Misbehaving, Refusal


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("leaf.service._grow", lambda state: 0.001)


def echo(path, body):
    return {"path": path, "said": body}


def test_every_fault_that_passes_is_asked_through():
    faults = {"fail": 0.15, "limit": 0.1, "drop": 0.1, "cut": 0.1, "garbage": 0.1}
    with Misbehaving(echo, **faults, seed=3) as server:
        service = Service(server.url)
        answers = [service.post("/x", {"n": n}) for n in range(60)]
    assert answers == [{"path": "/v1/x", "said": {"n": n}} for n in range(60)]
    assert set(server.faults) == set(faults)
    assert len(server.requests) == 60 + len(server.faults)


def test_a_stalled_answer_is_a_timeout_and_tried_again():
    with Misbehaving(echo, stall=0.5, stall_seconds=0.5, seed=1) as server:
        service = Service(server.url, timeout=0.15)
        assert [service.post("/x", n)["said"] for n in range(4)] == [0, 1, 2, 3]
    assert "stall" in server.faults


def test_what_the_service_asks_to_wait_is_waited_by_everyone():
    first = threading.Event()

    def limited_once(path, body):
        if not first.is_set():
            first.set()
            raise Refusal(429, None, {"Retry-After": "0.4"})
        return "ok"

    with Misbehaving(limited_once) as server:
        pace = Pace()
        service = Service(server.url, pace=pace)
        began = time.monotonic()
        assert service.post("/x", 1) == "ok"
        assert time.monotonic() - began >= 0.4


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"retry-after": "7"}, 7),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),  # OpenAI sends both, the first is exact
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "-3"}, 0),
    ],
)
def test_the_wait_that_headers_ask_for(headers, seconds):
    assert retry_after(headers) == seconds


def test_a_wait_may_be_a_date():
    assert retry_after({"retry-after": formatdate(time.time() + 30, usegmt=True)}) == pytest.approx(30, abs=1.5)


def test_a_refusal_is_an_error_at_once():
    def refuse(path, body):
        raise Refusal(400, {"error": {"message": "input 3\nis too long"}})

    with Misbehaving(refuse) as server, pytest.raises(LeafError, match="refused the request with 400: input 3 is too"):
        Service(server.url).post("/x", 1)
    assert len(server.requests) == 1


def test_an_empty_account_is_not_waited_for():
    def empty(path, body):
        raise Refusal(429, {"error": {"message": "no credit", "code": "insufficient_quota"}})

    with Misbehaving(empty) as server, pytest.raises(LeafError, match="look at the account"):
        Service(server.url).post("/x", 1)
    assert len(server.requests) == 1


def test_it_gives_up_after_so_many_tries_and_says_why():
    with Misbehaving(echo, fail=1.0) as server, pytest.raises(LeafError, match="failed 4 times, last with: 500"):
        Service(server.url, attempts=4).post("/x", 1)
    assert len(server.requests) == 4


def test_an_answer_that_does_not_fit_is_asked_for_again():
    seen = []

    def check(answer):
        seen.append(answer)
        if len(seen) < 3:
            raise Again("not yet")

    with Misbehaving(echo) as server:
        Service(server.url).post("/x", 1, check=check)
    assert len(server.requests) == 3


def test_the_key_comes_from_the_environment_alone(monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(LeafError, match="put it into the environment variable SOME_KEY"):
        Service("http://127.0.0.1:1", key_variable="SOME_KEY")
    monkeypatch.setenv("SOME_KEY", " sesame\n")
    with Misbehaving(echo) as server:
        Service(server.url, key_variable="SOME_KEY").post("/x", 1)
    assert server.headers[0]["Authorization"] == "Bearer sesame"


def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "sesame\nopen")
    with pytest.raises(LeafError, match="the key in SOME_KEY has characters that no key has") as caught:
        Service("http://127.0.0.1:1", key_variable="SOME_KEY")
    assert "sesame" not in str(caught.value)


def test_a_refusal_that_repeats_the_key_is_told_without_it(monkeypatch):
    def refuse(path, body):
        raise Refusal(403, {"error": {"message": "sesame-open is not welcome"}})

    monkeypatch.setenv("SOME_KEY", "sesame-open")
    with Misbehaving(refuse) as server, pytest.raises(LeafError, match=r"refuses the key \(403\): … is not welcome"):
        Service(server.url, key_variable="SOME_KEY").post("/x", 1)


@pytest.mark.parametrize(
    ("fault", "billed"), [("fail", False), ("limit", False), ("drop", True), ("cut", True), ("garbage", True)]
)
def test_failed_tries_are_heard_of_and_whether_they_may_be_billed(fault, billed):
    heard = []
    with Misbehaving(echo, **{fault: 0.5}, seed=0) as server:
        service = Service(server.url)
        for n in range(6):
            service.post("/x", n, failed=lambda error: heard.append(error.billed))
    assert len(heard) == len(server.faults) > 0
    assert set(heard) == {billed}


def test_a_server_that_is_not_there_bills_nothing():
    heard = []
    with pytest.raises(LeafError, match="failed 2 times"):
        Service("http://127.0.0.1:9", attempts=2).post("/x", 1, failed=lambda error: heard.append(error.billed))
    assert heard == [False, False]


@pytest.mark.parametrize("settings", [{"pace": Pace(requests_per_minute=0.1)}, {"limited": "30"}])
def test_once_stopped_nothing_is_waited_for(settings):
    stop = threading.Event()
    pace, limited = settings.get("pace") or Pace(), settings.get("limited")
    with Misbehaving(echo, limit=1.0 if limited else 0.0, retry_after=limited or "0") as server:
        service = Service(server.url, pace=pace)
        if not limited:
            service.post("/x", 1)
        threading.Timer(0.2, stop.set).start()
        began = time.monotonic()
        with pytest.raises(LeafError, match="the work was stopped"):
            service.post("/x", 2, stop=stop)
        assert time.monotonic() - began < 5
    assert len(server.requests) == 1


@pytest.mark.parametrize("url", ["api.openai.com", "ftp://host/v1", "https://me:secret@host/v1", "https://host?key=1"])
def test_a_url_that_is_none_or_carries_a_key_is_refused(url):
    with pytest.raises(LeafError) as caught:
        Service(url)
    assert "secret" not in str(caught.value)


def test_requests_are_spread_over_the_minute():
    pace = Pace(requests_per_minute=1200)  # one every 50 ms
    began = time.monotonic()
    for _ in range(5):
        pace.wait()
    assert time.monotonic() - began >= 4 * 0.05


def test_tokens_are_spread_over_the_minute():
    pace = Pace(tokens_per_minute=60_000)  # 1,000 a second
    began = time.monotonic()
    for tokens in (100, 100, 1):
        pace.wait(tokens)
    assert 0.2 <= time.monotonic() - began < 1


def test_a_budget_refuses_what_could_pass_it_and_counts_what_was_paid():
    budget = Budget(1.0, spent=0.2)
    budget.reserve(0.5)
    with pytest.raises(OverBudget, match=r"past \$1.00 \(\$0.2000 spent\)"):
        budget.reserve(0.4)
    budget.settle(0.5, 0.3)
    budget.reserve(0.5)  # 0.2 + 0.3 + 0.5 = 1.0
    assert budget.spent == pytest.approx(0.5)


def test_events_come_one_by_one_as_they_were_sent():
    class Raw(Misbehaving):
        def _send(self, handler, status, body, headers=None, *, cut=False):
            super()._send(handler, status, RAW, {"Content-Type": "text/event-stream; charset=utf-8"}, cut=cut)

    # https://html.spec.whatwg.org/multipage/server-sent-events.html: comments and other fields are passed over, lines
    # of one event are joined, one space after the colon is not data; U+2028 and U+0085 end no line.
    RAW = ": hello\n\ndata: one\u2028\u0085\n\nevent: x\r\ndata:two\r\ndata:  three\r\n\r\n\ndata: last".encode()
    with Raw(echo) as server:
        assert Service(server.url).stream("/x", 1, list) == ["one\u2028\u0085", "two\n three", "last"]


def test_an_answer_in_one_piece_is_one_event():
    with Misbehaving(lambda path, body: "whole") as server:
        assert Service(server.url).stream("/x", 1, list) == ['"whole"']


def test_a_stream_that_is_lost_on_the_way_is_asked_for_again():
    seen, lost = [], []

    def keep(events):
        seen.append([])
        for event in events:
            seen[-1].append(event)
        return seen[-1]

    faults = {"fail": 0.2, "limit": 0.1, "drop": 0.1, "cut": 0.2}
    with Misbehaving(lambda path, body: Events(map(str, range(50))), **faults, seed=6) as server:
        service = Service(server.url)
        for _ in range(20):
            assert service.stream("/x", 1, keep, failed=lost.append) == [str(n) for n in range(50)]
    assert set(server.faults) == set(faults)
    assert len(lost) == len(server.faults)
    assert [again.billed for again in lost].count(False) == server.faults.count("fail") + server.faults.count("limit")
    assert len(seen) == 20 + server.faults.count("cut")  # of which the reader saw the first half


def test_a_refused_stream_is_an_error_at_once_and_says_which():
    def refuse(path, body):
        raise Refusal(400, {"error": {"message": "no", "code": "content_filter", "param": "prompt"}})

    with Misbehaving(refuse) as server, pytest.raises(Refused, match="refused the request with 400: no") as caught:
        Service(server.url).stream("/x", 1, list)
    assert (caught.value.status, caught.value.code, caught.value.error["param"]) == (400, "content_filter", "prompt")
    assert len(server.requests) == 1


def test_a_stream_that_is_stopped_while_it_waits_is_not_asked_for_again():
    stop = threading.Event()
    with Misbehaving(echo, limit=1.0, retry_after="30") as server:
        threading.Timer(0.2, stop.set).start()
        began = time.monotonic()
        with pytest.raises(LeafError, match="the work was stopped"):
            Service(server.url).stream("/x", 1, list, stop=stop)
        assert time.monotonic() - began < 5
    assert len(server.requests) == 1


def test_a_url_where_nobody_listens_is_known_at_once():
    with Misbehaving(echo) as server:
        Service(server.url).reach()  # whatever it answers
    with pytest.raises(LeafError, match="cannot be reached"):
        Service(server.url).reach()


def test_a_service_that_is_only_slow_is_waited_for_longer_and_not_billed_again_and_again():
    with Misbehaving(echo, delay=0.5) as server:
        service = Service(server.url, timeout=0.2)  # 0.2, 0.4, 0.8 s
        assert service.post("/x", 1)["said"] == 1
        assert len(server.requests) == 3
        assert service.post("/x", 2)["said"] == 2  # what was learned is kept
        assert len(server.requests) == 4


def test_a_silence_is_told_in_seconds_and_not_waited_out_for_ever():
    heard = []
    with Misbehaving(echo, stall=1.0, stall_seconds=3) as server:
        service = Service(server.url, timeout=0.05, attempts=4, on_retry=lambda reason, wait: heard.append(reason))
        with pytest.raises(Halt, match=r"failed 4 times, last with: no answer within 0\.2 s"):
            service.post("/x", 1)
    assert heard == ["no answer within 0.05 s", "no answer within 0.1 s", "no answer within 0.2 s"]
