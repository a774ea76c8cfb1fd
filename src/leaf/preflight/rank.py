"""What a head of a given width cannot reach of the directions that the teacher's vectors need.

A student's last step is `W h + b` with h of d' dimensions (Eq. 1), so all it can ever say lies in one d'-dimensional
subspace of the teacher's space, however long it trains. Where d' is less than the teacher's rank, something is out of
reach. With Norm after the head only directions count: the offset b is then one more direction, d' + 1 in all.

Shapes: n texts, d dimensions of the teacher, d' of the student's pooled states.
"""

from dataclasses import dataclass

import numpy as np

from leaf.encoder import Vectors
from leaf.spectrum import Values, moment


@dataclass(frozen=True)
class Subspace:
    """What a head can reach: `offset + basis · x`, or, normalised, every direction in the span of `basis`."""

    basis: Values
    """Orthonormal columns, `[d, r]`."""
    offset: Values
    """`[d]`; zeros where there is none."""
    normalise: bool

    def nearest(self, vectors: Vectors) -> Values:
        """The reachable point that is nearest to each row of `vectors` `[n, d]`, which have unit length if `normalise`.

        Nearest in angle is nearest on the sphere, so a normalised projection is exact there, too.
        """
        centred = vectors - self.offset
        projected: Values = self.offset + centred @ self.basis @ self.basis.T
        if not self.normalise:
            return projected
        lengths = np.linalg.norm(projected, axis=1, keepdims=True)
        unit: Values = np.divide(projected, lengths, out=np.zeros_like(projected), where=lengths > 0)
        return unit


def reachable(vectors: Vectors, width: int, *, bias: bool, normalise: bool) -> Subspace | None:
    """What a head from `width` dimensions can reach at best, for teacher vectors `[n, d]`; None where that is all.

    Best in squared distance, which principal components give. The loss is the distance itself (Eq. 3), for which
    another subspace could do slightly better.
    """
    dim = vectors.shape[1]
    vectors = vectors.astype(np.float64)
    offset = np.zeros(dim)
    if bias and normalise:
        width += 1
    elif bias:
        offset = vectors.mean(axis=0)
    if width >= dim:
        return None
    return Subspace(moment(vectors - offset)[1][:, :width], offset, normalise)


def rank_bound(vectors: Vectors, subspace: Subspace | None) -> float:
    """Mean `‖ŷ − nearest(ŷ)‖₂` over `vectors` `[n, d]`: the ε of a student that does all else perfectly; None: 0."""
    if subspace is None:
        return 0.0
    return float(np.linalg.norm(subspace.nearest(vectors) - vectors, axis=1).mean())
