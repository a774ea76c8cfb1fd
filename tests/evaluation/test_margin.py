"""The robustness margin: exact lines, scipy's regression and bootstrap, and points that have no margin."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap, linregress

from leaf.errors import LeafError
from leaf.evaluation.margin import Checkpoint, margin, read, write
from leaf.evaluation.statistics import difference


def near(value: float, tolerance: float = 1e-9) -> Any:
    return pytest.approx(value, abs=tolerance)


def of(values: Sequence[float]) -> dict[str, dict[str, float]]:
    return {"nano": {f"q{number}": float(value) for number, value in enumerate(values)}}


def flat(score: float) -> dict[str, dict[str, float]]:
    return of([score] * 4)


def line(score: Callable[[float], float], errors: Sequence[float] = (0.3, 0.4, 0.5, 0.6)) -> list[Checkpoint]:
    return [Checkpoint("small", epoch, error, flat(score(error))) for epoch, error in enumerate(errors, start=1)]


RNG = np.random.default_rng(0)
TEACHER_VALUES = RNG.uniform(0.3, 0.9, size=80)
ERRORS = [0.3, 0.35, 0.4, 0.45, 0.5, 0.6]
#: Scores per query `[80, 6]`: 0.04 + 0 − 0.3 ε beside the teacher's, and noise.
VALUES = TEACHER_VALUES[:, None] + 0.04 - 0.3 * np.array(ERRORS) + 0.1 * RNG.normal(size=(80, 6))
NOISY = [Checkpoint("small", at + 1, error, of(VALUES[:, at])) for at, error in enumerate(ERRORS)]


def test_an_exact_line_has_the_exact_crossing():
    found = margin(line(lambda error: 0.7 - 0.5 * error), flat(0.5))
    assert found.margin.value == near(0.4)  # 0.7 − 0.5 · 0.4 = 0.5
    assert (found.slope.value, found.intercept, found.r_squared) == (near(-0.5), near(0.7), near(1))
    assert (found.margin.low, found.margin.high) == (near(0.4), near(0.4))  # all queries alike: nothing to resample
    assert not found.extrapolated
    assert found.reason is None


def test_a_crossing_nearer_than_every_checkpoint_is_marked():
    found = margin(line(lambda error: 0.7 - 0.5 * error), flat(0.6))
    assert found.margin.value == near(0.2)
    assert found.extrapolated
    assert margin(line(lambda error: 0.7 - 0.5 * error), flat(0.3)).extrapolated  # 0.8, further than all


def test_the_line_is_scipys():
    found = margin(NOISY, of(TEACHER_VALUES))
    expected = linregress(ERRORS, VALUES.mean(axis=0))
    assert found.slope.value == near(expected.slope)
    assert found.intercept == near(expected.intercept)
    assert found.r_squared == near(expected.rvalue**2)
    assert found.margin.value == near((TEACHER_VALUES.mean() - expected.intercept) / expected.slope)


def test_the_intervals_are_scipys_bootstrap_over_queries():
    def crossing(*columns: Any, axis: int) -> Any:
        *students, teacher = (column.mean(axis=axis) for column in columns)
        x = np.array(ERRORS)
        scores = np.stack(np.broadcast_arrays(*students))
        slope = np.tensordot(x - x.mean(), scores, axes=1) / ((x - x.mean()) ** 2).sum()
        return (teacher - (scores.mean(axis=0) - slope * x.mean())) / slope

    found = margin(NOISY, of(TEACHER_VALUES))
    columns = (*VALUES.T, TEACHER_VALUES)
    options: dict[str, Any] = {"paired": True, "vectorized": True, "method": "percentile", "n_resamples": 10_000}
    expected = bootstrap(columns, crossing, rng=np.random.default_rng(5), **options).confidence_interval
    width = expected.high - expected.low
    assert 0.01 < width < 0.3
    assert found.margin.low == near(max(expected.low, 0), 0.05 * width)
    assert found.margin.high == near(expected.high, 0.05 * width)


def test_differences_to_the_teacher_are_those_of_the_paired_bootstrap():
    found = margin(NOISY, of(TEACHER_VALUES))
    for point, values in zip(found.points, VALUES.T, strict=True):
        expected = difference(values, TEACHER_VALUES)
        assert point.difference.value == near(expected.value)
        assert point.difference.low == near(expected.low, 0.002)
        assert point.difference.high == near(expected.high, 0.002)
    # The nearest gain 0.04 − 0.09 = −0.05 ± 0.011, so all are measurably worse.
    assert found.furthest_equal is None


def test_the_furthest_checkpoint_that_is_not_measurably_worse_needs_no_line():
    swing = np.tile([0.2, -0.2], 20)
    teacher = np.full(40, 0.5)
    points = [
        Checkpoint("a", 1, 0.2, of(teacher + 0.1)),  # better: not worse
        Checkpoint("a", 2, 0.4, of(teacher + swing)),  # ±0.2 / √40 · 1.96 = ±0.06 covers 0
        Checkpoint("b", 1, 0.3, of(teacher - 0.1)),  # worse for every query
        Checkpoint("b", 2, 0.5, of(teacher - 0.1 + swing)),  # −0.1 ± 0.06
    ]
    found = margin(points, of(teacher))
    assert (found.furthest_equal.student, found.furthest_equal.epoch, found.furthest_equal.error) == ("a", 2, 0.4)
    assert [point.measurably_worse for point in found.points] == [False, True, False, True]


@pytest.mark.parametrize(
    ("score", "teacher", "reason"),
    [
        (lambda error: 0.3 + 0.1 * error, 0.5, "do not fall"),
        (lambda error: 0.4, 0.4, "do not fall"),
        (lambda error: 0.4 - 0.1 * error, 0.5, "below the teacher's score at every ε above 0"),
        (lambda error: 0.5 - 0.1 * error, 0.5, "below the teacher's score at every ε above 0"),
    ],
)
def test_where_there_is_no_margin_the_reason_is_said(score, teacher, reason):
    found = margin(line(score, (0.25, 0.5, 0.75)), flat(teacher))
    assert found.margin is None
    assert reason in found.reason
    assert not found.extrapolated


def test_equal_scores_have_no_share_of_variance():
    assert margin(line(lambda error: 0.1), flat(0.4)).r_squared is None


def test_a_slope_that_is_not_resolved_gives_no_bounds():
    rng = np.random.default_rng(2)
    teacher = rng.uniform(size=12)
    points = [
        Checkpoint("small", at + 1, error, of(teacher + 0.05 - 0.1 * error + rng.normal(size=12)))
        for at, error in enumerate(ERRORS)
    ]
    found = margin(points, of(teacher))
    assert found.slope.low < 0 <= found.slope.high
    if found.margin is not None:
        assert (found.margin.low, found.margin.high) == (None, None)
        assert "reaches 0" in found.reason


def test_the_first_epoch_of_every_cycle_is_left_out():
    points = [
        Checkpoint("small", epoch, 0.7 - 0.05 * epoch, flat(0.0 if epoch in (0, 1, 4) else 0.5 + 0.02 * epoch))
        for epoch in range(7)
    ]
    found = margin(points, flat(0.66), epochs_per_cycle=3)
    assert [point.epoch for point in found.points] == [6, 5, 3, 2]
    assert found.num_left_out == 3
    # score = 0.5 + 0.02 · (0.7 − ε) / 0.05 = 0.78 − 0.4 ε meets 0.66 at 0.3.
    assert found.margin.value == near(0.3)
    assert margin(points, flat(0.66)).num_left_out == 0


def test_datasets_count_the_same_whatever_their_number_of_queries():
    teacher = {"few": {"a": 0.4, "b": 0.4}, "many": {f"q{number}": 0.8 for number in range(10)}}
    points = [
        Checkpoint(
            "small", 1, error, {name: {query: v - error for query, v in each.items()} for name, each in teacher.items()}
        )
        for error in (0.1, 0.2, 0.3)
    ]
    points = [Checkpoint("small", at, each.error, each.scores) for at, each in enumerate(points, start=1)]
    found = margin(points, teacher)
    assert found.teacher == near(0.6)
    assert [point.score for point in found.points] == [near(0.5), near(0.4), near(0.3)]
    assert found.num_queries == {"few": 2, "many": 10}


def test_points_of_a_ladder_keep_their_labels_and_stand_by_distance():
    points = [
        Checkpoint("2l", 1, 0.5, flat(0.4)),
        Checkpoint("6l", 1, 0.3, flat(0.5)),
        Checkpoint("4l", 1, 0.4, flat(0.45)),
    ]
    assert [point.student for point in margin(points, flat(0.55)).points] == ["6l", "4l", "2l"]


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (line(lambda e: e)[:2], {}, "2 checkpoints, expected at least 3"),
        (line(lambda e: e), {"epochs_per_cycle": 2}, r"2 checkpoints \(2 left out as first of a cycle\)"),
        (line(lambda e: e), {"epochs_per_cycle": 1}, "nothing is left of a cycle"),
        (line(lambda e: e, [0.3, 0.3, 0.3]), {}, "all 3 checkpoints have ε = 0.3"),
        (line(lambda e: e) + line(lambda e: e)[:1], {}, "epoch 1 of small is there 2 times"),
        (line(lambda e: e, [0.1, 0.2, float("nan")]), {}, "small, epoch 3: ε is nan"),
        (line(lambda e: float("nan")), {}, "nano: a score is NaN or infinite"),
        (
            [*line(lambda e: e), Checkpoint("s", 9, 0.9, flat(0.1), "asymmetric")],
            {},
            r"two modes \(asymmetric, standard\)",
        ),
        ([*line(lambda e: e), Checkpoint("s", 9, 0.9, {"other": {"a": 0.1}})], {}, "same datasets: 'nano'"),
        ([*line(lambda e: e), Checkpoint("s", 9, 0.9, of([0.1] * 5))], {}, "same queries: 'q4'"),
    ],
)
def test_what_has_no_trend_is_refused(points, options, message):
    with pytest.raises(LeafError, match=message):
        margin(points, flat(0.5), **options)


def test_a_single_query_is_refused():
    points = [Checkpoint("s", at, at / 10, of([0.5])) for at in (1, 2, 3)]
    with pytest.raises(LeafError, match="fewer than 2 queries"):
        margin(points, of([0.5]))
    with pytest.raises(LeafError, match="a dataset without scores"):
        margin(points, {"nano": {}})


def test_the_file_gives_back_what_the_margin_was_computed_from(tmp_path):
    teacher, path = of(TEACHER_VALUES), tmp_path / "margin.json"
    result = margin(NOISY, teacher)
    write(result, NOISY, teacher, path)
    assert read(path) == (NOISY, teacher)
    assert margin(*read(path)) == result
    assert json.loads(path.read_text())["margin"] == json.loads(json.dumps(asdict(result)))


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "margin.json"
    for content in ("{", "{}", '{"teacher": {}, "checkpoints": [{"epoch": 1}]}', "[]"):
        path.write_text(content)
        with pytest.raises(LeafError, match=r"margin\.json cannot be read as a margin"):
            read(path)
