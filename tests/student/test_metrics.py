"""Training metrics: what is written, what a resumed training finds, and what the trackers are told."""

import json
import math
import os
import re
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from leaf.errors import LeafError
from leaf.student.metrics import (
    Metrics,
    Rates,
    TensorBoardTracker,
    check_trackers,
    gpu_memory_gb,
    held_out_curve,
    held_out_errors,
    open_trackers,
)

START = {"epoch": 0, "step": 0, "held_out_error": 0.9}
PROGRESS = {"step": 10, "lr": 0.25, "loss": 0.75, "padding": 0.0, "seconds": 1.5}
EPOCH = {"epoch": 1, "step": 20, "lr": 0.125, "train_loss": 0.7, "held_out_error": 0.6, "seconds": 3}


class Recorder:
    """A tracker that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []
        self.closed = 0

    def log(self, values, step):
        self.told.append((step, dict(values)))

    def close(self):
        self.closed += 1


class Clock:
    """Time that moves only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_record_is_a_line_and_its_numbers_reach_every_tracker(tmp_path):
    trackers = [Recorder(), Recorder()]
    path = tmp_path / "new" / "metrics.jsonl"
    with Metrics(path, trackers=trackers) as metrics:
        assert math.isnan(metrics.last_error)
        metrics.write(START)
        assert lines(path) == [START]  # on disk at once, not when the training ends
        metrics.write(PROGRESS)
        assert metrics.last_error == 0.9  # a progress line has none
        metrics.write(EPOCH | {"note": "words", "gradient_norm": None})
        assert metrics.last_error == 0.6
        assert [each.closed for each in trackers] == [0, 0]
    assert lines(path) == [START, PROGRESS, EPOCH | {"note": "words", "gradient_norm": None}]
    assert metrics.size == path.stat().st_size
    for tracker in trackers:
        assert tracker.told == [
            (0, {"epoch": 0, "held_out_error": 0.9}),
            (10, {"lr": 0.25, "loss": 0.75, "padding": 0.0, "seconds": 1.5}),
            (20, {"epoch": 1, "lr": 0.125, "train_loss": 0.7, "held_out_error": 0.6, "seconds": 3}),
        ]
        assert tracker.closed == 1


def test_trackers_are_closed_when_training_fails(tmp_path):
    tracker = Recorder()
    with pytest.raises(RuntimeError, match="out of memory"), Metrics(tmp_path / "metrics.jsonl", trackers=[tracker]):
        raise RuntimeError("out of memory")
    assert tracker.closed == 1


def test_a_resumed_training_cuts_off_what_was_written_after_its_resume_point(tmp_path):
    path = tmp_path / "metrics.jsonl"
    killed = Metrics(path)
    for record in (START, EPOCH, PROGRESS | {"step": 30}):
        killed.write(record)
    size = killed.size  # the resume point
    killed.write({"epoch": 2, "step": 40, "held_out_error": 0.3})
    with open(path, "a") as file:
        file.write('{"step": 50, "lo')  # killed in the middle of a line

    tracker = Recorder()
    resumed = Metrics(path, size, [tracker])
    assert path.stat().st_size == resumed.size == size
    assert resumed.last_error == 0.6  # the last epoch line that is kept; the line after it is progress
    assert tracker.told == []
    resumed.write(PROGRESS | {"step": 40})
    assert [line["step"] for line in lines(path)] == [0, 20, 30, 40]


def test_without_a_resume_point_the_file_starts_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    Metrics(path).write(EPOCH)
    metrics = Metrics(path)
    assert math.isnan(metrics.last_error)
    assert (metrics.size, path.read_bytes()) == (0, b"")


def test_a_file_shorter_than_its_resume_point_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"{}\n")
    with pytest.raises(LeafError, match=r"metrics\.jsonl has 3 bytes and its resume point expects 10; delete"):
        Metrics(path, 10)
    assert path.read_bytes() == b"{}\n"


def test_without_a_path_nothing_is_written_and_the_last_error_is_still_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Metrics(None, 7) as metrics:
        metrics.write(EPOCH)
        metrics.write(PROGRESS)
    assert (metrics.last_error, metrics.size) == (0.6, 7)
    assert not list(tmp_path.iterdir())


def test_the_error_curve_takes_the_epoch_lines_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert held_out_errors(path) == []
    path.write_text("".join(json.dumps(each) + "\n" for each in (START, PROGRESS, PROGRESS, EPOCH, PROGRESS)))
    assert held_out_errors(path) == [0.9, 0.6]


def test_evaluations_within_an_epoch_are_on_the_curve_and_not_among_the_errors_by_epoch(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert held_out_curve(path) == []
    within = {"epoch": 0.5, "step": 10, "held_out_error": 0.7, "seconds": 2}
    with Metrics(path) as metrics:
        for record in (START, within):
            metrics.write(record)
        size = metrics.size
    with Metrics(path, size) as resumed:
        assert resumed.last_error == 0.7
        for record in ({"step": 15, "loss": 0.65}, EPOCH):
            resumed.write(record)
    assert held_out_curve(path) == [(0, 0.9), (10, 0.7), (20, 0.6)]
    assert held_out_errors(path) == [0.9, 0.6]


@pytest.mark.parametrize("damage", ['{"step": 1', '{"held_out_error": null}', "7", "\0\0"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(START) + "\n" + damage + "\n")
    with pytest.raises(LeafError, match=re.escape(f"{path} is damaged")):
        held_out_errors(path)


def test_rates_are_those_since_the_last_reading():
    clock = Clock()
    rates = Rates(clock)
    rates.add(8, 60, 80)
    clock.now += 1.5
    rates.add(8, 90, 120)
    clock.now += 0.5
    # 16 texts and 150 tokens in 2 s; of 200 tokens computed, 50 were padding
    assert rates.read() == {"texts_per_second": 8.0, "tokens_per_second": 75.0, "padding": 0.25}
    rates.add(4, 40, 40)
    clock.now += 4
    assert rates.read() == {"texts_per_second": 1.0, "tokens_per_second": 10.0, "padding": 0.0}


def test_a_pause_takes_no_time_from_the_steps():
    clock = Clock()
    rates = Rates(clock)
    clock.now += 1
    rates.add(8, 60, 60)
    with rates.paused():
        clock.now += 1000
    clock.now += 1
    assert rates.read()["texts_per_second"] == 4.0  # 8 texts in 2 s


def test_a_cpu_has_no_gpu_memory_to_report():
    assert gpu_memory_gb("cpu") is None


@pytest.mark.gpu
def test_gpu_memory_counts_what_tensors_hold_at_their_most():
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = gpu_memory_gb("cuda")
    held = torch.zeros(250_000_000, device="cuda")  # 1 GB of float32
    del held
    assert gpu_memory_gb("cuda") >= 1.0
    assert gpu_memory_gb("cuda") <= before + 1.01


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_tracker_that_is_not_installed_is_one_clear_error(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    message = re.escape(f"train.trackers names '{name}', which is not installed; pip install 'leaf[track]'")
    with pytest.raises(LeafError, match=message):
        check_trackers([name])
    with pytest.raises(LeafError, match=message):
        open_trackers([name], tmp_path, "run", {})
    assert not list(tmp_path.iterdir())


def test_without_trackers_nothing_is_imported_or_written(tmp_path):
    assert open_trackers((), tmp_path, "run", {}) == []
    code = "import sys, leaf.student.metrics; print({'torch', 'tensorboard', 'trackio'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard itself reads from `folder`."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_shows_the_numbers_that_were_written(tmp_path):
    pytest.importorskip("tensorboard")
    path = tmp_path / "metrics.jsonl"
    with Metrics(path, trackers=open_trackers(["tensorboard"], tmp_path, "run", {})) as metrics:
        for record in (START, PROGRESS, EPOCH):
            metrics.write(record)
        folder = tmp_path / "tensorboard"
        assert scalars(folder, "loss") == [(10, 0.75)]  # before closing: a killed run has lost nothing
    assert scalars(folder, "lr") == [(10, 0.25), (20, 0.125)]
    assert scalars(folder, "held_out_error") == [(0, pytest.approx(0.9)), (20, pytest.approx(0.6))]


def test_tensorboard_forgets_what_came_after_the_resume_point_and_nothing_else(tmp_path):
    pytest.importorskip("tensorboard")
    killed = TensorBoardTracker(tmp_path)
    for step in (0, 10, 20, 30):
        killed.log({"loss": step}, step)
    killed.close()
    resumed = TensorBoardTracker(tmp_path, step=20)
    resumed.log({"loss": 5}, 30)
    resumed.close()
    assert scalars(tmp_path, "loss") == [(0, 0), (10, 10), (20, 20), (30, 5)]
    again = TensorBoardTracker(tmp_path)  # from the start
    again.log({"loss": 1}, 0)
    again.close()
    assert scalars(tmp_path, "loss") == [(0, 1)]


def test_trackio_keeps_runs_in_its_local_database_and_goes_on_in_the_latest_of_a_name(tmp_path):
    pytest.importorskip("trackio")
    # In a process of its own: trackio reads TRACKIO_DIR when it is imported.
    program = """
        from pathlib import Path
        from leaf.student.metrics import Metrics, open_trackers

        for start, records in (
            (0, [(0, 0.5)]),                  # another training of the same name
            (0, [(0, 1.0), (10, 0.75)]),
            (10, [(20, 0.25)]),               # goes on
        ):
            trackers = open_trackers(["trackio"], Path("."), "tiny/student", {"lr": 0.125, "betas": (0.5, 1)}, start)
            with Metrics(Path("metrics.jsonl"), trackers=trackers) as metrics:
                for step, loss in records:
                    metrics.write({"step": step, "loss": loss})
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=tmp_path,
        env=os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""  # stdout is for results
    with sqlite3.connect(tmp_path / "trackio" / "leaf.db") as database:
        rows = database.execute("SELECT run_id, run_name, step, metrics FROM metrics ORDER BY id").fetchall()
        configs = [json.loads(config) for (config,) in database.execute("SELECT config FROM configs")]
    assert [(name, step, json.loads(values)) for _, name, step, values in rows] == [
        ("tiny/student", 0, {"loss": 0.5}),
        ("tiny/student", 0, {"loss": 1.0}),
        ("tiny/student", 10, {"loss": 0.75}),
        ("tiny/student", 20, {"loss": 0.25}),
    ]
    first, *second = [run_id for run_id, *_ in rows]
    assert len(set(second)) == 1
    assert first != second[0]
    assert {(config["lr"], tuple(config["betas"])) for config in configs} == {(0.125, (0.5, 1))}
