"""How a report says its numbers: formats, sentences and tables, shared by pages and terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from leaf.evaluation.compare import MODES
from leaf.evaluation.statistics import Interval

Report = Mapping[str, Any]
#: The header, then the rows.
Table = list[list[str]]
#: Stands for what was not measured.
NONE = "–"
#: Stands for a difference whose interval covers 0: these queries cannot tell it from none.
UNRESOLVED = "not resolved"


def points(value: float | None) -> str:
    """A score in points of 100: 0.6493 → `64.9`."""
    return NONE if value is None else f"{100 * value:.1f}"


def decimals(value: float | None, digits: int = 2) -> str:
    """`8.127` → `8.13`."""
    return NONE if value is None else f"{value:.{digits}f}"


def count(value: int | None) -> str:
    """`21324` → `21,324`."""
    return NONE if value is None else f"{value:,}"


def size(parameters: int | None) -> str:
    """`22713216` → `22.7M`; below 0.1M in thousands."""
    if parameters is None:
        return NONE
    return f"{parameters / 1e6:.1f}M" if parameters >= 1e5 else f"{parameters / 1e3:.1f}k"


def bytes(size: int) -> str:
    """`61874144` → `61.9 MB`."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def depth(student: Report) -> str:
    """`2 layers`, or what a student without layers is."""
    layers = student["layers"]
    return "lookup table" if layers == 0 else f"{layers} layer{'s' if layers > 1 else ''}"


def retention(student: Report, mode: str) -> str:
    """Retention in percent with its 95 % interval: `98.0 (96.9–99.1)`."""
    value, bounds = student["retention"][mode], student["intervals"][mode]
    return NONE if value is None else f"{value:.1f} ({bounds[0]:.1f}–{bounds[1]:.1f})"


def verdict(student: Report, mode: str) -> str:
    """What the retention allows to say; an interval that covers 100 allows no claim either way."""
    value, bounds = student["retention"][mode], student["intervals"][mode]
    if value is None:
        return "was not scored on a retrieval dataset"
    measured = f"{value:.1f} % of its teacher's nDCG@10 (95 % interval {bounds[0]:.1f}–{bounds[1]:.1f})"
    if bounds[0] <= 100 <= bounds[1]:
        return f"reaches {measured}, a difference that these queries cannot tell from none"
    return f"keeps {measured}" if value < 100 else f"scores above its teacher: {measured}"


def datasets(report: Report, task: str) -> list[str]:
    """Names of the datasets of one task."""
    return [name for name, each in report["datasets"].items() if each["task"] == task]


def mean_score(scores: Mapping[str, float], names: Sequence[str]) -> float | None:
    """Mean over the datasets `names`; None where one was not scored: such a mean compares with no other."""
    if not names or any(name not in scores for name in names):
        return None
    return sum(scores[name] for name in names) / len(names)


def results(report: Report) -> Table:
    """Teacher, BM25 and every student in both modes; no column for a task without datasets."""
    retrieval, sts = datasets(report, "retrieval"), datasets(report, "sts")

    def row(name: str, mode: str, ndcg: str, kept: str, correlation: str, *facts: str) -> list[str]:
        return [name, mode, *([ndcg, kept] if retrieval else []), *([correlation] if sts else []), *facts]

    def means(scores: Mapping[str, float]) -> tuple[str, str]:
        return points(mean_score(scores, retrieval)), points(mean_score(scores, sts))

    def cost(encoder: Report) -> tuple[str, str]:
        return size(encoder["parameters"]), decimals(encoder["latency_ms"])

    teacher, bm25 = report["teacher"], report["baselines"]["bm25"]
    ndcg, correlation = means(teacher["scores"])
    rows = [
        row("encoder", "mode", "nDCG@10", "% of the teacher", "STS", "held-out ε", "parameters", "ms a query"),
        row("teacher", "", ndcg, "", correlation, "", *cost(teacher)),
    ]
    if bm25:
        rows.append(row("BM25", "", means(bm25)[0], "", "", "", "", ""))
    for student in report["students"]:
        for mode in MODES:
            ndcg, correlation = means({name: values[mode] for name, values in student["scores"].items()})
            facts = decimals(student["epsilon"], 3), *cost(student)
            rows.append(row(student["name"], mode, ndcg, retention(student, mode), correlation, *facts))
    return rows


def per_dataset(report: Report) -> Table:
    """The scores of every system on every dataset."""
    students, bm25 = report["students"], report["baselines"]["bm25"]
    modes = [f"{student['name']}, {mode}" for student in students for mode in MODES]
    rows = [["dataset", "queries", "teacher", *(["BM25"] if bm25 else []), *modes]]
    for name, facts in report["datasets"].items():
        scores = [report["teacher"]["scores"].get(name), *([bm25.get(name)] if bm25 else [])]
        scores += [student["scores"].get(name, {}).get(mode) for student in students for mode in MODES]
        rows.append([name, count(facts["num_queries"]), *map(points, scores)])
    return rows


def training(report: Report) -> Table:
    """What each student was trained with, and how far that took it."""
    rows = [["student", "texts", "batch size", "learning rate", "epoch kept", "ε before", "ε after", "seconds"]]
    for student in report["students"]:
        settings = student["train"]
        counts = [count(student["num_texts"]), count(settings["batch_size"])]
        lr = f"{settings['lr']:g} → {settings['final_lr']:g}"
        epochs = f"{count(student['best_epoch'])} of {count(student['epochs'])}"
        errors = [decimals(next(iter(student["errors"]), None), 3), decimals(student["epsilon"], 3)]
        rows.append([student["name"], *counts, lr, epochs, *errors, decimals(student["seconds"], 0)])
    return rows


def sources(report: Report) -> Table:
    """The text sources with their counts and licences."""
    rows = [["source", "texts", "held out", "licence"]]
    for name, each in report["texts"]["sources"].items():
        rows.append(
            [
                name,
                count(each["kept"]),
                count(each["held_out"]),
                each["licence"] or "not stated in the recipe",
            ]
        )
    return rows


def caption(report: Report) -> list[str]:
    """What the columns of `results` mean, one sentence each."""
    retrieval, sts = datasets(report, "retrieval"), datasets(report, "sts")
    said = ["No retrieval dataset was scored."]
    if len(retrieval) == 1:
        said = [f"nDCG@10 on {retrieval[0]}, {count(report['datasets'][retrieval[0]]['num_queries'])} queries."]
    elif retrieval:
        said = [f"nDCG@10: mean over {len(retrieval)} datasets; % of the teacher: mean of the ratio in each."]
    if retrieval:
        said.append("In brackets: 95 % paired bootstrap interval over queries.")
        gains = [(each["name"], mean["gain"]) for each in report["students"] for mean in each["means"] if mean["gain"]]
        found = ", ".join(f"{name} {gain(Interval(*each))}" for name, each in gains)
        said += [f"Asymmetric minus standard, in points: {found}."] if found else []
    if sts:
        mean = f", mean over {len(sts)} datasets" if len(sts) > 1 else f" on {sts[0]}"
        said.append(f"STS: Spearman's correlation{mean}, the same in both modes.")
    said.append("ε: mean distance to the teacher's vectors on texts never trained on.")
    return [*said, f"ms: {timing(report)}."] if report["speed"]["num_queries"] else said


def gain(each: Interval) -> str:
    """A difference of scores in points with its 95 % interval, or that it is not resolved: `+1.2 (0.3 to 2.1)`."""
    if each.covers(0):
        return UNRESOLVED
    return f"{100 * each.value:+.1f} ({100 * each.low:.1f} to {100 * each.high:.1f})"


def timing(report: Report) -> str:
    """How the milliseconds were taken: a time says little without its machine."""
    speed = report["speed"]
    threads = f"{speed['threads']} threads" if speed["threads"] else None
    machine = ", ".join(each for each in (speed["device"], speed["cpu"], threads) if each)
    return f"median of {count(speed['num_queries'])} queries, one at a time, tokenisation included ({machine})"
