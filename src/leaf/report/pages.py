"""Renders `report.md`, `report.html` and the model cards from `templates/`, everything escaped."""

import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from leaf.models import hub_id
from leaf.report import words

#: What Markdown reads as markup anywhere in a line.
MARKDOWN = re.compile(r"([\\`*_\[\]|~#])")


def render(template: str, report: dict[str, Any], **context: Any) -> str:
    """The page `template` about `report`. A name misspelt in a template is an error, not an empty string."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates", encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name in ("points", "decimals", "count", "size", "bytes", "depth", "retention", "verdict"):
        environment.filters[name] = getattr(words, name)
    environment.filters |= {"md": markdown, "literal": literal}
    return environment.get_template(template).render(report=report, **report, words=words, hub_id=hub_id, **context)


def markdown(text: object) -> Markup:
    """`text` as plain words of Markdown, neither markup nor HTML; an indented cell stays indented."""
    words = MARKDOWN.sub(r"\\\1", str(escape(text)).replace("&#39;", "'").replace("&#34;", '"'))
    return Markup(words.replace("  ", "&nbsp;&nbsp;", 1) if words.startswith("  ") else words)


def literal(value: object) -> Markup:
    """`value` as a literal of Python and of YAML at once: JSON's strings and numbers are both."""
    return Markup(json.dumps(value, ensure_ascii=False))
