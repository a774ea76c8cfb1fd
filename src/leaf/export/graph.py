"""A Sentence Transformers model as one ONNX graph that is right in every runtime.

    token ids ─► Transformer ─► states ─┬─► head ─► last_hidden_state    [batch, seq, dim]
                                        └─► mean ─► head ─► norm ─► sentence_embedding  [batch, dim]

A linear head commutes with a mean. So a runtime that pools `last_hidden_state` by itself (Transformers.js, fastembed)
and one that reads `sentence_embedding` get the same vector, and none of them can lose the head. (A student of cls
pooling has its first token's state in both; to pool by the mean is then as wrong as it is in PyTorch.) The head is
applied twice: a runtime that asks for `sentence_embedding` alone then computes it for one row a text instead of one a
token. The lookup-table student is a gather and a mean with the same inputs and outputs; a network behind it does not
commute with the mean, so every state is then the vector of the text, which is their mean as well.
"""

import logging
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding, Transformer
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface, bidirectional_mask_function, eager_mask

from leaf.errors import LeafError

INPUTS = ("input_ids", "attention_mask")
OUTPUTS = ("last_hidden_state", "sentence_embedding")
#: LayerNormalization and Gelu are single nodes from here on; ONNX Runtime 1.17 (2024) and newer read it.
OPSET = 20
#: IR of the same age as the opset: older runtimes refuse a newer one, whatever is in it.
IR_VERSION = 9
#: Scores of padding are lowered by so much: e⁻¹⁰⁰⁰⁰ is zero, and float16 can hold it.
HIDDEN = 1e4
#: How the products of a table's network begin their names, for `quantize` to know them by.
NETWORK = "network"
#: What keeps a text without tokens at zero instead of 0/0.
TINY = 1e-9
#: Protobuf's limit on a file, and so on the weights of a graph that is one file.
MAX_BYTES = 2**31 - 2**20


def to_graph(model: SentenceTransformer) -> onnx.ModelProto:
    """The float32 graph of `model`: inputs `input_ids`, `attention_mask` int64 `[batch, seq]`, outputs as above.

    `model` is Transformer → Pooling(mean or cls) → Dense (linear, any number) → Normalize or not, or StaticEmbedding →
    Dense (linear or ReLU, any number) → Normalize or not. Raises `LeafError` for any other stack (a head that is not
    linear cannot be moved before pooling), for a backbone that torch cannot trace, and for weights of 2 GB, more than
    one ONNX file holds.
    """
    modules: list[Any] = list(model)
    size = 4 * sum(each.numel() for each in model.parameters())
    if size > MAX_BYTES:
        raise LeafError(f"cannot export {size / 1e9:.1f} GB of float32 weights: one ONNX file holds 2 GB at most")
    normalises = isinstance(modules[-1], Normalize)
    body = modules[:-1] if normalises else modules
    if isinstance(body[0], StaticEmbedding) and all(map(_is_layer, body[1:])):
        return _table_graph(body[0].embedding.weight.detach().float().numpy(), body[1:], normalises)
    heads = body[2:]
    fits = len(body) > 1 and isinstance(body[0], Transformer) and _is_poolable(body[1])
    if not fits or not all(isinstance(head, Dense) and _is_linear(head) for head in heads):
        stack = " → ".join(type(module).__name__ for module in modules)
        raise LeafError(
            f"cannot export {stack}: only a Transformer, mean or cls pooling, linear Dense modules and Normalize (or "
            "a StaticEmbedding, Dense modules that are linear or ReLU, and Normalize) become one graph"
        )
    return _transformer_graph(body[0].auto_model, body[1].pooling_mode, [head.linear for head in heads], normalises)


class _Graph(nn.Module):
    """What is traced: the backbone once, the head on token states and on pooled ones."""

    def __init__(self, backbone: Any, pooling: str, heads: list[nn.Linear], normalises: bool) -> None:
        super().__init__()
        self.backbone, self.heads = backbone, nn.Sequential(*heads)
        self.pooling, self.normalises = pooling, normalises

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        states = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "cls":
            pooled = states[:, :1]
        else:
            mask = attention_mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=TINY)
        # As one token more: the same kind of node as for the states, over the same weights.
        vectors = self.heads(pooled).squeeze(1)
        return self.heads(states), nn.functional.normalize(vectors, dim=-1) if self.normalises else vectors


def _transformer_graph(backbone: Any, pooling: str, heads: list[nn.Linear], normalises: bool) -> onnx.ModelProto:
    implementation = backbone.config._attn_implementation
    ids = torch.full((2, 7), 3)  # any token; two texts of unequal length, so that no axis is taken for a constant
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")}
    for library in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(library).setLevel(logging.ERROR)  # a line for every node that they look at
    try:
        # The fused attentions of torch become ONNX's Attention, which browsers and older runtimes do not know.
        backbone.set_attn_implementation("eager")
        AttentionMaskInterface.register("eager", _mask)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch's own making: names of axes, moved modules
            program = torch.onnx.export(
                _Graph(backbone, pooling, heads, normalises).eval(),
                (ids, mask),
                dynamo=True,
                input_names=INPUTS,
                output_names=OUTPUTS,
                dynamic_shapes=dict.fromkeys(INPUTS, axes),
                opset_version=OPSET,
                verbose=False,
            )
        assert program is not None
        with tempfile.TemporaryDirectory() as folder:  # a proto in memory has its weights twice
            program.save(str(Path(folder) / "graph.onnx"), external_data=False)
            graph = onnx.load(str(Path(folder) / "graph.onnx"))
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise LeafError(
            f"torch cannot trace a {type(backbone).__name__} ({reason}); choose another backbone"
        ) from error
    finally:
        AttentionMaskInterface.register("eager", eager_mask)
        backbone.set_attn_implementation(implementation)
    return finish(graph)


def _mask(*, mask_function: Any, attention_mask: Tensor, dtype: torch.dtype, **settings: Any) -> Tensor:
    """What is added to attention scores, `[batch, 1, 1, seq]` where only padding is hidden.

    Transformers' own has a row for every query and takes 40 nodes, a tenth of the time of a short text in 3 layers.
    """
    if mask_function is not bidirectional_mask_function:  # a sliding window
        return eager_mask(mask_function=mask_function, attention_mask=attention_mask, dtype=dtype, **settings)
    return (attention_mask[:, None, None, :].to(dtype) - 1) * HIDDEN


def _table_graph(table: NDArray[Any], network: list[Dense], normalises: bool) -> onnx.ModelProto:
    """Gather, masked mean, network and norm, in the float32 arithmetic of `StaticEmbedding`.

    A network does not commute with a mean: behind one, every token's state is the vector of the whole text.
    """
    dim = network[-1].out_features if network else table.shape[1]
    node = helper.make_node
    constants: dict[str, Any] = {
        "table": table,
        "last": [-1],
        "tokens": [1],
        "tiny": torch.tensor(TINY, dtype=torch.float32).numpy(),
    }
    rows = "rows" if network else "last_hidden_state"
    nodes = [
        node("Gather", ["table", "input_ids"], [rows]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "last"], ["mask_column"]),
        node("Mul", [rows, "mask_column"], ["kept"]),
        node("ReduceSum", ["kept", "tokens"], ["sum"], keepdims=0),
        node("ReduceSum", ["mask_column", "tokens"], ["count"], keepdims=0),
        node("Max", ["count", "tiny"], ["divisor"]),
        node("Div", ["sum", "divisor"], ["mean"]),
    ]
    vectors = "mean"
    for place, dense in enumerate(network):
        constants[f"weight_{place}"] = dense.linear.weight.detach().float().T.contiguous().numpy()
        nodes.append(
            node("MatMul", [vectors, f"weight_{place}"], [vectors := f"product_{place}"], f"{NETWORK}_{place}")
        )
        if dense.linear.bias is not None:
            constants[f"bias_{place}"] = dense.linear.bias.detach().float().numpy()
            nodes.append(node("Add", [vectors, f"bias_{place}"], [vectors := f"sum_{place}"]))
        if isinstance(dense.activation_function, nn.ReLU):
            nodes.append(node("Relu", [vectors], [vectors := f"units_{place}"]))
    if network:
        nodes += [
            node("Shape", ["input_ids"], ["texts"]),
            node("Concat", ["texts", "tokens"], ["shape"], axis=0),
            node("Unsqueeze", [vectors, "tokens"], ["state"]),
            node("Expand", ["state", "shape"], ["last_hidden_state"]),
        ]
    if normalises:
        nodes += [
            node("ReduceL2", [vectors, "last"], ["norm"], keepdims=1),
            node("Max", ["norm", "tiny"], ["length"]),
            node("Div", [vectors, "length"], ["sentence_embedding"]),
        ]
    else:
        nodes.append(node("Identity", [vectors], ["sentence_embedding"]))
    initializers = [numpy_helper.from_array(torch.as_tensor(value).numpy(), name) for name, value in constants.items()]
    integers = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"]) for name in INPUTS]
    floats = [
        helper.make_tensor_value_info(OUTPUTS[0], TensorProto.FLOAT, ["batch", "seq", dim]),
        helper.make_tensor_value_info(OUTPUTS[1], TensorProto.FLOAT, ["batch", dim]),
    ]
    graph = helper.make_graph(nodes, "lookup table", integers, floats, initializers)
    return finish(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)]))


def finish(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without what only the exporter needed, checked by ONNX's own checker."""
    _fold_transposes(graph.graph)
    _merge_equal(graph.graph)
    _join_products(graph.graph)
    # With shapes, ONNX Runtime fuses residual sums into SkipLayerNormalization, which on a CPU takes half as long again
    # as its parts.
    del graph.graph.value_info[:]
    for each in graph.graph.node:
        del each.metadata_props[:]  # the Python stack trace of every node
        each.doc_string = ""
    graph.ir_version = IR_VERSION
    graph.producer_name = "leaf"
    onnx.checker.check_model(graph)
    return graph


def _fold_transposes(graph: onnx.GraphProto) -> None:
    """Stores weights the way they are read: the exporter leaves some with a Transpose, unseen by quantisation."""
    weights = {each.name: each for each in graph.initializer}
    for node in [each for each in graph.node if each.op_type == "Transpose" and each.input[0] in weights]:
        value = numpy_helper.to_array(weights[node.input[0]])
        order = next((list(each.ints) for each in node.attribute if each.name == "perm"), None)
        turned = np.ascontiguousarray(np.transpose(value, order))
        graph.initializer.append(numpy_helper.from_array(turned, node.output[0]))
        graph.node.remove(node)
    _drop_unread(graph)


def _join_products(graph: onnx.GraphProto) -> None:
    """Makes the products of one activation (query, key and value) one product, whose result is split."""
    weights = {each.name: numpy_helper.to_array(each) for each in graph.initializer if len(each.dims) in (1, 2)}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    groups: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
        if node.op_type == "MatMul" and node.input[1] in weights and node.output[0] not in OUTPUTS:
            groups[node.input[0]].append(node)
    nodes = list(graph.node)
    for activation, group in groups.items():
        if len(group) < 2 or any(len(readers[node.input[1]]) > 1 for node in group):
            continue
        # The bias of each, where every one has one.
        sums = [readers[node.output[0]] for node in group]
        biased = all(len(each) == 1 and each[0].op_type == "Add" for each in sums)
        biases = [next((x for x in each[0].input if x in weights and weights[x].ndim == 1), None) for each in sums]
        widths_fit = [
            bias and weights[bias].shape == weights[node.input[1]].shape[1:]
            for bias, node in zip(biases, group, strict=True)
        ]
        biased = biased and all(widths_fit)
        ends = [each[0] for each in sums] if biased else group
        name = f"{group[0].name}_joined"
        joined = np.concatenate([weights[node.input[1]] for node in group], axis=1)
        constants = {f"{name}_weight": joined, f"{name}_widths": np.array([len(weights[n.input[1]].T) for n in group])}
        new = [helper.make_node("MatMul", [activation, f"{name}_weight"], [f"{name}_product"], name=name)]
        if biased:
            constants[f"{name}_bias"] = np.concatenate([weights[str(each)] for each in biases])
            new.append(
                helper.make_node("Add", [f"{name}_product", f"{name}_bias"], [f"{name}_sum"], name=f"{name}_add")
            )
        outputs = [end.output[0] for end in ends]
        widths = f"{name}_widths"
        new.append(helper.make_node("Split", [new[-1].output[0], widths], outputs, name=f"{name}_split", axis=-1))
        graph.initializer.extend(numpy_helper.from_array(value, key) for key, value in constants.items())
        place = nodes.index(group[0])
        gone = [*group, *(ends if biased else [])]
        nodes[place:place] = new
        nodes = [each for each in nodes if not any(each is old for old in gone)]
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unread(graph)


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Removes weights that no node reads any more."""
    read = {name for node in graph.node for name in node.input}
    kept = [each for each in graph.initializer if each.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _merge_equal(graph: onnx.GraphProto) -> None:
    """Stores a matrix once: of a small head, the exporter writes one for the states and one for the pooled ones."""
    names: dict[tuple[Any, ...], str] = {}
    for each in [each for each in graph.initializer if len(each.dims) == 2 and len(each.raw_data) < 1 << 20]:
        first = names.setdefault((each.data_type, *each.dims, each.raw_data), each.name)
        if first != each.name:
            for node in graph.node:
                node.input[:] = [first if name == each.name else name for name in node.input]
            graph.initializer.remove(each)


def _is_poolable(pooling: Any) -> bool:
    # Which tokens are the prompt's is nothing that a graph is told.
    return isinstance(pooling, Pooling) and pooling.pooling_mode in ("mean", "cls") and pooling.include_prompt


def _is_layer(module: Any) -> bool:
    """Whether it is a layer of a table's network: a linear map of the text's vector, with ReLU or without."""
    known = isinstance(module, Dense) and isinstance(module.activation_function, nn.ReLU | nn.Identity)
    return known and _is_plain(module)


def _is_linear(head: Dense) -> bool:
    return isinstance(head.activation_function, nn.Identity) and _is_plain(head)


def _is_plain(head: Dense) -> bool:
    names = head.module_input_name == head.module_output_name == OUTPUTS[1]
    return isinstance(head.linear, nn.Linear) and names and not head.use_residual
