"""Remove channels, and compute the weights with which the remaining channels reconstruct each layer's output.

Each convolution is solved by least squares, from the remaining channels of the pruned network's activations
to the unpruned network's output before its ReLU (He, Zhang & Sun, "Channel Pruning for Accelerating Very Deep
Neural Networks", ICCV 2017). The same equations choose the channels: the next channel to remove is the
channel that the other channels replace best. This is the optimal brain surgeon for whole channels (Hassibi &
Stork, 1993; Kurtic, Frantar & Alistarh, "ZipLM", 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import inv, solve

from train.compress.allocation import LAST
from train.compress.layers import Tensors, convolve, subtract_mean, unit_length
from train.linalg import inverse_of_positive, matmul, subtract_product
from train.network.vgg import CONVOLUTIONS

Floats = NDArray[np.float32]
OnLayer = Callable[[int], object]  # gets 1 after each convolution

PATCHES_PER_PHOTO = 100
RIDGE = 3e-3  # times the mean of the diagonal: a lower ridge fits these photos better and other photos worse
LAST_RIDGE = 1e-2  # for the last convolution, which has one equation per photo
REMOVED_PER_STEP = 32  # elimination removes 1 / REMOVED_PER_STEP of the remaining channels at once
MIN_PROBABILITY = 1e-4


@dataclass(frozen=True)
class Reconstruction:
    """Kernels and biases by name, and the explained share of the variance before each ReLU."""

    tensors: Mapping[str, Floats]
    explained: Mapping[str, float]


def reconstruct(
    tensors: Tensors,
    photos: NDArray[np.uint8],
    widths: Mapping[str, int],
    on_layer: OnLayer = lambda done: None,
) -> Reconstruction:
    """The network with `widths` channels, solved on photos [n, H, W, 3].

    The last convolution keeps all channels, because no layer follows that could replace them: see
    `prune_last`. Memory: about 10 MB for each photo of 224x224.
    """
    unpruned = pruned = subtract_mean(photos)
    solved: dict[str, Floats] = {}
    explained: dict[str, float] = {}
    previous = ""
    for name in CONVOLUTIONS:
        kernel, bias = tensors[f"{name}/kernel"], tensors[f"{name}/bias"]
        if previous:
            equations = normal_equations(unpruned, pruned, kernel)
            order, lost = eliminate(equations.gram, equations.cross, 9, widths[previous])
            kept = np.sort(order[-widths[previous] :])
            explained[name] = 1 - float(lost[-1]) / equations.total
            pruned = np.ascontiguousarray(pruned[..., kept])
            for part in ("kernel", "bias"):
                solved[f"{previous}/{part}"] = solved[f"{previous}/{part}"][..., kept]
            solved[f"{name}/kernel"], solved[f"{name}/bias"] = solve_layer(equations, kept, bias)
        else:
            solved[f"{name}/kernel"], solved[f"{name}/bias"] = kernel, bias
        unpruned = convolve(unpruned, name, kernel, bias)
        if previous:
            pruned = convolve(pruned, name, solved[f"{name}/kernel"], solved[f"{name}/bias"])
        else:
            pruned = unpruned
        previous = name
        on_layer(1)
    return Reconstruction(solved, explained)


def prune_last(
    tensors: Mapping[str, Floats], pooled: NDArray[Any], targets: NDArray[Any], channels: int
) -> dict[str, Floats]:
    """Keep those `channels` of the last convolution whose pooled features [n, c], scaled to length 1, predict
    the targets [n, d] best.
    """
    inputs, outputs = unit_length(pooled), targets - targets.mean(0)
    inputs -= inputs.mean(0)
    gram, cross = inputs.T @ inputs / len(inputs), inputs.T @ outputs / len(inputs)
    order, _ = eliminate(gram, cross, 1, channels, LAST_RIDGE)
    kept = np.sort(order[-channels:])
    parts = {f"{LAST}/{part}": tensors[f"{LAST}/{part}"][..., kept] for part in ("kernel", "bias")}
    return {**tensors, **parts}


def pruning_targets(features: NDArray[Any], probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """The targets of `prune_last`: the unpruned network's features of length 1 and its log-probabilities,
    each scaled to a total variance of 1.
    """
    parts = [unit_length(features), np.log(np.maximum(probabilities, MIN_PROBABILITY))]
    return np.concatenate([part / np.sqrt(part.var(0).sum()) for part in parts], axis=1)


@dataclass(frozen=True)
class NormalEquations:
    """A layer's least squares: second moments about the mean of its inputs, `gram` [9c, 9c], and of inputs
    with outputs, `cross` [9c, out], both ordered by channel; `total` is the sum of the outputs' variances.
    """

    gram: NDArray[np.float64]
    cross: NDArray[np.float64]
    mean_in: NDArray[np.float64]
    mean_out: NDArray[np.float64]
    total: float


def normal_equations(unpruned: NDArray[Any], pruned: NDArray[Any], kernel: Floats) -> NormalEquations:
    """From patches of the pruned network's activations to `kernel` times the unpruned network's patches."""
    flat = kernel.transpose(2, 0, 1, 3).reshape(-1, kernel.shape[3])
    inputs = 9 * pruned.shape[-1]
    gram, cross = np.zeros((inputs, inputs)), np.zeros((inputs, kernel.shape[3]))
    mean_in, mean_out = np.zeros(inputs), np.zeros(kernel.shape[3])
    total, count = 0.0, 0
    for start in range(0, len(unpruned), 32):
        x = sample_patches(pruned[start : start + 32], start)
        wider = x if unpruned is pruned else sample_patches(unpruned[start : start + 32], start)
        y = matmul(wider, flat)
        gram += matmul(x.T, x)
        cross += matmul(x.T, y)
        mean_in += x.sum(0, dtype=np.float64)
        mean_out += y.sum(0, dtype=np.float64)
        total += float(np.square(y, dtype=np.float64).sum())
        count += len(x)
    for sums in (gram, cross, mean_in, mean_out):
        sums /= count
    subtract_product(gram, mean_in[:, np.newaxis], mean_in[np.newaxis])
    subtract_product(cross, mean_in[:, np.newaxis], mean_out[np.newaxis])
    return NormalEquations(gram, cross, mean_in, mean_out, total / count - float(mean_out @ mean_out))


def sample_patches(inputs: NDArray[Any], seed: int) -> Floats:
    """3x3 patches at random positions of [n, H, W, c]: [n · PATCHES_PER_PHOTO, c · 9], ordered by channel."""
    n, rows, columns, channels = inputs.shape
    count = min(PATCHES_PER_PHOTO, rows * columns)
    rng = np.random.default_rng(seed)
    patches = np.empty((n, count, channels, 9), np.float32)
    for photo, destination in zip(inputs, patches, strict=True):
        padded = np.pad(photo, ((1, 1), (1, 1), (0, 0)))
        position = rng.choice(rows * columns, count, replace=False)
        row = (position // columns)[:, np.newaxis] + np.arange(9) // 3
        column = (position % columns)[:, np.newaxis] + np.arange(9) % 3
        destination[:] = padded[row, column].transpose(0, 2, 1)
    return patches.reshape(n * count, -1)


def eliminate(
    gram: NDArray[Any], cross: NDArray[Any], rows_per_channel: int, keep: int, ridge: float = RIDGE
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The order in which channels are removed until `keep` remain; a channel has `rows_per_channel` rows of
    `gram` [c · rows, c · rows].

    Returns all channels [c], with the remaining ones at the end, and the variance of the outputs that is lost
    after 0, 1, 2 … removals, [c - keep + 1].
    """
    remaining = np.arange(len(gram) // rows_per_channel)
    if keep >= len(remaining):
        return remaining, np.zeros(1)
    inverse = inverse_of_positive(_with_ridge(gram, ridge))
    weights = matmul(inverse, cross)
    removed: list[NDArray[np.intp]] = []
    lost = [0.0]
    while len(remaining) > keep:
        n = len(remaining)
        by_channel = inverse.reshape(n, rows_per_channel, n, rows_per_channel)
        own_weights = weights.reshape(n, rows_per_channel, -1)
        blocks = by_channel[np.arange(n), :, np.arange(n), :]
        cost = (inv(blocks) * (own_weights @ own_weights.transpose(0, 2, 1))).sum((1, 2))
        drop = np.argsort(cost, kind="stable")[: min(max(n // REMOVED_PER_STEP, 1), n - keep)]
        rest = np.setdiff1d(np.arange(n), drop)
        out, stay = _rows_of(drop, rows_per_channel), _rows_of(rest, rows_per_channel)
        shared, dropped_weights = inverse[out][:, stay], weights[out]
        right_sides = np.concatenate([shared, dropped_weights], axis=1)
        solved = solve(inverse[np.ix_(out, out)], right_sides, assume_a="pos")
        carry, change = np.ascontiguousarray(solved[:, : len(stay)].T), solved[:, len(stay) :]
        step_loss = float((dropped_weights * change).sum())
        lost += list(lost[-1] + step_loss * np.arange(1, len(drop) + 1) / len(drop))
        weights = weights[stay] - matmul(carry, dropped_weights)
        # Taking whole blocks: picking single numbers from a matrix of this size is slower than the product.
        inverse = by_channel.take(rest, 0).take(rest, 2).reshape(len(stay), -1)
        subtract_product(inverse, carry, shared)
        removed.append(remaining[drop])
        remaining = remaining[rest]
    return np.concatenate([*removed, remaining]), np.array(lost)


def solve_layer(equations: NormalEquations, kept: NDArray[np.intp], bias: Floats) -> tuple[Floats, Floats]:
    """The kernel [3, 3, kept, out] and bias [out] that reconstruct the outputs best from kept channels."""
    rows = _rows_of(kept, 9)
    weights = solve(_with_ridge(equations.gram)[np.ix_(rows, rows)], equations.cross[rows], assume_a="pos")
    kernel = weights.reshape(len(kept), 3, 3, -1).transpose(1, 2, 0, 3)
    shift = equations.mean_out - equations.mean_in[rows] @ weights
    return kernel.astype(np.float32), (shift + bias).astype(np.float32)


def _with_ridge(gram: NDArray[Any], ridge: float = RIDGE) -> NDArray[np.float64]:
    regularized = np.array(gram, np.float64)
    regularized[np.diag_indices_from(regularized)] += ridge * gram.diagonal().mean()
    return regularized


def _rows_of(channels: NDArray[np.intp], rows_per_channel: int) -> NDArray[np.intp]:
    return (channels[:, np.newaxis] * rows_per_channel + np.arange(rows_per_channel)).ravel()
