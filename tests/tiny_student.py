"""A tiny untrained student on disk as a run leaves it: with its space, a card, and what only the run needs."""

from pathlib import Path

import numpy as np
import torch

from leaf.loading import load
from leaf.recipe import Student as Settings
from leaf.space import Space, encode_canaries, saved_with
from leaf.student.model import build_student
from leaf.student.ridge import Head
from leaf.teacher.model import SentenceTransformerEncoder
from tiny import sentences

CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- leaf
---

# A student

## Usage

```python
SentenceTransformer("student-2l")  # this folder, or its id on a hub
```

## Scores

Not measured.

<!-- path: student-2l -->
"""


def make_student(
    folder: Path, teacher: SentenceTransformerEncoder, *, layers: tuple[int, ...] = (0, 2), max_length: int = 24
) -> Path:
    """An untrained student of `teacher` in the space of its 64 canaries, queries and documents in turn."""
    texts, kinds = sentences(64, seed=5), ("query", "document") * 32
    vectors = encode_canaries(teacher, texts, kinds)
    normalised = bool(np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3))
    student = build_student(
        Settings(backbone="teacher", layers=layers),
        teacher.folder,
        teacher.prompts,
        teacher.dim,
        normalise=normalised,
        max_length=max_length,
        similarity=teacher.similarity,
        seed=0,
    )
    if student.is_table:  # its rows are as wide as the backbone's until a head is folded in
        weight = torch.randn(teacher.dim, student.first.embedding_dim, generator=torch.Generator().manual_seed(0))
        student.set_head(Head(weight, torch.zeros(teacher.dim), error=0.0))
    student.save(folder)
    space = Space(
        teacher.identity(), teacher.dim, normalised, teacher.similarity, tuple(texts), tuple(kinds), vectors
    )  # fmt: skip
    encoder = load(folder, device="cpu")
    saved_with(space, encoder).save(folder)
    (folder / "README.md").write_text(CARD)
    for name in ("manifest.json", "metrics.jsonl"):
        (folder / name).write_text("{}")
    return folder
