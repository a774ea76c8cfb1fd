import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from leaf.encoder import AsymmetricEncoder, Encoder
from leaf.errors import LeafError, Stopped
from leaf.loading import load
from leaf.space import Space, verify
from tiny import save_teacher, sentences

TEXTS = sentences(64)
KINDS = ["query", "document"] * 32


@pytest.fixture(scope="module")
def space(teacher_folder) -> Space:
    teacher = load(teacher_folder)
    vectors = np.empty((64, teacher.dim), dtype=np.float32)
    vectors[0::2] = teacher.encode_query(TEXTS[0::2])
    vectors[1::2] = teacher.encode_document(TEXTS[1::2])
    return Space(teacher.identity(), teacher.dim, True, "cosine", tuple(TEXTS), tuple(KINDS), vectors)


def test_the_teacher_lives_in_its_own_space_to_rounding(space, teacher_folder):
    verdict = verify(load(teacher_folder), space)
    assert verdict.in_space
    assert verdict.error < 1e-5
    assert (verdict.matched, verdict.mean_cosine) == (1.0, pytest.approx(1.0))


def test_another_model_of_the_same_width_is_found_outside(space, tmp_path):
    verdict = verify(load(save_teacher(tmp_path, seed=7, prompts={"query": "ba be: ", "document": ""})), space)
    assert not verdict.in_space
    assert verdict.matched < 0.5


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda config: {**config, "pooling_mode": "cls"}, id="pooling swapped"),
        pytest.param(None, id="prompt forgotten"),
    ],
)
def test_a_packaging_mistake_is_found(space, teacher_folder, tmp_path, spoil):
    folder = tmp_path / "spoiled"
    shutil.copytree(teacher_folder, folder)
    if spoil:
        path = folder / "1_Pooling" / "config.json"
        path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    else:
        path = folder / "config_sentence_transformers.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "prompts": {"query": "", "document": ""}}))
    assert not verify(load(folder), space).in_space


def test_a_prompt_forgotten_for_queries_alone_is_found_although_the_mean_hides_it(space):
    """Queries land 0.08 further off, documents where they were: 0.04 on average, within the tolerance of 0.05."""

    class Forgetful:
        name, dim, similarity = "forgetful", 24, "cosine"

        def encode_query(self, texts, **_):
            step = np.zeros(24, dtype=np.float32)
            step[0] = 0.08
            return space.vectors[0::2] + step

        def encode_document(self, texts, **_):
            return space.vectors[1::2]

    assert verify(Forgetful(), space).in_space
    assert not verify(Forgetful(), replace(space, errors={"query": 0.0, "document": 0.0})).in_space


def test_a_dropped_head_is_found_by_its_width(space, bert):
    with pytest.raises(LeafError, match=r"answers with 32 dimensions and the space has 24: it is outside the space"):
        verify(load(bert), space)


def test_a_space_comes_back_from_disk_as_it_was(space, tmp_path):
    space.save(tmp_path)
    loaded = Space.load(tmp_path)
    assert loaded.id == space.id
    assert (loaded.texts, loaded.kinds, loaded.error) == (space.texts, space.kinds, space.error)
    np.testing.assert_array_equal(loaded.vectors, space.vectors)


def test_a_folder_without_a_space_and_a_damaged_one_are_one_line(space, tmp_path):
    with pytest.raises(LeafError, match=r"has no space\.json"):
        Space.load(tmp_path)
    space.save(tmp_path)
    (tmp_path / "canaries.safetensors").write_bytes(b"short")
    with pytest.raises(LeafError, match="is damaged"):
        Space.load(tmp_path)


def test_the_id_of_a_space_depends_on_the_teacher_and_not_on_the_student(space):
    other = Space({**space.teacher, "max_length": 3}, 24, True, "cosine", space.texts, space.kinds, space.vectors)
    same = Space(space.teacher, 24, True, "cosine", ("x",), ("query",), space.vectors[:1], error=0.4)
    assert other.id != space.id
    assert same.id == space.id


def test_a_pair_is_an_encoder_and_widths_that_differ_make_no_pair(teacher_folder, bert):
    teacher = load(teacher_folder)
    pair = AsymmetricEncoder(teacher, teacher)
    assert isinstance(pair, Encoder)
    assert isinstance(teacher, Encoder)
    np.testing.assert_array_equal(pair.encode_query(TEXTS[:3]), teacher.encode_query(TEXTS[:3]))
    with pytest.raises(LeafError, match=r"24 dimensions .* 32: they do not share a vector space"):
        AsymmetricEncoder(teacher, load(bert))


def test_a_stop_while_the_canaries_are_read_is_no_damage(space, tmp_path, monkeypatch):
    """SIGTERM raises where it arrives, and what follows a damaged file is the advice to delete it."""

    def stop(path):
        raise Stopped("stopped on SIGTERM")

    space.save(tmp_path)
    monkeypatch.setattr("leaf.space.load_file", stop)
    with pytest.raises(Stopped):
        Space.load(tmp_path)
