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
    typer.Option("--set", metavar="TABLE.FIELD=VALUE", help="Change one setting; repeatable."),
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


class Run(Changes):
    """A recipe and its run."""

    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe that ships (see `leaf recipes`) or a .toml file.")
    ]


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


def open_recipe(options: Any) -> "Recipe":
    """The recipe that `Run` and its `Changes` name."""
    from leaf.recipe import Recipe, override_teacher

    overrides = [*(options.settings or []), *([f"prepare.limit={options.limit}"] if options.limit else [])]
    if options.start:
        from leaf.adapting import adapting

        recipe = adapting(options.recipe, options.start, overrides)
    else:
        recipe = Recipe.load(options.recipe, overrides)
    if options.commercial:
        from leaf.texts.check import commercial_only

        recipe, left_out, unknown = commercial_only(recipe)
        say(f"left out, not for commercial use: {', '.join(left_out) or 'none'}")
        if unknown:
            say(f"kept, licence not known: {', '.join(unknown)}")
    return override_teacher(recipe, options.teacher) if options.teacher else recipe


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
        table.add_column(column, justify="right" if column in numeric.split(",") else "left", overflow="fold")
    return table
