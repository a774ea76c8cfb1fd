"""The texts of a recipe: rows, tokens as each model reads them, and how many are trained on, each with its origin.

Rows of a source are the recipe's `rows` (as far as the source has them), else the source's own count, else
`about.rows`, else the paper's Table 1. Finished texts in the run folder are counted instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from leaf.encoder import Role
from leaf.errors import LeafError
from leaf.planning.lengths import CHARACTERS_PER_TOKEN, SPECIAL, Lengths, Reader, expect, measure, paper_kind
from leaf.planning.models import find_model
from leaf.planning.sampling import (
    Sample,
    owned_as_source,
    sample_installed,
    sample_lines,
    sample_tables,
    spread,
    table_files,
    thin,
)
from leaf.recipe import Recipe, TextSource
from leaf.run import read_manifest
from leaf.texts.sources import name_of, read

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


def plan_texts(recipe: Recipe, folder: Path | None) -> Texts:
    """The texts of `recipe`: those finished in the run folder `folder`, else what its sources promise."""
    if folder is not None and (manifest := _finished(recipe, folder)) is not None:
        return _of_manifest(manifest, folder / "texts")
    sources = [look_at(source, recipe) for source in recipe.texts]
    _share_paper_rows(sources)
    prepare = recipe.prepare
    _weigh_guards(sources, prepare.guard_ratio)
    kept = sum(source.trained for source in sources)
    held = min(prepare.held_out + 2 * prepare.held_out_pairs, int(kept))
    training = max(min(round(kept) - held, prepare.limit or round(kept)), 0)
    for source in sources:
        source.weight *= training / kept if kept else 0
    return Texts(tuple(sources), training, prepare.held_out, prepare.held_out_pairs)


def look_at(source: TextSource, recipe: Recipe) -> Source:
    """What is known of one source without a network and without reading much."""
    owned = source.source == "vectors" and recipe.teacher.vectors is not None
    found = Source(
        name_of(source) if not owned or source.name else "vectors",
        source.source,
        source.rows,
        "recipe",
        {"query": 1.0, "document": 0.0}.get(source.kind or "", 0.5),
        about_tokens=source.about.tokens,
        megabytes=_megabytes(source),
        licence=source.licence,
        commercial=source.commercial,
        guard=source.guard,
        is_owned=owned,
    )
    try:
        sample = _sample(source, recipe)
    except (LeafError, OSError, KeyError, ValueError, pa.ArrowException) as error:
        sample = None
        problem = f"no column {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        found.problem = problem.split(";")[0]
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
    if source.source == "vectors":
        owned = recipe.teacher.vectors
        if owned is None or owned.source.startswith("postgres"):
            return None
        source = owned_as_source(owned).model_copy(update={"where": {}})
    if source.source == "installed-docs":
        return sample_installed(source.packages)
    scheme, separator, rest = source.source.partition(":")
    if separator and scheme == "hub":
        paths = _repository_files(Path(rest), source)
        return sample_tables(paths, source) if paths else None
    if separator and scheme == "tokenizer":
        model = find_model(rest, source.revision)
        if model.tokenizer is None:
            return None
        rows = [(str(row.text), row.kind) for row in read(source.model_copy(update={"rows": None}), 0)]
        return Sample(thin(rows), len(rows), True)
    files = table_files(source.source)
    if not files:
        raise LeafError(f"no file '{source.source}'")
    if all(each.suffix == ".parquet" for each in files):
        return sample_tables(files, source)
    return sample_lines(files, source)


def _repository_files(folder: Path, source: TextSource) -> list[Path]:
    """Parquet files of a local copy of a hub repository: of the configuration and the split, where paths name them."""
    if not folder.is_dir():
        return []
    paths = sorted(folder.rglob("*.parquet"))
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


def _finished(recipe: Recipe, folder: Path) -> dict[str, Any] | None:
    written = folder / "recipe.toml"
    if not written.is_file():
        return None
    owner = Recipe.load(written)
    return read_manifest(folder / "texts") if owner.texts == recipe.texts and owner.prepare == recipe.prepare else None


def _of_manifest(manifest: dict[str, Any], folder: Path) -> Texts:
    """Finished texts: counts of the manifest, and a sample of the shards, told apart by source."""
    paths = [folder / shard["file"] for shard in manifest["shards"]]
    drawn: dict[str, list[tuple[str, Role]]] = {}
    everything: list[tuple[str, Role]] = []
    for name, text, kind in _rows_of(paths):
        drawn.setdefault(name, []).append((text, kind))
        everything.append((text, kind))
    sources = []
    for name, counts in manifest["sources"].items():
        texts = drawn.get(name, [])
        texts = texts if len(texts) >= FEW else everything
        share = sum(kind == "query" for _, kind in texts) / max(len(texts), 1)
        sources.append(Source(name, name, counts["kept"], "counted", share, texts))
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
        table = pq.read_table(path, columns=["source", "text", "kind"])
        rows = table.take(spread(range(len(table)), NUM_FINISHED // len(chosen))).to_pylist()
        found += [(row["source"], row["text"], row["kind"]) for row in rows]
    return found
