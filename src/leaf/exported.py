"""Query encoders as they are served: how long a query takes, and what ONNX files find among the teacher's documents.

An int8 file is another encoder than the student it was made from, so it has scores of its own. Nothing but queries is
encoded here: the documents' vectors are those that the run was scored with.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from leaf.encoder import AsymmetricEncoder, Encoder
from leaf.errors import LeafError
from leaf.evaluation import records
from leaf.evaluation.datasets import Dataset, RetrievalSet
from leaf.evaluation.evaluate import evaluate
from leaf.evaluation.records import Score
from leaf.evaluation.vectors import VectorCache
from leaf.files import write_json
from leaf.progress import progress, say
from leaf.provenance import provenance
from leaf.run import Stage, read_manifest
from leaf.runtime.speed import query_latencies

#: What is scored and timed of an exported student, where it is there: the exact file and the quick one.
PRECISIONS = ("fp32", "q8")
#: Where the scores are: with those that they are compared with, so that scoring again takes both away.
EXPORTED = "scores/exported"
#: Queries timed, one at a time.
NUM_TIMED = 100


def measure_exported(
    folder: Path,
    manifests: Mapping[str, Mapping[str, Any]],
    loaded: Sequence[Dataset],
    open_teacher: Callable[[], Encoder],
    queries: Sequence[str],
    vectors: Path,
) -> None:
    """Scores and times the ONNX files of the run `folder`, once it has been scored on `loaded`, its own sets.

    Writes `scores/exported/` and `speed/exported/`, names being `student-2l-fp32` and `student-2l-q8`; nothing where
    they are complete, and where there is no retrieval set. `manifests` are what `leaf export` wrote, by student;
    `vectors` is where the teacher's are.
    """
    scored, sets = read_manifest(folder / "scores"), [each for each in loaded if isinstance(each, RetrievalSet)]
    if scored is None or not sets or scored["inputs"]["datasets"] != {each.name: each.digest for each in loaded}:
        return
    files = {student: manifest["fingerprint"] for student, manifest in manifests.items()}
    stage = Stage(folder / EXPORTED, {"scores": scored["fingerprint"], "onnx": files})
    known = read_manifest(stage.folder)
    if known is not None and known["fingerprint"] == stage.fingerprint:
        return
    shutil.rmtree(stage.folder, ignore_errors=True)
    encoders = _open(folder, manifests)
    if encoders:
        teacher = open_teacher()
        records.write(score_queries(teacher, encoders, sets, VectorCache(vectors, persist=[teacher])), stage.folder)
        for name, each in time_queries(encoders, queries).items():
            write_json(folder / "speed" / "exported" / f"{name}.json", {**each, "provenance": provenance()})
    stage.close(encoders=list(encoders))


def _open(folder: Path, manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, Encoder]:
    """The ONNX files of the students in the run `folder`, by name."""
    from leaf.runtime.encoder import OnnxEncoder

    return {
        f"{student}-{precision}": OnnxEncoder(folder / student, precision=precision, name=f"{student}-{precision}")
        for student, manifest in manifests.items()
        for precision in PRECISIONS
        if precision in manifest["files"]
    }


def score_queries(
    teacher: Encoder, encoders: Mapping[str, Encoder], sets: Sequence[RetrievalSet], cache: VectorCache
) -> list[Score]:
    """Asymmetric scores: queries by each of `encoders`, recorded under its name, documents by `teacher`."""
    pairs = {name: AsymmetricEncoder(encoder, teacher) for name, encoder in encoders.items()}
    found = []
    missing = cache.num_missing((pair, dataset) for dataset in sets for pair in pairs.values())
    with progress("scoring ONNX files", missing) as bar:
        for dataset in sets:
            for name, pair in pairs.items():
                bar.advance(0, note=f"{name} on {dataset.name}")
                scores = evaluate(pair, dataset, "asymmetric", cache, bar=bar)
                found += [replace(each, encoder=name) for each in scores]
            cache.forget()
    return found


def time_queries(encoders: Mapping[str, Encoder], queries: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A record of `query_latencies` for each encoder that computes here, with `runtime`, `precision` and `device`.

    Queries are spread over `queries`. Raises `LeafError` where there are none, and where no encoder computes here.
    """
    if not queries:
        raise LeafError("no queries to time: give a retrieval set with --data")
    facts = {name: about for name, encoder in encoders.items() if (about := _facts(encoder)) is not None}
    if absent := [name for name in encoders if name not in facts]:
        say(f"not timed, since it does not compute here: {', '.join(absent)}")  # a network's time, or a disk's
    if not facts:
        raise LeafError("no encoder to time: a server's and an API's time is mostly the network's")
    say(f"timing {NUM_TIMED} queries, one at a time")
    asked = list(queries[:: max(1, len(queries) // NUM_TIMED)][:NUM_TIMED])
    timed = query_latencies({name: encoders[name] for name in facts}, asked, NUM_TIMED)
    return {name: {**each, **facts[name]} for name, each in timed.items()}


def _facts(encoder: Encoder) -> dict[str, Any] | None:
    """What computes an encoder; None where that is not this machine, or cannot be said."""
    from leaf.runtime.encoder import OnnxEncoder
    from leaf.teacher.model import SentenceTransformerEncoder

    if isinstance(encoder, OnnxEncoder):
        return {"runtime": "onnxruntime", "precision": encoder.usage.precision, "device": "cpu"}
    if isinstance(encoder, SentenceTransformerEncoder):
        encoder.compute_dtype = "float32"  # for one query, the casts would cost more than they save
        return {"runtime": "torch", "precision": "fp32", "device": str(encoder.model.device)}
    return None
