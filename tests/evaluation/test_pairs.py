import numpy as np
import pytest

from leaf.evaluation.pairs import average_precision, cosines


def test_average_precision_is_the_mean_precision_at_the_positive_pairs():
    # By hand: positives at ranks 1, 3 and 4 have precisions 1/1, 2/3 and 3/4.
    similarities = np.array([0.9, 0.8, 0.7, 0.6, 0.1], np.float32)
    assert average_precision(similarities, [1, 0, 1, 1, 0]) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3, abs=1e-12)
    assert average_precision(similarities, [1, 1, 1, 0, 0]) == 1


def test_equal_similarities_pass_together_whatever_their_order():
    # The first three tie, so their threshold has a precision of 1/3 and a recall of 1/2; the last adds 2/4 × 1/2.
    for labels in ([1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1]):
        assert average_precision(np.array([0.5, 0.5, 0.5, 0.1]), labels) == pytest.approx(1 / 6 + 1 / 4, abs=1e-12)


def test_the_first_half_of_the_vectors_is_compared_with_the_second():
    first = [[3, 0], [1, 1], [0, 2]]
    second = [[5, 0], [1, 0], [0, -1]]
    expected = [1, np.sqrt(0.5), -1]
    np.testing.assert_allclose(cosines(np.array(first + second, np.float32)), expected, atol=1e-6)


def test_equal_texts_score_exactly_one_so_that_they_tie():
    vectors = np.random.default_rng(0).standard_normal((300, 17)).astype(np.float32)
    assert set(cosines(np.concatenate([vectors, vectors])).tolist()) == {1.0}


def test_wrong_encoders_score_the_share_of_positive_pairs():
    rng = np.random.default_rng(1)
    labels = (rng.random(2000) < 0.3).astype(int).tolist()
    share = sum(labels) / 2000
    random = rng.standard_normal((4000, 16)).astype(np.float32)
    assert average_precision(cosines(random), labels) == pytest.approx(share, abs=0.05)
    assert average_precision(cosines(np.ones((4000, 16), np.float32)), labels) == pytest.approx(share, abs=1e-12)
    # An encoder that knows: the second vector is the first where both mean the same, else its opposite.
    right = np.concatenate([random[:2000], random[:2000] * np.where(labels, 1, -1)[:, None].astype(np.float32)])
    assert average_precision(cosines(right), labels) == 1
    shuffled = np.concatenate([random[:2000], rng.permutation(right[2000:])])
    assert average_precision(cosines(shuffled), labels) == pytest.approx(share, abs=0.05)
