"""An alignment (`leaf.evaluation.alignment`) for people: sentences, tables, a terminal page and a figure.

Everything takes the alignment as plain data, as `dataclasses.asdict` or its JSON file gives it.

    from dataclasses import asdict
    from rich.console import Console

    print_alignment(asdict(alignment), Console())
"""

from collections.abc import Mapping
from typing import Any, Literal

from rich.console import Console
from rich.segment import Segments
from rich.table import Table as RichTable
from rich.text import Text

from leaf.figures import COLOURS, INK, STYLE, WIDTH, Figure, to_svg
from leaf.report.words import NONE, Table, count, decimals

Data = Mapping[str, Any]
MODES = ("asymmetric", "standard")
#: Columns that a pipe is given, which has no width of its own; a terminal keeps its own.
PIPE_WIDTH = 110
#: Texts of each kind that a terminal shows for lying furthest away; the data has more.
SHOWN = 3


def estimate(each: Data | None, digits: int = 3, scale: float = 1) -> str:
    """A value with its 95 % interval, where there is one: `0.312 (0.304–0.321)`."""
    if each is None:
        return NONE
    value = f"{scale * each['value']:.{digits}f}"
    if each["low"] is None:
        return value
    low, high = (f"{scale * each[bound]:.{digits}f}" for bound in ("low", "high"))
    return f"{value} ({low}{' to ' if '-' in low else '–'}{high})"


def verdict(alignment: Data) -> list[str]:
    """What the numbers allow to say, one sentence each. Nothing is called good: what is enough, the reader decides."""
    said = [_closeness(alignment, what) for what in ("queries", "documents") if alignment[what]]
    if alignment["asymmetric"]:
        said += [_search(alignment, mode) for mode in MODES] + _modes(alignment)
    elif len(said) > 1:
        number, k = alignment["documents"]["num_texts"], alignment["top_k"]
        said.append(f"Rankings are not compared: any search finds all of {number} documents in its top {k}.")
    counts = [f"{count(alignment[what]['num_texts'])} {what}" for what in ("queries", "documents") if alignment[what]]
    return [
        *said,
        f"Measured on {' and '.join(counts)}, against {alignment['teacher']} alone: whether the teacher's own answers "
        "are right, only judgements can say.",
    ]


def closeness_table(alignment: Data) -> Table:
    """ε and cosine, a column for each kind of text: means with intervals, and where the middle 90 % lie."""
    kinds = [kind for kind in ("queries", "documents") if alignment[kind]]
    found = {kind: alignment[kind] for kind in kinds}
    if len(kinds) > 1:
        found["all"] = alignment["texts"]

    def spread(each: Data) -> str:
        return " to ".join(decimals(each["quantiles"][percentile], 3) for percentile in ("5", "95"))

    rows = [["vectors", *found], ["number", *(count(each["num_texts"]) for each in found.values())]]
    for title, name in (("ε", "error"), ("cosine", "cosine")):
        rows.append([title, *(estimate(each[name]["mean"]) for each in found.values())])
        rows.append([f"{title}, 5–95 %", *(spread(each[name]) for each in found.values())])
    return [*rows, ["to another's", *(decimals(each["unrelated_cosine"], 3) for each in found.values())]]


def search_table(alignment: Data) -> Table:
    """The rankings of both modes beside the teacher's; only the header where there are none."""
    k = alignment["top_k"]
    rows = [["search", f"of the teacher's {k}", "% same first", "rank correlation"]]
    for mode in MODES:
        if each := alignment[mode]:
            cells = estimate(each["overlap"], 1, k), estimate(each["same_first"], 0, 100)
            rows.append([mode, *cells, estimate(each["rank_correlation"], 2)])
    if alignment["chance"] is not None:
        rows.append(["random documents", f"{k * alignment['chance']:.2g}", "", "0"])
    return rows


def print_alignment(alignment: Data, console: Console) -> None:
    """Prints the verdict, the numbers, one query answered side by side, and the texts that lie furthest away."""
    width = console.width if console.is_terminal else max(console.width, PIPE_WIDTH)

    def line(text: str = "", style: str = "") -> None:
        shown = Text(text, style)
        shown.truncate(width, overflow="ellipsis")
        console.print(shown, soft_wrap=True)

    def table(rows: Table, *, share: bool = False) -> None:
        """Columns as wide as they need to be, or all of one width."""
        drawn = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", expand=share)
        for position, title in enumerate(rows[0]):
            justify: Literal["left", "right"] = "right" if position and not share else "left"
            drawn.add_column(title, justify=justify, ratio=1 if share else None, no_wrap=share)
        for row in rows[1:]:
            drawn.add_row(*map(Text, row))
        rendered = console.render(drawn, console.options.update(max_width=width))
        console.print(Segments(rendered), soft_wrap=True, end="")

    line(f"{alignment['student']} beside its teacher {alignment['teacher']}", "bold")
    for sentence in verdict(alignment):
        console.print(Text(sentence), width=width)
    line()
    table(closeness_table(alignment))
    if alignment["asymmetric"]:
        line()
        table(search_table(alignment))
    line("In brackets: 95 % interval over texts or queries.", "dim")
    if alignment["examples"]:
        example = alignment["examples"][0]  # the one with the lowest overlap
        line()
        line(f"“{example['query']}” (✓: among the teacher's)", "bold")
        table(side_by_side(example), share=True)
    for role, what in (("query", "queries"), ("document", "documents")):
        if alignment["worst"][role]:
            line()
            line(f"The {what} furthest from the teacher's vectors", "bold")
        for each in alignment["worst"][role][:SHOWN]:
            line(
                f"  ε {each['error']:.3f}  cosine {each['cosine']:.3f}  {each['row']}: {_one_line(each['text'])}", "dim"
            )


def side_by_side(example: Data) -> Table:
    """One query's answers as columns, ranks as rows, as in Table 6."""
    first, *others = example["answers"]
    teachers = {document["id"] for document in first["documents"]}
    titles = [f"{each['mode']} ({each['overlap']} of {len(teachers)})" for each in others]

    def cell(document: Data, mark: str) -> str:
        text = _one_line(document["text"]) or document["id"]
        return f"{document['score']:.2f} {mark}{text}"

    columns = [[cell(document, "") for document in first["documents"]]]
    for each in others:
        columns.append([cell(hit, "✓ " if hit["id"] in teachers else "  ") for hit in each["documents"]])
    return [["teacher", *titles], *map(list, zip(*columns, strict=True))]


def worst_table(alignment: Data) -> Table:
    """The texts that lie furthest from the teacher's vectors, with their row in the list they came from."""
    rows = [["text", "kind", "row", "ε", "cosine"]]
    for role in ("query", "document"):
        for each in alignment["worst"][role]:
            numbers = decimals(each["error"], 3), decimals(each["cosine"], 3)
            rows.append([_one_line(each["text"]), role, str(each["row"]), *numbers])
    return rows


def draw_alignment(alignment: Data, name: str = "alignment") -> Figure | None:
    """How many of the texts have which cosine to their teacher's vector; None without matplotlib.

    `name` is the figure's own on its page, where no two may have the same.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        return None
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH, 2.9), layout="constrained")
        axes = canvas.add_subplot()
        left, said = 1.0, []
        for kind, colour in (("queries", COLOURS[0]), ("documents", COLOURS[2])):
            if not (each := alignment[kind]):
                continue
            percentiles, unrelated = each["cosine_percentiles"], each["unrelated_cosine"]
            axes.plot(percentiles, range(101), color=colour, linewidth=1.8, label=kind)
            left = min(left, percentiles[1])
            middle = f"{kind}: half above {percentiles[50]:.3f}, nine in ten above {percentiles[10]:.3f}"
            if unrelated is not None:
                axes.axvline(unrelated, color=colour, linewidth=1.2, linestyle=":")
                left = min(left, unrelated)
                middle += f", {unrelated:.3f} to another text's vector"
            said.append(middle)
        if len(axes.get_lines()) > len(said):
            axes.plot([], [], ":", color=INK, linewidth=1.2, label="another text's, mean")
        room = 0.04 * (1 - left) or 0.01
        axes.set(xlim=(left - room, 1 + room), ylim=(0, 100))
        axes.set(xlabel="cosine to the teacher's vector", ylabel="% of texts at or below")
        canvas.legend(loc="outside upper right", ncols=3, columnspacing=1.2, handlelength=1.4)
        alt = f"Cosine between the student's and the teacher's vector of a text. {'; '.join(said)}."
        title = "Cosine to the teacher's vector, text by text"
        return Figure(title, alt, to_svg(canvas, name, alt))


def _closeness(alignment: Data, what: str) -> str:
    each = alignment[what]
    cosine, unrelated = each["cosine"]["mean"], each["unrelated_cosine"]
    said = f"{what.capitalize()} lie ε = {estimate(each['error']['mean'])} from the teacher's vectors"
    if abs(each["teacher_length"] - 1) > 0.01:
        said += f", whose mean length is {each['teacher_length']:.3g}"
    said += f", at cosine {estimate(cosine)}"
    if unrelated is None or cosine["low"] is None:
        return f"{said}."
    if cosine["low"] <= unrelated:
        return f"{said}: no nearer than to the teacher's vector of another text ({unrelated:.3f})."
    return f"{said}; the teacher's vector of another text is at {unrelated:.3f}."


def _search(alignment: Data, mode: str) -> str:
    k, each = alignment["top_k"], alignment[mode]
    how = "the student's queries in the teacher's index" if mode == "asymmetric" else "the student on both sides"
    said = f"{mode.capitalize()} search ({how}) finds {estimate(each['overlap'], 1, k)} of the teacher's {k}"
    said += f" and has the same first for {estimate(each['same_first'], 0, 100)} % of the queries"
    chance = f"{k * alignment['chance']:.2g}"
    if each["overlap"]["low"] is None:
        return f"{said}; random documents would be {chance}, and one query has no interval."
    if not _beats_chance(alignment, mode):
        return f"{said}: no more than these queries can tell from random documents ({chance})."
    return f"{said}; random documents would be {chance}."


def _modes(alignment: Data) -> list[str]:
    """How the two modes compare, as far as that is resolved."""
    gap, k = alignment["advantage"], alignment["top_k"]
    if gap["low"] is None:
        return []
    if not _beats_chance(alignment, "asymmetric") and _beats_chance(alignment, "standard"):
        return [
            "By itself the student ranks as its teacher does to that degree, but in a space of its own: not aligned."
        ]
    if gap["low"] <= 0 <= gap["high"]:
        return ["Which of the two finds more of them is not resolved by these queries."]
    more, fewer = ("asymmetric", "standard") if gap["value"] > 0 else ("standard", "asymmetric")
    size = {key: abs(gap[key]) for key in ("value", "low", "high")}
    size["low"], size["high"] = sorted((size["low"], size["high"]))
    return [f"The {more} search finds {estimate(size, 1, k)} more of them than the {fewer} one."]


def _beats_chance(alignment: Data, mode: str) -> bool:
    return bool(alignment[mode]["overlap"]["low"] > alignment["chance"])


def _one_line(text: str) -> str:
    return " ".join(text.split())
