"""The probe itself: samples, a little teacher pass, a closed-form head for each student, and what follows."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leaf.encoder import Role, Vectors
from leaf.errors import LeafError
from leaf.evaluation import datasets
from leaf.evaluation.datasets import RetrievalSet
from leaf.evaluation.statistics import Interval
from leaf.files import digest, write_json
from leaf.models import resolve_model
from leaf.pipeline import Pipeline
from leaf.planning.models import from_model
from leaf.preflight import forms, searches
from leaf.preflight.lengths import Whole
from leaf.preflight.predict import (
    Simulation,
    expected_epsilon,
    expected_ratio,
    expected_retention,
    retention,
    start_with,
)
from leaf.preflight.rank import rank_bound, reachable
from leaf.preflight.searches import Search
from leaf.preflight.start import Start, by_kind, fit_start
from leaf.preflight.texts import TextSample, cached_vectors, from_shards, from_sources
from leaf.preflight.warn import warnings
from leaf.progress import progress
from leaf.provenance import provenance
from leaf.recipe import Recipe
from leaf.recipe import Student as Settings
from leaf.run import Run, read_manifest
from leaf.space import NUM_CANARIES
from leaf.spectrum import spectrum
from leaf.student.model import build_student
from leaf.teacher.embed import cache_key
from leaf.teacher.model import SentenceTransformerEncoder
from leaf.texts.prepare import HELD_OUT_PAIRS
from leaf.texts.shards import read_shard
from leaf.tokens import Tokenizer
from leaf.vector_files import UNIT_NORM_TOLERANCE

FILE = "preflight.json"
NUM_TEXTS = 4_000
#: Fewer say nothing.
MIN_TEXTS = 100
#: At most so many pairs, where the recipe evaluates on pairs that the texts stage has yet to hold out.
NUM_PAIRS = 10_000
#: One text in so many is kept from the fit: ε is measured on it, and its errors are what searches are tried with.
CHECK_EVERY = 10
#: Held-out queries below which all held-out texts stand in for them.
FEW_QUERIES = 20
#: Queries of a search without judgements.
OVERLAP_QUERIES = 200


def probe(
    recipe: Recipe, out: str | Path | None = None, *, device: str | None = None, num_texts: int = NUM_TEXTS
) -> dict[str, Any]:
    """What to expect of `recipe`, from `num_texts` of its texts; written to `preflight.json` in the run folder `out`.

    The folder is not claimed: nothing else is written, and another recipe may have it afterwards. Finished texts and
    vectors of this recipe in it are used. Raises `LeafError` as the stages do, and for fewer than 100 texts.
    """
    began = time.monotonic()
    if num_texts < MIN_TEXTS:
        raise LeafError(f"a probe of {num_texts} texts says nothing; give it {MIN_TEXTS} or more")
    sets = _retrieval_sets(recipe)
    # In float32 until there are texts to check bfloat16 on: the stages look for those in files that may not be there.
    exact = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"compute_dtype": "float32"})})
    pipeline = Pipeline(exact, out, device=device)
    if recipe.teacher.vectors is not None or recipe.teacher.is_remote:
        raise LeafError("--probe looks into a teacher, and of this one there are only vectors; `leaf plan` counts them")
    folder, teacher = pipeline.run.folder, pipeline.teacher
    assert isinstance(teacher, SentenceTransformerEncoder)
    sample, known = _sample(recipe, folder, teacher, num_texts)
    if len(sample.texts) < MIN_TEXTS:
        raise LeafError(f"the sources gave {len(sample.texts)} texts; a probe needs {MIN_TEXTS} or more")
    if HELD_OUT_PAIRS in recipe.evaluate.data:
        sets = [_pairs(folder, sample), *sets]
    vectors, found = _teacher_pass(teacher, sample, known, sets, recipe)
    if not (asked := [search for search in found if search.teacher_scores.mean() > 0]):
        asked = [_overlap(sample, vectors, teacher)]
    lengths = np.linalg.norm(vectors, axis=1)
    normalised = bool((np.abs(lengths - 1) <= UNIT_NORM_TOLERANCE).all())
    students, tokenizers = _students(pipeline, sample, vectors, asked, normalised)
    shape = spectrum(vectors)
    record: dict[str, Any] = {
        "recipe": recipe.name,
        "teacher": {
            "model": recipe.teacher.model,
            "name": teacher.name,
            "dim": teacher.dim,
            "normalised": normalised,
            "lengths": [float(lengths.min()), float(lengths.mean()), float(lengths.max())],
            "mean_share": shape.mean_share,
            "effective_rank": shape.effective_rank,
            "energy": shape.energy.round(5).tolist(),
        },
        "sample": {
            "texts": len(sample.texts),
            "queries": len(sample.of("query")),
            "training_texts": sample.num_training,
            "seed": recipe.prepare.seed,
        },
        "students": students,
        "datasets": {search.name: _describe(search, sets) for search in asked},
        "tokens": _tokens({"teacher": _tokenizer(teacher), **tokenizers}, sample, found),
        "forms": _forms(sample, vectors, found) if found else None,
        "notes": [*sample.notes, *_not_probed(recipe)],
        "device": pipeline.device,
        "seconds": round(time.monotonic() - began, 1),
        "provenance": provenance(),
    }
    record["warnings"] = warnings(record)
    write_json(folder / FILE, record)
    return record


# What is sampled


def _retrieval_sets(recipe: Recipe) -> list[RetrievalSet]:
    paths = [path for path in recipe.evaluate.data if path != HELD_OUT_PAIRS]
    return [each for path in paths for each in datasets.load_all(path) if isinstance(each, RetrievalSet)]


def _not_probed(recipe: Recipe) -> list[str]:
    names = ", ".join(recipe.evaluate.benchmarks)
    return [f"benchmarks are not probed, only the local sets of evaluate.data: {names}"] if names else []


def _sample(
    recipe: Recipe, folder: Path, teacher: SentenceTransformerEncoder, num_texts: int
) -> tuple[TextSample, Vectors | None]:
    """Texts, and the vectors that the run folder has of them, if it has any.

    Also decides what the teacher computes in, on the texts that the stages decide it on where these are there.
    """
    manifest = Run(folder).finished_texts(recipe)
    if manifest is None:
        pairs = min(NUM_PAIRS, recipe.prepare.held_out_pairs) if HELD_OUT_PAIRS in recipe.evaluate.data else 0
        sample = from_sources(recipe.texts, recipe.prepare, num_texts, pairs)
        _choose_dtype(teacher, recipe, sample.texts)
        return sample, None
    _choose_dtype(teacher, recipe, read_shard(folder / "texts" / manifest["held_out"]["file"]).texts)
    sample, places = from_shards(folder / "texts", manifest, num_texts, abs(recipe.prepare.seed))
    embeddings = folder / "embeddings" / digest(cache_key(teacher, recipe.teacher.storage_dtype))[:16]
    cached = cached_vectors(embeddings, places, teacher.dim) if read_manifest(embeddings) else None
    return sample, cached


def _choose_dtype(teacher: SentenceTransformerEncoder, recipe: Recipe, texts: Sequence[str]) -> None:
    if recipe.teacher.compute_dtype == "auto":
        teacher.use_bfloat16_where_exact(texts[:NUM_CANARIES])
    else:
        teacher.compute_dtype = recipe.teacher.compute_dtype


def _pairs(folder: Path, sample: TextSample) -> RetrievalSet:
    """The held-out pairs: those that the sources gave, or of the finished texts, from which the sample then is."""
    if sample.pairs:
        return searches.of_pairs(HELD_OUT_PAIRS, sample.pairs)
    loaded = datasets.load(folder / "texts" / HELD_OUT_PAIRS)
    assert isinstance(loaded, RetrievalSet), "the texts stage writes pairs in BEIR's layout"
    return loaded


# What the teacher says


def _teacher_pass(
    teacher: SentenceTransformerEncoder,
    sample: TextSample,
    known: Vectors | None,
    sets: Sequence[RetrievalSet],
    recipe: Recipe,
) -> tuple[Vectors, list[Search]]:
    """The teacher's vectors of the sample, and searches in sets cut to a budget, under one bar."""
    small = searches.cut(sets, teacher.max_length, abs(recipe.prepare.seed))
    total = sum(len(each.queries) + len(each.documents) for each in small)
    with progress("probing: teacher", total + (len(sample.texts) if known is None else 0)) as bar:

        def encode(texts: Sequence[str], role: Role) -> Vectors:
            found = teacher.encode(texts, role, batch_size=recipe.teacher.batch_size, advance=bar.advance)
            if not np.isfinite(found).all():
                raise LeafError(
                    f"{teacher.name} answers with NaN or infinity; check its weights, or set teacher.compute_dtype = "
                    "'float32'"
                )
            return found

        def as_tensor(texts: list[str], role: Role) -> Tensor:
            return torch.from_numpy(encode(texts, role))

        vectors = by_kind(as_tensor, sample.texts, sample.kinds).numpy() if known is None else known
        found = [
            Search(
                each,
                encode(list(each.queries.values()), "query"),
                encode(list(each.documents.values()), "document"),
                teacher.similarity,
            )
            for each in small
        ]
    return vectors, found


def _split(num_texts: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to fit on and rows to check on. The sample is in random order."""
    rows = np.arange(num_texts)
    return rows[rows % CHECK_EVERY != 0], rows[rows % CHECK_EVERY == 0]


def _overlap(sample: TextSample, vectors: Vectors, teacher: SentenceTransformerEncoder) -> Search:
    """A search where the recipe has no set: held-out queries among the documents of the sample.

    Where one of the two kinds is missing, texts of the other stand in for it.
    """
    fitted, checked = _split(len(sample.texts))
    kinds = np.array(sample.kinds)
    role: Role = "query" if (kinds[checked] == "query").any() else "document"
    asked = checked[kinds[checked] == role][:OVERLAP_QUERIES]
    among = fitted[kinds[fitted] == "document"]
    among = among if len(among) > 2 * searches.TOP_K else fitted
    queries = {f"q{row}": sample.texts[row] for row in asked}
    documents = {f"d{row}": sample.texts[row] for row in among}
    part = searches.Part("the training texts", queries, documents, {}, frozenset())
    return Search(part, vectors[asked], vectors[among], teacher.similarity, role)


# What the students can say


def _students(
    pipeline: Pipeline, sample: TextSample, vectors: Vectors, asked: Sequence[Search], normalised: bool
) -> tuple[list[dict[str, Any]], dict[str, Whole]]:
    """The record of every student, and what it tokenises with. Students that start alike are started once."""
    fitted, checked = _split(len(sample.texts))
    kinds = np.array(sample.kinds)
    starts: dict[str, tuple[Start, list[Vectors]]] = {}
    records, tokenizers = [], {}
    for each in pipeline.recipe.students:
        settings = from_model(pipeline.recipe, each)  # whatever is above it is not trained yet
        trained_on = pipeline.recipe.train_of(settings).kinds
        rows = fitted[np.isin(kinds[fitted], trained_on)]
        alike = digest([settings.model_dump(mode="json", exclude={"name", "train"}), trained_on])
        if alike not in starts:
            student = build_student(
                settings,
                pipeline.teacher.folder,
                pipeline.teacher.prompts,
                pipeline.teacher.dim,
                normalise=normalised,
                max_length=pipeline.teacher.max_length,
                similarity=pipeline.teacher.similarity,
                seed=0,
            )
            total = len(sample.texts) + sum(len(search.part.queries) for search in asked)
            with progress(f"probing: {settings.name}", total) as bar:
                start = fit_start(
                    student, sample.texts, sample.kinds, vectors, rows, checked, pipeline.device, bar.advance
                )
                queries = [
                    start.encode(list(search.part.queries.values()), search.role, bar.advance) for search in asked
                ]
            starts[alike] = start, queries
        start, queries = starts[alike]
        share = len(rows) / len(fitted)
        records.append(
            _student(settings, pipeline, start, queries, vectors, checked, asked, round(share * sample.num_training))
        )
        if settings is not each:
            records[-1]["basis"].append(f"{each.name} as if it began with layers of an untrained {each.backbone}")
        if settings.wants_phrases:
            records[-1]["basis"].append(f"{each.name} without its phrases")
        if settings.wants_network:
            records[-1]["basis"].append(f"{each.name} without its network")
        tokenizers[settings.name] = Whole(start.student.first, start.student.tokenizer)
    return records, tokenizers


def _student(
    settings: Settings,
    pipeline: Pipeline,
    start: Start,
    queries: Sequence[Vectors],
    vectors: Vectors,
    checked: NDArray[np.int64],
    asked: Sequence[Search],
    num_texts: int,
) -> dict[str, Any]:
    student, train = start.student, pipeline.recipe.train_of(settings)
    normalise, num_texts = student.normalises, min(num_texts, train.limit or num_texts)
    subspace = None  # a table's head is folded into it, and its rows then learn every dimension
    if not student.is_table:
        subspace = reachable(vectors, start.width, bias=student.head.bias is not None, normalise=normalise)
    bound = rank_bound(vectors, subspace)
    wanted = min(settings.ridge_texts or Settings.model_fields["ridge_texts"].default, num_texts)
    begin = start_with(start.error, start.half_error, start.num_fitted, wanted)
    own = settings.backbone == "teacher" or resolve_model(settings.backbone) == pipeline.teacher.folder
    teacher = pipeline.teacher
    assert isinstance(teacher, SentenceTransformerEncoder)
    layers = _num_layers(teacher) if own and not student.is_table else None
    ratio = expected_ratio(student.num_layers, layers, num_texts, train.cycles * train.epochs_per_cycle)
    epsilon = expected_epsilon(begin, bound, ratio)
    simulation = Simulation(asked, queries, vectors[checked], start.checked, normalise=normalise, seed=0)
    before = [search.scores(each) for search, each in zip(asked, queries, strict=True)]
    floor = retention(asked, before).value
    ceiling = 100.0
    if subspace is not None:
        limited = [search.scores(subspace.nearest(search.query_vectors).astype(np.float32)) for search in asked]
        ceiling = min(retention(asked, limited).value, 100.0)
    return {
        "name": settings.name,
        "layers": student.num_layers,
        "width": None if student.is_table else start.width,
        "parameters": student.num_parameters,
        "rank_bound": bound,
        "epsilon_start": begin,
        "epsilon_fitted": start.error,
        "fitted_texts": start.num_fitted,
        "query_errors": {
            search.name: float(np.linalg.norm(each - search.query_vectors, axis=1).mean())
            for search, each in zip(asked, queries, strict=True)
        },
        "floor": floor,
        "ceiling": ceiling,
        "datasets": {search.name: {"before": float(each.mean())} for search, each in zip(asked, before, strict=True)},
        "texts": num_texts,
        "epochs": train.cycles * train.epochs_per_cycle,
        "predicted": {
            "epsilon": _range(epsilon),
            "asymmetric": _range(expected_retention(asked, simulation, epsilon, floor, ceiling)),
            "measure": asked[0].measure,
        },
        "basis": list(ratio.basis),
    }


def _num_layers(teacher: SentenceTransformerEncoder) -> int:
    first: Any = teacher.model[0]
    return int(first.auto_model.config.num_hidden_layers)


def _range(interval: Interval) -> dict[str, float]:
    return dict(zip(("expected", "low", "high"), map(float, interval), strict=True))


# What the texts are like


def _describe(search: Search, sets: Sequence[RetrievalSet]) -> dict[str, Any]:
    whole = next((each for each in sets if each.name == search.name), None)
    return {
        "measure": search.measure,
        "queries": len(search.part.queries),
        "documents": len(search.part.documents),
        "all_queries": len(whole.queries) if whole else len(search.part.queries),
        "all_documents": len(whole.documents) if whole else len(search.part.documents),
        "teacher": float(search.teacher_scores.mean()),
    }


def _tokenizer(teacher: SentenceTransformerEncoder) -> Whole | None:
    try:
        return Whole(teacher.model[0], Tokenizer(teacher.model[0], teacher.prompts))
    except LeafError:  # a teacher need not be a Transformer; what it cuts is then not known
        return None


def _tokens(encoders: Mapping[str, Whole | None], sample: TextSample, found: Sequence[Search]) -> list[dict[str, Any]]:
    """What every encoder cuts and does not know. Encoders that tokenise alike share an entry."""
    groups: dict[str, tuple[Role, list[str]]] = {
        "training queries": ("query", sample.of("query")),
        "training documents": ("document", sample.of("document")),
        "evaluation queries": ("query", [text for each in found for text in each.part.queries.values()]),
        "evaluation documents": ("document", [text for each in found for text in each.part.documents.values()]),
    }
    entries: dict[str, dict[str, Any]] = {}
    for name, whole in encoders.items():
        if whole is None:
            continue
        rates = {group: whole.rates(texts, role) for group, (role, texts) in groups.items() if texts}
        entries.setdefault(digest(rates), {"encoders": [], "rates": rates})["encoders"].append(name)
    return list(entries.values())


def _forms(sample: TextSample, vectors: Vectors, found: Sequence[Search]) -> dict[str, Any]:
    """Whether training queries look like the evaluation queries, and how near the training texts come to them."""
    fitted, checked = _split(len(sample.texts))
    held_out = checked[np.array(sample.kinds)[checked] == "query"]
    held_out = held_out if len(held_out) >= FEW_QUERIES else checked
    reference = forms.nearest(vectors[held_out], vectors[fitted])
    cosines = {search.name: forms.nearest(search.query_vectors, vectors[fitted]) for search in found}
    return {
        **forms.coverage(sample.of("query"), {search.name: list(search.part.queries.values()) for search in found}),
        "nearest": forms.shift(reference, np.concatenate(list(cosines.values()))),
        "far_by_dataset": {name: forms.shift(reference, each)["far"] for name, each in cosines.items()},
    }
