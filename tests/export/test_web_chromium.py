"""The exported page in a headless Chromium, from a file server: it finds what Python does and asks nobody else."""

import json
import os
import shutil
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from chromium import Chromium
from leaf.export import web
from leaf.export.web import export_web
from leaf.runtime.encoder import OnnxEncoder
from leaf.search.index import Index
from leaf.search.store import Document, ranked
from leaf.space import Space
from leaf.teacher.model import SentenceTransformerEncoder
from parity.javascript import JS, browser, missing_packages
from tiny import sentences
from tiny_export import export_tiny

#: A run of `./run demo`, whose real students are searched with where they are there.
DEMO = Path(os.environ.get("LEAF_DEMO_RUN") or Path(__file__).parents[2] / "runs" / "demo")
QUESTIONS = [*sentences(4, seed=21), "BaBe dÉdo [SEP] 漢字", "kale " * 80]
MARKUP = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
DOCUMENTS = [
    *(Document(f"d{row:03}", text, title=f"Title {row}") for row, text in enumerate(sentences(300, seed=22))),
    Document("same-1", "a"),
    Document("same-3", "b"),
    Document("same-2", "c", metadata={"url": "https://example.org/a?b", "bad": "javascript:alert(1)", "none": None}),
    Document("markup", f"{MARKUP} " + "lolo tete " * 200, title=MARKUP),
]
#: What the table's vector is for these questions is the vector of the last four documents.
SAME, LONG = "bade keko mama", "lolo tete lolo tete"

#: How far a cosine in int8 may be from Python's; 2e-4 was the most of ten questions.
ROUNDING = 2e-3

pytestmark = pytest.mark.skipif(browser() is None, reason="no chromium")


@contextmanager
def served(folder):
    """The URL of a plain file server, and the paths that it was asked for."""
    paths = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            paths.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", paths
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def packages():
    """Those of the parity tests, which are the same release."""
    if reason := missing_packages():
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(web, "node_modules", lambda: JS / "node_modules")
        yield


@pytest.fixture(scope="module")
def sites(student, table, teacher_folder, tmp_path_factory):
    """The page of a transformer and of a table, below a folder that is served: both lie at a sub-path."""
    root, students = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("students")
    for folder in (student, table):
        shutil.copytree(folder, students / folder.name)
        export_tiny(students / folder.name)
    teacher = SentenceTransformerEncoder(str(teacher_folder), device="cpu")
    vectors = teacher.encode_document([each.body for each in DOCUMENTS])
    vectors[-4:] = OnnxEncoder(students / table.name).encode_query([SAME, SAME, SAME, LONG])
    index = tmp_path_factory.mktemp("index") / "index"
    Index.create(index, Space.load(table), DOCUMENTS, vectors=vectors).close()
    for folder in (student, table):
        export_web(
            students / folder.name, str(index), root / "some where" / folder.name, precision="fp32", title="Tiny"
        )
    return root


@pytest.fixture
def open_page(sites, chromium):
    with served(sites) as (url, paths):
        chromium.events.clear()

        def go(name, address="", **window):
            page = chromium.open(f"{url}/some%20where/{name}/{address}", **window)
            page.wait("document.querySelector('#status').dataset.seconds", 60)
            return page

        go.paths = paths
        yield go
        said = [
            each["params"]
            for each in chromium.events
            if each.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")
        ]
        assert said == []


def in_python(folder, question, k=10):
    """What numpy finds in the files of a page: ids and scores of the best documents."""
    manifest = json.loads((folder / "manifest.json").read_text())
    files = sorted((folder / "documents").iterdir())
    ids = [each["id"] for path in files for each in json.loads(path.read_text())]
    codes = np.fromfile(folder / "vectors.i8", dtype=np.int8).reshape(len(ids), manifest["dim"])
    encoder = OnnxEncoder(folder / "student", precision=manifest["student"]["precision"], truncate_dim=manifest["dim"])
    query = encoder.encode_query([question])[0].astype(np.float64)
    scores = codes @ query * manifest["scale"]
    best = ranked(ids, scores.round(9), k)
    return [ids[row] for row in best], scores[best]


def ask(page, question):
    page.value("document.querySelector('#query').value = ''")
    page.value("document.querySelector('#query').focus()")
    page.type(question)
    page.press("Enter")
    return answer(page, question)


def answer(page, question):
    """The ids and scores that the page shows for a question, once it does."""
    page.wait(f"document.querySelector('#hits').dataset.question === {json.dumps(question.strip())}", 30)
    hits = page.value(
        "[...document.querySelectorAll('.hit')].map((hit) => [hit.dataset.id, Number(hit.dataset.score)])"
    )
    return [each for each, _ in hits], np.array([score for _, score in hits])


@pytest.mark.parametrize("name", ["student-2l", "student-table"])
def test_the_page_finds_what_python_finds(open_page, sites, name):
    page = open_page(name)
    for question in QUESTIONS:
        ids, scores = ask(page, question)
        expected, cosines = in_python(sites / "some where" / name, question.strip())
        assert ids == expected
        np.testing.assert_allclose(scores, cosines, atol=1e-5)
    assert page.value("location.search") == "?" + "q=" + "+".join(["kale"] * 80)


def test_of_equal_scores_the_greater_id_comes_first(open_page):
    ids, scores = ask(open_page("student-table"), SAME)
    assert ids[:3] == ["same-3", "same-2", "same-1"]
    assert len(set(scores[:3])) == 1
    np.testing.assert_allclose(scores[0], 1, atol=0.01)


def test_a_question_in_the_address_is_asked_and_the_way_back_leads_to_it(open_page):
    page = open_page("student-table", "?q=bade+keko")
    first, _ = answer(page, "bade keko")
    second, _ = ask(page, "lolo tete")
    assert first != second
    assert page.value("[document.title, document.querySelector('#query').value]") == ["lolo tete – Tiny", "lolo tete"]
    page.value("history.back()")
    assert answer(page, "bade keko")[0] == first
    assert page.value("document.querySelector('#query').value") == "bade keko"


def test_texts_stay_texts(open_page):
    page = open_page("student-table")
    ids, _ = ask(page, LONG)
    assert ids[0] == "markup"
    hit = "document.querySelector('[data-id=markup]')"
    assert page.value(f"{hit}.querySelector('h3').firstChild.data") == MARKUP
    assert MARKUP in page.value(f"{hit}.querySelector('.text').textContent")
    assert page.value("document.querySelectorAll('main img, main script').length") == 0
    ask(page, SAME)
    links = page.value(
        "[...document.querySelectorAll('[data-id=same-2] li')]"
        ".map((each) => [each.textContent, each.querySelector('a')?.href])"
    )
    assert links == [["url https://example.org/a?b", "https://example.org/a?b"], ["bad javascript:alert(1)", None]]


def test_the_keyboard_leads_through_the_results_and_back(open_page):
    page = open_page("student-table")
    ids, _ = ask(page, LONG)
    focused = "document.activeElement.dataset.id ?? document.activeElement.id"
    for key, expected in (
        ("ArrowDown", ids[0]),
        ("j", ids[1]),
        ("ArrowDown", ids[2]),
        ("k", ids[1]),
        ("ArrowUp", ids[0]),
    ):
        page.press(key)
        assert page.value(focused) == expected
    text = "document.querySelector('[data-id=markup] .text')"
    assert page.value(f"{text}.clientHeight") < 120
    page.press("Enter")
    assert page.value(f"{text}.clientHeight") > 120
    assert page.value("document.querySelector('[data-id=markup] .more').getAttribute('aria-expanded')") == "true"
    page.press("ArrowUp")
    assert page.value(focused) == "query"
    page.press("ArrowDown")
    page.press("/")
    assert page.value(focused) == "query"
    page.press("Escape")
    assert page.value("[document.querySelector('#query').value, location.search]") == ["", ""]
    assert page.value("document.querySelector('#found').hidden")
    assert not page.value("document.querySelector('#empty').hidden")


def test_more_results_come_below_the_first(open_page, sites):
    page = open_page("student-2l")
    first, _ = ask(page, QUESTIONS[0])
    page.value("document.querySelector('#further').click()")
    page.wait("document.querySelectorAll('.hit').length === 20")
    found, _ = answer(page, QUESTIONS[0])
    assert found == in_python(sites / "some where" / "student-2l", QUESTIONS[0], 20)[0]
    assert found[:10] == first
    assert page.value("document.activeElement.dataset.id") == found[10]


def test_once_loaded_the_page_needs_no_network_and_asked_only_its_folder(sites, chromium):
    with served(sites) as (url, paths):
        page = chromium.open(f"{url}/some%20where/student-2l/")
        page.wait("document.querySelector('#offline').textContent.startsWith('Everything')", 60)
    assert all(path.startswith("/some%20where/student-2l/") for path in paths)
    assert any("documents/0000.json" in path for path in paths)
    ids, _ = ask(page, QUESTIONS[1])  # the server has gone
    assert ids == in_python(sites / "some where" / "student-2l", QUESTIONS[1])[0]


def test_a_narrow_window_needs_no_sideways_scrolling(open_page):
    page = open_page("student-table", "?q=lolo+tete+lolo+tete", width=320, height=700, scheme="dark")
    assert answer(page, LONG)[0][0] == "markup"
    assert page.value("document.documentElement.scrollWidth") <= 320


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "vectors.i8").write_bytes(b"123"), "vectors.i8 has 3 bytes, expected 7296"),
        (lambda folder: (folder / "student/tokenizer.json").unlink(), "student/tokenizer.json cannot be loaded (404)"),
        (lambda folder: wrong(folder, "vector"), "the student does not answer here as it should (cosine -1.000)"),
        (lambda folder: wrong(folder, "ids"), "this browser splits words differently"),
    ],
)  # fmt: skip
def test_a_page_that_would_answer_wrongly_says_so_instead(sites, chromium, tmp_path, damage, reason):
    folder = Path(shutil.copytree(sites / "some where" / "student-table", tmp_path / "site"))
    damage(folder)
    with served(folder) as (url, _):
        page = chromium.open(f"{url}/?q=bade")
        assert reason in page.wait("document.querySelector('.failed')?.textContent", 60)
        assert page.value("document.querySelectorAll('.hit').length") == 0


def wrong(folder, what):
    manifest = json.loads((folder / "manifest.json").read_text())
    check = manifest["check"]
    check.update({"vector": [-each for each in check["vector"]]} if what == "vector" else {"ids": check["ids"][::-1]})
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_documents_that_cannot_be_loaded_can_be_asked_for_again(sites, chromium, tmp_path):
    folder = Path(shutil.copytree(sites / "some where" / "student-table", tmp_path / "site"))
    (folder / "documents").rename(folder / "away")
    with served(folder) as (url, _):
        page = chromium.open(f"{url}/?q=bade")
        failed = "document.querySelector('.failed')?.textContent"
        assert "documents/0000.json cannot be loaded (404)" in page.wait(failed, 60)
        page.wait("document.querySelector('#offline').textContent.startsWith('Not all')")
        (folder / "away").rename(folder / "documents")
        page.press("Enter")
        assert answer(page, "bade")[0] == in_python(folder, "bade")[0]
        assert page.value(failed) is None
        page.value("document.querySelector('#keep').click()")
        page.wait("document.querySelector('#offline').textContent.startsWith('Everything')")


def test_opened_as_a_file_the_page_says_what_to_do(sites, chromium):
    page = chromium.open((sites / "some where" / "student-table" / "index.html").as_uri())
    page.wait("getComputedStyle(document.querySelector('#alone')).opacity === '1'", 20)
    assert "python -m http.server" in page.value("document.querySelector('#alone').innerText")


@pytest.mark.parametrize("name", ["student-2l", "student-table"])
def test_a_real_student_in_int8_finds_what_python_finds(name, chromium, tmp_path, monkeypatch):
    folder = DEMO / name
    if not (folder / "onnx" / "model_quantized.onnx").is_file():
        pytest.skip(f"no {folder} with ONNX files: ./run demo makes one")
    space = Space.load(folder)
    documents = [Document(f"{row:02}", text) for row, text in enumerate(space.texts)]
    store = tmp_path / "index"  # the canaries, with their teacher's vectors
    Index.create(store, space, documents, vectors=space.vectors, precision="float32").close()
    export_web(folder, str(store), tmp_path / "site")
    with served(tmp_path / "site") as (url, _):
        page = chromium.open(url)
        page.wait("document.querySelector('#status').dataset.seconds", 60)
        for question in ["how do I read a file line by line", "ΚΑΛΗΜΕΡΑ Naïve Übung?", "inverse of a matrix " * 60]:
            ids, scores = ask(page, question)
            expected, cosines = in_python(tmp_path / "site", question.strip(), len(documents))
            np.testing.assert_allclose(scores, cosines[:10], atol=ROUNDING)
            # Activations round to int8 the other way now and then, so neighbours may change places.
            own = dict(zip(expected, cosines, strict=True))
            assert np.diff([own[each] for each in ids]).max() < ROUNDING
            assert own[ids[-1]] > cosines[9] - ROUNDING
