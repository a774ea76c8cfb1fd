import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
)

from leaf.errors import LeafError
from leaf.loading import load
from leaf.recipe import Student as Settings
from leaf.student.model import Student, build_student
from leaf.student.ridge import Head
from leaf.student.train import start_table
from tiny import save_bert, save_teacher, save_tokenizer, sentences

TEXTS = sentences(7)
PROMPTS = {"query": "ba be: ", "document": ""}


def build(folder, dim=24, normalise=True, max_length=None, seed=0, **settings) -> Student:
    return build_student(
        Settings(backbone=str(folder), **settings),
        str(folder),
        PROMPTS,
        dim,
        normalise=normalise,
        max_length=max_length,
        similarity="cosine",
        seed=seed,
    )


def vectors(student: Student, texts=TEXTS, role="document") -> np.ndarray:
    tokens = student.tokenizer(texts, role)
    with torch.inference_mode():
        return student(student.collate(tokens.ids, tokens.lengths)).numpy()


@pytest.mark.parametrize("layers", [None, (0, 3), ()])
@pytest.mark.parametrize("role", ["query", "document"])
def test_a_saved_student_loads_in_plain_sentence_transformers_with_the_vectors_it_was_trained_with(
    bert, tmp_path, layers, role
):
    student = build(bert, layers=layers)
    if student.is_table:
        student.set_head(Head(torch.randn(24, 32), torch.randn(24), 0.0))
    student.save(tmp_path / "student")
    loaded = SentenceTransformer(str(tmp_path / "student"), device="cpu")
    encode = loaded.encode_query if role == "query" else loaded.encode_document
    np.testing.assert_allclose(encode(TEXTS), vectors(student, role=role), atol=1e-6)
    assert not np.allclose(vectors(student, role="query"), vectors(student, role="document"), atol=1e-2)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_packed_vectors_are_the_padded_ones(bert, pooling):
    student = build(bert, pooling=pooling)
    padded = vectors(student)
    student.use_packing(True)
    assert student.packed
    np.testing.assert_allclose(vectors(student), padded, atol=1e-6)


def test_padding_changes_nothing(bert):
    student = build(bert)
    together = vectors(student)
    alone = np.concatenate([vectors(student, [text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_the_vector_is_equation_1_worked_out_step_by_step(bert):
    student = build(bert)
    backbone = AutoModel.from_pretrained(bert, dtype=torch.float32)
    ids = torch.from_numpy(student.tokenizer(TEXTS[:1], "document").ids.astype(np.int64))[None]
    with torch.inference_mode():
        states = backbone(ids).last_hidden_state[0]  # [T, d']
        head = student.model[2].linear
        y = states.mean(dim=0) @ head.weight.T + head.bias
        expected = y / y.norm()
    np.testing.assert_allclose(vectors(student, TEXTS[:1])[0], expected, atol=1e-6)


def test_files_name_the_modules_where_old_releases_and_other_runtimes_look(bert, tmp_path):
    build(bert, layers=(1, 2), max_length=20).save(tmp_path / "s")
    modules = json.loads((tmp_path / "s" / "modules.json").read_text())
    assert [module["type"] for module in modules] == [
        f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Dense", "Normalize")
    ]
    transformer = json.loads((tmp_path / "s" / "sentence_bert_config.json").read_text())
    assert transformer["max_seq_length"] == 20
    assert json.loads((tmp_path / "s" / "config.json").read_text())["num_hidden_layers"] == 2


def test_a_teacher_that_is_not_normalised_has_a_student_without_norm(bert):
    assert [type(module).__name__ for module in build(bert, normalise=False).model] == [
        "Transformer",
        "Pooling",
        "Dense",
    ]
    norms = np.linalg.norm(vectors(build(bert, normalise=False)), axis=1)
    assert np.ptp(norms) > 1e-3
    np.testing.assert_allclose(np.linalg.norm(vectors(build(bert)), axis=1), 1, atol=1e-6)


ENCODERS = {
    "bert": (BertModel, BertConfig, {}),
    "roberta": (RobertaModel, RobertaConfig, {"max_position_embeddings": 50, "pad_token_id": 0}),
    "mpnet": (MPNetModel, MPNetConfig, {"max_position_embeddings": 50, "pad_token_id": 0}),
    "distilbert": (DistilBertModel, DistilBertConfig, {}),
    "modernbert": (ModernBertModel, ModernBertConfig, {"global_attn_every_n_layers": 3, "local_attention": 4,
                                                       "pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3,
                                                       "bos_token_id": 2, "eos_token_id": 3}),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
def test_picked_layers_of_many_architectures_survive_saving(name, tmp_path):
    model, config, extra = ENCODERS[name]
    folder = tmp_path / "backbone"
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    model(
        config(
            vocab_size=save_tokenizer(folder),
            max_position_embeddings=48,
            initializer_range=0.2,
            **sizes,
            **extra,
        )
        if "max_position_embeddings" not in extra
        else config(vocab_size=save_tokenizer(folder), initializer_range=0.2, **sizes, **extra)
    ).save_pretrained(str(folder))
    # Of ModernBERT's layers here 0 and 3 are global, 1 and 2 local: a renumbered stack would make layer 1 local.
    student = build(folder, layers=(0, 3))
    assert student.num_layers == 2
    student.save(tmp_path / "student")
    loaded = SentenceTransformer(str(tmp_path / "student"), device="cpu")
    np.testing.assert_allclose(loaded.encode_document(TEXTS), vectors(student), atol=1e-6)
    assert not np.allclose(vectors(student), vectors(build(folder, layers=(0, 2))), atol=1e-2)
    if name == "modernbert":
        with pytest.raises(LeafError, match=r"no place for layers\.0\.attn_norm\.weight; let layer 0 come first"):
            build(folder, layers=(1, 3))
    else:
        build(folder, layers=(1, 3))


def test_a_folded_head_gives_the_same_vectors_as_a_head_after_the_mean(bert):
    student = build(bert, layers=())
    weight, bias = torch.randn(24, 32), torch.randn(24)
    tokens = student.tokenizer(TEXTS, "document")
    pooled = student.pool(student.collate(tokens.ids, tokens.lengths))
    expected = torch.nn.functional.normalize(pooled @ weight.T + bias, dim=-1)
    student.set_head(Head(weight, bias, 0.0))
    np.testing.assert_allclose(vectors(student), expected.detach(), atol=1e-6)


def test_the_rows_of_a_table_begin_with_the_teachers_vectors_of_their_tokens(tmp_path):
    folder = save_teacher(tmp_path, prompts={"query": "", "document": ""})
    student, teacher = build(folder, dim=24, layers=[]), load(folder, device="cpu")
    words = student.token_texts()
    assert all("##" not in word for word in words)
    start_table(student, teacher)
    reference = SentenceTransformer(str(folder))  # another library's encoding of the same words
    np.testing.assert_allclose(student.first.embedding.weight.detach(), reference.encode(words), atol=1e-5)
    # A head is folded in as before: one row is then the mapped vector of its token.
    student.set_head(Head(2 * torch.eye(24), torch.ones(24), 0.0))
    np.testing.assert_allclose(
        student.first.embedding.weight[7].detach(), 2 * reference.encode(words[7]) + 1, atol=1e-5
    )


def test_a_table_cuts_texts_where_it_was_trained_to_and_every_reader_does_the_same(bert, tmp_path):
    student = build(bert, layers=(), max_length=5)
    long = " ".join(TEXTS)
    assert student.tokenizer([long], "document").lengths == [5]
    student.set_head(Head(torch.randn(24, 32), torch.randn(24), 0.0))
    student.save(tmp_path / "s")
    loaded = SentenceTransformer(str(tmp_path / "s"), device="cpu")
    np.testing.assert_allclose(loaded.encode_document([long]), vectors(student, [long]), atol=1e-6)


def test_cls_pooling_reads_the_first_token_alone(bert):
    student = build(bert, pooling="cls")
    ids = torch.from_numpy(student.tokenizer(TEXTS[:1], "document").ids.astype(np.int64))[None]
    with torch.inference_mode():
        first = student.model[0].auto_model(ids).last_hidden_state[0, 0]
        pooled = student.pool({"input_ids": ids, "attention_mask": torch.ones_like(ids)})[0]
    np.testing.assert_allclose(pooled, first, atol=1e-6)


@pytest.mark.parametrize(("dim", "bias", "released"), [(768, True, 22_861_056), (1024, False, 22_958_592)])
def test_the_papers_students_have_the_released_number_of_parameters(tmp_path, dim, bias, released):
    # MiniLM-L6-H384: the shape of nreimers/MiniLM-L6-H384-uncased, random weights.
    save_tokenizer(tmp_path)
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    assert config.vocab_size == 30_522
    BertModel(config).save_pretrained(str(tmp_path))
    assert build(tmp_path, dim=dim, bias=bias).num_parameters == released


def test_layers_that_the_backbone_does_not_have_are_refused(bert):
    with pytest.raises(LeafError, match="names layer 6, but the backbone has layers 0 to 3"):
        build(bert, layers=(0, 6))


def test_the_same_seed_draws_the_same_head(tmp_path):
    folder = save_bert(tmp_path / "b")
    first, again, other = (build(folder, seed=seed).model[2].linear.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
