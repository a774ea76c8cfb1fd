"""Scores an `Encoder` on datasets: nDCG@10 and Recall@100 for retrieval, Spearman's correlation for STS.

What is compared (paper, Fig. 2): the teacher alone, each student alone (*standard*), and queries by a student
against documents by its teacher (*asymmetric*).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from leaf.encoder import AsymmetricEncoder, Encoder, Vectors
from leaf.errors import LeafError
from leaf.evaluation.baselines import bm25 as bm25_run
from leaf.evaluation.datasets import Dataset, RetrievalSet, StsSet
from leaf.evaluation.examples import examples
from leaf.evaluation.measures import Qrels, Run, mean, ndcg, recall, spearman
from leaf.evaluation.records import Measure, Mode, Score
from leaf.evaluation.retrieval import normalised, retrieve
from leaf.evaluation.vectors import Side, VectorCache, sides_of
from leaf.progress import Bar, progress
from leaf.provenance import provenance

__all__ = ["VectorCache", "evaluate", "evaluate_all", "evaluate_bm25", "examples"]

RETRIEVAL_MEASURES: Mapping[Measure, Callable[[Qrels, Run], dict[str, float]]] = {
    "ndcg@10": lambda qrels, run: ndcg(qrels, run, 10),
    "recall@100": lambda qrels, run: recall(qrels, run, 100),
}


def evaluate(
    encoder: Encoder,
    dataset: Dataset,
    mode: Mode,
    cache: VectorCache | None = None,
    batch_size: int = 32,
    bar: Bar | None = None,
) -> list[Score]:
    """Scores of one encoder on one dataset, one per measure, with `per_query` values for retrieval.

    STS is scored by the cosine of both sentences encoded as documents, hence without a query prompt. It has
    no two sides, so of a pair only the query encoder counts, and standard and asymmetric are equal (Table 7,
    note *). `bar` moves on by the number of texts encoded; None shows one for this call.
    """
    cache = VectorCache() if cache is None else cache
    queries, documents = sides_of(encoder, dataset)
    names = {"encoder": encoder.name, "queries": queries.name, "documents": documents.name}
    label = f"evaluating {encoder.name} on {dataset.name}"
    with nullcontext(bar) if bar else progress(label, cache.num_missing([(encoder, dataset)])) as shown:

        def vectors(part: Encoder, side: Side) -> Vectors:
            return cache.vectors(part, dataset, side, batch_size=batch_size, advance=shown.advance)

        if isinstance(dataset, StsSet):
            return [_sts_score(vectors(queries, "sentences"), dataset, mode, names)]
        run = retrieve(
            list(dataset.queries),
            list(dataset.documents),
            vectors(queries, "queries"),
            vectors(documents, "documents"),
            similarity=encoder.similarity,
        )
    return _retrieval_scores(run, dataset, mode, names)


def evaluate_bm25(dataset: RetrievalSet) -> list[Score]:
    """Scores of BM25 on one dataset, for comparison; see `leaf.evaluation.baselines`."""
    names = dict.fromkeys(("encoder", "queries", "documents"), "bm25")
    return _retrieval_scores(bm25_run(dataset), dataset, "bm25", names)


def evaluate_all(
    teacher: Encoder,
    students: Mapping[str, Encoder],
    datasets: Sequence[Dataset],
    *,
    bm25: bool = True,
    cache: VectorCache | None = None,
    batch_size: int = 32,
) -> list[Score]:
    """Scores of BM25 (retrieval only), the teacher, and every student standard and asymmetric, per dataset.

    Students are recorded under their key in `students`. `cache` None keeps the vectors of one dataset at a
    time; give one to reuse them afterwards, for `examples`.
    """
    names = [dataset.name for dataset in datasets]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise LeafError(f"two datasets are called '{twice}', so their scores could not be told apart: rename one")
    # Built before anything is encoded, since a pair of different widths is refused here.
    pairs = {name: AsymmetricEncoder(student, teacher) for name, student in students.items()}
    everything = [(each, dataset) for dataset in datasets for each in (teacher, *students.values())]
    records: list[Score] = []
    if bm25:  # first, so that a missing extra is found before hours of encoding
        for dataset in datasets:
            records += evaluate_bm25(dataset) if isinstance(dataset, RetrievalSet) else []
    with progress("evaluating", (cache or VectorCache()).num_missing(everything)) as bar:
        for dataset in datasets:
            vectors = VectorCache() if cache is None else cache
            bar.advance(0, note=dataset.name)
            records += evaluate(teacher, dataset, "teacher", vectors, batch_size, bar)
            for name, student in students.items():
                standard = evaluate(student, dataset, "standard", vectors, batch_size, bar)
                asymmetric = evaluate(pairs[name], dataset, "asymmetric", vectors, batch_size, bar)
                records += [_renamed(score, name) for score in (*standard, *asymmetric)]
    return records


def _retrieval_scores(run: Run, dataset: RetrievalSet, mode: Mode, names: Mapping[str, str]) -> list[Score]:
    facts = _facts(dataset, mode, names)
    return [
        Score(
            task="retrieval",
            measure=measure,
            value=mean(list(per_query.values())),
            num_queries=len(per_query),
            per_query=per_query,
            **facts,
        )
        for measure, compute in RETRIEVAL_MEASURES.items()
        for per_query in [compute(dataset.qrels, run)]
    ]


def _sts_score(vectors: Vectors, dataset: StsSet, mode: Mode, names: Mapping[str, str]) -> Score:
    first, second = np.split(normalised(vectors), 2)
    similarity = np.einsum("nd,nd->n", first, second)
    try:
        value = spearman(similarity, dataset.scores)
    except LeafError as error:
        raise LeafError(f"{names['queries']} on {dataset.name}: {error}") from error
    return Score(
        task="sts",
        measure="spearman",
        value=value,
        num_queries=len(dataset.pairs),
        **_facts(dataset, mode, names),
    )


def _facts(dataset: Dataset, mode: Mode, names: Mapping[str, str]) -> dict[str, Any]:
    """What the records of one evaluation have in common."""
    return {
        "dataset": dataset.name,
        "mode": mode,
        **names,
        "dataset_digest": dataset.digest,
        "notes": dataset.notes,
        "provenance": provenance(),
    }


def _renamed(score: Score, name: str) -> Score:
    """The score of a student under the name the caller gave it, whatever the encoder calls itself."""
    documents = name if score.mode == "standard" or score.task == "sts" else score.documents
    return replace(score, encoder=name, queries=name, documents=documents)
