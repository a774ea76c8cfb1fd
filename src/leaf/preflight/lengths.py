"""What the tokenizers lose: texts cut at the maximum length, and tokens that are no more than "unknown"."""

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer as RustTokenizer

from leaf.encoder import Role
from leaf.tokens import Tokenizer, Tokens


class Whole:
    """The token ids of texts that nothing cuts, as a model's first module would make them with the role's prompt."""

    def __init__(self, first: Any, tokenizer: Tokenizer) -> None:
        self.max_length = tokenizer.max_length
        self._prompts = tokenizer.prompts
        is_table = isinstance(first.tokenizer, RustTokenizer)
        backend = first.tokenizer if is_table else getattr(first.tokenizer, "backend_tokenizer", None)
        self._encode: Callable[[list[str]], list[list[int]]]
        if backend is None:  # a tokenizer in Python
            self._encode = lambda texts: list(first.tokenizer(texts, truncation=False)["input_ids"])
            self._unknown = first.tokenizer.unk_token_id
            self._num_special = int(first.tokenizer.num_special_tokens_to_add())
        else:
            backend = copy.deepcopy(backend)
            backend.no_truncation()
            backend.no_padding()
            special = not is_table  # a table averages the tokens of the text alone
            self._encode = lambda texts: [
                encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=special)
            ]
            self._unknown = _unknown(backend)
            self._num_special = backend.num_special_tokens_to_add(is_pair=False) if special else 0

    def __call__(self, texts: Sequence[str], role: Role) -> Tokens:
        """Token ids of `texts` with the prompt of `role`, special tokens included, at full length."""
        return Tokens.join(self._encode([self._prompts[role] + text for text in texts]))

    def rates(self, texts: Sequence[str], role: Role) -> dict[str, Any]:
        """What is lost of `texts` (at least one), as shares of 1, ready for JSON.

        `texts_cut` of the texts are longer than `max_length`, which cuts off `tokens_cut` of all their tokens;
        `tokens_unknown` of the tokens, special ones apart, are in no vocabulary, and `texts_unknown` of the texts hold
        one.
        """
        tokens = self(texts, role)
        limit = self.max_length if self.max_length is not None else int(tokens.lengths.max())
        unknown = np.array([(ids == self._unknown).sum() if self._unknown is not None else 0 for ids in tokens.split()])
        own = int(np.maximum(tokens.lengths - self._num_special, 0).sum())
        return {
            "texts": len(texts),
            "mean_tokens": float(tokens.lengths.mean()),
            "max_length": self.max_length,
            "texts_cut": float((tokens.lengths > limit).mean()),
            "tokens_cut": float(np.maximum(tokens.lengths - limit, 0).sum() / tokens.lengths.sum()),
            "texts_unknown": float((unknown > 0).mean()),
            "tokens_unknown": float(unknown.sum() / max(own, 1)),
        }


def _unknown(backend: RustTokenizer) -> int | None:
    """The id that stands for what is in no vocabulary; None where bytes stand in for it and nothing is unknown."""
    model = json.loads(backend.to_str())["model"]
    if model.get("byte_fallback"):
        return None
    if model.get("unk_id") is not None:  # Unigram
        return int(model["unk_id"])
    token = model.get("unk_token")
    known = backend.token_to_id(token) if token else None
    return None if known is None else int(known)
