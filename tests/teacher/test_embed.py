import inspect
import shutil
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pyarrow as pa
import pytest
import torch

from leaf.errors import LeafError
from leaf.teacher import embed as module
from leaf.teacher import model
from leaf.teacher.embed import cache_folder, cache_key, embed
from leaf.teacher.model import SentenceTransformerEncoder, folder_digest
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


def fill(texts, out, teacher, **options):
    folder, shards, *_ = texts
    key = cache_key(teacher, "float32")
    return embed(folder, shards, teacher, cache_folder(out, key), key, **options)


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


def test_ranks_share_the_shards_and_the_last_of_them_gets_the_facts_of_one_process(texts, tmp_path):
    whole = fill(texts, tmp_path / "whole", HashTeacher())
    teachers = [HashTeacher() for _ in range(3)]
    found = [fill(texts, tmp_path / "e", teachers[rank], share=(rank, 3)) for rank in (2, 0, 1)]
    assert found == [None, None, whole]
    # By hand: shards of 10, 10 and 5 texts, one for each rank.
    assert [sorted(teacher.asked) for teacher in teachers] == [
        sorted(texts[2][rows]) for rows in (slice(10), slice(10, 20), slice(20, 25))
    ]
    assert [path.read_bytes() for path in sorted(tmp_path.glob("e/*/*"))] == [
        path.read_bytes() for path in sorted(tmp_path.glob("whole/*/*"))
    ]
    for rank in range(3):  # whoever looks later finds the same
        assert fill(texts, tmp_path / "e", HashTeacher(), share=(rank, 3)) == whole


def test_three_processes_at_a_time_make_the_parts_of_one(texts, tmp_path):
    """Rank 0 is killed in its second shard of three, and started again."""
    folder, shards, *_ = texts
    shards = [{**shards[number % 3], "file": f"part-{number:05}.parquet"} for number in range(9)]
    for number in range(3, 9):
        (folder / shards[number]["file"]).write_bytes((folder / shards[number % 3]["file"]).read_bytes())
    teacher = HashTeacher()
    key = cache_key(teacher, "float32")
    whole = embed(folder, shards, teacher, tmp_path / "whole", key)
    script = f"""
import sys, time, zlib
import numpy as np
from pathlib import Path
from leaf.teacher.embed import embed
DIM = {DIM}
{inspect.getsource(HashTeacher)}
teacher, rank = HashTeacher(), int(sys.argv[1])
encode = teacher.encode_document
teacher.encode_document = lambda *a, **k: (time.sleep(float(sys.argv[2])), encode(*a, **k))[1]
print(embed(Path({str(folder)!r}), {shards}, teacher, Path({str(tmp_path / "e")!r}), {key}, share=(rank, 3)))
"""

    def start(rank, seconds):
        command = [sys.executable, "-c", script, str(rank), str(seconds)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    ranks = [start(0, 0.5), start(1, 0.05), start(2, 0.05)]
    while ranks[0].poll() is None and not (tmp_path / "e" / "part-00000.parquet").exists():
        time.sleep(0.01)
    ranks[0].kill()
    ranks[0].communicate()
    printed = [rank.communicate() for rank in ranks[1:]]
    assert [out for out, _ in printed] == ["None\n", "None\n"], printed
    assert embed(folder, shards, teacher, tmp_path / "e", key, share=(0, 3)) == whole
    assert {path.name: path.read_bytes() for path in (tmp_path / "e").glob("part-*")} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }


def test_a_part_of_another_teacher_that_a_rank_left_is_seen_before_the_cache_is_closed(texts, tmp_path):
    folder, shards, *_ = texts
    old, new = HashTeacher(version=1), HashTeacher(version=2)
    out = tmp_path / "e"
    embed(folder, shards, new, out, cache_key(new, "float32"), share=(0, 2))  # shards 0 and 2
    new.encode_query = lambda texts, **_: (
        embed(folder, shards[1:2], old, out, cache_key(old, "float32")),  # while rank 0 is at work
        new._encode("query", texts),
    )[1]
    (out / shards[0]["file"]).unlink()
    with pytest.raises(
        LeafError, match=r"part-00001\.parquet holds vectors of another encoder .*teacher\.version was 1"
    ):
        embed(folder, shards, new, out, cache_key(new, "float32"), share=(0, 2))


@pytest.mark.parametrize("share", [(3, 3), (-1, 3), (0, 0)])
def test_a_rank_outside_its_world_is_refused(texts, tmp_path, share):
    with pytest.raises(LeafError, match=rf"rank {share[0]} of {share[1]} was given, expected 0 to .* \$SLURM_PROCID"):
        fill(texts, tmp_path / "e", HashTeacher(), share=share)


def test_the_next_shard_is_encoded_while_the_last_is_written_and_what_was_bought_is_kept(texts, tmp_path, monkeypatch):
    encoding, real = threading.Event(), module.write_part

    def slow(*arguments):
        assert encoding.wait(5), "nothing was encoded while this was written"
        return real(*arguments)

    monkeypatch.setattr(module, "write_part", slow)
    teacher = HashTeacher()

    def encode_query(texts, **_):
        if teacher.asked:
            encoding.set()
            raise LeafError("the service is down")
        return teacher._encode("query", texts)

    teacher.encode_query = encode_query
    with pytest.raises(LeafError, match="the service is down"):
        fill(texts, tmp_path / "e", teacher)
    assert [path.name for path in tmp_path.glob("e/*/part-*")] == ["part-00000.parquet"]


def test_the_time_left_is_reckoned_by_the_length_of_what_is_left(tmp_path, monkeypatch):
    """100 words, then 100 passages: after the words nearly everything is left; what is cut off does not count."""
    shards, told, folder = [], [], tmp_path / "texts"
    for number, tail in enumerate(("", 2000 * "x")):
        rows = {"text": [f"{row:08}{tail}" for row in range(100)], "kind": ["query"] * 100, "source": ["s"] * 100}
        shards.append(write_shard(folder / f"part-{number:05}.parquet", pa.table(rows).cast(SCHEMA)))

    class Told:
        def __init__(self, total, completed, work):
            told.append((total, completed, work))

        def advance(self, count, note=None, *, each=1.0):
            told.append(count * each)

    monkeypatch.setattr(
        module, "progress", lambda _, total, completed=0, *, work: nullcontext(Told(total, completed, work))
    )

    class Telling(HashTeacher):
        def encode_query(self, texts, *, batch_size=32, advance=None):
            advance(len(texts))
            return super().encode_query(texts)

    teacher = Telling()
    for name, limits in (("all", {}), ("tokens", {"max_length": 100}), ("characters", {"characters": 500})):
        key = {"teacher": {**teacher.identity(), **limits}, "storage_dtype": "float32"}
        told.clear()
        embed(folder, shards, teacher, tmp_path / name, key)
        (total, completed, work), *done = told
        assert (total, completed) == (200, 0)
        assert sum(done) == pytest.approx(work)
        assert work == pytest.approx(100 * 12 + 100 * {"all": 2012, "tokens": 460, "characters": 500}[name], rel=0.05)
        assert done[0] < work / 20
    (tmp_path / "all" / shards[0]["file"]).unlink()
    key = {"teacher": teacher.identity(), "storage_dtype": "float32"}
    told.clear()
    embed(folder, shards, teacher, tmp_path / "all", key)
    assert told[0][:2] == (200, 100)
    assert told[0][2] < 100 * 20


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


def test_threads_that_share_an_encoder_do_not_spoil_each_others_vectors(teacher_folder):
    encoder = SentenceTransformerEncoder(str(teacher_folder))
    some = [sentences(20, seed=seed) for seed in range(24)]
    expected = [encoder.encode_document(texts) for texts in some]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(expected, pool.map(encoder.encode_document, some), strict=True):
            np.testing.assert_allclose(other, one, atol=1e-6)


def test_weights_are_told_apart_below_a_folder_of_any_name(teacher_folder, bert, tmp_path):
    """`onnx/` inside a model says nothing about its weights, and above one says nothing at all."""
    one, other = tmp_path / "onnx" / "one", tmp_path / "onnx" / "other"
    shutil.copytree(teacher_folder, one)
    shutil.copytree(bert, other)
    known = folder_digest(one)
    assert known == folder_digest(teacher_folder) != folder_digest(other)
    (one / "onnx").mkdir()
    (one / "onnx" / "manifest.json").write_text("{}")
    assert folder_digest(one) == known


class Marker:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("damage", ["an object", "cut short", "empty"])
def test_weights_in_a_pickle_that_torch_refuses_end_in_one_line_and_safetensors_are_read_instead(
    bert, tmp_path, damage
):
    folder = shutil.copytree(bert, tmp_path / "model")
    weights = folder / "pytorch_model.bin"
    torch.save({"embeddings": Marker(tmp_path / "ran") if damage == "an object" else torch.ones(9)}, weights)
    if damage != "an object":
        weights.write_bytes(weights.read_bytes()[: 500 if damage == "cut short" else 0])
    both = SentenceTransformerEncoder(str(folder)).encode_document(sentences(2))
    np.testing.assert_array_equal(both, SentenceTransformerEncoder(str(bert)).encode_document(sentences(2)))
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        LeafError, match=r"pickle that torch refuses .*give the weights as `model\.safetensors`"
    ) as raised:
        SentenceTransformerEncoder(str(folder))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


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
