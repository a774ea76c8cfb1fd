"""Numbers of a record in words: paths, arithmetic and formats, worked out by hand."""

import re

import pytest

from leaf.errors import LeafError
from leaf.report.values import look_up, show

RECORD = {
    "students": [
        {"name": "a", "kept": 0.985, "interval": [97.1, 99.94], "train.lr": 3e-4},
        {"name": "b", "kept": 0.85, "seconds": 5400},
        {"name": "twice", "kept": 1.0},
        {"name": "twice", "kept": 2.0},
    ],
    "settings": {"student.pooling": {"mean": 3}, "student": {"pooling": {"cls": 4}}, "6 layers, q8": 5},
    "texts": 1_250_000,
    "commit": "abc",
    "aligned": True,
    "nothing": None,
}


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("students.a.kept x100 .1f", "98.5"),
        ("students.0.kept x100 .1f", "98.5"),
        ("students.-1.kept .0f", "2"),
        ("students.a.interval.1 .1f", "99.9"),
        ("students.a.interval.-2 .1f", "97.1"),
        ("students.a.train.lr g", "0.0003"),
        ("settings.student.pooling.mean", "3"),
        ("texts ,", "1,250,000"),
        ("texts x2 ,", "2,500,000"),
        ("texts", "1250000"),
        ("commit", "abc"),
        ("students.b.seconds /60 .0f", "90"),
        ("students.b.kept - students.a.kept x100 +.1f", "-13.5"),
        # (0.985 − 0.85) ÷ 0.985 = 0.13706: from left to right.
        ("students.a.kept - students.b.kept / students.a.kept x100 .1f", "13.7"),
        ("students.b.seconds / students.b.kept ,.0f", "6,353"),
        ("students.b.seconds + texts ,", "1,255,400"),
    ],
)
def test_a_value_is_shown_as_asked(words, shown):
    assert show(RECORD, words.split()) == shown


def test_a_key_may_have_spaces_and_dots():
    assert show(RECORD, ["settings.6 layers, q8"]) == "5"
    assert look_up({"a": {"b.c": {"d": 1}}}, "a.b.c.d") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("students.c.kept .1f", "no 'c' in students (of 'students.c.kept'); there are a, b, 0, 1, 2, 3"),
        ("students.twice.kept .1f", "no 'twice' in students"),
        ("students.4.kept .1f", "no '4' in students"),
        ("students.a.kept.x .1f", "no 'x' in students.a.kept (of 'students.a.kept.x'); there is nothing below"),
        ("nowhere .1f", "no 'nowhere' in the record (of 'nowhere'); there are students, settings"),
        ("", "names no value"),
        ("students.a", "'students.a' is no single value"),
        ("nothing", "'nothing' is null"),
        ("students.a.kept", "'students.a.kept' is 0.985, which needs a format such as .1f"),
        ("students.a.kept x100", "which needs a format"),
        ("students.a.kept .1q", "'.1q' is no format for 0.985"),
        ("commit x100 .1f", "'commit' is 'abc', no number"),
        ("aligned x100 .1f", "'aligned' is True, no number"),
        ("texts 100 .1f", "'100' is neither + - / with a path, nor a factor"),
        ("texts / 0", "no '0' in the record"),
        ("texts /0 .1f", "a division by 0"),
    ],
)
def test_what_cannot_be_shown_is_one_line(words, message):
    with pytest.raises(LeafError, match=re.escape(message)):
        show(RECORD, words.split())
