"""Fewer channels for nearly the same activations: which to keep, and the weights that make up for the rest.

Every convolution is solved anew by least squares: from the channels that are kept of what the smaller network
really gives, to what the whole network gave before its ReLU (He, Zhang & Sun, "Channel Pruning for
Accelerating Very Deep Neural Networks", ICCV 2017). Which channels are kept comes from the same equations:
the one goes next whose loss the others can make up for best. That is the optimal brain surgeon, a channel at
a time (Hassibi & Stork, 1993; Kurtic, Frantar & Alistarh, "ZipLM", 2023), and needs no search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import inv, solve

from train.compress.allocation import LAST, Sensitivity, least
from train.linalg import inverse_of_positive, matmul, subtract_product
from train.network.vgg import BLOCKS, CONVOLUTIONS, MEAN_RGB

Floats = NDArray[np.float32]
Tensors = Mapping[str, NDArray[Any]]  # kernels and biases by name, as in train.backbone.Weights
Step = Callable[[int], None]

BATCH = 8
POSITIONS = 100  # patches a photo that a layer is solved on
RIDGE = 3e-3  # of the mean diagonal: less fits these photos, and not the next ones
AT_ONCE = 32  # a step of elimination takes one in so many channels
PROBED = 0.25  # the share of its channels that a layer is left with to see how far answers move


def reconstruct(
    tensors: Tensors, photos: NDArray[np.uint8], widths: Mapping[str, int], step: Step = lambda done: None
) -> tuple[dict[str, Floats], dict[str, float]]:
    """The network with `widths` channels by convolution, solved on photos uint8 [n, H, W, 3].

    The last convolution keeps all of its channels, for no layer follows that could be solved: see `shorten`.
    Also returns the share of the variance before each ReLU that is explained. `step` is called with n after
    each convolution. Memory: about 10 MB a photo of 224x224.
    """
    exact = small = _centered(photos)
    found: dict[str, Floats] = {}
    explained: dict[str, float] = {}
    before = ""
    for name in CONVOLUTIONS:
        kernel, bias = tensors[f"{name}/kernel"], tensors[f"{name}/bias"]
        if before:
            equations = _equations(exact, small, kernel)
            order, lost = eliminate(equations.gram, equations.cross, 9, widths[before])
            kept = np.sort(order[-widths[before] :])
            explained[name] = 1 - float(lost[-1]) / equations.total
            small = np.ascontiguousarray(small[..., kept])
            for part in ("kernel", "bias"):
                found[f"{before}/{part}"] = found[f"{before}/{part}"][..., kept]
            found[f"{name}/kernel"], found[f"{name}/bias"] = _solved(equations, kept, bias)
        else:
            found[f"{name}/kernel"], found[f"{name}/bias"] = kernel, bias
        same = small is exact and not before
        exact = _layer(exact, name, kernel, bias)
        small = exact if same else _layer(small, name, found[f"{name}/kernel"], found[f"{name}/bias"])
        before = name
        step(len(photos))
    return found, explained


def shorten(
    tensors: Mapping[str, Floats], pooled: NDArray[Any], wanted: NDArray[Any], keep: int
) -> dict[str, Floats]:
    """Leave `keep` channels of the last convolution: those whose pooled features [n, c], brought to length 1,
    best give `wanted` [n, d].
    """
    inputs, outputs = unit(pooled), wanted - wanted.mean(0)
    inputs -= inputs.mean(0)
    order, _ = eliminate(inputs.T @ inputs / len(inputs), inputs.T @ outputs / len(inputs), 1, keep, 1e-2)
    kept = np.sort(order[-keep:])
    parts = {f"{LAST}/{part}": tensors[f"{LAST}/{part}"][..., kept] for part in ("kernel", "bias")}
    return {**tensors, **parts}


def sensitivities(
    tensors: Tensors, photos: NDArray[np.uint8], probe: NDArray[np.uint8], step: Step = lambda done: None
) -> dict[str, Sensitivity]:
    """What fewer channels cost each convolution but the last, by name: losses are solved on `photos`, and
    how far answers move is seen on `probe`, both uint8 [n, H, W, 3].

    That is the mean squared distance of pooled features of length 1 when this layer alone has fewer channels.
    `step` is called with n after each convolution.
    """
    exact, seen = _centered(photos), _centered(probe)
    names = list(CONVOLUTIONS)
    whole = _pooled(seen, names, tensors)
    found: dict[str, Sensitivity] = {}
    for at, name in enumerate(names):
        kernel, bias = tensors[f"{name}/kernel"], tensors[f"{name}/bias"]
        if at:
            equations = _equations(exact, exact, kernel)
            channels = kernel.shape[2]
            fewest = least(channels)
            order, lost = eliminate(equations.gram, equations.cross, 9, fewest)
            share = np.full(channels + 1, np.inf)
            share[fewest:] = lost[::-1] / equations.total
            count = max(int(channels * PROBED), fewest)
            kept = np.sort(order[-count:])
            leaner = _layer(seen[..., kept], name, *_solved(equations, kept, bias))
            moved = np.square(_pooled(leaner, names[at + 1 :], tensors) - whole).sum(1).mean()
            found[names[at - 1]] = Sensitivity(share, float(moved / max(share[count], 1e-9)))
        exact, seen = _layer(exact, name, kernel, bias), _layer(seen, name, kernel, bias)
        step(len(photos))
    return found


@dataclass(frozen=True)
class Equations:
    """Least squares of a layer: second moments about the mean, inputs' `gram` [9c, 9c], `cross` with outputs
    [9c, out], both ordered by channel; `total` is the outputs' variance, summed.
    """

    gram: NDArray[np.float64]
    cross: NDArray[np.float64]
    mean_in: NDArray[np.float64]
    mean_out: NDArray[np.float64]
    total: float


def _equations(exact: NDArray[Any], small: NDArray[Any], kernel: Floats) -> Equations:
    """From patches of what the smaller network gives to what `kernel` makes of the whole one's."""
    flat = kernel.transpose(2, 0, 1, 3).reshape(-1, kernel.shape[3])
    inputs = 9 * small.shape[-1]
    gram, cross = np.zeros((inputs, inputs)), np.zeros((inputs, kernel.shape[3]))
    mean_in, mean_out = np.zeros(inputs), np.zeros(kernel.shape[3])
    total, count = 0.0, 0
    for start in range(0, len(exact), 32):
        x = patches(small[start : start + 32], start)
        y = matmul(x if exact is small else patches(exact[start : start + 32], start), flat)
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
    return Equations(gram, cross, mean_in, mean_out, total / count - float(mean_out @ mean_out))


def eliminate(
    gram: NDArray[Any], cross: NDArray[Any], size: int, keep: int, ridge: float = RIDGE
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The order in which channels go, `size` rows of `gram` [c·size, c·size] each, until `keep` are left.

    Returns all channels [c], those that stay at the end, and what is explained less of the outputs' variance
    after none, one, two … went, [c - keep + 1].
    """
    alive = np.arange(len(gram) // size)
    if keep >= len(alive):
        return alive, np.zeros(1)
    inverse = inverse_of_positive(_regular(gram, ridge))
    weights = matmul(inverse, cross)
    gone: list[NDArray[np.intp]] = []
    lost = [0.0]
    while len(alive) > keep:
        n = len(alive)
        paired = inverse.reshape(n, size, n, size)
        own = weights.reshape(n, size, -1)
        blocks = paired[np.arange(n), :, np.arange(n), :]
        cost = (inv(blocks) * (own @ own.transpose(0, 2, 1))).sum((1, 2))
        drop = np.argsort(cost, kind="stable")[: min(max(n // AT_ONCE, 1), n - keep)]
        rest = np.setdiff1d(np.arange(n), drop)
        out, stay = _rows(drop, size), _rows(rest, size)
        shared, theirs = inverse[out][:, stay], weights[out]
        solved = solve(inverse[np.ix_(out, out)], np.concatenate([shared, theirs], axis=1), assume_a="pos")
        carry, makes_up = np.ascontiguousarray(solved[:, : len(stay)].T), solved[:, len(stay) :]
        lost += list(lost[-1] + float((theirs * makes_up).sum()) * np.arange(1, len(drop) + 1) / len(drop))
        weights = weights[stay] - matmul(carry, theirs)
        # Block by block: picking single numbers of a matrix of this size takes longer than the product.
        inverse = paired.take(rest, 0).take(rest, 2).reshape(len(stay), -1)
        subtract_product(inverse, carry, shared)
        gone.append(alive[drop])
        alive = alive[rest]
    return np.concatenate([*gone, alive]), np.array(lost)


def _solved(equations: Equations, kept: NDArray[np.intp], bias: Floats) -> tuple[Floats, Floats]:
    """The kernel [3, 3, kept, out] and the bias [out] that the kept channels are best used with."""
    rows = _rows(kept, 9)
    weights = solve(_regular(equations.gram)[np.ix_(rows, rows)], equations.cross[rows], assume_a="pos")
    kernel = weights.reshape(len(kept), 3, 3, -1).transpose(1, 2, 0, 3)
    shift = equations.mean_out - equations.mean_in[rows] @ weights
    return kernel.astype(np.float32), (shift + bias).astype(np.float32)


def _regular(gram: NDArray[Any], ridge: float = RIDGE) -> NDArray[np.float64]:
    found = np.array(gram, np.float64)
    found[np.diag_indices_from(found)] += ridge * gram.diagonal().mean()
    return found


def _rows(channels: NDArray[np.intp], size: int) -> NDArray[np.intp]:
    return (channels[:, np.newaxis] * size + np.arange(size)).ravel()


def patches(inputs: NDArray[Any], seed: int) -> Floats:
    """What a 3x3 kernel sees at random places of [n, H, W, c], [n · POSITIONS, c · 9] by channel."""
    n, rows, columns, channels = inputs.shape
    count = min(POSITIONS, rows * columns)
    chance = np.random.default_rng(seed)
    found = np.empty((n, count, channels, 9), np.float32)
    for photo, into in zip(inputs, found, strict=True):
        padded = np.pad(photo, ((1, 1), (1, 1), (0, 0)))
        place = chance.choice(rows * columns, count, replace=False)
        row = (place // columns)[:, np.newaxis] + np.arange(9) // 3
        column = (place % columns)[:, np.newaxis] + np.arange(9) % 3
        into[:] = padded[row, column].transpose(0, 2, 1)
    return found.reshape(n * count, -1)


def unit(pooled: NDArray[Any]) -> NDArray[np.float64]:
    """Features brought to length 1, as the pooled head does."""
    exact = pooled.astype(np.float64)
    return np.asarray(exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-9), np.float64)


def pooled_features(tensors: Tensors, photos: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The mean over block5_pool's positions [n, c], brought to length 1, for photos uint8 [n, H, W, 3]."""
    return _pooled(_centered(photos), list(CONVOLUTIONS), tensors)


def _pooled(inputs: NDArray[Any], names: list[str], tensors: Tensors) -> NDArray[np.float64]:
    """Through the layers of these names alone."""
    for name in names:
        inputs = _layer(inputs, name, tensors[f"{name}/kernel"], tensors[f"{name}/bias"])
    return unit(inputs.astype(np.float32).mean((1, 2)))


def _centered(photos: NDArray[np.uint8]) -> NDArray[np.float16]:
    return photos.astype(np.float16) - np.array(MEAN_RGB, np.float16)


def _layer(inputs: NDArray[Any], name: str, kernel: Floats, bias: Floats) -> NDArray[np.float16]:
    """Convolution and ReLU, and the pooling that ends a block. What is over float16's range is cut off:
    VGG16's activations reach a quarter of it.
    """
    pool = 2 if name.endswith(f"conv{len(BLOCKS[int(name[5]) - 1])}") else 1
    n, rows, columns, _ = inputs.shape
    found = np.empty((n, rows // pool, columns // pool, len(bias)), np.float16)
    for start in range(0, n, BATCH):
        batch = inputs[start : start + BATCH].astype(np.float32)
        out = keras.ops.relu(keras.ops.conv(batch, kernel, padding="same") + bias)
        out = keras.ops.max_pool(out, pool) if pool > 1 else out
        found[start : start + BATCH] = np.minimum(keras.ops.convert_to_numpy(out), 65504)
    return found
