"""Single numbers of a record, as a sentence or a cell of a table shows them.

    <!-- leaf: value RECORD PATH [+|-|/ PATH]… [xFACTOR|/FACTOR] [FORMAT] -->

`students.student-2l.retention.asymmetric` walks objects by key and lists by the `name` of their members or by position
(`students.0`, `students.-1` for the last); a key that has dots itself is found too. `+`, `-` and `/` stand alone and
work from left to right; `x100` multiplies the result, `/60` divides it. `FORMAT` is Python's: `.1f`, `,`, `+.2f`; text
and whole numbers need none.
"""

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from leaf.errors import LeafError

OPERATORS: dict[str, Callable[[float, float], float]] = {"+": operator.add, "-": operator.sub, "/": operator.truediv}
FACTOR = re.compile(r"([x/])(\d+(?:\.\d+)?)")


def look_up(record: Any, path: str) -> Any:
    """The value at `path`. Raises `LeafError` that names the part which is not there, and what is."""
    value, rest, seen = record, path, ""
    while rest:
        known = _members(value)
        # The longest first: keys such as `train.lr` have dots.
        parts = rest.split(".")
        names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        name = next((each for each in names if each in known), None)
        if name is None:
            there = ", ".join(each for each in known if not each.startswith("-"))
            said = f"there are {there[:120]}{'…' if len(there) > 120 else ''}" if known else "there is nothing below"
            raise LeafError(f"no '{parts[0]}' in {seen or 'the record'} (of '{path}'); {said}")
        value, rest = known[name], rest[len(name) + 1 :]
        seen = f"{seen}.{name}".strip(".")
    return value


def show(record: Any, words: Sequence[str]) -> str:
    """What the words after the record ask for, in words."""
    if not words:
        raise LeafError("the block names no value, expected PATH [FACTOR] [FORMAT] after the record")
    value, rest = look_up(record, words[0]), list(words[1:])
    while len(rest) > 1 and rest[0] in OPERATORS:
        value = _apply(rest[0], _number(value, words[0]), _number(look_up(record, rest[1]), rest[1]))
        rest = rest[2:]
    if rest and (factor := FACTOR.fullmatch(rest[0])):
        number = _number(value, words[0])
        by = float(factor[2]) if "." in factor[2] else int(factor[2])
        value = number * by if factor[1] == "x" else _apply("/", number, by)
        rest = rest[1:]
    if len(rest) > 1:
        raise LeafError(
            f"'{rest[0]}' is neither + - / with a path, nor a factor such as x100, nor the format at the end"
        )
    if isinstance(value, dict | list) or value is None:
        raise LeafError(f"'{words[0]}' is {'null' if value is None else 'no single value'}; name one below it")
    if not rest:
        if isinstance(value, float):
            raise LeafError(f"'{words[0]}' is {value}, which needs a format such as .1f")
        return str(value)
    try:
        return format(value, rest[0])
    except ValueError as error:
        raise LeafError(f"'{rest[0]}' is no format for {value!r} ({error}), expected for example .1f") from error


def _members(value: Any) -> dict[str, Any]:
    """What may follow in a path: keys, or names and positions from both ends."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, list):
        return {}
    names = [each.get("name") if isinstance(each, dict) else None for each in value]
    # A name that two members have is none.
    named = {name: each for name, each in zip(names, value, strict=True) if name and names.count(name) == 1}
    return {**named, **{str(at): value[at] for at in range(-len(value), len(value))}}


def _number(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LeafError(f"'{path}' is {value!r:.40}, no number to compute with")
    return value


def _apply(sign: str, left: float, right: float) -> float:
    if sign == "/" and not right:
        raise LeafError("a division by 0")
    return OPERATORS[sign](left, right)
