"""What `leaf speed MODEL…` measured, in words and lines: for a terminal, and as a part of docs/speed.md."""

from collections.abc import Mapping
from typing import Any

from leaf.encoder import Role
from leaf.figures import COLOURS, GREY, INK, STYLE, to_svg

#: Characters of the longest name with which three columns of a legend fit.
THREE_FIT = 22
HEADINGS: dict[Role, str] = {"query": "queries", "document": "documents"}
MISSING = "Not yet measured: `leaf speed table8 --out results/speed`."
PICTURE = "speed-query.svg"
MARKERS = "osD^vPX*"


def table(record: Mapping[str, Any], role: Role) -> list[list[str]]:
    """Each contestant's speed on one kind of text in words, as in Table 8; the first row is the header.

    Percentiles are of queries alone: nobody waits for one document.
    """
    settings = record["settings"]
    speedups = [f"× {name}" for name in settings["against"]]
    latencies = ["p50 / p95 / p99, ms"] if role == "query" else []
    header = ["encoder", f"{HEADINGS[role]}/s", *speedups, "min latency, ms", "max N", *latencies, "tokenising, ms"]
    found = [header]
    for name, each in record["contestants"].items():
        timed, ratios = each[role], record["ratios"][role][name]
        quickest = timed["min_latency_ms"]
        most = timed["max_n"]
        row = [name, mean_sd(timed["per_second"])]
        row += [speedup(ratios[other]) if other in ratios else "" for other in settings["against"]]
        row += [mean_sd(quickest)]
        row += ["-" if most is None else f"{most}+" if most == max(settings["batch_sizes"]) else str(most)]
        if role == "query":
            row += [" / ".join(number(each["latency_ms"][key]) for key in ("p50", "p95", "p99"))]
        row += [number(timed["batches"][str(quickest["batch_size"])]["tokenise_ms"])]
        found.append(row)
    return found


def caption(record: Mapping[str, Any]) -> str:
    """On what the record was made, in a few sentences."""
    settings, made_by = record["settings"], record["provenance"]
    texts = ", ".join(
        f"{each['texts']:,} {HEADINGS[role]} ({each['source']}; {each['mean_tokens']:.0f} tokens on average)"
        for role, each in settings["texts"].items()
    )
    fewer = [
        f"{name} {each[role]['rounds']} on {heading}"
        for name, each in record["contestants"].items()
        for role, heading in HEADINGS.items()
        if each[role]["rounds"] < settings["rounds"]
    ]
    rounds = f"{settings['rounds']} rounds" + (f", slow models fewer: {', '.join(fewer)}" if fewer else "")
    versions = made_by["versions"]
    torch = any(each["runtime"] == "torch" for each in record["contestants"].values())
    packages = ("onnxruntime", "tokenizers", *(("torch", "sentence-transformers") if torch else ()))
    used = ", ".join(f"{package} {versions[package]}" for package in packages if package in versions)
    return (
        f"{made_by['hardware']['cpu']}, {settings['threads']} threads. {texts}. {rounds}. {used}; commit "
        f"{made_by['commit']}, {made_by['time'][:10]}."
    )


def speedup(ratio: Mapping[str, float]) -> str:
    """How many times as fast, median over rounds, with the least and the most."""
    return f"{number(ratio['median'])} ({number(ratio['min'])}–{number(ratio['max'])})"


def mean_sd(values: Mapping[str, Any]) -> str:
    """Mean ± standard deviation, which one sample has none of."""
    return number(values["mean"]) + (f" ± {number(values['sd'])}" if values["sd"] is not None else "")


def number(value: float) -> str:
    """Three digits or so, whatever the size."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def section(record: Mapping[str, Any]) -> list[str]:
    """A table for each kind of text, as Markdown, and on what the record was made."""
    parts = []
    for role in HEADINGS:
        header, *rows = table(record, role)
        lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---", *["--:"] * (len(header) - 1)], *rows)]
        parts.append("\n".join(lines))
    return [*parts, caption(record)]


def figure(record: Mapping[str, Any]) -> str:
    """Milliseconds against batch size, a line for each contestant, a panel for each kind of text, as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    settings = record["settings"]
    styles = _styles(record)
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(6.5, 4), layout="constrained")
        panels = canvas.subplots(1, 2, sharey=True)
        for axes, (role, heading) in zip(panels, HEADINGS.items(), strict=True):
            for name, each in record["contestants"].items():
                times = [each[role]["batches"][str(size)]["median_ms"] for size in settings["batch_sizes"]]
                axes.plot(settings["batch_sizes"], times, markersize=4, linewidth=1.6, label=name, **styles[name])
            axes.axhline(settings["within_ms"], color=INK, linewidth=1, linestyle="--")
            axes.set(xscale="log", yscale="log", xlabel="batch size")
            axes.set_xticks(settings["batch_sizes"], [str(size) for size in settings["batch_sizes"]])
            axes.set_xticks([], minor=True)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
            axes.set_title(heading, loc="left", fontsize=10, fontweight="bold")
        panels[0].set_ylabel("ms a batch")
        handles, labels = panels[0].get_legend_handles_labels()
        columns = 3 if max(map(len, labels)) <= THREE_FIT else 2
        canvas.legend(handles, labels, loc="outside upper left", ncols=columns)
        return to_svg(canvas, "speed-query", alt(record))


def alt(record: Mapping[str, Any]) -> str:
    """What the figure says, for those who do not see it."""
    sizes = record["settings"]["batch_sizes"]
    said = []
    for role, heading in HEADINGS.items():
        lines = []
        for name, each in record["contestants"].items():
            first, last = (each[role]["batches"][str(size)]["median_ms"] for size in (sizes[0], sizes[-1]))
            lines.append(f"{name} {number(first)} to {number(last)}")
        said.append(f"{heading}: {', '.join(lines)}")
    return f"Milliseconds a batch, from batch size {sizes[0]} to {sizes[-1]}. {'; '.join(said)}."


def _styles(record: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Grey for those that the others are held against; colours for the others."""
    held_against = record["settings"]["against"]
    styles, others = {}, 0
    for position, name in enumerate(record["contestants"]):
        colour = GREY if name in held_against else COLOURS[others % (len(COLOURS) - 1)]
        others += name not in held_against
        styles[name] = {"color": colour, "marker": MARKERS[position % len(MARKERS)]}
    return styles
