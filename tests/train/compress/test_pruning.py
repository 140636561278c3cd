from __future__ import annotations

import itertools

import numpy as np
import pytest

from train.compress.allocation import LAST
from train.compress.layers import pooled_features, unit_length
from train.compress.pruning import (
    RIDGE,
    eliminate,
    normal_equations,
    prune_last,
    pruning_targets,
    reconstruct,
    sample_patches,
    solve_layer,
)
from train.network.vgg import CONVOLUTIONS, random_weights


def least_squares(
    gram: np.ndarray, cross: np.ndarray, rows: np.ndarray, ridge: float
) -> tuple[float, np.ndarray]:
    """The unexplained variance of the outputs with these rows only, up to a constant, and the weights."""
    regularized = gram + ridge * gram.diagonal().mean() * np.eye(len(gram))
    weights = np.linalg.solve(regularized[np.ix_(rows, rows)], cross[rows])
    return -float((cross[rows] * weights).sum()), weights


@pytest.fixture(scope="module")
def equations() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(400, 12)) @ rng.normal(size=(12, 12))
    outputs = inputs @ rng.normal(size=(12, 3)) + rng.normal(size=(400, 3))
    return inputs.T @ inputs / 400, inputs.T @ outputs / 400


def test_the_lost_variance_equals_that_of_least_squares(equations: tuple[np.ndarray, np.ndarray]) -> None:
    gram, cross = equations
    order, lost = eliminate(gram, cross, 2, 3)
    assert sorted(order) == list(range(6)) and len(lost) == 6 - 3 + 1
    complete, _ = least_squares(gram, cross, np.arange(12), RIDGE)
    for removed in range(4):
        rows = np.concatenate([[2 * channel, 2 * channel + 1] for channel in np.sort(order[removed:])])
        remaining, _ = least_squares(gram, cross, rows, RIDGE)
        assert lost[removed] == pytest.approx(remaining - complete, rel=1e-6, abs=1e-9)


def test_a_solved_layer_has_the_least_squares_weights_of_its_channels() -> None:
    rng = np.random.default_rng(4)
    inputs, kernel = rng.normal(size=(2, 6, 6, 5)), rng.normal(size=(3, 3, 5, 4)).astype(np.float32)
    layer = normal_equations(inputs, inputs, kernel)
    kept = np.array([0, 2, 3])
    rows = np.concatenate([np.arange(9 * channel, 9 * channel + 9) for channel in kept])
    solved, bias = solve_layer(layer, kept, np.zeros(4, np.float32))
    _, expected = least_squares(layer.gram, layer.cross, rows, RIDGE)
    # The ridges differ slightly: the mean over the kept rows here, over all rows there.
    np.testing.assert_allclose(solved.transpose(2, 0, 1, 3).reshape(27, 4), expected, rtol=0.05, atol=0.02)
    assert sample_patches(inputs[..., kept], 0).shape == (2 * 36, 27)
    assert sample_patches(inputs, 0).shape == (2 * 36, 45) and bias.shape == (4,)


def test_the_first_removed_channel_costs_least(equations: tuple[np.ndarray, np.ndarray]) -> None:
    gram, cross = equations
    order, _ = eliminate(gram, cross, 2, 5)
    costs = {}
    for removed in range(6):
        rows = np.array([row for row in range(12) if row // 2 != removed])
        costs[removed], _ = least_squares(gram, cross, rows, RIDGE)
    assert order[0] == min(costs, key=lambda channel: costs[channel])


def test_removing_duplicate_channels_loses_nothing() -> None:
    rng = np.random.default_rng(1)
    unique = rng.normal(size=(500, 4))
    inputs = np.concatenate([unique, unique], axis=1)
    outputs = inputs @ rng.normal(size=(8, 2))
    order, lost = eliminate(inputs.T @ inputs / 500, inputs.T @ outputs / 500, 1, 4, ridge=1e-9)
    assert {channel % 4 for channel in order[4:]} == {0, 1, 2, 3}
    assert lost[-1] < 1e-6 * float((outputs**2).mean(0).sum())


def test_patches_times_a_kernel_equal_a_convolution() -> None:
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(1, 4, 5, 2)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 2, 1)).astype(np.float32)
    products = sample_patches(inputs, 0) @ kernel.transpose(2, 0, 1, 3).reshape(18, 1)
    padded = np.pad(inputs[0], ((1, 1), (1, 1), (0, 0)))
    expected = [
        float((padded[row : row + 3, column : column + 3] * kernel[..., 0]).sum())
        for row, column in itertools.product(range(4), range(5))
    ]
    np.testing.assert_allclose(sorted(products.ravel()), sorted(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("width", "share"), [(8, 0.1), (6, 0.3)])
def test_the_reconstructed_network_has_nearly_the_same_features(width: int, share: float) -> None:
    """The change of the features is below a share of their variance: 0.03 and 0.17 were measured."""
    rng = np.random.default_rng(3)
    photos = rng.integers(0, 256, (16, 32, 32, 3), np.uint8)
    tensors = random_weights(dict.fromkeys(CONVOLUTIONS, 8), (32, 32)).tensors
    tensors |= {f"{name}/bias": rng.normal(0, 20, 8).astype(np.float32) for name in CONVOLUTIONS}
    widths = {**dict.fromkeys(CONVOLUTIONS, width), LAST: 8}
    solved = reconstruct(tensors, photos, widths)
    assert {name: len(solved.tensors[f"{name}/bias"]) for name in CONVOLUTIONS} == widths
    exact, found = (pooled_features(each, photos) for each in (tensors, solved.tensors))
    assert np.square(found - exact).sum() < share * np.square(exact - exact.mean(0)).sum()
    assert 0.85 < min(solved.explained.values()) <= 1


def test_the_last_convolution_keeps_the_channels_that_predict_the_targets() -> None:
    rng = np.random.default_rng(5)
    pooled = rng.uniform(size=(300, 8)).astype(np.float32)
    last = {"block5_conv3/kernel": np.arange(8.0)[np.newaxis], "block5_conv3/bias": np.arange(8.0)}
    targets = unit_length(pooled)[:, [1, 6]]
    assert prune_last(last, pooled, targets, 2)["block5_conv3/bias"].tolist() == [1, 6]


def test_the_targets_are_features_and_log_probabilities_that_count_the_same() -> None:
    rng = np.random.default_rng(6)
    features, probabilities = rng.uniform(size=(40, 6)), rng.dirichlet(np.ones(3), 40)
    probabilities[0] = [1, 0, 0]
    targets = pruning_targets(features, probabilities)
    assert targets.shape == (40, 6 + 3) and np.isfinite(targets).all()
    assert [part.var(0).sum() for part in (targets[:, :6], targets[:, 6:])] == pytest.approx([1, 1])
    brighter = pruning_targets(features * np.arange(1, 41)[:, np.newaxis], probabilities)
    np.testing.assert_allclose(brighter, targets)  # the length of the features does not count
