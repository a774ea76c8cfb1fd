"""Are the evaluation queries of a form that the training queries have? Counted, not judged.

A student answers well where it has seen the like. A query's *signature* is five things that anyone can check: how it
opens, how long it is, whether it ends with a question mark, whether it holds digits, whether it is all lower case. A
form is covered when at least one training query in two hundred has its signature. The word lists are English; queries
of other languages all open with `other` or `keywords`, and are told apart by the rest.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from leaf.encoder import Vectors
from leaf.evaluation.retrieval import search

#: A signature is covered when this share of the training queries has it.
COVERED = 0.005
#: A single feature is missing when the evaluation queries have it at `OFTEN` or more and training queries below
#: `SELDOM`.
OFTEN, SELDOM = 0.1, 0.01
#: An evaluation query is far when its nearest training text is further than that of all but so many held-out queries.
FAR = 0.05
#: Words at which a length bucket ends.
LENGTHS = (2, 5, 10, 20)
#: Forms shown with an example.
SHOWN = 5


def _words(line: str) -> frozenset[str]:
    return frozenset(line.split())


_WH = _words("what who whom whose which when where why how what's who's where's how's")
_AUXILIARY = _words(
    "is are was were am be been do does did can could will would shall should may might must has have had "
    "isn't aren't wasn't weren't don't doesn't didn't can't couldn't won't wouldn't shouldn't hasn't haven't"
)
_COMMANDS = _words(
    "find list show give get tell explain describe compare define name identify discuss write translate summarize "
    "summarise search retrieve represent classify choose select calculate compute create make describe report "
    "state suggest recommend provide"
)
_FUNCTION = (
    _WH
    | _AUXILIARY
    | _words(
        "a an the this that these those of in on at by for with from to into onto about as and or but nor not no if "
        "than then so such i you he she it we they me him her us them my your his its our their there any some all "
        "between among during after before under over without within through"
    )
)
_WORD = re.compile(r"\w+(?:['’]\w+)*")


class Signature(NamedTuple):
    """What a query looks like."""

    opening: str
    """`wh-word`, `auxiliary`, `command` (one of a list of verbs), `keywords` (no function word at all) or `other`."""
    words: str
    """`1-2`, `3-5`, `6-10`, `11-20` or `21+`."""
    question_mark: bool
    digits: bool
    lower_case: bool

    def __str__(self) -> str:
        marks = {"ends with ?": self.question_mark, "digits": self.digits, "lower case": self.lower_case}
        return ", ".join([self.opening, f"{self.words} words", *(name for name, has in marks.items() if has)])


def signature(query: str) -> Signature:
    """The signature of one query."""
    words = [word.casefold().replace("’", "'") for word in _WORD.findall(query)]
    first = words[0] if words else ""
    opening = next(
        (
            name
            for name, known in (("wh-word", _WH), ("auxiliary", _AUXILIARY), ("command", _COMMANDS))
            if first in known
        ),
        "other" if _FUNCTION.intersection(words) else "keywords",
    )
    starts = [1, *(end + 1 for end in LENGTHS)]
    length = sum(_WORD.search(part) is not None for part in query.split())
    bucket = next((f"{start}-{end}" for start, end in zip(starts, LENGTHS, strict=False) if length <= end), None)
    return Signature(
        opening,
        bucket or f"{starts[-1]}+",
        question_mark=query.rstrip().endswith(("?", "？")),
        digits=any(character.isdigit() for character in query),
        lower_case=query == query.lower(),
    )


def coverage(training: Sequence[str], evaluation: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """How far `training` queries cover the forms of the evaluation queries (dataset → queries), ready for JSON.

    `covered`: share of the evaluation queries whose signature at least `COVERED` of the training queries have, over all
    and `by_dataset`. `features`: share of the queries with each single feature, (training, evaluation). `missing`: the
    features that are common here and hardly there. `worst`: the commonest signatures that are not covered.
    """
    known = Counter(map(signature, training))
    enough = {form for form, count in known.items() if count >= COVERED * len(training)}
    queries = [(query, signature(query)) for texts in evaluation.values() for query in texts]
    uncovered = Counter(form for _, form in queries if form not in enough)
    examples = {form: query for query, form in reversed(queries)}
    shares = _features(list(known.elements())), _features([form for _, form in queries])
    features = {name: [shares[0].get(name, 0.0), share] for name, share in sorted(shares[1].items())}
    return {
        "training_queries": len(training),
        "evaluation_queries": len(queries),
        "covered": 1 - uncovered.total() / len(queries) if queries else None,
        "by_dataset": {
            name: sum(signature(query) in enough for query in texts) / len(texts) for name, texts in evaluation.items()
        },
        "features": features,
        "missing": [name for name, (seen, asked) in features.items() if asked >= OFTEN and seen < SELDOM],
        "worst": [
            {
                "form": str(form),
                "evaluation": count / len(queries),
                "training": known[form] / max(len(training), 1),
                "example": examples[form],
            }
            for form, count in uncovered.most_common(SHOWN)
        ],
    }


def nearest(queries: Vectors, texts: Vectors) -> NDArray[np.float32]:
    """The cosine of each query to its nearest text, `[nq]`, from vectors `[nq, d]` and `[n, d]`."""
    return search(queries, texts, 1, "cosine")[1][:, 0]


def shift(held_out: NDArray[np.float32], evaluation: NDArray[np.float32]) -> dict[str, Any]:
    """How much further from the training texts evaluation queries lie than training queries that were held out of them.

    Both are `nearest` cosines to the same texts. `far` is the share of evaluation queries below the fifth percentile of
    the held-out ones: 0.05 where they are of the same kind, 1 where the training texts know nothing like them.
    """
    bar = float(np.quantile(held_out, FAR))
    marks = (0.05, 0.25, 0.5, 0.75, 0.95)
    return {
        "quantiles": list(marks),
        "training": np.quantile(held_out, marks).round(4).tolist(),
        "evaluation": np.quantile(evaluation, marks).round(4).tolist(),
        "bar": bar,
        "far": float((evaluation < bar).mean()),
    }


def _features(forms: Sequence[Signature]) -> dict[str, float]:
    """Share of the queries with each single feature, by the words that name it."""
    counts: Counter[str] = Counter()
    for form in forms:
        counts[_OPENINGS[form.opening]] += 1
        counts[f"have {form.words} words"] += 1
        counts["end with a question mark" if form.question_mark else "end without a question mark"] += 1
        counts["hold digits"] += form.digits
        counts["are all lower case" if form.lower_case else "hold capitals"] += 1
    return {name: count / len(forms) for name, count in counts.items()}


_OPENINGS = {
    "wh-word": "open with a wh-word",
    "auxiliary": "open with an auxiliary verb",
    "command": "open with a command",
    "keywords": "have no function word",
    "other": "open with another word",
}
