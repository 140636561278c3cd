"""Run a float32 ONNX file with every value rounded to float16, as on a GPU or a neural processor.

The float16 files of an export store their weights in float16 and compute in float32, so no comparison of
files finds a value that float16 cannot represent. Here each weight and each result of an operator is rounded;
an operator itself computes in float32, as most accelerators accumulate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.parity.gates import FLOAT16_ARITHMETIC, GATES
from export.parity.runner import ParityReference, features_error, limit_photos

PHOTOS = 30  # from the classes in turn
LARGEST_FLOAT16 = float(np.finfo(np.float16).max)  # 65,504
MAX_DISAGREEMENTS = 1  # of PHOTOS: a photo between two classes, or at the threshold of `known`


@dataclass(frozen=True)
class Float16Result:
    """The model in float16 arithmetic, compared with float32 on n photos."""

    n: int
    largest: float  # absolute value of any result of an operator, before it is rounded
    largest_tensor: str
    disagreements: int  # photos with another top-1
    known_disagreements: int  # photos with another unknown decision
    max_dp: float  # largest difference of a probability
    max_dfeatures: float  # as in ParityResult

    @property
    def summary(self) -> str:
        return (
            f"{FLOAT16_ARITHMETIC}: {self.n - self.disagreements} of {self.n} photos get the same label, "
            f"max |Δp| {self.max_dp:.4f}; the largest value is {self.largest:,.0f}, float16 ends at "
            f"{LARGEST_FLOAT16:,.0f}"
        )


def float16_failures(result: Float16Result) -> list[str]:
    """One line for each bound that the result breaks."""
    gate = GATES[FLOAT16_ARITHMETIC]
    broken = []
    if not result.largest <= LARGEST_FLOAT16:
        broken.append(
            f"{result.largest_tensor} reaches {result.largest:,.0f}, float16 ends at {LARGEST_FLOAT16:,.0f}"
        )
    for count, difference in (
        (result.disagreements, "have another top-1"),
        (result.known_disagreements, "differ in the unknown decision"),
    ):
        if count > MAX_DISAGREEMENTS:
            broken.append(f"{count} of {result.n} photos {difference} (limit {MAX_DISAGREEMENTS})")
    for figure, limit, name in (
        (result.max_dp, gate.max_dp, "max |Δp|"),
        (result.max_dfeatures, gate.max_dfeatures, "features differ, as a share of their length:"),
    ):
        if limit is not None and not figure <= limit:
            broken.append(f"{name} {figure:.2g} is over {limit:g}")
    end = "accelerators that compute in float16 would give wrong answers; report this with the run"
    return [f"{FLOAT16_ARITHMETIC}: {line}; {end}" for line in broken]


def run_float16(
    data: bytes, reference: ParityReference, step: Callable[[int], None] = lambda done: None
) -> Float16Result:
    """Runs an ONNX file over at most PHOTOS photos, and calls `step` with 1 after each."""
    import onnxruntime

    reference = limit_photos(reference, PHOTOS)
    proto, tensors = _rounded(onnx.load_model_from_string(data))
    options = onnxruntime.SessionOptions()
    # An optimized graph has no pair of casts that cancel out but for the rounding.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    outputs: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for photo in reference.photos:
        for name, value in zip(names, session.run(names, {"image": photo[np.newaxis]}), strict=True):
            outputs[name].append(np.asarray(value))
        step(1)
    # A number that is not finite is larger than any bound.
    largest = {
        tensor: float(np.nan_to_num(np.max(outputs[name]), nan=np.inf)) for name, tensor in tensors.items()
    }
    worst = max(largest, key=lambda tensor: largest[tensor])
    return _compare(
        {name: np.concatenate(outputs[name]) for name in names if name not in tensors},
        reference,
        worst,
        largest[worst],
    )


def _compare(
    found: dict[str, NDArray[np.float32]], reference: ParityReference, tensor: str, largest: float
) -> Float16Result:
    expected = reference.probabilities
    known_disagreements = 0
    if reference.known is not None:
        known = [values >= reference.known_threshold for values in (found["known"], reference.known)]
        known_disagreements = int((known[0] != known[1]).sum())
    return Float16Result(
        n=len(expected),
        largest=largest,
        largest_tensor=tensor,
        disagreements=int((found["probabilities"].argmax(1) != expected.argmax(1)).sum()),
        known_disagreements=known_disagreements,
        max_dp=float(np.abs(found["probabilities"] - expected).max()),
        max_dfeatures=0.0
        if reference.features is None
        else features_error(found["features"], reference.features),
    )


def _rounded(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model with each float32 value rounded to float16, and added outputs with the largest absolute value
    of each result of an operator: output → name of the result.
    """
    graph = onnx.shape_inference.infer_shapes(proto).graph
    floats = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor)
            with np.errstate(over="ignore"):
                rounded = values.astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    nodes, largest = [], {}
    for node in proto.graph.node:
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in floats:
                node.output[i] = exact = f"{name}_exact"
                half, size, most = f"{name}_float16", f"{name}_size", f"{name}_largest"
                nodes += [
                    helper.make_node("Cast", [exact], [half], to=TensorProto.FLOAT16),
                    helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT),
                    helper.make_node("Abs", [exact], [size]),
                    helper.make_node("ReduceMax", [size], [most], keepdims=0),
                ]
                largest[most] = name
                proto.graph.output.append(helper.make_tensor_value_info(most, TensorProto.FLOAT, []))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    del proto.metadata_props[:]
    return proto, largest
