"""Decide whether a picture shows any of the classes: the model's second output, `known`.

The score of a picture's descriptor compares it with the photos of the classes: the relative Mahalanobis
distance of Ren et al., "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection", 2021. A
penalty for the resemblance to negatives, pictures of none of the classes, is subtracted. It comes from
logistic regression: outlier exposure (Hendrycks et al., 2019) on finished features. benchmarks/known.md
compares both with other methods, and docs/decisions.md measures the constants below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

BACKGROUND_WEIGHT = 0.92  # of the distance to all photos, which is subtracted
SHRINKAGE = 0.7  # of the mean variance, added to each variance: there are about as many channels as photos
# The values of block 5 count this many times, so that shrinkage hides less of their differences: the network
# was trained to separate the classes there.
LAST_LAYER_SCALE = 2.0
# The variance within a class is at least this share of the variance of all photos, because a class with one
# photo has no variance. The share of drawn flowers is a half.
MIN_WITHIN_CLASS_SHARE = 0.01
MIN_VARIANCE = 1e-9  # for equal photos
RANK = 92  # squares in `known`: more do not separate better, far fewer do worse
NEGATIVES_WEIGHT = 2.0  # of the penalty, before its bound; both have standard deviation 1 on known photos
# This share of the known photos has no penalty. Without the bound, the photos that resemble negatives least
# would score highest, and photos of an unknown flower resemble them as little.
UNPENALIZED_SHARE = 0.9
REGRESSION_PENALTY = 1.0  # half the squared length of the weights, against the summed loss of all pictures
UNKNOWN_RATE = 0.0175  # at most this share of the validation photos is rejected as unknown

WIDTH = 2.0  # of the sigmoid, in standard deviations of the known photos' scores; float16 needs more than 1.2
THRESHOLD = 0.5  # of `known`: the sigmoid is centred so that UNKNOWN_RATE holds


@dataclass(frozen=True)
class NoveltyModel:
    """known = sigmoid((score - center) / width), of descriptors f [N, D] (train/network/descriptor.py):
    score = max over the classes of (f · linear + offset) - the sum over k of square_weights · (f · root)²
    - max(0, f · negatives + negatives_offset).
    """

    root: NDArray[np.float32]  # [D, K]
    square_weights: NDArray[np.float32]  # [K]: 1, or -1 where all photos vary less than within a class
    linear: NDArray[np.float32]  # [D, C]
    offset: NDArray[np.float32]  # [C]
    negatives: NDArray[np.float32]  # [D], zeros when there are none
    negatives_offset: float
    center: float
    width: float

    def score(self, descriptors: NDArray[Any]) -> NDArray[np.float64]:
        """The similarity to the nearest class [N], for descriptors [N, D]."""
        f = descriptors.astype(np.float64)
        squares = (f @ self.root.astype(np.float64)) ** 2 @ self.square_weights
        penalty = np.maximum(f @ self.negatives + self.negatives_offset, 0)
        return np.asarray((f @ self.linear + self.offset).max(1) - squares - penalty, np.float64)

    def __call__(self, descriptors: NDArray[Any]) -> NDArray[np.float64]:
        """`known` [N] for descriptors [N, D]."""
        return np.asarray(expit((self.score(descriptors) - self.center) / self.width), np.float64)


def fit_novelty(
    train: NDArray[Any],
    labels: NDArray[Any],
    val: NDArray[Any],
    negatives: NDArray[Any] | None = None,
    *,
    last_width: int,
    background_weight: float = BACKGROUND_WEIGHT,
) -> NoveltyModel:
    """Fit on descriptors [N, D] with class indices [N], and on descriptors of negatives [M, D].

    The last `last_width` values of a descriptor belong to block 5. Other photos of the classes, `val` [V, D],
    set the scales and the threshold. If there are fewer than two, which have no standard deviation, `train`
    does.
    """
    known = val if len(val) > 1 else train
    scale = np.ones(train.shape[1])
    scale[-last_width:] = LAST_LAYER_SCALE
    model = _unscaled(_relative_mahalanobis(train * scale, labels, background_weight), scale)
    if negatives is not None and len(negatives):
        weights = scale * _logistic_regression(train * scale, negatives * scale)
        resemblance = known @ weights
        factor = NEGATIVES_WEIGHT * model.score(known).std() / max(float(resemblance.std()), 1e-6)
        model = replace(
            model,
            negatives=(factor * weights).astype(np.float32),
            negatives_offset=-factor * float(np.quantile(resemblance, UNPENALIZED_SHARE)),
        )
    scores = np.sort(model.score(known))
    lowest_known = float(scores[int(UNKNOWN_RATE * len(scores))])
    return replace(model, center=lowest_known - 1e-6, width=max(WIDTH * float(scores.std()), 1e-6))


def _relative_mahalanobis(
    f: NDArray[np.float64], labels: NDArray[Any], background_weight: float
) -> NoveltyModel:
    """score = (f-m₀)ᵀ far (f-m₀) - the minimum over the classes of (f-m)ᵀ near (f-m).

    The quadratic term is near - far = c·I + a matrix of which RANK eigenvalues suffice, because shrinkage
    adds a multiple of I to both covariances. All descriptors have the same length, so c·|f|² is a constant.
    """
    classes = np.unique(labels)
    means = np.stack([f[labels == index].mean(0) for index in classes])
    within, overall = f - means[np.searchsorted(classes, labels)], f - f.mean(0)
    variance = max(within.var(0).mean(), MIN_WITHIN_CLASS_SHARE * overall.var(0).mean(), MIN_VARIANCE)
    shrinkage = SHRINKAGE * variance
    identity = np.eye(f.shape[1])
    near = np.linalg.inv(within.T @ within / len(f) + shrinkage * identity)
    far = background_weight * np.linalg.inv(overall.T @ overall / len(f) + shrinkage * identity)
    common = (1 - background_weight) / shrinkage
    values, vectors = np.linalg.eigh(near - far - common * identity)
    largest = np.argsort(-np.abs(values))[:RANK]
    values, vectors = values[largest], vectors[:, largest]
    center = f.mean(0)
    linear = 2 * (means @ near).T - 2 * (far @ center)[:, np.newaxis]
    length = float((f**2).sum(1).mean())
    offset = center @ far @ center - ((means @ near) * means).sum(1) - common * length
    return NoveltyModel(
        root=(vectors * np.sqrt(np.abs(values))).astype(np.float32),
        square_weights=np.where(values < 0, -1, 1).astype(np.float32),
        linear=linear.astype(np.float32),
        offset=offset.astype(np.float32),
        negatives=np.zeros(f.shape[1], np.float32),
        negatives_offset=0.0,
        center=0.0,
        width=1.0,
    )


def _unscaled(model: NoveltyModel, scale: NDArray[np.float64]) -> NoveltyModel:
    """The model for descriptors from the model for descriptors times `scale` [D]."""
    column = scale[:, np.newaxis].astype(np.float32)
    return replace(model, root=column * model.root, linear=column * model.linear)


def _logistic_regression(train: NDArray[np.float64], negatives: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights [D] that are positive on negatives; both kinds count the same in sum."""
    f = np.concatenate([train, negatives])
    center = f.mean(0)
    f = np.concatenate([f - center, np.ones((len(f), 1))], axis=1)
    sign = np.concatenate([-np.ones(len(train)), np.ones(len(negatives))])
    share = len(f) / 2 / np.where(sign < 0, len(train), len(negatives))

    def loss(w: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margin = sign * (f @ w)
        value = (share * np.logaddexp(0, -margin)).sum() + REGRESSION_PENALTY * (w[:-1] ** 2).sum() / 2
        gradient = f.T @ (-share * sign * expit(-margin))
        gradient[:-1] += REGRESSION_PENALTY * w[:-1]
        return float(value), gradient

    found = minimize(loss, np.zeros(f.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 300})
    return np.asarray(found.x[:-1], np.float64)


def novelty_layers(descriptor: keras.KerasTensor, model: NoveltyModel) -> keras.KerasTensor:
    """`known` [N, 1] as layers on top of the descriptors [N, D], in float32."""
    root = keras.layers.Dense(model.root.shape[1], use_bias=False, name="known_root")
    classes = keras.layers.Dense(len(model.offset), name="known_classes")
    negatives = keras.layers.Dense(1, name="known_negatives")
    output = keras.layers.Dense(1, activation="sigmoid", name="known")
    projected = root(descriptor)
    # Not keras.ops.square and sum: a compiler of neural processors never finishes with that pattern.
    squares = keras.layers.Multiply(name="known_squares")([projected, projected])
    nearest = keras.ops.max(classes(descriptor), axis=1, keepdims=True)
    penalty = keras.layers.ReLU(name="known_penalty")(negatives(descriptor))
    known = output(keras.layers.Concatenate(name="known_terms")([nearest, squares, penalty]))
    root.set_weights([model.root])
    classes.set_weights([model.linear, model.offset])
    negatives.set_weights([model.negatives[:, np.newaxis], np.array([model.negatives_offset], np.float32)])
    kernel = np.concatenate([[1.0], -model.square_weights, [-1.0]])[:, np.newaxis] / model.width
    output.set_weights([kernel.astype(np.float32), np.array([-model.center / model.width], np.float32)])
    return known


def unknown_rate(known: NDArray[Any], thresholds: Mapping[str, float]) -> float:
    """The share of photos that are rejected as unknown."""
    return float((known < thresholds["known"]).mean()) if len(known) else 0.0
