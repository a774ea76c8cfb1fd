"""Local copies of benchmark data, for machines that reach no hub: the task gets its data from a folder.

    <mirror>/<TaskName>    or <dataset name>, <owner>__<dataset name>, <owner>/<dataset name>,
                           or as in the hub's own cache, datasets--<owner>--<name>/snapshots/<revision>

Such a folder is a snapshot of the hub's repository (`hf download --repo-type dataset … --local-dir …`). Retrieval and
reranking sets may also lie there without the repository's README, in one of two layouts:

    corpus.jsonl[.gz]  queries.jsonl[.gz]  qrels/<split>.tsv             BEIR's
    corpus/  queries/  qrels/ (or default/), top_ranked/                 the hub's, *.parquet or *.jsonl[.gz]

Whatever the source, mteb's code scores it.
"""

import gzip
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leaf.errors import LeafError, first_line

if TYPE_CHECKING:
    from datasets import Dataset
    from mteb.abstasks import AbsTask

TABLES = (".parquet", ".jsonl", ".jsonl.gz")
QRELS_COLUMNS = ("query-id", "corpus-id", "score")
LAYOUT = "corpus, queries and qrels, each as a folder of .parquet or .jsonl[.gz] files or as BEIR names them"


def find(mirror: Path, task: "AbsTask") -> Path | None:
    """The folder of a task in the mirror; None where it has none.

    Raises `LeafError` for a mirror that is no folder, and for a retrieval set that lacks a part.
    """
    if not mirror.is_dir():
        raise LeafError(f"no mirror at {mirror}: give a folder with a folder for each data set")
    path, revision = task.metadata.dataset["path"], task.metadata.dataset["revision"]
    owner, _, name = path.rpartition("/")
    cached = f"datasets--{path.replace('/', '--')}/snapshots/{revision}"
    candidates = [task.metadata.name, f"{owner}__{name}", path, cached, name]
    folder = next((mirror / each for each in candidates if (mirror / each).is_dir()), None)
    if folder is not None and _is_retrieval(task) and not _has_configs(folder):
        for subset in task.hf_subsets:
            for part in ("corpus", "queries", "qrels"):
                if not _places(folder, subset, part):
                    raise LeafError(f"{folder} has no {part}: expected {LAYOUT}")
    return folder


def load(task: "AbsTask", folder: Path) -> None:
    """Loads a task's data from `folder`, in memory as if mteb had fetched it from the hub.

    Raises `LeafError` for data that is not what the task is made of.
    """
    if _is_retrieval(task) and not _has_configs(folder):
        task.dataset = {
            subset: {split: _retrieval(folder, subset, split) for split in task.eval_splits}
            for subset in task.hf_subsets
        }
        task.dataset_transform()
        task.data_loaded = True
        return
    # The same loader as for the hub, which takes folders too. The instance's metadata hides the class's.
    task.metadata = copy(task.metadata)
    task.metadata.dataset = {**task.metadata.dataset, "path": str(folder.resolve())}
    try:
        task.load_data()
    except Exception as error:  # mteb and datasets raise whatever they stumble over
        reason = first_line(error)[:200]
        raise LeafError(f"{folder} is no copy of the data of {task.metadata.name} ({reason})") from error
    assert task.dataset is not None
    for data in [task.dataset[subset] for subset in task.hf_subsets if subset in task.dataset] or [task.dataset]:
        if missing := set(task.eval_splits) - data.keys():
            raise LeafError(f"{folder} holds the splits {', '.join(data)} of {task.metadata.name}, not {min(missing)}")


def _is_retrieval(task: "AbsTask") -> bool:
    from mteb.abstasks import AbsTaskRetrieval

    return isinstance(task, AbsTaskRetrieval)


def _has_configs(folder: Path) -> bool:
    """Whether the hub's README says which files are what."""
    readme = folder / "README.md"
    return readme.is_file() and "configs:" in readme.read_text(encoding="utf-8")


def _retrieval(folder: Path, subset: str, split: str) -> dict[str, Any]:
    """One split of a retrieval set as mteb's loader returns it."""
    qrels = _qrels(folder, subset, split)
    corpus, queries = (_texts(folder, subset, part, split) for part in ("corpus", "queries"))
    if missing := qrels.keys() - set(queries["id"]):
        raise LeafError(f"{folder}: query '{min(missing)}' is judged but not among the queries")
    queries = queries.select([row for row, query in enumerate(queries["id"]) if query in qrels])
    top_ranked = None
    if files := _files(folder, subset, "top_ranked", split):
        rows = _table(files)
        _require(rows, ("query-id", "corpus-ids"), files[0])
        top_ranked = {str(row["query-id"]): [str(key) for key in row["corpus-ids"]] for row in rows}
    return {"corpus": corpus, "queries": queries, "relevant_docs": qrels, "top_ranked": top_ranked}


def _texts(folder: Path, subset: str, part: str, split: str) -> "Dataset":
    from datasets import Value

    files = _files(folder, subset, part, split)
    rows = _table(files)
    if "_id" in rows.column_names and "id" not in rows.column_names:
        rows = rows.rename_column("_id", "id")
    _require(rows, ("id", "text"), files[0])
    rows = rows.cast_column("id", Value("string"))
    if twice := next((key for key, count in Counter(rows["id"]).items() if count > 1), None):
        raise LeafError(f"{files[0]}: the id '{twice}' is there twice")
    if None in rows["id"] or None in rows["text"]:
        raise LeafError(f"{files[0]}: a row without an id or a text")
    if "title" in rows.column_names and None in rows["title"]:
        titles = [title or "" for title in rows["title"]]
        rows = rows.remove_columns("title").add_column("title", titles)
    kept = ("id", "title", "text", "instruction")
    return rows.select_columns([column for column in kept if column in rows.column_names])


def _qrels(folder: Path, subset: str, split: str) -> dict[str, dict[str, int]]:
    """Query id → document id → relevance."""
    files = _files(folder, subset, "qrels", split)
    qrels: dict[str, dict[str, int]] = {}
    for where, row in _judgements(files):
        try:
            query, document, score = (row[column] for column in QRELS_COLUMNS)
            # As a number first: published files write relevances as 1 and as 1.0.
            qrels.setdefault(str(query), {})[str(document)] = int(float(score))
        except (KeyError, TypeError, ValueError) as error:
            expected = ", ".join(QRELS_COLUMNS)
            raise LeafError(f"{where}: {dict(row)} is no judgement, expected the columns {expected}") from error
    if not qrels:
        raise LeafError(f"{files[0]} holds no judgement")
    return qrels


def _judgements(files: Sequence[Path]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(place for messages, row) of a table, or of BEIR's tab-separated file."""
    if not files[0].name.endswith((".tsv", ".tsv.gz")):
        yield from ((str(files[0]), row) for row in _table(files))
        return
    for path in files:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            rows = (line.rstrip("\r\n").split("\t") for line in lines if line.strip())
            header = next(rows, [])
            for number, row in enumerate(rows, start=2):
                yield f"{path}:{number}", dict(zip(header, row, strict=False))


def _files(folder: Path, subset: str, part: str, split: str) -> list[Path]:
    """The files of one part: those of the split or, as in mteb, of the only split there is."""
    found = _places(folder, subset, part)
    by_split: dict[str, list[Path]] = {}
    for path in found:
        by_split.setdefault(path.name.split(".")[0].split("-")[0], []).append(path)
    if split in by_split:
        return by_split[split]
    if len(by_split) > 1:
        raise LeafError(f"{found[0].parent} has the splits {', '.join(sorted(by_split))}, expected {split}")
    return found


def _places(folder: Path, subset: str, part: str) -> list[Path]:
    """All files of one part of a subset, in any of the layouts."""
    prefix = "" if subset == "default" else f"{subset}-"
    endings = (*TABLES, ".tsv", ".tsv.gz") if part == "qrels" else TABLES
    names = [f"{prefix}{part}", *(["default"] if part == "qrels" and not prefix else [])]
    for name in names:
        if inside := sorted(path for path in (folder / name).glob("*") if path.name.endswith(endings)):
            return inside
    files = [folder / f"{name}{ending}" for name in names for ending in endings]
    return [path for path in files if path.is_file()][:1]


def _table(files: Sequence[Path]) -> "Dataset":
    """The rows of .parquet or .jsonl[.gz] files, mapped from disk rather than read into memory."""
    from datasets import load_dataset

    kind = "parquet" if files[0].suffix == ".parquet" else "json"
    try:
        return load_dataset(kind, data_files=[str(path) for path in files], split="train")
    except Exception as error:  # datasets wraps what its readers raise in errors of its own
        raise LeafError(f"{files[0]} cannot be read ({first_line(error.__cause__ or error)[:200]})") from error


def _require(rows: "Dataset", columns: Sequence[str], path: Path) -> None:
    if missing := [column for column in columns if column not in rows.column_names]:
        raise LeafError(f"{path} has the columns {', '.join(rows.column_names)}; missing: {', '.join(missing)}")
