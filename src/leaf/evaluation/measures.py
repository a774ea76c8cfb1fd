"""nDCG@k and Recall@k per query, equal to trec_eval's `ndcg_cut` and `recall`, and Spearman's correlation.

    qrels = {"q1": {"d1": 2, "d2": 1}}         # query id → document id → relevance
    run = {"q1": {"d2": 0.9, "d1": 0.8}}       # query id → document id → score
    ndcg(qrels, run, 10)                       # {'q1': 0.8597186998521972}

Relevance of 0 and below means not relevant. A judged query that the run does not answer scores 0; the mean
over queries is the score of a set.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leaf.errors import LeafError

Qrels: TypeAlias = Mapping[str, Mapping[str, float]]
Run: TypeAlias = Mapping[str, Mapping[str, float]]


def ndcg(qrels: Qrels, run: Run, k: int) -> dict[str, float]:
    """nDCG@k of each query in `qrels`, 0 to 1: `Σ rel_i / log2(i + 1)` over ranks i ≤ k, over the ideal one.

    The gain is linear (Järvelin and Kekäläinen 2002, as in trec_eval and BEIR), not `2^rel − 1`. The ideal
    ranking holds every judged document, retrieved or not.
    """
    scores = {}
    for query, judged in qrels.items():
        gains = (judged.get(document, 0.0) for document in ranking(run.get(query, {}))[:k])
        ideal = _dcg(sorted(judged.values(), reverse=True)[:k])
        scores[query] = _dcg(gains) / ideal if ideal else 0.0
    return scores


def recall(qrels: Qrels, run: Run, k: int) -> dict[str, float]:
    """Recall@k of each query in `qrels`, 0 to 1: the share of its relevant documents among the first k."""
    scores = {}
    for query, judged in qrels.items():
        relevant = {document for document, relevance in judged.items() if relevance > 0}
        found = relevant.intersection(ranking(run.get(query, {}))[:k])
        scores[query] = len(found) / len(relevant) if relevant else 0.0
    return scores


def ranking(scores: Mapping[str, float]) -> list[str]:
    """Document ids, best first. Ties go to the id that sorts last, as in trec_eval."""
    return sorted(scores, key=lambda document: (scores[document], document), reverse=True)


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation of two sequences `[n]`, −1 to 1; equal values share their mean rank.

    Raises `LeafError` where all values of one sequence are equal, since there is no order to compare.
    """
    ranks = [_ranks(np.asarray(values)) for values in (first, second)]
    a, b = (rank - rank.mean() for rank in ranks)
    length = math.sqrt(float(a @ a) * float(b @ b))
    if not length:
        raise LeafError("the rank correlation is undefined: all values of one side are equal")
    return float(a @ b) / length


def mean(values: Sequence[float]) -> float:
    """Mean with one rounding error, so that the order of queries cannot move the last digit."""
    return math.fsum(values) / len(values)


def _dcg(gains: Iterable[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1) if gain > 0)


def _ranks(values: NDArray[np.generic]) -> NDArray[np.float64]:
    """Ranks from 1, `[n]`."""
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    mean_rank: NDArray[np.float64] = last - (count - 1) / 2
    return mean_rank[group]
