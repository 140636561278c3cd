"""A model of contract version 2 with pictures of its classes and of a scene that it mistakes for them.

The network is `features_float32` of make_models: its features are the mean colours of the picture's quarters,
it names the strongest channel, and it takes every bright picture for one of the classes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from runtime.model_file.contract import Contract, GoldenAnswer
from runtime.model_file.files import STATISTICS_NAME
from runtime.model_file.golden import golden_picture
from runtime.model_file.onnx import STATISTICS_KEY
from runtime.model_file.statistics import ModelStatistics, fit_statistics
from tests.helpers import make_contract
from tests.runtime.make_models import FEATURES, KNOWN_BIAS, KNOWN_WEIGHT, SIDE

LABELS = ("blau", "grün", "红")
EXAMPLES = 40  # positives in the file
Pictures = NDArray[np.uint8]


def class_pictures(count: int, seed: int) -> tuple[Pictures, NDArray[np.int64]]:
    """Pictures [count, SIDE, SIDE, 3] with one strong channel, with their positions in LABELS."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % len(LABELS)
    quarters = random.uniform(90, 190, (count, 2, 2, 3))
    quarters[np.arange(count), :, :, 2 - labels] = random.uniform(200, 250, (count, 2, 2))
    return _enlarge(quarters), labels


def borderline_pictures(count: int, seed: int) -> Pictures:
    """Pictures that the model calls blau, with almost as much green."""
    pictures, labels = class_pictures(len(LABELS) * count, seed)
    pictures = pictures[labels == 0]
    pictures[..., 1] = pictures[..., 2] - 6
    return pictures


def scene_pictures(count: int, seed: int) -> Pictures:
    """Bright pictures whose upper half is much brighter than the lower one: of none of the classes."""
    quarters = np.random.default_rng(seed).uniform(90, 160, (count, 2, 2, 3))
    quarters[:, 0] += 95
    return _enlarge(quarters)


def save_pictures(pictures: Pictures, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def compute_features(pictures: Pictures) -> NDArray[np.float64]:
    """What the network computes, float64 [N, FEATURES]."""
    half = SIDE // 2
    quarters = pictures.reshape(-1, 2, half, 2, half, 3).mean((2, 4)) / 255
    return quarters.reshape(-1, FEATURES)


def compute_known(features: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-(KNOWN_WEIGHT * features.sum(1) + KNOWN_BIAS))))


def make_scene_statistics(seed: int = 0) -> ModelStatistics:
    pictures, labels = class_pictures(240, seed)
    features = compute_features(pictures)
    examples = slice(0, EXAMPLES)
    known = compute_known(features[examples])
    return fit_statistics(features, labels, features[examples], labels[examples], known)


def make_scene_contract(statistics: ModelStatistics) -> Contract:
    (golden,) = compute_features(golden_picture(SIDE, SIDE)[np.newaxis])
    logits = 2.5 * golden.reshape(4, 3).sum(0)[::-1]
    probabilities = np.exp(logits - logits.max())
    return replace(
        make_contract("quarters", LABELS, SIDE),
        version=2,
        thresholds={"known": 0.5},
        features=FEATURES,
        release=1,
        golden=GoldenAnswer(
            tuple((probabilities / probabilities.sum()).tolist()),
            compute_known(golden[np.newaxis]).item(),
        ),
        statistics_sha256=hashlib.sha256(statistics.to_bytes()).hexdigest(),
    )


def add_statistics(data: bytes, format: str, statistics: bytes) -> bytes:
    """The bytes of a model file that has its contract, with statistics added."""
    if format == "onnx":
        model = onnx.load_model_from_string(data)
        model.metadata_props.add(key=STATISTICS_KEY, value=base64.b64encode(statistics).decode())
        return bytes(model.SerializeToString())
    file = io.BytesIO(data)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(STATISTICS_NAME, statistics)
    return file.getvalue()


def _enlarge(quarters: NDArray[np.float64]) -> Pictures:
    return quarters.round().astype(np.uint8).repeat(SIDE // 2, 1).repeat(SIDE // 2, 2)
