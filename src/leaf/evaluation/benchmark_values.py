"""What mteb's scores were computed from: per query, per text or per pair, so that intervals can be made for them.

mteb keeps one number a split and subset. Its predictions and what its search found give back the values behind it, by
our own measures, which have to agree with mteb's.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaf.errors import LeafError
from leaf.evaluation.measures import Qrels, Run, mean, ndcg, ranking, recall, spearman
from leaf.evaluation.records import Task

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.results import TaskResult

#: mteb's task types that leaf has a place for.
TASKS: Mapping[str, Task] = {
    "Retrieval": "retrieval",
    "InstructionRetrieval": "retrieval",
    "Reranking": "reranking",
    "InstructionReranking": "reranking",
    "STS": "sts",
    "Classification": "classification",
    "MultilabelClassification": "classification",
    "Clustering": "clustering",
    "PairClassification": "pair_classification",
    "Summarization": "summarization",
}
#: mteb's main scores that have another name here, and what a reader should know; the rest keep mteb's.
MEASURES: Mapping[str, tuple[str, str]] = {
    "cosine_spearman": ("spearman", ""),
    "cosine_ap": ("ap", ""),
    "max_ap": ("ap", "mteb's max_ap, the best of its similarity functions"),
    "max_over_subqueries_map_at_1000": ("map@1000", "a query's hits are those of all its parts, by their best scores"),
}
#: mteb rounds measures of retrieval to five decimals.
ROUNDING = 6e-6


@dataclass(frozen=True)
class Value:
    """One measure on one split of one subset, or on all of them."""

    value: float
    num: int
    per_query: Mapping[str, float] = field(default_factory=dict)
    pairs: tuple[tuple[float, float], ...] = ()


def values_of(
    task: "AbsTask",
    result: "TaskResult",
    runs: Mapping[tuple[str, str], Run],
    predictions: Path,
    num_texts: int,
) -> dict[str, Value]:
    """Measure → value, with what it was computed from; over splits and subsets, mteb's mean.

    `runs` is what was retrieved, by (split, subset); of other tasks mteb wrote its predictions into the folder
    `predictions`. `num_texts` is what counts where nothing better does. Raises `LeafError` for a score that is no
    number, and where mteb's and ours differ.
    """
    path = predictions / task.prediction_file_name
    predicted = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    units: dict[str, dict[str, Value]] = {}
    for split, of_split in result.scores.items():
        for scores in of_split:
            subset, main = scores["hf_subset"], scores["main_score"]
            if main is None or not math.isfinite(main):
                raise LeafError(f"mteb's {task.metadata.main_score} is not a number")
            data = _data(task, split, subset)
            if (split, subset) in runs:
                unit = _retrieval_values(task, data, runs[split, subset], scores)
            else:
                evidence = _evidence(task, data, scores, predicted.get(subset, {}).get(split))
                unit = {measure_name(task): _checked(main, num_texts, *evidence)}
            units[f"{split}/{subset}"] = unit
    if len(units) == 1:
        return next(iter(units.values()))
    return means(task, units, result.get_score())


def means(task: "AbsTask", units: Mapping[str, Mapping[str, Value]], main: float) -> dict[str, Value]:
    """The mean of every measure over splits and subsets, or over the parts of an aggregate: one value each."""
    found = {}
    for measure in next(iter(units.values())):
        values = {label: unit[measure].value for label, unit in units.items()}
        value = mean(list(values.values()))
        agrees = measure != measure_name(task) or abs(value - main) <= ROUNDING
        found[measure] = Value(value, len(values), values) if agrees else Value(main, len(values))
    return found


def _retrieval_values(
    task: "AbsTask", data: Mapping[str, Any], run: Run, scores: Mapping[str, Any]
) -> dict[str, Value]:
    """The main measure and, for retrieval, recall@100, per query by our measures, which have to agree with mteb's."""
    if getattr(task, "ignore_identical_ids", False):
        run = {query: {key: hit for key, hit in hits.items() if key != query} for query, hits in run.items()}
    if getattr(task, "skip_first_result", False):
        by_score = {query: sorted(hits.items(), key=lambda hit: hit[1], reverse=True) for query, hits in run.items()}
        run = {query: dict(hits[1:]) for query, hits in by_score.items()}
    qrels: Qrels = data["relevant_docs"]
    wanted = {measure_name(task): task.metadata.main_score}
    if TASKS[task.metadata.type] == "retrieval":
        wanted["recall@100"] = "recall_at_100"
    values = {}
    for measure, key in wanted.items():
        compute = _per_query(key)
        per_query = compute(qrels, run) if compute else {}
        if per_query and abs(mean(list(per_query.values())) - scores[key]) > ROUNDING:
            raise LeafError(f"mteb's {key} is {scores[key]} and the mean of ours {mean(list(per_query.values())):.6f}")
        value = mean(list(per_query.values())) if per_query else float(scores[key])
        values[measure] = Value(value, len(per_query) or len(qrels), per_query)
    return values


def _per_query(key: str) -> Callable[[Qrels, Run], dict[str, float]] | None:
    """What computes a measure of mteb's per query; None where it is none of ours."""
    match = re.fullmatch(r"(max_over_subqueries_)?(ndcg|map|recall)_at_(\d+)", key)
    if match is None:
        return None
    measure = {"ndcg": ndcg, "map": _average_precision, "recall": recall}[match[2]]

    def compute(qrels: Qrels, run: Run) -> dict[str, float]:
        if match[1]:
            qrels, run = _merged_subqueries(qrels, run)
        return measure(qrels, run, int(match[3]))

    return compute


def _average_precision(qrels: Qrels, run: Run, k: int) -> dict[str, float]:
    """Average precision of the first k hits of each query, trec_eval's `map_cut`."""
    scores = {}
    for query, judged in qrels.items():
        relevant = {document for document, relevance in judged.items() if relevance > 0}
        found, total = 0, 0.0
        for rank, document in enumerate(ranking(run.get(query, {}))[:k], start=1):
            if document in relevant:
                found += 1
                total += found / rank
        scores[query] = total / len(relevant) if relevant else 0.0
    return scores


def _merged_subqueries(qrels: Qrels, run: Run) -> tuple[Qrels, Run]:
    """Queries `<id>_<n>` as the one query `<id>`: a document's score is its best (MindSmallReranking)."""
    merged: dict[str, dict[str, float]] = {}
    judged = {}
    for query in qrels:
        whole = query.rpartition("_")[0]
        hits = merged.setdefault(whole, {})
        for document, score in run.get(query, {}).items():
            hits[document] = max(score, hits.get(document, score))
        judged[whole] = qrels[query]
    return judged, merged


#: What a value was computed from: number of items, value per item, (similarity, gold) pairs.
_Evidence = tuple[int | None, Mapping[str, float], tuple[tuple[float, float], ...]]


def _evidence(task: "AbsTask", data: Any, scores: Mapping[str, Any], predicted: Any) -> _Evidence:
    """What the main score was computed from, as our own evaluation keeps it; of other tasks nothing."""
    from mteb import abstasks

    kept: Mapping[str, float] = {}
    main = task.metadata.main_score
    if isinstance(task, abstasks.AbsTaskSTS) and main == "cosine_spearman":
        pairs = tuple(zip(predicted["cosine_scores"], map(float, data["score"]), strict=True))
        return len(pairs), kept, pairs
    if isinstance(task, abstasks.AbsTaskPairClassification) and main in ("max_ap", "cosine_ap"):
        labels = data[task.label_column_name]
        labels = labels[0] if len(data) == 1 else labels  # older sets lie in a single row
        similarities = _best_similarity(scores, predicted) if main == "max_ap" else predicted["cosine_scores"]
        return len(labels), kept, tuple(zip(similarities, map(float, labels), strict=True))
    if isinstance(task, abstasks.AbsTaskClassification) and main == "accuracy" and not task.is_cross_validation:
        gold = data[task.label_column_name]
        right = ([label == own for label, own in zip(gold, each, strict=True)] for each in predicted)
        shares = (sum(each) / len(predicted) for each in zip(*right, strict=True))
        return len(gold), {str(row): share for row, share in enumerate(shares)}, ()
    if task.metadata.type == "Clustering" and main == "v_measure":
        samples = scores["v_measures"]
        levels = samples.values() if isinstance(samples, Mapping) else [samples]
        return None, {str(number): value for number, value in enumerate(v for level in levels for v in level)}, ()
    if task.metadata.type == "Summarization" and main == "cosine_spearman":
        texts = zip(predicted["human_scores"], predicted["cosine_scores"], strict=True)
        kept = {str(number): spearman(*two) for number, two in enumerate(texts)}
        return len(kept), kept, ()
    return None, kept, ()


def _best_similarity(scores: Mapping[str, Any], predicted: Mapping[str, Sequence[float]]) -> Sequence[float]:
    """The similarities whose average precision is mteb's `max_ap`; distances with their sign turned."""
    kinds = {"cosine": "cosine_scores", "dot": "dot_scores", "similarity": "similarity_scores"}
    distances = {"euclidean": "euclidean_distances", "manhattan": "manhattan_distances"}
    best = next(kind for kind in (*kinds, *distances) if scores[f"{kind}_ap"] == scores["max_ap"])
    return predicted[kinds[best]] if best in kinds else [-each for each in predicted[distances[best]]]


def _checked(value: float, num_texts: int, num: int | None, per_query: Mapping[str, float], pairs: Any) -> Value:
    """The value with its evidence, where that is what it was computed from (deprecated tasks compute it otherwise)."""
    if per_query and abs(mean(list(per_query.values())) - value) > ROUNDING:
        per_query = {}
    return Value(float(value), num or num_texts, per_query, pairs)


def measure_name(task: "AbsTask") -> str:
    """The name here of a task's main score: `ndcg_at_10` → `ndcg@10`."""
    main = task.metadata.main_score
    return MEASURES[main][0] if main in MEASURES else main.replace("_at_", "@")


def _data(task: "AbsTask", split: str, subset: str) -> Any:
    assert task.dataset is not None
    return task.dataset[split] if subset not in task.dataset else task.dataset[subset][split]
