"""`leaf verify` of everything a student comes as, and what it finds when one of its forms has left the space."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import leaf.verifying
from leaf.errors import LeafError
from leaf.export.onnx import export_student
from leaf.loading import load
from leaf.runtime.encoder import OnnxEncoder
from leaf.space import Space, encode_canaries
from leaf.teacher.model import SentenceTransformerEncoder
from leaf.verifying import space_of, verify
from serving import running
from tiny import save_teacher
from tiny_student import make_student

FILES = {"fp32": "model.onnx", "q8": "model_quantized.onnx", "q4": "model_q4.onnx"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, teacher_folder):
    """A lookup table with three ONNX files, whose teacher is as far away as that of a trained student: about 0.3.

    Of an untrained one, any vector would be as far away as the student's.
    """
    teacher = SentenceTransformerEncoder(str(teacher_folder), device="cpu")
    folder = make_student(tmp_path_factory.mktemp("runs") / "student-table", teacher, layers=())
    space = Space.load(folder)
    own = encode_canaries(load(folder, device="cpu"), space.texts, space.kinds)
    vectors = own + np.random.default_rng(0).normal(size=own.shape).astype(np.float32) * 0.06
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    error = float(np.sqrt(((own - vectors) ** 2).sum(axis=1)).mean())
    assert 0.2 < error < 0.4
    replace(space, vectors=vectors, error=error).save(folder)
    assert list(export_student(folder, tuple(FILES))["files"]) == list(FILES)
    return folder


@pytest.fixture
def copy(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "student-table"))


def outside(forms):
    return [form.name for form in forms if not form.verdict.in_space]


def test_every_form_of_a_folder_is_in_the_space_that_all_carry(exported):
    forms = list(verify(str(exported)))
    assert [form.name for form in forms] == [str(exported), *(str(exported / "onnx" / each) for each in FILES.values())]
    space = Space.load(exported)
    for form in forms:
        assert form.verdict.in_space
        assert form.space.id == space.id
        assert form.verdict.error == pytest.approx(space.error, abs=0.02)
    assert forms[0].verdict.error == pytest.approx(space.error, abs=1e-5)
    # Rounded to four bits, it is another form indeed.
    assert abs(forms[3].verdict.error - forms[0].verdict.error) > 1e-4


def test_a_file_whose_prompts_are_lost_is_found(copy, run):
    path = copy / "onnx" / "model_quantized.onnx"
    graph = onnx.load(path)
    usage = json.loads(graph.metadata_props[0].value)
    assert usage["prompts"]["query"]
    onnx.helper.set_model_props(graph, {"leaf": json.dumps({**usage, "prompts": {"query": "", "document": ""}})})
    onnx.save(graph, str(path))
    assert outside(verify(str(copy))) == [str(path)]
    code, out, _ = run("verify", copy)
    assert code == 1
    assert [line.split("  ")[0] for line in out.splitlines()[1:]] == [
        "in the space", "in the space", "NOT in the space", "in the space"
    ]  # fmt: skip


def test_a_file_with_another_models_weights_is_found(copy):
    path = copy / "onnx" / "model.onnx"
    graph = onnx.load(path)
    table = next(each for each in graph.graph.initializer if len(each.dims) == 2)
    rows = onnx.numpy_helper.to_array(table)
    table.CopyFrom(onnx.numpy_helper.from_array(rows[::-1].copy(), table.name))
    onnx.save(graph, str(path))
    assert outside(verify(str(copy))) == [str(path)]


def test_an_onnx_file_is_checked_alone_and_by_the_space_beside_or_above_it(exported, tmp_path, run):
    path = exported / "onnx" / "model_q4.onnx"
    assert [form.name for form in verify(str(path))] == [str(path)]
    for name in ("onnx/model_q4.onnx", "tokenizer.json", "space.json", "canaries.safetensors"):
        shutil.copy(exported / name, tmp_path)
    forms = list(verify(str(tmp_path / "model_q4.onnx")))
    assert [form.verdict.in_space for form in forms] == [True]
    (tmp_path / "space.json").unlink()
    code, _, err = run("verify", tmp_path / "model_q4.onnx")
    assert (code, "has no space.json" in err) == (2, True)


def test_a_server_is_asked_for_its_space_and_its_vectors(exported, teacher_folder, run):
    space, encoder = Space.load(exported), OnnxEncoder(exported, precision="q8")
    with running(encoder, space=space) as url:
        forms = list(verify(url))
        assert [(form.name, form.space.id, form.verdict.in_space) for form in forms] == [(url, space.id, True)]
        # Without the errors of each kind, a prompt forgotten on one side would hide behind the other.
        assert forms[0].space.errors == space.errors
        assert set(space.errors) == {"query", "document"}
        assert forms[0].verdict.error == pytest.approx(list(verify(str(exported)))[2].verdict.error, abs=1e-5)
        # The same space, another encoder.
        assert outside(verify(url, str(teacher_folder))) == [str(teacher_folder)]
    with running(encoder) as url:
        assert [form.verdict.in_space for form in verify(str(exported), url)] == [True]
        code, _, err = run("verify", url)
        assert code == 2
        assert "does not say which space it answers in" in err


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(LeafError, match=r"no file 'none\.onnx'"):
        list(verify("none.onnx"))


def test_an_index_carries_a_space_and_no_model(exported, tmp_path, run):
    for name in ("space.json", "canaries.safetensors"):
        shutil.copy(exported / name, tmp_path)
    with pytest.raises(LeafError, match="holds a space and no model; name the encoder to check with --model MODEL"):
        list(verify(str(tmp_path)))
    assert [form.verdict.in_space for form in verify(str(tmp_path), str(exported))] == [True]
    stranger = save_teacher(tmp_path / "stranger", seed=5)
    assert outside(verify(str(tmp_path), str(stranger))) == [str(stranger)]
    code, out, _ = run("verify", tmp_path, "--model", stranger)
    assert code == 1
    assert "NOT in the space" in out
    narrow = save_teacher(tmp_path / "narrow", dim=8)
    code, _, err = run("verify", tmp_path, "--model", narrow)
    assert code == 2
    assert "answers with 8 dimensions and the space has 24" in err


def test_json_has_a_record_for_each_form(exported, run):
    code, out, _ = run("verify", exported, "--json")
    records = json.loads(out)
    assert code == 0
    assert [record["form"] for record in records] == [form.name for form in verify(str(exported))]
    for record in records:
        assert record["in_space"] is True
        assert record["space"] == Space.load(exported).id
        assert {"teacher", "error", "expected", "mean_cosine", "matched"} <= record.keys()


def test_without_torch_the_onnx_files_are_what_is_checked(exported, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else there(name))
    monkeypatch.setattr("leaf.teacher.model.SentenceTransformerEncoder", lambda *_, **__: pytest.fail("torch"))
    assert [form.name for form in leaf.verifying.verify(str(exported))] == [
        str(exported / "onnx" / file) for file in FILES.values()
    ]
    assert isinstance(load(exported), OnnxEncoder)


def test_the_space_of_a_model_is_none_where_it_carries_none(exported, teacher_folder):
    assert space_of(str(exported)).id == space_of(str(exported / "onnx" / "model.onnx")).id == Space.load(exported).id
    assert space_of(str(teacher_folder)) is None
