"""The statistics of a model's features, from which adapting and teaching know the model's classes.

An export writes them into every model file. The layout is that of safetensors: a length of 8 bytes
(little-endian), a JSON header with dtype, shape and position of each array, and the arrays.
https://huggingface.co/docs/safetensors: the format. The package is not needed here, and its parser does not
know which arrays, types and sizes these statistics may have.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.common.errors import ModelError
from runtime.model_file.contract import MAX_FEATURES, MAX_LABELS, Contract, parse_json
from runtime.model_file.files import MAX_STATISTICS_BYTES

MAX_FACTORS = 32  # docs/decisions.md compares 16, 32 and 64
MAX_POSITIVES = 100
MAX_CODE = 255
_HEADER_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 2**14
# Of each array: the names of its dtype in safetensors and in NumPy, and its axes. Widest dtype first, so that
# each array is aligned.
_ARRAYS: dict[str, tuple[str, str, str]] = {
    "positive_known": ("F32", "<f4", "P"),
    "means": ("F16", "<f2", "CD"),
    "variances": ("F16", "<f2", "D"),
    "factors": ("F16", "<f2", "KD"),
    "offset": ("F16", "<f2", "D"),
    "step": ("F16", "<f2", "D"),
    "positive_labels": ("U16", "<u2", "P"),
    "positives": ("U8", "|u1", "PD"),
}
_LIMITS = {"C": (2, MAX_LABELS), "D": (1, MAX_FEATURES), "K": (0, MAX_FACTORS), "P": (1, MAX_POSITIVES)}


@dataclass(frozen=True)
class ModelStatistics:
    """Features of photos of the C classes, as the model computes them: their distribution and P examples.

    The covariance within a class is about diag(residual_variances) + factorsᵀ factors, the same for all.
    """

    means: NDArray[np.float16]  # [C, D], of each class
    variances: NDArray[np.float16]  # [D], within a class
    factors: NDArray[np.float16]  # [K, D], K ≤ MAX_FACTORS: the largest axes of the covariance within a class
    positives: NDArray[np.uint8]  # [P, D], P ≤ MAX_POSITIVES: codes of features; see `positive_features`
    offset: NDArray[np.float16]  # [D]
    step: NDArray[np.float16]  # [D]
    positive_labels: NDArray[np.uint16]  # [P], positions of the classes
    positive_known: NDArray[np.float32]  # [P], the model's output `known`; 1 when it has none

    @property
    def positive_features(self) -> NDArray[np.float32]:
        """The features of the examples, float32 [P, D]: offset + step x code."""
        codes = self.positives.astype(np.float32)
        return np.asarray(self.offset + self.step.astype(np.float32) * codes, np.float32)

    @property
    def residual_variances(self) -> NDArray[np.float32]:
        """The part of the variances that the factors do not explain, float32 [D]."""
        explained = np.square(self.factors, dtype=np.float32).sum(0)
        return np.asarray(np.maximum(self.variances - explained, 0), np.float32)

    def draw(self, count: int, random: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Returns features [count, D] drawn from the Gaussians of the classes in turn, and their classes."""
        factors = self.factors.astype(np.float64)
        classes = np.arange(count) % len(self.means)
        features = self.means[classes] + random.normal(size=(count, len(factors))) @ factors
        features += random.normal(size=features.shape) * np.sqrt(self.residual_variances)
        return features, classes

    def check(self, contract: Contract) -> None:
        """Raises ModelError when these are not statistics of a model with this contract."""
        expected = (len(contract.labels), contract.features)
        if self.means.shape != expected:
            raise ModelError(
                f"its statistics are of {list(self.means.shape)} classes and features, "
                f"its contract says {list(expected)}: export it again"
            )

    def to_bytes(self) -> bytes:
        """Returns the arrays in the layout of safetensors. Equal statistics give equal bytes.

        Raises ModelError when `from_bytes` would refuse them.
        """
        header, parts, at = dict[str, Any](), list[bytes](), 0
        for name, (code, dtype, _) in _ARRAYS.items():
            array = getattr(self, name)
            part = np.ascontiguousarray(array, np.dtype(dtype)).tobytes()
            header[name] = {
                "dtype": code,
                "shape": list(array.shape),
                "data_offsets": [at, at + len(part)],
            }
            parts.append(part)
            at += len(part)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _HEADER_LENGTH_BYTES)
        data = b"".join([len(text).to_bytes(_HEADER_LENGTH_BYTES, "little"), text, *parts])
        self.from_bytes(data)
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> ModelStatistics:
        """Parses and checks statistics from any source. Raises ModelError."""
        if len(data) > MAX_STATISTICS_BYTES:
            raise ModelError(f"its statistics are over {MAX_STATISTICS_BYTES:,} bytes")
        length = int.from_bytes(data[:_HEADER_LENGTH_BYTES], "little")
        start = _HEADER_LENGTH_BYTES + length
        if len(data) < _HEADER_LENGTH_BYTES or length > _MAX_HEADER_BYTES or start > len(data):
            raise _damaged("the header")
        try:
            header = parse_json(data[_HEADER_LENGTH_BYTES:start])
        except ModelError:
            raise _damaged("the header") from None
        sizes: dict[str, int] = {}
        arrays = {name: _read_array(memoryview(data)[start:], header, name, sizes) for name in _ARRAYS}
        _check_values(arrays, sizes["C"])
        return cls(**arrays)


def fit_statistics(
    features: NDArray[Any],
    labels: NDArray[Any],
    positives: NDArray[Any],
    positive_labels: NDArray[Any],
    positive_known: NDArray[Any],
    factors: int = MAX_FACTORS,
) -> ModelStatistics:
    """Returns the statistics of features [N, D] with class positions [N], 0 to C - 1, each in use.

    `positives` [P, D], P ≤ 100, are kept as examples, with their class positions [P] and the model's output
    `known` [P]. Raises ModelError when a value does not fit float16.
    """
    x = np.asarray(features, np.float64)
    classes = int(labels.max()) + 1
    means = np.stack([x[labels == index].mean(0) for index in range(classes)])
    within = x - means[labels]
    values, vectors = np.linalg.eigh(within.T @ within / len(x))
    largest = np.argsort(-values, kind="stable")[: min(factors, len(values))]
    axes = (vectors[:, largest] * np.sqrt(np.maximum(values[largest], 0))).T
    with np.errstate(over="ignore"):  # infinite values are refused by the check of to_bytes
        offset = positives.min(0).astype(np.float16)
        above = positives - offset.astype(np.float64)
        step = (np.maximum(above.max(0), 0) / MAX_CODE).astype(np.float16)
        divisor = np.where(step > 0, step, 1).astype(np.float64)  # a feature that is constant has the step 0
        codes = np.clip(np.rint(np.nan_to_num(above / divisor)), 0, MAX_CODE)
        statistics = ModelStatistics(
            means=means.astype(np.float16),
            variances=within.var(0).astype(np.float16),
            factors=axes.astype(np.float16),
            positives=codes.astype(np.uint8),
            offset=offset,
            step=step,
            positive_labels=np.asarray(positive_labels, np.uint16),
            positive_known=np.asarray(positive_known, np.float32),
        )
    statistics.to_bytes()
    return statistics


def _read_array(data: memoryview, header: dict[str, Any], name: str, sizes: dict[str, int]) -> NDArray[Any]:
    """Returns one array, and notes the size of each of its axes in `sizes`."""
    code, dtype, axes = _ARRAYS[name]
    entry = header.get(name)
    if not isinstance(entry, dict) or entry.get("dtype") != code:
        raise _damaged(name)
    shape = _int_list(entry.get("shape"), len(axes), name)
    start, end = _int_list(entry.get("data_offsets"), 2, name)
    for axis, size in zip(axes, shape, strict=True):
        smallest, largest = _LIMITS[axis]
        if not smallest <= size <= largest or sizes.setdefault(axis, size) != size:
            raise _damaged(name)
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if not 0 <= start <= end <= len(data) or end - start != size:
        raise _damaged(name)
    array = np.frombuffer(data[start:end], np.dtype(dtype)).reshape(shape)
    return array.astype(array.dtype.newbyteorder("="))


def _int_list(value: Any, length: int, name: str) -> list[int]:
    if not isinstance(value, list) or len(value) != length or not all(type(item) is int for item in value):
        raise _damaged(name)
    return value


def _check_values(arrays: dict[str, NDArray[Any]], classes: int) -> None:
    """Raises ModelError for values that no export writes, and that would spoil a fit."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise _damaged(name)
    for name in ("variances", "step"):
        if (arrays[name] < 0).any():
            raise _damaged(name)
    if (arrays["positive_labels"] >= classes).any():
        raise _damaged("positive_labels")
    known = arrays["positive_known"]
    if ((known < 0) | (known > 1)).any():
        raise _damaged("positive_known")


def _damaged(name: str) -> ModelError:
    return ModelError(f"its statistics are damaged ({name}): copy it again, or export it")
