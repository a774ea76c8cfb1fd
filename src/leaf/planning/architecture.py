"""How large an encoder is and what a text costs it, from its `config.json` alone: no weights, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

#: BERT and its kin: biases everywhere, two layer norms a layer, a pooler that embedding models do not read.
_BIASED = {"bert", "roberta", "xlm-roberta", "camembert", "mpnet", "distilbert"}
#: Three matrices in the feed-forward network and no biases; positions are rotated into queries and keys.
_GATED = {"modernbert", "qwen2", "qwen3", "llama", "mistral"}


@dataclass(frozen=True)
class Architecture:
    """What decides the parameters and the FLOPs of an encoder. `width` is the hidden size."""

    layers: int
    width: int
    intermediate: int
    vocabulary: int
    positions: int = 0
    """Rows of the table of positions; 0 where positions are rotations."""
    types: int = 0
    """Rows of the table of token types."""
    gated: bool = False
    """Whether the feed-forward network has three matrices instead of two."""
    biased: bool = True
    """Whether its matrices have biases."""
    norms_biased: bool = True
    """Whether its layer norms have biases."""
    query_width: int = 0
    """Width of all heads together; 0 is `width`."""
    key_width: int = 0
    """Width of the heads of keys and of values; less than `query_width` where heads share them; 0 is `query_width`."""
    network: int = 0
    """Parameters of the network behind a lookup table's mean; 0 where the mean is the vector."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self | None:
        """The architecture that a `config.json` of Transformers describes; None for a kind that is not known here."""
        kind = config.get("model_type")
        if kind == "distilbert":
            return cls(config["n_layers"], config["dim"], config["hidden_dim"], config["vocab_size"], 512)
        if kind not in _BIASED | _GATED:
            return None
        layers, width, intermediate, vocabulary = (
            int(config[key]) for key in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
        )
        if kind in _BIASED:
            types = 0 if kind == "mpnet" else config.get("type_vocab_size", 2)
            return cls(layers, width, intermediate, vocabulary, config["max_position_embeddings"], types)
        heads = config["num_attention_heads"]
        size = config.get("head_dim") or width // heads
        keys = config.get("num_key_value_heads") or heads
        return cls(
            layers,
            width,
            intermediate,
            vocabulary,
            gated=True,
            biased=False,
            norms_biased=False,
            query_width=size * heads,
            key_width=size * keys,
        )

    @property
    def matrices(self) -> int:
        """Entries of all matrices that every token is multiplied by: the non-embedding parameters, biases apart."""
        queries = self.query_width or self.width
        keys = self.key_width or queries
        attention = self.width * (2 * queries + 2 * keys)
        return self.layers * (attention + (3 if self.gated else 2) * self.width * self.intermediate)

    @property
    def parameters(self) -> int:
        """All parameters of the encoder, without a pooler or a head."""
        norm = self.width * (2 if self.norms_biased else 1)
        biases = 5 * self.width + self.intermediate if self.biased else 0  # query, key, value, output; both of the MLP
        tables = (self.vocabulary + self.positions + self.types) * self.width
        final = 0 if self.biased or self.types else norm  # pre-norm encoders end with one more
        return tables + norm + final + self.matrices + self.layers * (biases + 2 * norm)

    @property
    def published_parameters(self) -> int:
        """The count that model cards give: BERT and its kin with their pooler, which is loaded and not read."""
        return self.parameters + (self.width**2 + self.width if self.biased else 0)

    @property
    def rows(self) -> int:
        """Parameters that are rows of words: of a table without a network, all."""
        return self.vocabulary * self.width

    def flops(self, tokens: float, squares: float) -> float:
        """FLOPs of a forward pass over texts of so many tokens in all; `squares` is the sum of their squared lengths.

        Two for every entry of a matrix and token, and for attention two products of `tokens × tokens × width` a text.
        """
        return 2 * self.matrices * tokens + 4 * self.layers * (self.query_width or self.width) * squares

    def with_layers(self, layers: int) -> "Architecture":
        """The same with another number of layers."""
        return replace(self, layers=layers)

    @classmethod
    def table(cls, rows: int, dim: int, hidden: int = 0) -> Self:
        """A lookup table of so many rows, with a network of `hidden` units behind its mean (`Student.add_network`)."""
        if not hidden:
            return cls(0, dim, 0, rows)
        units = 2 * dim + hidden
        return cls(0, 2 * dim, 0, rows, network=2 * dim * units + units + units * dim + dim)
