import torch

from leaf.student.loss import distances, leaf_loss


def test_the_loss_is_the_norm_and_not_its_square_nor_a_mean_over_dimensions():
    student = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    teacher = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    # ‖(3, 4)‖ = 5 and ‖(0, 1)‖ = 1, hence a mean of 3. Squares would give 13, means over dimensions 6.5.
    assert distances(student, teacher).tolist() == [5.0, 1.0]
    assert leaf_loss(student, teacher).item() == 3.0


def test_every_text_pulls_with_the_same_force_however_far_it_is():
    student = torch.tensor([[100.0, 0.0], [0.0, 0.01]], requires_grad=True)
    leaf_loss(student, torch.zeros(2, 2)).backward()
    # d‖e‖/de = e/‖e‖ has length 1; the mean over two texts halves it.
    assert torch.allclose(student.grad.norm(dim=1), torch.tensor([0.5, 0.5]))


def test_a_text_that_is_met_exactly_has_a_gradient_of_zero_and_not_nan():
    student = torch.ones(1, 3, requires_grad=True)
    leaf_loss(student, torch.ones(1, 3)).backward()
    assert student.grad.tolist() == [[0.0, 0.0, 0.0]]


def test_the_difference_is_taken_in_float32_even_for_half_precision_inputs():
    # In float16, 2048 + 1 is 2048: a difference taken there would be 0.
    student = torch.full((1, 1), 2048.0, dtype=torch.float16)
    assert distances(student, torch.full((1, 1), 2049.0)).item() == 1.0
