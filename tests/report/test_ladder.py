"""Quality against the time of a query: points from records written by hand, the figure, the commands that draw it."""

import json
import re
import sys

import pytest

from leaf.errors import LeafError
from leaf.evaluation import records
from leaf.evaluation.records import Score
from leaf.evaluation.statistics import Interval
from leaf.evaluation.suite import Suite
from leaf.exported import measure_exported
from leaf.loading import load
from leaf.report import ladder
from leaf.report.ladder import Point, draw_ladder, ladder_table, place_names, points, report_points, retention
from leaf.scoring import Models
from leaf.scoring import score as score_all
from leaf.teacher.model import SentenceTransformerEncoder
from tiny import save_teacher, sentences
from tiny_export import export_tiny
from tiny_student import make_student


def score(mode, encoder, values, dataset="easy", task="retrieval", measure="ndcg@10"):
    per_query = {f"q{number}": value for number, value in enumerate(values)}
    value = sum(values) / len(values)
    names = (encoder, encoder, encoder)
    return Score(dataset, task, measure, mode, value, len(values), *names, "float32", "0", (), {}, per_query)


#: nDCG@10 of 0.8 by the teacher; asymmetric 90 % by `small`, 80 % by its int8 file; 50 % standard.
SCORES = [
    score("teacher", "big", [0.8] * 4),
    score("standard", "small", [0.4] * 4),
    score("asymmetric", "small", [0.72] * 4),
    score("asymmetric", "small", [0.1] * 4, measure="recall@100"),
    score("asymmetric", "small-q8", [0.64] * 4),
    score("teacher", "big", [0.5, 0.5], "alike", "sts", "spearman"),
    score("asymmetric", "small", [0.1, 0.1], "alike", "sts", "spearman"),
]


def timed(median, runtime="onnxruntime", precision="fp32", **more):
    return {"median_ms": median, "p10_ms": median / 2, "p90_ms": 2 * median, "runtime": runtime,
            "precision": precision, **more}  # fmt: skip


LATENCIES = {
    "big": timed(9.0, "torch"),
    "small": timed(3.0, "torch"),
    "small-fp32": timed(1.0),
    "small-q8": timed(0.25, precision="q8"),
}


@pytest.fixture
def found():
    same = score("asymmetric", "small-fp32", [0.72] * 4)
    kept = retention([*SCORES, same], {name: each["precision"] for name, each in LATENCIES.items()})
    return points(kept, LATENCIES)


def test_a_point_is_a_median_in_microseconds_and_what_is_kept_asymmetric(found):
    # 0.72 / 0.8 and 0.64 / 0.8 for every query alike, so the intervals have no length.
    expected = [
        ("big", "PyTorch", 9000, (4500, 18000), 100, True),
        ("small", "PyTorch", 3000, (1500, 6000), 90, False),
        ("small", "ONNX fp32", 1000, (500, 2000), 90, False),
        ("small", "ONNX int8", 250, (125, 500), 80, False),
    ]
    for point, (encoder, form, time, spread, value, is_teacher) in zip(found, expected, strict=True):
        assert (point.encoder, point.form, point.is_teacher) == (encoder, form, is_teacher)
        assert (point.microseconds, *point.spread, *point.kept) == pytest.approx((time, *spread, *[value] * 3))


def test_the_interval_is_paired_over_queries_and_datasets_weigh_the_same():
    # On `hard` the student has half of each query's score: 50 % of any resample. (90 + 50) / 2.
    hard = [score("teacher", "big", [0.2, 0.9], "hard"), score("asymmetric", "small", [0.1, 0.45], "hard")]
    assert retention([*SCORES[:3], *hard], {"small": None})["small"] == pytest.approx((70, 70, 70))


def test_int8_has_no_score_but_its_own_and_a_file_in_fp32_that_of_its_student():
    with pytest.raises(LeafError, match=r"by 'other-q8' .*, there is that of big, small, small-q8; `leaf evaluate`"):
        retention(SCORES, {"other-q8": "q8"})
    assert retention(SCORES, {"small": "fp32"})["small"].value == pytest.approx(90)
    named = [score("asymmetric", "small-fp32", [0.72] * 4), *SCORES[:1]]
    assert retention(named, {"small": "fp32"})["small"].value == pytest.approx(90)
    with pytest.raises(LeafError, match="by 'small' over"):
        retention([SCORES[0], SCORES[4]], {"small": "fp32"})


def test_an_encoder_that_was_scored_standard_alone_is_refused():
    with pytest.raises(LeafError, match="no nDCG@10 of queries by 'small' over a teacher's documents"):
        retention([score("teacher", "big", [0.8]), score("standard", "small", [0.4])], {"small": None})


def test_the_table_says_what_the_figure_shows(found):
    assert ladder_table(found) == [
        ["encoder", "computed by", "µs a query", "10–90 %", "% of the teacher"],
        ["big", "PyTorch", "9,000", "4,500–18,000", "100"],
        ["small", "PyTorch", "3,000", "1,500–6,000", "90.0 (90.0–90.0)"],
        ["small", "ONNX fp32", "1,000", "500–2,000", "90.0 (90.0–90.0)"],
        ["small", "ONNX int8", "250", "125–500", "80.0 (80.0–80.0)"],
    ]


@pytest.mark.parametrize(("value", "said"), [(12_345.6, "12,300"), (99.96, "100"), (47.31, "47.3"), (8.0, "8")])
def test_microseconds_have_three_digits(value, said):
    assert ladder_table([Point("a", "PyTorch", value, None, Interval(1, 1, 1))])[1][2] == said


def test_a_time_on_a_gpu_is_said_to_be_one():
    assert ladder.form_of({"runtime": "torch", "device": "cuda:0"}) == "PyTorch on cuda"
    assert ladder.form_of({"runtime": "onnxruntime", "precision": "q4"}) == "ONNX q4"


def report(**student):
    return {
        "teacher": {"latency_ms": 8.0, "latency": {"median_ms": 8.0, "p10_ms": 7.0, "p90_ms": 9.5}},
        "students": [
            {"name": "student-2l", "latency_ms": 2.0, "retention": {"asymmetric": 98.0},
             "intervals": {"asymmetric": [97.0, 99.0]}, **student},
        ],
        "speed": {"device": "cpu", "cpu": "A CPU", "threads": 2, "num_queries": 100},
    }  # fmt: skip


def test_a_report_gives_its_torch_times_and_those_of_files_that_were_scored():
    exported = {"q8": {"latency": {"median_ms": 0.5}, "retention": [97.5, 96.0, 98.9]}}
    teacher, torch, int8 = report_points(report(exported=exported))
    assert teacher == Point("teacher", "PyTorch", 8000, (7000, 9500), Interval(100, 100, 100), is_teacher=True)
    assert torch == Point("student-2l", "PyTorch", 2000, None, Interval(98, 97, 99))
    assert int8 == Point("student-2l", "ONNX int8", 500, None, Interval(97.5, 96, 98.9))


def test_what_was_not_timed_or_not_scored_is_no_point():
    assert [each.encoder for each in report_points(report(retention={"asymmetric": None}))] == ["teacher"]
    untimed = report(latency_ms=None)
    untimed["teacher"] = {"latency_ms": None}
    assert report_points(untimed) == []


#: A word of a figure: where across, and what.
TEXT = r'<text[^>]* x="([\d.]+)"[^>]*>([^<]*)</text>'


def crowd():
    """Sixteen points, three forms of five students within a few percent, as a whole ladder has them."""
    made = [Point("teacher", "PyTorch", 10_000, (8_800, 13_000), Interval(100, 100, 100), is_teacher=True)]
    for row, (time, value) in enumerate([(9_800, 99.6), (4_900, 99.3), (3_550, 98.5), (2_000, 96.7), (320, 93.9)]):
        for form, factor in (("PyTorch", 1), ("ONNX fp32", 3.7), ("ONNX int8", 8)):
            times = time / factor
            kept = Interval(value, value - 1.2, value + 1.1)
            made.append(Point(f"student-{row}", form, times, (0.8 * times, 1.5 * times), kept))
    return made


def test_the_figure_names_every_encoder_and_every_form_once(found):
    figure = draw_ladder(found, "A CPU, 2 threads")
    words = re.findall(r"<text[^>]*>([^<]*)</text>", figure.svg)
    for name in ("big", "small", "PyTorch", "ONNX fp32", "ONNX int8", "% of the teacher's nDCG@10"):
        assert words.count(name) == 1, name
    assert any(each.endswith("A CPU, 2 threads.") for each in words)
    assert "small, ONNX int8: 250 µs, 80.0 % (80.0 to 80.0)" in figure.alt
    assert figure == draw_ladder(found, "A CPU, 2 threads")


def test_a_note_on_a_processor_with_a_long_name_is_broken_and_not_cut_off(found):
    machine = "Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz, 16 threads, 100 queries, tokenisation included"
    words = re.findall(r"<text[^>]*>([^<]*)</text>", draw_ladder(found, machine).svg)
    first = next(row for row, each in enumerate(words) if each.startswith("Bars: 95 % interval"))
    assert f"{words[first]} {words[first + 1]}".endswith(f"{machine}.")
    assert max(map(len, words[first : first + 2])) <= 104  # of 8 points, in 6.4 inches


def test_equal_factors_are_equal_distances_across(found):
    places = {words: float(x) for x, words in re.findall(TEXT, draw_ladder(found, "A CPU").svg)}
    assert places["3,000"] - places["300"] == pytest.approx(places["10,000"] - places["1,000"], abs=0.1)
    assert places["3,000"] - places["1,000"] > 0.4 * (places["10,000"] - places["1,000"])  # log10 3 = 0.477


def test_names_lie_on_nothing_and_within_the_axes_while_there_is_room():
    # Two marks side by side with bars through them: the right and left sides of both are taken.
    sizes, marks = {"one": (60.0, 10.0), "two": (60.0, 10.0)}, {"one": [(100.0, 50.0)], "two": [(120.0, 50.0)]}
    taken = [(90, 45, 130, 55), (100, 20, 101, 80), (120, 20, 121, 80)]
    inside = (0, 0, 200, 100)
    placed = place_names(sizes, marks, taken, inside)
    assert list(placed) == ["one", "two"]
    boxes = [*placed.values(), *taken]
    for row, (left, bottom, right, top) in enumerate(placed.values()):
        assert (right - left, top - bottom) == (60, 10)
        assert inside[0] <= left < right <= inside[2]
        assert inside[1] <= bottom < top <= inside[3]
        for other in boxes[:row] + boxes[row + 1 :]:
            assert right <= other[0] or other[2] <= left or top <= other[1] or other[3] <= bottom


def test_a_name_has_a_place_even_where_everything_is_taken():
    [box] = place_names({"one": (20.0, 10.0)}, {"one": [(50.0, 50.0)]}, [(0, 0, 100, 100)], (0, 0, 100, 100)).values()
    assert box == (59, 45, 79, 55)  # the nearest: to the right, nine pixels off


def test_no_name_of_a_crowded_figure_is_written_over_another():
    svg = draw_ladder(crowd(), "A CPU").svg
    spots = {
        words: (float(x), float(y))
        for x, y, words in re.findall(r'<text[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>(teacher|student-\d)<', svg)
    }
    assert len(spots) == 6
    for one, (x, y) in spots.items():
        for other, (left, bottom) in spots.items():
            # Left ends and baselines: names of nine letters are some 55 wide, and a line is 10 high.
            assert one == other or abs(x - left) > 45 or abs(y - bottom) > 9


def test_without_matplotlib_or_with_one_point_there_is_no_figure(found, monkeypatch):
    assert draw_ladder(found[:1], "A CPU") is None
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert draw_ladder(found, "A CPU") is None


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A teacher, and a lookup table in its space with an ONNX file in fp32."""
    folder = tmp_path_factory.mktemp("models")
    teacher = save_teacher(folder / "big", layers=2).rename(folder / "teacher")
    encoder = SentenceTransformerEncoder(str(teacher), device="cpu")
    student = make_student(folder / "student-table", encoder, layers=())
    export_tiny(student)
    return teacher, student


@pytest.fixture(scope="module")
def beir(tmp_path_factory):
    """30 documents, 30 queries that are their first words."""
    folder = tmp_path_factory.mktemp("sets") / "tiny"
    (folder / "qrels").mkdir(parents=True)
    documents = sentences(30)
    rows = {"corpus": documents, "queries": [text.rsplit(" ", 1)[0] for text in documents]}
    for name, texts in rows.items():
        lines = [json.dumps({"_id": f"{name[0]}{n}", "title": "", "text": text}) for n, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    judged = "".join(f"q{n}\tc{n}\t1\n" for n in range(30))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


def evaluate(models, beir, *more):
    teacher, student = models
    return ["evaluate", "--queries", student, "--queries", f"{student}:fp32", "--documents", teacher, "--data", beir,
            *more]  # fmt: skip


@pytest.fixture(scope="module")
def scored(models, beir, tmp_path_factory):
    """The scores of both forms, as `leaf evaluate … --out` writes them."""
    out, (teacher, student) = tmp_path_factory.mktemp("scores"), map(str, models)
    score_all(Models([student, f"{student}:fp32"], teacher), [beir], Suite(bm25=False), None, out)
    return out


def test_evaluate_draws_the_encoders_it_scores(run, models, beir, tmp_path):
    scored = tmp_path / "scores"
    code, out, err = run(*evaluate(models, beir, "--figure", tmp_path / "a.svg", "--out", scored))
    assert code == 0, err
    svg = (tmp_path / "a.svg").read_text()
    assert svg.startswith("<svg")
    assert all(f">{name}<" in svg for name in ("teacher", "student-table", "PyTorch", "ONNX fp32"))
    rows = [line.split() for line in out.splitlines()]
    header = next(number for number, row in enumerate(rows) if row[:3] == ["encoder", "computed", "by"])
    assert [row[:2] for row in rows[header + 1 : header + 4]] == [
        ["teacher", "PyTorch"], ["student-table", "PyTorch"], ["student-table", "ONNX"],
    ]  # fmt: skip
    assert out.splitlines()[-1] == str(tmp_path / "a.svg")
    latencies = json.loads((scored / "latencies.json").read_text())["encoders"]
    assert list(latencies) == ["teacher", "student-table", "student-table-fp32"]
    assert all(each["num_queries"] == 100 and each["median_ms"] > 0 for each in latencies.values())
    # The file answers as the student does: the same retention, over the same documents.
    found = retention(records.read(scored), {"student-table": None, "student-table-fp32": "fp32"})
    assert found["student-table"] == pytest.approx(found["student-table-fp32"])


def test_json_stays_json_beside_a_figure(run, models, beir, tmp_path):
    code, out, err = run(*evaluate(models, beir, "--figure", tmp_path / "a.svg", "--json"))
    assert code == 0, err
    assert {each["encoder"] for each in json.loads(out)} == {"teacher", "student-table", "student-table-fp32"}
    assert (tmp_path / "a.svg").is_file()


def test_speed_draws_its_times_beside_scores_that_are_there(run, models, beir, scored, tmp_path):
    teacher, student = models
    quick = ["--data", beir, "--quick", "--batch-sizes", "1", "--rounds", "1", "--scores", scored]
    code, out, err = run("speed", student, "--against", teacher, *quick, "--figure", tmp_path / "s.svg", "--json")
    assert code == 0, err
    assert list(json.loads(out)["contestants"]) == ["student-table", "teacher (torch)"]
    svg = (tmp_path / "s.svg").read_text()
    assert all(f">{name}<" in svg for name in ("teacher", "student-table", "PyTorch", "ONNX fp32"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "demo", "--figure", "a.svg"], "with a RECIPE the figure is in its report"),
        (["evaluate", "--queries", "m", "--data", "x", "--alignment", "--figure", "a.svg"], "--figure draws scores"),
        (["evaluate", "--queries", "m", "--data", "BEIR", "--figure", "a.svg"], "the teacher with --documents"),
        (["evaluate", "--queries", "m", "--documents", "m", "--data", "BEIR", "--figure", "a.svg"], "give students"),
        (["evaluate", "--queries", "m", "--data", "BEIR", "--figure", "a.png"], "a.png is no .svg"),
        (["speed", "shape:table", "--figure", "a.svg"], "--scores and --figure go together"),
        (["speed", "shape:table", "--scores", "x"], "--scores and --figure go together"),
        (["speed", "shape:table", "--scores", "x", "--figure", "a.svg"], "by 'table' over a teacher's documents, "),
        (["speed", "train", "--scores", "x"], "--scores says nothing about train"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_measured(run, beir, arguments, words):
    code, out, err = run(*(beir if each == "BEIR" else each for each in arguments))
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert words in err


def test_a_precision_of_a_student_loads_its_onnx_file(models):
    _, student = models
    encoder = load(f"{student}:fp32")
    assert (encoder.path, encoder.name) == (student / "onnx" / "model.onnx", "student-table")
    with pytest.raises(LeafError, match="was not exported as q8; there is fp32"):
        load(f"{student}:q8")


@pytest.fixture
def a_run(models, beir, tmp_path):
    """What measuring exported files reads of a run: its scores' manifest, its student and what was exported."""
    from leaf.evaluation.datasets import load_all

    sets = load_all(beir)
    (tmp_path / "scores").mkdir()
    manifest = {"fingerprint": "s", "inputs": {"datasets": {each.name: each.digest for each in sets}}}
    (tmp_path / "scores" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "student-table").symlink_to(models[1])
    return tmp_path, sets


def measure(folder, sets, teacher, fingerprint="o"):
    manifests = {"student-table": {"fingerprint": fingerprint, "files": {"fp32": {}, "q4": {}}}}
    measure_exported(folder, manifests, sets, teacher, sentences(5), folder / "vectors")


def test_exported_files_are_scored_and_timed_once(models, a_run):
    folder, sets = a_run
    opened = []

    def teacher():
        opened.append(1)
        return load(models[0], device="cpu")

    measure(folder, sets, teacher)
    [found] = [each for each in records.read(folder / "scores" / "exported") if each.measure == "ndcg@10"]
    assert (found.encoder, found.mode, found.num_queries) == ("student-table-fp32", "asymmetric", 30)
    timed = json.loads((folder / "speed" / "exported" / "student-table-fp32.json").read_text())
    assert (timed["runtime"], timed["precision"], timed["num_queries"]) == ("onnxruntime", "fp32", 100)
    measure(folder, sets, teacher)
    assert len(opened) == 1
    measure(folder, sets, teacher, fingerprint="another")
    assert len(opened) == 2


def test_files_are_not_compared_with_scores_of_other_sets_and_of_no_run(models, a_run):
    folder, sets = a_run

    def teacher():
        raise AssertionError

    measure(folder, [], teacher)
    (folder / "scores" / "manifest.json").write_text(json.dumps({"fingerprint": "s", "inputs": {"datasets": {}}}))
    measure(folder, sets, teacher)
    (folder / "scores" / "manifest.json").unlink()
    measure(folder, sets, teacher)
    assert not (folder / "scores" / "exported").exists()
