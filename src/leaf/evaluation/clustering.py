"""V-measure of k-means clusters against labels, equal to mteb's for `AbsTaskClustering`.

Ten times, texts are drawn with replacement from those of `ClusteringSet.rows` and clustered into as many groups as they
have labels. The ten differ by the draw and by where k-means ends, which their spread shows.
"""

import random

import numpy as np

from leaf.encoder import Vectors
from leaf.errors import LeafError
from leaf.evaluation.datasets import SEED, ClusteringSet

#: mteb's: clusterings, the texts drawn for each, and those in a step of k-means.
NUM_SAMPLES, SAMPLE_TEXTS, BATCH_SIZE = 10, 16_384, 512


def v_measures(dataset: ClusteringSet, vectors: Vectors) -> list[float]:
    """V-measure of each sample, 0 to 1; their mean is mteb's `v_measure`.

    `vectors` is `[len(dataset.rows), dim]`, the side of the dataset; `LeafError` for another number. Not adjusted for
    chance: clusters of random vectors score well above 0 where labels are many and texts few.
    """
    # Here, since scikit-learn takes a second to import.
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score
    from threadpoolctl import threadpool_limits

    if len(vectors) != len(dataset.rows):
        raise LeafError(f"{dataset.name}: {len(vectors)} vectors, expected those of its {len(dataset.rows)} texts")
    labels = np.array([dataset.labels[row] for row in dataset.rows])
    kmeans = MiniBatchKMeans(
        n_clusters=len(np.unique(labels)), batch_size=BATCH_SIZE, init="k-means++", n_init=1, random_state=SEED
    )
    draw = random.Random(SEED)
    draw.sample(range(len(dataset.labels)), len(labels))  # `rows`, which mteb draws from the same generator
    found = []
    with threadpool_limits(1):  # as for classifiers: 1.6 s on one thread, 12 s on two where others want the cores
        for _ in range(NUM_SAMPLES):
            sample = draw.choices(range(len(labels)), k=SAMPLE_TEXTS)
            found.append(float(v_measure_score(labels[sample], kmeans.fit_predict(vectors[sample]))))
    return found
