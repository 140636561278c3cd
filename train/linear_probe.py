"""A linear classifier on pooled features that is cheap to fit on many subsets of the photos.

Linear discriminant analysis with a shrunken covariance (Friedman, "Regularized Discriminant Analysis", 1989)
and the same prior for each class. It needs the number, the sums and the products of the features only. These
add up, so they are computed once for each block of photos, and a fit on any union of blocks costs one
Cholesky factorization.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from train.linalg import matmul
from train.network.descriptor import describe

FOLDS = 16  # blocks of the training photos, each measured by classifiers fitted on others
SHRINKAGE = 0.5  # of the mean variance within the classes, added to each variance
MIN_VARIANCE = 1e-9  # for equal photos


@dataclass(frozen=True)
class Moments:
    """Counts [C], sums of the features [C, D] and sum of their products [D, D] of the photos of a block."""

    counts: NDArray[np.float64]
    sums: NDArray[np.float64]
    products: NDArray[np.float64]


@dataclass(frozen=True)
class Blocks:
    """Photos with features [N, D] and class indices [N]; `block` [N] is the number of each photo's block."""

    features: NDArray[np.float32]
    labels: NDArray[Any]
    block: NDArray[np.intp]
    moments: Sequence[Moments]

    @property
    def classes(self) -> int:
        return len(self.moments[0].counts)

    def rows(self, block: int) -> NDArray[np.intp]:
        """The photos of a block."""
        return np.flatnonzero(self.block == block)

    def logits(self, trained_on: Sequence[int], rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Logits [n, C] of the photos `rows`, by a classifier that is fitted on the blocks `trained_on`; -inf
        for a class without a photo in them.
        """
        weights, offset = _fit([self.moments[block] for block in trained_on])
        return matmul(self.features[rows].astype(np.float64), weights) + offset


def divide(pooled: NDArray[Any], labels: NDArray[Any], classes: int, blocks: int) -> Blocks:
    """Divide photos with pooled features [N, W] and class indices [N] into blocks of about the same size,
    each with about the same share of every class.
    """
    features = describe([pooled])
    features -= features.mean(0, dtype=np.float64).astype(np.float32)
    order = np.lexsort((np.random.default_rng(0).random(len(labels)), labels))
    block = np.empty(len(labels), np.intp)
    block[order] = np.arange(len(labels)) % blocks
    moments = []
    for number in range(blocks):
        x, y = features[block == number].astype(np.float64), labels[block == number]
        sums = np.zeros((classes, features.shape[1]))
        np.add.at(sums, y, x)
        moments.append(Moments(np.bincount(y, minlength=classes).astype(float), sums, matmul(x.T, x)))
    return Blocks(features, labels, block, moments)


def cross_validate(blocks: Blocks) -> NDArray[np.float64]:
    """Calibrated probabilities [N, C] of each photo, by a classifier that is fitted on all other blocks."""
    logits = np.empty((len(blocks.labels), blocks.classes))
    numbers = range(len(blocks.moments))
    for held_out in numbers:
        rows = blocks.rows(held_out)
        logits[rows] = blocks.logits([block for block in numbers if block != held_out], rows)
    return np.asarray(softmax(logits / _temperature(logits, blocks.labels), axis=1), np.float64)


def _fit(blocks: Sequence[Moments]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The weights [D, C] and offsets [C] of the logits."""
    counts = np.sum([block.counts for block in blocks], axis=0)
    means = np.sum([block.sums for block in blocks], axis=0) / np.maximum(counts, 1)[:, np.newaxis]
    within = np.sum([block.products for block in blocks], axis=0)
    within -= matmul(np.ascontiguousarray((means * counts[:, np.newaxis]).T), means)
    within /= counts.sum()
    variance = max(float(np.trace(within)) / len(within), MIN_VARIANCE)
    within[np.diag_indices_from(within)] += SHRINKAGE * variance
    weights = cho_solve(cho_factor(within, overwrite_a=True), means.T)
    offset = -(means * weights.T).sum(1) / 2
    offset[counts == 0] = -np.inf
    return np.ascontiguousarray(weights), np.asarray(offset, np.float64)


def _temperature(logits: NDArray[np.float64], labels: NDArray[Any]) -> float:
    """The divisor of the logits with the lowest cross-entropy (Guo et al., ICML 2017)."""
    own = logits[np.arange(len(labels)), labels]
    fitted = np.isfinite(own)
    logits, labels = logits[fitted], labels[fitted]

    def loss(log_temperature: float) -> float:
        log_probabilities = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float(log_probabilities[np.arange(len(labels)), labels].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded").x))
