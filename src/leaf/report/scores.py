"""Scores as tables for people: one row a task, one a dataset, and only the differences that are resolved."""

from collections.abc import Sequence

from leaf.evaluation.compare import MODES, TWO_SIDED, Comparison, main_scores
from leaf.evaluation.measures import mean
from leaf.evaluation.records import Score
from leaf.evaluation.statistics import Interval
from leaf.report.words import NONE, Table, count, gain, points

COLUMNS = ["standard", "% of teacher", "asymmetric", "% of teacher", "asymmetric − standard"]
MEASURE_NAMES = {
    "ndcg@10": "nDCG@10",
    "spearman": "Spearman",
    "v_measure": "v-measure",
    "ap": "average precision",
    "map@1000": "MAP",
}


def interval(each: Interval | None) -> str:
    """A percentage with its 95 % interval: `98.0 (96.9–99.1)`."""
    return NONE if each is None else f"{each.value:.1f} ({each.low:.1f}–{each.high:.1f})"


def lone_table(scores: Sequence[Score]) -> Table:
    """The scores of one encoder (and BM25): every task's mean, and below it its datasets."""
    bm25 = {score.dataset: score.value for score in main_scores(scores) if score.mode == "bm25"}
    own = [score for score in main_scores(scores) if score.mode != "bm25"]
    rows = [["dataset", "queries", "score", *(["BM25"] if bm25 else [])]]

    def row(name: str, some: Sequence[Score]) -> list[str]:
        beside = [bm25[each.dataset] for each in some if each.dataset in bm25]
        cells = [points(mean(beside)) if len(beside) == len(some) else ""] if bm25 else []
        return [
            name,
            count(sum(each.num_queries for each in some)),
            points(mean([each.value for each in some])),
            *cells,
        ]

    for task in dict.fromkeys(score.task for score in own):
        of_task = [score for score in own if score.task == task]
        names = _names(task, of_task[0].measure, [each.dataset for each in of_task])
        parts = [of_task, *([each] for each in of_task)] if len(of_task) > 1 else [of_task]
        rows += [row(name, part) for name, part in zip(names, parts, strict=True)]
    return rows


def student_table(found: Sequence[Comparison], averages: Sequence[Comparison]) -> Table:
    """One student beside its teacher: scores, what it keeps in both modes, and what the teacher's documents add.

    `found` and `averages` are what `compare` and `means` give: every task's mean, and below it its datasets.
    """
    bm25 = any("bm25" in each.scores for each in found)
    rows = [["dataset", "queries", *(["BM25"] if bm25 else []), "teacher", *COLUMNS]]
    for whole in averages:
        of_task = [each for each in found if each.task == whole.task]
        names = _names(whole.task, whole.measure, [each.name for each in of_task])
        parts = [whole, *of_task] if len(of_task) > 1 else of_task
        rows += [_row(name, part, bm25) for name, part in zip(names, parts, strict=True)]
    return rows


def _names(task: str, measure: str, datasets: Sequence[str]) -> list[str]:
    """What the rows of a task are called: the mean and its datasets, or the only one."""
    title = f"{task.replace('_', ' ')}, {MEASURE_NAMES.get(measure, measure)}"
    if len(datasets) == 1:
        return [f"{title}: {datasets[0]}"]
    return [f"{title}, mean of {len(datasets)}", *(f"  {name}" for name in datasets)]


def _row(name: str, each: Comparison, bm25: bool) -> list[str]:
    systems = [*(["bm25"] if bm25 else []), "teacher", *MODES]
    *others, standard, asymmetric = (points(each.scores[system]) if system in each.scores else "" for system in systems)
    kept = [interval(each.retention[mode]) if mode in each.retention else NONE for mode in MODES]
    if each.task not in TWO_SIDED:  # both modes are one: said once
        asymmetric = kept[1] = ""
    beyond = gain(each.gain) if each.gain else ""
    return [name, count(each.num_queries), *others, standard, kept[0], asymmetric, kept[1], beyond]
