"""Blocks of a page are found, made again from records written by hand, and nothing else of the page changes."""

import json
import re
from pathlib import Path

import pytest

from leaf.errors import LeafError
from leaf.figures import Figure
from leaf.report.documents import read_blocks, rewrite
from leaf.report.studies import KINDS

RECORD = {"score": 0.985, "students": [{"name": "one", "texts": 12_345}, {"name": "two", "texts": 7}]}
PAGE = """# A page

The first keeps <!-- leaf: value record.json score x100 .1f -->?<!-- /leaf --> %, of
<!-- leaf: value record.json students.one.texts , --><!-- /leaf --> texts.

| a | <!-- leaf: value record.json students.-1.texts -->old<!-- /leaf --> |

<!-- leaf: lines record.json 2 -->
whatever stood here
<!-- /leaf -->

The end.
"""
MADE = """# A page

The first keeps <!-- leaf: value record.json score x100 .1f -->98.5<!-- /leaf --> %, of
<!-- leaf: value record.json students.one.texts , -->12,345<!-- /leaf --> texts.

| a | <!-- leaf: value record.json students.-1.texts -->7<!-- /leaf --> |

<!-- leaf: lines record.json 2 -->

line 1

line 2

<!-- /leaf -->

The end.
"""


def lines(request):
    """As many paragraphs as the block asks for, of a record that must be there."""
    request.read()
    count = request.word(1)
    return "\n\n".join(f"line {number + 1}" for number in range(int(count or 1)))


KNOWN = {**KINDS, "lines": lines}


@pytest.fixture
def page(tmp_path):
    (tmp_path / "record.json").write_text(json.dumps(RECORD), encoding="utf-8")
    path = tmp_path / "page.md"
    path.write_text(PAGE, encoding="utf-8")
    return path


def refused(page, text, message):
    page.write_text(text, encoding="utf-8")
    with pytest.raises(LeafError, match=re.escape(message)) as caught:
        rewrite([page], KNOWN)
    assert "\n" not in str(caught.value)
    assert page.read_text(encoding="utf-8") == text


def test_blocks_are_written_anew_and_the_rest_is_left_alone(page):
    found = rewrite([page], KNOWN)
    assert page.read_text(encoding="utf-8") == MADE
    assert found.blocks == 4
    assert found.stale == [
        f"{page}:3 value record.json score x100 .1f",
        f"{page}:4 value record.json students.one.texts ,",
        f"{page}:6 value record.json students.-1.texts",
        f"{page}:8 lines record.json 2",
    ]
    assert rewrite([page], KNOWN).stale == []
    assert page.read_text(encoding="utf-8") == MADE


def test_a_check_names_what_is_stale_and_writes_nothing(page):
    assert len(rewrite([page], KNOWN, check=True).stale) == 4
    assert page.read_text(encoding="utf-8") == PAGE
    page.write_text(MADE.replace("12,345", "12,346"), encoding="utf-8")
    assert rewrite([page], KNOWN, check=True).stale == [f"{page}:4 value record.json students.one.texts ,"]


def test_code_is_not_looked_at(page):
    text = (
        "```\n<!-- leaf: ladder gone.json -->\n```\n\n`<!-- leaf: fly -->` and ``a ` <!-- /leaf -->``\n\n"
        "~~~md\n```\n<!-- /leaf -->\n~~~\n\n- item\n  ```\n  <!-- leaf -->\n  ```\n"
    )
    assert read_blocks(text, page) == []
    block = "<!-- leaf: lines record.json 1 -->\n```\n<!-- leaf: gone -->\n```\n<!-- /leaf -->\n"
    assert [each.line for each in read_blocks(text + block, page)] == [16]


def test_a_block_in_a_list_stays_in_it(page):
    page.write_text("- a\n\n  <!-- leaf: lines record.json 2 -->\n  <!-- /leaf -->\n", encoding="utf-8")
    rewrite([page], KNOWN)
    assert page.read_text(encoding="utf-8") == (
        "- a\n\n  <!-- leaf: lines record.json 2 -->\n\n  line 1\n\n  line 2\n\n  <!-- /leaf -->\n"
    )
    assert rewrite([page], KNOWN, check=True).stale == []


def test_words_may_be_quoted(page):
    [block] = read_blocks("<!-- leaf: value? 'a b.json' \"x y\" .1f --><!-- /leaf -->", page)
    assert (block.kind, block.optional, block.words, block.inline) == ("value", True, ("a b.json", "x y", ".1f"), True)


ONE, END = "<!-- leaf: lines record.json 1 -->", "<!-- /leaf -->"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a\n{ONE}\nb\n", f":2: '{ONE}' is not closed by '{END}'"),
        (f"{ONE}\n\n{ONE}\n{END}", f":1: '{ONE}' is not closed"),
        (f"a {END}", f":1: '{END}' closes no block"),
        (f"a\n\n<!-- leaf lines record.json -->\n{END}", ":3: '<!-- leaf lines record.json -->' is no comment"),
        (f"<!-- leaf: lines record.json\n-->\n{END}", ":1: '<!-- leaf: lines record.json' is no comment of a block"),
        (f"{ONE}\n<!-- /leaf: lines -->", ":2: '<!-- /leaf: lines -->' is no comment of a block"),
        (f"<!-- leaf: -->\n{END}", ":1: '<!-- leaf: -->' names no kind"),
        (f"<!-- leaf: lines 'record.json -->\n{END}", "(No closing quotation)"),
        (f"<!-- leaf: fly record.json -->\n{END}", ":1: no kind of block is called 'fly', expected one of value"),
        (f"<!-- leaf: lines gone.json 1 -->\n{END}", "gone.json; 'lines?' is for one that is not yet measured"),
        (f"<!-- leaf: lines -->\n{END}", ":1: the block names no record"),
        (f"<!-- leaf: ladder record.json -->\n{END}", ":1: record.json is no record for 'ladder' (KeyError:"),
        (f"a <!-- leaf: lines record.json 1 2 -->{END}", ":1: '2' says nothing to 'lines'"),
        (f"see {ONE}\nx\n{END}", ":1: the comments of 'lines' share their lines with other words"),
        (f"{ONE}\nx\n{END} and", ":1: the comments of 'lines' share their lines with other words"),
        (f"a <!-- leaf: lines record.json 2 -->{END}", ":1: 'lines' prints several lines"),
        (f"a <!-- leaf: value record.json score.x .1f -->{END}", ":1: no 'x' in score (of 'score.x')"),
    ],
)
def test_what_cannot_be_made_is_one_line_with_its_place(page, text, message):
    refused(page, text, message)


def test_an_error_on_one_page_leaves_the_others_alone(page):
    (page.parent / "broken.md").write_text("<!-- /leaf -->", encoding="utf-8")
    with pytest.raises(LeafError, match=r"broken\.md:1"):
        rewrite([page, page.parent / "broken.md"], KNOWN)
    assert page.read_text(encoding="utf-8") == PAGE


def test_only_what_is_marked_optional_may_be_missing(page):
    text = "a <!-- leaf: value? gone.json x .1f -->1<!-- /leaf -->\n\n<!-- leaf: sweep? gone.json -->\n<!-- /leaf -->\n"
    page.write_text(text, encoding="utf-8")
    rewrite([page], KNOWN)
    assert page.read_text(encoding="utf-8") == (
        "a <!-- leaf: value? gone.json x .1f -->not yet measured<!-- /leaf -->\n\n"
        "<!-- leaf: sweep? gone.json -->\n\nNot yet measured.\n\n<!-- /leaf -->\n"
    )
    refused(page, "<!-- leaf: value? record.json gone .1f --><!-- /leaf -->", "no 'gone' in the record")


def test_a_folder_stands_for_its_pages_but_not_for_hidden_and_installed_ones(page):
    for folder in ("deeper", ".hidden", "node_modules"):
        (page.parent / folder).mkdir()
        (page.parent / folder / "a.md").write_text("<!-- leaf: value ../record.json score .3f -->?<!-- /leaf -->")
    found = rewrite([page.parent], KNOWN)
    assert [each.relative_to(page.parent) for each in found.pages] == [Path("deeper/a.md"), Path("page.md")]
    assert "-->0.985<" in (page.parent / "deeper" / "a.md").read_text()
    (page.parent / "empty").mkdir()
    for place, message in (("empty", "no Markdown file in"), ("gone.md", "no page")):
        with pytest.raises(LeafError, match=message):
            rewrite([page.parent / place], KNOWN)


def test_a_figure_lies_beside_its_record_and_is_held_to_its_words_alone(tmp_path):
    studies = tmp_path / "results"
    studies.mkdir()
    (studies / "record.json").write_text(json.dumps(RECORD), encoding="utf-8")
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text("<!-- leaf: drawn ../results/record.json -->\n<!-- /leaf -->\n", encoding="utf-8")

    def kind(request):
        alt = f"The score is {request.read()['score']}."
        return request.picture("score.svg", Figure("Score", alt, f'<svg aria-label="{alt}"/>'))

    kinds = {"drawn": kind}
    rewrite([page], kinds)
    assert "![The score is 0.985.](../results/record-score.svg)" in page.read_text(encoding="utf-8")
    figure = studies / "record-score.svg"
    figure.write_text('<svg aria-label="The score is 0.985."> drawn by another release </svg>', encoding="utf-8")
    assert rewrite([page], kinds, check=True).stale == []
    figure.write_text('<svg aria-label="The score is 0.9."/>', encoding="utf-8")
    assert rewrite([page], kinds, check=True).stale == [
        f"{page}:1 drawn ../results/record.json: the figure record-score.svg"
    ]
    figure.unlink()
    assert len(rewrite([page], kinds).stale) == 1
    assert figure.read_text(encoding="utf-8") == '<svg aria-label="The score is 0.985."/>'


def test_two_records_in_a_folder_do_not_draw_over_each_others_figures(page):
    (page.parent / "report.json").write_text('{"score": 0.5}', encoding="utf-8")
    ends = "\n<!-- /leaf -->\n"
    page.write_text(f"<!-- leaf: drawn record.json -->{ends}<!-- leaf: drawn report.json -->{ends}", encoding="utf-8")

    def kind(request):
        alt = f"The score is {request.read()['score']}."
        return request.picture("score.svg", Figure("Score", alt, f'<svg aria-label="{alt}"/>'))

    rewrite([page], {"drawn": kind})
    assert sorted(each.name for each in page.parent.glob("*.svg")) == ["record-score.svg", "score.svg"]
    assert rewrite([page], {"drawn": kind}, check=True).stale == []
