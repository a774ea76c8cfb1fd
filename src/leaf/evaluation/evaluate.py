"""Scores an `Encoder` on datasets: retrieval, STS, classification, clustering and pair classification.

What is compared (paper, Fig. 2): the teacher alone, each student alone (*standard*), and queries by a student
against documents by its teacher (*asymmetric*). Only retrieval has two sides: elsewhere both modes are one (Table 7,
note *), and texts are encoded as documents, hence without a query prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from leaf.encoder import AsymmetricEncoder, Encoder, Vectors
from leaf.errors import LeafError
from leaf.evaluation.baselines import bm25 as bm25_run
from leaf.evaluation.classification import accuracies
from leaf.evaluation.clustering import v_measures
from leaf.evaluation.datasets import ClassificationSet, ClusteringSet, Dataset, PairSet, RetrievalSet, Side, StsSet
from leaf.evaluation.examples import examples
from leaf.evaluation.measures import Qrels, Run, mean, ndcg, recall, spearman
from leaf.evaluation.pairs import average_precision, cosines
from leaf.evaluation.records import Mode, Score
from leaf.evaluation.retrieval import retrieve
from leaf.evaluation.vectors import VectorCache, sides_of
from leaf.progress import Bar, progress
from leaf.provenance import provenance

__all__ = ["VectorCache", "evaluate", "evaluate_all", "evaluate_bm25", "examples"]

RETRIEVAL_MEASURES: Mapping[str, Callable[[Qrels, Run], dict[str, float]]] = {
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
    """Scores of one encoder on one dataset, one per measure, with what each was computed from.

    Of a pair of encoders only the query encoder counts where a task has no two sides, so there standard and asymmetric
    are equal. `bar` moves on by the number of texts encoded; None shows one for this call.
    """
    cache = VectorCache() if cache is None else cache
    queries, documents = sides_of(encoder, dataset)
    facts = _facts(dataset, mode, encoder.name, queries, documents)
    label = f"evaluating {encoder.name} on {dataset.name}"
    with nullcontext(bar) if bar else progress(label, cache.num_missing([(encoder, dataset)])) as shown:

        def vectors(side: Side) -> Vectors:
            part = documents if side == "documents" else queries
            return cache.vectors(part, dataset, side, batch_size=batch_size, advance=shown.advance)

        match dataset:
            case RetrievalSet():
                ids = list(dataset.queries), list(dataset.documents)
                sides = vectors("queries"), vectors("documents")
                return _retrieval_scores(retrieve(*ids, *sides, similarity=encoder.similarity), dataset, facts)
            case StsSet():
                return [_sts_score(vectors("sentences"), dataset, facts)]
            case PairSet():
                similarities = cosines(vectors("sentences"))
                value = average_precision(similarities, dataset.labels)
                pairs = _pairs(similarities, dataset.labels)
                return [Score(measure="ap", value=value, num_queries=len(pairs), pairs=pairs, **facts)]
            case ClassificationSet():
                return [_mean_score("accuracy", accuracies(dataset, vectors("train"), vectors("texts")), facts)]
            case ClusteringSet():
                found = v_measures(dataset, vectors("texts"))
                per_sample = {str(sample): value for sample, value in enumerate(found)}
                score = _mean_score("v_measure", per_sample, facts)
                return [replace(score, num_queries=len(dataset.sides["texts"]))]


def evaluate_bm25(dataset: RetrievalSet) -> list[Score]:
    """Scores of BM25 on one dataset, for comparison; see `leaf.evaluation.baselines`."""
    return _retrieval_scores(bm25_run(dataset), dataset, _facts(dataset, "bm25", "bm25"))


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
    time; give one to reuse them afterwards, or with a folder, in the next run.
    """
    check_names(datasets)
    if not datasets:
        return []  # an API would be asked for its width
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
                if isinstance(dataset, RetrievalSet):
                    asymmetric = evaluate(pairs[name], dataset, "asymmetric", vectors, batch_size, bar)
                else:  # the same number, not computed twice
                    asymmetric = [replace(score, mode="asymmetric") for score in standard]
                records += [_renamed(score, name) for score in (*standard, *asymmetric)]
            vectors.forget()
    return records


def evaluate_one(
    encoder: Encoder,
    datasets: Sequence[Dataset],
    *,
    bm25: bool = False,
    cache: VectorCache | None = None,
    batch_size: int = 32,
) -> list[Score]:
    """Scores of one encoder on both sides of every dataset, and of BM25 where asked for."""
    check_names(datasets)
    records = [score for each in datasets if bm25 and isinstance(each, RetrievalSet) for score in evaluate_bm25(each)]
    total = (cache or VectorCache()).num_missing([(encoder, dataset) for dataset in datasets])
    with progress("evaluating", total) as bar:
        for dataset in datasets:
            vectors = VectorCache() if cache is None else cache
            bar.advance(0, note=dataset.name)
            records += evaluate(encoder, dataset, "standard", vectors, batch_size, bar)
            vectors.forget()
    return records


def check_names(datasets: Sequence[Dataset]) -> None:
    """Refuses two datasets of one name, whose scores could not be told apart."""
    names = [dataset.name for dataset in datasets]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise LeafError(f"two datasets are called '{twice}', so their scores could not be told apart: rename one")


def _retrieval_scores(run: Run, dataset: RetrievalSet, facts: Mapping[str, Any]) -> list[Score]:
    return [_mean_score(measure, compute(dataset.qrels, run), facts) for measure, compute in RETRIEVAL_MEASURES.items()]


def _sts_score(vectors: Vectors, dataset: StsSet, facts: Mapping[str, Any]) -> Score:
    similarities = cosines(vectors)
    try:
        value = spearman(similarities, dataset.scores)
    except LeafError as error:
        raise LeafError(f"{facts['queries']} on {dataset.name}: {error}") from error
    pairs = _pairs(similarities, dataset.scores)
    return Score(measure="spearman", value=value, num_queries=len(pairs), pairs=pairs, **facts)


def _mean_score(measure: str, per_query: Mapping[str, float], facts: Mapping[str, Any]) -> Score:
    value = mean(list(per_query.values()))
    return Score(measure=measure, value=value, num_queries=len(per_query), per_query=per_query, **facts)


def _pairs(similarities: Vectors, gold: Sequence[float]) -> tuple[tuple[float, float], ...]:
    return tuple(zip(similarities.tolist(), map(float, gold), strict=True))


def _facts(
    dataset: Dataset, mode: Mode, name: str, queries: Encoder | None = None, documents: Encoder | None = None
) -> dict[str, Any]:
    """What the records of one evaluation have in common; without encoders, BM25's."""
    encoders = [each for each in (queries, documents) if each is not None]
    dtypes = dict.fromkeys(str(getattr(each, "compute_dtype", "float32")) for each in encoders)
    return {
        "dataset": dataset.name,
        "task": dataset.task,
        "mode": mode,
        "encoder": name,
        "queries": queries.name if queries else name,
        "documents": documents.name if documents else name,
        "compute_dtype": " | ".join(dtypes) or "none",
        "dataset_digest": dataset.digest,
        "notes": dataset.notes,
        "provenance": provenance(),
    }


def _renamed(score: Score, name: str) -> Score:
    """The score of a student under the name the caller gave it, whatever the encoder calls itself."""
    documents = name if score.mode == "standard" or score.task != "retrieval" else score.documents
    return replace(score, encoder=name, queries=name, documents=documents)
