"""The stages of a run, in order: texts → embeddings → students → scores → report.

    leaf.distill("demo", out="runs/demo")

Every method of `Pipeline` finishes one stage and returns its manifest; a stage that is complete and still matches its
inputs returns at once. Nothing is passed between stages but files.
"""

import functools
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from leaf.encoder import Encoder
from leaf.errors import LeafError
from leaf.evaluation import datasets, records
from leaf.evaluation.evaluate import VectorCache, evaluate_all
from leaf.evaluation.examples import examples
from leaf.files import write_json
from leaf.loading import load
from leaf.progress import console, say
from leaf.provenance import provenance
from leaf.recipe import Recipe
from leaf.recipe import Student as StudentSettings
from leaf.run import Run, Stage, difference, read_manifest
from leaf.runtime.speed import query_latency
from leaf.space import NUM_CANARIES, Space, canary_error
from leaf.student.data import Examples, build_examples
from leaf.student.distributed import World, join
from leaf.student.metrics import check_trackers
from leaf.student.model import Student, build_student
from leaf.student.step import Engine
from leaf.student.train import FAST, start_head, train
from leaf.teacher.cache import read_vectors
from leaf.teacher.embed import cache_folder, cache_key, embed
from leaf.teacher.model import SentenceTransformerEncoder
from leaf.texts.prepare import prepare
from leaf.texts.shards import Shard, read_shard
from leaf.texts.sources import identity as source_identity

#: Queries timed for the report, one at a time.
TIMED_QUERIES = 100
#: Training settings that do not change the student.
NOT_IN_FINGERPRINT = {"checkpoint_minutes", "keep_checkpoints", "trackers"}


def distill(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    device: str | None = None,
    engine: Engine = FAST,
) -> dict[str, Any]:
    """Runs every stage of `recipe` in the folder `out` and returns the report; run again, it goes on where it stopped.

    `recipe` is a `Recipe`, the name of one that ships, or a TOML file; `overrides` are `table.field=value` settings.
    `out` defaults to `runs/<recipe name>`; `device` to a GPU where there is one; `engine` says how steps are executed.
    Raises `LeafError` for anything the caller can fix: a bad recipe, missing texts, another recipe's folder, an
    unreachable model.
    """
    if not isinstance(recipe, Recipe):
        recipe = Recipe.load(recipe, overrides)
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
    ) -> None:
        self.recipe = recipe
        self.run = Run(Path(out) if out is not None else Path("runs") / recipe.name)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.engine, self.profile = engine, profile
        self.world = World()

    @contextmanager
    def open(self) -> Iterator[Self]:
        """Keeps other writers and other recipes out of the run folder; meets the processes that torchrun started."""
        with join(self.device) as (self.world, self.device):
            if not self.world.is_main:  # the main process holds the lock for all, and talks for all
                console.quiet = True
                self.world.wait()
                yield self
                return
            with self.run.lock():
                self.run.claim(self.recipe)
                self.world.wait()
                yield self

    def distill(self) -> dict[str, Any]:
        """Runs every stage; returns the report."""
        self.texts()
        self.embed()
        self.train()
        self.evaluate()
        return self.report()

    def texts(self) -> dict[str, Any]:
        """Reads the sources into shards, with a held-out split."""
        self._alone("texts")
        sources = [source_identity(source) for source in self.recipe.texts]
        stage = self.run.stage("texts", {"texts": sources, "prepare": self.recipe.prepare.model_dump(mode="json")})
        if (manifest := stage.manifest) is not None:
            return manifest
        return stage.close(**prepare(self.recipe.texts, self.recipe.prepare, stage.folder))

    def embed(self) -> dict[str, Any]:
        """Fills the cache of teacher vectors."""
        self._alone("embed")
        texts = self._finished("texts")
        stage = self._embed_stage
        if (manifest := stage.manifest) is not None:
            return manifest
        facts = embed(
            self.run.folder / "texts",
            _shards(texts),
            self.teacher,
            stage.folder,
            self._cache_key,
            self.recipe.teacher.batch_size,
        )
        return stage.close(**facts)

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
        """Scores teacher, students and BM25 on the recipe's data, times a query, answers the example queries."""
        self._alone("evaluate")
        students = {student.name: self._finished(student.name) for student in self.recipe.students}
        loaded = [datasets.load(self._data_path(each)) for each in self.recipe.evaluate.data]
        stage = self.run.stage(
            "scores",
            {
                "teacher": self._cache_key["teacher"],
                "students": {name: manifest["fingerprint"] for name, manifest in students.items()},
                "evaluate": self.recipe.evaluate.model_dump(mode="json"),
                "datasets": {dataset.name: dataset.digest for dataset in loaded},
            },
        )
        if (manifest := stage.manifest) is not None:
            return manifest
        if self.recipe.evaluate.benchmarks:
            say(
                f"not measured: {', '.join(self.recipe.evaluate.benchmarks)} (public benchmarks cannot be fetched yet; "
                "name local BEIR folders in evaluate.data)"
            )
        if stage.folder.exists():
            shutil.rmtree(stage.folder)  # scores of an evaluation that was interrupted
        encoders: dict[str, Encoder] = {
            name: load(self.run.folder / name, device=self.device, name=name) for name in students
        }
        # Kept over all sets only where the examples will search one of them again.
        cache = VectorCache() if self.recipe.evaluate.examples else None
        scores = evaluate_all(self.teacher, encoders, loaded, bm25=self.recipe.evaluate.bm25, cache=cache)
        records.write(scores, stage.folder)
        searched = next((dataset for dataset in loaded if isinstance(dataset, datasets.RetrievalSet)), None)
        answers = []
        if searched is not None:
            answers = examples(self.recipe.evaluate.examples, self.teacher, encoders, searched, cache)
        write_json(stage.folder / "examples.json", answers)
        self._time_queries(encoders)
        return stage.close(
            datasets=[dataset.name for dataset in loaded],
            num_scores=len(scores),
            teacher_parameters=self.teacher.num_parameters,
        )

    def report(self) -> dict[str, Any]:
        """Writes report.md, report.html, report.json, the figures and every student's model card."""
        from leaf.report import write_report

        for needed in ("texts", *(student.name for student in self.recipe.students), "scores"):
            self._finished(needed)
        return write_report(self.run.folder, self.recipe)

    @functools.cached_property
    def teacher(self) -> SentenceTransformerEncoder:
        """The teacher, loaded when first needed."""
        settings = self.recipe.teacher
        teacher = SentenceTransformerEncoder(
            settings.model,
            name=settings.name,
            revision=settings.revision,
            prompts=settings.prompts,
            max_length=settings.max_length,
            compute_dtype="bfloat16" if settings.compute_dtype == "bfloat16" else "float32",
            device=self.device,
        )
        if settings.compute_dtype == "auto":
            teacher.use_bfloat16_where_exact(self._held_out().texts[:NUM_CANARIES])
        return teacher

    @functools.cached_property
    def _cache_key(self) -> dict[str, Any]:
        return cache_key(self.teacher, self.recipe.teacher.storage_dtype)

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
        embeddings = self._embed_stage.manifest
        if embeddings is None:
            raise LeafError(f"{self._embed_stage.folder} is not complete; run `leaf embed` with this recipe first")
        train_settings = self.recipe.train_of(settings)
        stage = self.run.stage(
            settings.name,
            {
                "embeddings": embeddings["fingerprint"],
                "student": settings.model_dump(mode="json", exclude={"train"}),
                "train": train_settings.model_dump(mode="json", exclude=NOT_IN_FINGERPRINT),
            },
        )
        if (manifest := stage.manifest) is not None:
            return manifest
        student = build_student(
            settings,
            self.teacher.folder,
            self.teacher.prompts,
            embeddings["dim"],
            normalise=embeddings["normalised"],
            max_length=self.teacher.max_length,
            similarity=embeddings["similarity"],
            seed=train_settings.seed,
        )
        scratch = self.run.folder / "checkpoints" / "cache" / embeddings["fingerprint"][:16]
        if not self.world.is_main:
            self.world.wait()  # until the main process has built what is only mapped here
        examples, held_out = (
            self._examples(student, shards, scratch) for shards in (texts["shards"], [texts["held_out"]])
        )
        if self.world.is_main:
            self.world.wait()
        checkpoints = self._checkpoints(stage)
        resumes = (checkpoints / "resume.pt").exists()  # then the head comes with the other weights
        start_head(student, examples, 0 if resumes else settings.ridge_texts, self.device)

        def keep(epoch: int) -> None:
            if train_settings.keep_checkpoints:
                student.save(checkpoints / f"epoch-{epoch:03d}")

        say(
            f"{settings.name}: {student.num_layers} layers, {student.num_parameters / 1e6:.1f}M parameters, "
            f"{len(examples):,} texts, {train_settings.cycles * train_settings.epochs_per_cycle} epochs"
        )
        outcome = train(
            student,
            examples,
            held_out,
            train_settings,
            checkpoints,
            device=self.device,
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
            num_texts=len(examples),
            num_tokens=int(examples.offsets[-1]),
            seconds=round(outcome.seconds, 1),
        )

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
        return replace(space, error=canary_error(encoder, space.texts, space.kinds, space.vectors))

    def _time_queries(self, students: dict[str, Encoder]) -> None:
        """One record per encoder in `speed/`: the teacher's latency beside each student's, on the held-out queries."""
        shard = self._held_out()
        queries = [text for text, kind in zip(shard.texts, shard.kinds, strict=True) if kind == "query"] or shard.texts
        say(f"timing {TIMED_QUERIES} queries, one at a time")
        for name, encoder in {"teacher": self.teacher, **students}.items():
            record = query_latency(encoder, queries[:TIMED_QUERIES], TIMED_QUERIES)
            write_json(
                self.run.folder / "speed" / f"{name}.json",
                {**record, "device": self.device, "provenance": provenance()},
            )


def _shards(texts: dict[str, Any]) -> list[dict[str, Any]]:
    """Every shard of the texts stage: the training parts, then the held-out texts."""
    return [*texts["shards"], texts["held_out"]]
