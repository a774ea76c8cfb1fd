"""Curves against brute force in integers, pytrec_eval, and encoders that are wrong on purpose."""

import json
import weakref

import numpy as np
import pytest
import pytrec_eval

from leaf.compression import PRECISIONS, Compressed, Int8, sample
from leaf.encoder import AsymmetricEncoder, normalised
from leaf.errors import LeafError
from leaf.evaluation import curves as curves_module
from leaf.evaluation.curves import Curves, Point, SetVectors, measure, read, summarise, write
from leaf.evaluation.datasets import RetrievalSet
from leaf.evaluation.measures import ndcg
from leaf.evaluation.retrieval import retrieve
from leaf.evaluation.statistics import Interval, mean_retention, retention

DIM = 32
RESAMPLES = 200


class Fixed:
    """An encoder whose vectors are given."""

    def __init__(self, name, queries, documents):
        self.name, self.dim, self.similarity = name, queries.shape[1], "cosine"
        self.queries, self.documents = queries, documents

    def encode_query(self, texts, *, batch_size=32, advance=None):
        return self.queries

    def encode_document(self, texts, *, batch_size=32, advance=None):
        return self.documents


def space(name="set", seed=0, num_documents=120, num_queries=25, noise=0.25):
    """A set whose query i is document i with noise, in a space of decaying variances, and a student of its teacher.

    Relevant are document i (2) and the nearest other one (1). Query 0 has the id of its document, which is
    then its copy and not an answer.
    """
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, DIM + 1) ** -0.7

    def drawn(count):
        return rng.normal(size=(count, DIM)) * spectrum

    documents = drawn(num_documents)
    queries = documents[:num_queries] + noise * drawn(num_queries)
    student = [normalised((each + 0.2 * drawn(len(each))).astype(np.float32)) for each in (queries, documents)]
    queries, documents = (normalised(each.astype(np.float32)) for each in (queries, documents))
    near = np.argsort(-documents[:num_queries] @ documents.T, axis=1)[:, 1]
    ids = [f"d{row}" for row in rng.permutation(num_documents)]
    query_ids = [ids[0], *(f"q{row}" for row in range(1, num_queries))]
    qrels = {query: {ids[row]: 2.0, ids[near[row]]: 1.0} for row, query in enumerate(query_ids)}
    dataset = RetrievalSet(name, dict.fromkeys(query_ids, "a"), dict.fromkeys(ids, "b"), qrels)
    return SetVectors(dataset, queries, documents, {"student": tuple(student)})


def measured(sets, dims=(DIM, 8), precisions=PRECISIONS, **settings) -> Curves:
    sets = list(sets)
    calibration = settings.pop("calibration", None)
    if calibration is None:
        calibration = sample(each.teacher_documents for each in sets)
    return measure(
        "teacher", sets, dims=dims, precisions=precisions, calibration=calibration, resamples=RESAMPLES, **settings
    )


def values(curves):
    return {(p.dataset, p.encoder, p.mode, *p.size): p.value for p in curves.points}


def sides(vectors):
    """(mode, queries, documents) of the three systems."""
    queries, documents = vectors.students["student"]
    return (
        ("teacher", vectors.teacher_queries, vectors.teacher_documents),
        ("standard", queries, documents),
        ("asymmetric", queries, vectors.teacher_documents),
    )


def integers(queries, documents, dim, precision, limit):
    """What a database would compute, from scratch in int64."""

    def unit(vectors):
        cut = vectors[:, :dim].astype(np.float64)
        return cut / np.linalg.norm(cut, axis=1, keepdims=True)

    def int8(vectors):
        return np.rint(unit(vectors) * 127 / limit).clip(-127, 127).astype(np.int64)

    if precision == "int8":
        return int8(queries) @ int8(documents).T
    if precision == "int8xbinary":
        return int8(queries) @ np.where(documents[:, :dim] > 0, 1, -1).T
    if precision == "binary":
        bits = [np.packbits(each[:, :dim] > 0, axis=1) for each in (queries, documents)]
        return dim - 2 * np.bitwise_count(bits[0][:, None] ^ bits[1][None]).sum(axis=2, dtype=np.int64)
    return unit(queries) @ unit(documents).T


def test_every_point_is_what_brute_force_and_trec_eval_say():
    vectors = space()
    curves = measured([vectors])
    ids, dataset = list(vectors.dataset.documents), vectors.dataset
    qrels = {query: {each: int(rel) for each, rel in judged.items()} for query, judged in dataset.qrels.items()}
    trec_eval = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"})
    systems = {mode: pair for mode, *pair in sides(vectors)}
    assert len(curves.points) == 2 * 4 * 3
    for point in curves.points:
        scores = integers(*systems[point.mode], *point.size, curves.calibration.get(point.dim))
        run = {
            query: {each: float(score) for each, score in zip(ids, row, strict=True) if each != query}
            for query, row in zip(dataset.queries, scores, strict=True)
        }
        expected = {query: each["ndcg_cut_10"] for query, each in trec_eval.evaluate(run).items()}
        assert point.per_query == pytest.approx(expected, abs=1e-9), point
        assert point.value == pytest.approx(np.mean(list(expected.values())))
        assert point.bytes_per_document == {"float32": 4 * point.dim, "int8": point.dim}.get(
            point.precision, point.dim / 8
        )
    # The copy of query 0 would be its first hit.
    assert all(next(iter(point.per_query.values())) < 1 for point in curves.points)
    # And the sizes do differ, so that agreement means something.
    assert len({round(value, 9) for value in values(curves).values()}) > 15


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dim", [DIM, 12])
def test_a_search_with_compressed_encoders_ranks_as_the_curves_do(dim, precision):
    vectors = space(seed=3)
    curves = measured([vectors], dims=(dim,), precisions=(precision,))
    int8 = Int8(curves.calibration[dim], dim) if dim in curves.calibration else None
    teacher, student = (
        Compressed(Fixed(name, *pair), dim, precision, int8)
        for name, pair in (
            ("teacher", (vectors.teacher_queries, vectors.teacher_documents)),
            ("student", vectors.students["student"]),
        )
    )
    dataset = vectors.dataset
    for mode, encoder in (
        ("teacher", teacher), ("standard", student), ("asymmetric", AsymmetricEncoder(student, teacher)),
    ):  # fmt: skip
        queries, documents = encoder.encode_query([]), encoder.encode_document([])
        run = retrieve(
            list(dataset.queries), list(dataset.documents), queries, documents,
            similarity=encoder.similarity, top_k=10,
        )  # fmt: skip
        point = next(p for p in curves.points if p.mode == mode and p.size == (dim, precision))
        assert point.per_query == ndcg(dataset.qrels, run, 10)


def test_blocks_do_not_change_a_point(monkeypatch):
    vectors = space()
    whole = measured([vectors])
    monkeypatch.setattr(curves_module, "DOCUMENT_BLOCK", 7)
    assert values(measured([vectors])) == values(whole)


def test_truncation_drops_trailing_dimensions_and_those_only():
    # The last 24 dimensions are so short that they cannot change who is first: for unit vectors, cosines move by less
    # than twice the product of what is cut off (and of what renormalising adds, its square).
    rng = np.random.default_rng(0)
    documents = np.concatenate([rng.normal(size=(80, 8)), 1e-3 * rng.normal(size=(80, 24))], axis=1)
    queries = documents[:20] + 0.05 * rng.normal(size=(20, 32)) * np.repeat([1, 1e-3], [8, 24])
    queries, documents = (normalised(each.astype(np.float32)) for each in (queries, documents))
    top = -np.sort(-(queries @ documents.T), axis=1)
    cut = np.linalg.norm(documents[:, 8:], axis=1).max()
    assert (top[:, 0] - top[:, 1]).min() > 8 * cut**2
    ids = [f"d{row}" for row in range(80)]
    qrels = {f"q{row}": {ids[row]: 1.0} for row in range(20)}
    dataset = RetrievalSet("set", dict.fromkeys(qrels, "a"), dict.fromkeys(ids, "b"), qrels)

    def teacher_at(queries, documents, dim):
        curves = measured([SetVectors(dataset, queries, documents, {})], dims=(dim,), precisions=("float32", "int8"))
        return [point.value for point in curves.points if point.dim == dim]

    assert teacher_at(queries, documents, 32) == [1, 1]
    assert teacher_at(queries, documents, 8) == [1, 1]
    # Turned around, 24 dimensions keep only the short ones, which hold noise as large as themselves or nothing.
    trailing = [np.ascontiguousarray(each[:, ::-1]) for each in (rng.permutation(queries), documents)]
    assert teacher_at(queries[:, ::-1], documents[:, ::-1], 32)[0] == 1
    assert max(teacher_at(*trailing, 24)) < 0.3
    noisy = queries.copy()
    noisy[:, 8:] = 1e-3 * rng.normal(size=(20, 24))
    assert teacher_at(noisy, documents, 8) == [1, 1]
    assert max(teacher_at(noisy[:, ::-1], documents[:, ::-1], 24)) < 0.3


WRONG = {
    "random": lambda each, rng: normalised(rng.normal(size=each.shape).astype(np.float32)),
    "shuffled": lambda each, rng: rng.permutation(each),
    "off by one": lambda each, rng: np.roll(each, 1, axis=0),
}


@pytest.mark.parametrize("how", WRONG)
def test_wrong_encoders_score_as_such_at_every_size(how):
    vectors = space(noise=0.1)
    right = vectors.students["student"]
    rng = np.random.default_rng(1)
    students = {
        "right": right,
        "queries": (WRONG[how](right[0], rng), right[1]),
        "documents": (right[0], WRONG[how](right[1], rng)),
    }
    curves = measured([SetVectors(vectors.dataset, vectors.teacher_queries, vectors.teacher_documents, students)])
    found = {(each.encoder, each.mode, *each.size): each.value for each in curves.summary}
    for size in {each.size for each in curves.summary}:
        teacher = found["teacher", "teacher", *size]
        assert teacher > 0.5
        for mode in ("standard", "asymmetric"):
            assert found["right", mode, *size] > 0.6 * teacher
            assert found["queries", mode, *size] < 0.3 * teacher, (mode, size)
        assert found["documents", "standard", *size] < 0.3 * teacher
        # Wrong documents of a student do no harm where the teacher's are searched.
        assert found["documents", "asymmetric", *size] == found["right", "asymmetric", *size]


def test_calibration_comes_from_the_given_vectors_and_no_student_moves_it():
    sets = [space("one"), space("two", seed=1)]
    curves = measured(sets)
    pooled = np.concatenate([each.teacher_documents for each in sets])
    cut = pooled[:, :8] / np.linalg.norm(pooled[:, :8], axis=1, keepdims=True)
    assert curves.calibration == pytest.approx({DIM: np.abs(pooled).max(), 8: np.abs(cut).max()})
    assert curves.calibration[8] > curves.calibration[DIM]  # shorter vectors are longer per dimension
    other = [
        SetVectors(
            each.dataset,
            each.teacher_queries,
            each.teacher_documents,
            {"student": tuple(100 * np.sign(part) for part in each.students["student"])},
        )
        for each in sets
    ]
    changed = measured(other)
    assert changed.calibration == curves.calibration
    for key, value in values(changed).items():
        assert key[2] != "teacher" or value == values(curves)[key]
    # One calibration for all sets: a set alone scores as it does among others.
    alone = measured(sets[:1], calibration=pooled)
    assert values(alone) == {key: value for key, value in values(curves).items() if key[0] == "one"}


def test_a_dot_product_space_is_cut_without_renormalising():
    # Cut to one dimension, (3, 4) is 3 and (1, 0) is 1 by dot product; by cosine they tie, and "b" beats "a".
    dataset = RetrievalSet("set", {"q": "x"}, {"a": "x", "b": "y"}, {"q": {"a": 1.0}})
    vectors = SetVectors(dataset, np.array([[1, 0]], np.float32), np.array([[3, 4], [1, 0]], np.float32), {})
    for similarity, expected in (("dot", 1.0), ("cosine", 1 / np.log2(3))):
        curves = measured([vectors], dims=(1,), precisions=("float32", "int8"), similarity=similarity)
        assert [p.value for p in curves.points if p.dim == 1] == pytest.approx([expected] * 2)


def test_integer_scores_beyond_float32_are_told_apart():
    # 127² · 4095 + 127 and seven more, each one less: about 2²⁶, where float32 counts in fours. In a tie the later id
    # wins, which is always the less relevant one.
    query, documents = np.full((1, 4096), 127, np.float32), np.full((8, 4096), 127, np.float32)
    query[0, -1], documents[:, -1] = 1, 127 - np.arange(8)
    relevant = {f"d{row}": 8.0 - row for row in range(8)}
    dataset = RetrievalSet("set", {"q": "x"}, dict.fromkeys(relevant, "y"), {"q": relevant})
    vectors = SetVectors(dataset, query, documents, {})
    curves = measured([vectors], dims=(4096,), precisions=("int8",), calibration=query, similarity="dot")
    assert next(point.value for point in curves.points if point.precision == "int8") == 1


def test_the_whole_vectors_are_measured_unasked_and_sizes_keep_their_order():
    curves = measured([space()], dims=(4, 16), precisions=("binary", "float32"))
    assert list(dict.fromkeys(point.size for point in curves.points)) == [
        (DIM, "float32"), (4, "binary"), (4, "float32"), (16, "binary"), (16, "float32"),
    ]  # fmt: skip
    assert curves.calibration == {}
    assert [(each.encoder, each.mode) for each in curves.summary[:3]] == [
        ("teacher", "teacher"), ("student", "standard"), ("student", "asymmetric"),
    ]  # fmt: skip


def test_a_summary_is_the_mean_over_sets_with_paired_intervals():
    sets = [space("one"), space("two", seed=1)]
    curves = measured(sets)
    points = {(p.dataset, p.mode, *p.size): p for p in curves.points}
    names = [each.dataset.name for each in sets]
    for each in curves.summary:
        own, same, full = (
            [points[name, mode, *size].per_query for name in names]
            for mode, size in ((each.mode, each.size), ("teacher", each.size), ("teacher", (DIM, "float32")))
        )
        assert each.value == pytest.approx(np.mean([np.mean(list(one.values())) for one in own]))
        assert each.of_teacher == mean_retention(list(zip(own, same, strict=True)), RESAMPLES)
        assert each.of_full_size == mean_retention(list(zip(own, full, strict=True)), RESAMPLES)
        if each.mode == "teacher":
            assert each.of_teacher == pytest.approx((100, 100, 100))
    assert any(each.of_full_size.high < 100 for each in curves.summary if each.mode == "teacher")


def test_a_student_equal_to_its_teacher_inherits_everything():
    vectors = space()
    pair = vectors.teacher_queries, vectors.teacher_documents
    curves = measured([SetVectors(vectors.dataset, *pair, {"copy": pair})])
    for each in curves.summary:
        assert each.of_teacher == pytest.approx((100, 100, 100))


def hand(dataset, mode, dim, *scores):
    encoder = "teacher" if mode == "teacher" else "student"
    per_query = {f"q{i}": score for i, score in enumerate(scores)}
    return Point(dataset, encoder, mode, dim, "float32", 4 * dim, sum(scores) / len(scores), per_query)


def test_where_the_teacher_finds_nothing_there_is_no_retention():
    points = [
        hand("good", "teacher", 8, 0.8, 0.4), hand("good", "standard", 8, 0.4, 0.2),
        hand("bad", "teacher", 8, 0.0, 0.0), hand("bad", "standard", 8, 0.5, 0.5),
        hand("good", "teacher", 2, 0.0, 0.0), hand("good", "standard", 2, 0.3, 0.3),
        hand("bad", "teacher", 2, 0.1, 0.0), hand("bad", "standard", 2, 0.0, 0.0),
    ]  # fmt: skip
    found = {(each.mode, each.dim): each for each in summarise(points, 8, RESAMPLES)}
    assert found["standard", 8].value == pytest.approx(0.4)  # the mean of 0.3 and 0.5 is over both sets
    assert found["standard", 8].of_teacher == Interval(50, 50, 50)  # retention is over the good one
    assert found["standard", 2].of_teacher is None
    assert found["standard", 2].of_full_size == retention([0.3, 0.3], [0.8, 0.4], RESAMPLES)
    assert found["teacher", 2].of_full_size.value == 0
    nothing = summarise([hand("bad", "teacher", 8, 0.0), hand("bad", "standard", 8, 0.5)], 8)
    assert {each.of_full_size for each in nothing} == {None}


def test_curves_come_back_from_disk(tmp_path):
    curves = measured([space("one"), space("two", seed=1)])
    write(curves, tmp_path / "scores" / "curves.json")
    text = (tmp_path / "scores" / "curves.json").read_text()
    back = read(tmp_path / "scores" / "curves.json")
    for name in ("teacher", "dim", "similarity", "calibration", "digests", "provenance", "students"):
        assert getattr(back, name) == getattr(curves, name), name
    assert back.students == ["student"]
    for old, new in zip(curves.points, back.points, strict=True):
        assert new.per_query == pytest.approx(old.per_query, abs=5.1e-7)
        assert (new.value, new.size, new.mode, new.dataset) == (old.value, old.size, old.mode, old.dataset)
        assert list(new.per_query) == list(old.per_query)
    for before, after in zip(curves.summary, back.summary, strict=True):
        assert isinstance(after.of_teacher, Interval)
        assert after.of_teacher == pytest.approx(before.of_teacher, abs=5.1e-7)
        assert after.of_full_size == pytest.approx(before.of_full_size, abs=5.1e-7)
    # Query ids stand once per set, and a point is one line.
    assert text.count('"q7"') == 2
    assert len(text.splitlines()) < 2 * len(curves.points) + 20
    write(back, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == text


@pytest.mark.parametrize("damage", ["cut", "key", "query", "gone"])
def test_damaged_curves_are_refused(tmp_path, damage):
    path = tmp_path / "curves.json"
    write(measured([space()], dims=(DIM,), precisions=("float32",)), path)
    content = json.loads(path.read_text())
    if damage == "cut":
        path.write_text(path.read_text()[:-30])
    elif damage == "gone":
        path.unlink()
    else:
        if damage == "key":
            content["points"][0]["colour"] = "red"
        else:
            content["points"][0]["per_query"].pop()
        path.write_text(json.dumps(content))
    with pytest.raises(LeafError, match=r"curves\.json cannot be read as curves .*; measure them again"):
        read(path)


def test_sets_are_held_one_at_a_time():
    alive = []

    def load(seed):
        assert not [each() for each in alive if each() is not None], "the last set is still in memory"
        vectors = space(f"set{seed}", seed=seed)
        alive.append(weakref.ref(vectors))
        return vectors

    calibration = space().teacher_documents
    sets = (load(seed) for seed in range(3))
    curves = measure("teacher", sets, dims=(DIM,), precisions=("int8",), calibration=calibration, resamples=RESAMPLES)
    assert list(curves.digests) == ["set0", "set1", "set2"]


def without_student(vectors):
    return SetVectors(vectors.dataset, vectors.teacher_queries, vectors.teacher_documents, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dims": (8, 8)}, r"dimensions \[8, 8\]: expected one or more, each of them once"),
        ({"dims": ()}, r"dimensions \[\]: expected one or more"),
        ({"dims": (64, 8)}, r"dimensions \[64\] asked of vectors that have 32"),
        ({"precisions": ("int4",)}, r"precisions \['int4'\] are unknown, expected some of float32"),
        ({"sets": []}, "no retrieval sets"),
        ({"sets": [space(), space()]}, "two sets are called set"),
        ({"sets": [space(), without_student(space("two"))]}, r"two has vectors of \[\], expected those of"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(change, message):
    sets = change.get("sets", [space()])
    settings = {key: value for key, value in change.items() if key in ("dims", "precisions")}
    with pytest.raises(LeafError, match=message):
        measured(sets, calibration=space().teacher_documents, **settings)


def test_vectors_that_do_not_belong_to_their_set_are_refused():
    vectors = space()
    queries, documents = vectors.teacher_queries, vectors.teacher_documents
    broken = documents.copy()
    broken[5, 30] = np.nan
    for student, message in (
        ((queries[1:], documents), r"student: vectors of shape \(24, 32\) for queries of set, not \(25, 32\)"),
        ((queries, documents[:, :16]), r"vectors of shape \(120, 16\) for documents of set, not \(120, 32\)"),
        ((queries, broken), "student: NaN or inf in the vectors for documents of set"),
    ):
        with pytest.raises(LeafError, match=message):
            measured([SetVectors(vectors.dataset, queries, documents, {"student": student})])
    with pytest.raises(LeafError, match="a student is called teacher like its teacher"):
        measured([SetVectors(vectors.dataset, queries, documents, {"teacher": (queries, documents)})])
