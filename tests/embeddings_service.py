"""A fake embeddings API for `Misbehaving`: OpenAI's, Voyage AI's and Cohere's answers, with vectors that can be known.

truth = Embeddings(dim=8)
with Misbehaving(truth, fail=0.2) as service: ...
truth.vector("a text", "query")     # what the service answers for it
"""

import base64
import hashlib
import threading
from collections import Counter

import numpy as np

from leaf.teacher.drift import CANARIES

CANARY_TEXTS = {text for _, text in CANARIES}


class Embeddings:
    """Guarantees: a vector depends on the text, the input type that was told and `model` alone, but for `noise`, which
    differs from call to call; unit length unless `scale` says otherwise; a token is four bytes, and one for each text.

    What a test may change while it runs: `model` (another one answers, under the old name unless `tells` says so; of
    `near`, vectors have cosines of 0.96 to those of `true`), `lists` (numbers instead of base64), `shuffled`, `edit`
    (the last word on an answer)."""

    def __init__(self, dim=8, model="true", noise=0.0, scale=1.0):
        self.dim, self.model, self.noise, self.scale = dim, model, noise, scale
        self.tells = "m-2024"
        self.lists = self.shuffled = False
        self.edit = lambda answer: answer
        self.calls = 0
        self.tokens = 0
        """Of every answer that was made, whether or not it arrived: what a strict provider would bill."""
        self._lock = threading.Lock()

    def vector(self, text, input_type=""):
        vector = self._direction("true" if self.model == "near" else self.model, text, input_type)
        if self.model == "near":  # 0.3 at a right angle
            away = self._direction("other", text, input_type)
            away -= (away @ vector) * vector
            vector += 0.3 * away / np.linalg.norm(away)
        return (vector * self.scale / np.linalg.norm(vector)).astype(np.float32)

    def _direction(self, model, text, input_type):
        seed = hashlib.sha256(f"{model}|{input_type}|{text}".encode()).digest()[:8]
        vector = np.random.default_rng(int.from_bytes(seed, "little")).normal(size=self.dim)
        return vector / np.linalg.norm(vector)

    def vectors(self, texts, input_type=""):
        return np.stack([self.vector(text, input_type) for text in texts])

    def __call__(self, path, body):
        texts = body.get("input") or body["texts"]
        with self._lock:
            self.calls += 1
            call = self.calls
            tokens = sum(1 + len(text.encode()) // 4 for text in texts)
            self.tokens += tokens
        dim = body.get("dimensions") or body.get("output_dimension") or self.dim
        vectors = self.vectors(texts, body.get("input_type", ""))[:, :dim]
        if self.noise:
            vectors = vectors + np.random.default_rng(call).normal(0, self.noise, vectors.shape).astype(np.float32)
            vectors *= self.scale / np.linalg.norm(vectors, axis=1, keepdims=True)
        if path.endswith("/v2/embed"):
            usage = {"billed_units": {"input_tokens": tokens}}
            return self.edit({"id": "1", "embeddings": {"float": vectors.tolist()}, "texts": texts, "meta": usage})
        rows = [
            {"object": "embedding", "index": index, "embedding": self._encoded(vector, body)}
            for index, vector in enumerate(vectors)
        ]
        usage = {"total_tokens": tokens}
        rows = rows[::-1] if self.shuffled else rows
        return self.edit({"object": "list", "data": rows, "model": self.tells, "usage": usage})

    def _encoded(self, vector, body):
        as_base64 = body.get("encoding_format") == "base64" and not self.lists
        return base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_base64 else vector.tolist()


def answered(service):
    """How often the answer for each (input type, text) was sent whole, canaries apart."""
    return Counter(
        (body.get("input_type", ""), text)
        for _, body in service.answered
        for text in body.get("input") or body["texts"]
        if text not in CANARY_TEXTS
    )
