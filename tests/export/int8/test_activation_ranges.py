from __future__ import annotations

import numpy as np
import pytest

from export.int8.activation_ranges import LEVELS, PERCENTILE, RANGES

# What a ReLU leaves of VGG16's activations: half zeros, a bulk, and one far out.
random = np.random.default_rng(0)
BULK = np.maximum(random.normal(0, 1, 1_000_000), 0).astype(np.float32)
TAILED = np.append(BULK, np.float32(60))


@pytest.mark.parametrize("method", RANGES)
def test_a_range_is_within_the_activations(method: str) -> None:
    upper = RANGES[method](TAILED, 60.0)
    assert 0 < upper <= 60


def test_the_maximum_clips_nothing() -> None:
    assert RANGES["max"](TAILED, 60.0) == 60


def test_a_percentile_leaves_its_share_out() -> None:
    upper = RANGES["percentile"](TAILED, 60.0)
    assert (upper < TAILED).mean() == pytest.approx(1 - PERCENTILE / 100, abs=5e-6)


@pytest.mark.parametrize("method", ["mse", "entropy"])
def test_one_far_activation_is_clipped_for_finer_steps(method: str) -> None:
    assert RANGES[method](TAILED, 60.0) < 45


def test_mse_is_no_worse_than_the_maximum() -> None:
    def error(upper: float) -> float:
        step = upper / LEVELS
        return float(np.square(np.clip(np.round(TAILED / step), 0, LEVELS) * step - TAILED).mean())

    assert error(RANGES["mse"](TAILED, 60.0)) <= error(60.0)


def test_without_outliers_the_reach_is_kept() -> None:
    flat = np.linspace(0, 1, 100_000, dtype=np.float32)
    assert RANGES["mse"](flat, 1.0) > 0.95
    assert RANGES["entropy"](flat, 1.0) > 0.95
