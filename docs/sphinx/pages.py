"""Which files are pages, in what order, and where on the site: at their own paths, a README as its folder's index."""

import itertools
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.project import Project
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).parents[2]
PAGES = ["*.md", "docs/**.md", "results/**.md"]
NO_PAGES = [".*", "runs", "local", "site", "src", "tests", "**/node_modules", "docs/sphinx"]
#: The navigation: the first pages of a part by name, where they are there, then the others of its folder.
NAVIGATION = {
    "Guides": ["docs/guides/start.md", "docs/guides/own-corpus.md", "docs/guides/search.md", "docs/guides/*.md"],
    "Concepts": ["docs/architecture.md", "docs/training.md", "docs/evaluation.md", "docs/deployment.md",
                 "docs/sweeps.md", "docs/speed.md", "docs/paper.md"],
    "Studies": ["results/README.md", "results/*/README.md", "results/*/*.md"],
    "Reference": ["docs/recipe.md", "docs/cli.md", "docs/api/README.md", "docs/*.md"],
    "Project": ["CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "LOG.md", "*.md"],
}  # fmt: skip
API = ["docs/api/leaf.md", "docs/api/encoders.md", "docs/api/*.md"]


def in_order(patterns: list[str], taken: set[Path]) -> list[str]:
    """Names of the pages that `patterns` find, each once, without those `taken`, to which they are added."""
    found = [path for each in patterns for path in sorted(ROOT.glob(each)) if path.is_file()]
    new = [path for path in dict.fromkeys(found) if path not in taken]
    taken.update(new)
    return [address(path.relative_to(ROOT)) for path in new]


def navigation() -> dict[str, list[str]]:
    """The parts of the navigation with their pages; the home page is in none."""
    taken = {ROOT / "README.md"}
    parts = {"API": in_order(["docs/api/README.md", *API], taken)}
    taken.discard(ROOT / "docs/api/README.md")
    parts["API"].pop(0)
    return parts | {part: in_order(patterns, taken) for part, patterns in NAVIGATION.items()}


def address(path: Path) -> str:
    """The page `path`, relative to the root, as it is called on the site, without `.html`."""
    name = path.with_suffix("").as_posix()
    return name.removesuffix("README") + "index" if path.stem == "README" else name


class Pages(Project):
    """The pages of the repository."""

    def path2doc(self, filename: Any) -> str | None:
        """The page's name on the site; None where a file is no page."""
        name = super().path2doc(filename)
        return name if name is None or not name.endswith("README") else name.removesuffix("README") + "index"


def commands() -> str:
    """Every verb of the command line, from its own help, as Markdown."""
    import typer
    from typer.cli import get_docs_for_click

    from leaf.cli import app

    command = typer.main.get_command(app)
    context = command.make_context("leaf", [], resilient_parsing=True)
    return get_docs_for_click(obj=command, ctx=context, name="leaf").partition("\n")[2]


def toctree(caption: str, pages: list[str]) -> str:
    """A part of the navigation, which the page itself does not show."""
    return "\n".join(
        ["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *(f"/{each}" for each in pages), "```", ""]
    )


def complete(app: Sphinx, page: str, source: list[str]) -> None:
    """Adds to a page what is made for the site."""
    parts = navigation()
    api = parts.pop("API")
    if page == "index":
        source[0] += "".join(itertools.starmap(toctree, parts.items()))
    elif page == "docs/api/index":
        source[0] += toctree("Python API", api)
    elif page == "docs/cli":
        source[0] += commands()


def use_pages(app: Sphinx) -> None:
    """Has Sphinx name pages as `Pages` does."""
    app.project = app.env.project = Pages(app.srcdir, app.config.source_suffix)


class Intervals(SphinxTransform):
    """Keeps `98.6–100.9` on one line, which a table would break after the dash."""

    default_priority = 900

    def apply(self, **arguments: Any) -> None:
        """Joins the words of a page's tables."""
        for cell in self.document.findall(nodes.entry):
            for text in list(cell.findall(nodes.Text)):
                if not isinstance(text.parent, nodes.literal):
                    text.parent.replace(text, nodes.Text(re.sub(r"(?<=\d)–(?=\d)", "–\u2060", text)))


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", use_pages)
    app.connect("source-read", complete)
    app.add_transform(Intervals)
    return {"parallel_read_safe": False}
