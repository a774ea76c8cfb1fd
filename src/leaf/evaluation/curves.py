"""Does a student inherit what its teacher's vectors allow? nDCG@10 by dimension and precision (paper, Fig. 5 and 6).

    from leaf.compression import sample

    curves = measure("teacher", sets, dims=(768, 256, 64), precisions=PRECISIONS, calibration=sample(documents))
    write(curves, folder / "curves.json")

Everything is computed from vectors that were encoded once, in float32. Teacher and students are cut, rounded and
compared alike, with the one calibration of int8 that comes from the teacher's documents.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from leaf.compression import PRECISIONS, Compression, Int8, Precision, exactly
from leaf.encoder import Vectors
from leaf.errors import LeafError
from leaf.evaluation.datasets import RetrievalSet
from leaf.evaluation.measures import Run, mean, ndcg, ranking
from leaf.evaluation.retrieval import DOCUMENT_BLOCK, Similarity, retrieve
from leaf.evaluation.statistics import RESAMPLES, Interval, mean_retention
from leaf.files import write_text
from leaf.progress import progress
from leaf.provenance import provenance

CurveMode: TypeAlias = Literal["teacher", "standard", "asymmetric"]
#: Dimensions and precision.
Size: TypeAlias = tuple[int, Precision]

TOP_K = 10
#: What `curves.json` begins with.
HEAD = ("teacher", "dim", "similarity", "calibration", "digests", "provenance")
#: Decimals of per-query values and intervals on disk.
DECIMALS = 6


@dataclass(frozen=True, eq=False)
class SetVectors:
    """The vectors of one retrieval set, float32 `[n, d]`, rows in the order of its queries and documents."""

    dataset: RetrievalSet
    teacher_queries: Vectors
    teacher_documents: Vectors
    students: Mapping[str, tuple[Vectors, Vectors]]
    """Name of a student → its queries and its documents."""


@dataclass(frozen=True)
class Point:
    """nDCG@10 of one encoder on one set, in one mode and at one size."""

    dataset: str
    encoder: str
    mode: CurveMode
    dim: int
    precision: Precision
    bytes_per_document: int
    value: float
    """0 to 1, the mean over queries."""
    per_query: Mapping[str, float] = field(repr=False)
    """Query id → value."""

    @property
    def size(self) -> Size:
        """Dimensions and precision."""
        return self.dim, self.precision


@dataclass(frozen=True)
class Summary:
    """One encoder in one mode and at one size over all sets; retentions in percent, as in `statistics`."""

    encoder: str
    mode: CurveMode
    dim: int
    precision: Precision
    bytes_per_document: int
    value: float
    """nDCG@10, the mean over sets."""
    of_teacher: Interval | None
    """What is kept of the teacher at the same dimension and precision: 100 means fully inherited."""
    of_full_size: Interval | None
    """What is kept of the teacher's whole float32 vectors: what the size and the student cost together."""

    @property
    def size(self) -> Size:
        """Dimensions and precision."""
        return self.dim, self.precision


@dataclass(frozen=True)
class Curves:
    """All points of a teacher and its students, and what they come to."""

    teacher: str
    dim: int
    """Of the teacher's whole vectors."""
    similarity: Similarity
    calibration: Mapping[int, float]
    """Dimension → `Int8.limit`, with which an index in int8 can be written."""
    digests: Mapping[str, str]
    """Dataset → its digest."""
    points: tuple[Point, ...]
    summary: tuple[Summary, ...]
    """In the order of sizes asked for; at each the teacher, then every student, standard and asymmetric."""
    provenance: Mapping[str, Any]

    @property
    def students(self) -> list[str]:
        """Names, in the order they were given in."""
        return list(dict.fromkeys(each.encoder for each in self.summary if each.mode != "teacher"))


def measure(
    teacher: str,
    sets: Iterable[SetVectors],
    *,
    dims: Sequence[int],
    precisions: Sequence[Precision],
    calibration: Vectors,
    similarity: Similarity = "cosine",
    resamples: int = RESAMPLES,
) -> Curves:
    """The curves of a teacher and its students over `sets`, at each of `dims` in each of `precisions`.

    `calibration` holds document vectors of the teacher, float32 `[n, d]`, from all sets or from elsewhere (see
    `compression.sample`): int8 is calibrated on them once per dimension. `sets` is gone through once, so a generator
    that loads one set at a time keeps memory to that set and a block of documents. The whole float32 vectors are
    always measured, asked for or not: they are what the others are compared with.

    Raises `LeafError` for sizes that the vectors do not have, and vectors that do not belong to their set.
    """
    full = calibration.shape[1]
    sizes = _sizes(full, dims, precisions)
    int8 = {
        dim: Int8.calibrate(calibration, dim, similarity)
        for dim in dict.fromkeys(dim for dim, precision in sizes if "int8" in precision)
    }
    forms = [Compression(dim, precision, similarity, int8.get(dim)) for dim, precision in sizes]
    points: list[Point] = []
    digests: dict[str, str] = {}
    students: list[str] | None = None
    for vectors in sets:
        name = vectors.dataset.name
        students = list(vectors.students) if students is None else students
        if name in digests:
            raise LeafError(f"two sets are called {name}: give each its own name")
        if list(vectors.students) != students:
            raise LeafError(f"{name} has vectors of {list(vectors.students)}, expected those of {students} as before")
        _check(vectors, full, teacher)
        digests[name] = vectors.dataset.digest
        with progress(f"curves on {name}", len(forms)) as bar:
            for form in forms:
                points += _points(form, vectors, teacher)
                bar.advance()
        del vectors  # or this set would stay until the generator has loaded the next
    if not points:
        raise LeafError("no retrieval sets to measure curves on: give at least one")
    return Curves(
        teacher=teacher,
        dim=full,
        similarity=similarity,
        calibration={dim: each.limit for dim, each in int8.items()},
        digests=digests,
        points=tuple(points),
        summary=tuple(summarise(points, full, resamples)),
        provenance=provenance(),
    )


def summarise(points: Iterable[Point], full: int, resamples: int = RESAMPLES) -> list[Summary]:
    """Means over sets, with paired bootstrap intervals over queries, per encoder, mode and size.

    A set in which the teacher's whole vectors find nothing has no retention and is left out of those means; where
    the teacher finds nothing in one of the others at some size, there is no retention against it at that size.
    """
    groups: dict[tuple[Size, str, CurveMode], dict[str, Point]] = {}
    for point in points:
        groups.setdefault((point.size, point.encoder, point.mode), {})[point.dataset] = point
    teachers = {size: group for (size, _, mode), group in groups.items() if mode == "teacher"}
    if (full, "float32") not in teachers:
        raise LeafError(f"no points of the teacher in {full} dimensions of float32, which all others are compared with")
    reference = teachers[full, "float32"]
    counted = [name for name, point in reference.items() if point.value > 0]

    def kept(group: Mapping[str, Point], of: Mapping[str, Point]) -> Interval | None:
        if not counted or any(of[name].value <= 0 for name in counted):
            return None
        return mean_retention([(group[name].per_query, of[name].per_query) for name in counted], resamples)

    found = []
    with progress("intervals of the curves", len(groups)) as bar:
        for (size, encoder, mode), group in groups.items():
            first = next(iter(group.values()))
            found.append(
                Summary(
                    encoder=encoder,
                    mode=mode,
                    dim=first.dim,
                    precision=first.precision,
                    bytes_per_document=first.bytes_per_document,
                    value=mean([point.value for point in group.values()]),
                    of_teacher=kept(group, teachers[size]),
                    of_full_size=kept(group, reference),
                )
            )
            bar.advance()
    return found


def write(curves: Curves, path: str | Path) -> None:
    """Writes `curves.json`: one line per point and per summary, per-query values in the order of `queries`."""
    queries = {point.dataset: list(point.per_query) for point in curves.points}
    points = []
    for point in curves.points:
        values = [round(point.per_query[query], DECIMALS) for query in queries[point.dataset]]
        points.append({**asdict(point), "per_query": values})
    summary = [
        asdict(each) | {key: _rounded(getattr(each, key)) for key in ("of_teacher", "of_full_size")}
        for each in curves.summary
    ]
    content = {**{key: getattr(curves, key) for key in HEAD}, "queries": queries}
    lines = [f"{json.dumps(key)}: {_json(value)}" for key, value in content.items()]
    for key, rows in (("summary", summary), ("points", points)):
        lines.append(f'"{key}": [\n' + ",\n".join(map(_json, rows)) + "\n]")
    write_text(Path(path), "{\n" + ",\n".join(lines) + "\n}\n")


def read(path: str | Path) -> Curves:
    """The curves in a file that `write` wrote; anything else is a `LeafError`."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        queries = content["queries"]
        return Curves(
            **{key: content[key] for key in HEAD}
            | {"calibration": {int(dim): limit for dim, limit in content["calibration"].items()}},
            points=tuple(
                Point(**{**each, "per_query": dict(zip(queries[each["dataset"]], each["per_query"], strict=True))})
                for each in content["points"]
            ),
            summary=tuple(
                Summary(**each | {key: each[key] and Interval(*each[key]) for key in ("of_teacher", "of_full_size")})
                for each in content["summary"]
            ),
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LeafError(f"{path} cannot be read as curves ({error!r}); measure them again") from error


def _sizes(full: int, dims: Sequence[int], precisions: Sequence[Precision]) -> list[Size]:
    """Every pair, in the order given; the whole float32 vectors first where nobody asked for them."""
    for what, given in (("dimensions", dims), ("precisions", precisions)):
        if not given or len(set(given)) < len(given):
            raise LeafError(f"{what} {list(given)}: expected one or more, each of them once")
    if odd := [dim for dim in dims if not 1 <= dim <= full]:
        raise LeafError(f"dimensions {odd} asked of vectors that have {full}: ask for 1 to that many")
    if unknown := [each for each in precisions if each not in PRECISIONS]:
        raise LeafError(f"precisions {unknown} are unknown, expected some of {', '.join(PRECISIONS)}")
    sizes: list[Size] = [(dim, precision) for dim in dims for precision in precisions]
    whole: Size = (full, "float32")
    return sizes if whole in sizes else [whole, *sizes]


def _check(vectors: SetVectors, full: int, teacher: str) -> None:
    """Refuses vectors that do not belong to their set or to the space."""
    dataset = vectors.dataset
    expected = (len(dataset.queries), full), (len(dataset.documents), full)
    sides = {teacher: (vectors.teacher_queries, vectors.teacher_documents), **vectors.students}
    if len(sides) == len(vectors.students):
        raise LeafError(f"a student is called {teacher} like its teacher: give it another name")
    for encoder, pair in sides.items():
        for side, each, shape in zip(("queries", "documents"), pair, expected, strict=True):
            if each.shape != shape:
                raise LeafError(f"{encoder}: vectors of shape {each.shape} for {side} of {dataset.name}, not {shape}")
            # Row by row in blocks: a whole array of booleans would be a quarter of the vectors again.
            blocks = (each[at : at + DOCUMENT_BLOCK] for at in range(0, len(each), DOCUMENT_BLOCK))
            if not all(np.isfinite(block).all() for block in blocks):
                raise LeafError(f"{encoder}: NaN or inf in the vectors for {side} of {dataset.name}; encode them again")


def _points(form: Compression, vectors: SetVectors, teacher: str) -> list[Point]:
    """The points of all encoders at one size."""
    dataset, students = vectors.dataset, vectors.students

    def point(encoder: str, mode: CurveMode, run: Run) -> Point:
        per_query = ndcg(dataset.qrels, run, TOP_K)
        value, size = mean(list(per_query.values())), form.bytes_per_vector("document")
        return Point(dataset.name, encoder, mode, form.dim, form.precision, size, value, per_query)

    asked = [vectors.teacher_queries, *(queries for queries, _ in students.values())]
    whole, *asymmetric = _runs(form, dataset, asked, vectors.teacher_documents)
    found = [point(teacher, "teacher", whole)]
    for (name, (queries, documents)), run in zip(students.items(), asymmetric, strict=True):
        standard = _runs(form, dataset, [queries], documents)[0]
        found += [point(name, "standard", standard), point(name, "asymmetric", run)]
    return found


def _runs(form: Compression, dataset: RetrievalSet, asked: Sequence[Vectors], documents: Vectors) -> list[Run]:
    """The `TOP_K` that each array of queries finds; a block of documents is compressed once for all of them."""
    query_ids, document_ids = list(dataset.queries), list(dataset.documents)
    queries = [form.compress(each, "query") for each in asked]
    runs: list[dict[str, dict[str, float]]] = [{query: {} for query in query_ids} for _ in queries]
    for start in range(0, len(documents), DOCUMENT_BLOCK):
        part = slice(start, start + DOCUMENT_BLOCK)
        block, ids = form.compress(documents[part], "document"), document_ids[part]
        for run, each in zip(runs, queries, strict=True):
            pair = (each, block) if form.precision == "float32" else exactly(each, block)
            for query, hits in retrieve(query_ids, ids, *pair, similarity=form.compared_by, top_k=TOP_K).items():
                both = run[query] | hits
                run[query] = {document: both[document] for document in ranking(both)[:TOP_K]}
    return [*runs]


def _rounded(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [round(each, DECIMALS) for each in interval]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
