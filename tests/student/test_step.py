"""One optimizer step: its semantics do not depend on slices, buckets, graphs, compilation or processes."""

import itertools

import numpy as np
import pytest
import torch

from leaf.errors import LeafError
from leaf.recipe import Train
from leaf.student.batches import token_buckets
from leaf.student.distributed import World
from leaf.student.loader import Loader
from leaf.student.optimizer import Optimizer
from leaf.student.step import Step
from student.test_train import SETTINGS, examples, new_student

ROWS = np.array([5, 17, 2, 40, 33, 8, 21, 60])


def stepper(student, data, settings: Train = SETTINGS, buckets=()) -> tuple[Step, Loader]:
    optimizer = Optimizer(student, [], settings, sparse=True)
    student.use_packing(True)
    loader = Loader(student, data, "cpu", buckets)
    return Step(student, optimizer, loader, settings, torch.float32, "cpu", World()), loader


def weights(student) -> list[torch.Tensor]:
    return [value.clone() for value in student.state_dict().values()]


def moments_of(step) -> list[torch.Tensor]:
    states = (state for each in step._optimizer.state_dict().values() for state in each["state"].values())
    return [state[name].clone() for state in states for name in ("exp_avg", "sum") if name in state]


def assert_same(found, expected, **tolerance):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def after(folder, layers, steps, prepare=lambda step, loader: None, settings=SETTINGS, buckets=(), slices=1):
    """The gradients of the last of some steps on the same rows, and the mean loss.

    Gradients and not weights: where a gradient is nothing but rounding (a key's bias has none), Adam makes it a step.
    """
    student = new_student(folder, layers)
    data = examples(student, 83, 0)
    step, loader = stepper(student, data, settings, buckets)
    prepare(step, loader)
    for _ in range(steps):
        step.run([loader.batch(part) for part in np.split(ROWS, slices)], lr=1e-3)
    return [each.grad.clone() for each in student.parameters()], step.read().loss_sum / steps


@pytest.mark.parametrize("layers", [(0, 3), ()])
def test_slices_of_a_batch_move_the_weights_as_the_whole_batch_does(bert, layers):
    whole, loss = after(bert, layers, 1)
    sliced = SETTINGS.model_copy(update={"accumulation": 4})
    found, its_loss = after(bert, layers, 1, settings=sliced, slices=4)
    assert its_loss == pytest.approx(loss, rel=1e-6)
    assert_same(found, whole, atol=1e-7, rtol=1e-4)


def test_the_loss_of_a_step_is_the_mean_distance_by_hand(bert):
    student = new_student(bert)
    data = examples(student, 83, 0)
    with torch.no_grad():
        vectors = student(student.collate(*data.gather(ROWS))).numpy()
    by_hand = np.linalg.norm(vectors - data.targets[ROWS].astype(np.float32), axis=1).mean()
    step, loader = stepper(student, data)
    step.run([loader.batch(ROWS)], lr=1e-3)
    assert step.read().loss_sum == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("layers", [(0, 3), ()])
def test_the_dummy_texts_of_a_bucket_change_nothing(bert, layers):
    expected, loss = after(bert, layers, 1)
    found, its_loss = after(bert, layers, 1, buckets=(64, 512))
    assert its_loss == pytest.approx(loss, rel=1e-6)
    assert_same(found, expected, atol=1e-7, rtol=1e-4)


def test_a_bucket_is_filled_to_its_size_with_texts_no_longer_than_the_longest(bert):
    student = new_student(bert)
    data = examples(student, 83, 0)
    longest = int(data.lengths.max())
    _, loader = stepper(student, data, buckets=(96, 256))
    shapes = set()
    for seed in range(30):
        batch = loader.batch(np.random.default_rng(seed).choice(83, 1 + seed % 16, replace=False))
        lengths = batch.features["cu_seqlens"].diff()
        assert lengths.min() >= 1
        assert lengths.max() <= longest
        if batch.bucket is not None:
            assert batch.num_computed == lengths.sum() == batch.bucket
            shapes.add((batch.bucket, len(lengths) - batch.num_texts))
    assert len(shapes) == 2  # each bucket has one number of dummy texts
    assert loader.batch(np.arange(83)).bucket is None  # larger than all of them


def test_captured_steps_read_new_batches_through_the_fixed_inputs(bert):
    """The stand-in runs the captured function again on its fixed tensors, as a CUDA graph does."""
    replays = 0

    def graph(function):
        loss = function().clone()

        def replay():
            nonlocal replays
            replays += 1
            loss.copy_(function())

        return replay, loss

    def capture(step, loader):
        step.capture([loader.batch(np.arange(8)), loader.batch(np.arange(8, 24))], graph)

    student = new_student(bert, ())
    sizes = (int(examples(student, 83, 0).lengths.max()) * 8, 512)
    expected, loss = after(bert, (), 3)
    found, its_loss = after(bert, (), 3, capture, buckets=sizes)
    assert replays == 3
    assert its_loss == pytest.approx(loss, rel=1e-6)
    assert_same(found, expected, atol=1e-7, rtol=1e-4)


@pytest.mark.slow
def test_a_compiled_step_has_the_gradients_of_the_plain_one(bert):
    expected, loss = after(bert, (0, 3), 1, buckets=(512,))
    found, its_loss = after(bert, (0, 3), 1, lambda step, _: step.compile(), buckets=(512,))
    assert its_loss == pytest.approx(loss, rel=1e-5)
    assert_same(found, expected, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
@pytest.mark.parametrize("rates", [{}, {"row_lr": 0.01}, {"matrix_lr": 3e-3}, {"row_lr": 0.01, "matrix_lr": 3e-3}])
def test_a_step_that_is_not_finite_leaves_weights_and_moments_alone(bert, broken, rates):
    student = new_student(bert)
    data = examples(student, 83, 0)
    step, loader = stepper(student, data, SETTINGS.model_copy(update=rates))
    good, bad = loader.batch(ROWS), loader.batch(ROWS[::-1])
    if broken == "loss":
        bad.targets[0, 0] = torch.nan
    step.run([good], lr=1e-3)
    before = weights(student)
    moments = moments_of(step)
    if broken == "gradient":
        student.head.weight.register_hook(lambda gradient: gradient * torch.inf)
    step.run([bad], lr=1e-3)
    assert_same(weights(student), before, atol=0, rtol=0)
    assert_same(moments_of(step), moments, atol=0, rtol=0)
    with pytest.raises(LeafError, match=r"not finite .* training stopped before the optimizer moved"):
        step.read()


@pytest.mark.parametrize("row_lr", [None, 0.01])
def test_clipping_shortens_the_gradient_and_the_norm_before_it_is_what_is_reported(bert, row_lr):
    norms = {}
    for limit in (None, 1e-3):
        student = new_student(bert)
        settings = SETTINGS.model_copy(update={"clip_norm": limit, "row_lr": row_lr})
        step, loader = stepper(student, examples(student, 83, 0), settings)
        step.run([loader.batch(ROWS)], lr=1e-3)
        reported = step.read().gradient_norm
        norms[limit] = torch.nn.utils.get_total_norm([each.grad.to_dense() for each in student.parameters()]).item()
        assert reported == pytest.approx(norms[None], rel=1e-5)
    assert norms[None] > 0.01
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-3)


def test_buckets_waste_the_fewest_tokens_that_any_choice_can():
    totals = np.random.default_rng(0).integers(1, 900, 200)
    sizes = np.unique(-(-totals // 64) * 64)

    def waste(chosen):
        return sum(min(size for size in chosen if size >= total) - total for total in totals)

    for count in (1, 2, 3, 4):
        choices = itertools.combinations(sizes[:-1].tolist(), count - 1)
        least = min(waste((*choice, int(sizes[-1]))) for choice in choices)
        found = token_buckets(totals, count)
        assert len(found) == count
        assert waste(found) == least


def test_buckets_by_hand():
    # 100 → 128, 120 → 128, 500 → 512, 510 → 512: two sizes are enough, a third would save nothing.
    assert token_buckets(np.array([100, 120, 500, 510]), 2) == (128, 512)
    assert token_buckets(np.array([100, 120, 500, 510]), 1) == (512,)
    assert token_buckets(np.array([100, 120, 500, 510]), 5)[-1] == 512
