"""Public benchmarks through mteb: BEIR, NanoBEIR, MTEB(eng, v2) or any task by name, standard and asymmetric.

    outcome = evaluate_benchmarks(teacher, {"student": student}, ["NanoBEIR"], folder=scores)
    outcome.scores            # records as of `leaf.evaluation.evaluate`, with what each was computed from
    outcome.not_measured      # task → why not, such as a hub that cannot be reached

mteb loads the data, searches, fits and scores; its own results lie in `folder/mteb`, where `mteb.ResultCache` reads
them. Vectors are ours, so the teacher's documents are encoded once for it and all of its students.
"""

import difflib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from leaf.encoder import AsymmetricEncoder, Encoder
from leaf.errors import Halt, LeafError
from leaf.evaluation import mirror as mirrors
from leaf.evaluation.benchmark_values import MEASURES, TASKS, Value, means, values_of
from leaf.evaluation.datasets import Dataset
from leaf.evaluation.records import Mode, Score
from leaf.evaluation.vectors import VectorCache
from leaf.files import digest
from leaf.models import HubUnreachable, hub_revision
from leaf.progress import progress, say
from leaf.provenance import provenance

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.models.model_meta import ModelMeta
    from mteb.results import TaskResult

#: What a benchmark's name does not stand for: MS MARCO counts as training and development data (§2.2, Table 2).
LEFT_OUT = {"BEIR": "MSMARCO", "NanoBEIR": "NanoMSMARCORetrieval"}


@dataclass(frozen=True)
class Outcome:
    """What was measured, and what was not."""

    scores: list[Score]
    not_measured: dict[str, str]
    """Task → the reason."""


@dataclass(frozen=True)
class _System:
    """An encoder, or a pair, under the name and mode it is recorded by."""

    mode: Mode
    name: str
    encoder: Encoder
    documents: str
    meta: "ModelMeta"


@dataclass(frozen=True)
class _Measured:
    """One system on one task: mteb's results (the task's last) and ours, by measure."""

    results: "list[TaskResult]"
    values: Mapping[str, Value]
    content: str
    """Digest of the texts that were encoded."""
    notes: tuple[str, ...] = ()


def tasks(names: "Sequence[str | AbsTask]") -> "list[AbsTask]":
    """The tasks that names of benchmarks and tasks stand for, in their order, each once. A task stands for itself.

    Upper and lower case may differ from mteb's where that leaves no doubt. BEIR and NanoBEIR come without MS MARCO, as
    in the paper; naming it asks for it. Raises `LeafError` for an unknown name, with those that look like it.
    """
    _require_mteb()
    from leaf.evaluation.mteb_adapter import quiet

    found: dict[str, AbsTask] = {}
    with quiet():
        expanded = [_expand(name) if isinstance(name, str) else [name] for name in names]
    for some in expanded:
        for task in some:
            # mteb's benchmarks share their tasks with everybody: data goes into copies.
            other = found.setdefault(task.metadata.name, copy(task))
            if (other.eval_splits, other.hf_subsets) != (task.eval_splits, task.hf_subsets):
                raise LeafError(
                    f"{task.metadata.name} is asked for twice, with the subsets {', '.join(other.hf_subsets)} and with "
                    f"{', '.join(task.hf_subsets)}: name only one of the benchmarks that hold it"
                )
    return list(found.values())


def evaluate_benchmarks(
    teacher: Encoder,
    students: Mapping[str, Encoder],
    names: "Sequence[str | AbsTask]" = (),
    *,
    local: Sequence[Dataset] = (),
    cache: VectorCache | None = None,
    folder: Path | None = None,
    mirror: Path | None = None,
    batch_size: int = 32,
) -> Outcome:
    """Scores of the teacher, and of every student standard and asymmetric, on the tasks of `names` and on local sets.

    Students are recorded under their key. Where a task has no two sides, the standard score counts for both modes. The
    value is mteb's main score, the mean over its splits and subsets where there are several; retrieval has recall@100
    too. `cache` None keeps vectors for one task at a time. A task in `mirror` (`leaf.evaluation.mirror`) gets its data
    from there, all others from the hub. What cannot be loaded or scored is named on the console, and the rest goes on,
    but for what would stop the rest as well (`leaf.errors.Halt`).

    Raises `LeafError` where nothing could be right: unknown names, encoders of different spaces, a malformed mirror.
    """
    _require_mteb()
    from leaf.evaluation.mteb_adapter import as_task, quiet

    wanted = [*tasks(names), *(as_task(dataset) for dataset in local)]
    called = [task.metadata.name for task in wanted]
    if twice := next((name for name in called if called.count(name) > 1), None):
        raise LeafError(f"two tasks are called '{twice}', so their scores could not be told apart: rename the set")
    systems = _systems(teacher, students)
    load = _Loader(mirror, wanted)
    scores: list[Score] = []
    not_measured: dict[str, str] = {}
    with quiet():
        for task in wanted:
            vectors = VectorCache() if cache is None else cache
            try:
                measured = _measure(task, systems, load, vectors, batch_size)
            except Halt:
                raise
            except LeafError as error:
                not_measured[task.metadata.name] = str(error)
                say(f"not measured: {task.metadata.name}: {error}")
                continue
            finally:
                vectors.forget()
            for system, each in zip(systems, measured, strict=True):
                scores += _scores(task, system, each)
                if folder is not None:
                    _save(folder, system.meta, each.results)
    return Outcome(scores, not_measured)


def _require_mteb() -> None:
    import leaf.evaluation.mteb_adapter  # noqa: F401  says what is missing


def _expand(name: str) -> "Sequence[AbsTask]":
    import mteb
    from mteb.get_tasks import TASK_LIST

    benchmarks = {each: found for found in mteb.get_benchmarks() for each in (found.name, *(found.aliases or ()))}
    known = [*benchmarks, *(task.metadata.name for task in TASK_LIST)]
    same = [name] if name in known else sorted({each for each in known if each.casefold() == name.casefold()})
    if len(same) != 1:
        near = same or difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise LeafError(f"mteb knows no benchmark or task '{name}'{hint}")
    [name] = same
    if name not in benchmarks:
        return [mteb.get_task(name)]
    left_out = LEFT_OUT.get(name)
    if left_out:
        say(f"{name}: without {left_out}, which counts as training data, as in the paper; name it to measure it too")
    return [task for task in benchmarks[name].tasks if task.metadata.name != left_out]


def _systems(teacher: Encoder, students: Mapping[str, Encoder]) -> list[_System]:
    from leaf.evaluation.mteb_adapter import model_meta

    systems = [_System("teacher", teacher.name, teacher, teacher.name, model_meta(teacher))]
    for name, student in students.items():
        pair = AsymmetricEncoder(student, teacher)
        systems.append(_System("standard", name, student, name, model_meta(student, name)))
        meta = model_meta(pair, f"{name}-asym-{teacher.name}")
        systems.append(_System("asymmetric", name, pair, teacher.name, meta))
    return systems


class _Loader:
    """Where the data of tasks comes from: memory, the mirror, the hub, or what an earlier run fetched from the hub."""

    def __init__(self, mirror: Path | None, wanted: "Sequence[AbsTask]") -> None:
        parts = [part for task in wanted for part in _parts(task) if not _is_local(part)]
        # All at once, so that a malformed mirror is found before hours of encoding.
        self.folders = {part.metadata.name: mirrors.find(mirror, part) for part in parts} if mirror else {}
        self._hub: bool | None = None

    @contextmanager
    def __call__(self, task: "AbsTask") -> "Iterator[AbsTask]":
        """The task with its data, until the end of the block. Raises `LeafError` where there is none."""
        name = task.metadata.name
        if task.metadata.type not in TASKS or task.metadata.modalities != ["text"]:
            what = f"{task.metadata.type} of {' and '.join(task.metadata.modalities)}"
            raise LeafError(f"{what} is not scored here, only {', '.join(TASKS)} of text")
        task = copy(task)
        with progress(f"{name}: loading", 1) as bar:
            if folder := self.folders.get(name):
                mirrors.load(task, folder)
            elif _is_local(task):
                task.load_data()
            elif not task.data_loaded:
                self._from_hub(task)
            bar.advance()
        try:
            yield task
        finally:
            task.unload_data()

    def _from_hub(self, task: "AbsTask") -> None:
        from leaf.evaluation.mteb_adapter import offline

        path = task.metadata.dataset["path"]
        if self._hub is None:
            self._hub = _hub_answers(path)
        with nullcontext() if self._hub else offline():
            try:
                task.load_data()
            except Exception as error:  # mteb, datasets and the hub's client raise errors without a common base class
                if not self._hub:
                    raise LeafError(
                        f"the hub cannot be reached and {path} is not in its local cache; connect, or name a mirror "
                        "that holds a copy"
                    ) from error
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise LeafError(f"{path} cannot be loaded from the hub ({reason[:200]})") from error


def _hub_answers(path: str) -> bool:
    try:
        hub_revision(path, "dataset")
    except HubUnreachable:
        return False
    except LeafError:
        return True  # it answered that it has no such data set
    return True


def _measure(
    task: "AbsTask", systems: Sequence[_System], load: _Loader, cache: VectorCache, batch_size: int
) -> list[_Measured]:
    """One task for all systems, which share what was loaded."""
    if task.is_aggregate:
        columns = []
        for part in _parts(task):
            try:
                columns.append(_measure(part, systems, load, cache, batch_size))
            except Halt:
                raise
            except LeafError as error:
                raise LeafError(f"{part.metadata.name}: {error}") from error
            cache.forget()
        return [_aggregated(task, measured) for measured in zip(*columns, strict=True)]
    found: list[_Measured] = []
    with load(task) as loaded:
        for system in systems:
            if system.mode == "asymmetric" and not _is_two_sided(task):
                found.append(found[-1])  # standard, which comes just before
            else:
                found.append(_run(loaded, system, cache, batch_size, load.folders.get(task.metadata.name)))
    return found


def _run(task: "AbsTask", system: _System, cache: VectorCache, batch_size: int, source: Path | None) -> _Measured:
    """One system on one loaded task."""
    import mteb

    from leaf.evaluation.mteb_adapter import MtebEncoder, RecordingSearch

    task = copy(task)
    # As in a task that was just made: clustering draws from them, and every system has to see the same draws.
    task.rng_state, task.np_rng = random.Random(task.seed), np.random.default_rng(task.seed)
    model = MtebEncoder(system.encoder, cache, meta=system.meta, batch_size=batch_size)
    search = RecordingSearch(model)
    with TemporaryDirectory() as predictions:
        try:
            [result] = mteb.evaluate(
                search if _is_two_sided(task) else model,
                task,
                cache=None,
                co2_tracker=False,
                encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
                # What was retrieved is in `search`; written down it could be gigabytes.
                prediction_folder=None if _is_two_sided(task) else Path(predictions),
                show_progress_bar=False,
            ).task_results
        except LeafError:
            raise
        except (ValueError, KeyError, TypeError) as error:  # what mteb stumbles over in data it does not expect
            raise LeafError(f"mteb cannot score it ({str(error).splitlines()[0][:200]})") from error
        num_texts = sum(count for _, count, _ in model.encoded)
        values = values_of(task, result, search.runs, Path(predictions), num_texts)
    where = f"{task.metadata.dataset['path']} at {task.metadata.revision}" if source is None else f"a copy in {source}"
    units = len(task.eval_splits) * len(task.hf_subsets)
    notes = _notes(
        task, f"data: {where}", f"mean over {units} splits or subsets, per-query values are theirs", units > 1
    )
    return _Measured([result], values, digest(model.encoded), notes)


def _notes(task: "AbsTask", data: str, over: str, is_mean: bool) -> tuple[str, ...]:
    """What a reader of the scores should know."""
    import mteb

    superseded = f"superseded in mteb by {task.superseded_by}" if task.superseded_by else ""
    measure = MEASURES.get(task.metadata.main_score, ("", ""))[1]
    return tuple(note for note in (f"mteb {mteb.__version__}, {data}", superseded, is_mean * over, measure) if note)


def _aggregated(task: "AbsTask", measured: Sequence[_Measured]) -> _Measured:
    """One system on a task that is made of tasks: the mean over them, such as over the forums of CQADupstack."""
    own = [each.results[-1] for each in measured]
    combined: TaskResult = task.combine_task_results(own)  # type: ignore[attr-defined]
    units = {part.task_name: each.values for part, each in zip(own, measured, strict=True)}
    values = means(task, units, combined.get_score())
    results = [result for each in measured for result in each.results]
    notes = _notes(task, "data: of its parts", f"mean over {len(own)} tasks, per-query values are theirs", True)
    return _Measured([*results, combined], values, digest([each.content for each in measured]), notes)


def _scores(task: "AbsTask", system: _System, measured: _Measured) -> list[Score]:
    import mteb

    from leaf.evaluation.mteb_adapter import sides

    facts = provenance()
    facts["versions"] = {**facts["versions"], "mteb": mteb.__version__}
    dataset = getattr(task, "leaf_dataset", None)
    identity = {
        "task": task.metadata.name,
        "revision": task.metadata.revision,
        "splits": list(task.eval_splits),
        "subsets": list(task.hf_subsets),
        "content": measured.content,
    }
    two_sided = _is_two_sided(task)
    # Where a task has no two sides, a pair is its query encoder.
    parts = sides(system.encoder)[: 1 + two_sided]
    dtypes = dict.fromkeys(str(getattr(each, "compute_dtype", "float32")) for each in parts)
    return [
        Score(
            dataset=task.metadata.name,
            task=TASKS[task.metadata.type],
            measure=measure,
            mode=system.mode,
            value=value.value,
            num_queries=value.num,
            encoder=system.name,
            queries=system.name,
            documents=system.documents if two_sided else system.name,
            compute_dtype=" | ".join(dtypes),
            dataset_digest=dataset.digest if dataset is not None else digest(identity),
            notes=dataset.notes if dataset is not None else measured.notes,
            provenance=facts,
            per_query=value.per_query,
            pairs=value.pairs,
        )
        for measure, value in measured.values.items()
    ]


def _save(folder: Path, meta: "ModelMeta", results: "Sequence[TaskResult]") -> None:
    """Writes mteb's results: `folder/mteb/results/<model>/<revision>/<task>.json` and `model_meta.json`."""
    from mteb import ResultCache

    results_of = ResultCache(folder / "mteb")
    for result in results:
        results_of.save_to_cache(result, meta)


def _is_two_sided(task: "AbsTask") -> bool:
    from leaf.evaluation.mteb_adapter import is_two_sided

    return is_two_sided(task.metadata)


def _is_local(task: "AbsTask") -> bool:
    return hasattr(task, "leaf_dataset")


def _parts(task: "AbsTask") -> "Sequence[AbsTask]":
    """The tasks that an aggregate is made of; of others, the task."""
    parts: Sequence[AbsTask] = task.metadata.tasks if task.is_aggregate else [task]  # type: ignore[attr-defined]
    return parts
