from __future__ import annotations

import numpy as np
import pytest

from runtime.common.errors import UserError
from train.compress.allocation import (
    LAST,
    PARAMETER_ALLOWANCE,
    VGG16,
    Budget,
    NetworkShape,
    PruningCosts,
    Sensitivity,
    allocate_channels,
    channel_step,
    choose_shape,
    max_reduction,
    min_channels,
    narrowest_shape,
)
from train.network.vgg import CONVOLUTIONS


def equal_sensitivities(shape: NetworkShape) -> dict[str, Sensitivity]:
    """Those of a network in which every channel of a layer explains the same share of the next layer."""
    return {
        name: Sensitivity(1 - np.arange(filters + 1) / filters, 1.0)
        for name, filters in shape.widths.items()
        if name != LAST
    }


EQUAL = equal_sensitivities(VGG16)


def test_macs_and_parameters_equal_values_computed_by_hand() -> None:
    assert VGG16.macs == 15_346_630_656
    assert VGG16.parameters == 14_710_464
    # With two channels in every layer: block1 at 32x32, block2 at 16x16, and so on.
    two = NetworkShape(32, dict.fromkeys(CONVOLUTIONS, 2))
    per_position = 9 * 2 * 2
    by_hand = 32 * 32 * (9 * 3 * 2 + per_position) + 16 * 16 * 2 * per_position
    by_hand += (8 * 8 + 4 * 4 + 2 * 2) * 3 * per_position
    assert two.macs == by_hand
    assert two.parameters == 9 * 3 * 2 + 12 * per_position


@pytest.mark.parametrize("size", [160, 224])
def test_an_allocation_is_within_both_limits_and_in_whole_channel_groups(size: int) -> None:
    shape, cost = allocate_channels(EQUAL, VGG16, size, Budget(VGG16.macs / 10, 2_500_000))
    assert shape.size == size
    assert shape.macs <= VGG16.macs / 10 and shape.parameters <= 2_500_000
    assert all(width % channel_step(CONVOLUTIONS[name]) == 0 for name, width in shape.widths.items())
    assert shape.widths[LAST] == shape.widths["block5_conv2"]
    assert cost == pytest.approx(sum(EQUAL[name].cost(shape.widths[name]) for name in EQUAL))


@pytest.mark.parametrize(("weight", "channels"), [(100.0, 256), (0.0, min_channels(256))])
def test_a_sensitive_layer_keeps_its_channels_and_an_insensitive_one_loses_them(
    weight: float, channels: int
) -> None:
    sensitivities = {**EQUAL, "block3_conv2": Sensitivity(EQUAL["block3_conv2"].lost_variance, weight)}
    shape, _ = allocate_channels(sensitivities, VGG16, 224, Budget(VGG16.macs / 4))
    assert shape.widths["block3_conv2"] == channels


def test_a_network_within_its_budget_keeps_all_channels() -> None:
    assert allocate_channels(EQUAL, VGG16, 224, Budget(VGG16.macs)) == (VGG16, 0.0)
    shape, _ = allocate_channels(EQUAL, VGG16, 160, Budget(VGG16.macs / 1.9))
    assert shape.widths == CONVOLUTIONS


def test_a_budget_below_the_minimum_raises_an_error_with_the_highest_reduction() -> None:
    with pytest.raises(UserError, match=r"160x160.* 235 times .*--reduce"):
        allocate_channels(EQUAL, VGG16, 160, Budget(VGG16.macs / 1000))
    with pytest.raises(UserError, match=r"160x160.*--reduce"):
        choose_shape(PruningCosts(EQUAL, {224: 0.0, 160: 0.1}), VGG16, 1000)


@pytest.mark.parametrize(("cost_of_160", "size"), [(0.0, 160), (99.0, 224)])
def test_the_input_shrinks_only_if_that_costs_less_than_channels(cost_of_160: float, size: int) -> None:
    costs = PruningCosts(EQUAL, {224: 0.0, 160: cost_of_160})
    assert choose_shape(costs, VGG16, 2).size == size


def test_the_weights_shrink_about_as_much_as_the_macs() -> None:
    """The MACs alone would leave 8.7 million weights."""
    shape = choose_shape(PruningCosts(EQUAL, {224: 0.0}), VGG16, 4)
    assert shape.macs <= VGG16.macs / 4
    assert shape.parameters <= PARAMETER_ALLOWANCE * VGG16.parameters / 4 < 7_000_000


def test_a_narrow_network_has_smaller_steps() -> None:
    narrow = NetworkShape(64, {name: filters // 16 for name, filters in CONVOLUTIONS.items()})
    shape = choose_shape(PruningCosts(equal_sensitivities(narrow), {64: 0.0}), narrow, 6)
    assert shape.macs <= narrow.macs / 6 and min(shape.widths.values()) >= 1


def test_the_highest_reduction_is_reached_in_whole_steps() -> None:
    odd = NetworkShape(64, {name: filters // 9 for name, filters in CONVOLUTIONS.items()})
    shape, _ = allocate_channels(equal_sensitivities(odd), odd, 64, Budget(odd.macs / max_reduction(odd, 64)))
    assert shape == narrowest_shape(odd, 64)


def test_a_last_convolution_that_is_narrower_than_the_one_before_gets_no_new_channels() -> None:
    narrow = NetworkShape(224, {**CONVOLUTIONS, LAST: 64})
    for reduction in (2, 10):
        shape, _ = allocate_channels(EQUAL, narrow, 224, Budget(narrow.macs / reduction))
        assert shape.widths[LAST] == min(64, shape.widths["block5_conv2"])
