"""The texts of a recipe: rows, tokens as each model reads them, and how many are trained on, each with its origin.

Rows of a source are the recipe's `rows` (as far as the source has them), else the source's own count, else
`about.rows`, else the paper's Table 1. Finished texts in the run folder are counted instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from leaf.encoder import Role
from leaf.errors import LeafError
from leaf.models import hub_id, resolve_model
from leaf.planning.lengths import CHARACTERS_PER_TOKEN, SPECIAL, Lengths, Reader, expect, measure, paper_kind
from leaf.planning.models import find_model
from leaf.planning.sampling import Sample, owned_as_source, sample_files, sample_installed, spread, thin
from leaf.recipe import Recipe, TextSource
from leaf.run import Run
from leaf.teacher.dump import is_database
from leaf.texts.shards import undamaged
from leaf.texts.sources import check_fields, name_of, read, scheme_of
from leaf.texts.tables import TEXT_FORMATS, files

#: Characters of a token, and bytes of a character in a shard (zstd), where no text can be looked at: 0.39 to 0.51 for
#: documents, 0.40 to 0.70 for queries over the 36 sources of the ladder's texts.
SHARD_BYTES: dict[Role, float] = {"document": 0.44, "query": 0.50}
#: Texts of finished shards that are looked at.
NUM_FINISHED = 2000
#: Fewer texts than this say little about a source of their own.
FEW = 20


@dataclass
class Source:
    """One `[[texts]]` entry, as far as it is known before it is read."""

    name: str
    source: str
    rows: int | None
    """Rows that it gives; None where nobody says."""
    rows_from: str
    """`counted`, `estimated`, `recipe`, `about`, `paper` or `unknown`."""
    query_share: float
    texts: list[tuple[str, Role]] = field(default_factory=list)
    """A sample, where it can be read here."""
    about_tokens: float | None = None
    megabytes: float = 0
    """To download."""
    licence: str | None = None
    commercial: bool | None = None
    guard: bool = False
    is_owned: bool = False
    """Whether the teacher's vectors of these texts are there already."""
    problem: str | None = None
    """Why it could not be looked at, where it should have been on this machine."""
    weight: float = 1.0
    """Share of its rows that is trained on."""

    def share_of(self, kinds: Sequence[str]) -> float:
        """Share of its texts that are of one of `kinds`."""
        return ("query" in kinds) * self.query_share + ("document" in kinds) * (1 - self.query_share)

    @property
    def trained(self) -> float:
        """Training texts from here."""
        return (self.rows or 0) * self.weight

    def lengths(self, reader: Reader) -> Lengths:
        """Tokens of its texts as `reader` sees them."""
        if self.texts:
            return measure(self.texts, reader)
        return expect(self.about_tokens, paper_kind(self.name), self.query_share, reader)

    @property
    def shard_bytes(self) -> float:
        """Bytes of a character in a shard."""
        return self.query_share * SHARD_BYTES["query"] + (1 - self.query_share) * SHARD_BYTES["document"]

    @property
    def characters(self) -> float:
        """Mean characters of a text, of the sample or worked out from its tokens."""
        if self.texts:
            return sum(len(text) for text, _ in self.texts) / len(self.texts)
        return max(self.lengths(Reader(None, None)).mean(None) - SPECIAL, 1) * CHARACTERS_PER_TOKEN


@dataclass(frozen=True)
class Texts:
    """All texts of a recipe."""

    sources: tuple[Source, ...]
    training: int
    held_out: int
    pairs: int
    is_measured: bool = False
    """Whether these are the finished texts of the run folder."""
    shard_bytes: int | None = None
    """What the finished shards take."""

    @property
    def rows(self) -> int:
        """Rows of all sources."""
        return sum(source.rows or 0 for source in self.sources)

    def tokens(self, reader: Reader, *, kinds: Sequence[str] = ("query", "document"), owned: bool = True) -> "Tokens":
        """Sums over the training texts of `kinds` as `reader` sees them; without those of `vectors` if not `owned`.

        A source of both kinds counts by its share of each, at its mean length.
        """
        total = Tokens()
        for source in self.sources:
            if source.is_owned and not owned:
                continue
            texts = source.trained * source.share_of(kinds)
            lengths = source.lengths(reader)
            total.texts += texts
            total.tokens += texts * lengths.mean(reader.max_length)
            total.squares += texts * lengths.squares(reader.max_length)
        return total


@dataclass
class Tokens:
    """Sums over texts, as floats: they are expectations."""

    texts: float = 0.0
    tokens: float = 0.0
    squares: float = 0.0
    """Of squared lengths."""

    @property
    def mean(self) -> float:
        """Tokens of a text."""
        return self.tokens / self.texts if self.texts else 0.0


def plan_texts(recipe: Recipe, run: Run) -> Texts:
    """The texts of `recipe`: those that are finished in its run, else what its sources promise."""
    if (manifest := run.finished_texts(recipe)) is not None:
        return _of_manifest(manifest, run.folder / "texts", recipe)
    sources = [look_at(source, recipe) for source in recipe.texts]
    _share_paper_rows(sources)
    prepare = recipe.prepare
    entries = list(zip(sources, recipe.texts, strict=True))
    apart = [found for found, entry in entries if entry.held_out]
    _weigh_guards([found for found, entry in entries if not entry.held_out], prepare.guard_ratio)
    for found in apart:
        found.weight = 0.0
    kept = sum(source.trained for source in sources)
    drawn = prepare.held_out_of(int(kept))
    held = min(drawn + 2 * prepare.held_out_pairs, int(kept))
    training = max(min(round(kept) - held, prepare.limit or round(kept)), 0)
    for source in sources:
        source.weight *= training / kept if kept else 0
    held_out = drawn + sum(found.rows or 0 for found in apart)
    return Texts(tuple(sources), training, held_out, prepare.held_out_pairs)


def look_at(source: TextSource, recipe: Recipe) -> Source:
    """What is known of one source without a network and without reading much."""
    found = Source(
        name_of(source),
        source.source,
        source.rows,
        "recipe",
        {"query": 1.0, "document": 0.0}.get(source.kind or "", 0.5),
        about_tokens=source.about.tokens,
        megabytes=_megabytes(source),
        licence=source.licence,
        commercial=source.commercial,
        guard=source.guard,
        is_owned=source.source == "vectors",
    )
    sample = None
    try:
        check_fields(source)
        sample = _sample(source, recipe)
        if sample is not None and sample.rows and not sample.texts:
            raise LeafError(f"column '{source.column}' holds no texts")
    except LeafError as error:
        found.problem = str(error).split(";")[0]
    available, rows_from = (None, "unknown") if source.about.rows is None else (source.about.rows, "about")
    if sample is not None:
        found.texts = sample.texts
        available, rows_from = sample.rows, "counted" if sample.is_exact else "estimated"
        if sample.texts:
            found.query_share = sum(kind == "query" for _, kind in sample.texts) / len(sample.texts)
    if source.rows is None or (available is not None and available < source.rows):
        found.rows, found.rows_from = available, rows_from
    return found


def _megabytes(source: TextSource) -> float:
    """What is downloaded: all of a data set or, where a sample of its files will do, about the sample's share."""
    told, rows = source.about.megabytes or 0.0, source.about.rows
    if source.sample == "files" and source.rows is not None and rows is not None:
        return told * min(1.0, source.rows / rows)
    return told


def _sample(source: TextSource, recipe: Recipe) -> Sample | None:
    """A sample of a source that is on this machine; None of one that is not."""
    scheme, rest = scheme_of(source)
    if scheme == "installed-docs":
        return sample_installed(source.packages)
    if scheme == "vectors":
        owned = recipe.teacher.vectors
        if owned is None:
            raise LeafError("these are the texts of teacher.vectors, which is not set")
        return None if is_database(owned) else sample_files(files(owned.source), owned_as_source(owned))
    if scheme == "tokenizer":
        if find_model(resolve_model(rest), source.revision).tokenizer is None:
            return None
        rows = [(str(row.text), row.kind) for row in read(source.model_copy(update={"rows": None}), 0)]
        return Sample(thin(rows), len(rows), True)
    if scheme == "file":
        return sample_files(files(rest), source)
    if Path(rest).is_dir():
        if not (paths := _repository_files(Path(rest), source)):
            raise LeafError(f"no files of texts in '{rest}'")
        return sample_files(paths, source)
    if not hub_id(rest):
        raise LeafError(f"no folder '{rest}'")
    return None


def _repository_files(folder: Path, source: TextSource) -> list[Path]:
    """Files of a local copy of a hub repository: of the configuration and the split, where paths name them."""
    paths = sorted(folder.rglob("*.parquet")) or sorted(
        path for path in folder.rglob("*") if path.name.removesuffix(".gz").endswith(TEXT_FORMATS)
    )
    for word in (source.config, source.split):
        named = [path for path in paths if word and word in str(path.relative_to(folder))]
        paths = named or paths
    return paths


def _share_paper_rows(sources: Sequence[Source]) -> None:
    """Gives sources of the paper's texts that nobody has counted what Table 1 leaves for them."""
    unknown: dict[str, list[Source]] = {}
    for source in sources:
        kind = paper_kind(source.name)
        if source.rows is None and kind is not None:
            unknown.setdefault(kind.name, []).append(source)
    for each in unknown.values():
        kind = paper_kind(each[0].name)
        assert kind is not None
        known = sum(source.rows or 0 for source in sources if paper_kind(source.name) == kind)
        for source in each:
            source.rows, source.rows_from = max(kind.texts - known, 0) // len(each), "paper"


def _weigh_guards(sources: Sequence[Source], ratio: float) -> None:
    """General texts beside those of a domain are a sample: at most `ratio` for each of the others."""
    guards = sum(source.rows or 0 for source in sources if source.guard)
    others = sum(source.rows or 0 for source in sources if not source.guard)
    for source in sources:
        if source.guard and guards and others:
            source.weight = min(1.0, ratio * others / guards)


def _of_manifest(manifest: dict[str, Any], folder: Path, recipe: Recipe) -> Texts:
    """Finished texts: counts of the manifest, and a sample of the shards, told apart by source."""
    paths = [folder / shard["file"] for shard in manifest["shards"]]
    drawn: dict[str, list[tuple[str, Role]]] = {}
    everything: list[tuple[str, Role]] = []
    for name, text, kind in _rows_of(paths):
        drawn.setdefault(name, []).append((text, kind))
        everything.append((text, kind))
    sources = []
    entries = {name_of(entry): entry for entry in recipe.texts}
    for name, counts in manifest["sources"].items():
        entry = entries.get(counts.get("entry", name))
        texts = drawn.get(name, [])
        texts = texts if len(texts) >= FEW else everything
        share = sum(kind == "query" for _, kind in texts) / max(len(texts), 1)
        found = Source(name, name, counts["kept"], "counted", share, texts)
        if entry is not None:  # always, but for files that name the sources of their rows, prepared long ago
            found.source, found.licence, found.commercial = entry.source, entry.licence, entry.commercial
            found.is_owned = entry.source == "vectors"
        sources.append(found)
    pairs = manifest.get("held_out_pairs")
    size = sum(shard["bytes"] for shard in [*manifest["shards"], manifest["held_out"]])
    return Texts(
        tuple(sources), manifest["rows"], manifest["held_out"]["rows"], pairs["pairs"] if pairs else 0, True, size
    )


def _rows_of(paths: Sequence[Path]) -> list[tuple[str, str, Role]]:
    """(source, text, kind) of rows evenly spread over a few of the shards."""
    found: list[tuple[str, str, Role]] = []
    chosen = spread(paths, 8)
    for path in chosen:
        with undamaged(path):
            table = pq.read_table(path, columns=["source", "text", "kind"])
        rows = table.take(spread(range(len(table)), NUM_FINISHED // len(chosen))).to_pylist()
        found += [(row["source"], row["text"], row["kind"]) for row in rows]
    return found
