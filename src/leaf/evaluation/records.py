"""Scores on disk: one small JSON file per measurement, what it was computed from beside it.

    scores/scifact.asymmetric.student.ndcg@10.json            what was measured, on what, by which code
    scores/per-query/scifact.asymmetric.student.ndcg@10.json  query id → value, which intervals are made from

Correlations and average precisions are no means over queries: they keep each pair's similarity beside its gold value
instead, so that an interval can be made for them too. A record is written after its values: where it is, both are.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from leaf.errors import LeafError
from leaf.files import write_json

Task = Literal["retrieval", "reranking", "sts", "classification", "clustering", "pair_classification", "summarization"]
#: The measure of each task that tables show and retention is made of; the records may hold more.
MAIN_MEASURES: Mapping[Task, str] = {
    "retrieval": "ndcg@10",
    "reranking": "map@1000",
    "sts": "spearman",
    "classification": "accuracy",
    "clustering": "v_measure",
    "pair_classification": "ap",
    "summarization": "spearman",
}
Mode = Literal["teacher", "standard", "asymmetric", "bm25"]

PER_QUERY = "per-query"
PER_QUERY_MEASURES = ("ndcg@10", "recall@100")
EVIDENCE = {"per_query", "pairs"}


@dataclass(frozen=True)
class Score:
    """One measurement. All but `per_query` and `pairs` is in the JSON record."""

    dataset: str
    task: Task
    measure: str
    """`ndcg@10`, `recall@100`, `spearman` … (`MAIN_MEASURES`), or the name mteb gives it."""
    mode: Mode
    """`standard`: one student on both sides. `asymmetric`: queries by a student, documents by its teacher."""
    value: float
    """0 to 1 (Spearman: −1 to 1); the mean over queries, or the correlation over pairs."""
    num_queries: int
    """Queries scored; elsewhere sentence pairs, or texts."""
    encoder: str
    queries: str
    """What encoded the queries; where a task has no two sides, all of its texts."""
    documents: str
    """What encoded the documents; where a task has no two sides, all of its texts."""
    compute_dtype: str
    """What the encoders computed in: float32, or bfloat16 where a sample of the texts hardly moves. BM25: none."""
    dataset_digest: str
    notes: tuple[str, ...]
    """What a reader of the value should know about the dataset."""
    provenance: Mapping[str, Any]
    per_query: Mapping[str, float] = field(default_factory=dict, repr=False)
    """Query id → value; their mean is `value`. For classification test text → share of the classifiers that are right,
    for clustering sample → v-measure. Empty where the measure is no mean."""
    pairs: tuple[tuple[float, float], ...] = field(default=(), repr=False)
    """(similarity, gold) of each pair, for measures over pairs. The order is the dataset's."""

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
        if record.per_query or record.pairs:
            write_json(folder / PER_QUERY / name, record.per_query or {"pairs": record.pairs})
        write_json(folder / name, {key: value for key, value in asdict(record).items() if key not in EVIDENCE})


def read(folder: str | Path) -> list[Score]:
    """The records of `folder` with their per-query values, in the order of their file names."""
    # A manifest lies in the same folder and has no four dots in its name.
    return [_read(path) for path in sorted(Path(folder).glob("*.*.*.*.json"))]


def _read(path: Path) -> Score:
    record = _json(path)
    expected = {each.name for each in fields(Score)} - EVIDENCE
    if record.keys() != expected:
        odd = ", ".join(sorted(record.keys() ^ expected))
        raise LeafError(f"{path} is not a score of this version of leaf (missing or unknown: {odd}); evaluate again")
    record["notes"] = tuple(record["notes"])
    beside = path.parent / PER_QUERY / path.name
    # Some of mteb's measures come as a number alone; of ours the values are there.
    kept = _json(beside) if beside.exists() or record["measure"] in PER_QUERY_MEASURES else {}
    pairs = tuple((similarity, gold) for similarity, gold in kept.pop("pairs", ()))
    for values in (kept, pairs):
        if values and len(values) != record["num_queries"] and record["task"] != "clustering":
            raise LeafError(
                f"{path} has {record['num_queries']} queries and {PER_QUERY}/{path.name} {len(values)}; evaluate again"
            )
    return Score(**record, per_query=kept, pairs=pairs)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LeafError(f"{path} cannot be read ({error}); delete the record and evaluate again") from error
    if not isinstance(value, dict):
        raise LeafError(f"{path} is not a JSON object; delete the record and evaluate again")
    return value
