"""The pages name only what exists, say what code and records say, and the map from the paper leaves nothing out."""

import ast
import functools
import io
import json
import re
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest
import typer
from rich.console import Console

import studies
from leaf import recipe
from leaf.cli import app
from leaf.report import print_summary
from leaf.speed import page as speed

ROOT = Path(__file__).parent.parent
PAPER, REFERENCE, README = ROOT / "docs" / "paper.md", ROOT / "docs" / "recipe.md", ROOT / "README.md"
TRAINING, EVALUATION, DEPLOYMENT, SWEEPS = (
    ROOT / "docs" / f"{name}.md" for name in ("training", "evaluation", "deployment", "sweeps")
)
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
SWEPT = ("pooling", "schedule", "batch-size", "segments", "losses")
SPEED, RECORDS = ROOT / "docs" / "speed.md", ROOT / "results" / "speed"
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:|#|mailto:)([^)\s#]+)[^)]*\)")
#: Numbers of the paper: equations 1–12, tables 1–8, figures 1–12, listings 1–2, and sections with a method or a claim.
COUNTS = {"Eq.": 12, "Table": 8, "Figure": 12, "Listing": 2}
NUMBERED = [f"{kind} {number}" for kind, count in COUNTS.items() for number in range(1, count + 1)]
SECTIONS = ["§2", "§2.1", "§2.2", "§3.1", "§3.2", "§3.3"]
APPENDICES = ["A.1", "A.2", "A.3", "B.1", "B.2", "B.3", "C", "D", "E", "F", "G"]
TABLES = {
    "teacher": recipe.Teacher,
    "teacher.api": recipe.Api,
    "teacher.vectors": recipe.OwnedVectors,
    "student": recipe.Student,
    "prepare": recipe.Prepare,
    "train": recipe.Train,
    "evaluate": recipe.Evaluate,
    "export": recipe.Export,
    "index": recipe.Index,
    "sweep": recipe.Sweep,
}


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
        if not command.startswith("leaf "):
            continue
        verb = next((two for two in [" ".join(command.split()[1:3])] if two in verbs), command.split()[1])
        options = {option for each in verbs[verb].params for option in each.opts} if verb in verbs else set()
        if verb not in verbs or not options | {"--help"} >= set(re.findall(r"--[a-z0-9-]+", command)):
            yield command


def wrong_settings(text):
    for name in code(text):
        table, dot, field = name.rpartition(".")
        is_file = field in ("json", "md", "toml")
        if table in TABLES and dot and field.isidentifier() and not is_file and field not in TABLES[table].model_fields:
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


def reference():
    """docs/recipe.md: every field of a recipe with its default, from the models that check it."""
    page = [
        "# Recipe reference",
        "",
        "Every field of a recipe file, with its default. An unknown key is an error. `leaf recipes RECIPE` prints a",
        "recipe that ships, to start from; `--set TABLE.FIELD=VALUE` changes one setting of a run. Written by",
        "`python tests/test_docs.py` from [recipe.py](../src/leaf/recipe.py).",
        "",
        '`name` names the run folder, `description` is for `leaf recipes`, and `extends = "leaf-ir"` starts from',
        "another recipe, by name or by path: tables are merged field by field, lists are replaced.",
    ]
    headings = {"[teacher]": recipe.Teacher, "[teacher.api]": recipe.Api, "[teacher.vectors]": recipe.OwnedVectors,
                "[student], or each of [[students]]": recipe.Student, "[[texts]]": recipe.TextSource,
                "[texts.about]": recipe.About, "[prepare]": recipe.Prepare, "[train]": recipe.Train,
                "[evaluate]": recipe.Evaluate, "[export]": recipe.Export, "[index]": recipe.Index,
                "[sweep]": recipe.Sweep}  # fmt: skip
    for heading, section in headings.items():
        page += ["", f"## `{heading}`", "", f"{section.__doc__}", "", "| field | default | |", "|---|---|---|"]
        for name, field in section.model_fields.items():
            nested = field.default is None or isinstance(field.default, recipe.Section)
            default = "required" if field.is_required() else "" if nested else f"`{json.dumps(field.default)}`"
            page.append(f"| `{name}` | {default} | {' '.join(field.description.split()).replace('|', '&#124;')} |")
    return "\n".join(page) + "\n"


def test_the_recipe_reference_is_that_of_the_code():
    assert REFERENCE.read_text(encoding="utf-8") == reference()


def test_every_field_of_a_recipe_says_what_it_is():
    for section in (*TABLES.values(), recipe.TextSource, recipe.About):
        assert all(field.description for field in section.model_fields.values()), section


def block(text, name):
    """What stands between the markers of a block written from records, and the text before and after it."""
    found = re.fullmatch(rf"(.*<!-- {name}: [^\n]*-->\n)(.*)(<!-- /{name} -->.*)", text, flags=re.DOTALL)
    assert found, f"no block {name}"
    return found.groups()


def printed_demo():
    """What the demo printed, made again from its record."""
    console = Console(file=io.StringIO(), width=100)
    print_summary(json.loads((ROOT / "results" / "demo" / "report.json").read_text(encoding="utf-8")), console)
    lines = console.file.getvalue().splitlines()
    return "```\n" + "\n".join(line.rstrip() for line in lines) + "\n```\n"


BLOCKS = [
    (README, "demo", printed_demo),
    (TRAINING, "ladder", studies.ladder),
    (EVALUATION, "minilm", studies.whole_tree),
    (EVALUATION, "curves", studies.curves),
    (EVALUATION, "margin", studies.margin),
    (DEPLOYMENT, "export", studies.exports),
    (DEPLOYMENT, "serve", studies.served),
    (ROOT / "docs" / "guides" / "adapting.md", "adapting", studies.adapted),
    (ROOT / "docs" / "guides" / "search.md", "search", studies.searched),
    (ROOT / "docs" / "guides" / "search.md", "scifact", studies.swapped),
    *((SWEEPS, name, functools.partial(studies.sweep, name)) for name in SWEPT),
]


@pytest.mark.parametrize(("page", "name", "written"), BLOCKS, ids=lambda each: each if isinstance(each, str) else "")
def test_a_block_of_numbers_on_a_page_is_that_of_its_records(page, name, written):
    assert block(page.read_text(encoding="utf-8"), name)[1] == written()


def test_the_speed_page_and_its_figure_are_those_of_the_records():
    records = speed.read_records(RECORDS)
    assert SPEED.read_text(encoding="utf-8") == speed.page(records)
    # The figure's words have all its numbers; its lines depend on matplotlib's release.
    assert not records or f"aria-label={quoteattr(speed.alt(records))}" in SPEED.with_suffix(".svg").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("label", NUMBERED + SECTIONS + APPENDICES)
def test_everything_numbered_in_the_paper_has_a_row_that_says_where_it_is(label):
    what, where = rows(PAPER.read_text(encoding="utf-8"))[label]
    assert what.strip()
    assert "not yet" in where or LINK.search(where) or code(where) or re.search(r"as (Table|Figure) \d", where)


@pytest.mark.parametrize(
    "page", [PAPER, README, SPEED, TRAINING, EVALUATION, DEPLOYMENT, SWEEPS, *GUIDES], ids=lambda page: page.name
)
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


if __name__ == "__main__":
    for page, name, written in BLOCKS:
        start, _, end = block(page.read_text(encoding="utf-8"), name)
        page.write_text(start + written() + end, encoding="utf-8")
    studies.draw()
    studies.draw_sweeps()
    REFERENCE.write_text(reference(), encoding="utf-8")
    speed.write_page(RECORDS, SPEED.parent)
