import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from leaf.student import ridge
from leaf.student.ridge import fit_head


@pytest.mark.parametrize("bias", [True, False])
def test_the_closed_form_is_scikit_learns_ridge(bias, monkeypatch):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 6)) + 2
    y = x @ generator.normal(size=(6, 4)) + generator.normal(size=(200, 4))
    monkeypatch.setattr(ridge, "STRENGTHS", (0.1,))
    head = fit_head(torch.from_numpy(x), torch.from_numpy(y), bias=bias, normalise=False)

    fitted = np.arange(200) % 10 != 0
    centred = x[fitted] - (x[fitted].mean(0) if bias else 0)
    alpha = 0.1 * np.linalg.eigvalsh(centred.T @ centred).mean()
    reference = Ridge(alpha=alpha, fit_intercept=bias).fit(x[fitted], y[fitted])
    np.testing.assert_allclose(head.weight, reference.coef_, atol=1e-5)
    np.testing.assert_allclose(head.bias, reference.intercept_ if bias else np.zeros(4), atol=1e-5)


def test_a_linear_teacher_is_recovered_and_noise_asks_for_more_ridge():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 8, generator=generator)
    weight, offset = torch.randn(5, 8, generator=generator), torch.randn(5, generator=generator)
    head = fit_head(x, x @ weight.T + offset, bias=True, normalise=False)
    assert head.error < 0.01
    assert torch.allclose(head.weight, weight, atol=0.01)

    # 40 features, 54 fitted texts, targets of pure noise: least squares would fit the noise with large weights.
    noise = torch.randn(60, 5, generator=generator)
    features = torch.randn(60, 40, generator=generator)
    unregularised = torch.linalg.lstsq(features, noise).solution
    assert fit_head(features, noise, bias=True, normalise=False).weight.norm() < unregularised.norm() / 2


def test_where_directions_alone_count_a_teacher_that_normalises_is_recovered():
    # Targets of length 1 are no linear map of features whose lengths differ by a factor of ten; their directions are.
    generator = torch.Generator().manual_seed(0)
    x = (
        torch.randn(2000, 8, generator=generator)
        * torch.linspace(0.5, 5, 2000)[torch.randperm(2000, generator=generator), None]
    )
    weight = torch.randn(5, 8, generator=generator)
    targets = torch.nn.functional.normalize(x @ weight.T, dim=-1)
    head = fit_head(x, targets, bias=False, normalise=True)
    assert head.error < 0.05
    # The same direction for every feature: the map itself, up to one positive factor.
    cosine = torch.nn.functional.cosine_similarity(head.weight.flatten(), weight.flatten(), dim=0)
    assert cosine > 0.999

    once = torch.linalg.lstsq(x.double(), targets.double()).solution.T
    distance = (torch.nn.functional.normalize(x.double() @ once.T, dim=-1) - targets).norm(dim=-1).mean()
    assert head.error < distance / 2


def test_the_fit_is_repeated_only_while_it_helps(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    x, noise = torch.randn(300, 20, generator=generator), torch.randn(300, 6, generator=generator)
    targets = torch.nn.functional.normalize(noise, dim=-1)
    repeated = fit_head(x, targets, bias=True, normalise=True)
    monkeypatch.setattr(ridge, "ROUNDS", 0)
    assert repeated.error <= fit_head(x, targets, bias=True, normalise=True).error
