"""Token ids exactly as Sentence Transformers makes them, without the padded tensors it makes them into.

tokenizer = Tokenizer(model[0], {"query": "query: ", "document": ""})
ids = tokenizer(["how tall is it?"], "query").split()[0]
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leaf.encoder import Role
from leaf.errors import LeafError
from leaf.files import digest, file_digest

#: In the order in which they are tokenised.
ROLES: tuple[Role, ...] = ("query", "document")
#: What tokenizers disagree about: nothing, case, accents, other scripts, line ends and unknown characters.
_PROBES = ("", "Plain words, 12.5 of them.", "ÀÉÎ œuvre ﬁn İ", "漢字 कखग ру́сский", "  a\r\n\tb\u200b\x00c ", "👩‍🚀")


@dataclass(frozen=True)
class Tokens:
    """Texts as token ids that lie end to end."""

    ids: NDArray[np.uint32]
    """All ids, `[sum(lengths)]`."""
    lengths: NDArray[np.int64]
    """Tokens of each text, `[n]`."""

    @classmethod
    def join(cls, texts: Sequence[Sequence[int]]) -> "Tokens":
        """The ids of each text, end to end."""
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        ids = np.fromiter(chain.from_iterable(texts), dtype=np.uint32, count=int(lengths.sum()))
        return cls(ids, lengths)

    def split(self) -> list[NDArray[np.uint32]]:
        """The ids of each text, as views."""
        ends = np.cumsum(self.lengths)
        return [self.ids[end - length : end] for end, length in zip(ends.tolist(), self.lengths.tolist(), strict=True)]


class Tokenizer:
    """The token ids that `first.preprocess(texts, prompt=…)` would make, several times as fast.

    `first` is the first module of a Sentence Transformers model, a `Transformer` or a `StaticEmbedding`; its maximum
    length is taken as it is now. Texts go straight to the Rust tokenizer, which spreads them over all cores. Where the
    module does more than that to a text (a Python tokenizer, a chat template, `processing_kwargs`), or answers a few
    awkward texts differently, `preprocess` itself is called. Raises `LeafError` for any other kind of module.
    """

    def __init__(self, first: Any, prompts: Mapping[Role, str]) -> None:
        # Sentence Transformers takes seconds to import, and readers of this file's types do not need it.
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding, Transformer

        self.prompts = {role: prompts.get(role) or "" for role in ROLES}
        self.is_table = isinstance(first, StaticEmbedding)
        self._first, self._backend, self._split_special = first, None, False
        if self.is_table and type(first).preprocess is StaticEmbedding.preprocess:
            self._backend = first.tokenizer
        elif isinstance(first, Transformer):
            self._backend = self._fast_backend(type(first).preprocess is Transformer.preprocess)
        else:
            raise LeafError(
                f"cannot tokenise for a {type(first).__name__}; the first module must be a Transformer or a "
                "StaticEmbedding of Sentence Transformers"
            )

    def __call__(self, texts: Sequence[str], role: Role) -> Tokens:
        """Token ids of `texts` with the prompt of `role`, cut at the maximum length, special tokens included."""
        if not texts:
            return Tokens.join([])
        prompt = self.prompts[role]
        if self._backend is None:
            return self._preprocess(texts, prompt)
        return _encode(self._backend, [prompt + text for text in texts], special_tokens=not self.is_table)

    @property
    def is_direct(self) -> bool:
        """Whether texts go straight to the Rust tokenizer."""
        return self._backend is not None

    @property
    def rust(self) -> Any:
        """The Rust tokenizer, cut at the maximum length. Raises `LeafError` where texts do not go straight to it."""
        if self._backend is None:
            raise LeafError("phrases need a fast tokenizer; leave student.phrases out, or name another backbone")
        return self._backend

    @property
    def max_length(self) -> int | None:
        """Tokens after which a text is cut, special tokens included; None where there is no limit."""
        if self._backend is None:
            return _limit(self._first.max_seq_length)
        return None if self._backend.truncation is None else int(self._backend.truncation["max_length"])

    def identity(self) -> dict[str, Any]:
        """Everything that can change the ids of a text, as plain JSON: a cache key."""
        return {
            "tokenizer": self._saved_digest() if self._backend is None else digest(self._backend.to_str()),
            "prompts": self.prompts,
            "max_length": self.max_length,
            "table": self.is_table,
            "split_special_tokens": self._split_special,
        }

    def _fast_backend(self, is_standard: bool) -> Any:
        """A copy of the Rust tokenizer with the module's settings, or None where it would not give the same ids."""
        tokenizer = self._first.processor
        plain = (
            is_standard
            and getattr(tokenizer, "is_fast", False)
            and self._first.modalities == ["text"]
            and not self._first.processing_kwargs
        )
        if not plain:
            return None
        limit = _limit(self._first.max_seq_length)
        special = " ".join(tokenizer.all_special_tokens)
        probes = [*_PROBES, special, f"{special} {'word ' * (limit or 0)}"]
        # First, because some tokenizers choose their special tokens on the first call.
        expected = [self._preprocess(probes, prompt) for prompt in self.prompts.values()]
        # A copy, because Transformers sets and resets truncation and padding on the original with every call.
        backend = copy.deepcopy(tokenizer.backend_tokenizer)
        backend.no_padding()
        if limit is None:
            backend.no_truncation()
        else:
            backend.enable_truncation(limit, direction=tokenizer.truncation_side)
        # The copy goes through JSON, which leaves this one out.
        backend.encode_special_tokens = self._split_special = bool(tokenizer.split_special_tokens)
        found = [_encode(backend, [prompt + text for text in probes]) for prompt in self.prompts.values()]
        same = all(
            np.array_equal(one.lengths, other.lengths) and np.array_equal(one.ids, other.ids)
            for one, other in zip(expected, found, strict=True)
        )
        return backend if same else None

    def _preprocess(self, texts: Sequence[str], prompt: str) -> Tokens:
        features = self._first.preprocess(list(texts), prompt=prompt or None)
        mask = features["attention_mask"].numpy().astype(bool)
        return Tokens(features["input_ids"].numpy()[mask].astype(np.uint32), mask.sum(axis=1, dtype=np.int64))

    def _saved_digest(self) -> str:
        # A Python tokenizer has no JSON of its own: what it saves is what can be loaded again.
        with TemporaryDirectory() as folder:
            self._first.processor.save_pretrained(folder)
            files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            saved = [[str(path.relative_to(folder)), file_digest(path)] for path in files]
        return digest([saved, repr(self._first.get_config_dict())])


def _encode(backend: Any, texts: list[str], *, special_tokens: bool = True) -> Tokens:
    encodings: Iterable[Any] = backend.encode_batch_fast(texts, add_special_tokens=special_tokens)
    return Tokens.join([encoding.ids for encoding in encodings])


def _limit(max_seq_length: float | None) -> int | None:
    # Transformers says "no limit" with 1e30.
    return int(max_seq_length) if max_seq_length is not None and max_seq_length < 1e9 else None
