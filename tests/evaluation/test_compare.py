"""Scores made into claims: numbers by hand, and no claim where the queries support none."""

import json

import pytest

from leaf.errors import LeafError
from leaf.evaluation.compare import Comparison, compare, means
from leaf.evaluation.records import Score
from leaf.report.scores import lone_table, student_table
from leaf.report.words import UNRESOLVED


def score(dataset, mode, values, encoder="s", task="retrieval", measure="ndcg@10", pairs=()):
    per_query = {} if pairs else {f"q{number}": value for number, value in enumerate(values)}
    value = sum(values) / len(values) if not pairs else values[0]
    count = len(pairs or values)
    return Score(
        dataset, task, measure, mode, value, count, encoder, encoder, encoder, "float32", "0", (), {}, per_query, pairs
    )


RETRIEVAL = [
    # one: teacher 0.8, standard 0.4 (50 %), asymmetric 0.6 (75 %), better by 0.2 on every query.
    score("one", "teacher", [0.7, 0.9], "t"),
    score("one", "standard", [0.3, 0.5]),
    score("one", "asymmetric", [0.5, 0.7]),
    score("one", "bm25", [0.2, 0.4], "bm25"),
    score("one", "standard", [1.0, 1.0], "another"),
    score("one", "standard", [0.9, 0.9], measure="recall@100"),
    # two: teacher 0.5, standard 0.5, asymmetric 0.5: better on one query, worse on the other.
    score("two", "teacher", [0.5, 0.5], "t"),
    score("two", "standard", [0.6, 0.4]),
    score("two", "asymmetric", [0.4, 0.6]),
    score("two", "bm25", [0.1, 0.1], "bm25"),
]
PAIRS = tuple((float(n), float(n % 7)) for n in range(40))
STS = [
    score("sts", mode, [0.3], name, "sts", "spearman", PAIRS)
    for mode, name in (("teacher", "t"), ("standard", "s"), ("asymmetric", "s"))
]


def test_a_comparison_by_hand():
    one, two = compare(RETRIEVAL, "s")
    assert (one.name, one.task, one.measure, one.num_queries) == ("one", "retrieval", "ndcg@10", 2)
    assert one.scores == pytest.approx({"teacher": 0.8, "bm25": 0.3, "standard": 0.4, "asymmetric": 0.6})
    assert one.retention["standard"].value == pytest.approx(50)
    assert one.retention["asymmetric"].value == pytest.approx(75)
    assert one.gain == pytest.approx((0.2, 0.2, 0.2))
    assert two.gain == pytest.approx((0, -0.2, 0.2))
    assert two.gain.covers(0)


def test_a_mean_is_of_ratios_and_says_how_many_queries_it_rests_on():
    [mean] = means(RETRIEVAL, "s")
    assert (mean.name, mean.num_queries) == ("retrieval", 4)
    assert mean.retention["standard"].value == pytest.approx((50 + 100) / 2)
    assert mean.retention["asymmetric"].value == pytest.approx((75 + 100) / 2)
    assert mean.scores["teacher"] == pytest.approx(0.65)
    assert mean.gain.value == pytest.approx(0.1)


def test_a_correlation_has_retention_and_no_second_mode():
    [found] = compare(STS, "s")
    assert found.retention["standard"] == pytest.approx((100, 100, 100))  # the same pairs
    assert found.gain is None


def test_a_dataset_in_which_the_teacher_finds_nothing_has_no_retention():
    scores = [score("none", "teacher", [0.0, 0.0], "t"), score("none", "standard", [0.1, 0.0]),
              score("none", "asymmetric", [0.1, 0.0])]  # fmt: skip
    [found] = compare(scores, "s")
    assert not found.retention
    [mean] = means([*RETRIEVAL, *scores], "s")
    assert mean.retention["standard"].value == pytest.approx(75)


def test_a_number_alone_has_no_interval_and_is_still_shown():
    alone = [score("mteb", mode, [0.5], "t" if mode == "teacher" else "s", "summarization", "spearman", ((0.0, 0.0),))
             for mode in ("teacher", "standard", "asymmetric")]  # fmt: skip
    alone = [Score(**{**each.__dict__, "pairs": ()}) for each in alone]
    [found] = compare(alone, "s")
    assert found.scores["standard"] == 0.5
    assert not found.retention


def test_where_mteb_has_another_main_measure_that_one_is_compared():
    scores = [score("mind", mode, [0.5, 0.7], name, "reranking", "mrr@5") for mode, name in
              (("teacher", "t"), ("standard", "s"), ("asymmetric", "s"))]  # fmt: skip
    [found] = compare(scores, "s")
    assert (found.measure, found.retention["asymmetric"].value) == ("mrr@5", pytest.approx(100))


def test_systems_scored_on_other_queries_are_refused():
    odd = [score("one", "teacher", [0.7, 0.9, 0.5], "t"), *RETRIEVAL[1:3]]
    with pytest.raises(LeafError, match="scored on other queries of one"):
        compare(odd, "s")


def test_comparisons_survive_json():
    for each in (*compare([*RETRIEVAL, *STS], "s"), *means(RETRIEVAL, "s")):
        assert Comparison.from_json(json.loads(json.dumps(each.to_json()))) == each


def test_the_table_claims_only_what_is_resolved():
    scores = [*RETRIEVAL, *STS]
    rows = student_table(compare(scores, "s"), means(scores, "s"))
    assert [row[0] for row in rows] == [
        "dataset", "retrieval, nDCG@10, mean of 2", "  one", "  two", "sts, Spearman: sts"
    ]  # fmt: skip
    last = {row[0].strip(): row[-1] for row in rows}
    assert last["one"] == "+20.0 (20.0 to 20.0)"
    assert last["two"] == UNRESOLVED
    assert rows[-1][-3:] == ["", "", ""]  # one mode, said once


def test_the_table_of_one_encoder_has_a_mean_for_every_task():
    own = [each for each in [*RETRIEVAL, *STS] if each.mode == "standard" and each.encoder == "s"]
    rows = lone_table([*own, *(each for each in RETRIEVAL if each.mode == "bm25")])
    assert rows[1:] == [
        ["retrieval, nDCG@10, mean of 2", "4", "45.0", "20.0"],
        ["  one", "2", "40.0", "30.0"],
        ["  two", "2", "50.0", "10.0"],
        ["sts, Spearman: sts", "40", "30.0", ""],
    ]
