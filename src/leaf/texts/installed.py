"""The documentation of installed software as training texts: real English on every machine, with no download.

A docstring's first sentence reads like a query ("Return the mean of a sample.") and the rest like the
document that answers it, so every definition is also a (query, document) pair whose relevance nobody had to
judge. Packages are read from source with `ast` and never imported; only compiled modules of the standard
library are, having no source to read.

    for entry in entries(["numpy"]):
        print(entry.name, entry.summary, entry.body, sep=" | ")
"""

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import platform
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from pathlib import Path
from typing import NamedTuple

from leaf.errors import LeafError

MIN_SUMMARY_WORDS = 3
MAX_SUMMARY_CHARACTERS = 250
MIN_BODY_WORDS = 6
#: About 250 tokens, so that a teacher with a short window sees all of it. Cut at a sentence end.
MAX_BODY_CHARACTERS = 1000

#: Folders and modules whose docstrings are about tests, or are a copy of another project's.
_SKIPPED_PARTS = {
    "tests",
    "test",
    "testing",
    "conftest",
    "benchmarks",
    "_vendor",
    "vendor",
    "externals",
    "examples",
}
#: 2,500 files that are variations of one another: they would drown the rest and take half of the time.
_SKIPPED_PACKAGES = {"transformers.models"}
#: Applications and jokes rather than libraries; `readline` writes to the terminal when it is imported.
_SKIPPED_STDLIB = {
    "antigravity", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "readline", "test", "this", "turtledemo",
}  # fmt: skip
#: Sections of a docstring that hold code, links or lists of names rather than prose.
_SKIPPED_SECTIONS = {
    "example", "examples", "example usage", "usage", "references", "reference", "see also", "seealso",
    "methods", "doctests", "shape", "inputs", "attributes", "author", "authors", "citation",
}  # fmt: skip
#: Directives whose content is prose; all others (versionadded, math, code-block, …) go with their content.
_PROSE_DIRECTIVES = {"note", "warning", "important", "tip", "hint", "caution", "attention", "deprecated"}

_FENCE = re.compile(r"^[ \t]*(```|~~~).*?^[ \t]*\1[ \t]*$", re.MULTILINE | re.DOTALL)
_UNDERLINE = re.compile(r"^\s*([-=~^*#\"'`+_])\1{2,}\s*$")
_TABLE = re.compile(r"^\s*(\||[+=-]{2,}[+= -]*$)")
_SECTION = re.compile(r"^([A-Z][\w /-]{2,30}):{1,2}$")
_DIRECTIVE = re.compile(r"^\s*\.\. +(?:([\w:-]+?):: *|[\[_|])")
#: (a character it needs, pattern, what stays): roles and code spans, fields, links, emphasis, templates.
_MARKUP = (
    ("`", re.compile(r"(?::[a-zA-Z][\w:+-]*:)?`{1,2}[~!]?([^`<]+?)(?:\s*<[^`>]*>)?`{1,2}_{0,2}"), r"\1"),
    (":", re.compile(r":(?:param|arg|keyword|type|raises?|rtype|returns?|var|ivar)\b ?([^:\n]*):"), r"\1:"),
    ("[", re.compile(r"(?<!\w)\[([^][]+)\]\([^)\s]*\)|(?<![\w[])\[([A-Za-z_][\w.]*)\](?!\w)"), r"\1\2"),
    ("*", re.compile(r"(?<![\w*])(\*{1,2})(\w[^*]*?)\1(?![\w*])"), r"\2"),
    ("%", re.compile(r"%\(\w+\)s"), ""),
)
_PARAMETER = re.compile(r"^\*{0,2}\w+(, \w+)*( ?\([^)]*\) ?:| :) ")
_SIGNATURE = re.compile(r"^[\w.*]+\s?\(.*?\)(\s*(->|=|--).*)?$|^.*\s->\s.*$")
_NOT_WORDS = re.compile(r"[^a-zA-Z ]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[*]?[A-Z0-9])")
_ABBREVIATION = re.compile(r"(?:\b[A-Za-z]|\b(?:e\.g|i\.e|etc|vs|cf|al|approx|resp|Eq|Fig|Sec|no|Ref|Refs|St|Dr))\.$")


#: Marks a title among paragraphs; documentation does not contain this character.
_TITLE = "\x01"


class Entry(NamedTuple):
    """One docstring in two parts; either is "" where there is nothing worth keeping, never both."""

    name: str
    """Qualified name (`pathlib.Path.glob`), unique in one reading; without the private modules in between."""
    summary: str
    body: str


class Module(NamedTuple):
    """A source file and the name that people know its definitions by."""

    path: Path
    name: str


def entries(packages: Sequence[str]) -> Iterator[Entry]:
    """Every docstring of the standard library and of `packages` (import names), always in the same order."""
    seen: set[str] = set()
    for name, doc in _documented(packages):
        if name in seen:  # another branch of an `if`, or a private module that repeats a public one
            continue
        seen.add(name)
        summary, body = split(doc)
        if summary or body:
            yield Entry(name, summary, body)
    yield from _topics()


def versions(packages: Sequence[str]) -> dict[str, str]:
    """What the texts depend on: the versions of Python and of the distributions that `packages` come from."""
    distributions = importlib.metadata.packages_distributions()
    found = {"python": platform.python_version()}
    for package in sorted(set(packages)):
        _spec(package)
        for distribution in sorted(set(distributions.get(package, []))):
            found[distribution] = importlib.metadata.version(distribution)
    return found


def split(doc: str) -> tuple[str, str]:
    """(summary, body) of a docstring: its first sentence, and the prose after it.

    Code, doctests, tables and markup are left out. A part too short to mean anything is "", and a first
    sentence that is too long for a query, or describes a parameter, opens the body instead.
    """
    paragraphs = _paragraphs(inspect.cleandoc(doc))
    # Docstrings of compiled functions begin with a call: "dict(**kwargs) -> new dictionary".
    while paragraphs and _SIGNATURE.match(paragraphs[0]):
        del paragraphs[0]
    if not paragraphs:
        return "", ""
    sentences = list(_sentences(paragraphs[0]))
    summary, rest = sentences[0], [*sentences[1:], *paragraphs[1:]]
    if len(summary) > MAX_SUMMARY_CHARACTERS or _PARAMETER.match(summary):
        summary, rest = "", [summary, *rest]
    # Some open the description with the summary once more, which would make the pair too easy to match.
    rest = [part.removeprefix(summary).strip() for part in rest]
    body = _cut(" ".join(part for part in rest if part))
    return (
        summary if len(summary.split()) >= MIN_SUMMARY_WORDS and _is_prose(summary) else "",
        body if len(body.split()) >= MIN_BODY_WORDS and _is_prose(body) else "",
    )


def modules(packages: Sequence[str]) -> list[Module]:
    """The source files that `entries` reads, in its order. Raises `LeafError` for a package that is not installed."""
    return [*_standard()[0], *_installed(packages)]


def docstrings(module: Module) -> Iterator[tuple[str, str]]:
    """(name, docstring) of a module and of the public definitions in it; none of a file this Python cannot read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's docstrings
        try:
            tree = ast.parse(module.path.read_bytes())
        except (SyntaxError, ValueError):  # templates and sources for another Python
            return
    yield from _definitions(tree, module.name)


def _documented(packages: Sequence[str]) -> Iterator[tuple[str, str]]:
    own = _installed(packages)  # first: a typo fails at once
    standard, compiled = _standard()
    for module in standard:
        yield from docstrings(module)
    yield from _compiled(compiled)
    for module in own:
        yield from docstrings(module)


def _standard() -> tuple[list[Module], list[str]]:
    """The source files of the standard library, and the names of its modules that may be compiled."""
    library = Path(sysconfig.get_path("stdlib"))
    found: list[Module] = []
    compiled = []
    for name in sorted(sys.stdlib_module_names - _SKIPPED_STDLIB):
        source = library / f"{name}.py"
        folder = library / name
        if source.is_file() and not name.startswith("_"):
            found.append(Module(source, name))
        elif folder.is_dir() and not name.startswith("_"):
            found += _package(folder, name)
        elif not name.startswith(("_test", "_xx")):
            compiled.append(name)
    return found, compiled


def _installed(packages: Sequence[str]) -> list[Module]:
    found: list[Module] = []
    for package in sorted(set(packages)):
        spec = _spec(package)
        for folder_name in spec.submodule_search_locations or ():
            found += _package(Path(folder_name), package)
        if not spec.submodule_search_locations and spec.origin:
            found.append(Module(Path(spec.origin), package))
    return found


def _spec(package: str) -> ModuleSpec:
    # A dotted name would make find_spec import the parent.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None:
        raise LeafError(
            f"installed-docs: no package '{package}' is installed; `packages` takes top-level import names, "
            'for example packages = ["numpy", "sklearn"]'
        )
    return spec


def _package(folder: Path, name: str) -> Iterator[Module]:
    for path in sorted(folder.iterdir()):
        part = path.stem
        if part in _SKIPPED_PARTS or part.startswith("test_") or f"{name}.{part}" in _SKIPPED_PACKAGES:
            continue
        private = part.startswith("_")
        # scipy.optimize.minimize is defined in scipy.optimize._minimize; people know it by the first name.
        public = name if private else f"{name}.{part}"
        if path.suffix == ".py":
            yield Module(path, public)
        # Private packages hold internals that nobody looks for, but numpy._core holds numpy.
        elif (part == "_core" or not private) and (path / "__init__.py").is_file():
            yield from _package(path, public)


def _definitions(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Docstrings of a module or class and of the public definitions in it, without those inside functions."""
    if isinstance(node, ast.Module | ast.ClassDef):
        doc = ast.get_docstring(node, clean=False)
        if doc:
            yield name, doc
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(child, clean=False)
            if doc and not child.name.startswith("_"):
                yield f"{name}.{child.name}", doc
        elif isinstance(child, ast.ClassDef):
            if not child.name.startswith("_"):
                yield from _definitions(child, f"{name}.{child.name}")
        elif isinstance(child, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _definitions(child, name)


def _compiled(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or not (spec.origin == "built-in" or str(spec.origin).endswith(tuple(EXTENSION_SUFFIXES))):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about modules that later versions of Python drop
                module = importlib.import_module(name)
        except ImportError:  # built without its C library, such as _tkinter
            continue
        yield from _members(module, name.lstrip("_"))


def _members(owner: object, name: str) -> Iterator[tuple[str, str]]:
    doc = getattr(owner, "__doc__", None)
    if isinstance(doc, str):
        yield name, doc
    for key, member in sorted(vars(owner).items()):
        if key.startswith("_"):
            continue
        if isinstance(member, type):
            if not isinstance(owner, type):  # nested classes are aliases, and could refer to each other
                yield from _members(member, f"{member.__module__.lstrip('_')}.{member.__qualname__}")
        elif inspect.isroutine(member) or inspect.isdatadescriptor(member):
            doc = member.__doc__
            if isinstance(doc, str):
                yield f"{name}.{key}", doc


def _topics() -> Iterator[Entry]:
    """The language reference that `help("for")` shows: each section's first paragraph answers its title."""
    from pydoc_data.topics import topics

    for topic, text in sorted(topics.items()):
        title = ""
        for number, paragraph in enumerate(_paragraphs(text, keep_titles=True)):
            if paragraph.startswith(_TITLE):
                title = paragraph.removeprefix(_TITLE)
                continue
            body = _cut(paragraph)
            if len(body.split()) >= MIN_BODY_WORDS and _is_prose(body):
                summary = title if len(title.split()) >= MIN_SUMMARY_WORDS else ""
                yield Entry(f"topics.{topic}.{number}", summary, body)
                title = ""


def _paragraphs(text: str, keep_titles: bool = False) -> list[str]:
    """The prose of reStructuredText, numpy, Google or Markdown documentation, one string per paragraph."""
    kept: list[str] = []
    skip_deeper_than: int | None = None  # inside a literal block or directive introduced at this indentation
    skip_section = False
    for block in re.split(r"\n[ \t]*\n", _FENCE.sub("", text.expandtabs())):
        lines = [line for line in block.split("\n") if line.strip()]
        if not lines:
            continue
        indent = _indent(lines[0])
        if skip_deeper_than is not None and indent > skip_deeper_than:
            continue
        skip_deeper_than = None
        title, lines = _title(lines)
        if title:
            skip_section = title.lower() in _SKIPPED_SECTIONS
            if keep_titles:
                kept.append(_TITLE + _inline(title))
        if skip_section:
            continue
        directive = _DIRECTIVE.match(lines[0]) if lines else None
        if directive:
            if directive[1] not in _PROSE_DIRECTIVES:
                skip_deeper_than = indent
                lines = [line for line in lines[1:] if _indent(line) <= indent]
            else:
                lines[0] = lines[0][directive.end() :] if directive[1] != "deprecated" else ""
        lines = [line for line in _before_doctest(lines) if not (_TABLE.match(line) or _UNDERLINE.match(line))]
        paragraph = _inline(" ".join(lines)).removeprefix("* ").removeprefix("- ")
        if paragraph.endswith("::"):
            skip_deeper_than = min(indent, _indent(lines[-1]))
            paragraph = paragraph[:-1]
        if paragraph:
            kept.append(paragraph)
    return kept


def _title(lines: list[str]) -> tuple[str, list[str]]:
    """The section title at the head of a block, "" if there is none, and the lines after it."""
    if len(lines) > 1 and _UNDERLINE.match(lines[1]) and not _UNDERLINE.match(lines[0]):
        return lines[0].strip(), lines[2:]
    section = _SECTION.match(lines[0].strip())
    return (section[1], lines[1:]) if section else ("", lines)


def _before_doctest(lines: list[str]) -> list[str]:
    prompts = (number for number, line in enumerate(lines) if line.lstrip().startswith((">>>", "In [", "$ ")))
    return lines[: next(prompts, len(lines))]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _inline(text: str) -> str:
    """`text` without inline markup, in which white space is single spaces."""
    for mark, pattern, kept in _MARKUP:
        if mark in text:  # spares most texts most of the patterns
            text = pattern.sub(kept, text)
    return " ".join(text.split())


def _sentences(text: str) -> Iterator[str]:
    start = 0
    for end in _SENTENCE_END.finditer(text):
        if not _ABBREVIATION.search(text, start, end.start()):
            yield text[start : end.end()].strip()
            start = end.end()
    yield text[start:]


def _cut(text: str) -> str:
    """`text` up to the last sentence end within `MAX_BODY_CHARACTERS`, or the last word if none ends."""
    if len(text) <= MAX_BODY_CHARACTERS:
        return text
    window = text[: MAX_BODY_CHARACTERS + 1]
    ends = [match.start() for match in _SENTENCE_END.finditer(window)]
    return window[: ends[-1]] if ends else window.rsplit(" ", 1)[0]


def _is_prose(text: str) -> bool:
    """Whether most characters are letters or spaces: false for formulas, grammars and tables of values."""
    return len(_NOT_WORDS.sub("", text)) >= 0.8 * len(text)
