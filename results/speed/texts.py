"""Writes queries.txt and passages.txt: 2,000 of each kind from the training texts beside the checkout.

python results/speed/texts.py [../shared/data/train.parquet]
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

texts = pq.read_table(sys.argv[1] if len(sys.argv) > 1 else "../shared/data/train.parquet", columns=["text", "source"])
sources = texts["source"].to_numpy(zero_copy_only=False)
generator = np.random.default_rng(0)
for source, file in (("msmarco-queries", "queries.txt"), ("wikipedia-paragraphs", "passages.txt")):
    rows = generator.choice(np.flatnonzero(sources == source), 2000, replace=False)
    lines = [" ".join(text.split()) for text in texts["text"].take(rows).to_pylist()]
    Path(file).write_text("\n".join(lines) + "\n", encoding="utf-8")
