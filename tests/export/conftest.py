"""Tiny students with spaces, of the tiny teacher."""

from pathlib import Path

import pytest

from leaf.teacher.model import SentenceTransformerEncoder
from tiny_student import make_student


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Path:
    """Two of the teacher's layers, cut after 24 tokens; prompts are the teacher's."""
    teacher = SentenceTransformerEncoder(str(teacher_folder), device="cpu")
    return make_student(tmp_path_factory.mktemp("runs") / "student-2l", teacher)


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path) -> Path:
    """A lookup table whose rows are as wide as the teacher's vectors."""
    teacher = SentenceTransformerEncoder(str(teacher_folder), device="cpu")
    return make_student(tmp_path_factory.mktemp("runs") / "student-table", teacher, layers=())
