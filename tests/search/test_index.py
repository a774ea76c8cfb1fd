"""The index and its verbs, with tiny real encoders; and `leaf index` and `leaf search` around them."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import leaf
from leaf.cli import searching
from leaf.encoder import normalised
from leaf.errors import LeafError
from leaf.evaluation.retrieval import retrieve
from leaf.search import Document, Index, making
from leaf.search import index as module
from leaf.search.documents import DocumentFiles
from leaf.search.folder import FolderStore
from leaf.search.store import Hit
from leaf.space import Space
from leaf.teacher.model import SentenceTransformerEncoder
from tiny import save_teacher, sentences
from tiny_student import make_student

TEXTS = sentences(80, seed=11)
DOCUMENTS = [Document(f"d{at:02}", text, metadata={"length": len(text)}) for at, text in enumerate(TEXTS)]
QUERIES = sentences(12, seed=12)


class Counting:
    """An encoder that counts the documents it is asked for, and may fail or wait."""

    def __init__(self, encoder, fail_after=None):
        self._encoder, self.count, self._fail_after = encoder, 0, fail_after

    def __getattr__(self, name):
        return getattr(self._encoder, name)

    def encode_query(self, texts, **how):
        return self._encoder.encode_query(texts, **how)

    def encode_document(self, texts, **how):
        if self._fail_after is not None and self.count >= self._fail_after:
            raise RuntimeError("the machine is gone")
        self.count += len(texts)
        return self._encoder.encode_document(texts, **how)


@pytest.fixture(scope="module")
def teacher(teacher_folder):
    return SentenceTransformerEncoder(str(teacher_folder), device="cpu")


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    return make_student(tmp_path_factory.mktemp("students") / "student-2l", teacher)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A student of another teacher, of the same width."""
    folder = save_teacher(tmp_path_factory.mktemp("other") / "teacher", seed=9)
    return make_student(
        tmp_path_factory.mktemp("other-students") / "foreign", SentenceTransformerEncoder(str(folder), device="cpu")
    )


@pytest.fixture
def index(teacher, tmp_path):
    with Index.create(tmp_path / "index", teacher, DOCUMENTS, model=teacher.model_id, precision="float32") as made:
        yield made


def test_each_encoder_finds_what_evaluation_finds_with_it(index, teacher, student):
    """The teacher and a student over one index: rankings, ties and scores of `leaf evaluate`, to the last bit."""
    vectors = teacher.encode_document(TEXTS)
    for encoder in (teacher, leaf.load(student, device="cpu")):
        ids = [str(each) for each in range(len(QUERIES))]
        expected = retrieve(
            ids,
            [each.id for each in DOCUMENTS],
            encoder.encode_query(QUERIES),
            vectors,
            similarity=teacher.similarity,
            top_k=10,
        )
        found = index.search(QUERIES, encoder, k=10, exact=True)
        assert [{hit.id: hit.score for hit in hits} for hits in found] == [expected[each] for each in ids]
        assert [[hit.id for hit in hits] for hits in found] == [list(expected[each]) for each in ids]


def test_an_encoder_of_another_space_is_refused_with_the_reason(index, foreign, teacher, tmp_path):
    with pytest.raises(
        LeafError, match=r"foreign is of another space: it answers for model \(weights \w{12}\), the documents"
    ) as raised:
        index.search(QUERIES, leaf.load(foreign, device="cpu"))
    assert "\n" not in str(raised.value)
    with pytest.raises(LeafError, match="answers with 16 dimensions and the index holds"):
        index.search(QUERIES, Silent("narrow", lambda texts: np.ones((len(texts), 16), np.float32), 16))
    with pytest.raises(LeafError, match="is not the teacher of this space"):
        index.put(
            [Document("x", "x")], SentenceTransformerEncoder(str(save_teacher(tmp_path / "t2", seed=9)), device="cpu")
        )
    assert len(index) == len(DOCUMENTS)


class Silent:
    """An encoder that says nothing of itself."""

    def __init__(self, name, encode, dim):
        self.name, self.dim, self.similarity = name, dim, "cosine"
        self.encode_query = self.encode_document = lambda texts, **how: encode(texts)


def test_of_an_encoder_that_says_nothing_the_canaries_decide(index, teacher):
    generator = np.random.default_rng(0)

    def near(texts):
        found = teacher.encode_query(texts)
        return normalised(
            found + 0.05 * generator.standard_normal(found.shape).astype(np.float32) / found.shape[1] ** 0.5
        )

    index.admit(Silent("near", near, teacher.dim))
    far = Silent(
        "far", lambda texts: generator.standard_normal((len(texts), teacher.dim)).astype(np.float32), teacher.dim
    )
    with pytest.raises(LeafError, match="far does not answer in the space of"):
        index.admit(far)


def test_put_encodes_what_is_new_or_has_changed_and_nothing_else(index, teacher):
    counting = Counting(teacher)
    changes = index.put(DOCUMENTS, counting)
    canaries = counting.count  # those by which the teacher is known
    assert (changes.added, changes.updated, changes.unchanged, changes.deleted) == (0, 0, 80, 0)
    changed = [*DOCUMENTS[:78], Document("d78", "bade", metadata={"length": 4}), Document("new", "lode")]
    counting.count = 0
    changes = index.put(changed, counting, prune=True)
    assert counting.count == canaries + 2
    assert (changes.added, changes.updated, changes.unchanged, changes.deleted) == (1, 1, 78, 1)
    assert index.store.get(["d79", "d78"])[1].text == "bade"
    assert index.store.get(["d79"]) == [None]


def test_add_update_and_delete_are_strict_and_leave_nothing_half_done(index, teacher):
    assert index.add([Document("x", "bade")], teacher).added == 1
    assert index.update([Document("x", "lode")], teacher).updated == 1
    assert index.delete(["x"]).deleted == 1
    before = {each.id for some, _ in index.store.rows() for each in some}
    for change, why in (
        (lambda: index.add([Document("new", "bade"), DOCUMENTS[0]], teacher), "'d00' is in .* already"),
        (lambda: index.update([DOCUMENTS[0], Document("new", "bade")], teacher), "no document 'new' in .* to update"),
        (lambda: index.delete(["d00", "none"]), "no document 'none' in .*; nothing was deleted"),
        (lambda: index.put([Document("new", "bade"), Document("new", "lode")], teacher), "the id 'new' comes twice"),
        (lambda: index.put([Document("new", "bade"), Document("", "lode")], teacher), "empty id"),
        (lambda: index.put([Document("new", " ")], teacher), "document 'new' has no text"),
        (lambda: index.put([Document("new", "x", metadata={"length": "3"})], teacher), "metadata 'length' is '3'"),
        (lambda: index.put([Document("new", "x", metadata={"tags": ["a"]})], teacher), "metadata 'tags' is a list"),
        (lambda: index.put([Document("new", "x", metadata={"text": "a"})], teacher), "may not be named 'text'"),
        (lambda: index.put([Document("new", "x", metadata={"n": float("nan")})], teacher), "metadata 'n' is nan"),
        (lambda: index.put([Document("new", "x")], vectors=[np.full(teacher.dim, np.nan)]), "NaN or inf"),
        (lambda: index.put([Document("new", "x")], vectors=[np.ones(3)]), "the space has"),
        (lambda: index.put([Document("new", "x")], vectors=[]), "fewer vectors than documents"),
        (lambda: index.put([Document("new", "x")], vectors=teacher.encode_document(["x", "x"])), "more vectors than"),
    ):
        with pytest.raises(LeafError, match=why) as raised:
            change()
        assert "\n" not in str(raised.value)
        assert {each.id for some, _ in index.store.rows() for each in some} == before


@pytest.mark.parametrize(
    ("queries", "how", "why"),
    [
        ([""], {}, "the query is empty"),
        (["x" * 10_000_000], {}, "the query has 10,000,000 characters, expected at most 65,536"),
        ("x", {}, "arrived as one string"),
        (["x"], {"k": 0}, "0 documents were asked for"),
        (["x"], {"where": "nothing == 1"}, "no metadata column 'nothing'"),
        (["x"], {"where": "length == 'x'"}, "'length' holds int"),
        (["x"], {"where": "length >"}, "cannot read the condition"),
    ],
)
def test_bad_questions_get_one_line(index, teacher, queries, how, why):
    with pytest.raises(LeafError, match=why) as raised:
        index.search(queries, teacher, **how)
    assert len(str(raised.value)) < 400


def test_vectors_of_a_change_that_failed_are_not_encoded_again(index, teacher, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 10)
    more = [Document(f"m{at}", text) for at, text in enumerate(sentences(60, seed=13))]
    with pytest.raises(RuntimeError, match="the machine is gone"):
        index.put(more, Counting(teacher, fail_after=64))  # after the canaries, four chunks of ten
    assert len(index) == 80
    counting = Counting(teacher)
    assert index.put(more, counting).added == 60
    assert counting.count < 64 + 30
    assert len(index) == 140
    expected = teacher.encode_document([each.body for each in more])
    stored = {each.id: row for some, rows in index.store.rows() for each, row in zip(some, rows, strict=True)}
    np.testing.assert_allclose(np.stack([stored[each.id] for each in more]), normalised(expected), atol=1e-6)
    assert not (index.store.folder / ".unfinished").exists()


def test_vectors_that_are_there_are_compared_with_the_model_and_then_taken(teacher, tmp_path, student):
    rows = teacher.encode_document(TEXTS)
    with Index.create(tmp_path / "a", teacher, DOCUMENTS, vectors=rows, precision="float32") as index:
        (hits,) = index.search([TEXTS[3]], teacher, k=3)
        assert hits[0].score == pytest.approx(
            float(normalised(rows)[int(hits[0].id[1:])] @ normalised(teacher.encode_query([TEXTS[3]]))[0])
        )
    with pytest.raises(LeafError, match="the vectors are not those of"):
        Index.create(tmp_path / "b", teacher, DOCUMENTS, vectors=rows[::-1])
    assert not (tmp_path / "b").exists()
    # Where the model cannot be asked, one of its students says whose space it is.
    with Index.create(tmp_path / "c", Space.load(student), DOCUMENTS, vectors=rows) as index:
        assert index.search([TEXTS[3]], leaf.load(student, device="cpu"), k=1)


def test_vectors_added_later_are_compared_with_a_model_that_is_given_or_on_this_machine(
    index, teacher, student, tmp_path, monkeypatch
):
    texts = sentences(20, seed=14)
    more = [Document(f"new{at:02}", text) for at, text in enumerate(texts)]
    right = teacher.encode_document(texts)
    with pytest.raises(LeafError, match="the vectors are not those of"):
        index.put(more, vectors=right[::-1])
    with pytest.raises(LeafError, match="the vectors are not those of"):
        index.put([*DOCUMENTS[:30], more[0]], vectors=np.stack([*teacher.encode_document(TEXTS[:30]), -right[0]]))
    assert len(index) == len(DOCUMENTS)
    assert index.put(more, vectors=right).added == 20
    index.delete([each.id for each in more])
    with monkeypatch.context() as without_torch:
        without_torch.setitem(sys.modules, "leaf.teacher.model", None)
        assert index.put(more, vectors=right[::-1]).added == 20
    index.delete([each.id for each in more])
    # Of a model that is elsewhere nothing is asked, unless it is given.
    index.store.configure(replace(index.settings, model="somebody/else"))
    monkeypatch.setattr("leaf.loading.load", lambda *_, **__: pytest.fail("a hub or an API was asked"))
    with pytest.raises(LeafError, match="the vectors are not those of"):
        index.put(more, teacher, vectors=right[::-1])
    assert index.put(more, vectors=right[::-1]).added == 20


def test_a_title_and_the_id_are_both_shown_within_80_columns(monkeypatch):
    console = Console(file=io.StringIO(), width=80)
    monkeypatch.setattr(searching, "stdout", console)
    text = "How bread is baked without an oven, in a pot with a lid, over a fire that has burned down to embers."
    searching._print_hits(
        [Hit("handbook/kitchen/bread.md#3", 0.9, text, "Baking bread without an oven"), Hit("d7", 0.5, "Rye.")]
    )
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("Baking bread without an oven" in line for line in lines) == 1
    assert sum("handbook/kitchen/bread.md#3" in line for line in lines) == 1
    assert "d7" in lines[-1]
    assert "Rye." in lines[-1]


def test_verify_tells_an_encoder_that_misses_the_canaries_from_one_that_search_refuses(
    index, teacher, student, foreign
):
    """The student was never trained: it names the right teacher, and answers like nobody."""
    index.ask_with([str(student), str(foreign)])
    index.admit(leaf.load(student, device="cpu"))
    found = {each.model: each.refused for each in making.verify_index(str(index.store.folder), None, "cpu")}
    assert found[str(student)].startswith("it names the index's teacher, so a search lets it ask, but it misses")
    assert "is of another space" in found[str(foreign)]
    assert found[teacher.model_id] is None


@pytest.mark.parametrize("precision", ["float32", "int8", "binary"])
def test_dimensions_are_cut_from_documents_and_queries_alike(teacher, tmp_path, precision):
    half = teacher.dim // 2
    with Index.create(tmp_path / "index", teacher, DOCUMENTS, truncate_dim=half, precision=precision) as index:
        cut = normalised(teacher.encode_document(TEXTS)[:, :half])
        (hits,) = index.search([TEXTS[5]], teacher, k=80)
        best = cut @ normalised(teacher.encode_query([TEXTS[5]])[:, :half])[0]
        for hit in hits:
            assert hit.score == pytest.approx(float(best[int(hit.id[1:])]), abs=2e-3)
    with pytest.raises(LeafError, match="is not within 1 to that many"):
        Index.create(tmp_path / "wide", teacher, DOCUMENTS, truncate_dim=999)


def test_a_student_may_search_documents_of_its_own(student, teacher, tmp_path):
    own = leaf.load(student, device="cpu")
    with Index.create(tmp_path / "index", own, DOCUMENTS, model=str(student)) as index:
        assert index.settings.own_documents
        assert index.put([Document("x", "bade")], own).added == 1
        with pytest.raises(LeafError, match="is not the student that the index was made with"):
            index.put([Document("y", "bade")], make_worse(own))
        assert index.search([TEXTS[0]], teacher, k=1)  # it is the teacher's space all the same


def make_worse(encoder):
    return Silent("other", lambda texts: normalised(np.ones((len(texts), encoder.dim), np.float32)), encoder.dim)


def test_an_index_and_its_students_can_move_together(teacher, student, tmp_path):
    import shutil

    (tmp_path / "run").mkdir()
    shutil.copytree(student, tmp_path / "run" / "student")
    Index.create(tmp_path / "run" / "index", teacher, DOCUMENTS, queries=[str(tmp_path / "run" / "student")]).close()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with Index.open(tmp_path / "elsewhere" / "index") as index:
        assert index.encoders() == {"student": str(tmp_path / "elsewhere" / "student")}


KILLED = """
import sys, time
from leaf.search import Document, Index, index as module
from leaf.teacher.model import SentenceTransformerEncoder
from tiny import sentences
module.CHUNK = 16
class Slow(SentenceTransformerEncoder):
    def encode_document(self, texts, **how):
        time.sleep(0.05)
        print("chunk", flush=True)
        return super().encode_document(texts, **how)
with Index.open(sys.argv[1]) as index:
    documents = [Document(f"k{at}", text) for at, text in enumerate(sentences(160, seed=14))]
    index.put(documents, Slow(sys.argv[2], device="cpu"))
"""


def test_killed_while_adding_the_index_is_as_it_was_and_goes_on(index, teacher, teacher_folder):
    before = index.search(QUERIES, teacher, k=5)
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(index.store.folder), str(teacher_folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    for _ in range(6):
        process.stdout.readline()
    time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert index.search(QUERIES, teacher, k=5) == before
    assert len(index) == 80
    counting = Counting(teacher)
    documents = [Document(f"k{at}", text) for at, text in enumerate(sentences(160, seed=14))]
    assert index.put(documents, counting).added == 160
    assert counting.count < 64 + 160 - 3 * 16  # at least three chunks were kept


def test_a_copy_has_the_same_documents_and_vectors(index, teacher, tmp_path):
    making.copy_index(str(index.store.folder), str(tmp_path / "copy"), making.Plan(precision="float16"))
    with Index.open(tmp_path / "copy") as copy:
        assert copy.settings.precision == "float16"
        pairs = zip(copy.search(QUERIES, teacher, k=3), index.search(QUERIES, teacher, k=3), strict=True)
        for ours, theirs in pairs:
            np.testing.assert_allclose([hit.score for hit in ours], [hit.score for hit in theirs], atol=1e-3)
    with pytest.raises(LeafError, match="there is an index in"):
        making.copy_index(str(index.store.folder), str(tmp_path / "copy"), making.Plan())


@pytest.fixture
def files(tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_text(
        "".join(json.dumps({"_id": each.id, "text": each.text, **each.metadata}) + "\n" for each in DOCUMENTS)
    )
    return path


def test_the_command_line_indexes_and_searches(run, files, tmp_path, teacher_folder, student, foreign, monkeypatch):
    target = tmp_path / "index"
    code, out, _ = run("index", files, "--model", teacher_folder, "--out", target, "--queries", student)
    assert (code, out.count("\n")) == (0, 1)
    assert "80 documents × 24, int8  (80 added)" in out
    code, out, _ = run("search", target, TEXTS[7], "-k", 3)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if line[:1].isdigit()] == ["1", "2", "3"]
    assert "student-2l: " in out
    code, out, _ = run(
        "search", target, TEXTS[7], "ba be", "--json", "--model", teacher_folder, "--where", "length > 30"
    )
    found = json.loads(out)
    assert found["model"] == teacher_folder.name
    assert [each["query"] for each in found["answers"]] == [TEXTS[7], "ba be"]
    assert all(hit["metadata"]["length"] > 30 for each in found["answers"] for hit in each["hits"])
    assert found["ms"].keys() == {"encode", "search"}
    code, out, _ = run("index", files, "--out", target)
    assert "(80 unchanged)" in out
    with monkeypatch.context() as patch:  # where nothing has changed, nobody waits for the teacher to be opened
        patch.setattr(making, "_open", None)
        assert run("index", files, "--out", target)[0] == 0
    code, out, _ = run("index", "--out", target, "--delete", "d00", "--json")
    assert (json.loads(out)["documents"], json.loads(out)["deleted"]) == (79, 1)
    for arguments, why in (
        (("search", target, "x", "--model", foreign), "is of another space"),
        (("search", target), f"a question are needed; write for example: leaf search {target}"),
        (("search", "a question alone"), "leaf search DIR "),
        (("search", target, "x", "--nope"), "see `leaf search --help`"),
        (("verify", student, "--table", "copied"), "--table goes with an index in a database"),
        (("search", tmp_path / "nothing", "x"), "no folder"),
        (("search", target, "x" * 70_000), "70,000 characters"),
        (("index", files, "--model", teacher_folder), "say where the index is"),
        (("index", "--out", target), "nothing to index"),
        (("index", files, "--out", tmp_path / "new"), "needs --model TEACHER"),
        (("index", files, "--out", target, "--precision", "binary"), "has --precision int8, not binary"),
        (("index", files, "--out", target, "--delete", "d01"), "two changes"),
        (("index", files, "--out", target, "--model", foreign), "is not the teacher of this space"),
        (("index", tmp_path / "none.jsonl", "--out", target), "no file"),
        (
            ("index", files, "--model", teacher_folder, "--out", tmp_path / "new", "--precision", "int4"),
            "precision 'int4' is unknown",
        ),
    ):
        code, out, error = run(*arguments)
        assert (code, out) == (2, ""), arguments
        assert why in error
        assert error.count("\n") == 1, error
    assert not (tmp_path / "new").exists()


def test_the_command_line_takes_vectors_from_a_column(run, tmp_path, teacher, student):
    rows = teacher.encode_document(TEXTS)
    table = {
        "id": [each.id for each in DOCUMENTS],
        "text": TEXTS,
        "vector": pa.array(rows.tolist(), pa.list_(pa.float32())),
    }
    pq.write_table(pa.table(table), tmp_path / "docs.parquet")
    code, out, error = run(
        "index", tmp_path / "docs.parquet", "--vectors", "vector", "--model", student, "--out", tmp_path / "index"
    )
    assert (code, error) == (0, "")
    code, out, _ = run("search", tmp_path / "index", TEXTS[3], "-k", 1, "--json")
    assert json.loads(out)["model"] == "student-2l"
    assert len(DocumentFiles([tmp_path / "docs.parquet"])) == 80


class Nameless:
    """An encoder that says nothing of itself."""

    def __init__(self, encoder):
        self.name, self.dim, self.similarity = "silent", encoder.dim, encoder.similarity
        self.encode_query, self.encode_document = encoder.encode_query, encoder.encode_document


@pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS[:2], ["Licence. " * 40 + text for text in TEXTS]])
def test_of_few_documents_or_like_ones_the_canaries_still_tell_a_space(teacher, tmp_path, texts):
    """One document, or a header that all share and no more of them is cut out, would be one canary, met by anybody."""
    other = SentenceTransformerEncoder(str(save_teacher(tmp_path / "other", seed=9)), device="cpu")
    with Index.create(tmp_path / "index", teacher, [Document(f"d{at}", text) for at, text in enumerate(texts)]) as made:
        assert len(set(made.space.texts)) >= 16
        made.admit(Nameless(teacher))
        with pytest.raises(LeafError, match="does not answer in the space"):
            made.admit(Nameless(other))


def test_vectors_in_another_order_are_refused_where_all_lie_close(teacher, tmp_path):
    """Cosines of texts of some models are all above 0.95; the order shows all the same."""

    class Narrow(Nameless):
        def identity(self):
            return teacher.identity()

    def encode(texts, **how):
        return teacher.encode_document(texts, **how) + np.float32(1)

    narrow = Narrow(teacher)
    narrow.encode_query = narrow.encode_document = encode
    rows = encode(TEXTS)
    assert float((normalised(rows) @ normalised(rows).T).min()) > 0.9
    with pytest.raises(LeafError, match="in another order: of the first 16"):
        Index.create(tmp_path / "index", narrow, DOCUMENTS, vectors=np.roll(rows, 1, axis=0))
    with pytest.raises(LeafError, match="no matrix of numbers"):
        Index.create(tmp_path / "index", teacher, DOCUMENTS, vectors=[["a"]] * len(DOCUMENTS))
    with Index.create(tmp_path / "index", narrow, DOCUMENTS, vectors=rows) as made:
        assert len(made) == len(DOCUMENTS)


def test_pruning_by_no_documents_is_refused(index, teacher):
    with pytest.raises(LeafError, match="to prune would take out all"):
        index.put([], teacher, prune=True)
    assert len(index) == len(DOCUMENTS)


def test_a_copy_that_cannot_be_leaves_nothing_in_the_way(index, tmp_path):
    source, target = str(index.store.folder), str(tmp_path / "copy")
    with pytest.raises(LeafError, match="holds 24 dimensions, not 99"):
        making.copy_index(source, target, making.Plan(truncate_dim=99))
    assert not os.path.exists(target)
    # One that was killed has no documents yet, and is made again.
    FolderStore.create(target, index.space, index.settings).close()
    assert making.copy_index(source, target, making.Plan()).added == len(DOCUMENTS)


def test_a_first_try_that_failed_binds_nobody(teacher_folder, tmp_path):
    path, target = tmp_path / "docs.jsonl", str(tmp_path / "index")
    path.write_text('{"id": "1", "text": "bade"}\n{"id": "1", "text": "dako"}\n')
    with pytest.raises(LeafError, match="comes twice"):
        making.index_files(target, DocumentFiles([path]), making.Plan(model=str(teacher_folder)))
    path.write_text('{"id": "1", "text": "bade"}\n')
    plan = making.Plan(model=str(teacher_folder), precision="binary")
    assert making.index_files(target, DocumentFiles([path]), plan).added == 1
    assert making.describe(target)["precision"] == "binary"


def test_models_beside_an_index_are_found_through_a_link(teacher, student, tmp_path):
    import shutil

    (tmp_path / "run").mkdir()
    (tmp_path / "links").mkdir()
    shutil.copytree(student, tmp_path / "run" / "student")
    queries = [str(tmp_path / "run" / "student")]
    Index.create(tmp_path / "run" / "index", teacher, DOCUMENTS[:3], queries=queries).close()
    (tmp_path / "links" / "index").symlink_to(tmp_path / "run" / "index")
    with Index.open(tmp_path / "links" / "index") as index:
        assert [os.path.realpath(each) for each in index.encoders().values()] == [os.path.realpath(queries[0])]


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (Document("a", "\ud800 text"), "half a character"),
        (Document("\udfff", "text"), "half a character"),
        (Document("a", "text", metadata={"n": 2**63}), "more than 64 bits"),
    ],
)
def test_what_no_store_can_hold_is_named(index, teacher, document, why):
    with pytest.raises(LeafError, match=why):
        index.put([document], teacher)


def test_numbers_and_texts_of_numpy_are_those_of_python(index, teacher):
    index.put([Document("new", "bade", metadata={"x": np.float64(0.5), "y": np.str_("z")})], teacher)
    assert index.store.columns() == {"length": "int", "x": "float", "y": "str"}
    assert [hit.id for hit in index.search(["bade"], teacher, where="x == 0.5 and y == 'z'")[0]] == ["new"]
