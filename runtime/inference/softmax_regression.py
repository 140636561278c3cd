"""Softmax regression on top of given logits, with a penalty that knows how features vary.

The penalty on the weights of a class is their variance within a class, wᵀ (covariance + shrinkage) w: what a
change does to other photos costs as much as the squares of all weights together. The regression is solved in
the space of the samples (a kernel method), so that no [D, D] matrix is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

PENALTY = 1.0
_NEWTON_STEPS, _NEWTON_TOLERANCE = 20, 1e-3
_GRADIENT_STEPS, _GRADIENT_TOLERANCE = 40, 0.03
_BIAS_PENALTY = 1e-4


@dataclass(frozen=True)
class Metric:
    """The inverse covariance within a class, diag(inverse_variances) - axesᵀ axes."""

    inverse_variances: Array  # [D]
    axes: Array  # [K, D]

    def times(self, x: Array) -> Array:
        """Returns x [N, D] times the inverse covariance."""
        return np.asarray(x * self.inverse_variances - (x @ self.axes.T) @ self.axes, np.float64)

    def distances(self, x: Array, means: Array) -> Array:
        """Returns the squared Mahalanobis distances [N, M] of x [N, D] from means [M, D]."""
        scaled = self.times(means)
        own = (x * self.times(x)).sum(1)[:, np.newaxis]
        return np.asarray(np.maximum(own - 2 * x @ scaled.T + (means * scaled).sum(1), 0), np.float64)


def fit_softmax(
    metric: Metric,
    center: Array,
    features: Array,
    logits: Array,
    targets: Array,
    weight: Array,
    rows: Sequence[int],
) -> tuple[Array, Array]:
    """Returns the weights [D, R] and biases [R] that are added to the columns `rows` of logits [N, M].

    Minimizes the cross-entropy with the targets [N, M], weighted by `weight` [N], plus PENALTY / 2 times the
    sum of wᵀ (covariance + shrinkage) w. By the representer theorem, w = inverse covariance · featuresᵀ · a
    with a [N, R], and features [N, D] from the `center` [D]. Newton's method, each step solved by conjugate
    gradients in the inner product of the kernel.
    """
    rows = list(rows)
    scaled = metric.times(features - center)
    kernel = (features - center) @ scaled.T
    weight = weight[:, np.newaxis]

    def changed(a: Array, bias: Array) -> Array:
        result = logits.copy()
        result[:, rows] += kernel @ a + bias
        return result

    def loss(a: Array, bias: Array) -> float:
        result = changed(a, bias)
        top = result.max(1, keepdims=True)
        entropy = (
            np.log(np.exp(result - top).sum(1, keepdims=True)) + top - (targets * result).sum(1)[:, None]
        )
        penalty = PENALTY * float((a * (kernel @ a)).sum()) + _BIAS_PENALTY * float(bias @ bias)
        return float((weight * entropy).sum()) + penalty / 2

    a, bias = np.zeros((len(features), len(rows))), np.zeros(len(rows))
    for _ in range(_NEWTON_STEPS):
        probabilities = softmax(changed(a, bias))[:, rows]
        residual = weight * (probabilities - targets[:, rows])
        gradient = residual + PENALTY * a, residual.sum(0) + _BIAS_PENALTY * bias
        if max(np.abs(part).max(initial=0) for part in gradient) < _NEWTON_TOLERANCE:
            break
        step_a, step_bias = _solve(kernel, weight, probabilities, gradient)
        before, length = loss(a, bias), 1.0
        while loss(a - length * step_a, bias - length * step_bias) > before and length > 1e-4:
            length /= 2
        a, bias = a - length * step_a, bias - length * step_bias
    weights = scaled.T @ a
    return weights, bias - center @ weights


def _solve(
    kernel: Array, weight: Array, probabilities: Array, gradient: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Returns about the Newton step for a gradient (of a [N, R] and of the biases [R])."""
    step = [np.zeros_like(part) for part in gradient]
    residual = [part.copy() for part in gradient]
    direction = [part.copy() for part in gradient]
    energy = start = _inner(kernel, residual, residual)
    for _ in range(_GRADIENT_STEPS):
        if energy <= 0:
            break
        change = kernel @ direction[0] + direction[1]
        curved = weight * probabilities * (change - (probabilities * change).sum(1, keepdims=True))
        product = [curved + PENALTY * direction[0], curved.sum(0) + _BIAS_PENALTY * direction[1]]
        length = energy / _inner(kernel, direction, product)
        for at in range(2):
            step[at] += length * direction[at]
            residual[at] -= length * product[at]
        next_energy = _inner(kernel, residual, residual)
        if next_energy < _GRADIENT_TOLERANCE**2 * start:
            break
        direction = [part + next_energy / energy * old for part, old in zip(residual, direction, strict=True)]
        energy = next_energy
    return step[0], step[1]


def _inner(kernel: Array, one: Sequence[Array], other: Sequence[Array]) -> float:
    return float((one[0] * (kernel @ other[0])).sum() + one[1] @ other[1])


def softmax(logits: Array) -> Array:
    """Returns the probabilities [N, M] for logits [N, M]."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True), np.float64)
