"""The packed teacher pass gives Sentence Transformers' vectors, and leaves alone what it cannot do."""

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

from leaf.hardware import native_bfloat16
from leaf.teacher import packed as module
from leaf.teacher.model import SentenceTransformerEncoder
from leaf.teacher.packed import PackedPass
from leaf.vector_files import min_cosine
from tiny import sentences

TEXTS = [*sentences(60), " ".join(sentences(30)), "ba"]  # one is cut, one is nearly empty


def variant(teacher_folder, pooling="mean", dense=False, normalise=True) -> SentenceTransformer:
    first = SentenceTransformer(str(teacher_folder), device="cpu")[0]
    width = first.get_embedding_dimension()
    torch.manual_seed(0)
    modules = [first, Pooling(width, pooling_mode=pooling)]
    modules += [Dense(width, 20, activation_function=torch.nn.Tanh())] if dense else []
    return SentenceTransformer(modules=modules + [Normalize()] * normalise, device="cpu").eval()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize(("dense", "normalise"), [(False, True), (True, False)])
def test_vectors_are_those_of_sentence_transformers(teacher_folder, monkeypatch, pooling, dense, normalise):
    model = variant(teacher_folder, pooling, dense, normalise)
    assert PackedPass.fits(model, torch.float32)
    monkeypatch.setattr(module, "PIECE", 17)  # several pieces, hence the thread
    monkeypatch.setattr(module, "CPU_TOKENS", 64)
    prompts, done = {"query": "ba be: ", "document": ""}, []
    for role, prompt in prompts.items():
        expected = model.encode(TEXTS, prompt=prompt or None)
        found = PackedPass(model, prompts, torch.float32).encode(TEXTS, role, done.append)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sum(done) == 2 * len(TEXTS)
    assert model[0].auto_model.config._attn_implementation == "sdpa"


def test_the_encoder_takes_this_way_and_its_bfloat16_is_within_the_gate(teacher_folder):
    encoder = SentenceTransformerEncoder(str(teacher_folder), device="cpu")
    exact = encoder.encode_query(TEXTS)
    assert encoder._packed[torch.float32] is not None
    plain = SentenceTransformer(str(teacher_folder), device="cpu").encode_query(TEXTS)
    np.testing.assert_allclose(exact, plain, atol=1e-5)
    encoder.use_bfloat16_where_exact(TEXTS)
    assert min_cosine(exact, encoder.encode_query(TEXTS)) >= 0.9999
    if native_bfloat16("cpu"):
        assert encoder.compute_dtype == "bfloat16"
        assert not np.array_equal(encoder.encode_query(TEXTS), exact)


def test_other_models_are_left_to_sentence_transformers(teacher_folder):
    instructor = variant(teacher_folder)
    instructor[1].include_prompt = False  # pools without the prompt's tokens
    for model in (variant(teacher_folder, pooling="max"), instructor):
        assert not PackedPass.fits(model, torch.float32)
    table = SentenceTransformer(modules=[variant(teacher_folder)[0], variant(teacher_folder)[1], torch.nn.Tanh()])
    assert not PackedPass.fits(table, torch.float32)


@pytest.mark.gpu
def test_on_a_gpu_packed_vectors_are_within_the_gate(teacher_folder):
    exact = SentenceTransformerEncoder(str(teacher_folder), device="cpu").encode_document(TEXTS)
    encoder = SentenceTransformerEncoder(str(teacher_folder), device="cuda", compute_dtype="bfloat16")
    assert min_cosine(exact, encoder.encode_document(TEXTS)) >= 0.9999
    assert encoder._packed[torch.bfloat16] is not None
