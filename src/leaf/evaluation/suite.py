"""Everything that is measured of a teacher and its students on evaluation sets, in one order, into one folder.

    scores/*.json  scores/per-query/     one record a score (`leaf.evaluation.records`)
    scores/mteb/                         public benchmarks, in mteb's own format as well
    scores/curves.json                   truncation × precision (Fig. 5 and 6)
    scores/examples.json                 example queries, answered side by side (Table 6)
    scores/alignment.json                students beside their teacher on held-out texts, without judgements
    scores/margin-<mode>.json            the robustness margin, from kept checkpoints (Fig. 7)

`leaf evaluate` measures any encoders with it, a run its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leaf.compression import Precision, sample
from leaf.encoder import AsymmetricEncoder, Encoder
from leaf.evaluation import curves, margin, records
from leaf.evaluation.benchmarks import Outcome, evaluate_benchmarks
from leaf.evaluation.compare import main_scores
from leaf.evaluation.curves import Curves, SetVectors
from leaf.evaluation.datasets import Dataset, RetrievalSet
from leaf.evaluation.evaluate import evaluate, evaluate_all
from leaf.evaluation.examples import examples
from leaf.evaluation.margin import Checkpoint, Mode
from leaf.evaluation.records import Score
from leaf.evaluation.vectors import VectorCache
from leaf.files import write_json
from leaf.progress import progress, say

#: Texts of the evaluation sets that decide whether an encoder may compute in bfloat16.
GATE_TEXTS = 64


@dataclass(frozen=True)
class Suite:
    """What to measure, besides the scores of the datasets."""

    benchmarks: Sequence[str] = ()
    mirror: Path | None = None
    mteb: bool = False
    """Run the datasets as tasks of mteb, which writes results in its own format too. The numbers are the same."""
    bm25: bool = True
    truncate: Sequence[int] = ()
    precisions: Sequence[Precision] = ()
    examples: Sequence[str] = ()


@dataclass(frozen=True)
class Measured:
    """What was measured."""

    scores: Sequence[Score]
    curves: Curves | None
    not_measured: Mapping[str, str]
    """Benchmark → why not."""
    latencies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Encoder → how long it takes for a query (`leaf.exported.time_queries`), where that was asked for."""


def run(
    teacher: Encoder,
    students: Mapping[str, Encoder],
    datasets: Sequence[Dataset],
    suite: Suite,
    cache: VectorCache,
    folder: Path | None,
) -> Measured:
    """Measures it all, writing each part into `folder` as soon as it is there. Vectors are asked of `cache`."""
    native = [] if suite.mteb else datasets
    scores = evaluate_all(teacher, students, native, bm25=suite.bm25, cache=cache)
    not_measured: Mapping[str, str] = {}
    if folder is not None:
        records.write(scores, folder)
    if suite.benchmarks or suite.mteb:
        outcome = through_mteb(teacher, students, datasets, suite, cache, folder)
        scores, not_measured = [*scores, *outcome.scores], outcome.not_measured
        if folder is not None:
            records.write(outcome.scores, folder)
    retrieval = [each for each in datasets if isinstance(each, RetrievalSet)]
    found = _curves(teacher, students, retrieval, suite, cache)
    if found is not None and folder is not None:
        curves.write(found, folder / "curves.json")
    if suite.examples and retrieval and folder is not None:
        answers: list[dict[str, Any]] = examples(suite.examples, teacher, students, retrieval[0], cache)
        write_json(folder / "examples.json", answers)
    cache.forget()
    return Measured(scores, found, not_measured)


def through_mteb(
    teacher: Encoder,
    students: Mapping[str, Encoder],
    datasets: Sequence[Dataset],
    suite: Suite,
    cache: VectorCache,
    folder: Path | None,
) -> Outcome:
    """Scores on the suite's benchmarks, and on the datasets where they are to be mteb's tasks."""
    return evaluate_benchmarks(
        teacher,
        students,
        suite.benchmarks,
        local=datasets if suite.mteb else (),
        cache=cache,
        folder=folder,
        mirror=suite.mirror,
    )


@dataclass(frozen=True)
class Kept:
    """A checkpoint: the student as it was after an epoch."""

    student: str
    epoch: int
    """From 1, through all cycles."""
    first_of_cycle: bool
    """Whether the learning rate had just begun anew, where scores vary most (§3.3, note 6)."""
    error: float
    """Held-out ε."""
    load: Callable[[], Encoder]


def measure_margins(
    teacher: Encoder,
    kept: Sequence[Kept],
    datasets: Sequence[Dataset],
    modes: Sequence[Mode],
    cache: VectorCache,
    folder: Path,
) -> None:
    """Scores checkpoints on the retrieval sets and writes `margin-<mode>.json` for each of `modes` (§3.3).

    The first epochs of the cycles are left out, as in the paper, unless fewer than three checkpoints would remain.
    Only the teacher's vectors go through `cache`: checkpoints are scored once.
    """
    retrieval = [each for each in datasets if isinstance(each, RetrievalSet)]
    later = [each for each in kept if not each.first_of_cycle]
    used = later if len({each.error for each in later}) >= 3 else kept
    if not modes or not retrieval or len({each.error for each in used}) < 3:
        return
    reference = _per_query([score for each in retrieval for score in evaluate(teacher, each, "teacher", cache)])
    cache.forget()
    points: dict[Mode, list[Checkpoint]] = {mode: [] for mode in modes}
    vectors = VectorCache(cache.folder, persist=[teacher])
    texts = sum(len(each.queries) + ("standard" in modes) * len(each.documents) for each in retrieval)
    with progress("scoring checkpoints", len(used) * texts) as bar:
        for each in used:
            student = each.load()
            pair = AsymmetricEncoder(student, teacher)
            scores: dict[Mode, list[Score]] = {mode: [] for mode in modes}
            for dataset in retrieval:
                bar.advance(0, note=f"{each.student}, epoch {each.epoch}")
                for mode in modes:
                    encoder = pair if mode == "asymmetric" else student
                    scores[mode] += evaluate(encoder, dataset, mode, vectors, bar=bar)
                vectors.forget()
            for mode, found in scores.items():
                points[mode].append(Checkpoint(each.student, each.epoch, each.error, _per_query(found), mode))
    for mode, checkpoints in points.items():
        margin.write(margin.margin(checkpoints, reference), checkpoints, reference, folder / f"margin-{mode}.json")


def use_bfloat16_where_exact(encoders: Sequence[Encoder], texts: Sequence[str]) -> None:
    """Lets encoders compute in bfloat16 where the hardware has it and a sample of the texts hardly moves.

    The bar is that of the teacher pass: cosine ≥ 0.9999 to the float32 vector for every text of the sample.
    """
    some = texts[:: max(1, len(texts) // GATE_TEXTS)][:GATE_TEXTS]
    for encoder in encoders:
        choose = getattr(encoder, "use_bfloat16_where_exact", None)
        if choose is not None and some:
            choose(some)


def _curves(
    teacher: Encoder,
    students: Mapping[str, Encoder],
    datasets: Sequence[RetrievalSet],
    suite: Suite,
    cache: VectorCache,
) -> Curves | None:
    if not (suite.truncate or suite.precisions):
        return None
    if not datasets:
        say("no curves: truncation and precision are measured on retrieval sets, and none was given")
        return None

    def documents() -> Iterator[Any]:
        for dataset in datasets:
            yield cache.vectors(teacher, dataset, "documents")
            cache.forget()

    def vectors() -> Iterator[SetVectors]:
        for dataset in datasets:
            sides = {
                name: tuple(cache.vectors(each, dataset, side) for side in dataset.sides)
                for name, each in {"": teacher, **students}.items()
            }
            queries, own = sides.pop("")
            found = SetVectors(dataset, queries, own, {name: (two[0], two[1]) for name, two in sides.items()})
            del sides, queries, own  # or they would stay in memory while the next set is loaded
            yield found
            del found
            cache.forget()

    return curves.measure(
        teacher.name,
        vectors(),
        dims=list(dict.fromkeys([teacher.dim, *suite.truncate])),
        precisions=list(dict.fromkeys(["float32", *suite.precisions])),
        calibration=sample(documents()),
        similarity=teacher.similarity,
    )


def _per_query(scores: Sequence[Score]) -> dict[str, dict[str, float]]:
    """Dataset → query → nDCG@10."""
    return {score.dataset: dict(score.per_query) for score in main_scores(scores)}
