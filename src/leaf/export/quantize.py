"""Smaller graphs from the float32 one: fp16, q8, q4, q4f16, each still answering in the teacher's space.

**q8** computes its matrix products in int8 with *fixed* activation ranges, measured beforehand on real texts. The usual
dynamic int8 takes its ranges from whatever batch comes along, so that a text's vector depends on its neighbours. Fixed
ranges fail on a few channels that are far larger than the rest: one channel of a BERT's feed-forward layer reaches 37
where the others stay below 7, and would take most of the 256 steps for itself. So where it pays, measured on the same
texts, those channels are

- *scaled*: divided by a factor that the weights are multiplied with (Xiao et al., SmoothQuant, arXiv 2211.10438), or
- *split off* and computed in float32 beside the rest (after Dettmers et al., LLM.int8(), arXiv 2208.07339), where the
  input is wider than the output and scaling it would cost more.

The token table is stored as int8 rows. The head and a table's network, whose error nothing later averages out, stay in
float32.

**q4** and **q4f16** store weights as 4-bit blocks and compute on them in float32 or float16: the smallest files.
"""

import copy
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from leaf.export.graph import NETWORK

Floats = NDArray[np.float32]
#: One batch of inputs: `input_ids` and `attention_mask`, int64 `[batch, seq]`.
Feed = Mapping[str, NDArray[np.int64]]

#: Tokens a calibration keeps of every activation, to compare ways of rounding on.
NUM_SAMPLES = 1024
#: Channels split off, and channels scaled (as shares of all) with the exponents they are scaled by: what is tried.
SPLITS = (1, 2, 4, 8)
SCALED = (0.1, 0.5, 1.0)
EXPONENTS = (0.75, 1.0)
#: A treatment costs time at every query, so the error has to fall below this share of what it was.
WORTH_IT = 0.75
#: Weights per 4-bit scale, as in the files that Transformers.js users know.
BLOCK = 32


def to_fp16(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and arithmetic in float16, inputs and outputs as before."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    converted: onnx.ModelProto = convert_float_to_float16(copy.deepcopy(graph), keep_io_types=True)
    OnnxModel(converted).topological_sort(is_deterministic=True)  # some casts were put at the end
    return converted


def to_q4(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and token table as 4-bit blocks of 32, each with a float32 scale and a zero point.

    The head and a table's network stay in float32.

    Activations stay float32, and nothing is measured beforehand: letting later rows of a weight make up for the
    rounding of earlier ones (GPTQ) halved the error of single products and left that of the vectors as it was.
    """
    handlers, level = logging.root.handlers[:], logging.root.level
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.root.handlers[:], logging.root.level = handlers, level  # which importing it has changed for everybody
    logging.getLogger(MatMulNBitsQuantizer.__module__).setLevel(logging.ERROR)  # a line a node
    graph = copy.deepcopy(graph)
    heads = [product.node.name for product in _products(graph) if product.exact]
    editor = _Editor(graph)
    editor.pack_tables()
    editor.finish()
    blocks = MatMulNBitsQuantizer(
        graph, block_size=BLOCK, is_symmetric=False, op_types_to_quantize=("MatMul",), nodes_to_exclude=heads
    )
    with np.errstate(all="ignore"):  # it divides by the scale of blocks of zeros, and sets that right afterwards
        blocks.process()
    quantised: onnx.ModelProto = blocks.model.model
    return quantised


def to_q8(graph: onnx.ModelProto, feeds: Iterable[Feed], *, portable: bool = False) -> onnx.ModelProto:
    """Weights int8, matrix products in int8 with ranges measured on `feeds`, which must have no padding.

    `portable` uses seven bits of each weight: x86 CPUs without VNNI add products in pairs of 16 bits, which eight bits
    overflow without a word.
    """
    graph = copy.deepcopy(graph)
    editor = _Editor(graph, largest=63 if portable else 127)
    once = [each for each in _products(graph) if not each.exact]
    activations = _observe(graph, sorted({each.activation for each in once}), feeds)
    groups = defaultdict(list)
    for product in once:
        groups[product.activation].append(product)
    for name, group in groups.items():
        editor.quantise(name, group, activations[name])
    editor.quantise_tables()
    editor.finish()
    return graph


@dataclass(frozen=True)
class _Product:
    """A matrix product with a constant right-hand side."""

    node: onnx.NodeProto
    weight: Floats
    """`[in, out]`."""
    exact: bool
    """Whether it stays in float32: the head, whose weight two products read, and the network of a table."""

    @property
    def activation(self) -> str:
        return str(self.node.input[0])


def _products(graph: onnx.ModelProto) -> list[_Product]:
    weights = {each.name: each for each in graph.graph.initializer if len(each.dims) == 2}
    nodes = [node for node in graph.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    uses = Counter(node.input[1] for node in nodes)
    return [
        _Product(
            node,
            numpy_helper.to_array(weights[node.input[1]]),
            exact=uses[node.input[1]] > 1 or node.name.startswith(NETWORK),
        )
        for node in nodes
    ]


@dataclass(frozen=True)
class _Activation:
    """What the calibration saw of one tensor."""

    low: Floats
    """The least value of every channel, `[in]`."""
    high: Floats
    samples: Floats
    """Rows of it, `[samples, in]`."""

    @cached_property
    def reach(self) -> Floats:
        """The largest magnitude of every channel, `[in]`."""
        return np.maximum(np.maximum(np.abs(self.low), np.abs(self.high)), 1e-6)


def _observe(graph: onnx.ModelProto, names: Sequence[str], feeds: Iterable[Feed]) -> dict[str, _Activation]:
    """Runs the graph on `feeds` and looks at the tensors `names`."""
    if not names:
        return {}
    watched = copy.deepcopy(graph)
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    feeds = list(feeds)
    per_feed = max(1, NUM_SAMPLES // len(feeds))
    low: dict[str, Floats] = {}
    high: dict[str, Floats] = {}
    samples: dict[str, list[Floats]] = defaultdict(list)
    for feed in feeds:
        for name, value in zip(names, session.run(list(names), dict(feed)), strict=True):
            rows = value.reshape(-1, value.shape[-1])
            low[name] = np.minimum(low.get(name, np.inf), rows.min(axis=0))
            high[name] = np.maximum(high.get(name, -np.inf), rows.max(axis=0))
            samples[name].append(generator.permutation(rows)[:per_feed])
    return {name: _Activation(low[name], high[name], np.concatenate(samples[name])) for name in names}


@dataclass(frozen=True)
class _Treatment:
    """What is done about channels that are larger than the rest."""

    factor: Floats
    """Activations are divided by it and weights multiplied, `[in]`."""
    split: NDArray[np.int64]
    """Channels computed apart, in float32."""

    @property
    def scales(self) -> bool:
        return bool((self.factor != 1).any())


def _treatments(activation: _Activation, wide: bool) -> list[_Treatment]:
    """What is tried, the cheapest first."""
    reach = activation.reach
    ones, none = np.ones_like(reach), np.empty(0, dtype=np.int64)
    order = np.argsort(-reach)
    if wide:
        splits = [order[:count] for count in SPLITS if count < len(reach)]
        return [_Treatment(ones, none), *(_Treatment(ones, np.sort(split)) for split in splits)]
    thresholds = [reach[order[min(int(share * len(reach)), len(reach) - 1)]] for share in SCALED]
    factors = [np.maximum(reach / threshold, 1) ** power for threshold in thresholds for power in EXPONENTS]
    return [_Treatment(ones, none), *(_Treatment(factor.astype(np.float32), none) for factor in factors)]


class _Editor:
    """Rewrites a graph in place, in the standard QuantizeLinear and DequantizeLinear that every runtime fuses."""

    def __init__(self, graph: onnx.ModelProto, largest: int = 127) -> None:
        self.graph, self.largest = graph.graph, largest
        # Held, because new nodes are filed under the identity of old ones, and protobuf makes a new object for a node
        # as soon as nobody holds the last one.
        self.nodes = list(self.graph.node)
        self.before: dict[int, list[onnx.NodeProto]] = defaultdict(list)
        self.after: dict[int, list[onnx.NodeProto]] = defaultdict(list)

    def quantise(self, name: str, products: Sequence[_Product], activation: _Activation) -> None:
        """Makes the products of one activation integer ones, with the treatment that is worth its cost."""
        weight = np.concatenate([product.weight for product in products], axis=1)
        plain, *others = _treatments(activation, wide=weight.shape[0] > weight.shape[1])
        exact = activation.samples @ weight
        chosen, error = plain, self._error(activation, weight, exact, plain)
        for treatment in others:
            found = self._error(activation, weight, exact, treatment)
            if found < WORTH_IT * error or (chosen is not plain and found < error):
                chosen, error = treatment, found
        self._rewrite(name, products, activation, chosen)

    def _error(self, activation: _Activation, weight: Floats, exact: Floats, treatment: _Treatment) -> float:
        """Relative error of the product over the samples."""
        low, high = self._range(activation, treatment)
        step = (high - low) / 255
        rows, kept = activation.samples / treatment.factor, self._kept(weight, treatment)
        rounded = np.clip(np.round(rows / step), np.round(low / step), np.round(high / step)) * step
        integer, scale = self._round(kept)
        found = rounded @ (integer * scale)
        found += activation.samples[:, treatment.split] @ weight[treatment.split]
        return float(np.linalg.norm(found - exact) / max(float(np.linalg.norm(exact)), 1e-12))

    @staticmethod
    def _range(activation: _Activation, treatment: _Treatment) -> tuple[float, float]:
        low, high = activation.low / treatment.factor, activation.high / treatment.factor
        low, high = np.delete(low, treatment.split), np.delete(high, treatment.split)
        return min(float(low.min()), -1e-6), max(float(high.max()), 1e-6)  # zero must be a step of its own

    @staticmethod
    def _kept(weight: Floats, treatment: _Treatment) -> Floats:
        """The weight that is rounded: rows of channels that are split off are zero, so what saturates there is lost."""
        kept = weight * treatment.factor[:, None]
        kept[treatment.split] = 0
        return kept

    def _round(self, weight: Floats) -> tuple[NDArray[np.int8], Floats]:
        """Integers and the scale of every column, `[out]`."""
        scale = (np.maximum(np.abs(weight).max(axis=0), 1e-8) / self.largest).astype(np.float32)
        return np.round(weight / scale).astype(np.int8), scale

    def _rewrite(self, name: str, products: Sequence[_Product], activation: _Activation, treatment: _Treatment) -> None:
        first = products[0].node
        low, high = self._range(activation, treatment)
        scale = self._constant(f"{name}_scale", np.float32((high - low) / 255))
        zero = self._constant(f"{name}_zero", np.uint8(np.round(-low * 255 / (high - low))))
        source = name
        if treatment.scales:
            inverse = self._constant(f"{name}_inverse", (1 / treatment.factor).astype(np.float32))
            source = self._add(self.before[id(first)], "Mul", [name, inverse], f"{name}_scaled")
        integer = self._add(self.before[id(first)], "QuantizeLinear", [source, scale, zero], f"{name}_quantised")
        rounded = self._add(self.before[id(first)], "DequantizeLinear", [integer, scale, zero], f"{name}_rounded")
        for product in products:
            if treatment.split.size:
                self._compute_apart(product, treatment.split)
            self._store_weight(product, self._kept(product.weight, treatment))
            product.node.input[0] = rounded

    def _compute_apart(self, product: _Product, split: NDArray[np.int64]) -> None:
        """Adds the product of a few channels, in float32, to the node's own."""
        node = product.node
        channels = self._constant(f"{node.output[0]}_channels", split)
        rows = self._constant(f"{node.output[0]}_rows", product.weight[split])
        whole, part = node.output[0], f"{node.output[0]}_integer"
        node.output[0] = part
        after = self.after[id(node)]
        few = self._add(after, "Gather", [node.input[0], channels], f"{whole}_few", axis=-1)
        apart = self._add(after, "MatMul", [few, rows], f"{whole}_apart")
        self._add(after, "Add", [part, apart], whole)

    def _store_weight(self, product: _Product, weight: Floats) -> None:
        """Stores the product's weight as integers and a scale for each column."""
        node, name = product.node, product.node.input[1]
        integer, scale = self._round(weight)
        inputs = [
            self._constant(f"{name}_quantised", integer),
            self._constant(f"{name}_scale", scale),
            self._constant(f"{name}_zero", np.zeros(len(scale), dtype=np.int8)),
        ]
        node.input[1] = self._add(self.before[id(node)], "DequantizeLinear", inputs, f"{name}_rounded", axis=1)

    def quantise_tables(self) -> None:
        """Stores tables that rows are gathered from as integers and a scale for each row."""
        for node, table in self._tables():
            name, ids, rows = node.input[0], node.input[1], node.output[0]
            scale = (np.maximum(np.abs(table).max(axis=1, keepdims=True), 1e-8) / 127).astype(np.float32)
            node.input[0] = self._constant(f"{name}_quantised", np.round(table / scale).astype(np.int8))
            node.output[0] = f"{rows}_quantised"
            after = self.after[id(node)]
            steps = self._add(after, "Gather", [self._constant(f"{name}_scale", scale), ids], f"{rows}_scale")
            cast = self._add(after, "Cast", [node.output[0]], f"{rows}_cast", to=TensorProto.FLOAT)
            self._add(after, "Mul", [cast, steps], rows)

    def pack_tables(self) -> None:
        """Stores tables that rows are gathered from as 4-bit codes, with a scale and a zero point for each block.

        GatherBlockQuantized would be one node, but the WebAssembly build that browsers load has not got it.
        """
        for node, table in self._tables():
            name, ids, rows = node.input[0], node.input[1], node.output[0]
            codes, scale, zero = _four_bits(table)
            # The first half of a row lies in the low halves of its bytes, the second in the high ones.
            half = -(-table.shape[1] // 2)
            codes = np.pad(codes, [(0, 0), (0, 2 * half - table.shape[1])])
            node.input[0] = self._constant(f"{name}_packed", codes[:, :half] | codes[:, half:] << 4)
            node.output[0] = f"{rows}_packed"
            after = self.after[id(node)]

            def then(op: str, inputs: Sequence[str | NDArray[Any]], last: str = "", **attributes: Any) -> str:
                output = last or f"{rows}_step{len(after)}"  # noqa: B023  called in this round only
                names = [
                    each if isinstance(each, str) else self._constant(f"{output}_input{place}", each)
                    for place, each in enumerate(inputs)
                ]
                return self._add(after, op, names, output, **attributes)  # noqa: B023

            low = then("BitwiseAnd", [node.output[0], np.array(15, np.uint8)])
            high = then("BitShift", [node.output[0], np.array(4, np.uint8)], direction="RIGHT")
            both = then("Concat", [low, high], axis=-1)
            whole = then("Slice", [both, np.array([0]), np.array([table.shape[1]]), np.array([-1])])
            cast = then("Cast", [whole], to=TensorProto.FLOAT)
            blocks = then("Reshape", [cast, np.array([0, 0, *scale.shape[1:2], -1])])
            zeros = then("Cast", [then("Gather", [zero, ids])], to=TensorProto.FLOAT)
            moved = then("Sub", [blocks, zeros])
            scaled = then("Mul", [moved, then("Gather", [scale, ids])])
            then("Reshape", [scaled, np.array([0, 0, -1])], last=rows)

    def _tables(self) -> Iterator[tuple[onnx.NodeProto, Floats]]:
        """Nodes that gather rows, `[batch, seq, width]`, of a large table that nothing else reads, and the table."""
        floats = [each for each in self.graph.initializer if each.data_type == TensorProto.FLOAT]
        # A small table is not worth the nodes.
        tables = {each.name: each for each in floats if len(each.dims) == 2 and each.dims[0] >= 1024}
        read = Counter(name for node in self.nodes for name in node.input)
        for node in self.nodes:
            takes_columns = any(each.name == "axis" and each.i for each in node.attribute)
            if node.op_type == "Gather" and node.input[0] in tables and not takes_columns and read[node.input[0]] == 1:
                yield node, numpy_helper.to_array(tables[node.input[0]])

    def finish(self) -> None:
        """Puts the new nodes in their places and drops the weights that nobody reads any more."""
        nodes = [each for node in self.nodes for each in (*self.before[id(node)], node, *self.after[id(node)])]
        read = {name for node in nodes for name in node.input}
        kept = [each for each in self.graph.initializer if each.name in read]
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(kept)

    def _constant(self, name: str, value: object) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    @staticmethod
    def _add(nodes: list[onnx.NodeProto], op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output


def _four_bits(table: Floats) -> tuple[NDArray[np.uint8], Floats, NDArray[np.uint8]]:
    """Codes `[rows, width]`, and a scale and a zero point for each block of a row, `[rows, blocks, 1]`."""
    rows, width = table.shape
    block = next(size for size in range(BLOCK, 0, -1) if width % size == 0)
    blocks = table.reshape(rows, -1, block)
    # Zero is a step, as in the blocks of the weights.
    low, high = np.minimum(blocks.min(axis=2, keepdims=True), 0), np.maximum(blocks.max(axis=2, keepdims=True), 0)
    scale = np.maximum((high - low) / 15, 1e-8).astype(np.float32)
    zero = np.round(-low / scale)
    codes = np.clip(np.round(blocks / scale) + zero, 0, 15).astype(np.uint8)
    return codes.reshape(rows, width), scale, zero.astype(np.uint8)
