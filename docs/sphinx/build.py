"""Builds the site into a folder: `./run docs [FOLDER]`, `site` by default. A warning, as of a dead link, fails it.

The folder is replaced when the new site is whole. Nothing is fetched.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from sphinx.cmd.build import build_main

HERE = Path(__file__).parent
#: What Sphinx leaves in every site.
MARK = ".buildinfo"


def build(folder: Path, source: Path = HERE.parents[1]) -> int:
    """Builds the site of `source` into `folder`; the exit code."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).is_file():
        print(f"'{folder}' holds something else than this site; name another: ./run docs FOLDER", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "site"
        folders = ["-c", str(HERE), "-d", f"{temporary}/pickles", str(source), str(made)]
        if code := build_main(["-b", "html", "-q", "-E", "-W", "--keep-going", *folders]):
            return code
        if folder.exists():
            shutil.rmtree(folder)
        shutil.move(made, folder)
    return 0


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "site")
    if code := build(target):
        sys.exit(code)
    print(f"{target}/index.html  (with its search: python -m http.server --directory {target})")
