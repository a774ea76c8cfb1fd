"""The nine sources of Table 1, each as the shipped recipe names it, on a small copy with the data set's own schema."""

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leaf.recipe import Prepare, Recipe, TextSource
from leaf.speed.mix import KINDS
from leaf.texts.hub import open_hub
from leaf.texts.prepare import prepare
from leaf.texts.sources import Row, name_of, read

pytest.importorskip("datasets")

#: Every text is long enough to be one.
WORDS = "a text that somebody wrote about something, number"
STRINGS = pa.list_(pa.string())


def entries(name: str) -> list[TextSource]:
    found = [entry for entry in Recipe.load("leaf-ir").texts if name_of(entry).startswith(name)]
    assert found
    return found


def at(entry: TextSource, place: Path | str, **changes: Any) -> TextSource:
    return entry.model_copy(update={"source": str(place), **changes})


def rows(entry: TextSource, place: Path | str, **changes: Any) -> list[Row]:
    return list(read(at(entry, place, **changes), 0))


def texts(name: str, count: int, hole: bool = True) -> list[str | None]:
    """Numbered texts, the fourth of which is null."""
    return [None if hole and n == 3 else f"{name}: {WORDS} {n}" for n in range(count)]


def repository(folder: Path, configs: dict[str, dict[str, str]], files: dict[str, pa.Table]) -> str:
    """A folder laid out like a repository of the hub; returns the source that names it."""
    for name, table in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / name, row_group_size=7)
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: '{config}'", "  data_files:"]
        lines += [line for split, path in splits.items() for line in (f"  - split: {split}", f"    path: {path}")]
    (folder / "README.md").write_text("\n".join([*lines, "---", "", "# A data set", ""]))
    return f"hub:{folder}"


def fineweb(folder: Path) -> str:
    def part(number: int) -> pa.Table:
        count = 20
        return pa.table(
            {
                "text": texts(f"page of part {number}", count),
                "id": [f"<urn:uuid:{n}>" for n in range(count)],
                "dump": ["CC-MAIN-2013-20"] * count,
                "url": ["http://example.org"] * count,
                "date": ["2013-05-18T05:48:54Z"] * count,
                "file_path": ["s3://commoncrawl/x.warc.gz"] * count,
                "language": ["en"] * count,
                "language_score": pa.array([0.9] * count, pa.float64()),
                "token_count": pa.array([100] * count, pa.int64()),
            }
        )

    files = {f"sample/10BT/{number:03}_00000.parquet": part(number) for number in range(3)}
    files["data/CC-MAIN-2013-20/000_00000.parquet"] = part(99)
    configs = {"default": {"train": "data/*/*"}, "sample-10BT": {"train": "sample/10BT/*"}}
    return repository(folder, configs, files)


def ccnews(folder: Path) -> str:
    def part(year: int, number: int) -> pa.Table:
        count = 20
        return pa.table(
            {
                "requested_url": ["http://example.org"] * count,
                "plain_text": texts(f"article {number} of {year}", count, hole=number == 0),
                "published_date": [f"{year}-01-01"] * count,
                "title": ["A title"] * count,
                "tags": pa.array([["one", "two"]] * count, STRINGS),
                "categories": pa.array([[]] * count, STRINGS),
                "author": pa.array([None] * count, pa.string()),
                "sitename": ["example.org"] * count,
                "image_url": pa.array([None] * count, pa.string()),
                "language": ["en" if n % 2 else "ro" for n in range(count)],
                "language_score": pa.array([0.99] * count, pa.float64()),
                "responded_url": ["http://example.org"] * count,
                "publisher": ["example"] * count,
                "warc_path": ["crawl-data/CC-NEWS/x.warc.gz"] * count,
                "crawl_date": ["2020-01-01"] * count,
            }
        )

    years = range(2016, 2025)
    files = {f"{year}_{number:04}.parquet": part(year, number) for year in years for number in range(2)}
    return repository(folder, {str(year): {"train": f"{year}_*"} for year in years}, files)


def lotte(folder: Path) -> str:
    configs, files = {}, {}
    for domain in ("writing", "recreation", "science", "technology", "lifestyle"):
        for form in ("search", "forum"):
            for part in ("corpus", "qrels", "queries"):
                config = f"{domain}_{form}-{part}"
                configs[config] = {split: f"{config}/{split}-*" for split in ("dev", "test")}
                for split in ("dev", "test"):
                    table = {"id": [str(n) for n in range(5)], "text": texts(f"{config} {split}", 5)}
                    files[f"{config}/{split}-00000-of-00001.parquet"] = pa.table(table)
    return repository(folder, configs, files)


def msmarco(folder: Path) -> str:
    table = pa.table({each: texts(each, 30) for each in ("query", "positive", "negative")})
    ids = pa.table({each: pa.array(range(30), pa.int64()) for each in ("query", "positive", "negative")})
    files = {"triplet/train-00000-of-00001.parquet": table, "triplet-ids/train-00000-of-00001.parquet": ids}
    return repository(folder, {name: {"train": f"{name}/train-*"} for name in ("triplet", "triplet-ids")}, files)


def pubmedqa(folder: Path) -> str:
    context = pa.struct({"contexts": STRINGS, "labels": STRINGS, "meshes": STRINGS})
    configs, files = {}, {}
    for config in ("pqa_artificial", "pqa_labeled", "pqa_unlabeled"):
        columns = {
            "pubid": pa.array(range(10), pa.int32()),
            "question": texts(config, 10),
            "context": pa.array([{"contexts": ["a"], "labels": ["b"], "meshes": []}] * 10, context),
            "long_answer": ["An answer."] * 10,
        }
        columns |= {} if config == "pqa_unlabeled" else {"final_decision": ["yes"] * 10}
        files[f"{config}/train-00000-of-00001.parquet"] = pa.table(columns)
        configs[config] = {"train": f"{config}/train-*"}
    return repository(folder, configs, files)


def trivia(folder: Path) -> str:
    table = pa.table({"query": texts("query", 12), "answer": texts("answer", 12)})
    return repository(folder, {"pair": {"train": "pair/train-*"}}, {"pair/train-00000-of-00001.parquet": table})


@pytest.mark.parametrize(
    ("name", "make", "begin", "count", "kind"),
    [
        ("FineWeb", fineweb, "page of part", 60, "document"),
        ("MS MARCO", msmarco, "query", 30, "query"),
        ("PubMedQA artificial", pubmedqa, "pqa_artificial", 10, "query"),
        ("PubMedQA unlabelled", pubmedqa, "pqa_unlabeled", 10, "query"),
        ("Trivia QA", trivia, "query", 12, "query"),
    ],
)
def test_a_data_set_of_the_hub_gives_the_texts_of_its_entry(
    tmp_path: Path, name: str, make: Callable[[Path], str], begin: str, count: int, kind: str
) -> None:
    (entry,) = entries(name)
    source = make(tmp_path / "data")
    found = rows(entry, source)
    expected = [row.text for row in found if row.text is not None]
    assert len(found) == count
    assert len(set(expected)) == count - (3 if name == "FineWeb" else 1)  # a null in each file
    assert all(str(text).startswith(begin) for text in expected)
    assert {(row.kind, row.source) for row in found} == {(kind, name)}
    some = rows(entry, source, rows=8)
    places = [found.index(row) for row in some if row.text is not None]
    assert len(some) == 8
    assert places == sorted(set(places)) != list(range(8))  # in stored order, not its beginning
    # Of wide rows nothing is fetched but what is read: the question, not the passages beside it.
    assert open_hub(at(entry, source), source.removeprefix("hub:")).dataset.column_names == [entry.column]


def test_cc_news_has_so_many_english_articles_of_every_year_from_its_files(tmp_path: Path) -> None:
    source = ccnews(tmp_path / "data")
    years = entries("CC-News")
    assert [entry.name for entry in years] == [f"CC-News {year}" for year in range(2016, 2025)]
    assert sum(entry.rows or 0 for entry in years) == 900_000
    for entry in (years[0], years[8]):
        found = rows(entry, source)
        year = str(entry.config)
        assert len(found) == 20  # ten of each file's twenty are English; number 3 of the first file has no text
        assert [row.text for row in found].count(None) == 1
        assert all(f" of {year}: " in str(row.text) for row in found if row.text is not None)
        assert {(row.kind, row.source) for row in found} == {("document", f"CC-News {year}")}
        (part,) = {str(row.text).split(" of ")[0] for row in rows(entry, source, rows=8) if row.text is not None}
        assert part in ("article 0", "article 1")  # a sample of files reads no second one for eight rows


def test_lotte_is_twenty_sets_of_queries_with_names_of_their_own(tmp_path: Path) -> None:
    source = lotte(tmp_path / "data")
    sets = entries("LoTTE")
    assert len({entry.name for entry in sets}) == 20
    seen: set[object] = set()
    for entry in sets:
        found = rows(entry, source)
        assert [row.text for row in found] == texts(f"{entry.config} {entry.split}", 5)
        assert {(row.kind, row.source) for row in found} == {("query", f"LoTTE {entry.config} {entry.split}")}
        seen |= {row.text for row in found if row.text is not None}
    assert len(seen) == 20 * 4


@pytest.mark.parametrize("name", ["amazon-qa.jsonl.gz", "train-00000-of-00001.parquet"])
def test_amazon_qa_has_a_question_a_row_beside_a_list_of_answers(tmp_path: Path, name: str) -> None:
    (entry,) = entries("Amazon QA")
    table = pa.table({"query": texts("question", 40), "pos": pa.array([["yes", "no"]] * 40, STRINGS)})
    if name.endswith(".parquet"):
        pq.write_table(table, tmp_path / name)
    else:
        lines = "".join(json.dumps(row) + "\n" for row in table.to_pylist())
        (tmp_path / name).write_bytes(gzip.compress(lines.encode()))
    found = rows(entry, f"hub:{tmp_path}")
    assert [row.text for row in found] == texts("question", 40)
    assert {row.kind for row in found} == {"query"}
    assert len(rows(entry, f"hub:{tmp_path}", rows=9)) == 9


def test_the_tokens_of_a_bert_vocabulary_are_texts_without_special_and_reserved_ones(tmp_path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.decoders import WordPiece as Decoder
    from tokenizers.models import WordPiece

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    known = ["[PAD]", "[unused0]", "[unused993]", *special[1:], "!", "a", "the", "##s", "##ing"]
    built = Tokenizer(WordPiece({token: n for n, token in enumerate(known)}, unk_token="[UNK]"))
    built.decoder = Decoder()
    built.add_special_tokens([AddedToken(token, special=True) for token in special])
    built.save(str(tmp_path / "tokenizer.json"))
    (entry,) = entries("BERT tokens")
    found = rows(entry, f"tokenizer:{tmp_path}")
    assert [row.text for row in found] == ["!", "a", "the", "s", "ing"]
    assert {(row.kind, row.source) for row in found} == {("document", "BERT tokens")}


def test_the_vocabulary_is_a_file_of_definitions(tmp_path: Path) -> None:
    (entry,) = entries("Vocabulary")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts("definition", 15))
    path = tmp_path / entry.source
    path.write_bytes(gzip.compress(lines.encode()))
    found = rows(entry, path)
    assert [row.text for row in found] == texts("definition", 15)
    assert {(row.kind, row.source) for row in found} == {("document", "Vocabulary")}
    assert len(rows(entry, path, rows=4)) == 4


def counts_of_table_1(recipe: Recipe) -> dict[str, int]:
    """Rows that the recipe's sources give, by the kinds of `leaf.speed.mix`."""
    found = dict.fromkeys((kind.name for kind in KINDS), 0)
    for entry in recipe.texts:
        (kind,) = (each for each in KINDS if name_of(entry).split()[0] == each.name.split()[0])
        available = entry.about.rows
        assert available is not None
        found[kind.name] += min(available, entry.rows or available)
    return found


@pytest.mark.parametrize("name", ["leaf-ir", "leaf-mt", "leaf-ir-fast"])
def test_the_recipe_says_of_every_source_how_much_it_is_and_under_which_licence(name: str) -> None:
    recipe = Recipe.load(name)
    for kind in KINDS:
        count = counts_of_table_1(recipe)[kind.name]
        assert count == pytest.approx(kind.texts, rel=0.02)  # Table 1 is rounded to thousands
    assert all(entry.licence and entry.about.tokens for entry in recipe.texts)
    assert [name_of(entry) for entry in recipe.texts if entry.commercial is False] == ["MS MARCO"]
    assert len({name_of(entry) for entry in recipe.texts}) == len(recipe.texts)


def test_nulls_of_the_hub_are_counted_and_not_trained_on(tmp_path: Path) -> None:
    sources: Sequence[TextSource] = [
        at(entries("FineWeb")[0], fineweb(tmp_path / "fineweb")),
        at(entries("MS MARCO")[0], msmarco(tmp_path / "msmarco")),
    ]
    facts = prepare(sources, Prepare(held_out=10, dedup="none"), tmp_path / "texts")
    assert facts["sources"]["FineWeb"]["rejected"] == {"not a string": 3}
    assert facts["sources"]["MS MARCO"]["rejected"] == {"not a string": 1}
    assert facts["rows"] == 60 + 30 - 4 - 10
