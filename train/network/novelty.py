"""Does a picture look like any of the classes at all? The model's second output, `known`.

The relative Mahalanobis distance of Ren et al., "A Simple Fix to Mahalanobis Distance for Improving Near-OOD
Detection", 2021: how far a photo's pooled features lie from the nearest class, less how far they lie from all
photos together. Two things differ, both measured (benchmarks/known.md): features are square roots, which
keeps few strong channels from deciding, and the second distance counts a little less than the first, so that
what is far from everything stays far.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

RELATIVE = 0.95  # how much of the distance from all photos is taken off
SHRINK = 1.0  # of the mean variance, added to each: there are about as many channels as photos
# Photos of a class are taken to vary by this share of what all photos do, at least: one a class tells nothing
# of it. Drawn flowers vary by half.
LEAST_WITHIN = 0.01
TINY = 1e-9  # variance, where all photos are alike
UNKNOWN_RATE = 0.02  # of the validation photos, at most

THRESHOLD = 0.5  # of `known`: the sigmoid is centred where REFUSED says


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
        """Higher is more like the classes, [N], for pooled features [N, D]."""
        u = unit_square_roots(pooled)
        far = ((u @ self.root.astype(np.float64)) ** 2).sum(1)
        return np.asarray((u @ self.linear + self.offset).max(1) - far, np.float64)

    def __call__(self, pooled: NDArray[Any]) -> NDArray[np.float64]:
        """`known` [N] for pooled features [N, D]."""
        return np.asarray(1 / (1 + np.exp(-(self.score(pooled) - self.center) / self.width)), np.float64)


def fit_novelty(
    train: NDArray[Any], labels: NDArray[Any], val: NDArray[Any], relative: float = RELATIVE
) -> NoveltyModel:
    """Fit on pooled features [N, D] with class indices [N]; centred on photos not fitted on, `val` [M, D]."""
    u = unit_square_roots(train)
    classes = np.unique(labels)
    means = np.stack([u[labels == index].mean(0) for index in classes])
    within = u - means[np.searchsorted(classes, labels)]
    everything = u - u.mean(0)
    variance = max(within.var(0).mean(), LEAST_WITHIN * everything.var(0).mean(), TINY)
    shrink = SHRINK * variance * np.eye(u.shape[1])
    near = np.linalg.inv(within.T @ within / len(u) + shrink)
    far = relative * np.linalg.inv(everything.T @ everything / len(u) + shrink)
    # -(u-m)ᵀ near (u-m) + (u-m₀)ᵀ far (u-m₀), by powers of u. What is squared is the same for every class,
    # and never negative, since photos vary less within a class than over all.
    values, vectors = np.linalg.eigh(near - far)
    root = vectors * np.sqrt(np.maximum(values, 0))
    center = u.mean(0)
    linear = 2 * (means @ near).T - 2 * (far @ center)[:, np.newaxis]
    offset = center @ far @ center - ((means @ near) * means).sum(1)
    plain = NoveltyModel(
        root.astype(np.float32), linear.astype(np.float32), offset.astype(np.float32), center=0.0, width=1.0
    )
    scores = np.sort(plain.score(val if len(val) else train))
    # Below the first that stays: of 302 photos 6 lie under it.
    lowest = scores[int(UNKNOWN_RATE * len(scores))]
    return NoveltyModel(
        plain.root, plain.linear, plain.offset, float(lowest) - 1e-6, max(float(scores.std()), 1e-6)
    )


def novelty_layers(pool: keras.KerasTensor, fitted: NoveltyModel) -> keras.KerasTensor:
    """`known` [N, 1] on top of the pooled features [N, D], in float32."""
    u = keras.layers.UnitNormalization(name="known_unit")(keras.ops.sqrt(pool))
    root = keras.layers.Dense(fitted.root.shape[1], use_bias=False, name="known_root")
    classes = keras.layers.Dense(len(fitted.offset), name="known_classes")
    answer = keras.layers.Dense(1, activation="sigmoid", name="known")
    far = keras.ops.sum(keras.ops.square(root(u)), axis=1, keepdims=True)
    nearest = keras.ops.max(classes(u), axis=1, keepdims=True)
    known = answer(keras.layers.Concatenate(name="known_distances")([nearest, far]))
    root.set_weights([fitted.root])
    classes.set_weights([fitted.linear, fitted.offset])
    kernel = np.array([[1.0], [-1.0]], np.float32) / fitted.width
    answer.set_weights([kernel, np.array([-fitted.center / fitted.width], np.float32)])
    return known


def unit_square_roots(pooled: NDArray[Any]) -> NDArray[np.float64]:
    roots = np.sqrt(np.maximum(pooled.astype(np.float64), 0))
    return np.asarray(roots / np.maximum(np.linalg.norm(roots, axis=1, keepdims=True), 1e-6), np.float64)


def unknown_rate(known: NDArray[Any], thresholds: Mapping[str, float]) -> float:
    """The share of photos that are called unknown."""
    return float((known < thresholds["known"]).mean()) if len(known) else 0.0
