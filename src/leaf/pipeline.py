"""The stages of a run, in order: texts → embeddings → students → scores → ONNX files → index → report.

    leaf.distill("demo", out="runs/demo")

Every method of `Pipeline` finishes one stage and returns its manifest; a stage that is complete and still matches its
inputs returns at once. Nothing is passed between stages but files.
"""

import functools
import importlib.util
import itertools
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from leaf.encoder import Encoder, Role, Vectors
from leaf.errors import Halt, LeafError
from leaf.evaluation import datasets, records
from leaf.evaluation.adaptation import BEFORE, error_changes, score_changes
from leaf.evaluation.alignment import alignment_of
from leaf.evaluation.leak_sets import leak_sets
from leaf.evaluation.margin import NOT_MEASURED
from leaf.evaluation.suite import Kept, Suite, measure_margins, use_bfloat16_where_exact
from leaf.evaluation.suite import run as measure
from leaf.evaluation.vectors import VectorCache
from leaf.files import atomic_path, digest, file_digest, write_json
from leaf.given import Files, Given, several
from leaf.light import check_teacher
from leaf.loading import load
from leaf.models import resolve_model
from leaf.planning.models import check_layers
from leaf.progress import console, say
from leaf.provenance import provenance
from leaf.recipe import DEFAULT, Recipe, Train
from leaf.recipe import Student as StudentSettings
from leaf.run import Run, Stage, difference, read_manifest
from leaf.runtime.speed import query_latency
from leaf.space import NUM_CANARIES, Space, encode_canaries, saved_with
from leaf.student.ablation import AddedLoss
from leaf.student.data import Examples, build_examples, choose_rows
from leaf.student.distributed import World, join
from leaf.student.metrics import check_trackers, held_out_errors
from leaf.student.model import Student, build_student
from leaf.student.phrases import add_phrases, find_phrases
from leaf.student.schedule import too_short
from leaf.student.step import Engine
from leaf.student.train import FAST, start_head, start_table, train
from leaf.sweep import borrow, expand, regrid
from leaf.teacher.coverage import coverage_of
from leaf.teacher.drift import drift
from leaf.teacher.embed import cache_folder, cache_key, embed
from leaf.teacher.model import SentenceTransformerEncoder
from leaf.teacher.opening import OWNED, Teacher, known_dtype, open_teacher
from leaf.teacher.owned import Owned
from leaf.teacher.providers import student_prompts
from leaf.teacher.vectors import OwnedTeacher
from leaf.texts.prepare import prepare
from leaf.texts.shards import Shard, read_shard, read_sources
from leaf.texts.sources import identity as source_identity
from leaf.vector_files import read_vectors

#: Queries timed for the report, one at a time.
TIMED_QUERIES = 100
#: Texts whose vectors are compared with what an API answers now.
NUM_CHECKED = 16
#: Phrases are looked for in as many tokens at most, evenly spread; a million take 60 MB of memory meanwhile.
PHRASE_TOKENS = 50_000_000
#: Training settings that do not change the student.
NOT_IN_FINGERPRINT = {"checkpoint_minutes", "evaluations", "keep_checkpoints", "trackers"}


def distill(
    recipe: Recipe | str | Path = DEFAULT,
    out: str | Path | None = None,
    *,
    teacher: str | None = None,
    queries: Files = (),
    documents: Files = (),
    texts: Files = (),
    column: str | None = None,
    layers: int | Sequence[int] = (),
    backbone: str | None = None,
    data: Files = (),
    name: str | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    engine: Engine = FAST,
) -> dict[str, Any]:
    """Runs every stage of `recipe` in the folder `out` and returns the report; run again, it goes on where it stopped.

    `recipe` is a `Recipe`, the name of one that ships, or a TOML file. What is given from `teacher` to `name` replaces
    what it has, as the options of `leaf distill` do (`leaf.given.Given`); `queries`, `documents` and `texts` are files,
    not texts. The default recipe has neither a teacher nor texts, and needs both. `overrides` are `table.field=value`
    settings on top. `out` defaults to `runs/<name>`; `device` to a GPU where there is one; `engine` says how steps are
    executed.
    Raises `LeafError` for anything the caller can fix: a bad recipe, missing texts, another recipe's folder, an
    unreachable model.
    """
    given = Given(
        teacher=teacher,
        queries=several(queries),
        documents=several(documents),
        texts=several(texts),
        column=column,
        layers=(layers,) if isinstance(layers, int) else tuple(layers),
        backbone=backbone,
        data=several(data),
        name=name,
    )
    if not isinstance(recipe, Recipe):
        given = given.named_after(out) if recipe == DEFAULT else given
        recipe = Recipe.load(recipe, overrides, given=given)
        given.check()
    elif overrides or given != Given():
        raise LeafError("a Recipe is complete; give its name or its file with teacher, texts or overrides")
    with Pipeline(recipe, out, device=device, engine=engine).open() as pipeline:
        return pipeline.distill()


class Pipeline:
    """One recipe in one run folder. The methods are the stages, in order; call them inside `with pipeline.open():`."""

    def __init__(
        self,
        recipe: Recipe,
        out: str | Path | None = None,
        *,
        device: str | None = None,
        engine: Engine = FAST,
        profile: bool = False,
        texts_from: str | Path | None = None,
        max_cost: float | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        if max_cost is not None and not recipe.teacher.is_api:
            model = recipe.teacher.model
            raise LeafError(f"--max-cost is for a teacher behind an API, and {model} is none; leave it out")
        if max_cost is not None and recipe.teacher.api.price is None:
            raise LeafError("--max-cost needs teacher.api.price, US dollars for a million tokens; set it in the recipe")
        self.written, self.recipe = recipe, expand(recipe)  # the folder keeps the one that a person wrote
        self.texts_from = Path(texts_from) if texts_from is not None else None
        self.run = Run(Path(out) if out is not None else Path("runs") / recipe.name)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.engine, self.profile, self.max_cost, self.share = engine, profile, max_cost, share
        self.world = World()

    @contextmanager
    def open(self) -> Iterator[Self]:
        """Keeps other writers and other recipes out of the run folder; meets the processes that torchrun started."""
        with join(self.device) as (self.world, self.device), ExitStack() as stack:
            if not self.world.is_main:  # the main process holds the lock for all, and talks for all
                console.quiet = True
            elif self.share[1] > 1:
                stack.enter_context(self.run.lock_share(self.share[0], self._claim))
            else:
                stack.enter_context(self.run.lock())
                self._claim()
            self.world.check_shared(self.run.folder, self.device)
            stack.callback(self._close_teacher)
            yield self

    def _claim(self) -> None:
        """Makes the run folder this recipe's."""
        check_layers(self.recipe)  # what would stop the first student is said before its teacher is paid
        regrid(self.run.folder, self.written)
        self.run.claim(self.written)
        if self.texts_from is not None:
            borrow(self.run.folder, self.texts_from)

    def _close_teacher(self) -> None:
        if "teacher" in self.__dict__:  # it was opened
            self.teacher.close()

    def distill(self) -> dict[str, Any]:
        """Runs every stage; returns the report."""
        self.texts()
        self.embed()
        self.train()
        self.evaluate()
        self._export_if_possible()
        self.index()
        return self.report()

    def _export_if_possible(self) -> None:
        """A run that is scored has its report even where there is no ONNX file to be had."""
        missing = [each for each in ("onnx", "onnxscript") if importlib.util.find_spec(each) is None]
        if missing and self.recipe.export.precisions:
            say("no ONNX files: pip install 'leaf[onnx]' and run `leaf export` with this recipe")
            return
        try:
            self.export()
        except LeafError as error:
            say(f"no ONNX files: {error}")

    def sweep(self) -> dict[str, Any]:
        """Trains a student for every point of the recipe's grid, scores them on its data if it names any.

        Returns what is in `sweep.json`; `sweep.md` and figures lie beside it.
        """
        if self.recipe.sweep is None:
            raise LeafError(f"recipe '{self.recipe.name}' varies nothing; give it a [sweep.grid], or `leaf distill` it")
        self.texts()
        self.embed()
        self.train()
        if self.recipe.evaluate.data or self.recipe.evaluate.benchmarks:
            self.evaluate()
        from leaf.report.sweep import write_sweep

        return write_sweep(self.run.folder, self.recipe)

    def texts(self) -> dict[str, Any]:
        """Reads the sources into shards, with a held-out split."""
        self._alone("texts")
        owned = self._owned if any(source.source == "vectors" for source in self.recipe.texts) else None
        content = owned.digest if owned else None
        sources = [source_identity(source, content) for source in self.recipe.texts]
        # What decides nothing is left out, so that runs stay valid that were finished before it could be set.
        unused = set() if any(source.guard for source in self.recipe.texts) else {"guard_ratio"}
        inputs: dict[str, Any] = {
            "texts": sources,
            "prepare": self.recipe.prepare.model_dump(mode="json", exclude=unused),
        }
        checked = leak_sets(self.recipe.prepare.leak_check, self.recipe.evaluate.data)
        if checked:
            inputs["benchmarks"] = {each.name: each.digest for each in checked}
        stage = self.run.stage("texts", inputs)
        if (manifest := stage.manifest) is not None:
            return manifest
        benchmarks = [(each.name, each.texts()) for each in checked]
        return stage.close(
            **prepare(
                self.recipe.texts,
                self.recipe.prepare,
                stage.folder,
                benchmarks,
                vectors=owned.texts if owned else None,
                vectors_digest=content,
            )
        )

    def embed(self) -> dict[str, Any] | None:
        """Fills the cache of teacher vectors; of several ranks, all but the last to finish get None."""
        self._alone("embed")
        texts, settings = self._finished("texts"), self.recipe.teacher
        if self.share[1] > 1 and settings.is_api:
            raise LeafError(f"{settings.model} is bound by its rate limit, not by processes; embed without --world")
        stage = self._embed_stage
        if (manifest := stage.manifest) is not None:
            return manifest
        self._check_teacher()
        facts = embed(
            self.run.folder / "texts",
            _shards(texts),
            self.teacher,
            stage.folder,
            self._cache_key,
            settings.batch_size,
            share=self.share,
        )
        if facts is None:
            return None
        return stage.close(**facts, bill=self.teacher.bill(), **self._coverage(texts, stage.folder))

    def embed_on(self, address: str, *, workers: int | None = None, **resources: float | None) -> dict[str, Any]:
        """Fills the cache on the Ray cluster at `address`; see `leaf.teacher.cluster.ClusterTeacher`."""
        self._alone("embed")
        from leaf.teacher.cluster import ClusterTeacher

        texts, settings, embeddings = self._finished("texts"), self.recipe.teacher, self.run.folder / "embeddings"
        if settings.compute_dtype == "auto":
            settings = settings.model_copy(update={"compute_dtype": known_dtype(embeddings) or "auto"})
        sample = self._held_out().texts[:NUM_CANARIES]
        with ClusterTeacher(settings, address, sample=sample, workers=workers, **resources) as teacher:
            key = cache_key(teacher, settings.storage_dtype)
            stage = Stage(cache_folder(embeddings, key), {"texts": texts["fingerprint"], **key})
            if (manifest := stage.manifest) is not None:
                return manifest
            shards = _shards(texts)
            facts = teacher.embed(self.run.folder / "texts", shards, stage.folder, key, settings.batch_size)
        return stage.close(**facts)

    def _coverage(self, texts: dict[str, Any], embeddings: Path) -> dict[str, Any]:
        """What vectors that were there before cover, for the manifest."""
        if not isinstance(self.teacher, OwnedTeacher):
            return {}
        folder = self.run.folder / "texts"
        covered = coverage_of(self.teacher.owned, folder, embeddings, _shards(texts), texts["held_out"])
        said = covered.sentence()
        say(said)
        return {"owned": self.teacher.facts(), "coverage": {**covered.to_json(), "sentence": said}}

    def train(self) -> dict[str, dict[str, Any]]:
        """Trains every student of the recipe; returns their manifests by name."""
        for student in self.recipe.students:
            check_trackers(self.recipe.train_of(student).trackers)
        manifests = {student.name: self._train_student(student) for student in self.recipe.students}
        self.world.wait()
        if self.world.is_main:
            self._clear_checkpoints()
        return manifests

    def evaluate(self) -> dict[str, Any]:
        """Scores teacher, students and BM25 on the recipe's data, compares on held-out texts, times a query."""
        self._alone("evaluate")
        students = {student.name: self._finished(student.name) for student in self.recipe.students}
        loaded = [each for path in self.recipe.evaluate.data for each in datasets.load_all(self._data_path(path))]
        stage = self.run.stage(
            "scores",
            {
                "teacher": self._cache_key["teacher"],
                "students": {name: manifest["fingerprint"] for name, manifest in students.items()},
                "evaluate": self.recipe.evaluate.model_dump(mode="json"),
                "datasets": {dataset.name: dataset.digest for dataset in loaded},
            },
        )
        manifest = read_manifest(stage.folder)
        if manifest is not None and manifest["fingerprint"] == stage.fingerprint:
            return manifest
        if stage.folder.exists():
            if manifest is not None:
                say(f"scoring again: {difference(manifest['inputs'], stage.inputs)}")
            shutil.rmtree(stage.folder)  # vectors are kept, so what has not changed costs little
        keeps = any(self.recipe.train_of(each).keep_checkpoints for each in self.recipe.students)
        if keeps and not any(isinstance(each, datasets.RetrievalSet) for each in loaded):
            say(NOT_MEASURED)
        encoders: dict[str, Encoder] = {
            name: load(self.run.folder / name, device=self.device, name=name) for name in students
        }
        if loaded or self.recipe.evaluate.benchmarks:
            self._check_teacher()
        started = {each.name: each.start for each in self.recipe.students if each.start is not None}
        for name, start in started.items():
            encoders[name + BEFORE] = load(start, device=self.device, name=name + BEFORE)
        held_out = self._held_out()
        if self.recipe.teacher.compute_dtype == "auto":
            use_bfloat16_where_exact(list(encoders.values()), held_out.texts)
        settings = self.recipe.evaluate
        suite = Suite(
            benchmarks=settings.benchmarks,
            mirror=Path(settings.mirror) if settings.mirror else None,
            bm25=settings.bm25,
            truncate=settings.truncate,
            precisions=settings.precisions,
            examples=settings.examples,
        )
        cache = VectorCache(self.run.folder / "embeddings" / "evaluation")
        measured = measure(self.teacher, encoders, loaded, suite, cache, stage.folder)
        self._align({name: encoders[name] for name in students}, held_out, stage.folder)
        self._adaptations({name: (encoders[name + BEFORE], encoders[name]) for name in started}, stage.folder)
        self._margin(loaded, cache, stage.folder)
        self._time_queries({name: encoders[name] for name in students})
        return stage.close(
            datasets=list(dict.fromkeys(score.dataset for score in measured.scores)),
            num_scores=len(measured.scores),
            not_measured=dict(measured.not_measured),
            teacher_parameters=self.teacher.num_parameters,
            bill=self.teacher.bill(),  # of the whole run, evaluation sets included
        )

    def export(self) -> dict[str, dict[str, Any]]:
        """Writes every student as ONNX files that agree with it; returns their manifests by student."""
        self._alone("export")
        for student in self.recipe.students:
            self._finished(student.name)
        if not self.recipe.export.precisions:
            return {}
        from leaf.export.onnx import NUM_CALIBRATION, Texts, export_student

        held_out, texts = self._held_out(), self._finished("texts")
        vectors = np.concatenate(list(read_vectors(self._embed_stage.folder / texts["held_out"]["file"])))
        compared = Texts(held_out.texts, held_out.kinds, vectors.astype(np.float32))
        first = read_shard(self.run.folder / "texts" / texts["shards"][0]["file"])
        every = max(1, len(first.texts) // NUM_CALIBRATION)  # a shard may hold its sources one after the other
        calibration = Texts(first.texts[::every], first.kinds[::every])
        manifests = {
            student.name: export_student(
                self.run.folder / student.name,
                self.recipe.export.precisions,
                held_out=compared,
                calibration=calibration,
            )
            for student in self.recipe.students
        }
        self._measure_exported(manifests)
        return manifests

    def index(self) -> dict[str, Any] | None:
        """Indexes the run's documents with the vectors that are there; None where the recipe asks for no index."""
        self._alone("index")
        if self.recipe.index is None:
            return None
        manifests = {student.name: self._finished(student.name) for student in self.recipe.students}
        embeddings, texts = self._embed_stage.manifest, self._finished("texts")
        assert embeddings is not None, "students are trained after the teacher pass"
        stage = self.run.stage(
            "index",
            {
                "embeddings": embeddings["fingerprint"],
                "students": list(manifests),
                "index": self.recipe.index.model_dump(mode="json"),
            },
        )
        manifest = read_manifest(stage.folder)
        if manifest is not None and manifest["fingerprint"] == stage.fingerprint:
            return manifest
        shutil.rmtree(stage.folder, ignore_errors=True)
        from leaf.indexing import index_run

        return stage.close(
            **index_run(
                stage.folder,
                self.recipe,
                [
                    (self.run.folder / "texts" / each["file"], self._embed_stage.folder / each["file"])
                    for each in _shards(texts)
                ],
                # Whoever has most layers asks by default.
                [self.run.folder / name for name in sorted(manifests, key=lambda name: -manifests[name]["layers"])],
            )
        )

    def report(self) -> dict[str, Any]:
        """Writes report.md, report.html, report.json, the figures and every student's model card."""
        from leaf.report import write_report

        for needed in ("texts", *(student.name for student in self.recipe.students), "scores"):
            self._finished(needed)
        if self.recipe.sweep is not None:
            from leaf.report.sweep import write_sweep

            write_sweep(self.run.folder, self.recipe)
        return write_report(self.run.folder, self.recipe)

    @functools.cached_property
    def teacher(self) -> Teacher:
        """The teacher, opened when first needed."""
        return open_teacher(
            self.recipe.teacher,
            device=self.device,
            embeddings=self.run.folder / "embeddings",
            sample=lambda: self._held_out().texts[:NUM_CANARIES],
            run=str(self.run.folder.resolve()),
            max_cost=self.max_cost,
        )

    @functools.cached_property
    def _cache_key(self) -> dict[str, Any]:
        key = cache_key(self.teacher, self.recipe.teacher.storage_dtype)
        return {**key, "vectors": self.teacher.digest} if isinstance(self.teacher, OwnedTeacher) else key

    @functools.cached_property
    def _owned(self) -> Owned | None:
        """The vectors that were there before the run, without their teacher."""
        settings = self.recipe.teacher.vectors
        return None if settings is None else Owned(settings, self.run.folder / "embeddings" / OWNED)

    @functools.cached_property
    def _embed_stage(self) -> Stage:
        folder = cache_folder(self.run.folder / "embeddings", self._cache_key)
        return Stage(folder, {"texts": self._finished("texts")["fingerprint"], **self._cache_key})

    def _finished(self, stage: str) -> dict[str, Any]:
        """The manifest of an earlier stage, which must be there."""
        manifest = read_manifest(self.run.folder / stage)
        if manifest is None:
            verb = {"texts": "texts", "scores": "evaluate"}.get(stage, "train")
            raise LeafError(f"{self.run.folder / stage} is not complete; run `leaf {verb}` with this recipe first")
        return manifest

    def _alone(self, stage: str) -> None:
        if self.world.size > 1:
            raise LeafError(f"`leaf {stage}` is one process's work; under torchrun run `leaf train`")

    def _held_out(self) -> Shard:
        return read_shard(self.run.folder / "texts" / self._finished("texts")["held_out"]["file"])

    def _data_path(self, data: str) -> Path:
        return self.run.folder / "texts" / "held-out-pairs" if data == "held-out-pairs" else Path(data)

    def _train_student(self, settings: StudentSettings) -> dict[str, Any]:
        texts = self._finished("texts")
        if (above := self.recipe.above(settings)) is not None:
            self.world.wait()  # until the main process has written that one
        embeddings = self._embed_stage.manifest
        if embeddings is None:
            raise LeafError(f"{self._embed_stage.folder} is not complete; run `leaf embed` with this recipe first")
        train_settings = self.recipe.train_of(settings)
        unused = {"train", "start"} if settings.prompts else {"train", "start", "prompts"}  # as in `texts`
        if settings.layers != () or settings.table == "backbone":
            unused.add("table")
        if not settings.wants_phrases:
            unused.add("phrases")
        if not settings.wants_network:
            unused.add("hidden")
        newer = ("row_lr", "matrix_lr")  # unset they say nothing, and older runs go on as they are
        unused_in_train = {*NOT_IN_FINGERPRINT, *(each for each in newer if getattr(train_settings, each) is None)}
        stage = self.run.stage(
            settings.name,
            {
                "embeddings": embeddings["fingerprint"],
                "student": settings.model_dump(mode="json", exclude=unused),
                **({"start": _digest_of(settings.start)} if settings.start else {}),
                **({"above": self._finished(above.name)["fingerprint"]} if above else {}),
                "train": train_settings.model_dump(mode="json", exclude=unused_in_train),
            },
        )
        if (manifest := stage.manifest) is not None:
            return manifest
        if settings.start is not None:
            self._check_start(settings.start)
        student = build_student(
            settings.model_copy(update={"backbone": str(self.run.folder / above.name)}) if above else settings,
            self.teacher.folder,
            student_prompts(self.recipe.teacher, {**self.teacher.prompts, **settings.prompts}),
            embeddings["dim"],
            normalise=embeddings["normalised"],
            max_length=self.teacher.max_length,
            similarity=embeddings["similarity"],
            seed=train_settings.seed,
        )
        rows = choose_rows(
            self.run.folder / "texts", texts["shards"], train_settings.kinds, train_settings.limit, train_settings.seed
        )
        scratch = self.run.folder / "checkpoints" / "cache" / embeddings["fingerprint"][:16]
        if not self.world.is_main:
            self.world.wait()  # until the main process has built what is only mapped here
        if settings.wants_phrases:
            self._add_phrases(student, settings, train_settings, texts["shards"], scratch)
        added = None
        if train_settings.loss != "leaf":
            if not isinstance(self.teacher, SentenceTransformerEncoder):
                raise LeafError(f"train.loss = '{train_settings.loss}' needs the teacher's inside; use 'leaf'")
            added = AddedLoss(train_settings.loss, student, self.teacher.model, train_settings.seed)
        examples, held_out = (
            self._examples(student, shards, scratch) for shards in (texts["shards"], [texts["held_out"]])
        )
        if self.world.is_main:
            self.world.wait()
        checkpoints = self._checkpoints(stage)
        resumes = (checkpoints / "resume.pt").exists()  # then the head comes with the other weights
        if settings.start is None:
            num_texts = 0 if resumes else settings.ridge_texts
            is_here = isinstance(self.teacher, SentenceTransformerEncoder)
            if num_texts and student.is_table and settings.table == "teacher" and is_here:
                start_table(student, self.teacher)
            start_head(student, examples, num_texts, self.device, rows)
            if settings.wants_network:
                student.add_network(settings.hidden, train_settings.seed)

        def keep(epoch: int) -> None:
            if train_settings.keep_checkpoints:
                student.save(checkpoints / f"epoch-{epoch:03d}")

        lengths = examples.lengths if rows is None else examples.lengths[rows]
        epochs = train_settings.cycles * train_settings.epochs_per_cycle
        say(
            f"{settings.name}: {student.num_layers} layers, {student.num_parameters / 1e6:.1f}M parameters, "
            f"{len(lengths):,} texts, {epochs} epochs"
        )
        steps, only_rows = len(lengths) // train_settings.batch_size * epochs, student.is_table and not student.network
        if (short := too_short(steps, train_settings, only_rows=only_rows)) is not None:
            say(f"{settings.name}: {short}")
        outcome = train(
            student,
            examples,
            held_out,
            train_settings,
            checkpoints,
            device=self.device,
            rows=rows,
            added=added,
            engine=self.engine,
            world=self.world,
            label=f"training {settings.name}",
            trace=self.run.folder / "profile" / f"{settings.name}.json.gz" if self.profile else None,
            on_epoch=keep,
        )
        if not self.world.is_main:
            return {}
        self._publish(stage, student, checkpoints / "metrics.jsonl")
        if outcome.best_epoch != outcome.epochs:
            student.load_state_dict(outcome.last_weights)
            student.save(checkpoints / "last")
        say(f"{settings.name}: held-out ε {outcome.error:.4f} in {outcome.seconds:.0f} s")
        return stage.close(
            layers=student.num_layers,
            parameters=student.num_parameters,
            max_length=student.model.max_seq_length if not student.is_table else None,
            normalised=embeddings["normalised"],
            ridge_texts=settings.ridge_texts,
            error=outcome.error,
            best_epoch=outcome.best_epoch,
            last_error=outcome.last_error,
            epochs=outcome.epochs,
            steps=outcome.steps,
            num_texts=len(lengths),
            num_tokens=int(lengths.sum(dtype=np.int64)),
            seconds=round(outcome.seconds, 1),
        )

    def _check_teacher(self) -> None:
        """Raises `LeafError` unless the teacher is that of students that go on, and of vectors that are there.

        Weights have a digest. An API has none, and a new store of its answers knows of no change: it is asked again.
        """
        is_api = self.recipe.teacher.is_api
        for settings in self.recipe.students:
            if settings.start is not None:
                self._check_start(settings.start, ask=is_api)
        if is_api and (held := self._held_answers()) is not None:
            path, texts, kinds, vectors = held
            if changed := drift(vectors, encode_canaries(self.teacher, texts, kinds)):
                raise Halt(
                    f"{self.recipe.teacher.model} is not the model any more that {path} is of: {changed}; ask for a "
                    "dated version of it, or choose another --out"
                )

    def _check_start(self, start: str, *, ask: bool = False) -> None:
        """Raises `LeafError` unless the student in `start` lives in this teacher's space, by name or if it is asked."""
        known, wanted = Space.load(Path(resolve_model(start))), self.teacher.identity()
        # What a vector is computed in moves it by less than the bar of any cache.
        if ask or {**known.teacher, "compute_dtype": None} != {**wanted, "compute_dtype": None}:
            check_teacher(self.teacher, known)

    def _held_answers(self) -> tuple[Path, list[str], list[Role], Vectors] | None:
        """A few texts of the first part of the cache that has any which were asked for, with their vectors."""
        owned = self.teacher.owned if isinstance(self.teacher, OwnedTeacher) else None
        for shard in _shards(self._finished("texts")):
            path = self._embed_stage.folder / shard["file"]
            if path.exists():
                vectors = next(read_vectors(path)).astype(np.float32)
                texts, kinds = read_shard(self.run.folder / "texts" / shard["file"])
                rows = range(len(vectors))
                asked = (row for row in rows if owned is None or owned.find([texts[row]], kinds[row])[0] < 0)
                if chosen := list(itertools.islice(asked, NUM_CHECKED)):
                    return path, [texts[row] for row in chosen], [kinds[row] for row in chosen], vectors[chosen]
        return None

    def _checkpoints(self, stage: Stage) -> Path:
        """The folder of a student's resume points, which belong to these inputs and no others."""
        folder = self.run.folder / "checkpoints" / stage.folder.name
        owner = folder / "inputs.json"
        if owner.exists() and (known := json.loads(owner.read_text(encoding="utf-8"))) != stage.inputs:
            raise LeafError(
                f"{folder} holds resume points of other inputs ({difference(known, stage.inputs)}); delete that folder "
                "to train this student from the start"
            )
        if self.world.is_main:
            write_json(owner, stage.inputs)
        return folder

    def _clear_checkpoints(self) -> None:
        """Removes what finished students leave behind; checkpoints that were asked for, and `last/`, stay."""
        checkpoints = self.run.folder / "checkpoints"
        shutil.rmtree(checkpoints / "cache", ignore_errors=True)
        for folder in [*checkpoints.glob("*"), checkpoints]:
            for file in ("resume.pt", "metrics.jsonl", "inputs.json"):
                (folder / file).unlink(missing_ok=True)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _examples(self, student: Student, shards: Sequence[dict[str, Any]], scratch: Path) -> Examples:
        return build_examples(
            self.run.folder / "texts",
            self._embed_stage.folder,
            shards,
            student.tokenizer,
            student.vocabulary_size,
            scratch,
        )

    def _add_phrases(
        self, student: Student, settings: StudentSettings, train: Train, shards: Sequence[dict[str, Any]], scratch: Path
    ) -> None:
        """Gives a student phrases of the texts that it is trained on. They are looked for once, if at all."""
        which = [settings.phrases, train.kinds, train.limit, train.seed]
        file = scratch / f"phrases-{digest([student.tokenizer.identity(), which])[:12]}.json"
        if not file.exists():
            examples = self._examples(student, shards, scratch)
            rows = choose_rows(self.run.folder / "texts", shards, train.kinds, train.limit, train.seed)
            rows = np.arange(len(examples)) if rows is None else rows
            rows = rows[:: max(1, math.ceil(examples.lengths[rows].sum(dtype=np.int64) / PHRASE_TOKENS))]
            ids, lengths = _between_special(*examples.gather(rows), student.tokenizer.rust)
            phrases = find_phrases(ids, lengths, vocabulary_size=student.vocabulary_size, count=settings.phrases)
            with atomic_path(file) as temporary:
                add_phrases(student.tokenizer.rust, phrases).save(str(temporary))
        student.set_tokenizer(Tokenizer.from_file(str(file)))

    def _publish(self, stage: Stage, student: Student, metrics: Path) -> None:
        """Moves the finished student into place whole: folder, canaries, metrics; the manifest follows."""
        building = stage.folder.with_name(f".{stage.folder.name}.tmp")
        for folder in (building, stage.folder):  # what a killed run left
            if folder.exists():
                shutil.rmtree(folder)
        building.mkdir(parents=True)
        student.save(building)
        self._space(load(building, device="cpu")).save(building)
        shutil.copyfile(metrics, building / "metrics.jsonl")
        building.rename(stage.folder)

    def _space(self, encoder: Encoder) -> Space:
        """The teacher's space, with held-out texts as canaries and this encoder's error on them."""
        embeddings = self._embed_stage.manifest
        assert embeddings is not None, "students are trained after the teacher pass"
        shard = self._held_out()
        texts, kinds = shard.texts[:NUM_CANARIES], shard.kinds[:NUM_CANARIES]
        held_out = self._finished("texts")["held_out"]["file"]
        vectors = next(read_vectors(self._embed_stage.folder / held_out))[:NUM_CANARIES].astype(np.float32)
        space = Space(
            teacher=self._cache_key["teacher"],
            dim=embeddings["dim"],
            normalised=embeddings["normalised"],
            similarity=embeddings["similarity"],
            texts=tuple(texts),
            kinds=tuple(kinds),
            vectors=vectors,
        )
        return saved_with(space, encoder)

    def _align(self, students: dict[str, Encoder], held_out: Shard, folder: Path) -> None:
        """Every student beside its teacher on the held-out texts, which nobody has judged: `alignment.json`."""
        file = self._embed_stage.folder / self._finished("texts")["held_out"]["file"]
        teacher = np.concatenate(list(read_vectors(file))).astype(np.float32)
        kinds = np.array(held_out.kinds)
        rows = {kind: np.flatnonzero(kinds == kind) for kind in ("query", "document")}
        texts = {kind: [held_out.texts[row] for row in chosen] for kind, chosen in rows.items()}
        found = []
        for name, student in students.items():
            found.append(
                alignment_of(
                    student.encode_query(texts["query"]),
                    teacher[rows["query"]],
                    student.encode_document(texts["document"]),
                    teacher[rows["document"]],
                    similarity=self.teacher.similarity,
                    query_texts=texts["query"],
                    document_texts=texts["document"],
                    names=(name, self.teacher.name),
                    dataset="held-out texts",
                )
            )
        write_json(folder / "alignment.json", [asdict(each) for each in found])

    def _adaptations(self, students: dict[str, tuple[Encoder, Encoder]], folder: Path) -> None:
        """Every student that went on from another, before and after: `adaptation.json`."""
        if not students:
            return
        held_out = self._held_out()
        file = self._finished("texts")["held_out"]["file"]
        teacher = np.concatenate(list(read_vectors(self._embed_stage.folder / file))).astype(np.float32)
        sources = read_sources(self.run.folder / "texts" / file)
        guards = {name for name, counts in self._finished("texts")["sources"].items() if counts.get("guard")}
        groups: dict[str, list[int]] = {"own texts": [], "guard texts": []}
        for row, source in enumerate(sources):
            groups["guard texts" if source in guards else "own texts"].append(row)
        scores = records.read(folder)
        found = {}
        for name, both in students.items():
            before, after = (encode_canaries(each, held_out.texts, held_out.kinds) for each in both)
            changes = [*error_changes(before, after, teacher, groups), *score_changes(scores, name)]
            found[name] = [each.to_json() for each in changes]
        write_json(folder / "adaptation.json", found)

    def _margin(self, loaded: Sequence[datasets.Dataset], cache: VectorCache, folder: Path) -> None:
        """The robustness margin from the checkpoints that training kept, if any."""
        kept = []
        for settings in self.recipe.students:
            checkpoints = self.run.folder / "checkpoints" / settings.name
            errors = held_out_errors(self.run.folder / settings.name / "metrics.jsonl")
            cycle = self.recipe.train_of(settings).epochs_per_cycle
            for epoch in range(1, len(errors)):
                path = checkpoints / f"epoch-{epoch:03d}"
                if path.exists():
                    open_it = functools.partial(self._load_checkpoint, path)
                    kept.append(Kept(settings.name, epoch, (epoch - 1) % cycle == 0, errors[epoch], open_it))
        if kept:
            measure_margins(self.teacher, kept, loaded, self.recipe.evaluate.checkpoints, cache, folder)

    def _load_checkpoint(self, path: Path) -> Encoder:
        encoder = load(path, device=self.device)
        if self.recipe.teacher.compute_dtype == "auto":
            use_bfloat16_where_exact([encoder], self._held_out().texts)
        return encoder

    def _measure_exported(self, manifests: dict[str, dict[str, Any]]) -> None:
        from leaf.exported import measure_exported

        try:
            loaded = [each for path in self.recipe.evaluate.data for each in datasets.load_all(self._data_path(path))]
            cache, queries = self.run.folder / "embeddings" / "evaluation", self._timed_queries()[:TIMED_QUERIES]
            measure_exported(self.run.folder, manifests, loaded, lambda: self.teacher, queries, cache)
        except LeafError as error:  # the files are there, and each was compared with its student
            say(f"ONNX files are not scored: {error}")

    def _timed_queries(self) -> list[str]:
        shard = self._held_out()
        return [text for text, kind in zip(shard.texts, shard.kinds, strict=True) if kind == "query"] or shard.texts

    def _time_queries(self, students: dict[str, Encoder]) -> None:
        """One record per encoder in `speed/`: the teacher's latency beside each student's, on the held-out queries."""
        queries = self._timed_queries()
        say(f"timing {TIMED_QUERIES} queries, one at a time")
        if isinstance(self.teacher, SentenceTransformerEncoder):  # any other would show its network, or a disk
            students = {"teacher": self.teacher, **students}
        for name, encoder in students.items():
            if isinstance(encoder, SentenceTransformerEncoder):
                encoder.compute_dtype = "float32"  # for one query, the casts would cost more than they save
            record = query_latency(encoder, queries[:TIMED_QUERIES], TIMED_QUERIES)
            write_json(
                self.run.folder / "speed" / f"{name}.json",
                {**record, "device": self.device, "provenance": provenance()},
            )


def _shards(texts: dict[str, Any]) -> list[dict[str, Any]]:
    """Every shard of the texts stage: the training parts, then the held-out texts."""
    return [*texts["shards"], texts["held_out"]]


def _between_special(
    ids: NDArray[Any], lengths: NDArray[Any], tokenizer: Tokenizer
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Texts as token ids, end to end, without special tokens, and how many stand together: nothing is joined across."""
    special = [id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    is_special = np.isin(ids, special)
    stretch = (np.repeat(np.arange(len(lengths)), lengths) + np.cumsum(is_special))[~is_special]
    starts = np.flatnonzero(np.diff(stretch, prepend=-1))
    return ids[~is_special], np.diff(starts, append=len(stretch))


def _digest_of(start: str) -> str:
    """The weights of the student that another goes on from, wherever it lies: `leaf export` adds to its settings."""
    folder = Path(resolve_model(start))
    weights = sorted(folder.rglob("*.safetensors"))
    if not weights:
        raise LeafError(f"student.start: '{start}' holds no weights; give the folder of a student")
    return digest([[path.relative_to(folder).as_posix(), file_digest(path)] for path in weights])
