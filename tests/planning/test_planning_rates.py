"""Hours: the records and figures they come from are given back, and what is between them is worked out by hand."""

import json
from pathlib import Path

import pytest

import leaf
from leaf.planning import rates
from leaf.planning.architecture import Architecture
from leaf.planning.models import MODELS
from leaf.planning.rates import (
    ADAMW_SECONDS,
    CPU,
    GPUS,
    MEASURED,
    PASS,
    TABLE,
    TABLE_BATCH,
    TRAINING,
    Step,
    forward_flops,
    paper_rate,
    pass_rate,
    step_parts,
    utilisation,
)
from leaf.speed.mix import KINDS, sample_lengths

RESULTS = Path(leaf.__file__).parents[2] / "results"
MINI = MODELS["nreimers/MiniLM-L6-H384-uncased"].architecture
LENGTHS = sample_lengths(4000, 0).astype(float)
MIX = float(LENGTHS.mean()), float((LENGTHS**2).mean())


def paper_step(batch_size):
    return Step(MINI, 768, 22_861_056, batch_size, *MIX)


def texts_per_second(hardware, step, gpus=1):
    return step.batch_size / sum(step_parts(hardware, step, gpus).values())


@pytest.mark.skipif(not (RESULTS / "speed").is_dir(), reason="an installed package has no results/")
def test_the_measured_rates_are_those_of_the_records():
    for measured in MEASURED:
        record = json.loads((RESULTS.parent / measured.record).read_text(encoding="utf-8"))
        if "contestants" in record:
            settings, rate = record["settings"], record["contestants"]["leaf"]["texts_per_second"]["median"]
            found = (settings["layers"], settings["width"], settings["mean_tokens"], rate)
        else:
            student = next(each for each in record["students"] if each["layers"] == measured.layers)
            rate = student["num_texts"] * student["epochs"] / student["seconds"]
            found = (student["layers"], 384, student["num_tokens"] / student["num_texts"], rate)
        assert (measured.layers, measured.width) == found[:2]
        assert (measured.mean_tokens, measured.texts_per_second) == pytest.approx(found[2:], rel=1e-3)
        hardware = record["provenance"]["hardware"]
        assert (hardware["cpu"], hardware["cpus"]) == (measured.cpu, measured.cpus)
        assert measured.dim == record.get("settings", {}).get("dim", 384)


@pytest.mark.skipif(not (RESULTS / "rows").is_dir(), reason="an installed package has no results/")
def test_what_adamw_takes_is_told_by_a_table_that_was_trained_both_ways():
    sweep = json.loads((RESULTS / "rows/sweep.json").read_text(encoding="utf-8"))
    runs = {each["case"]: each for each in sweep["points"] if each["num_texts"] == 565_000}
    adamw, adagrad = runs["adamw"], runs["adagrad-0.005"]
    each_step = (adamw["seconds"] - adagrad["seconds"]) / adamw["steps"]
    assert pytest.approx(each_step / adamw["parameters"], rel=1e-6) == ADAMW_SECONDS
    record = json.loads((RESULTS / "ladder/from-teacher.json").read_text(encoding="utf-8"))
    table = next(each for each in record["students"] if each["layers"] == 0)
    assert (table["parameters"], table["epochs"] * table["num_texts"] // table["steps"]) == (TABLE.rows, TABLE_BATCH)


def test_the_prototype_is_given_back_at_both_batch_sizes_and_both_widths():
    for batch_size, rate in TRAINING.items():
        assert texts_per_second("h200", paper_step(batch_size)) == pytest.approx(rate, rel=1e-6)
    for width, rate in PASS.items():
        shape = rates.Architecture(12, width, 4 * width, 30522)
        assert pass_rate("h200", shape) / shape.flops(*MIX) == pytest.approx(rate, rel=1e-6)


def test_between_the_batch_sizes_a_step_is_a_constant_and_a_time_for_each_text():
    # 32 ÷ 9,850 = 3.2487 ms and 256 ÷ 14,130 = 18.1175 ms: 66.378 µs a text, and 3.2487 − 32 × 0.066378 = 1.1246 ms.
    assert sum(step_parts("h200", paper_step(64)).values()) == pytest.approx(1.1246e-3 + 64 * 66.378e-6, rel=1e-4)
    # Of the constant, AdamW is 28 bytes × 22.86M ÷ 4.8 TB/s = 0.1334 ms.
    assert step_parts("h200", paper_step(32))["optimizer"] == pytest.approx(0.13336e-3, rel=1e-3)
    assert step_parts("h200", paper_step(32))["launched"] == pytest.approx(0.9913e-3, rel=1e-3)


def test_small_batches_gain_little_from_more_gpus():
    one, eight = (texts_per_second("h200", paper_step(32), gpus) for gpus in (1, 8))
    assert 2 < eight / one < 3  # 3.25 ms become 1.12 + 2.12 ÷ 8 = 1.39 ms
    one, eight = (texts_per_second("h200", paper_step(4096), gpus) for gpus in (1, 8))
    assert eight / one > 7


def test_the_paper_took_its_hours():
    # Table 1: 6.58M texts; 30 epochs; Table 4: 200k batches of 32 in 3 h 05.
    texts = sum(kind.texts for kind in KINDS)
    assert texts == 6_583_000
    assert paper_rate(32) == pytest.approx(577, abs=0.5)
    assert 30 * texts / paper_rate(32) / 3600 == pytest.approx(95, abs=0.2)
    assert 30 * texts / texts_per_second("h200", paper_step(32)) / 3600 == pytest.approx(5.6, abs=0.05)
    # 2 h 32 at batch 256.
    assert paper_rate(256) == pytest.approx(6_400_000 / (152 * 60))
    assert paper_rate(48) is None


def test_other_gpus_are_slower_by_peak_or_by_memory_whichever_is_less():
    shape = MODELS["google-bert/bert-base-uncased"].architecture
    reference = pass_rate("h200", shape)
    assert pass_rate("a100-40gb", shape) / reference == pytest.approx(312 / 989)  # less than 1555 ÷ 4800
    assert pass_rate("h100", shape) / reference == pytest.approx(3350 / 4800)  # less than its peak, which is the same
    assert pass_rate("l4", shape) / reference == pytest.approx(300 / 4800)  # less than 121 ÷ 989
    assert pass_rate("t4", shape) / reference == pytest.approx(8.1 / 989)
    assert all(gpu.note for key, gpu in GPUS.items() if key == "t4")


def test_wide_models_use_more_of_the_peak_and_none_uses_all():
    # 12 layers of width 768: 11,700 texts/s × 192 tokens × 2 × 84.9M, and attention: some 42 % of 989 TFLOP/s.
    assert utilisation(768) == pytest.approx(0.42, abs=0.01)
    assert utilisation(384) < utilisation(512) < utilisation(768) == utilisation(1024)


def test_this_cpu_reads_its_records_back(monkeypatch):
    monkeypatch.setattr(rates, "cores", lambda: 2)
    monkeypatch.setattr(rates, "has_bfloat16", lambda: True)
    assert texts_per_second(CPU, paper_step(32)) == pytest.approx(
        18.21, rel=0.01
    )  # 192.2 for the record's 192.6 tokens
    table = Step(Architecture.table(30522, 384), 384, 30522 * 384, 512, 38.93, 38.93**2)
    assert texts_per_second(CPU, table) == pytest.approx(15767, rel=1e-6)
    phrases = Step(Architecture.table(146_385, 384), 384, 146_385 * 384, 512, 18.95, 18.95**2)
    assert texts_per_second(CPU, phrases) == pytest.approx(6291, rel=0.25)  # results/ladder/report.json
    monkeypatch.setattr(rates, "cores", lambda: 8)
    assert texts_per_second(CPU, paper_step(32)) == pytest.approx(4 * 18.21, rel=0.01)
    monkeypatch.setattr(rates, "has_bfloat16", lambda: False)
    assert texts_per_second(CPU, paper_step(32)) == pytest.approx(4 * 18.21 / 1.65, rel=0.01)


def test_a_table_costs_no_flops_and_its_gpu_step_is_nearly_all_launch():
    table = Step(Architecture.table(30522, 768), 768, 30522 * 768, 512, 40, 1600)
    assert table.flops == 0 == forward_flops(table.architecture, 768, 40, 1600)
    parts = step_parts("h200", table)
    # Its rows: 512 × 40 × 768 floats, 12 bytes each, at 4.8 TB/s.
    assert parts["rows"] == pytest.approx(512 * 40 * 768 * 12 / 4.8e12)
    assert parts["launched"] > 0.8 * sum(parts.values())


def test_a_tables_network_is_multiplied_and_its_rows_are_twice_as_wide(monkeypatch):
    monkeypatch.setattr("leaf.planning.rates.cores", lambda: 2)
    shapes = Architecture.table(30522, 384), Architecture.table(30522, 384, hidden=2048)
    network = 768 * 2816 + 2816 + 2816 * 384 + 384  # 2·384 + 2048 units, with biases
    assert [each.network for each in shapes] == [0, network]
    plain, with_network = (Step(each, 384, each.rows + each.network, 512, 40, 1600) for each in shapes)
    # Two FLOPs a parameter forward, and twice as many backward.
    assert (plain.flops, with_network.flops) == (0, 6 * 512 * network)
    for hardware in ("cpu", "h200"):
        assert step_parts(hardware, with_network)["rows"] == 2 * step_parts(hardware, plain)["rows"]
    assert "products" in step_parts("cpu", with_network)


def test_adamw_moves_all_rows_of_a_table_and_adagrad_those_of_a_batch(monkeypatch):
    monkeypatch.setattr(rates, "cores", lambda: 2)
    shape = Architecture.table(60_000, 384, hidden=512)
    by_adamw, apart = (
        Step(shape, 384, shape.rows + shape.network, 512, 40, 1600, rows_apart=each) for each in (False, True)
    )
    # (150.9 s − 87.5 s) ÷ 3,309 steps ÷ 23.0M parameters = 0.832 ns each.
    assert step_parts(CPU, by_adamw)["optimizer"] == pytest.approx(0.8317e-9 * (60_000 * 768 + shape.network), rel=1e-3)
    assert step_parts(CPU, apart)["optimizer"] == pytest.approx(0.8317e-9 * shape.network, rel=1e-3)
    # With graphs all rows are read and written: of weights, gradients and one moment instead of two.
    saved = step_parts("h200", by_adamw)["optimizer"] - step_parts("h200", apart)["optimizer"]
    assert saved == pytest.approx(8 * 60_000 * 768 / 4.8e12)
