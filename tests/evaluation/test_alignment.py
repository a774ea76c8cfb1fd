"""Alignment: worked by hand, beside scipy, and with students that are wrong on purpose."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from leaf.encoder import Encoder, Vectors
from leaf.errors import LeafError
from leaf.evaluation import alignment as module
from leaf.evaluation.alignment import Alignment, align, alignment_of
from leaf.evaluation.statistics import difference

DIM = 24
QUERIES = [f"query {number}" for number in range(60)]
DOCUMENTS = [f"document {number}" for number in range(400)]


class Hashed:
    """A vector for every text: random, the same each time, the same for both roles. `change` maps `[n, dim]`."""

    similarity: Any = "cosine"

    def __init__(self, name: str, change: Callable[[Vectors], Vectors] = lambda vectors: vectors, dim: int = DIM):
        self.name, self.dim, self.change = name, dim, change
        self.seen: list[list[str]] = []

    def encode_query(self, texts: Sequence[str], *, batch_size: int = 32, advance: Any = None) -> Vectors:
        self.seen.append(list(texts))
        return self.change(np.stack([self._vector(text) for text in texts]))

    encode_document = encode_query

    def _vector(self, text: str) -> Vectors:
        seed = int.from_bytes(text.encode(), "little")
        return np.random.default_rng(seed).normal(size=self.dim).astype(np.float32)


def rotation(seed: int = 0) -> Vectors:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(DIM, DIM)))[0].astype(np.float32)


def noise(size: float) -> Callable[[Vectors], Vectors]:
    rng = np.random.default_rng(1)
    return lambda vectors: (vectors + size * rng.normal(size=vectors.shape)).astype(np.float32)


def near(value: float, tolerance: float = 1e-6) -> Any:
    return pytest.approx(value, abs=tolerance)


TEACHER = Hashed("teacher")
NONE = np.empty((0, 2), np.float32)


def measure(student: Encoder, **options: Any) -> Alignment:
    return align(student, TEACHER, QUERIES, DOCUMENTS, **options)


def test_distance_and_cosine_are_those_worked_by_hand():
    teacher = np.array([[1, 0], [0, 2], [3, 4]], np.float32)
    student = np.array([[1, 0], [0, 1], [0, 0]], np.float32)
    found = alignment_of(student, teacher, NONE, NONE).queries
    # ε: 0; 2 − 1 = 1; |(3, 4)| = 5. Cosine: 1; 1, since length does not matter; 0, since a zero vector has none.
    assert found.error.mean.value == near(2)
    assert found.error.quantiles == {"5": near(0.1), "25": near(0.5), "50": near(1), "75": near(3), "95": near(4.6)}
    assert found.cosine.mean.value == near(2 / 3)
    assert found.cosine_percentiles[0] == 0
    assert found.cosine_percentiles[100] == near(1)
    # With the teacher's vector before: (1, 0)·(3, 4)/5 = 0.6; (0, 1)·(1, 0) = 0; 0.
    assert found.unrelated_cosine == near(0.2)
    assert found.teacher_length == near((1 + 2 + 5) / 3)


def test_queries_and_documents_together_count_every_text_the_same():
    def ones(count: int) -> Vectors:
        return np.tile(np.array([[1, 0]], np.float32), (count, 1))

    found = alignment_of(ones(1), 2 * ones(1), ones(3), 4 * ones(3), top_k=1)
    assert (found.queries.error.mean.value, found.documents.error.mean.value) == (near(1), near(3))
    assert found.texts.num_texts == 4
    assert found.texts.error.mean.value == near(2.5)  # (1 + 3 + 3 + 3) / 4


def test_overlap_and_first_document_are_those_worked_by_hand():
    documents = np.array([[1, 0], [0.8, 0.6], [0, 1], [-1, 0]], np.float32)
    swapped = documents[[2, 1, 0, 3]]
    queries = np.array([[1, 0.1], [0.1, 1]], np.float32)
    student = np.array([[1, 0.1], [1, 0.1]], np.float32)
    found = alignment_of(student, queries, swapped, documents, top_k=2)
    # Teacher: query 0 finds {0, 1}, query 1 {2, 1}. The student asks both times as query 0 and finds {0, 1} in the
    # teacher's documents, {2, 1} among its own.
    assert found.asymmetric.overlap.value == near((1 + 0.5) / 2)
    assert found.asymmetric.same_first.value == near(0.5)
    assert found.standard.overlap.value == near((0.5 + 1) / 2)
    assert found.standard.same_first.value == near(0.5)
    assert found.advantage.value == near(0)
    assert found.chance == near(0.5)


def test_rank_correlation_is_spearmans_over_the_teachers_first_hundred():
    rng = np.random.default_rng(3)
    teacher_queries, teacher_documents = rng.normal(size=(9, DIM)), rng.normal(size=(300, DIM))
    student_queries = teacher_queries + 0.8 * rng.normal(size=(9, DIM))
    student_documents = teacher_documents + 0.8 * rng.normal(size=(300, DIM))
    arrays = (student_queries, teacher_queries, student_documents, teacher_documents)
    found = alignment_of(*(each.astype(np.float32) for each in arrays), similarity="dot")

    def expected(queries: Any, documents: Any) -> float:
        values = []
        for query, own in zip(teacher_queries, queries, strict=True):
            first = np.argsort(-(teacher_documents @ query))[:100]
            values.append(spearmanr(teacher_documents[first] @ query, documents[first] @ own).statistic)
        return float(np.mean(values))

    asymmetric, standard = expected(student_queries, teacher_documents), expected(student_queries, student_documents)
    assert 0.3 < standard < asymmetric < 0.9
    assert found.asymmetric.rank_correlation.value == near(asymmetric, 1e-4)
    assert found.standard.rank_correlation.value == near(standard, 1e-4)


def test_queries_without_an_order_are_left_out_of_the_correlation_and_counted():
    documents = np.eye(3, 4, dtype=np.float32)
    teacher = np.array([[3, 2, 1, 0], [1, 2, 3, 0]], np.float32)
    student = np.array([[3, 2, 1, 0], [0, 0, 0, 1]], np.float32)  # the second is at a right angle to all documents
    found = alignment_of(student, teacher, documents, documents, top_k=1).asymmetric
    assert (found.rank_correlation.value, found.num_correlated) == (near(1), 1)
    nothing = alignment_of(0 * student, teacher, documents, documents, top_k=1).asymmetric
    assert (nothing.rank_correlation, nothing.num_correlated) == (None, 0)


def test_blocks_change_nothing(monkeypatch):
    queries, documents = TEACHER.encode_query(QUERIES), TEACHER.encode_document(DOCUMENTS)
    arrays = noise(0.5)(queries), queries, noise(0.5)(documents), documents
    once = alignment_of(*arrays)
    monkeypatch.setattr(module, "DOCUMENT_BLOCK", 37)  # fewer than the candidates, and 400 is no multiple of it
    monkeypatch.setattr(module, "QUERY_BLOCK", 7)
    blocks = alignment_of(*arrays)
    assert 0.1 < once.standard.overlap.value < once.asymmetric.overlap.value < 0.9
    for mode in ("asymmetric", "standard"):
        one, other = getattr(once, mode), getattr(blocks, mode)
        assert (one.overlap, one.same_first) == (other.overlap, other.same_first)
        assert one.rank_correlation.value == near(other.rank_correlation.value)
    assert blocks.texts.error == once.texts.error
    assert blocks.worst == once.worst


def test_documents_are_encoded_block_by_block(monkeypatch):
    monkeypatch.setattr(module, "DOCUMENT_BLOCK", 100)
    student = Hashed("student")
    measure(student)
    assert [len(texts) for texts in student.seen] == [60, 100, 100, 100, 100]


def test_a_student_equal_to_its_teacher_agrees_in_everything():
    found = measure(Hashed("same"))
    assert found.texts.error.quantiles["95"] == 0
    assert found.texts.cosine.mean.value == near(1)
    for mode in (found.asymmetric, found.standard):
        assert (mode.overlap.value, mode.overlap.low, mode.same_first.value) == (1, 1, 1)
        assert mode.rank_correlation.value == near(1)
        assert mode.num_correlated == 60
    assert found.advantage.value == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda vectors: np.random.default_rng(len(vectors)).normal(size=vectors.shape).astype(np.float32),
        lambda vectors: vectors[::-1],  # 60 and 400 are even: no text keeps its own
        lambda vectors: np.roll(vectors, 1, axis=0),
        lambda vectors: np.roll(vectors, 1, axis=1),
    ],
    ids=["random", "reversed", "one text off", "one dimension off"],
)
def test_a_wrong_student_looks_wrong(change):
    found = measure(Hashed("wrong", change))
    # 60 queries × 10 of 400 documents by chance: 15 hits expected, so 0.025 ± 0.0065 (one standard deviation).
    assert found.chance == near(10 / 400)
    assert found.asymmetric.overlap.value < 0.06
    assert abs(found.asymmetric.rank_correlation.value) < 0.06  # 1 / √(60 · 99) = 0.013
    for kind in (found.queries, found.documents):
        assert abs(kind.cosine.mean.value) < 0.1
        assert kind.error.mean.value > kind.teacher_length


def test_a_rotated_student_ranks_by_itself_but_not_in_the_teachers_index():
    turn = rotation()
    found = measure(Hashed("rotated", lambda vectors: vectors @ turn))
    assert found.standard.overlap.value > 0.999  # but for rounding
    assert found.standard.rank_correlation.value > 0.999
    assert found.asymmetric.overlap.value < 0.06
    assert found.advantage.high < -0.9


def test_the_nearer_student_agrees_more():
    near_one, far_one = measure(Hashed("near", noise(0.2))), measure(Hashed("far", noise(0.8)))
    assert near_one.texts.error.mean.high < far_one.texts.error.mean.low
    assert near_one.asymmetric.overlap.low > far_one.asymmetric.overlap.high


def test_ties_go_to_the_document_given_first_and_negative_zero_is_zero():
    query = np.array([[1, 0]], np.float32)
    documents = np.array([[0.0, 1], [-0.0, 1], [-0.0, -1], [-1, 0]], np.float32)
    found = alignment_of(query, query, documents, documents, top_k=2, query_texts=["q"], document_texts=[*"abcd"])
    teacher, *others = found.examples[0]["answers"]
    assert [each["id"] for each in teacher["documents"]] == ["0", "1"]
    assert [each["overlap"] for each in others] == [2, 2]


def test_a_text_counts_once_however_often_it_is_given():
    student = Hashed("student", noise(0))
    found = align(student, TEACHER, [*QUERIES, QUERIES[3]], [*DOCUMENTS[:50], *DOCUMENTS])
    assert (found.queries.num_texts, found.documents.num_texts, found.num_duplicates) == (60, 400, 51)
    assert [len(texts) for texts in student.seen] == [60, 400]


def test_rows_are_those_of_the_given_list():
    def far(vectors: Vectors) -> Vectors:
        return vectors if len(vectors) == 60 else np.concatenate([vectors[:-1], -vectors[-1:]])

    found = align(Hashed("student", far), TEACHER, QUERIES, ["document 0", *DOCUMENTS])  # the last is now row 400
    worst = found.worst["document"][0]
    assert (worst.row, worst.text, worst.cosine) == (400, "document 399", near(-1))
    assert [each.row for each in found.worst["query"]] == [0, 1, 2, 3, 4]  # all ε 0: the first are named
    same = align(Hashed("same"), TEACHER, QUERIES, ["document 0", *DOCUMENTS])
    assert [each.row for each in same.worst["document"]] == [0, 2, 3, 4, 5]  # row 1 is row 0 again
    assert all(hit["text"] == ["document 0", *DOCUMENTS][int(hit["id"])] for hit in hits(found))


def hits(found: Alignment) -> list[dict[str, Any]]:
    return [hit for example in found.examples for answer in example["answers"] for hit in answer["documents"]]


def test_long_texts_are_cut_where_they_are_shown():
    found = align(Hashed("student"), TEACHER, ["q " * 100], [f"{number} " + "d" * 200 for number in range(11)])
    assert len(found.worst["query"][0].text) == 100
    assert {len(hit["text"]) for hit in hits(found)} == {100}


def test_examples_reach_from_the_worst_query_to_the_best():
    found = measure(Hashed("student", noise(0.6)), num_examples=3)
    overlaps = [example["answers"][1]["overlap"] for example in found.examples]
    assert overlaps == sorted(overlaps)
    assert overlaps[0] < overlaps[1] < overlaps[2]
    for example in found.examples:
        assert [answer["mode"] for answer in example["answers"]] == ["teacher", "asymmetric", "standard"]
        teachers = {hit["id"] for hit in example["answers"][0]["documents"]}
        for answer in example["answers"]:
            assert answer["overlap"] == len(teachers & {hit["id"] for hit in answer["documents"]})
            scores = [hit["score"] for hit in answer["documents"]]
            assert scores == sorted(scores, reverse=True)
    assert len(measure(TEACHER, num_examples=1).examples) == 1
    assert measure(TEACHER, num_examples=0).examples == []


def test_without_queries_or_enough_documents_there_are_distances_and_no_rankings():
    # Any search finds all of 10 documents in its top 10: there is nothing to compare either.
    for queries, documents in ((QUERIES, []), ([], DOCUMENTS), (QUERIES, DOCUMENTS[:10])):
        found = align(Hashed("student", noise(0.5)), TEACHER, queries, documents)
        assert (found.queries is None, found.documents is None) == (not queries, not documents)
        assert found.texts.error.mean.value > 0
        assert (found.asymmetric, found.standard, found.advantage, found.chance) == (None,) * 4
        assert found.examples == []
        json.dumps(asdict(found), allow_nan=False)


def test_a_single_text_has_no_interval():
    found = align(Hashed("student", noise(0.5)), TEACHER, QUERIES[:1], DOCUMENTS)
    assert (found.queries.error.mean.low, found.asymmetric.overlap.high) == (None, None)
    assert found.queries.unrelated_cosine is None
    assert found.documents.error.mean.low < found.documents.error.mean.value < found.documents.error.mean.high


def test_the_interval_of_many_texts_is_the_one_the_bootstrap_gives():
    values = np.random.default_rng(0).gamma(2, size=module.NORMAL_FROM)  # skewed, as distances are
    quick, slow = module.mean_with_interval(values), difference(values, np.zeros(len(values)))
    width = slow.high - slow.low
    assert quick.value == near(slow.value)
    assert (quick.low, quick.high) == (near(slow.low, 0.05 * width), near(slow.high, 0.05 * width))
    rare = np.zeros(2000)
    rare[0] = 1
    assert module.mean_with_interval(rare).low == 0  # a share is never negative


def test_the_result_is_plain_json_and_the_same_each_time():
    first, second = (json.dumps(asdict(measure(Hashed("student", noise(0.5)))), allow_nan=False) for _ in range(2))
    assert first == second
    assert json.loads(first)["asymmetric"]["overlap"].keys() == {"value", "low", "high"}


@pytest.mark.parametrize(
    ("queries", "documents", "options", "message"),
    [
        ([], [], {}, "no queries and no documents"),
        (["q"], DOCUMENTS, {"top_k": 0}, "top_k is 0, expected at least 1"),
        (["q", " "], DOCUMENTS, {}, r"number 1 \(from 0\) of the queries is empty"),
        ("how do I", DOCUMENTS, {}, "queries is one string"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_encoded(queries, documents, options, message):
    student = Hashed("student")
    with pytest.raises(LeafError, match=message):
        align(student, TEACHER, queries, documents, **options)
    assert student.seen == []


def test_encoders_that_answer_nonsense_are_named():
    with pytest.raises(LeafError, match="do not share a vector space"):
        measure(Hashed("narrow", dim=8))
    with pytest.raises(LeafError, match=r"short: vectors of shape \(59, 24\) for query texts, expected \(60, 24\)"):
        measure(Hashed("short", lambda vectors: vectors[1:]))
    with pytest.raises(LeafError, match="broken: NaN or infinity in 60 vectors of queries"):
        measure(Hashed("broken", lambda vectors: vectors * np.float32("nan")))


def test_arrays_that_do_not_belong_together_are_refused():
    two, three = np.ones((2, 4), np.float32), np.ones((3, 4), np.float32)
    with pytest.raises(LeafError, match="queries: 2 vectors by the student, 3 by the teacher, 0 texts"):
        alignment_of(two, three, two, two)
    with pytest.raises(LeafError, match="documents: 3 vectors by the student, 3 by the teacher, 1 texts"):
        alignment_of(two, two, three, three, document_texts=["d"])
    with pytest.raises(LeafError, match=r"rows of shape \[\(4,\), \(5,\)\], expected four arrays"):
        alignment_of(two, two, np.ones((3, 5), np.float32), three)
