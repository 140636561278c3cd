"""Convert a Keras model to a TFLite file that computes in int8 from the image to the last pooling layer.

It is for clients without fast floating point: microcontrollers (TensorFlow Lite Micro) and neural processors
(Arm Ethos-U). The ordinary int8 file keeps the first convolution in float32. The input and the outputs are
those of every other file (`image` uint8, outputs float32).

The head of `train/network/heads.py` is in float32, after all convolutions: its vectors take a thousandth of
the time, and codes of 8 bits would move them far. A descriptor's part sqrt(m / mean(m)) is sqrt(W) times
sqrt(m) scaled to length 1: L2_NORMALIZATION cannot divide by zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from export.int8.layers import Floats, QuantizeError, batches, conv_chain
from export.int8.quantize import LEVELS, Quantized, QuantParams, pool_factors, with_weights
from export.int8.weight_codes import WeightCodes
from export.tflite_graph import Tensor, TfliteGraph
from train.network.vgg import MEAN_RGB

DESCRIPTION = "int8 from the image to the last pooling layer, made by vgg-edge"
_MEANS = "{}_means"  # the layer of a pooling layer's channel means
MARGIN = 1.3  # the ranges of vectors are those of the calibration photos, times this
# In these layers, the largest channel mean is many times most others, which would have few codes or none. So
# the mean is computed in float32; the outputs of earlier layers are too large for that.
FLOAT_MEANS = ("block4_pool", "block5_pool")


@dataclass(frozen=True)
class _Network:
    """The model to convert, its quantized convolutions, and its ranges on calibration photos."""

    model: keras.Model
    quantized: Quantized
    largest: Mapping[str, float]  # by name of a layer

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
    network = _Network(model, quantized, _largest(with_weights(model, quantized), photos))
    graph = TfliteGraph()
    pools = _convolutions(graph, network)
    features, head_input = (_hidden if "hidden" in network.largest else _descriptor)(graph, network, pools)
    outputs = {"features": features, "probabilities": _probabilities(graph, network, head_input)}
    if "known" in model.output_names:
        outputs["known"] = _known(graph, network, features)
    return graph.to_bytes({name: outputs[name] for name in model.output_names}, DESCRIPTION)


def _largest(model: keras.Model, photos: NDArray[np.uint8]) -> dict[str, float]:
    """The largest value on photos of each layer of the head whose range is needed. Raises QuantizeError."""
    names = [layer.name for layer in model.layers]
    found = [name for name in names if name == "hidden" or name in map(_MEANS.format, names)]
    if "logits" not in names or not {_MEANS.format("block5_pool"), "hidden"} & set(found):
        raise QuantizeError(
            "the head is neither pooled nor article; train it again, or export without --full-int8"
        )
    part = keras.Model(model.inputs[0], {name: model.get_layer(name).output for name in found})
    outputs = [part(batch) for batch in batches(photos)]
    return {name: max(float(np.max(output[name])) for output in outputs) for name in found}


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
) -> tuple[Tensor, Tensor]:
    """The features of the head "pooled", and the channel means of block 5 scaled to length 1."""
    equalization = pool_factors(network.model, network.quantized)
    coded = {}
    for name, pool in pools:
        # A mean directly follows its pooling layer: TFLite Micro then frees the layer's memory.
        output = _params(network.largest[_MEANS.format(name)])
        coded[name] = pool if name in FLOAT_MEANS else graph.mean(pool, output)
    parts = []
    for name, x in coded.items():
        real = _dequantize(graph, x)
        mean = graph.reshape(graph.mean(real) if name in FLOAT_MEANS else real, (1, x.shape[-1]))
        mean = _times(graph, mean, equalization[name])
        parts.append(_unit_length(graph, graph.add("SQRT", [mean], mean.shape)))
    sizes = [part.shape[-1] for part in parts]
    lengths = np.repeat(np.sqrt(sizes), sizes).astype(np.float32)
    return _times(graph, _concatenate(graph, parts), lengths), _unit_length(graph, mean)


def _hidden(
    graph: TfliteGraph, network: _Network, pools: Iterable[tuple[str, Tensor]]
) -> tuple[Tensor, Tensor]:
    """The features of the head "article": the layer `hidden` on all positions of the last pooling layer. They
    are the input of the last layer too.

    `hidden` is a 1 x 1 convolution here: it has one scale per channel in all readers. (FULLY_CONNECTED has it
    since version 12, which tflite-runtime 2.14 lacks.)
    """
    *_, (_, pool) = pools
    flat = graph.reshape(pool, (1, 1, 1, prod(pool.shape)))
    weights = network.kernel("hidden")[np.newaxis, np.newaxis]
    scale = WeightCodes().scales(weights)
    codes = WeightCodes().clip(np.round(weights / scale)).astype(np.int8)
    output = _params(network.largest["hidden"])
    hidden = graph.convolve(flat, codes, scale, network.bias("hidden"), output, relu=True)
    features = _dequantize(graph, graph.reshape(hidden, (1, hidden.shape[-1])))
    return features, features


def _probabilities(graph: TfliteGraph, network: _Network, x: Tensor) -> Tensor:
    logits = graph.dense(x, network.kernel("logits"), network.bias("logits"))
    return graph.add("SOFTMAX", [logits], logits.shape, options=schema.SoftmaxOptionsT(beta=1.0))


def _known(graph: TfliteGraph, network: _Network, features: Tensor) -> Tensor:
    """The layers of `novelty_layers` (train/network/novelty.py)."""

    def dense(name: str, x: Tensor, relu: bool = False) -> Tensor:
        return graph.dense(x, network.kernel(name), network.bias(name), relu=relu)

    root = dense("known_root", features)
    terms = [
        graph.reduce_max(dense("known_classes", features)),
        graph.add("MUL", [root, root], root.shape, options=schema.MulOptionsT()),
        dense("known_negatives", features, relu=True),
    ]
    return graph.add("LOGISTIC", [dense("known", _concatenate(graph, terms))], (1, 1))


def _concatenate(graph: TfliteGraph, parts: Sequence[Tensor]) -> Tensor:
    size = sum(part.shape[-1] for part in parts)
    return graph.add("CONCATENATION", parts, (1, size), options=schema.ConcatenationOptionsT(axis=1))


def _times(graph: TfliteGraph, x: Tensor, factors: Floats) -> Tensor:
    return graph.add("MUL", [x, graph.constant(factors)], x.shape, options=schema.MulOptionsT())


def _unit_length(graph: TfliteGraph, x: Tensor) -> Tensor:
    return graph.add("L2_NORMALIZATION", [x], x.shape, options=schema.L2NormOptionsT())


def _dequantize(graph: TfliteGraph, x: Tensor) -> Tensor:
    return graph.add("DEQUANTIZE", [x], x.shape, options=schema.DequantizeOptionsT())


def _params(largest: float) -> QuantParams:
    """The codes of values that are never negative; `largest` is that of the calibration photos."""
    return QuantParams(max(MARGIN * largest, 1e-6) / LEVELS)
