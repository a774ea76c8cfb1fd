"""Tables and figures of sweeps, from records written by hand."""

import io
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
from rich.console import Console

from leaf.report.sweep import caption, draw, duration, page, print_sweep, table, title

HARDWARE = {"cpu": "Some CPU", "cpus": 2, "threads": 2}


def point(settings, error, *, case=None, ndcg=None, steps=1000, curve=None, best=None, **facts):
    training = {"train.batch_size": 64, "train.lr": 5e-4, **settings}
    steps_of, errors = zip(*(curve or [(0, 1.2), (steps // 2, error + 0.05), (steps, error)]), strict=True)
    return {
        "name": "student-" + "-".join(map(str, settings.values())),
        "case": case,
        "settings": settings,
        "batch_size": training["train.batch_size"],
        "lr": training["train.lr"],
        "final_lr": 5e-5,
        "layers": 2,
        "parameters": 15_000_000,
        "error": error if best is None else best,
        "last_error": error,
        "best_epoch": 1,
        "epochs": 1,
        "steps": steps,
        "num_texts": 64 * steps,
        "seconds": 95.4,
        "curve": {"steps": list(steps_of), "errors": list(errors)},
        "ndcg@10": ndcg,
        "provenance": {"commit": "abc123", "hardware": HARDWARE},
        **facts,
    }


def record(*points, teacher=None, datasets=()):
    axes = {}
    for each in points:
        for axis, value in each["settings"].items():
            known = axes.setdefault(axis, [])
            known += [value] if value not in known else []
    base = {"train.batch_size": 64, "train.lr": 5e-4, "train.schedule": "linear"}
    return {
        "name": "a-sweep",
        "description": "Which is best?",
        "folder": "runs/a-sweep",
        "base": {key: value for key, value in base.items() if key not in axes},
        "axes": axes,
        "cases": [each["case"] for each in points if each["case"]],
        "teacher": {"name": "big", "model": "someone/big", "ndcg@10": teacher},
        "datasets": list(datasets),
        "points": list(points),
        "provenance": {},
    }


def both(standard, asymmetric):
    return {"standard": standard, "asymmetric": asymmetric}


#: The paper's Table 4, seconds and all, with a second rate for two sizes.
SIZES = [(16, 0.4194, 400_000), (32, 0.4214, 200_000), (64, 0.4301, 100_000), (128, 0.4390, 50_000)]
BATCH_SIZE = record(
    *(
        point(
            {"train.batch_size": size, "train.lr": 1e-4, "train.final_lr": 1e-5},
            error,
            case=f"b{size}",
            steps=steps,
            seconds=15_540,
            num_texts=6_400_000,
        )
        for size, error, steps in SIZES
    ),
    *(
        point(
            {"train.batch_size": size, "train.lr": lr, "train.final_lr": lr / 10},
            error,
            case=f"b{size}-fitted",
            steps=6_400_000 // size,
            seconds=9_120,
            num_texts=6_400_000,
        )
        for size, lr, error in [(64, 1.4e-4, 0.4211), (128, 2e-4, 0.4207)]
    ),
)
POOLING = record(
    point({"student.pooling": "mean"}, 0.4194, curve=[(0, 1.3), (250, 0.7), (500, 0.5), (750, 0.44), (1000, 0.4194)]),
    point({"student.pooling": "cls"}, 0.5012, curve=[(0, 1.3), (250, 0.8), (500, 0.6), (750, 0.54), (1000, 0.5012)]),
)
SCHEDULE = record(
    *(
        point({"train.schedule": name, "train.limit": limit}, error, steps=limit // 64 * 10, epochs=10)
        for name, errors in {
            "constant": (0.60, 0.52, 0.47),
            "linear": (0.64, 0.53, 0.45),
            "cosine": (0.65, 0.535, 0.451),
        }.items()
        for limit, error in zip((2_560, 12_800, 64_000), errors, strict=True)
    )
)
LOSSES = record(
    *(
        point(
            {"train.loss": loss},
            error,
            ndcg=both(ndcg - 0.01, ndcg),
            curve=[(step, error + 0.3 * 0.99 ** (step / 4)) for step in range(0, 1000, 100)] + [(1000, error)],
        )
        for loss, error, ndcg in [
            ("leaf", 0.4101, 0.607),
            ("leaf+minilm", 0.4155, 0.549),
            ("leaf+tinybert", 0.4203, 0.537),
            ("leaf+distilbert", 0.4122, 0.553),
        ]
    ),
    teacher=0.651,
    datasets=["scifact", "cranfield"],
)
KINDS = record(
    point({"train.kinds": ["query"]}, 0.46, ndcg=both(0.583, 0.601), num_texts=18_000),
    point({"train.kinds": ["document"]}, 0.44, ndcg=both(0.541, 0.588), num_texts=18_000),
    point({"train.kinds": ["query", "document"]}, 0.42, ndcg=both(0.612, 0.634), num_texts=18_000),
    teacher=0.657,
    datasets=["scifact"],
)
UNSCORED = {**KINDS, "points": [{**each, "ndcg@10": None} for each in KINDS["points"]]}
REPEATED = record(
    *(
        point({"student.pooling": name, "train.seed": seed}, error + shift, ndcg=both(error, error + shift))
        for name, error in [("mean", 0.40), ("cls", 0.50)]
        for seed, shift in [(0, 0.0), (1, 0.02)]
    ),
    teacher=0.7,
    datasets=["scifact"],
)
DROPOUT = record(*(point({"train.dropout": rate}, error) for rate, error in [(0.0, 0.41), (0.1, 0.43), (0.2, 0.47)]))
SEVERAL = record(
    *(
        point({"student.bias": bias, "train.dropout": rate}, 0.4 + rate + bias / 100)
        for bias in (True, False)
        for rate in (0.0, 0.1)
    )
)
ALL = {
    "batch-size": BATCH_SIZE,
    "pooling": POOLING,
    "schedule": SCHEDULE,
    "loss": LOSSES,
    "kinds": KINDS,
    "dropout": DROPOUT,
    "several": SEVERAL,
    "unscored": UNSCORED,
    "repeated": REPEATED,
}
SVG = "{http://www.w3.org/2000/svg}"


def words(figure):
    """The texts of a figure, as a reader sees them."""
    return {"".join(each.itertext()).strip() for each in ElementTree.fromstring(figure.svg).iter(f"{SVG}text")}


def test_a_sweep_of_batch_sizes_is_table_4_with_the_rate_beside_the_size():
    rows = table(BATCH_SIZE)
    assert rows[0] == ["batch size", "learning rate", "time", "held-out ε", "batches"]
    assert rows[1] == ["16", "0.0001", "4 h 19 min", "0.4194", "400,000"]  # the paper's row
    assert rows[-1] == ["128", "0.0002", "2 h 32 min", "0.4207", "50,000"]
    assert title(BATCH_SIZE) == "Batch size, at equal data"


def test_batch_sizes_are_drawn_at_the_common_rate_and_at_their_own():
    (figure,) = draw(BATCH_SIZE).values()
    assert {"learning rate 0.0001 for all", "a rate for each size", "16", "32", "64", "128"} <= words(figure)
    # Sizes without a rate of their own are in both lines.
    fixed, own = figure.alt.split("; ")
    assert "for all 0.4194 at 16, 0.4214 at 32, 0.4301 at 64, 0.4390 at 128" in fixed
    assert own == "a rate for each size 0.4194 at 16, 0.4214 at 32, 0.4211 at 64, 0.4207 at 128."


def test_a_sweep_of_pooling_is_figure_8():
    assert list(draw(POOLING)) == ["sweep-pooling"]
    figure = draw(POOLING)["sweep-pooling"]
    assert {"mean: 0.4194", "[CLS]: 0.5012", "step (of 64 texts)", "held-out ε (mean ‖y − ŷ‖₂)"} <= words(figure)
    assert figure.alt.endswith("mean from 1.3000 at step 0 to 0.4194; [CLS] from 1.3000 at step 0 to 0.5012.")
    assert [row[0] for row in table(POOLING)] == ["pooling", "mean", "[CLS]"]


def test_schedules_by_limits_are_figure_9_over_batches_an_epoch():
    (figure,) = draw(SCHEDULE).values()
    # 2,560, 12,800 and 64,000 texts in batches of 64.
    assert {"constant", "linear", "cosine", "40", "200", "1,000", "batches an epoch"} <= words(figure)
    assert "linear 0.6400 at 40, 0.5300 at 200, 0.4500 at 1,000" in figure.alt
    assert table(SCHEDULE)[0][:2] == ["schedule", "texts an epoch"]
    assert table(SCHEDULE)[1][:2] == ["constant", "2,560"]


def test_a_sweep_of_losses_is_figure_10_twice_and_table_5():
    figures = draw(LOSSES)
    assert list(figures) == ["sweep-loss", "sweep-loss-second-half"]
    whole, half = figures.values()
    assert "LEAF + DistilBERT: 0.4122" in words(whole) & words(half)
    assert "at step 0 " in whole.alt
    assert "at step 500 " in half.alt
    assert "at step 0 " not in half.alt
    rows = table(LOSSES)
    assert rows[0] == ["loss", "time", "held-out ε", "nDCG@10", "asymmetric", "batches"]
    assert rows[2] == ["LEAF + MiniLM", "1 min 35 s", "0.4155", "53.9", "54.9", "1,000"]
    assert "nDCG@10: mean of 2 sets" in " ".join(caption(LOSSES))
    assert "The teacher alone: 65.1." in caption(LOSSES)


def test_a_sweep_of_kinds_is_figure_4():
    (figure,) = draw(KINDS).values()
    shown = words(figure)
    assert {"queries", "documents", "both", "standard", "asymmetric", "teacher 65.7", "nDCG@10"} <= shown
    assert {"58.3", "60.1", "54.1", "58.8", "61.2", "63.4"} <= shown
    assert "both standard 61.2, asymmetric 63.4; the teacher 65.7." in figure.alt


def test_kinds_that_were_not_scored_are_compared_by_their_error():
    (figure,) = draw(UNSCORED).values()
    assert {"queries", "0.4600", "documents", "0.4400", "both", "0.4200"} <= words(figure)
    assert "nDCG@10" not in words(figure)
    assert "nDCG@10" not in table(UNSCORED)[0]


def test_another_number_is_a_line_and_several_settings_are_a_table():
    (figure,) = draw(DROPOUT).values()
    assert "dropout" in words(figure)
    assert figure.alt == "Final held-out ε by dropout: 0.4100 at 0, 0.4300 at 0.1, 0.4700 at 0.2."
    assert draw(SEVERAL) == {}
    rows = table(SEVERAL)
    assert rows[0][:2] == ["bias", "dropout"]
    assert [row[:2] for row in rows[1:]] == [["yes", "0"], ["yes", "0.1"], ["no", "0"], ["no", "0.1"]]


def test_cases_of_unlike_settings_are_told_apart_by_their_names():
    mixed = record(
        point({"student.layers": [0, 5], "train.dropout": 0.0}, 0.4, case="deep"),
        point({"student.layers": [], "train.dropout": 0.1}, 0.6, case="table"),
    )
    assert table(mixed)[0][:3] == ["case", "layers", "dropout"]
    assert [row[:3] for row in table(mixed)[1:]] == [["deep", "0, 5", "0"], ["table", "none", "0.1"]]


def test_seeds_are_one_row_with_mean_and_spread():
    rows = table(REPEATED)
    # The sample deviation of 0.40 and 0.42 is 0.02 / √2 = 0.0141; nDCG@10: 40.0, and the mean of 40 and 42.
    assert rows[0][0] == "pooling"
    assert rows[1] == ["mean", "1 min 35 s", "0.4100 ± 0.0141", "40.0", "41.0", "1,000"]
    assert len(rows) == 3
    assert "Means over 2 seeds" in " ".join(caption(REPEATED))
    assert "mean: 0.4100" in words(draw(REPEATED)["sweep-pooling"])


def test_an_epoch_that_was_better_than_the_last_has_a_column():
    overfit = record(point({"train.lr": 1e-2}, 0.5, best=0.45), point({"train.lr": 1e-4}, 0.48))
    assert table(overfit)[0] == ["learning rate", "time", "held-out ε", "best ε", "batches"]
    assert [row[2:4] for row in table(overfit)[1:]] == [["0.5000", "0.4500"], ["0.4800", "0.4800"]]


@pytest.mark.parametrize("name", ALL)
def test_every_figure_has_words_for_those_who_do_not_see_it_and_names_its_axis(name):
    for figure in draw(ALL[name]).values():
        root = ElementTree.fromstring(figure.svg)
        assert root.get("role") == "img"
        assert root.get("aria-label") == figure.alt
        assert figure.title in figure.alt
        assert {"held-out ε (mean ‖y − ŷ‖₂)", "nDCG@10"} & words(figure)
        assert "currentColor" in figure.svg
        assert float(re.match(r"[\d.]+", root.get("width")).group()) <= 324  # points: a phone shrinks it little


def test_the_page_has_the_table_the_figures_and_where_they_come_from():
    text = page(LOSSES, draw(LOSSES))
    assert text.startswith("# a-sweep\n\nWhich is best?\n\nVaried: `train.loss`.")
    assert "The same for all: teacher big, batch size 64, learning rate 0.0005." in text
    assert "| LEAF + MiniLM | 1 min 35 s | 0.4155 | 53.9 | 54.9 | 1,000 |" in text
    assert text.count("](figures/sweep-loss") == 2
    assert "Trained at commit abc123 on Some CPU, threads: 2." in text
    assert "[CLS]" not in page(POOLING, {}).replace(r"\[CLS\]", "")  # a link to Markdown, if it is not escaped


def test_the_terminal_gets_the_table_and_the_files():
    console = Console(file=io.StringIO(), width=60)
    print_sweep(BATCH_SIZE, console)
    printed = console.file.getvalue()
    lines = [line.split() for line in printed.splitlines()]
    assert ["16", "0.0001", "4", "h", "19", "min", "0.4194", "400,000"] in lines
    assert printed.rstrip().endswith("runs/a-sweep/sweep.json")


@pytest.mark.parametrize(
    ("seconds", "said"), [(4.4, "4 s"), (59.6, "1 min 00 s"), (95.4, "1 min 35 s"), (15_540, "4 h 19 min")]
)
def test_durations_are_said_as_people_say_them(seconds, said):
    assert duration(seconds) == said


def test_a_record_survives_json():
    assert draw(json.loads(json.dumps(KINDS)))["sweep-kinds"].svg == draw(KINDS)["sweep-kinds"].svg


if __name__ == "__main__":  # all figures into a folder, to look at
    import sys
    from pathlib import Path

    for prefix, each in ALL.items():
        for name, figure in draw(each).items():
            Path(sys.argv[1], f"{prefix}-{name}.svg").write_text(figure.svg)
