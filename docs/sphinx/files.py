"""Files that pages link to and that are no pages: code, recipes and records, each as a page with line numbers.

A link that leads to no file is left to Sphinx, which warns of it; `./run docs` takes warnings for errors.
"""

import html
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

#: Larger files, and those that are no text, are handed out as they are.
MOST_BYTES = 200_000
AS_THEY_ARE = {".svg", ".png", ".gz", ".npy", ".parquet", ".safetensors", ".html"}


class LinkedFiles(SphinxTransform):
    """Has links to files lead to their pages."""

    default_priority = 1

    def apply(self, **arguments: Any) -> None:
        """Changes links of one page."""
        for link in list(self.document.findall(self.is_ours)):
            _, full = self.env.relfn2path(link["reftarget"].partition("#")[0], self.env.docname)
            page = file_page(self.app, Path(full))
            address = self.app.builder.get_relative_uri(self.env.docname, page)
            link.replace_self(nodes.reference("", "", *link.children, refuri=address, internal=True))

    def is_ours(self, link: nodes.Node) -> bool:
        """Whether a node is a link to a text file or to a folder."""
        if not isinstance(link, addnodes.download_reference | addnodes.pending_xref) or link.get("reftype") != "myst":
            return False
        if link.get("refdomain") == "doc" or not link["reftarget"] or link["reftarget"].startswith("#"):
            return False
        full = Path(self.env.relfn2path(link["reftarget"].partition("#")[0], self.env.docname)[1])
        if full.is_dir():
            return True
        return full.is_file() and full.suffix not in AS_THEY_ARE and full.stat().st_size <= MOST_BYTES


def file_page(app: Sphinx, path: Path) -> str:
    """The name of the page of a file or a folder; the page will be written."""
    name = path.relative_to(app.srcdir).as_posix()
    app.env.leaf_files[name] = path
    # A dot would make `x.json.html`; a file `results` beside a folder of that name is not to be feared.
    return f"{name}/files" if path.is_dir() else name


def file_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The pages that links lead to; those of folders ask for those of their files."""
    done: set[str] = set()
    while left := sorted(app.env.leaf_files.keys() - done):
        for name in left:
            done.add(name)
            path = app.env.leaf_files[name]
            body = folder_body(app, path) if path.is_dir() else file_body(app, path)
            title = html.escape(name + "/" * path.is_dir())
            yield file_page(app, path), {"title": title, "body": f"<h1>{title}</h1>\n{body}"}, "page.html"


def file_body(app: Sphinx, path: Path) -> str:
    """A file, highlighted, with an anchor for each line."""
    text = path.read_text(encoding="utf-8")
    try:
        language = get_lexer_for_filename(path.name).aliases[0]
    except ClassNotFound:
        language = "none"
    return app.builder.highlighter.highlight_block(
        text, language, force=True, linenos="inline", lineanchors="L", anchorlinenos=True
    )


def folder_body(app: Sphinx, path: Path) -> str:
    """The files and folders of a folder, as links."""
    here, rows = file_page(app, path), []
    for each in sorted(path.iterdir()):
        if each.name.startswith((".", "__")) or each.name == "node_modules":
            continue
        page = app.env.path2doc(each)
        if page not in app.env.all_docs:
            text = each.is_dir() or (each.suffix not in AS_THEY_ARE and each.stat().st_size <= MOST_BYTES)
            page = file_page(app, each) if text else None
        shown = html.escape(each.name + "/" * each.is_dir())
        address = app.builder.get_relative_uri(here, page) if page else None
        rows.append(f'<li><a href="{address}">{shown}</a></li>' if address else f"<li>{shown}</li>")
    return "<ul>\n" + "\n".join(rows) + "\n</ul>"


def source_of(app: Sphinx, info: dict[str, str]) -> str | None:
    """Where the code of an object lies, seen from the pages of the API, which all are in docs/api."""
    found: Any = importlib.import_module(info["module"])
    for name in info["fullname"].split("."):
        found = getattr(found, name, None)
    try:
        found = inspect.unwrap(getattr(found, "fget", None) or found)
        path, line = Path(inspect.getsourcefile(found) or ""), inspect.getsourcelines(found)[1]
    except (TypeError, OSError):
        return None  # a constant or a field
    return f"../../{file_page(app, path)}.html#L-{line}"


def begin(app: Sphinx) -> None:
    """An empty list of files, and where the API's links to source lead."""
    app.env.leaf_files = {}
    app.config.linkcode_resolve = lambda domain, info: source_of(app, info)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", begin)
    app.connect("html-collect-pages", file_pages)
    app.add_transform(LinkedFiles)
    return {"parallel_read_safe": False}
