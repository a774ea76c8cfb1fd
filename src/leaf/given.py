"""What completes a recipe from outside: a teacher and texts of one's own, given as options or in Python.

    from leaf.given import Given
    from leaf.recipe import Recipe

    given = Given(teacher="my/teacher", queries=["queries.txt"], documents=["passages.parquet"])
    recipe = Recipe.load("leaf-fast", given=given)

What is given replaces what the recipe has: all of its texts, the teacher with its prompts. What is not given stays.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from leaf.errors import LeafError
from leaf.recipe import RUN_NAME, TextSource

Kind = Literal["query", "document"]
#: One file, or several: a path, a pattern, or another source that `[[texts]]` knows.
Files = str | Path | Sequence[str | Path]
#: How a lookup table is trained where others are: cheap steps, of which it needs many, and rows that are seldom met,
#: which learn at a higher rate. As in `recipes/ladder.toml`.
TABLE = {"batch_size": 512, "lr": 3e-3, "final_lr": 1e-4, "epochs_per_cycle": 10}


@dataclass(frozen=True)
class Given:
    """What stands in a command instead of in a recipe; each field is an option of `leaf distill`."""

    teacher: str | None = None
    """`teacher.model`: a hub id, a folder, or a model behind an API."""
    queries: Sequence[str | Path] = ()
    """Texts like the queries: anything that `source` of `[[texts]]` may be."""
    documents: Sequence[str | Path] = ()
    """Texts like the documents."""
    texts: Sequence[str | Path] = ()
    """Texts of which a column `kind`, or the source itself, says which they are."""
    column: str | None = None
    """Where the text is in every one of these that has columns. None: `text`."""
    layers: Sequence[int] = ()
    """Layers of the student; of several numbers each is a student of its own, `student-2l`, `student-1l`,
    `student-table` …, from the most layers down, and each with layers begins with those of the one before."""
    backbone: str | None = None
    """What students begin from, if not from the teacher."""
    data: Sequence[str | Path] = ()
    """`evaluate.data`. Training texts that are in these sets are dropped, too (`prepare.leak_check`)."""
    name: str | None = None
    """Of the run."""

    def complete(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe `data`, as TOML has it, with what is given. Raises `LeafError` for what has no place in it."""
        found = dict(data)
        if self.name:
            found["name"] = self.name
        if self.teacher:
            # Prompts, length and name are those of another model; how one computes and stores is not.
            kept = _table(data, "teacher").items()
            stays = {key: value for key, value in kept if key in ("compute_dtype", "storage_dtype", "batch_size")}
            found["teacher"] = {"model": self.teacher, **stays}
        sources = [source for _, source in self._sources()]
        if self.column and not any(_has_columns(each.source) for each in sources):
            raise LeafError(f"--column {self.column}: none of the texts given has columns; leave it out")
        if sources:
            found["texts"] = [source.model_dump(exclude_defaults=True) for source in sources]
        if self.data:
            prepare = _table(data, "prepare")
            checked = dict.fromkeys([*prepare.get("leak_check", ()), "evaluate"])
            found["evaluate"] = {**_table(data, "evaluate"), "data": list(map(str, self.data))}
            found["prepare"] = {**prepare, "leak_check": list(checked)}
        if self.layers or self.backbone:
            students = self._students([dict(each) for each in data.get("students") or [_table(data, "student")]])
            found = _without(found, "students" if len(students) == 1 else "student")
            # One stays a table, whose fields can be set.
            found |= {"student": students[0]} if len(students) == 1 else {"students": students}
        return found

    def named_after(self, out: str | Path | None) -> "Given":
        """Itself; where it has no name, with the last part of the run folder `out`, as far as that can be one."""
        part = Path(out).name if out is not None else ""
        return self if self.name or not re.match(RUN_NAME, part) else replace(self, name=part)

    def check(self) -> None:
        """Looks at every file that is given. Raises `LeafError` that names the option, before anything else is done."""
        from leaf.texts.check import check_files
        from leaf.texts.sources import check_fields, scheme_of

        for option, source in self._sources():
            scheme, rest = scheme_of(source)
            try:
                check_fields(source)
                if scheme == "file":
                    check_files(source, rest)
            except LeafError as error:
                raise LeafError(f"{option} {source.source}: {error}") from error

    def _sources(self) -> Iterator[tuple[str, TextSource]]:
        """What is given as entries of `[[texts]]`, each with its option."""
        options: tuple[tuple[str, Kind | None, Sequence[str | Path]], ...] = (
            ("--queries", "query", self.queries),
            ("--documents", "document", self.documents),
            ("--texts", None, self.texts),
        )
        for option, kind, specs in options:
            for spec in map(str, specs):
                column = self.column if self.column and _has_columns(spec) else "text"
                yield option, TextSource(source=spec, kind=kind, column=column)

    def _students(self, students: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if self.backbone:  # the revision was that of another
            students = [{**_without(each, "revision"), "backbone": self.backbone} for each in students]
        if not self.layers:
            return students
        if len(students) > 1:
            raise LeafError(f"--layers varies one [student], and this recipe has {len(students)}; leave it out")
        (base,) = students
        if len(self.layers) == 1:
            return [_student(base, self.layers[0])]
        found: list[dict[str, Any]] = []
        for layers in sorted(self.layers, reverse=True):
            student = _student(base, layers) | {"name": "student-table" if layers == 0 else f"student-{layers}l"}
            if found and layers:  # a trained student's layers are a nearer start than its teacher's (results/layers)
                student = {**_without(student, "revision"), "backbone": found[-1]["name"]}
            found.append(student)
        return found


def several(value: Files) -> tuple[str | Path, ...]:
    """One file or several, as several."""
    return (value,) if isinstance(value, str | Path) else tuple(value)


#: What stands in a list of recipes, and in one that is printed to be edited, where nothing is given.
EXAMPLE = Given(teacher="your-teacher", queries=("queries.txt",), documents=("passages.txt",))


def _has_columns(spec: str) -> bool:
    return spec not in ("installed-docs", "vectors") and not (
        spec.startswith("tokenizer:") or spec.lower().removesuffix(".gz").endswith(".txt")
    )


def _student(base: Mapping[str, Any], layers: int) -> dict[str, Any]:
    train = {"train": {**TABLE, **base.get("train", {})}} if layers == 0 else {}
    return {**base, **train, "layers": layers}


def _table(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table of a recipe that nobody has checked yet."""
    table = data.get(name, {})
    return table if isinstance(table, Mapping) else {}


def _without(table: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {each: value for each, value in table.items() if each != key}
