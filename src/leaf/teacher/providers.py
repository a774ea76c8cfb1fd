"""What embedding APIs want to be sent, what they answer, and how much they take in one request.

The numbers are those of the providers' references (OpenAI: `POST /embeddings`; Voyage AI: "Text embedding models";
Cohere: "Embed API (v2)"). Nothing here sends anything.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from leaf.encoder import Role, Vectors
from leaf.errors import LeafError

if TYPE_CHECKING:
    from leaf.recipe import Api, Teacher

#: Texts in a request unless the recipe says otherwise: larger ones gain little and lose more where they fail.
BATCH_TEXTS = 256


@dataclass(frozen=True)
class Provider:
    """One protocol, and the limits of who speaks it."""

    url: str
    """Root of the provider's own API."""
    path: str
    key_variable: str
    max_texts: int
    """Texts in one request."""
    max_tokens: int
    """Tokens in one request, over all texts."""
    max_text_tokens: int | None
    """Tokens in one text. None: a longer one is cut by the API, as `fixed` asks it to."""
    texts: str = "input"
    """The field of the texts."""
    dimensions: str = "dimensions"
    """The field of the width that is asked for."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields that every request has."""
    input_types: Mapping[Role, str] = field(default_factory=dict)
    """What the API is told of a text's role. Empty: it knows no roles."""

    def body(
        self, model: str, texts: Sequence[str], dimensions: int | None = None, input_type: str | None = None
    ) -> dict[str, Any]:
        """The JSON of a request."""
        body: dict[str, Any] = {"model": model, self.texts: list(texts), **self.fixed}
        if dimensions is not None:
            body[self.dimensions] = dimensions
        if input_type is not None:
            body["input_type"] = input_type
        return body


PROVIDERS: Mapping[str, Provider] = {
    "openai": Provider(
        url="https://api.openai.com/v1",
        path="/embeddings",
        key_variable="OPENAI_API_KEY",
        max_texts=2048,
        max_tokens=300_000,
        max_text_tokens=8192,  # "for all embedding models"; a longer one is refused
        fixed={"encoding_format": "base64"},
    ),
    "voyage": Provider(
        url="https://api.voyageai.com/v1",
        path="/embeddings",
        key_variable="VOYAGE_API_KEY",
        max_texts=1000,
        max_tokens=120_000,  # of the large models; the others take 320,000 or 1,000,000
        max_text_tokens=None,
        dimensions="output_dimension",
        fixed={"truncation": True, "encoding_format": "base64"},  # base64 is what Voyage's own client asks for
        input_types={"query": "query", "document": "document"},
    ),
    "cohere": Provider(
        url="https://api.cohere.com",
        path="/v2/embed",
        key_variable="CO_API_KEY",
        max_texts=96,
        max_tokens=128_000,  # the reference names none; this is the context of embed-v4.0
        max_text_tokens=None,
        texts="texts",
        dimensions="output_dimension",
        fixed={"embedding_types": ["float"], "truncate": "END"},
        input_types={"query": "search_query", "document": "search_document"},
    ),
}


def provider_of(model: str) -> tuple[Provider, str]:
    """The provider of `PROVIDER:MODEL` and the model's name there. Raises `LeafError` for anything else."""
    name, _, own = model.partition(":")
    if name not in PROVIDERS or not own:
        raise LeafError(f"'{model}' names no model of an API; write {' or '.join(f'{p}:MODEL' for p in PROVIDERS)}")
    return PROVIDERS[name], own


def request_limits(provider: Provider, settings: "Api") -> tuple[int, int]:
    """The most texts, and the most tokens, of one request. A server of one's own takes as many texts as it is asked."""
    most = provider.max_texts if settings.url is None else 1 << 30
    return min(settings.batch_texts or BATCH_TEXTS, most), settings.batch_tokens or provider.max_tokens


def student_prompts(teacher: "Teacher", prompts: Mapping[Role, str]) -> dict[Role, str]:
    """`prompts`; where there are none, and the API is told what is a query in another way, `query: ` for queries.

    A student sees text alone.
    """
    tells_roles = teacher.is_api and bool(teacher.api.input_types or provider_of(teacher.model)[0].input_types)
    return {**prompts, "query": "query: "} if tells_roles and not any(prompts.values()) else dict(prompts)


def vectors_of(answer: Any, count: int) -> Vectors:
    """The vectors of an answer, float32 `[count, dim]`, in the order of the texts.

    Raises `leaf.service.Again` for an answer that is not `count` finite vectors of one width.
    """
    from leaf.service import Again  # brings httpx, which a look at this table does not need

    try:
        if "data" in answer:
            rows = sorted(answer["data"], key=lambda row: row["index"])
            if [row["index"] for row in rows] != list(range(len(rows))):
                raise ValueError(f"the indices {[row['index'] for row in rows][:10]}…")
            encoded = [_vector(row["embedding"]) for row in rows]
        else:
            encoded = [_vector(row) for row in answer["embeddings"]["float"]]
        if len(encoded) != count:
            raise ValueError(f"{len(encoded)} vectors for {count} texts")
        vectors = np.stack(encoded)
        if vectors.ndim != 2 or vectors.shape[1] == 0:
            raise ValueError(f"vectors of shape {vectors.shape}")
    except (KeyError, TypeError, ValueError) as error:
        raise Again(f"an answer that is not the vectors asked for: {error!r}"[:300]) from error
    if not np.isfinite(vectors).all():
        raise Again("an answer with NaN or infinity in it")
    return vectors


def _vector(value: Any) -> Vectors:
    """A vector from base64 of little-endian float32, or from a list by servers that know no base64."""
    if isinstance(value, str):
        try:
            return np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4")
        except binascii.Error as error:
            raise ValueError(f"an embedding is not base64 ({error})") from error
    return np.asarray(value, dtype=np.float32)


def tokens_of(answer: Any) -> int | None:
    """The tokens that an answer says were used (Cohere: billed); None where it does not say."""
    try:
        usage = answer.get("usage") or (answer.get("meta") or {}).get("billed_units") or {}
        return int(next(usage[name] for name in ("total_tokens", "prompt_tokens", "input_tokens") if usage.get(name)))
    except (AttributeError, StopIteration, TypeError, ValueError):
        return None


#: OpenAI: "maximum input length is 8192 tokens", "Requested 346134 tokens, max 300000 tokens per request"; Voyage: "max
#: allowed tokens per submitted batch"; vLLM: "maximum context length"; text-embeddings-inference: "must have less than
#: 512 tokens", "batch size 64 > maximum allowed batch size 32"; `leaf serve`: "takes at most 65536 characters".
_TOO_MUCH = re.compile(
    r"too (long|large|many)|context (length|window)|batch size|max_tokens_per_request"
    r"|(max\w*|most|less than)\b[^.]*\b(tokens|characters|texts)"
    r"|(tokens|characters|texts)\b[^.]*\b(max\w*|most|exceed)",
    re.IGNORECASE,
)


def too_much(status: int, reason: str) -> bool:
    """Whether a service refused a request for its size: fewer or shorter texts may pass."""
    return status == 413 or (status in (400, 422) and bool(_TOO_MUCH.search(reason)))
