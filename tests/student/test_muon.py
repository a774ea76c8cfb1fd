"""Muon against torch's own, against singular values, and where a step is to be left out."""

import pytest
import torch

from leaf.student.muon import Muon, orthogonal

FINITE, BROKEN = torch.tensor(False), torch.tensor(True)
SHAPES = [(24, 24), (96, 24), (24, 96), (24, 24), (96, 24), (7, 5)]


def random(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_steps_are_those_of_torch():
    ours, theirs = ([torch.nn.Parameter(each.clone()) for each in random(SHAPES, 0)] for _ in range(2))
    muon = Muon(ours, lr=0.02, weight_decay=0.1, dtype=torch.bfloat16)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = [each.detach().clone() for each in ours]
    for step in range(4):
        for mine, other, gradient in zip(ours, theirs, random(SHAPES, 1 + step), strict=True):
            mine.grad, other.grad = gradient.clone(), gradient.clone()
        muon.step(FINITE)
        reference.step()
    for mine, other, start in zip(ours, theirs, before, strict=True):
        # Products of stacks round bfloat16 in another order, some hundredths of a step in all.
        assert (mine - other).norm() < 0.03 * (other - start).norm()


def test_all_singular_values_come_near_one_and_directions_stay():
    (matrix,) = random([(1, 16, 40)], 0)
    left, values, right = torch.linalg.svd(matrix[0], full_matrices=False)
    spread = left @ torch.diag(values[0] * torch.logspace(0, -2, 16)) @ right
    found = orthogonal(spread[None])[0]
    # Jordan et al.: between 0.7 and 1.2, from a hundredth of the greatest on.
    inside = left.T @ found @ right.T
    assert inside.diagonal().min() > 0.65
    assert inside.diagonal().max() < 1.25
    assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-4


def test_gradients_of_zeros_move_nothing():
    (weight,) = [torch.nn.Parameter(each) for each in random([(8, 4)], 0)]
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    Muon([weight], lr=1.0, weight_decay=0.0).step(FINITE)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("steps_before", [0, 1])
def test_a_broken_step_leaves_weights_and_momentum(steps_before):
    weights = [torch.nn.Parameter(each) for each in random(SHAPES, 0)]
    muon = Muon(weights, lr=0.02, weight_decay=0.1)
    for _ in range(steps_before):
        for weight, gradient in zip(weights, random(SHAPES, 1), strict=True):
            weight.grad = gradient
        muon.step(FINITE)
    before = [each.detach().clone() for each in weights]
    moments = [muon.state[each]["momentum"].clone() for each in weights]
    for weight in weights:
        weight.grad = torch.full_like(weight, torch.nan)
    muon.step(BROKEN)
    assert all(map(torch.equal, weights, before))
    assert all(torch.equal(muon.state[each]["momentum"], moment) for each, moment in zip(weights, moments, strict=True))
