"""Accuracy of small classifiers fitted on vectors, equal to mteb's for `AbsTaskClassification`.

Ten logistic regressions, each fitted on 8 training texts a label (`ClassificationSet.samples`), all tried on every test
text. How far the classes lie apart in the space is what counts, so little training data and no tuning.
"""

import warnings

import numpy as np
from numpy.typing import NDArray

from leaf.encoder import Vectors
from leaf.errors import LeafError
from leaf.evaluation.datasets import SEED, ClassificationSet


def accuracies(dataset: ClassificationSet, train: Vectors, texts: Vectors) -> dict[str, float]:
    """Test text (its row, from 0) → share of the classifiers that label it right; their mean is mteb's accuracy.

    `train` is `[len(dataset.rows), dim]` and `texts` `[len(dataset.test), dim]`: the sides of the dataset.
    """
    shares = right(dataset, train, texts).mean(axis=0)
    return {str(row): share for row, share in enumerate(shares.tolist())}


def right(dataset: ClassificationSet, train: Vectors, texts: Vectors) -> NDArray[np.bool_]:
    """Which classifier labels which test text right, `[classifiers, texts]`; means of rows are their accuracies.

    Vectors as for `accuracies`; `LeafError` where their number is not that of the texts.
    """
    # Here, since scikit-learn takes a second to import.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    if (len(train), len(texts)) != (len(dataset.rows), len(dataset.test)):
        raise LeafError(
            f"{dataset.name}: {len(train)} and {len(texts)} vectors, expected those of its sides, "
            f"{len(dataset.rows)} of train and {len(dataset.test)} of texts"
        )
    position = {row: number for number, row in enumerate(dataset.rows)}
    gold = np.array([label for _, label in dataset.test])
    classifier = LogisticRegression(max_iter=100, random_state=SEED)
    found = []
    # Matrices this small only lose time between threads where others want the cores: 3 s on one, 8 to 24 s on two.
    with warnings.catch_warnings(), threadpool_limits(1):
        # That fitting may end after 100 iterations is part of the definition.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for sample in dataset.samples:
            classifier.fit(train[[position[row] for row in sample]], [dataset.train[row][1] for row in sample])
            found.append(classifier.predict(texts) == gold)
    return np.stack(found)
