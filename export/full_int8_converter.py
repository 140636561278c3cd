"""Convert a Keras model to a TFLite file that computes in int8 from the image to the logits.

It is for clients without fast floating point: microcontrollers (TensorFlow Lite Micro) and neural processors
(Arm Ethos-U). The ordinary int8 file keeps the first convolution and the head in float32. The input and the
outputs are those of every other file (`image` uint8, outputs float32), so the last operators dequantize.

The head computes what `train/network/heads.py` computes, with operators that have equal int8 kernels in
LiteRT, tflite-runtime 2.14 and TensorFlow Lite Micro. There is no such square root, so sqrt(x) is
x * RSQRT(x). A descriptor's part sqrt(m / mean(m)) is sqrt(W) times sqrt(m) scaled to length 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod, sqrt

import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from export.int8.layers import Floats, QuantizeError, batches, conv_chain
from export.int8.quantize import LEVELS, Quantized, QuantParams, pool_factors, with_weights
from export.int8.weight_codes import WeightCodes
from export.tflite_graph import CODE_OFFSET, Tensor, TfliteGraph
from train.network.vgg import MEAN_RGB

# Layers of the heads (train/network/heads.py).
_DENSE = ("hidden", "logits", "known_prototypes", "known_negatives")
_MEANS = "{}_means"  # the layer of a pooling layer's channel means
DESCRIPTION = "int8 from the image to the logits, made by vgg-edge"
# Ranges of the head are those of the calibration photos, and more: a clipped logit changes the answer, and
# pictures of none of the classes, which calibration does not see, have other distances to the classes.
MARGIN, DISTANCE_MARGIN = 1.3, 1.5
LOGIT_MARGIN = 1.1
# The largest channel mean of all photos is far above that of most: without it, the steps are finer.
HEAD_RANGE = 0.8
UNIT = QuantParams(1 / 128, CODE_OFFSET)  # the only scale that L2_NORMALIZATION has


@dataclass(frozen=True)
class _Features:
    """The output `features` [1, D] as codes [1, 1, 1, D] times `factors` [D]."""

    codes: Tensor
    factors: Floats


@dataclass(frozen=True)
class _Network:
    """The model to convert, and what calibration photos showed of it."""

    model: keras.Model
    quantized: Quantized
    seen: Mapping[str, Floats]  # outputs of the head's layers by name, [n, ...]

    def kernel(self, name: str) -> Floats:
        """[in, out]"""
        return np.asarray(self.model.get_layer(name).kernel)

    def bias(self, name: str) -> Floats:
        layer = self.model.get_layer(name)
        return np.zeros(layer.units, np.float32) if layer.bias is None else np.asarray(layer.bias)


def full_int8(model: keras.Model, quantized: Quantized, photos: NDArray[np.uint8]) -> bytes:
    """The file, with the convolutions of `quantized`, all of them in codes.

    The ranges of the head are measured on calibration photos, uint8 [n, H, W, 3]. Raises QuantizeError for a
    head that is neither "pooled" nor "article".
    """
    network = _Network(model, quantized, _head_outputs(with_weights(model, quantized), photos))
    graph = TfliteGraph()
    pools = _convolutions(graph, network)
    if "hidden" in network.seen:
        features = _hidden(graph, network, pools)
        head_input = features.codes
    else:
        features, head_input = _descriptor(graph, network, pools)
    outputs = {"probabilities": _probabilities(graph, network, head_input)}
    if "known" in model.output_names:
        outputs["known"] = _known(graph, network, features)
    outputs["features"] = _real(graph, features)
    return graph.to_bytes({name: outputs[name] for name in model.output_names}, DESCRIPTION)


def _head_outputs(model: keras.Model, photos: NDArray[np.uint8]) -> dict[str, Floats]:
    """The outputs on photos of the layers whose ranges the head needs, by name. Raises QuantizeError."""
    names = [layer.name for layer in model.layers]
    found = [name for name in names if name in _DENSE or name in map(_MEANS.format, names)]
    if "logits" not in found or (_MEANS.format("block5_pool") not in found and "hidden" not in found):
        raise QuantizeError(
            "the head is neither pooled nor article; train it again, or export without --full-int8"
        )
    if "known_root" in names:
        raise QuantizeError(
            "the detector of unknown pictures is of an earlier version; run `python -m train.refit`, or "
            "export without --full-int8"
        )
    part = keras.Model(model.inputs[0], [model.get_layer(name).output for name in found])
    outputs = [part(batch) for batch in batches(photos)]
    return {
        name: np.concatenate([np.asarray(arrays) for arrays in parts])
        for name, parts in zip(found, zip(*outputs, strict=True), strict=True)
    }


def _convolutions(graph: TfliteGraph, network: _Network) -> Iterator[tuple[str, Tensor]]:
    """Adds all convolutions, and yields the name and the output of each pooling layer before the next layer.

    The channels of the outputs are divided by the factors of equalization.
    """
    (height, width), first = network.model.inputs[0].shape[1:3], next(iter(network.quantized.values()))
    x = graph.image((1, height, width, 3))
    mean = np.array(MEAN_RGB, np.float32)
    scale = np.array([mean.max() / 127], np.float32)
    codes = graph.constant(np.round(mean / scale).astype(np.int8).reshape(1, 1, 1, 3), scale)
    x = graph.add("SUB", [x, codes], x.shape, first.input, schema.SubOptionsT())
    for layer in conv_chain(network.model):
        if (conv := network.quantized.get(layer.name)) is None:
            x = graph.max_pool(x)
            yield layer.name, x
        else:
            assert conv.codes is not None
            x = graph.convolve(x, conv.codes, conv.scale, conv.bias, conv.output, relu=True)


def _descriptor(
    graph: TfliteGraph, network: _Network, pools: Iterable[tuple[str, Tensor]]
) -> tuple[_Features, Tensor]:
    """The features of the head "pooled", and the channel means of block 5 scaled to length 1."""
    equalization = pool_factors(network.model, network.quantized)
    seen = {name: network.seen[_MEANS.format(name)] for name in equalization}
    # Each mean directly after its pooling layer: TFLite Micro then frees the layer's memory.
    means = {name: graph.mean(pool, _params(0, MARGIN * seen[name].max())) for name, pool in pools}
    parts, sizes = [], []
    for name, mean in means.items():
        factors = np.sqrt(equalization[name])
        largest = MARGIN * (np.sqrt(seen[name]) * factors).max()
        root = _scale_channels(graph, _square_root(graph, mean), factors, largest)
        parts.append(_unit_length(graph, root))
        sizes.append(mean.shape[-1])
    options = schema.ConcatenationOptionsT(axis=3)
    codes = graph.add("CONCATENATION", parts, (1, 1, 1, sum(sizes)), UNIT, options)
    features = _Features(codes, np.repeat(np.sqrt(sizes), sizes).astype(np.float32))
    largest = HEAD_RANGE * (seen[name] * equalization[name]).max()
    return features, _unit_length(graph, _scale_channels(graph, mean, equalization[name], largest))


def _scale_channels(graph: TfliteGraph, x: Tensor, factors: Floats, largest: float) -> Tensor:
    return graph.scale_channels(x, factors, _params(0, largest)) if factors.ptp() else x


def _square_root(graph: TfliteGraph, x: Tensor) -> Tensor:
    """sqrt(x) = x * RSQRT(x), for x whose zero point is 0. RSQRT(0) is the largest code, so sqrt(0) is 0."""
    assert x.params is not None
    step = sqrt(x.params.scale)  # the root of code 1
    inverse = graph.add("RSQRT", [x], x.shape, _params(0, 1 / step))
    # Code 255 has the root 16, after rounding its inverse to 16 / 255.
    return graph.add("MUL", [x, inverse], x.shape, _params(0, 16 * step), schema.MulOptionsT())


def _unit_length(graph: TfliteGraph, x: Tensor) -> Tensor:
    return graph.add("L2_NORMALIZATION", [x], x.shape, UNIT, schema.L2NormOptionsT())


def _hidden(graph: TfliteGraph, network: _Network, pools: Iterable[tuple[str, Tensor]]) -> _Features:
    """The features of the head "article": the layer `hidden` on all positions of the last pooling layer."""
    *_, (_, pool) = pools
    flat = graph.reshape(pool, (1, 1, 1, prod(pool.shape)))
    largest = MARGIN * network.seen["hidden"].max()
    codes = _dense(graph, network, "hidden", flat, _params(0, largest), relu=True)
    return _Features(codes, np.ones(codes.shape[-1], np.float32))


def _probabilities(graph: TfliteGraph, network: _Network, x: Tensor) -> Tensor:
    """Softmax in float32: int8 probabilities of many classes do not sum to 1."""
    seen = network.seen["logits"]
    logits = _dense(
        graph, network, "logits", x, _params(LOGIT_MARGIN * seen.min(), LOGIT_MARGIN * seen.max())
    )
    real = _dequantize(graph, graph.reshape(logits, (1, seen.shape[1])))
    return graph.add("SOFTMAX", [real], real.shape, options=schema.SoftmaxOptionsT(beta=1.0))


def _known(graph: TfliteGraph, network: _Network, features: _Features) -> Tensor:
    """`novelty_layers` (train/network/novelty.py): distances in int8, and the rest in float32."""

    def project(name: str, output: QuantParams, relu: bool = False) -> Tensor:
        kernel = network.kernel(name) * features.factors[:, np.newaxis]
        return _dense(graph, network, name, features.codes, output, kernel=kernel, relu=relu)

    # Only the nearest prototype counts: farther ones may be clipped, and the steps are finer. The range goes
    # beyond the threshold, which val sets: the prototypes are fitted on calibration photos, which are nearer.
    threshold = -float(network.bias("known")[0] / network.kernel("known")[0, 0])
    farthest = DISTANCE_MARGIN * min(float(network.seen["known_prototypes"].max(1).min()), threshold)
    nearest = _dequantize(graph, graph.reduce_max(project("known_prototypes", _params(farthest, 0))))
    # Few calibration photos have a penalty, but it can be as large as the values below 0.
    largest = DISTANCE_MARGIN * np.abs(network.seen["known_negatives"]).max()
    penalty = _dequantize(graph, project("known_negatives", _params(0, largest), relu=True))
    joined = graph.add(
        "CONCATENATION", [nearest, penalty], (1, 1, 1, 2), options=schema.ConcatenationOptionsT(axis=3)
    )
    weights = [graph.constant(network.kernel("known").T.copy()), graph.constant(network.bias("known"))]
    score = graph.add("FULLY_CONNECTED", [joined, *weights], (1, 1), options=schema.FullyConnectedOptionsT())
    return graph.add("LOGISTIC", [score], score.shape)


def _real(graph: TfliteGraph, features: _Features) -> Tensor:
    """The output `features`, float32 [1, D]."""
    real = _dequantize(graph, graph.reshape(features.codes, (1, len(features.factors))))
    if (features.factors == 1).all():
        return real
    factors = graph.constant(features.factors)
    return graph.add("MUL", [real, factors], real.shape, options=schema.MulOptionsT())


def _dequantize(graph: TfliteGraph, x: Tensor) -> Tensor:
    return graph.add("DEQUANTIZE", [x], x.shape, options=schema.DequantizeOptionsT())


def _dense(
    graph: TfliteGraph,
    network: _Network,
    name: str,
    x: Tensor,
    output: QuantParams,
    *,
    kernel: Floats | None = None,
    relu: bool = False,
) -> Tensor:
    """A Dense layer on x [1, 1, 1, in], as a 1 x 1 convolution: it has one scale per channel in all readers.

    (FULLY_CONNECTED has it since version 12, which tflite-runtime 2.14 lacks.)
    """
    weights = (network.kernel(name) if kernel is None else kernel)[np.newaxis, np.newaxis]
    scale = WeightCodes().scales(weights)
    codes = WeightCodes().clip(np.round(weights / scale)).astype(np.int8)
    return graph.convolve(x, codes, scale, network.bias(name), output, relu=relu)


def _params(low: float, high: float) -> QuantParams:
    """The codes of a range, which includes 0."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = max(high - low, 1e-6) / LEVELS
    return QuantParams(scale, round(-low / scale))
