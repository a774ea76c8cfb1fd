"""Whoever follows a guide gets what it says: every file, every line of Python and every command of docs/guides is run.

What a reader has and a test has not is stood in for (`STAND_INS`, `SETTINGS`); what cannot be run is in `NOT_RUN`.
"""

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embeddings_service import CANARY_TEXTS, Embeddings
from following import Step, started, steps, wrong_options
from misbehaving import Events, Misbehaving
from postgres import postgres  # noqa: F401  a fixture
from serving import ask
from test_pipeline import free_port
from tiny import save_bert, save_teacher, sentences

ROOT = Path(__file__).parents[1]
GUIDES = {path.stem: path for path in sorted((ROOT / "docs" / "guides").glob("*.md"))}
#: Models and services of the guides, and what stands in for them: `{…}` are of the place where they are followed.
STAND_INS = {
    "Snowflake/snowflake-arctic-embed-m-v1.5": "{teacher}",
    "nreimers/MiniLM-L6-H384-uncased": "{bert}",
    "postgresql://localhost/search": "{postgres}",
    "http://localhost:8000/v1": "{chat}",
}
#: What cannot be run here, by how it begins, and why. Verbs and options of `leaf` are looked at even so.
NOT_RUN = {
    "pip install": "reaches for a network",
    "export HEAD=": "asks Slurm",
    "ray start": "leaves processes behind; its options are looked at",
    "leaf export runs/mine/student --web": "fetches with npm; tests/export/test_web_chromium.py has the page",
    "leaf embed leaf-ir --cluster": "a Ray cluster takes half a minute; tests/teacher/test_cluster.py has real ones",
}
#: Seconds instead of hours, by recipe: `--set` is given to every verb that takes it.
SMALL = ["prepare.held_out=24", "train.batch_size=64", "train.cycles=1", "train.epochs_per_cycle=1"]
BOUGHT = [*SMALL, "export.precisions=[]", "teacher.api.url={api}", "teacher.api.key_variable=OPENAI_API_KEY"]
TEXTS = '[{{source="queries.txt",kind="query"}},{{source="passages.txt",kind="document"}}]'
SETTINGS = {
    "mine": [*SMALL, 'export.precisions=["fp32", "q8"]'],  # the run of the next, named on the command line
    "mine.toml": [*SMALL, 'export.precisions=["fp32", "q8"]'],
    "clinic.toml": [*SMALL, "export.precisions=[]"],
    "guarded.toml": [*SMALL, "export.precisions=[]"],
    "hosted.toml": BOUGHT,
    "indexed.toml": BOUGHT,
    "postgres.toml": BOUGHT,
    "leaf-ir": [
        *SMALL, "export.precisions=[]", "teacher.model={teacher}", "student.backbone={bert}", f"texts={TEXTS}",
        "prepare.shard_rows=32", "evaluate.benchmarks=[]",
    ],
}  # fmt: skip
#: Looks at the recipe as it is, which needs neither a network nor time; `--check` says by its code that there is none.
AS_IT_IS = {"leaf texts leaf-ir --check": 1, "leaf plan leaf-ir": 0}
#: The numbers of texts that a reader is asked to have.
FILES = {"queries.txt": 120, "passages.txt": 160, "questions.txt": 60, "records.txt": 60, "general.txt": 100}


def define(path, body):
    """A language model that knows a definition of every word."""
    words = json.loads(body["messages"][0]["content"].rstrip().rpartition("\n")[2])
    said = json.dumps({word: [f"A {word} is what the test says it is."] for word in words})
    choice = {"index": 0, "delta": {"content": said}, "finish_reason": "stop"}
    return Events([{"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 50}}, "[DONE]"])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A reader's folder, and what is asked from there."""
    folder, texts = tmp_path_factory.mktemp("reader"), iter(sentences(sum(FILES.values())))
    for name, count in FILES.items():
        (folder / name).write_text("".join(next(texts) + "\n" for _ in range(count)), encoding="utf-8")
    passages = (folder / "passages.txt").read_text(encoding="utf-8").splitlines()
    for number in range(2):
        years = [2019 + at % 4 for at, _ in enumerate(passages[number::2])]
        table = pa.table({"body": passages[number::2], "year": years, "lang": ["en"] * len(years)})
        pq.write_table(table, folder / f"passages-{number}.parquet")
    (folder / "words.txt").write_text("ebb\nOslo\n", encoding="utf-8")
    embeddings = Embeddings(dim=512)
    np.save(folder / "vectors.npy", embeddings.vectors(passages))
    models = tmp_path_factory.mktemp("models")
    with Misbehaving(embeddings) as api, Misbehaving(define) as chat:
        known = {
            "teacher": save_teacher(models, layers=12, prompts={"query": "ba be: ", "document": ""}),
            "bert": save_bert(models / "bert", layers=6, seed=1),
            "api": api.url,
            "chat": chat.url,
            "postgres": "postgresql://nobody.invalid/search",
        }
        yield SimpleNamespace(
            folder=folder,
            api=api,
            passages=passages,
            embeddings=embeddings,
            known=known,
            followed={},
            not_run=Counter(),
        )


@pytest.fixture
def follow(place, run, monkeypatch):
    """Follows a guide, once: what was printed by command, and how often the API was asked for each text.

    The commands about PostgreSQL, which not everybody has, are for a test of their own.
    """
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("LEAF_CACHE", str(place.folder / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    monkeypatch.setattr("leaf.pipeline.TIMED_QUERIES", 5)

    def follow(name):
        if name not in place.followed:
            before, place.followed[name] = len(place.api.answered), None
            page = steps(GUIDES[name].read_text(encoding="utf-8"))
            printed = walk([each for each in page if not is_about_postgres(each)], place, run)
            asked = [body for _, body in place.api.answered[before:]]
            place.followed[name] = printed, Counter(text for body in asked for text in body["input"])
        assert place.followed[name] is not None, f"{name} could not be followed, as another test says"
        return place.followed[name]

    return follow


def is_about_postgres(step):
    return step.language == "sh" and "postgres" in step.text and step.text.startswith("leaf ")


def walk(page, place, run):
    """Does the steps of a page in order; returns what was printed, by command."""
    printed, names = {}, {}
    for step in page:
        if step.language == "toml":
            Path(step.file).write_text(stand_in(step.text, place), encoding="utf-8")
        elif step.language == "python":
            code = compile(step.text, "a guide", "exec")
            if not step.text.startswith("# Not run here"):
                exec(code, names)
        elif step.language == "sh":
            printed[step.text] = "".join(give(step.text, words, place, run) for words in started(step.text))
            if step.text == "leaf distill leaf-ir":  # the sections of a guide are other ways to the same folder
                os.rename("runs/leaf-ir", f"runs/leaf-ir-{len(list(Path('runs').glob('leaf-ir-*')))}")
        else:
            pytest.fail(f"nobody knows what to do with a block of {step.language}")
    return printed


def give(command, words, place, run):
    """What a command prints that comes down to the program `words`. Fails where it fails, and where nobody runs it."""
    if words[0] == "leaf":
        assert not wrong_options(words), command
    for beginning in NOT_RUN:
        if command.startswith(beginning):
            place.not_run[beginning] += 1
            return ""
    assert words[0] == "leaf", f"'{command}' is neither run nor among those that cannot be"
    arguments = [stand_in(word, place) for word in words[1:]]
    if arguments[0] == "serve":
        return serve(arguments, place)
    if command not in AS_IT_IS and "--query-texts" not in arguments:
        recipe = next((word for word in arguments if word in SETTINGS), None)
        arguments += [word for each in SETTINGS.get(recipe, ()) for word in ("--set", each.format(**place.known))]
    code, out, err = run(*arguments)
    assert code == AS_IT_IS.get(command, 0), f"{command}: {err}"
    return out + err


def stand_in(text, place):
    for theirs, ours in STAND_INS.items():
        if theirs in text:
            text = text.replace(theirs, str(place.known[ours.strip("{}")]))
    return text


def serve(arguments, place):
    """Starts the server, asks it for a vector as soon as it answers, and stops it."""
    port = free_port()
    server = subprocess.Popen([sys.executable, "-m", "leaf", *arguments, "--port", str(port)], stderr=subprocess.PIPE)
    try:
        for _ in range(300):
            try:
                name = "student" if "--index" in arguments else "student-q8"
                status, _, answer = ask(f"http://127.0.0.1:{port}", body={"model": name, "input": ["ba be"]})
                break
            except ConnectionError:
                assert server.poll() is None, server.stderr.read().decode()
                time.sleep(0.1)
        assert status == 200
        assert len(answer["data"][0]["embedding"]) == 24
    finally:
        server.terminate()
        said = server.communicate(timeout=20)[1].decode()
    assert server.returncode == 0, said
    return said


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_can_be_followed(follow, name):
    if name in ("adapting", "search"):
        follow("own-corpus")  # these begin from that student
    printed, _ = follow(name)
    assert printed


def test_ones_own_corpus_ends_in_a_student_that_is_in_the_teachers_space(follow, place):
    printed, _ = follow("own-corpus")
    assert " ok " in printed["leaf texts mine.toml --check"]
    assert "mine: what to expect" in printed["leaf plan mine.toml --probe"]
    verified = printed["leaf verify runs/mine/student"]
    assert verified.count("\nin the space") == 3  # the weights, the float32 and the int8 file
    assert Path("runs/mine/report.html").is_file()


def test_a_text_is_bought_once_and_the_bill_is_shown(follow, place):
    printed, asked = follow("api-teacher")
    texts = [*Path("queries.txt").read_text().splitlines(), *place.passages]
    assert {text: asked[text] for text in asked if text not in CANARY_TEXTS} == dict.fromkeys(texts, 1)
    embedded = printed["leaf embed hosted.toml --max-cost 25"]
    assert f"bought: {len(texts)} texts" in embedded
    assert "× $0.02 a million" in printed["leaf plan hosted.toml"]


def test_of_an_index_only_queries_are_bought_and_a_few_documents_to_compare(follow, place):
    printed, asked = follow("existing-index")
    queries = Path("queries.txt").read_text().splitlines()
    own = {text: count for text, count in asked.items() if text not in CANARY_TEXTS}
    assert all(own.pop(text) == 1 for text in queries)
    assert set(own.values()) == {1}
    assert len(own) == 16
    assert own.keys() <= set(place.passages)
    assert "160 of 160 documents had one" in printed["leaf distill indexed.toml --max-cost 5"]


def test_an_index_in_postgresql_gives_the_same_texts_and_vectors(follow, place, run, request):
    follow("existing-index")
    before = len(place.api.answered)
    server = request.getfixturevalue("postgres")
    place.known["postgres"] = server.url
    server.connection.execute("DROP TABLE IF EXISTS documents")
    server.connection.execute(f"CREATE TABLE documents (body text, embedding vector({place.embeddings.dim}))")
    for text, vector in zip(place.passages, place.embeddings.vectors(place.passages), strict=True):
        server.connection.execute("INSERT INTO documents VALUES (%s, %s::real[]::vector)", (text, vector.tolist()))
    page = steps(GUIDES["existing-index"].read_text(encoding="utf-8"))
    recipe = [each for each in page if each.language == "toml" and each.file == "postgres.toml"]
    (printed,) = walk([*recipe, *filter(is_about_postgres, page)], place, run).values()
    assert "160 of 160 documents had one" in printed
    # All queries were bought by the run before, whose store this one shares; so were the texts that are compared.
    assert {text for _, body in place.api.answered[before:] for text in body["input"]} <= CANARY_TEXTS
    folders = [next(Path(f"runs/{name}/embeddings").glob("[!.]*")) for name in ("indexed", "postgres")]
    assert len({(folder / "part-00000.parquet").stat().st_size for folder in folders}) == 1


def test_adapting_reports_both_sides(follow):
    follow("own-corpus")
    follow("adapting")
    for name in ("clinic", "guarded"):
        page = Path(f"runs/{name}/report.md").read_text(encoding="utf-8")
        assert "Before and after: student" in page
        assert "On guard texts, ε" in page


def test_one_index_is_asked_by_student_and_teacher(follow):
    follow("own-corpus")
    printed, _ = follow("search")
    searches = {command: out for command, out in printed.items() if command.startswith("leaf search")}
    assert [out.splitlines()[-1].partition(":")[0] for out in searches.values() if out[:1] != "{"] == [
        "student", "model", "student-q8",
    ]  # fmt: skip
    (found,) = [json.loads(out) for out in searches.values() if out[:1] == "{"]
    assert [len(each["hits"]) for each in found["answers"]] == [3]
    assert all(hit["metadata"]["year"] >= 2020 for each in found["answers"] for hit in each["hits"])
    assert any("(2 deleted)" in out for out in printed.values())


def test_an_index_in_postgresql_is_made_and_asked(follow, place, run, request):
    follow("own-corpus")
    follow("search")
    place.known["postgres"] = request.getfixturevalue("postgres").url
    page = steps(GUIDES["search"].read_text(encoding="utf-8"))
    made, copied, asked = walk([each for each in page if is_about_postgres(each)], place, run).values()
    assert "160 documents × 24, float16  (160 added)" in made
    assert "158 documents × 24, float16  (158 added)" in copied
    assert asked.splitlines()[-1].startswith("student-q8: ")
    _, out, _ = run("verify", place.known["postgres"], "--table", "copied")  # a student of a few steps may well fail
    assert "(table copied): 158 documents, whole" in out
    assert out.splitlines()[-1].startswith("in the space  cosine 1.0000  100 % nearest")  # the teacher


def test_ranks_make_the_files_that_one_process_makes(follow):
    printed, _ = follow("paper")
    assert "MS MARCO" in printed["leaf texts leaf-ir --check"]
    assert "6,584,226" in printed["leaf plan leaf-ir"]
    assert Path("vocabulary.jsonl.gz").is_file()
    alone, by_ranks, by_tasks = (
        {path.name: path.read_bytes() for path in Path(f"runs/{name}/embeddings").glob("*/*.parquet")}
        for name in ("leaf-ir-0", "leaf-ir-1", "leaf-ir")
    )
    assert len(alone) == 9
    assert alone == by_ranks == by_tasks


def test_extras_and_options_of_others_exist(follow):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    start = pytest.importorskip("ray.scripts.scripts", reason="pip install 'leaf[cluster]'").start
    options = {option for each in start.params for option in each.opts}
    for path in GUIDES.values():
        page = path.read_text(encoding="utf-8")
        for named in re.findall(r"-e '\.\[([\w,]+)\]'", page):
            assert set(named.split(",")) <= extras.keys(), named
        for line in re.findall(r"^ray start (.*?)(?:  +#.*)?$", page, flags=re.MULTILINE):
            assert set(re.findall(r"--[\w-]+", line)) <= options, line


def test_what_is_listed_as_not_run_is_still_there(follow, place):
    for name in GUIDES:
        follow(name)
    assert place.not_run.keys() == NOT_RUN.keys()


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Step("sh", "curl http://localhost:8000"), "neither run nor among"),
        (Step("sh", "leaf embed leaf-ir --cluster HOST:1 --wings"), "--wings"),
        (Step("sh", "srun --ntasks 2 bash -c 'torchrun -m leaf train leaf-ir --wings'"), "--wings"),
        (Step("sh", "leaf distill nowhere.toml"), "no recipe 'nowhere.toml'"),
        (Step("toml", '[teacher]\nmodel = "m"\n'), "names its file"),
    ],
)
def test_a_step_that_cannot_be_done_is_found(place, run, step, message):
    with pytest.raises(AssertionError, match=re.escape(message)):
        walk([step], place, run)


def test_an_option_of_torchrun_that_does_not_exist_is_found(capsys):
    with pytest.raises(SystemExit):
        started("torchrun --wings 8 -m leaf train leaf-ir")
    assert "--wings" in capsys.readouterr().err


def test_commands_are_joined_cut_at_comments_and_unrolled():
    page = (
        "```sh\nleaf plan a.toml   # a look\nfor rank in 0 1; do\n  A=$rank leaf embed a.toml --rank $rank \\\n"
        "    --world 2 &\ndone; wait\n```\n```python\nx = 1\n```\n"
    )
    assert steps(page) == [
        Step("sh", "leaf plan a.toml"),
        Step("sh", "A=0 leaf embed a.toml --rank 0      --world 2"),
        Step("sh", "A=1 leaf embed a.toml --rank 1      --world 2"),
        Step("python", "x = 1\n"),
    ]
    assert started("A=1 leaf embed a.toml") == [["leaf", "embed", "a.toml"]]
