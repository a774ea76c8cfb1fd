"""What runs where queries are answered: reads `STUDENT/onnx/`, answers with vectors. Nothing here imports torch.

    from leaf.runtime import OnnxEncoder
    student = OnnxEncoder("runs/demo/student-2l", precision="q8")
    student.encode_query(["how do I read a file line by line"])  # float32 [1, dim], in the teacher's space

Needs numpy, onnxruntime and tokenizers. Names are loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leaf.runtime.encoder import OnnxEncoder
    from leaf.runtime.remote import RemoteEncoder

__all__ = ["OnnxEncoder", "RemoteEncoder"]

_HOME = {"OnnxEncoder": "leaf.runtime.encoder", "RemoteEncoder": "leaf.runtime.remote"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'leaf.runtime' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
