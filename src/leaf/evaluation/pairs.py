"""Average precision of telling pairs of one meaning from others by their cosine, equal to mteb's `cosine_ap`.

mteb's main score of pair classification, `max_ap`, is the best of cosine, dot product, Euclidean and Manhattan
distance. Vectors of unit length are ranked alike by the first three, so there `max_ap` is higher by what Manhattan
distance gains, if anything. The cosine is what an index ranks by, and the best of several is chosen on test labels.
"""

from collections.abc import Sequence

import numpy as np

from leaf.encoder import Vectors


def cosines(vectors: Vectors) -> Vectors:
    """Cosine `[n]` of each first sentence and its second, from the vectors `[2n, dim]` of the side `sentences`.

    By the distance of the unit vectors, as in mteb, and not by their product: two equal texts then score exactly 1, and
    all such pairs tie.
    """
    from sklearn.metrics.pairwise import paired_cosine_distances

    found: Vectors = 1 - paired_cosine_distances(*np.split(vectors, 2))
    return found


def average_precision(similarities: Vectors, labels: Sequence[int]) -> float:
    """`Σ_k (R_k − R_{k−1}) P_k` over falling thresholds, 0 to 1, from similarities `[n]` and labels 1 or 0.

    Pairs of equal similarity pass a threshold together. Chance is the share of the label 1.
    """
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, similarities))
