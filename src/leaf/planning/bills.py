"""What is paid by the token, and what evaluation adds: sets on this machine are counted, public benchmarks are not."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leaf.evaluation.datasets import TABLES
from leaf.planning.lengths import CHARACTERS_PER_TOKEN
from leaf.planning.sampling import count_lines
from leaf.recipe import Api
from leaf.teacher.providers import provider_of

#: Texts in one request where the recipe does not say, if the provider takes as many (`leaf.recipe.Api`).
BATCH_TEXTS = 256


def api_bill(model: str, settings: Api, texts: float, tokens: float) -> dict[str, Any]:
    """Dollars and seconds for so many texts and tokens; None for what the recipe gives no number for."""
    provider, _ = provider_of(model)
    batch_texts = settings.batch_texts or min(BATCH_TEXTS, provider.max_texts)
    batch_tokens = settings.batch_tokens or provider.max_tokens
    requests = max(math.ceil(texts / batch_texts), math.ceil(tokens / batch_tokens))
    waits = []
    if settings.requests_per_minute:
        waits.append(requests / settings.requests_per_minute)
    if settings.tokens_per_minute:
        waits.append(tokens / settings.tokens_per_minute)
    return {
        "texts": texts,
        "tokens": tokens,
        "price": settings.price,
        "cost": None if settings.price is None else tokens / 1e6 * settings.price,
        "requests": requests,
        "seconds": 60 * max(waits) if waits else None,
    }


def count_sets(data: Sequence[str], pairs: int, pair_tokens: float) -> dict[str, Any]:
    """Texts and tokens of the evaluation sets in `data` that are on this machine, and which of them are not.

    Tokens are the files' bytes over the characters of a token: a little too many, for the keys of JSON are counted.
    """
    found: dict[str, Any] = {"sets": 0, "texts": 0, "tokens": 0.0, "missing": [], "is_exact": True}
    for name in data:
        if name == "held-out-pairs":
            found["sets"] += 1
            found["texts"] += 2 * pairs
            found["tokens"] += 2 * pairs * pair_tokens
            continue
        path = Path(name).expanduser()
        files = _files(path)
        if not files:
            found["missing"].append(name)
        found["sets"] += sum(not each.name.startswith("queries") for each in files)
        for each in files:
            counted = count_lines(each)
            # A table has a header, and most have two texts a row.
            texts = counted.lines if "jsonl" in each.name else 2 * max(counted.lines - 1, 0)
            found["texts"] += texts
            found["tokens"] += counted.bytes / CHARACTERS_PER_TOKEN
            found["is_exact"] &= counted.is_exact
    return found


def _files(path: Path) -> list[Path]:
    """Files of texts that are scored: corpora, queries and test tables."""
    if path.is_file():
        return [path] if path.name.endswith(TABLES) else []
    return sorted(
        each
        for each in path.rglob("*")
        if each.name.removesuffix(".gz") in ("corpus.jsonl", "queries.jsonl")
        or (each.name.endswith(TABLES) and each.parent.name != "qrels" and not each.name.startswith(("train.", "dev.")))
    )
