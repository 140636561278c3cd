"""to_tflite and to_onnx: the same signature, names, types and answers in every float format and engine."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from export.parity.parity import run_parity
from runtime.inference.engines import ENGINES
from tests.export.conftest import LABELS, SIDE, small_model

Files = dict[tuple[str, str], bytes]


def test_every_format_answers_as_keras_does(
    float_files: Files, reference: NDArray[np.float32], pictures: NDArray[np.uint8]
) -> None:
    assert len(set(reference.argmax(axis=1))) > 1  # or agreement would say nothing
    rows = run_parity(float_files, reference, pictures, reference.argmax(axis=1))
    # tflite and onnx at least: an environment without them proves nothing.
    assert {row.format for row in rows} == {"tflite", "onnx"}
    most = {"float32": 1e-5, "float16": 5e-3, "dynamic": 0.1}
    for row in rows:
        assert not row.error
        assert row.max_dp <= most[row.precision], row
        assert row.ms > 0


def test_the_weights_are_inside(float_files: Files) -> None:
    """A converter that loses track of a model's variables writes a file without them, and says nothing."""
    count = small_model().count_params()
    share = {"float32": 4, "float16": 2, "dynamic": 1}
    for (_, precision), data in float_files.items():
        assert len(data) > share[precision] * count


@pytest.mark.parametrize("precision", ["float32", "float16", "dynamic"])
def test_tflite_signature(precision: str, float_files: Files) -> None:
    run = ENGINES["litert"](float_files["tflite", precision], 1)
    assert run.input == ("uint8", (1, SIDE, SIDE, 3))
    assert dict(run.outputs) == {"probabilities": (1, len(LABELS))}


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_onnx_signature(precision: str, float_files: Files) -> None:
    run = ENGINES["onnx"](float_files["onnx", precision], 1)
    assert run.input == ("uint8", (-1, SIDE, SIDE, 3))
    assert dict(run.outputs) == {"probabilities": (-1, len(LABELS))}


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_onnx_graph_is_plain(precision: str, float_files: Files) -> None:
    graph = onnx.load_model_from_string(float_files["onnx", precision])
    assert graph.ir_version == 8
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 17)]
    assert [value.name for value in graph.graph.input] == ["image"]
    assert [value.name for value in graph.graph.output] == ["probabilities"]
    kinds = [node.op_type for node in graph.graph.node]
    # One Transpose, from the contract's channels-last picture, and no multiplication by 1.
    assert kinds.count("Transpose") == 1
    assert not {"Mul", "Div", "Reshape"} & set(kinds)
    kernels = {
        tensor.data_type
        for tensor in graph.graph.initializer
        if np.prod(tensor.dims) > max(tensor.dims, default=1)
    }
    assert kernels == {onnx.TensorProto.FLOAT if precision == "float32" else onnx.TensorProto.FLOAT16}


def test_onnx_takes_any_batch(
    float_files: Files, pictures: NDArray[np.uint8], reference: NDArray[np.float32]
) -> None:
    run = ENGINES["onnx"](float_files["onnx", "float32"], 1)
    assert np.abs(run(pictures)["probabilities"] - reference).max() < 1e-5


def test_outputs_keep_their_names() -> None:
    """TensorFlow sorts a signature's outputs, so `known` comes first: it must not be taken for the other."""
    from export import onnx as to_onnx
    from export import tflite as to_tflite

    model = small_model(known=True)
    picture = np.full((1, SIDE, SIDE, 3), 200, np.uint8)
    probabilities, known = (np.asarray(output) for output in model(picture, training=False))
    for engine, data in (("litert", to_tflite.float32(model)), ("onnx", to_onnx.float32(model))):
        outputs = ENGINES[engine](data, 1)(picture)
        assert np.abs(outputs["probabilities"] - probabilities).max() < 1e-5
        assert np.abs(outputs["known"] - known).max() < 1e-5
