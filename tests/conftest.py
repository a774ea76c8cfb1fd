"""Fixtures shared by all tests, and what no test may do: reach for a network, or take long without saying so."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

from leaf import cli
from tiny import save_bert, save_teacher

os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small only lose time between threads
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for a hub fails at once instead of waiting
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ["LEAF_CACHE"] = tempfile.mkdtemp(prefix="leaf-test-cache-")  # nothing goes to the user's own


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.timeout(3600))
            if not config.getoption("--slow"):
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if "gpu" in item.keywords:
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"), seed=1)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("teacher"), prompts={"query": "ba be: ", "document": ""})


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["leaf", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else (1 if stop.code else 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call
