"""Graphs against Sentence Transformers, row by row, on random ids in a padded batch of unequal texts."""

import sysconfig
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Router,
    StaticEmbedding,
    Transformer,
)
from tokenizers import Tokenizer

from leaf.errors import LeafError
from leaf.export import graph as module
from leaf.export.graph import to_graph
from tiny import SYLLABLES, WORDS, save_tokenizer

WIDTH, DIM = 32, 24
VOCABULARY = 5 + 2 * len(SYLLABLES) + len(WORDS)
# One layer: tracing takes a second for each.
SHARED = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4}
SIZES = {"intermediate_size": 64, "max_position_embeddings": 66, "initializer_range": 0.2}
#: Backbones at random, initialised so widely that texts differ.
BACKBONES = {
    "bert": transformers.BertConfig(**SHARED, **SIZES),
    # Positions are counted from the id after the padding's, and skip padding wherever its id stands.
    "roberta": transformers.XLMRobertaConfig(**SHARED, **SIZES, pad_token_id=1),
    "mpnet": transformers.MPNetConfig(**SHARED, **SIZES, pad_token_id=1),
    "distilbert": transformers.DistilBertConfig(
        vocab_size=VOCABULARY, dim=WIDTH, n_layers=1, n_heads=4, hidden_dim=64, initializer_range=0.2
    ),
    # The first layer sees everything, the second 4 tokens to each side.
    "modernbert": transformers.ModernBertConfig(
        **{**SHARED, "num_hidden_layers": 2},
        **SIZES,
        local_attention=8,
        global_attn_every_n_layers=2,
        **dict.fromkeys(("bos_token_id", "cls_token_id"), 2),
        **dict.fromkeys(("eos_token_id", "sep_token_id"), 3),
        pad_token_id=0,
    ),
    "nomic": transformers.NomicBertConfig(**SHARED, **SIZES),
    # One layer's weights for both: the same product, twice.
    "albert": transformers.AlbertConfig(**{**SHARED, "num_hidden_layers": 2}, **SIZES, embedding_size=16),
}


def save_backbone(folder: Path, name: str) -> Path:
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(folder)
    transformers.AutoModel.from_config(BACKBONES[name]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def transformer(tmp_path_factory):
    """A `Transformer` module of a backbone, read once."""
    known = {}

    def read(name="bert"):
        if name not in known:
            known[name] = Transformer(str(save_backbone(tmp_path_factory.mktemp(name), name)))
        return known[name]

    return read


def dense(inputs, outputs, *, bias=True, seed=0, activation=None, **settings):
    torch.manual_seed(seed)
    return Dense(inputs, outputs, bias=bias, activation_function=activation or torch.nn.Identity(), **settings)


def model_of(first, *heads, pooling="mean", normalise=True):
    modules = [first, Pooling(WIDTH, pooling), *heads, *([Normalize()] if normalise else [])]
    return SentenceTransformer(modules=modules, device="cpu")


def table_of(folder, dim=DIM, normalise=True, rows=400):
    save_tokenizer(folder)
    weight = torch.randn(rows, dim, generator=torch.Generator().manual_seed(3))
    first = StaticEmbedding(Tokenizer.from_file(str(folder / "tokenizer.json")), embedding_weights=weight)
    return SentenceTransformer(modules=[first, *([Normalize()] if normalise else [])], device="cpu")


def batch(lengths=(9, 3, 1, 14), pad=0, seed=0):
    """Ids int64 `[batch, seq]` and their mask, padded on the right."""
    generator = np.random.default_rng(seed)
    ids = np.full((len(lengths), max(lengths)), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = generator.integers(5, 400, length)
        mask[row, :length] = 1
    return ids, mask


def run(graph, ids, mask):
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["last_hidden_state", "sentence_embedding"], {"input_ids": ids, "attention_mask": mask})


def reference(model, ids, mask):
    """What Sentence Transformers makes of the ids: states before pooling, and vectors."""
    features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
    with torch.no_grad():
        answer = model.eval()(features)
    return answer["token_embeddings"].numpy(), answer["sentence_embedding"].numpy()


def pool(states, mask, normalise):
    """What a runtime does that pools by itself."""
    mean = (states * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True) if normalise else mean


def assert_same(model, graph, ids, mask, *, normalise=True, mean=True, atol=2e-5):
    states, vectors = run(graph, ids, mask)
    _, expected = reference(model, ids, mask)
    assert states.dtype == vectors.dtype == np.float32
    assert states.shape == (*ids.shape, vectors.shape[1])
    assert np.ptp(expected, axis=0).min() > 1e-3  # texts differ in every dimension, or agreeing would mean little
    np.testing.assert_allclose(vectors, expected, atol=atol)
    if mean:
        np.testing.assert_allclose(pool(states, mask, normalise), expected, atol=atol)
    # Alone, without padding.
    for row, length in enumerate(mask.sum(axis=1)):
        alone = run(graph, ids[row : row + 1, :length], mask[row : row + 1, :length])[1][0]
        np.testing.assert_allclose(alone, expected[row], atol=atol)


@pytest.fixture(scope="session")
def exported(transformer):
    """A model over a BERT with one head, its vectors before it was exported, and its graph."""
    model = model_of(transformer(), dense(WIDTH, DIM))
    model[0].auto_model.set_attn_implementation("sdpa")
    before = reference(model, *batch())[1]
    return model, before, to_graph(model)


def test_both_outputs_are_sentence_transformers_own(exported):
    model, before, graph = exported
    assert_same(model, graph, *batch((9, 3, 1, 30)))
    assert model[0].auto_model.config._attn_implementation == "sdpa"
    np.testing.assert_array_equal(reference(model, *batch())[1], before)  # and the model is as it was


def test_query_key_and_value_are_one_product_and_the_head_is_stored_once(exported):
    """One layer of width 32: 96 columns at once, then 32 of the output, 64 and 32 of the feed-forward layer."""
    graph = exported[2].graph
    shapes = {each.name: tuple(each.dims) for each in graph.initializer if len(each.dims) == 2}
    products = [node.input[1] for node in graph.node if node.op_type == "MatMul" and node.input[1] in shapes]
    joined, head = [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 64), (64, WIDTH)], [(WIDTH, DIM)] * 2
    assert [shapes[name] for name in products] == joined + head
    assert products[-1] == products[-2]


@pytest.mark.parametrize(
    "name",
    [
        "roberta",
        "modernbert",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("mpnet", "distilbert", "nomic", "albert")),
    ],
)
def test_other_backbones(transformer, name):
    model = model_of(transformer(name), dense(WIDTH, DIM))
    assert_same(model, to_graph(model), *batch((9, 3, 1, 30), pad=BACKBONES[name].pad_token_id or 0))


def test_a_window_narrower_than_the_text_makes_a_difference(tmp_path):
    """Else the ModernBERT above would pass without its sliding windows."""
    folder = save_backbone(tmp_path / "modernbert", "modernbert")
    narrow, wide = (Transformer(str(folder), config_kwargs={"local_attention": width}) for width in (8, 64))
    ids, mask = batch((30, 30))
    assert np.abs(reference(model_of(narrow), ids, mask)[1] - reference(model_of(wide), ids, mask)[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("pooling", "normalise", "shapes"),
    [
        pytest.param("cls", False, [(WIDTH, DIM)], marks=pytest.mark.slow),
        pytest.param("mean", True, [], marks=pytest.mark.slow),
        ("mean", False, [(WIDTH, 48), (48, DIM)]),
    ],
    ids=["cls, not normalised", "no head", "two heads, not normalised"],
)
def test_stacks(transformer, pooling, normalise, shapes):
    # One head without bias, the second with.
    heads = [dense(*shape, bias=bool(position), seed=position) for position, shape in enumerate(shapes)]
    model = model_of(transformer(), *heads, pooling=pooling, normalise=normalise)
    graph = to_graph(model)
    ids, mask = batch()
    assert_same(model, graph, ids, mask, normalise=normalise, mean=pooling == "mean")
    states = reference(model, ids, mask)[0].astype(np.float64)
    for head in heads:
        bias = 0 if head.linear.bias is None else head.linear.bias.detach().numpy()
        states = states @ head.linear.weight.detach().numpy().T + bias
    np.testing.assert_allclose(run(graph, ids, mask)[0], states, atol=2e-5)


@pytest.mark.parametrize("normalise", [True, False])
def test_a_lookup_table(tmp_path, normalise):
    model = table_of(tmp_path, normalise=normalise)
    ids, mask = batch()
    states, vectors = run(to_graph(model), ids, mask)
    table = model[0].embedding.weight.detach().numpy()
    np.testing.assert_array_equal(states, table[ids])
    texts = [ids[row, :length] for row, length in enumerate(mask.sum(axis=1))]
    flat = {
        "input_ids": torch.from_numpy(np.concatenate(texts)),
        "offsets": torch.tensor([0, *np.cumsum([len(text) for text in texts])[:-1]]),
    }
    with torch.no_grad():
        expected = model(flat)["sentence_embedding"].numpy()
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    np.testing.assert_allclose(pool(states, mask, normalise), expected, atol=1e-6)


@pytest.mark.parametrize("normalise", [True, False])
def test_a_text_without_tokens_is_zero_in_a_table_as_in_sentence_transformers(tmp_path, normalise):
    model = table_of(tmp_path, normalise=normalise)
    expected = model.encode(["", "ba be"])
    ids = np.array([[0, 0], model[0].tokenizer.encode("ba be", add_special_tokens=False).ids])
    vectors = run(to_graph(model), ids, np.array([[0, 0], [1, 1]]))[1]
    np.testing.assert_array_equal(expected[0], 0)
    np.testing.assert_array_equal(vectors[0], 0)
    np.testing.assert_allclose(vectors[1], expected[1], atol=1e-6)
    nothing = np.empty((1, 0), dtype=np.int64)
    np.testing.assert_array_equal(run(to_graph(model), nothing, nothing)[1], np.zeros((1, DIM)))


def test_a_table_in_half_precision_gives_a_float32_graph(tmp_path):
    graph = to_graph(table_of(tmp_path).half())
    assert {each.data_type for each in graph.graph.initializer if len(each.dims) == 2} == {onnx.TensorProto.FLOAT}


def test_texts_with_prompts_are_answered_as_the_model_does(exported):
    """The ids of a prompted text, from the tokenizer's own Python API."""
    model, _, graph = exported
    texts = ["dido bame", "ba", "kale kile doma"]
    tokens = model[0].tokenizer(["ba be: " + text for text in texts], padding=True, return_tensors="np")
    vectors = run(graph, tokens["input_ids"], tokens["attention_mask"])[1]
    np.testing.assert_allclose(vectors, model.encode(texts, prompt="ba be: "), atol=2e-5)
    assert np.abs(vectors - model.encode(texts)).max() > 0.01


def test_the_file_says_what_it_is_and_nothing_about_where_it_was_made(exported, tmp_path):
    for graph in (exported[2], to_graph(table_of(tmp_path))):
        assert [(each.domain, each.version) for each in graph.opset_import if each.domain == ""] == [("", 20)]
        assert {each.domain for each in graph.graph.node} == {""}
        assert (graph.ir_version, graph.producer_name) == (9, "leaf")
        assert [each.name for each in graph.graph.input] == ["input_ids", "attention_mask"]
        assert [each.name for each in graph.graph.output] == ["last_hidden_state", "sentence_embedding"]
        shapes = [
            [axis.dim_param or axis.dim_value for axis in each.type.tensor_type.shape.dim]
            for each in (*graph.graph.input, *graph.graph.output)
        ]
        assert shapes == [["batch", "seq"], ["batch", "seq"], ["batch", "seq", DIM], ["batch", DIM]]
        content = graph.SerializeToString()
        for place in (sysconfig.get_path("purelib"), str(Path.home()), str(Path(module.__file__).parent), "Traceback"):
            assert place.encode() not in content
        assert not any(each.doc_string or each.metadata_props for each in graph.graph.node)
        # No fused attention, and no weight behind a Transpose where quantisation would not find it.
        weights = {each.name for each in graph.graph.initializer}
        assert "Attention" not in {each.op_type for each in graph.graph.node}
        assert not any(each.op_type == "Transpose" and each.input[0] in weights for each in graph.graph.node)
        onnx.checker.check_model(graph, full_check=True)


def test_what_torch_cannot_trace_is_one_line_and_leaves_the_model_as_it_was(transformer, monkeypatch):
    model = model_of(transformer())
    backbone = model[0].auto_model
    backbone.set_attn_implementation("sdpa")

    def fail(*_, **__):
        raise torch.onnx.OnnxExporterError("Failed to export\nand a page more") from ValueError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(LeafError, match=r"torch cannot trace a BertModel \(no such operator\)"):
        to_graph(model)
    assert backbone.config._attn_implementation == "sdpa"


def test_more_weights_than_one_file_holds_are_refused_before_tracing(transformer, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 10_000)
    with pytest.raises(LeafError, match="one ONNX file holds 2 GB at most"):
        to_graph(model_of(transformer()))


def test_other_stacks_are_refused_by_their_modules(transformer, tmp_path):
    first = transformer()
    table = table_of(tmp_path)[0]
    no_prompt = Pooling(WIDTH, "mean", include_prompt=False)
    stacks = {
        "Transformer → Pooling → Dense → Normalize": [
            model_of(first, dense(WIDTH, DIM, activation=torch.nn.Tanh())),
            model_of(first, dense(WIDTH, DIM, use_residual=True)),
        ],
        "Transformer → Pooling": [
            model_of(first, pooling="max", normalise=False),
            SentenceTransformer(modules=[first, no_prompt], device="cpu"),
        ],
        "Transformer → Normalize": [SentenceTransformer(modules=[first, Normalize()], device="cpu")],
        "StaticEmbedding → Dense": [
            SentenceTransformer(modules=[table, dense(DIM, 8, activation=torch.nn.Tanh())], device="cpu")
        ],
        "Router": [
            SentenceTransformer(
                modules=[Router.for_query_document(query_modules=[table], document_modules=[table])], device="cpu"
            )
        ],
    }
    for stack, models in stacks.items():
        for model in models:
            with pytest.raises(LeafError, match=f"cannot export {stack}: only a Transformer"):
                to_graph(model)
