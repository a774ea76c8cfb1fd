"""Which optimizer has what; Adagrad by hand, sparse as dense, and what AdamW does to a row that is rarely met."""

import math

import numpy as np
import pytest
import torch

from leaf.student.loader import Loader
from leaf.student.optimizer import Optimizer
from student.test_train import SETTINGS, examples, new_student

FINITE = torch.tensor(False)


def test_a_row_moves_by_its_gradient_over_the_root_of_all_squares_and_others_stay(bert):
    student = new_student(bert, ())
    optimizer = Optimizer(student, [], SETTINGS.model_copy(update={"row_lr": 0.1}), sparse=True)
    before = student.rows.detach().clone()
    row, other = 7, 11
    gradient = torch.zeros_like(before)
    gradient[row] = 3.0
    for met in (1, 2, 3):
        student.rows.grad = gradient.to_sparse(1)
        optimizer.gradients()
        optimizer.step(lr=1.0, broken=FINITE)
        # Σ g² = 9·met, so the steps are 0.1·3 / (3·√met): 0.1, 0.0707, 0.0577.
        moved = 0.1 * sum(1 / math.sqrt(each) for each in range(1, met + 1))
        torch.testing.assert_close(before[row] - student.rows[row], torch.full((len(before[row]),), moved))
    assert torch.equal(student.rows[other], before[other])


@pytest.mark.parametrize("layers", [(0, 3), ()])
def test_sparse_gradients_move_the_weights_as_dense_ones_do(bert, layers):
    def after(sparse):
        student = new_student(bert, layers)
        data = examples(student, 83, 0)
        student.use_packing(True)
        loader = Loader(student, data, "cpu", ())
        optimizer = Optimizer(student, [], SETTINGS.model_copy(update={"row_lr": 0.01}), sparse=sparse)
        for step in range(4):
            batch = loader.batch(np.arange(8) + 8 * step)
            optimizer.zero_grad(set_to_none=True)
            (student(batch.features) - loader.targets_of(batch)).norm(dim=-1).mean().backward()
            assert student.rows.grad.is_sparse == sparse
            optimizer.gradients()
            optimizer.step(lr=1e-3, broken=FINITE)
        return student.rows.detach().clone()

    torch.testing.assert_close(after(True), after(False), atol=1e-6, rtol=1e-5)


def test_rows_are_in_one_optimizer_and_all_else_in_the_other(bert):
    for layers in ((0, 3), ()):
        student = new_student(bert, layers)
        state = Optimizer(student, [], SETTINGS.model_copy(update={"row_lr": 0.01}), sparse=True).state_dict()
        counts = {name: len(each["param_groups"][0]["params"]) for name, each in state.items()}
        others = len(list(student.parameters())) - 1
        assert counts == ({"AdamW": others, "Adagrad": 1} if layers else {"Adagrad": 1})
        assert Optimizer(student, [], SETTINGS, sparse=True).state_dict().keys() == {"AdamW"}


def test_one_visit_moves_a_rare_row_by_some_thirty_learning_rates_of_adamw():
    # The number in the module's docstring, from torch's own AdamW: a weight that has met nothing for long, met once.
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=1.0, weight_decay=0.0)
    for step in range(3200):
        weight.grad = torch.full((1,), float(step == 3000))
        optimizer.step()
    # Bias correction: 1 - 0.999^3000 = 0.95 makes the denominator a little larger, its slow decay a little smaller.
    assert -weight.item() == pytest.approx(31, rel=0.05)


def test_muon_goes_at_as_much_of_its_rate_as_adamw_of_its_own(bert):
    moved = {}
    for lr in (1e-3, 0.5e-3):
        student = new_student(bert, (0, 3))
        optimizer = Optimizer(student, [], SETTINGS.model_copy(update={"lr": 1e-3, "matrix_lr": 4e-3}), sparse=True)
        weight = student.head.weight
        before = weight.detach().clone()
        weight.grad = torch.eye(*weight.shape)
        optimizer.step(lr=lr, broken=FINITE)
        moved[lr] = (before - weight.detach()).diagonal().mean().item()
    # All singular values are 1 before and 0.7 to 1.2 behind; 0.2·√d is the length of a step (muon.py).
    assert moved[1e-3] == pytest.approx(0.95 * 4e-3 * 0.2 * math.sqrt(max(weight.shape)), rel=0.3)
    assert moved[0.5e-3] == pytest.approx(moved[1e-3] / 2, rel=0.01)


@pytest.mark.parametrize("row_lr", [None, 0.01])
def test_muon_takes_the_matrices_and_no_table_of_tokens_or_positions(bert, row_lr):
    student = new_student(bert, (0, 3))
    settings = SETTINGS.model_copy(update={"row_lr": row_lr, "matrix_lr": 3e-3})
    optimizer = Optimizer(student, [], settings, sparse=True)
    names = {id(each): name for name, each in student.named_parameters()}
    (group,) = optimizer.state_dict()["Muon"]["param_groups"]
    taken = sorted(names[id(each)] for each in optimizer._muon.param_groups[0]["params"])
    # Six a layer (query, key, value, output, and two of feed-forward) and the head.
    assert len(group["params"]) == 2 * 6 + 1
    assert all(
        name.endswith(("dense.weight", "query.weight", "key.weight", "value.weight", "linear.weight")) for name in taken
    )
    others = {name for name, each in student.named_parameters() if each.ndim == 2} - set(taken)
    assert all("embeddings" in name for name in others)
    table = Optimizer(new_student(bert, ()), [], settings, sparse=True)
    assert "Muon" not in table.state_dict()
