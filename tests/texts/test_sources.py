import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece

from leaf.errors import LeafError
from leaf.recipe import TextSource
from leaf.texts import hub
from leaf.texts.sources import batches, common_name, identity, name_of, read
from leaf.texts.tables import Malformed

ROWS = [("a first text", "query"), ("ein zweiter, größer", "document")]


def write(path: Path, data: str | bytes) -> Path:
    raw = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def texts(source: TextSource, seed: int = 0) -> list[object]:
    return [row.text for row in read(source, seed)]


def one(path: Path | str, **settings: object) -> TextSource:
    return TextSource.model_validate({"source": str(path), **settings})


FILES = {
    "rows.jsonl": "".join(json.dumps({"text": text, "kind": kind}) + "\n" for text, kind in ROWS),
    "rows.csv": 'kind,text\nquery,a first text\ndocument,"ein zweiter, größer"\n',
    "rows.tsv": "text\tkind\na first text\tquery\nein zweiter, größer\tdoc\n",
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", FILES)
def test_every_text_format_gives_the_same_rows_also_gzipped(tmp_path: Path, name: str, suffix: str) -> None:
    path = write(tmp_path / (name + suffix), FILES[name])
    assert [(row.text, row.kind, row.source) for row in read(one(path), 0)] == [(*row, "rows") for row in ROWS]


@pytest.mark.parametrize("name", ["lines.txt", "lines.txt.gz"])
def test_plain_text_has_one_text_a_line_and_keeps_empty_lines_for_the_count(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "\ufeffone\r\n\ntwo\n")  # with the byte order mark that Windows editors write
    assert texts(one(path, kind="query")) == ["one", "", "two"]


def test_parquet_is_read_from_files_globs_and_folders_in_sorted_order(tmp_path: Path) -> None:
    for name, text in (("b", "second"), ("a", "first")):
        pq.write_table(pa.table({"body": [text], "kind": ["doc"]}), tmp_path / f"{name}.parquet")
    for spec in (tmp_path, tmp_path / "*.parquet"):
        assert texts(one(spec, column="body")) == ["first", "second"]
    assert [row.kind for row in read(one(tmp_path / "a.parquet", column="body"), 0)] == ["document"]


def test_bytes_that_are_not_utf8_spoil_one_row_and_no_other(tmp_path: Path) -> None:
    lines = write(tmp_path / "lines.txt", b"good\nbad \xff\nfine\n")
    raw = pa.array([b"good", b"bad \xff", b"fine"], pa.binary())
    unchecked = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": unchecked}), table)
    for path in (lines, table):
        assert texts(one(path, kind="query")) == ["good", "bad \udcff", "fine"]


def test_lines_that_cannot_be_parsed_are_passed_on_as_malformed(tmp_path: Path) -> None:
    lines = write(tmp_path / "rows.jsonl", '{"text": "a"}\n{"text": \n\n[1]\n{"text": null}\n{"other": 1}\n')
    found = texts(one(lines, kind="query"))
    assert found == ["a", Malformed('{"text": \n'), Malformed("[1]\n"), None, None]
    table = write(tmp_path / "rows.csv", "text,n\na,1\nb\n")
    assert texts(one(table, kind="query")) == ["a", Malformed("b")]


def test_quotes_in_a_tsv_are_part_of_the_text(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.tsv", 'text\tn\n"open quote\t1\nnext\t2\n')
    assert texts(one(path, kind="query")) == ['"open quote', "next"]


def test_csv_fields_longer_than_the_default_limit_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "text\n" + "x" * 200_000 + "\n")
    assert [len(str(text)) for text in texts(one(path, kind="query"))] == [200_000]


def test_a_missing_column_is_named_beside_those_that_exist(tmp_path: Path) -> None:
    for name, data in FILES.items():
        path = write(tmp_path / name, data)
        with pytest.raises(LeafError, match=rf"{name} has no column 'body' \(it has (text, kind|kind, text)\)"):
            texts(one(path, column="body"))


def test_a_column_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), table)
    for path in (table, write(tmp_path / "rows.csv", "text,text\na,b\n")):
        with pytest.raises(LeafError, match="has 2 columns 'text'"):
            texts(one(path, kind="query"))


def test_without_kind_and_kind_column_the_error_gives_the_line_to_add(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", '{"text": "a"}\n')
    with pytest.raises(LeafError, match=r"no column 'kind' \(it has text\); say kind = \"query\" or"):
        texts(one(path))


def test_an_unknown_kind_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", '{"text": "a", "kind": "word"}\n')
    with pytest.raises(LeafError, match=r"column 'kind' holds 'word', .*say kind = \"query\" or"):
        texts(one(path))
    assert texts(one(path, kind="query")) == ["a"]


def test_where_keeps_equal_values_and_source_column_names_the_rows(tmp_path: Path) -> None:
    records = [{"text": str(n), "lang": "en" if n % 2 else "de", "year": n, "from": f"s{n}"} for n in range(4)]
    path = write(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, records)))
    source = one(path, kind="query", where={"lang": "en", "year": "3"}, source_column="from")
    assert [(row.text, row.source) for row in read(source, 0)] == [("3", "s3")]


@pytest.mark.parametrize("where", [{}, {"even": "yes"}])
def test_rows_draws_that_many_without_repeats_and_the_same_again(tmp_path: Path, where: dict[str, str]) -> None:
    records = [{"text": f"text {n}", "even": "no" if n % 2 else "yes"} for n in range(1000)]
    lines = write(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, records)))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "rows.parquet")
    for path in (lines, tmp_path / "rows.parquet"):
        source = one(path, kind="query", rows=100, where=where)
        drawn = texts(source, seed=1)
        assert len(drawn) == len(set(drawn)) == 100
        assert drawn == texts(source, seed=1) != texts(source, seed=2)
        numbers = [int(str(text).split()[1]) for text in drawn]
        assert numbers == sorted(numbers)
        # The mean of 100 out of 0..999 has a standard deviation of 27; a head or a tail would be off by 450.
        assert abs(sum(numbers) / 100 - 500) < 120


def test_asking_for_more_rows_than_there_are_takes_all_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "three.txt", "a\nb\nc\n")
    assert texts(one(path, kind="query", rows=10)) == ["a", "b", "c"]
    assert "three has 3 of the 10 rows asked for" in capsys.readouterr().err


def test_long_texts_are_passed_on_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaf.texts.sources.BATCH_CHARACTERS", 1000)
    lines = ["x" * 400, "", "y" * 900, "z" * 5000, *["short"] * 300]
    path = write(tmp_path / "lines.txt", "\n".join(lines) + "\n")
    found = [[row.text for row in batch.rows] for batch in batches(one(path, kind="query"), 0)]
    assert [len(rows) for rows in found] == [3, 1, 200, 100, 0]  # 200 times five characters; then the file's end
    assert [text for rows in found for text in rows] == lines


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.parquet"])
def test_a_truncated_file_is_one_line_with_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".gz"):
        write(path, FILES["rows.jsonl"])
    else:
        pq.write_table(pa.table({"text": ["a"]}), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(LeafError, match=rf"^cannot read .*{name}: .*$"):
        texts(one(path))


def test_unknown_formats_and_missing_files_name_what_can_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.xml", "<a/>")
    with pytest.raises(LeafError, match=r"rows.xml: texts are read from .parquet, .jsonl"):
        texts(one(path))
    with pytest.raises(LeafError, match=r"no file '.*nothing.\*'"):
        texts(one(tmp_path / "nothing.*"))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"source": "installed-docs", "kind": "query"}, "kind"),
        ({"source": "tokenizer:x", "where": {"a": "b"}}, "where"),
        ({"source": "rows.txt", "packages": ["numpy"]}, "packages"),
        ({"source": "rows.txt", "split": "test"}, "split"),
    ],
)
def test_settings_that_a_source_would_ignore_are_refused(settings: dict[str, object], field: str) -> None:
    with pytest.raises(LeafError, match=f"{field} has no meaning for this kind of source"):
        read(TextSource.model_validate(settings), 0)


def test_a_hub_source_may_be_a_local_folder_and_is_sampled_like_a_file(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write(tmp_path / "train.jsonl", "".join(f'{{"text": "t{n}", "kind": "doc"}}\n' for n in range(20)))
    source = one(f"hub:{tmp_path}")
    assert [(row.text, row.kind) for row in read(source, 0)] == [(f"t{n}", "document") for n in range(20)]
    assert len(texts(one(f"hub:{tmp_path}", rows=7))) == 7
    with pytest.raises(LeafError, match="no column 'body'"):
        texts(one(f"hub:{tmp_path}", column="body"))
    with pytest.raises(LeafError, match="nope"):
        texts(one(f"hub:{tmp_path}", split="nope"))


def test_a_cut_file_in_a_folder_of_the_hub_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    lines = "".join(json.dumps({"text": f"text number {n}"}) + "\n" for n in range(100)).encode()
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(lines)[:-30])
    with pytest.raises(LeafError, match=f"hub:{tmp_path}: .*ended before the end-of-stream marker"):
        texts(one(f"hub:{tmp_path}", kind="query"))


@pytest.mark.parametrize("spec", ["hub:someone/something", "tokenizer:someone/something"])
def test_an_unreachable_hub_is_one_line(spec: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    from huggingface_hub import HfApi

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known\nand a second line")

    monkeypatch.setattr(HfApi, "repo_info", unreachable)  # the network alone is replaced
    with pytest.raises(LeafError) as caught:
        texts(one(spec))
    assert str(caught.value) == (
        "the hub cannot be reached for someone/something (Name or service not known); connect, or name a local copy"
    )


def test_a_missing_extra_gives_the_line_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(LeafError, match=r"pip install 'leaf\[hub\]'"):
        texts(one("hub:someone/something"))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    vocabulary = ["[PAD]", "[unused0]", "[UNK]", "the", "##ing", "ing", "!"]
    built = Tokenizer(WordPiece({token: n for n, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    built.decoder = WordPieceDecoder()
    built.add_special_tokens([AddedToken("[PAD]", special=True), AddedToken("[UNK]", special=True)])
    built.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_a_vocabulary_gives_each_token_as_it_reads_without_special_and_reserved_ones(tokenizer: Path) -> None:
    rows = list(read(one(f"tokenizer:{tokenizer}"), 0))
    assert [row.text for row in rows] == ["the", "ing", "ing", "!"]
    assert {row.kind for row in rows} == {"document"}


def test_byte_level_tokens_lose_their_marker_and_parts_of_characters_are_left_out(tmp_path: Path) -> None:
    from tokenizers.decoders import ByteLevel
    from tokenizers.models import BPE

    built = Tokenizer(BPE({"Ġthe": 0, "é": 1, "Ã": 2}, []))  # é as a token is byte E9, Ã is C3: half characters
    built.decoder = ByteLevel()
    built.save(str(tmp_path / "tokenizer.json"))
    assert texts(one(f"tokenizer:{tmp_path}")) == ["the"]


def test_identity_follows_content_and_settings_but_not_the_path(tmp_path: Path, tokenizer: Path) -> None:
    first, moved = tmp_path / "one", tmp_path / "two"
    for folder in (first, moved):
        folder.mkdir()
        write(folder / "rows.txt", "a\n")
    known = identity(one(first / "rows.txt", kind="query"))
    assert json.loads(json.dumps(known)) == known == identity(one(moved / "rows.txt", kind="query", licence="CC0"))
    assert known["files"][0]["bytes"] == 2
    assert known != identity(one(first / "rows.txt", kind="document"))
    write(first / "rows.txt", "b\n")
    assert known != identity(one(first / "rows.txt", kind="query"))
    before = identity(one(f"tokenizer:{tokenizer}"))
    (tokenizer / "tokenizer.json").write_text("{}")
    assert before != identity(one(f"tokenizer:{tokenizer}"))
    assert identity(one("hub:a/b", revision="v1")) != identity(one("hub:a/b"))
    assert set(identity(one("installed-docs", packages=["sklearn"]))["versions"]) == {
        "python",
        "scikit-learn",
    }


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("data/rows.jsonl.gz", "rows"),
        ("hub:HuggingFaceFW/fineweb", "fineweb"),
        ("tokenizer:google-bert/bert-base-uncased", "tokenizer-bert-base-uncased"),
        ("installed-docs", "installed-docs"),
    ],
)
def test_sources_are_named_after_what_they_are(spec: str, name: str) -> None:
    assert name_of(one(spec)) == name
    assert name_of(one(spec, name="mine")) == "mine"


def test_names_of_one_data_set_have_the_words_in_common_that_they_begin_with() -> None:
    assert common_name(["CC-News 2016", "CC-News 2017"]) == "CC-News (2)"
    assert common_name(["CC-News 2016"]) == "CC-News 2016"
    assert common_name(["one", "two", "three"]) == "one (3)"
