"""The site of `./run docs`: every page is in its navigation, every link leads somewhere, and it asks nobody else."""

import html
import posixpath
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer

from leaf.cli import app

ROOT = Path(__file__).parents[1]
pytest.importorskip("sphinx", reason="pip install 'leaf[docs]'")


@pytest.fixture
def site_code(monkeypatch):
    """docs/sphinx, from which its files are imported."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "sphinx"))
    yield
    for name in ("pages", "files", "docstrings", "build"):
        sys.modules.pop(name, None)


def test_every_page_is_in_the_navigation_once(site_code):
    import pages
    from sphinx.util.matching import get_matching_files

    listed = [page for part in pages.navigation().values() for page in part]
    found = get_matching_files(ROOT, pages.PAGES, pages.NO_PAGES)
    assert sorted(listed) == sorted({pages.address(Path(each)) for each in found} - {"index"})
    assert pages.address(Path("results/ladder/README.md")) == "results/ladder/index"


def test_docstrings_are_read_as_they_are_written(site_code):
    import docstrings

    lines = ["Says `so`s, of `a b`:", "", "    run(1)", "    # more", "", "- an item", "", "  and its end."]
    docstrings.as_restructured(None, "module", "", None, None, lines)
    assert lines == [
        "Says `so`\\ s, of ``a b``:", "", ".. code-block:: python", "", "    run(1)", "    # more", "", "- an item",
        "", "  and its end.",
    ]  # fmt: skip


def test_annotations_are_shown_by_their_names(site_code):
    import docstrings
    from sphinx.util.inspect import signature, stringify_signature

    from leaf.evaluation.retrieval import search

    docstrings.as_written(None, search, False)
    shown = stringify_signature(signature(search), unqualified_typehints=True)
    assert shown == (
        "(queries: Vectors, documents: Vectors, top_k: int, similarity: Literal['cosine', 'dot'] = 'cosine', "
        "order: Rows | None = None) -> tuple[Rows, Vectors]"
    )


def test_a_folder_of_something_else_is_left_alone(site_code, tmp_path, capsys):
    from build import build

    (tmp_path / "thesis.html").write_text("mine")
    assert build(tmp_path) == 2
    assert "holds something else" in capsys.readouterr().err
    assert (tmp_path / "thesis.html").read_text() == "mine"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `./run docs` does, in a process of its own, since Sphinx keeps what it has imported."""
    import subprocess

    folder = tmp_path_factory.mktemp("built") / "site"
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "sphinx" / "build.py", folder], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    yield (
        {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in folder.rglob("*.html")},
        folder,
    )
    shutil.rmtree(folder)


@pytest.mark.slow
def test_every_link_of_the_site_leads_somewhere(site):
    pages, folder = site
    anchors = {name: set(re.findall(r'\b(?:id|name)="([^"]+)"', page)) for name, page in pages.items()}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    wrong = set()
    for name, page in pages.items():
        for link in map(html.unescape, re.findall(r'\bhref="([^"]+)"', page)):
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path) or name))
            target = target if parts.path else name
            there = target in pages or target in files
            if not there or (parts.fragment and target in anchors and unquote(parts.fragment) not in anchors[target]):
                wrong.add((name, link))
    assert not wrong


@pytest.mark.slow
def test_the_site_takes_nothing_from_other_hosts(site):
    pages, folder = site
    loaded = r'<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)="((?:https?:)?//[^"]+)"'
    assert {name: found for name, page in pages.items() if (found := re.findall(loaded, page))} == {}
    styles = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.css"))
    assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", styles)


@pytest.mark.slow
def test_the_site_has_what_is_made_for_it(site):
    pages, folder = site
    verbs = typer.main.get_command(app).commands
    assert all(f">leaf {verb}<" in re.sub(r"</?span[^>]*>", "", pages["docs/cli.html"]) for verb in verbs)
    api = pages["docs/api/search.html"]
    assert 'id="leaf.search.Index.search"' in api
    assert re.search(r'href="../../src/leaf/search/index.py.html#L-\d+"', api)
    assert "def leaf_loss" in re.sub(r"<[^>]+>", "", pages["src/leaf/student/loss.py.html"])
    assert not any("&lt;!--" in re.sub(r"<(pre|code)\b.*?</\1>", "", page, flags=re.DOTALL) for page in pages.values())
    assert "canaries" in (folder / "searchindex.js").read_text(encoding="utf-8") or "canari" in (
        folder / "searchindex.js"
    ).read_text(encoding="utf-8")
