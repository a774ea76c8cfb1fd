"""Encoders whose vectors are sums of words' vectors, an index of a few documents, and the app that searches it."""

import hashlib
import threading

import numpy as np

from leaf.runtime.server import Settings
from leaf.search import Document, Index
from leaf.search.server import create_search_app

DIM = 32
TOPICS = ["json", "file", "socket", "thread", "parser", "clock", "queue", "random", "email", "zip"]
VERBS = ["open", "read", "write", "close", "parse", "send"]
SCRIPT = "<script>window.broken = 1</script><img src=x onerror='window.broken = 1'> json <b>bold</b>"


def _document(number):
    topic, verb = TOPICS[number // len(VERBS)], VERBS[number % len(VERBS)]
    ending = "and so on " * (60 if verb == "send" else 1)
    return Document(
        f"{topic}.{verb}",
        f"how to {verb} a {topic} with {topic}{number} or {verb}{number} {ending}",
        title=f"{verb} {topic}" if number % 2 else "",
        metadata={"topic": topic, "number": number, "old": number % 2 == 0, "url": f"https://docs.example/{topic}"},
    )


EVIL = Document("evil", SCRIPT, title=SCRIPT, metadata={"topic": SCRIPT, "url": "javascript:window.broken=1"})
DOCUMENTS = [*map(_document, range(len(TOPICS) * len(VERBS))), EVIL]


class WordEncoder:
    """Guarantees: the unit vector of a text is the sum of its words' random ones, plus `noise` of the whole text.

    The same words give the same vector whoever encodes them, so one with little noise answers in the space of one
    without; another `seed` is another space. `gate` holds it.
    """

    similarity = "cosine"

    def __init__(self, name, noise=0.0, seed="space"):
        self.name, self.dim, self.noise, self.seed = name, DIM, noise, seed
        self.gate = threading.Event()
        self.gate.set()

    def encode_query(self, texts, *, batch_size=32, advance=None):
        assert self.gate.wait(timeout=20)
        if "poison" in texts:
            raise RuntimeError("poisoned")
        return np.stack([self.vector(text) for text in texts])

    encode_document = encode_query

    def vector(self, text):
        if text == "nothing":
            return np.full(DIM, np.nan, np.float32)
        words = sum(self._random(word) for word in text.split() or [""])
        vector = words / np.linalg.norm(words) + self.noise * self._random(f"{self.name}: {text}")
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def _random(self, text):
        seed = int.from_bytes(hashlib.sha256(f"{self.seed} {text}".encode()).digest()[:8], "little")
        vector = np.random.default_rng(seed).normal(size=DIM)
        return vector / np.linalg.norm(vector)


class Teacher(WordEncoder):
    """One that says who it is, as the documents' encoder of an index must."""

    def identity(self):
        return {"model": "org/teacher", "weights": "0" * 64}


def make_index(folder, documents=DOCUMENTS):
    """An index in `folder`, by the teacher, in full precision."""
    return Index.create(folder, Teacher("teacher"), documents, model="org/teacher", precision="float32")


def ranking(encoder, query, documents=DOCUMENTS):
    """(id, cosine), best first, by comparing with every document; of equal scores the greater id first."""
    question, body = encoder.vector(query), Teacher("teacher")
    scored = [(each.id, float(body.vector(each.body) @ question)) for each in documents]
    return sorted(sorted(scored, reverse=True), key=lambda each: -each[1])


class Opened:
    """Encoders that are handed out by name, and how often. An exception is raised instead."""

    def __init__(self, **encoders):
        self.encoders, self.count = encoders, dict.fromkeys(encoders, 0)

    def openers(self):
        return {name: lambda name=name: self.open(name) for name in self.encoders}

    def open(self, name):
        self.count[name] += 1
        if isinstance(self.encoders[name], Exception):
            raise self.encoders[name]
        return self.encoders[name]


def usual():
    """A student, a noisier one, and their teacher."""
    return Opened(small=WordEncoder("small", 0.2), tiny=WordEncoder("tiny", 0.4), teacher=Teacher("teacher"))


def make_app(index, opened=None, **settings):
    """The app over `index`, and the settings it was made with."""
    settings = Settings(**{"port": 0, "api_key": None, **settings})
    return create_search_app(index, (opened or usual()).openers(), settings), settings
