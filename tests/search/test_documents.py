"""Documents from files: the same documents from every format, and one line for each that is none."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leaf.errors import LeafError
from leaf.search.documents import DocumentFiles
from leaf.search.store import Document

ROWS = [
    {"_id": "a", "title": "One", "text": "first text, with a comma", "year": 2020, "draft": False},
    {"_id": "b", "title": "", "text": "second ½", "year": 2021, "draft": True},
]
DOCUMENTS = [
    Document("a", "first text, with a comma", "One", {"year": 2020, "draft": False}),
    Document("b", "second ½", "", {"year": 2021, "draft": True}),
]


def jsonl(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder, name: str):
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif name.endswith(".jsonl"):
        path.write_text(jsonl(ROWS) + "\n", encoding="utf-8")
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(jsonl(ROWS).encode()))
    elif name.endswith(".csv"):
        path.write_text(
            '_id,title,text,year,draft\na,One,"first text, with a comma",2020,false\nb,,second ½,2021,true\n'
        )
    else:
        path.write_text(
            "_id\ttitle\ttext\tyear\tdraft\na\tOne\tfirst text, with a comma\t2020\tfalse\nb\t\tsecond ½\t2021\ttrue\n"
        )
    return path


@pytest.mark.parametrize(
    "name", ["x.jsonl", "x.jsonl.gz", "x.csv", "x.tsv", "x.parquet", "corpus.jsonl", "corpus.jsonl.gz"]
)
def test_every_format_gives_the_same_documents(tmp_path, name):
    path = write(tmp_path, name)
    documents = DocumentFiles([path.parent if name.startswith("corpus") else path])
    assert len(documents) == 2
    assert list(documents) == DOCUMENTS
    assert list(documents) == DOCUMENTS  # read anew


def test_a_beir_corpus_is_the_one_that_evaluation_reads(tmp_path):
    from leaf.evaluation.datasets import load_all

    write(tmp_path, "corpus.jsonl")
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "first"}\n')
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\n")
    [dataset] = load_all(tmp_path)
    assert {each.id: each.body for each in DocumentFiles([tmp_path])} == dataset.documents


def test_lines_of_text_are_numbered_and_files_of_a_folder_are_named(tmp_path, capsys):
    (tmp_path / "lines.txt").write_text("one\n\n two \n")
    assert [(each.id, each.text) for each in DocumentFiles([tmp_path / "lines.txt"])] == [("1", "one"), ("2", "two")]
    assert "numbered from 1" in capsys.readouterr().err
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    (tmp_path / "docs" / "deep" / "b.md").write_text("# B\ntext")
    (tmp_path / "docs" / "a.rst").write_text("A")
    (tmp_path / "docs" / "image.png").write_bytes(b"x")
    found = DocumentFiles([tmp_path / "docs"])
    assert len(found) == 2
    assert [(each.id, each.text) for each in found] == [("a.rst", "A"), ("deep/b.md", "# B\ntext")]


def test_columns_can_be_named_and_what_is_no_plain_value_is_left_out(tmp_path, capsys):
    path = tmp_path / "x.jsonl"
    path.write_text(
        jsonl([{"key": 7, "body": "text", "head": "H", "tags": ["x"], "digest": "y", "id": "z", "n": None}])
    )
    [document] = DocumentFiles([path], text="body", id="key", title="head")
    assert document == Document("7", "text", "H", {})
    said = capsys.readouterr().err
    assert all(f"column '{name}' is left out" in said for name in ("tags", "digest", "id"))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", r"x.jsonl, line 2 is not valid JSON"),
        ("[1]", r"x.jsonl, line 2 is \[1\], expected an object"),
        ('{"_id": "b"}', r"x.jsonl, line 2 has no 'text'; it has _id"),
        ('{"_id": "b", "text": 3}', "the text is 3, expected a string"),
        ('{"_id": null, "text": "x"}', "has an empty id"),
        ('{"_id": "b", "text": null}', "the text is None"),
    ],
)
def test_a_row_that_is_no_document_is_named(tmp_path, line, why):
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"_id": "a", "text": "x"}}\n{line}\n')
    with pytest.raises(LeafError, match=why):
        list(DocumentFiles([path]))


def test_files_that_cannot_be_read_are_one_line(tmp_path):
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"x" * 10_000)[:30])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    (tmp_path / "latin.jsonl").write_bytes(b'{"_id": "a", "text": "caf\xe9"}\n')
    (tmp_path / "x.docx").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for name, why in {
        "cut.jsonl.gz": "is the file complete",
        "bad.parquet": "is the file complete",
        "latin.jsonl": "is not UTF-8",
        "x.docx": "documents are read from",
        "empty": "holds no documents",
        "nothing.jsonl": "no file",
    }.items():
        with pytest.raises(LeafError, match=why) as raised:
            list(DocumentFiles([tmp_path / name]))
        assert "\n" not in str(raised.value)


def test_vectors_come_from_a_column_or_a_file_of_rows(tmp_path):
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    table = pa.Table.from_pylist(
        [{**row, "v": list(map(float, vector))} for row, vector in zip(ROWS, rows, strict=True)]
    )
    pq.write_table(table, tmp_path / "x.parquet")
    np.save(tmp_path / "rows.npy", rows)
    for vectors in ("v", str(tmp_path / "rows.npy")):
        documents = DocumentFiles([tmp_path / "x.parquet"], vectors=vectors)
        assert list(documents) == DOCUMENTS
        np.testing.assert_array_equal(np.stack(list(documents.vectors())), rows)
    with pytest.raises(LeafError, match="no column 'w' of vectors; it has"):
        list(DocumentFiles([tmp_path / "x.parquet"], vectors="w").vectors())
    pq.write_table(pa.table({"text": ["a", "b"], "v": [[1.0], [1.0, 2.0]]}), tmp_path / "uneven.parquet")
    with pytest.raises(LeafError, match="differ in length"):
        list(DocumentFiles([tmp_path / "uneven.parquet"], vectors="v").vectors())


def test_ids_and_texts_of_a_csv_are_kept_as_they_are_written(tmp_path):
    """007 is not 7, and a late id of letters, or a text of megabytes, is no damage."""
    path = tmp_path / "x.csv"
    rows = "".join(f"{at:05},{at},{'long ' * 20},{at}\n" for at in range(12_000))
    path.write_text(f"id,title,text,year\n{rows}NA,true,{'x' * 5_000_000},2.5\n")
    documents = list(DocumentFiles([path]))
    assert [each.id for each in (documents[0], documents[7], documents[-1])] == ["00000", "00007", "NA"]
    assert (documents[7].title, documents[-1].title) == ("7", "true")
    assert len(documents[-1].text) == 5_000_000
    assert documents[-1].metadata == {"year": 2.5}


@pytest.mark.parametrize(
    ("column", "why"),
    [
        (pa.array([[1.0], [1.0, 2.0, 3.0]]), "differ in length"),  # 4 numbers, which two rows of two would be
        (pa.array(["a", "b"]), "expected lists of numbers"),
        (pa.array([["a"], ["b"]]), "expected lists of numbers"),
    ],
)
def test_a_column_that_holds_no_vectors_is_refused(tmp_path, column, why):
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["x", "y"], "v": column}), tmp_path / "x.parquet")
    with pytest.raises(LeafError, match=why):
        list(DocumentFiles([tmp_path / "x.parquet"], vectors="v").vectors())


@pytest.mark.parametrize("array", [np.float32(3), np.zeros(2), np.array([["a"]]), np.ones((2, 2), complex)])
def test_a_file_that_holds_no_vectors_is_refused(tmp_path, array):
    np.save(tmp_path / "v.npy", array)
    (tmp_path / "x.jsonl").write_text(jsonl(ROWS))
    with pytest.raises(LeafError, match=r"expected numbers \[documents, dim\]"):
        DocumentFiles([tmp_path / "x.jsonl"], vectors=str(tmp_path / "v.npy")).vectors()
