"""Tiny real models and texts, made here: no network, no GPU, no files from elsewhere."""

from pathlib import Path

import numpy as np

SYLLABLES = [consonant + vowel for consonant in "bdklmnrt" for vowel in "aeio"]
WORDS = [first + second for first in SYLLABLES for second in SYLLABLES]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Distinct made-up sentences of 3 to 12 words that the tiny tokenizer knows."""
    generator = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(generator.choice(WORDS, generator.integers(3, 13)))] = None
    return list(found)


def save_tokenizer(folder: Path) -> int:
    """Saves a WordPiece tokenizer that knows WORDS and every syllable; returns the size of its vocabulary."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *SYLLABLES,
        *(f"##{each}" for each in SYLLABLES),
        *WORDS,
    ]
    tokenizer = BertWordPieceTokenizer({token: index for index, token in enumerate(vocabulary)}, lowercase=True)
    BertTokenizerFast(tokenizer_object=tokenizer._tokenizer, model_max_length=48).save_pretrained(str(folder))
    return len(vocabulary)


def save_bert(folder: Path, *, layers: int = 4, width: int = 32, seed: int = 0) -> Path:
    """Saves a random BERT with a tokenizer as a plain Transformers folder."""
    import torch
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=save_tokenizer(folder),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=48,
        initializer_range=0.2,  # BERT's 0.02 would make every text of a model this small look alike
    )
    BertModel(config).save_pretrained(str(folder))
    return folder


def save_teacher(
    folder: Path,
    *,
    dim: int = 24,
    layers: int = 4,
    normalise: bool = True,
    seed: int = 0,
    prompts: dict[str, str] | None = None,
) -> Path:
    """Saves a random Sentence Transformers teacher: BERT → mean → Dense to `dim` (→ Normalize)."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    backbone = save_bert(folder / "backbone", layers=layers, seed=seed)
    transformer = Transformer(str(backbone))
    dense = Dense(transformer.get_embedding_dimension(), dim, activation_function=torch.nn.Identity())
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), "mean"), dense]
    model = SentenceTransformer(
        modules=[*modules, Normalize()] if normalise else modules, device="cpu", prompts=prompts or {}
    )
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"
