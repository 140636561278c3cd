"""The network without its preprocessing gives the answers of the exported file."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import onnxruntime
import pytest

from export.targets.npu_network import npu_network
from export.targets.stage import ExportedModel
from train.network.vgg import MEAN_RGB

pytestmark = pytest.mark.slow


def test_the_network_without_preprocessing_gives_equal_answers(exported: ExportedModel) -> None:
    network = npu_network(exported.files["onnx", "float32"])
    assert network.mean == pytest.approx(MEAN_RGB)
    assert network.outputs == ["probabilities", "known", "features"]
    session = onnxruntime.InferenceSession(network.data, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    height, width = exported.contract.input_size
    assert (image.type, image.shape) == ("tensor(float)", [1, 3, height, width])
    for photo, expected in zip(exported.reference.photos, exported.reference.probabilities, strict=True):
        pixels = (photo.astype(np.float32) - network.mean).transpose(2, 0, 1)[np.newaxis]
        (found,) = session.run(["probabilities"], {image.name: pixels.astype(np.float32)})
        np.testing.assert_allclose(found[0], expected, atol=1e-4)


def test_the_head_starts_at_the_five_pooling_layers(exported: ExportedModel) -> None:
    network = npu_network(exported.files["onnx", "float32"])
    graph = onnx.load_model_from_string(network.data).graph
    pools = {node.output[0] for node in graph.node if node.op_type == "MaxPool"}
    assert len(pools) == 5
    assert {tuple(path) for path in network.head} == set(product(pools, ["probabilities", "known"]))
