import json
import random
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from leaf.errors import LeafError
from leaf.recipe import Prepare, Recipe, TextSource
from leaf.texts import installed
from leaf.texts.forms import normal_form, sentences, words
from leaf.texts.leaks import Benchmark, Benchmarks, LeakCheck
from leaf.texts.prepare import prepare
from leaf.texts.shards import read_shard

SENTENCE = "Cells of the liver divide in response to lost tissue."  # ten words


def leaks(benchmark: Sequence[str], text: str) -> list[tuple[str, str]]:
    """(how, shared words) of `text` beside one benchmark of these texts."""
    return [(each.how, each.words) for each in Benchmarks([("set", benchmark)]).leaks([text])]


@pytest.mark.parametrize(
    ("benchmark", "text"),
    [
        ("What is Python?", "what is python"),
        ("What is Python?", "  WHAT\tis python...  "),
        ("a well-known fact", "A wellknown fact"),
        ("ﬁne café today", "Fine cafe\u0301, today!"),  # ligature; e with a combining accent
        ("肝細胞は分裂する。", "肝細胞は、分裂する"),
        ("C++", "c++"),
    ],
)
def test_a_text_that_differs_in_case_punctuation_and_spaces_alone_is_equal(benchmark: str, text: str) -> None:
    assert [how for how, _ in leaks([benchmark], text)] == ["equal"]


@pytest.mark.parametrize(
    ("benchmark", "text"), [("C++", "C"), ("1.5", "15"), ("What is Python?", "What is Python 3?"), ("a", "b")]
)
def test_a_short_text_that_says_something_else_is_not_equal(benchmark: str, text: str) -> None:
    assert leaks([benchmark], text) == []


def test_a_text_that_contains_a_sentence_leaks_whatever_surrounds_it() -> None:
    shared = "cells of the liver divide in response to lost tissue"
    for text in (
        f"It is known: {SENTENCE} So much for that.",
        "and yet CELLS of the liver\ndivide, in response (to lost tissue) they say",
        f"{SENTENCE} {SENTENCE}",
    ):
        assert leaks(["Nothing else matters. " + SENTENCE + " Or so it seems."], text) == [("contains", shared)]


def test_eight_words_are_enough_and_seven_are_not() -> None:
    eight, seven = "one two three four five six seven eight.", "one two three four five six seven."
    assert leaks([f"First. {eight} Last."], f"zero {eight} nine") == [
        ("contains", "one two three four five six seven eight")
    ]
    assert leaks([f"First. {seven} Last but not the least of them all."], f"zero {seven} nine") == []
    assert leaks([seven], f"zero {seven} nine") == []  # as a whole text too


def test_a_part_of_a_sentence_is_no_leak_nor_are_its_words_in_another_order_or_with_a_gap() -> None:
    assert leaks([SENTENCE], "Cells of the liver divide in response to") == []
    assert leaks([SENTENCE], "the liver divide in response to lost tissue") == []
    assert leaks([SENTENCE], "of the liver divide in response to lost tissue and more") == []
    assert leaks([SENTENCE], "lost tissue to response in divide liver the of cells") == []
    assert leaks([SENTENCE], "Cells of the liver divide in quick response to lost tissue") == []
    assert leaks([SENTENCE], "Cells of the liver divide in response to lost tissues") == []


def test_a_sentence_split_over_two_texts_is_in_neither() -> None:
    first, second = "we saw cells of the liver divide", "in response to lost tissue of any kind"
    filed = Benchmarks([("set", [SENTENCE])])
    assert filed.leaks([first, second]) == []
    assert [each.row for each in filed.leaks([first, f"{first} {second}", second])] == [1]


def test_a_text_of_short_sentences_counts_as_a_whole() -> None:
    whole = "He came. He saw it. He won. He left again."  # ten words, no sentence of more than three
    assert leaks([whole], f"Once upon a time: {whole.lower()}") == [
        ("contains", "he came he saw it he won he left again")
    ]
    assert leaks([whole], "He came. He saw it. He won.") == []


def test_sentences_end_at_lines_and_behind_stops_before_white_space() -> None:
    text = 'A title\nFirst, e.g. this. "Is it 3.14?" he asked! (Yes.) No'
    assert sentences(text) == [
        ["a", "title"], ["first", "eg"], ["this"], ["is", "it", "314"], ["he", "asked"], ["yes"], ["no"],
    ]  # fmt: skip
    title, body = "a study of the growth of cells", "in this work we look at how cells grow"
    assert leaks([f"{title}\n{body}"], f"Abstract: {body}.")
    assert not leaks([f"{title} {body}"], f"Abstract: {body}.")


@pytest.mark.parametrize(
    "text",
    [SENTENCE, "Don't — “quote” the U.S.A. (or others), please\u2028again", "a\u00a0b\tc\u200bd\x1fe ﬁ ½ ẞ + < ^ `x`"],
)
def test_words_put_together_are_the_normal_form(text: str) -> None:
    assert "".join(words(text)) == normal_form(text)
    assert [word for sentence in sentences(text) for word in sentence] == words(text)


def test_every_benchmark_a_text_is_in_is_named_once() -> None:
    filed = Benchmarks([("a", [SENTENCE, f"Again. {SENTENCE}"]), ("b", [f"More. {SENTENCE}"]), ("c", ["Other."])])
    assert [(leak.benchmark, leak.how) for leak in filed.leaks([SENTENCE])] == [("a", "equal"), ("b", "contains")]


def test_sentences_that_begin_alike_are_told_apart() -> None:
    begin = "the aim of this study was to investigate the role of"
    filed = Benchmarks([("set", [f"{begin} gene {n} in mice." for n in range(500)])])
    found = filed.leaks([f"Background: {begin} gene {n} in mice, and {begin} others" for n in (7, 499, 500)])
    assert [(leak.row, leak.words.split()[-3]) for leak in found] == [(0, "7"), (1, "499")]
    # Each is filed under words of its own: under the beginning, every text with it would be compared with all 500.
    assert len(filed._sentences.keys) == 500


def test_a_benchmark_without_long_sentences_and_a_batch_without_texts_are_fine() -> None:
    assert Benchmarks([("set", ["short"])]).leaks(["one two three four five six seven eight nine"]) == []
    assert Benchmarks([("set", [])]).leaks([SENTENCE]) == []
    assert Benchmarks([("set", [SENTENCE])]).leaks([]) == []
    assert Benchmarks([("set", [SENTENCE])]).leaks(["short"]) == []


def reference(benchmark: Sequence[str], text: str) -> str | None:
    """The rules as they read, by search in strings; for texts of letters, spaces, `.`, `,`, `!` and line ends."""

    def plain(part: str) -> str:
        return " ".join(re.sub(r"[.,!]", "", unicodedata.normalize("NFKC", part).casefold()).split())

    def letters(part: str) -> str:
        """Of a text with fewer than eight letters, its marks as well."""
        found = plain(part).replace(" ", "")
        return found if len(found) >= 8 else "".join(part.casefold().split())

    if any(letters(text) == letters(each) for each in benchmark):
        return "equal"
    parts = [part for each in benchmark for part in [each, *re.split(r"(?<=[.!])\s+|\n", each)]]
    whole = f" {plain(text)} "
    return "contains" if any(len(plain(p).split()) >= 8 and f" {plain(p)} " in whole for p in parts) else None


def soup(generator: random.Random, length: int) -> str:
    """Words of two letters with random case and marks between; so few that runs of eight repeat."""
    pieces = []
    for _ in range(length):
        word = generator.choice(["ba", "bo", "É"])
        pieces.append(word.upper() if generator.random() < 0.3 else word)
        pieces.append(generator.choice([" "] * 30 + [". ", "! ", ", ", "\n"]))
    return "".join(pieces)


@pytest.mark.parametrize("seed", range(4))
def test_the_leaks_of_random_texts_are_those_that_a_plain_search_finds(seed: int) -> None:
    generator = random.Random(seed)
    benchmark = [soup(generator, generator.randint(1, 30)) for _ in range(60)]
    texts = [soup(generator, generator.randint(1, 90)) for _ in range(200)]
    texts += [each.swapcase() for each in benchmark[:20]]
    expected = {row: how for row, text in enumerate(texts) if (how := reference(benchmark, text))}
    assert {leak.row: leak.how for leak in Benchmarks([("set", benchmark)]).leaks(texts)} == expected
    assert {"equal", "contains"} == set(expected.values())
    assert 20 < len(expected) < len(texts)


def test_colliding_hashes_leak_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaf.texts.leaks._RollingHash.BASE", 1)  # a run then hashes like its words in any order
    sentence, turned = "one two three four five six seven eight", "eight seven six five four three two one"
    assert leaks([sentence], f"so {turned} it is") == []
    assert len(leaks([sentence], f"so {sentence} it is")) == 1


def test_counts_examples_and_positions() -> None:
    check = LeakCheck([("a", [SENTENCE, "What is Python?"]), ("b", [f"Yes. {SENTENCE}"]), ("c", ["nothing"])])
    assert check(["fine", SENTENCE, "what is python", f"x {SENTENCE}"], ["s", "s", "t", "t"]) == {1, 2, 3}
    assert check(["what is Python"] * 5 + ["y" * 300 + f" {SENTENCE}"], ["t"] * 6) == set(range(6))
    facts = check.facts()
    assert facts["texts"] == 9
    assert facts["sources"] == {"s": {"equal": 1, "contains": 0}, "t": {"equal": 6, "contains": 2}}
    assert {name: (each["equal"], each["contains"]) for name, each in facts["benchmarks"].items()} == {
        "a": (7, 2), "b": (0, 3), "c": (0, 0),
    }  # fmt: skip
    assert [len(each["examples"]) for each in facts["benchmarks"].values()] == [3, 3, 0]
    first, *_, last = facts["benchmarks"]["b"]["examples"]
    shared = "cells of the liver divide in response to lost tissue"
    assert first == {"source": "s", "how": "contains", "text": SENTENCE, "words": shared}
    assert last["text"] == "y" * 199 + "…"


# In `prepare`

WORDS = [f"text number {n}" for n in range(60)]
PLANTED = ["Text that is EQUAL!", f"A text. {SENTENCE}"]
BENCHMARKS: list[Benchmark] = [("scifact", ["text that is equal"]), ("sts", [SENTENCE, "other"])]


def source(folder: Path, texts: Sequence[str], name: str) -> TextSource:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return TextSource(source=str(path), kind="query")


def settings(**changes: Any) -> Prepare:
    return Prepare.model_validate({"held_out": 10, "leak_check": ["somewhere"], **changes})


def written(folder: Path) -> dict[str, list[str]]:
    return {path.name: read_shard(path).texts for path in folder.glob("*.parquet")}


@pytest.mark.parametrize("dedup", ["normalised", "exact", "none"])
def test_leaks_are_counted_and_all_else_is_as_if_they_had_not_been_there(tmp_path: Path, dedup: str) -> None:
    clean = [source(tmp_path, WORDS[:30], "a"), source(tmp_path, WORDS[30:], "b")]
    prepare(clean, settings(dedup=dedup, leak_check=()), tmp_path / "clean")
    leaky = [
        source(tmp_path, [PLANTED[0], *WORDS[:30], PLANTED[0], PLANTED[1]], "a"),
        source(tmp_path, [*WORDS[30:], PLANTED[1]], "b"),
    ]
    facts = prepare(leaky, settings(dedup=dedup), tmp_path / "leaky", BENCHMARKS)
    assert written(tmp_path / "leaky") == written(tmp_path / "clean")
    assert facts["sources"]["a"]["rejected"] == {"in a benchmark": 3}
    assert facts["sources"]["b"]["rejected"] == {"in a benchmark": 1}
    for counts in facts["sources"].values():
        others = {key: value for key, value in counts.items() if key not in ("read", "rejected")}
        assert counts["read"] == sum(others.values()) + sum(counts["rejected"].values())
    assert facts["leaks"]["texts"] == 4
    assert facts["leaks"]["sources"] == {"a": {"equal": 2, "contains": 1}, "b": {"equal": 0, "contains": 1}}
    assert {name: (each["equal"], each["contains"]) for name, each in facts["leaks"]["benchmarks"].items()} == {
        "scifact": (2, 0), "sts": (0, 2),
    }  # fmt: skip
    json.dumps(facts["leaks"])


def test_a_leak_among_the_held_out_texts_is_found_too(tmp_path: Path) -> None:
    rows = [source(tmp_path, WORDS, "a")]
    prepare(rows, settings(leak_check=()), tmp_path / "before")
    leaking = written(tmp_path / "before")["held-out.parquet"][0]
    facts = prepare(rows, settings(), tmp_path / "after", [("set", [leaking.upper()])])
    after = written(tmp_path / "after")
    assert not any(leaking in texts for texts in after.values())
    assert len(after["held-out.parquet"]) == 10
    assert facts["leaks"]["texts"] == 1


def test_refuse_says_how_many_and_which_and_writes_nothing(tmp_path: Path) -> None:
    rows = [source(tmp_path, [*WORDS, *PLANTED], "a")]
    expected = (
        r"training texts in a benchmark: 2 \(1 equal to a text of scifact, 1 with a sentence of sts\), such as "
        r"'Text that is EQUAL!' from a; .* prepare\.leaks = 'drop'"
    )
    with pytest.raises(LeafError, match=expected):
        prepare(rows, settings(leaks="refuse"), tmp_path / "texts", BENCHMARKS)
    assert [path.name for path in (tmp_path / "texts").iterdir()] == [".sources"]  # no shards
    facts = prepare([source(tmp_path, WORDS, "b")], settings(leaks="refuse"), tmp_path / "texts", BENCHMARKS)
    assert facts["leaks"]["texts"] == 0
    assert len(list((tmp_path / "texts").iterdir())) == 2


def test_a_pair_with_a_leaking_side_is_not_held_out_and_its_other_side_is_a_text_like_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entries(packages: Sequence[str]) -> list[installed.Entry]:
        return [installed.Entry(f"f{n}", f"question {n}", f"the answer to question {n}") for n in range(30)]

    monkeypatch.setattr(installed, "entries", entries)
    sources, benchmark = [TextSource(source="installed-docs", name="docs")], ("set", ["Question 7!"])
    facts = prepare(sources, settings(held_out=9, held_out_pairs=20), tmp_path / "texts", [benchmark])
    queries = (tmp_path / "texts" / "held-out-pairs" / "queries.jsonl").read_text()
    assert '"question 7"' not in queries
    assert any("the answer to question 7" in texts for texts in written(tmp_path / "texts").values())
    assert facts["sources"]["docs"] == {
        "read": 60, "kept": 10, "held_out": 9, "held_out_pairs": 40, "over_limit": 0, "rejected": {"in a benchmark": 1},
    }  # fmt: skip
    with pytest.raises(LeafError, match="have 29 pairs"):
        prepare(sources, settings(held_out_pairs=30), tmp_path / "texts", [benchmark])


def test_without_a_check_nothing_is_said_and_a_check_without_texts_is_an_error(tmp_path: Path) -> None:
    rows = [source(tmp_path, [*WORDS, *PLANTED], "a")]
    facts = prepare(rows, settings(leak_check=()), tmp_path / "texts")
    assert facts["leaks"] is None
    assert facts["rows"] == 52
    with pytest.raises(LeafError, match="asks for somewhere, but no benchmark texts came with it"):
        prepare(rows, settings(), tmp_path / "texts")


def test_batches_end_early_where_texts_are_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leaf.texts import prepare as module

    rows = [source(tmp_path, [*WORDS, *PLANTED, *WORDS[:5]], "a")]
    expected = prepare(rows, settings(), tmp_path / "whole", BENCHMARKS)
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 20)
    assert prepare(rows, settings(), tmp_path / "small", BENCHMARKS)["sources"] == expected["sources"]
    assert written(tmp_path / "small") == written(tmp_path / "whole")


# Through `leaf texts`


def recipe(folder: Path, texts: Sequence[str], **prepare: Any) -> Path:
    """A recipe file with one set of sentence pairs to evaluate on."""
    rows = source(folder, texts, "a")
    (folder / "pairs.tsv").write_text(f"sentence1\tsentence2\tscore\n{SENTENCE}\tno\t1\nyes\tmaybe\t2\n")
    data = {
        "name": "leaky",
        "teacher": {"model": "none"},
        "student": {},
        "texts": [rows.model_dump(include={"source", "kind"})],
        "prepare": {"held_out": 10, "leak_check": ["evaluate"], **prepare},
        "evaluate": {"data": [str(folder / "pairs.tsv")]},
    }
    (folder / "recipe.toml").write_text(tomli_w.dumps(data))
    return folder / "recipe.toml"


def leaf_texts(recipe: Path) -> dict[str, Any]:
    from leaf.pipeline import Pipeline

    with Pipeline(Recipe.load(recipe), recipe.parent / "run", device="cpu").open() as pipeline:
        return pipeline.texts()


def test_leaf_texts_says_what_it_dropped_and_notices_when_the_benchmark_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from leaf.cli.printing import print_texts as texts

    path = recipe(tmp_path, [*WORDS, *PLANTED, SENTENCE])
    manifest = leaf_texts(path)
    texts(manifest)
    printed = capsys.readouterr().out
    assert "in a benchmark 2" in printed
    assert printed.endswith("leak check: 2 texts dropped that are in a benchmark (pairs 2); 1 checked\n")
    assert {how: manifest["leaks"]["benchmarks"]["pairs"][how] for how in ("equal", "contains")} == {
        "equal": 1, "contains": 1,
    }  # fmt: skip
    assert leaf_texts(path) == manifest
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\tscore\nother\tno\t1\nyes\tmaybe\t2\n")
    with pytest.raises(LeafError, match=r"made from other inputs \(benchmarks\.pairs was .*, is now"):
        leaf_texts(path)


def test_leaf_texts_refuses_where_it_is_told_to(tmp_path: Path) -> None:
    with pytest.raises(LeafError, match=r"training texts in a benchmark: 1 \(1 equal to a text of pairs\)"):
        leaf_texts(recipe(tmp_path, [*WORDS, SENTENCE], leaks="refuse"))
    assert not (tmp_path / "run" / "texts" / "manifest.json").exists()


def test_without_a_check_the_manifest_knows_no_benchmarks_and_the_table_no_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from leaf.cli.printing import print_texts as texts

    manifest = leaf_texts(recipe(tmp_path, WORDS, leak_check=[]))
    texts(manifest)
    assert "benchmark" not in capsys.readouterr().out
    assert "benchmarks" not in manifest["inputs"]
