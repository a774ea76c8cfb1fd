"""The documentation as a static site, for `./run docs`.

Pages stay where they are and read well there as plain Markdown: the repository's root is the source folder, and what
only a site needs is made while it is built.

pages.py       which files are pages, their order, and their addresses; the command line reference
files.py       what pages link to that is no page, such as code and records, as pages of their own
docstrings.py  docstrings and signatures as they are written in the code
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]

import pages  # noqa: E402

import leaf  # noqa: E402

project, release, root_doc = "leaf", leaf.__version__, "index"
extensions = [
    "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.linkcode", "pages", "files", "docstrings",
]  # fmt: skip
include_patterns, exclude_patterns = pages.PAGES, pages.NO_PAGES
smartquotes = False  # of `--option`, a dash; pages have the quotes that they mean
myst_heading_anchors = 4
highlight_language = "none"
# Typer's Markdown leaves out a level of headings. A name in a docstring may be that of two documented things.
suppress_warnings = ["myst.header", "ref.python"]

default_role = "py:obj"  # of `names` in docstrings: a link where one of that name is documented
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

html_theme, html_title = "furo", "leaf"
html_static_path, html_css_files = ["static"], ["style.css"]
html_copy_source = html_show_copyright = html_show_sphinx = html_use_index = False
# Furo's fonts are those of the reader's machine, and its scripts and styles lie in the site.
pygments_style, pygments_dark_style = "friendly", "github-dark"
