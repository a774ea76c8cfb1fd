"""Models with random weights and texts of known length: timing needs no download, and no weights that mean anything.

Every word is one token, so a text of n tokens is n − 2 words between [CLS] and [SEP]. Sentence Transformers tokenises
strings as it computes, and therefore gets strings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel
from transformers import BertTokenizerFast as BertTokenizer  # type: ignore[attr-defined]

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


def _words(vocabulary: int) -> list[str]:
    """The vocabulary without special tokens: words of three syllables, of which there are 32,768."""
    return ["".join(word) for word in islice(product(SYLLABLES, repeat=3), vocabulary - len(SPECIAL))]
