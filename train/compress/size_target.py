"""`--max-mb`: the largest network whose int8 files are within a size, predicted from its channels.

The constants are those of the released network, whose files have 2.95 MB (.tflite) and 2.97 MB (.onnx).
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime.common.errors import UserError
from runtime.model_file.statistics import MAX_FACTORS, MAX_POSITIVES
from train.compress.allocation import NetworkShape, PruningCosts, choose_shape, narrowest_shape
from train.network.novelty import RANK
from train.network.vgg import BLOCKS

SEARCH_STEPS = 14  # halve the range of the weights until it is under 0.01 % of VGG16's
STATISTICS_BYTES = 1_200  # of the arrays whose size does not depend on the channels, and of the header


@dataclass(frozen=True)
class _Format:
    """The bytes of a file format that the weights do not explain."""

    channel_bytes: int  # biases, scales and zero points
    statistics_factor: float  # ONNX stores the statistics as text in base64
    graph_bytes: int  # operators, names, contract and labels


_FORMATS = (_Format(28, 1.0, 30_000), _Format(17, 4 / 3, 36_000))  # .tflite and .onnx


def int8_bytes(shape: NetworkShape, classes: int) -> int:
    """The predicted bytes of the larger of the two int8 files of a network with the output `known`.

    The convolutions have int8 weights. The first convolution, the head and the detector of unknown pictures
    have float32 weights.
    """
    channels = [shape.widths[f"block{block}_conv{len(widths)}"] for block, widths in enumerate(BLOCKS, 1)]
    features, last = sum(channels), channels[-1]
    first = 9 * 3 * shape.widths["block1_conv1"]
    weights = shape.parameters + 3 * first + 4 * (features * (RANK + classes + 1) + last * classes)
    statistics = features * (2 * (MAX_FACTORS + 3 + classes) + MAX_POSITIVES) + STATISTICS_BYTES
    return max(
        round(
            weights
            + format.channel_bytes * sum(shape.widths.values())
            + format.statistics_factor * statistics
            + format.graph_bytes
        )
        for format in _FORMATS
    )


def check_size(max_mb: float | None, original: NetworkShape, classes: int) -> None:
    """Raises UserError if the network with the fewest channels has a larger int8 file than `max_mb`."""
    if max_mb is None:
        return
    smallest = int8_bytes(narrowest_shape(original, original.size), classes)
    if smallest > 1e6 * max_mb:
        raise UserError(
            f"--max-mb {max_mb:g}: the smallest network has an int8 file of {smallest / 1e6:.2f} MB; "
            "raise the limit"
        )


def choose_shape_within(
    max_mb: float | None, costs: PruningCosts, original: NetworkShape, reduction: float, classes: int
) -> NetworkShape:
    """`choose_shape`, with as many weights as int8 files of `max_mb` (10⁶ bytes; None: any size) can hold.

    Raises UserError when no shape has so few MACs or so small a file.
    """
    check_size(max_mb, original, classes)
    shape = choose_shape(costs, original, reduction)
    if max_mb is None or int8_bytes(shape, classes) <= 1e6 * max_mb:
        return shape
    fewest = narrowest_shape(original, original.size).parameters
    best = choose_shape(costs, original, reduction, fewest)
    low, high = float(fewest), float(shape.parameters)
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        shape = choose_shape(costs, original, reduction, middle)
        if int8_bytes(shape, classes) <= 1e6 * max_mb:
            best, low = shape, middle
        else:
            high = middle
    return best
