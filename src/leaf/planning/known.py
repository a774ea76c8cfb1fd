"""Models that recipes name often, for planning where there is no network and no copy: what their configs say."""

from typing import NamedTuple

from leaf.planning.architecture import Architecture

_MINI = Architecture(6, 384, 1536, 30522, 512, 2)
_SMALL = _MINI.with_layers(12)
_BASE = Architecture(12, 768, 3072, 30522, 512, 2)
_LARGE = Architecture(24, 1024, 4096, 30522, 512, 2)
_MODERN = Architecture(22, 768, 1152, 50368, gated=True, biased=False, norms_biased=False)
_MULTI_SMALL = Architecture(12, 384, 1536, 250037, 512, 2)
_MULTI_BASE = Architecture(12, 768, 3072, 250002, 514, 1)
_MULTI_LARGE = Architecture(24, 1024, 4096, 250002, 514, 1)
_LONG_LARGE = Architecture(24, 1024, 4096, 250002, 8194, 1)
_NOMIC = Architecture(12, 768, 3072, 30528, types=2, gated=True, biased=False)
_QWEN = Architecture(
    28, 1024, 3072, 151669, gated=True, biased=False, norms_biased=False, query_width=2048, key_width=1024
)


class Known(NamedTuple):
    """An architecture and the tokens after which the published model cuts a text."""

    architecture: Architecture
    max_length: int


#: By hub id. Vectors are as wide as the model.
MODELS = {
    "nreimers/MiniLM-L6-H384-uncased": Known(_MINI, 512),
    "sentence-transformers/all-MiniLM-L6-v2": Known(_MINI, 256),
    "Snowflake/snowflake-arctic-embed-xs": Known(_MINI, 512),
    "microsoft/MiniLM-L12-H384-uncased": Known(_SMALL, 512),
    "sentence-transformers/all-MiniLM-L12-v2": Known(_SMALL, 128),
    "BAAI/bge-small-en-v1.5": Known(_SMALL, 512),
    "intfloat/e5-small-v2": Known(_SMALL, 512),
    "thenlper/gte-small": Known(_SMALL, 512),
    "Snowflake/snowflake-arctic-embed-s": Known(_SMALL, 512),
    "google-bert/bert-base-uncased": Known(_BASE, 512),
    "BAAI/bge-base-en-v1.5": Known(_BASE, 512),
    "intfloat/e5-base-v2": Known(_BASE, 512),
    "thenlper/gte-base": Known(_BASE, 512),
    "Snowflake/snowflake-arctic-embed-m": Known(_BASE, 512),
    "Snowflake/snowflake-arctic-embed-m-v1.5": Known(_BASE, 512),
    "sentence-transformers/all-mpnet-base-v2": Known(Architecture(12, 768, 3072, 30527, 514), 384),
    "nomic-ai/nomic-embed-text-v1.5": Known(_NOMIC, 8192),
    "answerdotai/ModernBERT-base": Known(_MODERN, 8192),
    "google-bert/bert-large-uncased": Known(_LARGE, 512),
    "BAAI/bge-large-en-v1.5": Known(_LARGE, 512),
    "intfloat/e5-large-v2": Known(_LARGE, 512),
    "mixedbread-ai/mxbai-embed-large-v1": Known(_LARGE, 512),
    "Snowflake/snowflake-arctic-embed-l": Known(_LARGE, 512),
    "intfloat/multilingual-e5-small": Known(_MULTI_SMALL, 512),
    "intfloat/multilingual-e5-base": Known(_MULTI_BASE, 512),
    "intfloat/multilingual-e5-large": Known(_MULTI_LARGE, 512),
    "BAAI/bge-m3": Known(_LONG_LARGE, 8192),
    "Snowflake/snowflake-arctic-embed-l-v2.0": Known(_LONG_LARGE, 8192),
    "Qwen/Qwen3-Embedding-0.6B": Known(_QWEN, 32768),
}

#: Dimensions of vectors from APIs where a recipe does not ask for others, as the providers document them.
API_DIMENSIONS = {
    "openai:text-embedding-3-small": 1536,
    "openai:text-embedding-3-large": 3072,
    "openai:text-embedding-ada-002": 1536,
    "voyage:voyage-3.5": 1024,
    "voyage:voyage-3.5-lite": 1024,
    "voyage:voyage-3-large": 1024,
    "voyage:voyage-3": 1024,
    "voyage:voyage-3-lite": 512,
    "voyage:voyage-code-3": 1024,
    "cohere:embed-v4.0": 1536,
    "cohere:embed-english-v3.0": 1024,
    "cohere:embed-multilingual-v3.0": 1024,
    "cohere:embed-english-light-v3.0": 384,
}
