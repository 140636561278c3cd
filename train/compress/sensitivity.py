"""Measure how much the output changes when a convolution has fewer channels, or the input fewer pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from train.compress.allocation import NetworkShape, PruningCosts, Sensitivity, min_channels
from train.compress.layers import Tensors, convolve, features_after, pooled_features, subtract_mean
from train.compress.photos import read_photos
from train.compress.pruning import OnLayer, eliminate, normal_equations, solve_layer
from train.data.dataset import Dataset, Photo
from train.network.vgg import CONVOLUTIONS
from train.progress import Progress

MEASURING_SIZE = 160  # pixels a side: sensitivities measured at this size hold for the others
PROBE_PHOTOS = 100
PROBE_SHARE = 0.25  # of a layer's channels, kept to measure the change of the output


def measure_costs(
    dataset: Dataset,
    tensors: Tensors,
    original: NetworkShape,
    sample: Sequence[Photo],
    sizes: Sequence[int],
) -> PruningCosts:
    """The cost of removing channels, solved on `sample`, and of `sizes`; both measured on photos of val."""
    probe = choose_probe(dataset)
    size = min(MEASURING_SIZE, original.size)
    with Progress("sensitivities", len(CONVOLUTIONS), "layers") as progress:
        channels = measure_sensitivities(
            tensors, read_photos(dataset, sample, size), read_photos(dataset, probe, size), progress.step
        )
    exact = pooled_features(tensors, read_photos(dataset, probe, original.size))
    changes = {}
    for size in sizes:
        smaller = (
            exact if size == original.size else pooled_features(tensors, read_photos(dataset, probe, size))
        )
        changes[size] = float(np.square(smaller - exact).sum(1).mean())
    return PruningCosts(channels, changes)


def choose_probe(dataset: Dataset) -> list[Photo]:
    """Up to PROBE_PHOTOS photos of val, or else of train, from the whole split, which is sorted by class."""
    photos = dataset.split("val") or dataset.split("train")
    count = min(PROBE_PHOTOS, len(photos))
    return [photos[at * len(photos) // count] for at in range(count)]


def measure_sensitivities(
    tensors: Tensors,
    photos: NDArray[np.uint8],
    probe: NDArray[np.uint8],
    on_layer: OnLayer = lambda done: None,
) -> dict[str, Sensitivity]:
    """The sensitivity of each convolution but the last, by name.

    `photos` [n, H, W, 3] determine the lost variance; `probe` [m, H, W, 3] the change of the output: the mean
    squared distance of pooled features of length 1 when this convolution alone has fewer channels.
    """
    inputs, probed = subtract_mean(photos), subtract_mean(probe)
    names = list(CONVOLUTIONS)
    unpruned = features_after(probed, names, tensors)
    sensitivities: dict[str, Sensitivity] = {}
    for index, name in enumerate(names):
        kernel, bias = tensors[f"{name}/kernel"], tensors[f"{name}/bias"]
        if index:
            equations = normal_equations(inputs, inputs, kernel)
            channels = kernel.shape[2]
            fewest = min_channels(channels)
            order, lost = eliminate(equations.gram, equations.cross, 9, fewest)
            lost_variance = np.full(channels + 1, np.inf)
            lost_variance[fewest:] = lost[::-1] / equations.total
            count = max(int(channels * PROBE_SHARE), fewest)
            kept = np.sort(order[-count:])
            pruned = convolve(probed[..., kept], name, *solve_layer(equations, kept, bias))
            change = np.square(features_after(pruned, names[index + 1 :], tensors) - unpruned).sum(1).mean()
            weight = float(change / max(lost_variance[count], 1e-9))
            sensitivities[names[index - 1]] = Sensitivity(lost_variance, weight)
        inputs, probed = convolve(inputs, name, kernel, bias), convolve(probed, name, kernel, bias)
        on_layer(1)
    return sensitivities
