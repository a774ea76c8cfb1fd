"""Teacher-aligned embedding distillation (LEAF): small encoders that answer in a large model's vector space.

    import leaf
    leaf.distill("demo", out="runs/demo")
    student = leaf.load("runs/demo/student-2l")
    student.encode_query(["how do I read a file line by line"])  # float32 [1, dim], in the teacher's space

Importing this package imports no torch: names are loaded on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from leaf.encoder import AsymmetricEncoder
    from leaf.loading import load
    from leaf.pipeline import distill
    from leaf.recipe import Recipe

__all__ = ["AsymmetricEncoder", "Recipe", "__version__", "distill", "load"]

_HOME = {
    "AsymmetricEncoder": "leaf.encoder",
    "Recipe": "leaf.recipe",
    "distill": "leaf.pipeline",
    "load": "leaf.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'leaf' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
