"""Can every source be had, before hours are spent on the first: asks, looks, reads nothing but first rows.

    print_check(check_sources(Recipe.load("leaf-ir")), console)

Of a data set on the hub, its page and its viewer are asked which configurations, splits and columns it has, all data
sets at once and each once; what does not answer within seconds counts as not reached.
"""

import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from leaf.errors import LeafError, first_line
from leaf.models import resolve_model
from leaf.recipe import Recipe, TextSource
from leaf.texts import installed
from leaf.texts.hub import failing_as, open_hub
from leaf.texts.sources import check_fields, common_name, name_of, scheme_of, tokenizer_file
from leaf.texts.tables import Malformed, Record, files, num_rows, records, require

if TYPE_CHECKING:
    from rich.console import Console

#: Seconds for one request to the hub …
ANSWER_SECONDS = 4.0
#: … and for all of them together.
ALL_SECONDS = 4.5
#: Rows of a file that are looked at for a text.
FIRST_ROWS = 100


@dataclass(frozen=True)
class Reached:
    """What is known of one source without reading it."""

    name: str
    source: str
    kind: str | None
    """None: a column says it, or the source itself."""
    wanted: int | None
    """Rows asked for; None: all."""
    reachable: bool
    found: int | None
    """Rows that it has, before `where`. None: not told."""
    columns: bool | None
    """Whether it has the configuration, the split and the columns that are read. None: not told."""
    licence: str | None
    commercial: bool | None
    reason: str
    """What is wrong, or what could not be found out; "" where all is well."""


def check_sources(recipe: Recipe) -> list[Reached]:
    """Looks at every source of `recipe`, in its order. Raises nothing: what is wrong is in `reason`."""
    answers = _ask_all(recipe.texts)
    return [_check(source, recipe, answers) for source in recipe.texts]


def commercial_only(recipe: Recipe) -> tuple[Recipe, list[str], list[str]]:
    """`recipe` without the sources whose licence forbids commercial use, their names, and the names of not known ones.

    Sources of which nothing is known stay. Raises `LeafError` where none is left.
    """
    kept = tuple(source for source in recipe.texts if source.commercial is not False)
    if not kept:
        raise LeafError(f"recipe '{recipe.name}': every source forbids commercial use; name others in [[texts]]")
    left_out = [name_of(source) for source in recipe.texts if source.commercial is False]
    unknown = [name_of(source) for source in kept if source.commercial is None]
    return recipe.model_copy(update={"texts": kept}), left_out, unknown


def print_check(rows: Sequence[Reached], console: "Console") -> None:
    """A table of `rows`, those of one data set that fare alike as one, and the problems below it."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("source", "kind", "wanted", "found", "licence", "commercial", "state"):
        number = heading in ("wanted", "found")
        table.add_column(heading, justify="right" if number else "left", no_wrap=number)
    problems: dict[str, list[str]] = {}
    for group in _alike(rows):
        first, name = group[0], common_name([each.name for each in group])
        commercial = {True: "yes", False: "no", None: "?"}[first.commercial]
        state = "not reached" if not first.reachable else "wrong" if first.columns is False else "ok"
        if first.reachable and first.columns is None:
            state = "not told"
        wanted, found = _sum(each.wanted for each in group), _sum(each.found for each in group)
        table.add_row(name, first.kind or "", wanted or "all", found, first.licence or "not stated", commercial, state)
        if first.reason:
            problems.setdefault(first.reason, []).append(name)
    console.print(table)
    for reason, names in problems.items():
        console.print(f"{', '.join(names)}: {reason}", markup=False, highlight=False)


def _check(source: TextSource, recipe: Recipe, answers: Mapping[tuple[str, str, str | None], "_Answer"]) -> Reached:
    scheme, rest = scheme_of(source)
    reachable, reason = True, ""
    found: int | None = None
    columns: bool | None = True
    try:
        check_fields(source)
        if (key := _question(source)) is not None:
            answer = answers[key]
            reachable = answer.problem is None
            found, columns, reason = answer.about(source) if reachable else (None, None, str(answer.problem))
        elif scheme == "file":
            found = check_files(source, rest)
        elif scheme == "hub":
            found = _check_folder(source, rest)
        elif scheme == "tokenizer":
            tokenizer_file(resolve_model(rest), source.revision)
        elif scheme == "vectors" and recipe.teacher.vectors is None:
            raise LeafError("teacher.vectors is not set; set it, or leave this source out")
        elif scheme == "installed-docs":
            installed.versions(source.packages)
    except _Wrong as error:
        columns, reason = False, str(error)
    except LeafError as error:
        reachable, columns, reason = False, None, str(error)
    licence, commercial = source.licence, source.commercial
    kind = source.kind or ("document" if scheme == "tokenizer" else None)
    return Reached(
        name_of(source), source.source, kind, source.rows, reachable, found, columns, licence, commercial, reason
    )


class _Wrong(LeafError):
    """The source is there, but not what is asked of it."""


def check_files(source: TextSource, spec: str) -> int | None:
    """How many rows the files of `spec` have, where that is told without reading them.

    Raises `LeafError` where there is no such file, none has a row, or the first lacks the columns that are read.
    """
    found = files(spec)
    try:
        _check_texts(source, records(source, found[0]))
        if next(itertools.chain.from_iterable(records(source, path) for path in found), None) is None:
            raise LeafError(f"{spec} is empty; give a file that has texts")
    except LeafError as error:
        raise _Wrong(str(error)) from error
    counts = [num_rows(path) for path in found]
    return None if None in counts else sum(count or 0 for count in counts)


def _check_folder(source: TextSource, name: str) -> int | None:
    if not Path(name).is_dir():
        raise LeafError(f"no folder '{name}'")
    try:
        dataset, columns, _ = open_hub(source, name)
        rows = list(failing_as(source, iter(dataset.take(FIRST_ROWS))))
        if columns is None and rows:
            require(source, source.source, list(rows[0]))
        _check_texts(source, rows)
    except LeafError as error:
        raise _Wrong(str(error)) from error
    splits = dataset.info.splits or {}
    return splits[source.split].num_examples or None if source.split in splits else None


def _check_texts(source: TextSource, found: Iterable[Record]) -> None:
    """Raises `LeafError` where the first rows have values in the column of the texts, and none is a string."""
    rows = (each for each in itertools.islice(found, FIRST_ROWS) if not isinstance(each, Malformed))
    values = [value for row in rows if (value := row.get(source.column)) is not None]
    if values and not any(isinstance(value, str) for value in values):
        raise _no_texts(source, type(values[0]).__name__)


def _no_texts(source: TextSource, what: str) -> LeafError:
    return LeafError(f"column '{source.column}' of {source.source} holds {what}, expected strings; name the right one")


# The hub


@dataclass
class _Answer:
    """What the hub says about one repository; filled while it answers."""

    problem: str | None = "no answer from the hub in time; connect, or name a local copy"
    files: frozenset[str] = frozenset()
    gated: bool = False
    configs: dict[str, "_Config"] = field(default_factory=dict)

    def about(self, source: TextSource) -> tuple[int | None, bool | None, str]:
        """(rows found, whether all that is read is there, what is wrong or not known) of one source."""
        if scheme_of(source)[0] == "tokenizer":
            there = "tokenizer.json" in self.files
            return None, there, "" if there else "it has no tokenizer.json; save it once with a fast tokenizer"
        note = "it asks for an agreement on its page, and for a login" if self.gated else ""
        if any(name.endswith(".py") and "/" not in name for name in self.files) and not self.configs:
            return None, False, "it is a loading script, which datasets 4 and later refuse; name another copy"
        if not self.configs:
            return None, None, note or "its configurations, splits and columns are not told"
        name = source.config or ("default" if "default" in self.configs else next(iter(self.configs)))
        if (config := self.configs.get(name)) is None or (
            source.config is None and len(self.configs) > 1 and name != "default"
        ):
            return None, False, f"it has the configurations {', '.join(self.configs)}; name one of them in config"
        if config.splits and source.split not in config.splits:
            return None, False, f"it has the splits {', '.join(config.splits)}, not '{source.split}'"
        found = config.splits.get(source.split)
        if not config.columns:
            return found, None, note or "its columns are not told"
        try:
            require(source, source.source, list(config.columns))
            if (what := config.columns[source.column]) not in ("string", "large_string"):
                raise _no_texts(source, what)
        except LeafError as error:
            return found, False, str(error)
        return found, True, note


@dataclass
class _Config:
    columns: dict[str, str]
    """Name → type."""
    splits: dict[str, int | None]


def _question(source: TextSource) -> tuple[str, str, str | None] | None:
    """(type of repository, name, revision) that the hub has to be asked about; None for what is on this machine."""
    scheme, rest = scheme_of(source)
    if scheme == "hub" and not Path(rest).is_dir():
        return "dataset", rest, source.revision
    if scheme == "tokenizer" and not _is_here(rest, source.revision):
        return "model", rest, source.revision
    return None


def _is_here(model: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    try:
        folder = resolve_model(model)
        return Path(folder).is_dir() or isinstance(
            try_to_load_from_cache(folder, "tokenizer.json", revision=revision), str
        )
    except ValueError:  # a name that no hub can have, a package that is not installed: `_check` says which
        return True


def _ask_all(sources: Iterable[TextSource]) -> dict[tuple[str, str, str | None], _Answer]:
    """The answers by question. What has not answered in time is left behind in its thread."""
    answers = {key: _Answer() for source in sources if (key := _question(source)) is not None}
    if not answers:
        return answers
    import huggingface_hub  # noqa: F401  # here, since threads that import the same package wait for each other

    threads = [threading.Thread(target=_ask, args=(*key, answer), daemon=True) for key, answer in answers.items()]
    deadline = time.monotonic() + ALL_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {key: _Answer(**vars(answer)) for key, answer in answers.items()}  # late answers change nothing


def _ask(repo_type: Literal["dataset", "model"], name: str, revision: str | None, answer: _Answer) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    info: Any  # of a model or of a data set
    try:
        info = HfApi().repo_info(name, repo_type=repo_type, revision=revision, timeout=ANSWER_SECONDS)
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError):
        at = f" at revision {revision}" if revision else ""
        answer.problem = f"the hub shows no {repo_type} {name}{at}; check the name, or log in if it is private"
        return
    except Exception as error:  # the HTTP client changes with the release, and its errors have no public base class
        answer.problem = f"the hub cannot be reached ({first_line(error)}); connect, or name a local copy"
        return
    answer.files = frozenset(each.rfilename for each in info.siblings or ())
    answer.gated = bool(info.gated)
    answer.configs = _of_card(info.card_data.to_dict()) if info.card_data else {}
    answer.problem = None
    if repo_type == "dataset":
        try:
            answer.configs = _of_viewer(_viewer(name)) or answer.configs
        except Exception:  # the viewer knows more than the page, but not all data sets; likewise about its errors
            return


def _viewer(name: str) -> dict[str, Any]:
    """What the hub's viewer says about the configurations of a data set."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

    server = constants.ENDPOINT.replace("https://", "https://datasets-server.")
    answer = get_session().get(
        f"{server}/info", params={"dataset": name}, headers=build_hf_headers(), timeout=ANSWER_SECONDS
    )
    answer.raise_for_status()
    return dict(answer.json()["dataset_info"])


def _of_viewer(infos: Mapping[str, Any]) -> dict[str, _Config]:
    return {
        config: _Config(
            {name: _type(feature) for name, feature in (info.get("features") or {}).items()},
            {split: each.get("num_examples") for split, each in (info.get("splits") or {}).items()},
        )
        for config, info in infos.items()
    }


def _type(feature: Any) -> str:
    """The type of a column as the hub has it: of a plain value its dtype, of anything else that it is none."""
    dtype = feature.get("dtype") if isinstance(feature, dict) else None
    return dtype if isinstance(dtype, str) else "lists or records"


def _of_card(card: Mapping[str, Any]) -> dict[str, _Config]:
    """Configurations as the head of a README.md names them, in `configs` and `dataset_info`."""
    found: dict[str, _Config] = {}
    for each in card.get("configs") or ():
        splits = [part["split"] for part in each.get("data_files") or () if isinstance(part, dict) and "split" in part]
        found[each.get("config_name", "default")] = _Config({}, dict.fromkeys(splits))
    infos = card.get("dataset_info") or ()
    for each in [infos] if isinstance(infos, dict) else infos:
        config = found.setdefault(each.get("config_name", "default"), _Config({}, {}))
        config.columns = {part["name"]: _type(part) for part in each.get("features") or () if "name" in part}
        config.splits |= {part["name"]: part.get("num_examples") for part in each.get("splits") or () if "name" in part}
    return found


# The table


def _alike(rows: Iterable[Reached]) -> Iterator[list[Reached]]:
    """Neighbours that differ in their names and numbers alone."""

    def key(each: Reached) -> object:
        return each.source, each.kind, each.reachable, each.columns, each.licence, each.commercial, each.reason

    return (list(group) for _, group in itertools.groupby(rows, key))


def _sum(numbers: Iterable[int | None]) -> str:
    """Their sum; "" where one is not known."""
    known = list(numbers)
    return "" if None in known else f"{sum(number or 0 for number in known):,}"
