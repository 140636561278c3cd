"""GPTQ rounding of convolution weights.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2023.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.int8.weight_codes import Floats, WeightCodes
from train.linalg import factor_of_inverse, matmul, product_with_transposed

POSITIONS = 150  # patches per photo that the covariance is estimated on
DAMPING = 0.1  # share of the mean diagonal added to the diagonal: with less, the codes overfit the photos
BLOCK = 128  # rows whose corrections are applied to the remaining rows at once


def gptq(kernel: Floats, scale: Floats, codes: WeightCodes, inputs: Floats) -> NDArray[np.int8]:
    """Codes [kh, kw, in, out] that change the outputs for `inputs` [n, H, W, in] as little as possible.

    Weights are rounded one input at a time; the weights that are still in float compensate each rounding
    error as far as the inputs correlate. The covariance is taken around the mean of the inputs, because bias
    correction removes the constant part of the error.
    """
    patches = sample_patches(inputs, kernel.shape[:2])
    patches -= patches.mean(0)
    covariance = product_with_transposed(patches).astype(np.float64) / len(patches)
    covariance[np.diag_indices_from(covariance)] += DAMPING * covariance.diagonal().mean() + 1e-9
    # Row i of the inverse's upper Cholesky factor distributes the error of weight i over the later weights.
    factor = factor_of_inverse(covariance)
    remaining = kernel.reshape(-1, kernel.shape[3]).astype(np.float64)
    rounded = np.zeros_like(remaining)
    for start in range(0, len(remaining), BLOCK):
        stop = min(start + BLOCK, len(remaining))
        errors = np.zeros((stop - start, remaining.shape[1]))
        for i in range(start, stop):
            paired = i % 2 and codes.max_pair_sum is not None
            pair = rounded[i - 1 : i + 1] if paired else rounded[i : i + 1]
            rounded[i] = np.round(remaining[i] / scale)
            rounded[i] = codes.clip(pair)[-1]
            errors[i - start] = (remaining[i] - rounded[i] * scale) / factor[i, i]
            remaining[i + 1 : stop] -= np.outer(factor[i, i + 1 : stop], errors[i - start])
        remaining[stop:] -= matmul(factor[start:stop, stop:].T, errors)
    return rounded.reshape(kernel.shape).astype(np.int8)


def sample_patches(inputs: Floats, kernel_size: tuple[int, ...]) -> Floats:
    """The inputs of the kernel at random positions of [n, H, W, in]: [n * POSITIONS, kh * kw * in]."""
    (height, width), (_, rows, columns, _) = kernel_size, inputs.shape
    rng = np.random.default_rng(0)
    patches = []
    for photo in inputs:
        # "same" padding of an even kernel puts the extra row at the bottom and the extra column at the right.
        top, left = (height - 1) // 2, (width - 1) // 2
        padded = np.pad(photo, ((top, height - 1 - top), (left, width - 1 - left), (0, 0)))
        count = min(POSITIONS, rows * columns)
        position = rng.choice(rows * columns, count, replace=False)
        row = (position // columns)[:, np.newaxis, np.newaxis] + np.arange(height)[:, np.newaxis]
        column = (position % columns)[:, np.newaxis, np.newaxis] + np.arange(width)
        patches.append(padded[row, column].reshape(count, -1))
    return np.concatenate(patches)
