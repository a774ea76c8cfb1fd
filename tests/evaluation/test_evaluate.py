"""Encoders that are known to be right, wrong or random have to score as such."""

import math
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest

from leaf.encoder import AsymmetricEncoder, Encoder
from leaf.errors import LeafError
from leaf.evaluation.datasets import RetrievalSet, StsSet, load
from leaf.evaluation.evaluate import VectorCache, evaluate, evaluate_all, examples
from leaf.evaluation.records import read, write
from leaf.evaluation.statistics import retention

N = 200
IDS = [f"{i:03}" for i in range(N)]


class Fake:
    """An encoder that looks vectors up by text and counts the texts it is asked for, per role."""

    def __init__(self, name, documents, queries=None, similarity="cosine"):
        self.name, self.similarity = name, similarity
        self.tables = {"query": queries or {}, "document": documents}
        self.dim = len(next(iter(documents.values())))
        self.encoded = Counter()

    def encode_query(self, texts, *, batch_size=32, advance=None):
        return self._encode("query", texts, advance)

    def encode_document(self, texts, *, batch_size=32, advance=None):
        return self._encode("document", texts, advance)

    def _encode(self, role, texts, advance):
        self.encoded[role] += len(texts)
        if advance:
            advance(len(texts))
        return np.array([self.tables[role][text] for text in texts], np.float32)


@pytest.fixture
def tiny(write_beir) -> RetrievalSet:
    """Query i is about document i, and about no other."""
    dataset = load(
        write_beir(
            {f"d{i}": f"document {i}" for i in IDS},
            {f"q{i}": f"query {i}" for i in IDS},
            {f"q{i}": {f"d{i}": 1} for i in IDS},
        )
    )
    assert isinstance(dataset, RetrievalSet)
    return dataset


def fake(name: str, queries: np.ndarray, documents: np.ndarray, **more) -> Fake:
    """An encoder of `tiny` from vectors `[N, d]` of its queries and documents."""
    return Fake(
        name,
        {f"document {i}": vector for i, vector in zip(IDS, documents, strict=True)},
        {f"query {i}": vector for i, vector in zip(IDS, queries, strict=True)},
        **more,
    )


def random_vectors(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, 32)).astype(np.float32)


def oracle(name: str = "oracle") -> Fake:
    return fake(name, random_vectors(0), random_vectors(0))


def values(scores):
    return {score.measure: score.value for score in scores}


def test_the_fake_is_an_encoder():
    assert isinstance(oracle(), Encoder)


def test_an_oracle_scores_one(tiny):
    scores = evaluate(oracle(), tiny, "teacher")
    assert values(scores) == {"ndcg@10": 1.0, "recall@100": 1.0}
    for score in scores:
        assert score.per_query == {f"q{i}": 1.0 for i in IDS}
        assert (score.dataset, score.task, score.mode, score.num_queries) == (
            "tiny",
            "retrieval",
            "teacher",
            N,
        )
        assert (score.encoder, score.queries, score.documents) == ("oracle", "oracle", "oracle")
        assert score.dataset_digest == tiny.digest
        assert "commit" in score.provenance


def test_a_random_encoder_scores_at_chance(tiny):
    # Anywhere among 200: nDCG@10 = Σ_{r ≤ 10} 1/log2(r + 1) / 200 = 4.54 / 200, and recall@100 = 1/2.
    found = values(evaluate(fake("random", random_vectors(1), random_vectors(2)), tiny, "standard"))
    assert found["ndcg@10"] == pytest.approx(0.0227, abs=0.02)
    assert found["recall@100"] == pytest.approx(0.5, abs=0.1)


def test_shuffled_documents_score_near_nothing(tiny):
    vectors = random_vectors(0)
    found = values(evaluate(fake("shuffled", vectors, np.roll(vectors, 1, axis=0)), tiny, "standard"))
    assert found["ndcg@10"] < 0.06


def test_an_encoder_that_is_off_by_one_scores_what_rank_two_is_worth(tiny):
    documents = np.eye(N, dtype=np.float32)
    queries = 0.9 * documents + np.roll(documents, 1, axis=0)
    found = values(evaluate(fake("second", queries, documents), tiny, "standard"))
    assert found["ndcg@10"] == pytest.approx(1 / math.log2(3))


def test_similarity_is_the_encoders(tiny):
    # Every vector points the right way, and document 0 is long: it wins all dot products that are above zero.
    documents = np.eye(N, dtype=np.float32)
    queries = documents + 0.1
    documents[0] *= 1000
    assert values(evaluate(fake("c", queries, documents), tiny, "standard"))["ndcg@10"] == 1.0
    found = values(evaluate(fake("d", queries, documents, similarity="dot"), tiny, "standard"))
    assert found["ndcg@10"] == pytest.approx((1 + (N - 1) / math.log2(3)) / N)


def test_the_query_itself_is_no_hit(write_beir):
    texts = {"a": "claim", "b": "answer", "c": "noise"}
    dataset = load(write_beir(texts, {"a": "claim"}, {"a": {"b": 1}}))
    table = {"claim": [1, 0], "answer": [0.9, 0.1], "noise": [0, 1]}
    assert values(evaluate(Fake("e", table, table), dataset, "teacher"))["ndcg@10"] == 1.0


def test_scores_equal_pytrec_eval_from_vectors_on(tiny):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    rng = np.random.default_rng(5)
    qrels = {q: {str(d): int(rng.integers(0, 3)) for d in rng.choice(IDS, 30)} for q in tiny.queries}
    qrels = {q: {f"d{d}": score for d, score in judged.items()} for q, judged in qrels.items()}
    dataset = RetrievalSet("graded", tiny.queries, tiny.documents, qrels)
    queries, documents = random_vectors(6), random_vectors(7)
    [ndcg, recall] = evaluate(fake("e", queries, documents, similarity="dot"), dataset, "standard")
    top = np.argsort(-(queries @ documents.T), axis=1)[:, :100]
    run = {f"q{IDS[i]}": {f"d{IDS[j]}": float(queries[i] @ documents[j]) for j in row} for i, row in enumerate(top)}
    expected = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.100"}).evaluate(run)
    assert ndcg.per_query == pytest.approx({q: e["ndcg_cut_10"] for q, e in expected.items()}, abs=1e-6)
    assert recall.per_query == pytest.approx({q: e["recall_100"] for q, e in expected.items()}, abs=1e-6)


def test_asymmetric_search_takes_queries_of_one_and_documents_of_the_other(tiny):
    good, random = random_vectors(0), random_vectors(1)
    student = fake("student", good, random)
    teacher = fake("teacher", random, good)
    assert values(evaluate(student, tiny, "standard"))["ndcg@10"] < 0.06
    scores = evaluate(AsymmetricEncoder(student, teacher), tiny, "asymmetric")
    assert values(scores)["ndcg@10"] == 1.0
    assert {(s.encoder, s.queries, s.documents) for s in scores} == {("student | teacher", "student", "teacher")}
    assert student.encoded == {"query": 2 * N, "document": N}
    assert teacher.encoded == {"document": N}


def on_circle(*degrees: float) -> list[list[float]]:
    return [[math.cos(math.radians(angle)), math.sin(math.radians(angle))] for angle in degrees]


@pytest.fixture
def pairs() -> StsSet:
    return StsSet("pairs", (("a", "x"), ("b", "y"), ("c", "z")), (5.0, 3.0, 1.0))


@pytest.mark.parametrize(
    ("angles", "expected"),
    [
        ((10, 50, 80), 1.0),
        ((80, 50, 10), -1.0),
        ((10, 80, 50), 0.5),  # two neighbours swapped in three: 1 − 6·2 / (3·8)
    ],
)
def test_sts_is_the_rank_correlation_of_cosines_of_documents(pairs, angles, expected):
    # Sentence 1 lies at 0°, and is of another length each time, which a dot product would see.
    table = dict(zip("xyz", on_circle(*angles), strict=True)) | {"a": [1, 0], "b": [9, 0], "c": [99, 0]}
    encoder = Fake("e", table, similarity="dot")
    [score] = evaluate(encoder, pairs, "standard")
    assert score.value == pytest.approx(expected)
    assert (score.task, score.measure, score.num_queries, score.per_query) == ("sts", "spearman", 3, {})
    cosines = [math.cos(math.radians(angle)) for angle in angles]
    assert [gold for _, gold in score.pairs] == [5.0, 3.0, 1.0]
    assert [similarity for similarity, _ in score.pairs] == pytest.approx(cosines, abs=1e-6)
    assert encoder.encoded == {"document": 6}


def test_sts_of_a_pair_is_that_of_its_query_encoder(pairs):
    student = Fake("s", dict(zip("abcxyz", on_circle(0, 0, 0, 10, 80, 50), strict=True)))
    teacher = Fake("t", dict(zip("abcxyz", on_circle(0, 0, 0, 10, 50, 80), strict=True)))
    [score] = evaluate(AsymmetricEncoder(student, teacher), pairs, "asymmetric")
    assert score.value == pytest.approx(0.5)
    assert (score.queries, score.documents) == ("s", "s")
    assert not teacher.encoded


def test_an_encoder_that_answers_all_texts_alike_has_no_sts_score(pairs):
    with pytest.raises(LeafError, match=r"flat on pairs: .*all values of one side are equal"):
        evaluate(Fake("flat", {text: [1, 0] for text in "abcxyz"}), pairs, "standard")


def test_every_side_is_encoded_once_however_often_it_is_used(tiny, pairs):
    teacher, small, tiny_one = oracle("teacher"), oracle("small"), oracle("tiny-one")
    for encoder in (teacher, small, tiny_one):
        encoder.tables["document"] |= dict(zip("abcxyz", random_vectors(9), strict=False))
    cache = VectorCache()
    evaluate_all(teacher, {"small": small, "tiny": tiny_one}, [tiny, pairs], bm25=False, cache=cache)
    for encoder in (teacher, small, tiny_one):
        assert encoder.encoded == {"query": N, "document": N + 6}
    examples(["query 003"], teacher, {"small": small}, tiny, cache)
    assert teacher.encoded == {"query": N + 1, "document": N + 6}
    assert small.encoded == {"query": N + 2, "document": N + 6}


def test_the_cache_tells_encoders_and_datasets_of_one_name_apart(tiny):
    cache = VectorCache()
    assert values(evaluate(oracle("e"), tiny, "teacher", cache))["ndcg@10"] == 1.0
    other = fake("e", random_vectors(1), random_vectors(2))
    assert values(evaluate(other, tiny, "teacher", cache))["ndcg@10"] < 0.06
    swapped = RetrievalSet("tiny", tiny.documents, tiny.documents, {d: {d: 1} for d in tiny.documents})
    assert cache.holds(other, swapped, "documents")  # the same texts in the same role
    assert not cache.holds(other, swapped, "queries")


def test_all_systems_are_scored_on_all_datasets_and_recorded_under_the_callers_names(tiny, pairs, tmp_path):
    pytest.importorskip("bm25s")
    teacher = fake("teacher", random_vectors(1), random_vectors(0))
    student = fake("all students are called this", random_vectors(0), random_vectors(2))
    for encoder in (teacher, student):
        encoder.tables["document"] |= dict(zip("abcxyz", random_vectors(9), strict=False))
    records = evaluate_all(teacher, {"student-1l": student, "student-2l": student}, [tiny, pairs])
    found = {(r.dataset, r.mode, r.encoder, r.queries, r.documents, r.measure) for r in records}
    expected = set()
    for measure in ("ndcg@10", "recall@100"):
        expected.add(("tiny", "bm25", "bm25", "bm25", "bm25", measure))
        expected.add(("tiny", "teacher", "teacher", "teacher", "teacher", measure))
        for name in ("student-1l", "student-2l"):
            expected.add(("tiny", "standard", name, name, name, measure))
            expected.add(("tiny", "asymmetric", name, name, "teacher", measure))
    expected.add(("pairs", "teacher", "teacher", "teacher", "teacher", "spearman"))
    for name in ("student-1l", "student-2l"):
        for mode in ("standard", "asymmetric"):
            expected.add(("pairs", mode, name, name, name, "spearman"))
    assert found == expected
    assert len(records) == len(expected)

    value = {(r.dataset, r.mode, r.measure): r.value for r in records if r.encoder != "student-2l"}
    assert value["tiny", "asymmetric", "ndcg@10"] == 1.0
    assert value["tiny", "standard", "ndcg@10"] < 0.06
    # "query 007" shares its number, which two characters or more make a word, with "document 007" alone.
    assert value["tiny", "bm25", "ndcg@10"] == 1.0
    assert value["pairs", "standard", "spearman"] == value["pairs", "asymmetric", "spearman"]

    write(records, tmp_path / "scores")
    again = {record.filename: record for record in read(tmp_path / "scores")}
    assert again == {record.filename: record for record in records}
    one = again["tiny.asymmetric.student-1l.ndcg@10.json"].per_query
    assert retention(one, one) == (100, 100, 100)


def test_two_datasets_of_one_name_and_students_of_another_width_are_refused_before_encoding(tiny):
    teacher = oracle()
    with pytest.raises(LeafError, match="two datasets are called 'tiny'"):
        evaluate_all(teacher, {}, [tiny, tiny])
    narrow = fake("narrow", random_vectors(0)[:, :5], random_vectors(0)[:, :5])
    with pytest.raises(LeafError, match="they do not share a vector space"):
        evaluate_all(teacher, {"narrow": narrow}, [tiny])
    assert not teacher.encoded


@pytest.mark.parametrize(("bad", "name"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "inf")])
def test_vectors_that_are_not_numbers_are_never_scored(tiny, bad, name):
    vectors = random_vectors(0)
    broken = vectors.copy()
    broken[17, 3] = bad
    with pytest.raises(LeafError, match=rf"broken: {name} in vector 17 of documents of tiny \(1 such in 200\)"):
        evaluate(fake("broken", vectors, broken), tiny, "teacher")
    with pytest.raises(LeafError, match=f"broken: {name} in vector 17 of queries of tiny"):
        evaluate(fake("broken", broken, vectors), tiny, "teacher")


def test_too_few_vectors_are_refused(tiny):
    encoder = oracle()
    encoder.encode_query = lambda texts, **_: random_vectors(0)[1:]
    with pytest.raises(LeafError, match=r"vectors of shape \(199, 32\) for queries of tiny, expected \(200, 32\)"):
        evaluate(encoder, tiny, "teacher")


def test_examples_show_what_each_system_finds_and_how_much_the_teacher_agrees(tiny):
    good = np.eye(N, dtype=np.float32) + np.linspace(0, 0.1, N, dtype=np.float32)
    teacher = fake("teacher", good, good)
    student = fake("s", good, random_vectors(3) @ np.ones((32, N), np.float32))
    [example] = examples(["query 005"], teacher, {"student": student}, tiny)
    assert (example["query"], example["dataset"]) == ("query 005", "tiny")
    assert [(a["encoder"], a["mode"]) for a in example["answers"]] == [
        ("teacher", "teacher"),
        ("student", "asymmetric"),
        ("student", "standard"),
    ]
    of_teacher, asymmetric, standard = example["answers"]
    assert of_teacher["documents"][0]["id"] == "d005"
    assert of_teacher["documents"][0]["text"] == "document 005"
    assert of_teacher["documents"][0]["score"] == pytest.approx(1, abs=1e-6)
    assert asymmetric["documents"] == of_teacher["documents"]
    assert (of_teacher["overlap"], asymmetric["overlap"]) == (10, 10)
    shared = {d["id"] for d in standard["documents"]} & {d["id"] for d in of_teacher["documents"]}
    assert standard["overlap"] == len(shared) < 10
    assert examples([], teacher, {}, tiny) == []


def test_examples_show_the_beginning_of_long_documents():
    corpus = RetrievalSet("c", {}, {"d": "x" * 500}, {})
    [example] = examples(["q"], Fake("t", {"x" * 500: [1, 0]}, {"q": [1, 0]}), {}, corpus)
    assert example["answers"][0]["documents"][0]["text"] == "x" * 99 + "…"


def test_one_bar_counts_every_text_that_is_to_be_encoded(tiny, pairs, monkeypatch):
    bars = []

    class Recorder:
        def __init__(self, total):
            self.total, self.done = total, 0

        def advance(self, count=1, note=None):
            self.done += count

    @contextmanager
    def recording(description, total, completed=0):
        bars.append(Recorder(total))
        yield bars[-1]

    for module in ("evaluate", "examples"):
        monkeypatch.setattr(f"leaf.evaluation.{module}.progress", recording)
    teacher, student = oracle("teacher"), oracle("student")
    for encoder in (teacher, student):
        encoder.tables["document"] |= dict(zip("abcxyz", random_vectors(9), strict=False))
    cache = VectorCache()
    evaluate_all(teacher, {"student": student}, [tiny, pairs], bm25=False, cache=cache)
    evaluate(student, tiny, "standard", cache)
    examples(["query 003"], oracle(), {"student": student}, tiny, cache)
    assert [bar.total for bar in bars] == [2 * (2 * N + 6), 0, N]
    assert all(bar.done == bar.total for bar in bars)


def test_evaluation_loads_no_torch():
    code = "import sys, leaf.evaluation.evaluate; print({'torch', 'sentence_transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
