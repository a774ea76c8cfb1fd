"""What `leaf serve` can be told: one frozen model, checked before anything is loaded. Needs no web framework."""

import os
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, SecretStr, StringConstraints

from leaf.errors import LeafError

API_KEY_VARIABLE = "LEAF_API_KEY"
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def api_key_from_environment() -> SecretStr | None:
    """The key in `LEAF_API_KEY`, None without the variable. Raises `LeafError` for an empty one.

    An empty variable is what a forgotten secret looks like, and must not open the server to everyone.
    """
    key = os.environ.get(API_KEY_VARIABLE)
    if key is None:
        return None
    if not key.strip():
        raise LeafError(f"{API_KEY_VARIABLE} is set but empty: give it a value, or unset it to serve without a key")
    return SecretStr(key.strip())


class Settings(BaseModel):
    """Where to listen, who may ask, and how much. The defaults hold 500 connections that ask one query each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    """Address to listen on. The default is reached from this machine alone."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """TCP port; 0 takes a free one."""
    names: tuple[Name, ...] = ()
    """Model names that requests may ask for; answers carry the first. Empty: the encoder's own name."""
    api_key: SecretStr | None = Field(default_factory=api_key_from_environment)
    """Asked of every request but `GET /health`, as `Authorization: Bearer KEY`. None: no key."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may read answers in a browser; `*` is every page."""

    max_body_bytes: PositiveInt = 16 << 20
    """A longer request body is refused with 413, whether or not it announced its length."""
    max_texts: PositiveInt = 2048
    """Texts in one request; the default is OpenAI's."""
    max_characters: PositiveInt = 65_536
    """Characters in one text. Models read a few thousand; the rest only costs tokenisation."""
    max_queue: PositiveInt = 65_536
    """Texts that may wait for the encoder, over all connections. A request that would add more to a queue gets 503."""
    max_batch: PositiveInt = 32
    """Texts encoded at a time, from as many requests as are waiting."""
    max_batch_characters: PositiveInt = 131_072
    """Characters encoded at a time (a single longer text still goes alone): long texts must not delay short ones."""
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60.0
    """Seconds for a request's body to arrive (then 408), and again for its vectors (then 503)."""
    grace: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 30.0
    """Seconds that requests in flight have to finish after SIGTERM."""
