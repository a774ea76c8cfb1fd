"""What a sweep found, in the shape in which the paper shows it: chosen by the settings that were varied.

    train.batch_size, also with train.lr   Table 4, and ε by batch size
    student.pooling                        Fig. 8: ε while training
    train.schedule × train.limit           Fig. 9: final ε by the size of an epoch
    train.loss                             Fig. 10: ε while training, whole and its second half; Table 5
    train.kinds                            Fig. 4: nDCG@10 by segment, or ε where nothing was scored
    one other setting                      a number: ε by its value; a choice: ε while training
    several others                         a table

Everything is made from the record that `leaf.sweep.read_sweep` gives.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.segment import Segments
from rich.table import Table as Columns
from rich.text import Text

from leaf.figures import COLOURS, INK, STYLE, WIDTH, Figure, to_svg
from leaf.files import write_json, write_text
from leaf.recipe import Recipe
from leaf.report.figures import MODE_COLOURS
from leaf.report.pages import markdown
from leaf.report.summary import PIPE_WIDTH
from leaf.report.words import NONE, Table, count, decimals, points
from leaf.sweep import MODES, read_sweep

Record = Mapping[str, Any]
Line = Sequence[tuple[float, float]]
SEED = "train.seed"
BATCH_SIZE, LR = "train.batch_size", "train.lr"
#: May change along with the batch size: together they are one question.
RATES = {LR, "train.final_lr", "train.warmup_steps"}
NAMES = {LR: "learning rate", "train.final_lr": "final learning rate", "train.limit": "texts an epoch"}
NAMES |= {"train.kinds": "trained on"}
#: Values that read better in other words, by axis.
VALUES = {
    "train.kinds": {"query": "queries", "document": "documents", "query, document": "both", "document, query": "both"},
    "train.loss": {
        "leaf": "LEAF",
        "leaf+minilm": "LEAF + MiniLM",
        "leaf+tinybert": "LEAF + TinyBERT",
        "leaf+distilbert": "LEAF + DistilBERT",
    },
    "student.pooling": {"cls": "[CLS]"},
}
#: Told apart without colour too.
MARKERS = ("o", "s", "D", "^", "v", "P")
DASHES = ("-", (0, (4, 2)), (0, (1, 1.2)))
#: Values of an axis from which it is drawn in powers: the largest over the smallest.
LOG_FROM = 8
#: More ticks than this run into each other on a phone.
MAX_TICKS = 6
EPSILON = "held-out ε (mean ‖y − ŷ‖₂)"


@dataclass(frozen=True)
class Row:
    """Points that differ in their seed alone: numbers are means over the seeds."""

    settings: Mapping[str, Any]
    case: str | None
    lr: float
    num_texts: int
    steps: int
    epochs: int
    seconds: float
    error: float
    """Held-out ε at the end of training, which is what the paper compares."""
    best: float
    """Held-out ε of the weights that were kept."""
    spread: float | None
    """Sample standard deviation of `error` over the seeds; None for one seed."""
    curve: Line
    ndcg: Mapping[str, float] | None
    """Mode → mean nDCG@10, 0 to 1."""


def write_sweep(folder: Path, recipe: Recipe) -> dict[str, Any]:
    """Writes `sweep.json`, `sweep.md` and `figures/sweep-*.svg` of the sweep in `folder`; returns what is in the first.

    Figures need the extra `plot`. Raises `LeafError` where a point is not finished or a file is damaged.
    """
    record = read_sweep(folder, recipe)
    figures = draw(record)
    for name, figure in figures.items():
        write_text(folder / "figures" / f"{name}.svg", figure.svg)
    write_text(folder / "sweep.md", page(record, figures))
    write_json(folder / "sweep.json", record)
    return record


def print_sweep(record: Record, console: Console) -> None:
    """Prints the table, what its columns mean, and where the files are."""
    width = console.width if console.is_terminal else max(console.width, PIPE_WIDTH)
    console.print(Text(title(record), "bold"), soft_wrap=True)
    console.print()
    rows = table(record)
    shown = Columns(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in rows[0]:
        shown.add_column(heading, justify="left" if heading == rows[0][0] else "right")
    for row in rows[1:]:
        shown.add_row(*map(Text, row))
    # Rendered first: a pipe would otherwise fold the table at 80 columns.
    lines = console.render(shown, console.options.update(max_width=width))
    console.print(Segments(lines), soft_wrap=True, end="")
    for sentence in caption(record):
        console.print(Text(sentence, "dim"), soft_wrap=True)
    console.print()
    for name in ("sweep.md", "sweep.json"):
        console.print(Text(f"{record['folder']}/{name}"), soft_wrap=True)


def page(record: Record, figures: Mapping[str, Figure]) -> str:
    """`sweep.md`."""
    lines = [f"# {markdown(record['name'])}", ""]
    if record["description"]:
        lines += [str(markdown(record["description"])), ""]
    base = record["base"]
    shared = [f"teacher {record['teacher']['name']}"]
    shared += [f"{axis_name(key)} {value_name(key, base[key])}" for key in (BATCH_SIZE, LR) if key in base]
    varied_names = " and ".join(f"`{axis}`" for axis in varied(record)) or "nothing"
    lines += [
        f"Varied: {varied_names}. The same for all: {markdown(', '.join(shared))}.",
        "",
        f"## {title(record)}",
        "",
    ]
    rows = table(record)
    lines.append(f"| {' | '.join(str(markdown(cell)) for cell in rows[0])} |")
    lines.append("|--|" + "--:|" * (len(rows[0]) - 1))
    lines += [f"| {' | '.join(str(markdown(cell)) for cell in row)} |" for row in rows[1:]]
    lines += ["", *(str(markdown(sentence)) for sentence in caption(record)), ""]
    for name, figure in figures.items():
        lines += [f"### {figure.title}", "", f"![{markdown(figure.alt)}](figures/{name}.svg)", ""]
    if not figures:
        lines += ["No figure: matplotlib is not installed (`pip install 'leaf[plot]'`), or there is only a table.", ""]
    return "\n".join([*lines, f"{markdown(measured(record))} All numbers: `sweep.json`."]) + "\n"


def measured(record: Record) -> str:
    """By which code and on what the points were made."""
    made = [point["provenance"] for point in record["points"]]
    commits = ", ".join(dict.fromkeys(str(each.get("commit") or "unknown") for each in made))
    machines = []
    for hardware in (each.get("hardware", {}) for each in made):
        gpus = hardware.get("gpus")
        machines.append(gpus[0] if gpus else f"{hardware.get('cpu')}, threads: {hardware.get('threads')}")
    return f"Trained at commit {commits} on {', '.join(dict.fromkeys(machines))}."


def varied(record: Record) -> list[str]:
    """The axes on which points differ, other than the seed."""
    return [axis for axis, values in record["axes"].items() if len(values) > 1 and axis != SEED]


def read_rows(record: Record) -> list[Row]:
    """The points in order, those of different seeds merged."""
    merged: dict[str, list[Record]] = {}
    for point in record["points"]:
        rest = {axis: value for axis, value in point["settings"].items() if axis != SEED}
        merged.setdefault(json.dumps([point["case"], rest]), []).append(point)
    return [_row(each) for each in merged.values()]


def title(record: Record) -> str:
    """What the sweep compares, as a heading."""
    axes = varied(record)
    titles = {
        "train.loss": "Losses that use the teacher's inside, beside LEAF's",
        "train.kinds": "What is trained on: queries, documents, both",
        "student.pooling": "Pooling",
    }
    if _is_batch_size(axes):
        return "Batch size, at equal data"
    if set(axes) == {"train.schedule", "train.limit"}:
        return "Learning-rate schedule and size of an epoch"
    if len(axes) == 1 and axes[0] in titles:
        return titles[axes[0]]
    name = " and ".join(map(axis_name, axes)) or "one point"
    return name[0].upper() + name[1:]


def table(record: Record) -> Table:
    """One row a point, with what was varied first; columns that say nothing are left out."""
    rows, axes = read_rows(record), varied(record)
    named = bool(record["cases"])
    if _is_batch_size(axes):
        axes, named = [BATCH_SIZE, LR], False  # which say it all: the warm-up and the final rate follow them
    scored = any(row.ndcg for row in rows)
    # The texts differ where kinds do; beside a limit they would be said twice.
    texts = "train.limit" not in axes and len({row.num_texts for row in rows}) > 1
    best = any(row.best != row.error for row in rows)
    header = [*(["case"] if named else []), *map(axis_name, axes)] or ["student"]
    header += [*(["texts"] if texts else []), "time", "held-out ε", *(["best ε"] if best else [])]
    header += [*(["nDCG@10", "asymmetric"] if scored else []), "batches"]
    lines = [header]
    for row in rows:
        settings = {LR: row.lr, **row.settings}
        values = [*([row.case or NONE] if named else []), *(value_name(axis, settings[axis]) for axis in axes)]
        values = values or [record["name"]]
        line = [*values, *([count(row.num_texts)] if texts else []), duration(row.seconds)]
        spread = "" if row.spread is None else f" ± {row.spread:.4f}"
        line += [decimals(row.error, 4) + spread, *([decimals(row.best, 4)] if best else [])]
        line += [points(row.ndcg[mode] if row.ndcg else None) for mode in MODES] if scored else []
        lines.append([*line, count(row.steps)])
    return lines


def caption(record: Record) -> list[str]:
    """What the columns of the table mean."""
    said = ["Held-out ε: mean distance to the teacher's vectors on texts never trained on, at the end of training."]
    seeds = len({point["settings"].get(SEED) for point in record["points"]})
    if seeds > 1:
        said.append(f"Means over {seeds} seeds; ± is their standard deviation.")
    if datasets := record["datasets"]:
        sets = f"mean of {len(datasets)} sets" if len(datasets) > 1 else datasets[0]
        teacher = points(record["teacher"]["ndcg@10"])
        said.append(f"nDCG@10: {sets}; first the student on both sides, then over its teacher's documents.")
        said.append(f"The teacher alone: {teacher}.")
    return said


def duration(seconds: float) -> str:
    """`95.4` → `1 min 35 s`; from an hour on without seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def axis_name(axis: str) -> str:
    """`train.batch_size` → `batch size`."""
    return NAMES.get(axis, axis.partition(".")[2].replace("_", " "))


def value_name(axis: str, value: Any) -> str:
    """A setting's value as people write it."""
    if value is None:
        return "all" if axis == "train.limit" else NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        value = ", ".join(str(each) for each in value) or "none"
    if isinstance(value, str):
        return VALUES.get(axis, {}).get(value, value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def draw(record: Record) -> dict[str, Figure]:
    """The figures for what was varied, by name; none without matplotlib (`pip install 'leaf[plot]'`)."""
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        return {}
    figures = {}
    with matplotlib.rc_context(STYLE):
        for name, heading, paint in _figures(record):
            canvas = Canvas(figsize=(WIDTH, 3.1), layout="constrained")
            alt = f"{heading}: {paint(canvas)}."
            figures[f"sweep-{name}"] = Figure(heading, alt, to_svg(canvas, f"sweep-{name}", alt))
    return figures


def _figures(record: Record) -> list[tuple[str, str, Callable[[Any], str]]]:
    """Name, title and what draws it, for each figure of this sweep."""
    rows, axes = read_rows(record), varied(record)
    batch = value_name(BATCH_SIZE, record["base"][BATCH_SIZE]) if BATCH_SIZE in record["base"] else None
    step = f"step (of {batch} texts)" if batch else "step"

    def curves(since: float = 0) -> Callable[[Any], str]:
        return lambda canvas: _curves(canvas, {value_name(axis, row.settings[axis]): row for row in rows}, step, since)

    if _is_batch_size(axes):
        lines = _batch_size_lines(rows)
        return [
            (
                "batch-size",
                "Held-out ε by batch size",
                lambda canvas: _lines(canvas, lines, "batch size (texts a step)"),
            )
        ]
    if set(axes) == {"train.schedule", "train.limit"}:
        schedules = {
            value_name("train.schedule", name): [
                (row.steps / row.epochs, row.error) for row in rows if row.settings["train.schedule"] == name
            ]
            for name in record["axes"]["train.schedule"]
        }
        heading = "Final held-out ε by the size of an epoch"
        return [("schedule", heading, lambda canvas: _lines(canvas, schedules, "batches an epoch"))]
    if len(axes) != 1:
        return []
    axis = axes[0]
    name = axis.partition(".")[2].replace("_", "-")
    if axis == "train.kinds":
        if all(row.ndcg for row in rows):
            heading = "nDCG@10 by what was trained on"
            return [(name, heading, lambda canvas: _bars(canvas, rows, axis, record["teacher"]["ndcg@10"]))]
        return [(name, "Held-out ε by what was trained on", lambda canvas: _error_bars(canvas, rows, axis))]
    values = [row.settings[axis] for row in rows]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        line = {"": [(float(row.settings[axis]), row.error) for row in rows]}
        heading = f"Final held-out ε by {axis_name(axis)}"
        return [(name, heading, lambda canvas: _lines(canvas, line, axis_name(axis)))]
    heading = f"Held-out ε while training, by {axis_name(axis)}"
    figures = [(name, heading, curves())]
    if axis == "train.loss":
        half = max(step for row in rows for step, _ in row.curve) / 2
        figures.append((f"{name}-second-half", f"{heading}: the second half", curves(half)))
    return figures


def _is_batch_size(axes: Sequence[str]) -> bool:
    return BATCH_SIZE in axes and set(axes) <= {BATCH_SIZE, *RATES}


def _batch_size_lines(rows: Sequence[Row]) -> dict[str, Line]:
    """ε by batch size: at the rate that most sizes were trained with, and at rates of their own."""
    by_rate: dict[float, list[Row]] = {}
    for row in rows:
        by_rate.setdefault(row.lr, []).append(row)
    common = max(by_rate, key=lambda lr: len(by_rate[lr]))

    def line(chosen: Sequence[Row]) -> Line:
        best: dict[int, float] = {}
        for row in chosen:
            size = row.settings[BATCH_SIZE]
            best[size] = min(row.error, best.get(size, row.error))
        return sorted(best.items())

    fixed = by_rate.pop(common)
    own = [row for each in by_rate.values() for row in each]
    if not own:
        return {"": line(fixed)}
    # The common rate is also the one that fits where a size was given no other.
    others = {row.settings[BATCH_SIZE] for row in own}
    own += [row for row in fixed if row.settings[BATCH_SIZE] not in others]
    return {f"learning rate {common:g} for all": line(fixed), "a rate for each size": line(own)}


def _lines(canvas: Any, lines: Mapping[str, Line], xlabel: str) -> str:
    """Final ε against a number, a line per name; without a name there is one line and no legend."""
    axes = canvas.add_subplot()
    said = []
    for position, (name, line) in enumerate(lines.items()):
        line = sorted(line)
        look: dict[str, Any] = {"color": COLOURS[position % len(COLOURS)], "markersize": 5}
        look["marker"] = MARKERS[position % len(MARKERS)]
        look["linestyle"] = DASHES[position % len(DASHES)]  # lines that share points hide each other
        axes.plot([x for x, _ in line], [y for _, y in line], linewidth=1.8, label=name or None, **look)
        each = ", ".join(f"{y:.4f} at {_tick(x)}" for x, y in line)
        said.append(f"{name} {each}" if name else each)
    _ticks(axes, sorted({x for line in lines.values() for x, _ in line}))
    axes.set(xlabel=xlabel, ylabel=EPSILON)
    if any(lines):
        _legend(canvas, min(3, len(lines)))
    return "; ".join(said)


def _curves(canvas: Any, rows: Mapping[str, Row], xlabel: str, since: float) -> str:
    """ε against the step from `since` on; the legend has the final values, which the eye cannot read off."""
    axes = canvas.add_subplot()
    said = []
    for position, (name, row) in enumerate(rows.items()):
        shown = [(step, error) for step, error in row.curve if step >= since]
        look = {"color": COLOURS[position % len(COLOURS)], "marker": MARKERS[position % len(MARKERS)], "markersize": 4}
        axes.plot(*zip(*shown, strict=True), linewidth=1.8, label=f"{name}: {row.error:.4f}", **look)
        said.append(f"{name} from {shown[0][1]:.4f} at step {_tick(shown[0][0])} to {row.error:.4f}")
    axes.locator_params(axis="x", integer=True, nbins=MAX_TICKS)
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    axes.set(xlabel=xlabel, ylabel=EPSILON)
    _legend(canvas, 2)
    return "; ".join(said)


def _bars(canvas: Any, rows: Sequence[Row], axis: str, teacher: float) -> str:
    """Bars from 0, so that their lengths compare; the line is the teacher."""
    canvas.set_size_inches(WIDTH, 1.2 + 0.75 * len(rows))
    axes = canvas.add_subplot()
    said = []
    for position, row in enumerate(rows):
        assert row.ndcg is not None, "only scored rows get here"
        for mode, shift in zip(MODES, (0.2, -0.2), strict=True):
            value = 100 * row.ndcg[mode]
            axes.barh(position - shift, value, 0.36, color=MODE_COLOURS[mode], label=None if position else mode)
            _beside(axes, max(value, 100 * teacher), position - shift, f"{value:.1f}")  # clear of the line
        both = ", ".join(f"{mode} {100 * row.ndcg[mode]:.1f}" for mode in MODES)
        said.append(f"{value_name(axis, row.settings[axis])} {both}")
    axes.axvline(100 * teacher, color=INK, linewidth=1, linestyle="--", label=f"teacher {100 * teacher:.1f}")
    longest = max(100 * teacher, *(100 * value for row in rows if row.ndcg for value in row.ndcg.values()))
    _categories(axes, [value_name(axis, row.settings[axis]) for row in rows], 1.18 * longest)
    axes.set(xlabel="nDCG@10")
    _legend(canvas, 3)
    return "; ".join([*said, f"the teacher {100 * teacher:.1f}"])


def _error_bars(canvas: Any, rows: Sequence[Row], axis: str) -> str:
    canvas.set_size_inches(WIDTH, 0.9 + 0.5 * len(rows))
    axes = canvas.add_subplot()
    names = [value_name(axis, row.settings[axis]) for row in rows]
    for position, row in enumerate(rows):
        axes.barh(position, row.error, 0.5, color=COLOURS[0], xerr=row.spread, ecolor=INK)
        _beside(axes, row.error + (row.spread or 0), position, f"{row.error:.4f}")
    _categories(axes, names, 1.25 * max(row.error for row in rows))
    axes.set(xlabel=EPSILON)
    return "; ".join(f"{name} {row.error:.4f}" for name, row in zip(names, rows, strict=True))


def _legend(canvas: Any, columns: int) -> None:
    """Above the axes; close, so that two long names still fit side by side."""
    canvas.legend(loc="outside upper center", ncols=columns, columnspacing=1, handlelength=1.6, handletextpad=0.5)


def _beside(axes: Any, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), (5, 0), textcoords="offset points", va="center")


def _categories(axes: Any, names: Sequence[str], right: float) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set(xlim=(0, right), ylim=(len(names) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


def _ticks(axes: Any, values: Sequence[float]) -> None:
    """Ticks where there are values, as far as there is room, in powers where the values are."""
    if values[0] > 0 and values[-1] / values[0] >= LOG_FROM:
        axes.set_xscale("log")
    elif len(values) > MAX_TICKS:
        axes.locator_params(axis="x", nbins=MAX_TICKS)
        return
    every = -(-len(values) // MAX_TICKS)
    shown = values[::every]
    axes.set_xticks(shown, [_tick(value) for value in shown], minor=False)
    axes.set_xticks([], minor=True)


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or float(value).is_integer() else f"{value:g}"


def _row(same: Sequence[Record]) -> Row:
    first = same[0]
    errors = [point["last_error"] for point in same]
    curves = [list(zip(point["curve"]["steps"], point["curve"]["errors"], strict=True)) for point in same]
    scored = [point["ndcg@10"] for point in same]

    def mean(key: str) -> float:
        return statistics.fmean(point[key] for point in same)

    return Row(
        settings=first["settings"],
        case=first["case"],
        **{key: first[key] for key in ("lr", "num_texts", "steps", "epochs")},
        seconds=mean("seconds"),
        error=mean("last_error"),
        best=mean("error"),
        spread=statistics.stdev(errors) if len(errors) > 1 else None,
        # Seeds change no step at which ε is taken.
        curve=[(both[0][0], statistics.fmean(error for _, error in both)) for both in zip(*curves, strict=True)],
        ndcg={mode: statistics.fmean(each[mode] for each in scored) for mode in MODES} if all(scored) else None,
    )
