"""The command line: one verb per stage. Parses, calls, prints; no logic. Imports no torch until a verb needs it."""

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import leaf
from leaf.errors import LeafError, Stopped

if TYPE_CHECKING:
    from leaf.compression import Precision
    from leaf.evaluation.alignment import Alignment
    from leaf.evaluation.records import Score
    from leaf.evaluation.suite import Measured
    from leaf.pipeline import Pipeline
    from leaf.recipe import Recipe

app = typer.Typer(
    name="leaf",
    help="Teacher-aligned embedding distillation: small query encoders for an index you already have.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
stdout = Console(highlight=False)
NOTE = (
    "Scores in points of 100; % kept: of the teacher's score, with its 95 % paired bootstrap interval. Not resolved: "
    "the interval of the difference covers 0, so these queries cannot tell it from none."
)
#: Exit code of a program that an interrupt (signal 2) ended.
INTERRUPTED = 128 + 2
#: The extra that brings a package which only some verbs need.
EXTRAS = {
    **dict.fromkeys(("torch", "transformers", "sentence_transformers", "pyarrow", "sklearn", "filelock"), "train"),
    **dict.fromkeys(("tomli_w", "jinja2", "pydantic"), "train"),
    **dict.fromkeys(("onnx", "onnxscript"), "onnx"),
    **dict.fromkeys(("fastapi", "uvicorn", "prometheus_client"), "serve"),
    "matplotlib": "plot",
}


class As(StrEnum):
    """The role a text is encoded in."""

    query = "query"
    document = "document"


class Timed(StrEnum):
    """What `leaf speed` times besides models."""

    train = "train"
    embed = "embed"


class Dtype(StrEnum):
    """What encoders compute in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe that ships (see `leaf recipes`) or a .toml file.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder. Default: runs/<recipe name>.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Train on a sample of so many texts.")]
Teacher = Annotated[str | None, typer.Option("--teacher", help="Another teacher than the recipe's.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="TABLE.FIELD=VALUE", help="Change one setting; repeatable."),
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 … Default: a GPU where there is one.")]
NoCompile = Annotated[bool, typer.Option("--no-compile", help="On a GPU: CUDA graphs, but no torch.compile.")]
Eager = Annotated[bool, typer.Option("--eager", help="On a GPU: neither compilation nor CUDA graphs.")]
Deterministic = Annotated[
    bool, typer.Option("--deterministic", help="On a GPU: the same bits every time, resumed or not. Slower.")
]
Profile = Annotated[bool, typer.Option("--profile", help="Write a trace of a few steps to OUT/profile/.")]
TextsFrom = Annotated[
    Path | None,
    typer.Option("--texts-from", metavar="RUN", help="Take finished texts and teacher vectors from this run folder."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")]


def main() -> None:
    """Runs the command line; a caller's mistake is one line on stderr and exit code 2."""
    # Said before anything imports them: their own bars and advice would break up ours.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    signal.signal(signal.SIGTERM, _stop)
    try:
        # Standing alone, typer would answer an interrupt and a wrong option itself, in its own way. So it returns the
        # code it would exit with, or raises: an interrupt is 130 in newer releases and Abort in older ones.
        if (code := app(standalone_mode=False)) == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)
    except LeafError as error:
        _fail(str(error))
    except Stopped as stopped:
        print(f"leaf: {stopped}; the same command goes on from here", file=sys.stderr)
        raise SystemExit(0) from None
    except (KeyboardInterrupt, typer.Abort):
        print("leaf: interrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        _fail(f"this needs {package}, which is not installed; pip install 'leaf[{EXTRAS[package]}]'")
    except Exception as error:
        # A wrong option. The class is click's, or that of the copy which newer releases of typer carry.
        usage = getattr(error, "format_message", None)
        if usage is not None:
            if not (message := usage()):
                raise SystemExit(2) from None  # `leaf` alone, which has just printed its help
            _fail(f"{message.rstrip('.')}; see `leaf --help`")
        # torch and safetensors report a full disk as errors of their own, with the system's words inside.
        full = getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error)
        if not full:
            raise
        _fail("the disk is full; free some space and run the same command again (what is finished is kept)")


def _stop(*_: object) -> None:
    """SIGTERM, as spot machines send it: what is finished is on disk, and training (which has a handler) saves."""
    raise Stopped("stopped on SIGTERM")


def _fail(message: str) -> None:
    print("leaf: error: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(2)


def _stage(show: Callable[[Any], None]) -> Callable[[Any], None]:
    """Makes the verb of a stage: the stage of `show`'s name runs, `show` prints what it returned.

    The verbs differ in nothing else, so their options are written once.
    """

    def command(
        recipe: RecipeName,
        out: Out = None,
        limit: Limit = None,
        teacher: Teacher = None,
        set_: Set = None,
        device: Device = None,
        as_json: AsJson = False,
    ) -> None:
        _run_stage(show, as_json, _pipeline(_recipe(recipe, limit, teacher, set_), out, device))

    app.command(show.__name__, help=show.__doc__)(command)
    return show


def _training_stage(show: Callable[[Any], None]) -> Callable[[Any], None]:
    """`_stage` for the verbs that train, which also say how."""

    def command(
        recipe: RecipeName,
        out: Out = None,
        limit: Limit = None,
        teacher: Teacher = None,
        set_: Set = None,
        device: Device = None,
        no_compile: NoCompile = False,
        eager: Eager = False,
        deterministic: Deterministic = False,
        profile: Profile = False,
        texts_from: TextsFrom = None,
        as_json: AsJson = False,
    ) -> None:
        from leaf.student.step import Engine

        engine = Engine(compile=not (no_compile or eager), graphs=not eager, deterministic=deterministic)
        options = {"engine": engine, "profile": profile, "texts_from": texts_from}
        pipeline = _pipeline(_recipe(recipe, limit, teacher, set_), out, device, **options)
        _run_stage(show, as_json, pipeline)

    app.command(show.__name__, help=show.__doc__)(command)
    return show


def _run_stage(show: Callable[[Any], None], as_json: bool, opened: "AbstractContextManager[Pipeline]") -> None:
    with opened as pipeline:
        result = getattr(pipeline, show.__name__)()
        if not pipeline.world.is_main:
            return
    if as_json:
        _print_json(result)
    else:
        show(result)


@_training_stage
def distill(report: dict[str, Any]) -> None:
    """Every stage: texts, teacher vectors, students, scores, report. Run again, it goes on where it stopped."""
    from leaf.report import print_summary

    print_summary(report, stdout)


@_stage
def texts(manifest: dict[str, Any]) -> None:
    """Stage 1: read the sources, reject, deduplicate, hold out, write shards. Prints the counts per source.

    With `prepare.leak_check`, texts that are in a benchmark are dropped or refused: the last line says how many.
    """
    table = _table("source", "read", "kept", "held-out", "rejected")
    for name, counts in manifest["sources"].items():
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts["rejected"].items() if count)
        table.add_row(name, f"{counts['read']:,}", f"{counts['kept']:,}", f"{counts['held_out']:,}", reasons or "none")
    stdout.print(table)
    if leaks := manifest.get("leaks"):
        found = {name: each["equal"] + each["contains"] for name, each in leaks["benchmarks"].items()}
        where = ", ".join(f"{name} {count:,}" for name, count in found.items() if count)
        stdout.print(
            f"leak check: {leaks['texts']:,} texts dropped that are in a benchmark{f' ({where})' if where else ''}; "
            f"{len(found)} checked",
            soft_wrap=True,
        )


@_stage
def embed(manifest: dict[str, Any]) -> None:
    """Stage 2: encode every text with the teacher, once; resumes by shard."""
    stored = " and ".join(sorted({part["dtype"] for part in manifest["parts"]}))
    unit = "unit length" if manifest["normalised"] else "not normalised"
    stdout.print(f"{manifest['rows']:,} vectors, {manifest['dim']} dimensions, {stored}, {unit}")


@_training_stage
def train(manifests: dict[str, dict[str, Any]]) -> None:
    """Stage 3: train every student of the recipe on the cached vectors; resumes exactly.

    On several GPUs: `torchrun --nproc-per-node N -m leaf train RECIPE`.
    """
    table = _table("student", "layers", "parameters", "held-out ε", "best epoch", "seconds")
    for name, each in manifests.items():
        table.add_row(
            name,
            str(each["layers"]),
            f"{each['parameters'] / 1e6:.1f}M",
            f"{each['error']:.4f}",
            f"{each['best_epoch']} of {each['epochs']}",
            f"{each['seconds']:.0f}",
        )
    stdout.print(table)


@_training_stage
def sweep(record: dict[str, Any]) -> None:
    """Every stage for each point of the recipe's grid (`[sweep]`), over one set of teacher vectors.

    Writes sweep.json, sweep.md and figures. The grid may grow later: finished points stay.
    """
    from leaf.report.sweep import print_sweep

    print_sweep(record, stdout)


@app.command()
def evaluate(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Score the students of this recipe's run.")
    ] = None,
    queries: Annotated[
        list[str] | None,
        typer.Option("--queries", metavar="MODEL", help="Encoder of the queries (a student); repeatable."),
    ] = None,
    documents: Annotated[
        str | None,
        typer.Option("--documents", metavar="MODEL", help="Encoder of the documents (the teacher)."),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", metavar="PATH", help="BEIR folder, .tsv[.gz] set, or a folder of these; repeatable."),
    ] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option("--benchmark", metavar="NAME", help='Public benchmark or task, e.g. "NanoBEIR"; repeatable.'),
    ] = None,
    mirror: Annotated[
        Path | None, typer.Option("--mirror", metavar="DIR", help="Local copies of benchmark data, before the hub.")
    ] = None,
    truncate: Annotated[
        str | None, typer.Option("--truncate", metavar="DIMS", help="Also in fewer dimensions: 256,128,64.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", metavar="TYPES", help="Also rounded: int8,int8xbinary,binary.")
    ] = None,
    alignment: Annotated[
        bool, typer.Option("--alignment", help="Compare with the teacher on --data without judgements.")
    ] = False,
    query_texts: Annotated[
        list[Path] | None,
        typer.Option(
            "--query-texts", metavar="FILE", help="With --alignment: a file of queries, one a line; repeatable."
        ),
    ] = None,
    document_texts: Annotated[
        list[Path] | None,
        typer.Option("--document-texts", metavar="FILE", help="With --alignment: a file of documents; repeatable."),
    ] = None,
    mteb: Annotated[
        bool, typer.Option("--mteb", help="Score --data as mteb tasks; its results go to OUT/mteb.")
    ] = False,
    bm25: Annotated[bool, typer.Option("--bm25", help="Also score BM25 on the retrieval sets.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write the records into this folder (with a recipe: its run folder)."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option("--cache", envvar="LEAF_CACHE", help="Where vectors are kept. Default: ~/.cache/leaf."),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="auto: bfloat16 where the hardware has it and vectors hardly move.")
    ] = Dtype.auto,
    limit: Limit = None,
    teacher: Teacher = None,
    set_: Set = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Stage 4, or any encoders on any sets: what a student keeps of its teacher, with intervals.

    With one --queries alone: that model on both sides. With --documents too: the document encoder alone (teacher), each
    query encoder alone (standard), and queries by one against documents by the other (asymmetric). --alignment compares
    them on texts that nobody has judged: a BEIR folder without judgements, or a file of texts with a column kind.
    """
    if recipe is not None:
        if queries or documents or data or benchmark or alignment:
            raise LeafError("give either a RECIPE or --queries and --data, not both")
        if mirror or truncate or precision or bm25 or mteb:
            raise LeafError("with a RECIPE these are its settings: --set evaluate.truncate=[256,128] and the like")
        with _pipeline(_recipe(recipe, limit, teacher, set_), out, device) as pipeline:
            pipeline.evaluate()
        from leaf.evaluation import records

        _print_scores(records.read(pipeline.run.folder / "scores"), as_json)
        return
    if not queries or not (data or benchmark or query_texts or document_texts):
        raise LeafError("say what to evaluate: a RECIPE, or --queries MODEL and --data PATH (or --benchmark NAME)")
    if (query_texts or document_texts) and not alignment:
        raise LeafError("--query-texts and --document-texts have no judgements to score: they go with --alignment")
    from leaf import scoring
    from leaf.evaluation.suite import Suite

    models = scoring.Models(queries, documents, dtype.value, device)
    if alignment:
        found = scoring.compare_on_texts(models, data or [], query_texts or [], document_texts or [])
        _print_alignments(found, out, as_json)
        return
    suite = Suite(
        benchmarks=benchmark or [],
        mirror=mirror,
        mteb=mteb,
        bm25=bm25,
        truncate=_numbers(truncate, "--truncate"),
        precisions=_precisions(precision),
    )
    measured = scoring.score(models, data or [], suite, cache or scoring.user_cache(), out)
    _print_measured(measured, as_json)


@_stage
def report(written: dict[str, Any]) -> None:
    """Stage 6: write report.md, report.html, report.json, figures and model cards from the run's records."""
    from leaf.report import print_summary

    print_summary(written, stdout)


@app.command()
def plan(
    recipe: RecipeName,
    probe: Annotated[bool, typer.Option("--probe", help="Try the recipe on a sample of its texts.")] = False,
    probe_texts: Annotated[int | None, typer.Option("--probe-texts", min=1, help="Texts of that sample.")] = None,
    out: Out = None,
    limit: Limit = None,
    teacher: Teacher = None,
    set_: Set = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Before anyone pays for it: what a recipe can be expected to reach, from a minute or two on a sample of its texts.

    Says what its students cannot reach, what tokenizers cut, which queries training lacks, and the error and retention
    to expect. Writes preflight.json into the run folder, and nothing else.
    """
    if not probe:
        raise LeafError("leaf plan: only --probe is there yet; add it")
    from leaf.preflight import NUM_TEXTS, print_page
    from leaf.preflight import probe as try_out

    record = try_out(_recipe(recipe, limit, teacher, set_), out, device=device, num_texts=probe_texts or NUM_TEXTS)
    if as_json:
        _print_json(record)
    else:
        print_page(record, stdout)


@app.command()
def encode(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Model folder, hub id, ONNX file or the URL of a server.")
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


@app.command()
def export(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A student folder, or the RECIPE of a run.")],
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision", metavar="TYPES", help="Some of fp32,fp16,q8,q8-portable,q4,q4f16. Default: the recipe's."
        ),
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(
            "--calibrate", metavar="FILE", help="Texts like yours, one a line, for the ranges of q8; repeatable."
        ),
    ] = None,
    asymmetric: Annotated[
        Path | None,
        typer.Option("--asymmetric", metavar="DIR", help="Write student and teacher as one folder that routes."),
    ] = None,
    light: Annotated[
        bool, typer.Option("--light", help="With --asymmetric: name the teacher, do not copy it.")
    ] = False,
    push: Annotated[str | None, typer.Option("--push", metavar="OWNER/NAME", help="Upload to the hub.")] = None,
    dry_run: Annotated[
        Path | None, typer.Option("--dry-run", metavar="DIR", help="With --push: write what would be uploaded to DIR.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: a private repository.")] = False,
    branch: Annotated[str | None, typer.Option("--branch", help="With --push: not to the main branch.")] = None,
    out: Out = None,
    teacher: Teacher = None,
    set_: Set = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Stage 5: students as ONNX files, for queries without torch; asymmetric packages; the hub.

    Every file is compared with PyTorch and with the teacher's vectors of held-out texts, and kept only if it holds up.
    Files of precisions that are not asked for are removed. With --asymmetric or --push, a student folder is packaged
    or published as it stands.
    """
    if light and asymmetric is None:
        raise LeafError("--light goes with --asymmetric DIR")
    if (dry_run or private or branch) and push is None:
        raise LeafError("--dry-run, --private and --branch go with --push OWNER/NAME")
    if asymmetric is not None and push is not None:
        raise LeafError(f"--push uploads TARGET; write {asymmetric} first and then `leaf export {asymmetric} --push`")
    folder = Path(target)
    if not (folder / "modules.json").is_file():
        if calibrate or asymmetric or push:
            raise LeafError(f"'{target}' is no student folder, which --calibrate, --asymmetric and --push are for")
        types = f"export.precisions={json.dumps(_precisions_of_weights(precision))}" if precision else None
        with _pipeline(
            _recipe(target, None, teacher, [*(set_ or []), *([types] if types else [])]), out, device
        ) as pipeline:
            manifests = pipeline.export()
    elif asymmetric is not None:
        from leaf.export.asymmetric import asymmetric as pack

        package = pack(folder, asymmetric, teacher=teacher, light=light, device=device or "cpu")
        stdout.print(
            f"{package.folder}  queries: {folder.name} (cosine ≥ {package.query_cosine:.6f} after loading), documents: "
            f"{package.teacher}" + ("" if package.document_cosine is None else f" (≥ {package.document_cosine:.6f})"),
            soft_wrap=True,
        )
        return
    elif push is not None:
        from leaf.export.publish import publish

        upload = publish(folder, push, private=private, branch=branch, dry_run=dry_run)
        stdout.print(f"{upload.url or upload.folder}  {len(upload.files)} files", soft_wrap=True)
        return
    else:
        from leaf.export.onnx import PRECISIONS, export_student, read_calibration

        types_ = _precisions_of_weights(precision) if precision else PRECISIONS
        manifests = {folder.name: export_student(folder, types_, calibration=read_calibration(calibrate or []))}
    if as_json:
        _print_json(manifests)
        return
    table = _table("student", "file", "MB", "ε", "added", "least cosine")
    for name, manifest in manifests.items():
        table.add_row(name, "PyTorch", "", f"{manifest['student_error']:.4f}")
        for each in manifest["files"].values():
            numbers = f"{each['bytes'] / 1e6:.1f}", f"{each['error']:.4f}", f"{each['added_error']:+.4f}"
            table.add_row("", each["file"], *numbers, f"{each['min_cosine']:.5f}")
    stdout.print(table)
    for name, manifest in manifests.items():
        where = f"{manifest['num_texts']:,} {manifest['texts']}" + (" texts" if manifest["texts"] == "held-out" else "")
        stdout.print(f"{name}: mean distance to the teacher's vectors of {where}", style="dim", soft_wrap=True)


@app.command()
def verify(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET", help="A student folder, an ONNX file, a server's URL, a hub id, an index."),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Check this encoder against TARGET's space instead of TARGET itself."),
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Does it live in the space it claims? Encodes the canaries and compares; exit code 1 when it does not.

    Of a folder, every form is checked: the PyTorch weights and each ONNX file.
    """
    from dataclasses import asdict

    from leaf.verifying import verify as check

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
        _print_json(forms)
    if failed:
        raise SystemExit(1)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A student: folder, ONNX file or hub id.")],
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

    Where LEAF_API_KEY is set, everything but /health asks for it. Before the port opens, the canaries are checked.
    """
    from leaf.loading import load_for_serving
    from leaf.runtime.server import Settings
    from leaf.runtime.server import serve as run_server
    from leaf.verifying import space_of

    encoder = load_for_serving(model, precision=precision, threads=threads, device=device)
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
    run_server(encoder, settings, space=space_of(model))


@app.command()
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
            "--quick": quick,
        },
    }  # fmt: skip
    own = {kind} if kind == "models" else {kind, "both"}
    foreign = {option: value for each in options if each not in own for option, value in options[each].items()}
    if given := [option for option, value in foreign.items() if value]:
        raise LeafError(f"{given[0]} says nothing about {kind}; see `leaf speed --help`")
    record: dict[str, Any]
    if kind == "models":
        from leaf.speed import query

        record = query.time_models(
            what,
            query.read_texts(queries, documents, data),
            against=against or [],
            precisions=precision.split(",") if precision else [],
            tokenizer=tokenizer,
            threads=threads,
            plan=query.make_plan(_numbers(batch_sizes, "--batch-sizes"), rounds, quick=quick),
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
        _print_json(record)
    else:
        _print_speed(record)


@app.command()
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="Print this recipe whole, to start one of your own from.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The recipes that ship, one line each, or one of them whole."""
    from leaf.recipe import Recipe, shipped_recipes

    if name is not None:
        recipe = Recipe.load(name)
        print(json.dumps(recipe.model_dump(mode="json"), indent=2) if as_json else recipe.to_toml(), end="")
        return
    shipped = shipped_recipes()
    if as_json:
        _print_json({name: recipe.model_dump(mode="json") for name, recipe in shipped.items()})
        return
    table = _table("recipe", "teacher", "students", "")
    for name, recipe in shipped.items():
        students = ", ".join(student.name for student in recipe.students)
        table.add_row(name, recipe.teacher.name or recipe.teacher.model, students, recipe.description)
    stdout.print(table)


def _version(value: bool) -> None:
    if value:
        print(f"leaf {leaf.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _recipe(name: str, limit: int | None, teacher: str | None, settings: list[str] | None) -> "Recipe":
    from leaf.recipe import Recipe, override_teacher

    overrides = [*(settings or []), *([f"prepare.limit={limit}"] if limit else [])]
    recipe = Recipe.load(name, overrides)
    return override_teacher(recipe, teacher) if teacher else recipe


def _pipeline(
    recipe: "Recipe", out: Path | None, device: str | None = None, **options: Any
) -> "AbstractContextManager[Pipeline]":
    from leaf.pipeline import Pipeline

    return Pipeline(recipe, out, device=device, **options).open()


def _numbers(text: str | None, option: str) -> list[int]:
    """`256,128,64` as numbers."""
    try:
        return [int(each) for each in text.split(",")] if text else []
    except ValueError:
        raise LeafError(f"{option} '{text}' is no list of numbers, expected for example 256,128,64") from None


def _precisions(text: str | None) -> "list[Precision]":
    from leaf.compression import PRECISIONS

    wanted = text.split(",") if text else []
    if odd := [each for each in wanted if each not in PRECISIONS]:
        raise LeafError(f"--precision '{odd[0]}' is unknown, expected some of {','.join(PRECISIONS)}")
    return [each for each in PRECISIONS if each in wanted and each != "float32"]


def _precisions_of_weights(text: str) -> list[str]:
    from leaf.runtime.artifact import FILES

    wanted = text.split(",")
    if odd := [each for each in wanted if each not in FILES]:
        raise LeafError(f"--precision '{odd[0]}' is unknown, expected some of {','.join(FILES)}")
    return wanted


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


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _print_measured(measured: "Measured", as_json: bool) -> None:
    """Scores, then curves, then what could not be measured."""
    _print_scores(measured.scores, as_json)
    if as_json:
        return
    if measured.curves is not None:
        from leaf.report.curves import curves_table
        from leaf.report.summary import print_table

        for student in measured.curves.students:
            stdout.print(f"\n{student}, in fewer dimensions and bits: nDCG@10, mean over sets", style="bold")
            print_table(curves_table(measured.curves, student), stdout)
    if measured.not_measured:  # each has said why when it came to it
        stdout.print(f"Not measured: {', '.join(measured.not_measured)}", soft_wrap=True)


def _print_alignments(found: "Sequence[Alignment]", out: Path | None, as_json: bool) -> None:
    from dataclasses import asdict

    alignments = [asdict(each) for each in found]
    if out is not None:
        from leaf.files import write_json

        write_json(out / "alignment.json", alignments)
    if as_json:
        _print_json(alignments)
        return
    from leaf.report.alignment import print_alignment

    for alignment in alignments:
        print_alignment(alignment, stdout)


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


def _print_scores(scores: "Sequence[Score]", as_json: bool) -> None:
    """A table for each student beside its teacher, or one for an encoder alone."""
    if as_json:
        from dataclasses import asdict

        from leaf.evaluation.records import EVIDENCE

        _print_json([{key: value for key, value in asdict(each).items() if key not in EVIDENCE} for each in scores])
        return
    from leaf.evaluation.compare import compare, means
    from leaf.report.scores import lone_table, student_table
    from leaf.report.summary import print_table

    names = dict.fromkeys(each.encoder for each in scores if each.mode in ("standard", "asymmetric"))
    teachers = any(each.mode == "teacher" for each in scores)
    for position, name in enumerate(names):
        if position:
            stdout.print()
        if teachers or len(names) > 1:
            stdout.print(f"{name}, beside its teacher" if teachers else name, style="bold")
        own = [each for each in scores if each.encoder == name or each.mode == "bm25"]
        rows = student_table(compare(scores, name), means(scores, name)) if teachers else lone_table(own)
        print_table(rows, stdout)
    if teachers:
        stdout.print(NOTE, style="dim", soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    numeric = {
        "value",
        "queries",
        "layers",
        "parameters",
        "held-out ε",
        "seconds",
        "MB",
        "ε",
        "added",
        "least cosine",
        "read",
        "kept",
        "held-out",
    }
    for column in columns:
        table.add_column(column, justify="right" if column in numeric else "left", overflow="fold")
    return table
