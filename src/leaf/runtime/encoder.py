"""A student as an ONNX file: an `Encoder` without torch.

    student = OnnxEncoder("runs/demo/student-2l", precision="q8")
    student.encode_query(["how do I read a file line by line"])

Prompts, lengths and special tokens are those that `leaf export` wrote into the file.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from leaf.encoder import Advance, Role, Vectors
from leaf.errors import LeafError
from leaf.files import file_digest
from leaf.runtime.artifact import Usage, find_onnx, find_tokenizer
from leaf.runtime.sessions import ComputeDtype, OnnxRuntimeSession, OpenVinoSession, Session

Backend: TypeAlias = Literal["onnxruntime", "openvino"]

#: Padded tokens of one batch, for each thread. More fall out of the cache and need more padding: paragraphs of
#: documentation in batches of 32 take 1.35 times as long (3 layers, fp32 or int8, two cores), batches of 64 tokens 1.4.
TOKENS_PER_THREAD = 256
#: Texts tokenised and sorted by length at a time: bounds memory, and padding is already rare among as many.
TEXTS_PER_CHUNK = 4096


class OnnxEncoder:
    """An exported student on CPU threads. Any number of Python threads may call one encoder at once.

    `model` is a student folder, a hub id, `package:NAME/FOLDER`, or an ONNX file made by `leaf export`, with
    `tokenizer.json` beside it or in the folder above. `precision` picks a file of a folder (None: fp32); a file has the
    one it has. `threads` None takes every core that this process may use. While a call lasts, threads that
    wait keep their cores busy, which is fastest on a machine with nothing else to do; without `spinning` they sleep,
    which is better beside other work and in a server. `truncate_dim` keeps the leading dimensions, scaled back to
    length 1 where the space has vectors of length 1. `compute_dtype` bfloat16 needs `backend` "openvino" and a CPU that
    has it; of a student with 3 layers, cosines to float32 stayed above 0.9999.

    Raises `LeafError` where a file is missing, damaged, foreign or newer than this package, where the hub cannot be
    reached, and for a precision that was not exported.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        precision: str | None = None,
        name: str | None = None,
        threads: int | None = None,
        spinning: bool = True,
        truncate_dim: int | None = None,
        backend: Backend = "onnxruntime",
        compute_dtype: ComputeDtype = "float32",
    ) -> None:
        if backend not in get_args(Backend):
            raise LeafError(f"no backend '{backend}'; expected one of {', '.join(get_args(Backend))}")
        if threads is not None and threads < 1:
            raise LeafError(f"threads is {threads}, expected 1 or more (None: every core that this process may use)")
        self.path = find_onnx(model, precision)
        self.tokenizer_path = find_tokenizer(self.path)
        self.threads = usable_cores() if threads is None else threads
        self.backend, self.compute_dtype = backend, compute_dtype
        engine: Callable[[Path, int, ComputeDtype, bool], Session]
        engine = OpenVinoSession if backend == "openvino" else OnnxRuntimeSession
        self._session = engine(self.path, self.threads, compute_dtype, spinning)
        self.usage = usage = Usage.parse(self._session.metadata, self.path)
        if precision not in (None, usage.precision):
            raise LeafError(
                f"{self.path} holds {usage.precision}, expected {precision}; leave precision out for a file"
            )
        if truncate_dim is not None and not 1 <= truncate_dim <= usage.dim:
            raise LeafError(
                f"{self.path} answers with {usage.dim} dimensions: {truncate_dim} is not within 1 to that many"
            )
        self._tokenizer = _load_tokenizer(self.tokenizer_path, usage)
        self.dim = truncate_dim or usage.dim
        self.name = name or "-".join(
            (
                usage.name,
                *([usage.precision] if usage.precision != "fp32" else []),
                *([f"{self.dim}d"] if self.dim < usage.dim else []),
            )
        )
        self.similarity: Literal["cosine", "dot"] = usage.similarity
        self.prompts: dict[Role, str] = dict(usage.prompts)
        self.max_length = usage.max_length

    def __repr__(self) -> str:
        return (
            f"OnnxEncoder({self.name!r}, dim={self.dim}, similarity={self.similarity!r}, "
            f"max_length={self.max_length}, backend={self.backend!r}, threads={self.threads})"
        )

    def identity(self) -> dict[str, Any]:
        """Everything that can change a vector, as plain JSON: a cache key. Prompts and lengths are in the file."""
        return {
            **self._digests,
            "backend": self.backend,
            "compute_dtype": self.compute_dtype,
            "dim": self.dim,
        }

    def encode_query(self, texts: Sequence[str], *, batch_size: int = 32, advance: Advance | None = None) -> Vectors:
        """Vectors of queries, float32 `[n, dim]`."""
        return self.encode(texts, "query", batch_size=batch_size, advance=advance)

    def encode_document(self, texts: Sequence[str], *, batch_size: int = 32, advance: Advance | None = None) -> Vectors:
        """Vectors of documents, float32 `[n, dim]`."""
        return self.encode(texts, "document", batch_size=batch_size, advance=advance)

    def encode(
        self, texts: Sequence[str], role: Role, *, batch_size: int = 32, advance: Advance | None = None
    ) -> Vectors:
        """Vectors of texts in one role, float32 `[n, dim]`; `advance` hears of every finished batch.

        `batch_size` is the most texts in one batch. Long texts go in smaller ones, whatever is fastest.
        """
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(texts), TEXTS_PER_CHUNK):
            tokens = self.tokenise(texts[start : start + TEXTS_PER_CHUNK], role)
            chunk = vectors[start : start + TEXTS_PER_CHUNK]
            for rows in _batches([len(each) for each in tokens], batch_size, TOKENS_PER_THREAD * self.threads):
                chunk[rows] = self.encode_tokens([tokens[row] for row in rows])
                if advance:
                    advance(len(rows))
        return vectors

    def count_tokens(self, texts: Sequence[str], role: Role) -> list[int]:
        """Tokens that are read of each text: with the prompt and special tokens, and after cutting."""
        return [len(each) for each in self.tokenise(texts, role)]

    @cached_property
    def _digests(self) -> dict[str, str]:
        return {"onnx": file_digest(self.path), "tokenizer": file_digest(self.tokenizer_path)}

    def tokenise(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        """Token ids of `texts` with the prompt of `role`, cut at the maximum length."""
        if isinstance(texts, str):
            raise LeafError("texts arrived as one string, expected a list of them; write [text]")
        prompt = self.prompts[role]
        prompted = [prompt + text for text in texts]
        try:
            encodings = self._tokenizer.encode_batch_fast(prompted, add_special_tokens=self.usage.add_special_tokens)
        except TypeError as error:
            raise LeafError(
                f"the text {_undecodable(prompted)!r:.60} is not valid Unicode (half of a surrogate pair); repair it "
                "with text.encode('utf-8', 'replace').decode()"
            ) from error
        return [encoding.ids for encoding in encodings]

    def encode_tokens(self, tokens: Sequence[Sequence[int]]) -> Vectors:
        """Vectors of texts that are token ids already, in one padded batch, float32 `[n, dim]`."""
        ids = np.full((len(tokens), max(map(len, tokens))), self.usage.pad_token_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, each in enumerate(tokens):
            ids[row, : len(each)] = each
            mask[row, : len(each)] = 1
        return self._cut(self._session(ids, mask))

    def _cut(self, vectors: Vectors) -> Vectors:
        if self.dim == self.usage.dim:
            return vectors
        vectors = vectors[:, : self.dim]
        if not self.usage.normalised:
            return vectors
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        shortened: Vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
        return shortened


def _batches(lengths: Sequence[int], batch_size: int, max_tokens: int) -> Iterator[list[int]]:
    """Rows of each batch: longest first, so that neighbours are alike and a batch that needs too much fails at once.

    At most `batch_size` texts, and at most `max_tokens` tokens with padding (a longer text goes alone).
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and (len(batch) >= batch_size or (len(batch) + 1) * lengths[batch[0]] > max_tokens):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _load_tokenizer(path: Path, usage: Usage) -> Any:
    """The Rust tokenizer, set to make the ids that the student was trained on (see `leaf.tokens`)."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise LeafError(f"{path} is damaged ({error}); copy it again from the student's folder") from error
    tokenizer.no_padding()
    if usage.max_length is None:
        tokenizer.no_truncation()
    else:
        direction = (tokenizer.truncation or {}).get("direction", "right")
        tokenizer.enable_truncation(usage.max_length, direction=direction)
    tokenizer.encode_special_tokens = usage.split_special_tokens
    return tokenizer


def usable_cores() -> int:
    """Cores that this process may use."""
    # Fewer than the machine has in a container or under taskset. Not every platform can tell.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _undecodable(texts: Sequence[str]) -> str:
    """The first text that is not Unicode, which is all that tokenizers refuse of a `str`."""
    return next(text for text in texts if text.encode("utf-8", "replace").decode() != text)
