"""Publishing: what belongs on a hub goes, whole and checked, and nothing of this machine goes with it."""

import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from leaf.errors import LeafError
from leaf.export.asymmetric import asymmetric
from leaf.export.publish import hub_files, publish, published_card
from leaf.loading import load
from leaf.models import without_folders
from leaf.runtime import OnnxEncoder
from leaf.space import Space, encode_canaries
from onnx_table import save_graph
from tiny import sentences
from tiny_export import export_tiny
from tiny_student import CARD

#: The function of the same name hides the module.
module = importlib.import_module("leaf.export.publish")
TOKEN = "hf_thisIsASecretThatNobodyMayRead"
STUDENT_FILES = {
    *("README.md", "modules.json", "config_sentence_transformers.json", "space.json", "canaries.safetensors"),
    *("config.json", "sentence_bert_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "3_Normalize/config.json"),
}


@pytest.fixture
def mine(student, tmp_path):
    """A student that a test may spoil."""
    folder = tmp_path / "student-2l"
    shutil.copytree(student, folder)
    return folder


class FakeHub:
    """Stands in for `HfApi`: keeps what it is asked, reads what is uploaded while it is there."""

    def __init__(self, public=False, error=None):
        self.public, self.error, self.calls, self.uploaded = public, error, {}, {}

    def __call__(self, token):
        assert token == TOKEN
        return self

    def create_repo(self, repo_id, **settings):
        if self.error:
            raise self.error
        self.calls["create_repo"] = {"repo_id": repo_id, **settings}

    def repo_info(self, repo_id, **settings):
        return SimpleNamespace(private=not self.public)

    def create_branch(self, repo_id, **settings):
        self.calls["create_branch"] = {"repo_id": repo_id, **settings}

    def upload_folder(self, *, folder_path, **settings):
        self.calls["upload_folder"] = settings
        files = (path for path in Path(folder_path).rglob("*") if path.is_file())
        self.uploaded = {path.relative_to(folder_path).as_posix(): path.read_bytes() for path in files}
        return SimpleNamespace(commit_url="https://hub/me/tiny/commit/1")


@pytest.fixture
def hub(monkeypatch):
    hub = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    return hub


def test_a_dry_run_is_the_student_without_what_only_the_run_needs(mine, tmp_path, capsys):
    (mine / ".DS_Store").write_text("")
    (mine / "notes.txt").write_text("to do")
    upload = publish(mine, "me/tiny", dry_run=tmp_path / "upload")
    written = {path.relative_to(tmp_path / "upload").as_posix() for path in (tmp_path / "upload").rglob("*.*")}
    assert written - {"1_Pooling", "2_Dense", "3_Normalize"} == STUDENT_FILES == set(upload.files)
    assert upload.url is None
    assert upload.bytes == sum((tmp_path / "upload" / name).stat().st_size for name in STUDENT_FILES)
    printed = capsys.readouterr().err
    assert all(name in printed for name in STUDENT_FILES)
    assert f"in {len(STUDENT_FILES)} files for me/tiny" in printed
    texts = sentences(5)
    found, own = (SentenceTransformer(str(path), device="cpu") for path in (tmp_path / "upload", mine))
    np.testing.assert_array_equal(found.encode_query(texts), own.encode_query(texts))


@pytest.mark.parametrize("light", [False, True])
def test_a_package_goes_with_every_tower_it_has(light, student, teacher_folder, tmp_path, monkeypatch):
    package = asymmetric(student, tmp_path / "package", light=light).folder
    if light:
        pointer = package / "asymmetric.json"
        known = json.loads(pointer.read_text())
        with pytest.raises(LeafError, match="a folder that nobody else has"):
            publish(package, "me/pair", dry_run=tmp_path / "upload")
        known["teacher"]["model"] = "package:some_teacher/model"  # a name that others can follow
        pointer.write_text(json.dumps(known))
        monkeypatch.setattr("leaf.teacher.model.resolve_model", lambda name: str(_resolved(name, teacher_folder)))
    publish(package, "me/pair", dry_run=tmp_path / "upload")
    model = SentenceTransformer(str(tmp_path / "upload"), device="cpu")
    texts = sentences(5)
    expected = SentenceTransformer(str(student), device="cpu").encode_query(texts)
    np.testing.assert_allclose(model.encode_query(texts), expected, atol=1e-6)
    if not light:
        expected = SentenceTransformer(str(teacher_folder), device="cpu").encode_document(texts)
        np.testing.assert_allclose(model.encode_document(texts), expected, atol=1e-6)
    everything = "".join(path.read_text() for path in (tmp_path / "upload").rglob("*.json") if "token" not in path.name)
    assert str(tmp_path) not in everything
    assert str(teacher_folder.parent) not in everything
    assert 'SentenceTransformer("me/pair")' in (tmp_path / "upload" / "README.md").read_text()


def _resolved(name, teacher_folder):
    return teacher_folder if name.startswith("package:some_teacher") else name


def test_folders_of_this_machine_are_shown_by_their_last_part_and_the_space_stays_the_same(mine, tmp_path):
    config = mine / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": str(tmp_path / "bert")}))
    card = mine / "README.md"
    card.write_text(card.read_text().replace("Not measured.", f"Started from {tmp_path}/bert and /v1/embeddings."))
    publish(mine, "me/tiny", dry_run=tmp_path / "upload")
    assert json.loads((tmp_path / "upload" / "config.json").read_text())["_name_or_path"] == "bert"
    assert "Started from bert and /v1/embeddings." in (tmp_path / "upload" / "README.md").read_text()
    own, shown = Space.load(mine), Space.load(tmp_path / "upload")
    assert Path(own.teacher["model"]).is_absolute()
    assert shown.teacher["model"] == "model"
    assert (shown.id, shown.texts, shown.error) == (own.id, own.texts, own.error)
    np.testing.assert_array_equal(shown.vectors, own.vectors)


def test_a_graph_that_names_a_folder_of_this_machine_stays_here(mine, tmp_path, monkeypatch):
    (mine / "onnx").mkdir()
    (mine / "onnx" / "model.onnx").write_bytes(b"\x08\x0a" + f'File "{mine.parent}/trace.py", line 3'.encode())
    (mine / "onnx" / "manifest.json").write_text(json.dumps({"files": {"fp32": {"file": "model.onnx"}}}))
    monkeypatch.setattr(module, "_check_space", lambda *_: None)
    with pytest.raises(LeafError, match=r"model\.onnx names a folder of this machine"):
        publish(mine, "me/tiny", dry_run=tmp_path / "upload")


def test_onnx_files_go_as_the_manifest_lists_them(mine):
    (mine / "onnx").mkdir()
    with pytest.raises(LeafError, match=r"onnx is not complete \(manifest\.json"):
        hub_files(mine)
    for name in ("model.onnx", "model_quantized.onnx", "left-over.onnx"):
        (mine / "onnx" / name).write_bytes(b"1")
    listed = {"fp32": {"file": "model.onnx"}, "q8": {"file": "model_quantized.onnx"}}
    (mine / "onnx" / "manifest.json").write_text(json.dumps({"files": listed}))
    onnx = {"onnx/manifest.json", "onnx/model.onnx", "onnx/model_quantized.onnx"}
    assert set(hub_files(mine)) == STUDENT_FILES | onnx
    (mine / "onnx" / "model.onnx").unlink()
    with pytest.raises(LeafError, match=r"onnx/model\.onnx is missing"):
        hub_files(mine)


def test_an_exported_student_goes_as_a_folder_for_transformers_js_and_every_graph_is_verified(table, tmp_path):
    folder = tmp_path / "student-table"
    shutil.copytree(table, folder)
    space, encoder = Space.load(folder), load(folder, device="cpu")
    replace(space, vectors=encode_canaries(encoder, space.texts, space.kinds), error=0.0).save(folder)
    export_tiny(folder)
    upload = publish(folder, "me/table", dry_run=tmp_path / "upload")
    js = {"config.json", "tokenizer.json", "tokenizer_config.json", "onnx/model.onnx"}
    assert js | {"onnx/manifest.json"} <= set(upload.files)
    model = SentenceTransformer(str(tmp_path / "upload"), device="cpu")
    onnx = OnnxEncoder(tmp_path / "upload")
    texts = sentences(5)
    np.testing.assert_allclose(onnx.encode_query(texts), model.encode_query(texts), atol=1e-5)

    save_graph(folder / "onnx" / "model.onnx")  # of another table
    with pytest.raises(LeafError, match=r"onnx/model\.onnx is outside its space"):
        publish(folder, "me/table", dry_run=tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_model_outside_its_space_is_not_published(mine, hub):
    space, encoder = Space.load(mine), load(mine, device="cpu")
    # Canaries that the student lands exactly, as a perfect one would.
    replace(space, vectors=encode_canaries(encoder, space.texts, space.kinds), error=0.0).save(mine)
    publish(mine, "me/tiny", token=TOKEN)
    hub.calls.clear()
    weights = mine / "2_Dense" / "model.safetensors"
    save_file({name: -each for name, each in load_file(weights).items()}, weights)
    with pytest.raises(LeafError, match="is outside its space"):
        publish(mine, "me/tiny", token=TOKEN)
    assert not hub.calls


@pytest.mark.parametrize(
    ("card", "match"),
    [
        (None, "has no model card"),
        ("# no front matter\n\n## Usage\n", "the front matter has no library_name"),
        (CARD.replace("- leaf\n", "").replace("tags:\n", ""), "the front matter has no tags"),
        (CARD.replace("tags:", "tags: ["), "the front matter is not what a hub reads"),
        (
            CARD.replace("Not measured.", "[More Information Needed]"),
            r"is not finished \(\[More Information Needed\]\)",
        ),
        (CARD.replace("## Usage", "## Something"), r"is not finished \(no section Usage\)"),
    ],
)
def test_a_card_has_to_be_whole(mine, tmp_path, card, match):
    (mine / "README.md").unlink()
    if card is not None:
        (mine / "README.md").write_text(card)
    with pytest.raises(LeafError, match=match):
        publish(mine, "me/tiny", dry_run=tmp_path / "upload")
    assert not (tmp_path / "upload").exists()


def test_what_cannot_be_uploaded_is_one_line(mine, tmp_path, monkeypatch):
    for name in ("tiny", "me/ti ny", "me/tiny/more"):
        with pytest.raises(LeafError, match="give OWNER/NAME"):
            publish(mine, name, dry_run=tmp_path / "upload")
    with pytest.raises(LeafError, match="is not empty"):
        publish(mine, "me/tiny", dry_run=mine)
    with pytest.raises(LeafError, match="is no student and no package"):
        publish(tmp_path, "me/tiny", dry_run=tmp_path / "upload")
    monkeypatch.setattr(module, "LARGEST_FILE", 1000)
    with pytest.raises(LeafError, match=r"has \d.* kB; a hub serves files below 1.0 kB"):
        publish(mine, "me/tiny", dry_run=tmp_path / "upload")


def test_a_push_makes_the_repository_and_the_branch_and_clears_old_onnx_files(mine, hub, capsys):
    upload = publish(mine, "me/tiny", private=True, branch="v2", token=TOKEN)
    assert upload.url == "https://hub/me/tiny/commit/1"
    assert hub.calls["create_repo"] == {"repo_id": "me/tiny", "repo_type": "model", "private": True, "exist_ok": True}
    assert hub.calls["create_branch"] == {"repo_id": "me/tiny", "branch": "v2", "exist_ok": True}
    assert hub.calls["upload_folder"]["revision"] == "v2"
    assert hub.calls["upload_folder"]["delete_patterns"] == ["onnx/*"]
    assert set(hub.uploaded) == STUDENT_FILES
    assert hub.uploaded["model.safetensors"] == (mine / "model.safetensors").read_bytes()
    assert b'SentenceTransformer("me/tiny")\n' in hub.uploaded["README.md"]
    assert TOKEN not in "".join(capsys.readouterr())


def test_a_private_model_does_not_go_into_a_public_repository(mine, hub):
    hub.public = True
    with pytest.raises(LeafError, match="exists and is public"):
        publish(mine, "me/tiny", private=True, token=TOKEN)
    assert not hub.uploaded


def test_without_a_token_or_a_hub_there_is_one_line_and_never_the_token(mine, hub, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(LeafError, match="no token for the hub"):
        publish(mine, "me/tiny")
    hub.error = OSError(f"401 for Bearer {TOKEN}\nand more")
    with pytest.raises(LeafError, match=r"the hub did not take me/tiny \(401 for Bearer …\)") as refusal:
        publish(mine, "me/tiny", token=TOKEN)
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__
    assert "\n" not in str(refusal.value)
    assert TOKEN not in "".join(capsys.readouterr())


def test_a_published_card_calls_the_model_by_its_name_on_the_hub_in_code_and_only_there():
    card = """student-2l is small.

```python
folder = "runs/a/student-2l"
name = "runs/a/student-2l"  # this folder, or its id on a hub
other = "runs/a/student-2l-wide"
```

`leaf verify runs/a/student-2l/onnx/model.onnx`

<!-- path: runs/a/student-2l -->
"""
    assert (
        published_card(card, "me/tiny")
        == """student-2l is small.

```python
from huggingface_hub import snapshot_download

folder = snapshot_download("me/tiny")
name = "me/tiny"
other = "runs/a/student-2l-wide"
```

`leaf verify me/tiny/onnx/model.onnx`
"""
    )


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("/home/me/models/big/", "big"),
        (r"C:\models\big", "big"),
        ("~/models/big", "big"),
        ("models/big", "models/big"),
        ("owner/big", "owner/big"),
        ("package:some_models/big", "package:some_models/big"),
    ],
)
def test_only_a_path_of_this_machine_is_cut_to_its_last_part(model, shown):
    assert without_folders(model) == shown
