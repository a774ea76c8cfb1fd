"""The network behind the mean of a table: what it is before training, what it computes, and what it can say."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

import leaf
from leaf.errors import LeafError
from leaf.recipe import Recipe
from leaf.recipe import Student as Settings
from leaf.runtime.encoder import OnnxEncoder
from leaf.student.model import Student, build_student
from leaf.student.ridge import Head
from tiny import sentences

TEXTS = sentences(7)


def table(bert, normalise=True) -> Student:
    student = build_student(
        Settings(backbone=str(bert), layers=0),
        None,
        {"query": "", "document": ""},
        24,
        normalise=normalise,
        max_length=None,
        similarity="cosine",
        seed=0,
    )
    student.set_head(Head(torch.randn(24, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(24), 0.0))
    return student


def vectors(student: Student, texts=TEXTS) -> np.ndarray:
    tokens = student.tokenizer(texts, "document")
    with torch.inference_mode():
        return student(student.collate(tokens.ids, tokens.lengths)).numpy()


@pytest.mark.parametrize("normalise", [True, False])
def test_before_training_vectors_are_those_of_the_table(bert, normalise):
    student = table(bert, normalise)
    before = vectors(student)
    student.add_network(10, seed=0)
    np.testing.assert_allclose(vectors(student), before, atol=1e-6)
    rows = student.vocabulary_size
    # By hand: rows of 48; 2·24 + 10 units that read 48 numbers and a bias; 24 outputs that read 58 and a bias.
    assert student.num_parameters == rows * 48 + 58 * 49 + 24 * 59
    assert student.rows.shape == (rows, 48)


def test_the_vector_is_two_layers_over_the_mean_and_every_reader_has_it(bert, tmp_path):
    student = table(bert)
    student.add_network(10, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in student.parameters():
            each += 0.1 * torch.randn(each.shape, generator=generator)
    student.save(tmp_path / "student")

    rows = load_file(tmp_path / "student" / "model.safetensors")["embedding.weight"]
    first, second = (load_file(tmp_path / "student" / each / "model.safetensors") for each in ("1_Dense", "2_Dense"))
    ids = student.tokenizer(TEXTS, "document").split()
    means = np.stack([rows[each].mean(axis=0) for each in ids])
    units = np.maximum(means @ first["linear.weight"].T + first["linear.bias"], 0)
    expected = units @ second["linear.weight"].T + second["linear.bias"]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)

    np.testing.assert_allclose(vectors(student), expected, atol=1e-6)
    np.testing.assert_allclose(SentenceTransformer(str(tmp_path / "student")).encode(TEXTS), expected, atol=1e-6)
    goes_on = build_student(
        Settings(start=str(tmp_path / "student")), None, {}, 24, normalise=True, max_length=None,
        similarity="cosine", seed=0,
    )  # fmt: skip
    np.testing.assert_allclose(vectors(goes_on), expected, atol=1e-6)


def test_a_network_of_another_kind_is_not_gone_on_from(bert, tmp_path):
    student = table(bert)
    student.add_network(10, seed=0)
    del student.model[2]
    student.save(tmp_path / "student")
    with pytest.raises(LeafError, match="StaticEmbedding → Dense → Normalize, and a student of this teacher is"):
        build_student(
            Settings(start=str(tmp_path / "student")), None, {}, 58, normalise=True, max_length=None,
            similarity="cosine", seed=0,
        )  # fmt: skip


@pytest.fixture
def recipe(tmp_path, teacher_folder):
    (tmp_path / "texts.txt").write_text("\n".join(sentences(400)))
    return Recipe.parse(
        {
            "name": "network",
            "teacher": {"model": str(teacher_folder), "name": "tiny-teacher"},
            "students": [
                {"name": "student-table", "layers": 0, "ridge_texts": 50},
                {"name": "student-network", "layers": 0, "ridge_texts": 50, "hidden": 64},
                {"name": "student-1l", "layers": [3], "ridge_texts": 50, "hidden": 64},
            ],
            "texts": [{"source": str(tmp_path / "texts.txt"), "kind": "query"}],
            "prepare": {"held_out": 50},
            "train": {"batch_size": 16, "cycles": 1, "epochs_per_cycle": 8, "lr": 3e-3, "row_lr": 0.02},
            "export": {"precisions": ["fp32", "q8"]},
        }
    )


def test_a_table_with_a_network_is_a_student_like_any_other(recipe, tmp_path):
    out = tmp_path / "out"
    report = leaf.distill(recipe, out, device="cpu")
    plain, network, _ = report["students"]
    assert network["errors"][0] == pytest.approx(plain["errors"][0], abs=1e-3)  # it begins where the table begins
    assert network["epsilon"] < plain["epsilon"]
    inputs = [json.loads((out / each["name"] / "manifest.json").read_text())["inputs"] for each in report["students"]]
    # Elsewhere it says nothing, and a run that was made before there were networks is the same run.
    assert [each["student"].get("hidden") for each in inputs] == [None, 64, None]
    texts = sentences(20, seed=3)
    expected = SentenceTransformer(str(out / "student-network"), device="cpu").encode(texts, prompt_name="query")
    np.testing.assert_allclose(OnnxEncoder(out / "student-network").encode_query(texts), expected, atol=1e-5)


def test_it_says_what_words_mean_together_which_a_mean_cannot(bert):
    """Exclusive or: the vector of two words is the sum of none of theirs."""
    words = [table(bert).first.tokenizer.decode([each]) for each in (10, 11, 12, 13)]
    texts = [f"{one} {other}" for one in words[:2] for other in words[2:]]
    targets = torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 0]), 24).float()

    def fitted(student: Student) -> float:
        tokens = student.tokenizer(texts, "document")
        features = student.collate(tokens.ids, tokens.lengths)
        optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
        for _ in range(300):
            loss = (student(features) - targets).norm(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    # By hand: (a + c) + (b + d) = (a + d) + (b + c). Two vectors less than 45° from one axis have a sum that is, too,
    # and it would be that of two less than 45° from the other. So one of the four is 45° off or more, at a distance of
    # 2·sin(22.5°) = 0.765, and the mean of the four is 0.19 at least.
    student = table(bert)
    assert fitted(student) > 0.19
    student = table(bert)
    student.add_network(10, seed=0)
    assert fitted(student) < 0.1
