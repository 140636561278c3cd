from __future__ import annotations

import pytest

from export.latency import measure_latency
from runtime.common.errors import UserError
from train.compress.allocation import NetworkShape
from train.compress.latency_target import latency_worker
from train.network.vgg import CONVOLUTIONS


def test_the_worker_measures_longer_latencies_for_more_channels() -> None:
    """The wide network has 36 times as many MACs, more than the noise of a busy machine."""
    narrow, wide = (NetworkShape(64, dict.fromkeys(CONVOLUTIONS, filters)) for filters in (16, 96))
    with latency_worker(classes=3, engine="litert") as measure:
        assert 0 < measure(narrow) < measure(wide)


def test_onnx_files_are_measured_too() -> None:
    assert measure_latency(64, dict.fromkeys(CONVOLUTIONS, 8), 3, "onnx") > 0


def test_an_engine_that_cannot_run_the_file_is_reported() -> None:
    # A picture of 0 pixels: the file cannot be converted or run.
    with latency_worker(classes=3, engine="litert") as measure, pytest.raises(UserError):
        measure(NetworkShape(0, dict.fromkeys(CONVOLUTIONS, 8)))
