"""The added losses against their equations, computed text by text, head by head and token by token in numpy."""

import json
import math
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from scipy.spatial.distance import cosine
from scipy.special import softmax
from scipy.stats import entropy
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer

from leaf.errors import LeafError
from leaf.recipe import Recipe
from leaf.recipe import Student as Settings
from leaf.student.ablation import (
    AddedLoss,
    attention,
    distilbert_loss,
    divergence,
    hidden_loss,
    layer_map,
    look_inside,
    score_loss,
    value_relation,
)
from leaf.student.distributed import World
from leaf.student.loader import Loader
from leaf.student.metrics import held_out_curve
from leaf.student.model import build_student
from leaf.student.optimizer import Optimizer
from leaf.student.step import Step
from leaf.student.train import held_out_error, train
from leaf.teacher.model import load_sentence_transformer
from student.test_train import DIM, SETTINGS, Killed, examples
from tiny import save_bert, sentences

METHODS = ("leaf+minilm", "leaf+tinybert", "leaf+distilbert")
HEADS = 4  # of every tiny BERT
ROWS = np.array([3, 14, 15, 9, 26])


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A backbone half as wide as the teacher, with as many heads and the same tokenizer."""
    return save_bert(tmp_path_factory.mktemp("narrow"), width=16, seed=2)


@pytest.fixture(scope="module")
def teacher(teacher_folder) -> SentenceTransformer:
    return load_sentence_transformer(str(teacher_folder), None, "cpu")


def new_student(folder, layers=(0, 3), **settings):
    student = build_student(
        Settings(backbone=str(folder), layers=layers, **settings), str(folder), {}, DIM,
        normalise=True, max_length=None, similarity="cosine", seed=0,
    )  # fmt: skip
    student.use_packing(False)
    return student


def batch(student, rows=ROWS):
    features = student.collate(*examples(student, 40, 0).gather(rows))
    return features, features["attention_mask"].bool()


class Inside:
    """One text's internals by another road: the encoder's own attentions, and q, k, v cut out head by head."""

    def __init__(self, backbone, ids):
        backbone.set_attn_implementation("eager")  # the only one that hands its attentions out
        with torch.no_grad():
            output = backbone(input_ids=ids[None], output_hidden_states=True, output_attentions=True)
            self.states = [each[0].numpy() for each in output.hidden_states]
            self.attentions = [each[0].numpy() for each in output.attentions]
            self.projected = [
                {
                    name: (states @ getattr(layer.attention.self, name).weight.T).numpy()
                    + getattr(layer.attention.self, name).bias.detach().numpy()
                    for name in ("query", "key", "value")
                }
                for layer, states in zip(
                    backbone.encoder.layer, [each[0] for each in output.hidden_states], strict=False
                )
            ]
        backbone.set_attn_implementation("sdpa")
        self.num_layers, self.num_tokens = len(self.attentions), len(ids)

    def of_head(self, name, layer, head):
        states = self.projected[layer][name]
        width = states.shape[1] // HEADS
        return states[:, head * width : (head + 1) * width]


def by_hand_eq5(teacher, student, mapping):
    total = 0.0
    for head in range(HEADS):
        relations = []
        for each in (teacher, student):
            values = each.of_head("value", -1, head)
            relations.append(softmax(values @ values.T / math.sqrt(values.shape[1]), axis=1))
        total += sum(entropy(*rows) for rows in zip(*relations, strict=True))
    return total / HEADS / teacher.num_tokens


def by_hand_eq7(teacher, student, mapping):
    total = 0.0
    for head in range(HEADS):
        total += sum(
            entropy(one, other)
            for one, other in zip(teacher.attentions[-1][head], student.attentions[-1][head], strict=True)
        )
    return total / HEADS / teacher.num_tokens


def by_hand_eq9(teacher, student, mapping):
    total = 0.0
    for layer in range(1, student.num_layers + 1):
        above = teacher.num_layers // student.num_layers * layer
        for token in range(teacher.num_tokens):
            error = teacher.states[above][token] - mapping @ student.states[layer][token]
            total += (error**2).mean()
    return total / teacher.num_tokens / teacher.num_layers


def by_hand_eq10(teacher, student, mapping):
    total = 0.0
    for layer in range(1, student.num_layers + 1):
        above = teacher.num_layers // student.num_layers * layer
        for head in range(HEADS):
            one, other = (
                # K·Qᵀ, as printed
                each.of_head("key", index - 1, head) @ each.of_head("query", index - 1, head).T
                / math.sqrt(each.of_head("key", 0, head).shape[1])
                for each, index in ((teacher, above), (student, layer))
            )  # fmt: skip
            total += ((one - other) ** 2).mean()
    return total / HEADS / teacher.num_layers


def by_hand_eq12(teacher, student, mapping):
    pairs = zip(teacher.states[-1], student.states[-1] @ mapping.T, strict=True)
    return -np.mean([1 - cosine(one, other) for one, other in pairs])


BY_HAND = {
    "leaf+minilm": (by_hand_eq5, by_hand_eq7),
    "leaf+tinybert": (by_hand_eq9, by_hand_eq10),
    "leaf+distilbert": (by_hand_eq12,),
}
EQUATIONS = {
    by_hand_eq5: lambda t, s, mask, mapping: divergence(
        value_relation(t.values[-1], mask), value_relation(s.values[-1], mask), mask
    ),
    by_hand_eq7: lambda t, s, mask, mapping: divergence(
        attention(t.queries[-1], t.keys[-1], mask), attention(s.queries[-1], s.keys[-1], mask), mask
    ),
    by_hand_eq9: hidden_loss,
    by_hand_eq10: lambda t, s, mask, mapping: score_loss(t, s, mask),
    by_hand_eq12: distilbert_loss,
}


def by_hand(equation, teacher, student, mapping, features, mask):
    """The mean of an equation over the texts of a batch, each text by itself and without padding."""
    weight = mapping.weight.detach().numpy() if isinstance(mapping, torch.nn.Linear) else None
    return np.mean(
        [
            equation(Inside(teacher[0].auto_model, ids[real]), Inside(student.backbone, ids[real]), weight)
            for ids, real in zip(features["input_ids"], mask, strict=True)
        ]
    )


@pytest.mark.parametrize("equation", EQUATIONS, ids=lambda each: each.__name__.removeprefix("by_hand_"))
def test_an_equation_is_the_mean_over_texts_of_what_is_computed_by_hand(narrow, teacher, equation):
    student = new_student(narrow)
    features, mask = batch(student)
    assert len(set(mask.sum(dim=1).tolist())) > 2  # texts of several lengths, or padding would not be tested
    mapping = torch.nn.Linear(16, 32, bias=False)
    with torch.no_grad():
        inside = (look_inside(encoder, features) for encoder in (teacher[0].auto_model, student.backbone))
        found = EQUATIONS[equation](*inside, mask, mapping)
    assert found.item() == pytest.approx(by_hand(equation, teacher, student, mapping, features, mask), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_sums_its_equations_and_leaves_the_students_vectors_as_they_are(narrow, teacher, method):
    student = new_student(narrow)
    features, mask = batch(student)
    added = AddedLoss(method, student, teacher, seed=0)
    with torch.no_grad():
        vectors, loss = added(features, torch.float32)
        torch.testing.assert_close(vectors, student(features))
    expected = sum(by_hand(each, teacher, student, added.mapping, features, mask) for each in BY_HAND[method])
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_text_adds_the_same_alone_and_beside_a_longer_one(narrow, teacher, method):
    student = new_student(narrow)
    added = AddedLoss(method, student, teacher, seed=0)

    def loss_and_gradients(rows):
        student.zero_grad()
        _, loss = added(batch(student, rows)[0], torch.float32)
        loss.backward()
        return loss.item(), [each.grad.clone() for each in student.backbone.parameters() if each.grad is not None]

    one, two, both = (loss_and_gradients(rows) for rows in (ROWS[:1], ROWS[1:2], ROWS[:2]))
    lengths = examples(student, 40, 0).lengths[ROWS[:2]]
    assert lengths[0] != lengths[1]
    assert both[0] == pytest.approx((one[0] + two[0]) / 2, rel=1e-5)
    for first, second, mean in zip(one[1], two[1], both[1], strict=True):
        torch.testing.assert_close(mean, (first + second) / 2, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(("method", "least"), list(zip(METHODS, (0.0, 0.0, -1.0), strict=True)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_student_that_is_its_teacher_has_the_least_loss(teacher_folder, teacher, method, least, dtype):
    student = new_student(teacher_folder, layers=None)
    added = AddedLoss(method, student, teacher, seed=0)
    if method != "leaf+minilm":
        assert added.mapping.weight.shape == (32, 32)  # there, although the widths are equal
        torch.nn.init.eye_(added.mapping.weight)
    _, loss = added(batch(student)[0], dtype)
    assert loss.item() == pytest.approx(least, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_reaches_student_and_map_and_never_the_teacher(narrow, teacher, method):
    student = new_student(narrow)
    added = AddedLoss(method, student, teacher, seed=0)
    _, loss = added(batch(student)[0], torch.float32)
    loss.backward()
    first = student.backbone.encoder.layer[0].attention.self.query.weight
    for parameter in (first, student.backbone.get_input_embeddings().weight, *added.mapping.parameters()):
        assert parameter.grad.abs().sum() > 0
    assert student.head.weight.grad is None  # "none of the losses would entail a training signal for W^out" (App. B)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_layers_are_mapped_as_printed():
    assert layer_map(12, 6) == [2, 4, 6, 8, 10, 12]
    assert layer_map(12, 12) == list(range(1, 13))
    assert layer_map(12, 5) == [2, 4, 6, 8, 10]  # ⌊12/5⌋ = 2: the last two layers have no student


def test_the_map_follows_from_the_seed_and_belongs_to_no_student(narrow, teacher, tmp_path):
    student = new_student(narrow)
    before = student.num_parameters, torch.get_rng_state()
    one, same, other = (AddedLoss("leaf+distilbert", student, teacher, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before[1])
    assert torch.equal(one.mapping.weight, same.mapping.weight)
    assert not torch.equal(one.mapping.weight, other.mapping.weight)
    assert one.mapping.weight.abs().max() <= 1 / math.sqrt(16)  # U(−1/√d', 1/√d'), as torch starts a linear map
    assert one.mapping.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 16), rel=0.1)
    assert student.num_parameters == before[0]
    student.save(tmp_path)
    saved = [value.shape for file in tmp_path.rglob("*.safetensors") for value in load_file(file).values()]
    assert sum(shape.numel() for shape in saved) == before[0]
    assert not list(AddedLoss("leaf+minilm", student, teacher, 0).mapping.parameters())


def lookup_teacher(teacher):
    table = StaticEmbedding(teacher[0].tokenizer, embedding_dim=8)
    return SentenceTransformer(modules=[table], device="cpu")


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_compared_is_refused_with_the_reason(narrow, teacher, method):
    with pytest.raises(LeafError, match=rf"train\.loss = '{re.escape(method)}': the student is a lookup table"):
        AddedLoss(method, new_student(narrow, ()), teacher, 0)
    with pytest.raises(LeafError, match=r"the teacher is a StaticEmbedding and shows no token states"):
        AddedLoss(method, new_student(narrow), lookup_teacher(teacher), 0)
    with pytest.raises(LeafError, match=r"the teacher is a object and shows no token states"):
        AddedLoss(method, new_student(narrow), object(), 0)


def edited(folder, tmp_path, **changes):
    """A copy of a tiny BERT with random weights and some of its config changed."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    config = BertConfig.from_pretrained(str(folder))
    config.update(changes)
    BertModel(config).save_pretrained(str(tmp_path))
    AutoTokenizer.from_pretrained(str(folder)).save_pretrained(str(tmp_path))
    return tmp_path


def test_other_heads_are_refused_but_by_distilbert(narrow, teacher, tmp_path):
    student = new_student(edited(narrow, tmp_path, num_attention_heads=2))
    for method in METHODS[:2]:
        with pytest.raises(LeafError, match=r"the student has 2 attention heads and the teacher 4; take a backbone"):
            AddedLoss(method, student, teacher, 0)
    AddedLoss("leaf+distilbert", student, teacher, 0)


def test_tinybert_refuses_a_student_with_more_layers_than_the_teacher(narrow, teacher, tmp_path):
    student = new_student(edited(narrow, tmp_path, num_hidden_layers=5), layers=None)
    with pytest.raises(LeafError, match=r"the student has 5 layers and the teacher 4; keep fewer in student\.layers"):
        AddedLoss("leaf+tinybert", student, teacher, 0)
    AddedLoss("leaf+minilm", student, teacher, 0)


def test_a_student_that_reads_more_tokens_than_the_teacher_has_positions_is_refused(narrow, teacher, tmp_path):
    folder = edited(narrow, tmp_path, max_position_embeddings=64)
    (folder / "tokenizer_config.json").write_text(
        (folder / "tokenizer_config.json").read_text().replace('"model_max_length": 48', '"model_max_length": 64')
    )
    with pytest.raises(LeafError, match=r"reads 64 tokens, the teacher has 48 positions; set student\.max_length = 48"):
        AddedLoss("leaf+minilm", new_student(folder), teacher, 0)
    AddedLoss("leaf+minilm", new_student(folder, max_length=20), teacher, 0)  # another length alone does no harm


@pytest.mark.parametrize("change", ["case", "vocabulary"])
def test_tokenizers_that_differ_are_refused(narrow, teacher, tmp_path, change):
    folder = edited(narrow, tmp_path)
    path = folder / ("tokenizer_config.json" if change == "case" else "tokenizer.json")
    saved = json.loads(path.read_text())
    if change == "case":
        saved["do_lower_case"] = False
    else:
        vocabulary = saved["model"]["vocab"]
        vocabulary["bada"], vocabulary["dada"] = vocabulary["dada"], vocabulary["bada"]
    path.write_text(json.dumps(saved))
    with pytest.raises(LeafError, match=r"student and teacher cut texts into different tokens"):
        AddedLoss("leaf+distilbert", new_student(folder), teacher, 0)


def test_encoders_without_query_key_and_value_are_for_distilbert_alone(narrow, tmp_path):
    from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

    tokenizer = AutoTokenizer.from_pretrained(str(narrow))
    config = DistilBertConfig(
        vocab_size=len(tokenizer), dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=48
    )
    DistilBertModel(config).save_pretrained(str(tmp_path))
    tokenizer.save_pretrained(str(tmp_path))
    transformer = Transformer(str(tmp_path))
    teacher = SentenceTransformer(modules=[transformer, Pooling(32, "mean")], device="cpu")
    for method in METHODS[:2]:
        with pytest.raises(LeafError, match=r"linear maps called query, key and value; take BERT-like encoders"):
            AddedLoss(method, new_student(narrow), teacher, 0)
    student = new_student(narrow)
    _, loss = AddedLoss("leaf+distilbert", student, teacher, 0)(batch(student)[0], torch.float32)
    assert -1 < loss.item() < 1


@pytest.mark.parametrize("method", METHODS)
def test_slices_of_a_batch_have_the_gradients_of_the_whole(narrow, teacher, method):
    def gradients(slices):
        student = new_student(narrow)
        added = AddedLoss(method, student, teacher, 0)
        trained = [*student.parameters(), *added.mapping.parameters()]
        data = examples(student, 83, 0)
        loader = Loader(student, data, "cpu")
        step = Step(
            student,
            Optimizer(student, added.mapping.parameters(), SETTINGS, sparse=True),
            loader,
            SETTINGS.model_copy(update={"accumulation": slices}),
            torch.float32,
            "cpu",
            World(),
            added,
        )
        step.run([loader.batch(rows) for rows in np.split(np.arange(8), slices)], lr=0.0)
        return [each.grad for each in trained], step.read()

    (whole, expected), (sliced, found) = gradients(1), gradients(4)
    assert found.loss_sum == pytest.approx(expected.loss_sum, rel=1e-5)
    assert found.leaf_sum == pytest.approx(expected.leaf_sum, rel=1e-5)
    assert abs(expected.loss_sum - expected.leaf_sum) > 1e-3
    for one, other in zip(sliced, whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-3)


def run(folder, student, teacher, settings):
    added = AddedLoss(settings.loss, student, teacher, settings.seed)
    data, held_out = examples(student, 83, 0), examples(student, 40, 1)
    return train(student, data, held_out, settings, folder, device="cpu", added=added), added


@pytest.mark.parametrize("method", METHODS)
def test_training_with_an_added_loss_brings_down_the_held_out_error_of_eq_3(narrow, teacher, tmp_path, method):
    student = new_student(narrow)
    held_out = examples(student, 40, 1)
    before = held_out_error(student, held_out, "cpu")
    outcome, _ = run(tmp_path, student, teacher, SETTINGS.model_copy(update={"loss": method}))
    assert outcome.error < 0.9 * before
    assert outcome.error == pytest.approx(held_out_error(student, held_out, "cpu"), abs=1e-6)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    added = [line["loss"] - line["leaf_loss"] for line in lines if "loss" in line]
    assert len(added) == 40
    assert added[-1] < added[0]  # the added part is trained too
    assert all(0 < line["leaf_loss"] < 2 for line in lines if "loss" in line)


def test_a_killed_run_goes_on_with_its_map_and_its_curve(narrow, teacher, tmp_path, monkeypatch):
    settings = SETTINGS.model_copy(
        update={"loss": "leaf+tinybert", "cycles": 1, "dropout": 0.1, "evaluations": 3, "checkpoint_minutes": 1e-9}
    )
    whole = new_student(narrow)
    expected, map_of_whole = run(tmp_path / "whole", whole, teacher, settings)

    real, killed_after, count = Step.run, [0, 3, 11], 0

    def dies(*arguments):
        nonlocal count
        real(*arguments)
        count += 1
        if killed_after and count > killed_after[0]:
            killed_after.pop(0)
            count = 0
            raise Killed

    monkeypatch.setattr(Step, "run", dies)
    while True:
        student = new_student(narrow)
        try:
            outcome, mapping = run(tmp_path / "killed", student, teacher, settings)
        except Killed:
            continue
        break
    assert not killed_after
    for name, value in expected.last_weights.items():
        assert torch.equal(value, outcome.last_weights[name]), name
    assert torch.equal(map_of_whole.mapping.weight, mapping.mapping.weight)
    start = AddedLoss("leaf+tinybert", student, teacher, settings.seed).mapping.weight
    assert (mapping.mapping.weight - start).abs().max() > 1e-3
    curve = held_out_curve(tmp_path / "whole" / "metrics.jsonl")
    assert held_out_curve(tmp_path / "killed" / "metrics.jsonl") == curve
    assert [step for step, _ in curve] == [0, 3, 6, 10, 13, 16, 20]


def test_a_recipe_trains_students_with_added_losses_on_the_texts_it_names(teacher_folder, tmp_path):
    from leaf.pipeline import Pipeline

    (tmp_path / "queries.txt").write_text("\n".join(sentences(100, 0)))
    (tmp_path / "documents.txt").write_text("\n".join(sentences(90, 1)))
    recipe = Recipe.parse(
        {
            "name": "losses",
            "teacher": {"model": str(teacher_folder)},
            "students": [
                {"name": "student-minilm", "layers": [0, 3], "train": {"loss": "leaf+minilm", "limit": 48}},
                {"name": "student-queries", "layers": [0, 3], "train": {"kinds": ["query"], "evaluations": 2}},
            ],
            "texts": [
                {"source": str(tmp_path / "queries.txt"), "kind": "query"},
                {"source": str(tmp_path / "documents.txt"), "kind": "document"},
            ],
            "prepare": {"held_out": 30, "shard_rows": 64},
            "train": {"batch_size": 16, "cycles": 1, "epochs_per_cycle": 1, "lr": 3e-3},
        }
    )
    with Pipeline(recipe, tmp_path / "out", device="cpu").open() as pipeline:
        pipeline.texts()
        pipeline.embed()
        manifests = pipeline.train()
        lengths = {"student-minilm": 48, "student-queries": 0}
        for shard in pipeline.texts()["shards"]:
            kinds = pq.read_table(tmp_path / "out" / "texts" / shard["file"])["kind"].to_pylist()
            lengths["student-queries"] += kinds.count("query")
    assert {name: manifest["num_texts"] for name, manifest in manifests.items()} == lengths
    assert manifests["student-minilm"]["steps"] == 3
    curve = held_out_curve(tmp_path / "out" / "student-queries" / "metrics.jsonl")
    steps = lengths["student-queries"] // 16
    assert [step for step, _ in curve] == [0, steps // 2, steps]
