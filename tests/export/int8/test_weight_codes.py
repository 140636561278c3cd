"""Codes stay within their limits, so that no pair of products overflows 16 bits."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from export.int8.gptq import gptq, sample_patches
from export.int8.quantize import Rounding
from export.int8.weight_codes import PAIRED_CODES, WeightCodes, round_to_nearest

SEVEN_BITS = WeightCodes(63)
ROUNDINGS = [round_to_nearest, gptq]


def correlated(channels: int) -> NDArray[np.float32]:
    """Inputs [n, H, W, channels] like a network's: neighbouring channels correlate, and none is negative."""
    rng = np.random.default_rng(0)
    few = np.maximum(rng.normal(1, 1, (16, 12, 12, 3)), 0)
    return (few @ np.abs(rng.normal(0, 1, (3, channels)))).astype(np.float32)


@pytest.mark.parametrize("codes", [WeightCodes(), SEVEN_BITS, PAIRED_CODES])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_codes_stay_within_their_limit(rounding: Rounding, codes: WeightCodes) -> None:
    kernel = np.random.default_rng(1).standard_t(3, (3, 3, 7, 20)).astype(np.float32)
    scale = codes.scales(kernel)
    rounded = rounding(kernel, scale, codes, correlated(7))
    assert rounded.dtype == np.int8 and rounded.shape == kernel.shape
    assert np.abs(rounded.astype(int)).max() <= codes.max_code
    assert np.abs(rounded * scale - kernel).max() < 20 * scale.max()


@pytest.mark.parametrize("channels", [7, 8])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_no_pair_of_products_overflows_16_bits(rounding: Rounding, channels: int) -> None:
    kernel = np.random.default_rng(1).standard_t(3, (3, 3, channels, 50)).astype(np.float32)

    def largest_pair_sum(codes: WeightCodes) -> int:
        rounded = rounding(kernel, codes.scales(kernel), codes, correlated(channels))
        rows = rounded.reshape(-1, 50).astype(int)  # as a matrix product reads them
        return int(np.abs(rows[0 : len(rows) // 2 * 2 : 2] + rows[1::2]).max())

    assert 255 * largest_pair_sum(PAIRED_CODES) <= 32767
    assert 255 * largest_pair_sum(WeightCodes()) > 32767  # without the limit, this kernel overflows


@pytest.mark.parametrize("channels", [3, 7, 8])
def test_the_limit_of_pairs_moves_no_weight_far(channels: int) -> None:
    """The scale fits the same pairs that the limit holds for."""
    kernel = np.random.default_rng(1).standard_t(3, (3, 3, channels, 50)).astype(np.float32)
    scale = PAIRED_CODES.scales(kernel)
    codes = gptq(kernel, scale, PAIRED_CODES, correlated(channels))
    assert np.abs(codes - kernel / scale).max() < 3


@pytest.mark.parametrize("channels", [1, 3])
def test_a_kernel_with_an_odd_number_of_inputs_has_scales(channels: int) -> None:
    kernel = np.random.default_rng(1).normal(size=(3, 3, channels, 4)).astype(np.float32)
    assert (PAIRED_CODES.scales(kernel) > 0).all()


def test_gptq_changes_outputs_less_than_rounding_to_nearest() -> None:
    kernel = np.random.default_rng(2).normal(0, 1, (3, 3, 16, 8)).astype(np.float32)
    inputs = correlated(16)
    scale = SEVEN_BITS.scales(kernel) * 8  # coarse, so that rounding dominates the error
    patches = sample_patches(inputs, (3, 3))
    patches -= patches.mean(0)

    def error(codes: NDArray[np.int8]) -> float:
        difference = (codes * scale - kernel).reshape(-1, kernel.shape[3])
        return float(np.square(patches @ difference).mean())

    errors = [error(rounding(kernel, scale, SEVEN_BITS, inputs)) for rounding in (gptq, round_to_nearest)]
    assert errors[0] < 0.5 * errors[1]
