"""Docstrings and signatures on the site as they are written in the code.

Docstrings are plain text with `names` between single backticks and examples set in by four spaces, quotations to
reStructuredText. Annotations are shown by the names that the code uses: `Vectors`, not what numpy makes of it.
"""

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Mapping
from typing import Any, Literal, get_origin

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode


def as_restructured(app: Sphinx, kind: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Has names be names, what else stands between backticks be literal, and lines set in after an empty one, code."""
    made: list[str] = []
    inside = False
    for line in lines:
        if inside and line and not line.startswith("    "):
            inside = False
            if made[-1]:
                made.append("")
        elif not inside and line.startswith("    ") and (not made or not made[-1]) and not in_list(made):
            inside = True
            example = "python" if is_python(lines[len(made) :]) else "none"
            made += [f".. code-block:: {example}", ""]
        made.append(line if inside else re.sub(r"`([^`]+)`(\w?)", literal, line))
    lines[:] = made


def literal(found: re.Match[str]) -> str:
    """One `…` with the letter after it, as reStructuredText has it."""
    text, after = found.groups()
    quoted = f"`{text}`" if re.fullmatch(r"[A-Za-z_][\w.]*", text) else f"``{text}``"
    return f"{quoted}\\ {after}" if after else quoted


def in_list(before: list[str]) -> bool:
    """Whether a paragraph that is set in belongs to the item of a list before it."""
    last = next((line for line in reversed(before) if line), "")
    return last.startswith(("- ", "  "))


def is_python(lines: list[str]) -> bool:
    """Whether the example that `lines` begin with can be read as Python."""
    example = []
    for line in lines:
        if line and not line.startswith("    "):
            break
        example.append(line)
    try:
        ast.parse(textwrap.dedent("\n".join(example)))
    except SyntaxError:
        return False
    return True


def as_written(app: Sphinx, found: Any, bound: bool) -> None:
    """Gives a function its annotations back as the text they are in the code."""
    function = inspect.unwrap(getattr(found, "__func__", found))
    if not inspect.isfunction(function):
        return
    try:
        written = annotations_of(function)
    except (OSError, TypeError, SyntaxError, LookupError):
        return  # not written in Python, or by nobody
    known = function.__globals__
    plain = {name: ast.unparse(Known(known).visit(each)).strip("'") for name, each in written.items() if each}
    # What is no expression keeps Sphinx from looking the names up, and showing what it finds instead of them.
    function.__annotations__ = {**function.__annotations__, **plain, " ": "as written"}
    if signature := getattr(function, "__signature__", None):  # Sphinx has put defaults there as they are written
        every = [
            each.replace(annotation=plain.get(each.name, each.annotation)) for each in signature.parameters.values()
        ]
        function.__signature__ = signature.replace(parameters=every, return_annotation=plain.get("return"))


class Known(ast.NodeTransformer):
    """Says of classes of ours where they are from, since three modules have `Settings`; and which words are taken."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """One name."""
        found = self.names.get(node.id)
        if inspect.isclass(found) and found.__module__.startswith("leaf."):
            return ast.Name(f"~{found.__module__}.{found.__qualname__}")  # the site shows what follows the last dot
        return ast.Name(str(found).removeprefix("typing.")) if get_origin(found) is Literal else node


def annotations_of(function: Any) -> dict[str, ast.expr | None]:
    """The annotations in a function's source; of a dataclass's `__init__`, which has none, those of its fields."""
    owner = sys.modules[function.__module__].__dict__.get(function.__qualname__.partition(".")[0])
    made = function.__name__ == "__init__" and dataclasses.is_dataclass(owner) and "__init__" not in source_of(owner)
    (node,) = ast.parse(source_of(owner if made else function)).body
    if isinstance(node, ast.ClassDef):
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
        return {each.target.id: each.annotation for each in fields if isinstance(each.target, ast.Name)}
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef), function
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    return {each.arg: each.annotation for each in every if each} | {"return": node.returns}


def source_of(found: Any) -> str:
    """The source of a class or function, as if it stood alone."""
    return textwrap.dedent(inspect.getsource(found))


def without_fields(app: Sphinx, kind: str, name: str, found: Any, options: Any, *signature: str) -> Any:
    """A pydantic model's constructor takes its fields, which docs/recipe.md has in tables; nothing is shown here."""
    return ("", None) if kind == "class" and hasattr(found, "model_fields") else None


def by_last_name(app: Sphinx, env: BuildEnvironment, link: addnodes.pending_xref, shown: nodes.Element) -> Any:
    """Where `LeafError` leads: to what is documented in some module under that name, if only one is."""
    wanted = link.get("reftarget", "")
    if link.get("refdomain") != "py" or not re.fullmatch(r"[A-Z]\w+", wanted):
        return None
    every = env.domains["py"].get_objects()
    kinds = ("class", "exception", "data", "type")
    found = [each for each in every if each[2] in kinds and each[0].rpartition(".")[2] == wanted]
    if len(found) != 1:
        return None
    ((name, _, _, page, anchor, _),) = found
    return make_refnode(app.builder, link["refdoc"], page, anchor, shown, name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", as_restructured)
    app.connect("autodoc-before-process-signature", as_written)
    app.connect("autodoc-process-signature", without_fields)
    app.connect("missing-reference", by_last_name)
    return {"parallel_read_safe": True}
