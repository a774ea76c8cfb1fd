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


class As(StrEnum):
    """The role a text is encoded in."""

    query = "query"
    document = "document"


class Timed(StrEnum):
    """What `leaf speed` times."""

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
    """Stage 5: write report.md, report.html, report.json, figures and model cards from the run's records."""
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
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model folder or hub id.")],
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
def verify(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A student folder.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Check this encoder against TARGET's space instead of TARGET itself."),
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Does it live in the space it claims? Encodes the canaries and compares; exit code 1 when it does not."""
    from dataclasses import asdict

    from leaf.space import Space
    from leaf.space import verify as check

    space = Space.load(Path(target))
    verdict = check(leaf.load(model or target, device=device), space)
    if as_json:
        _print_json({"space": space.id, "teacher": space.teacher["model"], **asdict(verdict)})
    else:
        stdout.print(
            f"{'in' if verdict.in_space else 'NOT in'} the space of {space.teacher['model']} ({space.id}): mean canary "
            f"ε {verdict.error:.4f} (at saving {verdict.expected:.4f}), mean cosine {verdict.mean_cosine:.4f}, "
            f"{100 * verdict.matched:.0f} % nearest to their own",
            soft_wrap=True,
        )
    if not verdict.in_space:
        raise SystemExit(1)


@app.command()
def speed(
    what: Annotated[Timed, typer.Argument(metavar="WHAT", help="train: training steps. embed: the teacher pass.")],
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 32,
    layers: Annotated[int | None, typer.Option("--layers", min=1, help="Default: 6 for train, 12 for embed.")] = None,
    dim: Annotated[int | None, typer.Option("--dim", min=1, help="train: of the targets. Default: 768.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="train: timed steps a round.")] = None,
    num_texts: Annotated[int | None, typer.Option("--texts", min=1, help="embed: texts a round.")] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1)] = 3,
    device: Device = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write the record to DIR/<WHAT>-<cpu|cuda>.json.")
    ] = None,
    no_compile: NoCompile = False,
    eager: Eager = False,
    as_json: AsJson = False,
) -> None:
    """Times leaf against Transformers and Sentence Transformers here, on random weights and the paper's text lengths.

    train: `leaf train` against a padded loop and the Sentence Transformers trainer. embed: the teacher pass against
    `SentenceTransformer.encode`. Minutes on a CPU.
    """
    for_train = {"--dim": dim, "--steps": steps, "--no-compile": no_compile, "--eager": eager}
    wrong = {"--texts": num_texts} if what is Timed.train else for_train
    if given := [option for option, value in wrong.items() if value]:
        raise LeafError(f"{given[0]} says nothing about {what}; see `leaf speed --help`")
    from leaf.speed.record import result_table
    from leaf.speed.synthetic import Shape

    shape = Shape(layers or (6 if what is Timed.train else 12))
    record: dict[str, Any]
    if what is Timed.train:
        from leaf.speed.training import time_training
        from leaf.student.step import Engine

        engine = Engine(compile=not (no_compile or eager), graphs=not eager)
        record = time_training(
            shape, dim=dim or 768, batch_size=batch_size, steps=steps, rounds=rounds, device=device, engine=engine
        )
    else:
        from leaf.speed.embedding import time_embedding

        record = time_embedding(shape, num_texts=num_texts, batch_size=batch_size, rounds=rounds, device=device)
    if out is not None:
        from leaf.files import write_json

        write_json(out / f"{what}-{record['settings']['device'].partition(':')[0]}.json", record)
    if as_json:
        _print_json(record)
    else:
        stdout.print(result_table(record))


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
        "read",
        "kept",
        "held-out",
    }
    for column in columns:
        table.add_column(column, justify="right" if column in numeric else "left")
    return table
