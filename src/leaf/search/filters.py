"""Conditions on metadata, in one small language for every store.

    parse("year >= 2020 and lang in ['en', 'de'] and not (draft or source is None)")

Names are metadata columns, or `id`, `title` and `text`; values are quoted text, numbers, True, False. A comparison with
a value that is missing is false, whichever way it goes; `is None` asks for that. `like 'json.%'`-style patterns are
written `name.startswith('json.')` and `'file' in name` (a part of the text, upper and lower case as written).

The syntax is Python's, so Python parses it; nothing of it is ever run.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from leaf.errors import LeafError

Constant: TypeAlias = str | int | float | bool
Operator: TypeAlias = Literal["==", "!=", "<", "<=", ">", ">=", "in", "starts", "contains", "missing"]

_OPERATORS: dict[type[ast.cmpop], Operator] = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
}  # fmt: skip
_MIRRORED: dict[Operator, Operator] = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
#: Conditions within conditions that are read; every store goes down them by recursion.
DEEPEST = 100
#: What a condition may look like, for errors.
EXAMPLE = "year >= 2020 and lang in ['en', 'de']"


@dataclass(frozen=True)
class Compare:
    """One comparison. `value` is a tuple for `in` and None for `missing`."""

    field: str
    operator: Operator
    value: Constant | tuple[Constant, ...] | None


@dataclass(frozen=True)
class Not:
    """The opposite."""

    inner: "Filter"


@dataclass(frozen=True)
class AllOf:
    """All of them (`and`)."""

    parts: tuple["Filter", ...]


@dataclass(frozen=True)
class AnyOf:
    """At least one of them (`or`)."""

    parts: tuple["Filter", ...]


Filter: TypeAlias = Compare | Not | AllOf | AnyOf


def parse(text: str) -> Filter:
    """The condition that `text` writes down. Raises `LeafError` for anything that is none."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return _filter(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        why = error.msg if isinstance(error, SyntaxError) else str(error)
        raise LeafError(f"cannot read the condition {text[:200]!r}: {why}; write for example {EXAMPLE}") from error


def fields(condition: Filter) -> set[str]:
    """The columns that it asks about."""
    match condition:
        case Compare(field=name):
            return {name}
        case Not(inner=inner):
            return fields(inner)
        case AllOf(parts=parts) | AnyOf(parts=parts):
            return set().union(*map(fields, parts))


def check(condition: Filter, columns: Mapping[str, str]) -> None:
    """Raises `LeafError` unless every column is there and is compared with a value of its type.

    `columns` maps metadata columns to `str`, `int`, `float`, `bool`.
    """
    known = {"id": "str", "title": "str", "text": "str", **columns}
    match condition:
        case Not(inner=inner):
            check(inner, columns)
        case AllOf(parts=parts) | AnyOf(parts=parts):
            for part in parts:
                check(part, columns)
        case Compare(field=name, operator=operator, value=value):
            if name not in known:
                raise LeafError(f"no metadata column '{name}'; there are {', '.join(sorted(known))}")
            values = value if isinstance(value, tuple) else (value,)
            wanted = {"float": ("int", "float"), "int": ("int", "float")}.get(known[name], (known[name],))
            for each in values if operator != "missing" else ():
                if type(each).__name__ not in wanted:
                    raise LeafError(
                        f"'{name}' holds {known[name]} and is compared with {each!r}; compare like with like"
                    )
                if isinstance(each, int) and not -(2**63) <= each < 2**63:
                    raise LeafError(f"'{name}' is compared with a number of more than 64 bits; write it with a point")
            if operator in ("starts", "contains") and known[name] != "str":
                raise LeafError(f"'{name}' holds {known[name]}, and only text has parts; compare it with a number")
            if operator in ("<", "<=", ">", ">=") and known[name] == "bool":
                raise LeafError(f"'{name}' is true or false, which has no order; write {name} or not {name}")


def _filter(node: ast.expr, depth: int = 0) -> Filter:
    if depth > DEEPEST:
        raise ValueError(f"it goes more than {DEEPEST} deep")
    match node:
        case ast.BoolOp(op=operator, values=values):
            parts = tuple(_filter(value, depth + 1) for value in values)
            return AllOf(parts) if isinstance(operator, ast.And) else AnyOf(parts)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return Not(_filter(operand, depth + 1))
        case ast.Name(id=name):
            return Compare(name, "==", True)
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="startswith"), args=[argument], keywords=[]):
            return Compare(name, "starts", _text(argument))
        case ast.Compare(left=left, ops=operators, comparators=comparators):
            sides = [left, *comparators]
            found = [_compare(sides[at], operator, sides[at + 1]) for at, operator in enumerate(operators)]
            return found[0] if len(found) == 1 else AllOf(tuple(found))
    raise ValueError(f"'{ast.unparse(node)}' is no condition")


def _compare(left: ast.expr, operator: ast.cmpop, right: ast.expr) -> Filter:
    match left, operator, right:
        case ast.Name(id=name), ast.Is() | ast.IsNot(), ast.Constant(value=None):
            missing = Compare(name, "missing", None)
            return missing if isinstance(operator, ast.Is) else Not(missing)
        case ast.Name(id=name), ast.In() | ast.NotIn(), ast.List(elts=values) | ast.Tuple(elts=values) | ast.Set(
            elts=values
        ):
            inside = Compare(name, "in", tuple(map(_constant, values)))
            # Missing values are in no list and outside of none.
            return inside if isinstance(operator, ast.In) else AllOf((Not(inside), Not(Compare(name, "missing", None))))
        case _, ast.In() | ast.NotIn(), ast.Name(id=name):
            contains = Compare(name, "contains", _text(left))
            return (
                contains
                if isinstance(operator, ast.In)
                else AllOf((Not(contains), Not(Compare(name, "missing", None))))
            )
        case ast.Name(id=name), _, _ if type(operator) in _OPERATORS:
            return Compare(name, _OPERATORS[type(operator)], _constant(right))
        case _, _, ast.Name(id=name) if type(operator) in _OPERATORS:
            return Compare(name, _MIRRORED[_OPERATORS[type(operator)]], _constant(left))
    raise ValueError(f"'{ast.unparse(left)}' and '{ast.unparse(right)}' are not a column and a value")


def _constant(node: ast.expr) -> Constant:
    match node:
        case ast.Constant(value=str() | int() | float() | bool()):
            value: Constant = node.value  # type: ignore[assignment]
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
    raise ValueError(f"'{ast.unparse(node)}' is no text, number, True or False (text needs quotes)")


def _text(node: ast.expr) -> str:
    value = _constant(node)
    if not isinstance(value, str):
        raise ValueError(f"'{ast.unparse(node)}' is no text in quotes")
    return value
