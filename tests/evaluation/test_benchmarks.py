"""mteb's code on in-memory tasks of every type, with encoders that look vectors up: what it says is what we record."""

import json
import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from leaf.encoder import AsymmetricEncoder
from leaf.errors import Halt, LeafError
from leaf.evaluation import benchmarks
from leaf.evaluation.benchmarks import evaluate_benchmarks, tasks
from leaf.evaluation.datasets import ClassificationSet, ClusteringSet, PairSet, RetrievalSet, StsSet
from leaf.evaluation.evaluate import evaluate
from leaf.evaluation.records import MAIN_MEASURES, read, write
from leaf.evaluation.vectors import VectorCache
from leaf.models import HubUnreachable

mteb = pytest.importorskip("mteb")

import datasets as hf  # noqa: E402
from mteb.abstasks import (  # noqa: E402
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.aggregate_task_metadata import AggregateTaskMetadata  # noqa: E402
from mteb.abstasks.aggregated_task import AbsTaskAggregate  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.abstasks.text.summarization import AbsTaskSummarization  # noqa: E402
from mteb.types import PromptType  # noqa: E402

from leaf.evaluation.mteb_adapter import MtebEncoder, as_task, model_meta  # noqa: E402

DIM = 16
QUERIES = {f"q{i}": f"query {i}" for i in range(6)}
DOCUMENTS = {f"d{i:02}": f"document {i}" for i in range(30)}
SENTENCES = [f"sentence {i}" for i in range(40)]


def random_table(texts, seed):
    return dict(zip(texts, np.random.default_rng(seed).normal(size=(len(texts), DIM)).astype(np.float32), strict=True))


class Fake:
    """An encoder that looks vectors up by role and text, and counts the texts it is asked for."""

    def __init__(self, name, seed, similarity="cosine", queries_seed=None, identity=True):
        self.name, self.similarity, self.dim = name, similarity, DIM
        documents = [*DOCUMENTS.values(), *SENTENCES]
        self.tables = {
            "document": random_table(documents, seed),
            "query": random_table(QUERIES.values(), seed + 1 if queries_seed is None else queries_seed),
        }
        self.encoded = Counter()
        if identity:
            self.identity = lambda: {"fake": [name, seed, queries_seed]}

    def encode_query(self, texts, *, batch_size=32, advance=None):
        return self._encode("query", texts, advance)

    def encode_document(self, texts, *, batch_size=32, advance=None):
        return self._encode("document", texts, advance)

    def _encode(self, role, texts, advance):
        self.encoded[role] += len(texts)
        if advance:
            advance(len(texts))
        return np.array([self.tables[role][text] for text in texts], np.float32).reshape(-1, DIM)


def a_task(base, kind, main, data, name=None, **attributes):
    """A task of mteb whose data is a function's, as somebody else would write one."""
    metadata = TaskMetadata(
        name=name or f"My{kind}",
        description="",
        type=kind,
        main_score=main,
        eval_langs=attributes.pop("langs", ["eng-Latn"]),
        dataset={"path": "my/data", "revision": "1"},
    )

    def load_data(self, num_proc=None, **_):
        self.dataset, self.data_loaded = data(), True

    made = type("Made", (base,), {"metadata": metadata, "load_data": load_data, **attributes})
    return made()


def split(top_ranked=None, seed=7, queries=QUERIES):
    rng = np.random.default_rng(seed)
    qrels = {
        query: dict(zip(map(str, rng.choice(list(DOCUMENTS), 5, False)), [2, 1, 1, 0, 1], strict=True))
        for query in queries
    }
    return {
        "queries": hf.Dataset.from_dict({"id": list(queries), "text": list(queries.values())}),
        "corpus": hf.Dataset.from_dict({"id": list(DOCUMENTS), "text": list(DOCUMENTS.values())}),
        "relevant_docs": qrels,
        "top_ranked": top_ranked,
    }


def retrieval(name=None, seed=7, **more):
    return a_task(
        AbsTaskRetrieval, "Retrieval", "ndcg_at_10", lambda: {"default": {"test": split(seed=seed)}}, name, **more
    )


def reranking(main="map_at_1000"):
    candidates = {q: list(DOCUMENTS)[:12] for q in QUERIES}
    return a_task(AbsTaskRetrieval, "Reranking", main, lambda: {"default": {"test": split(candidates)}})


def table(**columns):
    return hf.DatasetDict({"test": hf.Dataset.from_dict(columns)})


def sts(gold=None):
    gold = np.random.default_rng(3).uniform(0, 5, 20).tolist() if gold is None else gold
    data = {"sentence1": SENTENCES[:20], "sentence2": SENTENCES[20:], "score": gold}
    return a_task(AbsTaskSTS, "STS", "cosine_spearman", lambda: table(**data))


def pair_classification():
    data = {"sentence1": SENTENCES[:20], "sentence2": SENTENCES[20:], "labels": [0, 1, 1, 0] * 5}
    return a_task(AbsTaskPairClassification, "PairClassification", "max_ap", lambda: table(**data))


def classification():
    def data():
        rows = {"train": SENTENCES[:24], "test": SENTENCES[24:]}
        return hf.DatasetDict(
            {
                key: hf.Dataset.from_dict({"text": texts, "label": [i % 3 for i in range(len(texts))]})
                for key, texts in rows.items()
            }
        )

    return a_task(AbsTaskClassification, "Classification", "accuracy", data)


def clustering():
    return a_task(
        AbsTaskClustering,
        "Clustering",
        "v_measure",
        lambda: table(sentences=SENTENCES, labels=[i % 4 for i in range(40)]),
        max_fraction_of_documents_to_embed=None,
        max_document_to_embed=30,
        max_documents_per_cluster=60,
    )


def summarization():
    data = {
        "text": ["a", "b"],
        "human_summaries": [SENTENCES[:2], SENTENCES[2:4]],
        "machine_summaries": [SENTENCES[4:9], SENTENCES[9:14]],
        "relevance": [[1.0, 5.0, 2.0, 4.0, 3.0], [2.0, 1.0, 3.0, 3.5, 5.0]],
    }
    return a_task(
        AbsTaskSummarization, "Summarization", "cosine_spearman", lambda: table(**data), min_score=0, max_score=5
    )


EVERY_TYPE = (retrieval, reranking, sts, classification, clustering, pair_classification, summarization)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A teacher and a student on a task of every type."""
    teacher, student = Fake("teacher", 1), Fake("whatever", 2)
    folder = tmp_path_factory.mktemp("scores")
    outcome = evaluate_benchmarks(
        teacher, {"student": student}, [make() for make in EVERY_TYPE], cache=VectorCache(), folder=folder
    )
    assert outcome.not_measured == {}
    return teacher, student, folder, outcome.scores


def by(scores, **wanted):
    [score] = [each for each in scores if all(getattr(each, key) == value for key, value in wanted.items())]
    return score


# Names


def test_benchmarks_stand_for_the_tasks_of_the_paper(capsys):
    beir = [task.metadata.name for task in tasks(["BEIR"])]
    # Table 2's 14 columns.
    assert set(beir) == {
        *("TRECCOVID", "NFCorpus", "NQ", "HotpotQA", "FiQA2018", "ArguAna", "Touche2020", "CQADupstackRetrieval"),
        *("QuoraRetrieval", "DBPedia", "SCIDOCS", "FEVER", "ClimateFEVER", "SciFact"),
    }
    assert len(beir) == 14
    assert "BEIR: without MSMARCO" in capsys.readouterr().err
    nano = [task.metadata.name for task in tasks(["NanoBEIR"])]
    assert len(nano) == 12
    assert "NanoMSMARCORetrieval" not in nano
    # Appendix E: "the 41 individual datasets".
    assert len(tasks(["MTEB(eng, v2)"])) == 41
    assert tasks(["MSMARCO", "BEIR"])[0].metadata.name == "MSMARCO"


def test_names_may_differ_in_case_and_stand_for_a_task_once():
    assert tasks(["scifact", "beir", "SciFact"])[0].metadata.name == "SciFact"
    assert len(tasks(["scifact", "beir", "SciFact"])) == 14
    assert len(tasks(["mteb(ENG, V2)"])) == len(tasks(["MTEB(eng)"])) == 41


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SciFacts", "no benchmark or task 'SciFacts'; did you mean SciFact or"),
        ("NanoBIER", "did you mean NanoBEIR"),
        ("xyzzy", "no benchmark or task 'xyzzy'$"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, message):
    with pytest.raises(LeafError, match=message):
        tasks([name])


def test_one_task_with_two_choices_of_languages_is_refused():
    with pytest.raises(LeafError, match=r"STS17 is asked for twice, with the subsets en-en and with"):
        tasks(["MTEB(eng, v2)", "STS17"])


def test_the_tasks_of_a_benchmark_are_copies():
    [ours] = [task for task in tasks(["BEIR"]) if task.metadata.name == "SciFact"]
    ours.data_loaded = True
    assert not any(task.data_loaded for task in mteb.get_benchmark("BEIR").tasks)


# Scores


def test_every_type_of_task_is_recorded_for_every_system(measured, tmp_path):
    _, _, _, scores = measured
    modes = {("teacher", "teacher"), ("student", "standard"), ("student", "asymmetric")}
    for task, measure in MAIN_MEASURES.items():
        assert {(s.encoder, s.mode) for s in scores if (s.task, s.measure) == (task, measure)} == modes
    assert {s.dataset for s in scores if s.measure == "recall@100"} == {"MyRetrieval"}
    assert len(scores) == 3 * (7 + 1)
    write(scores, tmp_path)
    assert {s.filename: s for s in read(tmp_path)} == {s.filename: s for s in scores}


def test_modes_differ_where_a_task_has_two_sides_and_nowhere_else(measured):
    _, _, _, scores = measured
    for task, measure in MAIN_MEASURES.items():
        standard = by(scores, task=task, measure=measure, mode="standard")
        asymmetric = by(scores, task=task, measure=measure, mode="asymmetric")
        assert (standard.queries, standard.documents) == ("student", "student")
        if task in ("retrieval", "reranking"):
            assert standard.value != asymmetric.value
            assert (asymmetric.queries, asymmetric.documents) == ("student", "teacher")
        else:
            assert standard.value == asymmetric.value
            assert (asymmetric.queries, asymmetric.documents) == ("student", "student")


def test_retrieval_equals_pytrec_eval_on_cosines_of_all_pairs(measured):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    teacher, student, _, scores = measured
    qrels = split()["relevant_docs"]

    def unit(encoder, role, texts):
        vectors = np.array([encoder.tables[role][text] for text in texts])
        return vectors / np.linalg.norm(vectors, axis=1)[:, None]

    for mode, one, other in (
        ("teacher", teacher, teacher),
        ("standard", student, student),
        ("asymmetric", student, teacher),
    ):
        cosines = unit(one, "query", QUERIES.values()) @ unit(other, "document", DOCUMENTS.values()).T
        run = {q: dict(zip(DOCUMENTS, map(float, row), strict=True)) for q, row in zip(QUERIES, cosines, strict=True)}
        expected = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.100"}).evaluate(run)
        found = by(scores, mode=mode, measure="ndcg@10")
        assert found.per_query == pytest.approx({q: e["ndcg_cut_10"] for q, e in expected.items()}, abs=1e-6)
        assert found.value == pytest.approx(np.mean(list(found.per_query.values())), abs=1e-12)
        assert found.num_queries == 6
        run = {q: {d: hits[d] for d in list(DOCUMENTS)[:12]} for q, hits in run.items()}
        expected = pytrec_eval.RelevanceEvaluator(qrels, {"map_cut.1000"}).evaluate(run)
        found = by(scores, mode=mode, task="reranking")
        assert found.per_query == pytest.approx({q: e["map_cut_1000"] for q, e in expected.items()}, abs=1e-6)


def test_values_are_mtebs_main_scores(measured):
    _, _, folder, scores = measured
    files = list((folder / "mteb").rglob("My*.json"))
    assert len(files) == 3 * 7
    for file in files:
        result = mteb.results.TaskResult.from_disk(file)
        mode = "asymmetric" if "-asym-" in str(file) else "standard" if "student" in str(file) else "teacher"
        found = [s for s in scores if (s.dataset, s.mode) == (result.task_name, mode) and s.measure != "recall@100"]
        assert [s.value for s in found] == [pytest.approx(result.get_score(), abs=6e-6)]
    recalls = json.loads(next((folder / "mteb").rglob("*teacher/*/MyRetrieval.json")).read_text())
    assert by(scores, mode="teacher", measure="recall@100").value == pytest.approx(
        recalls["scores"]["test"][0]["recall_at_100"], abs=6e-6
    )


def test_every_value_comes_with_what_it_was_computed_from(measured):
    from scipy.stats import spearmanr
    from sklearn.metrics import average_precision_score

    _, _, _, scores = measured
    for score in scores:
        if score.task == "sts":
            assert score.value == pytest.approx(spearmanr(*zip(*score.pairs, strict=True)).statistic)
            assert score.num_queries == len(score.pairs) == 20
        elif score.task == "pair_classification":
            similarity, label = zip(*score.pairs, strict=True)
            assert score.value == pytest.approx(average_precision_score(label, similarity))
            assert len(score.pairs) == 20
        else:
            assert score.value == pytest.approx(np.mean(list(score.per_query.values())), abs=6e-6)
    # Ten samples of 30 of the 40 texts; 16 test texts; two texts with summaries.
    assert (by(scores, mode="teacher", task="clustering").num_queries, 10) == (30, 10)
    assert len(by(scores, mode="teacher", task="clustering").per_query) == 10
    assert len(by(scores, mode="teacher", task="classification").per_query) == 16
    assert by(scores, mode="teacher", task="summarization").num_queries == 2


def test_records_say_where_a_number_comes_from(measured):
    _, _, _, scores = measured
    for score in scores:
        assert score.notes[0].startswith(f"mteb {mteb.__version__}, data: my/data at 1")
        assert score.provenance["versions"]["mteb"] == mteb.__version__
        assert score.compute_dtype == ("float32")
    assert len({s.dataset_digest for s in scores}) == 7  # one a task, whichever the encoder
    assert "max_ap" in by(scores, task="pair_classification", mode="teacher").notes[-1]


def test_the_digest_tells_texts_apart(measured):
    other = dict(QUERIES, q0="query 1", q1="query 0")
    task = a_task(AbsTaskRetrieval, "Retrieval", "ndcg_at_10", lambda: {"default": {"test": split(queries=other)}})
    [score, _] = evaluate_benchmarks(Fake("teacher", 1), {}, [task]).scores
    assert score.dataset_digest != by(measured[3], mode="teacher", measure="ndcg@10").dataset_digest


def test_dot_products_are_compared_as_such():
    # Query i is document i, and document 0 is long: it wins all dot products above zero, and no cosine but its own.
    for similarity, expected in (("cosine", 1.0), ("dot", (1 + 5 / math.log2(3)) / 6)):
        encoder = Fake("e", 1, similarity)
        eye = np.eye(DIM, dtype=np.float32)
        encoder.tables["query"] = {text: eye[i] + 0.1 for i, text in enumerate(QUERIES.values())}
        encoder.tables["document"] |= {text: eye[min(i, 15)] for i, text in enumerate(DOCUMENTS.values())}
        encoder.tables["document"]["document 0"] = 1000 * eye[0]
        data = split()
        data["relevant_docs"] = {f"q{i}": {f"d{i:02}": 1} for i in range(6)}
        task = a_task(AbsTaskRetrieval, "Retrieval", "ndcg_at_10", lambda data=data: {"default": {"test": data}})
        assert evaluate_benchmarks(encoder, {}, [task]).scores[0].value == pytest.approx(expected)


def test_the_query_itself_is_no_hit_where_mteb_says_so():
    data = split()
    data["queries"] = hf.Dataset.from_dict({"id": ["d03"], "text": ["query 1"]})
    data["relevant_docs"] = {"d03": {"d04": 1}}
    encoder = Fake("e", 1)
    eye = np.eye(DIM, dtype=np.float32)
    encoder.tables["document"] |= {text: eye[min(i, 15)] for i, text in enumerate(DOCUMENTS.values())}
    encoder.tables["query"]["query 1"] = 2 * eye[3] + eye[4]
    values = []
    for ignore in (False, True):
        task = a_task(
            AbsTaskRetrieval,
            "Retrieval",
            "ndcg_at_10",
            lambda: {"default": {"test": dict(data)}},
            ignore_identical_ids=ignore,
        )
        values.append(evaluate_benchmarks(encoder, {}, [task]).scores[0].value)
    assert values == pytest.approx([1 / math.log2(3), 1.0])


def test_subqueries_count_as_one_query_in_mind():
    task = mteb.get_task("MindSmallReranking")
    queries = {"a_0": "query 0", "a_1": "query 1", "b_0": "query 2"}
    candidates = {q: ["d00", "d01", "d02", "d03"] for q in queries}
    data = split(candidates, queries=queries)
    data["relevant_docs"] = {"a_0": {"d00": 1, "d01": 0}, "a_1": {"d00": 1, "d01": 0}, "b_0": {"d02": 1, "d03": 1}}
    task.dataset, task.data_loaded = {"default": {"test": data}}, True
    encoder = Fake("e", 1)
    eye = np.eye(DIM, dtype=np.float32)
    encoder.tables["document"] |= {f"document {i}": eye[i] for i in range(4)}
    # a_0 puts d00 last and a_1 puts it first, with the higher cosine of the two: first of all. b_0 finds d02 first and
    # d03 last of four: average precision (1/1 + 2/4) / 2.
    encoder.tables["query"] = {
        "query 0": np.array([0, 0.5, 0.5, 0.6] + [0.7] * 12, np.float32),
        "query 1": np.array([1, 0.1, 0, 0] + [0] * 12, np.float32),
        "query 2": np.array([0.5, 0.4, 0.9, 0.1] + [0] * 12, np.float32),
    }
    [score] = evaluate_benchmarks(encoder, {}, [task]).scores
    assert (score.task, score.measure) == ("reranking", "map@1000")
    assert score.per_query == {"a": 1.0, "b": 0.75}
    assert score.value == 0.875


def test_several_subsets_are_mtebs_mean_over_them():
    task = a_task(
        AbsTaskRetrieval,
        "Retrieval",
        "ndcg_at_10",
        lambda: {key: {"test": split(seed=i)} for i, key in enumerate(("one", "two"))},
        langs={"one": ["eng-Latn"], "two": ["deu-Latn"]},
    )
    encoder = Fake("e", 1)
    [both, _] = evaluate_benchmarks(encoder, {}, [task]).scores
    single = [evaluate_benchmarks(encoder, {}, [retrieval(seed=i)]).scores[0].value for i in (0, 1)]
    assert both.value == pytest.approx(np.mean(single))
    assert both.per_query == pytest.approx({"test/one": single[0], "test/two": single[1]})
    assert both.num_queries == 2
    assert "mean over 2" in both.notes[1]


def an_aggregate(parts):
    class Aggregate(AbsTaskAggregate):
        metadata = AggregateTaskMetadata(
            name="Forums", description="", tasks=parts, main_score="ndcg_at_10", type="Retrieval", eval_splits=["test"]
        )

    return Aggregate()


def test_an_aggregate_is_the_mean_over_its_parts(tmp_path):
    parts = [retrieval("ForumA", 1), retrieval("ForumB", 2)]
    encoder = Fake("e", 1)
    scores = evaluate_benchmarks(encoder, {"s": Fake("s", 5)}, [an_aggregate(parts)], folder=tmp_path).scores
    found = by(scores, mode="teacher", measure="ndcg@10")
    single = [evaluate_benchmarks(encoder, {}, [part]).scores[0].value for part in parts]
    assert found.per_query == {"ForumA": single[0], "ForumB": single[1]}
    assert found.value == pytest.approx(np.mean(single), abs=1e-9)
    assert (found.dataset, len(scores)) == ("Forums", 6)
    write(scores, tmp_path)
    assert len(read(tmp_path)) == 6
    names = {path.stem for path in (tmp_path / "mteb").rglob("*.json")}
    assert names == {"Forums", "ForumA", "ForumB", "model_meta"}


def test_every_system_sees_the_same_draws():
    twins = {"a": Fake("a", 1), "b": Fake("b", 1)}
    scores = evaluate_benchmarks(Fake("teacher", 1), twins, [clustering(), classification()]).scores
    for name in ("MyClustering", "MyClassification"):
        assert len({s.value for s in scores if s.dataset == name}) == 1
    again = evaluate_benchmarks(Fake("teacher", 1), {}, [clustering()]).scores[0]
    assert again.per_query == by(scores, dataset="MyClustering", mode="teacher").per_query


# Encoding


def test_the_teachers_documents_are_encoded_once_for_all_students():
    teacher, students = Fake("teacher", 1), {name: Fake(name, seed) for name, seed in (("a", 5), ("b", 9))}
    evaluate_benchmarks(teacher, students, [retrieval()])
    for encoder in (teacher, *students.values()):
        assert encoder.encoded == {"query": 6, "document": 30}


def test_the_next_run_finds_vectors_on_disk(tmp_path):
    first = Fake("teacher", 1)
    before = evaluate_benchmarks(first, {"s": Fake("s", 5)}, [retrieval(), sts()], cache=VectorCache(tmp_path))
    second, student = Fake("teacher", 1), Fake("s", 5)
    after = evaluate_benchmarks(second, {"s": student}, [retrieval(), sts()], cache=VectorCache(tmp_path))
    assert not second.encoded
    assert not student.encoded
    assert [s.value for s in after.scores] == [s.value for s in before.scores]


def test_a_corpus_of_many_parts_is_not_held_in_memory_and_scores_the_same(measured, tmp_path, monkeypatch):
    for module in ("vectors", "mteb_adapter"):
        monkeypatch.setattr(f"leaf.evaluation.{module}.PART_TEXTS", 8)  # 30 documents: four parts
    teacher, students = Fake("teacher", 1), {"student": Fake("whatever", 2), "other": Fake("other", 9)}
    cache, sizes = VectorCache(tmp_path), []
    forget = cache.forget
    monkeypatch.setattr(cache, "forget", lambda: (sizes.append(len(cache._vectors)), forget()))
    scores = evaluate_benchmarks(teacher, students, [retrieval()], cache=cache).scores
    for mode in ("teacher", "standard", "asymmetric"):
        [score] = [s for s in scores if (s.mode, s.measure) == (mode, "ndcg@10") and s.encoder != "other"]
        assert score.per_query == by(measured[3], mode=mode, measure="ndcg@10").per_query
    assert teacher.encoded == {"query": 6, "document": 30}
    assert max(sizes) == 3  # queries, one part of the corpus, and the short last one of the system before


def test_mteb_says_what_a_text_is_and_a_pair_who_encodes_it():
    student, teacher = Fake("s", 2), Fake("t", 1)
    pair = MtebEncoder(AsymmetricEncoder(student, teacher))
    batches = [{"text": ["document 1"]}]
    two_sides, one_side = retrieval().metadata, pair_classification().metadata
    place = {"hf_split": "test", "hf_subset": "default"}
    for metadata, prompt, expected in (
        (two_sides, PromptType.query, student.tables["query"]["query 1"]),
        (two_sides, PromptType.document, teacher.tables["document"]["document 1"]),
        (two_sides, None, student.tables["document"]["document 1"]),
        (one_side, PromptType.document, student.tables["document"]["document 1"]),
        (one_side, None, student.tables["document"]["document 1"]),
    ):
        texts = [{"text": ["query 1"]}] if prompt is PromptType.query else batches
        vectors = pair.encode(texts, task_metadata=metadata, prompt_type=prompt, **place)
        assert np.array_equal(vectors, expected[None])


def test_an_encoder_can_be_given_to_mteb_itself(measured):
    teacher, _, _, scores = measured
    assert isinstance(MtebEncoder(teacher), mteb.EncoderProtocol)
    [result] = mteb.evaluate(MtebEncoder(teacher), retrieval(), cache=None, show_progress_bar=False).task_results
    assert result.get_score() == pytest.approx(by(scores, mode="teacher", measure="ndcg@10").value, abs=6e-6)


def test_one_bar_counts_the_texts_of_both_sides(monkeypatch):
    from contextlib import contextmanager

    bars = []

    @contextmanager
    def recording(description, total, completed=0):
        bar = type("Bar", (), {"text": description, "total": total, "done": 0})()
        bar.advance = lambda count=1, note=None: setattr(bar, "done", bar.done + count)
        bars.append(bar)
        yield bar

    monkeypatch.setattr("leaf.evaluation.mteb_adapter.progress", recording)
    evaluate_benchmarks(Fake("t", 1), {"s": Fake("s", 2)}, [retrieval(), sts()], cache=VectorCache())
    assert [(bar.text, bar.total) for bar in bars[:3]] == [
        ("MyRetrieval: t", 36),
        ("MyRetrieval: s", 36),
        ("MyRetrieval: s | t", 36),
    ]
    assert all(bar.done == bar.total for bar in bars)


def test_nothing_of_mteb_is_printed(capfd):
    outcome = evaluate_benchmarks(Fake("t", 1), {"s": Fake("s", 2)}, [summarization(), retrieval(), clustering()])
    assert outcome.not_measured == {}
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    from tqdm.auto import tqdm

    assert not tqdm([]).disable  # and bars are as they were


# Files


def test_results_load_in_mteb_by_model_and_revision(measured):
    teacher, _, folder, _ = measured
    results = mteb.ResultCache(folder / "mteb").load_results(validate_and_filter=False)
    names = {result.model_name for result in results.model_results}
    assert names == {"leaf/teacher", "leaf/student", "leaf/student-asym-teacher"}
    [own] = [result for result in results.model_results if result.model_name == "leaf/teacher"]
    assert own.model_revision == model_meta(teacher).revision
    assert len(own.task_results) == 7


def test_other_weights_are_another_revision():
    one, same, other = model_meta(Fake("m", 1)), model_meta(Fake("m", 1)), model_meta(Fake("m", 2))
    assert one.revision == same.revision != other.revision
    assert (one.name, one.embed_dim, one.similarity_fn_name.value) == ("leaf/m", DIM, "cosine")
    assert model_meta(Fake("a model: x", 1)).name == "leaf/a_model_x"
    assert model_meta(AsymmetricEncoder(Fake("s", 1), Fake("t", 2))).name == "leaf/s-asym-t"
    pairs = {model_meta(AsymmetricEncoder(Fake("s", 1), Fake("t", seed))).revision for seed in (2, 3)}
    assert len(pairs) == 2
    assert model_meta(Fake("m", 1, identity=False)).revision == "unidentified"


# What cannot be measured


def test_a_hub_out_of_reach_costs_one_line_a_task_and_no_time(monkeypatch, capsys):
    import time

    import huggingface_hub.constants

    # As without HF_HUB_OFFLINE, where datasets would retry for 23 seconds a task.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hf.config, "HF_HUB_OFFLINE", False)
    asked = []

    def unreachable(name, repo_type, revision=None):
        asked.append(name)
        raise HubUnreachable("no answer")

    monkeypatch.setattr(benchmarks, "hub_revision", unreachable)
    started = time.monotonic()
    names = ["NanoSciFactRetrieval", "STS12", retrieval(), "CQADupstackRetrieval"]
    outcome = evaluate_benchmarks(Fake("t", 1), {}, names)
    assert time.monotonic() - started < 5
    path = mteb.get_task("NanoSciFactRetrieval").metadata.dataset["path"]
    assert asked == [path]  # once for all
    assert outcome.not_measured.keys() == {"NanoSciFactRetrieval", "STS12", "CQADupstackRetrieval"}
    assert {s.dataset for s in outcome.scores} == {"MyRetrieval"}
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3
    assert lines[0] == (
        f"not measured: NanoSciFactRetrieval: the hub cannot be reached and {path} is not in its local cache; connect, "
        "or name a mirror that holds a copy"
    )
    assert "CQADupstackRetrieval: CQADupstackAndroidRetrieval: the hub cannot be reached" in lines[2]
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(("error", "stops"), [(LeafError("too long"), False), (Halt("the money is gone"), True)])
def test_what_would_stop_the_next_task_too_is_no_matter_of_this_one(error, stops):
    class Failing(Fake):
        def encode_query(self, texts, **_):
            raise error

    if stops:
        with pytest.raises(Halt, match="the money is gone"):
            evaluate_benchmarks(Failing("t", 1), {}, [retrieval()])
    else:
        assert evaluate_benchmarks(Failing("t", 1), {}, [retrieval()]).not_measured == {"MyRetrieval": "too long"}


def test_a_data_set_that_the_hub_refuses_is_named_with_the_reason(monkeypatch):
    def load_data(self, num_proc=None, **_):
        raise OSError("401 Client Error: gated\nmore")

    task = sts()
    type(task).load_data = load_data
    monkeypatch.setattr(benchmarks, "hub_revision", lambda *_: "sha")
    outcome = evaluate_benchmarks(Fake("t", 1), {}, [task, retrieval()])
    assert outcome.not_measured == {"MySTS": "my/data cannot be loaded from the hub (401 Client Error: gated)"}
    assert len(outcome.scores) == 2


def test_what_has_no_score_is_not_recorded():
    encoder = Fake("flat", 1)
    encoder.tables["document"] = dict.fromkeys(encoder.tables["document"], np.ones(DIM, np.float32))
    broken = Fake("broken", 1)
    broken.tables["document"]["document 3"] = np.full(DIM, np.nan, np.float32)
    outcome = evaluate_benchmarks(encoder, {}, [sts(), "Tatoeba"])
    assert outcome.scores == []
    assert outcome.not_measured["MySTS"] == "mteb's cosine_spearman is not a number"
    assert "BitextMining of text is not scored here" in outcome.not_measured["Tatoeba"]
    outcome = evaluate_benchmarks(broken, {}, [retrieval(), sts()])
    assert "broken: NaN in vector 3 of documents of MyRetrieval" in outcome.not_measured["MyRetrieval"]
    assert [s.dataset for s in outcome.scores] == ["MySTS"]


def test_students_of_another_width_are_refused_before_encoding():
    teacher, narrow = Fake("t", 1), Fake("narrow", 1)
    narrow.dim = DIM - 1
    with pytest.raises(LeafError, match="they do not share a vector space"):
        evaluate_benchmarks(teacher, {"narrow": narrow}, [retrieval()])
    assert not teacher.encoded


def test_without_mteb_the_extra_is_named():
    code = (
        "import sys; sys.modules['mteb'] = sys.modules['mteb.abstasks'] = None\n"
        "from leaf.errors import LeafError\n"
        "import leaf.evaluation.benchmarks as b\n"
        "try: b.tasks(['BEIR'])\n"
        "except LeafError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'leaf[eval]'" in done.stdout


def test_importing_the_module_imports_neither_mteb_nor_torch():
    code = "import sys, leaf.evaluation.benchmarks; print({'torch', 'mteb', 'datasets'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Local sets


def local_sets():
    rng = np.random.default_rng(11)
    queries = {**QUERIES, "d05": "query 1"}  # one with the id of a document
    qrels = {
        query: dict(zip(map(str, rng.choice(list(DOCUMENTS), 4, False)), [1, 2, 0, 1], strict=True))
        for query in queries
    }
    pairs = tuple(zip(SENTENCES[:20], SENTENCES[20:], strict=True))
    return [
        RetrievalSet("retrieval", queries, DOCUMENTS, qrels),
        StsSet("sts", pairs, tuple(rng.uniform(0, 5, 20).tolist())),
        PairSet("pairs", pairs, tuple([0, 1, 1, 0] * 5)),
        ClassificationSet(
            "classification",
            tuple((text, "ab"[i % 2]) for i, text in enumerate(SENTENCES[:30])),
            tuple((text, "ab"[i % 2]) for i, text in enumerate(SENTENCES[30:])),
        ),
        ClusteringSet("clustering", tuple(SENTENCES), tuple("wxyz"[i % 4] for i in range(40))),
    ]


@pytest.mark.parametrize(
    ("dataset", "similarity"),
    [*((dataset, "cosine") for dataset in local_sets()), (local_sets()[0], "dot"), (local_sets()[1], "dot")],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_local_sets_score_in_mteb_as_they_do_here(dataset, similarity, tmp_path):
    teacher, student = Fake("t", 1, similarity), Fake("s", 2, similarity)
    outcome = evaluate_benchmarks(teacher, {"s": student}, local=[dataset], folder=tmp_path)
    assert outcome.not_measured == {}
    for mode, encoder in (
        ("teacher", teacher),
        ("standard", student),
        ("asymmetric", AsymmetricEncoder(student, teacher)),
    ):
        for native in evaluate(encoder, dataset, mode):
            found = by(outcome.scores, mode=mode, measure=native.measure)
            assert found.value == pytest.approx(native.value, abs=1e-6)
            assert found.per_query == pytest.approx(native.per_query, abs=1e-6)
            assert np.array(found.pairs) == pytest.approx(np.array(native.pairs), abs=1e-6)
            assert (found.task, found.num_queries, found.dataset_digest) == (
                native.task,
                native.num_queries,
                native.dataset_digest,
            )
    assert len(list((tmp_path / "mteb").rglob(f"{dataset.name}.json"))) == 3


def test_a_local_task_can_be_loaded_again():
    task = as_task(local_sets()[1])
    for _ in range(2):
        task.load_data()
        assert len(task.dataset["test"]) == 20
        task.unload_data()
        assert task.metadata.name == "sts"


def test_a_local_set_named_like_a_task_is_refused():
    with pytest.raises(LeafError, match="two tasks are called 'STS12'"):
        evaluate_benchmarks(Fake("t", 1), {}, ["STS12"], local=[StsSet("STS12", (("a", "b"),), (1.0,))])
