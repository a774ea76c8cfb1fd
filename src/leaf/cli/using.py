"""Models as they are: encode with them, serve them, time them, and see that they live in their space."""

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import leaf
from leaf.cli.common import (
    AsJson,
    Device,
    Eager,
    NoCompile,
    Own,
    Set,
    app,
    given_in,
    numbers,
    print_json,
    stdout,
    table_of,
    verb,
)
from leaf.errors import LeafError

if TYPE_CHECKING:
    from leaf.evaluation.statistics import Interval


class As(StrEnum):
    """The role a text is encoded in."""

    query = "query"
    document = "document"


class Timed(StrEnum):
    """What `leaf speed` times besides models."""

    train = "train"
    embed = "embed"


@app.command(rich_help_panel="Models")
def encode(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Model folder, hub id, ONNX file, URL of a server, or openai:MODEL.")
    ],
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="UTF-8 text, one text per line.")],
    role: Annotated[As, typer.Option("--as", help="Which prompt to use.")] = As.query,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 32,
    device: Device = None,
) -> None:
    """Encode text files: FILE.npy beside each FILE, float32, one row a line."""
    import numpy as np

    from leaf.files import atomic_path
    from leaf.progress import progress

    texts = {file: _lines(file) for file in files}
    encoder = leaf.load(model, device=device)
    call = encoder.encode_query if role is As.query else encoder.encode_document
    with progress("encoding", sum(map(len, texts.values()))) as bar:
        for file, lines in texts.items():
            vectors = call(lines, batch_size=batch_size, advance=bar.advance)
            target = file.with_name(file.name + ".npy")
            with atomic_path(target) as temporary, open(temporary, "wb") as handle:
                np.save(handle, vectors)
            stdout.print(f"{target}  {vectors.shape[0]:,} × {vectors.shape[1]} float32", soft_wrap=True)


@app.command(rich_help_panel="Models")
def verify(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="A student folder, an ONNX file, a server's URL, a hub id, an index."),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Check this encoder against TARGET's space instead of TARGET itself."),
    ] = None,
    table: Annotated[
        str | None, typer.Option("--table", metavar="NAME", help="Of an index in a database. Default: leaf.")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Does it live in the space it claims? Encodes the canaries and compares; exit code 1 when it does not.

    Of a folder, every form is checked: the PyTorch weights and each ONNX file. Of an index, every file is read, and its
    encoders (or --model) are opened as `leaf search` opens them and held to more: a search takes one that names the
    index's teacher, here it must also land on the vectors that this teacher gave the canaries.
    """
    from dataclasses import asdict

    from leaf.search.store import exists, is_url
    from leaf.verifying import verify as check

    if is_url(target) or exists(target):
        _verify_index(target, model, device, table, as_json=as_json)
        return
    if table is not None:
        raise LeafError(f"--table goes with an index in a database, and {target} is none")
    forms: list[dict[str, Any]] = []
    for form in check(target, model, device):
        if not forms and not as_json:
            stdout.print(
                f"space {form.space.id} of {form.space.teacher['model']}, {len(form.space.texts)} canaries, mean "
                f"distance to the teacher at saving {form.space.error:.4f}",
                soft_wrap=True,
            )
        forms.append({"form": form.name, "space": form.space.id, "teacher": form.space.teacher["model"]})
        forms[-1] |= asdict(form.verdict)
        if not as_json:
            stdout.print(
                f"{'in' if form.verdict.in_space else 'NOT in'} the space  ε {form.verdict.error:.4f}  cosine "
                f"{form.verdict.mean_cosine:.4f}  {100 * form.verdict.matched:.0f} % nearest to their own  {form.name}",
                soft_wrap=True,
            )
    failed = not all(form["in_space"] for form in forms)
    if as_json:
        print_json(forms)
    if failed:
        raise SystemExit(1)


@app.command(rich_help_panel="Models")
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL…", help="A student: folder, ONNX file or hub id. With --index, who may ask."),
    ] = None,
    index: Annotated[
        str | None, typer.Option("--index", metavar="INDEX", help="A search page over this folder or database URL.")
    ] = None,
    table: Annotated[
        str | None, typer.Option("--table", metavar="NAME", help="With --index: of a database. Default: leaf.")
    ] = None,
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8000,
    name: Annotated[
        list[str] | None, typer.Option("--name", help="What clients call the model; repeatable. Default: its own name.")
    ] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="ONNX file: fp32 (default), q8 …")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Default: every core.")] = None,
    cors: Annotated[
        list[str] | None, typer.Option("--cors", metavar="ORIGIN", help="Let pages of this origin ask; repeatable.")
    ] = None,
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, help="Texts encoded at a time.")] = 32,
    max_queue: Annotated[int, typer.Option("--max-queue", min=1, help="Texts waiting; more are answered 503.")] = 65536,
    max_texts: Annotated[int, typer.Option("--max-texts", min=1, help="Texts of one request.")] = 2048,
    max_characters: Annotated[int, typer.Option("--max-characters", min=1, help="Of one text.")] = 65536,
    max_body_mib: Annotated[int, typer.Option("--max-body-mib", min=1, help="Of one request.")] = 16,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds until a request is answered 503.")] = 60,
    grace: Annotated[float, typer.Option("--grace", help="Seconds for what is in flight when stopped.")] = 30,
    device: Device = None,
) -> None:
    """An OpenAI-compatible server: POST /v1/embeddings, GET /health, /metrics, /v1/space, /v1/models.

    With --index a search page besides: /, POST /v1/search, GET /v1/index; without MODEL, the index's own encoders ask.
    Where LEAF_API_KEY is set, everything but /health asks for it. Before the port opens, the canaries are checked.
    """
    from leaf.loading import has_onnx, load_for_serving
    from leaf.runtime.artifact import split_precision
    from leaf.runtime.server import Settings
    from leaf.runtime.server import serve as run_server
    from leaf.verifying import space_of

    if index is None and (models is None or len(models) != 1):
        raise LeafError("name one MODEL to serve, or an index with --index")
    settings = Settings(
        host=host,
        port=port,
        names=tuple(name or ()),
        cors=tuple(cors or ()),
        max_batch=max_batch,
        max_queue=max_queue,
        max_texts=max_texts,
        max_characters=max_characters,
        max_body_bytes=max_body_mib << 20,
        timeout=timeout,
        grace=grace,
    )
    if index is not None:
        from leaf.models import short_name
        from leaf.search import Index
        from leaf.search.server import serve_index

        with Index.open(index, table) as opened:
            asking = {short_name(each): each for each in models or []} or opened.encoders()
            if opened.settings.model:  # the page compares with the documents' own encoder, the last one
                own = opened.document_model
                asking = {**{name: each for name, each in asking.items() if each != own}, short_name(own): own}
            openings = {
                name: partial(
                    load_for_serving,
                    each,
                    precision=precision if has_onnx(each) else None,
                    threads=threads if has_onnx(each) else None,
                    device=device,
                )
                for name, each in asking.items()
            }
            serve_index(opened, openings, settings)
        return
    assert models is not None, "there is one"
    encoder = load_for_serving(models[0], precision=precision, threads=threads, device=device)
    run_server(encoder, settings, space=space_of(split_precision(models[0])[0]))


@app.command(rich_help_panel="Models")
def speed(
    what: Annotated[
        list[str],
        typer.Argument(metavar="WHAT…", help="`train`, `embed`, or the models to be timed, `table8` for the paper's."),
    ],
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="MODEL", help="models: their speed is divided by this one's; repeatable."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", metavar="TYPES", help="models: each in these, such as fp32,q8.")
    ] = None,
    queries: Annotated[
        Path | None, typer.Option("--queries", metavar="FILE", help="models: queries, one a line, or .jsonl, .parquet.")
    ] = None,
    documents: Annotated[
        Path | None, typer.Option("--documents", metavar="FILE", help="models: documents, likewise.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="models: queries and documents of a BEIR folder.")
    ] = None,
    batch_sizes: Annotated[
        str | None, typer.Option("--batch-sizes", metavar="SIZES", help="models: default 1,2,4,8,16,24.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="models: of each. Default: one for each core.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="MODEL", help="models: whose tokenizer `shape:` models get.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="models: fewer batch sizes and rounds.")] = False,
    scores: Annotated[
        Path | None,
        typer.Option("--scores", metavar="DIR", help="models: their scores, from `leaf evaluate … --out DIR`."),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", metavar="FILE", help="models: draw --scores against the time of a query: an .svg."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="train, embed. Default: 32.")] = None,
    layers: Annotated[int | None, typer.Option("--layers", min=1, help="train, embed. Default: 6 and 12.")] = None,
    dim: Annotated[int | None, typer.Option("--dim", min=1, help="train: of the targets. Default: 768.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="train: timed steps a round.")] = None,
    num_texts: Annotated[int | None, typer.Option("--texts", min=1, help="embed: texts a round.")] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="Default: 3 for train and embed, 7 for models.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="train, embed: cpu, cuda … Default: a GPU where there is one.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Write the record to DIR/<train|embed|query>-<cpu|cuda>.json."),
    ] = None,
    no_compile: NoCompile = False,
    eager: Eager = False,
    as_json: AsJson = False,
) -> None:
    """Times leaf here: its training step, its teacher pass, or models as encoders of queries and of documents.

    train, embed: `leaf train` and the teacher pass against Transformers and Sentence Transformers, on random weights
    and the paper's text lengths. Minutes on a CPU.

    Models: batches of queries and of documents, and single queries, on the CPU (the paper's Table 8 and Figure 12);
    `table8` takes about eight minutes on two cores. A MODEL is an exported student (DIR, DIR:q8), an .onnx file, a
    Sentence Transformers folder or hub id, timed through torch, or an architecture with random weights:
    `shape:bert-base`, `shape:bert-large`, `shape:minilm-l6` (any number of layers) and `shape:table`, the last two with
    `-d1024` for vectors of other than 768 dimensions; add `:q8` as for a student. Without texts: docstrings.
    """
    kind = what[0] if what[0] in list(Timed) else "models"
    if len(what) > 1 and (mixed := [each for each in what if each in list(Timed)]):
        raise LeafError(f"'{mixed[0]}' is timed alone; a folder of that name is ./{mixed[0]}")
    options: dict[str, dict[str, Any]] = {
        "train": {"--dim": dim, "--steps": steps, "--no-compile": no_compile, "--eager": eager},
        "embed": {"--texts": num_texts},
        "both": {"--batch-size": batch_size, "--layers": layers, "--device": device},
        "models": {
            "--against": against, "--precision": precision, "--queries": queries, "--documents": documents,
            "--data": data, "--batch-sizes": batch_sizes, "--threads": threads, "--tokenizer": tokenizer,
            "--quick": quick, "--scores": scores, "--figure": figure,
        },
    }  # fmt: skip
    own = {kind} if kind == "models" else {kind, "both"}
    foreign = {option: value for each in options if each not in own for option, value in options[each].items()}
    if given := [option for option, value in foreign.items() if value]:
        raise LeafError(f"{given[0]} says nothing about {kind}; see `leaf speed --help`")
    record: dict[str, Any]
    if kind == "models":
        from leaf.speed import query

        precisions = precision.split(",") if precision else []
        kept = _retention(scores, figure, lambda: query.entered(what, against or [], precisions))
        record = query.time_models(
            what,
            query.read_texts(queries, documents, data),
            against=against or [],
            precisions=precisions,
            tokenizer=tokenizer,
            threads=threads,
            plan=query.make_plan(numbers(batch_sizes, "--batch-sizes"), rounds, quick=quick),
        )
    else:
        from leaf.speed.synthetic import Shape

        shape = Shape(layers or (6 if kind == Timed.train else 12))
        common: dict[str, Any] = {"batch_size": batch_size or 32, "rounds": rounds or 3, "device": device}
        if kind == Timed.train:
            from leaf.speed.training import time_training
            from leaf.student.step import Engine

            engine = Engine(compile=not (no_compile or eager), graphs=not eager)
            record = time_training(shape, dim=dim or 768, steps=steps, engine=engine, **common)
        else:
            from leaf.speed.embedding import time_embedding

            record = time_embedding(shape, num_texts=num_texts, **common)
    if out is not None:
        from leaf.files import write_json

        name = "query" if kind == "models" else kind
        write_json(out / f"{name}-{record['settings']['device'].partition(':')[0]}.json", record)
    if as_json:
        print_json(record)
    else:
        _print_speed(record)
    if figure is not None:
        from leaf.cli.printing import draw_points

        draw_points(kept, query.latencies(record), figure, quiet=as_json)


class Shown(Own):
    """Which recipe is printed, and with what in it."""

    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="Print this one, all that is no default, to start one of your own from."),
    ] = None
    settings: Set = None
    as_json: AsJson = False


@verb(Shown, panel="Models")
def recipes(options: Any) -> None:
    """The recipes that ship, one line each, or one of them as a file: with what is given here in its place.

    `leaf recipes --teacher MODEL --queries queries.txt --documents passages.txt > mine.toml` writes down what
    `leaf distill` does with these options.
    """
    from leaf.given import EXAMPLE, Given
    from leaf.recipe import DEFAULT, Recipe, shipped_recipes

    given = given_in(options)
    if options.recipe is not None or given != Given() or options.settings:
        name = options.recipe or DEFAULT
        given = EXAMPLE if name == DEFAULT and given == Given() else given
        recipe = Recipe.load(name, options.settings or [], given=given)
        if options.as_json:
            print_json(recipe.model_dump(mode="json"))
        else:
            print(recipe.to_toml(defaults=False), end="")
        return
    shipped = shipped_recipes()
    if options.as_json:
        print_json({name: recipe.model_dump(mode="json") for name, recipe in shipped.items()})
        return
    table = table_of("recipe", "teacher", "students", "")
    for name, recipe in shipped.items():
        students = ", ".join(student.name for student in recipe.students)
        table.add_row(name, recipe.teacher.name or recipe.teacher.model, students, recipe.description)
    stdout.print(table)


def _retention(
    folder: Path | None, figure: Path | None, models: Callable[[], dict[str, str | None]]
) -> "dict[str, Interval | None]":
    """What is to be drawn of the models beside their times, and that it can be, before anything is timed."""
    if (folder is None) != (figure is None):
        raise LeafError("--scores and --figure go together: DIR as `leaf evaluate … --out DIR` wrote it, and FILE.svg")
    if folder is None or figure is None:
        return {}
    from leaf.cli.printing import check_figure
    from leaf.evaluation import records
    from leaf.exported import EXPORTED
    from leaf.report.ladder import retention

    check_figure(figure)
    return retention([*records.read(folder), *records.read(folder / Path(EXPORTED).name)], models())


def _verify_index(target: str, model: str | None, device: str | None, table: str | None, *, as_json: bool) -> None:
    from dataclasses import asdict

    from leaf.search.making import describe, verify_index

    known, askers = describe(target, table), list(verify_index(target, model, device, table))
    if as_json:
        print_json({**known, "encoders": [asdict(each) for each in askers]})
    else:
        stdout.print(
            f"{known['index']}: {known['documents']:,} documents, whole; space {known['space']}", soft_wrap=True
        )
        for each in askers:
            if each.refused is None:
                assert each.matched is not None, "it was asked"
                share = f"{100 * each.matched:.0f} % nearest to their own"
                stdout.print(f"in the space  cosine {each.cosine:.4f}  {share}  {each.model}", soft_wrap=True)
            else:
                stdout.print(f"NOT in the space  {each.model}: {each.refused}", soft_wrap=True)
    if any(each.refused for each in askers):
        raise SystemExit(1)


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise LeafError(f"no file '{file}'; give UTF-8 text files with one text per line") from error
    except UnicodeDecodeError as error:
        raise LeafError(f"{file} is not UTF-8 (byte {error.start}); convert it first") from error
    empty = next((number for number, line in enumerate(lines, 1) if not line.strip()), None)
    if empty is not None or not lines:
        raise LeafError(f"{file}: line {empty or 1} is empty; every line must be a text")
    return lines


def _print_speed(record: dict[str, Any]) -> None:
    if record["what"] != "query":
        from leaf.speed.record import result_table

        stdout.print(result_table(record))
        return
    from leaf.report.summary import print_table
    from leaf.speed.query_page import HEADINGS, caption, table

    for role in HEADINGS:
        print_table(table(record, role), stdout)
        stdout.print()
    stdout.print(caption(record), style="dim", soft_wrap=True)
