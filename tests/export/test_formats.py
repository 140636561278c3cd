"""Every float format has the same signature, names, types and outputs in every engine."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema

from export.flatbuffer import pack, unpack
from export.parity.result import FileKey
from export.parity.runner import ParityReference, run_parity
from runtime.inference.engines import ENGINES
from tests.export.conftest import LABELS, SIDE, small_model

Files = dict[FileKey, bytes]


def test_every_format_with_a_contract_has_the_outputs_of_keras(
    embedded: Files, reference: ParityReference
) -> None:
    assert len(set(reference.truth)) > 1  # with one label, agreement proves nothing
    results = run_parity(embedded, reference)
    assert {result.format for result in results} == {"tflite", "onnx"}  # an engine of each is installed
    limits = {"float32": 1e-5, "float16": 5e-3, "dynamic": 0.1}
    for result in results:
        assert not result.error
        assert result.max_dp <= limits[result.precision], result
        assert result.ms > 0


def test_every_file_contains_the_weights(float_files: Files) -> None:
    """A converter that does not track the variables writes a file without weights and without an error."""
    parameters = small_model().count_params()
    bytes_per_weight = {"float32": 4, "float16": 2, "dynamic": 1}
    for (_, precision), data in float_files.items():
        assert len(data) > bytes_per_weight[precision] * parameters


@pytest.mark.parametrize("precision", ["float32", "float16", "dynamic"])
def test_a_tflite_file_has_the_contracts_signature(precision: str, float_files: Files) -> None:
    run = ENGINES["litert"].load(float_files["tflite", precision], 1)
    assert run.input == ("uint8", (1, SIDE, SIDE, 3))
    assert dict(run.outputs) == {"probabilities": (1, len(LABELS)), "features": (1, 32)}


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_an_onnx_file_has_the_contracts_signature(precision: str, float_files: Files) -> None:
    run = ENGINES["onnx"].load(float_files["onnx", precision], 1)
    assert run.input == ("uint8", (-1, SIDE, SIDE, 3))
    assert list(run.outputs.items()) == [("probabilities", (-1, len(LABELS))), ("features", (-1, 32))]


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_an_onnx_graph_has_only_plain_operators(precision: str, float_files: Files) -> None:
    graph = onnx.load_model_from_string(float_files["onnx", precision])
    assert graph.ir_version == 9
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 19)]
    assert graph.producer_name == "vgg-edge" and " " not in graph.producer_version
    assert [value.name for value in graph.graph.input] == ["image"]
    assert [value.name for value in graph.graph.output] == ["probabilities", "features"]
    kinds = [node.op_type for node in graph.graph.node]
    # One Transpose, for the contract's channels-last input, and no multiplication by 1.
    assert kinds.count("Transpose") == 1
    assert not {"Mul", "Div", "Reshape"} & set(kinds)
    kernels = {
        tensor.data_type
        for tensor in graph.graph.initializer
        if np.prod(tensor.dims) > max(tensor.dims, default=1)
    }
    assert kernels == {onnx.TensorProto.FLOAT if precision == "float32" else onnx.TensorProto.FLOAT16}


def test_an_onnx_file_accepts_any_batch_size(float_files: Files, reference: ParityReference) -> None:
    run = ENGINES["onnx"].load(float_files["onnx", "float32"], 1)
    assert np.abs(run(reference.photos)["probabilities"] - reference.probabilities).max() < 1e-5


def test_outputs_keep_their_names_and_their_order() -> None:
    """TensorFlow sorts a signature's outputs, so `features` comes first."""
    from export import onnx_converter, tflite_converter

    model = small_model(known=True)
    picture = np.full((1, SIDE, SIDE, 3), 200, np.uint8)
    expected = dict(zip(model.output_names, model(picture, training=False), strict=True))
    assert list(expected) == ["probabilities", "known", "features"]
    tflite = tflite_converter.float32(model)
    for engine, data in (("litert", tflite), ("onnx", onnx_converter.float32(model))):
        outputs = ENGINES[engine].load(data, 1)(picture)
        assert outputs.keys() == expected.keys()
        for name, output in outputs.items():
            np.testing.assert_allclose(output, expected[name], rtol=1e-5, atol=1e-5)
    graph = unpack(tflite).subgraphs[0]
    assert [list(graph.tensors[i].shape) for i in graph.outputs] == [[1, len(LABELS)], [1, 1], [1, 32]]


def test_dequantize_computes_the_bytes_of_the_cast_it_replaces(float_files: Files) -> None:
    """TFLite Micro has no CAST from uint8."""
    file = unpack(float_files["tflite", "float32"])
    operators = schema.BuiltinOperator
    (code,) = [code for code in file.operatorCodes if code.builtinCode == operators.DEQUANTIZE]
    code.builtinCode = operators.CAST
    for operator in file.subgraphs[0].operators:
        if file.operatorCodes[operator.opcodeIndex] is code:
            operator.builtinOptionsType = schema.BuiltinOptions.CastOptions
            operator.builtinOptions = schema.CastOptionsT()
    picture = np.arange(SIDE * SIDE * 3, dtype=np.uint8).reshape(1, SIDE, SIDE, 3)
    cast = ENGINES["litert"].load(pack(file), 1)(picture)
    for name, output in ENGINES["litert"].load(float_files["tflite", "float32"], 1)(picture).items():
        np.testing.assert_array_equal(output, cast[name])


def test_older_readers_find_every_operator(float_files: Files) -> None:
    """They read the older of two fields, in which QUANTIZE (114) fits and BROADCAST_TO (130) does not."""
    for (format, _), data in float_files.items():
        if format == "tflite":
            for code in unpack(data).operatorCodes:
                assert code.deprecatedBuiltinCode == min(code.builtinCode, 127)
