"""What a run measured: rounds of each contestant, medians, and how many times as fast ours is, as plain JSON."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from rich.table import Table

from leaf.provenance import provenance

#: The contestant that the others are compared with; it comes first in every record.
OURS = "leaf"
#: What a contestant is called where people read it.
NAMES = {
    OURS: "leaf",
    "padded": "padded loop",
    "sentence_transformers": "Sentence Transformers",
    "sentence_transformers_float32": "Sentence Transformers (float32)",
}


@dataclass(frozen=True)
class Round:
    """What one contestant did in one round, warm-up excluded."""

    texts: int
    tokens: int
    """Tokens of the texts."""
    computed: int
    """Tokens that the model computed on, padding included."""
    seconds: float
    gpu_memory_gb: float | None = None
    """The most GPU memory held meanwhile, by all contestants together, in 10⁹ bytes."""

    def to_json(self) -> dict[str, float]:
        """The rates and what they were computed from."""
        rates = {
            "texts_per_second": self.texts / self.seconds,
            "tokens_per_second": self.tokens / self.seconds,
            "padding": 1 - self.tokens / self.computed,
            "texts": self.texts,
            "seconds": self.seconds,
        }
        if self.gpu_memory_gb is not None:
            rates["gpu_memory_gb"] = self.gpu_memory_gb
        return rates


def make_record(
    what: str,
    settings: Mapping[str, Any],
    rounds: Mapping[str, Sequence[Round]],
    checks: Mapping[str, Any],
    packages: Sequence[str] = (),
) -> dict[str, Any]:
    """The record of one run.

    `checks` is the evidence that all contestants computed the same thing. `packages` names what a contestant used
    besides the packages that every record has.
    """
    rates = {name: [each.to_json() for each in theirs] for name, theirs in rounds.items()}
    made_by = provenance()
    made_by["versions"] = {**made_by["versions"], **{package: metadata.version(package) for package in packages}}
    return {
        "what": what,
        "settings": dict(settings),
        "contestants": {name: _contestant(theirs) for name, theirs in rates.items()},
        "ratios": {name: _ratio(rates[OURS], theirs) for name, theirs in rates.items() if name != OURS},
        "checks": dict(checks),
        "provenance": made_by,
    }


def result_table(record: Mapping[str, Any]) -> Table:
    """The record for a terminal: medians over rounds, least to most in brackets."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for column in ("texts/s", "tokens/s", "padding", "leaf's speed-up"):
        table.add_column(column, justify="right")
    for row in rows(record):
        table.add_row(*row)
    return table


def rows(record: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Name, texts a second, tokens a second, padding and ratio of each contestant, in words."""
    for name, each in record["contestants"].items():
        texts, ratio = each["texts_per_second"], record["ratios"].get(name)
        yield (
            NAMES[name],
            f"{rate(texts['median'])} ({rate(texts['min'])}–{rate(texts['max'])})",
            rate(each["tokens_per_second"]["median"]),
            f"{100 * each['padding']:.0f} %",
            f"{ratio['median']:.2f} × ({ratio['min']:.2f}–{ratio['max']:.2f})" if ratio else "",
        )


def rate(value: float) -> str:
    """Texts or tokens a second to three digits or so."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _contestant(rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {
        "texts_per_second": _spread([each["texts_per_second"] for each in rounds]),
        "tokens_per_second": _spread([each["tokens_per_second"] for each in rounds]),
        "padding": statistics.fmean(each["padding"] for each in rounds),
        "rounds": list(rounds),
    }


def _ratio(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Texts a second, ours divided by theirs of the same round: what slows the machine for a while slows both."""
    return _spread(
        [mine["texts_per_second"] / other["texts_per_second"] for mine, other in zip(ours, theirs, strict=True)]
    )


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
