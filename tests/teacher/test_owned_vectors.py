import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from leaf.errors import LeafError
from leaf.recipe import OwnedVectors, Recipe
from leaf.teacher import dump as dump_module
from leaf.teacher import owned as owned_module
from leaf.teacher.embed import cache_folder, cache_key, embed
from leaf.teacher.model import SentenceTransformerEncoder
from leaf.teacher.owned import MANIFEST, VECTORS, Owned
from leaf.teacher.vectors import OwnedTeacher
from leaf.texts.shards import shard_name, write_shard
from leaf.vector_files import read_vectors
from postgres import postgres  # noqa: F401  a fixture
from tiny import save_teacher, sentences

DIM = 6
TEXTS = sentences(50)


def numbers(rows: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    """Vectors that float16 holds exactly: n / 1024 with |n| ≤ 1000, none of them zero."""
    drawn = np.random.default_rng(seed).integers(1, 1001, (rows, dim)) * np.resize([1, -1], dim)
    return (drawn / 1024).astype(np.float32)


def write(path: Path, texts, vectors, **columns) -> OwnedVectors:
    pq.write_table(pa.table({"text": texts, "vector": vectors, **columns}), path)
    return OwnedVectors(source=str(path), kind="kind" if "kind" in columns else None)


def owned(settings: OwnedVectors, tmp_path: Path, name: str = ".owned") -> Owned:
    return Owned(settings, tmp_path / name)


def lookup(found: Owned, texts=TEXTS, kind="document") -> np.ndarray:
    return found.vectors(found.find(texts, kind))


# Parquet


def text_of(vectors: np.ndarray) -> list[str]:
    return ["[" + ", ".join(map(repr, row)) + "]" for row in vectors.tolist()]


@pytest.mark.parametrize(
    ("column", "dtype"),
    [
        (lambda v: pa.array(v.tolist(), pa.list_(pa.float32())), "float32"),
        (lambda v: pa.array(v.tolist(), pa.list_(pa.float64())), "float32"),
        (lambda v: pa.array(v.tolist(), pa.large_list(pa.float32())), "float32"),
        (lambda v: pa.array(v.tolist(), pa.list_(pa.float64(), DIM)), "float32"),
        (lambda v: pa.array(list(v.astype(np.float16))), "float16"),
        (lambda v: pa.FixedSizeListArray.from_arrays(pa.array(v.astype(np.float16).ravel()), DIM), "float16"),
        (lambda v: pa.array(text_of(v)), "float32"),
        (lambda v: pa.array(text_of(v)).dictionary_encode(), "float32"),
    ],
    ids=["float", "double", "large list", "fixed double", "half", "fixed half", "strings", "dictionary"],
)
def test_every_kind_of_column_gives_the_same_vectors(tmp_path, column, dtype):
    vectors = numbers(50)
    found = owned(write(tmp_path / "dump.parquet", TEXTS, column(vectors)), tmp_path)
    shuffled = np.random.default_rng(1).permutation(50)
    answered = lookup(found, [TEXTS[row] for row in shuffled])
    assert answered.dtype == np.float32
    np.testing.assert_array_equal(answered, vectors[shuffled])
    assert (found.dim, found.facts["dtype"]) == (DIM, dtype)
    assert (tmp_path / ".owned" / VECTORS).stat().st_size == 50 * DIM * (2 if dtype == "float16" else 4)


def test_a_text_is_found_under_its_own_kind_and_no_other(tmp_path):
    kinds = ["query" if row % 3 == 0 else "doc" for row in range(50)]
    settings = write(tmp_path / "dump.parquet", [*TEXTS, TEXTS[0]], list(numbers(51)), kind=[*kinds, "document"])
    found = owned(settings, tmp_path)
    expected = numbers(51)
    for kind, names in (("query", {"query"}), ("document", {"doc", "document"})):
        rows = found.find(TEXTS, kind)
        own = [row for row in range(1, 50) if kinds[row] in names]
        assert rows[own].tolist() == own
        assert (rows[[row for row in range(1, 50) if row not in own]] == -1).all()
    np.testing.assert_array_equal(lookup(found, TEXTS[:1], "query"), expected[:1])
    np.testing.assert_array_equal(lookup(found, TEXTS[:1], "document"), expected[50:])
    assert found.find(["never seen"], "query").tolist() == [-1]
    texts = list(found.texts())
    assert texts[0] == (TEXTS[0], "query")
    assert texts[-1] == (TEXTS[0], "document")


def test_a_folder_and_a_glob_are_read_in_the_order_of_names(tmp_path):
    vectors = numbers(50)
    (tmp_path / "dump").mkdir()
    for number, rows in enumerate((slice(0, 20), slice(20, 50))):
        write(tmp_path / "dump" / f"{number}.parquet", TEXTS[rows], list(vectors[rows]))
    for source in (tmp_path / "dump", tmp_path / "d*" / "*.parquet"):
        found = owned(OwnedVectors(source=str(source)), tmp_path, f".{source.name}")
        np.testing.assert_array_equal(lookup(found), vectors)
        assert [text for text, _ in found.texts()] == TEXTS


def test_other_column_names_are_settings_and_a_wrong_one_is_named_with_those_there_are(tmp_path):
    pq.write_table(pa.table({"body": TEXTS, "embedding": list(numbers(50)), "n": [1] * 50}), tmp_path / "d.parquet")
    source = str(tmp_path / "d.parquet")
    found = owned(OwnedVectors(source=source, text="body", vector="embedding"), tmp_path)
    np.testing.assert_array_equal(lookup(found), numbers(50))
    for settings, message in (
        ({}, r"has no column 'text' \(it has body, embedding, n\); name the right one in teacher\.vectors\.text"),
        ({"text": "body"}, r"has no column 'vector' .*teacher\.vectors\.vector"),
        ({"text": "body", "vector": "embedding", "kind": "k"}, r"has no column 'k' .*teacher\.vectors\.kind"),
        ({"text": "n", "vector": "embedding"}, r"column 'n' of .* holds int64, expected strings"),
        ({"text": "body", "vector": "n"}, r"column 'n' of .* holds int64, expected lists of float16, float32"),
        ({"text": "body", "vector": "embedding", "kind": "body"}, r"row 0 of .* is of kind '.*', expected query or"),
    ):
        with pytest.raises(LeafError, match=message):
            _ = owned(OwnedVectors(source=source, **settings), tmp_path, ".other").facts


def test_rows_without_a_text_or_a_vector_are_skipped_and_counted(tmp_path):
    vectors = [*numbers(5).tolist(), None, [0.0] * DIM]
    texts = [TEXTS[0], None, "", " \n", TEXTS[4], TEXTS[5], TEXTS[6]]
    found = owned(write(tmp_path / "d.parquet", texts, pa.array(vectors, pa.list_(pa.float32()))), tmp_path)
    assert found.facts["skipped"] == {
        "vectors that are null": 1,
        "vectors that are all zeros": 1,
        "texts that are null or empty": 3,
    }
    assert found.find(TEXTS[:7], "document").tolist() == [0, -1, -1, -1, 1, -1, -1]
    np.testing.assert_array_equal(lookup(found, [TEXTS[4], TEXTS[0]]), numbers(5)[[4, 0]])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows[4998].__setitem__(2, float("nan")), r"the vector in row 4999 of .*d\.parquet holds NaN or"),
        (lambda rows: rows[3].__setitem__(0, 1e300), r"the vector in row 4 of .*d\.parquet holds NaN or infinity"),
        (lambda rows: rows[4998].pop(), r"row 4999 of .*d\.parquet holds 5 numbers where rows before hold 6; correct"),
        (
            lambda rows: [row.pop() for row in rows[4095:]],
            r"row 4096 of .*d\.parquet holds 5 numbers where rows before",
        ),
        (lambda rows: rows[7].__setitem__(1, None), r"the vector in row 8 of .*d\.parquet has nulls in it"),
        (lambda rows: [row.clear() for row in rows], r"the vector in row 1 of .*d\.parquet holds no numbers"),
    ],
    ids=["nan", "too large", "ragged", "ragged between batches", "null inside", "empty"],
)
def test_a_vector_that_is_none_stops_the_reading_with_file_and_row(tmp_path, spoil, message):
    rows = numbers(4999).tolist()
    spoil(rows)
    texts = [f"text {row}" for row in range(5000)]
    settings = write(tmp_path / "d.parquet", texts, pa.array([None, *rows], pa.list_(pa.float64())))
    with pytest.raises(LeafError, match=message):
        _ = owned(settings, tmp_path).facts
    assert not (tmp_path / ".owned" / MANIFEST).exists()


@pytest.mark.parametrize("bad", ["[1, 2, x, 4, 5, 6]", "", "[1 2 3 4 5 6]", "null"])
def test_a_string_that_is_no_vector_is_shown_with_its_row(tmp_path, bad):
    settings = write(tmp_path / "d.parquet", TEXTS[:3], [*text_of(numbers(2)), bad])
    with pytest.raises(LeafError, match=r"the vector in row 2 of .*is '.*', where numbers like \[0\.1, 0\.2\] were"):
        _ = owned(settings, tmp_path).facts


def test_sources_that_are_no_dump_are_one_line(tmp_path):
    (tmp_path / "d.parquet").write_bytes(b"not Parquet")
    (tmp_path / "empty").mkdir()
    for source, message in (
        ("none.parquet", "no file '.*none.parquet'; give Parquet"),
        ("empty", "no file '.*empty'; give Parquet"),
        ("d.parquet", "cannot read .*d.parquet: .*; is it Parquet, and complete"),
    ):
        with pytest.raises(LeafError, match=message):
            _ = owned(OwnedVectors(source=str(tmp_path / source)), tmp_path).facts
    settings = write(tmp_path / "e.parquet", pa.array([None], pa.string()), [[1.0]])
    with pytest.raises(LeafError, match=r"no row with a text and a vector \(skipped: \{'texts that are null"):
        _ = owned(settings, tmp_path).facts


def test_the_same_text_twice_is_one_where_the_vectors_agree_and_an_error_where_they_do_not(tmp_path):
    vectors = numbers(50)
    near = vectors[:5] * np.float32(1.00001)
    same = owned(write(tmp_path / "same.parquet", TEXTS + TEXTS[:5], [*vectors, *near]), tmp_path)
    np.testing.assert_array_equal(lookup(same), vectors)
    assert (same.facts["rows"], same.facts["repeats"], same.facts["kinds"]["document"]) == (55, 5, 50)
    other = [*vectors, *near[:2], *-near[2:], -near[4]]
    settings = write(tmp_path / "other.parquet", [*TEXTS, *TEXTS[:5], TEXTS[4]], other)
    with pytest.raises(LeafError, match=r"3 texts of .* have two different vectors, such as '(.*)'; keep") as caught:
        _ = owned(settings, tmp_path, ".other").facts
    assert str(caught.value).split("'")[1] in {" ".join(text.split())[:60] for text in TEXTS[2:5]}


def test_a_whole_batch_may_be_without_vectors_and_files_must_agree_in_precision(tmp_path):
    vectors = pa.array([None] * 5000 + numbers(3).tolist(), pa.list_(pa.float32()))
    texts = [f"text {row}" for row in range(5003)]
    found = owned(write(tmp_path / "a.parquet", texts, vectors), tmp_path)
    assert found.facts["skipped"] == {"vectors that are null": 5000}
    np.testing.assert_array_equal(lookup(found, texts[5000:]), numbers(3))
    write(tmp_path / "b.parquet", TEXTS[:3], list(numbers(3).astype(np.float16)))
    with pytest.raises(LeafError, match=r"holds float32 and float16 vectors; make them one"):
        _ = owned(OwnedVectors(source=str(tmp_path)), tmp_path, "both").facts


# The copy


def test_a_finished_copy_is_reused_and_a_changed_file_is_read_again(tmp_path, monkeypatch, capsys):
    path = tmp_path / "d.parquet"
    first = owned(write(path, TEXTS, list(numbers(50))), tmp_path).digest
    monkeypatch.setattr(owned_module, "open_dump", None)  # nobody can read the source
    again = owned(OwnedVectors(source=str(path)), tmp_path)
    assert again.digest == first
    np.testing.assert_array_equal(lookup(again), numbers(50))
    moved = tmp_path / "moved"
    moved.mkdir()
    path.rename(moved / "d.parquet")
    assert owned(OwnedVectors(source=str(moved)), tmp_path).digest == first
    monkeypatch.undo()
    capsys.readouterr()
    changed = owned(write(moved / "d.parquet", TEXTS, list(numbers(50, seed=1))), tmp_path)
    assert changed.digest != first
    np.testing.assert_array_equal(lookup(changed), numbers(50, seed=1))
    assert "teacher.vectors is another (files[0].digest was" in " ".join(capsys.readouterr().err.split())


def test_a_read_that_was_killed_begins_again_and_leaves_nothing_behind(tmp_path, monkeypatch):
    settings, folder = write(tmp_path / "d.parquet", TEXTS, list(numbers(50))), tmp_path / ".owned"
    folder.mkdir()
    (folder / ".vectors.bin.1.tmp").write_bytes(b"half")
    (folder / "vectors.bin").write_bytes(b"whole, but no manifest")
    found = owned(settings, tmp_path)
    np.testing.assert_array_equal(lookup(found), numbers(50))
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") == [
        "index.npz", "manifest.json", "texts.arrow", "vectors.bin"
    ]  # fmt: skip


def test_a_disk_that_is_too_small_is_seen_after_the_first_batch(tmp_path, monkeypatch):
    settings = write(tmp_path / "d.parquet", TEXTS, list(numbers(50)))
    monkeypatch.setattr(owned_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 50 * DIM * 4 - 1}))
    with pytest.raises(LeafError, match=r"a copy of the vectors needs 0 MB and .* free; choose an --out on a larger"):
        _ = owned(settings, tmp_path).facts
    assert [path.name for path in (tmp_path / ".owned").iterdir()] == ["reading.lock"]


def test_a_damaged_copy_is_named_and_not_answered_from(tmp_path):
    settings = write(tmp_path / "d.parquet", TEXTS, list(numbers(50)))
    for name in ("vectors.bin", "index.npz"):
        _ = owned(settings, tmp_path, name).facts
        file = tmp_path / name / name
        file.write_bytes(file.read_bytes()[:-5])
        with pytest.raises(LeafError, match=rf"{name} is damaged .*delete .* and run again"):
            lookup(owned(settings, tmp_path, name))


def test_the_digest_names_the_content_whatever_the_order_of_the_rows(tmp_path):
    vectors, order = numbers(50), np.random.default_rng(3).permutation(50)
    plain = owned(write(tmp_path / "a.parquet", TEXTS, list(vectors)), tmp_path, "a").digest
    shuffled = write(tmp_path / "b.parquet", [TEXTS[row] for row in order], list(vectors[order]))
    assert owned(shuffled, tmp_path, "b").digest == plain
    others = {
        "vector": (TEXTS, [*vectors[:-1], vectors[-1] * 1.01], {}),
        "text": ([*TEXTS[:-1], "x"], list(vectors), {}),
        "kind": (TEXTS, list(vectors), {"kind": ["document"] * 49 + ["query"]}),
        "rows": (TEXTS[:-1], list(vectors[:-1]), {}),
    }
    for name, (texts, changed, columns) in others.items():
        assert owned(write(tmp_path / f"{name}.parquet", texts, changed, **columns), tmp_path, name).digest != plain


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_neither_reading_nor_answering_holds_the_vectors_in_memory(tmp_path):
    """100,000 vectors of 768 floats are 307 MB; 24 bytes a row are 2.4 MB, and a batch 6 MB in each of a few forms."""
    values = np.random.default_rng(0).random(100_000 * 768, dtype=np.float32)
    columns = {
        "text": [f"text {row}" for row in range(100_000)],
        "vector": pa.FixedSizeListArray.from_arrays(values, 768),
    }
    # One row group, as pyarrow writes it by default.
    pq.write_table(pa.table(columns), tmp_path / "d.parquet", compression="none", use_dictionary=False)
    script = """
import sys
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet
from leaf.recipe import OwnedVectors
from leaf.teacher.owned import Owned
def high():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) / 1024
pa.set_memory_pool(pa.system_memory_pool())
before = high()
owned = Owned(OwnedVectors(source=sys.argv[1]), Path(sys.argv[2]))
for start in range(0, 100_000, 5000):
    rows = owned.find([f"text {row * 7919 % 100_000}" for row in range(start, start + 5000)], "document")
    assert (rows == [row * 7919 % 100_000 for row in range(start, start + 5000)]).all()
    owned.vectors(rows)
print(high() - before)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "d.parquet"), str(tmp_path / "o")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert float(ran.stdout) < 200
    for path in (tmp_path / "d.parquet", tmp_path / "o" / VECTORS):
        path.unlink()  # pytest would keep 600 MB


def test_where_the_dump_is_gone_its_copy_goes_on(tmp_path, capsys):
    settings = write(tmp_path / "d.parquet", TEXTS, list(numbers(50)))
    expected = lookup(owned(settings, tmp_path))
    (tmp_path / "d.parquet").unlink()
    np.testing.assert_array_equal(lookup(owned(settings, tmp_path)), expected)
    assert "keeping the 50 vectors that" in capsys.readouterr().err
    for other in (settings.model_copy(update={"vector": "other"}), settings):
        folder = tmp_path if other is not settings else tmp_path / "elsewhere"
        with pytest.raises(LeafError, match="no file"):
            _ = owned(other, folder).facts


# The teacher


class Counting:
    """An inner teacher that writes down what it is asked; `change` spoils its vectors."""

    def __init__(self, folder, change=lambda vectors, role: vectors):
        self.real, self.asked, self.change = SentenceTransformerEncoder(str(folder), name="inner"), [], change
        self.name, self.dim, self.similarity = "inner", self.real.dim, "dot"
        self.prompts, self.folder = self.real.prompts, self.real.folder
        self.max_length, self.num_parameters = self.real.max_length, self.real.num_parameters
        self.closed = 0

    def identity(self):
        return self.real.identity()

    def bill(self):
        return {"texts_bought": 3}

    def close(self):
        self.closed += 1

    def encode_query(self, texts, *, batch_size=32, advance=None):
        self.asked.append(("query", list(texts)))
        return self.change(self.real.encode_query(texts, batch_size=batch_size, advance=advance), "query")

    def encode_document(self, texts, *, batch_size=32, advance=None):
        self.asked.append(("document", list(texts)))
        return self.change(self.real.encode_document(texts, batch_size=batch_size, advance=advance), "document")


@pytest.fixture(scope="module")
def real(teacher_folder):
    return SentenceTransformerEncoder(str(teacher_folder))


@pytest.fixture
def corpus(tmp_path):
    """Shards of 50 texts, every fifth a query."""
    kinds = ["query" if row % 5 == 0 else "document" for row in range(50)]
    shards = []
    for number, rows in enumerate((slice(0, 30), slice(30, 50))):
        columns = {"text": TEXTS[rows], "kind": kinds[rows], "source": ["s"] * len(TEXTS[rows])}
        shards.append(write_shard(tmp_path / "texts" / shard_name(number), pa.table(columns)))
    return tmp_path / "texts", shards, kinds


def fill(corpus, out, teacher):
    texts, shards, _ = corpus
    key = cache_key(teacher, "float32")
    folder = cache_folder(out, key)
    facts = embed(texts, shards, teacher, folder, key)
    return facts, np.concatenate([each for part in facts["parts"] for each in read_vectors(folder / part["file"])])


def test_vectors_that_are_owned_give_the_very_cache_that_the_teacher_would(corpus, real, tmp_path):
    facts, expected = fill(corpus, tmp_path / "e", real)
    settings = write(tmp_path / "d.parquet", TEXTS, list(expected), kind=corpus[2])
    teacher = OwnedTeacher(settings, None, tmp_path / "again" / ".owned", name="mine")
    owned_facts, found = fill(corpus, tmp_path / "again", teacher)
    np.testing.assert_array_equal(found, expected)
    assert owned_facts == facts
    assert teacher.identity() == {"model": "vectors:mine", "prompts": {}, "dim": real.dim, "similarity": "cosine"}
    assert (teacher.folder, teacher.max_length, teacher.num_parameters, teacher.prompts) == (None, None, None, {})


def test_only_the_texts_without_a_vector_are_asked_of_the_teacher_in_one_call(corpus, teacher_folder, real, tmp_path):
    kinds = corpus[2]
    documents = [text for text, kind in zip(TEXTS, kinds, strict=True) if kind == "document"]
    known, unknown = documents[:37], documents[37:]
    settings = write(tmp_path / "d.parquet", known, list(real.encode_document(known)))
    inner = Counting(teacher_folder)
    teacher = OwnedTeacher(settings, inner, tmp_path / ".owned", name="mine")
    _, expected = fill(corpus, tmp_path / "e", real)
    _, found = fill(corpus, tmp_path / "o", teacher)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    compared = inner.asked.pop(0)
    assert compared[0] == "document"
    assert len(compared[1]) == 16
    assert set(compared[1]) <= set(known)
    queries = [text for text, kind in zip(TEXTS, kinds, strict=True) if kind == "query"]
    assert inner.asked == [("query", queries[:6]), ("query", queries[6:]), ("document", unknown)]
    assert teacher.identity() == inner.identity()
    assert (teacher.similarity, teacher.folder, teacher.bill()) == ("dot", str(teacher_folder), {"texts_bought": 3})
    teacher.close()
    assert inner.closed == 1
    advanced = []
    teacher.encode_document(documents, advance=advanced.append)
    assert sum(advanced) == 40
    assert advanced[0] == 37

    again = Counting(teacher_folder)  # the comparison was written down
    OwnedTeacher(settings, again, tmp_path / ".owned", name="mine").encode_document(documents)
    assert again.asked == [("document", unknown)]


def test_without_a_teacher_texts_that_have_no_vector_are_counted_and_one_is_shown(tmp_path):
    teacher = OwnedTeacher(write(tmp_path / "d.parquet", TEXTS, list(numbers(50))), None, tmp_path / "o", name="mine")
    with pytest.raises(LeafError, match=r"2 of 52 documents have no vector in .*d\.parquet, such as 'one more'; name"):
        teacher.encode_document([*TEXTS, "one more", "and another"])
    with pytest.raises(LeafError, match=r"1 of 1 queries have no vector"):
        teacher.encode_query(TEXTS[:1])
    assert teacher.encode_document([]).shape == (0, DIM)


def test_another_width_is_said_with_both(tmp_path, teacher_folder):
    settings = write(tmp_path / "d.parquet", TEXTS, list(numbers(50)))
    teacher = OwnedTeacher(settings, Counting(teacher_folder), tmp_path / "o", name="mine")
    with pytest.raises(LeafError, match=r"have 6 dimensions and inner answers with 24; name the model that made them"):
        teacher.encode_document(TEXTS)


def turned(cosine: float):
    """Vectors at this cosine to what the teacher gives, of the same lengths."""

    def change(vectors, role):
        aside = np.roll(vectors, 1, axis=1)
        aside -= (aside * vectors).sum(axis=1, keepdims=True) / (vectors**2).sum(axis=1, keepdims=True) * vectors
        aside *= np.linalg.norm(vectors, axis=1, keepdims=True) / np.linalg.norm(aside, axis=1, keepdims=True)
        return (cosine * vectors + np.sqrt(1 - cosine**2) * aside).astype(np.float32)

    return change


def test_vectors_of_another_model_are_refused_and_doubtful_ones_said(tmp_path, real, teacher_folder, capsys):
    settings = write(tmp_path / "d.parquet", TEXTS[:40], list(real.encode_document(TEXTS[:40])))
    other = Counting(save_teacher(tmp_path, seed=7, prompts={"query": "ba be: ", "document": ""}))
    with pytest.raises(LeafError, match=r"encoded again by inner, the documents of .* mean cosine .* another model's"):
        OwnedTeacher(settings, other, tmp_path / "o", name="mine").encode_document(TEXTS)
    for number, (cosine, refused, warned) in enumerate(
        ((0.98, True, False), (0.995, False, True), (1.0, False, False))
    ):
        teacher = OwnedTeacher(settings, Counting(teacher_folder, turned(cosine)), tmp_path / str(number), name="mine")
        if refused:
            with pytest.raises(LeafError, match=r"mean cosine 0\.9800 to their vectors"):
                teacher.identity()
        else:
            teacher.identity()
            assert teacher.facts()["check"]["cosines"]["document"] == pytest.approx(cosine, abs=1e-5)
        said = " ".join(capsys.readouterr().err.split())
        assert ("warning: encoded again by inner, the documents of" in said) == warned


def test_a_prompt_that_is_wrong_for_queries_alone_is_not_hidden_by_the_documents(tmp_path, real, teacher_folder):
    vectors = [*real.encode_document(TEXTS[:45]), *real.encode_document(TEXTS[45:])]  # queries without their prompt
    settings = write(tmp_path / "d.parquet", TEXTS, vectors, kind=["document"] * 45 + ["query"] * 5)
    with pytest.raises(LeafError, match="encoded again by inner, the queries of"):
        OwnedTeacher(settings, Counting(teacher_folder), tmp_path / "o", name="mine").identity()


def test_an_index_of_unit_vectors_decides_the_length_of_what_the_teacher_adds(tmp_path, capsys):
    folder = save_teacher(tmp_path / "long", normalise=False)
    inner = Counting(folder)
    raw = inner.real.encode_document(TEXTS)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.02  # none of them happens to have unit length
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    teacher = OwnedTeacher(write(tmp_path / "u.parquet", TEXTS[:40], list(unit[:40])), inner, tmp_path / "o", name="m")
    np.testing.assert_allclose(teacher.encode_document(TEXTS), unit, atol=1e-6)
    assert teacher.identity() == {**inner.identity(), "lengths": "unit"}
    assert "have unit length and inner's have not" in " ".join(capsys.readouterr().err.split())
    as_it_is = OwnedTeacher(write(tmp_path / "r.parquet", TEXTS[:40], list(raw[:40])), inner, tmp_path / "r", name="m")
    np.testing.assert_allclose(as_it_is.encode_document(TEXTS), raw, atol=1e-5)
    assert as_it_is.identity() == inner.identity()
    twice = write(tmp_path / "t.parquet", TEXTS[:40], list(2 * raw[:40]))
    with pytest.raises(LeafError, match=r"point where inner's do, but are 2 to 2 times as long; export them as"):
        OwnedTeacher(twice, inner, tmp_path / "t", name="m").identity()


# PostgreSQL


@pytest.fixture(scope="session")
def table(postgres):  # noqa: F811
    """20,000 rows whose vectors can be computed here: (i·j·7919 mod 2003 − 1001) / 1024, exact in float16."""
    postgres.connection.execute(
        "CREATE TABLE documents AS SELECT i, 'text ' || i AS body, (SELECT array_agg("
        "((i::bigint * j * 7919) % 2003 - 1001) / 1024.0 ORDER BY j) FROM generate_series(1, 48) j)::vector(48) AS "
        "embedding FROM generate_series(1, 20000) i"
    )
    numbers = np.arange(1, 20001)[:, None] * np.arange(1, 49) * 7919 % 2003 - 1001
    return postgres, (numbers / 1024).astype(np.float32)


BODIES = [f"text {row}" for row in range(1, 20001)]


def ask(postgres, query, **settings):  # noqa: F811
    return OwnedVectors(source=postgres.url, query=query, **settings)


@pytest.mark.parametrize(
    ("expression", "dtype"),
    [
        ("embedding", "float32"),
        ("embedding::halfvec(48)", "float16"),
        ("embedding::real[]", "float32"),
        ("embedding::real[]::double precision[]", "float32"),
        ("embedding::text", "float32"),
    ],
)
def test_every_type_of_vector_comes_out_of_a_real_database_as_it_went_in(table, tmp_path, expression, dtype):
    postgres, expected = table  # noqa: F811
    found = owned(ask(postgres, f"SELECT body AS text, {expression} AS vector FROM documents;"), tmp_path)
    np.testing.assert_array_equal(lookup(found, BODIES), expected)
    assert (found.facts["rows"], found.facts["dtype"]) == (20_000, dtype)


def test_rows_stay_at_the_server_until_they_are_fetched(table):
    postgres, _ = table  # noqa: F811
    with dump_module.open_dump(ask(postgres, "SELECT body AS text, embedding AS vector FROM documents")) as dump:
        assert dump.total == 20_000
        first = next(dump.rows)
        assert len(first.texts) == 2048
        (query,) = postgres.connection.execute(
            "SELECT query FROM pg_stat_activity WHERE state = 'idle in transaction'"
        ).fetchone()
        assert query.startswith("FETCH FORWARD 2048 FROM")
        assert sum(len(rows.texts) for rows in dump.rows) == 20_000 - 2048


def test_a_database_is_asked_once_until_the_folder_is_deleted(table, tmp_path, capsys):
    postgres, expected = table  # noqa: F811
    postgres.connection.execute("DROP TABLE IF EXISTS few; CREATE TABLE few AS SELECT * FROM documents WHERE i <= 10")
    settings = ask(postgres, "SELECT body AS text, embedding AS vector FROM few")
    first = owned(settings, tmp_path).digest
    postgres.connection.execute("UPDATE few SET embedding = (SELECT embedding FROM documents WHERE i = 99) WHERE i = 1")
    kept = owned(settings, tmp_path)
    assert kept.digest == first
    np.testing.assert_array_equal(lookup(kept, BODIES[:1]), expected[:1])
    said = " ".join(capsys.readouterr().err.split())
    assert "keeping the 10 vectors that" in said
    assert "to ask it again" in said
    new = owned(settings, tmp_path, "new")
    assert new.digest != first
    np.testing.assert_array_equal(lookup(new, BODIES[:1]), expected[98:99])


def test_nulls_are_skipped_kinds_read_and_percent_signs_and_comments_are_left_alone(table, tmp_path):
    postgres, expected = table  # noqa: F811
    query = (
        "SELECT CASE WHEN i = 3 THEN NULL ELSE body END AS text, CASE WHEN i % 2 = 0 THEN 'query' ELSE 'document' END "
        "AS role, CASE WHEN i = 5 THEN NULL ELSE embedding END AS vector FROM documents WHERE body LIKE 'text _%' AND "
        "i <= 9 -- that is all"
    )
    found = owned(ask(postgres, query, kind="role"), tmp_path)
    assert found.facts["skipped"] == {"vectors that are null": 1, "texts that are null or empty": 1}
    assert found.facts["kinds"] == {"query": 4, "document": 3}
    np.testing.assert_array_equal(lookup(found, BODIES[1:9:2], "query"), expected[1:9:2])


def test_what_a_database_cannot_answer_is_one_line(table, tmp_path):
    postgres, _ = table  # noqa: F811
    vector = "ARRAY[1, 2]::real[]"
    postgres.connection.execute("CREATE SEQUENCE changed")
    for query, message in (
        ("SELECT nothing FROM documents", r"teacher\.vectors\.query: .* says: column \"nothing\" does not exist"),
        (
            f"SELECT 'a' AS text, {vector} AS vector FROM nextval('changed')",
            r"cannot execute nextval\(\) in a read-only",
        ),
        ("DELETE FROM documents", r"teacher\.vectors\.query: .* says: .*(syntax error|WITH)"),
        ("SELECT body FROM documents", r"has no column 'text' \(it has body\); name the right one"),
        ("SELECT i AS text, embedding AS vector FROM documents", r"'text' of .* holds int4, expected text \(cast it"),
        ("SELECT body AS text, i AS vector FROM documents", r"'vector' of .* holds int4, expected vector, halfvec"),
        (
            f"SELECT 'a' AS text, {vector} AS vector UNION ALL SELECT 'b', '{{1}}'",
            r"row \d of .* holds \d numbers where",
        ),
        (
            "SELECT 'a' AS text, '{1,NULL}'::real[] AS vector",
            r"row 0 of the answer .* has nulls in it or more than one",
        ),
        ("SELECT 'a' AS text, '{}'::real[] AS vector", r"row 0 of the answer .* is an empty array"),
        ("SELECT 'a' AS text, '{1,NaN}'::real[] AS vector", r"row 0 of the answer .* holds NaN or infinity"),
        ("SELECT 'a' AS text, '[1,?]' AS vector", r"row 0 of the answer .* is '\[1,\?\]', where numbers like"),
        (f"SELECT '' AS text, {vector} AS vector WHERE false", r"no row with a text and a vector \(skipped: none\)"),
    ):
        with pytest.raises(LeafError, match=message) as caught:
            _ = owned(ask(postgres, query), tmp_path).facts
        assert "\n" not in str(caught.value)
    assert postgres.connection.execute("SELECT count(*) FROM documents").fetchone() == (20_000,)


def test_a_server_that_is_not_there_is_one_line(tmp_path):
    settings = OwnedVectors(source="postgresql://127.0.0.1:1/none", query="SELECT 1")
    with pytest.raises(
        LeafError, match=r"cannot connect to postgresql://127.0.0.1:1/none \(.*\); is the server up"
    ) as e:
        _ = owned(settings, tmp_path).facts
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({"source": "postgresql://me:s3cret@host/db", "query": "SELECT 1"}, "leave the password to PGPASSWORD or"),
        ({"source": "postgresql://host/db?user=me&password=s3cret", "query": "q"}, "leave the password to PGPASSWORD"),
        ({"source": "postgresql://me@host:5432/db"}, "a database needs a query, such as 'SELECT"),
        ({"source": "dump.parquet", "query": "SELECT 1"}, "query is for postgresql://HOST/DATABASE; 'dump.parquet' is"),
    ],
)
def test_a_recipe_holds_no_password_and_a_query_only_for_a_database(vectors, message):
    recipe = {
        "name": "mine",
        "teacher": {"model": "vectors:mine", "vectors": vectors},
        "student": {"backbone": "any/encoder"},
        "texts": [{"source": "vectors"}],
    }
    with pytest.raises(LeafError, match=message) as caught:
        Recipe.parse(recipe)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    recipe["teacher"]["vectors"] = {"source": "postgresql://me@host:5432/db?sslmode=require", "query": "SELECT 1"}
    assert json.loads(Recipe.parse(recipe).model_dump_json())["teacher"]["vectors"]["query"] == "SELECT 1"
