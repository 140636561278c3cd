"""How many channels each convolution keeps: the fewest multiplications at the least cost in answers.

A channel costs what the reconstruction of the next layer loses without it (train/prune.py), times how far the
answers move for each part lost there, which is measured. Channels go where that cost, for each multiplication
saved, is the lowest: the budget of a layer is not set by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from runtime.common.errors import UserError
from train.network.vgg import CONVOLUTIONS, INPUT_SIZE

# Engines compute so many channels at once, and a part of a group costs as much as a whole one. Narrower
# layers have half a group as their step, or nothing could be taken from them.
GROUP = 16
LEAST = 16  # of its channels a layer keeps one in so many
LAST = list(CONVOLUTIONS)[-1]


@dataclass(frozen=True)
class Sensitivity:
    """Of one convolution: `lost` [channels + 1] is the share of the next layer's variance that is not
    explained any more with that many of its channels kept; `weight` is how far answers move for each share.
    """

    lost: NDArray[np.float64]
    weight: float

    def cost(self, kept: int) -> float:
        return float(self.weight * self.lost[kept])


def macs(widths: Mapping[str, int], size: int) -> int:
    """Multiply-accumulates of the convolutions, for one picture of size x size."""
    total, channels = 0, 3
    for name, filters in widths.items():
        side = size >> (int(name[5]) - 1)  # each block begins at half the side of the one before
        total += side * side * 9 * channels * filters
        channels = filters
    return total


def parameters(widths: Mapping[str, int]) -> int:
    """Of the convolutions' kernels."""
    total, channels = 0, 3
    for filters in widths.values():
        total += 9 * channels * filters
        channels = filters
    return total


@dataclass(frozen=True)
class Original:
    """The network that is compressed: its channels by convolution, and pixels a side of its input."""

    widths: Mapping[str, int] = field(default_factory=lambda: CONVOLUTIONS)
    size: int = INPUT_SIZE[0]

    @property
    def macs(self) -> int:
        return macs(self.widths, self.size)


VGG16 = Original()


def step(filters: int) -> int:
    """How many channels go at once from a convolution that has `filters` in the whole network."""
    return max(4, min(GROUP, filters // 8))


def least(filters: int) -> int:
    """The fewest channels that a convolution of `filters` channels is left with."""
    return max(filters // LEAST, step(filters))


def most_reduction(size: int, original: Original = VGG16) -> float:
    """The most times fewer multiplications than the original's that an input of size x size can have."""
    return original.macs / macs({name: least(count) for name, count in original.widths.items()}, size)


def unreachable(size: int, original: Original = VGG16) -> str:
    return (
        f"at {size}x{size} no more channels can go: {most_reduction(size, original):.0f} times fewer "
        "multiplications are the most; give a lower --reduce, a longer --target-ms, or a smaller --size"
    )


def plan(
    sensitivities: Mapping[str, Sensitivity],
    size: int,
    most_macs: float,
    most_parameters: float = np.inf,
    original: Original = VGG16,
) -> tuple[dict[str, int], float]:
    """Widths by convolution within both bounds, and what they cost. Raises UserError when none are.

    The last convolution has no next one, so it keeps as large a part as the one before it.
    """
    widths = dict(original.widths)
    before_last = list(CONVOLUTIONS)[-2]
    while over := _over(widths, size, most_macs, most_parameters):
        best: tuple[float, dict[str, int]] | None = None
        for name in sensitivities:
            kept = widths[name] - step(original.widths[name])
            if kept < least(original.widths[name]):
                continue
            leaner = {**widths, name: kept}
            if name == before_last:
                leaner[LAST] = kept
            price = sensitivities[name].cost(kept) - sensitivities[name].cost(widths[name])
            price /= sum((count(widths) - count(leaner)) / most for count, most in over)
            if best is None or price < best[0]:
                best = price, leaner
        if best is None:
            raise UserError(unreachable(size, original))
        widths = best[1]
    return widths, sum(sensitivities[name].cost(widths[name]) for name in sensitivities)


def _over(
    widths: Mapping[str, int], size: int, most_macs: float, most_parameters: float
) -> list[tuple[Callable[[Mapping[str, int]], int], float]]:
    """The bounds that these widths are over, and how each is counted."""
    bounds = ((lambda widths: macs(widths, size), most_macs), (parameters, most_parameters))
    return [(count, most) for count, most in bounds if count(widths) > most]
