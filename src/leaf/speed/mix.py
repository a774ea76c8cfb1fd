"""How long the paper's training texts are, for timing on made-up texts of those lengths.

Table 1 of the paper counts the texts of each kind. It does not say how many tokens they have: medians and spreads below
are assumptions, chosen so that the mean over the mix is the 192 tokens that such texts came to when they were tokenised
and cut at 512.
"""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Tokens after which the paper's models cut a text, special tokens included.
LONGEST = 512
#: One word between [CLS] and [SEP].
SHORTEST = 3


class Kind(NamedTuple):
    """One kind of text: its count in Table 1, and the log-normal that its lengths are assumed to follow."""

    name: str
    texts: int
    median: float
    """Tokens of the middle text, special tokens included, before cutting."""
    spread: float
    """Standard deviation of the logarithm of a length."""


KINDS = (
    Kind("FineWeb documents", 3_000_000, 295, 0.9),  # web pages: about every fourth is cut
    Kind("CC-News documents", 900_000, 300, 0.7),
    Kind("BERT tokens", 30_000, 3, 0.0),  # each by itself
    Kind("Vocabulary", 800_000, 21, 0.4),  # a definition each, about 90 characters
    Kind("Amazon QA queries", 979_000, 18, 0.6),
    Kind("LoTTE queries", 27_000, 12, 0.4),
    Kind("MS MARCO queries", 502_000, 9, 0.35),
    Kind("PubMedQA questions", 272_000, 24, 0.35),
    Kind("Trivia QA questions", 73_000, 20, 0.45),
)


def sample_lengths(count: int, seed: int, longest: int = LONGEST) -> NDArray[np.int64]:
    """Tokens of `count` texts of the mix in random order, special tokens included, `[count]`.

    Kinds have their shares, and lengths are evenly spaced quantiles of each kind: a few hundred texts already have the
    mean of the whole mix, so that a short run times what a long one would. `seed` orders them.
    """
    shares = np.cumsum([kind.texts for kind in KINDS]) / sum(kind.texts for kind in KINDS)
    numbers = np.diff(np.round(shares * count).astype(int), prepend=0)
    lengths = np.concatenate([_quantiles(kind, number) for kind, number in zip(KINDS, numbers.tolist(), strict=True)])
    return np.random.default_rng(seed).permutation(np.clip(lengths, SHORTEST, longest))


def _quantiles(kind: Kind, number: int) -> NDArray[np.int64]:
    normal = NormalDist(np.log(kind.median), kind.spread) if kind.spread else None
    exponents = [normal.inv_cdf((i + 0.5) / number) if normal else np.log(kind.median) for i in range(number)]
    return np.round(np.exp(exponents)).astype(np.int64)
