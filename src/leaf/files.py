"""Writing files so that a reader sees either the whole file or none of it, and naming files by their content."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Bytes read from each end of a large file for its digest; see `quick_digest`.
DIGEST_WINDOW = 1 << 20


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`; on a clean exit the file is synced and renamed, else it is removed.

    A process killed at any moment leaves either the old file or the new one, never half of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Machines that share a folder may have the same process ids, and in containers they do.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def user_cache() -> Path:
    """What is kept between runs: the folder in the environment variable LEAF_CACHE, or `leaf` in the user's cache."""
    if folder := os.environ.get("LEAF_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "leaf"


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def digest(value: Any) -> str:
    """SHA-256 (hex) of `value` as canonical JSON: the same value has the same digest on every machine."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of the whole file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def quick_digest(path: Path) -> str:
    """SHA-256 (hex) of the size and both ends of a file: tells apart versions of a source without reading 10 GB.

    Copies of one file agree (unlike modification times). An edit that keeps the size and touches neither the first
    nor the last MiB goes unseen, which is why teacher weights use `file_digest` instead.
    """
    size = path.stat().st_size
    content = hashlib.sha256(str(size).encode())
    with open(path, "rb") as handle:
        content.update(handle.read(DIGEST_WINDOW))
        handle.seek(max(0, size - DIGEST_WINDOW))
        content.update(handle.read(DIGEST_WINDOW))
    return content.hexdigest()
