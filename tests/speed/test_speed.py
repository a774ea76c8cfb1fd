"""`leaf speed`: the mix, the record and the page by hand, and both timings on a model that computes next to nothing."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import leaf
from leaf import cli
from leaf.errors import LeafError, Stopped
from leaf.speed import page
from leaf.speed.mix import KINDS, sample_lengths
from leaf.speed.record import Round, make_record, result_table, rows

MISSING = [name for name in ("accelerate", "datasets") if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def shape():
    from leaf.speed.synthetic import Shape

    return Shape(layers=1, width=24, heads=2, intermediate=32, vocabulary=200, max_length=64)


def test_the_mix_has_the_texts_of_table_1_and_the_mean_length_that_they_came_to():
    # FineWeb 3M + CC-News 900k + tokens 30k + Vocabulary 800k + Amazon 979k + LoTTE 27k + MS MARCO 502k + PubMedQA 272k
    # + Trivia QA 73k.
    assert sum(kind.texts for kind in KINDS) == 6_583_000
    lengths = sample_lengths(20_000, seed=0)
    assert lengths.shape == (20_000,)
    assert abs(lengths.mean() - 192) < 4
    assert (lengths.min(), lengths.max()) == (3, 512)


def test_a_few_hundred_texts_have_the_mean_of_the_whole_mix():
    means = [sample_lengths(320, seed).mean() for seed in range(5)]
    assert np.allclose(means, 192, atol=6)


def test_the_seed_orders_the_lengths():
    first, again, other = (sample_lengths(500, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(np.sort(first), np.sort(other))


def test_a_text_has_as_many_tokens_as_asked_for(shape, tmp_path):
    from transformers import AutoTokenizer

    from leaf.speed.synthetic import make_texts, save_backbone

    texts = make_texts([3, 40, 7], shape, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(save_backbone(tmp_path, shape, seed=0))
    ids = tokenizer(texts)["input_ids"]
    assert [len(each) for each in ids] == [3, 40, 7]
    assert tokenizer.unk_token_id not in np.concatenate(ids)


def made_up():
    """Ours at 100 and 80 texts a second beside 50 and 20: ratios 2 and 4."""
    rounds = {
        "leaf": [Round(200, 2000, 2000, 2.0), Round(200, 2000, 2000, 2.5)],
        "padded": [Round(200, 2000, 4000, 4.0), Round(200, 2000, 8000, 10.0)],
    }
    settings = {"layers": 6, "width": 384, "compute_dtype": "bfloat16", "batch_size": 32, "mean_tokens": 10.0,
                "max_length": 512, "rounds": 2, "steps": 6, "warm_up": 2, "dim": 768}  # fmt: skip
    record = make_record("train", settings, rounds, {"first_loss": {"leaf": 1.5, "padded": 1.501}})
    record["provenance"]["hardware"] |= {"cpu": "A CPU", "threads": 2, "gpus": ["A GPU"]}
    return record


def test_ratios_are_taken_within_rounds():
    record = made_up()
    assert record["ratios"] == {"padded": {"median": 3.0, "min": 2.0, "max": 4.0}}
    assert record["contestants"]["leaf"]["texts_per_second"] == {"median": 90.0, "min": 80.0, "max": 100.0}
    assert record["contestants"]["padded"]["tokens_per_second"] == {"median": 350.0, "min": 200.0, "max": 500.0}
    assert record["contestants"]["padded"]["padding"] == pytest.approx((0.5 + 0.75) / 2)
    assert list(rows(record))[1][1:] == ("35.0 (20.0–50.0)", "350", "62 %", "3.00 × (2.00–4.00)")
    assert result_table(record).row_count == 2


def test_the_page_shows_the_records_and_says_what_is_not_yet_measured():
    found = {"train-cpu": made_up()}
    written = "\n".join(part for what in page.SECTIONS for part in page.section(found, what))
    assert "| CPU | leaf | 90.0 (80.0–100) | 900 | 0 % |  |" in written
    assert "| CPU | padded loop | 35.0 (20.0–50.0) | 350 | 62 % | 3.00 × (2.00–4.00) |" in written
    # Three of the GPU's training and three each of both devices' teacher pass.
    assert written.count("not yet measured") == 9
    assert "A CPU, 2 threads" in written
    assert "lie 1e-03 apart" in written


def test_the_page_says_how_far_vectors_agree():
    record = made_up()
    record |= {
        "what": "embed",
        "checks": {name: {"min_cosine": 0.99, "matched": 0.995} for name in ("padded", "other")},
    }
    record["checks"]["other"]["min_cosine"] = 0.98
    record["settings"]["texts"] = 1000
    written = " ".join(page.section({"embed-cuda": record}, "embed"))
    assert "at least 0.980000, and the nearest is that of the same text for 99.5 % of texts" in written


def test_the_figure_has_a_bar_for_each_contestant_and_the_same_bytes_twice():
    pytest.importorskip("matplotlib")
    drawn = page.figure({"train-cpu": made_up()})
    assert drawn == page.figure({"train-cpu": made_up()})
    assert "Date" not in drawn
    for words in ("padded loop", "One training step, CPU", ">90.0<", ">35.0<"):
        assert words in drawn


@pytest.mark.skipif(bool(MISSING), reason=f"the Sentence Transformers trainer needs {' and '.join(MISSING)}")
def test_training_times_three_contestants_that_compute_the_same(shape):
    from leaf.speed.training import time_training

    record = time_training(shape, dim=12, batch_size=4, steps=2, rounds=2, device="cpu")
    assert list(record["contestants"]) == ["leaf", "padded", "sentence_transformers"]
    # 2 steps of 4 texts a round, whoever trains; the same batches, hence the same tokens.
    rounds = [each["rounds"] for each in record["contestants"].values()]
    assert {each["texts"] for theirs in rounds for each in theirs} == {8}
    tokens = [[each["tokens_per_second"] * each["seconds"] for each in theirs] for theirs in rounds]
    assert np.allclose(tokens[0], tokens[1])
    assert np.allclose(tokens[0], tokens[2])
    assert all(each["texts_per_second"] > 0 for theirs in rounds for each in theirs)
    padding = {name: each["padding"] for name, each in record["contestants"].items()}
    assert padding["leaf"] == pytest.approx(0)
    assert padding["padded"] == padding["sentence_transformers"] > 0.1
    losses = list(record["checks"]["first_loss"].values())
    assert max(losses) - min(losses) < 1e-2
    assert min(losses) > 0.5  # random unit vectors are about √2 apart
    assert set(record["ratios"]) == {"padded", "sentence_transformers"}
    assert "accelerate" in record["provenance"]["versions"]
    json.dumps(record)


def test_without_the_extra_the_line_to_install_it_is_named(monkeypatch, shape):
    from leaf.speed import training

    monkeypatch.setattr(training, "find_spec", lambda name: None if name == "accelerate" else object())
    with pytest.raises(LeafError, match=r"needs accelerate; pip install 'leaf\[speed\]'"):
        training.time_training(shape, device="cpu")


def test_contestants_that_differ_are_refused(monkeypatch, shape):
    from leaf.speed import training

    if MISSING:
        pytest.skip("the Sentence Transformers trainer is not installed")
    monkeypatch.setattr(training, "leaf_loss", lambda vectors, targets: vectors.sum() * 0 + 7)
    with pytest.raises(LeafError, match="do not compute the same loss"):
        training.time_training(shape, dim=12, batch_size=4, steps=2, rounds=1, device="cpu")


def test_a_stopped_timing_says_that_nothing_is_kept(monkeypatch, shape):
    from leaf.speed import training

    def stopped(*_, **__):
        raise Stopped("training stopped after step 2, which is saved")

    monkeypatch.setattr(training, "find_spec", lambda _: object())
    monkeypatch.setattr(training, "train", stopped)
    with pytest.raises(LeafError, match="keeps nothing, so run it again"):
        training.time_training(shape, dim=12, batch_size=4, steps=2, rounds=1, device="cpu")


def test_embedding_times_encoders_that_agree(shape):
    from leaf.speed.embedding import time_embedding

    record = time_embedding(shape, num_texts=50, batch_size=8, rounds=2, device="cpu")
    assert list(record["contestants"])[:2] == ["leaf", "sentence_transformers"]
    assert all(each["texts_per_second"]["min"] > 0 for each in record["contestants"].values())
    assert len(record["checks"]) == len(record["contestants"]) - 1
    assert all(check["min_cosine"] > 0.99 for check in record["checks"].values())
    assert all(check["matched"] > 0.9 for check in record["checks"].values())
    assert record["contestants"]["leaf"]["padding"] == pytest.approx(0)
    assert record["contestants"]["sentence_transformers"]["padding"] > 0
    json.dumps(record)


def command_line(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["leaf", "speed", *map(str, arguments)])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_command_writes_its_record_and_prints_it(monkeypatch, capsys, tmp_path):
    from leaf.speed import embedding

    asked = {}

    def timed(shape, **options):
        asked.update(options, layers=shape.layers)
        return {**made_up(), "settings": {"device": "cuda:1"}}

    monkeypatch.setattr(embedding, "time_embedding", timed)
    code, out, _ = command_line(monkeypatch, capsys, "embed", "--texts", 9, "--out", tmp_path, "--json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "embed-cuda.json").read_text())
    assert (asked["layers"], asked["num_texts"], asked["batch_size"], asked["rounds"]) == (12, 9, 32, 3)
    code, out, _ = command_line(monkeypatch, capsys, "embed")
    assert code == 0
    assert "3.00 × (2.00–4.00)" in out


@pytest.mark.parametrize(
    ("what", "option"), [("train", ["--texts", "5"]), ("embed", ["--steps", "5"]), ("embed", ["--eager"])]
)
def test_an_option_of_the_other_timing_is_refused(monkeypatch, capsys, what, option):
    code, out, err = command_line(monkeypatch, capsys, what, *option)
    assert (code, out) == (2, "")
    assert f"{option[0]} says nothing about {what}" in err


def test_nothing_but_the_command_line_and_pages_imports_what_times():
    source = Path(leaf.__file__).parent
    others = [path for path in source.rglob("*.py") if path.parent != source / "speed"]
    imports = re.compile(r"^ *from leaf\.speed(?!\.mix )", re.MULTILINE)  # the lengths of the paper's texts are data
    found = {path.name for path in others if imports.search(path.read_text(encoding="utf-8"))}
    assert found == {"using.py", "studies.py"}
