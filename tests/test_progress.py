"""The time left, on a terminal and in a pipe."""

import io
import sys

import pyarrow as pa
import pytest
from rich.console import Console

from leaf import progress as module
from leaf.errors import LeafError
from leaf.progress import progress
from leaf.texts.shards import SCHEMA, mean_bytes, write_shard


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock)
    return clock


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(module, "say", lines.append)
    return lines


def test_the_time_left_is_that_of_the_work_and_the_count_one_of_texts(clock, said):
    """100 short texts of 10 in 20 s are 50 a second, so that 100 long ones of 1,000 take 2,000 s more."""
    with progress("embedding", 300, completed=100, work=100 * 10 + 100 * 1000) as bar:
        clock.now = 20
        bar.advance(100, each=10)
        clock.now = 1020
        bar.advance(50, each=1000)
    assert said == ["embedding: 200/300, 2000 s left", "embedding: 250/300, 1000 s left"]


def test_without_work_every_unit_counts_alike_and_those_of_an_earlier_run_not(clock, said):
    """10 of the 40 that were left took 20 s, so 30 take 60 s."""
    with progress("training", 100, completed=60) as bar, progress("reading", None) as endless:
        clock.now = 20
        bar.advance(10, "loss 1")
        endless.advance(5)
    assert said == ["training: 70/100, 60 s left  loss 1", "reading: 5"]


def test_a_terminal_shows_the_time_of_the_work_too(monkeypatch):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(module, "console", terminal)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress("embedding", 200, work=100 * 10 + 100 * 1000) as bar:
        now = [0.0]
        bar._bar.get_time = lambda: now[0]
        for each in bar._bar.tasks:
            each._get_time = bar._bar.get_time
            each.start_time = 0.0
        for _ in range(10):
            now[0] += 2
            bar.advance(10, each=10)
        bar._bar.refresh()
    shown = terminal.file.getvalue()
    assert "100/200" in shown
    assert "0:33:20" in shown  # 100,000 at 50 a second
    assert "work" not in shown


def test_the_mean_length_of_a_shard_is_known_from_its_footer(tmp_path):
    texts = {"short": [f"word{row:04}" for row in range(500)], "long": [f"{row:04}" + 496 * "x" for row in range(500)]}
    for name, some in texts.items():
        rows = pa.table({"text": some, "kind": ["query"] * 500, "source": ["s"] * 500}).cast(SCHEMA)
        write_shard(tmp_path / name, rows)
    assert 8 <= mean_bytes(tmp_path / "short") < 16
    assert 500 <= mean_bytes(tmp_path / "long") < 508
    (tmp_path / "short").write_bytes(b"PAR1")
    with pytest.raises(LeafError, match="short is damaged"):
        mean_bytes(tmp_path / "short")
