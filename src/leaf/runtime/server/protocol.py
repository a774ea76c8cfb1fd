"""The words of OpenAI's `/v1/embeddings`: what a request may say, what an answer and an error look like.

Requests are checked by hand and not by a generated validator: each refusal names the field, what arrived and the fix.
Whatever bytes arrive, the outcome is an `EmbeddingRequest` or a `Refusal` with a 4xx status.
"""

import base64
from asyncio import sleep
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel
from pydantic_core import from_json, to_json

from leaf.encoder import Role, Vectors
from leaf.runtime.server.settings import Settings

#: What Voyage, Cohere and the E5 papers call the two roles. A request that says nothing is a query: documents were
#: embedded by the teacher, and queries are what a student is for.
ROLES: Mapping[str, Role] = {
    "query": "query",
    "search_query": "query",
    "document": "document",
    "search_document": "document",
    "passage": "document",
}
FIELDS = ("input", "model", "dimensions", "encoding_format", "input_type", "user")
#: Rows written to an answer before the event loop may look after other connections.
ROWS_BETWEEN_PAUSES = 32


class Refusal(Exception):
    """A request that cannot be answered, as its status, OpenAI's error fields and headers."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def body(self) -> bytes:
        """OpenAI's JSON error object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return to_json({"error": error})


class ErrorFields(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every answer that is not a 200."""

    error: ErrorFields


class EmbeddingRow(BaseModel):
    """The vector of one text: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens that the model read, prompts and special tokens included, after truncation."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(BaseModel):
    """The answer of `POST /v1/embeddings`, rows in the order of the input."""

    object: Literal["list"]
    data: list[EmbeddingRow]
    model: str
    usage: Usage


class ModelCard(BaseModel):
    """One served name. The last four fields are leaf's own."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["leaf"]
    dim: int
    similarity: Literal["cosine", "dot"]
    normalised: bool
    space: str | None


class ModelList(BaseModel):
    """The answer of `GET /v1/models`."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(BaseModel):
    """The answer of `GET /health`: the port opens only after canary texts were encoded."""

    status: Literal["ok"]
    model: str
    dim: int
    space: str | None


class Canary(BaseModel):
    """A text, its role, and the teacher's vector as base64 of little-endian float32."""

    text: str
    kind: Literal["query", "document"]
    embedding: str


class SpaceAnswer(BaseModel):
    """The answer of `GET /v1/space`: `space.json` with the canary vectors in it."""

    id: str
    teacher: dict[str, Any]
    dim: int
    normalised: bool
    similarity: str
    error: float
    errors: dict[str, float]
    canaries: list[Canary]


@dataclass(frozen=True)
class EmbeddingRequest:
    """A request that has been checked."""

    texts: list[str]
    role: Role
    dim: int
    as_base64: bool


def parse(body: bytes, settings: Settings, names: tuple[str, ...], dim: int) -> EmbeddingRequest:
    """The request in `body`. Raises `Refusal` (400, or 404 for an unknown model)."""
    data = read_object(body, FIELDS, "'input' and 'model'")
    check_model(data.get("model"), names)
    return EmbeddingRequest(
        texts=_texts(data.get("input"), settings),
        role=ROLES[_choice(data, "input_type", tuple(ROLES), default="query")],
        dim=_dimensions(data.get("dimensions"), dim),
        as_base64=_choice(data, "encoding_format", ("float", "base64"), default="float") == "base64",
    )


def read_object(body: bytes, known: tuple[str, ...], needed: str) -> dict[str, Any]:
    """The JSON object in `body`. Raises `Refusal` (400), also for a field that is not among `known`."""
    try:
        data = from_json(body, allow_inf_nan=False)
    except ValueError as error:  # also for nesting, digits and lone surrogates beyond what JSON readers agree on
        raise Refusal(400, f"The body is not JSON: {error}.", code="invalid_json") from error
    if not isinstance(data, dict):
        raise Refusal(400, f"The body is {kind(data)}; send an object with {needed}.")
    for field in data:
        if field not in known:
            raise Refusal(400, f"Unknown field {short(field)}; known are {', '.join(known)}.", param=field[:100])
    return data


def check_model(model: Any, names: tuple[str, ...]) -> None:
    """Raises `Refusal` unless `model` is one of `names`: 404 for another name, 400 for what is none."""
    served = " or ".join(repr(name) for name in names)
    if not isinstance(model, str):
        raise Refusal(400, f"'model' is {kind(model)}; it must be {served}.", param="model")
    if model not in names:
        message = f"The model {short(model)} does not exist; this server has {served}."
        raise Refusal(404, message, param="model", code="model_not_found")


def _texts(value: Any, settings: Settings) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise Refusal(400, f"'input' is {kind(value)}; send a string or a list of strings.", param="input")
    if not texts:
        raise Refusal(400, "'input' is an empty list; send at least one text.", param="input")
    if len(texts) > settings.max_texts:
        message = f"'input' has {len(texts)} texts; one request takes at most {settings.max_texts}."
        raise Refusal(400, message, param="input")
    for index, text in enumerate(texts):
        where = "'input'" if isinstance(value, str) else f"'input[{index}]'"
        if isinstance(text, int | list) and not isinstance(text, bool):
            raise Refusal(
                400,
                f"{where} is {kind(text)}: token ids of another tokenizer mean nothing to this model. Send text "
                "(in LangChain: check_embedding_ctx_length=False).",
                param="input",
            )
        if not isinstance(text, str):
            raise Refusal(400, f"{where} is {kind(text)}; every input must be a string.", param="input")
        if not text:
            raise Refusal(400, f"{where} is an empty string; it has no vector.", param="input")
        if len(text) > settings.max_characters:
            message = f"{where} has {len(text)} characters; one text takes at most {settings.max_characters}."
            raise Refusal(400, message, param="input")
    return texts


def _dimensions(value: Any, dim: int) -> int:
    if value is None:
        return dim
    # JSON has one number type: 256.0 is the integer 256 to every JSON Schema validator.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= dim:
        shown = value if isinstance(value, int | float) and abs(value) < 1e9 else kind(value)
        raise Refusal(400, f"'dimensions' is {shown}; it must be an integer from 1 to {dim}.", param="dimensions")
    return value


def _choice(data: dict[str, Any], field: str, allowed: tuple[str, ...], default: str) -> str:
    value = data.get(field)
    if value is None:
        return default
    if not isinstance(value, str) or value not in allowed:
        shown = short(value) if isinstance(value, str) else kind(value)
        raise Refusal(400, f"'{field}' is {shown}; it must be one of {', '.join(allowed)}.", param=field)
    return value


def short(text: str) -> str:
    """A text in quotes, for an error."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def kind(value: Any) -> str:
    """What a JSON value is, for an error."""
    kinds = {type(None): "missing or null", bool: "a boolean", dict: "an object", list: "a list", str: "a string"}
    return kinds.get(type(value), "a number")


async def render(vectors: Vectors, *, as_base64: bool, model: str, num_tokens: int) -> bytes:
    """The JSON of an `EmbeddingAnswer`. Pauses between rows, since 2048 of them hold the event loop for a second."""
    parts = [b'{"object":"list","data":[']
    for index, row in enumerate(vectors):
        if index and index % ROWS_BETWEEN_PAUSES == 0:
            await sleep(0)
        embedding = b'"' + to_base64(row) + b'"' if as_base64 else to_json(row.tolist())
        parts += [b"," if index else b"", b'{"object":"embedding","index":%d,"embedding":' % index, embedding, b"}"]
    parts += [b'],"model":', to_json(model), b',"usage":{"prompt_tokens":%d,"total_tokens":%d}}' % ((num_tokens,) * 2)]
    return b"".join(parts)


def to_base64(row: Vectors) -> bytes:
    """Base64 of little-endian float32, on every machine."""
    return base64.b64encode(row.astype("<f4", copy=False).tobytes())


def truncate(vectors: Vectors, dim: int, *, normalised: bool) -> Vectors:
    """The first `dim` dimensions, at unit length again where the whole vectors are."""
    if dim == vectors.shape[1]:
        return vectors
    vectors = vectors[:, :dim]
    if normalised:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def request_schema(settings: Settings, names: tuple[str, ...], dim: int) -> dict[str, Any]:
    """JSON Schema of what `parse` accepts, with this server's limits."""
    text = {"type": "string", "minLength": 1, "maxLength": settings.max_characters}
    texts = {"type": "array", "items": text, "minItems": 1, "maxItems": settings.max_texts}
    role_help = "Which prompt the text gets. An extension; without it a text is a query."
    return {
        "type": "object",
        "required": ["input", "model"],
        "additionalProperties": False,
        "properties": {
            "input": {"anyOf": [text, texts]},
            "model": {"type": "string", "enum": list(names)},
            "dimensions": {"type": ["integer", "null"], "minimum": 1, "maximum": dim},
            "encoding_format": {"enum": ["float", "base64", None]},
            "input_type": {"enum": [*ROLES, None], "description": role_help},
            "user": {"description": "Ignored."},
        },
    }
