import json
from dataclasses import replace

import pytest

from leaf.errors import LeafError
from leaf.evaluation.records import Score, read, write

SCORE = Score(
    dataset="scifact",
    task="retrieval",
    measure="ndcg@10",
    mode="asymmetric",
    value=0.5,
    num_queries=2,
    encoder="student",
    queries="student",
    documents="teacher",
    compute_dtype="float32",
    dataset_digest="abc",
    notes=("a note: 1",),
    provenance={"leaf": "0"},
    per_query={"q1": 1.0, "q2": 0.0},
)
STS = replace(SCORE, dataset="sts12", task="sts", measure="spearman", per_query={}, pairs=((0.5, 1.0), (0.25, 3.0)))


def test_what_is_written_is_read_back_values_and_all(tmp_path):
    write([SCORE, STS], tmp_path)
    assert read(tmp_path) == [SCORE, STS]


def test_a_record_is_small_and_its_values_lie_beside_it(tmp_path):
    write([SCORE], tmp_path)
    record = json.loads((tmp_path / "scifact.asymmetric.student.ndcg@10.json").read_text())
    assert "per_query" not in record
    assert (record["value"], record["documents"]) == (0.5, "teacher")
    values = json.loads((tmp_path / "per-query" / "scifact.asymmetric.student.ndcg@10.json").read_text())
    assert values == {"q1": 1.0, "q2": 0.0}


def test_a_correlation_keeps_its_pairs(tmp_path):
    write([STS], tmp_path)
    assert json.loads((tmp_path / "per-query" / STS.filename).read_text()) == {"pairs": [[0.5, 1.0], [0.25, 3.0]]}
    (tmp_path / "per-query" / STS.filename).write_text('{"pairs": [[0.5, 1.0]]}')
    with pytest.raises(LeafError, match=r"has 2 queries and .* 1; evaluate again"):
        read(tmp_path)


def test_names_that_are_paths_stay_inside_the_folder(tmp_path):
    write([replace(SCORE, encoder="../org/model | teacher", dataset="a b")], tmp_path / "scores")
    assert [path.name for path in (tmp_path / "scores").glob("*.json")] == [
        "a_b.asymmetric..._org_model_teacher.ndcg@10.json"
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]


def test_writing_again_replaces_and_leaves_other_files_alone(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    write([SCORE], tmp_path)
    write([replace(SCORE, value=0.75)], tmp_path)
    assert [score.value for score in read(tmp_path)] == [0.75]


def test_two_scores_of_one_file_name_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(LeafError, match=r"two scores are called .*\(encoders 'a/b' and 'a b'\)"):
        write([replace(SCORE, encoder="a/b"), replace(SCORE, encoder="a b")], tmp_path / "scores")
    assert not (tmp_path / "scores").exists()


def test_an_empty_folder_has_no_scores(tmp_path):
    assert read(tmp_path) == []


def test_damaged_records_are_refused(tmp_path):
    write([SCORE], tmp_path)
    path = tmp_path / SCORE.filename
    values = tmp_path / "per-query" / SCORE.filename
    values.write_text('{"q1": 1.0}')
    with pytest.raises(LeafError, match=r"has 2 queries and .* 1; evaluate again"):
        read(tmp_path)
    values.unlink()
    with pytest.raises(LeafError, match=r"per-query.*cannot be read"):
        read(tmp_path)
    path.write_text('{"dataset": "scifact"}')
    with pytest.raises(LeafError, match="not a score of this version"):
        read(tmp_path)
    path.write_text("{")
    with pytest.raises(LeafError, match="cannot be read"):
        read(tmp_path)
