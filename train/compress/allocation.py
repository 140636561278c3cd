"""Choose the input size and the channels of each convolution: few MACs for a small change of the output.

Removing channels costs the share of the next layer's variance that the remaining channels cannot reconstruct
(train/compress/pruning.py), times the change of the output for each lost share
(train/compress/sensitivity.py). A greedy search removes channels where the cost per saved MAC is lowest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from runtime.common.errors import UserError
from train.network.vgg import CONVOLUTIONS, INPUT_SIZE

# Engines compute 16 channels at once: a part of a group costs as much as a whole group. Layers of fewer than
# 128 channels lose an eighth of their channels at a time.
CHANNEL_GROUP = 16
MIN_SHARE = 1 / 16  # of its channels that a layer keeps
# Weights may shrink 1.8 times less than MACs: with a tenth of the MACs, an int8 file has 2.8 of 14.9 MB.
PARAMETER_ALLOWANCE = 1.8
LAST = list(CONVOLUTIONS)[-1]
BEFORE_LAST = list(CONVOLUTIONS)[-2]


@dataclass(frozen=True)
class NetworkShape:
    """Pixels a side of the input, and the channels of each convolution by name."""

    size: int
    widths: Mapping[str, int]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the convolutions for one picture."""
        return self.macs_from(1)

    def macs_from(self, first_block: int) -> int:
        """Multiply-accumulates of the convolutions of `first_block` and of the blocks after it."""
        total, channels = 0, 3
        for name, filters in self.widths.items():
            block = int(name[5])
            side = self.size >> (block - 1)  # each block has half the side of the block before
            if block >= first_block:
                total += side * side * 9 * channels * filters
            channels = filters
        return total

    @property
    def parameters(self) -> int:
        """Weights of the convolutions' kernels."""
        total, channels = 0, 3
        for filters in self.widths.values():
            total += 9 * channels * filters
            channels = filters
        return total


VGG16 = NetworkShape(INPUT_SIZE[0], CONVOLUTIONS)


@dataclass(frozen=True)
class Sensitivity:
    """How the output changes when one convolution has fewer channels.

    `lost_variance` [channels + 1] is the unexplained share of the next layer's variance by the number of
    channels kept; `weight` is the change of the output for each lost share.
    """

    lost_variance: NDArray[np.float64]
    weight: float

    def cost(self, channels: int) -> float:
        return float(self.weight * self.lost_variance[channels])


@dataclass(frozen=True)
class PruningCosts:
    """Changes of the output, as mean squared distances between features of length 1: for fewer channels, by
    convolution, and for a smaller input, by pixels a side.
    """

    channels: Mapping[str, Sensitivity]
    sizes: Mapping[int, float]


@dataclass(frozen=True)
class Budget:
    """The most multiply-accumulates and kernel weights that a network may have."""

    macs: float
    parameters: float = np.inf

    def exceeded(self, shape: NetworkShape) -> list[str]:
        """The names of the limits that a shape exceeds: "macs", "parameters" or both."""
        return [name for name in ("macs", "parameters") if getattr(shape, name) > getattr(self, name)]

    def saved(self, wider: NetworkShape, narrower: NetworkShape, limits: Sequence[str]) -> float:
        """How much less of the named limits the narrower shape uses, in shares of each limit."""
        shares = [(getattr(wider, name) - getattr(narrower, name)) / getattr(self, name) for name in limits]
        return float(sum(shares))


def choose_shape(
    costs: PruningCosts, original: NetworkShape, reduction: float, max_parameters: float = np.inf
) -> NetworkShape:
    """The shape with 1 / `reduction` of the original's MACs, and at most `max_parameters` kernel weights,
    whose output changes least.

    Raises UserError when no shape has so few.
    """
    parameters = PARAMETER_ALLOWANCE * original.parameters / reduction
    budget = Budget(original.macs / reduction, min(parameters, max_parameters))
    candidates: list[tuple[float, NetworkShape]] = []
    for size, size_cost in sorted(costs.sizes.items(), reverse=True):
        try:
            shape, channel_cost = allocate_channels(costs.channels, original, size, budget)
        except UserError:
            if size == min(costs.sizes) and not candidates:
                raise
            continue
        candidates.append((size_cost + channel_cost, shape))
    return min(candidates, key=lambda candidate: candidate[0])[1]


def allocate_channels(
    sensitivities: Mapping[str, Sensitivity], original: NetworkShape, size: int, budget: Budget
) -> tuple[NetworkShape, float]:
    """The shape for an input of `size` within the budget, and its cost. Raises UserError when none exists.

    No layer follows the last convolution, so it keeps no more channels than the convolution before it.
    """
    shape = NetworkShape(size, dict(original.widths))
    while exceeded := budget.exceeded(shape):
        steps: list[tuple[float, NetworkShape]] = []
        for name, sensitivity in sensitivities.items():
            channels = shape.widths[name] - channel_step(original.widths[name])
            if channels < min_channels(original.widths[name]):
                continue
            widths = {**shape.widths, name: channels}
            if name == BEFORE_LAST:
                widths[LAST] = min(channels, shape.widths[LAST])
            narrower = replace(shape, widths=widths)
            cost = sensitivity.cost(channels) - sensitivity.cost(shape.widths[name])
            steps.append((cost / budget.saved(shape, narrower, exceeded), narrower))
        if not steps:
            raise UserError(too_large_reduction(original, size))
        shape = min(steps, key=lambda step: step[0])[1]
    return shape, sum(sensitivity.cost(shape.widths[name]) for name, sensitivity in sensitivities.items())


def channel_step(filters: int) -> int:
    """The number of channels removed at once from a convolution that has `filters` channels originally."""
    return max(1, min(CHANNEL_GROUP, filters // 8))


def min_channels(filters: int) -> int:
    """The fewest channels that whole steps leave of a convolution that has `filters` channels originally."""
    step = channel_step(filters)
    lowest = max(int(filters * MIN_SHARE), step)
    return filters - (filters - lowest) // step * step


def narrowest_shape(original: NetworkShape, size: int) -> NetworkShape:
    """The shape with the fewest channels that `allocate_channels` can choose for an input of `size`."""
    widths = {name: min_channels(filters) for name, filters in original.widths.items()}
    widths[LAST] = min(original.widths[LAST], widths[BEFORE_LAST])
    return NetworkShape(size, widths)


def max_reduction(original: NetworkShape, size: int) -> float:
    """The original's MACs over the fewest MACs that are possible with an input of `size`."""
    return original.macs / narrowest_shape(original, size).macs


def too_large_reduction(original: NetworkShape, size: int, reduction: float = 1.0) -> str:
    """The error for a reduction that an input of `size` cannot reach.

    `reduction`: how many times fewer multiplications the original has than the uncompressed network.
    """
    most = reduction * max_reduction(original, size)
    return (
        f"at {size}x{size} pixels the most possible is {most:.0f} times fewer "
        "multiplications; give a lower --reduce, a higher --target-ms, or a smaller --size"
    )
