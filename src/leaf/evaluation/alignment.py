"""How near a student is to its teacher on one's own texts, without a single judgement.

    alignment = align(student, teacher, queries, documents)
    alignment.queries.error.mean            # mean ‖y − ŷ‖₂ of the queries (Eq. 2–3)
    alignment.asymmetric.overlap.value      # share of the teacher's top 10 that is found in the teacher's index

Two questions, since neither answers the other: do the vectors lie where the teacher's do (ε and the cosine), and
does search return what the teacher's search returns (App. D, Table 6)? Everything is relative to the teacher:
nothing here says whether the teacher itself finds what people look for.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from leaf.encoder import AsymmetricEncoder, Encoder, Role, Vectors, normalised
from leaf.errors import LeafError
from leaf.evaluation.measures import spearman
from leaf.evaluation.retrieval import DOCUMENT_BLOCK, QUERY_BLOCK, Rows, Similarity, best
from leaf.evaluation.statistics import difference
from leaf.progress import progress

#: Of the teacher's ranking, the documents whose order is compared.
CANDIDATES = 100
#: Percentiles of ε and cosine that are kept.
QUANTILES = (5, 25, 50, 75, 95)
#: Texts that are named for lying furthest from the teacher's vector, of each kind.
NUM_WORST = 5
#: Characters of a text that are kept, as in Table 6.
SNIPPET = 100
#: From here on an interval is mean ± 1.96 s/√n, which the bootstrap has reached by then and takes seconds to say.
NORMAL_FROM = 1000

Values: TypeAlias = NDArray[np.float64]
Mode: TypeAlias = Literal["teacher", "asymmetric", "standard"]
#: The student's and the teacher's vectors of the same texts, each `[n, dim]`.
Pair: TypeAlias = tuple[Vectors, Vectors]


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % bootstrap interval over texts or queries; no bounds where there is no interval to give."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Distribution:
    """A quantity over texts."""

    mean: Estimate
    """Without bounds for a single text."""
    quantiles: Mapping[str, float]
    """Percentile (`"5"`, `"25"`, `"50"`, `"75"`, `"95"`) → value."""


@dataclass(frozen=True)
class Closeness:
    """How near the student's vectors are to the teacher's of the same texts."""

    num_texts: int
    error: Distribution
    """ε = ‖y − ŷ‖₂ of the vectors as they are returned, in the units of the teacher's space (Eq. 2–3)."""
    cosine: Distribution
    """−1 to 1; a zero vector has cosine 0 with any other."""
    cosine_percentiles: Sequence[float]
    """The lowest cosine, percentiles 1 to 99, the highest: 101 values, enough to draw the distribution."""
    unrelated_cosine: float | None
    """Estimate cosine to the teacher's vector of *another* text, the one before it in the list: what no alignment would
    give. It is far above 0 where a space keeps to a narrow cone. None for a single text."""
    teacher_length: float
    """Estimate length of the teacher's vectors, the scale of ε; 1 where they are normalised."""


@dataclass(frozen=True)
class Agreement:
    """How much of the teacher's ranking one mode of search reproduces, over queries."""

    overlap: Estimate
    """Share, 0 to 1, of the teacher's first `top_k` documents that are among this mode's first `top_k`."""
    same_first: Estimate
    """Share, 0 to 1, of queries that have the same document first."""
    rank_correlation: Estimate | None
    """Spearman's ρ between the teacher's scores and this mode's, −1 to 1, over the teacher's first `CANDIDATES`
    documents of a query (or all, where there are fewer), averaged over queries; None where no query has one.

    The candidates come from the teacher alone, so that all its students are judged on the same documents and scores
    that have nothing to do with the teacher's give ρ = 0. The union of both rankings would hold documents *because*
    one side has them high and the other low: there, random scores give −0.74 (100 of 5,000). What a student wrongly
    puts before the candidates does not show here; it shows in the overlap.
    """
    num_correlated: int
    """Queries that the correlation is a mean of: not those for which one side scores all candidates alike."""


@dataclass(frozen=True)
class Outlier:
    """A text and how far the student's vector of it lies from the teacher's."""

    row: int
    """Where it stands in the caller's list, from 0."""
    error: float
    cosine: float
    text: str
    """Its first `SNIPPET` characters; empty where only vectors were given."""


@dataclass(frozen=True)
class Alignment:
    """What `align` measured. `dataclasses.asdict` makes plain JSON of it.

    Without queries, or with no more documents than `top_k`, all of which any search would find, there are no rankings:
    `asymmetric`, `standard`, `advantage` and `chance` are None, and `examples` is empty.
    """

    student: str
    teacher: str
    similarity: Similarity
    top_k: int
    num_duplicates: int
    """Texts that were given more than once, and counted once."""
    queries: Closeness | None
    documents: Closeness | None
    texts: Closeness
    """Queries and documents together, every text counting the same."""
    asymmetric: Agreement | None
    """Queries by the student in the teacher's index."""
    standard: Agreement | None
    """The student on both sides."""
    advantage: Estimate | None
    """Overlap of the asymmetric search minus that of the standard search, paired by query."""
    chance: float | None
    """The overlap that drawing `top_k` documents at random has on average."""
    worst: Mapping[Role, Sequence[Outlier]]
    """The texts with the largest ε, the largest first."""
    examples: Sequence[Mapping[str, Any]]
    """Queries with the teacher's, the asymmetric and the standard answer side by side, as in Table 6, in the form
    `leaf.evaluation.examples` has. They are spread evenly from the query whose asymmetric overlap is lowest to the
    one whose is highest, so that they show failures as well."""


def align(
    student: Encoder,
    teacher: Encoder,
    queries: Sequence[str],
    documents: Sequence[str],
    *,
    top_k: int = 10,
    batch_size: int = 32,
    num_examples: int = 3,
    dataset: str = "own texts",
) -> Alignment:
    """Compares the student with its teacher on texts that nobody has judged.

    Either list may be empty. Every distinct text counts once. Documents are encoded, compared and forgotten
    8,192 at a time, so a million fit; the vectors of the queries are held. Both modes compare vectors as the
    teacher does. `num_examples` queries are kept with their answers; `dataset` is what they are said to be from.

    Raises `LeafError` for encoders of different widths, empty texts, no texts, or vectors that are not finite.
    """
    similarity = AsymmetricEncoder(student, teacher).similarity  # refuses another width
    rows = _distinct(queries, "queries"), _distinct(documents, "documents")
    texts = [queries[row] for row in rows[0]], [documents[row] for row in rows[1]]
    _check(len(rows[0]) + len(rows[1]), top_k)

    def encoded(encoder: Encoder, role: Role, texts: Sequence[str]) -> Vectors:
        encode = encoder.encode_query if role == "query" else encoder.encode_document
        vectors = np.asarray(encode(texts, batch_size=batch_size, advance=bar.advance), np.float32)
        if vectors.shape != (expected := (len(texts), encoder.dim)):
            raise LeafError(f"{encoder.name}: vectors of shape {vectors.shape} for {role} texts, expected {expected}")
        return vectors

    def pairs(role: Role, texts: Sequence[str]) -> Iterator[Pair]:
        for part in _parts(len(texts), DOCUMENT_BLOCK):
            yield encoded(student, role, texts[part]), encoded(teacher, role, texts[part])

    with progress("measuring the alignment", 2 * (len(texts[0]) + len(texts[1]))) as bar:
        return _measure(
            _Side("queries", rows[0], texts[0], pairs("query", texts[0])),
            _Side("documents", rows[1], texts[1], pairs("document", texts[1])),
            names=(student.name, teacher.name),
            similarity=similarity,
            top_k=top_k,
            num_duplicates=len(queries) + len(documents) - len(rows[0]) - len(rows[1]),
            num_examples=num_examples,
            dataset=dataset,
        )


def alignment_of(
    student_queries: Vectors,
    teacher_queries: Vectors,
    student_documents: Vectors,
    teacher_documents: Vectors,
    *,
    similarity: Similarity = "cosine",
    top_k: int = 10,
    query_texts: Sequence[str] = (),
    document_texts: Sequence[str] = (),
    names: tuple[str, str] = ("student", "teacher"),
    num_examples: int = 3,
    dataset: str = "own texts",
) -> Alignment:
    """The same from vectors `[n, dim]` that are there already; `[0, dim]` stands for no queries or no documents.

    Arrays on disk (`np.memmap`) are read 8,192 rows at a time. Every row counts: equal documents are tied, and the
    first of them is found first. Texts are for people, and may be left out; without them there are no examples.
    """
    sides = (
        ("queries", student_queries, teacher_queries, query_texts),
        ("documents", student_documents, teacher_documents, document_texts),
    )
    widths = {each.shape[1:] for _, *vectors, _ in sides for each in vectors}
    if len(widths) != 1 or len(next(iter(widths))) != 1:
        raise LeafError(f"arrays with rows of shape {sorted(widths)}, expected four arrays [n, dim] of one dim")
    for what, student, teacher, texts in sides:
        if len({len(student), len(teacher), len(texts) or len(student)}) != 1:
            raise LeafError(
                f"{what}: {len(student)} vectors by the student, {len(teacher)} by the teacher, {len(texts)} texts; "
                "expected rows of the same texts in the same order"
            )
    _check(len(student_queries) + len(student_documents), top_k)

    def pairs(student: Vectors, teacher: Vectors) -> Iterator[Pair]:
        for part in _parts(len(student), DOCUMENT_BLOCK):
            yield np.asarray(student[part], np.float32), np.asarray(teacher[part], np.float32)
            bar.advance(len(student[part]))

    with progress("measuring the alignment", len(student_queries) + len(student_documents)) as bar:
        queries, documents = (
            _Side(what, range(len(student)), texts, pairs(student, teacher)) for what, student, teacher, texts in sides
        )
        return _measure(
            queries,
            documents,
            names=names,
            similarity=similarity,
            top_k=top_k,
            num_duplicates=0,
            num_examples=num_examples if query_texts and document_texts else 0,
            dataset=dataset,
        )


class _Side(NamedTuple):
    """The queries or the documents."""

    what: str
    rows: Sequence[int]
    """Where each text stands in the caller's list."""
    texts: Sequence[str]
    """Empty where only vectors are known."""
    pairs: Iterator[Pair]
    """Their vectors, block after block."""

    def shown(self, position: int) -> str:
        text = self.texts[position] if self.texts else ""
        return text if len(text) <= SNIPPET else text[: SNIPPET - 1] + "…"


def _measure(
    queries: _Side,
    documents: _Side,
    *,
    names: tuple[str, str],
    similarity: Similarity,
    top_k: int,
    num_duplicates: int,
    num_examples: int,
    dataset: str,
) -> Alignment:
    query_gaps, document_gaps = _Gaps(), _Gaps()
    asked: list[Pair] = []
    for pair in queries.pairs:
        query_gaps.add(*pair, queries, names)
        if len(documents.rows) > top_k:  # else any search finds all of them
            asked.append(pair)
    search = _Search(asked, similarity, top_k) if asked else None
    for pair in documents.pairs:
        document_gaps.add(*pair, documents, names)
        if search:
            search.add(*pair)
    return Alignment(
        student=names[0],
        teacher=names[1],
        similarity=similarity,
        top_k=top_k,
        num_duplicates=num_duplicates,
        queries=query_gaps.closeness() if queries.rows else None,
        documents=document_gaps.closeness() if documents.rows else None,
        texts=_Gaps(query_gaps.blocks + document_gaps.blocks).closeness(),
        asymmetric=search.agreement("asymmetric") if search else None,
        standard=search.agreement("standard") if search else None,
        advantage=mean_with_interval(search.overlaps("asymmetric") - search.overlaps("standard")) if search else None,
        chance=top_k / len(documents.rows) if search else None,
        worst={"query": query_gaps.worst(queries), "document": document_gaps.worst(documents)},
        examples=_examples(search, queries, documents, names, num_examples, dataset) if search else [],
    )


class _Gap(NamedTuple):
    """What is kept of a block of texts, each `[n]`: a million texts take 32 MB."""

    error: Values
    cosine: Values
    unrelated: Values
    length: Values


class _Gaps:
    """How far apart the two vectors of every text are, gathered block by block."""

    def __init__(self, blocks: Iterable[_Gap] = ()) -> None:
        self.blocks = list(blocks)

    def add(self, student: Vectors, teacher: Vectors, side: _Side, names: tuple[str, str]) -> None:
        for vectors, name in zip((student, teacher), names, strict=True):
            if odd := int((~np.isfinite(vectors).all(axis=1)).sum()):
                raise LeafError(f"{name}: NaN or infinity in {odd} vectors of {side.what}, expected numbers")
        # In float64: the cosine of a vector with itself is 1, and no square overflows.
        y, target = student.astype(np.float64), teacher.astype(np.float64)
        others = _cosines(y, np.roll(target, 1, axis=0)) if len(y) > 1 else np.empty(0)
        error, length = np.linalg.norm(y - target, axis=1), np.linalg.norm(target, axis=1)
        self.blocks.append(_Gap(error, _cosines(y, target), others, length))

    def closeness(self) -> Closeness:
        error, cosine, unrelated, length = map(np.concatenate, zip(*self.blocks, strict=True))
        return Closeness(
            num_texts=len(error),
            error=_distribution(error),
            cosine=_distribution(cosine),
            cosine_percentiles=np.percentile(cosine, range(101)).tolist(),
            unrelated_cosine=float(unrelated.mean()) if len(unrelated) else None,
            teacher_length=float(length.mean()),
        )

    def worst(self, side: _Side) -> list[Outlier]:
        error, cosine = (np.concatenate([np.empty(0), *(block[at] for block in self.blocks)]) for at in (0, 1))
        furthest = np.argsort(-error, kind="stable")[:NUM_WORST].tolist()  # of equal ones the earlier first
        return [Outlier(side.rows[at], float(error[at]), float(cosine[at]), side.shown(at)) for at in furthest]


class _Hits(NamedTuple):
    """The first k documents of some queries, best first."""

    rows: Rows
    """`[nq, k]`."""
    scores: Sequence[Vectors]
    """Each `[nq, k]`: first the score that ranks the documents, then what other modes give the same documents."""

    def among(self, start: int, scores: Sequence[Vectors], k: int) -> "_Hits":
        """The best k of these and of a block `[nq, n]` of documents from row `start` on; ties go to earlier rows."""
        columns = best(scores[0], k)
        taken = [np.take_along_axis(each, columns, axis=1) for each in scores]
        rows = np.concatenate([self.rows, columns + start], axis=1)
        both = [np.concatenate(pair, axis=1) for pair in zip(self.scores, taken, strict=True)]
        columns = best(both[0], k)
        return _Hits(
            np.take_along_axis(rows, columns, axis=1), [np.take_along_axis(each, columns, axis=1) for each in both]
        )


class _Search:
    """What the teacher, the asymmetric pair and the student alone find, in one pass over the documents."""

    #: Position of a mode's score among those that are kept of the teacher's candidates.
    SCORES: Mapping[Mode, int] = {"teacher": 0, "asymmetric": 1, "standard": 2}

    def __init__(self, queries: Sequence[Pair], similarity: Similarity, top_k: int) -> None:
        self._prepare: Callable[[Vectors], Vectors] = normalised if similarity == "cosine" else np.asarray
        student, teacher = (self._prepare(np.concatenate(side)) for side in zip(*queries, strict=True))
        parts = _parts(len(student), QUERY_BLOCK)
        self._asked = [(student[part], teacher[part]) for part in parts]
        self._top_k, self._start = top_k, 0

        def nothing(num_scores: int) -> list[_Hits]:
            sizes = [len(student[part]) for part in parts]
            return [_Hits(np.empty((n, 0), np.int64), [np.empty((n, 0), np.float32)] * num_scores) for n in sizes]

        self._candidates = nothing(3)
        self._hits: dict[Mode, list[_Hits]] = {"asymmetric": nothing(1), "standard": nothing(1)}

    def add(self, student: Vectors, teacher: Vectors) -> None:
        """Ranks the next documents among those before."""
        student, teacher = self._prepare(student).T, self._prepare(teacher).T
        for at, (student_asks, teacher_asks) in enumerate(self._asked):
            scores = [teacher_asks @ teacher, student_asks @ teacher, student_asks @ student]
            depth = max(CANDIDATES, self._top_k)
            self._candidates[at] = self._candidates[at].among(self._start, scores, depth)
            for mode, hits in self._hits.items():
                hits[at] = hits[at].among(self._start, [scores[self.SCORES[mode]]], self._top_k)
        self._start += student.shape[1]

    def found(self, mode: Mode) -> tuple[Rows, Vectors]:
        """The first `top_k` in one mode: rows and scores `[nq, top_k]`."""
        parts = self._candidates if mode == "teacher" else self._hits[mode]
        rows, scores = (
            np.concatenate(each) for each in zip(*((hits.rows, hits.scores[0]) for hits in parts), strict=True)
        )
        return rows[:, : self._top_k], scores[:, : self._top_k]

    def overlaps(self, mode: Mode) -> Values:
        """Share of the teacher's first `top_k` that a mode finds, `[nq]`."""
        both = zip(self.found("teacher")[0].tolist(), self.found(mode)[0].tolist(), strict=True)
        return np.array([len({*first} & {*second}) for first, second in both]) / self._top_k

    def agreement(self, mode: Mode) -> Agreement:
        """The rankings of one mode beside the teacher's."""
        same_first = self.found(mode)[0][:, 0] == self.found("teacher")[0][:, 0]
        pairs = (
            (first[:CANDIDATES], second[:CANDIDATES])
            for hits in self._candidates
            for first, second in zip(hits.scores[0], hits.scores[self.SCORES[mode]], strict=True)
        )
        # Where all candidates score the same there is no order to compare.
        correlations = [spearman(*pair) for pair in pairs if all(np.ptp(scores) > 0 for scores in pair)]
        return Agreement(
            overlap=mean_with_interval(self.overlaps(mode)),
            same_first=mean_with_interval(same_first.astype(np.float64)),
            rank_correlation=mean_with_interval(np.array(correlations)) if correlations else None,
            num_correlated=len(correlations),
        )


def _examples(
    search: _Search, queries: _Side, documents: _Side, names: tuple[str, str], num_examples: int, dataset: str
) -> list[dict[str, Any]]:
    encoders: dict[Mode, str] = {"teacher": names[1], "asymmetric": " | ".join(names), "standard": names[0]}
    found = {mode: search.found(mode) for mode in encoders}

    def answer(mode: Mode, query: int) -> dict[str, Any]:
        rows, scores = (each[query].tolist() for each in found[mode])
        hits = [
            {"id": str(documents.rows[row]), "score": score, "text": documents.shown(row)}
            for row, score in zip(rows, scores, strict=True)
        ]
        overlap = len({*rows} & {*found["teacher"][0][query].tolist()})
        return {"encoder": encoders[mode], "mode": mode, "overlap": overlap, "documents": hits}

    by_overlap = np.argsort(search.overlaps("asymmetric"), kind="stable")
    last = len(by_overlap) - 1
    spread = np.linspace(0, last, min(num_examples, last + 1)) if num_examples != 1 else np.array([last / 2])
    return [
        {"query": queries.texts[query], "dataset": dataset, "answers": [answer(mode, query) for mode in encoders]}
        for query in by_overlap[spread.astype(int)].tolist()
    ]


def _check(num_texts: int, top_k: int) -> None:
    """Refuses what has no answer, before an hour of encoding."""
    if top_k < 1:
        raise LeafError(f"top_k is {top_k}, expected at least 1")
    if not num_texts:
        raise LeafError("no queries and no documents: give texts of at least one kind")


def _distinct(texts: Sequence[str], what: str) -> list[int]:
    """Where each distinct text stands first."""
    if isinstance(texts, str):
        raise LeafError(f"{what} is one string, expected a list of texts; put it into a list")
    first: dict[str, int] = {}
    for row, text in enumerate(texts):
        if not text.strip():
            raise LeafError(f"number {row} (from 0) of the {what} is empty; leave empty texts out")
        first.setdefault(text, row)
    return list(first.values())


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def _cosines(first: Values, second: Values) -> Values:
    """Of each row with the row beside it; 0 for a zero vector."""
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    products = np.einsum("ij,ij->i", first, second)
    cosines: Values = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return cosines.clip(-1, 1)


def _distribution(values: Values) -> Distribution:
    quantiles = np.percentile(values, QUANTILES).tolist()
    return Distribution(
        mean_with_interval(values), {str(q): value for q, value in zip(QUANTILES, quantiles, strict=True)}
    )


def mean_with_interval(values: Values) -> Estimate:
    """The mean of `values` `[n]` and its 95 % interval: the bootstrap's, or from 1,000 on that of a normal mean."""
    value = float(values.mean())
    if len(values) == 1:
        return Estimate(value, None, None)
    if len(values) < NORMAL_FROM:
        return Estimate(*difference(values, np.zeros(len(values))))  # the paired bootstrap against nothing
    half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5
    # No mean of any resample lies outside the values, so that a share stays one.
    return Estimate(value, max(value - half, float(values.min())), min(value + half, float(values.max())))
