"""The plan on one page: warnings first, then texts, models, hours, disk and memory, each with its arithmetic below."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from leaf.texts.sources import common_name

Record = Mapping[str, Any]
Rows = list[list[str]]
#: Columns that a pipe is given, which has no width of its own.
PIPE_WIDTH = 110
#: Columns of words; all others are numbers and stand on the right.
_WORDS = {"texts", "kind", "from", "hardware", "disk", "how", "student", "rate"}


def print_plan(record: Record, console: Console) -> None:
    """Prints a record of `plan`."""
    width = console.width if console.is_terminal else max(console.width, PIPE_WIDTH)

    def line(text: str = "", style: str = "") -> None:
        for each in Text(text, style).wrap(console, width):
            each.rstrip()
            console.print(each, soft_wrap=True)

    def table(variants: Sequence[Rows]) -> None:
        options = console.options.update(max_width=width)
        unbound = options.update(max_width=1000)
        made = [_table(rows) for rows in variants]
        fits = (each for each in made if Measurement.get(console, unbound, each).maximum <= width)
        console.print(Segments(console.render(next(fits, made[-1]), options)), soft_wrap=True, end="")

    line(f"{record['recipe']}: what it takes", "bold")
    if record["description"]:
        line(record["description"], "dim")
    for warning in record["warnings"]:
        line(f"! {warning}", "yellow")
    blocks = (
        (_without(_texts(record["texts"]), "from"), _texts_sums(record)),
        (
            _without(_students(record["students"]), "cut at", "layers"),
            [*_teacher(record["teacher"]), *_students_sums(record["students"])],
        ),
        ([_hours(record, True), _hours(record, False)], _hours_sums(record)),
        ([_disk(record["disk"])], _disk_sums(record)),
    )
    for variants, sums in blocks:
        line()
        table(variants)
        for sentence in sums:
            line(sentence, "dim")
    line()
    line(_memory(record["memory"]))


def _texts(texts: Record) -> Rows:
    rows = [["texts", "kind", "rows", "from", "tokens", "from", "teacher\ncuts %", "students\ncut %"]]
    for _, group in groupby(texts["sources"], key=lambda each: (each["source"], _kind(each), each["rows_from"])):
        sources = list(group)
        known = [each["rows"] for each in sources if each["rows"] is not None]
        weights = [each["trained"] or 1 for each in sources]
        rows.append(
            [
                common_name([each["name"] for each in sources]),
                _kind(sources[0]),
                f"{sum(known):,}" if known else "?",
                sources[0]["rows_from"],
                _number(_mean([each["mean_tokens"] for each in sources], weights)),
                sources[0]["tokens_from"],
                _share(sources, "cut_by_teacher", weights),
                _share(sources, "cut_by_students", weights),
            ]
        )
    trained = [each["trained"] for each in texts["sources"]]
    mean = _mean([each["mean_tokens"] for each in texts["sources"]], trained)
    rows.append(["together", _kinds(texts["sources"]), f"{texts['rows']:,}", "", _number(mean), "", "", ""])
    return rows


def _texts_sums(record: Record) -> Iterator[str]:
    texts = record["texts"]
    if texts["is_measured"]:
        yield f"Finished texts: {texts['training']:,} to train on, {texts['held_out']:,} held out; tokens of a sample."
    else:
        pairs = f" − 2 × {texts['held_out_pairs']:,} in pairs" if texts["held_out_pairs"] else ""
        left = texts["rows"] - texts["held_out"] - 2 * texts["held_out_pairs"]
        limit = "" if texts["training"] >= left else f", of which {texts['training']:,} are taken"
        yield f"{texts['rows']:,} − {texts['held_out']:,} held out{pairs} = {left:,} to train on{limit}; repeats count."
    told = {each for source in texts["sources"] for each in (source["rows_from"], source["tokens_from"])}
    words = {
        "measured": "measured: a sample tokenised",
        "about": "about: the recipe's word",
        "paper": "paper: Table 1, and lengths assumed for it",
        "characters": "characters: 4.6 to a token, for want of the tokenizer",
        "assumed": "assumed: 20 tokens a query, 300 a document",
        "estimated": "estimated: from a part of the source",
    }
    if known := [sentence for word, sentence in words.items() if word in told]:
        yield f"Tokens as the teacher reads them, prompts included. {'; '.join(known)}."


def _teacher(teacher: Record) -> Iterator[str]:
    facts = [] if teacher["parameters"] is None else [f"{teacher['parameters'] / 1e6:,.1f}M parameters"]
    facts += [f"{teacher['layers']} layers of width {teacher['width']}"] if teacher["layers"] else []
    facts += [f"vectors of {teacher['dim']:,}"] if teacher["dim"] else []
    facts += [f"cuts at {teacher['max_length']:,} tokens"] if teacher["max_length"] else []
    yield f"Teacher {teacher['name']}: {', '.join(facts) or 'size not known'} ({teacher['facts_from']})."
    if teacher["is_done"]:
        yield "Its pass is finished in the run folder."
    elif teacher["flops"] is not None:
        yield (
            f"Teacher pass: {teacher['texts']:,.0f} texts, {_giga(teacher['tokens'])} tokens × 2 × "
            f"{teacher['matrices'] / 1e6:,.1f}M matrix entries, and attention = {_flops(teacher['flops'])}."
        )
    if (api := teacher["api"]) is not None:
        cost = "price not given" if api["cost"] is None else f"× ${api['price']:g} a million = ${api['cost']:,.2f}"
        pace = "" if api["seconds"] is None else f", at the recipe's pace {duration(api['seconds'])}"
        yield (
            f"API: {api['texts']:,.0f} texts (evaluation's included), {_giga(api['tokens'])} tokens {cost}; "
            f"{api['requests']:,} requests{pace}. Vectors that are in the store already cost nothing."
        )


def _students(students: Sequence[Record]) -> Rows:
    rows = [["student", "size", "layers", "cut at", "texts", "epochs", "visits", "batch", "steps", "work"]]
    for each in students:
        rows.append(
            [
                each["name"],
                "?" if each["parameters"] is None else f"{each['parameters'] / 1e6:,.1f}M",
                "?" if each["layers"] is None else str(each["layers"]),
                str(each["max_length"] or "none"),
                _giga(each["texts"]),
                str(each["epochs"]),
                _giga(each["visits"]),
                str(each["batch_size"]),
                _giga(each["steps"]),
                "?" if each["flops"] is None else _flops(each["flops"]) if each["flops"] else "–",
            ]
        )
    return rows


def _students_sums(students: Sequence[Record]) -> Iterator[str]:
    first = students[0]
    if first["flops"]:
        yield (
            f"{first['name']}: {first['visits']:,} visits × {first['tokens'] / first['visits']:.0f} tokens, three "
            f"forward passes' worth each = {_flops(first['flops'])}; visits ÷ {first['batch_size']} = steps."
        )


def _hours(record: Record, each_student: bool) -> Rows:
    names = [each["name"] for each in record["students"]]
    columns = names if each_student else [f"{len(names)} students" if len(names) > 1 else names[0]]
    has_evaluation = any(each["evaluation_seconds"] for each in record["hardware"])
    rows = [["hardware", "teacher pass", *columns, *["evaluation"] * has_evaluation, "together", "rate"]]
    for each in record["hardware"]:
        trained = [each["student_seconds"][name] for name in names]
        passed, scored = each["teacher_seconds"], each["evaluation_seconds"]
        gpus = f"{each['gpus']} × " if each["gpus"] > 1 else ""
        known = [second for second in (passed, *trained, scored) if second is not None]
        rows.append(
            [
                gpus + each["name"],
                "API" if record["teacher"]["api"] else duration(passed),
                *([duration(second) for second in trained] if each_student else [duration(_sum(trained))]),
                *[duration(scored)] * has_evaluation,
                duration(sum(known)) if known else "?",
                each["basis"],
            ]
        )
    return rows


def _hours_sums(record: Record) -> Iterator[str]:
    shown = [each for each in record["hardware"] if each["gpus"]] or record["hardware"]
    yield from _arithmetic(shown[0], record)
    bases = {each["basis"] for each in record["hardware"]}
    if "prototype" in bases:
        yield (
            "prototype: an estimate from what a prototype reached on one H200, not yet measured by this project; other "
            "GPUs by the ratio of peaks, or of memory speed where that is less."
            + "".join(f" {each['name']}: {each['note']}." for each in record["hardware"] if each["note"])
        )
    if "measured" in bases:
        yield "measured: this project's records of this kind of CPU, by FLOPs; expect a third more or less."
    if "estimated" in bases:
        yield "estimated: from records of 2 cores of another CPU, by FLOPs and cores; maybe half, maybe twice as much."
    if (paper := record["paper"]) is not None:
        yield (
            f"{_giga(paper['texts'])} × {paper['epochs']} epochs = {_giga(paper['visits'])} text visits; at the "
            f"paper's {paper['texts_per_second']:.0f} texts/s (Table 4, batch {paper['batch_size']}) "
            f"{duration(paper['seconds'])} (the paper: {paper['budget_hours']} h on one A100 for 30 epochs)."
        )


def _arithmetic(hardware: Record, record: Record) -> Iterator[str]:
    """How the hours of one piece of hardware come about: the teacher pass, and a step of the first student."""
    teacher, name = record["teacher"], hardware["name"]
    if hardware["teacher_seconds"] and teacher["flops"]:
        rate = hardware["teacher_flops_per_second"]
        told = f"{_flops(teacher['flops'])} at {_flops(rate)}/s = {duration(hardware['teacher_seconds'])}"
        yield f"{name}: {told} for the teacher pass."
    first = record["students"][0]
    if parts := hardware["step_seconds"][first["name"]]:
        words = {"launched": "launched", "optimizer": "optimizer", "products": "products", "rows": "rows of the table"}
        told = " + ".join(f"{1e3 * second:,.2f} ms {words[part]}" for part, second in parts.items())
        rate = first["batch_size"] / sum(parts.values())
        yield f"{name}: a step of {first['batch_size']} texts = {told}: {rate:,.0f} texts/s × {first['steps']:,} steps."


def _disk(disk: Record) -> Rows:
    rows = [["disk", "size", "how"]]
    for item in disk["items"]:
        rows.append([item["what"], _bytes(item["bytes"]), item["how"] + ("" if item["stays"] else "; temporary")])
    rows.append(["most", _bytes(disk["most"]), f"of {_bytes(disk['free'])} free; {_bytes(disk['stays'])} stay"])
    return rows


def _disk_sums(record: Record) -> Iterator[str]:
    download = record["download"]
    models = "; ".join(f"{name} {_bytes(size)}" for name, size in download["models"].items())
    parts = [f"{_bytes(download['texts'])} of texts"] if download["texts"] else []
    parts += [models] if models else []
    if parts:
        more = f", and {len(download['unknown'])} sources that say nothing of their size" if download["unknown"] else ""
        yield f"To download: about {', '.join(parts)}{more}. Texts are read as a stream, and only shards stay."
    if record["evaluation"]["benchmarks"]:
        yield f"Not counted: data, vectors and hours of {', '.join(record['evaluation']['benchmarks'])}."


def _memory(memory: Record) -> str:
    stages = "; ".join(f"{each['stage']} {_bytes(each['bytes'])} ({each['how']})" for each in memory["stages"])
    machine = "" if memory["machine"] is None else f"{_bytes(memory['machine'])} here; "
    return f"Memory ({machine}on a CPU, with 0.6 GB of libraries): {stages}."


def duration(seconds: float | None) -> str:
    """Seconds in the unit that people would use: `40 s`, `12 min`, `5.6 h`, `127 days`."""
    if seconds is None:
        return "?"
    if seconds == 0:
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "< 1 s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 10 else f"{hours:.0f} h" if hours <= 240 else f"{hours / 24:,.0f} days"


def _bytes(size: float) -> str:
    for least, unit, name in ((1e8, 1e9, "GB"), (1e5, 1e6, "MB")):
        if size >= least:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1e3:.0f} kB"


def _flops(flops: float) -> str:
    for unit, name in ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if flops >= unit:
            return f"{flops / unit:,.{0 if flops >= 100 * unit else 1}f} {name}"
    return f"{flops:,.0f} FLOP"


def _giga(count: float) -> str:
    """1,290,000,000 → `1.29G`, 197,400,000 → `197M`, 6,580,000 → `6.58M`, and small ones whole."""
    for unit, letter in ((1e9, "G"), (1e6, "M")):
        if count >= unit:
            value = count / unit
            return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}{letter}"
    return f"{count:,.0f}"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    total = sum(weights)
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / total if total else 0.0


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _share(sources: Sequence[Record], key: str, weights: Sequence[float]) -> str:
    shares = [each[key] for each in sources]
    return "?" if None in shares else f"{100 * _mean(shares, weights):.0f}"


def _kind(source: Record) -> str:
    share = source["query_share"]
    return "document" if share == 0 else "query" if share == 1 else f"{100 * share:.0f} % queries"


def _kinds(sources: Sequence[Record]) -> str:
    trained = [each["trained"] for each in sources]
    return f"{100 * _mean([each['query_share'] for each in sources], trained):.0f} % queries"


def _without(rows: Rows, *titles: str) -> list[Rows]:
    """`rows` whole, and for narrow terminals without the columns of these titles, one after the other."""
    variants = [rows]
    for title in titles:
        kept = [number for number, each in enumerate(rows[0]) if each != title]
        rows = [[row[number] for number in kept] for row in rows]
        variants.append(rows)
    return variants


def _table(rows: Rows) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, title in enumerate(rows[0]):
        is_words = title in _WORDS and (number == 0 or title != "texts")
        # Numbers are never broken; what is said about them may be, and so may the long names of a sweep's students.
        is_broken = title in ("how", "student")
        table.add_column(title, justify="left" if is_words else "right", no_wrap=not is_broken, overflow="fold")
    for row in rows[1:]:
        table.add_row(*map(Text, row), style="bold" if row[0] in ("together", "most") else "")
    return table
