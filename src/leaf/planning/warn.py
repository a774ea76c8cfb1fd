"""What a person should know before starting: sentences, what stops the run first."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leaf.errors import LeafError
from leaf.evaluation.margin import NOT_MEASURED
from leaf.planning.lengths import CHARACTERS_PER_TOKEN
from leaf.planning.models import from_model
from leaf.planning.rates import CPU, GPUS, hardware_keys
from leaf.planning.texts import Source
from leaf.recipe import Recipe
from leaf.student.schedule import too_short
from leaf.teacher.providers import provider_of


def warnings(record: Mapping[str, Any], recipe: Recipe, sources: Sequence[Source], hardware: str | None) -> list[str]:
    """The warnings about a record of `plan`, each one sentence."""
    said = [*_cannot(record, recipe, sources), *_files(sources, record["evaluation"]), *_space(record)]
    said += [*_unknown(record, recipe, sources), *_rights(sources)]
    if not recipe.evaluate.data and any(recipe.train_of(each).keep_checkpoints for each in recipe.students):
        said.append(NOT_MEASURED)
    if hardware and not hardware_keys(hardware):
        said.append(f"no hardware '{hardware}' is known; there are {', '.join((CPU, *GPUS))}")
    return said


def _cannot(record: Mapping[str, Any], recipe: Recipe, sources: Sequence[Source]) -> Iterator[str]:
    texts = record["texts"]
    if record["conflict"] is not None:
        yield f"{record['folder']} belongs to another recipe ({record['conflict']}): choose another --out"
    if texts["rows"] and not texts["training"]:
        yield (
            f"{texts['rows']:,} texts are too few to hold out {texts['held_out']:,} and train on the rest; lower "
            "prepare.held_out (--set prepare.held_out=…)"
        )
    for each, student in zip(record["students"], recipe.students, strict=True):
        if texts["training"] and not each["steps"]:
            yield f"{each['name']}: {each['texts']:,} training texts do not fill one batch of {each['batch_size']}"
        only_rows = each["layers"] == 0 and not each["network"]
        if (short := too_short(each["steps"], recipe.train_of(student), only_rows=only_rows)) is not None:
            yield f"{each['name']}: {short}"
        try:
            from_model(recipe, student)
        except LeafError as error:
            yield f"{each['name']}: {error}"
    if recipe.teacher.is_api:
        yield from _too_long(recipe, sources)
    elif recipe.teacher.is_remote and any(each.source != "vectors" for each in recipe.texts):
        yield f"{recipe.teacher.model} cannot be asked: texts that are not among its vectors have no target"


def _too_long(recipe: Recipe, sources: Sequence[Source]) -> Iterator[str]:
    """Texts that the provider itself would refuse. Another server at `api.url` has limits of its own."""
    api = recipe.teacher.api
    limit = provider_of(recipe.teacher.model)[0].max_text_tokens
    if limit is None or api.characters is not None or api.url is not None:
        return
    for source in sources:
        long = sum(len(text) > limit * CHARACTERS_PER_TOKEN for text, _ in source.texts)
        if long:
            yield (
                f"{source.name}: about {100 * long / len(source.texts):.1f} % of the texts are longer than the "
                f"{limit:,} tokens that {recipe.teacher.model} takes; set teacher.api.characters"
            )


def _files(sources: Sequence[Source], evaluation: Mapping[str, Any]) -> Iterator[str]:
    for source in sources:
        if source.problem is None:
            continue
        is_vocabulary = "vocabulary" in Path(source.source).name and not Path(source.source).exists()
        yield f"{source.name}: {source.problem}" + ("; `leaf texts vocabulary` makes it" if is_vocabulary else "")
    if evaluation["missing"]:
        yield f"evaluate.data: there is no {_list(evaluation['missing'])}"


def _space(record: Mapping[str, Any]) -> Iterator[str]:
    disk, memory = record["disk"], record["memory"]
    if disk["most"] > disk["free"]:
        yield (
            f"the disk is too small: {disk['most'] / 1e9:,.1f} GB are needed and {disk['free'] / 1e9:,.1f} GB are free "
            f"at {disk['where']}; choose an --out on a larger one"
        )
    machine = memory["machine"]
    most = max(memory["stages"], key=lambda stage: stage["bytes"])
    if machine is not None and most["bytes"] > machine:
        yield (
            f"the memory is too small for {most['stage']}: about {most['bytes'] / 1e9:,.1f} GB of "
            f"{machine / 1e9:,.1f} GB; raise train.accumulation, or use a GPU"
        )


def _unknown(record: Mapping[str, Any], recipe: Recipe, sources: Sequence[Source]) -> Iterator[str]:
    uncounted = [each.name for each in sources if each.rows is None and each.problem is None]
    if uncounted:
        yield f"rows of {_list(uncounted)} are not known, and counted as none: set rows or about.rows"
    teacher = record["teacher"]
    if teacher["api"] is not None and teacher["api"]["cost"] is None:
        yield "price not given: set teacher.api.price, US dollars for a million tokens"
    if teacher["dim"] is None:
        fix = "load it once, or name a local copy"
        if recipe.teacher.is_remote:
            fix = "set teacher.api.dimensions" if recipe.teacher.is_api else "teacher.vectors has it"
        yield f"the width of {teacher['name']}'s vectors is not known: disk and students are left out; {fix}"
    elif teacher["flops"] is None and not recipe.teacher.is_remote:
        yield f"no hours for the teacher pass: {teacher['facts_from']}"
    for student in record["students"]:
        if student["layers"] is None:
            yield f"no hours for {student['name']}: {student['facts_from']}"


def _rights(sources: Sequence[Source]) -> Iterator[str]:
    closed = [each.name for each in sources if each.commercial is False or "non-commercial" in (each.licence or "")]
    if closed:
        yield f"not for commercial use: {_list(closed)}; --commercial leaves out what says so"


def _list(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
