"""Quantised graphs against the float32 one, on a BERT with channels as far out as those of real ones."""

import copy
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from leaf.export import quantize
from leaf.export.graph import to_graph
from tiny import SYLLABLES, WORDS, save_bert

WIDTH, DIM = 64, 24
VOCABULARY = 5 + 2 * len(SYLLABLES) + len(WORDS)
#: A channel of a LayerNorm and a neuron of a feed-forward layer, and how far they stand out.
CHANNEL, NEURON, FAR = 5, 11, 30.0
#: Weights in the matrix products of two layers: query, key, value and output, and two of the feed-forward layer.
PRODUCTS = 2 * (4 * WIDTH * WIDTH + 2 * WIDTH * 2 * WIDTH)


@pytest.fixture(scope="session")
def graph(tmp_path_factory):
    """Float32 graph of two BERT layers, mean pooling, a head and Normalize, outliers planted in both layers."""
    first = Transformer(str(save_bert(tmp_path_factory.mktemp("bert"), layers=2, width=WIDTH)))
    with torch.no_grad():
        for layer in first.auto_model.encoder.layer:
            layer.attention.output.LayerNorm.weight[CHANNEL] *= FAR
            layer.intermediate.dense.weight[NEURON] *= FAR
    torch.manual_seed(1)
    head = Dense(WIDTH, DIM, activation_function=torch.nn.Identity())
    return to_graph(SentenceTransformer(modules=[first, Pooling(WIDTH, "mean"), head, Normalize()], device="cpu"))


def texts(count, seed):
    generator = np.random.default_rng(seed)
    return [generator.integers(5, VOCABULARY, length) for length in generator.integers(3, 30, count)]


def feeds(count=24, seed=0):
    return [{"input_ids": ids[None], "attention_mask": np.ones_like(ids[None])} for ids in texts(count, seed)]


def session(graph):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def vectors(graph, *, padded, count=16):
    """Vectors of texts that no calibration has seen, alone or in one padded batch."""
    running, rows = session(graph), texts(count, seed=9)
    if not padded:
        feeds = [{"input_ids": ids[None], "attention_mask": np.ones_like(ids[None])} for ids in rows]
        return np.concatenate([running.run(["sentence_embedding"], feed)[0] for feed in feeds])
    ids = np.zeros((count, max(map(len, rows))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, each in enumerate(rows):
        ids[row, : len(each)], mask[row, : len(each)] = each, 1
    return running.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})[0]


def distance(graph, other):
    return float(np.linalg.norm(vectors(graph, padded=False) - vectors(other, padded=False), axis=1).mean())


def initializers(graph):
    return {each.name: numpy_helper.to_array(each) for each in graph.graph.initializer}


def size(graph):
    return len(graph.SerializeToString())


@pytest.fixture(scope="session")
def q8(graph):
    return quantize.to_q8(graph, feeds())


def plain(monkeypatch):
    """Static rounding and nothing else: no channel is treated apart."""
    treatments = quantize._treatments
    monkeypatch.setattr(quantize, "_treatments", lambda *arguments, **settings: treatments(*arguments, **settings)[:1])


def test_q8_treats_outliers_and_so_lies_closer_than_plain_static_rounding(graph, q8, monkeypatch):
    operators = Counter(each.op_type for each in q8.graph.node)
    assert any(each.name.endswith("_apart") for each in q8.graph.node)  # the neuron: its product is wide
    assert any(each.name.endswith("_scaled") for each in q8.graph.node)  # the channel: its product is narrow
    plain(monkeypatch)
    rounded = quantize.to_q8(graph, feeds())
    assert not any(each.name.endswith(("_apart", "_scaled")) for each in rounded.graph.node)
    assert operators["QuantizeLinear"] == Counter(each.op_type for each in rounded.graph.node)["QuantizeLinear"]
    assert distance(q8, graph) < 0.5 * distance(rounded, graph)
    assert distance(q8, graph) < 0.05


def test_vectors_of_q8_do_not_depend_on_the_batch(q8):
    alone, padded = vectors(q8, padded=False), vectors(q8, padded=True)
    assert np.einsum("nd,nd->n", alone, padded).min() > 0.9999


def test_usual_dynamic_int8_does_depend_on_the_batch(graph, tmp_path):
    """Else the test above would show nothing: the same texts, ONNX Runtime's own dynamic quantisation."""
    from onnxruntime.quantization import quantize_dynamic

    onnx.save(graph, str(tmp_path / "in.onnx"))
    quantize_dynamic(str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"))
    dynamic = onnx.load(str(tmp_path / "out.onnx"))
    assert np.einsum("nd,nd->n", vectors(dynamic, padded=False), vectors(dynamic, padded=True)).min() < 0.9999


def test_q8_stores_int8_and_leaves_the_head_and_small_tables_alone(graph, q8):
    before, after = initializers(graph), initializers(q8)
    matrices = {name: value for name, value in after.items() if value.ndim == 2 and min(value.shape) > 2}
    head = [name for name, value in before.items() if value.shape == (WIDTH, DIM)]
    positions = [name for name, value in before.items() if value.shape == (48, WIDTH)]
    assert len(head) == len(positions) == 1
    for name in (*head, *positions):
        np.testing.assert_array_equal(after[name], before[name])
    # All products of both layers and the token table; float rows of split channels are small.
    integers = [value for value in matrices.values() if value.dtype == np.int8]
    assert sum(value.size for value in integers) == VOCABULARY * WIDTH + PRODUCTS
    assert {name for name, value in matrices.items() if value.dtype == np.float32} <= {*head, *positions, *small(after)}
    assert size(q8) < 0.4 * size(graph)


def small(arrays):
    """Float rows of channels that are split off."""
    return [name for name, value in arrays.items() if name.endswith("_rows") and len(value) <= max(quantize.SPLITS)]


def test_channels_that_are_split_off_keep_their_exact_weights(graph, q8):
    before, after = initializers(graph), initializers(q8)
    apart = [each for each in q8.graph.node if each.name.endswith("_apart")]
    gathers = {each.output[0]: each for each in q8.graph.node}
    originals = {
        each.output[0]: before[each.input[1]]
        for each in graph.graph.node
        if each.op_type == "MatMul" and each.input[1] in before
    }
    for node in apart:
        channels = after[gathers[node.input[0]].input[1]]
        assert NEURON in channels
        weight = originals[node.output[0].removesuffix("_apart")]
        np.testing.assert_array_equal(after[node.input[1]], weight[channels])


def test_portable_weights_use_seven_bits(graph):
    portable = quantize.to_q8(graph, feeds(), portable=True)
    read = {each.input[0] for each in portable.graph.node if each.op_type == "DequantizeLinear"}
    weights = [value for name, value in initializers(portable).items() if name in read and value.dtype == np.int8]
    assert sum(weight.size for weight in weights) == PRODUCTS
    # max, because the largest of a column is rounded to the end of the range exactly
    assert {int(np.abs(weight.astype(int)).max()) for weight in weights} == {63}
    assert distance(portable, graph) < 0.08


def test_four_bits_and_half_precision_stay_close_and_load(graph):
    four = quantize.to_q4(graph)
    half, both = quantize.to_fp16(graph), quantize.to_fp16(four)
    assert distance(half, graph) < 0.01
    # 15 steps between a block's extremes: random weights, which no training has evened out
    assert 0.001 < distance(four, graph) < 0.5
    assert distance(both, four) < 0.01
    assert size(both) < size(four) < size(half) < size(graph)
    for each in (half, four, both):
        for output in session(each).get_outputs():
            assert output.type == "tensor(float)"


def test_no_graph_is_changed_and_every_result_is_in_order(graph, q8):
    before = graph.SerializeToString(deterministic=True)
    results = [quantize.to_fp16(graph), quantize.to_q4(graph), quantize.to_q8(graph, feeds())]
    assert graph.SerializeToString(deterministic=True) == before
    # ONNX Runtime sorts nodes by itself. Others do not, nor do they take a name that is given twice.
    for result in (*results, quantize.to_fp16(results[1])):
        onnx.checker.check_model(result)
        names = [each.name for each in result.graph.initializer]
        assert len(set(names)) == len(names)
    assert results[2].SerializeToString(deterministic=True) == q8.SerializeToString(deterministic=True)


def product_graph(weight, *, table=None, ids_twice=False):
    """`x @ weight`, and rows of a table where there is one."""
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["sentence_embedding"], name="product")]
    constants = [numpy_helper.from_array(np.asarray(weight, dtype=np.float32), "weight")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", len(weight)])]
    outputs = [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["m", len(weight[0])])]
    if table is not None:
        constants.append(numpy_helper.from_array(table, "table"))
        inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]))
        for position in range(1 + ids_twice):
            nodes.append(helper.make_node("Gather", ["table", "ids"], [f"rows{position}"]))
            outputs.append(helper.make_tensor_value_info(f"rows{position}", TensorProto.FLOAT, None))
    return helper.make_model(
        helper.make_graph(nodes, "product", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )


def test_a_product_worked_by_hand(monkeypatch):
    """Activations in [-2, 1]: a step of 3 / 255, zero at step 2 · 85 = 170. Weights: 1 and 0.5 are 127 steps."""
    graph = product_graph([[1.0, -0.25], [0.1, 0.5]])
    plain(monkeypatch)
    rows = np.array([[-2.0, 1.0], [1.0, 0.5]], dtype=np.float32)
    q8 = quantize.to_q8(graph, [{"x": rows}])
    found = initializers(q8)
    # 0.1 · 127 = 12.7 → 13 and −0.25 / 0.5 · 127 = −63.5 → −64, to even
    np.testing.assert_array_equal(found["weight_quantised"], [[127, -64], [13, 127]])
    np.testing.assert_allclose(found["weight_scale"], [1 / 127, 0.5 / 127], rtol=1e-6)
    assert (found["x_scale"], found["x_zero"]) == (pytest.approx(3 / 255), 170)
    # −2 and 1 are 170 and 85 steps; 0.5 is 42.5, rounded to 42
    steps = np.array([[-170, 85], [85, 42]]) * 3 / 255
    expected = steps @ np.array([[1, -64 / 127 / 2], [13 / 127, 0.5]])
    np.testing.assert_allclose(session(q8).run(None, {"x": rows})[0], expected, atol=1e-5)


def test_products_of_one_activation_share_one_rounding_whatever_their_widths():
    generator = np.random.default_rng(0)
    graph = product_graph(generator.normal(size=(8, 16)))
    other = generator.normal(size=(8, 3)).astype(np.float32)
    graph.graph.node.append(helper.make_node("MatMul", ["x", "other"], ["narrow"], name="narrow"))
    graph.graph.initializer.append(numpy_helper.from_array(other, "other"))
    graph.graph.output.append(helper.make_tensor_value_info("narrow", TensorProto.FLOAT, ["n", 3]))
    rows = generator.normal(size=(50, 8)).astype(np.float32)
    q8 = quantize.to_q8(graph, [{"x": rows}])
    assert Counter(each.op_type for each in q8.graph.node)["QuantizeLinear"] == 1
    for found, exact in zip(session(q8).run(None, {"x": rows}), session(graph).run(None, {"x": rows}), strict=True):
        np.testing.assert_allclose(found, exact, atol=0.1)


def test_a_table_read_twice_or_by_columns_or_with_whole_numbers_stays_as_it_is():
    table = np.random.default_rng(0).normal(size=(2000, 2)).astype(np.float32)
    rows, ids = np.ones((1, 2), dtype=np.float32), np.array([1999])
    feed = {"x": rows, "ids": ids}
    twice = product_graph(np.eye(2), table=table, ids_twice=True)
    whole = product_graph(np.eye(2), table=np.arange(4000).reshape(2000, 2))
    whole.graph.output[1].type.tensor_type.elem_type = TensorProto.INT64
    columns = product_graph(np.eye(2), table=table)
    columns.graph.node[1].attribute.append(helper.make_attribute("axis", 1))
    for graph in (twice, whole, columns):
        feed["ids"] = np.array([1]) if graph is columns else ids
        q8 = quantize.to_q8(graph, [feed])
        np.testing.assert_array_equal(session(q8).run(None, feed)[1], session(graph).run(None, feed)[1])
    once = quantize.to_q8(product_graph(np.eye(2), table=table), [{**feed, "ids": ids}])
    # The largest of a row is 127 steps: half a step is the most that rounding moves the other.
    found = session(once).run(None, {"x": rows, "ids": np.arange(2000)})[1]
    assert found.shape == table.shape
    error = np.abs(found - table)
    assert (error <= np.abs(table).max(axis=1, keepdims=True) / 127 / 2 + 1e-7).all()
    assert error.max() > 0


def test_widths_that_are_no_multiple_of_a_block_can_be_stored_in_four_bits():
    generator = np.random.default_rng(0)
    graph = product_graph(generator.normal(size=(40, 24)), table=generator.normal(size=(50, 24)).astype(np.float32))
    feed = {"x": generator.normal(size=(3, 40)).astype(np.float32), "ids": np.arange(50)}
    for found, exact in zip(
        session(quantize.to_q4(graph)).run(None, feed), session(graph).run(None, feed), strict=True
    ):
        assert np.linalg.norm(found - exact) < 0.15 * np.linalg.norm(exact)


def test_root_logging_is_left_alone(graph):
    import logging

    before = (logging.root.level, copy.copy(logging.root.handlers))
    quantize.to_q4(graph)
    assert (logging.root.level, logging.root.handlers) == before
