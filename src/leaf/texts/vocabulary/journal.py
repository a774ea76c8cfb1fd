"""What was paid for, line by line: an append-only file that a crash at any moment leaves usable.

The first line says what the purchases depend on; a run with other settings is refused. Every further line is one JSON
object, on disk before `append` returns. A last line that was not finished is cut off when the file is opened again.
"""

import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from leaf.errors import LeafError


class Journal:
    """The journal at `path`, begun if there is none. Raises `LeafError` where it is damaged or of other `settings`."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file = open(path, "a+b")  # noqa: SIM115  # closed by __exit__
        try:
            self._cut_unfinished_line()
            self._begin(dict(settings))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def append(self, record: Mapping[str, Any]) -> None:
        """Writes one line and waits until the disk has it. May be called from many threads."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        with self._lock:
            self._file.write(line.encode("utf-8", "replace") + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def records(self) -> Iterator[dict[str, Any]]:
        """What was appended, in order."""
        lines = self._lines()
        next(lines, None)
        return lines

    def _lines(self) -> Iterator[dict[str, Any]]:
        with open(self.path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                if not isinstance(record, dict):
                    raise LeafError(f"{self.path} is damaged in line {number}; take that line out and run again")
                yield record

    def _cut_unfinished_line(self) -> None:
        end = keep = self._file.seek(0, os.SEEK_END)
        while keep:
            begin = max(0, keep - (1 << 16))
            self._file.seek(begin)
            if (newline := self._file.read(keep - begin).rfind(b"\n")) >= 0:
                keep = begin + newline + 1
                break
            keep = begin
        if keep < end:
            self._file.truncate(keep)

    def _begin(self, settings: dict[str, Any]) -> None:
        lines = self._lines()
        known = next(lines, {}).get("settings")
        if known == settings:
            return
        if next(lines, None) is None:  # nothing was bought: a model whose name was mistyped, say
            self._file.truncate(0)
            self.append({"settings": settings})
            return
        if not isinstance(known, dict):
            raise LeafError(f"{self.path} is no journal of ours; give another --out")
        name = next(name for name in {**known, **settings} if known.get(name) != settings.get(name))
        raise LeafError(
            f"{self.path} was begun with {name} {known.get(name)!r}, this run has {settings.get(name)!r}; "
            "give another --out, or go on as it was begun"
        )
