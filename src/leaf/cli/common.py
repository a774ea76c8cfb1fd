"""What the verbs share: the app, their options, how a recipe is opened and how tables look."""

import inspect
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from leaf.errors import LeafError
from leaf.progress import say

if TYPE_CHECKING:
    from leaf.given import Given
    from leaf.pipeline import Pipeline
    from leaf.recipe import Recipe


class Verbs(TyperGroup):
    """Verbs may have two words: `leaf texts vocabulary` beside `leaf texts`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` begin with, the longer name first."""
        both = " ".join(args[:2])
        return super().resolve_command(ctx, [both, *args[2:]] if both in self.commands else args)


app = typer.Typer(
    name="leaf",
    cls=Verbs,
    help="Teacher-aligned embedding distillation: small query encoders for an index you already have.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
stdout = Console(highlight=False, emoji=False)

Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 … Default: a GPU where there is one.")]
NoCompile = Annotated[bool, typer.Option("--no-compile", help="On a GPU: CUDA graphs, but no torch.compile.")]
Eager = Annotated[bool, typer.Option("--eager", help="On a GPU: neither compilation nor CUDA graphs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="TABLE.FIELD=VALUE", help="Change one setting, of train for every student; repeatable."
    ),
]


class Dtype(StrEnum):
    """What encoders compute in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Changes:
    """What is changed of a recipe, and where its run is."""

    out: Annotated[Path | None, typer.Option("--out", help="Run folder. Default: runs/NAME, the recipe's.")] = None
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Train on a sample of so many texts.")] = None
    teacher: Annotated[str | None, typer.Option("--teacher", help="Another teacher than the recipe's.")] = None
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="STUDENT", help="Adapt this aligned student instead of starting a new one."),
    ] = None
    commercial: Annotated[
        bool, typer.Option("--commercial", help="Leave out texts whose licence forbids commercial use.")
    ] = False
    settings: Set = None
    device: Device = None
    as_json: AsJson = False


OWN = "Without a recipe, or instead of what it has"


class Own:
    """A teacher and texts of one's own; see `leaf.given.Given`."""

    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="MODEL",
            help="The model whose space is kept: a hub id, a folder, openai:MODEL …",
            rich_help_panel=OWN,
        ),
    ] = None
    queries: Annotated[
        list[str] | None,
        typer.Option(
            "--queries",
            metavar="FILE",
            help="Texts like the queries: .txt (one a line), .parquet, .jsonl, .csv, .tsv, 'a pattern-\\*.parquet', "
            "hub:OWNER/NAME; repeatable.",
            rich_help_panel=OWN,
        ),
    ] = None
    documents: Annotated[
        list[str] | None,
        typer.Option("--documents", metavar="FILE", help="Texts like the documents; repeatable.", rich_help_panel=OWN),
    ] = None
    texts: Annotated[
        list[str] | None,
        typer.Option(
            "--texts",
            metavar="FILE",
            help="Texts with a column kind (query, document), or installed-docs; repeatable.",
            rich_help_panel=OWN,
        ),
    ] = None
    column: Annotated[
        str | None,
        typer.Option(
            "--column", metavar="NAME", help="Column of the text in all of these. Default: text.", rich_help_panel=OWN
        ),
    ] = None
    layers: Annotated[
        list[int] | None,
        typer.Option(
            "--layers",
            metavar="N",
            min=0,
            help="So many layers of the teacher, evenly spread; 0 is a lookup table, trained in its own way. Repeated, "
            "a student each (student-2l, student-table …); one with layers begins with those of the next larger.",
            rich_help_panel=OWN,
        ),
    ] = None
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            metavar="MODEL",
            help="Students begin from this encoder, not from the teacher; needed where that is behind an API.",
            rich_help_panel=OWN,
        ),
    ] = None
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="PATH",
            help="Score on this BEIR folder or .tsv[.gz] set, and train on none of its texts; repeatable.",
            rich_help_panel=OWN,
        ),
    ] = None
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="Of the run, which lies in runs/NAME. Default: the recipe's; without one, the last part of --out.",
            rich_help_panel=OWN,
        ),
    ] = None


class Run(Own, Changes):
    """A recipe and its run."""

    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE", help="A recipe that ships (see `leaf recipes`) or a .toml file. Default: leaf-fast."
        ),
    ] = None


class Training:
    """How steps are executed."""

    no_compile: NoCompile = False
    eager: Eager = False
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="On a GPU: the same bits every time, resumed or not. Slower.")
    ] = False
    profile: Annotated[bool, typer.Option("--profile", help="Write a trace of a few steps to OUT/profile/.")] = False
    texts_from: Annotated[
        Path | None,
        typer.Option(
            "--texts-from", metavar="RUN", help="Take finished texts and teacher vectors from this run folder."
        ),
    ] = None


class Spending:
    """What a teacher behind an API may cost."""

    max_cost: Annotated[
        float | None,
        typer.Option(
            "--max-cost",
            metavar="USD",
            min=0,
            help="Stop before an API teacher costs this run more (teacher.api.price).",
        ),
    ] = None


def verb(
    *groups: type, name: str | None = None, panel: str = "A recipe"
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Makes a verb of a function of one namespace, which has the options of all `groups` as its attributes.

    So an option that several verbs have is written once. What comes first has no default.
    """

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        def command(**values: Any) -> None:
            function(SimpleNamespace(**values))

        parameters = {}
        for group in groups:
            for base in reversed(group.__mro__):
                for option, annotation in inspect.get_annotations(base).items():
                    default = getattr(base, option, inspect.Parameter.empty)
                    kind = inspect.Parameter.KEYWORD_ONLY
                    parameters[option] = inspect.Parameter(option, kind, default=default, annotation=annotation)
        command.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
        command.__annotations__ = {option: each.annotation for option, each in parameters.items()}
        app.command(name or function.__name__, help=function.__doc__, rich_help_panel=panel)(command)
        return function

    return register


def given_in(options: Any) -> "Given":
    """What the options of `Own` give, as far as a verb has them."""
    from leaf.given import Given

    return Given(**{name: value for name in Given.__dataclass_fields__ if (value := getattr(options, name, None))})


def open_recipe(options: Any) -> "Recipe":
    """The recipe that `Run` and its `Changes` name, with what is given besides; files that are given are looked at."""
    from leaf.recipe import DEFAULT, Recipe

    overrides = [*(options.settings or []), *([f"prepare.limit={options.limit}"] if options.limit else [])]
    given = given_in(options)
    if options.recipe is None and options.start:
        raise LeafError(
            "--from needs a RECIPE, since a student that goes on learns at a lower rate than leaf-fast's; "
            "docs/guides/adapting.md has one"
        )
    name = options.recipe or DEFAULT
    if name == DEFAULT:
        given = given.named_after(options.out)
    if options.start:
        from leaf.adapting import adapting

        recipe = adapting(name, options.start, overrides, given=given)
    else:
        recipe = Recipe.load(name, overrides, given=given)
    given.check()
    if options.commercial:
        from leaf.texts.check import commercial_only

        recipe, left_out, unknown = commercial_only(recipe)
        say(f"left out, not for commercial use: {', '.join(left_out) or 'none'}")
        if unknown:
            say(f"kept, licence not known: {', '.join(unknown)}")
    return recipe


def open_pipeline(options: Any, **more: Any) -> "AbstractContextManager[Pipeline]":
    """The run of that recipe, opened."""
    from leaf.pipeline import Pipeline

    return Pipeline(open_recipe(options), options.out, device=options.device, **more).open()


def numbers(text: str | None, option: str) -> list[int]:
    """`256,128,64` as numbers."""
    try:
        return [int(each) for each in text.split(",")] if text else []
    except ValueError:
        raise LeafError(f"{option} '{text}' is no list of numbers, expected for example 256,128,64") from None


def print_json(value: Any) -> None:
    """Prints `value` for programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def table_of(*columns: str, numeric: str = "") -> Table:
    """A table without rules; the columns named in `numeric`, separated by commas, are aligned to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        is_numeric = column and column in numeric.split(",")
        table.add_column(column, justify="right" if is_numeric else "left", overflow="fold")
    return table
