"""The blocks of the pages that are written from the records in results/, by `python tests/test_docs.py`."""

import json
import statistics
from pathlib import Path

from leaf.report.figures import draw_figures

ROOT = Path(__file__).parent.parent
LADDER = ROOT / "results" / "ladder"
BATCH_SIZE = ROOT / "results" / "batch-size"


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
        students = json.loads(record.read_text(encoding="utf-8"))["students"]
        for name, figure in draw_figures(students).items():
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


def batch_size() -> str:
    """Held-out ε by batch size and learning rate, at equal data."""
    path = BATCH_SIZE / "students.json"
    if not path.exists():
        return "Not yet measured.\n"
    students = json.loads(path.read_text(encoding="utf-8"))
    first = next(iter(students.values()))
    hardware = first["provenance"]["hardware"]
    rows = [
        f"`leaf train results/batch-size/recipe.toml`: {first['layers']} layer, {first['num_texts']:,} texts, "
        f"{first['epochs']} epochs, {hardware['cpus']} cores, {hardware['cpu']}, commit "
        f"`{first['provenance']['commit']}`.",
        "",
        "| batch size | learning rate | steps | held-out ε |",
        "|---|---|---|---|",
    ]
    for name, each in students.items():
        batch, _, rate = name.removeprefix("student-b").partition("-lr")
        rows.append(f"| {batch} | {rate} | {each['steps']:,} | {each['error']:.4f} |")
    return "\n".join(rows) + "\n"
