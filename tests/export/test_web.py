"""The files of an exported page: codes, documents, manifest, and what is refused. No npm, no browser."""

import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from leaf.errors import LeafError
from leaf.export import web
from leaf.export.web import export_web
from leaf.runtime.encoder import OnnxEncoder
from leaf.search.index import Index
from leaf.search.store import Document, Settings
from leaf.space import Space
from leaf.teacher.model import SentenceTransformerEncoder
from parity.javascript import JS, missing_packages
from tiny import SYLLABLES, WORDS, sentences
from tiny_export import export_tiny

SOURCES = Path(web.__file__).with_name("web")
TEXTS = sentences(40, seed=11)
DOCUMENTS = [
    Document(f"d{row:02}", text, title=f"Title {row}" if row % 2 else "", metadata={"row": row, "even": row % 2 == 0})
    for row, text in enumerate(TEXTS)
]


class Rows:
    """A store of given rows, in batches of 16."""

    name = "a store"

    def __init__(self, space, documents, vectors, **settings):
        self.space, self.documents, self.vectors = space, documents, vectors
        self.settings = Settings(
            **{"dim": vectors.shape[1], "similarity": "cosine", "precision": "float32", **settings}
        )

    def __len__(self):
        return len(self.documents)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def rows(self):
        for start in range(0, len(self.documents), 16):
            yield self.documents[start : start + 16], self.vectors[start : start + 16]


@pytest.fixture(scope="module")
def exported(student, tmp_path_factory):
    folder = Path(shutil.copytree(student, tmp_path_factory.mktemp("exported") / "student-2l"))
    export_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(teacher_folder):
    return SentenceTransformerEncoder(str(teacher_folder), device="cpu")


@pytest.fixture(scope="module")
def index(teacher, teacher_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "index"
    Index.create(folder, teacher, DOCUMENTS, model=str(teacher_folder), precision="float32").close()
    return str(folder)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    for name in web.RUNTIME.values():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"// {name}")
    return folder


@pytest.fixture(autouse=True)
def no_npm(packages, monkeypatch):
    """Packages that are names alone, and no node to run them."""
    monkeypatch.setattr(web, "node_modules", lambda: packages)
    monkeypatch.setattr(web, "_check_tokens", lambda folder, manifest: None)


def read(folder, name="manifest.json"):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_vectors_are_the_teachers_in_int8_by_one_limit_last_id_first(exported, index, teacher, tmp_path):
    facts = export_web(exported, index, tmp_path / "site", precision="fp32")
    manifest = read(tmp_path / "site")
    codes = np.fromfile(tmp_path / "site" / "vectors.i8", dtype=np.int8).reshape(40, 24)
    vectors = teacher.encode_document([each.body for each in reversed(DOCUMENTS)])
    # Of fewer than 1000 documents nothing saturates: the limit is the largest value of all.
    np.testing.assert_allclose(manifest["scale"] * 127, np.abs(vectors).max(), rtol=1e-5)
    assert np.abs(codes).max() == 127
    np.testing.assert_allclose(codes * manifest["scale"], vectors, atol=0.51 * manifest["scale"])
    found = [
        each for path in sorted((tmp_path / "site" / "documents").iterdir()) for each in json.loads(path.read_text())
    ]
    assert [each["id"] for each in found] == sorted((each.id for each in DOCUMENTS), reverse=True)
    assert found[38] == {"id": "d01", "title": "Title 1", "text": TEXTS[1], "metadata": {"row": 1, "even": False}}
    assert {key: facts[key] for key in ("documents", "dim", "precision", "student")} == {
        "documents": 40, "dim": 24, "precision": "fp32", "student": "student-2l"
    }  # fmt: skip
    assert manifest["student"]["prompt"] == "ba be: "
    assert manifest["student"]["max_length"] == 24
    assert manifest["normalise"]


def test_the_manifest_knows_every_file_and_no_folder_of_this_machine(exported, index, tmp_path):
    out = tmp_path / "site"
    facts = export_web(exported, index, out, precision="fp32", title='<b>"Tom" & co</b>')
    written = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert facts["files"] == {name: len(content) for name, content in written.items()}
    assert facts["bytes_total"] == sum(map(len, written.values()))
    manifest = read(out)
    assert manifest["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in written.items()
        if name != "manifest.json"
    }
    assert {f"runtime/{name}" for name in web.RUNTIME} <= manifest["files"].keys()
    for name, content in written.items():
        assert str(Path(exported).parent).encode() not in content, name
        assert index.encode() not in content, name
        assert str(tmp_path.parent.parent).encode() not in content, name
    page = written["index.html"].decode()
    assert "<b>" not in page
    assert "&lt;b&gt;&quot;Tom&quot; &amp; co&lt;/b&gt;" in page
    assert "{{" not in page


def test_the_student_in_the_folder_is_whole(exported, index, tmp_path):
    export_web(exported, index, tmp_path / "site", precision="fp32")
    inside, own = OnnxEncoder(tmp_path / "site" / "student"), OnnxEncoder(exported)
    np.testing.assert_array_equal(inside.encode_query(TEXTS), own.encode_query(TEXTS))
    assert Space.load(tmp_path / "site").id == Space.load(exported).id
    check = read(tmp_path / "site")["check"]
    assert check["ids"] == [own.tokenise([each], "query")[0] for each in check["questions"]]
    np.testing.assert_allclose(check["vector"], own.encode_query(check["questions"][:1])[0], atol=1e-5)


def test_documents_lie_in_files_of_some_size_each(exported, index, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "CHUNK_CHARACTERS", 500)
    export_web(exported, index, tmp_path / "site", precision="fp32")
    starts = read(tmp_path / "site")["chunks"]["starts"]
    files = sorted((tmp_path / "site" / "documents").iterdir())
    assert len(files) == len(starts) > 4
    assert all(path.stat().st_size < 600 for path in files)
    ids = [[each["id"] for each in json.loads(path.read_text())] for path in files]
    assert [sum(map(len, ids[:at])) for at in range(len(ids))] == starts
    assert [each for some in ids for each in some] == [each.id for each in reversed(DOCUMENTS)]


def test_an_index_keeps_its_own_limit_and_dimensions(exported, teacher, tmp_path, monkeypatch):
    vectors = teacher.encode_document(TEXTS)[:, :10]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    store = Rows(Space.load(exported), DOCUMENTS, vectors, precision="int8", limit=0.5)
    monkeypatch.setattr(web, "open_store", lambda index: store)
    facts = export_web(exported, "index", tmp_path / "site", precision="fp32")
    assert (facts["dim"], read(tmp_path / "site")["scale"]) == (10, 0.5 / 127)
    codes = np.fromfile(tmp_path / "site" / "vectors.i8", dtype=np.int8).reshape(40, 10)
    np.testing.assert_array_equal(codes[::-1], np.clip(np.rint(vectors.astype(float) / 0.5 * 127), -127, 127))


def test_calibration_takes_the_first_vectors_where_there_are_very_many(exported, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "CALIBRATED", 20)  # two batches of 16
    vectors = teacher.encode_document(TEXTS)
    monkeypatch.setattr(web, "open_store", lambda index: Rows(Space.load(exported), DOCUMENTS, vectors))
    export_web(exported, "index", tmp_path / "site", precision="fp32")
    np.testing.assert_allclose(read(tmp_path / "site")["scale"] * 127, np.abs(vectors[:32]).max(), rtol=1e-6)
    codes = np.fromfile(tmp_path / "site" / "vectors.i8", dtype=np.int8).reshape(40, 24)
    assert (codes[7:] != 0).any(axis=1).all()
    assert (codes[:8] != 0).any(axis=1).all()  # those that came after it


def test_a_student_of_another_teacher_is_refused(exported, teacher, tmp_path, monkeypatch):
    own = Space.load(exported)
    other = replace(own, teacher={**own.teacher, "weights": "0" * 64})
    monkeypatch.setattr(web, "open_store", lambda index: Rows(other, DOCUMENTS, teacher.encode_document(TEXTS)))
    with pytest.raises(LeafError, match="student-2l is of another space"):
        export_web(exported, "index", tmp_path / "site", precision="fp32")
    assert list(tmp_path.iterdir()) == []


def test_a_student_without_its_onnx_file_is_refused(student, exported, index, tmp_path):
    with pytest.raises(LeafError, match=r"holds no ONNX files .* run `leaf export"):
        export_web(student, index, tmp_path / "site")
    with pytest.raises(LeafError, match="was not exported as q8; there is fp32"):
        export_web(exported, index, tmp_path / "site")


def test_too_many_documents_are_refused_and_none(exported, index, teacher, tmp_path, monkeypatch):
    with pytest.raises(LeafError, match="holds 40 documents and a page takes 39"):
        export_web(exported, index, tmp_path / "site", precision="fp32", max_documents=39)
    store = Rows(Space.load(exported), [], teacher.encode_document(TEXTS)[:0])
    monkeypatch.setattr(web, "open_store", lambda index: store)
    with pytest.raises(LeafError, match="holds no documents"):
        export_web(exported, "index", tmp_path / "site", precision="fp32")


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 3.0])
def test_a_damaged_vector_is_named_and_nothing_is_written(exported, teacher, tmp_path, monkeypatch, value):
    vectors = teacher.encode_document(TEXTS)
    vectors[21] = value
    monkeypatch.setattr(web, "open_store", lambda index: Rows(Space.load(exported), DOCUMENTS, vectors))
    with pytest.raises(LeafError, match=r"is damaged: the vector of document 'd21' has length"):
        export_web(exported, "index", tmp_path / "site", precision="fp32")
    assert list(tmp_path.iterdir()) == []


def test_vectors_of_another_shape_and_a_changed_store_are_refused(exported, teacher, tmp_path, monkeypatch):
    vectors = teacher.encode_document(TEXTS)
    store = Rows(Space.load(exported), DOCUMENTS, vectors[:, :20], dim=24)
    monkeypatch.setattr(web, "open_store", lambda index: store)
    with pytest.raises(LeafError, match=r"vectors of shape \(16, 20\) for 16 documents of 24 dimensions"):
        export_web(exported, "index", tmp_path / "site", precision="fp32")
    store = Rows(Space.load(exported), DOCUMENTS, vectors)
    monkeypatch.setattr(Rows, "rows", lambda self: iter([(DOCUMENTS[:16], vectors[:16])]))
    with pytest.raises(LeafError, match="was changed while it was read"):
        export_web(exported, "index", tmp_path / "site", precision="fp32")


def test_an_earlier_page_is_replaced_whole_and_kept_where_the_next_fails(exported, index, tmp_path, monkeypatch):
    out = tmp_path / "site"
    out.mkdir()  # empty is as good as missing
    export_web(exported, index, out, precision="fp32", title="first")
    (out / "left-over.txt").write_text("of an earlier release")
    with monkeypatch.context() as failing:
        failing.setattr(web, "_check_tokens", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_web(exported, index, out, precision="fp32", title="second")
    assert read(out)["title"] == "first"
    export_web(exported, index, out, precision="fp32")
    assert read(out)["title"] == "Search 40 documents"
    assert not (out / "left-over.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


@pytest.mark.parametrize("content", ["{}", '{"kind": "another"}', "no JSON"])
def test_a_folder_of_something_else_is_left_alone(exported, index, tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(LeafError, match="holds something other than an exported page"):
        export_web(exported, index, tmp_path, precision="fp32")
    (tmp_path / "file").write_text("")
    with pytest.raises(LeafError, match="holds something other than an exported page"):
        export_web(exported, index, tmp_path / "file", precision="fp32")
    assert (tmp_path / "manifest.json").read_text() == content


@pytest.fixture
def npm(no_npm, tmp_path, monkeypatch):
    """The real `node_modules`, and a place for programs that are called npm."""
    monkeypatch.undo()
    monkeypatch.setenv("LEAF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    def write(script):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / "npm").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / "npm").chmod(0o755)

    return write


def test_npm_is_asked_once_and_what_is_needed_is_kept(npm, tmp_path):
    files = " ".join(f"node_modules/{name}" for name in web.RUNTIME.values())
    npm(
        f'test -f package-lock.json && for f in {files}; do mkdir -p "$(dirname $f)"; echo "$@" > $f; done\n'
        "touch node_modules/more"
    )
    folder = web.node_modules()
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        *web.RUNTIME.values()
    }
    assert "ci --ignore-scripts" in (folder / web.RUNTIME["ort.js"]).read_text()
    npm("exit 1")
    assert web.node_modules() == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_npm_that_is_missing_or_offline_is_one_line(npm, tmp_path, monkeypatch):
    npm("echo 'npm error code ENOTFOUND' >&2; echo 'npm error syscall getaddrinfo' >&2; exit 1")
    with pytest.raises(LeafError, match=r"^npm could not fetch .*\(npm error code ENOTFOUND\); connect .*$"):
        web.node_modules()
    assert list((tmp_path / "cache" / "web").iterdir()) == []
    monkeypatch.setattr(web.shutil, "which", lambda name: None)
    with pytest.raises(LeafError, match=r"^npm is not installed, .* install Node.js 20 or newer, .*$"):
        web.node_modules()


def test_the_lock_file_pins_what_the_parity_tests_run(tmp_path):
    lock, tested = (
        json.loads((SOURCES / "package-lock.json").read_text()),
        json.loads((JS / "package-lock.json").read_text()),
    )
    wanted = json.loads((SOURCES / "package.json").read_text())["dependencies"]
    for name, version in wanted.items():
        assert lock["packages"][f"node_modules/{name}"]["version"] == version
        assert (
            tested["packages"][f"node_modules/{name}"]["integrity"]
            == lock["packages"][f"node_modules/{name}"]["integrity"]
        )
    assert not any("resolved" in each for each in lock["packages"].values())


def test_the_page_names_no_other_host_and_makes_no_markup_of_texts():
    for name in web.PAGE:
        source = (SOURCES / name).read_text()
        hosts = set(re.findall(r"https?://([\w.:-]+)", source))
        assert hosts <= {"localhost:8000", "www.w3.org"}, name  # the namespace of an SVG is no address
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(", source), name


def byte_level():
    tokenizer = Tokenizer(
        models.BPE(
            {
                **{each: at for at, each in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))},
                "<s>": 256,
                "</s>": 257,
            },
            [],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 257), ("<s>", 256))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def wordpiece():
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcσςοκμ.,!'", *(f"##{each}" for each in "abcσςοκμ"), *WORDS]
    tokenizer = Tokenizer(models.WordPiece({each: at for at, each in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return tokenizer


def unigram():
    tokenizer = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("▁", -2.0), *((each, -3.0) for each in SYLLABLES), ("▁ba", -2.5)], 0)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


@pytest.fixture
def reading(tmp_path, monkeypatch):
    """The real check of token ids, in node, for a tokenizer in a page's folder."""
    if reason := missing_packages():
        pytest.skip(reason)
    monkeypatch.undo()
    student = {"name": "tiny", "precision": "fp32"}
    manifest = {"title": "", "documents": 0, "teacher": "", "dim": 0, "student": student}
    web._copy_page(tmp_path, JS / "node_modules", manifest)
    (tmp_path / "tokenizer_config.json").write_text("{}")

    def check(tokenizer, questions, ids, **usage):
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        student = {"name": "tiny", "tokenizer": "tokenizer.json", "tokenizer_config": "tokenizer_config.json", **usage}
        expected = {"questions": questions, "ids": ids}
        web._check_tokens(tmp_path, {"student": student, "teacher": "a teacher", "check": expected})

    return check


@pytest.mark.parametrize("make", [byte_level, wordpiece, unigram])
@pytest.mark.parametrize(
    ("split", "direction", "special"), [(True, "left", True), (False, "right", True), (False, "left", False)]
)
def test_javascript_reads_questions_as_rust_does(reading, make, split, direction, special):
    tokenizer = make()
    tokenizer.enable_truncation(11, direction=direction)
    tokenizer.encode_special_tokens = split
    questions = [*web.AWKWARD, *TEXTS, "ΟΚΟΣ ΣΚ Σ όσος", "ba [SEP] be </s> [CLS]", "<s>", "a" * 30]
    ids = [tokenizer.encode("ba: " + each, add_special_tokens=special).ids for each in questions]
    assert max(map(len, ids)) == 11
    reading(
        tokenizer, questions, ids, prompt="ba: ", max_length=11, add_special_tokens=special, split_special_tokens=split
    )


def test_a_tokenizer_that_javascript_reads_otherwise_is_refused(reading, tmp_path):
    tokenizer = wordpiece()
    usage = {"prompt": "", "max_length": None, "add_special_tokens": True, "split_special_tokens": False}
    ids = [tokenizer.encode("abc").ids, [2, 1, 3]]
    with pytest.raises(LeafError, match=r"JavaScript splits 'abba' into 6 tokens, .* into 3; .* of a teacher"):
        reading(tokenizer, ["abc", "abba"], ids, **usage)
    tokenizer.pre_tokenizer = pre_tokenizers.UnicodeScripts()  # which the library does not have
    with pytest.raises(LeafError, match=r"^the tokenizer of tiny does not run in JavaScript \(.*Error.*\); serve .*$"):
        reading(tokenizer, ["abc"], [[2]], **usage)
    assert not (tmp_path / "package.json").exists()


def test_the_search_ranks_as_numpy_does_with_ties_to_the_earlier_row(tmp_path):
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    generator = np.random.default_rng(0)
    codes = generator.integers(-3, 4, (300, 13), dtype=np.int8)  # few values, so many ties
    query = generator.integers(-2, 3, 13).astype(np.float32)
    script = """
        import { prepare, rank } from "./rank.js";
        import { readFileSync } from "node:fs";
        const { codes, query } = JSON.parse(readFileSync(0));
        const ranks = [1, 10, 400].map((k) => rank(Int8Array.from(codes), Float32Array.from(query), k));
        const cut = (vector, normalise) => [...prepare(Float32Array.from(vector), 2, normalise)];
        const prepared = [cut([3, 4, 9], true), cut([3, 4, 9], false), cut([0, 0, 1], true)];
        console.log(JSON.stringify({ ranks, prepared }));
    """
    told = json.dumps({"codes": codes.ravel().tolist(), "query": query.tolist()})
    done = subprocess.run(
        ["node", "--input-type=module", "--eval", script],
        cwd=SOURCES,
        input=told,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    scores = codes.astype(int) @ query.astype(int)
    order = np.argsort(-scores, kind="stable")
    for k, hits in zip((1, 10, 300), found["ranks"], strict=True):
        assert [each["row"] for each in hits] == order[:k].tolist()
        assert [each["score"] for each in hits] == scores[order[:k]].tolist()
    np.testing.assert_allclose(found["prepared"], [[0.6, 0.8], [3, 4], [0, 0]], rtol=1e-6)


def test_dot_product_spaces_keep_their_lengths(exported, teacher, tmp_path, monkeypatch):
    vectors = 3 * teacher.encode_document(TEXTS)
    store = Rows(replace(Space.load(exported)), DOCUMENTS, vectors, similarity="dot")
    monkeypatch.setattr(web, "open_store", lambda index: store)
    export_web(exported, "index", tmp_path / "site", precision="fp32")
    manifest = read(tmp_path / "site")
    assert not manifest["normalise"]
    codes = np.fromfile(tmp_path / "site" / "vectors.i8", dtype=np.int8).reshape(40, 24)
    np.testing.assert_allclose(codes[::-1] * manifest["scale"], vectors, atol=0.51 * manifest["scale"])
