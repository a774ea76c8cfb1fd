import gzip
import json
import os
import random
import subprocess
import sys
import threading
import zlib
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leaf.errors import LeafError
from leaf.recipe import Recipe
from leaf.service import OverBudget
from leaf.texts.sources import read
from leaf.texts.vocabulary import PROMPT, rejects_path, synthesise
from leaf.texts.vocabulary.chat import Answer, Chat, Usage
from leaf.texts.vocabulary.definitions import judge
from leaf.texts.vocabulary.journal import Journal
from leaf.texts.vocabulary.rounds import Rounds
from misbehaving import Events, Misbehaving, Refusal


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("leaf.service._grow", lambda state: 0.001)


def truth(word):
    """One to three definitions that follow from the word alone."""
    return [f"{word} is what the test calls sense {n}." for n in range(1 + zlib.crc32(word.encode()) % 3)]


def asked(body):
    """The words that a request asks for: the last line of the prompt."""
    return json.loads(body["messages"][0]["content"].rstrip().rpartition("\n")[2])


def said(text, body, finish="stop", refusal=None, usage=(100, 50)):
    """What an endpoint sends for `text`: in pieces if it was asked to, and with the usage."""
    counts = usage and {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    if not body.get("stream"):
        message = {"role": "assistant", "content": text, "refusal": refusal}
        return {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": counts}
    pieces = [text[start : start + 40] for start in range(0, len(text), 40)] if text else []
    deltas = [{"role": "assistant", "content": ""}, *({"content": piece} for piece in pieces)]
    deltas += [{"refusal": refusal}] if refusal else []
    events = Events({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas)
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    events += [{"choices": [], "usage": counts}] if counts else []
    events.append("[DONE]")
    return events


class Model:
    """Knows the truth, and gives `share` of its answers in one of `WAYS`, but none of the first row to a word alone.

    It never defines `unknown` words, and has nothing to say about a batch with a `taboo` word in it.
    `valid[id(body)]` are the words to which a request got a right answer.
    """

    WAYS = (
        "prose", "missing", "respelled", "twice", "empty list", "number", "short", "list", "length", "empty", "refusal",
        "more", "fence", "error", "no end", "no usage",
    )  # fmt: skip

    def __init__(self, share=0.0, seed=0, unknown=(), taboo=(), longest=10_000):
        self.share, self.unknown, self.taboo, self.longest = share, set(unknown), set(taboo), longest
        self.valid, self.ways = {}, Counter()
        self._random, self._lock = random.Random(seed), threading.Lock()

    def __call__(self, path, body):
        assert path == "/v1/chat/completions"
        with self._lock:
            words = asked(body)
            ways = self.WAYS if len(words) > 1 else self.WAYS[11:]
            way = self._random.choice(ways) if self._random.random() < self.share else "well"
            victim = self._random.choice(words)
            self.ways[way] += 1
        self.valid[id(body)] = set()
        if self.taboo.intersection(words):
            return said("", body, "content_filter")
        if len(words) > self.longest:
            return said('{"half an ans', body, "length")
        entries = {word: [] if word in self.unknown else truth(word) for word in words}
        whole = json.dumps(entries, ensure_ascii=False)
        match way:
            case "prose":
                return said(f"Here you are:\n{whole}", body)
            case "length":
                return said(whole[: len(whole) // 2], body, "length")
            case "empty":
                return said("", body)
            case "refusal":
                return said("", body, refusal="I would rather not.")
            case "list":
                return said(json.dumps(list(entries.items())), body)
            case "error":
                return Events([{"error": {"code": 502, "message": "the model fell over"}}])
            case "no end":
                return Events(said(whole, {"stream": True})[:-3])
            case "missing":
                del entries[victim]
            case "respelled":
                entries[victim + "s"] = entries.pop(victim)
            case "empty list":
                entries[victim] = []
            case "number":
                entries[victim] = [7]
            case "short":
                entries[victim] = ["?"]
        right = {word for word in words if entries.get(word) == truth(word)}
        if way == "more":
            entries["leaf"] = ["Leaf is something that nobody asked for."]
        text = json.dumps(entries, ensure_ascii=False)
        if way == "twice":
            text = f'{text[:-1]}, {json.dumps(victim)}: ["{victim} is said a second time."]}}'
            right.discard(victim)
        self.valid[id(body)] = right
        text = f"```json\n{text}\n```\n" if way == "fence" else text
        return said(text, body, usage=None if way == "no usage" else (100, 50))

    def times_answered(self, server):
        """How often each word was answered rightly in an answer that was sent whole."""
        return Counter(word for _, body in server.answered for word in self.valid[id(body)])


WORDS = [f"word{n}" for n in range(300)]


def write_words(folder, words=WORDS):
    path = folder / "words.txt"
    path.write_text("\n".join(words) + "\n", encoding="utf-8")
    return path


def go(server, words, out, **settings):
    return synthesise(words, out, **{"llm": server.url, "model": "m", "key_variable": None, **settings})


def lines_of(path):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def expected(words):
    return [{"text": text, "word": word} for word in words for text in truth(word)]


# The whole


@pytest.mark.parametrize("stream", [True, False])
def test_whatever_goes_wrong_the_output_is_the_truth_but_for_what_nobody_could_answer(tmp_path, stream):
    model = Model(share=0.35, seed=4, unknown={"word7", "word250"}, taboo={"word33"})
    # A word asked alone fails by the model in 0.35 · 2/5 of its tries and by these in 0.19: in all ten tries, once in
    # 150,000. No answer that is under way takes two seconds, on a busy machine either: it would count as a fault more.
    faults = {"fail": 0.03, "limit": 0.03, "drop": 0.03, "cut": 0.06, "garbage": 0.03, "stall": 0.01}
    out = tmp_path / "vocabulary.jsonl.gz"
    with Misbehaving(model, **faults, stall_seconds=2.5, seed=11) as server:
        summary = go(server, write_words(tmp_path), out, stream=stream, batch_words=12, timeout=2)
    rejected = {"word7", "word33", "word250"}
    kept = [word for word in WORDS if word not in rejected]
    assert lines_of(out) == expected(kept)
    assert max(model.times_answered(server).values()) == 1
    rejects = {line["word"]: line for line in lines_of(Path(summary.rejects))}
    assert rejects.keys() == rejected
    assert "content filter" in rejects["word33"]["reason"]
    assert (summary.words, summary.done, summary.rejected) == (300, 297, 3)
    assert summary.texts == len(expected(kept))
    # A request over a connection that was just closed is sent, but nobody sees it.
    assert len(server.requests) <= summary.requests <= len(server.requests) + len(server.faults)
    assert set(server.faults) >= {"fail", "limit", "drop", "cut", "garbage"}
    assert len(model.ways) > 8  # of 17


def test_requests_are_in_flight_together_but_no_more_than_so_many(tmp_path):
    with Misbehaving(Model(), delay=0.02) as server:
        go(server, write_words(tmp_path), tmp_path / "v.jsonl", at_once=3)
    assert server.most_at_once == 3
    assert len(server.requests) == 15


def test_the_recipe_for_retrieval_reads_it_as_its_source_vocabulary(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = next(each for each in Recipe.load("leaf-ir").texts if each.name == "Vocabulary")
    with Misbehaving(Model()) as server:
        go(server, write_words(tmp_path, ["ebb", "Oslo", "naïve", "et \u2028cetera"]), Path(source.source))
    rows = list(read(source.model_copy(update={"rows": None}), 0))
    assert [(row.text, row.kind, row.source) for row in rows] == [
        (text, "document", "Vocabulary") for word in ("ebb", "Oslo", "naïve", "et cetera") for text in truth(word)
    ]


# What is asked


def test_lists_of_every_kind_are_the_same_words(tmp_path):
    rows = ["ebb", "", "Oslo", "ebb", "  ", "naïve", " Oslo"]
    plain = tmp_path / "a.txt.gz"
    plain.write_bytes(gzip.compress("\n".join(rows).encode()))
    table = tmp_path / "a.parquet"
    pq.write_table(pa.table({"entry": rows}), table)
    comma = tmp_path / "a.csv"
    comma.write_text("entry,n\n" + "".join(f'"{row}",1\n' for row in rows), encoding="utf-8")
    for path, column in ((plain, "text"), (table, "entry"), (comma, "entry")):
        out = tmp_path / f"{path.name}.jsonl"
        with Misbehaving(Model()) as server:
            summary = go(server, path, out, column=column)
        assert lines_of(out) == expected(["ebb", "Oslo", "naïve"])
        assert (summary.words, summary.duplicates, summary.blanks) == (3, 2, 2)


def test_a_larger_sample_contains_the_smaller_and_asks_only_for_the_rest(tmp_path):
    words, out = write_words(tmp_path), tmp_path / "v.jsonl"
    with Misbehaving(Model()) as server:
        assert go(server, words, out, limit=40, batch_words=10).done == 40
        small = list(dict.fromkeys(line["word"] for line in lines_of(out)))
        assert go(server, words, out, limit=100, batch_words=10).done == 100
        large = list(dict.fromkeys(line["word"] for line in lines_of(out)))
    assert set(small) < set(large)
    assert large == [word for word in WORDS if word in set(large)]  # the order of the list
    assert small != WORDS[:40]
    assert len(server.requests) == 10
    assert sorted(word for _, body in server.requests for word in asked(body)) == sorted(large)


def test_the_prompt_asks_for_what_is_checked_and_can_be_replaced(tmp_path):
    own = tmp_path / "prompt.txt"
    own.write_text('Erkläre, als {"wort": ["…"]} in JSON:\n{words}\n', encoding="utf-8")
    with Misbehaving(Model()) as server:
        go(server, write_words(tmp_path, ['"', "ebb"]), tmp_path / "a.jsonl")
        go(server, tmp_path / "words.txt", tmp_path / "b.jsonl", prompt=own)
    ours, theirs = (body["messages"][0]["content"] for _, body in server.requests)
    assert theirs == 'Erkläre, als {"wort": ["…"]} in JSON:\n["\\"", "ebb"]\n'
    assert ours == PROMPT.read_text(encoding="utf-8").replace("{words}", '["\\"", "ebb"]')
    assert "JSON" in ours  # OpenAI's JSON mode refuses a prompt without that word
    example = next(line for line in ours.splitlines() if line.startswith('{"'))
    assert judge(["ebb", "Oslo"], Answer(example, "stop")).failed == {}


def test_a_text_that_does_not_name_its_word_gets_it_put_before(tmp_path):
    definitions = {
        "ebb": ["The flow of the tide back out to sea.", "The Ebb is a river in a test."],
        "art": ["To start is not to name that word.", "To start is no art."],
        "C++": ["In computing, C++ is a programming language."],
    }
    out = tmp_path / "v.jsonl"
    with Misbehaving(lambda path, body: said(json.dumps(definitions), body)) as server:
        go(server, write_words(tmp_path, list(definitions)), out)
    assert [line["text"] for line in lines_of(out)] == [
        "ebb: The flow of the tide back out to sea.",
        "The Ebb is a river in a test.",
        "art: To start is not to name that word.",
        "To start is no art.",
        "In computing, C++ is a programming language.",
    ]


# What counts as an answer

GOOD = "Ebb is the tide going out."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"ebb": ["%s"]}', None),
        ('\n```json\n{"ebb": ["%s"]}\n```\n', None),
        ('```\n{\n  "ebb": ["%s"]\n}\n```', None),
        ('{"ebb": ["%s", "Ebb  is\\na second sense."]}', None),
        ('{"ebb": ["%s"], "flow": ["Flow was not asked for."]}', None),
        ('Sure! {"ebb": ["%s"]}', "not JSON"),
        ('{"ebb": ["%s"]} I hope this helps.', "not JSON"),
        ('```json\n{"ebb": ["%s"]}\n```\nDone.', "not JSON"),
        ('{"ebb": ["%s"', "not JSON"),
        ('[{"ebb": ["%s"]}]', "no JSON object"),
        ('{"Ebb": ["%s"]}', "not answered"),
        ('{"ebb": ["%s"], "ebb": ["%s"]}', "answered 2 times"),
        ('{"ebb": "%s"}', "valid list"),
        ('{"ebb": {"1": "%s"}}', "valid list"),
        ('{"ebb": null}', "valid list"),
        ('{"ebb": []}', "at least 1 item"),
        ('{"ebb": ["%s", 7]}', "definition 2: Input should be a valid string"),
        ('{"ebb": ["%s", ["%s"]]}', "definition 2: Input should be a valid string"),
        ('{"ebb": ["Tide."]}', "5 characters, expected 8"),
        ('{"ebb": ["        \\n      "]}', "0 characters"),
        ('{"ebb": ["' + "e" * 1001 + '"]}', "1,001 characters"),
        ('{"ebb": ["Ebb is a\\u0000 NUL."]}', "control character"),
        ('{"ebb": ["Ebb is half a pair: \\ud800."]}', "half of a surrogate pair"),
        ('{"ebb": [' + ", ".join(f'"{n} is a sense of ebb."' for n in range(19)) + "]}", "at most 18"),
        ("", "an empty answer"),
    ],
)
def test_what_counts_as_an_answer(text, reason):
    outcome = judge(["ebb"], Answer(text.replace("%s", GOOD), "stop"))
    if reason is None:
        assert outcome.failed == {}
        assert outcome.valid["ebb"][0] == GOOD
        assert outcome.valid["ebb"][1:] in ([], ["Ebb is a second sense."])
    else:
        assert outcome.valid == {}
        assert reason in outcome.failed["ebb"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer('{"ebb": ["' + GOOD + '"]}', "length"), "cut off"),
        (Answer('{"ebb": ["' + GOOD + '"]}', "content_filter"), "refused: the content filter"),
        (Answer("", "stop", "I cannot say."), "refused: I cannot say."),
    ],
)
def test_an_answer_that_was_cut_or_refused_is_none_whatever_it_holds(answer, reason):
    outcome = judge(["ebb"], answer)
    assert outcome.valid == {}
    assert reason in outcome.failed["ebb"]
    assert outcome.cut == (answer.finish == "length")


def test_a_wrong_entry_fails_alone():
    outcome = judge(["a", "b", "c"], Answer(json.dumps({"a": ["A is a letter."], "b": [], "d": [GOOD]}), "stop"))
    assert outcome.valid == {"a": ["A is a letter."]}
    assert outcome.failed.keys() == {"b", "c"}


# In which batches


def test_what_fails_is_asked_again_in_halves_and_at_last_alone_twice(tmp_path):
    with Misbehaving(Model(unknown={"word5"})) as server:
        summary = go(server, write_words(tmp_path, WORDS[:8]), tmp_path / "v.jsonl", batch_words=8)
    assert [asked(body) for _, body in server.requests] == [WORDS[:8], ["word5"], ["word5"], ["word5"], ["word5"]]
    assert (summary.requests, summary.retries) == (5, 0)
    reject = {
        "word": "word5",
        "reason": "List should have at least 1 item after validation, not 0",
        "answer": '{"word5": []}',
    }
    assert lines_of(tmp_path / "v.rejects.jsonl") == [reject]

    with Misbehaving(Model(taboo={"word5"})) as server:
        go(server, write_words(tmp_path, WORDS[:8]), tmp_path / "w.jsonl", batch_words=8, at_once=1)
    sizes = [len(asked(body)) for _, body in server.requests]
    assert sizes == [8, 4, 4, 2, 1, 1, 1, 2]  # 4 to 7 fail, 4 and 5 fail, 4 does not, 5 does and does, 6 and 7 do not


def test_failures_of_different_batches_share_a_smaller_one():
    rounds = Rounds([str(n) for n in range(30)], 10)
    assert rounds.sizes == [10, 5, 2, 1, 1]
    first = [rounds.take() for _ in range(3)]
    for batch in first:
        rounds.settle(batch, batch.words[:3], cut=False)
    shared = rounds.take()
    assert (shared.round, shared.words) == (1, ["0", "1", "2", "10", "11"])
    assert rounds.take().words == ["12", "20", "21", "22"]
    assert rounds.take() is None


def test_where_answers_are_cut_off_all_batches_become_smaller(tmp_path):
    model = Model(longest=5)
    with Misbehaving(model) as server:
        summary = go(server, write_words(tmp_path), tmp_path / "v.jsonl", batch_words=20, at_once=1)
    assert summary.done == 300
    sizes = [len(asked(body)) for _, body in server.requests]
    assert sizes.count(20) == 3  # not all 15
    assert sizes.count(5) == 60


def test_a_model_that_never_answers_well_is_not_paid_for_the_whole_list(tmp_path):
    with Misbehaving(lambda path, body: said("No.", body)) as server:
        with pytest.raises(LeafError, match=r"m gave no definition in 20 requests in a row, last: not JSON.*'No\.'"):
            go(server, write_words(tmp_path), tmp_path / "v.jsonl", batch_words=2)
        assert 20 <= len(server.requests) < 20 + 8
        with pytest.raises(
            LeafError, match=r"none of the 3 words got a definition, the first: not JSON.*another --out"
        ):
            go(server, write_words(tmp_path, WORDS[:3]), tmp_path / "w.jsonl")
    assert not (tmp_path / "w.jsonl").exists()


# Endpoints


class Picky(Model):
    """Refuses the fields `no` of a request, as `error` words it."""

    def __init__(self, no, error):
        super().__init__()
        self.no, self.error = no, error

    def __call__(self, path, body):
        for name in self.no:
            if name in body:
                raise Refusal(400, {"error": {"message": self.error.replace("NAME", name)}})
        return super().__call__(path, body)


@pytest.mark.parametrize(
    ("no", "error", "kept"),
    [
        (
            ["response_format"],
            "'NAME.type' must be 'json_schema' or 'text'",
            {"stream", "stream_options", "max_tokens"},
        ),
        (["response_format"], "bad request", {"stream", "stream_options", "max_tokens"}),
        (["stream_options"], "NAME: extra inputs are not permitted", {"stream", "response_format", "max_tokens"}),
        (["stream"], "'NAME' does not support true with this model", {"response_format", "max_tokens"}),
        (
            ["max_tokens"],
            "Unsupported parameter: 'NAME'. Use 'max_completion_tokens' instead.",
            {"stream", "stream_options", "response_format", "max_completion_tokens"},
        ),
        (["response_format", "stream_options", "max_tokens", "max_completion_tokens"], "no NAME here", {"stream"}),
    ],
)
def test_what_an_endpoint_does_not_accept_is_left_out_from_then_on(tmp_path, no, error, kept):
    with Misbehaving(Picky(no, error)) as server:
        summary = go(server, write_words(tmp_path), tmp_path / "v.jsonl", at_once=1)
    assert summary.done == 300
    assert server.requests[-1][1].keys() == {"model", "messages", *kept}
    assert len(server.requests) == 15 + len(no)  # refused once for each field, not once for each batch
    assert summary.requests == len(server.requests)


def test_a_temperature_that_was_asked_for_is_not_left_out(tmp_path):
    model = Picky(["temperature"], "'NAME' does not support 0.2 with this model")
    with Misbehaving(model) as server, pytest.raises(LeafError, match="refused the request with 400: 'temperature'"):
        go(server, write_words(tmp_path), tmp_path / "v.jsonl", temperature=0.2)
    assert all(body["temperature"] == 0.2 for _, body in server.requests)


@pytest.mark.parametrize("code", ["content_filter", None])
def test_words_that_a_service_refuses_to_be_asked_about_are_rejects(tmp_path, code):
    def moderated(path, body):
        if "word5" in asked(body):
            raise Refusal(400, {"error": {"message": "against the policy", "code": code}})
        return said(json.dumps({word: truth(word) for word in asked(body)}), body)

    out = tmp_path / "v.jsonl"
    with Misbehaving(moderated) as server:
        # Without a code it could as well be a wrong setting, until something was answered.
        go(server, write_words(tmp_path, WORDS[6:12]), out, batch_words=6)
        summary = go(server, write_words(tmp_path, WORDS[:12]), out, batch_words=6)
    assert [line["word"] for line in lines_of(Path(summary.rejects))] == ["word5"]
    assert "against the policy" in lines_of(Path(summary.rejects))[0]["reason"]
    assert lines_of(out) == expected(word for word in WORDS[:12] if word != "word5")


def ask(answer, **settings):
    with Misbehaving(answer) as server:
        usage = Usage()
        return Chat(server.url, "m").ask("ask " * 30, max_tokens=9, usage=usage, **settings), usage


def pieces(*texts, finish="stop"):
    return Events([*({"choices": [{"delta": {"content": text}}]} for text in texts), *end(finish)])


def end(finish):
    return [{"choices": [{"delta": {}, "finish_reason": finish}]}] if finish else []


@pytest.mark.parametrize(
    ("events", "text"),
    [
        (pieces("a\u2028b ", "\ud83c", "\udf43"), "a\u2028b 🍃"),
        (Events([*pieces("x", finish=None), {"choices": None, "usage": None}, "[DONE]"]), "x"),
        (pieces([{"type": "thinking", "thinking": []}, {"type": "text", "text": "x"}]), "x"),
        ({"choices": [{"message": {"content": "x"}}]}, "x"),  # in one piece although it was asked for many
    ],
)
def test_pieces_are_put_together_as_they_were_said(events, text):
    if isinstance(events, Events):  # a lone half of a pair can only be sent escaped
        events = Events(each if isinstance(each, str) else json.dumps(each, ensure_ascii=True) for each in events)
        events[0] = events[0].replace("\\u2028", "\u2028")
    answer, usage = ask(lambda path, body: events)
    assert answer == Answer(text, "stop")
    # Nothing was counted for us: 120 and at most 5 characters, 3 to a token.
    assert (usage.prompt_tokens, usage.completion_tokens, usage.unmetered) == (40, -(-len(text) // 3), 1)


@pytest.mark.parametrize(
    "bad",
    [
        pieces("whole or not?", finish=None),
        Events([*pieces("half"), {"choices": [], "error": {"message": "overloaded"}}][:1]),
        Events([{"choices": [{"delta": {"content": "half"}, "finish_reason": "error"}]}, {"error": "upstream"}]),
        Events([*pieces("half", finish=None), "{torn"]),
        Events([{"choices": [{"delta": {"content": 7}}]}]),
        {"error": {"message": "overloaded", "code": 502}},
        ["nothing like it"],
    ],
)
def test_an_answer_without_its_end_is_asked_for_again_and_what_it_cost_is_estimated(bad):
    answers = [bad, said("well", {"stream": True}, usage=(7, 3))]
    answer, usage = ask(lambda path, body: answers.pop(0))
    assert answer.text == "well"
    assert (usage.requests, usage.retries, usage.unmetered) == (2, 1, 1)
    assert usage.prompt_tokens == 7 + 40
    assert usage.completion_tokens - 3 in (0, 2, 5)  # "half" and "whole or not?", as far as they came


def test_what_is_lost_after_the_end_of_an_answer_is_not_asked_for_again():
    answer, usage = ask(lambda path, body: Events([*pieces("well"), "{torn"]))
    assert (answer.text, usage.requests, usage.unmetered) == ("well", 1, 1)


def test_a_long_answer_may_take_longer_than_the_timeout_if_it_is_streamed(tmp_path):
    words = [f"word{n}" for n in range(60)]

    class Slowly(Misbehaving):
        def _send(self, handler, status, body, headers=None, *, cut=False):
            handler.send_response(status)
            handler.send_header("Content-Type", headers["Content-Type"])
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            for start in range(0, len(body), len(body) // 8):
                handler.wfile.write(body[start : start + len(body) // 8])
                handler.wfile.flush()
                threading.Event().wait(0.15)

    with Slowly(Model()) as server:
        summary = go(server, write_words(tmp_path, words), tmp_path / "v.jsonl", batch_words=60, timeout=0.8)
    assert (summary.done, summary.requests) == (60, 1)  # 1.2 seconds


# Once paid


def test_a_finished_output_is_left_alone_and_needs_no_service(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    words, out = write_words(tmp_path), tmp_path / "v.jsonl.gz"
    with Misbehaving(Model(unknown={"word5"})) as server:
        first = go(server, words, out)
    before, stamp = out.read_bytes(), out.stat().st_mtime_ns
    again = synthesise(words, out, llm="http://127.0.0.1:9", model="m", key_variable="NO_SUCH_KEY")
    assert out.stat().st_mtime_ns == stamp
    assert again == type(again)(**{**vars(first), "seconds": again.seconds})
    out.write_bytes(before[:100])  # damaged, or of other words: made again from what was bought
    synthesise(words, out, llm="http://127.0.0.1:9", model="m", key_variable=None)
    assert out.read_bytes() == before


def test_more_words_cost_only_what_is_new_and_rejects_are_words_for_another_model(tmp_path):
    out = tmp_path / "v.jsonl"
    with Misbehaving(Model(unknown={"word5"})) as server:
        go(server, write_words(tmp_path, WORDS[:20]), out, batch_words=10)
        del server.requests[:]
        summary = go(server, write_words(tmp_path, ["new", *WORDS[5:25]]), out, batch_words=10)
        assert [asked(body) for _, body in server.requests] == [["new", *WORDS[20:25]]]
    assert lines_of(out) == expected(["new", *WORDS[6:25]])
    assert (summary.done, summary.rejected) == (20, 1)
    with Misbehaving(Model()) as server:
        other = tmp_path / "w.jsonl"
        go(server, rejects_path(out), other, column="word", model="better")
    assert lines_of(other) == expected(["word5"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "n"}, "begun with model 'm', this run has 'n'"),
        ({"temperature": 0.5}, r"begun with temperature None, this run has 0\.5"),
        ({"prompt": "own.txt"}, "begun with prompt '[0-9a-f]{16}', this run has '[0-9a-f]{16}'"),
    ],
)
def test_answers_of_other_settings_are_not_mixed(tmp_path, monkeypatch, changed, message):
    monkeypatch.chdir(tmp_path)
    Path("own.txt").write_text("Define {words}", encoding="utf-8")
    words, out = write_words(tmp_path, WORDS[:5]), tmp_path / "v.jsonl"
    changed = {key: Path(value) if key == "prompt" else value for key, value in changed.items()}
    with Misbehaving(Model()) as server:
        go(server, words, out)
        with pytest.raises(LeafError, match=message):
            go(server, words, out, **changed)
        assert len(server.requests) == 1


def test_settings_with_which_nothing_was_bought_bind_nobody(tmp_path):
    def only_m(path, body):
        if body["model"] != "m":
            raise Refusal(404, {"error": {"message": "The model `typo` does not exist", "code": "model_not_found"}})
        return Model()(path, body)

    words, out = write_words(tmp_path, WORDS[:5]), tmp_path / "v.jsonl"
    with Misbehaving(only_m) as server:
        with pytest.raises(
            LeafError, match=r"404: The model `typo` does not exist; is 'typo' the name of a model there"
        ):
            go(server, words, out, model="typo")
        assert go(server, words, out).done == 5


def test_an_output_without_its_journal_is_not_bought_again(tmp_path):
    words, out = write_words(tmp_path, WORDS[:5]), tmp_path / "v.jsonl"
    with Misbehaving(Model()) as server:
        go(server, words, out)
        (tmp_path / "v.jsonl.journal").unlink()
        with pytest.raises(LeafError, match=r"v\.jsonl exists, but no v\.jsonl\.journal to go on from"):
            go(server, words, out)
        assert len(server.requests) == 1


def test_two_processes_do_not_buy_the_same(tmp_path):
    from filelock import FileLock

    words, out = write_words(tmp_path), tmp_path / "v.jsonl"
    with Misbehaving(Model()) as server, FileLock(tmp_path / ".v.jsonl.lock"):
        with pytest.raises(LeafError, match="is being made by another process"):
            go(server, words, out)
        assert not server.requests


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.3, 0.77, 0.999, 1.0])
def test_a_journal_that_ends_anywhere_costs_no_more_than_its_last_line(tmp_path, kept):
    words, out = write_words(tmp_path, WORDS[:100]), tmp_path / "v.jsonl"
    journal = tmp_path / "v.jsonl.journal"
    with Misbehaving(Model()) as server:
        go(server, words, out, batch_words=10)
        whole = out.read_bytes()
        out.unlink()
        content = journal.read_bytes()[: int(kept * journal.stat().st_size)]
        journal.write_bytes(content)
        records = [json.loads(line) for line in content.split(b"\n")[:-1]]
        bought = {word for record in records for word in record.get("done", {})}
        del server.requests[:]
        summary = go(server, words, out, batch_words=10)
        asked_again = {word for _, body in server.requests for word in asked(body)}
    assert asked_again == set(WORDS[:100]) - bought
    assert out.read_bytes() == whole
    assert summary.requests == 10


def test_a_damaged_journal_is_not_read_over(tmp_path):
    path = tmp_path / "j"
    with Journal(path, {}) as journal:
        journal.append({"done": {}})
    path.write_bytes(path.read_bytes() + b"\0\0\n" + b'{"done": {}}\n')
    with pytest.raises(LeafError, match="j is damaged in line 3"), Journal(path, {}) as journal:
        list(journal.records())


KILLED = """
import os, signal, sys
from pathlib import Path
from leaf.texts import vocabulary
from leaf.texts.vocabulary.journal import Journal

url, words, out, where = sys.argv[1:]
append, answers = Journal.append, 0

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def counted(journal, record):
    global answers
    answers += "done" in record
    if answers < 4 and "finished" not in record:
        return append(journal, record)
    if where == "torn":
        with open(journal.path, "ab") as file:
            file.write(b'{"done":{"word0":["word0 is tor')
    if where == "after":
        append(journal, record)
    if where in ("before", "torn", "after") or "finished" in record:
        kill()
    append(journal, record)

Journal.append = counted
if where == "writing":
    os.replace = kill
vocabulary.synthesise(words, Path(out), llm=url, model="m", key_variable=None, batch_words=10, at_once=2)
"""


def test_killed_at_any_point_it_goes_on_and_pays_for_no_answer_twice_that_it_had_kept(tmp_path):
    words, out, journal = write_words(tmp_path), tmp_path / "v.jsonl.gz", tmp_path / "v.jsonl.gz.journal"
    model = Model(unknown={"word5"})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with Misbehaving(model) as server:
        for where in ("before", "torn", "after", "writing", "finishing"):
            known = set(kept_in(journal))
            sent = len(server.requests)
            command = [sys.executable, "-c", KILLED, server.url, str(words), str(out), where]
            done = subprocess.run(command, env=environment, capture_output=True, check=False)
            assert done.returncode == -9, done.stderr
            assert known.isdisjoint(word for _, body in server.requests[sent:] for word in asked(body))
            assert out.exists() == (where == "finishing")
            if where in ("before", "torn", "after"):
                assert len(known) < len(kept_in(journal)) < 300
        sent = len(server.requests)
        summary = go(server, words, out)
        assert len(server.requests) == sent  # all was bought
    assert lines_of(out) == expected(word for word in WORDS if word != "word5")
    assert (summary.done, summary.rejected) == (299, 1)
    # Each of the first three kills can lose the two answers that were in flight, and nothing else is bought twice.
    assert sum(count - 1 for count in model.times_answered(server).values()) <= 3 * 2 * 10


def kept_in(journal):
    if not journal.exists():
        return []
    records = [json.loads(line) for line in journal.read_bytes().split(b"\n")[:-1]]
    return [word for record in records for word in (*record.get("done", ()), *record.get("rejected", ()))]


# What it costs


def test_tokens_and_cost_are_the_services_own_count_over_all_runs(tmp_path):
    words, out = write_words(tmp_path), tmp_path / "v.jsonl"
    prices = {"price_in": 2.0, "price_out": 10.0}
    with Misbehaving(Model()) as server:
        go(server, words, out, limit=100, batch_words=10, **prices)
        summary = go(server, words, out, batch_words=10, **prices)
    # 30 requests or one more (100 and 200 of 300 words in tens), each of 100 tokens in and 50 out.
    assert summary.requests == 30
    assert (summary.prompt_tokens, summary.completion_tokens, summary.unmetered) == (3000, 1500, 0)
    assert summary.cost == pytest.approx(3000 * 2e-6 + 1500 * 10e-6)  # $0.021


def test_the_ceiling_is_kept_and_the_same_command_with_a_higher_one_goes_on(tmp_path):
    words, out = write_words(tmp_path), tmp_path / "v.jsonl"
    # A request is 0.1 cent and, while in flight, set aside as 2,500 tokens out and the prompt's at 10 dollars: 3 cents.
    prices = {"price_in": 10.0, "price_out": 10.0, "batch_words": 10}
    model = Model()
    with Misbehaving(model) as server:
        with pytest.raises(OverBudget, match=r"past \$0\.04 .*raise --max-cost and run the same command"):
            go(server, words, out, max_cost=0.04, **prices)
        spent = len(server.requests) * 0.0015
        assert 0 < spent <= 0.04
        assert not out.exists()
        summary = go(server, words, out, max_cost=5, **prices)
    assert len(server.requests) == 30
    assert summary.cost == pytest.approx(30 * 0.0015)
    assert max(model.times_answered(server).values()) == 1


def test_answers_that_are_lost_count_against_the_ceiling(tmp_path):
    with Misbehaving(lambda path, body: pieces("endless", finish=None)) as server:
        with pytest.raises(OverBudget):
            go(server, write_words(tmp_path), tmp_path / "v.jsonl", max_cost=0.06, price_in=10, price_out=10, at_once=1)
        sent = len(server.requests)
        assert 0 < sent < 9  # of ten tries that each batch would get
        with pytest.raises(OverBudget):  # and are remembered
            go(server, write_words(tmp_path), tmp_path / "v.jsonl", max_cost=0.06, price_in=10, price_out=10, at_once=1)
        assert len(server.requests) == sent


# What is said no to


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_cost": 1.0}, "a cost needs both prices"),
        ({"price_in": 1.0}, "a cost needs both prices"),
        ({"batch_words": 0}, "batch_words is 0; expected more than 0"),
        ({"limit": -1}, "limit is -1; expected more than 0"),
        ({"requests_per_minute": 0}, "requests_per_minute is 0; expected more than 0"),
        ({"price_in": -1, "price_out": 1}, "prices are -1 and 1; expected 0 or more"),
        ({"key_variable": "NO_SUCH_KEY"}, "put it into the environment variable NO_SUCH_KEY"),
        ({"llm": "api.example.com"}, "is not the URL of a service"),
        ({"llm": "http://127.0.0.1:9/v1"}, "http://127.0.0.1:9/v1 cannot be reached"),
        ({"prompt": Path("nowhere.txt")}, "cannot read the prompt nowhere.txt"),
        ({"prompt": Path("words.txt")}, r"the prompt words.txt has no \{words\}"),
        ({"words": "nowhere.txt"}, "no file 'nowhere.txt'"),
        ({"words": "empty.txt"}, "empty.txt has no word in its 3 rows"),
        ({"words": "prose.txt"}, "prose.txt, row 2: 120 characters are no word"),
        ({"out": Path("v.parquet")}, r"give an output named .jsonl or .jsonl.gz"),
    ],
)
def test_mistakes_are_said_in_one_line_before_anything_is_asked(tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    write_words(tmp_path)
    Path("empty.txt").write_text("\n \n\n", encoding="utf-8")
    Path("prose.txt").write_text("word\n" + "words" * 24 + "\n", encoding="utf-8")
    with Misbehaving(Model()) as server:
        given = {"words": "words.txt", "out": Path("v.jsonl"), "llm": server.url, "model": "m", "key_variable": None}
        with pytest.raises(LeafError, match=message) as caught:
            synthesise(**{**given, **settings})
        assert not server.requests
    assert "\n" not in str(caught.value)


def test_a_refused_key_ends_it_at_once_and_keeps_what_was_bought(tmp_path):
    def revoked(path, body):
        if len(server.requests) > 5:
            raise Refusal(401, {"error": {"message": "invalid key"}})
        return Model()(path, body)

    words, out = write_words(tmp_path), tmp_path / "v.jsonl"
    with Misbehaving(revoked) as server:
        with pytest.raises(LeafError, match=r"refuses the key \(401\): invalid key"):
            go(server, words, out, at_once=2)
        assert len(server.requests) < 9
        server.answer = Model()
        assert go(server, words, out, at_once=2).done == 300
        assert len(server.answered) == 15
