"""The two engines that can run an exported graph, as functions from token ids to vectors.

ONNX Runtime is the one that everybody has. OpenVINO can compute in bfloat16, which about halves the time of a text
where the CPU has it and moves vectors little (3 layers: least cosine 0.99996, where dynamic int8 has 0.987).
"""

import threading
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from leaf.encoder import Vectors
from leaf.errors import LeafError
from leaf.runtime.artifact import KEY

Ids: TypeAlias = NDArray[np.int64]
ComputeDtype: TypeAlias = Literal["float32", "bfloat16"]

OUTPUT = "sentence_embedding"


class Session(Protocol):
    """A loaded graph. Several threads may call it at once."""

    @property
    def metadata(self) -> str | None:
        """What `leaf export` wrote into the file; None for a file from elsewhere."""

    def __call__(self, ids: Ids, mask: Ids) -> Vectors:
        """Vectors float32 `[n, dim]` of padded ids and their mask, int64 `[n, length]` both."""


class OnnxRuntimeSession:
    """The graph in ONNX Runtime, on `threads` CPU threads. Raises `LeafError` for a file that it cannot read."""

    def __init__(self, path: Path, threads: int, compute_dtype: ComputeDtype, spinning: bool) -> None:
        import onnxruntime

        if compute_dtype != "float32":
            raise LeafError(f"ONNX Runtime computes in float32 on a CPU; for {compute_dtype} take backend='openvino'")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # A thread that waits for another keeps its core busy: alone on two cores, a query takes 0.6 to 0.8 of the time
        # (6 layers, int8). Where anything else wants that core (another process, the rest of a server), all wait for
        # all: with two busy cores, 24 passages took 126 ms so and 82 ms without.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
        # Not after a call, although the next query would start sooner: with other encoders in the process, their
        # threads then spin into its time, and passages take 1.4 times as long (seven encoders in turn).
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3  # errors, not advice
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no base class of their own
            raise _unreadable(path, error) from error
        self._options = onnxruntime.RunOptions()
        # The head on every token is for runtimes that pool by themselves: not asked for, it is not computed.
        self._options.only_execute_path_to_fetches = True
        self.metadata = self._session.get_modelmeta().custom_metadata_map.get(KEY)

    def __call__(self, ids: Ids, mask: Ids) -> Vectors:
        """Vectors float32 `[n, dim]`."""
        vectors: Vectors = self._session.run([OUTPUT], {"input_ids": ids, "attention_mask": mask}, self._options)[0]
        return vectors


class OpenVinoSession:
    """The graph in OpenVINO, on `threads` CPU threads, which wait as OpenVINO has them wait.

    Raises `LeafError` where OpenVINO is not installed, cannot read the file, or the CPU has no bfloat16.
    """

    def __init__(self, path: Path, threads: int, compute_dtype: ComputeDtype, spinning: bool) -> None:
        try:
            import openvino
        except ImportError as error:
            raise LeafError("backend 'openvino' is not installed; pip install openvino") from error
        core = openvino.Core()
        # Asked for what the CPU lacks, OpenVINO takes float32 without a word.
        if compute_dtype == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise LeafError("this CPU has no bfloat16; leave compute_dtype at 'float32'")
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if compute_dtype == "bfloat16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            graph = core.read_model(str(path))
            self._compiled = core.compile_model(graph, "CPU", settings)
        except RuntimeError as error:
            raise _unreadable(path, error) from error
        key = ["framework", KEY]
        self.metadata = str(graph.get_rt_info(key).value) if graph.has_rt_info(key) else None
        self._requests = threading.local()  # one request answers one call at a time

    def __call__(self, ids: Ids, mask: Ids) -> Vectors:
        """Vectors float32 `[n, dim]`."""
        request = getattr(self._requests, "one", None)
        if request is None:
            request = self._requests.one = self._compiled.create_infer_request()
        outputs = request.infer({"input_ids": ids, "attention_mask": mask}, share_inputs=True)
        vectors: Vectors = outputs[OUTPUT]
        return vectors


def _unreadable(path: Path, error: Any) -> LeafError:
    reason = " ".join(str(error).split())
    return LeafError(f"{path} cannot be read: it is damaged, or needs a newer engine ({reason[:200]})")
