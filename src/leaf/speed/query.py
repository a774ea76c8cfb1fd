"""`leaf speed MODEL…`: models timed as encoders of queries and of documents, as in the paper's Table 8 and Figure 12.

    leaf speed table8 --queries queries.txt --documents passages.txt --out results/speed
    leaf speed runs/demo/student-2l --precision fp32,q8 --against shape:bert-base

A model is timed in ONNX Runtime where it has been exported, and through torch otherwise, which the record says.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from leaf.encoder import Role
from leaf.errors import LeafError
from leaf.files import digest
from leaf.provenance import provenance
from leaf.runtime.encoder import TOKENS_PER_THREAD, usable_cores
from leaf.runtime.speed import ROLES, Plan, check_texts, take_turns
from leaf.speed.contestants import TORCH, Contestant, Entrant, enter, names, open_contestants

#: What `leaf speed table8` times: the paper's teachers and students by their architecture, and what goes beyond them.
TABLE_8 = (
    "shape:bert-base",
    "shape:minilm-l6",
    "shape:minilm-l6:q8",
    "shape:minilm-l2:q8",
    "shape:table",
    "shape:bert-large",
    "shape:minilm-l6-d1024",
)
TABLE_8_AGAINST = ("shape:bert-base", "shape:bert-large")
#: Texts of which tokens are counted, for the record.
COUNTED = 1000
#: Docstrings that are read where no texts are given: all of them would take seconds.
DOCSTRINGS = 1000
#: For a first look.
QUICK = Plan(batch_sizes=(1, 4, 16), rounds=3, min_rounds=1, patience_s=10, lone_queries=50, lone_s=0.5)


@dataclass(frozen=True)
class Texts:
    """What is encoded."""

    texts: Mapping[Role, Sequence[str]]
    source: Mapping[Role, str]
    """Where they come from, for the record."""


def time_models(
    models: Sequence[str],
    texts: Texts,
    *,
    against: Sequence[str] = (),
    precisions: Sequence[str] = (),
    tokenizer: str | None = None,
    threads: int | None = None,
    plan: Plan | None = None,
) -> dict[str, Any]:
    """The record of one contest of `models` and of `against`, by whose speed the others' is divided.

    Models are written as in `leaf.speed.contestants`; `table8` is the paper's table. `precisions` are for those that
    name none. `tokenizer` is the model whose tokenizer `shape:` models get. Each contestant computes on `threads`
    threads; None: one for each core. Raises `LeafError` for a model that cannot be loaded, and for too few texts.
    """
    plan, threads = plan or Plan(), threads or usable_cores()
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # the tokenizers', read when the first batch is tokenised
    check_texts(texts.texts, plan)
    entrants, others = _enter(models, against, precisions)
    called = names(entrants)
    with open_contestants(entrants, threads=threads, tokenizer=tokenizer) as contestants:
        timed = take_turns(
            {name: each.encoder for name, each in contestants.items()},
            texts.texts,
            against=[called[each] for each in others],
            plan=plan,
            tokenisers={name: each.count_tokens for name, each in contestants.items()},
        )
        about = {role: _about(texts, role, contestants) for role in ROLES}
    made_by = provenance()
    made_by["versions"] = {**made_by["versions"], **_versions("onnxruntime")}
    return {
        "what": "query",
        "settings": {
            **asdict(plan),
            "batch_sizes": list(plan.batch_sizes),
            "device": "cpu",
            "threads": threads,
            "tokens_per_thread": TOKENS_PER_THREAD,
            "against": [called[each] for each in others],
            "texts": about,
        },
        "contestants": {name: {**each.about, **timed["contestants"][name]} for name, each in contestants.items()},
        "ratios": timed["ratios"],
        "provenance": made_by,
    }


def read_texts(queries: Path | None, documents: Path | None, data: Path | None) -> Texts:
    """Queries and documents from files (one a line in .txt), from a BEIR folder, or else from installed documentation.

    Raises `LeafError` for a file that cannot be read, and for one kind of text without the other.
    """
    if data is not None:
        if queries or documents:
            raise LeafError("give either --data, or --queries and --documents")
        from leaf.evaluation.datasets import load_texts

        found = load_texts(data)
        return Texts(dict(zip(ROLES, found, strict=True)), dict.fromkeys(ROLES, data.name))
    if queries and documents:
        return Texts(
            {"query": _read(queries, "query"), "document": _read(documents, "document")},
            {"query": queries.name, "document": documents.name},
        )
    if queries or documents:
        raise LeafError("queries and documents are timed apart: give --queries and --documents, or neither")
    from leaf.texts.installed import entries

    docs = list(islice(entries([]), DOCSTRINGS))
    said = "docstrings of the standard library"
    return Texts(
        {
            "query": [each.summary for each in docs if each.summary],
            "document": [each.body for each in docs if each.body],
        },
        {"query": f"{said}: first sentences", "document": f"{said}: the rest"},
    )


def entered(models: Sequence[str], against: Sequence[str], precisions: Sequence[str]) -> dict[str, str | None]:
    """Who will be timed, by the names that `leaf evaluate` gives them, and in which precision; nothing is loaded."""
    entrants, _ = _enter(models, against, precisions)
    return {name.removesuffix(TORCH): entrant.precision for entrant, name in names(entrants).items()}


def latencies(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The times of single queries in a record, by the names that `entered` has."""
    found = {}
    for name, each in record["contestants"].items():
        timed = {key: each[key] for key in ("runtime", "precision")} | {"median_ms": each["latency_ms"]["p50"]}
        timed["threads"], timed["num_queries"] = record["settings"]["threads"], each["latency_ms"]["num_queries"]
        found[name.removesuffix(TORCH)] = timed
    return found


def make_plan(batch_sizes: Sequence[int], rounds: int | None, *, quick: bool) -> Plan:
    """The plan that the command line asks for: the paper's, or a quick one, with what it sets changed."""
    if odd := [each for each in batch_sizes if each < 1]:
        raise LeafError(f"--batch-sizes {odd[0]} is no batch; expected numbers from 1 on, for example 1,8,32")
    plan = QUICK if quick else Plan()
    sizes = tuple(sorted(set(batch_sizes))) or plan.batch_sizes
    return replace(plan, batch_sizes=sizes, rounds=rounds or plan.rounds)


def _enter(
    models: Sequence[str], against: Sequence[str], precisions: Sequence[str]
) -> tuple[list[Entrant], list[Entrant]]:
    """All who take part, and those of them that the others are held against."""
    if "table8" in models:
        at = list(models).index("table8")
        models, against = [*models[:at], *TABLE_8, *models[at + 1 :]], [*TABLE_8_AGAINST, *against]
    others = enter(against)
    return list(dict.fromkeys([*enter(models, precisions), *others])), others


def _read(file: Path, role: Role) -> list[str]:
    if not file.is_file():
        raise LeafError(f"no file '{file}'; give texts as .txt (one a line), .jsonl, .csv, .tsv or .parquet")
    if file.suffix == ".txt":
        lines: Iterable[object] = file.read_text(encoding="utf-8").splitlines()
    else:
        try:
            from leaf.texts.sources import read
        except ImportError as error:
            raise LeafError(f"reading {file.name} needs pyarrow; pip install 'leaf[train]', or give a .txt") from error
        from leaf.recipe import TextSource

        lines = (row.text for row in read(TextSource(source=str(file), kind=role), seed=0))
    return [line for line in lines if isinstance(line, str) and line.strip()]


def _about(texts: Texts, role: Role, contestants: Mapping[str, Contestant]) -> dict[str, Any]:
    """What was encoded: where from, how many, how long (in tokens of the first contestant), and a digest of all."""
    found = list(texts.texts[role])
    count_tokens = next(iter(contestants.values())).count_tokens
    return {
        "source": texts.source[role],
        "texts": len(found),
        "mean_characters": fmean(map(len, found)),
        "mean_tokens": fmean(count_tokens(found[:COUNTED], role)),
        "digest": digest(found),
    }


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
