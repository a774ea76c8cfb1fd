"""Vectors that you already own: a teacher that answers from an existing index and is asked only for what is not in it.

    teacher = OwnedTeacher(OwnedVectors(source="dump.parquet"), inner, Path("embeddings/.owned"), name="my-index")

With the documents' vectors from a database, no document is encoded again; `inner`, often an API, answers for the
queries. Without `inner` the vectors are all there is, and every text must be among them.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from leaf.encoder import Advance, Role, Vectors, normalised, row_cosines
from leaf.errors import LeafError
from leaf.files import digest, write_json
from leaf.progress import say
from leaf.recipe import OwnedVectors
from leaf.teacher.opening import Teacher
from leaf.teacher.owned import CHECK, Owned
from leaf.tokens import ROLES
from leaf.vector_files import UNIT_NORM_TOLERANCE

#: Texts that `inner` encodes again, for the comparison.
NUM_COMPARED = 16
#: Mean cosines below which the vectors are not the teacher's, and below which they are not quite. Another dtype or
#: float16 storage moves a vector by 1e-4; another prompt, by some 5e-2.
FOREIGN, DOUBTFUL = 0.99, 0.999
#: Lengths that differ by less are the same.
SAME_LENGTH = 0.01


@dataclass(frozen=True)
class Check:
    """What `check_against` measured."""

    texts: int
    cosines: dict[Role, float]
    """Mean cosine of a vector that is owned to the one that the teacher gives now, by kind."""
    lengths: Literal["same", "unit"]
    """`same`, or `unit` where the owned vectors were brought to unit length and the teacher's are not."""


class OwnedTeacher:
    """A teacher whose vectors are taken from `settings.source` where it has them, and asked of `inner` where not.

    `folder` keeps a copy of the vectors (see `leaf.teacher.owned`). Before `inner` is first asked, it encodes a few of
    the texts again, and its answers are compared: see `check_against`. `name` is what tables call it and, without
    `inner`, who the space belongs to: `vectors:NAME`. Raises `LeafError` for texts that nobody has a vector of.
    """

    def __init__(self, settings: OwnedVectors, inner: Teacher | None, folder: Path, *, name: str) -> None:
        self.owned, self.inner, self.name = Owned(settings, folder), inner, name
        self.prompts: dict[Role, str] = dict(inner.prompts) if inner else {}
        self.folder: str | None = inner.folder if inner else None
        self.similarity: Literal["cosine", "dot"] = inner.similarity if inner else "cosine"

    @property
    def dim(self) -> int:
        """Width of the vectors. Raises `LeafError` where `inner` has another."""
        if self.inner is not None and self.inner.dim != self.owned.dim:
            raise LeafError(
                f"the vectors of {self._source} have {self.owned.dim} dimensions and {self.inner.name} answers with "
                f"{self.inner.dim}; name the model that made them (and its teacher.api.dimensions) in teacher.model"
            )
        return self.owned.dim

    @property
    def max_length(self) -> int | None:
        """Tokens after which `inner` cuts a text."""
        return self.inner.max_length if self.inner else None

    @property
    def num_parameters(self) -> int | None:
        """Parameters of `inner`."""
        return self.inner.num_parameters if self.inner else None

    @property
    def digest(self) -> str:
        """What is owned, as a SHA-256: with `identity`, all that can change a vector."""
        return self.owned.digest

    def identity(self) -> dict[str, Any]:
        """Whose space this is, as plain JSON: `inner`'s identity, since a vector that is owned is one of its own."""
        if self.inner is None:
            return {"model": f"vectors:{self.name}", "prompts": {}, "dim": self.dim, "similarity": self.similarity}
        lengths = {"lengths": "unit"} if self._check.lengths == "unit" else {}
        return {**self.inner.identity(), **lengths}

    def facts(self) -> dict[str, Any]:
        """What was read and compared, for a manifest."""
        known = {key: self.owned.facts[key] for key in ("rows", "kinds", "repeats", "skipped", "digest")}
        return {"source": self._source, **known, "check": asdict(self._check) if self.inner else None}

    def texts(self) -> Iterator[tuple[str, Role]]:
        """Every text that has a vector, with its kind."""
        return self.owned.texts()

    def encode_query(self, texts: Sequence[str], *, batch_size: int = 32, advance: Advance | None = None) -> Vectors:
        """Vectors of queries, float32 `[n, dim]`."""
        return self._encode(texts, "query", batch_size, advance)

    def encode_document(self, texts: Sequence[str], *, batch_size: int = 32, advance: Advance | None = None) -> Vectors:
        """Vectors of documents, float32 `[n, dim]`."""
        return self._encode(texts, "document", batch_size, advance)

    def bill(self) -> dict[str, Any] | None:
        """What `inner` was paid."""
        return self.inner.bill() if self.inner else None

    def close(self) -> None:
        """Closes `inner`."""
        if self.inner:
            self.inner.close()

    def check_against(self, inner: Teacher, sample: int = NUM_COMPARED) -> Check:
        """Encodes `sample` of the texts again with `inner` and compares: are the vectors that are owned its own?

        The sample follows from the texts alone, half of each kind where there are two. Raises `LeafError` where the
        mean cosine of a kind is below 0.99 (another model, prompt, version, or texts that were indexed in another
        form) and warns below 0.999. Lengths may differ in one way: the owned vectors have unit length, as many
        databases make them. The index cannot change and cosines do not see lengths, so that `inner`'s answers are then
        brought to unit length too, and the student is normalised. Any other lengths are a `LeafError`.
        """
        kinds = [kind for kind in ROLES if self.owned.facts["kinds"][kind]]
        cosines: dict[Role, float] = {}
        ratios, unit = [], True
        for kind in kinds:
            rows = self.owned.sample(kind, -(-sample // len(kinds)))
            encode = inner.encode_query if kind == "query" else inner.encode_document
            texts, expected = self.owned.texts_of(rows), self.owned.vectors(rows)
            found = encode(texts)
            each = row_cosines(found, expected)
            cosines[kind] = float(each.mean())
            if cosines[kind] < DOUBTFUL:
                worst = int(each.argmin())
                problem = (
                    f"encoded again by {inner.name}, the {_plural(kind)} of {self._source} have mean cosine "
                    f"{cosines[kind]:.4f} to their vectors ({each[worst]:.4f} for '{_beginning(texts[worst])}')"
                )
                if cosines[kind] < FOREIGN:
                    raise LeafError(
                        f"{problem}: they are another model's, another prompt's or dimension's, or of texts in another "
                        "form; name the model that made them, or export the texts as they were encoded"
                    )
                say(f"warning: {problem}; 1.0000 was expected: another version or precision of the model?")
            lengths = np.linalg.norm(expected, axis=1)
            unit &= bool((np.abs(lengths - 1) <= UNIT_NORM_TOLERANCE).all())
            ratios += (lengths / np.maximum(np.linalg.norm(found, axis=1), 1e-12)).tolist()
        same = max(abs(ratio - 1) for ratio in ratios) <= SAME_LENGTH
        if not same and not unit:
            raise LeafError(
                f"the vectors of {self._source} point where {inner.name}'s do, but are {min(ratios):.3g} to "
                f"{max(ratios):.3g} times as long; export them as the teacher gave them, or at unit length"
            )
        if not same:
            say(f"the vectors of {self._source} have unit length and {inner.name}'s have not: its answers get it too")
        return Check(len(ratios), cosines, "same" if same else "unit")

    @property
    def _source(self) -> str:
        return self.owned.settings.source

    @functools.cached_property
    def _check(self) -> Check:
        """`check_against`, once for every `inner`: it is kept beside the vectors."""
        assert self.inner is not None, "only what can be asked is compared"
        key, path = digest([self.digest, self.inner.identity()]), self.owned.folder / CHECK
        if path.is_file() and (known := json.loads(path.read_text(encoding="utf-8")))["key"] == key:
            return Check(**known["check"])
        _ = self.dim  # the widths agree
        check = self.check_against(self.inner)
        write_json(path, {"key": key, "check": asdict(check)})
        return check

    def _encode(self, texts: Sequence[str], role: Role, batch_size: int, advance: Advance | None) -> Vectors:
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        rows = self.owned.find(texts, role)
        known, missing = np.flatnonzero(rows >= 0), np.flatnonzero(rows < 0)
        if len(missing) and self.inner is None:
            raise LeafError(
                f"{len(missing):,} of {len(texts):,} {_plural(role)} have no vector in {self._source}, such as "
                f"'{_beginning(texts[int(missing[0])])}'; name the model that made the vectors in teacher.model, or "
                "leave these texts out"
            )
        vectors[known] = self.owned.vectors(rows[known], advance)
        if len(missing) and self.inner is not None:
            lengths = self._check.lengths
            encode = self.inner.encode_query if role == "query" else self.inner.encode_document
            found = encode([texts[row] for row in missing.tolist()], batch_size=batch_size, advance=advance)
            vectors[missing] = normalised(found) if lengths == "unit" else found
        return vectors


def _plural(role: Role) -> str:
    return {"query": "queries", "document": "documents"}[role]


def _beginning(text: str) -> str:
    return " ".join(text.split())[:60]
