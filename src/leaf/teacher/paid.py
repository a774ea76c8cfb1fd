"""Vectors that were paid for, on disk: one SQLite file for each model, shared by every run and recipe that asks it.

An answer is committed, with its price in tokens, before anything else is asked for, so a process killed at any moment
loses no more than the requests then in flight. Only digests of texts are kept, and the vectors as float32.

What was bought since the model was last seen to be the same is *unconfirmed*: nobody finds it. The next good look
confirms it; a bad one sets it aside: it stays in the file and is never used. One process at a time buys, and any number
may read, but only on one machine: SQLite's write-ahead log does not work on a network file system.
"""

import functools
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from leaf.encoder import Role, Vectors
from leaf.errors import Halt
from leaf.progress import say

UNCONFIRMED, CONFIRMED, SET_ASIDE = 0, 1, 2
#: Keys in one look-up; SQLite takes 32,766 parameters, and a reader holds the vectors of so many at once.
LOOK_UP = 512
#: Seconds that another buyer is waited for without a word.
SILENT_WAIT = 1.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value);
CREATE TABLE IF NOT EXISTS canaries (role TEXT, text TEXT, vector BLOB);
CREATE TABLE IF NOT EXISTS purchases (
    id INTEGER PRIMARY KEY, run TEXT, time REAL, role TEXT, state INTEGER,
    texts INTEGER, bytes INTEGER, tokens INTEGER, lost INTEGER, requests INTEGER
);
CREATE INDEX IF NOT EXISTS purchases_state ON purchases (state);
CREATE TABLE IF NOT EXISTS vectors (key BLOB, purchase INTEGER, vector BLOB);
CREATE INDEX IF NOT EXISTS vectors_key ON vectors (key);
"""


@dataclass(frozen=True)
class Purchase:
    """One request, answered or not."""

    run: str
    role: Role
    bytes: int
    """UTF-8 bytes of the texts sent."""
    tokens: int
    """Tokens that the answer cost, 0 where there was none."""
    lost: int = 0
    """Tokens, as estimated, of tries whose answer never arrived whole: they may be billed."""
    requests: int = 1
    """Tries."""


class PaidVectors:
    """The store of one model. May be called from many threads.

    Raises `Halt` for a folder that cannot be made or written to, and for a file that SQLite cannot use.
    """

    def __init__(self, file: Path) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Halt(f"{file.parent} cannot be made ({error}); {_ELSEWHERE}") from error
        self.file = file
        self._threads = threading.RLock()
        with self._using():
            # Autocommit, so that transactions begin where `_using` says; a minute for a reader's moment.
            self._sql = sqlite3.connect(file, timeout=60, isolation_level=None, check_same_thread=False)
            self._sql.execute("PRAGMA synchronous = FULL")  # a power cut loses no purchase either
        if not self._is_made():
            with self.buying(), self._using():  # two that made it at once would find it locked
                if not self._is_made():
                    self._sql.execute("PRAGMA journal_mode = WAL")
                    self._sql.executescript(_SCHEMA)

    @contextmanager
    def buying(self) -> Iterator[None]:
        """Inside, nobody else buys: no other process, and no other store of this file in this one. Waits for that."""
        here, lock = _buyer(self.file.resolve())
        with here:
            try:
                lock.acquire(timeout=SILENT_WAIT)
            except Timeout:
                say(f"waiting: another process is buying vectors into {self.file}, and what it buys is there for all")
                lock.acquire()
            except OSError as error:
                raise Halt(f"{lock.lock_file} cannot be opened ({error}); {_ELSEWHERE}") from error
            try:
                yield
            finally:
                lock.release()

    def find(self, keys: Sequence[bytes]) -> Iterator[dict[bytes, Vectors]]:
        """The confirmed vectors of those `keys` that are there, at most `LOOK_UP` at a time."""
        for start in range(0, len(keys), LOOK_UP):
            some = keys[start : start + LOOK_UP]
            with self._using():
                rows = self._sql.execute(
                    "SELECT key, vector FROM vectors CROSS JOIN purchases ON purchases.id = purchase"  # in this order
                    f" WHERE state = {CONFIRMED} AND key IN ({','.join('?' * len(some))})",
                    some,
                ).fetchall()
            yield {key: np.frombuffer(vector, dtype="<f4") for key, vector in rows}

    def add(self, purchase: Purchase, keys: Sequence[bytes] = (), vectors: Vectors | None = None) -> None:
        """Keeps what was answered, unconfirmed. On return it is on the disk."""
        with self._using(write=True):
            row = {**asdict(purchase), "time": time.time(), "state": UNCONFIRMED, "texts": len(keys)}
            names, values = ", ".join(row), ", ".join(f":{name}" for name in row)
            bought = self._sql.execute(f"INSERT INTO purchases ({names}) VALUES ({values})", row).lastrowid
            if vectors is not None:
                self._sql.executemany(
                    "INSERT INTO vectors VALUES (?, ?, ?)",
                    [(key, bought, _blob(vector)) for key, vector in zip(keys, vectors, strict=True)],
                )

    def has_unconfirmed(self) -> bool:
        """Whether something was bought since the last look: where nobody buys, by a call that failed or was killed."""
        with self._using():
            found = self._sql.execute(f"SELECT 1 FROM purchases WHERE state = {UNCONFIRMED} LIMIT 1").fetchone()
        return found is not None

    def confirm(self) -> None:
        """What was bought so far is of the model that the canaries are of."""
        self._move(CONFIRMED)

    def set_aside(self) -> int:
        """What was bought since it was last confirmed is of nobody knows what. Returns the number of texts."""
        return self._move(SET_ASIDE)

    def canaries(self) -> tuple[list[tuple[Role, str]], Vectors | None]:
        """The canaries with the vectors that they had when the store was new; None where it still is."""
        with self._using():
            rows = self._sql.execute("SELECT role, text, vector FROM canaries ORDER BY rowid").fetchall()
        if not rows:
            return [], None
        return [(role, text) for role, text, _ in rows], np.stack([np.frombuffer(row[2], dtype="<f4") for row in rows])

    def begin(self, canaries: Sequence[tuple[Role, str]], vectors: Vectors, **facts: Any) -> None:
        """Keeps the canaries of a new store, and what is known of its vectors."""
        with self._using(write=True):
            self._sql.executemany(
                "INSERT INTO canaries VALUES (?, ?, ?)",
                [(role, text, _blob(vector)) for (role, text), vector in zip(canaries, vectors, strict=True)],
            )
            self._sql.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())

    def facts(self) -> dict[str, Any]:
        """What `begin` was told."""
        with self._using():
            return dict(self._sql.execute("SELECT name, value FROM facts").fetchall())

    def spent(self, run: str) -> dict[str, int]:
        """What `run` bought, over all its processes: texts, requests, those that were retries, tokens, lost tokens."""
        with self._using():
            row = self._sql.execute(
                "SELECT TOTAL(texts), TOTAL(requests), TOTAL(requests - 1), TOTAL(tokens), TOTAL(lost)"
                " FROM purchases WHERE run = ?",
                [run],
            ).fetchone()
        return dict(zip(("texts", "requests", "retries", "tokens", "lost"), map(int, row), strict=True))

    def rates(self, role: Role, last: int) -> list[tuple[int, int]]:
        """(UTF-8 bytes, tokens) of the `last` answered requests of texts in `role`, oldest first."""
        with self._using():
            return self._sql.execute(
                "SELECT bytes, tokens FROM purchases WHERE role = ? AND tokens > 0 ORDER BY id DESC LIMIT ?",
                [role, last],
            ).fetchall()[::-1]

    def close(self) -> None:
        """Closes the file."""
        with self._threads:
            self._sql.close()

    def _is_made(self) -> bool:
        with self._using():
            return bool(self._sql.execute("SELECT 1 FROM sqlite_master WHERE name = 'vectors_key'").fetchone())

    def _move(self, state: int) -> int:
        with self._using(write=True):
            texts = self._sql.execute(f"SELECT TOTAL(texts) FROM purchases WHERE state = {UNCONFIRMED}").fetchone()[0]
            self._sql.execute(f"UPDATE purchases SET state = {state} WHERE state = {UNCONFIRMED}")
        return int(texts)

    @contextmanager
    def _using(self, *, write: bool = False) -> Iterator[None]:
        """One thread at a time, and all or nothing where it writes."""
        with self._threads:
            try:
                if write:
                    self._sql.execute("BEGIN IMMEDIATE")
                yield
                if write:
                    self._sql.execute("COMMIT")
            except sqlite3.Error as error:
                raise Halt(f"{self.file} cannot be used ({error}); {_fix(error)}") from error
            finally:
                if write and self._sql.in_transaction:
                    self._sql.execute("ROLLBACK")


@functools.cache
def _buyer(file: Path) -> tuple[threading.RLock, FileLock]:
    """What keeps out the other threads of this process, and what keeps out other processes."""
    return threading.RLock(), FileLock(f"{file}.lock", thread_local=False)


_ELSEWHERE = "vectors of an API are kept there, or under LEAF_CACHE"


def _fix(error: sqlite3.Error) -> str:
    """What to do, from SQLite's own words for it."""
    words = str(error)
    if "malformed" in words or "not a database" in words:
        return "the file is damaged: move it away and what it held is bought again, or bring back a copy"
    return f"make room on its disk, or let it be written; {_ELSEWHERE}"


def _blob(vector: Vectors) -> bytes:
    return vector.astype("<f4", copy=False).tobytes()
