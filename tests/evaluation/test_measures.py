"""Agreement with trec_eval (through pytrec_eval) and scipy, and values worked by hand."""

import math

import numpy as np
import pytest

from leaf.errors import LeafError
from leaf.evaluation.measures import ndcg, ranking, recall, spearman

pytrec_eval = pytest.importorskip("pytrec_eval")
stats = pytest.importorskip("scipy.stats")


def test_ndcg_by_hand():
    # Linear gains: (1/log2(2) + 2/log2(3)) / (2/log2(2) + 1/log2(3)) = 2.26186 / 2.63093.
    # With 2^rel − 1 it would be (1 + 3/log2(3)) / (3 + 1/log2(3)) = 0.7967.
    assert ndcg({"q": {"a": 2, "b": 1}}, {"q": {"b": 0.9, "a": 0.8}}, 10)["q"] == pytest.approx(0.859719, abs=1e-6)
    # The only relevant document at rank 2: 1 / log2(3).
    assert ndcg({"q": {"a": 1}}, {"q": {"x": 2.0, "a": 1.0}}, 10)["q"] == pytest.approx(1 / math.log2(3))
    # The ideal holds the document that was not found: 1 / (1 + 1/log2(3)).
    assert ndcg({"q": {"a": 1, "b": 1}}, {"q": {"a": 1.0}}, 10)["q"] == pytest.approx(0.613147, abs=1e-6)


def test_recall_by_hand():
    qrels = {"q": {"a": 1, "b": 2, "c": 0, "d": 1}}
    run = {"q": {"a": 4.0, "c": 3.0, "b": 2.0, "d": 1.0}}
    assert recall(qrels, run, 3) == {"q": pytest.approx(2 / 3)}
    assert recall(qrels, run, 1) == {"q": pytest.approx(1 / 3)}


def test_a_query_that_is_not_answered_scores_zero_and_is_not_left_out():
    assert ndcg({"q": {"a": 1}}, {}, 10) == {"q": 0.0}
    assert recall({"q": {"a": 1}}, {}, 10) == {"q": 0.0}


def test_ties_go_to_the_last_id():
    assert ranking({"10": 1.0, "9": 1.0, "a": 1.0, "z": 0.5}) == ["a", "9", "10", "z"]


@pytest.mark.parametrize("seed", range(20))
def test_both_measures_equal_trec_eval(seed):
    """Graded and negative judgements, unjudged hits, ties, fewer than k hits, fewer than k relevant."""
    rng = np.random.default_rng(seed)
    documents = [f"d{i}" for i in range(150)]
    qrels, run = {}, {}
    for query in map(str, range(30)):
        judged = rng.choice(documents, rng.integers(1, 40), replace=False)
        qrels[query] = {str(d): int(rng.integers(-1, 4)) for d in judged}
        found = rng.choice(documents, rng.integers(1, 140), replace=False)
        run[query] = {str(d): float(rng.integers(0, 12)) / 4 for d in found}  # 12 different scores: many ties
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.1,10,100", "recall.10,100"})
    expected = evaluator.evaluate(run)
    for k in (1, 10, 100):
        assert ndcg(qrels, run, k) == pytest.approx({q: e[f"ndcg_cut_{k}"] for q, e in expected.items()}, abs=1e-6)
    for k in (10, 100):
        assert recall(qrels, run, k) == pytest.approx({q: e[f"recall_{k}"] for q, e in expected.items()}, abs=1e-6)


def test_spearman_by_hand():
    # Ranks 1 2 3 against 1 3 2: 1 − 6·(0 + 1 + 1) / (3·(9 − 1)) = 0.5.
    assert spearman([1.0, 2.0, 3.0], [0.1, 0.9, 0.5]) == pytest.approx(0.5)
    assert spearman([1, 2, 3], [-1, -20, -300]) == pytest.approx(-1)


@pytest.mark.parametrize("seed", range(10))
def test_spearman_equals_scipy_with_ties(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, 200), rng.normal(size=200).astype(np.float32).round(1)
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


def test_spearman_of_equal_values_is_refused():
    with pytest.raises(LeafError, match="all values of one side are equal"):
        spearman([1, 2, 3], [7, 7, 7])
