"""`leaf.load`: any model that this package can encode with, as an `Encoder`."""

from pathlib import Path
from typing import Literal

from leaf.encoder import Encoder
from leaf.errors import LeafError


def load(
    model: str | Path,
    *,
    device: str | None = None,
    name: str | None = None,
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
) -> Encoder:
    """The encoder behind `model`: a folder, a hub id, or `package:NAME/FOLDER`.

    Its `encode_query` and `encode_document` apply the prompts that the model ships and return float32 `[n, dim]`.
    `device` is torch's name for one; None takes a GPU where there is one. In bfloat16 only matrix products are rounded,
    which moves vectors by cosines of some 1e-5. Raises `LeafError` when there is no such
    model or no hub to fetch it from.
    """
    if str(model).endswith(".onnx") or str(model).startswith("openai:"):
        raise LeafError(
            f"'{model}': ONNX files and API endpoints cannot be loaded yet; give a model folder or a hub id"
        )
    from leaf.teacher.model import SentenceTransformerEncoder

    return SentenceTransformerEncoder(str(model), device=device, name=name, compute_dtype=compute_dtype)
