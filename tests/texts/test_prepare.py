import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from leaf.errors import LeafError
from leaf.recipe import Prepare, TextSource
from leaf.texts import installed
from leaf.texts.forms import normal_form
from leaf.texts.prepare import prepare
from leaf.texts.shards import read_shard, shard_digest

WORDS = [f"text number {n}" for n in range(400)]


def source(folder: Path, values: Sequence[object], name: str = "rows", kind: str | None = "query") -> TextSource:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
    return TextSource.model_validate({"source": str(path), "kind": kind})


def settings(**changes: Any) -> Prepare:
    return Prepare.model_validate({"held_out": 10, **changes})


def training(folder: Path) -> list[str]:
    return [text for path in sorted(folder.glob("part-*.parquet")) for text in read_shard(path).texts]


def held_out(folder: Path) -> list[str]:
    return read_shard(folder / "held-out.parquet").texts


def test_shards_hold_every_text_once_in_order_with_kind_and_source(tmp_path: Path) -> None:
    sources = [source(tmp_path, WORDS[:200], "a"), source(tmp_path, WORDS[200:], "b", "document")]
    facts = prepare(sources, settings(shard_rows=150), tmp_path / "texts")
    assert [shard["rows"] for shard in facts["shards"]] == [150, 150, 90]  # 400 less 10 held out
    kept = training(tmp_path / "texts")
    assert kept == [text for text in WORDS if text in set(kept)]
    assert sorted(kept + held_out(tmp_path / "texts")) == sorted(WORDS)
    for shard in [*facts["shards"], facts["held_out"]]:
        table = pq.read_table(tmp_path / "texts" / shard["file"])
        assert table.num_rows == shard["rows"]
        assert (tmp_path / "texts" / shard["file"]).stat().st_size == shard["bytes"]
        assert shard["digest"] == shard_digest(table["text"].to_pylist(), table["kind"].to_pylist())
        assert [str(each) for each in table.schema.types][1:] == [
            "dictionary<values=string, indices=int32, ordered=0>"
        ] * 2
        for row in table.to_pylist():
            number = int(row["text"].split()[-1])
            assert (row["kind"], row["source"]) == (("query", "a") if number < 200 else ("document", "b"))
    assert facts["kinds"]["query"] + facts["kinds"]["document"] == facts["rows"] == 390
    assert facts["mean_characters"] == pytest.approx(sum(map(len, kept)) / 390, abs=0.05)


def test_what_is_no_text_is_counted_by_reason_and_never_repaired(tmp_path: Path) -> None:
    good: list[object] = [*WORDS[:30], "  kept as found "]
    bad: list[object] = [None, 7, "", " \n", "a\0b", "half \ud83d", "x" * 41]
    path = Path(source(tmp_path, good + bad).source)
    with path.open("ab") as file:
        file.write(b'{"text": "bad \xff byte"}\n{"text": \n')
    rows = TextSource(source=str(path), kind="query")
    facts = prepare([rows], settings(max_characters=40), tmp_path / "texts")
    assert facts["sources"]["rows"] == {
        "read": 40, "kept": 21, "held_out": 10, "held_out_pairs": 0, "over_limit": 0,
        "rejected": {
            "not a string": 2, "empty": 2, "NUL": 1, "not UTF-8": 2, "too long": 1, "malformed": 1,
        },
    }  # fmt: skip
    assert sorted(training(tmp_path / "texts") + held_out(tmp_path / "texts")) == sorted(map(str, good))


REPEATED = ["Hello, world!", "Hello, world!", "hello world", "HELLO   WORLD", "C++ or C", "C or C"]


@pytest.mark.parametrize(
    ("dedup", "kept", "rejected"),
    [
        ("normalised", 3, {"duplicate": 1, "near duplicate": 2}),
        ("exact", 5, {"duplicate": 1}),
        ("none", 6, {}),
    ],
)
def test_dedup_drops_repeats_and_keeps_the_first(
    tmp_path: Path, dedup: str, kept: int, rejected: dict[str, int]
) -> None:
    rows = source(tmp_path, WORDS[:20], "filler"), source(tmp_path, REPEATED, "repeated")
    facts = prepare(rows, settings(dedup=dedup, held_out=1, seed=5), tmp_path / "texts")
    counts = facts["sources"]["repeated"]
    assert counts["rejected"] == rejected
    assert counts["kept"] + counts["held_out"] == kept
    assert "Hello, world!" in training(tmp_path / "texts") + held_out(tmp_path / "texts")


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("What is Python?", "what is python", True),
        ("a well-known fact", "A wellknown  fact", True),
        ("ﬁne café today", "fine cafe\u0301 today", True),  # ligature; e with a combining accent
        ("C++", "C", False),
        ("1.5", "15", False),
        (":-)", ":-(", False),
        ("...", "!!!", False),
        ("costs more than 5 €", "costs more than 5 $", False),
        ("if x < y then stop", "if x > y then stop", False),
        ("हिन्दी की किताब", "हन्द क कताब", False),  # vowel signs are marks, not letters
    ],
)
def test_normal_form_ignores_case_punctuation_and_spaces_alone(first: str, second: str, same: bool) -> None:
    assert (normal_form(first) == normal_form(second)) is same
    assert normal_form(first)


@pytest.mark.parametrize("dedup", ["normalised", "exact", "none"])
def test_no_spelling_of_a_held_out_text_is_trained_on(tmp_path: Path, dedup: str) -> None:
    spellings = [spelling for text in WORDS for spelling in (text, text.upper(), f"{text}!", text)]
    facts = prepare([source(tmp_path, spellings)], settings(dedup=dedup, held_out=50), tmp_path / "texts")
    held = held_out(tmp_path / "texts")
    assert len(held) == len(set(map(normal_form, held))) == 50
    assert not {normal_form(text) for text in held} & {normal_form(text) for text in training(tmp_path / "texts")}
    counts = facts["sources"]["rows"]
    assert counts["read"] == counts["kept"] + counts["held_out"] + sum(counts["rejected"].values())
    if dedup == "none":
        assert counts["rejected"] == {"copy of a held-out text": 150}


def test_samples_are_exact_uniform_nested_and_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    shuffled = random.Random(0).sample(WORDS, len(WORDS))
    found = {}
    for name, rows, limit in (("a", WORDS, 100), ("b", shuffled, 100), ("c", WORDS, 200)):
        folder = tmp_path / name
        facts = prepare([source(tmp_path, rows)], settings(limit=limit, held_out=20), folder)
        found[name] = set(training(folder)), held_out(folder)
        assert (facts["rows"], facts["held_out"]["rows"]) == (limit, 20)
        assert facts["sources"]["rows"]["over_limit"] == 380 - limit
    assert found["a"] == found["b"]  # held-out texts even in the same order
    assert found["a"][0] < found["c"][0]
    # 100 of 0..399: the mean has a standard deviation of 10. The order of the held-out texts is random too.
    assert abs(sum(int(text.split()[-1]) for text in found["a"][0]) / 100 - 199.5) < 40
    assert found["a"][1] != sorted(found["a"][1], key=WORDS.index)


@pytest.mark.parametrize(("texts", "expected"), [(400, 40), (19, 1), (50_000, 4096)])
def test_a_tenth_is_held_out_of_few_texts_and_the_papers_number_of_many(tmp_path, texts, expected) -> None:
    facts = prepare([source(tmp_path, [f"word {number}" for number in range(texts)])], Prepare(), tmp_path / "texts")
    assert facts["held_out"]["rows"] == expected
    assert facts["rows"] == texts - expected


def test_another_seed_holds_out_others(tmp_path: Path) -> None:
    rows = [source(tmp_path, WORDS)]
    prepare(rows, settings(seed=0), tmp_path / "a")
    prepare(rows, settings(seed=1), tmp_path / "b")
    assert set(held_out(tmp_path / "a")) != set(held_out(tmp_path / "b"))


def test_too_few_texts_empty_sources_and_unusable_texts_are_errors_with_a_fix(tmp_path: Path) -> None:
    with pytest.raises(LeafError, match=r"19 different texts are too few to hold out 10 .*held_out to 9 or less"):
        prepare([source(tmp_path, WORDS[:19])], settings(), tmp_path / "texts")
    with pytest.raises(LeafError, match="has no rows"):
        prepare([source(tmp_path, [])], settings(), tmp_path / "texts")
    with pytest.raises(
        LeafError, match=r"2 rows were read and all of them rejected \(empty 1, not a string 1\); check that"
    ):
        prepare([source(tmp_path, WORDS, "good"), source(tmp_path, ["", None])], settings(), tmp_path / "texts")
    assert [path.name for path in (tmp_path / "texts").iterdir()] == [".sources"]  # what was read serves another try


def test_files_of_a_killed_attempt_do_not_survive(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    prepare([source(tmp_path, WORDS)], settings(shard_rows=50), folder)
    (folder / "held-out-pairs").mkdir()
    (folder / ".part-00000.parquet.123.tmp").write_text("half")
    prepare([source(tmp_path, WORDS)], settings(shard_rows=300), folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "held-out.parquet", "part-00000.parquet", "part-00001.parquet",
    ]  # fmt: skip


DOCS = TextSource(source="installed-docs", name="docs")
PAIRS = [(f"question {n}", f"the answer to question {n}") for n in range(40)]


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What the installed documentation is said to be; a test may change the list."""
    listed = list(PAIRS)

    def entries(packages: Sequence[str]) -> Iterator[installed.Entry]:
        return (installed.Entry(f"module.f{number}", *pair) for number, pair in enumerate(listed))

    monkeypatch.setattr(installed, "entries", entries)
    return listed


def beir(folder: Path) -> tuple[dict[str, str], dict[str, str], list[list[str]]]:
    corpus, queries = (
        {record["_id"]: record["text"] for record in map(json.loads, (folder / name).read_text().splitlines())}
        for name in ("corpus.jsonl", "queries.jsonl")
    )
    return (
        corpus,
        queries,
        [line.split("\t") for line in (folder / "qrels/test.tsv").read_text().splitlines()],
    )


def test_held_out_pairs_are_a_beir_folder_of_which_nothing_is_trained_on(
    tmp_path: Path, pairs: list[tuple[str, str]]
) -> None:
    pairs.append(("Question 0!", "a second answer to the question"))  # now question 0 has two documents
    pairs.append(("another question", "the ANSWER to question 1"))  # and this document two queries
    facts = prepare([DOCS], settings(held_out_pairs=30), tmp_path / "texts")
    assert facts["held_out_pairs"]["pairs"] == 30
    corpus, queries, (header, *qrels) = beir(tmp_path / "texts" / "held-out-pairs")
    assert header == ["query-id", "corpus-id", "score"]
    assert len(corpus) == len(queries) == len(qrels) == 30
    assert not set(corpus) & set(queries)
    assert {(queries[query], corpus[document]) for query, document, _ in qrels} <= set(PAIRS[2:])
    assert {score for *_, score in qrels} == {"1"}
    held = {normal_form(text) for text in (*corpus.values(), *queries.values())}
    assert len(held) == 60
    rest = [*training(tmp_path / "texts"), *held_out(tmp_path / "texts")]
    assert not held & {normal_form(text) for text in rest}
    assert facts["sources"]["docs"] == {
        "read": 84, "kept": 12, "held_out": 10, "held_out_pairs": 60, "over_limit": 0,
        "rejected": {"near duplicate": 2},
    }  # fmt: skip


def test_the_same_pairs_are_held_out_whatever_the_order(tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    found = []
    for name in ("a", "b"):
        prepare([DOCS], settings(held_out_pairs=10), tmp_path / name)
        found.append(set(beir(tmp_path / name / "held-out-pairs")[1].values()))
        pairs.reverse()
    assert found[0] == found[1]
    assert found[0] != {query for query, _ in PAIRS[:10]}


def test_too_few_pairs_says_how_many_there_are(tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    pairs[1] = ("question 0", "yet another answer")
    with pytest.raises(LeafError, match=r"have 38 pairs whose texts occur only once, .*held_out_pairs = 39"):
        prepare([DOCS], settings(held_out_pairs=39), tmp_path / "texts")


@pytest.mark.parametrize("dedup", ["normalised", "none"])
def test_a_source_may_be_held_out_whole_or_not_at_all(tmp_path: Path, dedup: str) -> None:
    """The texts 80 to 99 are in all three sources; what is held out anywhere is trained on nowhere."""
    drawn = source(tmp_path, WORDS[:100], "drawn")
    always = source(tmp_path, [*WORDS[200:220], *WORDS[80:100]], "always")
    never = source(tmp_path, [*WORDS[300:400], *WORDS[80:100]], "never")
    sources = [
        never.model_copy(update={"held_out": False}),
        always.model_copy(update={"held_out": True}),
        drawn,
    ]
    facts = prepare(sources, settings(dedup=dedup), tmp_path / "texts")
    kept, out = training(tmp_path / "texts"), set(held_out(tmp_path / "texts"))
    assert not out & set(kept)
    assert set(WORDS[200:220]) <= out
    assert not out & set(WORDS[300:400])
    # A text that repeats belongs to the source that has it first, unless every row of a text is looked at.
    both = set(WORDS[80:100])
    assert both <= (set(kept) if dedup == "normalised" else out)
    others = out - set(WORDS[200:220]) - both
    assert len(others) == 10
    assert others <= set(WORDS[:80])
    assert facts["sources"]["always"]["kept"] == 0
    assert facts["sources"]["never"]["held_out"] == 0
