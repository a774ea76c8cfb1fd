"""The students of the parity matrix: a transformer that normalises its vectors, and two tables that do not.

One of the tables knows phrases, with a tokenizer that is put together here and not the backbone's; one has a network
behind its mean.

They are untrained, and their teachers are made to measure: as far away as a trained student's.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from leaf.encoder import Advance, Encoder, Role, Vectors
from leaf.export.onnx import PRECISIONS, export_student
from leaf.recipe import Student as Settings
from leaf.runtime.encoder import OnnxEncoder
from leaf.space import NUM_CANARIES, Space, verify
from leaf.student.model import Student, build_student
from leaf.student.phrases import Phrases, add_phrases
from leaf.student.ridge import Head
from tiny import save_bert, sentences

#: How far a vector may be from PyTorch's, as a share of its length: what the precision costs a model as small as these.
FROM_PYTORCH = {"fp32": 1e-5, "fp16": 5e-3, "q8": 0.1, "q4": 0.3, "q4f16": 0.3}
#: How far two runtimes may be apart on one file: the order of sums, and in q8 an activation that rounds the other way.
BETWEEN_RUNTIMES = {"fp32": 1e-5, "fp16": 5e-3, "q8": 0.05, "q4": 1e-5, "q4f16": 5e-3}
ROLES: list[Role] = ["query", "document"]
PROMPTS: dict[Role, str] = {"query": "badi beko doma tile: ", "document": "lade moro beti nako: "}
#: Beside made-up words: case, accents, marks the tokenizer knows, other scripts, line ends, a word it cannot spell.
AWKWARD = ["BaBe dÉdo", "ba [SEP] be [MASK]", "漢字 ba कखग", "  ba\r\n\tbe\u200b ba ", "x", "ba-be, di.do!", "👩‍🚀 ba"]

DIM, WIDTH, HIDDEN, MAX_LENGTH = 24, 32, 20, 40
#: Three times as long as `MAX_LENGTH`.
LONG = " ".join(sentences(20, seed=4))


@dataclass(frozen=True)
class Case:
    """A student on disk and what every runtime must answer for it."""

    name: str
    folder: Path
    student: Student
    space: Space
    roles: list[Role]
    texts: list[str]
    """Canaries, then awkward ones, then one that is cut."""
    expected: Vectors
    """What Sentence Transformers answers, `[len(texts), dim]`."""
    ours: dict[str, Vectors]
    """What `OnnxEncoder` answers in each precision."""

    @property
    def is_table(self) -> bool:
        """Whether no Transformer is in it."""
        return self.student.is_table

    @property
    def prompted(self) -> list[str]:
        """The texts as those runtimes get them that know no prompts."""
        return [PROMPTS[role] + text for role, text in zip(self.roles, self.texts, strict=True)]


@dataclass
class Prompted:
    """A function from texts to vectors as an `Encoder`: it adds the prompts that the function knows nothing of."""

    encode: Callable[[list[str]], Vectors]
    dim: int
    similarity: str = "cosine"
    name: str = "prompted"
    prompts: dict[Role, str] = field(default_factory=lambda: PROMPTS)

    def encode_query(self, texts: Sequence[str], *, batch_size: int = 32, advance: Advance | None = None) -> Vectors:
        return self.encode([self.prompts["query"] + text for text in texts])

    def encode_document(self, texts: Sequence[str], *, batch_size: int = 32, advance: Advance | None = None) -> Vectors:
        return self.encode([self.prompts["document"] + text for text in texts])


def encode_rows(encoder: Any, roles: Sequence[Role], texts: Sequence[str]) -> Vectors:
    """Vectors of `texts`, each in its role, float32 `[n, dim]`, by an `Encoder` or a `SentenceTransformer`."""
    vectors: dict[int, Any] = {}
    for role, encode in (("query", encoder.encode_query), ("document", encoder.encode_document)):
        rows = [row for row, each in enumerate(roles) if each == role]
        vectors.update(zip(rows, encode([texts[row] for row in rows]), strict=True))
    return np.stack([vectors[row] for row in range(len(texts))]).astype(np.float32)


def check(case: Case, encoder: Encoder, precision: str = "fp32", *, cut: bool = True) -> None:
    """Asserts that an encoder lands in the space, and text by text where PyTorch and our encoder do.

    `cut` says whether the text that is longer than `MAX_LENGTH` counts too.
    """
    verdict = verify(encoder, case.space)
    assert verdict.in_space, verdict
    rows = slice(None) if cut else slice(-1)
    found = encode_rows(encoder, case.roles[rows], case.texts[rows])
    assert farthest(found, case.expected[rows]) <= FROM_PYTORCH[precision]
    assert farthest(found, case.ours[precision][rows]) <= BETWEEN_RUNTIMES[precision]


def farthest(found: Vectors, expected: Vectors) -> float:
    """The largest distance between two rows, as a share of the expected one's length."""
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


def make(folder: Path) -> list[Case]:
    """The cases, exported in all precisions, in folders of their names below `folder`."""
    backbone = save_bert(folder / "backbone", seed=3)
    settings = backbone / "tokenizer_config.json"
    # all-MiniLM-L6-v2 carries one like it: a length that Transformers passes on and means nothing by.
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "max_length": 10}))
    return [
        _case(folder, "transformer", backbone, (0,), normalise=True),  # four bits ask much of random layers
        _case(folder, "table", backbone, (), normalise=False),
        _case(folder, "phrases", backbone, (), normalise=False),
        _case(folder, "layer-with-phrases", backbone, (0,), normalise=True),
        _case(folder, "network", backbone, (), normalise=True),
    ]


def _case(folder: Path, name: str, backbone: Path, layers: tuple[int, ...], *, normalise: bool) -> Case:
    student = build_student(
        Settings(backbone=str(backbone), layers=layers),
        "",
        PROMPTS,
        DIM,
        normalise=normalise,
        max_length=MAX_LENGTH,
        similarity="cosine" if normalise else "dot",
        seed=0,
    )
    generator = torch.Generator().manual_seed(1)
    if "phrases" in name:
        student.set_tokenizer(add_phrases(student.tokenizer.rust, _phrases(student.tokenizer.rust)))
        rows = student.rows.data  # one of its own for each: means of their pieces' would say nothing
        rows += torch.randn(rows.shape, generator=generator) * rows.std()
    weight = torch.randn(DIM, WIDTH, generator=torch.Generator().manual_seed(0))
    student.set_head(Head(weight, torch.zeros(DIM), error=nan))
    if name == "network":
        student.add_network(HIDDEN, seed=0)
        for each in student.parameters():  # or it would say what the table says
            each.data += torch.randn(each.shape, generator=generator) * each.std()
    student.save(folder / name)
    plain = SentenceTransformer(str(folder / name), device="cpu")
    texts, roles = sentences(NUM_CANARIES, seed=1), ROLES * (NUM_CANARIES // 2)
    vectors = encode_rows(plain, roles, texts)
    space = Space(
        teacher={"model": name},
        dim=DIM,
        normalised=normalise,
        similarity=student.model.similarity_fn_name,
        texts=tuple(texts),
        kinds=tuple(roles),
        vectors=_teacher_of(vectors, normalise),
    )
    space = replace(space, error=float(np.linalg.norm(space.vectors - vectors, axis=1).mean()))
    space.save(folder / name)
    texts, roles = [*texts, *AWKWARD, LONG], [*roles, *["document"] * (len(AWKWARD) + 1)]
    expected = encode_rows(plain, roles, texts)
    assert not export_student(folder / name, PRECISIONS)["refused"]
    ours = {each: encode_rows(OnnxEncoder(folder / name, precision=each), roles, texts) for each in PRECISIONS}
    return Case(name, folder / name, student, space, roles, texts, expected, ours)


def _phrases(tokenizer: Any) -> Phrases:
    """Two words, and a sign and a word, of the texts that are encoded."""
    texts = [" ".join(text.split()[1:3]) for text in sentences(NUM_CANARIES, seed=1)[:8]]
    runs = [tuple(tokenizer.encode(text, add_special_tokens=False).ids) for text in [*texts, "- be", "di . do"]]
    counts = np.ones(tokenizer.get_vocab_size() + len(runs), dtype=np.int64)
    return Phrases(tuple(runs), counts, 1.0)


def _teacher_of(vectors: Vectors, normalise: bool) -> Vectors:
    """Vectors as far away as a trained student's teacher has them: 0.4 of their length."""
    noise = np.random.default_rng(0).standard_normal(vectors.shape)
    noise *= 0.4 * np.linalg.norm(vectors, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    moved = vectors + noise
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True) if normalise else moved).astype(np.float32)
