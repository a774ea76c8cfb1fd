"""The teacher pass without padding: texts sorted and packed up to a token budget, tokenised while others compute.

Sentence Transformers pads every batch to its longest text, tokenises between two batches, and launches each kernel by
itself. Where a model is a plain encoder with a mean or CLS pooling, the same vectors come sooner from here; every other
model goes through `SentenceTransformer.encode`, which this file leaves as it is.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from torch import Tensor

from leaf.ahead import ahead
from leaf.encoder import Advance, Role, Vectors
from leaf.packed import (
    ATTENTION,
    can_pack,
    first_position,
    pack,
    packed_first,
    packed_mean,
    packed_states,
    to_device,
    token_batches,
)
from leaf.tokens import Tokenizer, Tokens

#: Texts tokenised at a time: enough for all of the tokenizer's threads, and for batches of like lengths.
PIECE = 8192
#: Tokens per forward pass. A CPU likes what its caches hold; a GPU wants enough to hide the launching of kernels.
CPU_TOKENS, GPU_TOKENS = 4096, 65_536


class PackedPass:
    """Encodes texts with a Sentence Transformers model whose modules are known, in one dtype on one device."""

    def __init__(self, model: SentenceTransformer, prompts: Mapping[Role, str], dtype: torch.dtype) -> None:
        self._model, self._dtype = model, dtype
        self._backbone: Any = model[0].auto_model
        self._first_position = first_position(self._backbone)
        self._pool = packed_mean if model[1].pooling_mode == "mean" else packed_first
        self._tokenizer = Tokenizer(model[0], prompts)
        on_gpu = model.device.type == "cuda"
        self._budget = GPU_TOKENS if on_gpu else CPU_TOKENS
        # One compilation for all shapes: with this many tokens a kernel, fixed shapes would gain little more.
        self._states = torch.compile(packed_states, dynamic=True) if on_gpu else packed_states
        self._longest = self._tokenizer.max_length if on_gpu else None

    @classmethod
    def fits(cls, model: SentenceTransformer, dtype: torch.dtype) -> bool:
        """Whether `model` is a plain encoder that can be packed, on a device that can do it in `dtype`."""
        first, pooling, *rest = model if len(model) > 1 else (None, None)
        return (
            isinstance(first, Transformer)
            and isinstance(pooling, Pooling)
            and pooling.pooling_mode in ("mean", "cls")
            and pooling.include_prompt
            and all(isinstance(module, Dense | Normalize) for module in rest)
            # Flash attention, which packing takes on a GPU, computes in 16 bits only.
            and (model.device.type == "cpu" or (model.device.type == "cuda" and dtype == torch.bfloat16))
            and can_pack(first.auto_model)
        )

    def encode(self, texts: Sequence[str], role: Role, advance: Advance | None = None) -> Vectors:
        """Vectors of at least one text in one role, float32 `[n, dim]`; `advance` hears of every finished batch."""
        # By characters first, so that a piece holds texts of like length; the longest, which fail first, begin.
        order = np.array(sorted(range(len(texts)), key=lambda row: -len(texts[row])))
        pieces = [order[start : start + PIECE] for start in range(0, len(order), PIECE)]
        tokenised: Iterable[Tokens] = (self._tokenizer([texts[row] for row in rows], role) for rows in pieces)
        if len(pieces) > 1:  # a single query should not pay for a thread
            tokenised = ahead(tokenised, 1)
        self._backbone.set_attn_implementation(ATTENTION)
        try:
            result: Vectors | None = None
            for rows, tokens in zip(pieces, tokenised, strict=True):
                vectors = self._encode(tokens, advance)
                if result is None:
                    result = np.empty((len(texts), vectors.shape[1]), dtype=np.float32)
                result[rows] = vectors
        finally:
            self._backbone.set_attn_implementation("sdpa")
        assert result is not None, "there is a text"
        return result

    @torch.inference_mode()
    def _encode(self, tokens: Tokens, advance: Advance | None) -> Vectors:
        ids, ends = tokens.ids, np.cumsum(tokens.lengths)
        order = np.argsort(-tokens.lengths, kind="stable")
        batches = []
        for rows in token_batches(tokens.lengths, order, self._budget):
            batch = np.concatenate([ids[ends[row] - tokens.lengths[row] : ends[row]] for row in rows])
            batches.append(self._forward(batch, tokens.lengths[rows]))
            if advance:
                advance(len(rows))
        vectors: Vectors = np.empty((len(order), batches[0].shape[1]), dtype=np.float32)
        vectors[order] = torch.cat(batches).float().cpu().numpy()
        return vectors

    def _forward(self, ids: NDArray[Any], lengths: NDArray[Any]) -> Tensor:
        features = pack(ids, lengths, self._first_position)
        if self._longest is not None:  # facts that compiled code would be made anew for
            features |= {"max_length": self._longest, "runs": ()}
        device = self._model.device
        features = to_device(features, device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            states = self._states(self._backbone, features)
        pooled: dict[str, Any] = {"sentence_embedding": self._pool(states, features)}
        for module in list(self._model)[2:]:
            pooled = module(pooled)
        vectors: Tensor = pooled["sentence_embedding"]
        return vectors
