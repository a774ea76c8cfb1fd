"""An index of documents, and questions to it."""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leaf.cli.common import AsJson, Device, Dtype, print_json, stdout, table_of, verb
from leaf.errors import LeafError

if TYPE_CHECKING:
    from leaf.search import Hit

#: Characters of a document that are shown.
SHOWN = 90
Table = Annotated[
    str | None, typer.Option("--table", metavar="NAME", help="Of a database: table or collection. Default: leaf.")
]


class Indexing:
    """What is indexed, where and how."""

    documents: Annotated[
        list[str] | None,
        typer.Argument(metavar="DOCS…", help=".jsonl, .csv, .tsv, .parquet, .txt; BEIR folders; folders of .md."),
    ] = None
    model: Annotated[
        str | None, typer.Option("--model", metavar="TEACHER", help="Who encodes. Default: who made the index.")
    ] = None
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The index: a folder.")] = None
    to: Annotated[str | None, typer.Option("--to", metavar="URL", help="The index: postgresql://… or mongodb://….")] = (
        None
    )
    table: Table = None
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="INDEX", help="Copy this index, vectors and all, instead of DOCS; --table is of both."
        ),
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="TYPE",
            help="float32, float16, int8 or binary: what is searched; float16 ranks the best. Default: int8, in "
            "PostgreSQL float16; a copy in a folder keeps what it had.",
        ),
    ] = None
    truncate: Annotated[
        int | None, typer.Option("--truncate", metavar="DIM", min=1, help="Keep the leading dimensions only.")
    ] = None
    vectors: Annotated[
        str | None,
        typer.Option("--vectors", metavar="COLUMN|FILE.npy", help="The teacher's vectors, which are here already."),
    ] = None
    queries: Annotated[
        list[str] | None,
        typer.Option("--queries", metavar="STUDENT", help="Who asks by default, the first one first; repeatable."),
    ] = None
    text: Annotated[str, typer.Option("--column", help="Column of the text.")] = "text"
    key: Annotated[str | None, typer.Option("--id-column", help="Default: _id, id, docid or doc_id.")] = None
    title: Annotated[str | None, typer.Option("--title-column", help="Default: title, where there is one.")] = None
    delete: Annotated[list[str] | None, typer.Option("--delete", metavar="ID", help="Take out; repeatable.")] = None
    prune: Annotated[bool, typer.Option("--prune", help="Take out whatever is not in DOCS.")] = False
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 32
    dtype: Annotated[
        Dtype,
        typer.Option(
            "--dtype",
            help="auto: bfloat16 for 1,024 documents or more, where the hardware has it and vectors hardly move.",
        ),
    ] = Dtype.auto
    device: Device = None
    as_json: AsJson = False


@verb(Indexing, panel="Search")
def index(options: Any) -> None:
    """Index documents with the teacher; run again, it adds what is new, updates what has changed, skips the rest.

    A change is there as a whole or not at all: after a crash the same command goes on, and what was encoded is not
    encoded again. TEACHER may be a student's folder too, which then searches documents of its own.
    """
    from leaf.search import Index, making
    from leaf.search.documents import DocumentFiles
    from leaf.search.index import Changes

    if (options.out is None) == (options.to is None):
        raise LeafError("say where the index is: --out DIR for a folder, or --to URL for a database")
    target = options.to or str(options.out)
    given = [
        name
        for name, value in (("DOCS", options.documents), ("--from", options.source), ("--delete", options.delete))
        if value
    ]
    if len(given) > 1:
        raise LeafError(f"{given[0]} and {given[1]} are two changes; make one after the other")
    if not given and not options.queries:
        raise LeafError("nothing to index: give DOCS, --from INDEX, --delete ID or --queries STUDENT")
    plan = making.Plan(
        model=options.model,
        precision=options.precision,
        truncate_dim=options.truncate,
        queries=tuple(options.queries or ()),
        batch_size=options.batch_size,
        dtype=options.dtype.value,
        device=options.device,
    )
    changes = Changes()
    if options.documents:
        files = DocumentFiles(
            options.documents, text=options.text, id=options.key, title=options.title, vectors=options.vectors
        )
        changes = making.index_files(target, files, plan, table=options.table, prune=options.prune)
    elif options.source:
        changes = making.copy_index(options.source, target, plan, table=options.table)
    else:
        with Index.open(target, options.table) as opened:
            if options.delete:
                changes = opened.delete(options.delete)
            if options.queries:
                opened.ask_with(options.queries)
    made = {**making.describe(target, options.table), **asdict(changes)}
    if options.as_json:
        print_json(made)
        return
    counts = ", ".join(f"{count:,} {name}" for name, count in asdict(changes).items() if count)
    shape = f"{made['documents']:,} documents × {made['dim']}, {made['precision']}"
    stdout.print(f"{made['index']}  {shape}" + (f"  ({counts})" if counts else ""), soft_wrap=True)


class Searching:
    """What is asked of which index, and by whom."""

    what: Annotated[
        list[str],
        typer.Argument(metavar="[DIR] QUERY…", help="The index, unless --from names it, and questions; - reads lines."),
    ]
    source: Annotated[
        str | None, typer.Option("--from", metavar="URL", help="An index in a database: postgresql://…, mongodb://….")
    ] = None
    table: Table = None
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="STUDENT",
            help="Who encodes the question. Default: the index's first --queries, else its teacher.",
        ),
    ] = None
    k: Annotated[int, typer.Option("-k", "--top-k", min=1, help="Documents for each question.")] = 10
    where: Annotated[
        str | None,
        typer.Option("--where", metavar="CONDITION", help="Such as \"year >= 2020 and lang in ['en', 'de']\"."),
    ] = None
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every document, whatever the size.")] = False
    precision: Annotated[
        str | None,
        typer.Option("--precision", metavar="TYPE", help="ONNX file of the student: fp32, q8 … Default: fp32."),
    ] = None
    device: Device = None
    as_json: AsJson = False


@verb(Searching, panel="Search")
def search(options: Any) -> None:
    """Ask an index: a student encodes the question, the documents stay as the teacher encoded them.

    Any encoder of the space may ask: the teacher, a student of any size, an ONNX file, a server's URL. Others are
    refused with the reason.
    """
    from leaf.loading import load_for_serving
    from leaf.search import Index
    from leaf.search.store import exists, is_url

    target, questions = (options.source, options.what) if options.source else (options.what[0], options.what[1:])
    if questions == ["-"]:
        questions = [line.strip() for line in sys.stdin if line.strip()]
    if not questions:
        place = target if is_url(target) or exists(target) else "DIR"  # a question alone stands in its place
        raise LeafError(f'an index and a question are needed; write for example: leaf search {place} "how do I …"')
    with Index.open(target, options.table) as index:
        known = index.encoders()
        name = options.model or next(iter(known), None)
        if name is None:
            raise LeafError(f"{target} does not say who asks; name a student of its teacher with --model")
        encoder = load_for_serving(known.get(name, name), precision=options.precision, device=options.device)
        index.admit(encoder)
        began = time.perf_counter()
        vectors = index.encode(questions, encoder)
        encoded = time.perf_counter()
        found = index.find(vectors, options.k, where=options.where, exact=options.exact)
        ms = {"encode": 1e3 * (encoded - began), "search": 1e3 * (time.perf_counter() - encoded)}
        answers = list(zip(questions, found, strict=True))
        if options.as_json:
            print_json(
                {
                    "index": index.store.name,
                    "model": encoder.name,
                    "documents": len(index),
                    "ms": {key: round(value, 3) for key, value in ms.items()},
                    "answers": [{"query": query, "hits": [asdict(hit) for hit in hits]} for query, hits in answers],
                }
            )
            return
        for query, hits in answers:
            if len(answers) > 1:
                stdout.print(f"“{query}”", style="bold", markup=False)
            _print_hits(hits)
        said = f"{encoder.name}: {ms['encode']:.1f} ms, {len(index):,} documents: {ms['search']:.1f} ms"
        stdout.print(said, style="dim", soft_wrap=True)


def _print_hits(hits: "Sequence[Hit]") -> None:
    if not hits:
        stdout.print("  nothing found")
        return
    table = table_of("#", "score", "document", "text", numeric="#,score")
    table.columns[2].max_width = SHOWN // 3  # an id may be a long path, and the text needs room too
    for rank, hit in enumerate(hits, 1):
        text = " ".join(hit.text.split())
        shown = text if len(text) <= SHOWN else text[:SHOWN].rsplit(" ", 1)[0] + " …"
        table.add_row(str(rank), f"{hit.score:.3f}", _document(hit), _plain(shown))
    stdout.print(table)


def _document(hit: "Hit") -> Any:
    """The title with the id below it, or the id alone."""
    from rich.text import Text

    return Text.assemble(hit.title, "\n", (hit.id, "dim")) if hit.title else _plain(hit.id)


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)
