from __future__ import annotations

import pytest

from export.latency import latency
from train.network.vgg import CONVOLUTIONS


@pytest.mark.parametrize("engine", ["litert", "onnx"])
def test_more_channels_take_longer(engine: str) -> None:
    """Thirty-six times as many multiplications: no noise of a busy machine hides that."""
    narrow, wide = (latency(dict.fromkeys(CONVOLUTIONS, filters), 64, 3, engine) for filters in (16, 96))
    assert 0 < narrow < wide
