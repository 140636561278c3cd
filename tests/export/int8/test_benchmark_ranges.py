"""The activation ranges that benchmarks/int8.py compares with the maximum."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.activation_ranges import PERCENTILE, entropy, mse, percentile
from export.int8.quantize import LEVELS, ActivationRange, largest_activation

# VGG16's activations after a ReLU: half zeros, and one outlier.
BULK = np.maximum(np.random.default_rng(0).normal(0, 1, 1_000_000), 0).astype(np.float32)
WITH_OUTLIER = np.append(BULK, np.float32(60))


@pytest.mark.parametrize("method", [largest_activation, percentile, mse, entropy])
def test_a_range_is_at_most_the_maximum(method: ActivationRange) -> None:
    assert 0 < method(WITH_OUTLIER) <= 60


def test_the_maximum_clips_nothing() -> None:
    assert largest_activation(WITH_OUTLIER) == 60


def test_a_percentile_clips_its_share() -> None:
    assert (percentile(WITH_OUTLIER) < WITH_OUTLIER).mean() == pytest.approx(1 - PERCENTILE / 100, abs=2e-5)


@pytest.mark.parametrize("method", [mse, entropy])
def test_an_outlier_is_clipped_for_finer_steps(method: ActivationRange) -> None:
    assert method(WITH_OUTLIER) < 45


def test_mse_has_at_most_the_error_of_the_maximum() -> None:
    def error(upper: float) -> float:
        step = upper / LEVELS
        coded = np.clip(np.round(WITH_OUTLIER / step), 0, LEVELS) * step
        return float(np.square(coded - WITH_OUTLIER).mean())

    assert error(mse(WITH_OUTLIER)) <= error(60.0)


@pytest.mark.parametrize("method", [mse, entropy])
def test_activations_without_outliers_keep_their_range(
    method: Callable[[NDArray[np.float32]], float],
) -> None:
    assert method(np.linspace(0, 1, 100_000, dtype=np.float32)) > 0.95
