"""A tiny transformer student and two tiny lookup tables, each with its space and its ONNX files, made once."""

from pathlib import Path

import pytest
from javascript import Found, browser, encode_in_chromium, encode_in_node, missing_packages
from students import PRECISIONS, Case, make


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {case.name: case for case in make(tmp_path_factory.mktemp("students"))}


@pytest.fixture(scope="session")
def in_node(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Vectors of all cases by Transformers.js in node, from one process."""
    if reason := missing_packages():
        pytest.skip(reason)
    return encode_in_node(_models(cases), _jobs(cases), tmp_path_factory.mktemp("node"))


@pytest.fixture(scope="session")
def in_chromium(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Vectors of all cases by Transformers.js in one page of a headless Chromium."""
    if reason := missing_packages():
        pytest.skip(reason)
    if browser() is None:
        pytest.skip("no chromium")
    return encode_in_chromium(_models(cases), _jobs(cases), tmp_path_factory.mktemp("chromium"))


def _models(cases: dict[str, Case]) -> Path:
    return next(iter(cases.values())).folder.parent


def _jobs(cases: dict[str, Case]) -> dict[str, dict[str, object]]:
    return {
        case.name: {"texts": case.prompted, "normalise": case.space.normalised, "precisions": PRECISIONS}
        for case in cases.values()
    }
