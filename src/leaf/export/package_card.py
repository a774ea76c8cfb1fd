"""The model card of an asymmetric package: its usage, then what the student's own card says of scores and texts."""

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from leaf.models import hub_id, short_name, without_folders
from leaf.space import Space

_USAGE = """\
```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({here})  # this folder, or its id on a hub
queries = ["how do plants make sugar", "who wrote the first computer program"]
documents = [
    "In photosynthesis, leaves turn water and carbon dioxide into glucose with the energy of light.",
    "Ada Lovelace published an algorithm for the Analytical Engine in 1843.",
]
"""

_FULL = (
    _USAGE
    + """\
query_vectors = model.encode_query(queries)  # the student
document_vectors = model.encode_document(documents)  # the teacher
print(model.similarity(query_vectors, document_vectors))
```

`encode` without a task is the teacher's: both towers answer in one space, so that is slower and never wrong.
"""
)

_LIGHT = (
    """\
With leaf, which fetches {teacher} when documents are first encoded, and checks that it is the right one:

```python
import leaf

model = leaf.load({here})
query_vectors = model.encode_query(["how do plants make sugar"])  # the student alone
document_vectors = model.encode_document(["Leaves turn water and carbon dioxide into glucose."])  # the teacher
print(query_vectors @ document_vectors.T)
```

With Sentence Transformers, for queries only:

"""
    + _USAGE
    + """\
query_vectors = model.encode_query(queries)
```

There, `encode_document` and `encode` without a task raise an error, for the teacher is not in this folder: nothing here
encodes documents with the student by accident. To use the student for both, take the student's own model.
"""
)


def package_card(student: Path, space: Space, out: Path, teacher: str, *, light: bool) -> str:
    """The card of the package that will lie at `out`, as Markdown with front matter."""
    front, scores = _of_student(student / "README.md")
    here = out.name if out.is_absolute() else out.as_posix()
    shown = without_folders(teacher)
    what = (
        "The folder holds the student and names the teacher, which only `leaf` fetches, and only to encode documents."
        if light
        else f"The folder holds both. The document tower is a copy of {shown}, whose licence applies to it."
    )
    parts = [
        f"---\n{_front_matter(front, teacher, light)}---\n",
        f"# {out.name}\n",
        f"Queries are encoded by a small student, documents by its teacher **{short_name(shown)}** (`{shown}`): "
        f"{space.dim} dimensions, one vector space. {what}\n",
        "## Usage\n",
        (_LIGHT if light else _FULL).format(here=json.dumps(here), teacher=short_name(shown)),
        f"`leaf verify {here}` checks that both towers answer in the space that they claim (`{space.id}`).\n",
    ]
    if scores:
        parts.append(f"What follows is about the student; this package is its asymmetric mode.\n\n{scores}")
    return "\n".join(parts).rstrip("\n") + f"\n\n<!-- path: {here} -->\n"


def _of_student(card: Path) -> tuple[dict[str, Any], str]:
    """Front matter of the student's card, and its sections after the usage; nothing where it has no card yet."""
    if not card.is_file():
        return {}, ""
    loaded: Any = ModelCard.load(card)
    start = loaded.text.find("\n## Scores\n")
    sections = re.sub(r"<!-- path: .*? -->\n", "", loaded.text[start + 1 :]) if start >= 0 else ""
    return loaded.data.to_dict(), sections


def _front_matter(student: dict[str, Any], teacher: str, light: bool) -> str:
    given = student.get("base_model", [])
    bases = [given] if isinstance(given, str) else list(given)
    if hub_id(teacher) and not light:  # a copy of it lies in the folder
        bases.append(teacher)
    front: Any = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        base_model=list(dict.fromkeys(bases)) or None,
        tags=["sentence-transformers", "feature-extraction", "sentence-similarity", "leaf", "asymmetric"],
        **{key: student[key] for key in ("datasets", "license") if key in student},
    )
    return f"{front.to_yaml()}\n"
