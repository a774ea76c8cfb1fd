"""What requests and answers of the search API look like, in the manner of `leaf.runtime.server.protocol`.

Whatever bytes arrive, the outcome is a `SearchRequest` or a `Refusal` with a 4xx status and one line.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from leaf.runtime.server import Settings
from leaf.runtime.server.protocol import Refusal, check_model, kind, read_object, short
from leaf.search.store import Value

FIELDS = ("query", "model", "k", "where", "exact")
DEFAULT_K, MAX_K = 10, 100
#: Characters of a condition.
MAX_WHERE = 4000


class EncoderCard(BaseModel):
    """Who may ask. `error` says in one line why it could not be opened, or why it may not."""

    name: str
    loaded: bool
    default: bool
    teacher: bool
    """Whether it is the documents' own encoder."""
    error: str | None


class IndexAnswer(BaseModel):
    """The answer of `GET /v1/index`. `columns` maps those of the metadata to `str`, `int`, `float` or `bool`."""

    documents: int
    space: str
    teacher: str
    dim: int
    precision: str
    columns: dict[str, str]
    encoders: list[EncoderCard]


class HitAnswer(BaseModel):
    """A document that was found."""

    id: str
    title: str
    text: str
    score: float
    metadata: dict[str, Value]


class Milliseconds(BaseModel):
    """Without waiting. `encode` is the encoder's time for the batch of this query, which is alone unless others ask."""

    encode: float
    search: float


class SearchAnswer(BaseModel):
    """The answer of `POST /v1/search`, best hit first. `documents` is how many the index holds."""

    model: str
    hits: list[HitAnswer]
    ms: Milliseconds
    documents: int


@dataclass(frozen=True)
class SearchRequest:
    """A request that has been checked."""

    query: str
    model: str
    k: int
    where: str | None
    exact: bool


def parse_request(body: bytes, settings: Settings, names: tuple[str, ...]) -> SearchRequest:
    """The request in `body`. Raises `Refusal` (400, or 404 for an unknown model)."""
    data = read_object(body, FIELDS, "'query'")
    query, model, where, exact = (data.get(field) for field in ("query", "model", "where", "exact"))
    if not isinstance(query, str):
        raise Refusal(400, f"'query' is {kind(query)}; it must be a string.", param="query")
    if not query.strip():
        raise Refusal(400, "'query' is blank; ask for something.", param="query")
    if not isinstance(where, str | None):
        raise Refusal(400, f"'where' is {kind(where)}; it must be a condition in a string.", param="where")
    if not isinstance(exact, bool | None):
        raise Refusal(400, f"'exact' is {kind(exact)}; it must be true or false.", param="exact")
    for field, text, limit in (("query", query, settings.max_characters), ("where", where or "", MAX_WHERE)):
        if len(text) > limit:
            raise Refusal(400, f"'{field}' has {len(text)} characters; it takes at most {limit}.", param=field)
    if model is not None:
        check_model(model, names)
    return SearchRequest(query, model or names[0], _count(data.get("k")), (where or "").strip() or None, bool(exact))


def _count(value: Any) -> int:
    if value is None:
        return DEFAULT_K
    # JSON has one number type: 5.0 is the integer 5 to every JSON Schema validator.
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in range(1, MAX_K + 1):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        shown = short(str(value)) if is_number else kind(value)
        raise Refusal(400, f"'k' is {shown}; it must be an integer from 1 to {MAX_K}.", param="k")
    return int(value)


def request_schema(settings: Settings, names: tuple[str, ...]) -> dict[str, Any]:
    """JSON Schema of what `parse_request` accepts, with this server's limits."""
    where_help = "A condition on metadata, such as year >= 2020 and lang in ['en', 'de']."
    return {
        "type": "object",
        "required": ["query"],
        "additionalProperties": False,
        "properties": {
            "query": {"type": "string", "pattern": r"\S", "maxLength": settings.max_characters},
            "model": {"enum": [*names, None], "description": f"Who encodes the query; {names[0]} by default."},
            "k": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_K, "default": DEFAULT_K},
            "where": {"type": ["string", "null"], "maxLength": MAX_WHERE, "description": where_help},
            "exact": {"type": ["boolean", "null"], "description": "Compare with every document."},
        },
    }
