import numpy as np
import pytest

from leaf.encoder import normalised
from leaf.errors import LeafError
from leaf.evaluation import retrieval
from leaf.evaluation.retrieval import retrieve, search, tie_order


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks that no size below is a multiple of."""
    monkeypatch.setattr(retrieval, "QUERY_BLOCK", 3)
    monkeypatch.setattr(retrieval, "DOCUMENT_BLOCK", 7)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("top_k", [1, 5, 40, 100])
def test_search_is_exact_and_breaks_every_tie_by_the_given_order(top_k):
    rng = np.random.default_rng(0)
    # Small whole numbers: dot products are exact in float32 and collide all the time, also at rank k.
    queries = rng.integers(-1, 2, (10, 4)).astype(np.float32)
    documents = rng.integers(-1, 2, (40, 4)).astype(np.float32)
    order = rng.permutation(40)
    place = {int(row): at for at, row in enumerate(order)}
    rows, scores = search(queries, documents, top_k, "dot", order)
    for i, query in enumerate(queries.astype(int)):
        dots = [int(sum(query * document)) for document in documents.astype(int)]
        expected = sorted(range(40), key=lambda row: (-dots[row], place[row]))[:top_k]
        assert rows[i].tolist() == expected
        assert scores[i].tolist() == [dots[row] for row in expected]
    assert scores.dtype == np.float32


@pytest.mark.usefixtures("small_blocks")
def test_block_sizes_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(1)
    queries = rng.normal(size=(11, 8)).astype(np.float32)
    documents = rng.normal(size=(50, 8)).astype(np.float32)
    rows, scores = search(queries, documents, 9)
    cosines = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        documents / np.linalg.norm(documents, axis=1, keepdims=True)
    ).T
    assert (rows == np.argsort(-cosines, axis=1)[:, :9]).all()
    np.testing.assert_allclose(scores, -np.sort(-cosines, axis=1)[:, :9], atol=1e-6)


def test_cosine_ignores_length_and_dot_does_not():
    queries = np.array([[1, 0]], np.float32)
    documents = np.array([[1, 0], [9, 9]], np.float32)
    assert search(queries, documents, 2, "cosine")[0].tolist() == [[0, 1]]
    assert search(queries, documents, 2, "dot")[0].tolist() == [[1, 0]]


def test_a_zero_vector_has_cosine_zero_and_a_huge_one_does_not_overflow():
    vectors = np.array([[0, 0], [3e30, 4e30], [3e-30, 4e-30]], np.float32)
    np.testing.assert_allclose(normalised(vectors), [[0, 0], [0.6, 0.8], [0.6, 0.8]], atol=1e-6)
    with np.errstate(all="raise"):
        rows, scores = search(vectors[:1], np.array([[1, 0], [0, 1]], np.float32), 2)
    assert scores.tolist() == [[0, 0]]
    assert rows.tolist() == [[0, 1]]


def test_the_document_with_the_id_of_the_query_is_dropped_and_the_next_takes_its_place():
    vectors = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    run = retrieve(["a"], ["a", "b", "c"], vectors[:1], vectors, similarity="dot", top_k=2)
    assert list(run["a"]) == ["b", "c"]
    assert run["a"]["b"] == pytest.approx(0.8)
    other = retrieve(["q"], ["a", "b", "c"], vectors[:1], vectors, similarity="dot", top_k=2)
    assert list(other["q"]) == ["a", "b"]


def test_documents_of_equal_score_are_ranked_as_in_trec_eval_even_at_the_cut():
    ones = np.ones((4, 2), np.float32)
    run = retrieve(["q"], ["d10", "d9", "d2", "d1"], ones[:1], ones, similarity="cosine", top_k=2)
    assert list(run["q"]) == ["d9", "d2"]  # "d9" > "d2" > "d10" > "d1"
    assert tie_order(["d10", "d9", "d2", "d1"]).tolist() == [1, 2, 0, 3]


def test_vectors_of_different_width_are_refused():
    with pytest.raises(LeafError, match="query vectors have 2 dimensions and document vectors 3"):
        search(np.ones((1, 2), np.float32), np.ones((1, 3), np.float32), 1)
