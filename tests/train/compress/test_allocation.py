from __future__ import annotations

import numpy as np
import pytest

from runtime.common.errors import UserError
from train.compress import allocation as budget
from train.compress.allocation import LAST, Sensitivity, macs, parameters, plan
from train.network.vgg import CONVOLUTIONS

EVEN = {
    name: Sensitivity(1 - np.arange(filters + 1) / filters, 1.0)
    for name, filters in CONVOLUTIONS.items()
    if name != LAST
}


def test_multiplications_by_hand() -> None:
    assert macs(CONVOLUTIONS, 224) == 15_346_630_656
    # block1 at 32x32, block2 at 16x16, and so on, every layer of two channels.
    two = dict.fromkeys(CONVOLUTIONS, 2)
    per_place = 9 * 2 * 2
    by_hand = 32 * 32 * (9 * 3 * 2 + per_place) + 16 * 16 * 2 * per_place
    by_hand += (8 * 8 + 4 * 4 + 2 * 2) * 3 * per_place
    assert macs(two, 32) == by_hand
    assert parameters(two) == 9 * 3 * 2 + 12 * per_place
    assert parameters(CONVOLUTIONS) == 14_710_464


@pytest.mark.parametrize("size", [160, 224])
def test_a_plan_keeps_both_bounds_in_whole_groups(size: int) -> None:
    widths, cost = plan(EVEN, size, macs(CONVOLUTIONS, 224) / 10, 2_500_000)
    assert macs(widths, size) <= macs(CONVOLUTIONS, 224) / 10 and parameters(widths) <= 2_500_000
    assert all(width % budget.step(CONVOLUTIONS[name]) == 0 for name, width in widths.items())
    assert widths[LAST] == widths["block5_conv2"]
    assert cost == pytest.approx(sum(EVEN[name].cost(widths[name]) for name in EVEN))


def test_channels_go_where_they_cost_least() -> None:
    spared = {**EVEN, "block3_conv2": Sensitivity(EVEN["block3_conv2"].lost, 100.0)}
    widths, _ = plan(spared, 224, macs(CONVOLUTIONS, 224) / 4)
    assert widths["block3_conv2"] == 256
    free = {**EVEN, "block3_conv2": Sensitivity(EVEN["block3_conv2"].lost, 0.0)}
    widths, _ = plan(free, 224, macs(CONVOLUTIONS, 224) / 4)
    assert widths["block3_conv2"] == budget.least(256)


def test_nothing_goes_where_nothing_must() -> None:
    assert plan(EVEN, 224, macs(CONVOLUTIONS, 224)) == (dict(CONVOLUTIONS), 0.0)
    assert plan(EVEN, 160, macs(CONVOLUTIONS, 224) / 1.9)[0] == dict(CONVOLUTIONS)


def test_what_no_layer_can_reach() -> None:
    with pytest.raises(UserError, match=r"at 160x160 no more channels can go.* give a lower --reduce"):
        plan(EVEN, 160, macs(CONVOLUTIONS, 224) / 1000)
