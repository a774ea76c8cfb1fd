import numpy as np
import pytest

from leaf.errors import LeafError
from leaf.student.batches import Batches


@pytest.mark.parametrize("window", [1, 4])
def test_an_epoch_uses_every_text_once_in_batches_of_exactly_the_size_asked_for(window):
    lengths = np.random.default_rng(0).integers(1, 100, 96)
    epoch = Batches(lengths, 8, seed=0, window=window).epoch(0)
    assert epoch.shape == (12, 8)
    assert sorted(epoch.ravel()) == list(range(96))


def test_texts_that_do_not_fill_a_batch_sit_out_one_epoch_and_not_always_the_same():
    batches = Batches(np.ones(10, dtype=int), 4, seed=0)
    left_out = [set(range(10)) - set(batches.epoch(epoch).ravel()) for epoch in range(20)]
    assert all(len(each) == 2 for each in left_out)
    assert len(set().union(*left_out)) > 5


def test_the_order_depends_on_seed_and_epoch_alone():
    lengths = np.arange(64)
    assert (Batches(lengths, 8, 3, 4).epoch(5) == Batches(lengths, 8, 3, 4).epoch(5)).all()
    assert (Batches(lengths, 8, 3, 4).epoch(5) != Batches(lengths, 8, 3, 4).epoch(6)).any()
    assert (Batches(lengths, 8, 3, 4).epoch(5) != Batches(lengths, 8, 4, 4).epoch(5)).any()


def test_a_length_window_saves_most_of_the_padding_and_keeps_batches_in_random_order():
    lengths = np.random.default_rng(1).geometric(0.05, 3200)

    def padding(window: int) -> float:
        batched = lengths[Batches(lengths, 32, 0, window).epoch(0)]
        return 1 - batched.sum() / (batched.max(axis=1) * 32).sum()

    assert padding(50) < 0.15 < 0.5 < padding(1)
    means = lengths[Batches(lengths, 32, 0, 50).epoch(0)].mean(axis=1)[:50]
    assert abs(np.corrcoef(means, np.arange(50))[0, 1]) < 0.5  # sorted batches would give 1


def test_too_few_texts_for_one_batch_are_refused():
    with pytest.raises(LeafError, match=r"7 training texts do not fill one batch of 8; lower train\.batch_size"):
        Batches(np.ones(7, dtype=int), 8, seed=0)


@pytest.mark.parametrize("window", [1, 4])
def test_batches_over_some_rows_are_those_over_their_lengths_alone(window):
    lengths = np.random.default_rng(0).integers(1, 100, 200)
    rows = np.sort(np.random.default_rng(1).permutation(200)[:50])
    some = Batches(lengths, 8, 3, window, rows)
    alone = Batches(lengths[rows], 8, 3, window)
    assert some.num_batches == alone.num_batches == 6
    np.testing.assert_array_equal(lengths[some.epoch(2)], lengths[rows][alone.epoch(2)])
    assert set(some.epoch(2).ravel()) < set(rows)
    np.testing.assert_array_equal(
        Batches(lengths, 8, 3, window, np.arange(200)).epoch(2), Batches(lengths, 8, 3, window).epoch(2)
    )


def test_rows_that_do_not_fill_a_batch_are_refused():
    with pytest.raises(LeafError, match=r"7 training texts do not fill one batch of 8"):
        Batches(np.ones(100, dtype=int), 8, seed=0, rows=np.arange(7))
