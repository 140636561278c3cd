from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from train.compress.allocation import LAST, min_channels
from train.compress.sensitivity import PROBE_PHOTOS, choose_probe, measure_sensitivities
from train.data.dataset import Dataset, Photo
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


@pytest.mark.parametrize("per_class", [1, 20, 30, 39, 61])
def test_all_classes_have_the_same_share_of_the_probe(per_class: int) -> None:
    photos = [Photo(f"{label}/{at}.jpg", label, "val", "") for label in "abcde" for at in range(per_class)]
    counts = Counter(photo.label for photo in choose_probe(Dataset(Path(), tuple("abcde"), tuple(photos))))
    assert set(counts.values()) == {min(per_class, PROBE_PHOTOS // 5)}


def test_without_validation_photos_the_probe_is_of_train() -> None:
    train = tuple(Photo(f"a/{at}.jpg", "a", "train", "") for at in range(3))
    test = Photo("a/3.jpg", "a", "test", "")
    assert choose_probe(Dataset(Path(), ("a",), (*train, test))) == [*train]
