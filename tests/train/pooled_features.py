"""Pooled features of made-up photos, for tests without a network."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def pooled_features(photos: int, apart: float, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Positive features [photos, 24] of three classes; each class has larger values in a third of them."""
    rng = np.random.default_rng(seed)
    labels = np.arange(photos) % 3
    features = rng.gamma(4, 0.25, (photos, 24)).astype(np.float32)
    for label in range(3):
        features[labels == label, 8 * label : 8 * label + 8] *= 1 + apart
    return features, labels
