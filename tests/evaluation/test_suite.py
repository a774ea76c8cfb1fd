"""Everything that is measured of a teacher and its students, in one folder."""

import json
from collections import Counter

import numpy as np
import pytest

from leaf.errors import LeafError
from leaf.evaluation import curves, records
from leaf.evaluation.datasets import RetrievalSet, StsSet
from leaf.evaluation.margin import read as read_margin
from leaf.evaluation.suite import Kept, Suite, measure_margins, run, use_bfloat16_where_exact
from leaf.evaluation.vectors import VectorCache

COUNT, DIM = 60, 16
RETRIEVAL = RetrievalSet(
    "tiny",
    {f"q{i}": f"query {i}" for i in range(COUNT)},
    {f"d{i}": f"document {i}" for i in range(COUNT)},
    {f"q{i}": {f"d{i}": 1} for i in range(COUNT)},
)
STS = StsSet(
    "pairs", (("document 1", "document 2"), ("document 3", "document 3"), ("document 4", "document 5")), (1, 5, 2)
)


class Noisy:
    """The teacher's vectors (drawn from the number in a text) with noise of a given length on top."""

    dim, similarity = DIM, "cosine"

    def __init__(self, name, noise=0.0):
        self.name, self.noise, self.encoded = name, noise, Counter()

    def identity(self):
        return {"name": self.name}

    def encode_query(self, texts, *, batch_size=32, advance=None):
        return self._encode("query", texts, advance)

    def encode_document(self, texts, *, batch_size=32, advance=None):
        return self._encode("document", texts, advance)

    def _encode(self, role, texts, advance):
        self.encoded[role] += len(texts)
        if advance:
            advance(len(texts))
        vectors = []
        for text in texts:
            clean = np.random.default_rng(int(text.split()[-1])).normal(size=DIM)
            noise = np.random.default_rng([*self.name.encode(), *text.encode()]).normal(size=DIM)
            vectors.append(clean / np.linalg.norm(clean) + self.noise * noise / np.linalg.norm(noise))
        return np.stack(vectors).astype(np.float32)


def test_scores_curves_and_examples_are_written_and_vectors_are_bought_once(tmp_path):
    teacher, student = Noisy("teacher"), Noisy("student", 0.4)
    suite = Suite(bm25=False, truncate=[8], precisions=["int8", "binary"], examples=["query 7"])
    measured = run(teacher, {"student": student}, [RETRIEVAL, STS], suite, VectorCache(tmp_path / "v"), tmp_path / "s")
    assert records.read(tmp_path / "s") == sorted(measured.scores, key=lambda each: each.filename)
    assert teacher.encoded == {"query": COUNT + 1, "document": COUNT + 5}  # one example query; five different sentences
    found = curves.read(tmp_path / "s" / "curves.json")
    sizes = {(each.mode, each.dim, each.precision) for each in found.summary}
    assert len(sizes) == 3 * 2 * 3
    [full] = [each for each in found.summary if (each.mode, each.dim, each.precision) == ("teacher", DIM, "float32")]
    [score] = [each for each in measured.scores if each.mode == "teacher" and each.measure == "ndcg@10"]
    assert full.value == pytest.approx(score.value, abs=1e-9)
    [example] = json.loads((tmp_path / "s" / "examples.json").read_text())
    assert example["answers"][0]["documents"][0]["id"] == "d7"


def test_without_retrieval_there_are_no_curves(tmp_path):
    measured = run(Noisy("t"), {"s": Noisy("s")}, [STS], Suite(truncate=[8]), VectorCache(), tmp_path)
    assert measured.curves is None
    assert not (tmp_path / "curves.json").exists()


def kept(errors, cycle):
    return [
        Kept("s", epoch, (epoch - 1) % cycle == 0, error, lambda error=error, epoch=epoch: Noisy(f"s{epoch}", error))
        for epoch, error in enumerate(errors, start=1)
    ]


def test_checkpoints_are_scored_in_both_modes_and_the_teacher_is_asked_once(tmp_path):
    teacher = Noisy("teacher")
    cache = VectorCache(tmp_path / "v")
    errors = [2.0, 1.2, 0.9, 0.6, 2.0, 1.1, 0.8, 0.5]
    measure_margins(teacher, kept(errors, 4), [RETRIEVAL, STS], ["standard", "asymmetric"], cache, tmp_path)
    assert teacher.encoded == {"query": COUNT, "document": COUNT}
    for mode in ("standard", "asymmetric"):
        points, reference = read_margin(tmp_path / f"margin-{mode}.json")
        assert [each.epoch for each in points] == [2, 3, 4, 6, 7, 8]  # the first of each cycle is left out
        assert {each.mode for each in points} == {mode}
        assert set(reference["tiny"].values()) == {1.0}
        means = [np.mean(list(each.scores["tiny"].values())) for each in points]
        assert np.corrcoef([each.error for each in points], means)[0, 1] < -0.9  # more noise, less found
    assert len(list((tmp_path / "v").rglob("*.parquet"))) == 2  # nothing of a checkpoint is kept


def test_first_epochs_are_used_where_too_little_would_remain(tmp_path):
    measure_margins(Noisy("t"), kept([1.2, 0.9, 0.6], 3), [RETRIEVAL], ["asymmetric"], VectorCache(), tmp_path)
    assert [each.epoch for each in read_margin(tmp_path / "margin-asymmetric.json")[0]] == [1, 2, 3]
    measure_margins(Noisy("t"), kept([1.2, 0.9], 3), [RETRIEVAL], ["standard"], VectorCache(), tmp_path)
    assert not (tmp_path / "margin-standard.json").exists()


def test_the_bfloat16_gate_is_asked_with_texts_from_all_over():
    asked = []

    class Gated(Noisy):
        def use_bfloat16_where_exact(self, sample):
            asked.append(list(sample))

    use_bfloat16_where_exact([Gated("a"), Noisy("b")], [str(n) for n in range(1000)])
    [sample] = asked
    assert len(sample) == 64
    assert max(map(int, sample)) > 900


def test_students_of_another_width_are_refused(tmp_path):
    class Narrow(Noisy):
        dim = 4

    with pytest.raises(LeafError, match="do not share a vector space"):
        run(Noisy("t"), {"s": Narrow("s")}, [RETRIEVAL], Suite(), VectorCache(), tmp_path)
