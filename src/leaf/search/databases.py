"""What the stores in databases have in common: types of metadata columns, and URLs that may be shown."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from leaf.encoder import Vectors, normalised
from leaf.errors import first_line
from leaf.search.store import Document, Hit, Value, ranked

#: Hits fetched beyond those asked for, before they are ranked by exact scores and ids, and the same as a share.
SPARE, SPARE_SHARE = 16, 0.5


def without_password(url: str) -> str:
    """The URL as it may be shown. Everything up to the last `@` counts as password: one in it may not be escaped."""
    return re.sub(r"(password=)[^&]*", r"\1…", re.sub(r"^(\w[\w+]*://[^:@/?]*):.*@", r"\1@", url, flags=re.DOTALL))


def said(error: BaseException, url: str) -> str:
    """What a database says of an error, in one line, without the password of `url`."""
    line = first_line(error)
    for secret in re.findall(r"^\w[\w+]*://[^:@/?]*:(.+)@|password=([^&]+)", url):
        for each in filter(None, secret):
            line = line.replace(each, "…")
    return line


def restored(metadata: Mapping[str, Value], columns: Mapping[str, str]) -> dict[str, Value]:
    """Metadata as its columns are typed: whole numbers of a column of floats are floats."""
    return {
        name: float(value) if columns.get(name) == "float" and value is not None else value
        for name, value in metadata.items()
    }


def spare(k: int) -> int:
    """How many hits to fetch for the best `k`: a database ranks by rounded numbers, and knows no rule for ties."""
    return k + max(SPARE, int(SPARE_SHARE * k))


def best(documents: Sequence[Document], vectors: Vectors, query: Vectors, k: int, similarity: str) -> list[Hit]:
    """The `k` best of documents with their stored vectors `[n, dim]` for one query, by exact scores and ids.

    Rounding makes a stored vector a little longer or shorter than 1, which is undone where that is the cosine.
    """
    if not documents:
        return []
    vectors = normalised(vectors) if similarity == "cosine" else vectors
    # In float64: two copies of one vector must score alike wherever they stand among the rows.
    scores = (vectors.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    order = ranked([each.id for each in documents], scores, k)
    return [
        Hit(documents[at].id, float(scores[at]), documents[at].text, documents[at].title, documents[at].metadata)
        for at in order
    ]
