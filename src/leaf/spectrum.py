"""How many directions a set of vectors needs. Shapes: n vectors, d dimensions."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from leaf.encoder import Vectors

Values: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Spectrum:
    """How the energy (mean squared length, not centred) of vectors spreads over directions."""

    energy: Values
    """Share of the energy in the r leading directions, at index r − 1, `[d]`; the last is 1."""
    mean_share: float
    """Share of the energy that is the mean vector's: what is the same in every text."""
    effective_rank: float
    """`exp(H)` of the singular values taken as a distribution (Roy and Vetterli 2007), 1 to d."""
    basis: Values
    """The directions, leading ones first, as orthonormal columns, `[d, d]`."""


def spectrum(vectors: Vectors) -> Spectrum:
    """The spectrum of `vectors` `[n, d]`. With fewer texts than dimensions, the rank is at most n."""
    eigenvalues, basis = moment(vectors.astype(np.float64))
    singular = np.sqrt(eigenvalues)
    shares = singular[singular > 0] / singular.sum()
    return Spectrum(
        energy=np.cumsum(eigenvalues) / eigenvalues.sum(),
        mean_share=float(np.square(vectors.mean(axis=0, dtype=np.float64)).sum() / eigenvalues.sum()),
        effective_rank=float(np.exp(-(shares * np.log(shares)).sum())),
        basis=basis,
    )


def moment(vectors: Values) -> tuple[Values, Values]:
    """Eigenvalues `[d]`, largest first and never negative, and eigenvectors `[d, d]` (columns) of `Σ v vᵀ / n`."""
    eigenvalues, basis = np.linalg.eigh(vectors.T @ vectors / len(vectors))
    return np.maximum(eigenvalues[::-1], 0), basis[:, ::-1]
