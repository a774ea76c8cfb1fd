"""`leaf evaluate` without a recipe: any encoders on any sets, public benchmarks, or texts that nobody has judged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from leaf.encoder import Encoder
from leaf.errors import LeafError
from leaf.evaluation import records
from leaf.evaluation.alignment import Alignment, align
from leaf.evaluation.datasets import RetrievalSet, load_all, load_texts
from leaf.evaluation.evaluate import evaluate_one
from leaf.evaluation.records import Score
from leaf.evaluation.suite import Measured, Suite, run, through_mteb, use_bfloat16_where_exact
from leaf.evaluation.vectors import VectorCache
from leaf.exported import time_queries
from leaf.files import write_json
from leaf.loading import load
from leaf.models import short_name
from leaf.provenance import provenance
from leaf.recipe import TextSource
from leaf.runtime.artifact import split_precision
from leaf.texts.sources import read


@dataclass(frozen=True)
class Models:
    """The encoders that are compared."""

    queries: Sequence[str]
    """Query encoders: students."""
    documents: str | None = None
    """The document encoder: their teacher. None: each query encoder is on both sides."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str | None = None


def score(
    models: Models, data: Sequence[Path], suite: Suite, cache: Path | None, out: Path | None, *, timed: bool = False
) -> Measured:
    """Scores the models on every set below the paths `data` and on the suite's benchmarks; records go to `out`.

    Vectors are kept in `cache` (None: nowhere) for the next student. With `timed`, the time of a query is taken with
    every model too, on the retrieval sets' queries, and goes to `latencies.json` in `out`. Raises `LeafError` for a set
    that cannot be read, before any model is loaded.
    """
    sets = [dataset for path in data for dataset in load_all(path)]
    queries = [query for each in sets if isinstance(each, RetrievalSet) for query in each.queries.values()]
    if timed and (models.documents in (None, *models.queries) or not queries):
        raise LeafError(
            "--figure shows students' queries over a teacher's documents: give students with --queries, the teacher "
            "with --documents (it is drawn too), and a retrieval set with --data"
        )
    if models.documents is None and (suite.truncate or suite.precisions):
        raise LeafError("curves compare a student with its teacher: name the teacher with --documents")
    teacher, students = _load(models, [text for each in sets for side in each.sides.values() for text in side])
    vectors = VectorCache(cache)
    if teacher is not None:
        measured = run(teacher, students, sets, suite, vectors, out)
        if timed:
            latencies = time_queries({teacher.name: teacher, **students}, queries)
            measured = replace(measured, latencies=latencies)
            if out is not None:
                write_json(out / "latencies.json", {"encoders": latencies, "provenance": provenance()})
        return measured
    scores: list[Score] = []
    not_measured: dict[str, str] = {}
    native = [] if suite.mteb else sets
    for encoder in students.values():
        with_bm25 = suite.bm25 and not scores
        scores += evaluate_one(encoder, native, bm25=with_bm25, cache=vectors)
        if suite.benchmarks or suite.mteb:
            outcome = through_mteb(encoder, {}, sets, suite, vectors, out)
            scores += [replace(each, mode="standard") for each in outcome.scores]
            not_measured.update(outcome.not_measured)
    if out is not None:
        records.write(scores, out)
    return Measured(scores, None, not_measured)


def compare_on_texts(
    models: Models, data: Sequence[Path], queries: Sequence[Path], documents: Sequence[Path]
) -> list[Alignment]:
    """The alignment of every query encoder with its teacher on texts without judgements.

    `data` are BEIR folders (judgements are not read) or files with a column `kind`; `queries` and `documents` are
    files of texts of one kind. Raises `LeafError` where no teacher is named.
    """
    if models.documents is None:
        raise LeafError("--alignment compares a student with its teacher: name the teacher with --documents")
    texts: dict[str, list[str]] = {"query": [], "document": []}
    for path in data:
        if path.is_dir() and not list(path.glob("*.parquet")):
            for kind, found in zip(texts, load_texts(path), strict=True):
                texts[kind] += found
        else:
            _read(TextSource(source=str(path)), texts)
    for paths, kind in ((queries, "query"), (documents, "document")):
        for path in paths:
            _read(TextSource(source=str(path), kind=kind), texts)  # type: ignore[arg-type]
    teacher, students = _load(models, [*texts["query"], *texts["document"]])
    if teacher is None:
        raise LeafError("--alignment compares a student with its teacher: --queries and --documents name one model")
    return [align(student, teacher, texts["query"], texts["document"]) for student in students.values()]


def _load(models: Models, texts: Sequence[str]) -> tuple[Encoder | None, Mapping[str, Encoder]]:
    """The teacher, if there is one beside the query encoders, and these by name."""
    students: dict[str, Encoder] = {}
    teacher = None
    for model in dict.fromkeys([*([models.documents] if models.documents else []), *models.queries]):
        folder, precision = split_precision(model)
        names = [f"{short_name(folder)}-{precision}" if precision else short_name(model), model]
        taken = {*students, *([teacher.name] if teacher else [])}
        encoder = load(
            model,
            device=models.device,
            name=next((each for each in names if each not in taken), model),
            compute_dtype="bfloat16" if models.dtype == "bfloat16" else "float32",
        )
        if model == models.documents and set(models.queries) != {model}:
            teacher = encoder
        else:
            students[encoder.name] = encoder
    if models.dtype == "auto":
        use_bfloat16_where_exact([*([teacher] if teacher else []), *students.values()], texts)
    return teacher, students


def _read(source: TextSource, texts: dict[str, list[str]]) -> None:
    for row in read(source, seed=0):
        if isinstance(row.text, str) and row.text.strip():
            texts[row.kind].append(row.text)
