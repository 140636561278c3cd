"""Which int8 codes a convolution's weights may use, and the scale of each output channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class WeightCodes:
    """Symmetric int8 codes, weight = code * scale, with one scale per output channel."""

    max_code: int = 127  # largest absolute code
    # Largest absolute sum of codes 2i and 2i + 1 of an output channel, in the order [kh, kw, in]. With an odd
    # number of input channels, a pair may belong to two positions: ONNX Runtime multiplies matrices then.
    max_pair_sum: int | None = None

    def scales(self, kernel: Floats) -> Floats:
        """The smallest scale of each output channel, [out], that fits a kernel [kh, kw, in, out]."""
        scale = np.abs(kernel).max((0, 1, 2)) / self.max_code
        if self.max_pair_sum is not None:
            first, second = _pairs(kernel)
            scale = np.maximum(scale, np.abs(first + second).max(0, initial=0) / self.max_pair_sum)
        return np.asarray(np.maximum(scale, 1e-9), np.float32)  # a channel of zeros has no scale

    def clip(self, codes: NDArray[Any]) -> NDArray[Any]:
        """Codes [..., out] moved into the limits; if a pair is too large, its second code moves."""
        codes = np.ascontiguousarray(np.clip(codes, -self.max_code, self.max_code))
        if self.max_pair_sum is not None:
            first, second = _pairs(codes)
            second[:] = np.clip(second, -self.max_pair_sum - first, self.max_pair_sum - first)
        return codes


def _pairs(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Views of the first and the second value of each pair, [pairs, out], in C-ordered values [..., out]."""
    flat = values.reshape(-1, values.shape[-1])
    paired = len(flat) // 2 * 2
    return flat[0:paired:2], flat[1:paired:2]


# x86 without VNNI adds two uint8 x int8 products in 16 bits (vpmaddubsw): 255 * 128 is the largest that fits.
PAIRED_CODES = WeightCodes(max_pair_sum=128)


def round_to_nearest(kernel: Floats, scale: Floats, codes: WeightCodes, inputs: Floats) -> NDArray[np.int8]:
    """The nearest allowed codes, [kh, kw, in, out]. `inputs` are not used: this is the plainest rounding."""
    return codes.clip(np.round(kernel / scale)).astype(np.int8)
