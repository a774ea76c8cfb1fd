import numpy as np
import pytest

from leaf.errors import LeafError
from leaf.evaluation.clustering import v_measures
from leaf.evaluation.datasets import ClusteringSet

NUM_LABELS = 4


@pytest.fixture(scope="module")
def dataset() -> ClusteringSet:
    labels = tuple(f"label {row % NUM_LABELS}" for row in range(2000))
    return ClusteringSet("tiny", tuple(f"text {row}" for row in range(2000)), labels)


def one_hot(dataset: ClusteringSet) -> np.ndarray:
    """Vectors that hold the label and nothing else."""
    return np.eye(NUM_LABELS, dtype=np.float32)[[row % NUM_LABELS for row in dataset.rows]]


def test_vectors_that_hold_the_label_make_its_clusters(dataset):
    assert v_measures(dataset, one_hot(dataset)) == pytest.approx([1.0] * 10, abs=1e-12)


def test_random_vectors_and_vectors_of_other_texts_make_clusters_of_chance(dataset):
    rng = np.random.default_rng(0)
    for vectors in (rng.standard_normal((2000, 16)).astype(np.float32), rng.permutation(one_hot(dataset))):
        values = v_measures(dataset, vectors)
        # Not quite 0: the mutual information of independent groups is about (4 − 1)² / (2 × 2000) nats, and the entropy
        # of the labels ln 4, hence about 0.0016.
        assert len(values) == 10
        assert 0 < np.mean(values) < 0.01


def test_samples_differ_and_two_calls_do_not(dataset):
    vectors = one_hot(dataset) + np.random.default_rng(1).normal(0, 0.4, (2000, NUM_LABELS)).astype(np.float32)
    values = v_measures(dataset, vectors)
    assert 0.2 < min(values) < max(values) < 0.95
    assert values == v_measures(dataset, vectors)


def test_vectors_of_other_texts_are_refused(dataset):
    with pytest.raises(LeafError, match="tiny: 3 vectors, expected those of its 2000 texts"):
        v_measures(dataset, np.zeros((3, 2), np.float32))
