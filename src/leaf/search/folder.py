"""An index in a folder: embedded, mapped into memory, no server.

    my-index/
      index.json          the manifest: which segments there are now; replaced whole at the end of every change
      space.json          whose vectors these are, with canaries.safetensors as the proof
      segments/           see `leaf.search.segments`

A reader holds one state of the index and takes up the next one by itself. A writer that is killed leaves files that no
manifest names; the next writer removes them.
"""

import errno
import functools
import os
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from leaf.encoder import Vectors
from leaf.errors import LeafError
from leaf.evaluation.retrieval import search as search_exactly
from leaf.evaluation.retrieval import tie_order
from leaf.files import write_json
from leaf.progress import progress
from leaf.search.codes import Rows
from leaf.search.filters import Filter
from leaf.search.segments import (
    Mask,
    Part,
    Segment,
    calibration,
    read_manifest,
    remove_folder,
    table_of,
    write_deletions,
    write_segment,
)
from leaf.search.store import Document, Hit, Settings, check_width, ranked, widened
from leaf.space import CANARIES_FILE, SPACE_FILE, Space

MANIFEST, SEGMENTS, LOCK = "index.json", "segments", ".lock"
VERSION = 1
#: Up to so many documents every one is compared with the query: 1.3 ms for 20,000 × 384 on two cores, where a graph
#: takes 0.7 and misses one in a hundred (results/search).
EXACT_ROWS = 20_000
#: float32 bytes of vectors that exact search keeps in memory; more are read from the files at every search.
CACHED_BYTES = 512 << 20
#: Segments without a graph that may lie side by side; more are put together.
SMALL_SEGMENTS = 8
#: Share of a segment's rows that may be gone before it is written again.
GONE = 0.2


class Snapshot:
    """One state of an index: its segments and what is remembered of them. Never changes; safe from any thread."""

    def __init__(self, folder: Path, manifest: dict[str, Any], stamp: tuple[int, int]) -> None:
        self.manifest, self.stamp = manifest, stamp
        self._building = threading.Lock()
        try:
            self.settings = Settings.from_json(manifest["settings"])
            segments = folder / SEGMENTS
            self.columns: dict[str, str] = manifest["columns"]
            self.segments = [
                Segment(segments / each["name"], each, self.settings, self.columns) for each in manifest["segments"]
            ]
        except (KeyError, TypeError) as error:
            raise LeafError(f"{folder / MANIFEST} is damaged ({error!r:.80}); restore it, or index again") from error
        self.masks = functools.lru_cache(maxsize=16)(self._masks)

    def _masks(self, condition: Filter) -> list[Mask]:
        return [segment.matching(condition) for segment in self.segments]

    @property
    def small(self) -> "Exact":
        """The segments that are searched whole."""
        with self._building:  # once, whatever the number of threads that ask at first
            return self._small

    @property
    def whole(self) -> "Exact":
        """All segments, searched whole."""
        with self._building:
            return self._whole

    @functools.cached_property
    def _small(self) -> "Exact":
        return Exact(self, [at for at, each in enumerate(self.segments) if not each.has_codes])

    @functools.cached_property
    def _whole(self) -> "Exact":
        return Exact(self, list(range(len(self.segments))))

    @functools.cached_property
    def places(self) -> dict[str, tuple[int, int]]:
        """Id → segment and row of every document."""
        return {
            each: (at, row)
            for at, segment in enumerate(self.segments)
            for row, each in enumerate(segment.ids())
            if segment.gone is None or not segment.gone[row]
        }


class Exact:
    """Exact search over some segments, by the very function that evaluation uses."""

    def __init__(self, snapshot: Snapshot, chosen: Sequence[int]) -> None:
        self.segments = snapshot.segments
        places = []
        ids: list[str] = []
        for at in chosen:
            segment = snapshot.segments[at]
            rows = np.arange(segment.rows) if segment.gone is None else np.flatnonzero(~segment.gone)
            places.append(np.stack([np.full(len(rows), at), rows], axis=1))
            own = segment.ids()
            ids += own if segment.gone is None else [own[row] for row in rows]
        self.places: Rows = np.concatenate(places) if places else np.empty((0, 2), np.int64)
        # In the order in which ties are won, so that no search has to sort.
        self.places = self.places[tie_order(ids)]
        self.shape = (len(self.places), snapshot.settings.dim)
        cached = self.shape[0] * self.shape[1] * 4 <= CACHED_BYTES
        self._matrix = self._gather(self.places) if cached else None

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: Rows) -> Vectors:
        """Vectors of `rows`, float32 `[n, dim]`, without a copy where they follow each other."""
        if self._matrix is None:
            return self._gather(self.places[rows])
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
            return self._matrix[rows[0] : rows[-1] + 1]
        return self._matrix[rows]

    def search(self, vectors: Vectors, k: int, masks: Sequence[Mask] | None) -> tuple[Rows, Vectors]:
        """The best `k`, fewer if there are: places (segment, row) `[nq, k, 2]` and scores `[nq, k]`."""
        order = None if masks is None else self._allowed(masks)
        if not len(self) or (order is not None and not len(order)):
            return np.empty((len(vectors), 0, 2), np.int64), np.empty((len(vectors), 0), np.float32)
        # Ties are won by what comes first, and `places` are in that order.
        rows, scores = search_exactly(vectors, self if order is None else _Some(self, order), k, "dot")  # type: ignore[arg-type]
        return self.places[rows if order is None else order[rows]], scores

    def _allowed(self, masks: Sequence[Mask]) -> Rows:
        allowed = np.zeros(len(self), dtype=bool)
        for at, mask in enumerate(masks):
            own = self.places[:, 0] == at
            allowed[own] = mask[self.places[own, 1]]
        return np.flatnonzero(allowed)

    def _gather(self, places: Rows) -> Vectors:
        vectors = np.empty((len(places), self.shape[1]), dtype=np.float32)
        for at in np.unique(places[:, 0]):
            own = places[:, 0] == at
            vectors[own] = self.segments[at].take(places[own, 1])
        return vectors


class _Some:
    """Some rows of an `Exact`, as an array that exact search can read."""

    def __init__(self, whole: Exact, rows: Rows) -> None:
        self._whole, self._rows = whole, rows
        self.shape = (len(rows), whole.shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Rows) -> Vectors:
        return self._whole[self._rows[rows]]


class FolderStore:
    """The store in a folder; see `leaf.search.store.Store`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, str(folder)
        self._reading = threading.Lock()
        self.space = Space.load(folder)
        self._snapshot = self._load()

    @classmethod
    def open(cls, target: str | Path) -> Self:
        """The index in a folder. Raises `LeafError` where there is none, or it is damaged."""
        folder = Path(target)
        if not (folder / MANIFEST).is_file():
            what = "no index" if folder.is_dir() else "no folder"
            raise LeafError(f"{what} '{target}'; make one with `leaf index DOCS --model TEACHER --out {target}`")
        return cls(folder)

    @classmethod
    def create(cls, target: str | Path, space: Space, settings: Settings) -> Self:
        """A new, empty index. Raises `LeafError` for a folder that holds something else, or an index in use."""
        folder = Path(target)
        if folder.exists() and not folder.is_dir():
            raise LeafError(f"{folder} is a file; an index is a folder, name another place")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
            # With what a process leaves that was killed while it made one.
            names = {each.name for each in folder.iterdir() if each.suffix != ".tmp"}
            if names - {SPACE_FILE, CANARIES_FILE, SEGMENTS, LOCK, ".unfinished"}:
                raise LeafError(f"{folder} holds something that is no index; name a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            if cls.exists(folder) and len(cls(folder)):
                raise LeafError(f"{folder} is an index with documents already; add to it, or name another place")
            space.save(folder)
            start = {"version": VERSION, "generation": 0, "settings": settings.to_json(), "columns": {}, "segments": []}
            write_json(folder / MANIFEST, start)
        return cls(folder)

    @staticmethod
    def exists(target: str | Path) -> bool:
        """Whether there is an index in a folder."""
        return (Path(target) / MANIFEST).is_file()

    @property
    def settings(self) -> Settings:
        """How vectors are kept."""
        return self._current().settings

    def __len__(self) -> int:
        return sum(segment.live for segment in self._current().segments)

    def columns(self) -> dict[str, str]:
        """Metadata column → `str`, `int`, `float`, `bool`."""
        return dict(self._current().columns)

    def search(self, vectors: Vectors, k: int, *, where: Filter | None = None, exact: bool = False) -> list[list[Hit]]:
        """See `Store.search`. Up to `EXACT_ROWS` documents, or as many that meet `where`, the search is exact."""
        snapshot = self._current()
        check_width(vectors, snapshot.settings, self.name)
        if not len(vectors):
            return []
        masks = snapshot.masks(where) if where is not None else None
        if exact:
            return self._hits(snapshot, [snapshot.whole.search(vectors, k, masks)], k)
        found = [snapshot.small.search(vectors, k, masks)]
        for at, segment in enumerate(snapshot.segments):
            if segment.has_codes:
                allowed = masks[at] if masks is not None else None
                if allowed is not None and int(allowed.sum()) <= EXACT_ROWS:
                    found.append(_padded(segment.compare(vectors, np.flatnonzero(allowed)), at))
                else:
                    found.append(_padded(segment.search(vectors, k, allowed), at))
        return self._hits(snapshot, found, k)

    def _hits(self, snapshot: Snapshot, found: Sequence[tuple[Rows, Vectors]], k: int) -> list[list[Hit]]:
        places = np.concatenate([each for each, _ in found], axis=1)
        scores = np.concatenate([each for _, each in found], axis=1)
        answers = []
        for its_places, its_scores in zip(places, scores, strict=True):
            bar = np.partition(its_scores, -k)[-k] if k < len(its_scores) else -np.inf
            near = np.flatnonzero((its_scores >= bar) & np.isfinite(its_scores))
            rows = [(snapshot.segments[at], row) for at, row in its_places[near].tolist()]
            best = ranked([segment.id(row) for segment, row in rows], its_scores[near], k)
            answers.append([rows[each][0].hit(rows[each][1], float(its_scores[near[each]])) for each in best])
        return answers

    def get(self, ids: Sequence[str]) -> list[Document | None]:
        """Documents by id, None for one that is not there."""
        snapshot = self._current()
        places = [snapshot.places.get(each) for each in ids]
        return [snapshot.segments[place[0]].document(place[1]) if place is not None else None for place in places]

    def rows(self) -> Iterator[tuple[list[Document], Vectors]]:
        """Everything, a batch at a time, as the segments have it."""
        snapshot = self._current()
        for segment in snapshot.segments:
            rows = np.arange(segment.rows) if segment.gone is None else np.flatnonzero(~segment.gone)
            for start in range(0, len(rows), 1024):
                some = rows[start : start + 1024]
                yield [segment.document(row) for row in some.tolist()], segment.take(some)

    def configure(self, settings: Settings) -> None:
        """Replaces `queries` and `model`; the rest of the settings stays as the vectors are."""
        with locked(self.folder):
            manifest = self._load().manifest
            kept = Settings.from_json(manifest["settings"])
            changed = replace(kept, queries=settings.queries, model=settings.model)
            write_json(self.folder / MANIFEST, {**manifest, "settings": changed.to_json()})
        self._snapshot = self._load()

    def check(self) -> None:
        """Reads every file whole. Raises `LeafError` for the first that is not as it was written."""
        for segment in self._current().segments:
            segment.check(whole=True)

    @contextmanager
    def writing(self) -> Iterator["FolderWriter"]:
        """One change. Raises `LeafError` while another process is writing."""
        with locked(self.folder):
            self._clean(self._load())
            self._snapshot = self._load()
            writer = FolderWriter(self.folder, self._snapshot)
            try:
                yield writer
                writer.finish()
            finally:
                remove_folder(writer.scratch)
            self._snapshot = self._load()
            self._clean(self._snapshot)

    def close(self) -> None:
        """Nothing is held that outlives this object."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _current(self) -> Snapshot:
        """The state as it is now on disk."""
        if (snapshot := self._snapshot).stamp == self._stamp_now():
            return snapshot
        with self._reading:
            if self._snapshot.stamp != self._stamp_now():
                self._snapshot = self._load()
            return self._snapshot

    def _stamp_now(self) -> tuple[int, int]:
        try:
            status = os.stat(self.folder / MANIFEST)
        except FileNotFoundError:
            raise LeafError(f"the index {self.folder} is gone; make it again, or restore it") from None
        return status.st_mtime_ns, status.st_ino

    def _load(self) -> Snapshot:
        for last in (*[False] * 9, True):
            stamp = self._stamp_now()
            manifest = read_manifest(self.folder / MANIFEST)
            if manifest["version"] > VERSION:
                raise LeafError(f"{self.folder} was made by a newer release; upgrade leaf, or index again")
            try:
                snapshot = Snapshot(self.folder, manifest, stamp)
                for segment in snapshot.segments:
                    segment.check()
                    segment.open()
            except (LeafError, FileNotFoundError):
                # A writer may have put its state in place, and removed the one that was being read.
                if last or stamp == self._stamp_now():
                    raise
                continue
            return snapshot
        raise AssertionError("the last try returns or raises")

    def _clean(self, snapshot: Snapshot) -> None:
        """Removes what no manifest names: left by writers that were killed, or replaced by this one."""
        named = {segment.folder.name: segment for segment in snapshot.segments}
        segments = self.folder / SEGMENTS
        for path in segments.iterdir() if segments.is_dir() else ():
            if path.name not in named:
                remove_folder(path)
                continue
            for file in path.glob("deleted-*.npy"):
                if file.name != named[path.name].facts["deletions"]:
                    file.unlink(missing_ok=True)


class FolderWriter:
    """One change of a `FolderStore`: parts in a scratch folder, put into place at its end."""

    def __init__(self, folder: Path, snapshot: Snapshot) -> None:
        self._folder, self._snapshot = folder, snapshot
        self.scratch = folder / SEGMENTS / f".{uuid.uuid4().hex[:8]}"
        self._parts: list[Part] = []
        self._columns = dict(snapshot.columns)
        self._gone = [
            np.zeros(segment.rows, bool) if segment.gone is None else segment.gone.copy()
            for segment in snapshot.segments
        ]
        self._places = dict(snapshot.places)

    def known(self, ids: Sequence[str]) -> Mapping[str, str]:
        """See `Writer.known`."""
        found = {}
        for each in ids:
            if each in self._places:
                at, row = self._places[each]
                old = at < len(self._gone)
                found[each] = (
                    self._snapshot.segments[at].digest(row) if old else self._parts[at - len(self._gone)].digest(row)
                )
        return found

    def all_ids(self) -> set[str]:
        """See `Writer.all_ids`."""
        return set(self._places)

    def put(self, documents: Sequence[Document], vectors: Vectors) -> None:
        """See `Writer.put`."""
        if not documents:
            return
        check_width(vectors, self._snapshot.settings, str(self._folder))
        self._columns = widened(self._columns, documents)
        self.delete([each.id for each in documents])
        self.scratch.mkdir(parents=True, exist_ok=True)
        at = len(self._parts)
        kinds = {name: self._columns[name] for each in documents for name in each.metadata if name in self._columns}
        self._parts.append(Part.write(self.scratch / f"{at:06d}", table_of(documents, kinds), vectors))
        for row, document in enumerate(documents):
            self._places[document.id] = (len(self._snapshot.segments) + at, row)

    def delete(self, ids: Sequence[str]) -> None:
        """See `Writer.delete`."""
        old = len(self._gone)
        for each in ids:
            if (place := self._places.pop(each, None)) is None:
                continue
            at, row = place
            if at < old:
                self._gone[at][row] = True
            else:
                self._parts[at - old].gone[row] = True

    def finish(self) -> None:
        """Writes what has changed, and then the manifest that says so."""
        snapshot, generation = self._snapshot, self._snapshot.manifest["generation"] + 1
        deleted = [
            int(gone.sum()) - segment.rows + segment.live
            for segment, gone in zip(snapshot.segments, self._gone, strict=True)
        ]
        if not self._parts and not any(deleted):
            return
        segments = [
            Segment(each.folder, {**each.facts, "deletions": None}, snapshot.settings, self._columns)
            for each in snapshot.segments
        ]
        for segment, gone in zip(segments, self._gone, strict=True):
            segment.gone = gone if gone.any() else None
        self._places.clear()  # a million of them take as much memory as their graph
        merged = merging(segments, sum(part.live for part in self._parts))
        entries = []
        for at, (segment, changed) in enumerate(zip(segments, deleted, strict=True)):
            if at in merged or not segment.live:
                continue
            facts = {**snapshot.segments[at].facts, "deleted": segment.rows - segment.live}
            if changed:
                facts["deletions"] = f"deleted-{generation}.npy"
                assert segment.gone is not None, "something was deleted"
                write_deletions(segment.folder / facts["deletions"], segment.gone)
            entries.append(facts)
        settings = snapshot.settings
        sources: list[Part | Segment] = [*(segments[at] for at in merged), *(part for part in self._parts if part.live)]
        if rows := sum(source.live for source in sources):
            with_codes = rows > EXACT_ROWS
            if with_codes and settings.precision == "int8" and settings.limit is None:
                settings = replace(settings, limit=calibration(sources, settings))
            folder = self._folder / SEGMENTS / f"{generation:06d}-{uuid.uuid4().hex[:4]}"
            with progress("building the graph" if with_codes else "writing", rows) as bar:
                entries.append(
                    write_segment(folder, sources, self._columns, settings, with_codes=with_codes, advance=bar.advance)
                )
        write_json(
            self._folder / MANIFEST,
            {
                "version": VERSION,
                "generation": generation,
                "settings": settings.to_json(),
                "columns": self._columns,
                "segments": entries,
            },
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The right to change an index. Raises `LeafError` where another process has it, and where nobody can."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise LeafError(f"{folder} is being changed by another process; try again when it is done") from error
    except OSError as error:
        raise LeafError(f"{folder} cannot be written ({error.strerror}); search it, or copy it first") from error
    try:
        yield
    except OSError as error:
        # numpy counts what it has written, and gives no number of the error.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) and not str(error).endswith(" written"):
            raise
        raise LeafError(f"no room is left for {folder}; it is as it was before: make room and try again") from error
    finally:
        lock.release()


def merging(segments: Sequence[Segment], new: int) -> list[int]:
    """Which segments are written again, together with `new` documents.

    Those of which much is gone; small ones, once they are many or together more than are compared one by one; and one
    with a graph when what is written is no longer small beside it. So every document is written again a few times at
    most, and a search asks few graphs.
    """
    chosen = {at for at, each in enumerate(segments) if each.live < (1 - GONE) * each.rows}
    small = [at for at, each in enumerate(segments) if not each.has_codes]
    together = new + sum(segments[at].live for at in small)
    if len(small) + 1 > SMALL_SEGMENTS or together > EXACT_ROWS:
        chosen |= set(small)
    rows = new + sum(segments[at].live for at in chosen)
    if rows > EXACT_ROWS:
        for at in sorted((at for at in range(len(segments)) if at not in chosen), key=lambda at: segments[at].live):
            if segments[at].live < 2 * rows:
                chosen.add(at)
                rows += segments[at].live
    return sorted(chosen)


def _padded(found: Sequence[tuple[Rows, Vectors]], segment: int) -> tuple[Rows, Vectors]:
    """Rows and scores of one segment for each query as arrays; what a shorter answer lacks scores −inf."""
    widest = max(len(rows) for rows, _ in found)
    places = np.full((len(found), widest, 2), (segment, 0), dtype=np.int64)
    scores = np.full((len(found), widest), -np.inf, dtype=np.float32)
    for query, (rows, own) in enumerate(found):
        places[query, : len(rows), 1], scores[query, : len(rows)] = rows, own
    return places, scores
