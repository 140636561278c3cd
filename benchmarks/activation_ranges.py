"""Activation ranges that benchmarks/int8.py compares with export's, which is the maximum.

A range is the largest value that the 256 codes of a layer's activations stand for. A wider range makes each
step coarser; a narrower range clips the largest activations. In VGG16 the answer depends on these: only the
maximum passes the gates (benchmarks/int8.csv).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.int8.quantize import LEVELS

SAMPLE = 400_000  # activations that a method reads
PERCENTILE = 99.99
CANDIDATES = np.linspace(0.3, 1.0, 36)  # ranges tried, as shares of the maximum
BINS = 2048

Floats = NDArray[np.float32]


def percentile(activations: Floats) -> float:
    """The range that clips 1 activation in 10,000."""
    return float(np.percentile(_sample(activations), PERCENTILE))


def mse(activations: Floats) -> float:
    """The range with the smallest mean squared error between activations and the values of their codes."""
    sample, maximum = _sample(activations), float(activations.max())

    def error(upper: float) -> float:
        step = upper / LEVELS
        return float(np.square(np.clip(np.round(sample / step), 0, LEVELS) * step - sample).mean())

    return min((float(share * maximum) for share in CANDIDATES), key=error)


def entropy(activations: Floats) -> float:
    """The range with the smallest Kullback-Leibler divergence of the quantized histogram from the exact one.

    Migacz, "8-bit Inference with TensorRT", GTC 2017. Zeros are not counted, because their code is exact.
    """
    sample, maximum = _sample(activations), float(activations.max())
    counts, edges = np.histogram(sample[sample > 0], BINS, (0, maximum))

    def divergence(share: float) -> float:
        bins = max(int(share * BINS), LEVELS + 1)
        clipped = counts[:bins].astype(np.float64)
        clipped[-1] += counts[bins:].sum()
        code = np.arange(bins) * (LEVELS + 1) // bins
        occupied = counts[:bins] > 0
        mass = np.bincount(code, counts[:bins] * occupied, LEVELS + 1)
        bins_per_code = np.bincount(code, occupied, LEVELS + 1)
        coded = np.where(occupied, mass[code] / np.maximum(bins_per_code[code], 1), 0)
        p, q = clipped / clipped.sum(), coded / coded.sum()
        both = (p > 0) & (q > 0)
        return float((p[both] * np.log(p[both] / q[both])).sum())

    return float(edges[-1] * min(CANDIDATES, key=divergence))


def _sample(activations: Floats) -> Floats:
    count = min(SAMPLE, activations.size)
    return np.random.default_rng(0).choice(activations.ravel(), count, shuffle=False)
