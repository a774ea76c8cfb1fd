"""`leaf speed MODEL…`: what takes part and what it is called, which texts, the record, and the page made of it."""

import json

import numpy as np
import pytest
import torch

from leaf.errors import LeafError
from leaf.report.documents import rewrite
from leaf.report.studies import KINDS
from leaf.runtime.speed import Plan
from leaf.speed import query_page, shapes
from leaf.speed.contestants import Entrant, enter, names
from leaf.speed.query import QUICK, TABLE_8, TABLE_8_AGAINST, Texts, make_plan, read_texts, time_models
from leaf.speed.shapes import architecture
from tiny import sentences


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        # "a distillation of a 109M teacher", "of 335M parameters", "down to 23M": the paper's introduction. The numbers
        # are those of bert-base-uncased (109,482,240) and bert-large-uncased (335,141,888) without their poolers
        # (590,592 and 1,049,600), and of MiniLM-L6-H384 (22,565,376 without) with a head of 384 × dim + dim.
        ("bert-base", 108.891648),
        ("bert-large", 334.092288),
        ("minilm-l6", 22.565376 + 0.295680),
        ("minilm-l6-d1024", 22.565376 + 0.394240),
    ],
)
def test_a_shape_has_the_parameters_of_the_model_it_stands_for(name, millions):
    import torch
    from transformers import BertModel

    from leaf.speed.synthetic import bert_config

    shape = architecture(name)
    with torch.device("meta"):
        backbone = BertModel(bert_config(shape, 30_522), add_pooling_layer=False)
    head = (shape.width + 1) * shape.dim if shape.dim != shape.width else 0
    assert sum(each.numel() for each in backbone.parameters()) + head == round(1e6 * millions)


def test_shapes_have_the_layers_and_the_width_in_their_names():
    assert (architecture("minilm-l2").layers, architecture("minilm-l12").layers, architecture("table").layers) == (
        2,
        12,
        0,
    )
    assert [architecture(name).dim for name in ("bert-base", "bert-large", "minilm-l2", "table", "table-d96")] == [
        768, 1024, 768, 768, 96,
    ]  # fmt: skip
    assert architecture("bert-base").pooling == "cls"


@pytest.mark.parametrize("name", ["bert", "minilm", "minilm-l0", "bert-base-d9", "table-1024", ""])
def test_an_unknown_shape_is_refused_with_those_there_are(name):
    with pytest.raises(LeafError, match=f"no shape '{name}'; there are bert-base, bert-large, minilm-l6"):
        enter([f"shape:{name}"])


@pytest.fixture
def folders(tmp_path):
    """A folder that has been exported, and one that has not."""
    (tmp_path / "student" / "onnx").mkdir(parents=True)
    (tmp_path / "teacher").mkdir()
    (tmp_path / "student" / "onnx" / "model.onnx").touch()
    return tmp_path


def test_a_model_runs_through_onnx_runtime_where_it_has_been_exported_and_else_through_torch(folders):
    student, teacher = str(folders / "student"), str(folders / "teacher")
    assert enter([student, f"{student}:q8", teacher, student]) == [
        Entrant(student, "onnxruntime", "fp32"),
        Entrant(student, "onnxruntime", "q8"),
        Entrant(teacher, "torch"),
    ]
    file = f"{student}/onnx/model.onnx"
    assert enter([file]) == [Entrant(file, "onnxruntime")]


def test_precisions_are_for_models_without_one_of_their_own(folders):
    student = str(folders / "student")
    entrants = enter([student, "shape:table:fp32"], ["q8", "fp32"])
    assert [each.precision for each in entrants] == ["fp32", "q8", "fp32"]
    assert list(names(entrants).values()) == ["student", "student-q8", "table"]
    assert list(names(enter([str(folders / "teacher")])).values()) == ["teacher (torch)"]
    with pytest.raises(LeafError, match="--precision 'int8' is unknown, expected some of fp32,fp16,q8,"):
        enter([student], ["int8"])


def test_two_models_of_one_name_are_called_by_their_whole_names(tmp_path):
    for run in ("first", "second"):
        (tmp_path / run / "student").mkdir(parents=True)
    entrants = enter([str(tmp_path / run / "student") for run in ("first", "second")])
    assert list(names(entrants).values()) == [f"{tmp_path}/{run}/student (torch)" for run in ("first", "second")]


@pytest.mark.parametrize("model", ["gone.onnx", "./gone"])
def test_what_is_not_there_is_refused_before_anything_is_loaded(model):
    with pytest.raises(LeafError, match="gone"):
        enter([model])


def test_table_8_has_each_of_the_papers_models_and_its_teacher():
    called = list(names(enter(TABLE_8)).values())
    assert {"bert-base", "bert-large", "minilm-l6", "minilm-l6-d1024"} < set(called)
    assert set(TABLE_8_AGAINST) < set(TABLE_8)


def test_texts_are_one_a_line_or_of_a_folder_or_docstrings(tmp_path):
    (tmp_path / "q.txt").write_text("what is it\n\nwhere is it\n", encoding="utf-8")
    (tmp_path / "d.jsonl").write_text('{"text": "It is here."}\n{"text": "It\\nis there."}\n', encoding="utf-8")
    found = read_texts(tmp_path / "q.txt", tmp_path / "d.jsonl", None)
    assert found.texts == {"query": ["what is it", "where is it"], "document": ["It is here.", "It\nis there."]}
    assert found.source == {"query": "q.txt", "document": "d.jsonl"}
    (tmp_path / "queries.jsonl").write_text('{"_id": "1", "text": "why"}\n', encoding="utf-8")
    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "title": "A", "text": "B"}\n', encoding="utf-8")
    assert read_texts(None, None, tmp_path).texts == {"query": ["why"], "document": ["A B"]}
    with pytest.raises(LeafError, match="queries and documents are timed apart"):
        read_texts(tmp_path / "q.txt", None, None)
    with pytest.raises(LeafError, match="no file"):
        read_texts(tmp_path / "gone.txt", tmp_path / "q.txt", None)
    with pytest.raises(LeafError, match="either --data, or --queries and --documents"):
        read_texts(tmp_path / "q.txt", None, tmp_path)


def test_without_texts_those_of_the_standard_library_are_taken():
    texts = read_texts(None, None, None).texts
    mean = {kind: sum(map(len, found)) / len(found) for kind, found in texts.items()}
    assert min(map(len, texts.values())) > 300
    assert mean["document"] > 2 * mean["query"]


def test_the_plan_is_the_papers_unless_told_otherwise():
    assert make_plan([], None, quick=False) == Plan(batch_sizes=(1, 2, 4, 8, 16, 24), rounds=7)
    assert make_plan([8, 1, 8], 2, quick=False) == Plan(batch_sizes=(1, 8), rounds=2)
    assert make_plan([], None, quick=True) == QUICK
    with pytest.raises(LeafError, match="--batch-sizes 0 is no batch"):
        make_plan([0], None, quick=False)


def contestant(factor, rounds=7):
    """Batches of 1 and 24 texts in `factor` and 20 × `factor` ms; documents take ten times as long."""

    def side(times):
        medians = {"1": factor * times, "24": 20 * factor * times}
        return {
            "per_second": {"mean": 1100 / (factor * times), "sd": 100 / (factor * times), "median": 1.0, "samples": 14},
            "min_latency_ms": {"mean": medians["1"], "sd": medians["1"] / 10, "batch_size": 1},
            "max_n": max((int(size) for size, time in medians.items() if time <= 100), default=None),
            "rounds": rounds,
            "batches": {size: {"median_ms": time, "samples_ms": [time], "tokenise_ms": 0.05}
                        for size, time in medians.items()},
        }  # fmt: skip

    return {
        "runtime": "onnxruntime",
        "query": side(1),
        "document": side(10),
        "latency_ms": {"p50": factor, "p95": 2 * factor, "p99": 3 * factor, "num_queries": 300},
    }


@pytest.fixture
def record():
    against = {"bert-base": {"median": 7.0, "min": 6.5, "max": 7.25, "rounds": 3}}
    text = {"source": "a file", "texts": 2000, "mean_characters": 33.0, "mean_tokens": 9.2, "digest": "0"}
    return {
        "what": "query",
        "settings": {"batch_sizes": [1, 24], "rounds": 7, "within_ms": 100.0, "threads": 2, "device": "cpu",
                     "tokens_per_thread": 256, "against": ["bert-base"], "texts": {"query": text, "document": text}},
        "contestants": {"bert-base": contestant(14, rounds=3), "minilm-l6": contestant(2)},
        "ratios": {role: {"bert-base": {}, "minilm-l6": against} for role in ("query", "document")},
        "provenance": {"hardware": {"cpu": "A CPU"}, "versions": {"onnxruntime": "1.2", "tokenizers": "0.3"},
                       "commit": "abc", "time": "2026-01-02T03:04:05"},
    }  # fmt: skip


def test_the_page_has_a_table_of_queries_and_one_of_documents(record):
    written = "\n".join(query_page.section(record))
    assert (
        "| encoder | queries/s | × bert-base | min latency, ms | max N | p50 / p95 / p99, ms | tokenising, ms |"
        in written
    )
    # 1100 / 2 and 100 / 2 a second; 20 × 2 ms for the largest batch, within 100 ms.
    assert "| minilm-l6 | 550 ± 50.0 | 7.00 (6.50–7.25) | 2.00 ± 0.20 | 24+ | 2.00 / 4.00 / 6.00 | 0.05 |" in written
    assert "| bert-base | 78.6 ± 7.14 |  | 14.0 ± 1.40 | 1 | 14.0 / 28.0 / 42.0 | 0.05 |" in written
    assert "| bert-base | 7.86 ± 0.71 |  | 140 ± 14.0 | - | 0.05 |" in written
    text = " ".join(written.split())
    assert "A CPU, 2 threads. 2,000 queries (a file; 9 tokens on average)" in text
    assert "7 rounds, slow models fewer: bert-base 3 on queries, bert-base 3 on documents. onnxruntime 1.2" in text


def test_one_sample_has_no_deviation():
    assert query_page.mean_sd({"mean": 12.34, "sd": None}) == "12.3"


def test_the_figure_has_a_line_for_each_contestant_and_the_time_that_feels_immediate(record, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "query-cpu.json").write_text(json.dumps(record), encoding="utf-8")
    (tmp_path / "page.md").write_text("<!-- leaf: speed records models -->\n<!-- /leaf -->\n", encoding="utf-8")
    rewrite([tmp_path / "page.md"], KINDS)
    drawn = (tmp_path / "records" / "speed-query.svg").read_text(encoding="utf-8")
    assert drawn == query_page.figure(record)
    for words in (">minilm-l6<", ">bert-base<", ">queries<", ">documents<", ">100<", ">24<"):
        assert words in drawn
    assert "documents: bert-base 140 to 2,800, minilm-l6 20.0 to 400." in drawn
    assert "](records/speed-query.svg)" in (tmp_path / "page.md").read_text(encoding="utf-8")
    assert [each.name for each in (tmp_path / "records").glob("*.svg")] == ["speed-query.svg"]


@pytest.fixture
def made_up_texts():
    return Texts({"query": sentences(8, seed=1), "document": sentences(8, seed=2)}, {"query": "a", "document": "b"})


SHORT = Plan(batch_sizes=(1, 3), rounds=2, lone_queries=4, sample_s=0.001)


def test_a_model_that_has_not_been_exported_is_timed_through_torch_with_its_own_tokens(teacher_folder, made_up_texts):
    before = torch.get_num_threads()
    record = time_models([str(teacher_folder)], made_up_texts, plan=SHORT, threads=before + 1)
    assert torch.get_num_threads() == before  # or whatever this process trains next is of other bits
    (timed,) = record["contestants"].values()
    assert (timed["runtime"], timed["weights"], timed["dim"]) == ("torch", "its own", 24)
    # Two special tokens, and the two words of the query's prompt and its colon; every word of these texts is a token.
    queries = [3 + 2 + len(text.split()) for text in made_up_texts.texts["query"]]
    documents = [2 + len(text.split()) for text in made_up_texts.texts["document"]]
    about = record["settings"]["texts"]
    assert about["query"]["mean_tokens"] == pytest.approx(np.mean(queries))
    assert about["document"]["mean_tokens"] == pytest.approx(np.mean(documents))
    assert record["settings"]["threads"] == before + 1
    json.dumps(record)


def test_shapes_are_exported_once_and_timed_beside_each_other(teacher_folder, made_up_texts, monkeypatch, tmp_path):
    monkeypatch.setenv("LEAF_CACHE", str(tmp_path))
    models = ["shape:minilm-l1-d40", "shape:table-d40", "shape:minilm-l1-d40:q8"]
    options = {"against": ["shape:minilm-l1-d40"], "tokenizer": str(teacher_folder), "plan": SHORT, "threads": 1}
    record = time_models(models, made_up_texts, **options)
    layered, table, int8 = record["contestants"].values()
    assert list(record["contestants"]) == ["minilm-l1-d40", "table-d40", "minilm-l1-d40-q8"]
    assert (layered["runtime"], layered["weights"], layered["dim"]) == ("onnxruntime", "random", 40)
    assert layered["architecture"]["layers"] == 1
    assert layered["bytes"] > 2 * int8["bytes"] > table["bytes"] > 1000
    assert (layered["precision"], int8["precision"]) == ("fp32", "q8")
    assert set(record["ratios"]["query"]["table-d40"]) == {"minilm-l1-d40"}
    # Neither has a prompt. The layered model reads [CLS] and [SEP] too.
    words = [len(text.split()) for text in made_up_texts.texts["query"]]
    assert record["settings"]["texts"]["query"]["mean_tokens"] == pytest.approx(2 + np.mean(words))
    json.dumps(record)

    def exported_again(*_):
        raise AssertionError

    monkeypatch.setattr(shapes, "_export", exported_again)
    time_models(models, made_up_texts, **options)


def test_a_shape_needs_a_tokenizer_that_is_there(made_up_texts, tmp_path):
    with pytest.raises(LeafError, match=r"has no tokenizer\.json; name a model folder that has one"):
        time_models(["shape:table"], made_up_texts, tokenizer=str(tmp_path), plan=SHORT)
    with pytest.raises(LeafError, match="name a folder that has one with --tokenizer"):
        time_models(["shape:table"], made_up_texts, tokenizer="./gone", plan=SHORT)


def test_the_command_times_its_models_and_writes_and_prints_the_record(run, record, monkeypatch, tmp_path):
    from leaf.speed import query

    asked = {}

    def timed(models, texts, **options):
        asked.update(options, models=models, texts=texts.texts)
        return record

    monkeypatch.setattr(query, "time_models", timed)
    (tmp_path / "texts.txt").write_text("one\ntwo\n", encoding="utf-8")
    files = ["--queries", tmp_path / "texts.txt", "--documents", tmp_path / "texts.txt"]
    code, out, _ = run("speed", "table8", "DIR:q8", "--against", "a", "--against", "b", *files, "--threads", 3,
                       "--precision", "q8,q4", "--batch-sizes", "1,2", "--out", tmp_path)  # fmt: skip
    assert code == 0
    assert asked == {
        "models": ["table8", "DIR:q8"],
        "texts": {"query": ["one", "two"], "document": ["one", "two"]},
        "against": ["a", "b"],
        "precisions": ["q8", "q4"],
        "tokenizer": None,
        "threads": 3,
        "plan": Plan(batch_sizes=(1, 2)),
    }
    assert json.loads((tmp_path / "query-cpu.json").read_text(encoding="utf-8")) == record
    header, _, line = out.splitlines()[:3]
    assert header.split("  ")[0] == "encoder"
    assert header.endswith("p50 / p95 / p99, ms  tokenising, ms")
    assert line.split()[:6] == ["minilm-l6", "550", "±", "50.0", "7.00", "(6.50–7.25)"]
    code, out, _ = run("speed", "a", *files, "--quick", "--json")
    assert (code, json.loads(out), asked["plan"]) == (0, record, QUICK)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shape:table", "--steps", "3"], "--steps says nothing about models"),
        (["shape:table", "--batch-size", "3"], "--batch-size says nothing about models"),
        (["train", "--quick"], "--quick says nothing about train"),
        (["shape:table", "train"], "'train' is timed alone; a folder of that name is ./train"),
    ],
)
def test_what_does_not_go_together_is_refused(run, arguments, message):
    code, out, err = run("speed", *arguments)
    assert (code, out) == (2, "")
    assert message in err
