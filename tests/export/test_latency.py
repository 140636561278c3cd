from __future__ import annotations

import pytest

from export.latency import measure_latency
from runtime.common.errors import UserError
from train.compress.allocation import NetworkShape
from train.compress.latency_target import latency_worker
from train.network.vgg import CONVOLUTIONS


def test_the_worker_measures_longer_latencies_for_more_channels() -> None:
    """The wide network has 36 times as many MACs, more than the noise of a busy machine."""
    narrow, wide, invalid = (
        NetworkShape(size, dict.fromkeys(CONVOLUTIONS, filters))
        for size, filters in ((64, 16), (64, 96), (0, 16))
    )
    with latency_worker(classes=3, engine="litert") as measure:
        assert 0 < measure(narrow) < measure(wide)
        with pytest.raises(UserError, match="--target-ms"):
            measure(invalid)


def test_onnx_files_are_measured_too() -> None:
    assert measure_latency(32, dict.fromkeys(CONVOLUTIONS, 8), 3, "onnx") > 0
