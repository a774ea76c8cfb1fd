"""Exported students of one table, whose vectors can be worked out by hand (see `onnx_table`)."""

from pathlib import Path
from typing import Any

import pytest

from leaf.runtime.artifact import FILES
from onnx_table import USAGE, save_graph
from tiny import save_tokenizer


@pytest.fixture(scope="session")
def table_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student folder with the table as fp32 and, the same values, as q8."""
    folder = tmp_path_factory.mktemp("table-student")
    save_tokenizer(folder)
    save_graph(folder / "onnx" / FILES["fp32"])
    save_graph(folder / "onnx" / FILES["q8"], {**USAGE, "precision": "q8"})
    return folder


@pytest.fixture
def changed(table_folder, tmp_path):
    """Saves the student once more with other usage, and returns its ONNX file."""

    def save(**usage: Any) -> Path:
        (tmp_path / "tokenizer.json").write_bytes((table_folder / "tokenizer.json").read_bytes())
        both = {**USAGE, **usage}
        return save_graph(tmp_path / "onnx" / FILES[both["precision"]], both, normalised=both["normalised"])

    return save
