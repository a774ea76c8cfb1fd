"""Alignment and margin for people: sentences that claim what the numbers allow, pages that parse, figures that draw."""

import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict
from io import StringIO
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from leaf.evaluation.alignment import alignment_of
from leaf.evaluation.margin import Checkpoint, margin
from leaf.report import alignment as pages
from leaf.report import margin as margin_pages

EVIL = "<script>alert('x')</script> | a_b*c\n[link](javascript:x)"


def data(change: Any = lambda vectors, rng: vectors, num_queries: int = 40, **options: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    queries, documents = (rng.normal(size=(count, 16)).astype(np.float32) for count in (num_queries, 200))
    texts = {"query_texts": [f"{EVIL} {row}" for row in range(num_queries)], "document_texts": [EVIL] * 200}
    students = change(queries, rng), change(documents, rng)
    return asdict(alignment_of(students[0], queries, students[1], documents, **{**texts, **options}))


def noisy(vectors: Any, rng: Any) -> Any:
    return (vectors + 0.5 * rng.normal(size=vectors.shape)).astype(np.float32)


def random(vectors: Any, rng: Any) -> Any:
    return rng.normal(size=vectors.shape).astype(np.float32)


def turned(vectors: Any, rng: Any) -> Any:
    return np.roll(vectors, 5, axis=1)


NOISY = data(noisy)


def set_overlap(alignment: dict[str, Any], mode: str, value: float, low: float, high: float) -> None:
    alignment[mode]["overlap"] = {"value": value, "low": low, "high": high}


def test_the_verdict_says_the_overlap_in_documents_with_its_interval():
    alignment = data(noisy)
    set_overlap(alignment, "asymmetric", 0.87, 0.861, 0.879)
    said = " ".join(pages.verdict(alignment))
    assert "in the teacher's index) finds 8.7 (8.6–8.8) of the teacher's 10" in said
    assert "random documents would be 0.5" in said  # 10 of 200
    assert "Measured on 40 queries and 200 documents" in said


def test_what_is_not_above_chance_is_not_called_a_find():
    said = pages.verdict(data(random))
    assert sum("no more than these queries can tell from random documents (0.5)" in each for each in said) == 2
    assert sum("no nearer than to the teacher's vector of another text" in each for each in said) == 2
    assert not any("more of them than" in each for each in said)


def test_a_student_in_a_space_of_its_own_is_said_to_be_one():
    said = " ".join(pages.verdict(data(turned)))
    assert "Standard search (the student on both sides) finds 10.0 (10.0–10.0)" in said
    assert "in a space of its own: not aligned" in said


@pytest.mark.parametrize(
    ("low", "value", "high", "expected"),
    [
        (0.02, 0.04, 0.06, "The asymmetric search finds 0.4 (0.2–0.6) more of them than the standard one."),
        (-0.06, -0.04, -0.02, "The standard search finds 0.4 (0.2–0.6) more of them than the asymmetric one."),
        (-0.01, 0.01, 0.03, "Which of the two finds more of them is not resolved by these queries."),
        (0.0, 0.0, 0.0, "Which of the two finds more of them is not resolved by these queries."),
    ],
)
def test_modes_are_compared_as_far_as_the_queries_tell(low, value, high, expected):
    alignment = {**NOISY, "advantage": {"value": value, "low": low, "high": high}}
    assert expected in pages.verdict(alignment)


def test_one_query_is_given_no_interval_and_no_claim():
    said = " ".join(pages.verdict(data(noisy, num_queries=1)))
    assert "one query has no interval" in said
    assert "finds more" not in said


def test_vectors_that_are_not_normalised_come_with_their_length():
    vectors = np.array([[3, 4], [0, 5]], np.float32)  # both of length 5
    alone = asdict(alignment_of(vectors, vectors, np.empty((0, 2)), np.empty((0, 2))))
    assert "whose mean length is 5, at cosine 1.000" in pages.verdict(alone)[0]
    unit = asdict(alignment_of(vectors / 5, vectors / 5, np.empty((0, 2)), np.empty((0, 2))))
    assert "length" not in pages.verdict(unit)[0]


def test_tables_hold_the_numbers_and_skip_what_was_not_measured():
    rows = pages.closeness_table(NOISY)
    assert rows[:2] == [["vectors", "queries", "documents", "all"], ["number", "40", "200", "240"]]
    assert rows[2][0] == "ε"
    assert rows[2][1].startswith(f"{NOISY['queries']['error']['mean']['value']:.3f} (")
    alone = asdict(alignment_of(*[np.eye(3, dtype=np.float32)] * 2, *[np.empty((0, 3), np.float32)] * 2))
    assert pages.closeness_table(alone)[0] == ["vectors", "queries"]
    assert len(pages.search_table(alone)) == 1
    assert "Measured on 3 queries, against teacher alone" in pages.verdict(alone)[-1]
    assert "None" not in printed(alone)


def test_too_few_documents_are_said_to_rank_nothing():
    eye = np.eye(5, dtype=np.float32)
    said = pages.verdict(asdict(alignment_of(eye, eye, eye, eye)))
    assert "Rankings are not compared: any search finds all of 5 documents in its top 10." in said


def printed(alignment: dict[str, Any], width: int = 100) -> str:
    out = StringIO()
    pages.print_alignment(alignment, Console(file=out, width=width, force_terminal=True, color_system=None))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_terminal_page_keeps_to_the_width(width):
    shown = printed(NOISY, width)
    assert max(map(len, shown.splitlines())) <= width
    assert "✓" in shown
    cells = [cell for rows in (pages.closeness_table(NOISY), pages.search_table(NOISY)) for row in rows for cell in row]
    assert all(cell in shown for cell in cells)
    assert "student beside its teacher teacher" in shown


def test_side_by_side_marks_what_the_teacher_found_too():
    documents = [{"id": each, "score": 0.5, "text": f"text {each}"} for each in "abc"]
    example = {
        "query": "q",
        "answers": [
            {"encoder": "t", "mode": "teacher", "overlap": 2, "documents": documents[:2]},
            {"encoder": "s | t", "mode": "asymmetric", "overlap": 1, "documents": documents[1:]},
        ],
    }
    assert pages.side_by_side(example) == [
        ["teacher", "asymmetric (1 of 2)"],
        ["0.50 text a", "0.50 ✓ text b"],
        ["0.50 text b", "0.50   text c"],
    ]


def test_the_texts_furthest_away_stand_in_one_line_each():
    rows = pages.worst_table(NOISY)
    assert len(rows) == 1 + 5 + 5
    assert not any("\n" in cell for row in rows for cell in row)
    assert rows[1][1:3] == ["query", str(NOISY["worst"]["query"][0]["row"])]
    assert [row[3] for row in rows[1:6]] == sorted((row[3] for row in rows[1:6]), reverse=True)


def test_the_figure_of_an_alignment_says_what_it_shows():
    figure = pages.draw_alignment(NOISY)
    root = ElementTree.fromstring(figure.svg)
    assert root.attrib["aria-label"] == figure.alt
    half = NOISY["queries"]["cosine_percentiles"][50]
    assert f"queries: half above {half:.3f}" in figure.alt
    assert 'id="other-' in pages.draw_alignment(NOISY, "other").svg
    assert pages.draw_alignment(data(noisy)).svg == figure.svg


def ladder(scores: Any = lambda error: 0.6 - 0.4 * error) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(0)
    errors = {"student-6l": [0.3, 0.35, 0.4], "student-2l": [0.5, 0.55, 0.6]}
    noise = 0.03 * rng.normal(size=(2, 3, 30))
    noise -= noise.mean(axis=2, keepdims=True)
    teacher = {"nano": {f"q{number}": 0.5 for number in range(30)}}
    points = [
        Checkpoint(
            student, at + 1, error, {"nano": {f"q{n}": scores(error) + float(v) for n, v in enumerate(some[at])}}
        )
        for (student, own), some in zip(errors.items(), noise, strict=True)
        for at, error in enumerate(own)
    ]
    return asdict(margin(points, teacher)), teacher


def test_the_margin_is_said_with_what_it_leans_on():
    result, _ = ladder()
    said = " ".join(margin_pages.verdict(result))
    # 0.6 − 0.4 ε = 0.5 at ε = 0.25, nearer than the nearest checkpoint, whose 0.48 is worse for these queries.
    assert "It meets the teacher's score at ε = 0.250 (" in said
    assert "outside the 0.300 to 0.600 that was measured" in said
    assert "changes by -4.0 (" in said
    assert "30 queries of 1 dataset show every checkpoint to be worse" in said
    rising = " ".join(margin_pages.verdict(ladder(lambda error: 0.2 + error)[0]))
    assert "No margin: the scores do not fall as ε grows" in rising
    level = " ".join(margin_pages.verdict(ladder(lambda error: 0.5)[0]))
    assert "furthest checkpoint that 30 queries of 1 dataset do not show to be worse than the teacher is" in level
    assert "student-2l, epoch 3, at ε = 0.600 (0.0 (-" in level


def test_the_checkpoint_table_stands_by_distance():
    rows = margin_pages.checkpoint_table(ladder()[0])
    assert rows[1][:4] == ["student-6l", "1", "0.300", "48.0"]
    assert rows[1][4].startswith("-2.0 (-")
    assert [row[2] for row in rows[1:]] == sorted(row[2] for row in rows[1:])


@pytest.mark.parametrize("score", [lambda e: 0.6 - 0.4 * e, lambda e: 0.2 + e, lambda e: 0.501 - 0.0001 * e])
def test_the_figure_of_a_margin_draws_every_case(score):
    result, _ = ladder(score)
    figure = margin_pages.draw_margin(result)
    ElementTree.fromstring(figure.svg)
    assert "teacher 50.0" in figure.svg
    assert "student-2l" in figure.svg
    assert ("robustness margin" in figure.svg) == (result["margin"] is not None)
    assert figure.alt.startswith("nDCG@10 of checkpoints against their distance ε to the teacher. 6 checkpoints")


def test_without_matplotlib_there_is_no_figure(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert pages.draw_alignment(NOISY) is None
    assert margin_pages.draw_margin(ladder()[0]) is None
