"""Scores on disk: one small JSON file per measurement, per-query values beside it.

    scores/scifact.asymmetric.student.ndcg@10.json            what was measured, on what, by which code
    scores/per-query/scifact.asymmetric.student.ndcg@10.json  query id → value, which intervals are made from

A record is written after its values, so where it is there both are.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from leaf.errors import LeafError
from leaf.files import write_json

Task = Literal["retrieval", "sts"]
Measure = Literal["ndcg@10", "recall@100", "spearman"]
Mode = Literal["teacher", "standard", "asymmetric", "bm25"]

PER_QUERY = "per-query"


@dataclass(frozen=True)
class Score:
    """One measurement. All but `per_query` is in the JSON record."""

    dataset: str
    task: Task
    measure: Measure
    mode: Mode
    """`standard`: one student on both sides. `asymmetric`: queries by a student, documents by its teacher."""
    value: float
    """0 to 1 (Spearman: −1 to 1); the mean over queries, or the correlation over pairs."""
    num_queries: int
    """Queries scored; for sts, sentence pairs."""
    encoder: str
    queries: str
    """What encoded the queries; for sts, both sentences."""
    documents: str
    """What encoded the documents; for sts, both sentences."""
    dataset_digest: str
    notes: tuple[str, ...]
    """What a reader of the value should know about the dataset."""
    provenance: Mapping[str, Any]
    per_query: Mapping[str, float] = field(default_factory=dict, repr=False)
    """Query id → value. Empty for sts, where the measure is not a mean over pairs."""

    @property
    def filename(self) -> str:
        """`<dataset>.<mode>.<encoder>.<measure>.json`, with `_` for what does not belong in a file name."""
        parts = (self.dataset, self.mode, self.encoder, self.measure)
        return ".".join(re.sub(r"[^\w@.-]+", "_", part) for part in parts) + ".json"


def write(records: Iterable[Score], folder: str | Path) -> None:
    """Writes each record into `folder`, over an earlier one of the same file name."""
    folder = Path(folder)
    by_name: dict[str, Score] = {}
    for record in records:
        other = by_name.setdefault(record.filename, record)
        if other is not record:
            raise LeafError(
                f"two scores are called {record.filename} "
                f"(encoders '{other.encoder}' and '{record.encoder}'): give encoders and datasets other names"
            )
    for name, record in by_name.items():
        # The record goes last: where it is there, its values are complete.
        if record.per_query:
            write_json(folder / PER_QUERY / name, record.per_query)
        write_json(folder / name, {key: value for key, value in asdict(record).items() if key != "per_query"})


def read(folder: str | Path) -> list[Score]:
    """The records of `folder` with their per-query values, in the order of their file names."""
    # A manifest lies in the same folder and has no four dots in its name.
    return [_read(path) for path in sorted(Path(folder).glob("*.*.*.*.json"))]


def _read(path: Path) -> Score:
    record = _json(path)
    expected = {each.name for each in fields(Score)} - {"per_query"}
    if record.keys() != expected:
        odd = ", ".join(sorted(record.keys() ^ expected))
        raise LeafError(f"{path} is not a score of this version of leaf (missing or unknown: {odd}); evaluate again")
    per_query = _json(path.parent / PER_QUERY / path.name) if record["task"] == "retrieval" else {}
    if per_query and len(per_query) != record["num_queries"]:
        raise LeafError(
            f"{path} has {record['num_queries']} queries and {PER_QUERY}/{path.name} {len(per_query)}; evaluate again"
        )
    return Score(**{**record, "notes": tuple(record["notes"]), "per_query": per_query})


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LeafError(f"{path} cannot be read ({error}); delete the record and evaluate again") from error
    if not isinstance(value, dict):
        raise LeafError(f"{path} is not a JSON object; delete the record and evaluate again")
    return value
