"""Making an index of files, or of another index: what `leaf index` does."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from leaf.encoder import Encoder
from leaf.errors import LeafError
from leaf.loading import load, load_for_serving
from leaf.progress import progress
from leaf.search import store as stores
from leaf.search.admission import MIN_MATCHED, matched
from leaf.search.documents import DocumentFiles
from leaf.search.folder import FolderStore
from leaf.search.index import Changes, Index
from leaf.search.store import Stored
from leaf.space import SPACE_FILE, Space

Dtype = Literal["auto", "float32", "bfloat16"]
#: Texts that bfloat16 is tried on, and documents from which that pays: it encodes the sample four times.
NUM_TRIED, MIN_DOCUMENTS = 64, 1024
#: Of an encoder that names the right teacher, which is all that a search asks for, and does not answer as it should.
MISSES = "it names the index's teacher, so a search lets it ask, but it misses the canaries: make or fetch it again"


@dataclass(frozen=True)
class Plan:
    """What an index is made of and how; for one that is there, what may change of it."""

    model: str | None = None
    """Who encodes documents; None: whoever made the index."""
    precision: Stored | None = None
    truncate_dim: int | None = None
    queries: tuple[str, ...] = ()
    """Who asks by default."""
    batch_size: int = 32
    dtype: Dtype = "auto"
    """What a local model computes in; auto is bfloat16 for 1,024 documents or more, where the hardware has it and
    vectors hardly move."""
    device: str | None = None


def index_files(
    target: str, files: DocumentFiles, plan: Plan, *, table: str | None = None, prune: bool = False
) -> Changes:
    """Makes the index in `target` of files, or brings the one that is there up to them.

    With vectors in the files, `plan.model` may be a student (or any folder with a `space.json`): its space is then
    taken at its word. Raises `LeafError` for what `Index.create` and `Index.put` refuse.
    """
    vectors = files.vectors()
    # An index whose first documents never arrived is made anew, if only because somebody thought better of it.
    if not stores.exists(target, table) or (plan.model is not None and not _documents(target, table)):
        if plan.model is None:
            raise LeafError(f"a new index needs --model TEACHER, who encodes the documents of {target}")
        claimed = vectors is not None and (Path(plan.model) / SPACE_FILE).is_file()
        encoder = Space.load(Path(plan.model)) if claimed else _open(plan.model, files, plan)
        with Index.create(
            target,
            encoder,
            files,
            model="" if claimed else plan.model,
            precision=plan.precision,
            truncate_dim=plan.truncate_dim,
            queries=plan.queries or ((plan.model,) if claimed else ()),
            vectors=vectors,
            batch_size=plan.batch_size,
            table=table,
        ) as index:
            return Changes(added=len(index))
    with Index.open(target, table) as index:
        _check_same(index, plan)
        changes = index.put(
            files,
            # One that is named is compared with the index even where nothing has changed.
            (lambda: _open(index.document_model, files, plan))
            if plan.model is None or vectors is not None
            else _open(plan.model, files, plan),
            vectors=vectors,
            prune=prune,
            batch_size=plan.batch_size,
        )
        if plan.queries:
            index.ask_with(plan.queries)
        return changes


def copy_index(source: str, target: str, plan: Plan, *, table: str | None = None) -> Changes:
    """A new index in `target` with the documents and vectors of the one in `source`; nothing is encoded.

    `table` names that of a database, on both sides. Raises `LeafError` where `target` holds documents already.
    """
    with Index.open(source, table) as old:
        if _documents(target, table):
            raise LeafError(f"there is an index in {target} already; name another place")
        if plan.truncate_dim is not None and plan.truncate_dim > old.settings.dim:
            raise LeafError(f"{source} holds {old.settings.dim} dimensions, not {plan.truncate_dim}; ask for fewer")
        known = old.encoders()
        precision = plan.precision or (
            stores.usual_precision(target) if stores.is_url(target) else old.settings.precision
        )
        settings = replace(
            old.settings,
            precision=precision,
            limit=None,
            model=_beside(known.get(list(known)[-1], "") if old.settings.model else "", target),
            queries=tuple(
                _beside(each, target) for each in plan.queries or list(known.values())[: len(old.settings.queries)]
            ),
        )
        if plan.truncate_dim is not None:
            settings = replace(settings, dim=plan.truncate_dim)
        with (
            stores.create_store(target, old.space, settings, table) as new,
            progress("copying", len(old)) as bar,
            new.writing() as writer,
        ):
            for documents, vectors in old.store.rows():
                # Preparing them once more would move their last digits.
                writer.put(documents, vectors if settings.dim == old.settings.dim else settings.prepare(vectors))
                bar.advance(len(documents))
        return Changes(added=len(old))


@dataclass(frozen=True)
class Admission:
    """Whether an encoder may ask an index."""

    model: str
    matched: float | None
    """Share of the canaries that lie nearest to their own vector; None where the encoder could not be asked."""
    cosine: float | None
    """Mean cosine of the canaries to their own vector."""
    refused: str | None
    """The reason, None for one that may ask and meets the canaries."""


def verify_index(target: str, model: str | None, device: str | None, table: str | None = None) -> Iterator[Admission]:
    """Reads every file of an index whole, then lets `model` (None: every encoder that it knows) encode the canaries.

    Raises `LeafError` for a file that is not as it was written.
    """
    with Index.open(target, table) as index:
        if isinstance(index.store, FolderStore):
            index.store.check()
        for each in [model] if model is not None else index.encoders().values():
            try:
                encoder = load_for_serving(each, device=device)  # as a search opens it
                index.admit(encoder)
                share, cosine = matched(encoder, index.space)
                yield Admission(each, share, cosine, None if share >= MIN_MATCHED else MISSES)
            except LeafError as error:
                yield Admission(each, None, None, str(error))


def describe(target: str, table: str | None = None) -> dict[str, Any]:
    """An index in short, as plain data."""
    with Index.open(target, table) as index:
        return {
            "index": index.store.name,
            "documents": len(index),
            "dim": index.settings.dim,
            "precision": index.settings.precision,
            "space": index.space.id,
            "columns": index.store.columns(),
            "encoders": list(index.encoders()),
        }


def _open(model: str, files: DocumentFiles, plan: Plan) -> Encoder:
    encoder = load(model, device=plan.device, compute_dtype="bfloat16" if plan.dtype == "bfloat16" else "float32")
    narrow = getattr(encoder, "use_bfloat16_where_exact", None)
    if plan.dtype == "auto" and narrow is not None and len(files) >= MIN_DOCUMENTS:
        narrow([each.body for each in itertools.islice(files, NUM_TRIED)])
    return encoder


def _documents(target: str, table: str | None) -> int:
    """How many documents the index in `target` has; 0 where there is none."""
    if not stores.exists(target, table):
        return 0
    with stores.open_store(target, table) as there:
        return len(there)


def _check_same(index: Index, plan: Plan) -> None:
    """Raises `LeafError` where vectors that are there would have to lie otherwise."""
    known = index.settings
    for asked, is_now, option in (
        (plan.precision, known.precision, "--precision"),
        (plan.truncate_dim, known.dim, "--truncate"),
    ):
        if asked is not None and asked != is_now:
            raise LeafError(
                f"{index.store.name} has {option} {is_now}, not {asked}; leave it out, or copy the index: leaf index "
                f"--from {index.store.name} {option} {asked} --out NEW"
            )


def _beside(model: str, target: str) -> str:
    from leaf.search.index import beside

    return beside([model], target)[0]
