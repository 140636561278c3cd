"""How far a layer's activations reach on real photos: the range that 256 codes are spread over.

After a ReLU the lower end is 0, so a method gives the upper end alone. A wider range makes every step
coarser, a narrower one clips the largest activations. In VGG16 those carry the answer: of the methods here
"max" is the one that holds (benchmarks/int8.csv).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

LEVELS = 255  # steps between the 256 codes
SAMPLE = 400_000  # activations that a method looks at; the maximum is of all of them
PERCENTILE = 99.99
CANDIDATES = np.linspace(0.3, 1.0, 36)  # upper ends tried, as shares of the maximum
BINS = 2048

Sample = NDArray[np.float32]


def largest(sample: Sample, maximum: float) -> float:
    """Nothing is clipped."""
    return maximum


def percentile(sample: Sample, maximum: float) -> float:
    """One activation in ten thousand is clipped."""
    return float(np.percentile(sample, PERCENTILE))


def mse(sample: Sample, maximum: float) -> float:
    """The least mean squared error between activations and their codes' values."""

    def error(upper: float) -> float:
        step = upper / LEVELS
        return float(np.square(np.clip(np.round(sample / step), 0, LEVELS) * step - sample).mean())

    return min((float(share * maximum) for share in CANDIDATES), key=error)


def entropy(sample: Sample, maximum: float) -> float:
    """The least Kullback-Leibler divergence of the coded histogram from the true one.

    Migacz, "8-bit Inference with TensorRT", GTC 2017. Zeros are left out: they are coded exactly.
    """
    counts, edges = np.histogram(sample[sample > 0], BINS, (0, maximum))

    def divergence(share: float) -> float:
        kept = max(int(share * BINS), LEVELS + 1)
        clipped = counts[:kept].astype(np.float64)
        clipped[-1] += counts[kept:].sum()
        code = np.arange(kept) * (LEVELS + 1) // kept
        held = counts[:kept] > 0
        mass = np.bincount(code, counts[:kept] * held, LEVELS + 1)
        bins = np.bincount(code, held, LEVELS + 1)
        coded = np.where(held, mass[code] / np.maximum(bins[code], 1), 0)
        p, q = clipped / clipped.sum(), coded / coded.sum()
        seen = (p > 0) & (q > 0)
        return float((p[seen] * np.log(p[seen] / q[seen])).sum())

    return float(edges[-1] * min(CANDIDATES, key=divergence))


RANGES: dict[str, Callable[[Sample, float], float]] = {
    "max": largest,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}
