"""Conditions on metadata: what they parse to, and what is refused."""

import pytest

from leaf.errors import LeafError
from leaf.search.filters import AllOf, AnyOf, Compare, Not, check, fields, parse

COLUMNS = {"year": "int", "price": "float", "lang": "str", "draft": "bool"}


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("year >= 2020", Compare("year", ">=", 2020)),
        ("2020 <= year", Compare("year", ">=", 2020)),
        ("1990 < year <= 2000", AllOf((Compare("year", ">", 1990), Compare("year", "<=", 2000)))),
        ("price > -1.5", Compare("price", ">", -1.5)),
        ("lang in ['en', 'de']", Compare("lang", "in", ("en", "de"))),
        ("lang not in ('en',)", AllOf((Not(Compare("lang", "in", ("en",))), Not(Compare("lang", "missing", None))))),
        ("'file' in title", Compare("title", "contains", "file")),
        ("id.startswith('json.')", Compare("id", "starts", "json.")),
        ("lang is None", Compare("lang", "missing", None)),
        ("lang is not None", Not(Compare("lang", "missing", None))),
        ("draft", Compare("draft", "==", True)),
        ("not draft or year == 1", AnyOf((Not(Compare("draft", "==", True)), Compare("year", "==", 1)))),
    ],
)
def test_a_condition_is_what_python_would_read(text, condition):
    assert parse(text) == condition


@pytest.mark.parametrize(
    "text",
    [
        "", "year >", "year = 2020", "year + 1 == 2", "2 == 2", "year == price", "lang == None", "__import__('os')",
        "lang.upper() == 'EN'", "lang in 'en'", "year >= [1]", "lambda: 1", "lang.startswith(3)", "(" * 500,
        "a" * 10_000 + "(", "x if y else z", "lang == b'en'", "lang == 'a' 'b' +", "\0",
    ],
)  # fmt: skip
def test_anything_else_is_one_line_with_an_example(text):
    with pytest.raises(LeafError, match="write for example year >= 2020") as raised:
        parse(text)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


def test_the_columns_of_a_condition():
    assert fields(parse("year > 1 and not (lang == 'en' or draft)")) == {"year", "lang", "draft"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("yaer > 1", "no metadata column 'yaer'; there are draft, id, lang, price, text, title, year"),
        ("year == '2020'", "'year' holds int and is compared with '2020'"),
        ("lang > 3", "'lang' holds str and is compared with 3"),
        ("lang in ['en', 3]", "'lang' holds str and is compared with 3"),
        ("year == True", "'year' holds int and is compared with True"),
        ("'2' in year", "compared with '2'"),
        ("draft > False", "has no order"),
        ("year", "'year' holds int and is compared with True"),
    ],
)
def test_columns_and_types_are_checked(text, why):
    with pytest.raises(LeafError, match=why.replace("(", r"\(")):
        check(parse(text), COLUMNS)


def test_numbers_of_either_kind_compare_with_each_other():
    check(parse("year > 2.5 and price == 3 and lang is None and draft == False"), COLUMNS)


def test_what_would_overflow_a_store_is_refused():
    for text in ("year == 1" + "0" * 30, "year in [1, -1" + "0" * 30 + "]", "price > 1" + "0" * 30):
        with pytest.raises(LeafError, match="more than 64 bits"):
            check(parse(text), COLUMNS)
    with pytest.raises(LeafError, match="more than 100 deep"):
        parse("not " * 500 + "draft")
    check(parse("not " * 99 + "draft"), COLUMNS)
