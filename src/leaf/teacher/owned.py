"""Vectors that exist already, found by text: a copy of a dump in a form that is searched and read at random.

    owned = Owned(OwnedVectors(source="dump.parquet"), Path("runs/mine/embeddings/.owned"))
    vectors = owned.vectors(owned.find(["a text"], "document"))

The source is read once, when something is first asked, into

    vectors.bin     all vectors end to end in reading order, float16 where the source has them so, else float32
    texts.arrow     their texts and kinds in the same order, which a database may not give twice
    index.npz       for each kind the sorted 128-bit digests of its texts, and the row of each
    manifest.json   written last: a read that was killed begins again

24 bytes a row are held in memory, for 10 million rows 240 MB; vectors are read from the file, row by row.
"""

import functools
import hashlib
import shutil
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock
from numpy.typing import NDArray

from leaf.encoder import Advance, Role, Vectors, row_cosines
from leaf.errors import LeafError
from leaf.files import atomic_path, write_json
from leaf.pieces import Pieces
from leaf.progress import progress, say
from leaf.provenance import provenance
from leaf.recipe import OwnedVectors
from leaf.run import MANIFEST, difference, read_manifest
from leaf.teacher.dump import identity, is_database, open_dump
from leaf.tokens import ROLES

VECTORS, TEXTS, INDEX, CHECK = "vectors.bin", "texts.arrow", "index.npz", "check.json"
#: A text that is there twice has one vector if the two have at least this cosine: rounding, not another vector.
SAME = 0.9999
#: Rows gathered between two calls of `advance`.
GATHERED = 8192
_SCHEMA = pa.schema({"text": pa.large_string(), "kind": pa.string()})


class Owned:
    """The vectors of one dump, kept in `folder`.

    Of files, the content decides whether the copy is still the source's. A database is not asked again, and files may
    be gone, as on another machine: the copy stays until `folder` is deleted. Raises what `open_dump` raises, and
    `LeafError` for a text with two different vectors.
    """

    def __init__(self, settings: OwnedVectors, folder: Path) -> None:
        self.settings, self.folder = settings, folder

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """What was read: `rows`, `dim`, `dtype`, `digest`, `kinds`, `repeats` and `skipped`. Reads it where needed."""
        source, here = self._source()
        if (manifest := self._finished(source)) is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "reading.lock"):  # of several processes, one reads
                return self._finished(source) or _read(self.settings, source, self.folder)
        if not here:
            say(
                f"keeping the {manifest['rows']:,} vectors that {self.settings.source} gave on "
                f"{manifest['provenance']['time'][:10]}; delete {self.folder} to ask it again"
            )
        return manifest

    def _source(self) -> tuple[dict[str, Any], bool]:
        """What is to be read, and whether that can be seen now: not of a database, nor of files that are gone."""
        try:
            return identity(self.settings), not is_database(self.settings)
        except LeafError:
            known = read_manifest(self.folder)
            columns = self.settings.model_dump(mode="json", include={"text", "vector", "kind"})
            if known is None or not columns.items() <= known["source"].items():
                raise
            return known["source"], False

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return int(self.facts["dim"])

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all texts and vectors, whatever their order: part of the key of a cache made from them."""
        return str(self.facts["digest"])

    def find(self, texts: Sequence[str], kind: Role) -> NDArray[np.int64]:
        """The row of each text of this kind, `[n]`; −1 where there is none."""
        digests, rows = self._index[kind]
        wanted = np.frombuffer(b"".join(map(_digest, texts)), dtype="S16")
        if len(digests) == 0:
            return np.full(len(wanted), -1)
        places = np.minimum(np.searchsorted(digests, wanted), len(digests) - 1)
        found: NDArray[np.int64] = np.where(digests[places] == wanted, rows[places], -1)
        return found

    def vectors(self, rows: NDArray[np.integer], advance: Advance | None = None) -> Vectors:
        """The vectors of `rows`, float32 `[n, dim]`; `advance` hears of every few thousand."""
        vectors = np.empty((len(rows), self.dim), dtype=np.float32)
        for start in range(0, len(rows), GATHERED):
            some = rows[start : start + GATHERED]
            vectors[start : start + GATHERED] = _gather(self._pieces, some, self.dim)
            if advance:
                advance(len(some))
        return vectors

    def sample(self, kind: Role, count: int) -> NDArray[np.int64]:
        """Rows of at most `count` texts of this kind: those of the least digests, which is as good as at random."""
        return self._index[kind][1][:count]

    def texts(self) -> Iterator[tuple[str, Role]]:
        """Every text with its kind, in reading order: row i of the vectors is the i-th."""
        _ = self.facts
        for batch in _batches(self.folder / TEXTS):
            yield from zip(batch["text"].to_pylist(), batch["kind"].to_pylist(), strict=True)

    def texts_of(self, rows: NDArray[np.integer]) -> list[str]:
        """The texts of a few rows. Reads through all texts."""
        return _find_texts(self.folder / TEXTS, rows.tolist())

    def _finished(self, source: dict[str, Any]) -> dict[str, Any] | None:
        """The manifest of a copy of this very source."""
        manifest = read_manifest(self.folder)
        if manifest is None or manifest["source"] != source:
            return None
        size = manifest["rows"] * manifest["dim"] * np.dtype(manifest["dtype"]).itemsize
        path = self.folder / VECTORS
        if not path.is_file() or path.stat().st_size != size:
            raise LeafError(f"{path} is damaged ({size:,} bytes expected); delete {self.folder} and run again")
        return manifest

    @functools.cached_property
    def _index(self) -> dict[Role, tuple[NDArray[np.bytes_], NDArray[np.int64]]]:
        _ = self.facts
        path = self.folder / INDEX
        try:
            with np.load(path) as file:
                return {kind: (file[f"{kind}_digests"], file[f"{kind}_rows"]) for kind in ROLES}
        except Exception as error:  # zip files are damaged in many ways
            raise LeafError(f"{path} is damaged ({error}); delete {self.folder} and run again") from error

    @functools.cached_property
    def _pieces(self) -> Pieces:
        return _open_vectors(self.folder / VECTORS, self.facts["dtype"])


def _read(settings: OwnedVectors, source: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Copies the source into `folder`; returns the manifest."""
    if (known := read_manifest(folder)) is not None:
        say(f"teacher.vectors is another ({difference(known['source'], source)}); reading it")
    for path in [
        folder / MANIFEST,
        *(folder / name for name in (CHECK, VECTORS, TEXTS, INDEX)),
        *folder.glob(".*.tmp"),
    ]:
        path.unlink(missing_ok=True)
    found = {kind: _Found() for kind in ROLES}
    shape, rows = None, 0
    with (
        open_dump(settings) as dump,
        progress("reading vectors", dump.total) as bar,
        atomic_path(folder / VECTORS) as vectors_path,
        atomic_path(folder / TEXTS) as texts_path,
        open(vectors_path, "wb") as vectors_file,
        pa.OSFile(str(texts_path), "wb") as texts_file,
        pa.ipc.new_stream(texts_file, _SCHEMA, options=pa.ipc.IpcWriteOptions(compression="zstd")) as texts,
    ):
        for batch in dump.rows:
            if not batch.texts:
                continue
            if shape is None:
                shape = batch.vectors.shape[1], batch.vectors.dtype
                _check_disk(folder, dump.total * batch.vectors[0].nbytes)
            if batch.vectors.dtype != shape[1]:
                raise LeafError(f"{settings.source} holds {shape[1]} and {batch.vectors.dtype} vectors; make them one")
            vectors_file.write(np.ascontiguousarray(batch.vectors).data)
            texts.write_batch(pa.record_batch([batch.texts, batch.kinds], schema=_SCHEMA))
            for row, (text, kind, vector) in enumerate(zip(batch.texts, batch.kinds, batch.vectors, strict=True), rows):
                found[kind].add(row, text, vector)
            rows += len(batch.texts)
            bar.advance(len(batch.texts))
    skipped = {reason: count for reason, count in dump.skipped.items() if count}
    if shape is None:
        raise LeafError(f"{settings.source} has no row with a text and a vector (skipped: {skipped or 'none'})")
    dim, dtype = shape
    pieces, content = _open_vectors(folder / VECTORS, dtype), hashlib.sha256(f"{dim} {dtype}".encode())
    index: dict[str, Any] = {}
    repeats = 0
    for kind in ROLES:
        digests, kept, hashes, more = found.pop(kind).sort(pieces, dim, folder, settings.source)
        content.update(kind.encode() + len(digests).to_bytes(8, "little"))
        content.update(digests.view(np.uint8).data)
        content.update(hashes.view(np.uint8).data)
        index |= {f"{kind}_digests": digests, f"{kind}_rows": kept}
        repeats += more
    with atomic_path(folder / INDEX) as temporary, open(temporary, "wb") as file:
        np.savez(file, **index)
    manifest = {
        "source": source,
        "rows": rows,
        "dim": dim,
        "dtype": str(dtype),
        "digest": content.hexdigest(),
        "kinds": {kind: len(index[f"{kind}_rows"]) for kind in ROLES},
        "repeats": repeats,
        "skipped": skipped,
        "provenance": provenance(),
    }
    write_json(folder / MANIFEST, manifest)
    left_out = "".join(f"; skipped {count:,} {reason}" for reason, count in skipped.items())
    say(f"{rows:,} vectors of {dim} dimensions in {settings.source}{left_out}")
    return manifest


class _Found:
    """The texts of one kind while they are read: 32 bytes each."""

    def __init__(self) -> None:
        self._digests, self._hashes, self._rows = bytearray(), bytearray(), array("q")

    def add(self, row: int, text: str, vector: NDArray[Any]) -> None:
        self._digests += _digest(text)
        self._hashes += hashlib.blake2b(vector.tobytes(), digest_size=8).digest()
        self._rows.append(row)

    def sort(
        self, pieces: Pieces, dim: int, folder: Path, source: str
    ) -> tuple[NDArray[np.bytes_], NDArray[np.int64], NDArray[np.bytes_], int]:
        """Digests in order with row and hash of the vector of each, every text once, and how many were repeats."""
        digests = np.frombuffer(self._digests, dtype="S16")
        order = np.argsort(digests, kind="stable")
        digests = digests[order]
        self._digests = bytearray()
        rows = np.frombuffer(self._rows, dtype=np.int64)[order]
        hashes = np.frombuffer(self._hashes, dtype="V8")[order]
        first = np.ones(len(digests), dtype=bool)
        first[1:] = digests[1:] != digests[:-1]
        if first.all():
            return digests, rows, hashes, 0
        repeats = np.flatnonzero(~first)
        firsts = np.flatnonzero(first)
        leaders = firsts[np.searchsorted(firsts, repeats) - 1]
        different: set[int] = set()
        for start in range(0, len(repeats), GATHERED):
            one, other = leaders[start : start + GATHERED], repeats[start : start + GATHERED]
            both = (_gather(pieces, rows[each], dim).astype(np.float32) for each in (one, other))
            different.update(one[row_cosines(*both) < SAME].tolist())
        if different:
            (text,) = _find_texts(folder / TEXTS, [int(rows[min(different)])])
            raise LeafError(
                f"{len(different):,} texts of {source} have two different vectors, such as '{_beginning(text)}'; keep "
                "those of one model and one form in the dump, or name the column of queries and documents in "
                "teacher.vectors.kind"
            )
        return digests[first], rows[first], hashes[first], len(repeats)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _open_vectors(path: Path, dtype: Any) -> Pieces:
    return Pieces(np.memmap(path, dtype=dtype, mode="r"))


def _gather(pieces: Pieces, rows: NDArray[np.integer], dim: int) -> NDArray[Any]:
    return pieces.read(rows.astype(np.int64) * dim, np.full(len(rows), dim)).reshape(-1, dim)


def _batches(path: Path) -> Iterator[Any]:
    try:
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
            yield from stream
    except (OSError, pa.ArrowException) as error:
        raise LeafError(f"{path} is damaged ({error}); delete {path.parent} and run again") from error


def _find_texts(path: Path, rows: Sequence[int]) -> list[str]:
    found: dict[int, str] = {}
    first = 0
    for batch in _batches(path):
        found |= {row: batch["text"][row - first].as_py() for row in rows if 0 <= row - first < len(batch)}
        first += len(batch)
    return [found[row] for row in rows]


def _beginning(text: str) -> str:
    return " ".join(text.split())[:60]


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise LeafError(
            f"a copy of the vectors needs {needed / 1e6:,.0f} MB and {folder} has {free / 1e6:,.0f} MB free; choose an "
            "--out on a larger disk"
        )
