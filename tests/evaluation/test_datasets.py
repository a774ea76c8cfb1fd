import gzip
import json
from pathlib import Path

import pytest

from leaf.errors import LeafError
from leaf.evaluation import datasets
from leaf.evaluation.datasets import (
    ClassificationSet,
    ClusteringSet,
    Dataset,
    PairSet,
    RetrievalSet,
    StsSet,
    load,
    load_all,
)

DOCUMENTS = {"d1": "the cat", "d2": "the dog"}
QUERIES = {"q1": "cat?", "q2": "dog?"}
QRELS = {"q1": {"d1": 2, "d2": 0}, "q2": {"d2": 1}}
STS = "sentence1\tsentence2\tscore\n"
PAIRS = "sentence1\tsentence2\tlabel\n"
LABELLED = "text\tlabel\n"


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
        ("sentence1\tscore\nx\t1\n", "expected tab-separated sentence1, sentence2, score or .* or text, label"),
        ("", r"set\.tsv: the header is \[''\]"),
        (STS + "a\tb\n", r"set\.tsv:2: 2 columns, expected 3"),
        (STS + "a\tb\t1\n\tb\t2\n", r"set\.tsv:3: an empty sentence"),
        (STS + "\t\t\n", r"set\.tsv:2: an empty sentence"),
        (STS + "a\tb\thigh\n", r"set\.tsv:2: the score is 'high'"),
        (STS + "a\tb\t1\nc\td\t1\n", "all 2 scores are equal"),
        (STS, "a header and no rows"),
        (PAIRS + "a\tb\t1\nc\td\t2\n", r"set\.tsv:3: the label is '2', expected 1 for the same meaning and 0"),
        (PAIRS + "a\tb\t1.0\n", r"set\.tsv:2: the label is '1\.0'"),
        (PAIRS + "a\tb\t1\nc\t \t0\n", r"set\.tsv:3: an empty sentence"),
        (PAIRS + "a\tb\t1\nc\td\t1\n", "all 2 labels are 1"),
        (LABELLED + "a\tx\n\ty\n", r"set\.tsv:3: an empty text"),
        (LABELLED + "a\tx\nb\t\n", r"set\.tsv:3: an empty label"),
        (LABELLED + "a\tx\ty\n", r"set\.tsv:2: 3 columns, expected 2"),
        (LABELLED + "a\tx\nb\tx\n", "all 2 labels are 'x'"),
    ],
)
def test_a_malformed_table_is_refused_with_file_and_line(tmp_path, content, message):
    (tmp_path / "set.tsv").write_text(content)
    with pytest.raises(LeafError, match=message):
        load(tmp_path / "set.tsv")


@pytest.fixture
def classified(tmp_path):
    """Twelve training texts with label a and three with b, and two test texts."""
    folder = tmp_path / "intents"
    folder.mkdir()
    rows = [f"train {row}\t{'b' if row % 5 == 4 else 'a'}\n" for row in range(15)]
    (folder / "train.tsv").write_text(LABELLED + "".join(rows))
    (folder / "test.tsv").write_text(LABELLED + "no\tb\nyes\ta\n")
    return folder


def classification(path: Path) -> ClassificationSet:
    dataset = load(path)
    assert isinstance(dataset, ClassificationSet)
    return dataset


def test_a_table_of_labelled_texts_with_training_texts_beside_it_is_for_classification(classified):
    dataset = classification(classified)
    assert (dataset.name, dataset.task) == ("intents", "classification")
    assert dataset.test == (("no", "b"), ("yes", "a"))
    assert dataset.train[4] == ("train 4", "b")
    assert classification(classified / "test.tsv").digest == dataset.digest
    assert dataset.notes == ("labels with fewer than 8 training texts: 1",)
    (classified / "train.tsv").write_text((classified / "train.tsv").read_text() + "more\ta\n")
    assert classification(classified).digest != dataset.digest


def test_each_classifier_is_fitted_on_eight_texts_a_label_and_only_those_are_encoded(tmp_path):
    train = tuple((f"train {row}", f"{row % 3}") for row in range(600))
    dataset = ClassificationSet("tiny", train, (("test", "0"),))
    assert len(dataset.samples) == 10
    for sample in dataset.samples:
        assert sorted(train[row][1] for row in sample) == sorted("012" * 8)
    assert len(set(dataset.samples)) == 10
    assert list(dataset.rows) == sorted({row for sample in dataset.samples for row in sample})
    assert len(dataset.rows) <= 10 * 24 < len(train)
    assert dataset.sides == {"train": [f"train {row}" for row in dataset.rows], "texts": ["test"]}
    assert dataset.notes == ()


def test_a_label_with_few_training_texts_gives_them_all(classified):
    dataset = classification(classified)
    for sample in dataset.samples:
        assert sorted(dataset.train[row][1] for row in sample) == sorted("a" * 8 + "b" * 3)


def test_a_malformed_classification_set_is_refused_with_file_and_line(classified):
    with pytest.raises(LeafError, match=r"train\.tsv holds the training texts of a set: give its test\.tsv"):
        load(classified / "train.tsv")
    (classified / "test.tsv").write_text(LABELLED + "yes\ta\nno\tc\n")
    with pytest.raises(LeafError, match=r"test\.tsv:3: no text of train\.tsv has the label 'c'"):
        load(classified)
    (classified / "train.tsv").write_text(STS + "a\tb\t1\n")
    with pytest.raises(LeafError, match=r"train\.tsv:1: the header is .*expected tab-separated text, label"):
        load(classified)
    (classified / "train.tsv.gz").write_bytes(b"")
    with pytest.raises(LeafError, match=r"both train\.tsv and train\.tsv\.gz"):
        load(classified)
    (classified / "test.tsv").unlink()
    with pytest.raises(LeafError, match=r"intents has no test\.tsv\[\.gz\]"):
        load(classified)


def test_a_table_of_labelled_texts_alone_is_for_clustering(classified):
    (classified / "train.tsv").unlink()
    dataset = load(classified)
    assert isinstance(dataset, ClusteringSet)
    assert (dataset.name, dataset.task) == ("intents", "clustering")
    assert (dataset.texts, dataset.labels) == (("no", "yes"), ("b", "a"))
    assert dataset.notes == ()


def test_training_texts_beside_a_table_with_a_name_of_its_own_are_not_its(classified):
    (classified / "titles.tsv").write_text((classified / "test.tsv").read_text())
    dataset = load(classified / "titles.tsv")
    assert (dataset.name, dataset.task) == ("titles", "clustering")


def test_of_many_texts_a_sample_is_clustered(monkeypatch):
    monkeypatch.setattr(datasets, "MAX_CLUSTERED_TEXTS", 50)
    dataset = ClusteringSet("tiny", tuple(f"text {row}" for row in range(70)), tuple("ab" * 35))
    assert dataset.sides == {"texts": [f"text {row}" for row in dataset.rows]}
    assert len(set(dataset.rows)) == 50
    assert dataset.notes == ("texts beyond a random 50, not clustered: 20",)
    assert ClusteringSet("tiny", dataset.texts, tuple("ba" * 35)).digest != dataset.digest


def test_a_table_of_labelled_pairs_is_for_pair_classification(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text(PAIRS + "a\tb\t1\nc\td\t0\n")
    dataset = load(path)
    assert isinstance(dataset, PairSet)
    assert (dataset.name, dataset.task, dataset.notes) == ("pairs", "pair_classification", ())
    assert (dataset.pairs, dataset.labels) == ((("a", "b"), ("c", "d")), (1, 0))
    assert dataset.sides == {"sentences": ["a", "c", "b", "d"]}
    path.write_text(PAIRS + "a\tb\t0\nc\td\t1\n")
    assert load(path).digest != dataset.digest


def test_a_folder_with_a_test_table_is_what_the_table_is(tmp_path):
    folder = tmp_path / "stsbenchmark"
    folder.mkdir()
    for split, score in (("test", 1), ("dev", 2)):
        (folder / f"{split}.tsv.gz").write_bytes(gzip.compress(f"{STS}a\tb\t0\nc\td\t{score}\n".encode()))
    assert (sts(folder).name, sts(folder).task, sts(folder).scores) == ("stsbenchmark", "sts", (0, 1))
    assert sts(folder).digest == sts(folder / "test.tsv.gz").digest != sts(folder / "dev.tsv.gz").digest


def test_all_sets_below_a_folder_are_found_by_task_and_name(tmp_path, classified, write_beir):
    classified.rename(tmp_path / "zz")
    for name in ("b", "a"):
        write_beir(DOCUMENTS, QUERIES, QRELS, name=f"deep/er/{name}")
    # A BEIR folder holds no further set: this table says which queries are for what.
    (tmp_path / "deep" / "er" / "a" / "qrels" / "dev.tsv").write_text("anything")
    (tmp_path / "deep" / "loose.tsv").write_text(PAIRS + "a\tb\t1\nc\td\t0\n")
    (tmp_path / "deep" / "notes.txt").write_text("not a set")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.tsv").write_text("not a set")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "test.tsv").write_text(LABELLED + "a\tx\nb\ty\n")
    (tmp_path / "d.tsv").write_text(STS + "a\tb\t1\nc\td\t0\n")

    def names(found: list[Dataset]) -> list[str]:
        return [f"{each.task} {each.name}" for each in found]

    expected = ["retrieval a", "retrieval b", "sts d", "classification zz", "clustering c", "pair_classification loose"]
    assert names(load_all(tmp_path)) == expected
    assert names(load_all(tmp_path / "zz")) == ["classification zz"]
    assert names(load_all(tmp_path / "d.tsv")) == ["sts d"]


def test_a_tree_is_loaded_whole_or_refused(tmp_path, classified):
    (tmp_path / "empty").mkdir()
    with pytest.raises(LeafError, match=r"no evaluation set below .*empty: a set is a folder with corpus"):
        load_all(tmp_path / "empty")
    with pytest.raises(LeafError, match=r"no evaluation set at .*nowhere"):
        load_all(tmp_path / "nowhere")
    other = tmp_path / "more" / "intents.tsv"
    other.parent.mkdir()
    other.write_text(LABELLED + "a\tx\nb\ty\n")
    with pytest.raises(LeafError, match=r"two sets are called 'intents', .*/intents and .*/more/intents\.tsv: rename"):
        load_all(tmp_path)
    other.rename(other.with_name("bad.tsv"))
    (tmp_path / "more" / "bad.tsv").write_text(LABELLED + "a\tx\nb\n")
    with pytest.raises(LeafError, match=r"bad\.tsv:3: 1 columns, expected 2"):
        load_all(tmp_path)
    (tmp_path / "more" / "bad.tsv").unlink()
    (classified / "test.tsv").unlink()
    with pytest.raises(LeafError, match=r"intents has no test\.tsv"):
        load_all(tmp_path)


def test_what_is_no_dataset_is_refused(tmp_path):
    (tmp_path / "set.csv").write_text("x")
    with pytest.raises(LeafError, match="is not an evaluation set"):
        load(tmp_path / "set.csv")
    with pytest.raises(LeafError, match="no evaluation set at"):
        load(tmp_path / "nowhere")
