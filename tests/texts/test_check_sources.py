import gzip
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from leaf.errors import LeafError
from leaf.recipe import Recipe
from leaf.texts import check
from leaf.texts.check import Reached, check_sources, commercial_only, print_check


def recipe(*texts: dict[str, Any], **more: Any) -> Recipe:
    return Recipe.parse({"name": "r", "teacher": {"model": "none", **more}, "student": {}, "texts": list(texts)})


def one(source: str, **settings: Any) -> Reached:
    (found,) = check_sources(recipe({"source": source, **settings}))
    return found


def features(*names: str) -> dict[str, Any]:
    return {name: {"dtype": "string", "_type": "Value"} for name in names}


#: What the viewer says: data set → configuration → columns and splits.
VIEWER = {
    "some/questions": {
        "pair": {"features": features("query", "answer"), "splits": {"train": {"num_examples": 73}, "dev": {}}},
    },
    "some/lists": {
        "default": {
            "features": {"text": [{"dtype": "string", "_type": "Value"}], "id": {"dtype": "int64", "_type": "Value"}},
            "splits": {"train": {"num_examples": 5}},
        },
    },
    "some/years": {year: {"features": features("text", "lang"), "splits": {"train": {}}} for year in ("2016", "2017")},
}
#: What the page says: files, the head of its README, whether it is gated.
PAGES: dict[str, tuple[list[str], dict[str, Any], bool | str]] = {
    "datasets/some/questions": (["pair/train.parquet"], {}, False),
    "datasets/some/lists": (["train.parquet"], {}, False),
    "datasets/some/years": (["2016.parquet"], {}, False),
    "datasets/some/script": (["script.py", "README.md"], {}, False),
    "datasets/some/bare": (["rows.jsonl"], {}, "manual"),
    "datasets/some/declared": (
        ["a/train.parquet"],
        {
            "configs": [{"config_name": "a", "data_files": [{"split": "train", "path": "a/*"}]}],
            "dataset_info": {
                "config_name": "a",
                "features": [{"name": "text", "dtype": "string"}],
                "splits": [{"name": "train", "num_examples": 12}],
            },
        },
        False,
    ),
    "models/some/fast": (["tokenizer.json", "config.json"], {}, False),
    "models/some/slow": (["vocab.txt"], {}, False),
}


class Hub(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []
    wait = 0.0

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        type(self).asked.append(unquote(self.path))
        time.sleep(type(self).wait)
        if parts.path == "/info":
            known = VIEWER.get(parse_qs(parts.query)["dataset"][0])
            self.answer(200 if known else 404, {"dataset_info": known} if known else {"error": "not there"})
            return
        name = unquote(parts.path).removeprefix("/api/").split("/revision/")[0]
        if name not in PAGES:
            self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return
        files, card, gated = PAGES[name]
        siblings = [{"rfilename": file} for file in files]
        self.answer(200, {"id": name, "sha": "0" * 40, "siblings": siblings, "cardData": card, "gated": gated})

    def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A server that answers as the hub and its viewer do; only the address is replaced."""
    from huggingface_hub import constants

    Hub.asked, Hub.wait = [], 0.0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield Hub
    server.shutdown()


@pytest.mark.parametrize(
    ("source", "settings", "found", "columns", "reason"),
    [
        ("hub:some/questions", {"column": "query"}, 73, True, ""),
        ("hub:some/questions", {"column": "query", "config": "pair"}, 73, True, ""),
        ("hub:some/questions", {}, 73, False, r"has no column 'text' \(it has query, answer\)"),
        (
            "hub:some/questions",
            {"column": "query", "split": "test"},
            None,
            False,
            "has the splits train, dev, not 'test'",
        ),
        (
            "hub:some/questions",
            {"column": "query", "config": "x"},
            None,
            False,
            "configurations pair; name one of them",
        ),
        ("hub:some/years", {}, None, False, "has the configurations 2016, 2017; name one"),
        ("hub:some/years", {"config": "2017", "where": {"lang": "en"}}, None, True, ""),
        ("hub:some/years", {"config": "2017", "where": {"language": "en"}}, None, False, "no column 'language'"),
        ("hub:some/declared", {}, 12, True, ""),
        ("hub:some/lists", {}, 5, False, "column 'text' of hub:some/lists holds lists or records, expected strings"),
        ("hub:some/lists", {"column": "id"}, 5, False, "holds int64, expected strings"),
        ("hub:some/bare", {}, None, None, "an agreement on its page"),
        ("hub:some/script", {}, None, False, "a loading script"),
        ("tokenizer:some/fast", {}, None, True, ""),
        ("tokenizer:some/slow", {}, None, False, r"no tokenizer\.json"),
    ],
)
def test_the_hub_is_asked_for_configuration_split_and_columns(
    hub: type[Hub], source: str, settings: dict[str, Any], found: int | None, columns: bool | None, reason: str
) -> None:
    row = one(source, kind="query", **settings)
    assert (row.reachable, row.found, row.columns) == (True, found, columns)
    assert bool(row.reason) == bool(reason)
    assert re.search(reason, row.reason)


def test_each_repository_is_asked_once_and_an_unknown_one_is_named(hub: type[Hub]) -> None:
    rows = check_sources(
        recipe(
            {"source": "hub:some/years", "configs": ["2016", "2017"], "kind": "query", "rows": 5},
            {"source": "hub:some/years", "config": "2016", "revision": "v1", "kind": "query"},
            {"source": "hub:some/nothing", "kind": "query"},
        )
    )
    assert [row.name for row in rows] == ["years", "years", "years", "nothing"]
    assert [row.reachable for row in rows] == [True, True, True, False]
    assert rows[3].reason.startswith("the hub shows no dataset some/nothing; check the name")
    assert sorted(each for each in hub.asked if "/api/" in each) == [
        "/api/datasets/some/nothing", "/api/datasets/some/years", "/api/datasets/some/years/revision/v1",
    ]  # fmt: skip


def test_a_hub_that_is_slow_is_not_waited_for(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.wait = 3.0
    monkeypatch.setattr(check, "ALL_SECONDS", 0.3)
    began = time.monotonic()
    row = one("hub:some/questions", column="query", kind="query")
    assert time.monotonic() - began < hub.wait
    assert (row.reachable, row.columns) == (False, None)
    assert "no answer from the hub in time" in row.reason


def test_the_whole_recipe_of_the_paper_is_checked_in_seconds_where_there_is_no_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    began = time.monotonic()
    rows = check_sources(Recipe.load("leaf-ir"))
    assert time.monotonic() - began < 15  # 37 sources: a second's wait for each would be more
    assert len(rows) == 37
    vocabulary = next(row for row in rows if row.name == "Vocabulary")
    assert "no file 'vocabulary.jsonl.gz'" in vocabulary.reason
    assert all("the hub cannot be reached" in row.reason for row in rows if row.source.startswith("hub:"))
    assert not any(row.reachable for row in rows if row.name != "BERT tokens")  # which a cache may hold


def test_files_are_opened_and_their_columns_looked_for(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b"], "kind": ["query", "document"]})
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table, tmp_path / "b.parquet")
    row = one(str(tmp_path), licence="CC0", commercial=True, rows=7)
    assert row == Reached(tmp_path.name, str(tmp_path), None, 7, True, 4, True, "CC0", True, "")
    wrong = one(str(tmp_path), column="body")
    assert (wrong.reachable, wrong.columns) == (True, False)
    assert "no column 'body' (it has text, kind)" in wrong.reason
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n')[:12])
    damaged = one(str(tmp_path / "rows.jsonl.gz"), kind="query")
    assert "is the file complete?" in damaged.reason
    pq.write_table(pa.table({"text": [None, ["a", "b"]]}), tmp_path / "lists.parquet")
    lists = one(str(tmp_path / "lists.parquet"), kind="query")
    assert (lists.reachable, lists.columns) == (True, False)
    assert "holds list, expected strings" in lists.reason
    missing = one(str(tmp_path / "nothing.csv"), kind="query")
    assert (missing.reachable, missing.columns) == (False, None)
    ignored = one(str(tmp_path / "a.parquet"), split="test")
    assert "split has no meaning" in ignored.reason


def test_folders_tokenizers_documentation_and_owned_vectors(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')
    assert one(f"hub:{tmp_path}", kind="query").reason == ""
    assert "no column 'body'" in one(f"hub:{tmp_path}", kind="query", column="body").reason
    assert "nope" in one(f"hub:{tmp_path}", kind="query", split="nope").reason
    assert "has no tokenizer.json" in one(f"tokenizer:{tmp_path}").reason
    assert one("installed-docs", packages=["numpy"]).reason == ""
    assert "no package 'nothing_of_this_name'" in one("installed-docs", packages=["nothing_of_this_name"]).reason
    assert "teacher.vectors is not set" in one("vectors").reason
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.jsonl").write_text('{"text": ["a"]}\n')
    assert "holds list, expected strings" in one(f"hub:{tmp_path / 'lists'}", kind="query").reason
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "train.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n')[:-9])
    assert "end-of-stream" in one(f"hub:{tmp_path / 'cut'}", kind="query").reason
    (there,) = check_sources(recipe({"source": "vectors"}, vectors="dump.parquet"))
    assert (there.reachable, there.reason) == (True, "")


def test_the_table_is_narrow_and_says_the_same_problem_once() -> None:
    def row(name: str, source: str, reason: str = "", **changes: Any) -> Reached:
        known = {"kind": "query", "wanted": 1000, "reachable": not reason, "found": 2000, "columns": True}
        return Reached(name, source, **{**known, "licence": "MIT", "commercial": None, **changes}, reason=reason)

    rows = [row(f"Set {n} dev", "hub:a/b") for n in range(20)]
    rows += [row("One", "hub:c/d", "gone", columns=None), row("Two", "hub:e/f", "gone", licence=None, commercial=False)]
    console = Console(width=100, record=True, file=io.StringIO())
    print_check(rows, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    assert "Set (20)" in text
    assert "20,000" in text
    assert "40,000" in text
    assert text.count("gone") == 1
    assert "One, Two: gone" in text
    assert "not stated" in text


def test_commercial_only_leaves_out_what_forbids_it_and_names_what_is_not_known() -> None:
    kept, left_out, unknown = commercial_only(Recipe.load("leaf-ir"))
    assert left_out == ["MS MARCO"]
    assert unknown == [*(f"CC-News {year}" for year in range(2016, 2025)), "Vocabulary", "Trivia QA"]
    assert len(kept.texts) == 36
    assert Recipe.parse(kept.model_dump()) == kept
    with pytest.raises(LeafError, match="every source forbids commercial use"):
        commercial_only(recipe({"source": "a.txt", "commercial": False}))
