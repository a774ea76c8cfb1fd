import zlib

import numpy as np
import pyarrow as pa
import pytest

from leaf.errors import LeafError
from leaf.teacher import embed as module
from leaf.teacher import model
from leaf.teacher.embed import cache_folder, cache_key, embed
from leaf.teacher.model import SentenceTransformerEncoder
from leaf.texts.shards import SCHEMA, write_shard
from leaf.vector_files import read_vectors
from tiny import sentences

DIM = 8


class HashTeacher:
    """Each (role, text) has one unit vector of its own; every text it is asked for is written down."""

    name, dim, similarity = "hash", DIM, "cosine"

    def __init__(self, version: int = 1) -> None:
        self.version, self.asked = version, []

    def identity(self):
        return {"model": "hash", "version": self.version}

    def vector(self, role: str, text: str) -> np.ndarray:
        vector = np.random.default_rng(zlib.crc32(f"{role} {text}".encode())).normal(size=DIM)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def _encode(self, role, texts):
        self.asked += texts
        return np.stack([self.vector(role, text) for text in texts])

    def encode_query(self, texts, *, batch_size=32, advance=None):
        return self._encode("query", texts)

    def encode_document(self, texts, *, batch_size=32, advance=None):
        return self._encode("document", texts)


@pytest.fixture
def texts(tmp_path):
    """Three shards of 10, 10 and 5 texts; every third text is a query."""
    folder, shards = tmp_path / "texts", []
    everything = sentences(25)
    kinds = ["query" if row % 3 == 0 else "document" for row in range(25)]
    for number, start in enumerate(range(0, 25, 10)):
        rows = slice(start, start + 10)
        columns = {"text": everything[rows], "kind": kinds[rows], "source": ["s"] * len(everything[rows])}
        shards.append(write_shard(folder / f"part-{number:05}.parquet", pa.table(columns).cast(SCHEMA)))
    return folder, shards, everything, kinds


def fill(texts, out, teacher):
    folder, shards, *_ = texts
    key = cache_key(teacher, "float32")
    return embed(folder, shards, teacher, cache_folder(out, key), key)


def stored(out, facts):
    folder = next(out.iterdir())
    return np.concatenate([group for part in facts["parts"] for group in read_vectors(folder / part["file"])])


def test_every_row_is_the_vector_of_its_own_text_in_its_own_role(texts, tmp_path):
    teacher = HashTeacher()
    facts = fill(texts, tmp_path / "e", teacher)
    expected = [teacher.vector(kind, text) for text, kind in zip(texts[2], texts[3], strict=True)]
    np.testing.assert_array_equal(stored(tmp_path / "e", facts), expected)
    assert (facts["rows"], facts["dim"], facts["normalised"]) == (25, DIM, True)


def test_a_text_is_never_paid_for_twice_when_the_pass_is_killed_between_shards(texts, tmp_path, monkeypatch):
    first, real, calls = HashTeacher(), module.write_part, []

    def dies(path, *arguments):
        if path.name == "part-00001.parquet":
            raise KeyboardInterrupt
        calls.append(path.name)
        return real(path, *arguments)

    monkeypatch.setattr(module, "write_part", dies)
    with pytest.raises(KeyboardInterrupt):
        fill(texts, tmp_path / "e", first)
    monkeypatch.setattr(module, "write_part", real)
    second = HashTeacher()
    facts = fill(texts, tmp_path / "e", second)
    assert calls == ["part-00000.parquet"]
    assert sorted(second.asked) == sorted(texts[2][10:])  # the 10 texts of the finished shard are not asked for again
    whole = fill(texts, tmp_path / "whole", HashTeacher())
    np.testing.assert_array_equal(stored(tmp_path / "e", facts), stored(tmp_path / "whole", whole))

    third = HashTeacher()
    assert fill(texts, tmp_path / "e", third) == facts
    assert third.asked == []


def test_a_cache_of_another_teacher_is_refused_and_the_field_named(texts, tmp_path):
    fill(texts, tmp_path / "e", HashTeacher(version=1))
    with pytest.raises(LeafError, match=r"another encoder or other texts \(teacher\.version was 1, is now 2\)"):
        fill(texts, tmp_path / "e", HashTeacher(version=2))


def test_a_part_of_other_texts_is_refused(texts, tmp_path):
    fill(texts, tmp_path / "e", HashTeacher())
    folder, shards, *rest = texts
    other = [{**shards[0], "digest": "0" * 64}, *shards[1:]]
    with pytest.raises(LeafError, match=r"another encoder or other texts \(texts was"):
        fill((folder, other, *rest), tmp_path / "e", HashTeacher())


def test_vectors_of_the_wrong_width_and_nan_stop_the_pass(texts, tmp_path):
    wide = HashTeacher()
    wide.dim = DIM + 1
    with pytest.raises(LeafError, match=r"returned vectors of shape \(4, 8\) for 4 texts; expected \(4, 9\)"):
        fill(texts, tmp_path / "wide", wide)
    spoiled = HashTeacher()
    spoiled.vector = lambda role, text: np.full(DIM, np.nan, dtype=np.float32)
    with pytest.raises(LeafError, match="the teacher returned NaN or infinity for row 0 of part-00000"):
        fill(texts, tmp_path / "nan", spoiled)


def test_a_disk_that_is_too_small_is_seen_before_the_first_text_is_encoded(texts, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    teacher = HashTeacher()
    with pytest.raises(
        LeafError, match=r"the vectors need about .* MB and .* MB free; choose an --out on a larger disk"
    ):
        fill(texts, tmp_path / "e", teacher)
    assert teacher.asked == []


def test_prompts_belong_to_the_role_and_change_the_vector(teacher_folder):
    encoder = SentenceTransformerEncoder(str(teacher_folder))
    text = sentences(1)
    np.testing.assert_allclose(encoder.encode_query(text), encoder.encode_document(["ba be: " + text[0]]), atol=1e-6)
    assert not np.allclose(encoder.encode_query(text), encoder.encode_document(text), atol=1e-2)


def test_the_identity_changes_with_everything_that_changes_a_vector(teacher_folder, bert):
    def identity(folder=teacher_folder, **settings):
        return SentenceTransformerEncoder(str(folder), **settings).identity()

    known = identity()
    assert identity() == known
    changed = {
        "prompts": identity(prompts={"query": "other: "}),
        "max_length": identity(max_length=16),
        "compute_dtype": identity(compute_dtype="bfloat16"),
        "weights": identity(bert),
    }
    for field, other in changed.items():
        assert other[field] != known[field], field


def test_order_and_batch_size_do_not_change_a_vector(teacher_folder):
    encoder = SentenceTransformerEncoder(str(teacher_folder))
    texts = sentences(50)
    together = encoder.encode_document(texts, batch_size=7)
    alone = np.concatenate([encoder.encode_document([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize(
    ("native", "bar", "expected"),
    [(True, 0.5, "bfloat16"), (True, 1.0, "float32"), (False, 0.5, "float32")],
    ids=["exact enough", "not exact enough", "not in hardware"],
)
def test_bfloat16_is_used_only_in_hardware_and_only_where_it_hardly_moves_a_vector(
    teacher_folder, monkeypatch, native, bar, expected
):
    monkeypatch.setattr(model, "native_bfloat16", lambda device: native)
    monkeypatch.setattr(model, "MIN_COSINE", bar)
    encoder = SentenceTransformerEncoder(str(teacher_folder))
    exact = encoder.encode_document(sentences(20))
    encoder.use_bfloat16_where_exact(sentences(20))
    assert encoder.identity()["compute_dtype"] == expected
    again = encoder.encode_document(sentences(20))
    assert again.dtype == np.float32
    assert np.array_equal(exact, again) == (expected == "float32")
    np.testing.assert_allclose(exact, again, atol=0.02)
