"""Our scores of local sets are mteb's: each task type run through mteb itself, on the same vectors.

The encoder given to mteb looks vectors up in a table, so that both sides score the same numbers. Vectors lie near their
label's centre, hence scores lie well inside 0 and 1, where a difference shows.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset as Table
from datasets import DatasetDict
from mteb.abstasks import (
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.model_meta import ModelMeta
from mteb.similarity_functions import cos_sim, pairwise_cos_sim

from leaf.encoder import normalised
from leaf.evaluation import datasets
from leaf.evaluation.classification import accuracies, right
from leaf.evaluation.clustering import v_measures
from leaf.evaluation.datasets import (
    SEED,
    ClassificationSet,
    ClusteringSet,
    Dataset,
    PairSet,
    RetrievalSet,
    StsSet,
    load,
)
from leaf.evaluation.measures import mean, ndcg, recall, spearman
from leaf.evaluation.pairs import average_precision, cosines
from leaf.evaluation.retrieval import retrieve

EVAL = Path(__file__).parents[3] / "shared" / "data" / "eval"


class TableEncoder:
    """What mteb asks of an encoder, with every vector known beforehand."""

    mteb_model_meta = ModelMeta.create_empty({"name": "tests/table", "revision": "1"})

    def __init__(self, vectors: Mapping[str, np.ndarray]) -> None:
        self.vectors = vectors
        self.num_encoded = 0

    def encode(self, inputs, **_):
        texts = [text for batch in inputs for text in batch["text"]]
        self.num_encoded += len(texts)
        return np.stack([self.vectors[text] for text in texts])

    def similarity(self, first, second):
        return cos_sim(first, second)

    def similarity_pairwise(self, first, second):
        return pairwise_cos_sim(first, second)


def metadata(kind: str, main_score: str) -> TaskMetadata:
    return TaskMetadata(
        name=f"Tiny{kind}",
        description="made up",
        dataset={"path": "none/none", "revision": "1"},
        type=kind,
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=main_score,
    )


class Classification(AbsTaskClassification):
    metadata = metadata("Classification", "accuracy")


class Clustering(AbsTaskClustering):
    metadata = metadata("Clustering", "v_measure")
    max_fraction_of_documents_to_embed = None


class Pairs(AbsTaskPairClassification):
    metadata = metadata("PairClassification", "max_ap")


class Sts(AbsTaskSTS):
    metadata = metadata("STS", "cosine_spearman")


class Retrieval(AbsTaskRetrieval):
    metadata = metadata("Retrieval", "ndcg_at_10")


def mteb_task(dataset: Dataset):
    """The dataset as a task of mteb."""
    match dataset:
        case ClassificationSet():
            names = sorted({label for _, label in dataset.train})
            task = Classification(seed=SEED)
            task.dataset = DatasetDict(
                {
                    split: Table.from_dict(
                        {"text": [text for text, _ in rows], "label": [names.index(label) for _, label in rows]}
                    )
                    for split, rows in (("train", dataset.train), ("test", dataset.test))
                }
            )
        case ClusteringSet():
            task = Clustering(seed=SEED)
            task.max_document_to_embed = datasets.MAX_CLUSTERED_TEXTS
            columns = {"sentences": dataset.texts, "labels": dataset.labels}
            task.dataset = DatasetDict({"test": Table.from_dict(columns)})
        case PairSet():
            task = Pairs(seed=SEED)
            first, second = zip(*dataset.pairs, strict=True)
            columns = {"sentence1": first, "sentence2": second, "labels": dataset.labels}
            task.dataset = DatasetDict({"test": Table.from_dict(columns)})
        case StsSet():
            task = Sts(seed=SEED)
            first, second = zip(*dataset.pairs, strict=True)
            columns = {"sentence1": first, "sentence2": second, "score": dataset.scores}
            task.dataset = DatasetDict({"test": Table.from_dict(columns)})
        case RetrievalSet():
            task = Retrieval(seed=SEED)
            tables = {
                name: Table.from_list([{"id": key, "text": text} for key, text in texts.items()])
                for name, texts in (("corpus", dataset.documents), ("queries", dataset.queries))
            }
            qrels = {query: {key: int(score) for key, score in all.items()} for query, all in dataset.qrels.items()}
            task.dataset = {"default": {"test": {**tables, "relevant_docs": qrels, "top_ranked": None}}}
    task.data_loaded = True
    return task


def both(dataset: Dataset, vectors: Mapping[str, np.ndarray]) -> SimpleNamespace:
    """mteb's scores of a dataset, our vectors of its sides, and how many texts either encoded."""
    encoder = TableEncoder(vectors)
    scores = mteb_task(dataset).evaluate(encoder, split="test", encode_kwargs={"show_progress_bar": False})
    sides = {side: np.stack([vectors[text] for text in texts]) for side, texts in dataset.sides.items()}
    return SimpleNamespace(
        mteb=scores["default"], sides=sides, encoded=(encoder.num_encoded, sum(map(len, sides.values())))
    )


def near_centres(rows: Iterable[tuple[str, str]], spread: float, dim: int = 24) -> dict[str, np.ndarray]:
    """Text → vector float32 `[dim]` at a distance from the centre of its label."""
    rng = np.random.default_rng(0)
    centres: dict[str, np.ndarray] = {}
    table = {}
    for text, label in rows:
        centre = centres.setdefault(label, rng.standard_normal(dim))
        table.setdefault(text, (centre + spread * rng.standard_normal(dim)).astype(np.float32))
    return table


def labelled(num: int, num_labels: int, prefix: str) -> tuple[tuple[str, str], ...]:
    # Labels in an order that is neither that of their names nor that of the numbers in them.
    return tuple((f"{prefix} {row}", f"label {(row * 7) % num_labels}") for row in range(num))


def check_classification(dataset: ClassificationSet, vectors: Mapping[str, np.ndarray]) -> float:
    found = both(dataset, vectors)
    ours = accuracies(dataset, found.sides["train"], found.sides["texts"])
    each = right(dataset, found.sides["train"], found.sides["texts"]).mean(axis=1)
    assert list(ours) == [str(row) for row in range(len(dataset.test))]
    assert mean(list(ours.values())) == pytest.approx(found.mteb["accuracy"], abs=1e-9)
    assert each.tolist() == pytest.approx([one["accuracy"] for one in found.mteb["scores_per_experiment"]], abs=1e-9)
    assert found.encoded[0] == found.encoded[1], "mteb encodes no more and no less than our sides"
    return found.mteb["accuracy"]


def check_clustering(dataset: ClusteringSet, vectors: Mapping[str, np.ndarray]) -> float:
    found = both(dataset, vectors)
    ours = v_measures(dataset, found.sides["texts"])
    assert ours == pytest.approx(found.mteb["v_measures"]["Level 0"], abs=1e-9)
    assert mean(ours) == pytest.approx(found.mteb["v_measure"], abs=1e-9)
    assert found.encoded[0] == found.encoded[1]
    return found.mteb["v_measure"]


def check_pairs(dataset: PairSet, vectors: Mapping[str, np.ndarray]) -> float:
    found = both(dataset, vectors)
    ours = average_precision(cosines(found.sides["sentences"]), dataset.labels)
    assert ours == pytest.approx(found.mteb["cosine_ap"], abs=1e-9)
    assert found.mteb["max_ap"] >= ours
    return ours


@pytest.mark.parametrize("num_labels", [2, 3, 17])
def test_accuracy(num_labels):
    # One label has fewer training texts than a classifier takes, and the last training text is there twice.
    train = labelled(30 * num_labels, num_labels, "train")
    train = (*(row for at, row in enumerate(train) if row[1] != "label 1" or at < 5 * num_labels), train[-1])
    dataset = ClassificationSet("tiny", train, labelled(300, num_labels, "test"))
    score = check_classification(dataset, near_centres((*dataset.train, *dataset.test), spread=2.5))
    assert 1 / num_labels + 0.1 < score < 0.98


@pytest.mark.parametrize("num_texts", [299, 500])
def test_v_measure(num_texts, monkeypatch):
    monkeypatch.setattr(datasets, "MAX_CLUSTERED_TEXTS", 300)
    texts, labels = zip(*labelled(num_texts, 9, "text"), strict=True)
    dataset = ClusteringSet("tiny", texts, labels)
    assert 0.1 < check_clustering(dataset, near_centres(zip(texts, labels, strict=True), spread=1.3)) < 0.98


def test_average_precision_of_the_cosine():
    rng = np.random.default_rng(1)
    pairs = tuple((f"a {row}", f"b {row % 150}") for row in range(200))
    labels = tuple(rng.integers(0, 2, 200).tolist())
    # Same texts, which tie, and vectors of other lengths than 1: the cosine does not mind.
    pairs, labels = (*pairs, ("a 0", "a 0"), ("b 1", "b 1"), ("b 2", "b 2")), (*labels, 1, 0, 1)
    texts = [text for pair in pairs for text in pair]
    vectors = near_centres(zip(texts, texts, strict=True), spread=1.0)
    for (first, second), label in zip(pairs, labels, strict=True):
        if label and first != second:
            vectors[first] = (vectors[second] + vectors[first]).astype(np.float32) * 3
    dataset = PairSet("tiny", pairs, labels)
    assert sum(labels) / len(labels) + 0.1 < check_pairs(dataset, vectors) < 0.98


def test_spearman_of_the_cosine():
    rng = np.random.default_rng(2)
    dataset = StsSet("tiny", tuple((f"a {row}", f"b {row}") for row in range(150)), tuple(rng.uniform(0, 5, 150)))
    vectors = {f"b {row}": rng.standard_normal(16).astype(np.float32) for row in range(150)}
    for row, score in enumerate(dataset.scores):
        vectors[f"a {row}"] = (score * vectors[f"b {row}"] + 3 * rng.standard_normal(16)).astype(np.float32)
    found = both(dataset, vectors)
    first, second = np.split(normalised(found.sides["sentences"]), 2)
    ours = spearman(np.einsum("nd,nd->n", first, second), dataset.scores)
    assert 0.3 < ours < 0.95
    assert ours == pytest.approx(found.mteb["cosine_spearman"], abs=1e-6)


def test_ndcg_and_recall():
    rng = np.random.default_rng(3)
    documents = {f"d{number}": f"document {number}" for number in range(600)}
    queries = {f"q{number}": f"query {number}" for number in range(40)}
    judged = rng.permutation(600)[: 40 * 6].reshape(40, 6).tolist()
    # Graded, and with judged documents that are not relevant.
    grades = (2, 1, 1, 1, 0, 0)
    qrels = {f"q{q}": {f"d{d}": float(g) for d, g in zip(all, grades, strict=True)} for q, all in enumerate(judged)}
    vectors = {text: rng.standard_normal(24).astype(np.float32) for text in documents.values()}
    for number, all in enumerate(judged):
        near = sum(vectors[f"document {d}"] for d in all[:4])
        vectors[f"query {number}"] = (near + 4 * rng.standard_normal(24)).astype(np.float32)
    dataset = RetrievalSet("tiny", queries, documents, qrels)
    found = both(dataset, vectors)
    run = retrieve(
        list(queries), list(documents), found.sides["queries"], found.sides["documents"], similarity="cosine"
    )
    for name, ours in (("ndcg_at_10", ndcg(qrels, run, 10)), ("recall_at_100", recall(qrels, run, 100))):
        score = mean(list(ours.values()))
        assert 0.1 < score < 0.98
        # mteb rounds its scores of retrieval to five digits.
        assert round(score, 5) == pytest.approx(found.mteb[name], abs=1e-9)


@pytest.mark.slow
@pytest.mark.skipif(not EVAL.is_dir(), reason="the shared evaluation sets are not here")
@pytest.mark.parametrize(
    ("name", "spread"),
    [
        ("classification/banking77", 3.0),
        ("classification/sst2", 3.0),
        ("clustering/twenty_newsgroups_subjects", 1.2),
        ("pair_classification/msrp", 1.0),
    ],
)
def test_real_sets(name, spread):
    dataset = load(EVAL / name)
    match dataset:
        case ClassificationSet():
            # A part, since mteb reads labels one by one, those of train 10 times and those of test 400 times.
            part = replace(dataset, train=dataset.train[::4], test=dataset.test[::20])
            check_classification(part, near_centres((*part.train, *part.test), spread, dim=48))
        case ClusteringSet():
            check_clustering(dataset, near_centres(zip(dataset.texts, dataset.labels, strict=True), spread))
        case PairSet():
            texts = [text for pair in dataset.pairs for text in pair]
            check_pairs(dataset, near_centres(zip(texts, texts, strict=True), spread))
