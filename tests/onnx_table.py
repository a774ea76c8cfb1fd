"""An exported student that can be checked by hand: a lookup table as ONNX, with the metadata of `leaf export`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tiny import SYLLABLES, WORDS

DIM = 24
PAD, UNK, CLS, SEP = 0, 1, 2, 3
#: Ids of whole words, counted by hand in tiny's vocabulary: five special tokens, syllables, then "##" syllables.
WORD_IDS = {word: 5 + 2 * len(SYLLABLES) + index for index, word in enumerate(WORDS)}
TABLE = np.random.default_rng(7).normal(size=(5 + 2 * len(SYLLABLES) + len(WORDS), DIM)).astype(np.float32)

USAGE: dict[str, Any] = {
    "format": 1,
    "name": "table",
    "precision": "fp32",
    "dim": DIM,
    "normalised": True,
    "similarity": "cosine",
    "prompts": {"query": "ba be ", "document": ""},
    "max_length": 12,
    "add_special_tokens": True,
    "split_special_tokens": False,
    "pad_token_id": PAD,
    "space": None,
}


def ids_of(words: str) -> list[int]:
    """Ids of words of tiny's vocabulary, with special tokens; "ba" and "be" are syllables."""
    syllables = {syllable: 5 + index for index, syllable in enumerate(SYLLABLES)}
    return [CLS, *(({**syllables, **WORD_IDS}).get(word, UNK) for word in words.split()), SEP]


def mean_of(ids: list[int], *, normalised: bool = True) -> np.ndarray:
    """What the student answers for these ids: the mean of their rows, in float64, with length 1 if `normalised`."""
    mean = TABLE[ids].astype(np.float64).mean(axis=0)
    return mean / np.linalg.norm(mean) if normalised else mean


def save_graph(path: Path, usage: dict[str, Any] | str | None = USAGE, *, normalised: bool = True) -> Path:
    """Saves the table as a graph: Gather, masked mean and, if `normalised`, L2 norm. `usage` None: a foreign file."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last_axis"], ["column"]),
        helper.make_node("Mul", ["last_hidden_state", "column"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "second_axis"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "second_axis"], ["count"], keepdims=1),
        helper.make_node("Max", ["count", "tiny"], ["at_least_tiny"]),
        helper.make_node("Div", ["sum", "at_least_tiny"], ["mean" if normalised else "sentence_embedding"]),
    ]
    if normalised:
        nodes += [
            helper.make_node("ReduceL2", ["mean", "last_axis"], ["length"], keepdims=1),
            helper.make_node("Max", ["length", "tiny"], ["positive_length"]),
            helper.make_node("Div", ["mean", "positive_length"], ["sentence_embedding"]),
        ]
    graph = helper.make_graph(
        nodes,
        "table",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
            for name in ("input_ids", "attention_mask")
        ],
        [
            helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "length", DIM]),
            helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", DIM]),
        ],
        [
            numpy_helper.from_array(TABLE, "table"),
            numpy_helper.from_array(np.array([-1]), "last_axis"),
            numpy_helper.from_array(np.array([1]), "second_axis"),
            numpy_helper.from_array(np.array([1e-9], dtype=np.float32), "tiny"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    if usage is not None:
        text = usage if isinstance(usage, str) else json.dumps(usage)
        helper.set_model_props(model, {"leaf": text})
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path
