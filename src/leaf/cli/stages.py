"""A recipe, stage by stage: `leaf distill` and the verbs it is made of."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leaf.cli.common import (
    AsJson,
    Changes,
    Dtype,
    Own,
    Run,
    Spending,
    Training,
    numbers,
    open_pipeline,
    open_recipe,
    print_json,
    stdout,
    verb,
)
from leaf.cli.printing import (
    check_figure,
    draw_points,
    print_alignments,
    print_exported,
    print_measured,
    print_report,
    print_scores,
    print_students,
    print_sweep,
    print_texts,
    print_vectors,
)
from leaf.errors import LeafError

if TYPE_CHECKING:
    from leaf.compression import Precision
    from leaf.evaluation.records import Score
    from leaf.pipeline import Pipeline


@verb(Run, Training, Spending)
def distill(options: Any) -> None:
    """Every stage: texts, teacher vectors, students, scores, ONNX files, report. Run again, it goes on.

    Without a RECIPE, the one we recommend, leaf-fast, with a teacher and texts of yours:
    `leaf distill --teacher MODEL --queries queries.txt --documents passages.parquet --name mine`. Its recipe is then
    `runs/mine/recipe.toml`, for `leaf evaluate`, `leaf export` and `leaf report`.
    """
    _train(options, lambda pipeline: pipeline.distill(), print_report)


class Looking:
    """Whether sources are read, or only looked at."""

    check: Annotated[
        bool, typer.Option("--check", help="Read nothing; say which sources can be reached, and their licences.")
    ] = False


@verb(Run, Looking)
def texts(options: Any) -> None:
    """Stage 1: read the sources, reject, deduplicate, hold out, write shards. Prints the counts per source.

    With `prepare.leak_check`, texts that are in a benchmark are dropped or refused: the last line says how many.
    """
    if options.check:
        _check_texts(options)
    else:
        _run(options, lambda pipeline: pipeline.texts(), print_texts)


class Vocabulary:
    """How a language model is asked for definitions."""

    words: Annotated[
        str, typer.Argument(metavar="WORDS", help="A list of words: .txt, .jsonl, .csv, .tsv (also .gz) or .parquet.")
    ]
    llm: Annotated[
        str, typer.Option("--llm", metavar="URL", help="An OpenAI-compatible API, such as http://localhost:8000/v1.")
    ]
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="The model to ask there.")]
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Output, .jsonl or .jsonl.gz; a journal stands beside it.")
    ] = Path("vocabulary.jsonl.gz")
    column: Annotated[
        str, typer.Option("--column", metavar="NAME", help="Column of the words, where there are columns.")
    ] = "text"
    key_variable: Annotated[
        str, typer.Option("--key-variable", metavar="NAME", help='Environment variable of the key; "" sends none.')
    ] = "OPENAI_API_KEY"
    prompt: Annotated[
        Path | None,
        typer.Option("--prompt", metavar="FILE", help="Your own prompt, with {words} where the list of words goes."),
    ] = None
    temperature: Annotated[float | None, typer.Option("--temperature", help="Default: the endpoint's.")] = None
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="A sample of so many words; a larger one later pays for the rest alone."),
    ] = None
    seed: Annotated[int, typer.Option("--seed", help="Of the sample.")] = 0
    batch_words: Annotated[int, typer.Option("--batch-words", min=1, help="Words in one request.")] = 20
    at_once: Annotated[
        int, typer.Option("--at-once", min=1, help="Requests in flight: the most that a crash can lose once billed.")
    ] = 8
    max_output: Annotated[
        int | None,
        typer.Option("--max-output", min=1, help="Tokens of an answer. Default: 1,000 + 150 a word."),
    ] = None
    max_cost: Annotated[
        float | None, typer.Option("--max-cost", metavar="USD", min=0, help="Stop before it costs more; needs prices.")
    ] = None
    price_in: Annotated[float | None, typer.Option("--price-in", metavar="USD", min=0, help="A million tokens.")] = None
    price_out: Annotated[float | None, typer.Option("--price-out", metavar="USD", min=0, help="A million tokens.")] = (
        None
    )
    requests_per_minute: Annotated[
        float | None, typer.Option("--requests-per-minute", min=0, help="Send no more than this.")
    ] = None
    tokens_per_minute: Annotated[
        float | None, typer.Option("--tokens-per-minute", min=0, help="Send no more than this.")
    ] = None
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds: the longest silence of an answer.")] = 120
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Ask for answers in one piece.")] = False
    as_json: AsJson = False


@verb(Vocabulary, name="texts vocabulary")
def texts_vocabulary(options: Any) -> None:
    """Definitions of words by a language model, a text each (Appendix C): the ninth source of the paper's recipes.

    Answers are held to a strict form, and what fails is asked again; at last it is kept in OUT's `.rejects.jsonl`.
    Killed at any moment, the same command goes on, and no word that was answered is paid for again.
    """
    from leaf.texts.vocabulary import synthesise

    values = {key: value for key, value in vars(options).items() if key not in ("words", "out", "no_stream", "as_json")}
    summary = synthesise(options.words, options.out, stream=not options.no_stream, **values)
    if options.as_json:
        print_json(asdict(summary))
        return
    cost = "" if summary.cost is None else f", ${summary.cost:,.2f}"
    stdout.print(
        f"{summary.out}  {summary.texts:,} texts of {summary.done:,} words; {summary.requests:,} requests, "
        f"{summary.prompt_tokens:,} tokens in, {summary.completion_tokens:,} out{cost}",
        soft_wrap=True,
    )
    if summary.rejects:
        stdout.print(f"{summary.rejects}  {summary.rejected:,} words without a definition", soft_wrap=True)


class Spread:
    """How the teacher pass is spread over processes and machines."""

    rank: Annotated[
        int, typer.Option("--rank", min=0, help="Which of --world processes this is; they share the run folder.")
    ] = 0
    world: Annotated[int, typer.Option("--world", min=1, help="Processes that each take a share of the shards.")] = 1
    cluster: Annotated[
        str | None, typer.Option("--cluster", metavar="ADDRESS", help="A Ray cluster, HOST:PORT, or `local`.")
    ] = None
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="With --cluster: workers asked for. Default: all there is room for."),
    ] = None
    gpus: Annotated[
        float | None,
        typer.Option("--gpus", min=0, help="With --cluster: GPUs a worker. Default: 1 if there are any."),
    ] = None
    cpus: Annotated[
        float | None, typer.Option("--cpus", min=0, help="With --cluster: CPUs a worker. Default: 3 without a GPU.")
    ] = None


@verb(Run, Spending, Spread)
def embed(options: Any) -> None:
    """Stage 2: encode every text with the teacher, once; resumes by shard.

    By several processes that share the run folder: `--rank $SLURM_PROCID --world $SLURM_NTASKS`, or any other numbers.
    On a Ray cluster, without a shared folder: `--cluster HOST:PORT`.
    """
    resources = {key: getattr(options, key) for key in ("workers", "gpus", "cpus")}
    if options.cluster is None:
        if given := [f"--{key}" for key, value in resources.items() if value is not None]:
            raise LeafError(f"{given[0]} says how work is placed on a Ray cluster: it goes with --cluster ADDRESS")
        share = (options.rank, options.world)
        _run(options, lambda pipeline: pipeline.embed(), lambda found: print_vectors(found, share), share=share)
        return
    if options.world > 1 or options.rank > 0:
        raise LeafError("--rank and --world split the work by hand, --cluster lets Ray do it; give one of them")
    address = options.cluster
    _run(options, lambda pipeline: pipeline.embed_on(address, **resources), print_vectors)


@verb(Run, Training)
def train(options: Any) -> None:
    """Stage 3: train every student of the recipe on the cached vectors; resumes exactly.

    On several GPUs: `torchrun --nproc-per-node N -m leaf train RECIPE`.
    """
    _train(options, lambda pipeline: pipeline.train(), print_students)


@verb(Run, Training)
def sweep(options: Any) -> None:
    """Every stage for each point of the recipe's grid (`[sweep]`), over one set of teacher vectors.

    Writes sweep.json, sweep.md and figures. The grid may grow later: finished points stay.
    """
    _train(options, lambda pipeline: pipeline.sweep(), print_sweep)


class Evaluation:
    """What is scored, and on what."""

    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="Score the students of this recipe's run.")] = (
        None
    )
    queries: Annotated[
        list[str] | None,
        typer.Option("--queries", metavar="MODEL", help="Encoder of the queries (a student); repeatable."),
    ] = None
    documents: Annotated[
        str | None,
        typer.Option("--documents", metavar="MODEL", help="Encoder of the documents (the teacher)."),
    ] = None
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", metavar="PATH", help="BEIR folder, .tsv[.gz] set, or a folder of these; repeatable."),
    ] = None
    benchmark: Annotated[
        list[str] | None,
        typer.Option("--benchmark", metavar="NAME", help='Public benchmark or task, e.g. "NanoBEIR"; repeatable.'),
    ] = None
    mirror: Annotated[
        Path | None, typer.Option("--mirror", metavar="DIR", help="Local copies of benchmark data, before the hub.")
    ] = None
    truncate: Annotated[
        str | None, typer.Option("--truncate", metavar="DIMS", help="Also in fewer dimensions: 256,128,64.")
    ] = None
    precision: Annotated[
        str | None, typer.Option("--precision", metavar="TYPES", help="Also rounded: int8,int8xbinary,binary.")
    ] = None
    alignment: Annotated[
        bool, typer.Option("--alignment", help="Compare with the teacher on --data without judgements.")
    ] = False
    query_texts: Annotated[
        list[Path] | None,
        typer.Option(
            "--query-texts", metavar="FILE", help="With --alignment: a file of queries, one a line; repeatable."
        ),
    ] = None
    document_texts: Annotated[
        list[Path] | None,
        typer.Option("--document-texts", metavar="FILE", help="With --alignment: a file of documents; repeatable."),
    ] = None
    figure: Annotated[
        Path | None,
        typer.Option(
            "--figure", metavar="FILE", help="Time a query with each encoder too, and draw quality against it: an .svg."
        ),
    ] = None
    mteb: Annotated[bool, typer.Option("--mteb", help="Score --data as mteb tasks; its results go to OUT/mteb.")] = (
        False
    )
    bm25: Annotated[bool, typer.Option("--bm25", help="Also score BM25 on the retrieval sets.")] = False
    cache: Annotated[
        Path | None,
        typer.Option("--cache", envvar="LEAF_CACHE", help="Where vectors are kept. Default: ~/.cache/leaf."),
    ] = None
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="auto: bfloat16 where the hardware has it and vectors hardly move.")
    ] = Dtype.auto


@verb(Evaluation, Changes, Spending)
def evaluate(options: Any) -> None:
    """Stage 4, or any encoders on any sets: what a student keeps of its teacher, with intervals.

    With one --queries alone: that model on both sides. With --documents too: the document encoder alone (teacher), each
    query encoder alone (standard), and queries by one against documents by the other (asymmetric). --alignment compares
    them on texts that nobody has judged: a BEIR folder without judgements, or a file of texts with a column kind.
    """
    if options.recipe is None:
        _evaluate_models(options)
        return
    if options.queries or options.documents or options.data or options.benchmark or options.alignment:
        raise LeafError("give either a RECIPE or --queries and --data, not both")
    if options.figure:
        raise LeafError("with a RECIPE the figure is in its report: `leaf export`, then `leaf report`")
    if options.mirror or options.truncate or options.precision or options.bm25 or options.mteb:
        raise LeafError("with a RECIPE these are its settings: --set evaluate.truncate=[256,128] and the like")
    with open_pipeline(options, max_cost=options.max_cost) as pipeline:
        pipeline.evaluate()
    from leaf.evaluation import records

    scores = records.read(pipeline.run.folder / "scores")
    if options.as_json:
        print_json(_without_evidence(scores))
    else:
        print_scores(scores)


def _evaluate_models(options: Any) -> None:
    texts = options.query_texts or options.document_texts
    if not options.queries or not (options.data or options.benchmark or texts):
        raise LeafError("say what to evaluate: a RECIPE, or --queries MODEL and --data PATH (or --benchmark NAME)")
    if options.figure and options.alignment:
        raise LeafError("--figure draws scores, which --alignment has none of; leave one of them out")
    if texts and not options.alignment:
        raise LeafError("--query-texts and --document-texts have no judgements to score: they go with --alignment")
    if options.max_cost is not None:
        raise LeafError("--max-cost goes with a RECIPE, whose teacher.api.price it needs; leave it out")
    from leaf import scoring
    from leaf.evaluation.suite import Suite
    from leaf.files import user_cache, write_json

    models = scoring.Models(options.queries, options.documents, options.dtype.value, options.device)
    data = options.data or []
    if options.alignment:
        found = scoring.compare_on_texts(models, data, options.query_texts or [], options.document_texts or [])
        alignments = [asdict(each) for each in found]
        if options.out is not None:
            write_json(options.out / "alignment.json", alignments)
        if options.as_json:
            print_json(alignments)
        else:
            print_alignments(alignments)
        return
    suite = Suite(
        benchmarks=options.benchmark or [],
        mirror=options.mirror,
        mteb=options.mteb,
        bm25=options.bm25,
        truncate=numbers(options.truncate, "--truncate"),
        precisions=_precisions(options.precision),
    )
    if options.figure:
        check_figure(options.figure)
    cache = options.cache or user_cache() / "vectors"
    measured = scoring.score(models, data, suite, cache, options.out, timed=options.figure is not None)
    if options.as_json:
        print_json(_without_evidence(measured.scores))
    else:
        print_measured(measured)
    if options.figure:
        from leaf.report.ladder import retention

        timed = measured.latencies
        kept = retention(measured.scores, {name: each["precision"] for name, each in timed.items()})
        draw_points(kept, timed, options.figure, quiet=options.as_json)


def _without_evidence(scores: "Sequence[Score]") -> list[dict[str, Any]]:
    """Scores as plain data; the values of single queries stay in their files."""
    from leaf.evaluation.records import EVIDENCE

    return [{key: value for key, value in asdict(each).items() if key not in EVIDENCE} for each in scores]


class Exporting:
    """What is written, and where to."""

    target: Annotated[str, typer.Argument(metavar="TARGET", help="A student folder, or the RECIPE of a run.")]
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision", metavar="TYPES", help="Some of fp32,fp16,q8,q8-portable,q4,q4f16. Default: the recipe's."
        ),
    ] = None
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(
            "--calibrate", metavar="FILE", help="Texts like yours, one a line, for the ranges of q8; repeatable."
        ),
    ] = None
    asymmetric: Annotated[
        Path | None,
        typer.Option("--asymmetric", metavar="DIR", help="Write student and teacher as one folder that routes."),
    ] = None
    light: Annotated[bool, typer.Option("--light", help="With --asymmetric: name the teacher, do not copy it.")] = False
    web: Annotated[
        Path | None,
        typer.Option(
            "--web", metavar="DIR", help="Write a folder in whose page the student searches --index, offline."
        ),
    ] = None
    index: Annotated[str | None, typer.Option("--index", metavar="INDEX", help="With --web: what is searched.")] = None
    title: Annotated[str | None, typer.Option("--title", help="With --web: of the page.")] = None
    push: Annotated[str | None, typer.Option("--push", metavar="OWNER/NAME", help="Upload to the hub.")] = None
    dry_run: Annotated[
        Path | None, typer.Option("--dry-run", metavar="DIR", help="With --push: write what would be uploaded to DIR.")
    ] = None
    private: Annotated[bool, typer.Option("--private", help="With --push: a private repository.")] = False
    branch: Annotated[str | None, typer.Option("--branch", help="With --push: not to the main branch.")] = None


@verb(Exporting, Changes)
def export(options: Any) -> None:
    """Stage 5: students as ONNX files, for queries without torch; asymmetric packages; web pages; the hub.

    Every file is compared with PyTorch and with the teacher's vectors of held-out texts, and kept only if it holds up.
    Files of precisions that are not asked for are removed. With --asymmetric, --web or --push, a student folder is
    packaged or published as it stands.
    """
    _check_export(options)
    folder = Path(options.target)
    if not (folder / "modules.json").is_file():
        options.recipe = options.target
        if options.precision:
            types = json.dumps(_precisions_of_weights(options.precision))
            options.settings = [*(options.settings or []), f"export.precisions={types}"]
        with open_pipeline(options) as pipeline:
            manifests = pipeline.export()
    elif options.asymmetric is not None:
        from leaf.export.asymmetric import asymmetric as pack

        device = options.device or "cpu"
        package = pack(folder, options.asymmetric, teacher=options.teacher, light=options.light, device=device)
        stdout.print(
            f"{package.folder}  queries: {folder.name} (cosine ≥ {package.query_cosine:.6f} after loading), documents: "
            f"{package.teacher}" + ("" if package.document_cosine is None else f" (≥ {package.document_cosine:.6f})"),
            soft_wrap=True,
        )
        return
    elif options.web is not None:
        from leaf.export.web import export_web

        precision = _precisions_of_weights(options.precision or "q8")[0]
        site = export_web(folder, options.index, options.web, precision=precision, title=options.title)
        if options.as_json:
            print_json(site)
            return
        stdout.print(
            f"{options.web}  {site['documents']:,} documents × {site['dim']} in int8, {folder.name} in {precision}: "
            f"{site['bytes_total'] / 1e6:.1f} MB; try it: python -m http.server -d {options.web}",
            soft_wrap=True,
        )
        return
    elif options.push is not None:
        from leaf.export.publish import publish

        upload = publish(folder, options.push, private=options.private, branch=options.branch, dry_run=options.dry_run)
        stdout.print(f"{upload.url or upload.folder}  {len(upload.files)} files", soft_wrap=True)
        return
    else:
        from leaf.export.onnx import PRECISIONS, export_student, read_calibration

        precisions = _precisions_of_weights(options.precision) if options.precision else PRECISIONS
        calibration = read_calibration(options.calibrate or [])
        manifests = {folder.name: export_student(folder, precisions, calibration=calibration)}
    if options.as_json:
        print_json(manifests)
    else:
        print_exported(manifests)


def _check_export(options: Any) -> None:
    """Options that do not go together are said before anything is read."""
    asymmetric, push = options.asymmetric, options.push
    if options.light and asymmetric is None:
        raise LeafError("--light goes with --asymmetric DIR")
    if (options.dry_run or options.private or options.branch) and push is None:
        raise LeafError("--dry-run, --private and --branch go with --push OWNER/NAME")
    if (options.web is None) != (options.index is None) or (options.title and options.web is None):
        raise LeafError(
            "--web DIR and --index INDEX go together: the folder searches that index (--title names its page)"
        )
    if options.web is not None and (asymmetric is not None or push is not None):
        raise LeafError("--web goes without --asymmetric and --push; write one after the other")
    if asymmetric is not None and push is not None:
        raise LeafError(f"--push uploads TARGET; write {asymmetric} first and then `leaf export {asymmetric} --push`")
    if not (Path(options.target) / "modules.json").is_file() and (
        options.calibrate or asymmetric or push or options.web
    ):
        raise LeafError(
            f"'{options.target}' is no student folder, which --calibrate, --asymmetric, --web and --push are for"
        )


class Reported(Own, Changes):
    """A run, or pages whose numbers come from records."""

    places: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE | PAGE", help="A recipe, or Markdown files and folders of them."),
    ] = None
    check: Annotated[
        bool, typer.Option("--check", help="With pages: write nothing, name what differs from its record, exit with 1.")
    ] = False


@verb(Reported)
def report(options: Any) -> None:
    """Stage 6: write report.md, report.html, report.json, figures and model cards from the run's records.

    With Markdown files or folders: write anew the blocks that they have between `<!-- leaf: KIND RECORD -->` and
    `<!-- /leaf -->`, from the records named there, and the figures beside these.
    """
    from leaf.recipe import shipped_recipes

    places = options.places or []
    pages = [Path(each) for each in places if each.endswith(".md") or Path(each).is_dir()]
    if not pages or (len(places) == 1 and places[0] in shipped_recipes()):
        if len(places) > 1:
            raise LeafError(f"'{places[1]}' is no Markdown file and no folder; recipes are reported one by one")
        if options.check:
            raise LeafError("--check says nothing about a recipe; it is for Markdown files and folders of them")
        options.recipe = places[0] if places else None
        _run(options, lambda pipeline: pipeline.report(), print_report)
        return
    if odd := [each for each in places if Path(each) not in pages]:
        raise LeafError(f"'{odd[0]}' is no Markdown file and no folder, which the others are")
    if given := [name for name, value in vars(options).items() if value and name not in ("places", "check")]:
        option = {"start": "from", "settings": "set", "as_json": "json"}.get(given[0], given[0])
        raise LeafError(f"--{option} says nothing about pages; see `leaf report --help`")
    _write_pages(pages, options.check)


def _write_pages(pages: list[Path], check: bool) -> None:
    from leaf.report.documents import rewrite
    from leaf.report.studies import KINDS

    found = rewrite(pages, KINDS, check=check)
    for each in found.stale:
        stdout.print(each, soft_wrap=True, markup=False)
    done = "differ from their records" if check else "written anew"
    where = f"{len(found.pages)} page{'s' if len(found.pages) > 1 else ''}"
    stdout.print(f"{len(found.stale)} of {found.blocks} blocks on {where} {done}", soft_wrap=True)
    if check and found.stale:
        raise SystemExit(1)


class Planning:
    """How a recipe is looked at before it is run."""

    hardware: Annotated[
        str | None, typer.Option("--hardware", metavar="NAME", help="Hours on this: a100, h100, h200, l4, t4, cpu …")
    ] = None
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="So many of them.")] = 1
    probe: Annotated[bool, typer.Option("--probe", help="Try the recipe on a sample of its texts.")] = False
    probe_texts: Annotated[int | None, typer.Option("--probe-texts", min=1, help="Texts of that sample.")] = None


@verb(Run, Planning)
def plan(options: Any) -> None:
    """Before anyone pays for it: texts, tokens, disk, memory, hours and dollars of a recipe, from what is here.

    With --probe also what it can be expected to reach, from a minute or two on a sample of its texts: what its students
    cannot reach, what tokenizers cut, which queries training lacks, the error and retention to expect. That writes
    preflight.json into the run folder, and nothing else.
    """
    if not options.probe:
        from leaf.planning import plan as count
        from leaf.planning import print_plan

        record = count(open_recipe(options), options.out, hardware=options.hardware, gpus=options.gpus)
        if options.as_json:
            print_json(record)
        else:
            print_plan(record, stdout)
        return
    from leaf.preflight import NUM_TEXTS, print_page
    from leaf.preflight import probe as try_out

    num_texts = options.probe_texts or NUM_TEXTS
    record = try_out(open_recipe(options), options.out, device=options.device, num_texts=num_texts)
    if options.as_json:
        print_json(record)
    else:
        print_page(record, stdout)


def _run(options: Any, stage: "Callable[[Pipeline], Any]", show: Callable[[Any], None], **more: Any) -> None:
    """Runs one stage and shows what it returned; of several processes, only the main one does."""
    if getattr(options, "max_cost", None) is not None:
        more["max_cost"] = options.max_cost
    with open_pipeline(options, **more) as pipeline:
        result = stage(pipeline)
        if not pipeline.world.is_main:
            return
    if options.as_json:
        print_json(result)
    else:
        show(result)


def _train(options: Any, stage: "Callable[[Pipeline], Any]", show: Callable[[Any], None]) -> None:
    from leaf.student.step import Engine

    engine = Engine(
        compile=not (options.no_compile or options.eager),
        graphs=not options.eager,
        deterministic=options.deterministic,
    )
    _run(options, stage, show, engine=engine, profile=options.profile, texts_from=options.texts_from)


def _check_texts(options: Any) -> None:
    from leaf.texts.check import check_sources, print_check

    found = check_sources(open_recipe(options))
    if options.as_json:
        print_json([asdict(each) for each in found])
    else:
        print_check(found, stdout)
    if not all(each.reachable and each.columns is not False for each in found):
        raise SystemExit(1)


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
