"""Small searches to try query vectors on: the recipe's own retrieval sets cut to a budget, or the sample itself.

Fewer documents make a search easier, most so for a student that errs. So the documents that were left out are reckoned
with (`expected_discounts`), and the budget is in characters: the teacher's time goes by these, and a set of short
documents can keep thousands of them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from leaf.encoder import Role, Vectors, normalised
from leaf.evaluation.datasets import RetrievalSet
from leaf.evaluation.retrieval import Similarity, search

#: Queries of one set.
QUERIES = 200
#: Characters of documents over all sets: some 700,000 tokens, a minute or two of a small teacher on a CPU.
CHARACTERS = 3_000_000
#: Hits that count.
TOP_K = 10
#: Documents above a relevant one that are taken for granted. With this the teacher's own score comes out right: from
#: parts of seven sets nDCG@10 was estimated at 64.2, and was 65.0 on the whole sets; with twice as many it was 60.5.
PRIOR = 0.2
Values: TypeAlias = NDArray[np.float64]
Rows: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Part:
    """A retrieval set of which some documents are left out."""

    name: str
    queries: Mapping[str, str]
    """Query id → text."""
    documents: Mapping[str, str]
    """Document id → text."""
    qrels: Mapping[str, Mapping[str, float]]
    others: frozenset[str]
    """Documents that are relevant to none of the queries. The rest are relevant to one or more."""
    left_out: frozenset[str] = frozenset()
    """Documents that are relevant to a query and left out, by chance."""
    others_left_out: int = 0
    """How many others are, by chance too."""


@dataclass(frozen=True, eq=False)
class Search:
    """Queries over documents whose teacher vectors are known."""

    part: Part
    query_vectors: Vectors
    """The teacher's, `[nq, d]`."""
    document_vectors: Vectors
    """The teacher's, `[nd, d]`."""
    similarity: Similarity
    role: Role = "query"
    """The role that the queries are encoded in: a recipe without queries is tried with documents."""

    @property
    def name(self) -> str:
        """The name of the set."""
        return self.part.name

    @property
    def measure(self) -> str:
        """`ndcg@10`, or `overlap@10` where there are no judgements: the teacher's own hits then count as right."""
        return "ndcg@10" if self.part.qrels else "overlap@10"

    @cached_property
    def teacher_scores(self) -> Values:
        """`scores` of the teacher's own query vectors: all 1 where there are no judgements."""
        return self.scores(self.query_vectors)

    def scores(self, vectors: Vectors) -> Values:
        """The score of each query, `[nq]`, when `vectors` `[nq, d]` search the teacher's documents.

        nDCG@10 is an estimate of the whole set's (see `expected_discounts`): right on average, but of one query it can
        be above 1 where relevant documents were left out, since those that are there stand for them.
        """
        if not self.part.qrels:
            rows = self._best(vectors)
            pairs = zip(rows.tolist(), self._own_best.tolist(), strict=True)
            return np.array([len({*found} & {*own}) / len(own) for found, own in pairs])
        queries = normalised(vectors) if self.similarity == "cosine" else vectors
        judged = self._judged
        counts = np.zeros((3, len(judged.query)), np.int64)
        for position, name in enumerate(self.part.queries):
            mine = slice(*np.searchsorted(judged.query, [position, position + 1]))
            if mine.start < mine.stop:
                counts[:, mine] = self._above(name, queries[position] @ self._compared.T, judged.row[mine])
        groups = [Above(*each) for each in zip(counts, *judged.groups, strict=True)]
        gained = judged.gain * expected_discounts(groups)
        return np.bincount(judged.query, gained, len(self.part.queries)) / self._ideal / self._share_of_relevant

    def _above(self, query: str, similarities: Vectors, own: Rows) -> Rows:
        """How many documents are above each relevant one of a query, rows `own` `[r]`, by group as in `_judged`."""
        bars = similarities[own]
        counted = similarities > bars[:, None]
        if query in self._rows:  # the query itself (ArguAna, Quora), which BEIR drops
            counted[:, self._rows[query]] = False
        mine, other = counted[:, own].sum(axis=1), counted[:, self._is_other].sum(axis=1)
        return np.stack([mine, counted.sum(axis=1) - mine - other, other])

    @cached_property
    def _judged(self) -> "_Judged":
        """The relevant documents that are here, query by query, and the documents that may be above each of them."""
        part, others = self.part, float(self._is_other.mean())
        num_others = len(part.others)
        found: list[tuple[float, ...]] = []
        for position, query in enumerate(part.queries):
            gains = {each: gain for each, gain in part.qrels[query].items() if gain > 0 and each != query}
            here = [each for each in gains if each in self._rows]
            out = sum(each in part.left_out for each in gains)
            strange = len(self._rows) - num_others - len(here)
            for each in here:
                sizes = len(here) - 1, strange, num_others, out, len(part.left_out) - out, part.others_left_out
                found.append((position, self._rows[each], gains[each], *sizes))
        columns = np.array(found, np.float64).reshape(-1, 9).T
        # One of m sampled items with k of them above: any gap between the m is as likely for one left out. Hence a
        # prior of 1 for the query's own.
        priors = np.array([[1.0], [PRIOR * (1 - others)], [PRIOR * others]]).repeat(columns.shape[1], axis=1)
        return _Judged(
            columns[0].astype(np.int64), columns[1].astype(np.int64), columns[2], (columns[3:6], columns[6:9], priors)
        )

    @cached_property
    def _ideal(self) -> Values:
        """DCG of the best ranking of each query."""
        best = []
        for query in self.part.queries:
            gains = sorted((gain for gain in self.part.qrels[query].values() if gain > 0), reverse=True)[:TOP_K]
            best.append(sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1)))
        return np.array(best)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {each: row for row, each in enumerate(self.part.documents)}

    @cached_property
    def _is_other(self) -> NDArray[np.bool_]:
        return np.array([each in self.part.others for each in self.part.documents])

    @cached_property
    def _share_of_relevant(self) -> float:
        """Of the documents that are relevant to a query, the share that is here."""
        here = len(self.part.documents) - len(self.part.others)
        return here / (here + len(self.part.left_out)) if here else 1.0

    @cached_property
    def _compared(self) -> Vectors:
        return normalised(self.document_vectors) if self.similarity == "cosine" else self.document_vectors

    @cached_property
    def _own_best(self) -> NDArray[np.int64]:
        return self._best(self.query_vectors)

    def _best(self, vectors: Vectors) -> NDArray[np.int64]:
        return search(vectors, self.document_vectors, TOP_K, self.similarity)[0]


class _Judged(NamedTuple):
    """Pairs of a query and a relevant document, all queries in order, `[r]` each."""

    query: Rows
    row: Rows
    gain: Values
    groups: tuple[Values, Values, Values]
    """Here, left out and prior (see `Above`), `[3, r]` each: of the query's relevant documents, of those that are
    relevant to others, and of the rest."""


class Above(NamedTuple):
    """Documents of one group that may be above each of r relevant ones, `[r]` each."""

    counts: NDArray[np.int64]
    """How many of those here are."""
    here: Values
    left_out: Values
    prior: Values
    """Documents above that are taken for granted."""

    def chances(self, top_k: int) -> Values:
        """Of 0, 1, … of those left out being above each relevant one, `[r, k]`.

        Beta-binomial: each of them is above with the same chance, of which those here tell.
        """
        alpha: Values = self.counts + self.prior
        beta: Values = self.here + 1 - self.counts
        rest = self.left_out
        none = _log_gamma(beta + rest) - _log_gamma(beta) + _log_gamma(alpha + beta) - _log_gamma(alpha + beta + rest)
        columns = [np.exp(none)]
        for more in range(top_k - 1):
            fewer = np.maximum(rest - more, 0)
            columns.append(columns[-1] * fewer * (alpha + more) / (more + 1) / (beta + np.maximum(fewer - 1, 0)))
        return np.stack(columns, axis=1)


def expected_discounts(groups: Sequence[Above], top_k: int = TOP_K) -> Values:
    """What nDCG@k is expected to give relevant documents for their ranks in a whole set, `[r]`, from a part of it.

    `1 / log2(rank + 1)` down to rank k, and then nothing, over the chances of how many of the documents that were left
    out are above. `groups` are those that may be; where none was left out, this is the discount itself.
    """
    ranks = 1 + np.sum([group.counts for group in groups], axis=0)[:, None] + np.arange(top_k)
    chances = np.eye(1, top_k).repeat(len(ranks), axis=0)  # of so many more above
    for group in groups:
        more = group.chances(top_k)
        chances = np.stack(
            [(chances[:, : number + 1] * more[:, number::-1]).sum(axis=1) for number in range(top_k)], axis=1
        )
    discounts: Values = np.where(ranks <= top_k, chances / np.log2(ranks + 1), 0.0).sum(axis=1)
    return discounts


def _log_gamma(values: Values) -> Values:
    return np.array([math.lgamma(value) for value in values], np.float64)


def cut(sets: Sequence[RetrievalSet], max_length: int | None, seed: int, characters: int = CHARACTERS) -> list[Part]:
    """The sets with at most `QUERIES` random queries each, and documents of at most `characters` characters in all.

    Up to half of a set's share goes to documents that are relevant to these queries, the rest to others. A small set
    leaves what it does not need to the larger ones. `max_length` is the teacher's, in tokens: what it would cut off
    costs nothing.
    """
    longest = 4 * max_length if max_length else None  # characters in a token, about
    sizes = [{each: len(text[:longest]) for each, text in dataset.documents.items()} for dataset in sets]
    totals = [sum(size.values()) for size in sizes]
    shares = {}
    left = characters
    for count, position in enumerate(sorted(range(len(sets)), key=totals.__getitem__)):
        shares[position] = min(totals[position], left // (len(sets) - count))
        left -= shares[position]
    return [_cut(dataset, sizes[place], shares[place], seed) for place, dataset in enumerate(sets)]


def _cut(dataset: RetrievalSet, sizes: Mapping[str, int], budget: int, seed: int) -> Part:
    generator = np.random.default_rng(seed)
    names = list(dataset.queries)
    queries = [names[row] for row in generator.permutation(len(names))[:QUERIES]]
    gained = (each for query in queries for each, gain in dataset.qrels[query].items() if gain > 0)
    relevant = list(dict.fromkeys(each for each in gained if each in sizes))
    others = list(sizes.keys() - relevant)
    others.sort()
    is_whole = budget >= sum(sizes.values())
    kept = _afforded(relevant, sizes, budget if is_whole else budget // 2, generator)
    drawn = _afforded(others, sizes, budget - sum(sizes[each] for each in kept), generator)
    return Part(
        dataset.name,
        {query: dataset.queries[query] for query in queries},
        {each: text for each, text in dataset.documents.items() if each in kept or each in drawn},
        {query: dataset.qrels[query] for query in queries},
        drawn,
        frozenset(relevant) - kept,
        len(others) - len(drawn),
    )


def _afforded(
    names: Sequence[str], sizes: Mapping[str, int], budget: int, generator: np.random.Generator
) -> frozenset[str]:
    """A uniform sample of `names` that costs no more than `budget`; one of them in any case, if there is one."""
    order = generator.permutation(len(names))
    costs = np.cumsum([sizes[names[row]] for row in order])
    number = max(int(np.searchsorted(costs, budget, side="right")), 1)
    return frozenset(names[row] for row in order[:number])


def of_pairs(name: str, pairs: Sequence[tuple[str, str]]) -> RetrievalSet:
    """A retrieval set of (query, document) pairs, each query's document its only relevant one."""
    return RetrievalSet(
        name,
        {f"q{number}": query for number, (query, _) in enumerate(pairs)},
        {f"d{number}": document for number, (_, document) in enumerate(pairs)},
        {f"q{number}": {f"d{number}": 1.0} for number in range(len(pairs))},
    )
