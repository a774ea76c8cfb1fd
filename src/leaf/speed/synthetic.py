"""Models with random weights and texts of known length: timing needs no download, and no weights that mean anything.

In made-up texts every word is one token, so a text of n tokens is n − 2 words between [CLS] and [SEP]. Sentence
Transformers tokenises strings as it computes, and therefore gets strings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    StaticEmbedding,
    Transformer,
)
from tokenizers import BertWordPieceTokenizer, Tokenizer
from transformers import BertConfig, BertModel
from transformers import BertTokenizerFast as BertTokenizer  # type: ignore[attr-defined]

from leaf.errors import LeafError
from leaf.speed.shapes import Architecture

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SYLLABLES = [consonant + vowel for consonant in "bdklmnrt" for vowel in "aeio"]


@dataclass(frozen=True)
class Shape:
    """The size of a BERT; by default that of MiniLM, the backbone of the paper's students, but for the layers."""

    layers: int
    width: int = 384
    heads: int = 12
    intermediate: int = 1536
    vocabulary: int = 30_522
    max_length: int = 512


def make_texts(lengths: Sequence[int], shape: Shape, seed: int) -> list[str]:
    """Texts of so many tokens each, special tokens included, of words drawn uniformly."""
    words = np.array(_words(shape.vocabulary))
    drawn = np.random.default_rng(seed).choice(words, sum(lengths))
    ends = np.cumsum(lengths)
    return [" ".join(drawn[end - length : end - 2]) for end, length in zip(ends, lengths, strict=True)]


def save_backbone(folder: Path, shape: Shape, seed: int) -> Path:
    """Saves a random BERT and its tokenizer as a Transformers folder. Without dropout, so that all compute the same."""
    tokens = {token: index for index, token in enumerate((*SPECIAL, *_words(shape.vocabulary)))}
    tokenizer = BertWordPieceTokenizer(tokens, lowercase=True)
    BertTokenizer(tokenizer_object=tokenizer._tokenizer, model_max_length=shape.max_length).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=shape.max_length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def save_teacher(folder: Path, shape: Shape, seed: int) -> Path:
    """Saves a Sentence Transformers folder: a random BERT, the mean over tokens, unit length."""
    backbone = Transformer(
        str(save_backbone(folder / "backbone", shape, seed)), model_kwargs={"add_pooling_layer": False}
    )
    model = SentenceTransformer(modules=[backbone, Pooling(shape.width, "mean"), Normalize()], device="cpu")
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"


def random_model(architecture: Architecture, tokenizer: Path, seed: int = 0) -> SentenceTransformer:
    """A model of `architecture` with random weights and the WordPiece tokenizer of a tokenizer.json file.

    Vectors have unit length. A table is filled at random, every other model as BERT is before training.
    """
    words = Tokenizer.from_file(str(tokenizer))
    words.no_padding()
    words.no_truncation()
    if missing := [token for token in SPECIAL if words.token_to_id(token) is None]:
        raise LeafError(f"{tokenizer} has no {missing[0]}; shapes need the WordPiece tokenizer of a BERT")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if architecture.layers == 0:
            words.enable_truncation(architecture.max_length)
            table = torch.randn(words.get_vocab_size(), architecture.dim)
            return SentenceTransformer(
                modules=[StaticEmbedding(words, embedding_weights=table), Normalize()], device="cpu"
            )
        config = bert_config(architecture, words.get_vocab_size())
        with TemporaryDirectory() as folder:
            BertTokenizer(tokenizer_object=words, model_max_length=architecture.max_length).save_pretrained(folder)
            BertModel(config, add_pooling_layer=False).save_pretrained(folder)
            backbone = Transformer(folder, model_kwargs={"add_pooling_layer": False})
        modules: list[torch.nn.Module] = [backbone, Pooling(architecture.width, architecture.pooling)]
        if architecture.dim != architecture.width:
            modules.append(Dense(architecture.width, architecture.dim, activation_function=torch.nn.Identity()))
        return SentenceTransformer(modules=[*modules, Normalize()], device="cpu")


def bert_config(architecture: Architecture, vocabulary: int) -> BertConfig:
    """BERT's config for an architecture that has layers."""
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=architecture.width,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        intermediate_size=architecture.intermediate,
        max_position_embeddings=architecture.max_length,
    )


def _words(vocabulary: int) -> list[str]:
    """The vocabulary without special tokens: words of three syllables, of which there are 32,768."""
    return ["".join(word) for word in islice(product(SYLLABLES, repeat=3), vocabulary - len(SPECIAL))]
