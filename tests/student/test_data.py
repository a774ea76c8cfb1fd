import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sentence_transformers.sentence_transformer.modules import Transformer

from leaf.errors import LeafError
from leaf.student import data as module
from leaf.student.data import Examples, build_examples, choose_rows, open_examples
from leaf.texts.shards import shard_name, write_shard
from leaf.tokens import Tokenizer
from leaf.vector_files import write_part
from tiny import sentences

PROMPTS = {"query": "ba be: ", "document": ""}
VOCABULARY = 5 + 2 * 32 + 32 * 32  # what save_tokenizer writes
DIM = 8


class Corpus:
    """Two shards of texts in random roles, with random vectors, as the earlier stages leave them."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.folder = folder
        self.texts = sentences(50, seed)
        self.kinds = generator.choice(["query", "document"], 50).tolist()
        self.vectors = generator.normal(size=(50, DIM)).astype(np.float32)
        self.shards = []
        for number, rows in enumerate((slice(0, 30), slice(30, 50))):
            table = {"text": self.texts[rows], "kind": self.kinds[rows], "source": ["s"] * len(self.texts[rows])}
            self.shards.append(write_shard(folder / "texts" / shard_name(number), pa.table(table)))
            write_part(folder / "embeddings" / shard_name(number), self.vectors[rows], {}, "float16")

    def build(self, tokenizer: Tokenizer, vocabulary_size: int = VOCABULARY) -> Examples:
        folder = self.folder
        return build_examples(
            folder / "texts", folder / "embeddings", self.shards, tokenizer, vocabulary_size, folder / "scratch"
        )


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    return Corpus(tmp_path)


@pytest.fixture(scope="module")
def transformer(bert) -> Transformer:
    return Transformer(str(bert))


@pytest.fixture(scope="module")
def tokenizer(transformer) -> Tokenizer:
    return Tokenizer(transformer, PROMPTS)


def text_ids(examples: Examples, row: int) -> list[int]:
    return examples.gather(np.array([row]))[0].tolist()


@pytest.mark.parametrize("rows_a_call", [7, 2048])
def test_every_text_has_the_ids_of_its_role_and_the_vector_of_its_row(
    corpus, transformer, tokenizer, monkeypatch, rows_a_call
):
    monkeypatch.setattr(module, "TOKENIZE_ROWS", rows_a_call)
    examples = corpus.build(tokenizer)
    assert len(examples) == 50
    for row, (text, kind) in enumerate(zip(corpus.texts, corpus.kinds, strict=True)):
        expected = transformer.preprocess([text], prompt=PROMPTS[kind] or None)["input_ids"][0].tolist()
        assert text_ids(examples, row) == expected
        assert examples.lengths[row] == len(expected)
    np.testing.assert_array_equal(examples.batch_targets(np.arange(50)), corpus.vectors.astype(np.float16))
    assert (examples.lengths.dtype, examples.tokens.dtype) == (np.int32, np.uint16)


def test_rows_come_in_the_order_asked_for_from_a_map_and_from_memory_alike(corpus, tokenizer):
    mapped = corpus.build(tokenizer)
    held = Examples(np.array(mapped.tokens), np.array(mapped.offsets), np.array(mapped.targets))
    sliced = Examples(mapped.tokens, mapped.offsets[3:], mapped.targets[3:])  # does not begin where its file does
    rows = np.array([41, 3, 3, 17])
    for examples, moved in ((mapped, rows), (held, rows), (sliced, rows - 3)):
        ids, lengths = examples.gather(moved)
        assert ids.tolist() == [token for row in rows for token in text_ids(held, row)]
        assert lengths.tolist() == [len(text_ids(held, row)) for row in rows]
        np.testing.assert_array_equal(examples.batch_targets(moved), corpus.vectors[rows].astype(np.float16))
    mapped.batch_targets(rows)[:] = 0  # a copy
    np.testing.assert_array_equal(mapped.targets[41], corpus.vectors[41].astype(np.float16))


@pytest.mark.parametrize(("vocabulary_size", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_ids_take_two_bytes_where_the_vocabulary_allows(corpus, tokenizer, vocabulary_size, dtype):
    examples = corpus.build(tokenizer, vocabulary_size)
    assert examples.tokens.dtype == examples.gather(np.arange(3))[0].dtype == dtype
    assert text_ids(examples, 0) == text_ids(corpus.build(tokenizer), 0)


def test_an_id_that_the_model_does_not_embed_stops_the_build(corpus, tokenizer):
    with pytest.raises(LeafError, match=r"token id \d+, but the model embeds 40 tokens only"):
        corpus.build(tokenizer, 40)
    assert not list((corpus.folder / "scratch").rglob("tokens.*"))


def test_one_part_in_float32_makes_all_targets_float32(corpus, tokenizer):
    vectors = corpus.vectors[30:] * np.float32(1e6)  # float16 ends at 65504
    with np.errstate(over="ignore"):
        write_part(corpus.folder / "embeddings" / shard_name(1), vectors, {}, "float16")
    examples = corpus.build(tokenizer)
    assert examples.targets.dtype == np.float32
    np.testing.assert_array_equal(examples.batch_targets(np.array([35])), vectors[5:6])
    np.testing.assert_array_equal(
        examples.batch_targets(np.array([5])), corpus.vectors[5:6].astype(np.float16).astype(np.float32)
    )


def test_a_store_that_was_built_before_is_reused_without_its_sources(corpus, tokenizer):
    ids = text_ids(corpus.build(tokenizer), 7)
    shutil.rmtree(corpus.folder / "texts")
    shutil.rmtree(corpus.folder / "embeddings")
    assert text_ids(corpus.build(tokenizer), 7) == ids


def test_a_store_of_other_texts_or_prompts_is_built_anew(corpus, transformer, tokenizer, tmp_path):
    before = [text_ids(corpus.build(tokenizer), row) for row in range(50)]
    changed = corpus.build(Tokenizer(transformer, {**PROMPTS, "document": "do: "}))
    rows = [row for row, kind in enumerate(corpus.kinds) if kind == "document"]
    assert all(len(text_ids(changed, row)) > len(before[row]) for row in rows)
    assert len(list((tmp_path / "scratch").glob("targets-*"))) == 1  # which prompts do not touch
    other = Corpus(tmp_path, seed=1).build(tokenizer)
    assert [text_ids(other, row) for row in range(50)] != before
    np.testing.assert_array_equal(other.targets, Corpus(tmp_path, seed=1).vectors.astype(np.float16))


def test_a_store_whose_build_was_interrupted_is_built_again(corpus, tokenizer):
    ids = text_ids(corpus.build(tokenizer), 7)
    header = next((corpus.folder / "scratch").rglob("tokens.json"))
    header.unlink()  # written last
    (header.parent / "tokens.bin").write_bytes(b"half")
    assert text_ids(corpus.build(tokenizer), 7) == ids


def test_a_damaged_shard_is_named_with_the_fix(corpus, tokenizer):
    path = corpus.folder / "texts" / shard_name(1)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(LeafError, match=rf"part-00001.parquet is damaged \(.*\); delete {path.parent} and run again"):
        corpus.build(tokenizer)


def test_a_shard_without_its_kinds_is_damaged(corpus, tokenizer):
    path = corpus.folder / "texts" / shard_name(0)
    pa.parquet.write_table(pa.table({"text": corpus.texts[:30]}), path)
    with pytest.raises(LeafError, match=r"part-00000.parquet is damaged \(.*kind"):
        corpus.build(tokenizer)


def test_a_text_of_an_unknown_kind_stops_the_build(corpus, tokenizer):
    rows = {"text": ["ba"], "kind": ["passage"], "source": ["s"]}
    corpus.shards[1] = write_shard(corpus.folder / "texts" / shard_name(1), pa.table(rows))
    write_part(corpus.folder / "embeddings" / shard_name(1), corpus.vectors[:1], {}, "float16")
    with pytest.raises(LeafError, match=r"part-00001.parquet is damaged \(.*no kind 'passage'"):
        corpus.build(tokenizer)


@pytest.mark.parametrize("stage", ["texts", "embeddings"])
def test_rows_that_do_not_match_are_an_error_every_time(corpus, tokenizer, stage):
    shutil.copy(corpus.folder / stage / shard_name(1), corpus.folder / stage / shard_name(0))  # 20 rows in place of 30
    message = {"texts": "holds 40 texts and its manifest names 50", "embeddings": "has 40 rows and the texts have 50"}
    for _ in range(2):
        with pytest.raises(LeafError, match=message[stage]):
            corpus.build(tokenizer)


def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_not_a_crash(corpus, tokenizer):
    examples = corpus.build(tokenizer)
    os.truncate(next((corpus.folder / "scratch").glob("targets-*")), 200)
    with pytest.raises(LeafError, match="became shorter while it was read; delete"):
        examples.batch_targets(np.array([49]))


def write_store(folder: Path, rows: int, dim: int, vocabulary_size: int = 8192) -> Examples:
    """A store of `rows` texts of 10 to 20 random tokens, written piece by piece as `build_examples` does."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    lengths = generator.integers(10, 21, rows)
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))
    with open(folder / "tokens.bin", "wb") as file:
        for start in range(0, rows, 1 << 20):
            count = int(lengths[start : start + (1 << 20)].sum())
            file.write(generator.integers(0, vocabulary_size, count, dtype=np.uint16).data)
    (folder / "tokens.json").write_text(json.dumps({"dtype": "uint16"}))
    block = generator.normal(size=(10_000, dim)).astype(np.float16)
    with open(folder / "targets.npy", "wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (rows, dim)}
        np.lib.format.write_array_header_2_0(file, header)
        for start in range(0, rows, len(block)):
            file.write(block[: rows - start].data)
    return open_examples(folder, folder / "targets.npy")


def resident() -> float:
    """Resident memory of this process, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_random_rows_leave_little_in_memory_and_release_gives_back_what_a_full_pass_took(tmp_path):
    examples = write_store(tmp_path / "store", 200_000, 768)  # 307 MB
    order = np.random.default_rng(0).permutation(200_000).reshape(-1, 500)
    examples.lengths  # noqa: B018  held for good, 0.8 MB
    before = resident()
    for rows in order[:200]:
        examples.gather(rows)
        examples.batch_targets(rows)
    assert resident() - before < 40
    examples.targets.max()
    assert resident() - before > 250
    examples.release()
    assert resident() - before < 40
    assert examples.targets[199_999].tolist() == examples.targets[9_999].tolist()  # the map still reads
    shutil.rmtree(tmp_path / "store")  # pytest would keep 300 MB of each of its last runs


TRAIN = """
import resource, sys, time
from pathlib import Path
import numpy as np
import torch
from leaf.student.batches import Batches
from leaf.student.data import open_examples

torch.manual_seed(0)
folder = Path(sys.argv[1])
examples = open_examples(folder, folder / "targets.npy")
table = torch.nn.EmbeddingBag(8192, examples.targets.shape[1])
optimizer = torch.optim.SGD(table.parameters(), lr=10.0)
order = Batches(examples.lengths, 512, seed=0).epoch(0)
began, losses = time.perf_counter(), []
for number, rows in enumerate(order[:2000]):
    ids, lengths = examples.gather(rows)
    targets = torch.from_numpy(examples.batch_targets(rows)).float()
    if number % 10 == 0:
        offsets = torch.from_numpy(np.cumsum(lengths) - lengths)
        loss = (table(torch.from_numpy(ids.astype(np.int64)), offsets) - targets).norm(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if number % 100 == 99:
        examples.release()
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
high = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(len(examples), peak / 2**20, high / 2**20, 2000 / seconds, losses[0], losses[-1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_million_rows_are_trained_on_under_4_gib_resident(tmp_path):
    if shutil.disk_usage(tmp_path).free < 20 << 30:
        pytest.skip("needs 20 GB of free disk")
    store = tmp_path / "store"
    try:
        write_store(store, 10_000_000, 384)
        ran = subprocess.run([sys.executable, "-c", TRAIN, str(store)], capture_output=True, text=True, check=True)
    finally:
        shutil.rmtree(store)  # pytest would keep 8 GB
    rows, peak, high, rate, first, last = map(float, ran.stdout.split())
    print(f"{rows:,.0f} rows: peak {peak:.2f} GiB (VmHWM {high:.2f}), {rate:.0f} batches of 512 a second")
    assert rows == 10_000_000
    assert max(peak, high) < 4
    assert last < first


def chosen(corpus, kinds=("query", "document"), limit=None, seed=0):
    return choose_rows(corpus.folder / "texts", corpus.shards, kinds, limit, seed)


def test_the_rows_of_a_kind_are_those_whose_text_has_it(corpus):
    for kind in ("query", "document"):
        expected = [row for row, each in enumerate(corpus.kinds) if each == kind]
        assert 0 < len(expected) < 50
        assert chosen(corpus, [kind]).tolist() == expected
    assert chosen(corpus) is None
    assert chosen(corpus, limit=50) is None


def test_a_limit_takes_a_sample_that_follows_from_the_seed_and_lies_within_larger_ones(corpus):
    for kinds in (("query", "document"), ("query",)):
        sample = chosen(corpus, kinds, 10)
        assert (np.diff(sample) > 0).all()
        assert len(sample) == 10
        np.testing.assert_array_equal(sample, chosen(corpus, kinds, 10))
        assert set(sample) < set(chosen(corpus, kinds, 15))
        assert set(sample) != set(chosen(corpus, kinds, 10, seed=1))
        assert {corpus.kinds[row] for row in sample} <= set(kinds)
    queries = chosen(corpus, ["query"])
    np.testing.assert_array_equal(chosen(corpus, ["query"], len(queries) + 1), queries)


def test_every_text_is_equally_likely_to_be_in_the_sample(corpus):
    counts = np.bincount(np.concatenate([chosen(corpus, limit=10, seed=seed) for seed in range(1000)]), minlength=50)
    # Each of 50 counts is binomial(1000, 0.2): mean 200, standard deviation 12.6; 5 of them leave room for 50 draws.
    assert abs(counts - 200).max() < 5 * 12.6


def test_a_kind_that_no_text_has_is_refused(tmp_path):
    table = pa.table({"text": ["a", "b"], "kind": ["document"] * 2, "source": ["s"] * 2})
    shards = [write_shard(tmp_path / shard_name(0), table)]
    with pytest.raises(LeafError, match=r"none of the 2 training texts is of train\.kinds = \['query'\]; name"):
        choose_rows(tmp_path, shards, ["query"], None, 0)


def test_a_damaged_shard_is_named_when_its_kinds_are_read(corpus):
    path = corpus.folder / "texts" / shard_name(1)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(LeafError, match=r"part-00001\.parquet is damaged .*delete .*texts and run again"):
        chosen(corpus, ["query"])
