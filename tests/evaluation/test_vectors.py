"""Vectors of evaluation sets are computed once, and never mixed up."""

import gc
import weakref
from collections import Counter

import numpy as np
import pytest

from leaf.encoder import AsymmetricEncoder
from leaf.errors import LeafError
from leaf.evaluation import vectors as module
from leaf.evaluation.datasets import RetrievalSet, StsSet
from leaf.evaluation.evaluate import evaluate, evaluate_all
from leaf.evaluation.vectors import VectorCache

TINY = RetrievalSet(
    "tiny", {f"q{i}": f"query {i}" for i in range(9)}, {f"d{i}": f"text {i}" for i in range(30)}, {"q0": {"d0": 1}}
)


class Hashed:
    """Vectors drawn from the text, the role and `weights`, so that each mix-up shows; counts what it encodes."""

    similarity = "cosine"
    dim = 8

    def __init__(self, name="teacher", weights=0):
        self.name, self.weights, self.encoded = name, weights, Counter()

    def identity(self):
        return {"model": self.name, "weights": self.weights}

    def encode_query(self, texts, *, batch_size=32, advance=None):
        return self._encode("query", texts)

    def encode_document(self, texts, *, batch_size=32, advance=None):
        return self._encode("document", texts)

    def _encode(self, role, texts):
        self.encoded[role] += len(texts)
        seeds = [[self.weights, len(role), *text.encode()] for text in texts]
        return np.stack([np.random.default_rng(seed).normal(size=8) for seed in seeds]).astype(np.float32)


def test_vectors_on_disk_serve_the_next_run_bit_for_bit(tmp_path):
    first = VectorCache(tmp_path).vectors(Hashed(), TINY, "documents")
    again = Hashed()
    cache = VectorCache(tmp_path)
    assert cache.num_missing([(again, TINY)]) == 9
    np.testing.assert_array_equal(cache.vectors(again, TINY, "documents"), first)
    assert not again.encoded


@pytest.mark.parametrize(
    ("encoder", "side"), [(Hashed(weights=1), "documents"), (Hashed("another"), "documents"), (Hashed(), "queries")]
)
def test_other_weights_another_model_and_the_other_role_have_vectors_of_their_own(tmp_path, encoder, side):
    # The queries of this set are the texts that were documents before.
    VectorCache(tmp_path).vectors(Hashed(), TINY, "documents")
    swapped = RetrievalSet("swapped", TINY.documents, TINY.documents, {"d0": {"d1": 1}})
    found = VectorCache(tmp_path).vectors(encoder, swapped, side)
    assert sum(encoder.encoded.values()) == 30
    role = "query" if side == "queries" else "document"
    np.testing.assert_array_equal(found, encoder._encode(role, list(TINY.documents.values())))


def test_the_teachers_documents_are_encoded_once_for_all_students_and_runs(tmp_path):
    teacher = Hashed()
    for run in range(2):
        students = {"a": Hashed("a", 1), "b": Hashed("b", 2)}
        evaluate_all(teacher, students, [TINY], bm25=False, cache=VectorCache(tmp_path))
        for student in students.values():
            assert student.encoded == ({"query": 9, "document": 30} if run == 0 else {})
    assert teacher.encoded == {"query": 9, "document": 30}
    third = Hashed("c", 3)
    evaluate(AsymmetricEncoder(third, teacher), TINY, "asymmetric", VectorCache(tmp_path))
    assert (third.encoded, teacher.encoded) == ({"query": 9}, {"query": 9, "document": 30})


def test_memory_and_disk_give_the_same_scores(tmp_path):
    args = Hashed(), {"s": Hashed("s", 1)}, [TINY]
    on_disk = [evaluate_all(*args, bm25=False, cache=VectorCache(tmp_path)) for _ in range(2)]
    values = [[score.value for score in scores] for scores in (*on_disk, evaluate_all(*args, bm25=False))]
    assert values[0] == values[1] == values[2]


def test_a_text_that_is_there_twice_is_encoded_once():
    encoder = Hashed()
    pairs = StsSet("pairs", (("a", "b"), ("a", "c"), ("c", "c")), (1.0, 2.0, 3.0))
    cache = VectorCache()
    assert cache.num_missing([(encoder, pairs)]) == 3
    found = cache.vectors(encoder, pairs, "sentences")
    assert encoder.encoded == {"document": 3}
    np.testing.assert_array_equal(found, encoder._encode("document", list("aacbcc")))


def test_large_sides_are_kept_in_parts_and_an_interrupted_one_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART_TEXTS", 8)
    whole = VectorCache(tmp_path).vectors(Hashed(), TINY, "documents")
    files = sorted(tmp_path.glob("*/*.parquet"))
    assert len(files) == 4  # 30 texts, 8 a part
    files[2].unlink()
    again = Hashed()
    np.testing.assert_array_equal(VectorCache(tmp_path).vectors(again, TINY, "documents"), whole)
    assert again.encoded["document"] in (8, 6)


def test_only_the_encoders_that_are_asked_for_go_to_disk(tmp_path):
    teacher, checkpoint = Hashed(), Hashed("checkpoint", 5)
    cache = VectorCache(tmp_path, persist=[teacher])
    cache.vectors(teacher, TINY, "queries")
    cache.vectors(checkpoint, TINY, "queries")
    assert len(list(tmp_path.glob("*/*.parquet"))) == 1
    # The others are let go, models and all: a run may have thirty checkpoints.
    gone = weakref.ref(checkpoint)
    cache.forget()
    del checkpoint
    gc.collect()
    assert gone() is None


def test_encoders_without_an_identity_stay_in_memory(tmp_path):
    class Nameless(Hashed):
        identity = None

    cache = VectorCache(tmp_path)
    cache.vectors(Nameless(), TINY, "queries")
    assert not list(tmp_path.iterdir())


def test_a_file_of_other_vectors_is_refused_with_the_field(tmp_path):
    VectorCache(tmp_path).vectors(Hashed(), TINY, "documents")
    VectorCache(tmp_path).vectors(Hashed(weights=1), TINY, "documents")
    one, other = sorted(tmp_path.glob("*/*.parquet"))
    kept = one.read_bytes(), other.read_bytes()
    one.write_bytes(kept[1])
    other.write_bytes(kept[0])
    with pytest.raises(LeafError, match=r"encoder\.weights was 1, is now 0"):
        VectorCache(tmp_path).vectors(Hashed(), TINY, "documents")
