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
    max_pair_sum: int | None = None  # largest absolute sum of the codes of input channels 2i and 2i + 1

    def scales(self, kernel: Floats) -> Floats:
        """The smallest scale of each output channel, [out], that fits a kernel [kh, kw, in, out]."""
        scale = np.abs(kernel).max((0, 1, 2)) / self.max_code
        if self.max_pair_sum is not None:
            channels = kernel.shape[2] // 2 * 2
            sums = np.abs(kernel[:, :, 0:channels:2] + kernel[:, :, 1:channels:2])
            scale = np.maximum(scale, sums.max((0, 1, 2), initial=0) / self.max_pair_sum)
        return np.asarray(np.maximum(scale, 1e-9), np.float32)  # a channel of zeros has no scale

    def clip(self, codes: NDArray[Any]) -> NDArray[Any]:
        """Codes [kh, kw, in, out] moved into the limits; if a pair is too large, its second code moves."""
        codes = np.clip(codes, -self.max_code, self.max_code)
        if self.max_pair_sum is not None:
            channels = codes.shape[2] // 2 * 2
            first, second = codes[:, :, 0:channels:2], codes[:, :, 1:channels:2]
            codes[:, :, 1:channels:2] = np.clip(second, -self.max_pair_sum - first, self.max_pair_sum - first)
        return codes


# x86 without VNNI adds two uint8 x int8 products in 16 bits (vpmaddubsw): 255 * 128 is the largest that fits.
PAIRED_CODES = WeightCodes(max_pair_sum=128)


def round_to_nearest(kernel: Floats, scale: Floats, codes: WeightCodes, inputs: Floats) -> NDArray[np.int8]:
    """The nearest allowed codes, [kh, kw, in, out]. `inputs` are not used: this is the plainest rounding."""
    return codes.clip(np.round(kernel / scale)).astype(np.int8)
