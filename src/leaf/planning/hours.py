"""Hours of every stage on hardware by name, and what the paper's own code would take."""

from collections.abc import Mapping, Sequence
from typing import Any

from leaf.planning.parts import Taught, Trained
from leaf.planning.rates import (
    CPU,
    GPUS,
    PAPER_BUDGET_HOURS,
    SHOWN,
    cpu_is_measured,
    cpu_name,
    forward_flops,
    hardware_keys,
    paper_rate,
    pass_rate,
    step_parts,
)

#: Mean tokens of texts for which the paper's texts a second mean anything: its own were about 192.
PAPER_TOKENS = (120, 280)


def hours(
    hardware: str | None, gpus: int, teacher: Taught, students: Sequence[Trained], evaluation: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """For each piece of hardware, seconds of the teacher pass, of every student and of evaluation; None: not known."""
    names = hardware_keys(hardware) if hardware else []
    return [_on(name, 1 if name == CPU else gpus, teacher, students, evaluation) for name in names or [CPU, *SHOWN]]


def _on(
    name: str, gpus: int, teacher: Taught, students: Sequence[Trained], evaluation: Mapping[str, Any]
) -> dict[str, Any]:
    shape = teacher.model.architecture
    passed = None
    if teacher.is_done or not teacher.texts:
        passed = 0.0
    elif shape is not None and teacher.flops is not None:
        passed = teacher.flops / pass_rate(name, shape, gpus)
    steps = {each.name: step_parts(name, each.step, gpus) if each.step else None for each in students}
    gpu = GPUS.get(name)
    return {
        "key": name,
        "name": cpu_name() if gpu is None else gpu.name,
        "gpus": 0 if gpu is None else gpus,
        "note": "" if gpu is None else gpu.note,
        "basis": ("measured" if cpu_is_measured() else "estimated") if gpu is None else "prototype",
        "teacher_flops_per_second": None if shape is None else pass_rate(name, shape, gpus),
        "teacher_seconds": passed,
        "step_seconds": steps,
        "student_seconds": {each.name: _train_seconds(each, steps[each.name]) for each in students},
        "evaluation_seconds": _evaluation_seconds(name, teacher, students, evaluation, gpus),
    }


def paper(students: Sequence[Trained]) -> dict[str, Any] | None:
    """The paper's own code on one A100, for the first student that is like its own; None where none is."""
    for each in students:
        shape, rate = each.architecture, paper_rate(each.batch_size)
        like = shape is not None and (shape.layers, shape.width) == (6, 384) and each.texts > 0
        if rate is not None and like and PAPER_TOKENS[0] <= each.tokens / each.texts <= PAPER_TOKENS[1]:
            return {
                "student": each.name,
                "texts": each.texts,
                "epochs": each.epochs,
                "visits": each.visits,
                "batch_size": each.batch_size,
                "texts_per_second": rate,
                "seconds": each.visits / rate,
                "budget_hours": PAPER_BUDGET_HOURS,
            }
    return None


def _train_seconds(student: Trained, parts: Mapping[str, float] | None) -> float | None:
    if student.is_done:
        return 0.0
    return None if parts is None else student.steps * sum(parts.values())


def _evaluation_seconds(
    name: str, teacher: Taught, students: Sequence[Trained], evaluation: Mapping[str, Any], gpus: int
) -> float | None:
    """Every local text through the teacher and every student; attention is left out, its share is small there."""
    if not evaluation["texts"]:
        return None
    tokens, total = evaluation["tokens"], 0.0
    if (shape := teacher.model.architecture) is not None:
        total += forward_flops(shape, None, tokens, 0) / pass_rate(name, shape, gpus)
    for each in students:
        if each.architecture is not None and each.architecture.layers:
            total += forward_flops(each.architecture, None, tokens, 0) / pass_rate(name, each.architecture, gpus)
    return total
