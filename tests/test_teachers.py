"""Whole runs with teachers of other kinds: behind an API, and in vectors that were there before."""

import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import leaf
from embeddings_service import CANARY_TEXTS
from leaf.adapting import adapting
from leaf.errors import Halt, LeafError
from leaf.pipeline import Pipeline
from leaf.recipe import Recipe
from leaf.space import Space, verify
from leaf.teacher.model import SentenceTransformerEncoder
from leaf.teacher.providers import PROVIDERS
from misbehaving import Misbehaving
from tiny import save_teacher, sentences

TEXTS = sentences(300, seed=5)
QUERIES, DOCUMENTS = TEXTS[:120], TEXTS[120:]


class Hosted:
    """The tiny teacher behind an OpenAI-compatible API."""

    def __init__(self, folder):
        self.teacher = SentenceTransformerEncoder(str(folder), device="cpu", prompts={"query": ""})
        self.one_at_a_time = threading.Lock()  # requests come in threads, and a model is not made for several

    def __call__(self, path, body):
        with self.one_at_a_time:
            vectors = self.teacher.encode_document(body["input"])
        data = [{"index": row, "embedding": vector.tolist()} for row, vector in enumerate(vectors)]
        tokens = sum(len(text.split()) for text in body["input"])
        return {"data": data, "model": body["model"], "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}

    def asked(self, service):
        """Texts of answered requests, canaries apart."""
        return [text for _, body in service.answered for text in body["input"] if text not in CANARY_TEXTS]


@pytest.fixture(scope="module")
def hosted(teacher_folder):
    return Hosted(teacher_folder)


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("LEAF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("leaf.service._grow", lambda state: 0.001)


@pytest.fixture
def recipe(tmp_path, bert):
    """Writes the texts and returns what makes a recipe of a teacher."""
    (tmp_path / "queries.txt").write_text("\n".join(QUERIES))
    (tmp_path / "documents.txt").write_text("\n".join(DOCUMENTS))
    sources = [
        {"source": str(tmp_path / "queries.txt"), "kind": "query"},
        {"source": str(tmp_path / "documents.txt"), "kind": "document"},
    ]

    def make(teacher, texts=sources, **changes):
        data = {
            "name": "run",
            "teacher": teacher,
            "student": {"backbone": str(bert), "layers": [0, 2], "max_length": 32, "ridge_texts": 0},
            "texts": texts,
            "prepare": {"held_out": 40, "shard_rows": 64},
            "train": {"cycles": 1, "epochs_per_cycle": 2, "lr": 2e-3, "batch_size": 16},
            "export": {"precisions": []},
        }
        return Recipe.parse({**data, **changes})

    return make


def test_a_student_of_an_api_is_made_and_no_text_is_paid_for_twice(tmp_path, recipe, hosted):
    faults = {"fail": 0.1, "limit": 0.05, "drop": 0.05}
    with Misbehaving(hosted, **faults, seed=2) as service:
        api = {"url": service.url, "key_variable": "", "price": 10.0, "batch_texts": 16}
        teacher = {"model": "openai:hosted", "name": "hosted", "api": api}
        report = leaf.distill(recipe(teacher), tmp_path / "run")
        asked = hosted.asked(service)
        assert sorted(asked) == sorted(TEXTS)  # each of them once
        leaf.distill(recipe(teacher), tmp_path / "again")
        assert hosted.asked(service) == asked
    student = report["students"][0]
    assert student["epsilon"] < student["errors"][0]
    assert report["teacher"]["parameters"] is None
    space = Space.load(tmp_path / "run" / "student")
    assert space.teacher["model"] == "openai:hosted"
    assert verify(leaf.load(tmp_path / "run" / "student"), space).in_space
    manifest = json.loads(next((tmp_path / "run" / "embeddings").glob("[!.]*/manifest.json")).read_text())
    tokens = sum(len(text.split()) for text in [*TEXTS, *CANARY_TEXTS])
    assert manifest["bill"]["texts_bought"] >= len(TEXTS)
    assert manifest["bill"]["tokens"] >= tokens
    assert manifest["bill"]["cost"] == pytest.approx(1e-5 * manifest["bill"]["tokens"], rel=0.5)
    second = json.loads(next((tmp_path / "again" / "embeddings").glob("[!.]*/manifest.json")).read_text())
    assert second["bill"]["texts_bought"] == 0
    assert "hosted" in (tmp_path / "run" / "student" / "README.md").read_text()


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    return Hosted(save_teacher(tmp_path_factory.mktemp("another"), seed=9))


def api_of(service, **settings):
    return {"model": "openai:hosted", "api": {"url": service.url, "key_variable": "", "batch_texts": 16, **settings}}


def embed_a_part(wanted, out):
    """Texts, and teacher vectors until the ceiling; some parts are there, others are not."""
    with Pipeline(wanted, out, max_cost=0.0035).open() as pipeline:
        pipeline.texts()
        with pytest.raises(Halt, match="raise --max-cost"):
            pipeline.embed()
    parts = list((out / "embeddings").glob("*/*.parquet"))
    assert 0 < len(parts) < 6


def test_a_new_store_does_not_hide_that_the_model_is_another(tmp_path, recipe, hosted, another, monkeypatch):
    with Misbehaving(hosted) as service:
        wanted = recipe(api_of(service, price=1.0, at_once=1))
        embed_a_part(wanted, tmp_path / "run")
        for folder, model in (("other", another), ("same", hosted)):
            monkeypatch.setenv("LEAF_CACHE", str(tmp_path / folder))
            service.answer, before = model, len(hosted.asked(service))
            with Pipeline(wanted, tmp_path / "run").open() as pipeline:
                if model is another:
                    with pytest.raises(Halt, match=r"openai:hosted is not the model any more that .*part-00000"):
                        pipeline.embed()
                    assert len(hosted.asked(service)) == before + 16
                else:
                    assert pipeline.embed()["rows"] == len(TEXTS)


def test_evaluation_sets_are_of_the_same_model_and_on_the_bill(tmp_path, recipe, hosted, another):
    words = ["baba", "kiko", "dole", "mane", "tika", "robe"]
    pairs = zip(words, words[1:], "12345", strict=False)
    (tmp_path / "sts.tsv").write_text("\n".join(map("\t".join, [("sentence1", "sentence2", "score"), *pairs])))
    with Misbehaving(hosted) as service:
        wanted = recipe(api_of(service), evaluate={"data": [str(tmp_path / "sts.tsv")]})
        with Pipeline(wanted, tmp_path / "run").open() as pipeline:
            pipeline.texts()
            pipeline.embed()
            pipeline.train()
        service.answer = another
        with Pipeline(wanted, tmp_path / "run").open() as pipeline, pytest.raises(Halt, match="has changed"):
            pipeline.evaluate()
        changing = iter([hosted] * 2)  # for the first look at the canaries alone
        service.answer = lambda path, body: next(changing, another)(path, body)
        with Pipeline(wanted, tmp_path / "run").open() as pipeline, pytest.raises(Halt, match="has changed"):
            pipeline.evaluate()
        assert not list((tmp_path / "run").glob("embeddings/evaluation/**/*.parquet"))
        service.answer = hosted
        leaf.distill(wanted, tmp_path / "run")
    # 300, and six of the set; what the other model answered was paid, too, but nobody has it.
    assert "Bought from openai:hosted: 306 texts" in (tmp_path / "run" / "report.md").read_text()


def test_once_the_vectors_are_there_a_student_is_made_without_the_api(tmp_path, recipe, hosted, monkeypatch):
    """The teacher pass here, training on a machine with a GPU and without a key: what travels is the run folder."""
    with Misbehaving(hosted) as service:
        wanted = recipe({**api_of(service), "api": {"url": service.url, "key_variable": "SOME_KEY"}})
        monkeypatch.setenv("SOME_KEY", "sesame")
        with Pipeline(wanted, tmp_path / "run").open() as pipeline:
            pipeline.texts()
            pipeline.embed()
    monkeypatch.delenv("SOME_KEY")
    monkeypatch.setenv("LEAF_CACHE", str(tmp_path / "elsewhere"))
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert leaf.distill(wanted, tmp_path / "moved")["students"][0]["epsilon"] > 0


def test_a_student_of_an_api_goes_on_for_the_very_model_alone(tmp_path, recipe, hosted, another, monkeypatch, capsys):
    (tmp_path / "own.txt").write_text("\n".join(own := sentences(120, seed=8)))
    (tmp_path / "own.toml").write_text(
        f"""
name = "own"
texts = [{{source = "{tmp_path / "own.txt"}", kind = "query"}}]
prepare = {{held_out = 20}}
train = {{cycles = 1, epochs_per_cycle = 1}}
export = {{precisions = []}}
"""
    )
    with Misbehaving(hosted) as service:
        leaf.distill(recipe(api_of(service, characters=60)), tmp_path / "run")
        with pytest.raises(LeafError, match=r"was asked at 127\.0\.0\.1/v1, .* --set teacher\.api\.url=http://127"):
            adapting(tmp_path / "own.toml", tmp_path / "run" / "student")
        url = [f"teacher.api.url={service.url}"]
        wanted = adapting(tmp_path / "own.toml", tmp_path / "run" / "student", url)
        assert wanted.teacher.api.characters == 60
        monkeypatch.setenv("LEAF_CACHE", str(tmp_path / "new"))  # or the store would tell
        service.answer = another
        with pytest.raises(LeafError, match="is not the teacher of this space"):
            leaf.distill(wanted, tmp_path / "adapted")
        assert not set(own) & set(hosted.asked(service)), "nothing was bought for a student that cannot use it"
        monkeypatch.setenv("LEAF_CACHE", str(tmp_path / "newer"))
        service.answer = hosted
        assert leaf.distill(wanted, tmp_path / "adapted")["adaptation"]["student"]


def test_an_api_is_a_model_like_any_other(tmp_path, recipe, hosted, teacher_folder, run, monkeypatch):
    """`leaf.load("openai:MODEL")`, and so every verb that takes a MODEL; asked twice, it is paid once."""
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    with Misbehaving(hosted) as service:
        monkeypatch.setitem(PROVIDERS, "openai", replace(PROVIDERS["openai"], url=service.url))
        found = leaf.load("openai:hosted").encode_document(DOCUMENTS[:5])
        np.testing.assert_allclose(found, hosted.teacher.encode_document(DOCUMENTS[:5]), atol=1e-6)
        asked = len(service.requests)
        (tmp_path / "some.txt").write_text("\n".join(DOCUMENTS[:5]))
        code, _, err = run("encode", "openai:hosted", tmp_path / "some.txt", "--as", "document")
        assert code == 0, err
        np.testing.assert_array_equal(np.load(tmp_path / "some.txt.npy"), found)
        assert len(service.requests) == asked
        (tmp_path / "sts.tsv").write_text("sentence1\tsentence2\tscore\nbaba\tbaka\t1\nkiko\tdole\t2\nmane\tmane\t3\n")
        models = ["--queries", teacher_folder, "--documents", "openai:hosted"]
        code, out, err = run("evaluate", *models, "--data", tmp_path / "sts.tsv")
        assert code == 0, err
        assert "beside its teacher" in out
        code, _, err = run("evaluate", *models, "--data", tmp_path / "sts.tsv", "--max-cost", "1")
        assert code == 2
        assert "--max-cost goes with a RECIPE" in err
    assert {headers["Authorization"] for headers in service.headers} == {"Bearer sesame"}


def test_a_ceiling_stops_the_run_and_a_higher_one_goes_on(tmp_path, recipe, hosted, run):
    with Misbehaving(hosted) as service:
        api = {"url": service.url, "key_variable": "", "price": 100.0, "batch_texts": 8, "at_once": 1}
        (tmp_path / "r.toml").write_text(recipe({"model": "openai:hosted", "api": api}).to_toml())
        code, out, err = run("texts", tmp_path / "r.toml", "--out", tmp_path / "run")
        assert code == 0, err
        code, out, err = run("embed", tmp_path / "r.toml", "--out", tmp_path / "run", "--max-cost", 0.15)
        assert code == 2
        assert "raise --max-cost" in err
        before = len(hosted.asked(service))
        assert 0 < before < len(TEXTS)
        code, out, err = run("embed", tmp_path / "r.toml", "--out", tmp_path / "run", "--max-cost", 50)
        assert code == 0, err
        assert "bought: " in out
        assert sorted(hosted.asked(service)) == sorted(TEXTS)


def test_an_index_that_is_there_is_the_teacher_and_only_queries_are_asked(tmp_path, recipe, hosted):
    vectors = hosted.teacher.encode_document(DOCUMENTS)
    dump = pa.table({"text": DOCUMENTS, "vector": list(vectors)})
    pq.write_table(dump, tmp_path / "dump.parquet")
    sources = [{"source": "vectors", "name": "index"}, {"source": str(tmp_path / "queries.txt"), "kind": "query"}]
    with Misbehaving(hosted) as service:
        api = {"url": service.url, "key_variable": ""}
        teacher = {"model": "openai:hosted", "vectors": str(tmp_path / "dump.parquet"), "api": api}
        report = leaf.distill(recipe(teacher, texts=sources), tmp_path / "run")
        compared = set(hosted.asked(service)) - set(QUERIES)
        assert set(QUERIES) <= set(hosted.asked(service))
        assert len(compared) == 16  # to see that the vectors are this model's
    assert set(report["texts"]["sources"]) == {"index", "queries"}
    page = (tmp_path / "run" / "report.md").read_text()
    assert "Bought from openai:hosted: 136 texts" in page  # 120 queries, and 16 to compare
    assert "Owned vectors: 0 of 120 queries and 180 of 180 documents had one" in page
    manifest = json.loads(next((tmp_path / "run" / "embeddings").glob("[!.]*/manifest.json")).read_text())
    assert manifest["coverage"]["texts"]["document"] == [len(DOCUMENTS), len(DOCUMENTS)]
    assert manifest["coverage"]["texts"]["query"] == [0, len(QUERIES)]
    assert manifest["owned"]["check"]["cosines"]["document"] == pytest.approx(1, abs=1e-4)


def test_vectors_of_a_model_that_cannot_be_asked_are_enough(tmp_path, recipe, hosted):
    vectors = hosted.teacher.encode_document(TEXTS)
    kinds = ["query"] * len(QUERIES) + ["document"] * len(DOCUMENTS)
    table = pa.table({"body": TEXTS, "embedding": list(vectors), "kind": kinds})
    pq.write_table(table, tmp_path / "dump.parquet")
    owned = {"source": str(tmp_path / "dump.parquet"), "text": "body", "vector": "embedding", "kind": "kind"}
    wanted = recipe({"model": "vectors:lost", "vectors": owned}, texts=[{"source": "vectors"}])
    report = leaf.distill(wanted, tmp_path / "run")
    assert report["students"][0]["epsilon"] < report["students"][0]["errors"][0]
    space = Space.load(tmp_path / "run" / "student")
    assert space.teacher["model"] == "vectors:lost"
    assert verify(leaf.load(tmp_path / "run" / "student"), space).in_space

    changed = pa.table({"body": TEXTS, "embedding": list(vectors[::-1]), "kind": kinds})
    pq.write_table(changed, tmp_path / "dump.parquet")
    with pytest.raises(LeafError, match="was made from other inputs"):
        leaf.distill(wanted, tmp_path / "run")


def assert_in_use(result):
    code, _, err = result
    assert code == 2
    assert "is in use by another process (embed-0.lock)" in err


def test_ranks_share_a_run_folder_and_the_last_one_closes_it(tmp_path, recipe, teacher_folder, run):
    wanted = recipe({"model": str(teacher_folder)})
    (tmp_path / "r.toml").write_text(wanted.to_toml())
    common = [tmp_path / "r.toml", "--out", tmp_path / "run"]
    assert run("texts", *common)[0] == 0
    code, out, _ = run("embed", *common, "--rank", 1, "--world", 2)
    assert code == 0
    assert "others have some left" in out
    with Pipeline(wanted, tmp_path / "run", share=(0, 2)).open() as pipeline:
        assert run("embed", *common, "--rank", 1, "--world", 2)[0] == 0  # nothing of its own is left to do
        assert_in_use(run("embed", *common))  # one process alone would do the same shards
        assert_in_use(run("embed", *common, "--rank", 0, "--world", 2))
        manifest = pipeline.embed()
    assert manifest is not None
    assert manifest["rows"] == len(TEXTS)
    alone = tmp_path / "alone"
    with Pipeline(wanted, alone).open() as pipeline:
        pipeline.texts()
        pipeline.embed()
    parts = sorted((tmp_path / "run" / "embeddings").glob("*/*.parquet"))
    assert len(parts) > 3
    for part in parts:
        assert part.read_bytes() == (alone / part.relative_to(tmp_path / "run")).read_bytes()


@pytest.mark.parametrize(
    ("teacher", "options", "said"),
    [
        ({"model": "openai:m"}, ["--world", "2"], "bound by its rate limit"),
        ({"model": "openai:m"}, ["--cluster", "local"], "bound by its rate limit"),
        ({"model": "openai:m"}, ["--max-cost", "1"], "price"),
        ({}, ["--max-cost", "1"], "--max-cost is for a teacher behind an API"),
        ({}, ["--rank", "2", "--world", "2"], "--rank $SLURM_PROCID"),
        ({}, ["--workers", "2"], "it goes with --cluster"),
        ({}, ["--cluster", "local", "--world", "2"], "give one of them"),
    ],
)
def test_options_that_do_not_fit_are_one_line(tmp_path, recipe, teacher_folder, run, teacher, options, said):
    (tmp_path / "r.toml").write_text(recipe(teacher or {"model": str(teacher_folder)}).to_toml())
    assert run("texts", tmp_path / "r.toml", "--out", tmp_path / "run")[0] == 0
    code, _, err = run("embed", tmp_path / "r.toml", "--out", tmp_path / "run", *options)
    assert code == 2
    assert said in err
    assert err.splitlines()[-1].startswith("leaf: error: ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": {"model": "openai:m"}, "student": {}}, "set backbone to a Transformers encoder"),
        ({"teacher": {"model": "vectors:m"}}, "give its vectors in teacher.vectors"),
        ({"teacher": {"model": "openai:m", "max_length": 64}}, r"teacher\.max_length .* teacher\.api\.characters"),
        ({"teacher": {"model": "cohere:m", "revision": "main"}}, r"teacher\.revision is for a model with weights"),
        ({"teacher": {"model": "m", "api": {"price": 0.02}}}, "behind an API, and m is none; write openai:MODEL or"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_paid(recipe, changes, said):
    with pytest.raises(LeafError, match=said):
        recipe(**{"teacher": {"model": "x"}, **changes})


def test_what_a_student_reads_of_its_role_where_only_the_api_is_told(tmp_path, recipe, hosted):
    """Voyage's requests name the role beside the text, so a student without a prompt could not tell queries apart."""

    def voyage(path, body):
        assert body["input_type"] in ("query", "document")
        return hosted(path, body)

    with Misbehaving(voyage) as service:
        teacher = {"model": "voyage:m", "api": {"url": service.url, "key_variable": ""}}
        leaf.distill(recipe(teacher), tmp_path / "run")
    assert leaf.load(tmp_path / "run" / "student").prompts == {"query": "query: ", "document": ""}


def test_vectors_of_another_model_stop_the_run(tmp_path, recipe, hosted):
    foreign = np.random.default_rng(0).normal(size=(len(DOCUMENTS), hosted.teacher.dim)).astype(np.float32)
    pq.write_table(pa.table({"text": DOCUMENTS, "vector": list(foreign)}), tmp_path / "dump.parquet")
    with Misbehaving(hosted) as service:
        api = {"url": service.url, "key_variable": ""}
        teacher = {"model": "openai:hosted", "vectors": str(tmp_path / "dump.parquet"), "api": api}
        sources = [{"source": "vectors"}, {"source": str(tmp_path / "queries.txt"), "kind": "query"}]
        with pytest.raises(LeafError, match="cosine"):
            leaf.distill(recipe(teacher, texts=sources), tmp_path / "run")
        assert not set(QUERIES) & set(hosted.asked(service))
