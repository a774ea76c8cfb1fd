"""Pages whose numbers come from records: their generated blocks are found, made again, and held to what stands there.

A block stands between two comments, which Markdown does not show:

    <!-- leaf: KIND RECORD [ARGUMENT…] -->
    …what the kind prints…
    <!-- /leaf -->

or, all on one line, inside a sentence or a cell of a table:

    The student keeps <!-- leaf: value report.json students.0.retention.asymmetric .1f -->98.5<!-- /leaf --> %.

Words are separated as in a shell, so one with spaces is quoted. `KIND?` may have a record that does not exist yet. What
stands in fenced code or between backticks is not looked at, so a page may show how a block is written. `studies.py` has
the kinds; this file knows none of them.

    rewrite([Path("README.md"), Path("results")], KINDS)              # what is stale is written anew
    rewrite([Path("README.md")], KINDS, check=True).stale             # nothing is written; what would be
"""

import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent
from typing import Any, TypeAlias
from xml.sax.saxutils import quoteattr

from leaf.errors import LeafError
from leaf.figures import Figure
from leaf.files import write_text

#: Whatever looks like one of our comments, well written or not: nothing is passed over because of a slip.
MARKER = re.compile(r"<!--[ \t]*(/?)[ \t]*leaf\b([^\n]*?)(-->|$)", re.MULTILINE)
FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n]*\n(?:.*?\n)??[ \t]*\1[`~]*[ \t]*$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)(`+)(?!`)[^\n]*?(?<!`)\1(?!`)")
MISSING = "not yet measured"


class NoRecordError(LeafError):
    """A block names a record that does not exist."""


@dataclass(frozen=True)
class Block:
    """One block as it stands on its page."""

    line: int
    """Of its first comment, from 1."""
    kind: str
    optional: bool
    """Whether its record may be missing."""
    words: tuple[str, ...]
    """What follows the kind, the record first."""
    start: int
    """Where in the page's text it begins, after the first comment; `end` is where the last one begins."""
    end: int
    inline: bool
    """Whether both comments stand on one line."""
    margin: str
    """What its lines are indented with, as inside a list."""

    def __str__(self) -> str:
        return " ".join((self.kind, *self.words))


@dataclass
class Request:
    """What a kind is given: the words of a block, records by their path from the page, and room for figures."""

    page: Path
    words: tuple[str, ...]
    figures: dict[Path, Figure] = field(default_factory=dict)
    """File → figure, of those that the block shows."""
    used: set[int] = field(default_factory=set)
    """Positions of the words that the kind asked for: any other is a mistake."""

    def word(self, position: int) -> str:
        """One of the words; empty where there are not so many."""
        self.used.add(position)
        return self.words[position] if position < len(self.words) else ""

    def path(self, word: str) -> Path:
        """The file or folder that a word names, from the page's folder."""
        if not word:
            raise LeafError("the block names no record, expected `<!-- leaf: KIND RECORD … -->`")
        path = Path(os.path.normpath(self.page.parent / word))
        if not path.exists():
            raise NoRecordError(f"no record {path}")
        return path

    def read(self, position: int = 0) -> Any:
        """The JSON that a word names, the first one by default."""
        path = self.path(self.word(position))
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LeafError(f"{path} is no JSON record: {error}") from error

    def picture(self, file: str, figure: Figure) -> str:
        """Markdown that shows a figure, which will lie beside the record (or in it, where that is a folder).

        Its name begins with the record's, so that two in a folder do not draw over each other's; but not where that is
        `report` or `sweep`, of which a folder has one.
        """
        record = self.path(self.word(0))
        own = record.is_dir() or record.stem in ("report", "sweep")
        path = (record if record.is_dir() else record.parent) / (file if own else f"{record.stem}-{file}")
        self.figures[path] = figure
        return f"![{figure.alt}]({Path(os.path.relpath(path, self.page.parent)).as_posix()})"


#: What prints a kind of block: Markdown, of one line where the block is inside a sentence.
Kinds: TypeAlias = Mapping[str, Callable[[Request], str]]


@dataclass
class Rewritten:
    """What became of the pages."""

    pages: list[Path] = field(default_factory=list)
    """All that were looked at."""
    blocks: int = 0
    stale: list[str] = field(default_factory=list)
    """`page:line kind record …` of each block that was, or is, not what its record says."""


def rewrite(places: Sequence[Path], kinds: Kinds, *, check: bool = False) -> Rewritten:
    """Makes the blocks of Markdown pages again, and the figures beside their records.

    A folder stands for all pages in it and below. With `check`, nothing is written. Figures are compared by their
    `aria-label`, which says all their numbers: their lines depend on matplotlib's release. Raises `LeafError` with the
    page and the line for a block that cannot be made; then nothing has been written either.
    """
    found = Rewritten()
    texts: dict[Path, str] = {}
    figures: dict[Path, Figure] = {}
    for page in dict.fromkeys(page for place in places for page in pages_of(place)):
        text = page.read_text(encoding="utf-8")
        parts, at = [], 0
        for block in read_blocks(text, page):
            written, drawn = _make(block, page, kinds)
            figures |= drawn
            stale = [file for file, figure in drawn.items() if not _shows(file, figure)]
            if written != text[block.start : block.end]:
                found.stale.append(f"{page}:{block.line} {block}")
            elif stale:
                found.stale.append(f"{page}:{block.line} {block}: the figure {stale[0].name}")
            parts += [text[at : block.start], written]
            at = block.end
            found.blocks += 1
        found.pages.append(page)
        if (made := "".join((*parts, text[at:]))) != text:
            texts[page] = made
    if not check:
        for file, figure in figures.items():
            write_text(file, figure.svg)
        for page, made in texts.items():
            write_text(page, made)
    return found


def pages_of(place: Path) -> Iterator[Path]:
    """The Markdown files that a path stands for: itself, or those in a folder, hidden and installed ones left out."""
    if not place.is_dir():
        if not place.is_file():
            raise LeafError(f"no page {place}")
        yield place
        return
    pages = [
        page
        for page in sorted(place.rglob("*.md"))
        if not any(part.startswith(".") or part == "node_modules" for part in page.relative_to(place).parts)
    ]
    if not pages:
        raise LeafError(f"no Markdown file in {place}")
    yield from pages


def read_blocks(text: str, page: Path) -> list[Block]:
    """The blocks of a page in order. Raises `LeafError` for one that is not closed, and for a malformed comment."""
    prose = text
    for code in (FENCE, SPAN):
        prose = code.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), prose)
    blocks: list[Block] = []
    opened: re.Match[str] | None = None
    for marker in MARKER.finditer(prose):
        closes, words, end = marker.groups()
        where = f"{page}:{_line(text, marker.start())}"
        if not end or (words.strip() if closes else not words.startswith(":")):
            raise LeafError(
                f"{where}: '{text[marker.start() : marker.end()].strip()}' is no comment of a block, expected "
                "'<!-- leaf: KIND RECORD … -->' or '<!-- /leaf -->'"
            )
        if closes and opened is None:
            raise LeafError(f"{where}: '<!-- /leaf -->' closes no block")
        if not closes and opened is not None:
            raise LeafError(_unclosed(page, text, opened))
        if closes and opened is not None:
            blocks.append(_block(text, page, opened, marker))
        opened = None if closes else marker
    if opened is not None:
        raise LeafError(_unclosed(page, text, opened))
    return blocks


def _block(text: str, page: Path, first: re.Match[str], last: re.Match[str]) -> Block:
    line = _line(text, first.start())
    try:
        kind, *words = shlex.split(first[2].removeprefix(":"))
    except ValueError as error:
        raise LeafError(
            f"{page}:{line}: '{first[0]}' names no kind, expected '<!-- leaf: KIND RECORD … -->' ({error})"
        ) from error
    before, after = (_rest_of_line(text, each) for each in (first, last))
    inline = "\n" not in text[first.end() : last.start()]
    alone = not before[0].strip() and not before[1].strip() and not after[0].strip() and not after[1].strip()
    if not inline and not alone:
        raise LeafError(
            f"{page}:{line}: the comments of '{kind}' share their lines with other words; a block has a line for each, "
            "and inside a sentence both stand on one"
        )
    return Block(
        line=line,
        kind=kind.removesuffix("?"),
        optional=kind.endswith("?"),
        words=tuple(words),
        start=first.end(),
        end=last.start(),
        inline=inline,
        margin="" if inline else before[0],
    )


def _rest_of_line(text: str, marker: re.Match[str]) -> tuple[str, str]:
    """What stands before and after a comment on its line."""
    before = text[text.rfind("\n", 0, marker.start()) + 1 : marker.start()]
    return before, text[marker.end() :].partition("\n")[0]


def _unclosed(page: Path, text: str, opened: re.Match[str]) -> str:
    return f"{page}:{_line(text, opened.start())}: '{opened[0]}' is not closed by '<!-- /leaf -->'"


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _make(block: Block, page: Path, kinds: Kinds) -> tuple[str, dict[Path, Figure]]:
    """What stands between the comments, and the figures that it shows."""
    where = f"{page}:{block.line}"
    if block.kind not in kinds:
        raise LeafError(f"{where}: no kind of block is called '{block.kind}', expected one of {', '.join(kinds)}")
    request = Request(page, block.words)
    try:
        printed = kinds[block.kind](request).strip("\n")
    except NoRecordError as error:
        if not block.optional:
            raise LeafError(f"{where}: {error}; '{block.kind}?' is for one that is {MISSING}") from error
        printed = MISSING if block.inline else f"{MISSING.capitalize()}."
        request = Request(page, block.words, used=set(range(len(block.words))))
    except LeafError as error:
        raise LeafError(f"{where}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}"
        raise LeafError(f"{where}: {' '.join(block.words[:1])} is no record for '{block.kind}' ({said})") from error
    for position, word in enumerate(block.words):
        if position not in request.used:
            raise LeafError(f"{where}: '{word}' says nothing to '{block.kind}'")
    if not block.inline:
        # Lines left blank: some renderers read what touches a comment as HTML.
        return indent(f"\n\n{printed}\n\n", block.margin) + block.margin, request.figures
    if "\n" in printed:
        raise LeafError(f"{where}: '{block.kind}' prints several lines; give each of its comments a line of its own")
    return printed, request.figures


def _shows(file: Path, figure: Figure) -> bool:
    return file.is_file() and f"aria-label={quoteattr(figure.alt)}" in file.read_text(encoding="utf-8")
