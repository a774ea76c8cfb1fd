"""The figure and the table of the curves, from a summary written by hand."""

import re
import sys
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from leaf.evaluation.curves import Curves, Summary
from leaf.evaluation.statistics import Interval
from leaf.report.curves import curves_caption, curves_table, draw_curves

NUM_BYTES = {"float32": lambda dim: 4 * dim, "int8": lambda dim: dim, "int8xbinary": lambda dim: dim // 8}
#: nDCG@10 of the teacher, a student alone and asymmetric, by size.
VALUES = {
    (1024, "float32"): (0.6, 0.5, 0.55),
    (1024, "int8"): (0.595, 0.495, 0.545),
    (1024, "binary"): (0.5, 0.45, 0.4),
    (256, "float32"): (0.54, 0.46, 0.51),
    (256, "int8"): (0.53, 0.455, 0.505),
    (256, "binary"): (0.3, 0.29, 0.27),
}


def summaries(values=VALUES, students=("student-2l", "student-3l")):
    found = []
    for (dim, precision), (teacher, standard, asymmetric) in values.items():
        size = NUM_BYTES.get(precision, NUM_BYTES["int8xbinary"])(dim)

        def each(encoder, mode, value, dim=dim, precision=precision, size=size, teacher=teacher):
            of, full = (100 * value / reference for reference in (teacher, 0.6))
            intervals = (Interval(part, part - 1, part + 1.25) for part in (of, full))
            return Summary(encoder, mode, dim, precision, size, value, *intervals)

        found.append(each("teacher", "teacher", teacher))
        for number, name in enumerate(students):
            found += [each(name, "standard", standard - 0.1 * number), each(name, "asymmetric", asymmetric)]
    return tuple(found)


def curves(**changes):
    made = Curves("teacher", 1024, "cosine", {1024: 0.2}, {"one": "0", "two": "1"}, (), summaries(), {})
    return replace(made, **changes)


def test_the_table_has_a_row_per_size_with_what_is_kept():
    table = curves_table(curves(), "student-2l")
    assert table[0] == [
        "dimensions", "precision", "bytes a vector", "teacher", "% of full size",
        "standard", "% of the teacher", "asymmetric", "% of the teacher",
    ]  # fmt: skip
    assert len(table) == 7
    assert table[1] == [
        "1,024", "float32", "4,096", "60.0", "100.0 (99.0–101.2)",
        "50.0", "83.3 (82.3–84.6)", "55.0", "91.7 (90.7–92.9)",
    ]  # fmt: skip
    # Binary in 256 dimensions: 32 bytes; the teacher keeps 0.3 / 0.6, the student 0.29 / 0.3 and 0.27 / 0.3 of that.
    assert table[6] == [
        "256", "binary", "32", "30.0", "50.0 (49.0–51.2)", "29.0", "96.7 (95.7–97.9)", "27.0", "90.0 (89.0–91.2)",
    ]  # fmt: skip
    assert curves_table(curves(), "student-3l")[1][5] == "40.0"


def test_what_has_no_retention_shows_a_dash():
    none = tuple(replace(each, of_teacher=None, of_full_size=None) for each in summaries())
    assert [row[4] + row[6] + row[8] for row in curves_table(curves(summary=none), "student-2l")[1:]] == ["–––"] * 6


def test_the_caption_says_over_what_and_of_what():
    assert curves_caption(curves()).startswith("nDCG@10, mean over 2 datasets. % of full size: of the teacher's 1024")
    assert curves_caption(curves(digests={"one": "0"})).startswith("nDCG@10, on one. ")


def test_a_figure_per_student_says_its_numbers_to_those_who_do_not_see_it():
    figures = draw_curves(curves())
    assert list(figures) == ["curves-student-2l", "curves-student-3l"]
    figure = figures["curves-student-2l"]
    assert figure.alt == (
        "nDCG@10 of student-2l and its teacher, in float32 by dimension: "
        "teacher 1024 60.0, 256 54.0; standard 1024 50.0, 256 46.0; asymmetric 1024 55.0, 256 51.0; "
        "in 1024 dimensions: teacher float32 60.0, int8 59.5, binary 50.0; standard float32 50.0, int8 49.5, "
        "binary 45.0; asymmetric float32 55.0, int8 54.5, binary 40.0."
    )
    assert "standard 1024 40.0" in figures["curves-student-3l"].alt
    words = re.sub(r"<[^>]*>", " ", figure.svg).split()
    for word in ("256", "1024", "float32", "int8", "binary", "teacher", "standard", "asymmetric", "nDCG@10"):
        assert word in words, word
    assert len(figure.svg) < 60_000
    assert 'role="img" aria-label="' in figure.svg
    assert "currentColor" in figure.svg


def test_figures_of_two_students_share_no_id_and_drawing_again_changes_no_byte():
    figures = draw_curves(curves())
    first, second = (re.findall(r'\bid="([^"]+)"', figure.svg) for figure in figures.values())
    assert len(first) > 20
    assert not set(first) & set(second)
    assert draw_curves(curves()) == figures


def heights(svg):
    """(x, y) of every marker by the group (one line of one panel) that draws it."""
    root = ElementTree.fromstring(svg)
    found = []
    for group in root.iter("{http://www.w3.org/2000/svg}g"):
        name = group.get("id", "")
        if re.search(r"-line2d_\d+$", name):
            uses = list(group.iter("{http://www.w3.org/2000/svg}use"))
            if len(uses) > 1:
                found.append([(float(use.get("x")), float(use.get("y"))) for use in uses])
    return found


def test_points_lie_where_their_values_are():
    lines = heights(draw_curves(curves())["curves-student-2l"].svg)
    by_dim, by_precision = lines[:3], lines[3:]
    assert [len(line) for line in lines] == [2, 2, 2, 3, 3, 3]
    # From height and value of the first and last point of a panel follow all the others; SVG counts downwards.
    for panel, expected in (
        (by_dim, [54, 60, 46, 50, 51, 55]),
        (by_precision, [60, 59.5, 50, 50, 49.5, 45, 55, 54.5, 40]),
    ):
        found = [y for line in panel for _, y in line]
        scale = (found[0] - found[-1]) / (expected[0] - expected[-1])
        assert found == pytest.approx([found[0] + scale * (value - expected[0]) for value in expected], abs=0.01)
        assert scale < 0
    assert all(line[0][0] == by_dim[0][0][0] for line in by_dim)
    positions = [[x for x, _ in line] for line in by_precision]
    assert all(a < b < c for a, b, c in zip(*positions, strict=True)), "the three stand side by side"


def test_a_tenth_of_a_point_does_not_look_like_a_cliff():
    values = {(1024, "float32"): (0.6, 0.6, 0.6), (1024, "int8"): (0.599, 0.6, 0.6)}
    line = heights(draw_curves(curves(summary=summaries(values)))["curves-student-2l"].svg)[0]
    # The panel is about 150 high and spans 10 points: 0.1 of them are less than 3.
    assert 0 < line[1][1] - line[0][1] < 3


def test_a_panel_is_drawn_for_two_sizes_or_more():
    one_dim = summaries({size: each for size, each in VALUES.items() if size[0] == 1024})
    assert "by dimension" not in draw_curves(curves(summary=one_dim))["curves-student-2l"].alt
    one_precision = summaries({size: each for size, each in VALUES.items() if size[1] == "float32"})
    figure = draw_curves(curves(summary=one_precision))["curves-student-2l"]
    assert "int8" not in figure.alt + figure.svg
    assert draw_curves(curves(summary=summaries({(1024, "float32"): (0.6, 0.5, 0.55)}))) == {}


def test_close_dimensions_are_ticks_without_a_label():
    dims = (1024, 960, 768, 512, 64)
    values = {(dim, "float32"): (0.6, 0.5, 0.55) for dim in dims}
    svg = draw_curves(curves(summary=summaries(values)))["curves-student-2l"].svg
    words = re.sub(r"<[^>]*>", " ", svg).split()
    assert [str(dim) for dim in dims if str(dim) in words] == ["1024", "768", "512", "64"]


def test_without_matplotlib_there_are_no_figures(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert draw_curves(curves()) == {}
