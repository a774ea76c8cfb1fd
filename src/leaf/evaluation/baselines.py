"""BM25, the word-matching baseline of the paper's Table 2: what a score is worth beyond matching words."""

from types import ModuleType
from typing import Any

import numpy as np

from leaf.errors import LeafError
from leaf.evaluation.datasets import RetrievalSet
from leaf.evaluation.retrieval import best, tie_order

#: Table 2, note †.
K1, B = 0.9, 0.4


def bm25(dataset: RetrievalSet, top_k: int = 100) -> dict[str, dict[str, float]]:
    """Query id → document id → BM25 score of the best `top_k` documents that share a word with the query.

    Scoring is Lucene's with k1 0.9 and b 0.4; Lucene's English stop words are dropped and words stemmed with
    Snowball, the successor of the Porter stemmer in Lucene. SciFact scores 67.6 nDCG@10, as in Table 2. A
    document with the id of the query is dropped.
    """
    bm25s, stemmer = _imported()

    def tokens(texts: list[str]) -> list[list[str]]:
        words: list[list[str]] = bm25s.tokenize(
            texts, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
        )
        return words

    ids, order = list(dataset.documents), tie_order(list(dataset.documents))
    index = bm25s.BM25(method="lucene", k1=K1, b=B)
    corpus = tokens(list(dataset.documents.values()))
    if not any(corpus):
        return {query: {} for query in dataset.queries}  # stop words alone, which bm25s does not index
    index.index(corpus, show_progress=False)
    run = {}
    for query, words in zip(dataset.queries, tokens(list(dataset.queries.values())), strict=True):
        # bm25s fails on a query without words; one without known words has no hits just the same.
        known = [word for word in words if word in index.vocab_dict]
        scores = np.asarray(index.get_scores(known), np.float32) if known else np.zeros(len(ids), np.float32)
        rows = order[best(scores[order][None], top_k + 1)[0]]
        hits = [(ids[row], float(scores[row])) for row in rows if scores[row] > 0 and ids[row] != query]
        run[query] = dict(hits[:top_k])
    return run


def _imported() -> tuple[ModuleType, Any]:
    """bm25s and an English stemmer."""
    try:
        import bm25s
        import Stemmer
    except ImportError as error:
        raise LeafError(f"the BM25 baseline needs {error.name}: pip install 'leaf[eval]'") from error
    return bm25s, Stemmer.Stemmer("english")
