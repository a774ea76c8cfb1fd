"""The model card: what it says of every runtime is tried, on a tiny student, as it stands on the page."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sentence_transformers import SentenceTransformer

from leaf.export.publish import check_card, published_card
from leaf.recipe import Recipe
from leaf.report import write_report
from leaf.runtime import OnnxEncoder
from leaf.space import Space
from leaf.teacher.model import SentenceTransformerEncoder
from serving import running
from tiny_export import export_tiny
from tiny_student import make_student

QUERIES = ["how do plants make sugar", "who wrote the first computer program"]
STUDENTS = {"student-2l": (0, 2), "student-table": ()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Path:
    """The folder that holds `runs/tiny`: a run whose students are real, exported, and not scored."""
    home = tmp_path_factory.mktemp("home")
    teacher = SentenceTransformerEncoder(str(teacher_folder), device="cpu")
    run = home / "runs" / "tiny"
    manifests: dict[str, dict[str, Any]] = {"texts": {"sources": {}}, "scores": {"datasets": []}}
    for name, layers in STUDENTS.items():
        student = make_student(run / name, teacher, layers=layers)
        export_tiny(student)
        manifests[name] = {
            "layers": len(layers),
            "parameters": 1000,
            "error": 0.4,
            "max_length": 24 if layers else None,
        }
    for name, manifest in manifests.items():
        (run / name).mkdir(exist_ok=True)
        (run / name / "manifest.json").write_text(json.dumps({"fingerprint": name, **manifest}))
    return home


@pytest.fixture(scope="module")
def recipe(teacher_folder: Path) -> Recipe:
    return Recipe.parse(
        {
            "name": "tiny",
            "teacher": {"model": str(teacher_folder), "prompts": {"query": "ba be: "}},
            "students": [{"name": name, "layers": list(layers)} for name, layers in STUDENTS.items()],
            "texts": [{"source": "installed-docs"}],
        }
    )


@pytest.fixture
def cards(finished: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The card of each student, and the place from which its paths hold."""
    monkeypatch.chdir(finished)
    write_report(Path("runs/tiny"), recipe)
    return {name: Path(f"runs/tiny/{name}/README.md").read_text() for name in STUDENTS}


def blocks(card: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", card, re.DOTALL)


@pytest.mark.parametrize(("name", "num_blocks"), [("student-2l", 7), ("student-table", 6)])
def test_every_python_snippet_runs_as_it_stands_and_stays_in_the_space(
    cards: dict[str, str], name: str, num_blocks: int, teacher_folder: Path
) -> None:
    student = SentenceTransformer(f"runs/tiny/{name}", device="cpu")
    expected = student.encode_query(QUERIES)
    found = blocks(cards[name])
    assert len(found) == num_blocks  # a table has no Transformers class
    names: dict[str, Any] = {}
    for block in found:
        if "continued" not in cards[name].split(block)[0].splitlines()[-3]:
            names.clear()  # every other snippet stands for itself
        if "openai" in block:
            with running(OnnxEncoder(f"runs/tiny/{name}")) as url:
                exec(block.replace("http://127.0.0.1:8000", url), names)
        else:
            exec(block, names)
        np.testing.assert_allclose(np.stack(list(names["query_vectors"])), expected, atol=2e-5)
        if "document_vectors" in names:
            documents = SentenceTransformer(str(teacher_folder), device="cpu").encode_document(names["documents"])
            np.testing.assert_allclose(names["document_vectors"], documents, atol=2e-5)


def test_files_of_the_export_are_listed_with_what_rounding_adds_to_distilling(cards: dict[str, str]) -> None:
    for card in cards.values():
        assert "| (PyTorch) | fp32 | | 0.4123 | | | |" in card
        assert "| `onnx/model.onnx` | fp32 | 123.5 kB | 0.4134 | +0.0011 | 0.9998 | 0.9997 |" in card
        assert "vectors of 64 canary texts" in card


def test_front_matter_and_tags_say_where_the_model_runs(cards: dict[str, str], finished: Path) -> None:
    for name, card in cards.items():
        matter = yaml.safe_load(card.split("---\n")[1])
        assert {"onnx", "transformers.js", "sentence-transformers", "leaf"} <= set(matter["tags"])
        assert "license" not in matter
        check_card(finished / "runs" / "tiny" / name / "README.md")
        assert Space.load(finished / "runs" / "tiny" / name).id in card


def test_a_student_that_was_not_exported_has_no_onnx_in_its_card(
    finished: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    for name in STUDENTS:
        shutil.rmtree(tmp_path / "runs" / "tiny" / name / "onnx")
    monkeypatch.chdir(tmp_path)
    write_report(Path("runs/tiny"), recipe)
    card = Path("runs/tiny/student-2l/README.md").read_text()
    assert not re.search("onnx|fastembed|Transformers.js|openai", card, re.IGNORECASE)
    assert len(blocks(card)) == 3


def test_on_the_hub_the_snippets_fetch_the_model_by_its_name(
    cards: dict[str, str], finished: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = published_card(cards["student-2l"], "me/tiny")
    assert "runs/tiny" not in card
    assert str(teacher_folder) not in card
    assert "AutoTokenizer.from_pretrained(name), AutoModel" in card
    assert 'const name = "me/tiny";\n' in card
    assert "`leaf verify me/tiny`" in card
    raw = next(block for block in blocks(card) if "onnxruntime.InferenceSession" in block)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name: "runs/tiny/student-2l" if name == "me/tiny" else ""
    )
    names: dict[str, Any] = {}
    exec(raw, names)
    expected = SentenceTransformer("runs/tiny/student-2l", device="cpu").encode_query(QUERIES)
    np.testing.assert_allclose(names["query_vectors"], expected, atol=2e-5)
