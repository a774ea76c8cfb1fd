"""The pages name only what exists, say what code and records say, and the map from the paper leaves nothing out."""

import ast
import re
from pathlib import Path

import pytest
import typer

from leaf import recipe
from leaf.cli import app
from leaf.report.documents import pages_of, read_blocks, rewrite
from leaf.report.studies import KINDS, SECTIONS

ROOT = Path(__file__).parent.parent
PAPER, REFERENCE, README = ROOT / "docs" / "paper.md", ROOT / "docs" / "recipe.md", ROOT / "README.md"
RESULTS = ROOT / "results"
#: Every page a reader may come to; LOG.md tells what was true on a day.
PAGES = [*sorted(set(ROOT.glob("*.md")) - {ROOT / "LOG.md"}), *pages_of(ROOT / "docs"), *pages_of(RESULTS)]
STUDIES = sorted(path for path in RESULTS.iterdir() if path.is_dir() and any(path.iterdir()))
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#|mailto:)([^)\s#]+)[^)]*\)")
PICTURE = re.compile(r"!\[.*\]\(([^)\s]+)\)")
#: Numbers of the paper: equations 1–12, tables 1–8, figures 1–12, listings 1–2, and sections with a method or a claim.
COUNTS = {"Eq.": 12, "Table": 8, "Figure": 12, "Listing": 2}
NUMBERED = [f"{kind} {number}" for kind, count in COUNTS.items() for number in range(1, count + 1)]
SECTIONS_OF_PAPER = ["§2", "§2.1", "§2.2", "§3.1", "§3.2", "§3.3", "§4", "§5"]
APPENDICES = ["A.1", "A.2", "A.3", "B.1", "B.2", "B.3", "C", "D", "E", "F", "G"]
TABLES = {name: section for name, section in SECTIONS.items() if not name.startswith("texts")}


def rows(text):
    """Label → the other cells, of every three-column table row."""
    found = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", text, flags=re.MULTILINE)
    cells = {label: (what, where) for label, what, where in found if label != "Paper"}
    assert len(cells) == sum(label != "Paper" for label, _, _ in found), "a label has two rows"
    return cells


def code(text):
    return re.findall(r"`([^`\n]+)`", text)


def defined(path):
    """Names of the functions and classes of a Python file, methods as `Class.method`."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            names |= {f"{node.name}.{each.name}" for each in ast.walk(node) if isinstance(each, ast.FunctionDef)}
    return names


def wrong_links(page):
    for text, target in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve()
        if not path.exists():
            yield f"no file {target}"
        elif path.suffix == ".py" and re.fullmatch(r"`[\w.]+`", text) and text.strip("`") not in defined(path):
            yield f"{target} defines no {text}"


def wrong_commands(text):
    verbs = typer.main.get_command(app).commands
    for command in code(text) + re.findall(r"^ *(?:\$ )?(leaf [a-z].*)$", text, flags=re.MULTILINE):
        if not command.startswith("leaf ") or command.startswith("leaf VERB"):
            continue
        verb = next((two for two in [" ".join(command.split()[1:3])] if two in verbs), command.split()[1])
        options = {option for each in verbs[verb].params for option in each.opts} if verb in verbs else set()
        if verb not in verbs or not options | {"--help"} >= set(re.findall(r"--[a-z0-9-]+", command)):
            yield command


def wrong_settings(text):
    for name in code(text):
        table, dot, field = name.rpartition(".")
        other = field in ("json", "md", "toml", "FIELD")
        if table in TABLES and dot and field.isidentifier() and not other and field not in TABLES[table].model_fields:
            yield name


def wrong_tree(text):
    """Paths that do not exist, of a source tree drawn in a code block that begins with `src/`."""
    for block in re.findall(r"```\w*\n(src/.*?)```", text, flags=re.DOTALL):
        parents = []
        for line in re.sub(r"[├└│─]", " ", block).splitlines():
            depth, name = len(line) - len(line.lstrip()), line.split()[0] if line.strip() else ""
            parents = [each for each in parents if each[0] < depth]
            path = (parents[-1][1] if parents else ROOT) / name
            if name and not path.exists() and not list(path.parent.glob(path.name)):
                yield str(path.relative_to(ROOT))
            parents.append((depth, path))


@pytest.fixture(scope="module")
def checked():
    pytest.importorskip("matplotlib")
    return rewrite(PAGES, KINDS, check=True)


def test_every_block_and_figure_is_that_of_its_record(checked):
    """Written anew by `leaf report README.md docs results`."""
    assert checked.stale == []
    assert checked.blocks > 80


def test_the_reference_has_every_table_of_a_recipe():
    sections = {name for name, each in vars(recipe).items() if isinstance(each, type) and _is_table(each)}
    assert {each.__name__ for each in SECTIONS.values()} == sections
    shown = [each.words[0] for each in read_blocks(REFERENCE.read_text(encoding="utf-8"), REFERENCE)]
    assert shown == list(SECTIONS)


def _is_table(each):
    return issubclass(each, recipe.Section) and each not in (recipe.Section, recipe.Recipe)


def test_every_field_of_a_recipe_says_what_it_is():
    for section in SECTIONS.values():
        assert all(field.description for field in section.model_fields.values()), section


def test_every_figure_of_a_study_is_on_a_page():
    """What no page shows, nobody draws again."""
    drawn = {path.resolve() for path in RESULTS.rglob("*.svg")}
    assert drawn <= {(page.parent / shown).resolve() for page in PAGES for shown in PICTURE.findall(page.read_text())}


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_a_study_says_what_it_asks_how_it_is_made_and_how_sure_it_is(study):
    page = (study / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^#.*", re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)[1:] == [
        "## Setting", "## Result", "## What it means", "## How sure"
    ]  # fmt: skip
    assert page.splitlines()[0].endswith("?")
    assert f"({study.name}/README.md)" in (RESULTS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_of_a_sentence_begins_with_a_number_of_a_record(page):
    # Markdown takes a comment at the beginning of a line for HTML, up to the next blank line.
    assert not re.findall(r"^ *<!-- leaf: .*<!-- /leaf -->.*$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("label", NUMBERED + SECTIONS_OF_PAPER + APPENDICES)
def test_everything_numbered_in_the_paper_has_a_row_that_says_where_it_is(label):
    what, where = rows(PAPER.read_text(encoding="utf-8"))[label]
    assert what.strip()
    assert LINK.search(where) or code(where) or re.search(r"as (Table|Figure) \d", where)
    unexplained = re.findall(r"not yet(?!: [^;]{20,})[^;]*", where)
    assert not unexplained, "say what is missing, why, and the command that would do it"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_files_functions_commands_and_settings_that_exist(page):
    text = page.read_text(encoding="utf-8")
    wrong = [*wrong_links(page), *wrong_commands(text), *wrong_settings(text), *wrong_tree(text)]
    assert not wrong


def test_what_does_not_exist_is_found(tmp_path):
    page = tmp_path / "page.md"
    (tmp_path / "code.py").write_text("class A:\n    def b(self): ...\n")
    page.write_text("[x](gone.py) [`A.b`](code.py) [`A.c`](code.py)")
    assert list(wrong_links(page)) == ["no file gone.py", "code.py defines no `A.c`"]
    commands = "`leaf fly` `leaf texts demo` `leaf texts --wings`\n    leaf crawl demo\n"
    assert list(wrong_commands(commands)) == ["leaf fly", "leaf texts --wings", "leaf crawl demo"]
    settings = "`train.lr` `train.rate` `teacher.api.url` `teacher.api.uri`"
    assert list(wrong_settings(settings)) == ["train.rate", "teacher.api.uri"]
    tree = "```\nsrc/leaf/\n  cli/         the command line\n  student/\n    loss.py\n    gain.py\n```"
    assert list(wrong_tree(tree)) == ["src/leaf/student/gain.py"]
