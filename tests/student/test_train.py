import json

import numpy as np
import pytest
import torch

from leaf.errors import LeafError
from leaf.recipe import Student as Settings
from leaf.recipe import Train
from leaf.student.data import Examples
from leaf.student.loader import Loader
from leaf.student.metrics import held_out_curve, held_out_errors
from leaf.student.model import Student, build_student
from leaf.student.step import Engine, Step
from leaf.student.train import held_out_error, start_head, train
from tiny import sentences

DIM = 24
SETTINGS = Train(
    batch_size=8,
    cycles=2,
    epochs_per_cycle=2,
    lr=3e-3,
    final_lr=3e-4,
    length_window=2,
    compute_dtype="float32",
)


def new_student(folder, layers=(0, 3)) -> Student:
    student = build_student(
        Settings(backbone=str(folder), layers=layers), str(folder), {}, DIM,
        normalise=True, max_length=None, similarity="cosine", seed=0,
    )  # fmt: skip
    if student.is_table:
        start_head(student, examples(student, 1, 0), 0, "cpu")
    return student


def examples(student: Student, count: int, seed: int) -> Examples:
    """Targets are a fixed random projection of the words a text holds: something that can be learned."""
    ids = student.tokenizer(sentences(count, seed), "document").split()
    words = torch.randn(2000, DIM, generator=torch.Generator().manual_seed(0)).numpy()
    targets = np.stack([words[text].mean(axis=0) for text in ids])
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    return Examples(
        tokens=np.concatenate(ids).astype(np.uint16),
        offsets=np.concatenate([[0], np.cumsum([len(text) for text in ids])]),
        targets=targets.astype(np.float16),
    )


def run(folder, student, settings=SETTINGS, device="cpu", **arguments):
    return train(
        student,
        examples(student, 83, 0),
        examples(student, 40, 1),
        settings,
        folder,
        device=device,
        **arguments,
    )


@pytest.mark.parametrize("layers", [(0, 3), ()])
def test_training_brings_the_held_out_error_down_and_keeps_the_best_epoch(bert, tmp_path, layers):
    student = new_student(bert, layers)
    before = held_out_error(student, examples(student, 40, 1), "cpu")
    # A table moves only the rows of the words it has seen, so 40 steps must be larger ones.
    settings = SETTINGS if layers else SETTINGS.model_copy(update={"lr": 0.2})
    outcome = run(tmp_path, student, settings)
    assert outcome.error < 0.9 * before
    assert held_out_error(student, examples(student, 40, 1), "cpu") == pytest.approx(outcome.error, abs=1e-6)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "held_out_error" in line]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[0]["held_out_error"] == pytest.approx(before)
    assert outcome.error == min(line["held_out_error"] for line in lines[1:])
    assert (outcome.steps, outcome.epochs) == (40, 4)  # 83 texts make 10 batches of 8


def test_the_held_out_error_is_the_mean_distance_between_unit_vectors(bert):
    student = new_student(bert)
    held = examples(student, 40, 1)
    with torch.inference_mode():
        vectors = student(student.collate(*held.gather(np.arange(40)))).numpy()
    by_hand = np.sqrt(((vectors - held.targets.astype(np.float32)) ** 2).sum(axis=1)).mean()
    assert held_out_error(student, held, "cpu") == pytest.approx(by_hand, abs=1e-6)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("layers", [(0, 3), ()])
@pytest.mark.parametrize(
    "changes",
    [{}, {"dropout": 0.1}, {"row_lr": 0.01}, {"matrix_lr": 0.01}],
    ids=["plain", "dropout", "row_lr", "matrix_lr"],
)
def test_a_run_killed_anywhere_ends_with_the_very_weights_of_an_uninterrupted_one(
    bert, tmp_path, monkeypatch, layers, changes
):
    settings = SETTINGS.model_copy(update={"checkpoint_minutes": 1e-9, **changes})
    whole = new_student(bert, layers)
    expected = run(tmp_path / "whole", whole, settings)

    real, killed_at, count = Step.run, [0, 3, 9, 10, 25, 39], 0

    def dies(*arguments):
        nonlocal count
        real(*arguments)  # the optimizer has moved, the resume point has not been written
        count += 1
        if killed_at and count > killed_at[0]:
            killed_at.pop(0)
            count = 0
            raise Killed

    monkeypatch.setattr(Step, "run", dies)
    torch.manual_seed(123)  # nothing may depend on the global generator's state at the time of resuming
    for _ in range(len(killed_at) + 1):
        student = new_student(bert, layers)
        try:
            outcome = run(tmp_path / "killed", student, settings)
        except Killed:
            continue
        break
    assert not killed_at or count < killed_at[0]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, student.state_dict()[name]), name
        assert torch.equal(expected.last_weights[name], outcome.last_weights[name]), name
    assert (outcome.error, outcome.best_epoch) == (expected.error, expected.best_epoch)

    def metrics(folder):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        timed = ("seconds", "texts_per_second", "tokens_per_second", "padding")
        return [{key: value for key, value in line.items() if key not in timed} for line in lines]

    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


def test_a_finished_run_called_again_only_reports(bert, tmp_path, monkeypatch):
    first = run(tmp_path, new_student(bert))
    monkeypatch.setattr(Step, "run", lambda *_: pytest.fail("trained again"))
    again = run(tmp_path, new_student(bert))
    assert (again.error, again.last_error, again.steps) == (first.error, first.last_error, first.steps)


def test_a_loss_that_is_not_finite_stops_before_the_optimizer_moves(bert, tmp_path):
    student = new_student(bert)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    data = examples(student, 83, 0)
    data.targets[:] = np.inf
    with pytest.raises(LeafError, match=r"not finite \(loss (inf|nan).*training stopped before the optimizer moved"):
        train(student, data, examples(student, 40, 1), SETTINGS, tmp_path, device="cpu")
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_damaged_resume_point_is_one_clear_error(bert, tmp_path):
    run(tmp_path, new_student(bert))
    path = tmp_path / "resume.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(LeafError, match=r"resume\.pt is damaged; delete it"):
        run(tmp_path, new_student(bert))


def test_every_epoch_is_shown_to_the_caller(bert, tmp_path):
    seen = []
    run(tmp_path, new_student(bert), on_epoch=seen.append)
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_evaluations_within_an_epoch_show_the_student_of_that_step_and_change_nothing(
    bert, tmp_path, monkeypatch, dropout
):
    settings = SETTINGS.model_copy(update={"dropout": dropout, "evaluations": 4, "epochs_per_cycle": 1})
    plain = run(tmp_path / "plain", new_student(bert), settings.model_copy(update={"evaluations": 1}))
    student, held, real, by_hand = new_student(bert), examples(new_student(bert), 40, 1), Step.run, []

    def measured(step, *arguments):
        real(step, *arguments)
        was_training = student.training
        student.eval()
        by_hand.append(held_out_error(student, held, "cpu"))
        student.train(was_training)

    monkeypatch.setattr(Step, "run", measured)
    outcome = run(tmp_path / "often", student, settings)
    for name, value in plain.last_weights.items():
        assert torch.equal(value, outcome.last_weights[name]), name
    assert (outcome.error, outcome.best_epoch) == (plain.error, plain.best_epoch)
    curve = held_out_curve(tmp_path / "often" / "metrics.jsonl")
    assert [step for step, _ in curve] == [0, 2, 5, 7, 10, 12, 15, 17, 20]  # quarters of 10 steps, rounded down
    assert [error for _, error in curve[1:]] == [by_hand[step - 1] for step, _ in curve[1:]]
    errors = held_out_errors(tmp_path / "often" / "metrics.jsonl")
    assert errors == held_out_errors(tmp_path / "plain" / "metrics.jsonl")
    assert errors == [dict(curve)[step] for step in (0, 10, 20)]


def test_more_evaluations_than_steps_are_one_a_step(bert, tmp_path):
    settings = SETTINGS.model_copy(update={"evaluations": 99, "cycles": 1, "epochs_per_cycle": 1})
    run(tmp_path, new_student(bert), settings)
    assert [step for step, _ in held_out_curve(tmp_path / "metrics.jsonl")] == list(range(11))


def test_training_on_some_rows_reads_no_others(bert, tmp_path, monkeypatch):
    rows, real, seen = np.array([1, 4, *range(20, 60)]), Loader.batch, []
    monkeypatch.setattr(Loader, "batch", lambda loader, part: (seen.extend(part.tolist()), real(loader, part))[1])
    outcome = run(tmp_path, new_student(bert), rows=rows)
    assert outcome.steps == 4 * 5  # 42 texts make 5 batches of 8
    assert set(seen) == set(rows)


@pytest.mark.parametrize("layers", [(0, 3), ()])
def test_the_closed_form_head_starts_nearer_to_the_teacher_than_a_random_one(bert, layers):
    student = build_student(
        Settings(backbone=str(bert), layers=layers), str(bert), {}, DIM,
        normalise=True, max_length=None, similarity="cosine", seed=0,
    )  # fmt: skip
    data, held = examples(student, 400, 0), examples(student, 40, 1)
    head = start_head(student, data, 400, "cpu")
    random = held_out_error(new_student(bert, layers), held, "cpu")
    fitted = held_out_error(student, held, "cpu")
    assert fitted < 0.95 * random
    assert fitted == pytest.approx(head.error, abs=0.15)  # what the fit promised, on other texts


def test_the_closed_form_head_is_fitted_on_the_rows_that_are_trained_on(bert):
    student, twin = new_student(bert), new_student(bert)
    data, rows = examples(student, 400, 0), np.arange(100, 300)
    part = Examples(
        tokens=data.tokens[data.offsets[100] : data.offsets[300]],
        offsets=data.offsets[100:301] - data.offsets[100],
        targets=data.targets[100:300],
    )
    for num_texts in (150, 400):
        one = start_head(student, data, num_texts, "cpu", rows)
        other = start_head(twin, part, num_texts, "cpu")
        torch.testing.assert_close(one.weight, other.weight)


def test_bfloat16_reaches_nearly_the_error_of_float32(bert, tmp_path):
    exact = run(tmp_path / "32", new_student(bert)).error
    rounded = run(tmp_path / "16", new_student(bert), SETTINGS.model_copy(update={"compute_dtype": "bfloat16"})).error
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("layers", [(0, 3), ()])
@pytest.mark.parametrize("rates", [{}, {"row_lr": 0.01, "matrix_lr": 3e-3}])
@pytest.mark.parametrize("engine", [Engine(), Engine(compile=False), Engine(compile=False, graphs=False)])
def test_compiled_captured_and_eager_steps_reach_the_same_error(bert, tmp_path, layers, rates, engine):
    settings = SETTINGS.model_copy(update={"compute_dtype": "bfloat16", "batch_size": 16, **rates})
    on_cpu = run(tmp_path / "cpu", new_student(bert, layers), settings).error
    on_gpu = run(tmp_path / "gpu", new_student(bert, layers), settings, device="cuda", engine=engine).error
    assert on_gpu == pytest.approx(on_cpu, rel=0.02)


@pytest.mark.gpu
def test_a_resumed_deterministic_run_on_a_gpu_is_exact(bert, tmp_path, monkeypatch):
    settings = SETTINGS.model_copy(update={"compute_dtype": "bfloat16", "checkpoint_minutes": 1e-9})
    options = {"device": "cuda", "engine": Engine(deterministic=True)}
    whole = run(tmp_path / "whole", new_student(bert), settings, **options)
    real, calls = Step.run, []

    def dies(*arguments):
        real(*arguments)
        calls.append(1)
        if len(calls) == 15:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Step, "run", dies)
        with pytest.raises(Killed):
            run(tmp_path / "killed", new_student(bert), settings, **options)
    resumed = run(tmp_path / "killed", new_student(bert), settings, **options)
    for name, value in whole.last_weights.items():
        assert torch.equal(value, resumed.last_weights[name]), name


@pytest.mark.gpu
@pytest.mark.parametrize("layers", [(0, 3), ()])
def test_a_gpu_reaches_the_error_of_the_cpu(bert, tmp_path, layers):
    on_cpu = run(tmp_path / "cpu", new_student(bert, layers)).error
    on_gpu = run(tmp_path / "gpu", new_student(bert, layers), device="cuda").error
    assert on_gpu == pytest.approx(on_cpu, rel=0.02)
