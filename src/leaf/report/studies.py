"""The kinds of blocks on pages: what each prints of the record that it names. `documents.py` says how one is written.

    value RECORD PATH [FACTOR] [FORMAT]   one number, inside a sentence: see values.py
    setting RECORD          on what a record was made, by which commit, and how long training took
    took RECORD             how long training took in all, inside a sentence
    run REPORT              what `leaf report` prints of a run
    ladder REPORT           a row a student: size, training, error, scores, retention, time of a query; and the figure
    example REPORT STUDENT  what teacher and student find for the example queries, side by side
    figure RECORD NAME      a single figure of a run (retention, error, cost) or of a sweep (sweep-…)
    sweep SWEEP             table and figures of a sweep
    scores SCORES           one encoder on many sets
    curves REPORT           nDCG@10 by dimension and precision
    margin REPORT           how much error search bears, from checkpoints
    adaptation REPORT       a student before and after
    onnx MANIFEST…          the ONNX files of students, one folder's manifest each
    int8 RETENTION          what int8 queries keep
    load RECORD             a server under load
    search RECORD           recall, time and size of an index
    swap RECORD             one index, asked by several encoders
    speed FOLDER PART       train, embed, figure or models: what `leaf speed` measured
    recipe SECTION          the fields of a table of a recipe, from the code

REPORT is the `report.json` of any run, SWEEP the `sweep.json` of any sweep; the others are the records of one study.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from rich.console import Console

from leaf import recipe as recipes
from leaf.errors import LeafError
from leaf.evaluation.adaptation import Change
from leaf.evaluation.compare import MODES
from leaf.evaluation.curves import Curves, Summary
from leaf.evaluation.records import Score
from leaf.evaluation.statistics import Interval
from leaf.figures import Figure
from leaf.report import adaptation, ladder, margin, sweep, words
from leaf.report.curves import curves_caption, curves_table, draw_curves
from leaf.report.documents import Kinds, Request
from leaf.report.figures import draw_figures
from leaf.report.pages import markdown
from leaf.report.scores import lone_table
from leaf.report.summary import PIPE_WIDTH, print_summary
from leaf.report.values import show
from leaf.speed import page as speed
from leaf.speed import query_page

Record = Mapping[str, Any]
#: Packages whose versions stand beside a commit: those that compute.
SHOWN = ("torch", "onnxruntime")
#: Characters of a document in a table of examples.
SHORT = 70
#: The tables of a recipe.
SECTIONS: dict[str, type[recipes.Section]] = {
    "teacher": recipes.Teacher,
    "teacher.api": recipes.Api,
    "teacher.vectors": recipes.OwnedVectors,
    "student": recipes.Student,
    "texts": recipes.TextSource,
    "texts.about": recipes.About,
    "prepare": recipes.Prepare,
    "train": recipes.Train,
    "evaluate": recipes.Evaluate,
    "export": recipes.Export,
    "index": recipes.Index,
    "sweep": recipes.Sweep,
}


def value(request: Request) -> str:
    """One number or word of a record."""
    return show(request.read(), [request.word(position) for position in range(1, len(request.words))])


def setting(request: Request) -> str:
    """Hardware, commit and versions of whatever says what made it, and how long its training took."""
    record = request.read()
    record = record[-1] if isinstance(record, list) else record
    trained = record.get("students") or record.get("points") or []
    made = record.get("measured") or record.get("provenance") or {}
    made = made if "commit" in made else next(iter(made.values()), {})
    if "commit" not in made:
        raise LeafError(f"{request.words[0]} does not say what made it, expected 'measured' or 'provenance'")
    by = [each["provenance"] for each in trained if "provenance" in each] or [made]
    commits = ", ".join(dict.fromkeys(f"`{each['commit']}`" for each in by))
    versions = "".join(f", {name} {made['versions'][name]}" for name in SHOWN if name in made["versions"])
    said = f"{_machine(made)}; commit {commits}, {made['time'][:10]}; Python {made['python']}{versions}"
    if _seconds(trained):
        said += f"; training took {sweep.duration(_seconds(trained))}{' in all' if len(trained) > 1 else ''}"
    return f"{said}."


def took(request: Request) -> str:
    """How long the students of a run, or the points of a sweep, were trained in all."""
    record = request.read()
    return sweep.duration(_seconds(record["students" if "students" in record else "points"]))


def run(request: Request) -> str:
    """What `leaf report` prints of a run, as a block of code."""
    console = Console(file=io.StringIO(), width=PIPE_WIDTH, color_system=None)
    print_summary(request.read(), console)
    assert isinstance(console.file, io.StringIO)
    lines = (line.rstrip() for line in console.file.getvalue().splitlines())
    return "\n".join(["```", *lines, "```"])


def rungs(request: Request) -> str:
    """What each student of a run costs and keeps; columns that the run has no numbers for are left out."""
    report = request.read()
    students, teacher = report["students"], report["teacher"]
    retrieval, sts = words.datasets(report, "retrieval"), words.datasets(report, "sts")
    timed = any(student["latency_ms"] for student in students)
    texts = len({student["num_texts"] for student in students}) > 1
    header = ["student", "layers", "parameters", *(["texts"] if texts else []), "trained", "texts/s", "ε"]
    header += ["standard", "% kept", "asymmetric", "% kept"] if retrieval else []
    rows = [[*header, *(["STS"] if sts else []), *(["ms a query"] if timed else [])]]
    for student in students:
        scores = {mode: {name: each[mode] for name, each in student["scores"].items()} for mode in MODES}
        row = [student["name"], str(student["layers"]), words.size(student["parameters"])]
        row += [words.count(student["num_texts"])] if texts else []
        row += [*_trained(student), words.decimals(student["epsilon"], 3)]
        for mode in MODES if retrieval else ():
            row += [words.points(words.mean_score(scores[mode], retrieval)), words.retention(student, mode)]
        row += [words.points(words.mean_score(scores["standard"], sts))] if sts else []
        rows.append([*row, *([words.decimals(student["latency_ms"])] if timed else [])])
    said = [f"Teacher: {teacher['name']}, {teacher['dim']} dimensions."]
    said += [] if texts else [f"Trained on {words.count(students[0]['num_texts'])} texts."]
    said += ["ε: mean distance to the teacher's vectors on texts never trained on."]
    for task, names in (("nDCG@10", retrieval), ("STS, Spearman", sts)):
        if names:
            mean = f"the mean of {len(names)} sets" if len(names) > 1 else names[0]
            bm25 = words.mean_score(report.get("baselines", {}).get("bm25", {}), names)
            others = f"the teacher's {words.points(words.mean_score(teacher['scores'], names))}"
            said.append(f"{task}: {mean}; {others}{'' if bm25 is None else f', that of BM25 {words.points(bm25)}'}.")
    said += ["% kept: of the teacher's nDCG@10, with its 95 % paired bootstrap interval."] if retrieval else []
    said += [f"ms: {words.timing(report)}."] if timed and report["speed"]["num_queries"] else []
    shown = _figures(report).get("cost")
    return "\n\n".join([markdown_table(rows), " ".join(said), *([request.picture("cost.svg", shown)] if shown else [])])


def example(request: Request) -> str:
    """The paper's Table 6: a table for each example query, its columns the teacher, asymmetric and standard search."""
    report, parts = request.read(), []
    name = request.word(1)
    for each in report["examples"]:
        teacher, *answers = each["answers"]
        mine = [answer for answer in answers if answer["encoder"] == name]
        if not mine:
            known = ", ".join(dict.fromkeys(answer["encoder"] for answer in answers))
            raise LeafError(f"no answers of '{name}' in {request.words[0]}, expected one of {known}")
        number = len(teacher["documents"])
        header = ["", "teacher", *(f"{answer['mode']}, {answer['overlap']} of {number}" for answer in mine)]
        rows = [
            [
                str(rank),
                _found(ours[0], ""),
                *(_found(other, "✓ " if other["teacher_too"] else "") for other in ours[1:]),
            ]
            for rank, ours in enumerate(zip(*(answer["documents"] for answer in (teacher, *mine)), strict=True), 1)
        ]
        table = markdown_table([header, *rows]).replace("--:|", "--|")  # texts, not numbers
        parts += [f"“{markdown(each['query'])}” in {markdown(each['dataset'])} (✓: the teacher finds it too)", table]
    if not parts:
        raise LeafError(f"{request.words[0]} has no examples: set evaluate.examples")
    return "\n\n".join(parts)


def figure(request: Request) -> str:
    """A single figure of a run or a sweep."""
    record = request.read()
    _need_matplotlib()
    drawn = sweep.draw(record) if "points" in record else _figures(record)
    name = request.word(1)
    if name not in drawn:
        raise LeafError(f"no figure '{name}' of {request.words[0]}, expected one of {', '.join(drawn) or 'none'}")
    return request.picture(f"{name}.svg", drawn[name])


def swept(request: Request) -> str:
    """The table and the figures of a sweep."""
    record = request.read()
    _need_matplotlib()
    shown = [request.picture(f"{name}.svg", each) for name, each in sweep.draw(record).items()]
    return "\n\n".join([markdown_table(sweep.table(record)), " ".join(sweep.caption(record)), *shown])


def scores(request: Request) -> str:
    """One encoder on many sets: every task's mean, and below it its datasets."""
    records = [Score(**{**each, "notes": tuple(each["notes"])}) for each in request.read()]
    if len(names := {each.encoder for each in records if each.mode != "bm25"}) != 1:
        raise LeafError(f"{request.words[0]} has scores of {len(names)} encoders, expected one")
    dtypes = ", ".join(dict.fromkeys(each.compute_dtype for each in records if each.compute_dtype))
    return f"{markdown_table(lone_table(records))}\n\nScores in points of 100, computed in {dtypes}."


def curves(request: Request) -> str:
    """What students inherit in fewer dimensions and bits: a table and a figure each."""
    report = request.read()
    if not report.get("curves"):
        raise LeafError(f"{request.words[0]} has no curves: set evaluate.truncate or evaluate.precisions")
    _need_matplotlib()
    found = _read_curves(report)
    drawn, parts = draw_curves(found), []
    for student in found.students:
        parts.append(markdown_table(curves_table(found, student)))
        if (name := f"curves-{student}") in drawn:
            parts.append(request.picture(f"{name}.svg", drawn[name]))
    return "\n\n".join([*parts, curves_caption(found)])


def margins(request: Request) -> str:
    """How much error search bears, mode by mode: what the checkpoints allow to say, and the figure."""
    report, parts = request.read(), []
    if not report.get("margin"):
        raise LeafError(f"{request.words[0]} has no margin: set train.keep_checkpoints and evaluate.checkpoints")
    _need_matplotlib()
    for mode, found in report["margin"].items():
        parts.append(" ".join(margin.verdict(found)))
        if drawn := margin.draw_margin(found):
            parts.append(request.picture(f"margin-{mode}.svg", drawn))
    return "\n\n".join(parts)


def adapted(request: Request) -> str:
    """What adapting changed of each student: errors, then scores."""
    report, parts = request.read(), []
    if not report.get("adaptation"):
        raise LeafError(f"{request.words[0]} is of no run that adapted a student (`leaf distill --from`)")
    for data in report["adaptation"].values():
        changes = [Change.from_json(each) for each in data]
        parts += [markdown_table(adaptation.error_table(changes)), markdown_table(adaptation.score_table(changes))]
    teacher = ", ".join(f"{name} {words.points(score)}" for name, score in report["teacher"]["scores"].items())
    return "\n\n".join([*parts, f"Scores in points of 100; the teacher's: {teacher}. Intervals of 95 %."])


def onnx(request: Request) -> str:
    """What each ONNX file of each student weighs, and costs in distance to the teacher."""
    rows = [["student", "file", "MB", "ε", "added", "least cosine to PyTorch"]]
    batches: dict[bool, list[float]] = {False: [], True: []}
    for position, word in enumerate(request.words or ("",)):
        manifest = request.read(position)
        rows.append([Path(word).stem, "PyTorch", "", f"{manifest['student_error']:.4f}", "", ""])
        for precision, each in manifest["files"].items():
            numbers = f"{each['bytes'] / 1e6:.1f}", f"{each['error']:.4f}", f"{each['added_error']:+.4f}"
            rows.append(["", f"`{each['file']}`", *numbers, f"{each['min_cosine']:.4f}"])
            batches[precision.endswith("16")].append(each["batch_cosine"])
    least = [f"{1 - min(found):.0e}" for found in batches.values() if found]
    said = (
        f"ε: mean distance to the teacher's vectors of {words.count(manifest['num_texts'])} held-out texts. Cosines of "
        f"a text alone to itself in a padded batch are at least 1 − {', in the float16 files 1 − '.join(least)}."
    )
    return f"{markdown_table(rows)}\n\n{said}"


def int8(request: Request) -> str:
    """Retention of float32 and int8 queries of one student over its teacher's documents, in one sentence."""
    record = request.read()

    def said(interval: list[float]) -> str:
        return "{:.2f} % ({:.2f}–{:.2f})".format(*interval)

    modes = ", ".join(f"{name} queries {said(interval)}" for name, interval in record["asymmetric"].items())
    return (
        f"{record['student']} over its teacher's documents, nDCG@10 in percent of the teacher, mean over "
        f"{len(record['nDCG@10']['teacher'])} retrieval sets: {modes}. int8 in percent of float32: "
        f"**{said(record['q8_of_fp32'])}**."
    )


def load(request: Request) -> str:
    """What a server did under load, in one sentence."""
    record = request.read()
    latency, cpus = record["latency_ms"], record["provenance"]["hardware"]["cpus"]
    return (
        f"Under load, {record['connections']} connections for {record['seconds']:.0f} s, clients on the same {cpus} "
        f"cores: {record['answers']:,} answers by {record['model']}, {sum(record['errors'].values())} errors, "
        f"{record['answers_per_second']:.0f} a second, median {latency['p50']:.0f} ms, 99th percentile "
        f"{latency['p99']:.0f} ms (`python -m leaf.runtime.load`)."
    )


def searched(request: Request) -> str:
    """What an index finds of the exact ten, how fast, and what building one takes."""
    record = request.read()
    million = record.get("million", {})
    rows = [["`--precision`", "recall@10", "ms a search", "MB", "built in"]]
    rows[0] += ["a million documents", "memory, building"] if million else []
    for name, each in record["precisions"].items():
        row = [name, f"{each['recall']:.3f}", f"{each['search_ms']:.2f}", f"{each['mb']:.0f}"]
        row.append(f"{each['build_seconds']:.0f} s")
        if large := million.get(name):
            row.append(f"{large['build_seconds']:.0f} s, {large['search_ms']:.1f} ms a search")
            row.append(f"{large['peak_mib']:,} MiB")
        rows.append(row + [""] * (len(rows[0]) - len(row)))
    ends = "; ".join(
        f"{name} {each['two_threads']:,.0f} ({each['two_threads_least']:,.0f}), 32 at a time "
        f"{each['two_threads_by_32']:,.0f} ({each['two_threads_by_32_least']:,.0f})"
        for name, each in record["end_to_end"].items()
    )
    exact = ", ".join(
        f"{int(count):,}: {each['exact']:.2f} and {each['graph']:.2f} ms"
        for count, each in record["exact_or_graph"].items()
    )
    said = (
        f"{record['documents']:,} documents × {record['dim']} of all-MiniLM-L6-v2 and {record['queries']:,} queries, "
        f"{_machine(record['provenance']['searches'])}; recall against comparing with all. Text in, documents out, "
        "int8, from two threads, searches a second (in brackets the least of five): one question at a time, "
        f"{ends}. Comparing with all beside asking a graph, by how many documents there are: {exact}."
    )
    return f"{markdown_table(rows)}\n\n{said}"


def swapped(request: Request) -> str:
    """One retrieval set, indexed once: nDCG@10 of every query encoder, by `leaf evaluate` and by the index."""
    record = request.read()
    precisions = list(record["encoders"][0]["approximate"])
    rows = [["who asks", "`leaf evaluate`", "index, exact", *(f"{each}, not exact" for each in precisions)]]
    for each in record["encoders"]:
        values = [each["evaluate"], each["exact"]["float32"], *each["approximate"].values()]
        rows.append([each["encoder"], *(f"{100 * value:.2f}" for value in values)])
    largest = max(each["largest_difference"] for each in record["encoders"])
    said = f"The largest difference of a single query between the first two columns is {largest:g}."
    return f"{markdown_table(rows)}\n\n{said}"


def timings(request: Request) -> str:
    """A part of what `leaf speed` measured, from the records in a folder."""
    folder, part = request.path(request.word(0)), request.word(1)
    records = speed.read_records(folder)
    if part in speed.SECTIONS:
        return "\n\n".join(speed.section(records, part))
    if part == "models":
        record = records.get(speed.QUERY)
        if record is None:
            return query_page.MISSING
        drawn = Figure("Encoding by batch size", query_page.alt(record), query_page.figure(record))
        return "\n\n".join([request.picture(query_page.PICTURE, drawn), *query_page.section(record)])
    if part != "figure":
        raise LeafError(f"no part '{part}' of `leaf speed`, expected {', '.join(speed.SECTIONS)}, figure or models")
    return request.picture("speed.svg", Figure("Texts a second", speed.alt(records), speed.figure(records)))


def settings(request: Request) -> str:
    """What a table of a recipe is for, and its fields with their defaults."""
    name = request.word(0)
    if name not in SECTIONS:
        raise LeafError(f"no table '{name}' of a recipe, expected one of {', '.join(SECTIONS)}")
    rows = ["| field | default | |", "|---|---|---|"]
    for field, about in SECTIONS[name].model_fields.items():
        nested = about.default is None or isinstance(about.default, recipes.Section)
        default = "required" if about.is_required() else "" if nested else f"`{json.dumps(about.default)}`"
        said = " ".join((about.description or "").split()).replace("|", "&#124;")
        rows.append(f"| `{field}` | {default} | {said} |")
    return "\n\n".join([f"{SECTIONS[name].__doc__}", "\n".join(rows)])


#: By the name that a page has for them.
KINDS: Kinds = {
    "value": value,
    "setting": setting,
    "took": took,
    "run": run,
    "ladder": rungs,
    "example": example,
    "figure": figure,
    "sweep": swept,
    "scores": scores,
    "curves": curves,
    "margin": margins,
    "adaptation": adapted,
    "onnx": onnx,
    "int8": int8,
    "load": load,
    "search": searched,
    "swap": swapped,
    "speed": timings,
    "recipe": settings,
}


def markdown_table(rows: words.Table) -> str:
    """Rows, the first of them a header, as Markdown; two leading spaces indent."""
    lines = [f"| {' | '.join(row)} |".replace("|   ", "| &nbsp;&nbsp;") for row in rows]
    return "\n".join([lines[0], "|--|" + "--:|" * (len(rows[0]) - 1), *lines[1:]])


def _machine(made: Record) -> str:
    """`2 cores, AMD EPYC`, or the GPU."""
    hardware = made["hardware"]
    if gpus := hardware.get("gpus"):
        return str(gpus[0])
    threads = hardware.get("threads")
    fewer = f", {threads} thread{'s' if threads > 1 else ''}" if threads and threads != hardware["cpus"] else ""
    return f"{hardware['cpus']} cores, {hardware['cpu']}{fewer}"


def _seconds(trained: Sequence[Record]) -> float:
    return sum(each.get("seconds") or 0 for each in trained)


def _trained(student: Record) -> tuple[str, str]:
    """How long a student was trained and at how many texts a second; nothing of one that took no step."""
    if not student["steps"] or not student["seconds"]:
        return "not trained", words.NONE
    rate = student["num_texts"] * student["epochs"] / student["seconds"]
    return sweep.duration(student["seconds"]), f"{rate:,.0f}"


def _found(document: Record, mark: str) -> str:
    """A document of an answer in a cell: its score and the beginning of its text, or its id."""
    text = shorten(document["text"] or document["id"], SHORT, placeholder=" …")
    return f"{document['score']:.2f} {mark}{markdown(text)}"


def _figures(report: Record) -> dict[str, Figure]:
    """The figures of a run's students by name."""
    _need_matplotlib()
    cost = ladder.draw_ladder(ladder.report_points(report), ladder.machine(report["speed"]), "cost")
    return {**draw_figures(report["students"]), **({"cost": cost} if cost else {})}


def _need_matplotlib() -> None:
    """Fails without it: a run's report does without figures and says so, a page would look complete."""
    import matplotlib  # noqa: F401


def _read_curves(report: Record) -> Curves:
    """The curves as a report keeps them: what they come to, without their points."""

    def percent(bounds: list[float] | None) -> Interval | None:
        return Interval(*bounds) if bounds else None

    summary = [
        Summary(**{**each, **{key: percent(each[key]) for key in ("of_teacher", "of_full_size")}})
        for each in report["curves"]
    ]
    sets = dict.fromkeys(words.datasets(report, "retrieval"), "")
    teacher = report["teacher"]
    return Curves(teacher["name"], teacher["dim"], teacher["space"]["similarity"], {}, sets, (), tuple(summary), {})
