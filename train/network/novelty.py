"""Decide whether a picture shows any of the classes: the model's second output, `known`.

The score of a picture is minus its squared distance to the nearest prototype, a typical descriptor of a
class. Prototypes are the centers of k-means on the photos of a class, so they stand for the nearest neighbour
of Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", 2022, without a copy of all photos
in the model. A penalty for the resemblance to negatives, pictures of none of the classes, is subtracted. It
comes from logistic regression: outlier exposure (Hendrycks et al., 2019) on finished features.
benchmarks/known.md compares it with other methods, and docs/decisions.md measures the constants below.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.optimize import minimize
from scipy.special import expit

PROTOTYPES = 96  # of all classes together, but at least one of each
DESCRIPTORS_PER_PROTOTYPE = 8  # on average; each photo has a descriptor for each of its views, mostly 2
KMEANS_STEPS = 20
NEGATIVES_WEIGHT = 2.0  # of the penalty, before its bound; both have standard deviation 1 on known photos
# This share of the known photos has no penalty. Without the bound, the photos that resemble negatives least
# would score highest, and photos of an unknown flower resemble them as little.
UNPENALIZED_SHARE = 0.9
REGRESSION_PENALTY = 1.0  # half the squared length of the weights, against the summed loss of all pictures
UNKNOWN_RATE = 0.015  # at most this share of the validation photos is rejected as unknown

WIDTH = 2.0  # of the sigmoid, in standard deviations of the known photos' scores; float16 needs more than 1.2
THRESHOLD = 0.5  # of `known`: the sigmoid is centred so that UNKNOWN_RATE holds


@dataclass(frozen=True)
class NoveltyModel:
    """known = sigmoid((score - center) / width), of descriptors f [N, D] (train/network/descriptor.py):
    score = max over the prototypes of (f · linear + offset) - max(0, f · negatives + negatives_offset).

    The first term is minus the squared distance to the nearest prototype, because all descriptors have the
    same length.
    """

    linear: NDArray[np.float32]  # [D, K]
    offset: NDArray[np.float32]  # [K]
    negatives: NDArray[np.float32]  # [D], zeros when there are none
    negatives_offset: float
    center: float
    width: float

    def score(self, descriptors: NDArray[Any]) -> NDArray[np.float64]:
        """The similarity to the nearest prototype, minus the penalty [N], for descriptors [N, D]."""
        f = descriptors.astype(np.float64)
        penalty = np.maximum(f @ self.negatives + self.negatives_offset, 0)
        return np.asarray((f @ self.linear + self.offset).max(1) - penalty, np.float64)

    def __call__(self, descriptors: NDArray[Any]) -> NDArray[np.float64]:
        """`known` [N] for descriptors [N, D]."""
        return np.asarray(expit((self.score(descriptors) - self.center) / self.width), np.float64)


def fit_novelty(
    train: NDArray[Any], labels: NDArray[Any], val: NDArray[Any], negatives: NDArray[Any] | None = None
) -> NoveltyModel:
    """Fit on descriptors [N, D] with class indices [N], and on descriptors of negatives [M, D].

    Other photos of the classes, `val` [V, D], set the scales and the threshold; without any, `train` does.
    """
    known = val if len(val) else train
    model = _nearest_prototype(train.astype(np.float64), labels)
    if negatives is not None and len(negatives):
        weights = _logistic_regression(train.astype(np.float64), negatives.astype(np.float64))
        resemblance = known @ weights
        scale = NEGATIVES_WEIGHT * model.score(known).std() / max(float(resemblance.std()), 1e-6)
        model = replace(
            model,
            negatives=(scale * weights).astype(np.float32),
            negatives_offset=-scale * float(np.quantile(resemblance, UNPENALIZED_SHARE)),
        )
    scores = np.sort(model.score(known))
    lowest_known = float(scores[int(UNKNOWN_RATE * len(scores))])
    return replace(model, center=lowest_known - 1e-6, width=max(WIDTH * float(scores.std()), 1e-6))


def most_prototypes(classes: int) -> int:
    """The most prototypes of each class in a detector of so many classes."""
    return max(1, PROTOTYPES // classes)


def _nearest_prototype(f: NDArray[np.float64], labels: NDArray[Any]) -> NoveltyModel:
    """score = minus the squared distance of f to the nearest prototype."""
    classes = np.unique(labels)
    most = most_prototypes(len(classes))
    prototypes = np.concatenate([_prototypes(f[labels == index], most) for index in classes])
    length = float((f**2).sum(1).mean())
    return NoveltyModel(
        linear=(2 * prototypes.T).astype(np.float32),
        offset=(-(prototypes**2).sum(1) - length).astype(np.float32),
        negatives=np.zeros(f.shape[1], np.float32),
        negatives_offset=0.0,
        center=0.0,
        width=1.0,
    )


def _prototypes(f: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """Up to `most` centers [K, D] of the descriptors of a class."""
    count = min(most, len(f) // DESCRIPTORS_PER_PROTOTYPE)
    if count > 1:
        count = min(count, len(np.unique(f, axis=0)))
    if count < 2:
        return np.asarray(f.mean(0, keepdims=True), np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a center without photos stays where it is: at a photo
        centers, _ = kmeans2(f, count, KMEANS_STEPS, minit="++", rng=0)
    return np.asarray(centers, np.float64)


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
    prototypes = keras.layers.Dense(len(model.offset), name="known_prototypes")
    negatives = keras.layers.Dense(1, name="known_negatives")
    output = keras.layers.Dense(1, activation="sigmoid", name="known")
    nearest = keras.ops.max(prototypes(descriptor), axis=1, keepdims=True)
    penalty = keras.layers.ReLU(name="known_penalty")(negatives(descriptor))
    known = output(keras.layers.Concatenate(name="known_terms")([nearest, penalty]))
    prototypes.set_weights([model.linear, model.offset])
    negatives.set_weights([model.negatives[:, np.newaxis], np.array([model.negatives_offset], np.float32)])
    kernel = np.array([[1.0], [-1.0]], np.float32) / model.width
    output.set_weights([kernel, np.array([-model.center / model.width], np.float32)])
    return known


def unknown_rate(known: NDArray[Any], thresholds: Mapping[str, float]) -> float:
    """The share of photos that are rejected as unknown."""
    return float((known < thresholds["known"]).mean()) if len(known) else 0.0
