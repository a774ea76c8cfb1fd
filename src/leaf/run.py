"""The run folder: where stages meet, through files alone.

Each stage reads finished artifacts and writes one of its own, closed by a `manifest.json` that is written last, so its
presence means complete. A manifest holds what went in; a stage whose inputs are unchanged is skipped, and a stage whose
inputs differ is refused by name rather than mixed with what is there.

    runs/demo/recipe.toml  texts/  embeddings/<key>/  checkpoints/  student*/  scores/  speed/  report.*  figures/
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from leaf.errors import LeafError
from leaf.files import digest, write_json, write_text
from leaf.provenance import provenance
from leaf.recipe import Recipe

MANIFEST = "manifest.json"
RECIPE = "recipe.toml"
#: Seconds that a rank waits for others to look at the recipe.
CLAIM_TIMEOUT = 30
#: Changed when a stage's output changes shape, so that old folders are refused instead of misread.
FORMAT = 1


class Stage:
    """One artifact folder and the inputs it has to match.

    `inputs` is plain JSON data: settings, and the fingerprints of the stages it reads.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Any]) -> None:
        self.folder = folder
        self.inputs = {**inputs, "format": FORMAT}
        self.fingerprint = digest(self.inputs)

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The manifest if this stage is complete with these inputs, None if it is not complete.

        Raises `LeafError` naming the field when a complete artifact was made from other inputs.
        """
        manifest = read_manifest(self.folder)
        if manifest is None or manifest["fingerprint"] == self.fingerprint:
            return manifest
        raise LeafError(
            f"{self.folder} was made from other inputs ({difference(manifest['inputs'], self.inputs)}); "
            "choose another --out, or delete that folder to make it again"
        )

    def close(self, **facts: Any) -> dict[str, Any]:
        """Writes the manifest and returns it; `facts` are what the stage learned. Call this last."""
        manifest = {
            "fingerprint": self.fingerprint,
            "inputs": self.inputs,
            **facts,
            "provenance": provenance(),
        }
        write_json(self.folder / MANIFEST, manifest)
        return manifest


class Run:
    """A run folder that belongs to one recipe and, while locked, to one process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps every other writer out. The lock goes with the process, so a killed run leaves none behind."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with _held(self.folder / "run.lock"):
            for share in self.folder.glob("embed-*.lock"):
                with _held(share):  # nobody's, or somebody is embedding
                    pass
                share.unlink(missing_ok=True)
            yield

    @contextmanager
    def lock_share(self, rank: int, claim: Callable[[], object]) -> Iterator[None]:
        """Keeps other writers out, but for other ranks: each fills its own part of the cache.

        `claim` is called while not even a rank can write.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            with _held(self.folder / "run.lock", CLAIM_TIMEOUT):  # ranks that start together wait for each other
                claim()
                stack.enter_context(_held(self.folder / f"embed-{rank}.lock"))
            yield

    def claim(self, recipe: Recipe) -> None:
        """Takes the folder for this recipe: writes `recipe.toml`, or checks that the one there says the same.

        What is measured and exported may change: nothing that was trained depends on it, and both have inputs of their
        own. So may what an API teacher is asked with, but for what changes its vectors, which the cache checks.
        """
        if (conflict := self.conflict(recipe)) is not None:
            raise LeafError(
                f"{self.folder} belongs to another recipe ({conflict}); choose another --out, or delete the folder to "
                "start again"
            )
        write_text(self.folder / RECIPE, recipe.to_toml())

    def conflict(self, recipe: Recipe) -> str | None:
        """Why the folder cannot be this recipe's: how it differs from the one there. None where `claim` takes it.

        Where no stage has finished there is nothing to protect: a recipe that was refused may be put right.
        """
        path = self.folder / RECIPE
        if not path.is_file() or not ((self.folder / "embeddings").exists() or any(self.folder.glob(f"*/{MANIFEST}"))):
            return None
        known, wanted = (each.model_dump(mode="json") for each in (Recipe.load(path), recipe))
        teacher = {**known["teacher"], "api": wanted["teacher"]["api"]}
        known |= {each: wanted[each] for each in ("evaluate", "export", "index")} | {"teacher": teacher}
        return None if known == wanted else difference(known, wanted)

    def finished_texts(self, recipe: Recipe) -> dict[str, Any] | None:
        """The manifest of the folder's texts, where they are complete and those of `recipe`, whatever else it says."""
        path = self.folder / RECIPE
        if not path.is_file():
            return None
        owner = Recipe.load(path)
        same = owner.texts == recipe.texts and owner.prepare == recipe.prepare
        return read_manifest(self.folder / "texts") if same else None

    def stage(self, name: str, inputs: Mapping[str, Any]) -> Stage:
        """The artifact folder `name` of this run, to be made from `inputs`."""
        return Stage(self.folder / name, inputs)


@contextmanager
def _held(path: Path, timeout: float = 0) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=timeout)
    except Timeout as error:
        raise LeafError(
            f"{path.parent} is in use by another process ({path.name}); wait for it or choose another --out"
        ) from error
    try:
        yield
    finally:
        lock.release()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of an artifact folder, or None where it is not complete. A damaged manifest is a `LeafError`."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise LeafError(f"{path} is damaged ({error}); delete {folder} and run again") from error
    assert isinstance(manifest, dict)
    return manifest


def difference(known: Any, wanted: Any, path: str = "") -> str:
    """Names the first field in which two JSON values differ: `teacher.model was 'a', is now 'b'`."""
    if isinstance(known, dict) and isinstance(wanted, dict):
        for key in [*known, *(key for key in wanted if key not in known)]:
            if known.get(key) != wanted.get(key):
                return difference(known.get(key), wanted.get(key), f"{path}.{key}" if path else str(key))
    if isinstance(known, list) and isinstance(wanted, list) and len(known) == len(wanted):
        for index, (before, after) in enumerate(zip(known, wanted, strict=True)):
            if before != after:
                return difference(before, after, f"{path}[{index}]")

    def short(value: Any) -> str:
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 60 else text[:57] + "…"

    return f"{path or 'value'} was {short(known)}, is now {short(wanted)}"
