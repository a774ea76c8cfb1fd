"""The import rule of the design: stages know earlier stages only, and the light parts never load torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import leaf

SOURCE = Path(leaf.__file__).parent
STAGES = ["texts", "teacher", "student", "evaluation", "export", "report"]
#: What `evaluation` may not know: it gets encoders, and neither makes nor opens them.
UNKNOWN_TO_EVALUATION = ["texts", "teacher", "student", "loading", "pipeline"]
#: The only ones that import `report`.
REPORTERS = ["report", "pipeline", "cli"]
#: Where no line imports torch.
LIGHT = ["runtime", "search"]
MODULES = sorted(SOURCE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def stage_of(module: str) -> str:
    """The part of `leaf` that a name comes from: `from leaf import load` is of `loading`."""
    parts = module.split(".")
    if len(parts) < 2 or parts[0] != "leaf":
        return ""
    if parts[1] in leaf.__all__ and hasattr(public := getattr(leaf, parts[1]), "__module__"):
        return public.__module__.split(".")[1]
    return parts[1]


@pytest.mark.parametrize("name", sorted({*STAGES, *UNKNOWN_TO_EVALUATION, *REPORTERS, *LIGHT}))
def test_every_name_in_the_rules_is_a_module(name):
    assert (SOURCE / f"{name}.py").is_file() or (SOURCE / name / "__init__.py").is_file()


def test_a_public_name_counts_as_the_module_that_it_is_from():
    assert stage_of("leaf.load") == stage_of("leaf.loading.load") == "loading"
    assert stage_of("leaf.__version__") == "__version__"
    assert stage_of("torch.nn") == ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_stage_imports_earlier_stages_only(path):
    own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    used = {stage_of(module) for module in imports(path)}
    if own in STAGES:
        later = STAGES[STAGES.index(own) + 1 :]
        assert not used & set(later), f"{own} imports a later stage"
    if own == "evaluation":
        assert not used & set(UNKNOWN_TO_EVALUATION), "evaluation knows only Encoder"
    if own not in REPORTERS:
        assert "report" not in used, "nothing imports report"
    if own in LIGHT:
        heavy = {module.split(".")[0] for module in imports(path)} & {"torch", "transformers", "sentence_transformers"}
        assert not heavy


@pytest.mark.parametrize(
    "statement",
    [
        "import leaf",
        "import leaf.cli",
        "import leaf.recipe; leaf.recipe.shipped_recipes()",
        "import leaf.evaluation.evaluate",
        "import leaf.runtime.speed",
        "import leaf.report",
        "import leaf.report.studies",
        "import leaf.space",
        "import leaf.loading",
        "import leaf.verifying",
        "import leaf.light",
        "import leaf.runtime.encoder",
        "import leaf.runtime.remote",
        "import leaf.runtime.server",
        "from leaf.runtime import OnnxEncoder, RemoteEncoder",
        "from leaf import Recipe, AsymmetricEncoder",
    ],
)
def test_the_light_parts_load_no_torch(statement):
    check = f"{statement}; import sys; sys.exit(bool({{'torch', 'transformers', 'datasets'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", check], cwd=SOURCE.parent, check=False).returncode == 0


def test_the_public_names_are_the_few_that_are_promised():
    assert leaf.__all__ == ["AsymmetricEncoder", "Recipe", "__version__", "distill", "load"]
    assert all(getattr(leaf, name) for name in leaf.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = leaf.nothing
