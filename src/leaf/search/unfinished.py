"""Vectors that were encoded for a change which was not finished: the next try finds them instead of encoding again."""

import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from leaf.encoder import Advance, Encoder, Vectors
from leaf.files import atomic_path, digest

#: Bytes of a text's digest; two of 10⁸ texts share 16 bytes with a chance of 10⁻²³.
KEY = 16


class Unfinished:
    """Parts in `folder`, one for each call that encoded; `owner` says whose vectors they are. Others are ignored."""

    def __init__(self, folder: Path, owner: dict[str, Any]) -> None:
        self._folder = folder / digest(owner)[:16]
        self._rows: dict[bytes, tuple[Path, int]] = {}
        for part in sorted(self._folder.glob("*.keys.npy")):
            vectors = part.with_name(part.name.replace(".keys.", ".vectors."))
            if vectors.exists():  # the keys are written last; only somebody who cleans up can take the vectors away
                self._rows |= {key.tobytes(): (vectors, row) for row, key in enumerate(np.load(part))}

    def encode(self, texts: Sequence[str], encoder: Encoder, batch_size: int, advance: Advance) -> Vectors:
        """Vectors of documents, float32 `[n, dim]`: what is here, and the rest from `encoder`, which is kept."""
        keys = [sha256(text.encode("utf-8", "replace")).digest()[:KEY] for text in texts]
        vectors = np.empty((len(texts), encoder.dim), dtype=np.float32)
        by_part: dict[Path, list[tuple[int, int]]] = {}
        new = []
        for at, key in enumerate(keys):
            if key in self._rows:
                part, row = self._rows[key]
                by_part.setdefault(part, []).append((at, row))
            else:
                new.append(at)
        for part, places in by_part.items():
            stored = np.load(part, mmap_mode="r")
            vectors[[at for at, _ in places]] = stored[[row for _, row in places]]
        advance(len(texts) - len(new))
        if new:
            vectors[new] = encoder.encode_document([texts[at] for at in new], batch_size=batch_size, advance=advance)
            self._keep([keys[at] for at in new], vectors[new])
        return vectors

    def remove(self) -> None:
        """Forgets everything: the change is whole."""
        shutil.rmtree(self._folder.parent, ignore_errors=True)

    def _keep(self, keys: Sequence[bytes], vectors: Vectors) -> None:
        name = f"{len(list(self._folder.glob('*.keys.npy'))):06d}"
        for kind, array in (("vectors", vectors), ("keys", np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY))):
            with atomic_path(self._folder / f"{name}.{kind}.npy") as temporary, open(temporary, "wb") as handle:
                np.save(handle, array)
