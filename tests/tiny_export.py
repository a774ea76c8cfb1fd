"""A tiny student as `leaf export` leaves it, in float32 alone: the graph, what it says of its use, and the manifest.

It guarantees the layout that runtimes read, and the numbers in the manifest are made up.
"""

import json
from pathlib import Path
from typing import Any

from leaf.space import Space

#: One file, and PyTorch beside it: 0.4123 by distilling, 0.0011 more by the precision.
MANIFEST: dict[str, Any] = {
    "files": {
        "fp32": {
            "file": "model.onnx",
            "bytes": 123_456,
            "error": 0.4134,
            "added_error": 0.0011,
            "min_cosine": 0.9998,
            "max_distance": 0.02,
            "batch_cosine": 0.9997,
        }
    },
    "student_error": 0.4123,
    "num_texts": 64,
    "texts": "canaries",
}


def export_tiny(folder: Path, max_length: int = 24) -> None:
    """Adds `onnx/` to the student in `folder`, and to a lookup table the settings that other runtimes look for."""
    import onnx
    from sentence_transformers import SentenceTransformer

    from leaf.export.graph import to_graph

    model, space = SentenceTransformer(str(folder), device="cpu"), Space.load(folder)
    is_table = len(model) == 2
    graph = to_graph(model)
    usage = {
        "format": 1,
        "name": folder.name,
        "precision": "fp32",
        "dim": space.dim,
        "normalised": space.normalised,
        "similarity": space.similarity,
        "prompts": {role: model.prompts[role] for role in ("query", "document")},
        "max_length": max_length,
        "add_special_tokens": not is_table,
        "split_special_tokens": False,
        "pad_token_id": 0,
        "space": space.id,
    }
    onnx.helper.set_model_props(graph, {"leaf": json.dumps(usage)})
    (folder / "onnx").mkdir()
    onnx.save(graph, str(folder / "onnx" / "model.onnx"))
    if is_table:
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length, "pad_token": "[PAD]"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        (folder / "config.json").write_text(json.dumps({"model_type": "static-embedding", "pad_token_id": 0}))
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))
    (folder / "onnx" / "manifest.json").write_text(json.dumps(MANIFEST))
