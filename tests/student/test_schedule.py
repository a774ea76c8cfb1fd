import pytest
import torch

from leaf.recipe import Train
from leaf.student.schedule import learning_rate, too_short


def test_the_papers_schedule_falls_once_an_epoch_from_1e_4_to_1e_5_and_starts_again_in_every_cycle():
    settings = Train()  # the paper's: 3 cycles of 10 epochs, 1e-4 → 1e-5
    steps = 7
    first_of_epoch = [learning_rate(epoch * steps, steps, settings) for epoch in range(30)]
    # Nine equal falls from 10e-5 to 1e-5 are 1e-5 each: 10, 9, …, 1, three times.
    assert first_of_epoch == pytest.approx([k * 1e-5 for k in range(10, 0, -1)] * 3)
    within = {learning_rate(step, steps, settings) for step in range(steps)}
    assert within == {1e-4}


def test_cosine_follows_torchs_cosine_annealing_at_every_step():
    settings = Train(schedule="cosine", cycles=1, epochs_per_cycle=3, lr=1e-3, final_lr=1e-5)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    torch_schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3 * 11 - 1, eta_min=1e-5)
    for step in range(33):
        assert learning_rate(step, 11, settings) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        torch_schedule.step()


def test_linear_step_falls_by_the_same_amount_with_every_batch():
    settings = Train(schedule="linear-step", cycles=2, epochs_per_cycle=1, lr=1.0, final_lr=0.0)
    # Five steps a cycle: 1, 3/4, 1/2, 1/4, 0, and again.
    assert [learning_rate(step, 5, settings) for step in range(10)] == pytest.approx([1, 0.75, 0.5, 0.25, 0] * 2)


def test_constant_never_moves_and_warm_up_scales_only_the_first_steps():
    settings = Train(schedule="constant", lr=0.4, warmup_steps=4)
    assert [learning_rate(step, 3, settings) for step in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


@pytest.mark.parametrize(
    ("num_steps", "warmup", "is_short"), [(0, 5, False), (10, 5, True), (11, 5, False), (9, 0, False)]
)
def test_a_training_is_too_short_where_half_of_it_is_warm_up(num_steps, warmup, is_short):
    assert (too_short(num_steps, Train(warmup_steps=warmup), only_rows=False) is not None) == is_short


def test_adagrad_knows_no_warm_up():
    by_adagrad, by_adamw = Train(warmup_steps=5, row_lr=0.03), Train(warmup_steps=5)
    assert too_short(10, by_adagrad, only_rows=True) is None
    assert too_short(10, by_adagrad, only_rows=False) is not None  # AdamW has the layers, or a table's network
    assert too_short(10, by_adamw, only_rows=True) is not None
