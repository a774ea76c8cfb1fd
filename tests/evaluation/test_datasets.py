import gzip
import json
from pathlib import Path

import pytest

from leaf.errors import LeafError
from leaf.evaluation.datasets import RetrievalSet, StsSet, load

DOCUMENTS = {"d1": "the cat", "d2": "the dog"}
QUERIES = {"q1": "cat?", "q2": "dog?"}
QRELS = {"q1": {"d1": 2, "d2": 0}, "q2": {"d2": 1}}
STS = "sentence1\tsentence2\tscore\n"


def retrieval(path: Path) -> RetrievalSet:
    dataset = load(path)
    assert isinstance(dataset, RetrievalSet)
    return dataset


def sts(path: Path) -> StsSet:
    dataset = load(path)
    assert isinstance(dataset, StsSet)
    return dataset


@pytest.fixture
def folder(write_beir):
    return write_beir(DOCUMENTS, QUERIES, QRELS)


def test_a_beir_folder_is_read_as_it_is(folder):
    dataset = retrieval(folder)
    assert dataset.name == "tiny"
    assert (dict(dataset.documents), dict(dataset.queries)) == (DOCUMENTS, QUERIES)
    assert dataset.qrels == QRELS
    assert dataset.notes == ()


def test_the_title_stands_before_the_text_of_a_document_and_a_query_has_none(folder):
    (folder / "corpus.jsonl").write_text(
        '{"_id": "d1", "title": "Cat", "text": "purrs "}\n'
        '{"_id": "d2", "title": "", "text": "barks"}\n'
        '{"_id": "d3", "title": null, "text": "sings"}\n'
        '{"_id": "d4", "title": "Only a title", "text": ""}\n'
    )
    (folder / "queries.jsonl").write_text('{"_id": "q1", "title": "no", "text": "cat?"}\n{"_id": "q2", "text": "x"}')
    dataset = retrieval(folder)
    assert list(dataset.documents.values()) == ["Cat purrs", "barks", "sings", "Only a title"]
    assert dataset.queries["q1"] == "cat?"


def test_compression_and_the_name_leave_the_digest_alone_and_any_content_moves_it(write_beir, folder):
    before = retrieval(folder).digest
    plain = folder / "corpus.jsonl"
    with gzip.open(folder / "corpus.jsonl.gz", "wt") as handle:
        handle.write(plain.read_text())
    plain.unlink()
    assert retrieval(folder).digest == before
    assert retrieval(write_beir(DOCUMENTS, QUERIES, QRELS, name="other")).digest == before
    changed = [
        ({**DOCUMENTS, "d1": "a cat"}, QUERIES, QRELS),
        (DOCUMENTS, {**QUERIES, "q1": "cats?"}, QRELS),
        (DOCUMENTS, QUERIES, {**QRELS, "q2": {"d2": 2}}),
    ]
    digests = {retrieval(write_beir(*parts, name=f"c{i}")).digest for i, parts in enumerate(changed)}
    assert len(digests | {before}) == 4


def test_queries_without_a_relevant_document_are_left_out_and_counted(write_beir):
    queries = {**QUERIES, "unjudged": "?", "negative": "?"}
    dataset = retrieval(write_beir(DOCUMENTS, queries, {**QRELS, "negative": {"d1": 0, "d2": -1}}))
    assert list(dataset.queries) == ["q1", "q2"]
    assert dataset.num_left_out == 2
    assert dataset.notes == ("queries without a relevant document, not scored: 2",)


def test_relevant_documents_outside_the_corpus_stay_judged_and_are_counted(write_beir):
    dataset = retrieval(write_beir(DOCUMENTS, QUERIES, {**QRELS, "q2": {"d2": 1, "gone": 1, "also": 0}}))
    assert dataset.qrels["q2"]["gone"] == 1
    assert dataset.notes == ("relevant documents outside the corpus, counted as missed: 1",)


def test_relevant_documents_with_the_id_of_their_query_are_counted(write_beir):
    dataset = retrieval(write_beir(DOCUMENTS, {"d1": "cat?"}, {"d1": {"d1": 1, "d2": 1}}))
    assert dataset.notes == ("relevant documents with the id of their query, dropped as its copy: 1",)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl", "", r"corpus\.jsonl is empty"),
        ("corpus.jsonl", "{oops", r"corpus\.jsonl:1: not valid JSON"),
        ("corpus.jsonl", '["d1"]', r"corpus\.jsonl:1: .* is not an object"),
        ("corpus.jsonl", '{"text": "x"}', "corpus.jsonl:1: '_id' is missing"),
        ("corpus.jsonl", '{"_id": 1, "text": "x"}', "corpus.jsonl:1: '_id' is 1, expected a string"),
        ("corpus.jsonl", '{"_id": "d1"}', "corpus.jsonl:1: 'text' is missing"),
        ("corpus.jsonl", '{"_id": "d1", "text": " "}', "corpus.jsonl:1: the text of 'd1' is empty"),
        ("corpus.jsonl", '{"_id": "d1", "text": "x"}\n' * 2, "corpus.jsonl:2: the id 'd1' is there twice"),
        ("corpus.jsonl", '{"_id": "z", "text": "x"}', "no judged document .such as 'd1'. is in the corpus"),
        ("queries.jsonl", '{"_id": "q1", "text": "x"}', r"test\.tsv:4: query 'q2' is judged but not in"),
        ("queries.jsonl", '{"_id": "q1", "text": ""}', "queries.jsonl:1: the text of 'q1' is empty"),
        ("qrels/test.tsv", "q1 0 d1 1\n", r"test\.tsv:1: the header is .*expected tab-separated query-id"),
        ("qrels/test.tsv", "", "the header is "),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "a header and no rows"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\n", r"test\.tsv:2: 2 columns, expected 3"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\tyes\n", r"test\.tsv:2: the score is 'yes'"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\tnan\n", r"test\.tsv:2: the score is 'nan'"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t0\n", "names no relevant document"),
        (
            "qrels/test.tsv",
            "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td1\t2\n",
            r"test\.tsv:3: document 'd1' is judged twice",
        ),
    ],
)
def test_a_malformed_beir_folder_is_refused_with_file_and_line(folder, file, content, message):
    (folder / file).write_text(content)
    with pytest.raises(LeafError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(LeafError, match=Path(file).name):
        load(folder)


def test_two_versions_of_a_file_are_refused(folder):
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(LeafError, match=r"both corpus\.jsonl and corpus\.jsonl\.gz"):
        load(folder)


def test_a_truncated_archive_and_wrong_bytes_are_refused(folder, tmp_path):
    rows = "".join(json.dumps({"_id": f"d{i}", "text": f"text {i * 7919}"}) + "\n" for i in range(500))
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(rows.encode())[:-200])
    with pytest.raises(LeafError, match="cannot be read"):
        load(folder)
    (tmp_path / "latin.tsv").write_bytes(STS.encode() + b"caf\xe9\tx\t1\n")
    with pytest.raises(LeafError, match="cannot be read"):
        load(tmp_path / "latin.tsv")


def test_a_table_of_sentence_pairs_is_named_after_its_file_or_else_its_folder(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_bytes((STS + 'a "quoted" cat\tb\t4.5\r\nc\rc\td\t0\n\n').encode())
    dataset = sts(path)
    assert dataset.name == "pairs"
    assert dataset.pairs == (('a "quoted" cat', "b"), ("c\rc", "d"))
    assert dataset.scores == (4.5, 0.0)

    packed = tmp_path / "stsbenchmark" / "test.tsv.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert sts(packed).name == "stsbenchmark"
    assert sts(packed).digest == dataset.digest
    path.write_text(STS + 'a "quoted" cat\tb\t4\nc\td\t0\n')
    assert sts(path).digest != dataset.digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\tlabel\nx\t1\n", "classification and clustering sets come in a later version"),
        ("sentence1\tscore\nx\t1\n", "expected tab-separated sentence1, sentence2, score"),
        (STS + "a\tb\n", r"set\.tsv:2: 2 columns, expected 3"),
        (STS + "a\tb\t1\n\tb\t2\n", r"set\.tsv:3: an empty sentence"),
        (STS + "\t\t\n", r"set\.tsv:2: an empty sentence"),
        (STS + "a\tb\thigh\n", r"set\.tsv:2: the score is 'high'"),
        (STS + "a\tb\t1\nc\td\t1\n", "all 2 scores are equal"),
        (STS, "a header and no rows"),
    ],
)
def test_a_malformed_table_is_refused_with_file_and_line(tmp_path, content, message):
    (tmp_path / "set.tsv").write_text(content)
    with pytest.raises(LeafError, match=message):
        load(tmp_path / "set.tsv")


def test_what_is_no_dataset_is_refused(tmp_path):
    (tmp_path / "set.csv").write_text("x")
    with pytest.raises(LeafError, match="is not an evaluation set"):
        load(tmp_path / "set.csv")
    with pytest.raises(LeafError, match="no evaluation set at"):
        load(tmp_path / "nowhere")
