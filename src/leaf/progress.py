"""Progress for people: a bar with ETA on a terminal, a plain line now and then in a pipe, always on stderr.

with progress("embedding", total=21_324) as bar:
    for batch in batches:
        bar.advance(len(batch))
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

#: Seconds between two lines when the output is not a terminal.
LINE_INTERVAL = 15.0

#: stderr, so that stdout holds results alone and `--json` can be piped.
console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def say(message: str) -> None:
    """Prints one line of progress to stderr."""
    console.print(message, markup=False)


class Bar:
    """One running count with an optional note, such as the current error."""

    def __init__(self, description: str, total: int | None, bar: Progress | None, completed: int) -> None:
        self._description, self._total, self._bar = description, total, bar
        self._done = self._start = completed
        self._began = self._last_line = time.monotonic()
        self._task = bar.add_task(description, total=total, completed=completed, note="") if bar else None

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Moves the bar on by `count`; `note` replaces the words at its end."""
        self._done += count
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done)
            if note is not None:
                self._bar.update(self._task, note=note)
            return
        now = time.monotonic()
        if now - self._last_line >= LINE_INTERVAL:
            self._last_line = now
            rate = (self._done - self._start) / (now - self._began)
            eta = f", {(self._total - self._done) / rate:.0f} s left" if self._total is not None and rate > 0 else ""
            of = "" if self._total is None else f"/{self._total:,}"
            say(f"{self._description}: {self._done:,}{of}{eta}{'  ' + note if note else ''}")


@contextmanager
def progress(description: str, total: int | None, completed: int = 0) -> Iterator[Bar]:
    """A `Bar` for `total` units of work (None: nobody knows), of which `completed` were done by an earlier run."""
    if not sys.stderr.isatty():
        yield Bar(description, total, None, completed)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        Remaining(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield Bar(description, total, bar, completed)
