"""One tiny recipe from texts to report, through the files it leaves and the processes that die on the way."""

import gzip
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

import leaf
from leaf.errors import LeafError
from leaf.evaluation.records import read
from leaf.pipeline import Pipeline
from leaf.recipe import Export, Recipe, Student
from leaf.run import read_manifest
from leaf.runtime.encoder import OnnxEncoder
from leaf.space import Space, verify
from leaf.student.metrics import held_out_errors
from tiny import save_teacher, sentences

STUDENTS = ("student-table", "student-2l")


def recipe(folder, teacher, **changes) -> Recipe:
    """Two students, 400 texts in shards of 64, and a BEIR set whose queries begin their documents."""
    texts = sentences(500)
    (folder / "queries.txt").write_text("\n".join(texts[:200]))
    (folder / "documents.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts[200:450]))
    beir = folder / "beir"
    (beir / "qrels").mkdir(parents=True, exist_ok=True)
    pairs = [(f"q{row}", f"d{row}", text) for row, text in enumerate(texts[450:])]
    (beir / "corpus.jsonl").write_text("\n".join(json.dumps({"_id": d, "title": "", "text": t}) for _, d, t in pairs))
    (beir / "queries.jsonl").write_text(
        "\n".join(json.dumps({"_id": q, "text": " ".join(t.split()[:3])}) for q, _, t in pairs)
    )
    (beir / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"{q}\t{d}\t1\n" for q, d, _ in pairs)
    )
    return Recipe.parse(
        {
            "name": "tiny",
            "teacher": {"model": str(teacher), "name": "tiny-teacher"},
            "students": [
                {"name": "student-table", "layers": [], "ridge_texts": 0, "train": {"lr": 0.05}},
                {"name": "student-2l", "layers": [0, 3], "ridge_texts": 0},
            ],
            "texts": [
                {"source": str(folder / "queries.txt"), "kind": "query"},
                {"source": str(folder / "documents.jsonl"), "kind": "document", "licence": "CC0"},
            ],
            "prepare": {"held_out": 50, "shard_rows": 64},
            "train": {"batch_size": 16, "cycles": 1, "epochs_per_cycle": 3, "lr": 3e-3, "checkpoint_minutes": 1e-9},
            "evaluate": {"data": [str(beir)], "bm25": True, "examples": [texts[460]]},
            "export": {"precisions": []},  # tracing takes seconds
            **changes,
        }
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, teacher_folder):
    folder = tmp_path_factory.mktemp("run")
    settings = recipe(folder, teacher_folder, export={"precisions": ["fp32", "q8"]})
    return settings, folder / "out", leaf.distill(settings, folder / "out", device="cpu")


def test_a_run_leaves_what_the_design_promises(finished):
    _, out, _ = finished
    for file in (
        "recipe.toml",
        "texts/manifest.json",
        "report.md",
        "report.html",
        "report.json",
        "scores/manifest.json",
    ):
        assert (out / file).is_file(), file
    assert len(list(out.glob("embeddings/*/part-*.parquet"))) == len(list(out.glob("texts/part-*.parquet"))) == 7
    for name in STUDENTS:
        for file in (
            "modules.json",
            "space.json",
            "canaries.safetensors",
            "metrics.jsonl",
            "README.md",
            "manifest.json",
        ):
            assert (out / name / file).is_file(), f"{name}/{file}"
        assert (out / "speed" / f"{name}.json").is_file()
    assert not list(out.glob("checkpoints/**/resume.pt"))
    assert not (out / "checkpoints" / "cache").exists()


def test_the_students_have_learned_and_the_report_says_how_much(finished):
    _, out, report = finished
    assert json.loads((out / "report.json").read_text())["name"] == report["name"] == "tiny"
    for student in report["students"]:
        errors = held_out_errors(out / student["path"] / "metrics.jsonl")
        assert student["epsilon"] == pytest.approx(min(errors[1:]))
        assert student["epsilon"] < errors[0]
        scores, teacher = student["scores"]["beir"], report["teacher"]["scores"]["beir"]
        assert student["retention"]["asymmetric"] == pytest.approx(100 * scores["asymmetric"] / teacher)
    modes = {(each.encoder, each.mode) for each in read(out / "scores") if each.measure == "ndcg@10"}
    assert len(modes) == 6  # teacher, BM25, and two students in two modes


def test_plain_sentence_transformers_loads_a_student_and_gives_leafs_vectors(finished):
    _, out, _ = finished
    texts = sentences(20, seed=9)
    for name in STUDENTS:
        ours, plain = leaf.load(out / name), SentenceTransformer(str(out / name), device="cpu")
        np.testing.assert_allclose(ours.encode_query(texts), plain.encode_query(texts), atol=1e-5)
        np.testing.assert_allclose(ours.encode_document(texts), plain.encode_document(texts), atol=1e-5)


def test_every_student_lies_in_the_space_it_carries_and_another_teacher_does_not(finished, tmp_path):
    _, out, _ = finished
    for name in STUDENTS:
        space = Space.load(out / name)
        verdict = verify(leaf.load(out / name), space)
        assert verdict.in_space
        assert verdict.error == pytest.approx(verdict.expected, abs=1e-5)
        assert verdict.expected > 0
    stranger = save_teacher(tmp_path, seed=5)
    assert not verify(leaf.load(stranger), space).in_space


def test_a_finished_run_is_not_made_again(finished, monkeypatch):
    settings, out, _ = finished
    before = {
        path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name in ("manifest.json", "model.safetensors")
    }
    from leaf.teacher.model import SentenceTransformerEncoder

    monkeypatch.setattr(SentenceTransformerEncoder, "encode_document", lambda *_, **__: pytest.fail("encoded again"))
    leaf.distill(settings, out, device="cpu")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_settings_that_decide_nothing_are_no_inputs_so_runs_stay_valid_that_were_finished_before_there_were_any(
    finished,
):
    _, out, _ = finished
    texts, student = (read_manifest(out / name)["inputs"] for name in ("texts", "student-2l"))
    assert "guard_ratio" not in texts["prepare"]
    assert "held_out" in texts["prepare"]
    assert not {"start", "prompts"} & student["student"].keys()


def test_students_are_exported_and_the_report_and_cards_name_the_files(finished):
    settings, out, report = finished
    texts = sentences(20, seed=9)
    for name, student in zip(STUDENTS, report["students"], strict=True):
        manifest = json.loads((out / name / "onnx" / "manifest.json").read_text())
        assert student["onnx"] == manifest
        assert list(manifest["files"]) == ["fp32", "q8"]
        facts = [manifest[key] for key in ("num_texts", "texts", "calibration", "refused")]
        assert facts == [settings.prepare.held_out, "held-out", "texts", {}]
        assert manifest["student_error"] == pytest.approx(student["epsilon"], abs=1e-4)
        card = (out / name / "README.md").read_text()
        for each in manifest["files"].values():
            assert f"`onnx/{each['file']}`" in card
        plain = SentenceTransformer(str(out / name), device="cpu")
        onnx = OnnxEncoder(out / name)
        np.testing.assert_allclose(onnx.encode_query(texts), plain.encode_query(texts), atol=1e-5)
        assert Space.load(out / name).id == onnx.usage.space
    written = [(out / folder / "manifest.json").stat().st_mtime_ns for folder in ("scores", "student-table/onnx")]
    assert written == sorted(written)  # after evaluating


def test_the_files_that_are_served_are_scored_and_timed_as_query_encoders(finished):
    _, out, report = finished
    for student in report["students"]:
        assert list(student["exported"]) == ["fp32", "q8"]
        exact, quick = student["exported"].values()
        # Not equal: PyTorch was scored in bfloat16 where the hardware has it, and a query or two of these 50 differ.
        assert exact["retention"] == pytest.approx(
            [student["retention"]["asymmetric"], *student["intervals"]["asymmetric"]], abs=15
        )
        assert 0 < quick["retention"][1] <= quick["retention"][0] <= quick["retention"][2]
        assert exact["latency"]["p10_ms"] <= exact["latency"]["median_ms"] <= exact["latency"]["p90_ms"]
    assert "ONNX int8" in (out / "figures" / "ladder.svg").read_text()


def test_what_is_exported_may_change_in_a_finished_run(finished, tmp_path, monkeypatch):
    settings, out, _ = finished
    copy = shutil.copytree(out, tmp_path / "out")
    table = copy / "student-table"

    def export(*precisions):
        changed = settings.model_copy(update={"export": Export(precisions=precisions)})
        with Pipeline(changed, copy, device="cpu").open() as pipeline:
            return pipeline.export()

    monkeypatch.setattr("leaf.export.onnx.to_graph", lambda _: pytest.fail("traced again"))
    assert export("fp32", "q8")["student-table"]["files"].keys() == {"fp32", "q8"}
    assert export() == {}
    monkeypatch.undo()
    only_table = settings.model_copy(update={"students": settings.students[:1]})
    pipeline = Pipeline(only_table.model_copy(update={"export": Export(precisions=("fp32",))}), copy, device="cpu")
    assert list(pipeline.export()["student-table"]["files"]) == ["fp32"]
    assert sorted(path.name for path in (table / "onnx").iterdir()) == ["manifest.json", "model.onnx"]


def test_a_run_without_onnx_says_so_and_goes_on_to_the_report(finished, tmp_path, monkeypatch, capsys):
    settings, out, _ = finished
    copy = shutil.copytree(out, tmp_path / "out")
    for name in STUDENTS:
        shutil.rmtree(copy / name / "onnx")
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "onnx" else there(name, *more))
    capsys.readouterr()
    report = leaf.distill(settings, copy, device="cpu")
    assert "no ONNX files: pip install 'leaf[onnx]' and run `leaf export`" in " ".join(capsys.readouterr().err.split())
    assert [student["onnx"] for student in report["students"]] == [None, None]
    assert not (copy / STUDENTS[0] / "onnx").exists()
    leaf.distill(settings.model_copy(update={"export": Export(precisions=())}), copy, device="cpu")
    assert "no ONNX files" not in capsys.readouterr().err


def test_a_run_folder_of_another_recipe_is_refused(finished):
    settings, out, _ = finished
    other = settings.model_copy(update={"train": settings.train.model_copy(update={"lr": 1e-3})})
    with pytest.raises(LeafError, match=r"belongs to another recipe \(train\.lr was 0\.003, is now 0\.001\)"):
        leaf.distill(other, out, device="cpu")


def test_texts_that_changed_after_the_run_began_are_refused(tmp_path, teacher_folder):
    settings = recipe(tmp_path, teacher_folder)
    pipeline = Pipeline(settings, tmp_path / "out")
    pipeline.texts()
    (tmp_path / "queries.txt").write_text("something else\n")
    with pytest.raises(LeafError, match=r"out/texts was made from other inputs \(texts\[0\]\.files"):
        pipeline.texts()


def test_a_stage_whose_input_is_missing_names_the_command_that_makes_it(tmp_path, teacher_folder):
    pipeline = Pipeline(recipe(tmp_path, teacher_folder), tmp_path / "out", device="cpu")
    with pytest.raises(LeafError, match="run `leaf texts` with this recipe first"):
        pipeline.embed()
    pipeline.texts()
    with pytest.raises(LeafError, match="run `leaf embed` with this recipe first"):
        pipeline.train()
    with pytest.raises(LeafError, match="run `leaf train` with this recipe first"):
        pipeline.evaluate()


def test_a_truncated_text_shard_and_a_truncated_vector_part_are_one_line_each(tmp_path, teacher_folder):
    pipeline = Pipeline(recipe(tmp_path, teacher_folder), tmp_path / "out", device="cpu")
    pipeline.texts()
    shard = tmp_path / "out" / "texts" / "part-00001.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LeafError, match=r"part-00001\.parquet is damaged"):
        pipeline.embed()
    shard.write_bytes(whole)
    pipeline.embed()
    part = next((tmp_path / "out" / "embeddings").glob("*/part-00002.parquet"))
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(LeafError, match=r"part-00002\.parquet is missing or damaged .*delete it and run again"):
        pipeline.train()


def test_a_teacher_that_is_not_normalised_gives_students_that_are_not(tmp_path):
    teacher = save_teacher(tmp_path / "t", normalise=False)
    settings = recipe(tmp_path, teacher, evaluate={"data": [str(tmp_path / "beir")], "bm25": False})
    report = leaf.distill(settings, tmp_path / "out", device="cpu")
    for name in STUDENTS:
        modules = json.loads((tmp_path / "out" / name / "modules.json").read_text())
        assert not any(module["type"].endswith("Normalize") for module in modules)
        norms = np.linalg.norm(leaf.load(tmp_path / "out" / name).encode_document(sentences(20)), axis=1)
        assert np.ptp(norms) > 0.01
    assert report["baselines"]["bm25"] == {}


def weights(out) -> dict[str, torch.Tensor]:
    return {
        f"{file.relative_to(out)}:{name}": value
        for student in STUDENTS
        for file in sorted((out / student).rglob("*.safetensors"))
        for name, value in load_file(file).items()
    }


#: A file whose appearance says where the run is, and how long to wait then, in seconds.
MOMENTS = (
    ("embeddings/*/part-00004.parquet", 0.0),
    ("checkpoints/student-table/resume.pt", 0.05),
    ("checkpoints/student-2l/resume.pt", 0.0),
    ("checkpoints/student-2l/resume.pt", 0.3),
)


def test_a_run_killed_with_signal_9_again_and_again_ends_with_the_same_weights(finished, tmp_path):
    settings, uninterrupted, _ = finished
    (tmp_path / "r.toml").write_text(settings.to_toml())
    out = tmp_path / "out"
    command = [sys.executable, "-m", "leaf", "distill", str(tmp_path / "r.toml"), "--out", str(out), "--device", "cpu"]
    kills = 0
    for pattern, delay in MOMENTS:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if next(out.glob(pattern), None):
                time.sleep(delay)
                break
            time.sleep(0.005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    last = subprocess.run(command, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert kills >= 3  # a fast machine may finish before the last moments
    expected, found = weights(uninterrupted), weights(out)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def test_resume_points_of_other_inputs_are_refused(tmp_path, teacher_folder, monkeypatch):
    from leaf import pipeline as module

    settings = recipe(tmp_path, teacher_folder)
    pipeline = Pipeline(settings, tmp_path / "out", device="cpu")
    pipeline.texts()
    pipeline.embed()
    monkeypatch.setattr(module, "train", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pipeline.train()
    assert (tmp_path / "out" / "checkpoints" / "student-table" / "inputs.json").is_file()
    changed = settings.train.model_copy(update={"seed": 1})
    other = Pipeline(settings.model_copy(update={"train": changed}), tmp_path / "out", device="cpu")
    with pytest.raises(LeafError, match=r"holds resume points of other inputs \(train\.seed was 0, is now 1\)"):
        other.train()


def test_sigterm_saves_and_the_same_command_goes_on_to_the_same_weights(finished, tmp_path):
    settings, uninterrupted, _ = finished
    (tmp_path / "r.toml").write_text(settings.to_toml())
    out = tmp_path / "out"
    command = [sys.executable, "-m", "leaf", "distill", str(tmp_path / "r.toml"), "--out", str(out), "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (out / "checkpoints" / "student-2l" / "resume.pt").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert "stopped" in said.splitlines()[-1]
    assert "the same command goes on from here" in said.splitlines()[-1]
    assert not (out / "student-2l").exists()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    for name, value in weights(uninterrupted).items():
        assert torch.equal(value, weights(out)[name]), name


def test_two_processes_train_on_the_same_batches_as_one(finished, tmp_path):
    settings, alone, _ = finished
    # The one below waits for the one above, in either process.
    below = Student(name="student-1l", backbone="student-2l", layers=[1], train={"epochs_per_cycle": 1})
    settings = settings.model_copy(update={"students": (*settings.students, below)})
    (tmp_path / "r.toml").write_text(settings.to_toml())
    out = tmp_path / "out"
    pipeline = Pipeline(settings, out, device="cpu")
    with pipeline.open():
        pipeline.texts()
        pipeline.embed()
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())),
        *("-m", "leaf", "train", str(tmp_path / "r.toml"), "--out", str(out), "--device", "cpu", "--json"),
    ]
    finished_run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished_run.returncode == 0, finished_run.stderr[-2000:]
    manifests = json.loads(finished_run.stdout)  # one process talks
    for name in STUDENTS:
        one = json.loads((alone / name / "manifest.json").read_text())
        assert (manifests[name]["steps"], manifests[name]["epochs"]) == (one["steps"], one["epochs"])
        assert manifests[name]["error"] == pytest.approx(one["error"], rel=1e-3)
    assert manifests["student-1l"]["inputs"]["above"] == manifests["student-2l"]["fingerprint"]
    assert not list(out.glob("checkpoints/**/resume.pt"))


def test_a_student_below_another_begins_with_the_layers_that_one_has_learned(tmp_path, teacher_folder):
    settings = recipe(tmp_path, teacher_folder)
    two = settings.students[1]
    # A step so small that float32 does not see it: what it begins with is what it ends with.
    still = {"lr": 1e-30, "final_lr": 1e-30, "weight_decay": 0.0, "epochs_per_cycle": 1}
    one = Student(name="student-1l", backbone="student-2l", layers=[1], ridge_texts=50, train=still)
    out = tmp_path / "out"
    pipeline = Pipeline(settings.model_copy(update={"students": (two, one)}), out, device="cpu")
    with pipeline.open():
        pipeline.texts()
        pipeline.embed()
        pipeline.train()
    above, below = (load_file(out / name / "model.safetensors") for name in ("student-2l", "student-1l"))
    teacher = load_file(teacher_folder / "model.safetensors")
    name = next(each for each in below if "layer.0.attention.self.query.weight" in each)
    learned = above[name.replace("layer.0", "layer.1")]
    torch.testing.assert_close(below[name], learned)
    assert not torch.allclose(learned, teacher[name.replace("layer.0", "layer.3")])
    with pipeline.open():
        pipeline.evaluate()
        pipeline.report()
    card = (out / "student-1l" / "README.md").read_text()
    assert "| started from | student-2l, trained in the same run |" in card
    assert "base_model: student-2l" not in card


def test_a_profile_is_a_trace_of_the_steps_and_changes_no_weight(finished, tmp_path):
    settings, plain, _ = finished
    pipeline = Pipeline(settings, tmp_path / "out", device="cpu", profile=True)
    with pipeline.open():
        pipeline.texts()
        pipeline.embed()
        pipeline.train()
    with gzip.open(tmp_path / "out" / "profile" / "student-2l.json.gz", "rt") as file:
        names = [event.get("name", "") for event in json.load(file)["traceEvents"]]
    assert sum(name.startswith("ProfilerStep") for name in names) == 5
    assert any("mm" in name for name in names)
    for name, value in weights(plain).items():
        assert torch.equal(value, weights(tmp_path / "out")[name]), name


def test_a_tracker_that_is_not_installed_is_named_before_any_training(tmp_path, teacher_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    settings = recipe(tmp_path, teacher_folder)
    changed = settings.train.model_copy(update={"trackers": ("trackio",)})
    pipeline = Pipeline(settings.model_copy(update={"train": changed}), tmp_path / "out", device="cpu")
    with pytest.raises(LeafError, match=r"train\.trackers names 'trackio', which is not installed; pip install"):
        pipeline.train()


def test_a_batch_that_does_not_divide_among_processes_is_refused(tmp_path, teacher_folder):
    settings = recipe(tmp_path, teacher_folder)
    changed = settings.train.model_copy(update={"accumulation": 3})
    with pytest.raises(LeafError, match=r"batch_size 16 does not divide into 3 slices"):
        leaf.distill(settings.model_copy(update={"train": changed}), tmp_path / "out", device="cpu")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_run_may_end_with_an_index_of_its_documents_that_its_students_ask(tmp_path, teacher_folder, run):
    settings = recipe(tmp_path, teacher_folder, index={"precision": "float32"}, evaluate={})
    out = tmp_path / "out"
    with Pipeline(settings, out, device="cpu").open() as pipeline:
        for stage in (pipeline.texts, pipeline.embed, pipeline.train):
            stage()
        made = pipeline.index()
        assert made["documents"] == 250
        assert pipeline.index() == made  # complete: nothing is made again
    code, printed, _ = run("search", out / "index", "ba be", "-k", 5, "--json")
    found = json.loads(printed)
    assert (code, found["model"], found["documents"]) == (0, "student-2l", 250)
    # The vectors are those that the students were trained on, so the teacher finds each document by itself.
    [document] = found["answers"][0]["hits"][:1]
    code, printed, _ = run("search", out / "index", document["text"], "-k", 1, "--json", "--model", teacher_folder)
    known = json.loads(printed)["answers"][0]["hits"][0]
    teacher = leaf.load(teacher_folder, device="cpu")
    asked, answer = teacher.encode_query([document["text"]])[0], teacher.encode_document([known["text"]])[0]
    assert known["score"] == pytest.approx(
        float(asked @ answer / np.linalg.norm(asked) / np.linalg.norm(answer)), abs=2e-3
    )
    with Pipeline(recipe(tmp_path, teacher_folder, evaluate={}), out, device="cpu").open() as pipeline:
        assert pipeline.index() is None  # what is indexed may change, and nothing that was trained depends on it
