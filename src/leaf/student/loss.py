"""The distillation loss, and the error it is measured by: one line of mathematics.

Not its square, not a mean over dimensions, not a cosine: the norm keeps the gradient of each text at length 1, however
far it still is from its target, and it compares vectors where the index compares them.
"""

import torch
from torch import Tensor


def distances(student: Tensor, teacher: Tensor) -> Tensor:
    """`ε_i = ‖y_i − ŷ_i‖₂` per text (Eq. 2–3), float32 `[n]`, for two `[n, dim]` tensors of any float dtype.

    Between unit vectors it lies in [0, 2].
    """
    difference: Tensor = student.float() - teacher.float()
    # vector_norm's gradient at 0 is defined as 0, so a text that is met exactly does not turn the weights into NaN.
    norms: Tensor = torch.linalg.vector_norm(difference, dim=-1)
    return norms


def leaf_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """`mean_i ‖y_i − ŷ_i‖₂` (Eq. 3) over a batch, a float32 scalar."""
    return distances(student, teacher).mean()
