from __future__ import annotations

import numpy as np

from train.compress.allocation import LAST, min_channels
from train.compress.sensitivity import measure_sensitivities
from train.network.vgg import CONVOLUTIONS, random_weights


def test_fewer_channels_explain_less_variance() -> None:
    photos = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)
    tensors = random_weights(dict.fromkeys(CONVOLUTIONS, 8), (32, 32)).tensors
    layers: list[int] = []
    sensitivities = measure_sensitivities(tensors, photos, photos[:4], layers.append)
    assert list(sensitivities) == [name for name in CONVOLUTIONS if name != LAST]
    assert sum(layers) == len(CONVOLUTIONS)
    fewest = min_channels(8)
    for sensitivity in sensitivities.values():
        assert np.isinf(sensitivity.lost_variance[:fewest]).all()
        assert (np.diff(sensitivity.lost_variance[fewest:]) <= 1e-9).all()
        assert sensitivity.cost(8) == 0 < sensitivity.cost(fewest)
