"""Whether an encoder may ask an index, or add to it: does it answer in the vector space of the documents?

What an encoder says of itself is compared first: a student, an ONNX file in its folder and a server carry the space
they were made for, a teacher its weights. Where nothing is said, or two ways of naming the same weights meet, the
canaries of the index decide, whose vectors the documents' encoder gave.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from leaf.encoder import Encoder, Vectors, normalised
from leaf.errors import LeafError
from leaf.light import check_teacher
from leaf.models import without_folders
from leaf.space import SPACE_FILE, Space, encode_canaries, verify

#: Fields of a teacher's identity that make another space. The rest (longest text, the type it computes in) moves
#: vectors of some texts a little, and an index that was made with one value may be asked with another.
DECISIVE = ("weights", "modules", "prompts", "similarity")
#: Canaries encoded where an encoder has nothing to say of itself. Of queries alone: their prompt is the one in use.
NUM_ASKED = 16
#: Share of canaries that must lie nearest to their own vector of all canaries. In the space, a lookup table finds all
#: of them; outside it, one in so many as there are.
MIN_MATCHED = 0.75


def admit(encoder: Encoder, space: Space) -> None:
    """Raises `LeafError`, with the reason, unless `encoder` answers queries in `space`."""
    if encoder.dim != space.dim:
        raise LeafError(
            f"{encoder.name} answers with {encoder.dim} dimensions and the index holds {space.dim}: it is not of the "
            f"space of {_teacher(space)}; ask with a student of that model"
        )
    stated = _stated(encoder)
    if stated is None or (same := _same(stated, space.teacher)) is None:
        _ask_canaries(encoder, space)
    elif same:
        raise LeafError(
            f"{encoder.name} is of another space: {same}; ask with a student of {_teacher(space)}, or index the "
            "documents with the model that this one was distilled from"
        )


def check_documents(encoder: Encoder, space: Space, *, own_documents: bool) -> None:
    """Raises `LeafError` unless `encoder` gives documents the vectors of `space`.

    That is its teacher, or, of an index with `own_documents`, the student that the index was made with.
    """
    if not own_documents:
        check_teacher(encoder, space)
    elif not verify(encoder, space).in_space:
        raise LeafError(
            f"{encoder.name} is not the student that the index was made with; add documents with that one, or index "
            "all of them again"
        )


def space_carried(encoder: Encoder) -> Space | None:
    """The space that an encoder comes with, in its folder or from its server; None for a plain model."""
    carried = getattr(encoder, "space", None)
    if callable(carried):
        carried = carried()
    if isinstance(carried, Space):
        return carried
    for attribute in ("folder", "path"):
        found = getattr(encoder, attribute, None)
        if isinstance(found, (str, Path)):
            # An ONNX file lies in `onnx/` of its student.
            for folder in (Path(found), *Path(found).absolute().parents[:2]):
                if (folder / SPACE_FILE).is_file():
                    return Space.load(folder)
    return None


def _stated(encoder: Encoder) -> Mapping[str, Any] | None:
    """The teacher that an encoder says it answers for, or that it is; None where it says nothing."""
    space = space_carried(encoder)
    if space is not None:
        return space.teacher
    identity = getattr(encoder, "identity", None)
    stated: Mapping[str, Any] | None = identity() if callable(identity) else None
    return stated if stated is not None and "model" in stated else None


def _same(stated: Mapping[str, Any], known: Mapping[str, Any]) -> str | None:
    """Empty for one teacher, the difference for two, None where they cannot be told apart by what is stated."""
    weights, others = stated.get("weights"), known.get("weights")
    if weights is None or others is None:
        if weights is None and others is None and stated.get("model") == known.get("model"):
            return _difference(stated, known)
        return None
    if len(weights) != len(others):  # a commit of a hub and the digest of a folder
        return None
    return _difference(stated, known)


def _difference(stated: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    for field in DECISIVE:
        one, other = stated.get(field), known.get(field)
        if one != other:
            if field == "weights":
                assert one is not None, "both were stated"
                assert other is not None, "both were stated"
                return (
                    f"it answers for {without_folders(stated['model'])} (weights {one[:12]}), the documents are "
                    f"encoded by {without_folders(known['model'])} (weights {other[:12]})"
                )
            return f"{field} of its teacher are {one}, those of the index {other}"
    return ""


def matched(encoder: Encoder, space: Space) -> tuple[float, float]:
    """Share of the canaries asked that lie nearest to their own vector among all, and their mean cosine to it."""
    rows = [row for row, kind in enumerate(space.kinds) if kind == "query"][:NUM_ASKED]
    rows = rows or list(range(min(NUM_ASKED, len(space.texts))))
    found = encode_canaries(encoder, [space.texts[row] for row in rows], [space.kinds[row] for row in rows])
    cosines: Vectors = normalised(found) @ normalised(space.vectors).T
    # A text that is a canary in both roles has two vectors of its own.
    own = np.array([[text == space.texts[row] for text in space.texts] for row in rows])
    nearest = own[np.arange(len(rows)), cosines.argmax(axis=1)]
    return float(nearest.mean()), float(cosines[np.arange(len(rows)), rows].mean())


def _ask_canaries(encoder: Encoder, space: Space) -> None:
    share, cosine = matched(encoder, space)
    if share < MIN_MATCHED:
        raise LeafError(
            f"{encoder.name} does not answer in the space of {_teacher(space)}: {100 * share:.0f} % of the canary "
            f"texts lie nearest to their own vector (mean cosine {cosine:.2f}); ask with a student of that model"
        )


def _teacher(space: Space) -> str:
    return without_folders(str(space.teacher.get("model", "the index")))
