"""The same vectors in every runtime in Python: each row of the matrix lands in the teacher's space, text by text.

What a row may differ by is a share of the vector's length, and is due to rounding of the weights alone. Transformers.js
is in test_parity_javascript.py.
"""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from students import PRECISIONS, Case, Prompted, check
from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoModel, AutoTokenizer

from leaf.encoder import Encoder
from leaf.errors import LeafError
from leaf.loading import load
from leaf.runtime.artifact import FILES
from leaf.runtime.encoder import OnnxEncoder
from leaf.space import verify
from leaf.tokens import Tokenizer

CASES = ["transformer", "table", "phrases", "layer-with-phrases", "network"]


def trained(case: Case) -> Encoder:
    """The student as it is while training."""
    tokenizer = Tokenizer(case.student.first, {})

    def encode(texts: list[str]) -> np.ndarray:
        tokens = tokenizer(texts, "document")
        with torch.inference_mode():
            return case.student(case.student.collate(tokens.ids, tokens.lengths)).numpy()

    return Prompted(encode, case.space.dim)


def loaded(case: Case) -> Encoder:
    """`leaf.load` of its folder."""
    return load(case.folder, device="cpu")


def sentence_transformers(case: Case) -> Encoder:
    """Plain Sentence Transformers, told of no prompt, so it takes them from the folder."""
    model = SentenceTransformer(str(case.folder), device="cpu")
    encoder = Prompted(lambda texts: np.empty(0), case.space.dim)
    encoder.encode_query, encoder.encode_document = model.encode_query, model.encode_document
    return encoder


def by_hand(case: Case) -> Encoder:
    """Plain Transformers with mean, head and norm in NumPy; for a table, the mean of its rows."""
    if case.is_table:
        words = RustTokenizer.from_file(str(case.folder / "tokenizer.json"))
        table = load_file(case.folder / "model.safetensors")["embedding.weight"]
        layers = [load_file(each / "model.safetensors") for each in sorted(case.folder.glob("*_Dense"))]

        def encode(texts: list[str]) -> np.ndarray:
            vectors = np.stack([table[words.encode(text).ids].mean(axis=0) for text in texts])
            if layers:
                first, second = layers
                units = np.maximum(vectors @ first["linear.weight"].T + first["linear.bias"], 0)
                vectors = units @ second["linear.weight"].T + second["linear.bias"]
            return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if case.space.normalised else vectors

        return Prompted(encode, case.space.dim)
    words = AutoTokenizer.from_pretrained(case.folder)
    backbone = AutoModel.from_pretrained(case.folder, add_pooling_layer=False, dtype=torch.float32).eval()
    head = load_file(case.folder / "2_Dense" / "model.safetensors")

    def encode(texts: list[str]) -> np.ndarray:
        batch = words(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            states = backbone(**batch).last_hidden_state.numpy()
        mask = batch["attention_mask"].numpy()[..., None]
        vectors = (states * mask).sum(axis=1) / mask.sum(axis=1) @ head["linear.weight"].T + head["linear.bias"]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return Prompted(encode, case.space.dim)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("runtime", [trained, loaded, sentence_transformers, by_hand])
def test_runtimes_that_read_the_weights_agree(cases, name, runtime: Callable[[Case], Encoder]):
    check(cases[name], runtime(cases[name]))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_our_encoder_agrees_in_every_precision(cases, name, precision):
    encoder = OnnxEncoder(cases[name].folder, precision=precision, threads=1)
    assert encoder.similarity == cases[name].space.similarity
    check(cases[name], encoder, precision)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("pooling", ["MEAN", "DISABLED"])
def test_fastembed_agrees_whether_it_pools_or_the_graph_does(cases, name, precision, pooling):
    fastembed = pytest.importorskip("fastembed", reason="fastembed is not installed")
    from fastembed.common.model_description import ModelSource, PoolingType

    case, model = cases[name], f"leaf/{name}-{precision}-{pooling}".lower()
    fastembed.TextEmbedding.add_custom_model(
        model,
        pooling=PoolingType[pooling],
        normalization=case.space.normalised,
        sources=ModelSource(url="local"),
        dim=case.space.dim,
        model_file=f"onnx/{FILES[precision]}",
        output_name="sentence_embedding" if pooling == "DISABLED" else "last_hidden_state",
    )
    embedding = fastembed.TextEmbedding(model, specific_model_path=str(case.folder), threads=1)
    check(
        case,
        Prompted(lambda texts: np.stack(list(embedding.embed(texts, batch_size=8))), case.space.dim),
        precision,
    )


# What the canaries are there for: each of these is a way in which somebody has packaged or used a student wrongly.


def test_the_backbone_without_the_head_is_refused_by_its_width(cases):
    model = SentenceTransformer(str(cases["transformer"].folder), device="cpu")
    bare = Prompted(SentenceTransformer(modules=[model[0], model[1]], device="cpu").encode, 32)
    with pytest.raises(LeafError, match="was its Dense module dropped"):
        verify(bare, cases["transformer"].space)


@pytest.mark.parametrize("name", CASES)
def test_a_forgotten_prompt_is_outside_the_space(cases, name):
    forgetful = replace(trained(cases[name]), prompts={"query": "", "document": ""})
    assert not verify(forgetful, cases[name].space).in_space


def test_a_table_that_is_given_special_tokens_is_outside_the_space(cases):
    case = cases["table"]
    ids = [case.student.first.tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]")]
    table = load_file(case.folder / "model.safetensors")["embedding.weight"]

    def encode(texts: list[str]) -> np.ndarray:
        tokens = [case.student.first.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        return np.stack([table[[ids[0], *each, ids[1]]].mean(axis=0) for each in tokens])

    assert not verify(Prompted(encode, case.space.dim), case.space).in_space


def test_plain_transformers_refuses_a_table_instead_of_inventing_weights_for_it(cases):
    """Its config.json, which Transformers.js needs, must not pass for a BERT's."""
    assert json.loads((cases["table"].folder / "config.json").read_text())["model_type"]
    with pytest.raises(ValueError, match="does not recognize this architecture"):
        AutoModel.from_pretrained(cases["table"].folder)
