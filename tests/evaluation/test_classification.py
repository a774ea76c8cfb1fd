import warnings

import numpy as np
import pytest

from leaf.errors import LeafError
from leaf.evaluation.classification import accuracies, right
from leaf.evaluation.datasets import ClassificationSet
from leaf.evaluation.measures import mean

NUM_LABELS = 5


@pytest.fixture(scope="module")
def dataset() -> ClassificationSet:
    train = tuple((f"train {row}", f"label {row * 3 % NUM_LABELS}") for row in range(200))
    return ClassificationSet("tiny", train, tuple((f"test {row}", f"label {row % NUM_LABELS}") for row in range(500)))


def one_hot(labels: list[str]) -> np.ndarray:
    return np.eye(NUM_LABELS, dtype=np.float32)[[int(label.split()[1]) for label in labels]]


def sides(dataset: ClassificationSet) -> tuple[np.ndarray, np.ndarray]:
    """Vectors that hold the label and nothing else."""
    return one_hot([dataset.train[row][1] for row in dataset.rows]), one_hot([label for _, label in dataset.test])


def test_vectors_that_hold_the_label_are_all_right(dataset):
    shares = accuracies(dataset, *sides(dataset))
    assert list(shares) == [str(row) for row in range(500)]
    assert set(shares.values()) == {1.0}


def test_random_vectors_and_vectors_of_other_texts_are_right_by_chance(dataset):
    rng = np.random.default_rng(0)
    random = [rng.standard_normal((len(texts), 16)).astype(np.float32) for texts in dataset.sides.values()]
    train, texts = sides(dataset)
    for vectors in (random, [train, rng.permutation(texts)]):
        # Chance is 1/5; ten classifiers on 500 texts leave an error of at most 0.02, the square root of .2 × .8 / 500.
        assert mean(list(accuracies(dataset, *vectors).values())) == pytest.approx(1 / NUM_LABELS, abs=0.06)


def test_the_share_of_a_text_and_the_accuracy_of_a_classifier_are_means_of_the_same_answers(dataset):
    rng = np.random.default_rng(1)
    train, texts = (side + rng.normal(0, 0.7, side.shape).astype(np.float32) for side in sides(dataset))
    answers = right(dataset, train, texts)
    assert answers.shape == (10, 500)
    shares = accuracies(dataset, train, texts)
    assert shares["7"] == answers[:, 7].mean()
    assert 0.3 < mean(list(shares.values())) < 0.9
    assert mean(list(shares.values())) == pytest.approx(answers.mean(axis=1).mean(), abs=1e-12)
    assert len(set(answers.mean(axis=1))) > 1, "the classifiers differ, since their training texts do"


def test_classifiers_that_do_not_converge_are_no_news(dataset):
    train, texts = (1000 * side + np.random.default_rng(2).normal(0, 900, side.shape) for side in sides(dataset))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right(dataset, train.astype(np.float32), texts.astype(np.float32))


def test_vectors_of_other_texts_are_refused(dataset):
    train, texts = sides(dataset)
    with pytest.raises(LeafError, match=r"tiny: 3 and 500 vectors, expected those of its sides, \d+ of train and 500"):
        accuracies(dataset, train[:3], texts)
