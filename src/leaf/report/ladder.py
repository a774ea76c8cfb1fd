"""What swapping the query encoder over one index buys and costs: quality against the time of a query.

    found = points(retention(scores, precisions), latencies)
    figure = draw_ladder(found, "AMD EPYC, 2 threads")       # None without matplotlib
    rows = ladder_table(found)

Every encoder asks an index of the teacher's documents. It may be there in several forms (PyTorch, ONNX in fp32 and in
int8), each scored and timed by itself: a factor between two forms is the runtime's, not the student's.
"""

import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from leaf.errors import LeafError
from leaf.evaluation.compare import means
from leaf.evaluation.records import Score
from leaf.evaluation.statistics import Interval
from leaf.figures import COLOURS, GREY, INK, STYLE, Figure, to_svg
from leaf.report.scores import interval
from leaf.report.words import Table, count

TITLE = "Quality against the time of a query, over one index"
#: How the forms are drawn.
MARKERS = {"PyTorch": "o", "ONNX fp32": "D", "ONNX int8": "s"}
OTHER_MARKERS = "^vP*X<>"
#: Inches: wider than most figures, for names beside the marks.
SIZE = (6.4, 4.2)
#: Characters of the note below that fit into a line.
NOTE_WIDTH = 104
#: Percent that the vertical axis spans at least, so that a tenth of a percent does not look like a cliff.
HEIGHT = 10.0
#: In pixels: left, bottom, right, top.
Box: TypeAlias = tuple[float, float, float, float]
#: Where a name may stand around a mark, the right first; on a diagonal, it touches that with a corner.
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
#: Distances of a name from its mark, in points.
DISTANCES = (9, 14, 22, 32, 44)


@dataclass(frozen=True)
class Point:
    """One query encoder in one form."""

    encoder: str
    """Its name, which its forms share."""
    form: str
    """What computes it: `PyTorch`, `ONNX fp32`, `ONNX int8` …"""
    microseconds: float
    """Median time of one query, from its text to its vector."""
    spread: tuple[float, float] | None
    """10th and 90th percentile of that time, in microseconds, where they were kept."""
    kept: Interval
    """Percent of the teacher's nDCG@10 over the teacher's documents, mean over datasets, with its 95 % interval."""
    is_teacher: bool = False


def retention(scores: Sequence[Score], encoders: Mapping[str, str | None]) -> dict[str, Interval | None]:
    """Of each query encoder (name → precision of its weights): percent of the teacher's nDCG@10; None is the teacher's.

    A file in fp32 may have the score of the student that it was compared with when it was exported. Raises `LeafError`
    for an encoder without a score over a teacher's documents.
    """
    teachers = {each.encoder for each in scores if each.mode == "teacher"}
    found = {}
    for name, precision in encoders.items():
        same = [name, f"{name}-fp32"] if precision in (None, "fp32") else [name]
        found[name] = None if name in teachers else next(filter(None, (_kept(scores, each) for each in same)), None)
        if found[name] is None and name not in teachers:
            known = teachers | {each.encoder for each in scores if each.mode == "asymmetric"}
            raise LeafError(
                f"no nDCG@10 of queries by '{name}' over a teacher's documents, there is that of "
                f"{', '.join(sorted(known)) or 'none'}; `leaf evaluate` it with --queries, and --documents TEACHER"
            )
    return found


def points(kept: Mapping[str, Interval | None], latencies: Mapping[str, Mapping[str, Any]]) -> list[Point]:
    """A point for each encoder of `latencies`; `kept` is what `retention` gives for them.

    A latency is a record of `leaf.runtime.speed.query_latencies` with `runtime` (`torch` or `onnxruntime`) and, if they
    are known, `precision` and `device`.
    """
    return [
        _point(name.removesuffix(f"-{timed.get('precision')}"), timed, kept[name]) for name, timed in latencies.items()
    ]


def report_points(report: Mapping[str, Any]) -> list[Point]:
    """The points that a run's `report.json` has; those of ONNX files once it was exported and scored."""
    found = []
    if timed := _timed(report["teacher"], report):
        found.append(_point("teacher", timed, None))
    for student in report["students"]:
        value, bounds = student["retention"]["asymmetric"], student["intervals"]["asymmetric"]
        if value is None or not bounds:
            continue
        if timed := _timed(student, report):
            found.append(_point(student["name"], timed, Interval(value, *bounds)))
        for precision, each in student.get("exported", {}).items():
            timed = {**each["latency"], "runtime": "onnxruntime", "precision": precision}
            found.append(_point(student["name"], timed, Interval(*each["retention"])))
    return found


def machine(speed: Mapping[str, Any]) -> str:
    """Where times were taken, from what is known of `cpu`, `threads` and `num_queries`."""
    threads, queries = speed.get("threads"), speed.get("num_queries")
    said = (
        speed.get("cpu"),
        f"{threads} thread{'' if threads == 1 else 's'}" if threads else None,
        f"{count(queries)} queries, tokenisation included" if queries else None,
    )
    return ", ".join(each for each in said if each)


def caption(found: Sequence[Point], machine: str) -> list[str]:
    """What the table and the figure show, one sentence each."""
    said = [
        "Queries by each encoder over the teacher's documents: percent of the teacher's nDCG@10 with its 95 % paired "
        "bootstrap interval, and the median time from a query to its vector, one at a time.",
        f"{machine}.",
    ]
    if len({each.form.partition(" ")[0] for each in found}) > 1:
        said.append("PyTorch takes longer than ONNX Runtime for the same model: compare like with like.")
    return said


def ladder_table(found: Sequence[Point]) -> Table:
    """A row for each point, for people without the figure; the first row is the header."""
    rows = [["encoder", "computed by", "µs a query", "10–90 %", "% of the teacher"]]
    for each in found:
        spread = "" if each.spread is None else f"{_microseconds(each.spread[0])}–{_microseconds(each.spread[1])}"
        kept = "100" if each.is_teacher else interval(each.kept)
        rows.append([each.encoder, each.form, _microseconds(each.microseconds), spread, kept])
    return rows


def draw_ladder(found: Sequence[Point], machine: str, name: str = "ladder") -> Figure | None:
    """Percent of the teacher against microseconds (log), a colour for each encoder and a mark for each of its forms.

    `machine` says where the times were taken. None without matplotlib, and for fewer than two points.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        return None
    if len(found) < 2:
        return None
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=SIZE, layout="constrained")
        axes = canvas.add_subplot()
        encoders = {each.encoder: _colour(found, each.encoder) for each in found}
        forms = _markers(found)
        for encoder, colour in encoders.items():
            own = sorted((each for each in found if each.encoder == encoder), key=lambda each: each.microseconds)
            axes.plot(*_places(own), ":", color=colour, linewidth=1.2, alpha=0.6, zorder=1.5)
            for each in own:
                _mark(axes, each, colour, forms[each.form])
        axes.axhline(100, color=INK, linewidth=1, linestyle="--", zorder=1)
        _frame(axes, found)
        axes.set_ylabel("% of the teacher's nDCG@10")
        axes.set_xlabel("µs a query, one at a time (median, log scale)")
        for form, marker in forms.items():
            axes.plot([], [], marker, color=GREY, label=form, **_style(form))
        canvas.legend(loc="outside upper left", ncols=len(forms), handletextpad=0.2, columnspacing=1.4)
        # Below the axes, and in the layout: a time says little without its machine, wherever the file goes.
        bars = "Bars: 95 % interval" + ("; 10th to 90th percentile" if any(each.spread for each in found) else "")
        note = textwrap.fill(f"{bars}. {machine}.", NOTE_WIDTH)
        canvas.supxlabel(note, fontsize=8, x=0.01, ha="left")
        canvas.draw_without_rendering()
        _write_names(axes, found, encoders, canvas.dpi / 72)
        alt = _alt(found, machine)
        return Figure(TITLE, alt, to_svg(canvas, name, alt))


def form_of(timed: Mapping[str, Any]) -> str:
    """What computes an encoder, in words: `PyTorch`, `PyTorch on cuda`, `ONNX fp32`, `ONNX int8`, `ONNX q4` …"""
    if timed["runtime"] == "torch":
        device = str(timed.get("device") or "cpu").partition(":")[0]
        return "PyTorch" if device == "cpu" else f"PyTorch on {device}"
    precision = timed.get("precision") or "fp32"
    return f"ONNX {'int8' if precision == 'q8' else precision}"


def _kept(scores: Sequence[Score], encoder: str) -> Interval | None:
    found = (each for each in means(scores, encoder) if each.task == "retrieval")
    return next((each.retention["asymmetric"] for each in found if "asymmetric" in each.retention), None)


def _point(encoder: str, timed: Mapping[str, Any], kept: Interval | None) -> Point:
    """`kept` None: the teacher itself."""
    bounds = timed.get("p10_ms"), timed.get("p90_ms")
    spread = None if None in bounds else (1000 * bounds[0], 1000 * bounds[1])  # type: ignore[operator]
    whole = Interval(100.0, 100.0, 100.0)
    return Point(encoder, form_of(timed), 1000 * timed["median_ms"], spread, kept or whole, kept is None)


def _timed(encoder: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any] | None:
    """How long torch took for a query of the teacher or of a student."""
    if encoder["latency_ms"] is None:
        return None
    timed = encoder.get("latency") or {"median_ms": encoder["latency_ms"]}
    return {**timed, "runtime": "torch", "device": report["speed"]["device"]}


def _colour(found: Sequence[Point], encoder: str) -> str:
    """The page's own for the teacher."""
    students = list(dict.fromkeys(each.encoder for each in found if not each.is_teacher))
    return COLOURS[students.index(encoder) % (len(COLOURS) - 1)] if encoder in students else INK


def _markers(found: Sequence[Point]) -> dict[str, str]:
    """The mark of each form that occurs, those of `MARKERS` first."""
    forms = dict.fromkeys(each.form for each in found)
    others = [each for each in forms if each not in MARKERS]
    known = {form: marker for form, marker in MARKERS.items() if form in forms}
    return known | {form: OTHER_MARKERS[place % len(OTHER_MARKERS)] for place, form in enumerate(others)}


def _style(form: str) -> dict[str, Any]:
    """Hollow but for int8, so that a mark is seen under another: the files of a lookup table take the same time."""
    if form == "ONNX int8":
        return {"markersize": 5}
    return {"markersize": 9 if form == "ONNX fp32" else 7, "markerfacecolor": "none", "markeredgewidth": 1.5}


def _mark(axes: Any, point: Point, colour: str, marker: str) -> None:
    x, kept = point.microseconds, point.kept
    if kept.high > kept.low:
        axes.plot((x, x), (kept.low, kept.high), color=colour, linewidth=1.6, marker="_", markersize=6, alpha=0.75)
    if point.spread is not None:
        axes.plot(
            point.spread, (kept.value, kept.value), color=colour, linewidth=1.2, marker="|", markersize=5, alpha=0.75
        )
    axes.plot(x, kept.value, marker, color=colour, **_style(point.form))


def _places(found: Iterable[Point]) -> tuple[list[float], list[float]]:
    found = list(found)
    return [each.microseconds for each in found], [each.kept.value for each in found]


def _frame(axes: Any, found: Sequence[Point]) -> None:
    """The axes around the points with room for names, microseconds at 1 and 3 (or 1, 2 and 5) of each decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(each.kept.low for each in found), max(100.0, *(each.kept.high for each in found))
    middle, half = (low + high) / 2, max(HEIGHT, high - low) / 2
    axes.set_ylim(middle - 1.25 * half, middle + 1.15 * half)
    edges = [edge for each in found for edge in (each.microseconds, *(each.spread or ()))]
    first, last = min(edges) / 1.6, max(edges) * 1.6
    axes.set(xscale="log", xlim=(first, last))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if last / first > 60 else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _write_names(axes: Any, found: Sequence[Point], encoders: Mapping[str, str], scale: float) -> None:
    """Writes each encoder's name in its colour beside one of its marks; `scale` is pixels a point of print."""
    inside = axes.get_window_extent()
    _, whole = axes.transData.transform((1, 100))
    taken = [(inside.x0, whole - scale, inside.x1, whole + scale)]  # the teacher's line
    taken += [box for each in found for box in _boxes(axes, each, scale)]
    sizes, marks = {}, {}
    for encoder in sorted(encoders, key=lambda each: encoders[each] != INK):  # the teacher has one mark alone
        text = axes.text(0, 0, encoder, transform=None, in_layout=False)
        extent = text.get_window_extent()
        text.remove()
        sizes[encoder] = extent.width, extent.height
        own = [(each.microseconds, each.kept.value) for each in found if each.encoder == encoder]
        marks[encoder] = [tuple(each) for each in axes.transData.transform(own)]
    for encoder, (left, bottom, *_) in place_names(sizes, marks, taken, inside.extents, scale).items():
        x, y = axes.transData.inverted().transform((left, bottom))
        axes.text(x, y, encoder, color=encoders[encoder], va="bottom", in_layout=False)


def place_names(
    sizes: Mapping[str, tuple[float, float]],
    marks: Mapping[str, Sequence[tuple[float, float]]],
    taken: Sequence[Box],
    inside: Box,
    scale: float = 1.0,
) -> dict[str, Box]:
    """Where each name stands: beside one of its `marks` (x, y), on nothing that is `taken`, and not outside `inside`.

    Names are of `sizes` (width, height) and are placed in that order, each on no earlier one. Where there is no free
    place among those tried, the one that hides least.
    """
    found: dict[str, Box] = {}
    for name, (width, height) in sizes.items():
        best: tuple[tuple[float, float], Box] | None = None
        for distance, (across, up), (x, y) in itertools.product(DISTANCES, SIDES, marks[name]):
            left = x + across * distance * scale - (1 - across) / 2 * width
            bottom = y + up * distance * scale - (1 - up) / 2 * height
            box = (left, bottom, left + width, bottom + height)
            hidden = sum(_shared(box, other) for other in (*taken, *found.values()))
            spoilt = hidden + 10 * (width * height - _shared(box, inside))
            if best is None or (round(spoilt, 3), distance) < best[0]:
                best = (round(spoilt, 3), distance), box
        assert best is not None, "an encoder has a mark"
        found[name] = best[1]
    return found


def _boxes(axes: Any, point: Point, scale: float) -> list[Box]:
    """What a point covers in pixels: its mark and its two bars."""
    (low, high), (left, right) = point.kept[1:], point.spread or (point.microseconds, point.microseconds)
    corners = [(point.microseconds, point.kept.value), (left, low), (right, high)]
    (x, y), (left, low), (right, high) = axes.transData.transform(corners)
    mark, bar = 6 * scale, 3 * scale
    return [
        (x - mark, y - mark, x + mark, y + mark),
        (x - bar, low, x + bar, high),
        (left, y - bar, right, y + bar),
    ]


def _shared(one: Box, other: Box) -> float:
    """Area that two boxes share."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return float(max(0.0, across) * max(0.0, up))


def _alt(found: Sequence[Point], machine: str) -> str:
    said = "; ".join(
        f"{each.encoder}, {each.form}: {_microseconds(each.microseconds)} µs"
        + ("" if each.is_teacher else f", {each.kept.value:.1f} % ({each.kept.low:.1f} to {each.kept.high:.1f})")
        for each in found
    )
    return f"Percent of the teacher's nDCG@10 against microseconds a query ({machine}): {said}."


def _microseconds(value: float) -> str:
    """Three digits: `8,420`, `47.3`."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"
