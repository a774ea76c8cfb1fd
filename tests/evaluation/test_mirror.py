"""Real tasks of mteb with small data in the layouts that people have: what is scored is what lies in the folder."""

import gzip
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leaf.errors import LeafError
from leaf.evaluation import datasets, mirror
from leaf.evaluation.benchmarks import evaluate_benchmarks
from leaf.evaluation.evaluate import evaluate

mteb = pytest.importorskip("mteb")

DOCUMENTS = {"d1": ("Cats", "purr  "), "d2": ("", "dogs bark"), "d3": ("Fish", ""), "0004": (" Birds", "sing")}
QUERIES = {"1": "who purrs", "q2": " who barks", "q3": "not judged"}
QRELS = {"1": {"d1": 1, "d2": 0}, "q2": {"d2": 2, "0004": 1}}
#: As the hub's README of `mteb/scifact` names them.
RETRIEVAL_README = """---
configs:
- config_name: default
  data_files:
  - split: test
    path: qrels/test.jsonl
- config_name: corpus
  data_files:
  - split: corpus
    path: corpus.jsonl
- config_name: queries
  data_files:
  - split: queries
    path: queries.jsonl
---
# SciFact
"""


class Spelling:
    """An encoder whose vectors are letter counts; it remembers every text it was asked for, by role."""

    name, dim, similarity = "spelling", 26, "cosine"

    def __init__(self):
        self.seen = {"query": [], "document": []}

    def encode_query(self, texts, *, batch_size=32, advance=None):
        return self._encode("query", texts)

    def encode_document(self, texts, *, batch_size=32, advance=None):
        return self._encode("document", texts)

    def _encode(self, role, texts):
        self.seen[role] += texts
        counts = [Counter(text.lower()) for text in texts]
        return np.array([[each[letter] for letter in "abcdefghijklmnopqrstuvwxyz"] for each in counts], np.float32)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """datasets maps the files it reads into a cache: one of this test's own."""
    import datasets as hf

    monkeypatch.setattr(hf.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


CORPUS_ROWS = [{"_id": key, "title": title, "text": text} for key, (title, text) in DOCUMENTS.items()]
QUERY_ROWS = [{"_id": key, "text": text} for key, text in QUERIES.items()]
QREL_ROWS = [
    {"query-id": query, "corpus-id": document, "score": score}
    for query, judged in QRELS.items()
    for document, score in judged.items()
]


def beir(folder, suffix="", split="test"):
    jsonl(folder / f"corpus.jsonl{suffix}", CORPUS_ROWS)
    jsonl(folder / f"queries.jsonl{suffix}", QUERY_ROWS)
    (folder / "qrels").mkdir()
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row.values())) for row in QREL_ROWS)]
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")


def snapshot(folder, suffix="", split="test"):
    jsonl(folder / "corpus.jsonl", CORPUS_ROWS)
    jsonl(folder / "queries.jsonl", QUERY_ROWS)
    jsonl(folder / "qrels" / "test.jsonl", QREL_ROWS)
    (folder / "README.md").write_text(RETRIEVAL_README)


def configs_as_folders(folder, suffix="", split="test"):
    parquet(folder / "corpus" / f"{split}-00000-of-00001.parquet", CORPUS_ROWS)
    parquet(folder / "queries" / f"{split}-00000-of-00001.parquet", QUERY_ROWS)
    parquet(folder / "qrels" / f"{split}-00000-of-00001.parquet", QREL_ROWS)


def jsonl_folders(folder, suffix="", split="test"):
    jsonl(folder / "corpus" / "corpus.jsonl.gz", CORPUS_ROWS)
    jsonl(folder / "queries" / "queries.jsonl", QUERY_ROWS)
    jsonl(folder / "default" / f"{split}.jsonl", QREL_ROWS)
    jsonl(folder / "default" / "dev.jsonl", QREL_ROWS[:1])


def measured(root, *names, encoder=None):
    return evaluate_benchmarks(encoder or Spelling(), {}, names, mirror=root)


@pytest.mark.parametrize("layout", [beir, snapshot, configs_as_folders, jsonl_folders])
def test_every_layout_is_scored_as_our_own_loader_does(layout, tmp_path):
    layout(tmp_path / "mirror" / "SciFact")
    beir(tmp_path / "native")
    jsonl(tmp_path / "native" / "corpus.jsonl", CORPUS_ROWS)
    encoder, own = Spelling(), Spelling()
    outcome = measured(tmp_path / "mirror", "SciFact", encoder=encoder)
    assert outcome.not_measured == {}
    expected = evaluate(own, datasets.load(tmp_path / "native"), "teacher")
    assert [(s.measure, s.value) for s in outcome.scores] == [(s.measure, pytest.approx(s.value)) for s in expected]
    assert outcome.scores[0].per_query.keys() == {"1", "q2"}
    # Both join title and text alike; mteb leaves the space before a query.
    assert encoder.seen["document"] == own.seen["document"] == ["Cats purr", "dogs bark", "Fish", "Birds sing"]
    assert encoder.seen["query"] == ["who purrs", " who barks"]
    assert f"a copy in {tmp_path / 'mirror' / 'SciFact'}" in outcome.scores[0].notes[0]


@pytest.mark.parametrize(
    "place", ["{task}", "{owner}__{name}", "{owner}/{name}", "datasets--{owner}--{name}/snapshots/{revision}"]
)
@pytest.mark.parametrize("layout", [beir, configs_as_folders])
def test_a_task_is_found_by_its_name_and_by_that_of_its_data(place, layout, tmp_path):
    data = mteb.get_task("NanoSciFactRetrieval").metadata.dataset
    owner, name = data["path"].split("/")
    place = place.format(task="NanoSciFactRetrieval", owner=owner, name=name, revision=data["revision"])
    # NanoBEIR's only split is called train; BEIR's folders name it test.
    layout(tmp_path / place, split="train" if layout is configs_as_folders else "test")
    outcome = measured(tmp_path, "NanoSciFactRetrieval")
    assert [s.dataset for s in outcome.scores] == ["NanoSciFactRetrieval"] * 2


def test_the_name_of_the_data_alone_will_do(tmp_path):
    beir(tmp_path / "scifact", suffix=".gz")
    assert len(measured(tmp_path, "SciFact").scores) == 2


def test_what_is_not_in_the_mirror_is_asked_of_the_hub(tmp_path, capsys):
    beir(tmp_path / "SciFact")
    outcome = measured(tmp_path, "NFCorpus", "SciFact")
    assert "the hub cannot be reached" in outcome.not_measured["NFCorpus"]
    assert {s.dataset for s in outcome.scores} == {"SciFact"}
    assert capsys.readouterr().err.count("\n") == 1


def test_tasks_without_corpus_come_from_snapshots_too(tmp_path):
    rows = [
        {"sentence1": "cats purr", "sentence2": "a cat purrs", "score": 5.0},
        {"sentence1": "cats purr", "sentence2": "dogs bark", "score": 1.0},
        {"sentence1": "cats purr", "sentence2": "a cat sleeps", "score": 3.0},
    ]
    parquet(tmp_path / "STS12" / "test-00000-of-00001.parquet", rows)
    [score] = measured(tmp_path, "STS12").scores
    assert (score.task, score.num_queries) == ("sts", 3)
    assert score.value == 1.0
    assert [gold for _, gold in score.pairs] == [5.0, 1.0, 3.0]


def test_one_language_of_a_multilingual_set_is_scored_alone(tmp_path):
    folder = tmp_path / "mteb" / "sts17-crosslingual-sts"
    rows = [
        {"sentence1": "cats", "sentence2": each, "score": float(score), "lang": language}
        for language in ("en-en", "es-es")
        for score, each in enumerate(("owl", "act", "cat"))
    ]
    jsonl(folder / "data" / "all.jsonl", rows)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: data/all.jsonl\n---\n"
    )
    task = mteb.get_task("STS17", hf_subsets=["en-en"])
    [score] = evaluate_benchmarks(Spelling(), {}, [task], mirror=tmp_path).scores
    assert (score.dataset, score.num_queries) == ("STS17", 3)


def test_reranking_takes_its_candidates_from_the_mirror(tmp_path):
    folder = tmp_path / "AskUbuntuDupQuestions"
    configs_as_folders(folder)
    ranked = [{"query-id": "1", "corpus-ids": ["d2", "d1"]}, {"query-id": "q2", "corpus-ids": ["d1", "0004", "d2"]}]
    parquet(folder / "top_ranked" / "test-00000-of-00001.parquet", ranked)
    [score] = measured(tmp_path, "AskUbuntuDupQuestions").scores
    assert (score.task, score.measure) == ("reranking", "map@1000")
    # Cosines of letter counts with "who barks": "dogs bark" 6 / 8, "Cats purr" 4 / √80, "Birds sing" 4 / √104.
    assert score.per_query == {"1": 1.0, "q2": pytest.approx((1 + 2 / 3) / 2)}


def test_a_title_may_be_null_and_an_id_a_number(tmp_path):
    beir(tmp_path / "SciFact")
    jsonl(tmp_path / "SciFact" / "corpus.jsonl", [{"_id": 1, "title": None, "text": "purr"}, {"_id": 2, "text": "b"}])
    (tmp_path / "SciFact" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\t1\t1.0\n")
    encoder = Spelling()
    [score, _] = measured(tmp_path, "SciFact", encoder=encoder).scores
    assert (score.value, encoder.seen["document"]) == (1.0, ["purr", "b"])


# What is malformed


def test_a_mirror_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(LeafError, match=r"no mirror at .*/nowhere: give a folder"):
        measured(tmp_path / "nowhere", "SciFact")


@pytest.mark.parametrize("part", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_missing_part_is_named_before_anything_is_encoded(part, tmp_path):
    beir(tmp_path / "SciFact")
    (tmp_path / "SciFact" / part).unlink()
    encoder = Spelling()
    with pytest.raises(
        LeafError, match=rf"SciFact has no {part.split('/')[0].split('.')[0]}: expected corpus, queries"
    ):
        measured(tmp_path, "STS12", "SciFact", encoder=encoder)
    assert not encoder.seen["document"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n1\td1\thigh\n", r"test.tsv:2: .* is no judgement"),
        ("qrels/test.tsv", "query\tdocument\tscore\n1\td1\t1\n", r"expected the columns query-id, corpus-id, score"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", r"test.tsv holds no judgement"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq9\td1\t1\n", r"query 'q9' is judged but not among"),
        ("corpus.jsonl", '{"_id": "d1", "body": "x"}\n', r"has the columns _id|id, body; missing: text"),
        ("corpus.jsonl", '{"_id": "d1", "text": "x"}\n' * 2, r"the id 'd1' is there twice"),
        ("corpus.jsonl", '{"_id": "d1", "text": null}\n{"_id": "d2", "text": "x"}\n', r"without an id or a text"),
        ("queries.jsonl", "no json\n", r"queries.jsonl cannot be read"),
    ],
)
def test_malformed_data_is_an_error_that_names_the_place(file, content, message, tmp_path):
    beir(tmp_path / "SciFact")
    (tmp_path / "SciFact" / file).write_text(content)
    task = mteb.get_task("SciFact")
    with pytest.raises(LeafError, match=message):
        mirror.load(task, mirror.find(tmp_path, task))
    outcome = measured(tmp_path, "SciFact")
    assert outcome.scores == []
    assert outcome.not_measured.keys() == {"SciFact"}


def test_other_data_under_the_name_of_a_task_is_refused(tmp_path):
    parquet(tmp_path / "STS12" / "train-00000-of-00001.parquet", [{"text": "x"}])
    outcome = measured(tmp_path, "STS12")
    assert outcome.scores == []
    assert outcome.not_measured["STS12"].endswith("STS12 holds the splits train of STS12, not test")
    parquet(tmp_path / "STS12" / "test-00000-of-00001.parquet", [{"text": "x"}])
    assert "mteb cannot score it" in measured(tmp_path, "STS12").not_measured["STS12"]
    (tmp_path / "SICK-R").mkdir()
    task = mteb.get_task("SICK-R")
    with pytest.raises(LeafError, match="is no copy of the data of SICK-R"):
        mirror.load(task, mirror.find(tmp_path, task))
