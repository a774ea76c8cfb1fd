"""What int8 queries keep: a student's fp32 and q8 files over its teacher's documents. Writes retention.json beside it.

python results/int8/retention.py STUDENT TEACHER DATA [CACHE]
"""

import sys
from pathlib import Path

from leaf.encoder import AsymmetricEncoder
from leaf.evaluation.datasets import RetrievalSet, load_all
from leaf.evaluation.evaluate import evaluate
from leaf.evaluation.statistics import mean_retention
from leaf.evaluation.suite import use_bfloat16_where_exact
from leaf.evaluation.vectors import VectorCache
from leaf.files import write_json
from leaf.loading import load
from leaf.provenance import provenance
from leaf.runtime import OnnxEncoder

student, model, data = sys.argv[1:4]
cache = VectorCache(Path(sys.argv[4]) if len(sys.argv) > 4 else None)
sets = [each for each in load_all(Path(data)) if isinstance(each, RetrievalSet)]
teacher = load(model, device="cpu")
use_bfloat16_where_exact([teacher], list(sets[0].documents.values()))
encoders = {"teacher": teacher} | {
    precision: AsymmetricEncoder(OnnxEncoder(student, precision=precision), teacher) for precision in ("fp32", "q8")
}
per_query: dict[str, list[dict[str, float]]] = {name: [] for name in encoders}
values: dict[str, dict[str, float]] = {name: {} for name in encoders}
for dataset in sets:
    for name, encoder in encoders.items():
        scores = evaluate(encoder, dataset, "teacher" if name == "teacher" else "asymmetric", cache)
        score = next(each for each in scores if each.measure == "ndcg@10")
        per_query[name].append(dict(score.per_query))
        values[name][dataset.name] = score.value
    cache.forget()


def kept(first: str, second: str) -> list[float]:
    """Percent of `second`, mean over sets, with its 95 % interval."""
    return list(mean_retention(list(zip(per_query[first], per_query[second], strict=True))))


record = {
    "student": Path(student).name,
    "nDCG@10": values,
    "asymmetric": {name: kept(name, "teacher") for name in ("fp32", "q8")},
    "q8_of_fp32": kept("q8", "fp32"),
    "provenance": provenance(),
}
write_json(Path(__file__).with_name("retention.json"), record)
print({key: record[key] for key in ("asymmetric", "q8_of_fp32")})
