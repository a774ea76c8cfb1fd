import errno
import json
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

import leaf
from leaf.export.onnx import export_student
from leaf.recipe import Recipe
from leaf.space import Space
from leaf.teacher.model import SentenceTransformerEncoder
from misbehaving import Misbehaving
from tiny import save_teacher, sentences
from tiny_student import make_student

RECIPE = """
name = "r"
[teacher]
model = "{teacher}"
[student]
layers = [0]
[[texts]]
source = "{texts}"
kind = "document"
[prepare]
held_out = 20
[train]
batch_size = 8
cycles = 1
epochs_per_cycle = 1
"""


@pytest.fixture
def recipe(tmp_path, teacher_folder):
    """Writes a recipe over 100 sentences; keyword arguments replace the teacher, the texts file or its content."""

    def write(content=None, extra="", **values):
        texts = tmp_path / "texts.jsonl"
        texts.write_text(
            "\n".join(json.dumps({"text": text}) for text in sentences(100)) if content is None else content
        )
        path = tmp_path / "r.toml"
        path.write_text(RECIPE.format(**{"teacher": teacher_folder, "texts": texts, **values}) + extra)
        return path

    return write


def assert_one_line(result, *words):
    code, out, err = result
    assert code == 2, err
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("leaf: error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    for word in words:
        assert word in lines[0], lines[0]


def test_an_unknown_recipe_key_is_named_with_its_neighbour(run, recipe, tmp_path):
    path = recipe(extra="batchsize = 3\n")
    assert_one_line(run("distill", path, "--out", tmp_path / "o"), "unknown key 'train.batchsize'", "batch_size")


def test_a_missing_column_is_named_with_those_that_are_there(run, recipe, tmp_path):
    path = recipe(content=json.dumps({"body": "a b c", "title": "t"}))
    assert_one_line(run("texts", path, "--out", tmp_path / "o"), "'text'", "body, title")


def test_an_empty_corpus_is_refused(run, recipe, tmp_path):
    path = recipe(content="\n".join(json.dumps({"text": " "}) for _ in range(5)))
    assert_one_line(run("texts", path, "--out", tmp_path / "o"), "all of them rejected")


def test_a_teacher_folder_without_a_model_is_refused(run, recipe, tmp_path):
    (tmp_path / "nothing").mkdir()
    path = recipe(teacher=tmp_path / "nothing")
    assert_one_line(run("distill", path, "--out", tmp_path / "o"), "holds no model", "modules.json")


def test_a_run_folder_of_another_recipe_is_refused(run, recipe, tmp_path):
    path = recipe()
    assert run("texts", path, "--out", tmp_path / "o")[0] == 0
    result = run("texts", path, "--out", tmp_path / "o", "--set", "train.lr=1e-3")
    assert_one_line(result, "belongs to another recipe", "train.lr", "--out")


def test_a_cache_of_another_teacher_is_refused(run, recipe, tmp_path, bert):
    path = recipe()
    for stage in ("texts", "embed"):
        assert run(stage, path, "--out", tmp_path / "a")[0] == 0
    path = recipe(teacher=bert)
    assert run("texts", path, "--out", tmp_path / "b")[0] == 0
    (tmp_path / "a" / "embeddings").rename(tmp_path / "b" / "embeddings")
    assert_one_line(run("embed", path, "--out", tmp_path / "b"), "another encoder", "teacher.model was")


def test_a_truncated_shard_is_named(run, recipe, tmp_path):
    path = recipe()
    for stage in ("texts", "embed"):
        assert run(stage, path, "--out", tmp_path / "o")[0] == 0
    part = next((tmp_path / "o" / "embeddings").glob("*/part-00000.parquet"))
    part.write_bytes(part.read_bytes()[:50])
    assert_one_line(run("train", path, "--out", tmp_path / "o"), "part-00000.parquet", "damaged", "delete it")


def test_nan_vectors_stop_the_teacher_pass(run, recipe, tmp_path, monkeypatch):
    from leaf.teacher.model import SentenceTransformerEncoder

    monkeypatch.setattr(
        SentenceTransformerEncoder, "encode_document", lambda self, texts, **_: np.full((len(texts), 24), np.nan)
    )
    assert_one_line(run("distill", recipe(), "--out", tmp_path / "o"), "NaN or infinity for row 0", "compute_dtype")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos: No space left on device"),
    ],
)
def test_a_full_disk_is_one_line_whoever_reports_it(run, recipe, tmp_path, monkeypatch, error):
    from leaf import vector_files

    def full(*_, **__):
        raise error

    monkeypatch.setattr(vector_files.pq, "write_table", full)
    assert_one_line(run("distill", recipe(), "--out", tmp_path / "o"), "the disk is full", "run the same command again")


@pytest.mark.parametrize("what", ["teacher", "texts"])
def test_a_hub_that_cannot_be_reached_is_one_line_and_quick(run, recipe, tmp_path, what):
    values = {"teacher": "someone/some-model"} if what == "teacher" else {"texts": "hub:someone/some-texts"}
    began = time.monotonic()
    result = run("distill", recipe(**values), "--out", tmp_path / "o")
    assert_one_line(result, "someone/some-", "hub")
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["distill", "nope"], ["no recipe 'nope'", "demo"]),
        (["distill", "demo", "--limit", "0"], ["'--limit'", "greater than or equal to 1", "leaf distill --help"]),
        (["distill", "demo", "--batchsize", "3"], ["No such option: --batchsize"]),
        (["distil", "demo"], ["No such command 'distil'"]),
        (["distill", "demo", "--set", "texts=3"], ["'texts': input should be a list, got 3"]),
        (["distill", "demo", "--set", "lr"], ["write table.field=value"]),
        (["evaluate"], ["--queries MODEL and --data PATH"]),
        (["evaluate", "demo", "--queries", "x"], ["not both"]),
        (["evaluate", "demo", "--truncate", "64"], ["--set evaluate.truncate"]),
        (["evaluate", "--queries", "/no/such/model", "--data", "/no/such/data"], ["/no/such/data"]),
        (["encode", "/no/such/model", "/no/such/file"], ["no file '/no/such/file'"]),
        (["verify", "/no/such/student"], ["no folder '/no/such/student'"]),
    ],
)
def test_other_mistakes_are_one_line_each(run, arguments, words):
    assert_one_line(run(*arguments), *words)


def test_encode_writes_the_vectors_of_the_role_asked_for(run, tmp_path, teacher_folder):
    lines = sentences(5)
    (tmp_path / "t.txt").write_text("\n".join(lines) + "\n")
    encoder = leaf.load(teacher_folder)
    for role, encode in (("query", encoder.encode_query), ("document", encoder.encode_document)):
        code, out, err = run("encode", teacher_folder, tmp_path / "t.txt", "--as", role)
        assert (code, "5 × 24" in out) == (0, True), err
        vectors = np.load(tmp_path / "t.txt.npy")
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, encode(lines), atol=1e-5)
    (tmp_path / "t.txt").write_text("a\n\nb\n")
    assert_one_line(run("encode", teacher_folder, tmp_path / "t.txt"), "line 2 is empty")


def test_evaluate_prints_records_as_json(run, tmp_path, teacher_folder, bert):
    (tmp_path / "sts.tsv").write_text(
        "sentence1\tsentence2\tscore\n"
        + "".join(f"{a}\t{b}\t{i}\n" for i, (a, b) in enumerate(zip(sentences(9), sentences(9, 1), strict=True)))
    )
    code, out, err = run("evaluate", "--queries", bert, "--data", tmp_path / "sts.tsv", "--json")
    assert code == 0, err
    (record,) = json.loads(out)
    assert (record["dataset"], record["measure"], record["mode"], record["num_queries"]) == (
        "sts",
        "spearman",
        "standard",
        9,
    )
    assert -1 <= record["value"] <= 1


@pytest.fixture
def models(tmp_path_factory):
    """A teacher and two students in a space of its width."""
    folder = tmp_path_factory.mktemp("models")
    return [save_teacher(folder / name, seed=seed) for seed, name in enumerate(("teacher", "one", "two"))]


@pytest.fixture
def beir(tmp_path):
    """20 documents, 10 queries that are the first words of one each."""
    folder = tmp_path / "sets" / "tiny"
    (folder / "qrels").mkdir(parents=True)
    documents = sentences(20)
    rows = {"corpus": documents, "queries": [text.rsplit(" ", 1)[0] for text in documents[:10]]}
    for name, texts in rows.items():
        lines = [json.dumps({"_id": f"{name[0]}{n}", "title": "", "text": text}) for n, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    judged = "".join(f"q{n}\tc{n}\t1\n" for n in range(10))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


def evaluate_models(models, *more):
    teacher, *students = models
    queries = [part for student in students for part in ("--queries", student)]
    return ["evaluate", *queries, "--documents", teacher, *more]


def test_evaluate_compares_students_with_their_teacher(run, models, beir, tmp_path):
    out = tmp_path / "scores"
    arguments = evaluate_models(models, "--data", beir.parent, "--truncate", "12", "--precision", "int8,binary")
    code, printed, err = run(*arguments, "--out", out, "--cache", tmp_path / "cache")
    assert code == 0, err
    for words in ("one/model, beside its teacher", "two/model", "% of teacher", "int8", "asymmetric − standard"):
        assert words in printed
    records = list(out.glob("*.ndcg@10.json"))
    assert len(records) == 5  # the teacher; two students in two modes
    assert (out / "curves.json").exists()
    assert len(list((tmp_path / "cache").glob("*/*.parquet"))) == 6  # three encoders, two sides


def test_local_sets_run_as_mteb_tasks_too(run, models, beir, tmp_path):
    pytest.importorskip("mteb")
    found = {}
    for way in ([], ["--mteb", "--out", tmp_path / "out"]):
        code, out, err = run(*evaluate_models(models[:2], "--data", beir, "--json", *way))
        assert code == 0, err
        found[len(way)] = {(each["mode"], each["measure"]): each["value"] for each in json.loads(out)}
    assert found[0] == pytest.approx(found[3], abs=1e-6)
    assert len(list((tmp_path / "out" / "mteb").rglob("tiny.json"))) == 3  # the teacher; the student in two modes


def test_alignment_needs_no_judgements(run, models, beir, tmp_path):
    (beir / "qrels" / "test.tsv").unlink()
    code, out, err = run(*evaluate_models(models[:2], "--data", beir, "--alignment", "--json"))
    assert code == 0, err
    [found] = json.loads(out)
    assert (found["queries"]["num_texts"], found["documents"]["num_texts"]) == (10, 20)
    assert 0 <= found["asymmetric"]["overlap"]["value"] <= 1
    for name, count in (("q", 5), ("d", 30)):
        (tmp_path / f"{name}.txt").write_text("\n".join(sentences(count, seed=count)) + "\n")
    files = ["--query-texts", tmp_path / "q.txt", "--document-texts", tmp_path / "d.txt"]
    code, out, err = run(*evaluate_models(models[:2], "--alignment", "--out", tmp_path / "a", *files))
    assert code == 0, err
    assert "of the teacher's 10" in out
    [found] = json.loads((tmp_path / "a" / "alignment.json").read_text())
    assert found["documents"]["num_texts"] == 30


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "x", "--truncate", "1,b"], ["--truncate '1,b'", "256,128,64"]),
        (["--data", "x", "--precision", "int4"], ["--precision 'int4'", "int8"]),
        (["--query-texts", "x"], ["go with --alignment"]),
        (["--data", "x", "--alignment"], ["--documents"]),
    ],
)
def test_mistakes_in_what_to_evaluate_are_one_line_each(run, arguments, words):
    assert_one_line(run("evaluate", "--queries", "m", *arguments), *words)


@pytest.fixture(scope="module")
def table(tmp_path_factory, teacher_folder):
    """A lookup table as a run leaves it: no graph of it has to be traced."""
    teacher = SentenceTransformerEncoder(str(teacher_folder), device="cpu")
    folder = make_student(tmp_path_factory.mktemp("runs") / "student-table", teacher, layers=())
    export_student(folder, ("fp32",))
    return folder


def test_export_writes_the_files_asked_for_and_shows_what_they_cost(run, table, tmp_path):
    code, out, err = run("export", table, "--precision", "q8,fp32")
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[2:4]] == ["model.onnx", "model_quantized.onnx"]
    assert "mean distance to the teacher's vectors of 64 canaries" in out
    (tmp_path / "mine.txt").write_text("\n".join(sentences(10)))
    arguments = ["--precision", "fp32", "--calibrate", tmp_path / "mine.txt", "--json"]
    manifest = json.loads(run("export", table, *arguments)[1])["student-table"]
    assert manifest["calibration"] == "texts"
    assert [path.name for path in sorted((table / "onnx").glob("*.onnx"))] == ["model.onnx"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "fp32,int8"], ["--precision 'int8'", "fp32,fp16,q8"]),
        (["--calibrate", "nothing.txt"], ["nothing.txt cannot be read", "one text a line"]),
        (["--light"], ["--light goes with --asymmetric"]),
        (["--dry-run", "x"], ["go with --push"]),
        (["--private"], ["go with --push"]),
        (["--asymmetric", "x", "--push", "a/b"], ["--push uploads TARGET", "`leaf export x --push`"]),
    ],
)
def test_mistakes_in_what_to_export_are_one_line_each(run, table, arguments, words):
    assert_one_line(run("export", table, *arguments), *words)


def test_what_a_recipe_cannot_be_exported_with_is_one_line(run, recipe):
    assert_one_line(run("export", recipe(), "--push", "a/b"), "is no student folder", "--push")


def test_export_of_a_recipe_asks_for_its_students_first(run, recipe, tmp_path):
    assert_one_line(run("export", recipe(), "--out", tmp_path / "o"), "run `leaf train` with this recipe first")


@pytest.mark.parametrize(
    ("missing", "extra", "arguments"),
    [
        ("torch", "train", ["encode", "{table}", "{text}"]),
        ("onnx", "onnx", ["export", "{table}"]),
        ("fastapi", "serve", ["serve", "{table}"]),
        ("sentence_transformers", "train", ["verify", "{table}"]),
        ("httpx", "api", ["texts", "vocabulary", "{text}", "--llm", "http://127.0.0.1:9", "--model", "m"]),
    ],
)
def test_a_package_that_is_not_installed_is_one_line_with_the_extra_that_brings_it(
    table, tmp_path, missing, extra, arguments
):
    """In a new process, where nothing has been imported before."""
    (tmp_path / "t.txt").write_text("ba be\n")
    folder = Path(shutil.copytree(table, tmp_path / "student"))
    if missing in ("torch", "sentence_transformers"):
        shutil.rmtree(folder / "onnx")  # which would do without
    arguments = [each.format(table=folder, text=tmp_path / "t.txt") for each in arguments]
    program = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
import leaf.cli
sys.argv = ["leaf", *{arguments!r}]
leaf.cli.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    result = (done.returncode, done.stdout, done.stderr)
    assert_one_line(result, f"pip install 'leaf[{extra}]'", missing)


def test_sources_are_looked_at_and_not_read(run, recipe, tmp_path):
    path = recipe()
    code, out, _ = run("texts", path, "--out", tmp_path / "run", "--check")
    assert code == 0
    assert out.splitlines()[1].split() == ["texts", "document", "all", "not", "stated", "?", "ok"]
    assert not (tmp_path / "run").exists()
    (tmp_path / "texts.jsonl").unlink()
    code, out, _ = run("texts", path, "--check")
    assert code == 1
    assert "no file" in out
    code, out, _ = run("texts", path, "--check", "--json")
    assert json.loads(out)[0]["reachable"] is False


def test_texts_that_may_not_be_sold_are_left_out(run, recipe, tmp_path):
    more = f"""
[[texts]]
source = "{tmp_path / "texts.jsonl"}"
name = "papers"
kind = "document"
licence = "research only"
commercial = false
"""
    code, out, err = run("texts", recipe(extra=more), "--out", tmp_path / "run", "--commercial")
    assert code == 0, err
    assert "left out, not for commercial use: papers" in err
    assert "kept, licence not known: texts" in err
    assert "papers" not in out
    assert "papers" not in (tmp_path / "run" / "recipe.toml").read_text()


def test_a_plan_is_one_page_and_writes_nothing(run, recipe, tmp_path):
    code, out, err = run("plan", recipe(), "--out", tmp_path / "run", "--hardware", "h200")
    assert code == 0, err
    assert "r: what it takes" in out
    assert "H200" in out
    assert not (tmp_path / "run").exists()
    code, out, _ = run("plan", tmp_path / "r.toml", "--out", tmp_path / "run", "--json")
    assert json.loads(out)["texts"]["rows"] == 100


def test_definitions_are_asked_of_a_chat_endpoint(run, tmp_path, monkeypatch):
    def answer(path, body):
        assert body["model"] == "m"
        content = json.dumps({word: [f"A {word} is a thing."] for word in ("ebb", "tide") if word in str(body)})
        return {"choices": [{"message": {"content": content}, "finish_reason": "stop"}], "usage": {}}

    (tmp_path / "words.txt").write_text("ebb\ntide\n")
    out = tmp_path / "v.jsonl"
    with Misbehaving(answer) as service:
        arguments = ["texts", "vocabulary", tmp_path / "words.txt", "--llm", service.url, "--model", "m", "--out", out]
        assert_one_line(run(*arguments), "OPENAI_API_KEY")
        code, printed, err = run(*arguments, "--key-variable", "", "--no-stream")
    assert code == 0, err
    assert "2 texts of 2 words" in printed
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == [
        "A ebb is a thing.",
        "A tide is a thing.",
    ]


def test_serve_hands_its_options_on(run, table, monkeypatch):
    import leaf.runtime.server as server

    calls = []
    monkeypatch.setattr(server, "serve", lambda *arguments, **named: calls.append((*arguments, named)))
    assert run("export", table, "--precision", "fp32,q8")[0] == 0
    options = {
        "host": "127.0.0.2", "port": 8123, "max-batch": 7, "max-queue": 70, "max-texts": 9, "max-characters": 99,
        "timeout": 3.5, "grace": 4.5,
    }  # fmt: skip
    named = [each for key, value in options.items() for each in (f"--{key}", value)]
    more = ["--name", "a", "--name", "b", "--cors", "https://x.org", "--max-body-mib", 3, "--precision", "q8"]
    code, _, err = run("serve", table, *named, *more, "--threads", 1)
    assert code == 0, err
    [(encoder, settings, rest)] = calls
    assert {key: getattr(settings, key.replace("-", "_")) for key in options} == options
    assert (settings.names, settings.cors, settings.max_body_bytes) == (("a", "b"), ("https://x.org",), 3 * 2**20)
    assert (encoder.usage.precision, encoder.threads) == ("q8", 1)
    assert rest["space"].id == Space.load(table).id
    assert run("serve", table)[0] == 0
    defaults = server.Settings()
    assert calls[1][1] == defaults  # what `--help` shows is what the server takes by itself
    assert calls[1][0].usage.precision == "fp32"


def test_recipes_are_listed_one_line_each(run):
    code, out, _ = run("recipes")
    assert code == 0
    shipped = {"demo", "ladder", "ladder-cpu", "leaf-fast", "leaf-ir", "leaf-ir-fast", "leaf-mt"}
    assert all(name in out for name in shipped)
    assert set(json.loads(run("recipes", "--json")[1])) == shipped


def test_a_recipe_that_is_printed_is_that_recipe(run):
    code, out, _ = run("recipes", "leaf-mt")
    assert code == 0
    assert Recipe.parse(tomllib.loads(out)) == Recipe.load("leaf-mt")


def test_help_is_quick_and_lists_every_verb():
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", "leaf", "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.monotonic() - began)
    assert min(seconds) < 2  # 0.3 s on a quiet machine; the bar of the project is 0.5 s
    for verb in (
        "distill",
        "texts",
        "embed",
        "train",
        "evaluate",
        "report",
        "encode",
        "export",
        "verify",
        "serve",
        "recipes",
    ):
        assert verb in done.stdout


def test_an_interrupt_is_one_line_that_says_how_to_go_on(tmp_path):
    # A shell starts background jobs with interrupts ignored, and Python then leaves them so.
    start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import leaf.cli; leaf.cli.main()"
    command = [sys.executable, "-c", start, "texts", "demo", "--out", str(tmp_path / "o")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "o" / "texts").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "leaf: interrupted; the same command goes on from here"
    assert "Traceback" not in err
