"""Sizes and FLOPs of encoders from their configs, against published counts and against transformers itself."""

import json

import pytest
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, ModernBertConfig, ModernBertModel

from leaf.planning.architecture import Architecture
from leaf.planning.models import MODELS, find_model
from leaf.student.model import build_student

MINI = Architecture(6, 384, 1536, 30522, 512, 2)


@pytest.mark.parametrize(
    ("name", "millions"),
    [  # as the model cards on the hub have them
        ("sentence-transformers/all-MiniLM-L6-v2", 22.7),
        ("google-bert/bert-base-uncased", 109.5),
        ("Snowflake/snowflake-arctic-embed-m-v1.5", 109.5),
        ("mixedbread-ai/mxbai-embed-large-v1", 335.1),
        ("BAAI/bge-small-en-v1.5", 33.4),
        ("sentence-transformers/all-mpnet-base-v2", 109.5),
        ("nomic-ai/nomic-embed-text-v1.5", 136.7),
        ("answerdotai/ModernBERT-base", 149.0),
        ("intfloat/multilingual-e5-small", 117.7),
        ("BAAI/bge-m3", 567.8),
        ("Qwen/Qwen3-Embedding-0.6B", 595.8),
    ],
)
def test_the_known_models_have_the_parameters_of_their_cards(name, millions):
    assert MODELS[name].architecture.published_parameters / 1e6 == pytest.approx(millions, abs=0.06)


def test_the_papers_students_have_its_parameters():
    # §2: 22,861,056 with a bias on 768 dimensions, 22,958,592 without on 1024.
    assert MINI.parameters + 384 * 768 + 768 == 22_861_056
    assert MINI.parameters + 384 * 1024 == 22_958_592


@pytest.mark.parametrize(
    ("config", "model"),
    [
        (
            BertConfig(
                vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80,
                max_position_embeddings=50,
            ),
            lambda config: BertModel(config, add_pooling_layer=False),
        ),
        (
            DistilBertConfig(vocab_size=99, dim=32, n_layers=3, n_heads=4, hidden_dim=80),
            DistilBertModel,
        ),
    ],
    ids=["bert", "distilbert"],
)  # fmt: skip
def test_parameters_are_those_of_transformers(config, model):
    counted = sum(each.numel() for each in model(config).parameters())
    assert Architecture.of(config.to_dict()).parameters == counted


def test_parameters_of_modernbert_are_those_of_transformers_but_for_the_norm_its_first_layer_lacks():
    config = ModernBertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80, pad_token_id=0
    )
    counted = sum(each.numel() for each in ModernBertModel(config).parameters())
    assert Architecture.of(config.to_dict()).parameters == counted + 32


def test_an_unknown_kind_of_model_has_no_architecture():
    assert Architecture.of({"model_type": "t5", "num_layers": 6}) is None


def test_flops_are_those_counted_by_hand():
    # One layer: four matrices of 4 × 4 and two of 4 × 8, 128 entries; three tokens: 2 × 128 × 3 = 768. Attention:
    # queries by keys and weights by values, each 2 × 3 × 3 × 4 = 72.
    assert Architecture(1, 4, 8, 10).flops(3, 9) == 768 + 144
    # Shared heads: 4 × 4 for queries and output, 4 × 2 for keys and values; gated: three of 4 × 8.
    assert Architecture(1, 4, 8, 10, gated=True, key_width=2).matrices == 16 + 16 + 8 + 8 + 96
    # BERT-base: 12 layers of 12 × 768² entries.
    assert MODELS["google-bert/bert-base-uncased"].architecture.matrices == 12 * 12 * 768**2 == 84_934_656


def test_a_folder_says_what_sentence_transformers_will_load(teacher_folder):
    found = find_model(str(teacher_folder))
    assert (found.dim, found.max_length, found.is_local) == (24, 48, True)  # its Dense, its tokenizer's limit
    assert found.prompts == {"query": "ba be: ", "document": ""}
    assert found.tokenizer is not None
    assert found.architecture.layers == 4
    assert found.architecture.width == 32


@pytest.mark.parametrize(("layers", "hidden"), [(None, 0), ((0, 2), 0), ((), 0), ((), 10)])
def test_a_planned_student_has_the_parameters_of_the_one_that_is_built(bert, layers, hidden, tmp_path):
    from leaf.planning import plan
    from leaf.recipe import Recipe, Student

    recipe = Recipe.parse(
        {
            "name": "x",
            "teacher": {"model": str(bert)},
            "student": {"layers": layers, "hidden": hidden},
            "texts": [{"source": "none.txt", "kind": "query", "rows": 100}],
            "prepare": {"held_out": 10},
        }
    )
    built = build_student(
        Student(layers=layers), str(bert), {}, 32, normalise=True, max_length=None, similarity="cosine", seed=0
    )
    if hidden:
        built.add_network(hidden, seed=0)
    planned = plan(recipe, tmp_path)["students"][0]
    assert planned["parameters"] == built.num_parameters
    assert planned["layers"] == built.num_layers


def test_what_is_not_here_and_not_known_says_so(tmp_path):
    assert find_model("somebody/some-model").architecture is None
    assert "neither on this machine nor among the known models" in find_model("somebody/some-model").origin
    assert "is not installed" in find_model("package:no_such_package/model").origin
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(json.dumps({"model_type": "t5"}))
    assert "(t5)" in find_model(str(tmp_path / "odd")).origin
