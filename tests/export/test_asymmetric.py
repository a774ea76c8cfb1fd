"""The asymmetric package: plain Sentence Transformers routes it, and nothing of either tower is lost in it."""

import importlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from leaf.errors import LeafError
from leaf.export.asymmetric import asymmetric
from leaf.light import ASYMMETRIC_FILE, is_light, load_light
from leaf.loading import load, load_for_serving
from leaf.space import Space, verify
from leaf.teacher.model import SentenceTransformerEncoder
from onnx_table import save_graph
from tiny import save_bert, save_teacher, sentences
from tiny_student import make_student

#: The last is longer than the student's 24 tokens and shorter than the teacher's 48.
TEXTS = [*sentences(6, seed=8), " ".join(sentences(5, seed=9))]


def plain(folder, **settings):
    return SentenceTransformer(str(folder), device="cpu", **settings)


@pytest.fixture(scope="module")
def package(student, tmp_path_factory):
    return asymmetric(student, tmp_path_factory.mktemp("packages") / "package")


@pytest.fixture(scope="module")
def light(student, tmp_path_factory):
    return asymmetric(student, tmp_path_factory.mktemp("packages") / "light", light=True)


def test_plain_sentence_transformers_sends_queries_to_the_student_and_documents_to_the_teacher(
    package, student, teacher_folder
):
    model = plain(package.folder)
    queries, documents = model.encode_query(TEXTS), model.encode_document(TEXTS)
    np.testing.assert_allclose(queries, plain(student).encode_query(TEXTS), atol=1e-6)
    np.testing.assert_allclose(documents, plain(teacher_folder).encode_document(TEXTS), atol=1e-6)
    assert np.einsum("nd,nd->n", queries, documents).max() < 0.999  # two models, not one twice
    np.testing.assert_allclose(model.encode(TEXTS), documents, atol=1e-6)  # no role: the teacher, never wrong
    assert model.prompts == {"query": "ba be: ", "document": ""}
    assert model.similarity_fn_name == "cosine"


def test_a_lookup_table_is_routed_too(table, teacher_folder, tmp_path):
    model = plain(asymmetric(table, tmp_path / "package").folder)
    np.testing.assert_allclose(model.encode_query(TEXTS), plain(table).encode_query(TEXTS), atol=1e-6)
    np.testing.assert_allclose(model.encode_document(TEXTS), plain(teacher_folder).encode_document(TEXTS), atol=1e-6)


def test_leaf_routes_by_role_and_measures_the_package_and_not_the_student(package, student):
    encoder, space = load(package.folder, device="cpu"), Space.load(package.folder)
    verdict = verify(encoder, space)
    assert verdict.in_space
    assert verdict.error == pytest.approx(space.error, abs=1e-5)
    # Every other canary is a query and goes through the student; the others are the teacher's own and cost nothing.
    alone = load(student, device="cpu")
    distances = np.linalg.norm(alone.encode_query(space.texts[::2]) - space.vectors[::2], axis=1)
    assert space.error == pytest.approx(distances.sum() / 64, rel=1e-4)
    assert space.id == Space.load(student).id
    assert Space.load(student).error > space.error > 0


def test_every_reader_finds_the_modules_under_the_names_that_all_releases_know(package):
    modules = json.loads((package.folder / "modules.json").read_text())
    router = json.loads((package.folder / "router_config.json").read_text())
    assert [each["type"] for each in modules] == ["sentence_transformers.models.Router"]
    assert set(router["types"].values()) == {
        f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Dense", "Normalize")
    }
    settings = json.loads((package.folder / "document_0_Transformer" / "sentence_bert_config.json").read_text())
    assert settings == {"max_seq_length": 48, "do_lower_case": False}
    pooling = json.loads((package.folder / "document_1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"]
    assert not pooling["pooling_mode_cls_token"]


def test_a_half_precision_teacher_with_cls_pooling_prompts_and_no_norm_keeps_all_of_it(tmp_path):
    transformer = Transformer(str(save_bert(tmp_path / "bert", seed=2)))
    prompts = {"query": "ba: ", "document": "be di: "}
    model = SentenceTransformer(
        modules=[transformer, Pooling(32, pooling_mode="cls")], prompts=prompts, similarity_fn_name="dot", device="cpu"
    )
    model.save(str(tmp_path / "teacher"), create_model_card=False)
    weights = tmp_path / "teacher" / "model.safetensors"
    save_file({name: each.half() for name, each in load_file(weights).items()}, weights, metadata={"format": "pt"})
    config = tmp_path / "teacher" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float16"}))

    teacher = SentenceTransformerEncoder(str(tmp_path / "teacher"), device="cpu", max_length=20)
    made = asymmetric(make_student(tmp_path / "student", teacher), tmp_path / "package")
    routed = plain(made.folder)
    # transformers computes a float16 checkpoint in float16 unless told otherwise; the package has told it.
    assert {each.dtype for each in routed.parameters()} == {torch.float32}
    expected = plain(tmp_path / "teacher", model_kwargs={"dtype": torch.float32})
    expected.max_seq_length = 20
    np.testing.assert_allclose(routed.encode_document(TEXTS), expected.encode_document(TEXTS), atol=1e-5)
    assert np.linalg.norm(routed.encode_query(TEXTS), axis=1).min() > 1.5
    assert routed.prompts == prompts
    assert routed.similarity_fn_name == "dot"
    stored = load_file(made.folder / "document_0_Transformer" / "model.safetensors")
    assert {each.dtype for each in stored.values()} == {torch.float16}  # as the teacher has them, not twice as large


@pytest.mark.parametrize(
    "modules",
    [
        pytest.param(None, id="a plain Transformers folder"),
        pytest.param(
            lambda: [Pooling(32, "mean", include_prompt=False), Dense(32, 24), Normalize()],  # Dense has a tanh
            id="prompt left out of the mean, and a head that is not linear",
        ),
        pytest.param(lambda: [Pooling(32, ("mean", "max"))], id="two poolings side by side"),
    ],
)
def test_whatever_the_teacher_is_made_of_comes_along(modules, bert, tmp_path):
    folder = bert
    if modules:
        folder = tmp_path / "teacher"
        prompts = {"query": "ba be: ", "document": "di do: "}
        model = SentenceTransformer(modules=[Transformer(str(bert)), *modules()], prompts=prompts, device="cpu")
        model.save(str(folder), create_model_card=False)
    student = make_student(tmp_path / "student", SentenceTransformerEncoder(str(folder), device="cpu"))
    package = asymmetric(student, tmp_path / "package")
    expected = plain(folder).encode_document(TEXTS)
    np.testing.assert_allclose(plain(package.folder).encode_document(TEXTS), expected, atol=1e-5)
    assert package.document_cosine > 0.9999


def test_another_model_is_refused_as_the_teacher_and_nothing_is_kept(student, tmp_path):
    other = save_teacher(tmp_path / "other", seed=7, prompts={"query": "ba be: ", "document": ""})
    with pytest.raises(LeafError, match="is not the teacher of this space"):
        asymmetric(student, tmp_path / "package", teacher=other)
    narrow = save_teacher(tmp_path / "narrow", dim=16)
    with pytest.raises(LeafError, match="answers with 16 dimensions and the space has 24"):
        asymmetric(student, tmp_path / "package", teacher=narrow)
    assert {path.name for path in tmp_path.iterdir()} == {"other", "narrow"}


def test_a_package_that_answers_otherwise_than_its_parts_is_not_kept(student, tmp_path, monkeypatch):
    def forgetful(student, package, prompts):
        write_config(student, package, {"query": "", "document": ""})

    module = importlib.import_module("leaf.export.asymmetric")
    write_config = module._write_config
    monkeypatch.setattr(module, "_write_config", forgetful)
    with pytest.raises(LeafError, match=r"a query vector has cosine 0\.\d+ to the model it comes from"):
        asymmetric(student, tmp_path / "package")
    assert list(tmp_path.iterdir()) == []


def test_only_an_empty_folder_or_an_older_package_is_written_over(student, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(LeafError, match="holds something other than an asymmetric package"):
        asymmetric(student, tmp_path)
    with pytest.raises(LeafError, match="is no student folder"):
        asymmetric(asymmetric(student, tmp_path / "package", light=True).folder, tmp_path / "again")
    (tmp_path / "package" / "stale").write_text("")
    assert not (asymmetric(student, tmp_path / "package", light=True).folder / "stale").exists()


def test_in_a_light_package_plain_sentence_transformers_encodes_queries_and_refuses_everything_else(light, student):
    model = plain(light.folder)
    np.testing.assert_allclose(model.encode_query(TEXTS), plain(student).encode_query(TEXTS), atol=1e-6)
    with pytest.raises(ValueError, match="No route found for task type 'document'"):
        model.encode_document(TEXTS)
    with pytest.raises(ValueError, match="Could not determine route"):
        model.encode(TEXTS)
    assert not any("document" in path.name for path in light.folder.iterdir())


def test_a_light_package_loads_its_teacher_for_documents_and_not_for_queries(light, student, teacher_folder):
    encoder = load_light(light.folder, device="cpu")
    queries = encoder.encode_query(TEXTS)
    assert "documents" not in vars(encoder)
    np.testing.assert_allclose(queries, plain(student).encode_query(TEXTS), atol=1e-6)
    np.testing.assert_allclose(
        encoder.encode_document(TEXTS), plain(teacher_folder).encode_document(TEXTS), atol=1e-6
    )  # fmt: skip
    assert verify(encoder, Space.load(light.folder)).error == pytest.approx(light.space.error, abs=1e-5)
    assert (encoder.dim, encoder.similarity, encoder.prompts["query"]) == (24, "cosine", "ba be: ")


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        pytest.param(lambda each: each * 1.5, "another revision of the teacher is another space", id="weights"),
        pytest.param(None, "is not the teacher of this space", id="canaries"),
    ],
)
def test_a_light_package_refuses_a_teacher_that_has_changed(light, teacher_folder, tmp_path, spoil, match):
    shutil.copytree(light.folder, tmp_path / "light")
    shutil.copytree(teacher_folder, tmp_path / "teacher")
    if spoil:
        weights = tmp_path / "teacher" / "2_Dense" / "model.safetensors"
        save_file({name: spoil(each) for name, each in load_file(weights).items()}, weights)
    else:  # the right weights, but the canaries are of another space
        space = Space.load(light.folder)
        Space(**{**vars(space), "vectors": space.vectors[::-1]}).save(tmp_path / "light")
    encoder = load_light(tmp_path / "light", teacher=str(tmp_path / "teacher"), device="cpu")
    assert encoder.encode_query(TEXTS).shape == (7, 24)
    with pytest.raises(LeafError, match=match):
        encoder.encode_document(TEXTS)


def test_queries_of_a_light_package_with_onnx_files_need_no_torch(light, student, tmp_path):
    folder = tmp_path / "light"
    shutil.copytree(light.folder, folder)
    save_graph(folder / "onnx" / "model.onnx")
    shutil.copyfile(student / "tokenizer.json", folder / "tokenizer.json")
    code = (
        "import sys; from leaf.light import is_light, load_light\n"
        f"encoder = load_light({str(folder)!r}) if is_light({str(folder)!r}) else None\n"
        "assert encoder.encode_query(['ba']).shape == (1, 24)\n"
        "sys.exit(bool({'torch', 'transformers', 'sentence_transformers'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_served_light_package_never_encodes_documents_with_the_student(light, teacher_folder):
    encoder = load_for_serving(str(light.folder), device="cpu")
    expected = load(teacher_folder, device="cpu").encode_document(["ba be"])
    np.testing.assert_allclose(encoder.encode_document(["ba be"]), expected, atol=1e-5)


def test_what_is_light_and_what_is_not(light, package, student, monkeypatch, tmp_path):
    assert is_light(light.folder)
    assert not is_light(package.folder)
    assert not is_light("package:nothing/model")
    assert not is_light("owner/model")  # no hub: whatever is loaded from it raises on documents
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: str(light.folder / ASYMMETRIC_FILE))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(light.folder))
    assert is_light("owner/light")
    assert load_light("owner/light", device="cpu").name == "light"
    (tmp_path / ASYMMETRIC_FILE).write_text('{"teacher": {}}')
    shutil.copyfile(student / "space.json", tmp_path / "space.json")
    shutil.copyfile(student / "canaries.safetensors", tmp_path / "canaries.safetensors")
    with pytest.raises(LeafError, match=r"asymmetric\.json is damaged"):
        load_light(tmp_path)


@pytest.mark.parametrize("form", ["package", "light"])
def test_the_cards_python_runs_as_it_stands(form, request, monkeypatch):
    folder = request.getfixturevalue(form).folder
    card = (folder / "README.md").read_text()
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr("leaf.load", load_light)
    blocks = card.split("```python\n")[1:]
    assert len(blocks) == (1 if form == "package" else 2)
    for block in blocks:
        names = {}
        exec(block.split("```")[0], names)
        assert names["query_vectors"].shape[1] == 24
    assert "## Scores" in card
    assert card.endswith(f"<!-- path: {folder.name} -->\n")
