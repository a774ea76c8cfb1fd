"""Tiny real models and texts, made here: no network, no GPU, no files from elsewhere."""

import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small only lose time between threads
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for a hub fails at once instead of waiting
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

SYLLABLES = "ba be bi bo da de di do ka ke ki ko la le li lo ma me mi mo na ne ni no ra re ri ro ta te ti to".split()
WORDS = [first + second for first in SYLLABLES for second in SYLLABLES]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if "gpu" in item.keywords:
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


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

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *SYLLABLES, *(f"##{each}" for each in SYLLABLES), *WORDS]
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
    folder: Path, *, dim: int = 24, normalise: bool = True, seed: int = 0, prompts: dict[str, str] | None = None
) -> Path:
    """Saves a random Sentence Transformers teacher: BERT → mean → Dense to `dim` (→ Normalize)."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    backbone = save_bert(folder / "backbone", seed=seed)
    transformer = Transformer(str(backbone))
    dense = Dense(transformer.get_embedding_dimension(), dim, activation_function=torch.nn.Identity())
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), "mean"), dense]
    model = SentenceTransformer(
        modules=[*modules, Normalize()] if normalise else modules, device="cpu", prompts=prompts or {}
    )
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"), seed=1)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("teacher"), prompts={"query": "ba be: ", "document": ""})
