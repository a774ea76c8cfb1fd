"""What every figure looks like: SVG, small, with selectable text, in the reader's light or dark mode.

with matplotlib.rc_context(STYLE):
    canvas = matplotlib.figure.Figure(layout="constrained")
    canvas.add_subplot().plot(values, color=COLOURS[0])
    svg = to_svg(canvas, "values", "Values by epoch: 1, 2, 3.")
"""

import io
import re
from typing import Any, NamedTuple
from xml.sax.saxutils import quoteattr

#: Drawn in this colour, then renamed to `currentColor`, which follows the page.
INK = "#010203"
#: Near Okabe and Ito's, which the colour-blind can tell apart, at 3:1 or more against white and near-black.
COLOURS = ("#0f9d6b", "#d9660a", "#4a86e8", "#c2559d", "#8a8d33", "#7c8792")
#: What is beside the point, or stands for all others.
GREY = COLOURS[-1]
#: Inches at 72 px: narrow, so that a phone shrinks the words little.
WIDTH = 4.5
THEME = "svg{color:#1d2320}@media(prefers-color-scheme:dark){svg{color:#e4e9e6}}"
STYLE: Any = {  # plain names here, literal types in matplotlib's stubs
    "svg.fonttype": "none",  # words stay words: searchable, and small
    "svg.hashsalt": "leaf",  # the same figure has the same bytes
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


class Figure(NamedTuple):
    """One figure: its title, what it says for those who do not see it, and the SVG."""

    title: str
    alt: str
    svg: str


def to_svg(canvas: Any, name: str, alt: str) -> str:
    """The SVG of a matplotlib figure without prolog and metadata, ready to be inlined beside others.

    No id is used twice, if no `name` is.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    canvas.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace("*{", f"{THEME}svg *{{", 1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)
    return svg.replace("<svg", f'<svg role="img" aria-label={quoteattr(alt)}', 1)
