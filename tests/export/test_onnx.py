"""`export_student` on tiny students: what is written and kept, what the manifest says, and when nothing is done."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer

from leaf.errors import LeafError
from leaf.export import onnx as module
from leaf.export.onnx import PRECISIONS, Texts, export_student, read_calibration
from leaf.files import file_digest
from leaf.runtime.encoder import OnnxEncoder
from leaf.space import Space
from leaf.tokens import Tokenizer
from tiny import sentences

FILES = {
    "fp32": "model.onnx",
    "fp16": "model_fp16.onnx",
    "q8": "model_quantized.onnx",
    "q4": "model_q4.onnx",
    "q4f16": "model_q4f16.onnx",
}


@pytest.fixture(scope="session")
def graphs(tmp_path_factory):
    """Traced graphs by weights: tracing takes seconds, and many of these tests need one of the same student."""
    known = {}
    trace = module.to_graph

    def to_graph(model):
        with_digest = tmp_path_factory.mktemp("weights")
        model.save(str(with_digest), create_model_card=False)
        key = tuple(file_digest(each) for each in sorted(with_digest.rglob("*.safetensors")))
        if key not in known:
            known[key] = trace(model).SerializeToString()
        return onnx.load_from_string(known[key])

    return to_graph


@pytest.fixture(autouse=True)
def _quick(monkeypatch, graphs):
    monkeypatch.setattr(module, "to_graph", graphs)
    # Untrained weights lose more to rounding than trained ones.
    monkeypatch.setattr(module, "MAX_ADDED", {**module.MAX_ADDED, "q4": 0.5, "q4f16": 0.5})


@pytest.fixture
def copy(tmp_path, student):
    return Path(shutil.copytree(student, tmp_path / "student-2l"))


@pytest.fixture
def table_copy(tmp_path, table):
    return Path(shutil.copytree(table, tmp_path / "student-table"))


def held_out(folder, count=48):
    """Texts with vectors that are nobody's, at the distance of a trained student: PyTorch's, a little off."""
    model = SentenceTransformer(str(folder), device="cpu")
    texts, kinds = sentences(count, seed=21), [("query", "document")[row % 3 == 0] for row in range(count)]
    vectors = np.stack(
        [
            model.encode_query(text) if kind == "query" else model.encode_document(text)
            for text, kind in zip(texts, kinds, strict=True)
        ]
    )
    vectors = vectors + np.random.default_rng(0).normal(size=vectors.shape).astype(np.float32) * 0.05
    return Texts(texts, kinds, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))


def modified(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "onnx").iterdir()}


def test_the_manifest_says_what_the_files_are(copy):
    compared = held_out(copy)
    manifest = export_student(copy, held_out=compared)
    assert manifest["refused"] == {}
    assert {precision: each["file"] for precision, each in manifest["files"].items()} == FILES
    assert sorted(path.name for path in (copy / "onnx").iterdir()) == sorted([*FILES.values(), "manifest.json"])
    on_disk = json.loads((copy / "onnx" / "manifest.json").read_text())
    assert on_disk == json.loads(json.dumps(manifest))
    assert (manifest["num_texts"], manifest["texts"], manifest["calibration"]) == (48, "held-out", "canaries")
    model = SentenceTransformer(str(copy), device="cpu")

    def encode(encoder):
        pairs = zip(compared.texts, compared.kinds, strict=True)
        return np.concatenate(
            [(encoder.encode_query if kind == "query" else encoder.encode_document)([text]) for text, kind in pairs]
        )

    expected = encode(model)
    error = np.sqrt(((expected - compared.vectors) ** 2).sum(axis=1)).mean()
    assert manifest["student_error"] == pytest.approx(error, abs=1e-5)
    for precision, each in manifest["files"].items():
        path = copy / "onnx" / each["file"]
        vectors = encode(OnnxEncoder(path))
        distances = np.sqrt(((vectors - compared.vectors) ** 2).sum(axis=1))
        tolerance = 3e-3 if "f16" in precision or precision == "fp16" else 1e-4  # float16 knows its batch
        assert each["bytes"] == path.stat().st_size
        assert each["error"] == pytest.approx(distances.mean(), abs=tolerance)
        assert each["added_error"] == pytest.approx(distances.mean() - error, abs=tolerance)
        assert each["min_cosine"] == pytest.approx((vectors * expected).sum(axis=1).min(), abs=tolerance)
        assert each["max_distance"] == pytest.approx(np.linalg.norm(vectors - expected, axis=1).max(), abs=tolerance)
        assert 0.998 < each["batch_cosine"] < 1.00001
    assert manifest["files"]["fp32"]["max_distance"] < 1e-5
    assert manifest["files"]["q4"]["max_distance"] > manifest["files"]["q8"]["max_distance"] > 1e-4


def test_every_file_says_how_it_is_used(copy, student):
    export_student(copy, ("fp32", "q8"))
    for precision, file in (("fp32", "model.onnx"), ("q8", "model_quantized.onnx")):
        properties = {each.key: each.value for each in onnx.load(copy / "onnx" / file).metadata_props}
        assert json.loads(properties["leaf"]) == {
            "format": 1,
            "name": "student-2l",
            "precision": precision,
            "dim": 24,
            "normalised": True,
            "similarity": "cosine",
            "prompts": {"query": "ba be: ", "document": ""},
            "max_length": 24,
            "add_special_tokens": True,
            "split_special_tokens": False,
            "pad_token_id": 0,
            "space": json.loads((student / "space.json").read_text())["id"],
        }


def test_a_table_is_exported_too_without_special_tokens(table_copy):
    manifest = export_student(table_copy)
    assert list(manifest["files"]) == list(PRECISIONS)
    assert manifest["texts"] == "canaries"
    assert manifest["num_texts"] == 64
    encoder = OnnxEncoder(table_copy)
    assert encoder.usage.add_special_tokens is False
    texts = ["dido bame [SEP] ba", "", "kale " * 80]
    plain = SentenceTransformer(str(table_copy), device="cpu")
    np.testing.assert_allclose(encoder.encode_document(texts), plain.encode_document(texts), atol=1e-6)


def test_a_text_without_tokens_among_those_compared_is_no_fault(table_copy):
    compared = held_out(table_copy)
    texts = Texts(
        ["", *compared.texts], ["query", *compared.kinds], np.vstack([compared.vectors[:1], compared.vectors])
    )
    model = SentenceTransformer(str(table_copy), device="cpu")
    model.prompts["query"] = ""
    model.save(str(table_copy), create_model_card=False)
    manifest = export_student(table_copy, ("fp32",), held_out=texts)
    assert manifest["files"]["fp32"]["batch_cosine"] > 0.9999


def test_a_file_that_strays_is_deleted_and_named(copy, monkeypatch, capsys):
    monkeypatch.setattr(module, "MAX_ADDED", {**module.MAX_ADDED, "q8": -1.0})
    manifest = export_student(copy, ("fp32", "q8"))
    assert list(manifest["files"]) == ["fp32"]
    assert "to the distance from the teacher" in manifest["refused"]["q8"]
    assert not (copy / "onnx" / "model_quantized.onnx").exists()
    printed = " ".join("".join(capsys.readouterr()).split())
    assert "model_quantized.onnx was not kept: it adds" in printed


def test_a_file_whose_vectors_depend_on_the_batch_is_refused(copy, monkeypatch):
    monkeypatch.setattr(module, "MIN_BATCH_COSINE", {**module.MIN_BATCH_COSINE, "q8": 1.1})
    manifest = export_student(copy, ("fp32", "q8"))
    assert "in a padded batch" in manifest["refused"]["q8"]


def test_vectors_that_are_not_numbers_are_refused(copy, monkeypatch):
    exact = OnnxEncoder.encode_query

    def spoiled(self, texts, **settings):
        vectors = exact(self, texts, **settings)
        if self.usage.precision == "fp16":
            vectors[0] = np.nan
        return vectors

    monkeypatch.setattr(OnnxEncoder, "encode_query", spoiled)
    manifest = export_student(copy, ("fp32", "fp16"))
    assert list(manifest["files"]) == ["fp32"]
    assert "it adds nan to the distance" in manifest["refused"]["fp16"]


def test_a_graph_that_is_not_the_model_is_an_error_and_leaves_no_file(copy, monkeypatch, graphs):
    """Also where the vectors happen to be as far from the teacher as PyTorch's: here, on its other side."""

    def mirrored(model):
        graph = graphs(model)
        for each in graph.graph.node:
            each.output[:] = ["mirrored" if name == "sentence_embedding" else name for name in each.output]
        graph.graph.node.append(onnx.helper.make_node("Neg", ["mirrored"], ["sentence_embedding"]))
        return graph

    monkeypatch.setattr(module, "to_graph", mirrored)
    right_angles = held_out(copy)
    model = SentenceTransformer(str(copy), device="cpu")
    for row, (text, kind) in enumerate(zip(right_angles.texts, right_angles.kinds, strict=True)):
        vector = model.encode_query(text) if kind == "query" else model.encode_document(text)
        right_angles.vectors[row] -= (right_angles.vectors[row] @ vector) * vector
    right_angles.vectors[:] /= np.linalg.norm(right_angles.vectors, axis=1, keepdims=True)
    with pytest.raises(LeafError, match=r"the graph is not the model \(a vector is 2\.0000 away from PyTorch's\)"):
        export_student(copy, ("fp32", "q8"), held_out=right_angles)
    assert not (copy / "onnx").exists()
    assert not (copy / ".onnx.tmp").exists()


def test_done_once_it_is_not_done_again_until_something_changes(table_copy, monkeypatch):
    copy = table_copy
    first = export_student(copy, ("fp32", "q8"))
    before = modified(copy)
    with monkeypatch.context() as patch:
        patch.setattr(module, "export_model", lambda *_, **__: pytest.fail("exported again"))
        assert export_student(copy, ("fp32", "q8")) == json.loads(json.dumps(first))
        assert modified(copy) == before
        with pytest.raises(pytest.fail.Exception, match="again"):
            export_student(copy, ("fp32", "q8"), calibration=Texts(["ba be"] * 8, ["query"] * 8))
    assert modified(copy) == before  # what was there stays, whole, until what comes instead is
    # Only one precision: files of others go.
    export_student(copy, ("fp32",))
    assert sorted(path.name for path in (copy / "onnx").iterdir()) == ["manifest.json", "model.onnx"]
    # Other weights.
    weights = copy / "model.safetensors"
    save_file({key: value[:, ::-1].copy() for key, value in load_file(weights).items()}, weights)
    old = OnnxEncoder(copy).encode_query(["dido"])
    second = export_student(copy, ("fp32",))
    assert second["fingerprint"] != first["fingerprint"]
    np.testing.assert_allclose(OnnxEncoder(copy).encode_query(["dido"]), old[:, ::-1], atol=1e-5)
    # A file that somebody deleted.
    (copy / "onnx" / "model.onnx").unlink()
    export_student(copy, ("fp32",))
    assert (copy / "onnx" / "model.onnx").is_file()
    # Another prompt.
    settings = json.loads((copy / "config_sentence_transformers.json").read_text())
    settings["prompts"]["query"] = "ko ko: "
    (copy / "config_sentence_transformers.json").write_text(json.dumps(settings))
    export_student(copy, ("fp32",))
    assert OnnxEncoder(copy).prompts["query"] == "ko ko: "


def test_a_folder_named_onnx_above_the_student_hides_nothing(tmp_path, table):
    folder = Path(shutil.copytree(table, tmp_path / "onnx" / "student"))
    first = export_student(folder, ("fp32",))
    weights = folder / "model.safetensors"
    save_file({key: value * 0.5 + 1 for key, value in load_file(weights).items()}, weights)
    assert export_student(folder, ("fp32",))["fingerprint"] != first["fingerprint"]


def test_calibration_files_are_read_one_text_a_line_in_both_roles(copy, tmp_path):
    (tmp_path / "a.txt").write_text("ba be\n\n  \ndido\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("kale\n", encoding="utf-8")
    assert read_calibration([]) is None
    texts = read_calibration([tmp_path / "a.txt", tmp_path / "b.txt"])
    assert (list(texts.texts), list(texts.kinds)) == (["ba be", "dido", "kale"], ["query", "document", "query"])
    manifest = export_student(copy, ("q8",), calibration=texts)
    assert manifest["calibration"] == "texts"
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    for name, words in (("none.txt", "cannot be read"), ("latin.txt", "cannot be read"), ("empty.txt", "no text")):
        with pytest.raises(LeafError, match=f"{name} .*{words}.*one text a line"):
            read_calibration([tmp_path / name])


def test_ranges_are_measured_with_prompts_on_one_text_at_a_time(copy):
    model = SentenceTransformer(str(copy), device="cpu")
    tokenizer = Tokenizer(model[0], {"query": "ba be: ", "document": ""})
    graphs = module._Graphs(model, tokenizer, Texts(["dido", "kale kile"], ["query", "document"]))
    expected = [model[0].tokenizer(text)["input_ids"] for text in ("ba be: dido", "kale kile")]
    feeds = graphs._feeds()
    assert [feed["input_ids"].tolist() for feed in feeds] == [[ids] for ids in expected]
    assert all((feed["attention_mask"] == 1).all() for feed in feeds)


def test_what_cannot_be_exported_is_one_line(copy, tmp_path, monkeypatch, teacher_folder):
    with pytest.raises(LeafError, match=r"no precision 'q9'; expected some of fp32, fp16"):
        export_student(copy, ("q9",))
    with pytest.raises(LeafError, match=r"has no space\.json"):
        export_student(teacher_folder)
    monkeypatch.setattr(Tokenizer, "is_direct", False)
    with pytest.raises(LeafError, match=r"student-2l: its tokenizer has no fast \(Rust\) form"):
        export_student(copy)
    assert Space.load(copy).id
