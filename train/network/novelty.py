"""Decide whether a picture shows any of the classes: the model's second output, `known`.

The relative Mahalanobis distance of Ren et al., "A Simple Fix to Mahalanobis Distance for Improving Near-OOD
Detection", 2021: the distance of a photo's pooled features to the nearest class, minus their distance to all
photos. Two changes to the paper are measured in benchmarks/known.md: features are square roots, so that a few
strong channels do not dominate, and the second distance has a weight below 1, so that a picture that is far
from all photos keeps a large distance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

BACKGROUND_WEIGHT = 0.95  # of the distance to all photos, which is subtracted
SHRINKAGE = 1.0  # of the mean variance, added to each variance: there are about as many channels as photos
# The variance within a class is at least this share of the variance of all photos, because a class with one
# photo has no variance. The share of drawn flowers is a half.
MIN_WITHIN_CLASS_SHARE = 0.01
MIN_VARIANCE = 1e-9  # for equal photos
UNKNOWN_RATE = 0.02  # at most this share of the validation photos is rejected as unknown

THRESHOLD = 0.5  # of `known`: the sigmoid is centred so that UNKNOWN_RATE holds


@dataclass(frozen=True)
class NoveltyModel:
    """known = sigmoid((nearest - far - center) / width), of unit features u [N, D] = √pooled / |√pooled|:
    nearest = max over the classes of (u · linear + offset), far = |u · root|².
    """

    root: NDArray[np.float32]  # [D, D]
    linear: NDArray[np.float32]  # [D, C]
    offset: NDArray[np.float32]  # [C]
    center: float
    width: float

    def score(self, pooled: NDArray[Any]) -> NDArray[np.float64]:
        """The similarity to the nearest class [N], for pooled features [N, D]."""
        u = unit_square_roots(pooled)
        far = ((u @ self.root.astype(np.float64)) ** 2).sum(1)
        return np.asarray((u @ self.linear + self.offset).max(1) - far, np.float64)

    def __call__(self, pooled: NDArray[Any]) -> NDArray[np.float64]:
        """`known` [N] for pooled features [N, D]."""
        return np.asarray(1 / (1 + np.exp(-(self.score(pooled) - self.center) / self.width)), np.float64)


def fit_novelty(
    train: NDArray[Any], labels: NDArray[Any], val: NDArray[Any], background_weight: float = BACKGROUND_WEIGHT
) -> NoveltyModel:
    """Fit on pooled features [N, D] with class indices [N]; other photos, `val` [M, D], set the threshold."""
    u = unit_square_roots(train)
    classes = np.unique(labels)
    means = np.stack([u[labels == index].mean(0) for index in classes])
    within = u - means[np.searchsorted(classes, labels)]
    overall = u - u.mean(0)
    variance = max(within.var(0).mean(), MIN_WITHIN_CLASS_SHARE * overall.var(0).mean(), MIN_VARIANCE)
    shrinkage = SHRINKAGE * variance * np.eye(u.shape[1])
    near = np.linalg.inv(within.T @ within / len(u) + shrinkage)
    far = background_weight * np.linalg.inv(overall.T @ overall / len(u) + shrinkage)
    # -(u-m)ᵀ near (u-m) + (u-m₀)ᵀ far (u-m₀), ordered by powers of u. The quadratic term is the same for each
    # class, and never negative, because photos vary less within a class than over all classes.
    values, vectors = np.linalg.eigh(near - far)
    root = vectors * np.sqrt(np.maximum(values, 0))
    center = u.mean(0)
    linear = 2 * (means @ near).T - 2 * (far @ center)[:, np.newaxis]
    offset = center @ far @ center - ((means @ near) * means).sum(1)
    uncentered = NoveltyModel(
        root.astype(np.float32), linear.astype(np.float32), offset.astype(np.float32), center=0.0, width=1.0
    )
    scores = np.sort(uncentered.score(val if len(val) else train))
    lowest_known = float(scores[int(UNKNOWN_RATE * len(scores))])
    return replace(uncentered, center=lowest_known - 1e-6, width=max(float(scores.std()), 1e-6))


def novelty_layers(pool: keras.KerasTensor, model: NoveltyModel) -> keras.KerasTensor:
    """`known` [N, 1] as layers on top of the pooled features [N, D], in float32."""
    u = keras.layers.UnitNormalization(name="known_unit")(keras.ops.sqrt(pool))
    root = keras.layers.Dense(model.root.shape[1], use_bias=False, name="known_root")
    classes = keras.layers.Dense(len(model.offset), name="known_classes")
    output = keras.layers.Dense(1, activation="sigmoid", name="known")
    far = keras.ops.sum(keras.ops.square(root(u)), axis=1, keepdims=True)
    nearest = keras.ops.max(classes(u), axis=1, keepdims=True)
    known = output(keras.layers.Concatenate(name="known_distances")([nearest, far]))
    root.set_weights([model.root])
    classes.set_weights([model.linear, model.offset])
    kernel = np.array([[1.0], [-1.0]], np.float32) / model.width
    output.set_weights([kernel, np.array([-model.center / model.width], np.float32)])
    return known


def unit_square_roots(pooled: NDArray[Any]) -> NDArray[np.float64]:
    """Square roots of pooled features [N, D], each row scaled to length 1."""
    roots = np.sqrt(np.maximum(pooled.astype(np.float64), 0))
    return np.asarray(roots / np.maximum(np.linalg.norm(roots, axis=1, keepdims=True), 1e-6), np.float64)


def unknown_rate(known: NDArray[Any], thresholds: Mapping[str, float]) -> float:
    """The share of photos that are rejected as unknown."""
    return float((known < thresholds["known"]).mean()) if len(known) else 0.0
