"""A head start for the head: ridge regression from the untrained backbone's pooled states to the teacher's vectors.

The head is the only part of a student that begins at random, and it has a closed-form optimum (for squared error, which
is not the loss, but near it). Training then starts where random initialisation arrives after thousands of steps.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Ridge strengths tried, relative to the mean variance of a feature.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
#: One text in so many is kept out of the fit, to choose the strength.
HOLD_OUT = 10
#: Times the fit is repeated at most, and the least scale of a target, of a mean of 1: none may vanish or turn round.
ROUNDS = 4
LEAST_SCALE = 0.05


@dataclass(frozen=True)
class Head:
    """A linear map `x ↦ W x + b` from pooled states to the teacher's space."""

    weight: Tensor
    """float32 `[d, d']`."""
    bias: Tensor
    """float32 `[d]`; zeros where the student has no bias."""
    error: float
    """Mean held-out `‖y − ŷ‖₂` of this head on the frozen backbone: what training starts from."""


def fit_head(features: Tensor, targets: Tensor, *, bias: bool, normalise: bool) -> Head:
    """The best ridge head from `features` `[n, d']` to `targets` `[n, d]`.

    `W = argmin Σ‖W x_i + b − s_i ŷ_i‖² + λ‖W‖²`, solved for all strengths λ at once from one eigendecomposition of the
    covariance; λ is the one with the least distance (Eq. 3, after Norm where `normalise`) on every tenth text.

    All s_i are 1 at first. Where the student normalises, only the direction of `W x_i + b` counts: each s_i becomes its
    length along `ŷ_i`, and the fit is repeated as long as that brings it nearer. It takes layers that are near the
    teacher already to their head (all of the teacher's own: from ε 0.13 to 0.02), and leaves others as they are.
    """
    features, targets = features.double(), targets.double()
    held = torch.arange(len(features)) % HOLD_OUT == 0
    x = features[~held]
    x_mean = x.mean(0) if bias else torch.zeros_like(x[0])
    eigenvalues, basis = torch.linalg.eigh((x - x_mean).T @ (x - x_mean))

    def fit(scales: Tensor) -> Head:
        y = targets[~held] * scales
        y_mean = y.mean(0) if bias else torch.zeros_like(y[0])
        cross = basis.T @ ((x - x_mean).T @ (y - y_mean))
        heads = []
        for strength in STRENGTHS:
            scale = strength * eigenvalues.mean().clamp_min(1e-12)
            weight = (basis @ (cross / (eigenvalues.clamp_min(0) + scale)[:, None])).T
            offset = y_mean - weight @ x_mean
            predicted = features[held] @ weight.T + offset
            if normalise:
                predicted = torch.nn.functional.normalize(predicted, dim=-1)
            error = (predicted - targets[held]).norm(dim=-1).mean().item()
            heads.append(Head(weight, offset, error))
        return min(heads, key=lambda head: head.error)

    best = fit(torch.ones_like(targets[~held][:, :1]))
    for _ in range(ROUNDS if normalise else 0):
        along = ((x @ best.weight.T + best.bias) * targets[~held]).sum(dim=1, keepdim=True)
        again = fit((along / along.mean()).clamp_min(LEAST_SCALE))
        if not again.error < best.error:
            break
        best = again
    return Head(best.weight.float(), best.bias.float(), best.error)


def random_head(dim: int, width: int) -> Head:
    """A head as torch draws it, from torch's global generator: the paper's start."""
    linear = torch.nn.Linear(width, dim)
    return Head(linear.weight.detach(), linear.bias.detach(), math.nan)
