from __future__ import annotations

import itertools

import numpy as np
import pytest

from train.compress import pruning as prune
from train.compress.pruning import eliminate, reconstruct
from train.network.vgg import CONVOLUTIONS, read_weights


def least_squares(
    gram: np.ndarray, cross: np.ndarray, rows: np.ndarray, ridge: float
) -> tuple[float, np.ndarray]:
    """What is left of the outputs' variance with these rows alone, less a constant, and the weights."""
    regular = gram + ridge * gram.diagonal().mean() * np.eye(len(gram))
    weights = np.linalg.solve(regular[np.ix_(rows, rows)], cross[rows])
    return -float((cross[rows] * weights).sum()), weights


@pytest.fixture(scope="module")
def equations() -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(0)
    inputs = chance.normal(size=(400, 12)) @ chance.normal(size=(12, 12))
    outputs = inputs @ chance.normal(size=(12, 3)) + chance.normal(size=(400, 3))
    return inputs.T @ inputs / 400, inputs.T @ outputs / 400


def test_what_is_lost_is_what_least_squares_lose(equations: tuple[np.ndarray, np.ndarray]) -> None:
    gram, cross = equations
    order, lost = eliminate(gram, cross, 2, 3)
    assert sorted(order) == list(range(6)) and len(lost) == 6 - 3 + 1
    whole, _ = least_squares(gram, cross, np.arange(12), prune.RIDGE)
    for gone in range(4):
        rows = np.concatenate([[2 * channel, 2 * channel + 1] for channel in np.sort(order[gone:])])
        left, _ = least_squares(gram, cross, rows, prune.RIDGE)
        assert lost[gone] == pytest.approx(left - whole, rel=1e-6, abs=1e-9)


def test_weights_are_the_least_squares_of_what_is_kept() -> None:
    chance = np.random.default_rng(4)
    inputs, kernel = chance.normal(size=(2, 6, 6, 5)), chance.normal(size=(3, 3, 5, 4)).astype(np.float32)
    equations = prune._equations(inputs, inputs, kernel)
    kept = np.array([0, 2, 3])
    rows = np.concatenate([np.arange(9 * channel, 9 * channel + 9) for channel in kept])
    found, bias = prune._solved(equations, kept, np.zeros(4, np.float32))
    _, expected = least_squares(equations.gram, equations.cross, rows, prune.RIDGE)
    # The ridge here is of the kept rows' mean, there of all rows': the same for channels alike.
    np.testing.assert_allclose(found.transpose(2, 0, 1, 3).reshape(27, 4), expected, rtol=0.05, atol=0.02)
    seen = prune.patches(inputs[..., kept], 0)
    wanted = prune.patches(inputs, 0)
    assert seen.shape == (2 * 36, 27) and wanted.shape == (2 * 36, 45) and bias.shape == (4,)


def test_the_first_channel_to_go_is_the_one_that_costs_least(
    equations: tuple[np.ndarray, np.ndarray],
) -> None:
    gram, cross = equations
    order, _ = eliminate(gram, cross, 2, 5)
    costs = {}
    for gone in range(6):
        rows = np.array([row for row in range(12) if row // 2 != gone])
        costs[gone], _ = least_squares(gram, cross, rows, prune.RIDGE)
    assert order[0] == min(costs, key=lambda gone: costs[gone])


def test_copies_of_channels_go_for_nothing() -> None:
    chance = np.random.default_rng(1)
    once = chance.normal(size=(500, 4))
    inputs = np.concatenate([once, once], axis=1)
    outputs = inputs @ chance.normal(size=(8, 2))
    order, lost = eliminate(inputs.T @ inputs / 500, inputs.T @ outputs / 500, 1, 4, ridge=1e-9)
    assert {channel % 4 for channel in order[4:]} == {0, 1, 2, 3}
    assert lost[-1] < 1e-6 * float((outputs**2).mean(0).sum())


def test_patches_are_what_the_kernel_sees() -> None:
    chance = np.random.default_rng(2)
    inputs = chance.normal(size=(1, 4, 5, 2)).astype(np.float32)
    kernel = chance.normal(size=(3, 3, 2, 1)).astype(np.float32)
    found = prune.patches(inputs, 0) @ kernel.transpose(2, 0, 1, 3).reshape(18, 1)
    padded = np.pad(inputs[0], ((1, 1), (1, 1), (0, 0)))
    expected = [
        float((padded[row : row + 3, column : column + 3] * kernel[..., 0]).sum())
        for row, column in itertools.product(range(4), range(5))
    ]
    np.testing.assert_allclose(sorted(found.ravel()), sorted(expected), rtol=1e-4, atol=1e-5)


def test_a_network_with_all_its_channels_stays_what_it_is() -> None:
    photos = np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3), np.uint8)
    tensors = read_weights().tensors
    found, explained = reconstruct(tensors, photos, {**CONVOLUTIONS, "block1_conv1": 64})
    assert min(explained.values()) > 0.97
    assert {name: len(found[f"{name}/bias"]) for name in CONVOLUTIONS} == dict(CONVOLUTIONS)


def test_the_last_channels_are_those_that_tell_what_is_wanted() -> None:
    chance = np.random.default_rng(5)
    pooled = chance.uniform(size=(300, 8)).astype(np.float32)
    last = {"block5_conv3/kernel": np.arange(8.0)[np.newaxis], "block5_conv3/bias": np.arange(8.0)}
    wanted = prune.unit(pooled)[:, [1, 6]]
    assert prune.shorten(last, pooled, wanted, 2)["block5_conv3/bias"].tolist() == [1, 6]
