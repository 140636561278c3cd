"""What the tests of teaching share: the outputs of the network of tests.runtime.scene."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def compute_probabilities(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the network computes, float64 [N, 3]: the strongest channel of the quarters."""
    logits = 2.5 * features.reshape(-1, 4, 3).sum(1)[:, ::-1]
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))
