"""The tables and the figure of docs/speed.md, from the records in results/speed/. No number is written here.

records = read_records(Path("results/speed"))
parts = section(records, "train")                  # a table and on what it was measured, as Markdown
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leaf.figures import COLOURS, GREY, INK, STYLE, to_svg
from leaf.speed.record import NAMES, OURS, rate, rows

#: What is timed: the heading, and who takes part (their rows where there is no record).
SECTIONS = {
    "train": ("One training step", (OURS, "padded", "sentence_transformers")),
    "embed": ("The teacher pass", (OURS, "sentence_transformers", "sentence_transformers_float32")),
}
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
QUERY = "query-cpu"

Records = Mapping[str, Mapping[str, Any]]


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """The records there are, by name: `train-cpu`, `train-cuda`, `embed-cpu`, `embed-cuda`, `query-cpu`."""
    stems = [*(f"{what}-{device}" for what in SECTIONS for device in DEVICES), QUERY]
    paths = [folder / f"{stem}.json" for stem in stems]
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()}


def section(records: Records, what: str) -> list[str]:
    """Of `train` or `embed`: the table, device by device, and on what each was measured."""
    table, notes = ["| on | | texts/s | tokens/s | padding | leaf's speed-up |", "|---|---|--:|--:|--:|--:|"], []
    for device, name in DEVICES.items():
        if record := records.get(f"{what}-{device}"):
            table += [f"| {' | '.join((name, *row))} |" for row in rows(record)]
            notes.append(_note(record, name))
        else:
            table += [f"| {name} | {NAMES[each]} | not yet measured | | | |" for each in SECTIONS[what][1]]
    return ["\n".join(table), *notes]


def figure(records: Records) -> str:
    """Texts a second as bars, a panel for each record, as SVG in the reader's light or dark mode."""
    import matplotlib
    from matplotlib.figure import Figure

    records = _against_others(records)
    bars = sum(len(record["contestants"]) for record in records.values())
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):  # every bar has its number beside it
        canvas = Figure(figsize=(6, 0.75 * len(records) + 0.36 * bars), layout="constrained")
        heights = [len(record["contestants"]) + 1 for record in records.values()]
        panels = canvas.subplots(len(records), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (name, record) in zip(panels, records.items(), strict=True):
            _panel(axes, name, record)
        return to_svg(canvas, "speed", alt(records))


def _against_others(records: Records) -> Records:
    """The records of `leaf speed train` and `leaf speed embed`."""
    return {name: record for name, record in records.items() if name != QUERY}


def _panel(axes: Any, name: str, record: Mapping[str, Any]) -> None:
    for row, (contestant, each) in enumerate(record["contestants"].items()):
        texts = each["texts_per_second"]
        reach = [[texts["median"] - texts["min"]], [texts["max"] - texts["median"]]]
        axes.barh(
            row,
            texts["median"],
            0.7,
            color=COLOURS[0] if contestant == OURS else GREY,
            xerr=reach,
            error_kw={"ecolor": INK, "elinewidth": 1.2, "capsize": 3},
        )
        axes.annotate(rate(texts["median"]), (texts["max"], row), (6, 0), textcoords="offset points", va="center")
    count = len(record["contestants"])
    highest = max(each["texts_per_second"]["max"] for each in record["contestants"].values())
    axes.set_yticks(range(count), [NAMES[contestant] for contestant in record["contestants"]])
    axes.set(xlim=(0, 1.15 * highest), ylim=(count - 0.5, -0.5))
    axes.set_title(f"{_title(name)}, texts/s", loc="left", fontsize=10, fontweight="bold")
    axes.tick_params(axis="y", length=0)


def _title(name: str) -> str:
    what, _, device = name.partition("-")
    return f"{SECTIONS[what][0]}, {DEVICES[device]}"


def alt(records: Records) -> str:
    """What the figure says, for those who do not see it."""
    said = []
    for name, record in _against_others(records).items():
        rates = (
            f"{NAMES[each]} {rate(values['texts_per_second']['median'])}"
            for each, values in record["contestants"].items()
        )
        said.append(f"{_title(name)}: {', '.join(rates)}")
    return "Texts a second. " + "; ".join(said) + "."


def _note(record: Mapping[str, Any], device: str) -> str:
    """On what a record was made, and what shows that its contestants did the same work."""
    settings, made_by = record["settings"], record["provenance"]
    hardware, versions = made_by["hardware"], made_by["versions"]
    machine = hardware["gpus"][0] if device == "GPU" else f"{hardware['cpu']}, {hardware['threads']} threads"
    if record["what"] == "train":
        losses = record["checks"]["first_loss"].values()
        work = f"{settings['steps']} steps a round after {settings['warm_up']} of warm-up, {settings['dim']}-d targets"
        check = f"before training, the losses of one batch lie {max(losses) - min(losses):.0e} apart"
    else:
        work = f"{settings['texts']:,} texts a round"
        checks = record["checks"].values()
        cosine, matched = (min(each[key] for each in checks) for key in ("min_cosine", "matched"))
        check = (
            f"cosines between leaf's vectors and the others' are at least {cosine:.6f}, and the nearest is that of the "
            f"same text for {100 * matched:.1f} % of texts"
        )
    return (
        f"{device}: {machine}; {settings['layers']} layers of width {settings['width']}, {settings['compute_dtype']}, "
        f"batches of {settings['batch_size']}, texts of {settings['mean_tokens']:.0f} tokens on average and "
        f"{settings['max_length']} at most; {settings['rounds']} rounds, {work}; {check}. torch {versions['torch']}, "
        f"transformers {versions['transformers']}, sentence-transformers {versions['sentence-transformers']}; commit "
        f"{made_by['commit']}, {made_by['time'][:10]}."
    )
