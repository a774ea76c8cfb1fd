"""Exact nearest-neighbour search in float32: no index, no approximation, a bounded amount of memory.

Shapes: nq queries, nd documents, d dimensions, k hits. Equal scores never fall out by chance: the caller says
in which order documents win ties, so that a ranking is the same on every machine that computes the same
scores.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from leaf.encoder import Vectors, normalised
from leaf.errors import LeafError

#: Scores are held for so many queries × documents at once: 16 MiB, and a few times that while picking.
QUERY_BLOCK, DOCUMENT_BLOCK = 512, 8192

Similarity = Literal["cosine", "dot"]
Rows = NDArray[np.int64]


def retrieve(
    query_ids: Sequence[str],
    document_ids: Sequence[str],
    queries: Vectors,
    documents: Vectors,
    *,
    similarity: Similarity,
    top_k: int = 100,
) -> dict[str, dict[str, float]]:
    """Query id → document id → score of the `top_k` documents, best first.

    A document with the id of the query is the query itself (ArguAna, Quora) and is dropped, as in BEIR.
    """
    # One more than asked for, since the dropped one may be among them.
    rows, scores = search(queries, documents, top_k + 1, similarity, tie_order(document_ids))
    run = {}
    for query, its_rows, its_scores in zip(query_ids, rows.tolist(), scores.tolist(), strict=True):
        hits = ((document_ids[row], score) for row, score in zip(its_rows, its_scores, strict=True))
        run[query] = dict([hit for hit in hits if hit[0] != query][:top_k])
    return run


def search(
    queries: Vectors,
    documents: Vectors,
    top_k: int,
    similarity: Similarity = "cosine",
    order: Rows | None = None,
) -> tuple[Rows, Vectors]:
    """Rows of the `top_k` documents for each query and their scores, both `[nq, min(top_k, nd)]`, best first.

    `queries` is `[nq, d]`, `documents` `[nd, d]`. Cosine scores a zero vector 0. Of equal scores the document
    that is earlier in `order` (a permutation of the rows; None: as they lie) wins.
    """
    if queries.shape[1] != documents.shape[1]:
        raise LeafError(
            f"query vectors have {queries.shape[1]} dimensions and document vectors {documents.shape[1]}: "
            "they do not share a vector space"
        )
    order = np.arange(len(documents)) if order is None else order
    queries = _prepared(queries, similarity)
    rows = np.empty((len(queries), 0), np.int64)
    scores = np.empty((len(queries), 0), np.float32)
    for start in range(0, len(documents), DOCUMENT_BLOCK):
        some = order[start : start + DOCUMENT_BLOCK]
        block = _prepared(documents[some], similarity).T
        found = [
            _merge(rows[part], scores[part], some, queries[part] @ block, top_k)
            for part in (slice(at, at + QUERY_BLOCK) for at in range(0, len(queries), QUERY_BLOCK))
        ]
        rows = np.concatenate([rows for rows, _ in found])
        scores = np.concatenate([scores for _, scores in found])
    return rows, scores


def best(scores: Vectors, top_k: int) -> Rows:
    """Columns of the `top_k` highest scores of each row of `[n, m]`, best first; ties go left."""
    k = min(top_k, scores.shape[1])
    if k < scores.shape[1]:
        # argpartition would pick among scores equal to the k-th as it likes, so they are counted in by hand.
        kth = np.partition(scores, -k, axis=1)[:, -k, None]
        above, equal = scores > kth, scores == kth
        room = k - above.sum(axis=1, keepdims=True)
        chosen = above | (equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= room))
        columns = np.nonzero(chosen)[1].reshape(len(scores), k)
    else:
        columns = np.broadcast_to(np.arange(k), scores.shape)
    by_score = np.argsort(-np.take_along_axis(scores, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, by_score, axis=1)


def tie_order(ids: Sequence[str]) -> Rows:
    """The order in which trec_eval ranks documents of equal score: by id, last first."""
    return np.array(sorted(range(len(ids)), key=ids.__getitem__, reverse=True), dtype=np.int64)


def _prepared(vectors: Vectors, similarity: Similarity) -> Vectors:
    return normalised(vectors) if similarity == "cosine" else vectors


def _merge(rows: Rows, scores: Vectors, new_rows: Rows, new_scores: Vectors, top_k: int) -> tuple[Rows, Vectors]:
    """The best of those found so far and of a new block. Earlier ones come first, so they win ties."""
    all_scores = np.concatenate([scores, new_scores], axis=1)
    all_rows = np.concatenate([rows, np.broadcast_to(new_rows, new_scores.shape)], axis=1)
    columns = best(all_scores, top_k)
    return np.take_along_axis(all_rows, columns, axis=1), np.take_along_axis(all_scores, columns, axis=1)
