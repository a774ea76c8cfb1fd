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
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

#: Seconds between two lines when the output is not a terminal.
LINE_INTERVAL = 15.0

#: stderr, so that stdout holds results alone and `--json` can be piped.
console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def say(message: str) -> None:
    """Prints one line of progress to stderr."""
    console.print(message, markup=False)


class Bar:
    """One running count with an optional note, such as the current error."""

    def __init__(
        self, description: str, total: int | None, bar: Progress | None, completed: int, work: float | None = None
    ) -> None:
        self._description, self._total, self._bar = description, total, bar
        self._done, self._worked = completed, 0.0
        self._work = total - completed if work is None and total is not None else work
        self._began = self._last_line = time.monotonic()
        self._task = self._clock = None
        if bar is not None:
            self._clock = bar.add_task("work", total=self._work, visible=False)
            clock = bar.tasks[-1]
            self._task = bar.add_task(description, total=total, completed=completed, note="", clock=clock)

    def advance(self, count: int = 1, note: str | None = None, *, each: float = 1.0) -> None:
        """Moves the bar on by `count`, which are `each` of the work; `note` replaces the words at its end."""
        self._done += count
        self._worked += count * each
        if self._bar is not None and self._task is not None and self._clock is not None:
            self._bar.update(self._clock, completed=self._worked)
            self._bar.update(self._task, completed=self._done)
            if note is not None:
                self._bar.update(self._task, note=note)
            return
        now = time.monotonic()
        if now - self._last_line >= LINE_INTERVAL:
            self._last_line = now
            rate = self._worked / (now - self._began)
            left = f", {max(0, self._work - self._worked) / rate:.0f} s left" if self._work is not None and rate else ""
            of = "" if self._total is None else f"/{self._total:,}"
            say(f"{self._description}: {self._done:,}{of}{left}{'  ' + note if note else ''}")


class Remaining(TimeRemainingColumn):
    """The time left by a bar's work instead of its count."""

    def render(self, task: Task) -> Text:
        """The time left of `task`, h:mm:ss."""
        return super().render(task.fields["clock"])


@contextmanager
def progress(description: str, total: int | None, completed: int = 0, *, work: float | None = None) -> Iterator[Bar]:
    """A `Bar` for `total` things to do (None: nobody knows), of which `completed` were done by an earlier run.

    Where some take longer than others, `work` is what those that are left take together, in any unit, and `advance`
    is told what `each` took: the time left is then that of the work, while the count stays one of things.
    """
    if not sys.stderr.isatty():
        yield Bar(description, total, None, completed, work)
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
        yield Bar(description, total, bar, completed, work)
