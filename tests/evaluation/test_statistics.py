import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from leaf.errors import LeafError
from leaf.evaluation import statistics
from leaf.evaluation.statistics import (
    AveragePrecision,
    Correlation,
    difference,
    mean_difference,
    mean_retention,
    retention,
)


def test_retention_is_the_ratio_of_means_and_not_the_mean_of_ratios():
    # (0.2 + 0.6) / (0.4 + 0.6) = 80 %; the mean of 50 % and 100 % would be 75 %.
    assert retention([0.2, 0.6], [0.4, 0.6]).value == pytest.approx(80)


def test_the_interval_by_hand():
    # Two queries, resampled: both the first (1/4), one of each (1/2), both the second (1/4): 100, 50 or 0 %.
    assert retention([1, 0], [1, 1]) == (50, 0, 100)
    assert difference([1, 0], [0.5, 0.5]) == (0, -0.5, 0.5)


def test_queries_are_resampled_jointly():
    # Every query keeps 90 %, so whatever is drawn keeps 90 %. Drawn apart, the interval would be wide.
    teacher = np.random.default_rng(0).random(50)
    assert retention(0.9 * teacher, teacher) == pytest.approx((90, 90, 90))
    assert difference(teacher - 0.125, teacher) == pytest.approx((-0.125, -0.125, -0.125))


def test_the_interval_of_a_mean_is_the_normal_one_for_many_queries():
    first = np.random.default_rng(1).normal(0.5, 0.2, 2000)
    value, low, high = difference(first, np.zeros(2000))
    half = 1.96 * first.std() / np.sqrt(2000)
    # 10,000 resamples place a 97.5 % quantile within 1.4 % of its distance (one standard error).
    assert (low, high) == pytest.approx((value - half, value + half), abs=0.05 * half)


def test_nineteen_of_twenty_intervals_hold_the_truth():
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(300):
        teacher = rng.uniform(0.2, 1.0, 60)
        student = 0.95 * teacher + rng.normal(0, 0.1, 60)  # true retention: 95 %
        _, low, high = retention(student, teacher, resamples=500)
        inside += low <= 95 <= high
    assert 0.91 <= inside / 300 <= 0.98  # 95 % ± three standard errors of 1.3 %


def test_the_mean_over_datasets_weighs_datasets_and_not_queries():
    one, two = np.full(10, 0.5), np.full(1000, 0.5)
    assert mean_retention([(0.9 * one, one), (0.8 * two, two)]) == pytest.approx((85, 85, 85))


def test_scores_by_query_id_are_paired_by_id():
    assert retention({"a": 0.1, "b": 0.9}, {"b": 0.9, "a": 0.1}) == pytest.approx((100, 100, 100))
    with pytest.raises(LeafError, match="did not answer the same queries: only one has 'b'"):
        retention({"a": 0.1}, {"a": 0.1, "b": 0.9})


def test_a_seed_gives_the_same_interval_whatever_the_memory_in_use(monkeypatch):
    student, teacher = np.random.default_rng(3).random((2, 40))
    once = retention(student, teacher, resamples=1000, seed=5)
    assert retention(student, teacher, resamples=1000, seed=5) == once
    assert retention(student, teacher, resamples=1000, seed=6) != once
    monkeypatch.setattr(statistics, "BLOCK", 300)
    assert retention(student, teacher, resamples=1000, seed=5) == once


def test_resamples_in_which_the_teacher_finds_nothing_are_left_out():
    assert retention([0, 1], [0, 1]) == (100, 100, 100)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ([1.0], [1.0, 1.0], r"scores of shape \(1,\) and \(2,\)"),
        ([], [], "no scores to compare"),
        ([np.nan], [1.0], "NaN or infinite"),
        ([1.0], [0.0], "the teacher's mean score is 0"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(student, teacher, message):
    with pytest.raises(LeafError, match=message):
        retention(student, teacher)


def tied(seed: int, n: int = 60) -> np.ndarray:
    """(similarity, gold) pairs, related and with many equal values."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 6, n)
    return np.stack([np.round(gold + rng.normal(0, 2, n)), gold], axis=1)


def test_a_resampled_correlation_is_scipys_of_the_drawn_pairs():
    pairs = tied(0)
    drawn = np.random.default_rng(1).integers(len(pairs), size=(20, len(pairs)))
    expected = [spearmanr(*pairs[rows].T).statistic for rows in drawn]
    assert Correlation(pairs).resampled(drawn) == pytest.approx(expected, abs=1e-12)
    assert Correlation(pairs).score() == pytest.approx(spearmanr(*pairs.T).statistic, abs=1e-12)


def test_a_resampled_average_precision_is_sklearns_of_the_drawn_pairs():
    pairs = tied(2)
    pairs[:, 1] = pairs[:, 1] > 3
    drawn = np.random.default_rng(3).integers(len(pairs), size=(20, len(pairs)))
    expected = [average_precision_score(pairs[rows, 1], pairs[rows, 0]) for rows in drawn]
    assert AveragePrecision(pairs).resampled(drawn) == pytest.approx(expected, abs=1e-12)


def test_pairs_are_resampled_jointly():
    # The same similarities have the same correlation in every resample; others of equal quality have not.
    one, other = tied(4), tied(5)
    assert retention(Correlation(one), Correlation(one), resamples=200) == pytest.approx((100, 100, 100))
    other[:, 1] = one[:, 1]
    _, low, high = difference(Correlation(one), Correlation(other), resamples=200)
    assert low < high


def test_a_difference_is_resolved_when_its_interval_leaves_zero():
    assert difference([1, 0], [0.5, 0.5]).covers(0)
    assert not difference([0.9, 0.8], [0.5, 0.5]).covers(0)


def test_mean_difference_is_the_mean_over_datasets():
    one, two = np.full(10, 0.5), np.full(1000, 0.5)
    assert mean_difference([(one + 0.125, one), (two, two)]) == pytest.approx((0.0625, 0.0625, 0.0625))


def test_scores_over_other_pairs_are_refused():
    with pytest.raises(LeafError, match="on 60 and on 50 items"):
        retention(Correlation(tied(0)), Correlation(tied(0, 50)))
    with pytest.raises(LeafError, match="NaN or infinite"):
        Correlation([(0.5, 1.0), (np.nan, 2.0)])
