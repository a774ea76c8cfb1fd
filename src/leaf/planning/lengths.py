"""How many tokens texts have: counted on a sample where there is one, else from what is known of their source."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaf.encoder import Role
from leaf.speed.mix import KINDS, LONGEST, Kind

#: Characters of English a WordPiece token, spaces included: 4.0 to 5.3 over the 36 sources of the ladder's texts, this
#: on average.
CHARACTERS_PER_TOKEN = 4.6
#: [CLS] and [SEP].
SPECIAL = 2
#: Tokens of a text of which nothing is known: about the mean of the paper's queries, and of its documents, cut at 512.
ASSUMED: dict[Role, float] = {"query": 20, "document": 300}
_QUANTILES = 200


@dataclass(frozen=True)
class Reader:
    """Whoever reads the texts: a tokenizer (None is not here), where it cuts, and what it puts before a text."""

    tokenizer: Path | None
    max_length: int | None
    query_prompt: str = ""
    document_prompt: str = ""
    is_table: bool = False
    """A lookup table has no special tokens."""

    @property
    def prompts(self) -> dict[Role, str]:
        """The prompts by role."""
        return {"query": self.query_prompt, "document": self.document_prompt}


@dataclass(frozen=True)
class Lengths:
    """Tokens of texts before any cut, of a sample `[n]`, and where they are from."""

    tokens: NDArray[np.float64]
    origin: str
    """`measured`, `about`, `paper` or `assumed`."""
    has_shape: bool = True
    """False where only the mean is known, so that nobody can say how many texts are cut."""

    def mean(self, limit: int | None) -> float:
        """Mean tokens of a text cut at `limit`."""
        return float(self._cut(limit).mean())

    def squares(self, limit: int | None) -> float:
        """Mean squared tokens of a text cut at `limit`: what attention costs."""
        return float((self._cut(limit) ** 2).mean())

    def share_cut(self, limit: int | None) -> float | None:
        """Share of the texts that are longer than `limit`; None where that is not known."""
        if limit is None:
            return 0.0
        return float((self.tokens > limit).mean()) if self.has_shape else None

    def _cut(self, limit: int | None) -> NDArray[np.float64]:
        return self.tokens if limit is None else np.minimum(self.tokens, limit)


def measure(texts: Sequence[tuple[str, Role]], reader: Reader) -> Lengths:
    """Lengths of a sample as `reader` sees it; from its characters where the tokenizer is not on this machine."""
    prompts, special = reader.prompts, 0 if reader.is_table else SPECIAL
    backend = _backend(reader.tokenizer)
    if backend is None:
        added = {role: special + prompt_tokens(prompt, None) for role, prompt in prompts.items()}
        return Lengths(np.array([len(text) / CHARACTERS_PER_TOKEN + added[kind] for text, kind in texts]), "characters")
    prompted = [prompts[kind] + text for text, kind in texts]
    encodings = backend.encode_batch_fast(prompted, add_special_tokens=not reader.is_table)
    return Lengths(np.array([len(each.ids) for each in encodings], dtype=float), "measured")


def expect(mean: float | None, kind: Kind | None, query_share: float, reader: Reader) -> Lengths:
    """Lengths of texts that cannot be read.

    `mean` is the recipe's, tokens cut at 512; `kind` the kind of the paper's texts that they are; with neither, a mean
    by role is assumed. The reader's prompt and special tokens count as they do on a sample.
    """
    tokens = _quantiles(kind) if kind is not None else np.array([mean or 0.0])
    if mean is not None:
        # Stretched until its mean is the one that was told; a mean at the cut itself cannot be exceeded.
        for _ in range(50):
            tokens = tokens * (min(mean, LONGEST - 1) / np.minimum(tokens, LONGEST).mean())
    elif kind is None:
        tokens = np.array([query_share * ASSUMED["query"] + (1 - query_share) * ASSUMED["document"]])
    roles: Sequence[tuple[Role, float]] = (("query", query_share), ("document", 1 - query_share))
    prompt = sum(share * prompt_tokens(reader.prompts[role], reader.tokenizer) for role, share in roles)
    origin = "about" if mean is not None else "assumed" if kind is None else "paper"
    return Lengths(tokens + prompt - (SPECIAL if reader.is_table else 0), origin, has_shape=kind is not None)


def paper_kind(name: str) -> Kind | None:
    """The kind of the paper's texts (Table 1) that a source of this name holds: `CC-News 2016` → CC-News documents."""
    return next((kind for kind in KINDS if name.startswith(_SHORT[kind.name])), None)


def prompt_tokens(prompt: str, tokenizer: Path | None) -> float:
    """Tokens that a prompt adds to a text; without the tokenizer, its words and marks: prompts have common words."""
    backend = _backend(tokenizer)
    if backend is None:
        return len(re.findall(r"\w+|[^\w\s]", prompt))
    return len(backend.encode(prompt, add_special_tokens=False).ids)


#: `FineWeb documents` → `FineWeb`: the last word says what they are.
_SHORT: Mapping[str, str] = {
    kind.name: kind.name.removesuffix(" documents").removesuffix(" queries").removesuffix(" questions")
    for kind in KINDS
}


def _quantiles(kind: Kind) -> NDArray[np.float64]:
    normal = NormalDist()
    steps = np.array([normal.inv_cdf((i + 0.5) / _QUANTILES) for i in range(_QUANTILES)])
    return np.asarray(kind.median * np.exp(kind.spread * steps))


@lru_cache(8)
def _backend(path: Path | None) -> Any:
    """The tokenizer at `path` with nothing cut; None where there is none, or none that can be read."""
    if path is None:
        return None
    from tokenizers import Tokenizer

    try:
        backend: Any = Tokenizer.from_file(str(path))
    except Exception:  # tokenizers raises the bare class
        return None
    backend.no_truncation()
    backend.no_padding()
    return backend
