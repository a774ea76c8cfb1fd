"""An index of the documents that a run was trained on, with the vectors that its teacher gave them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leaf.encoder import Vectors
from leaf.errors import LeafError
from leaf.recipe import Recipe
from leaf.search import Document, Index
from leaf.search.store import Value
from leaf.space import Space
from leaf.texts import installed
from leaf.texts.shards import read_shard, read_sources
from leaf.vector_files import read_vectors


def index_run(
    folder: Path, recipe: Recipe, shards: Sequence[tuple[Path, Path]], students: Sequence[Path]
) -> dict[str, Any]:
    """An index of the documents of a run, whose `shards` are files of texts and files of their vectors.

    A document that came from installed software is known by its name, any other by where it lies. Returns facts for a
    manifest.
    """
    assert recipe.index is not None, "the recipe asks for an index"
    names, several = _names(recipe), len(recipe.texts) > 1

    def documents() -> Iterator[Document]:
        for texts, _ in shards:
            shard, sources = read_shard(texts), read_sources(texts)
            for row, (text, kind, source) in enumerate(zip(*shard, sources, strict=True)):
                if kind == "document":
                    name, more = names.get(text, (f"{texts.stem}-{row}", {}))
                    yield Document(name, text, metadata={**({"source": source} if several else {}), **more})

    def vectors() -> Iterator[Vectors]:
        for texts, stored in shards:
            rows = np.concatenate(list(read_vectors(stored)))
            yield from rows[[kind == "document" for kind in read_shard(texts).kinds]]

    found = list(documents())
    if not found:
        raise LeafError(f"recipe '{recipe.name}' has no documents to index, only queries; leave [index] out")
    with Index.create(
        folder,
        Space.load(students[0]),
        found,
        model=recipe.teacher.model,
        precision=recipe.index.precision,
        truncate_dim=recipe.index.truncate_dim,
        queries=list(map(str, students)),
        vectors=vectors(),
    ) as index:
        return {"documents": len(index), "dim": index.settings.dim, "precision": index.settings.precision}


def _names(recipe: Recipe) -> dict[str, tuple[str, dict[str, Value]]]:
    """Text → name and metadata of the documents that installed software has."""
    found: dict[str, tuple[str, dict[str, Value]]] = {}
    for source in recipe.texts:
        if source.source == "installed-docs":
            for entry in installed.entries(source.packages):
                found.setdefault(entry.body, (entry.name, {"package": entry.name.partition(".")[0]}))
    return found
