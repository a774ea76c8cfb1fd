import math
import sys
from pathlib import Path

import pytest

from leaf.errors import LeafError
from leaf.evaluation.baselines import bm25
from leaf.evaluation.datasets import RetrievalSet, load
from leaf.evaluation.evaluate import evaluate_bm25

SCIFACT = Path(__file__).parents[3] / "shared" / "data" / "eval" / "retrieval" / "scifact"


def dataset(documents: dict[str, str], queries: dict[str, str]) -> RetrievalSet:
    return RetrievalSet("tiny", queries, documents, {query: {"d1": 1} for query in queries})


def test_scores_are_lucenes_by_hand():
    pytest.importorskip("bm25s")
    documents = {"d1": "cats purring cats", "d2": "dogs bark", "d3": "a horse"}
    run = bm25(dataset(documents, {"q": "the cat"}))
    # d1 has 3 words, the others 2 and, without stop words, 1: 2 on average. One of three has "cat".
    # idf = ln(1 + (3 − 1 + 0.5) / (1 + 0.5))
    # tf = 2 / (2 + 0.9·(1 − 0.4 + 0.4·3/2)), no (k1 + 1) since Lucene 8.
    expected = math.log(1 + 2.5 / 1.5) * 2 / (2 + 0.9 * (0.6 + 0.4 * 3 / 2))
    assert run == {"q": {"d1": pytest.approx(expected, rel=1e-5)}}


def test_only_documents_that_share_a_word_are_hits_and_the_querys_own_is_dropped():
    pytest.importorskip("bm25s")
    documents = {"d1": "blue sky", "d2": "blue sea", "d3": "red rose"}
    run = bm25(dataset(documents, {"d1": "blue sky", "unknown": "xylophone", "stop": "the of"}))
    assert {query: list(hits) for query, hits in run.items()} == {"d1": ["d2"], "unknown": [], "stop": []}
    assert bm25(dataset({"d1": "the", "d2": "of"}, {"q": "the"})) == {"q": {}}


def test_equal_scores_at_the_cut_are_ranked_as_in_trec_eval(capfd):
    pytest.importorskip("bm25s")
    documents = {"d10": "blue", "d9": "blue", "d1": "blue", "d2": "red"}
    assert list(bm25(dataset(documents, {"q": "blue"}), top_k=2)["q"]) == ["d9", "d10"]
    assert capfd.readouterr() == ("", "")


def test_a_missing_extra_is_named_with_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(LeafError, match=r"pip install 'leaf\[eval\]'"):
        bm25(dataset({"d1": "x"}, {"q": "x"}))


@pytest.mark.skipif(not SCIFACT.is_dir(), reason="the shared evaluation sets are not here")
def test_scifact_gives_the_papers_number():
    pytest.importorskip("bm25s")
    scifact = load(SCIFACT)
    assert isinstance(scifact, RetrievalSet)
    scores = {score.measure: score.value for score in evaluate_bm25(scifact)}
    assert scores["ndcg@10"] == pytest.approx(0.676, abs=0.005)  # Table 2: 67.6
