"""The golden picture has equal bytes everywhere, and shows swapped channels and flips."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from runtime.model_file.golden import golden_picture


# Every model file states its outputs for these bytes: a changed picture would make all of them fail.
@pytest.mark.parametrize(
    ("size", "sha256"),
    [
        ((224, 224), "5f4dc8121dd25eba683214cf8b9d1a1883f71060f3aa0d06cc9a3616c082e392"),
        ((192, 160), "c2f0c42c9d14b53f39b190a27f539412baab9ee77044166564e4d7b81688e4cf"),
    ],
)
def test_the_bytes_never_change(size: tuple[int, int], sha256: str) -> None:
    assert hashlib.sha256(golden_picture(*size).tobytes()).hexdigest() == sha256


@pytest.mark.parametrize("size", [(1, 1), (3, 4096), (224, 224)])
def test_any_input_size_has_a_picture(size: tuple[int, int]) -> None:
    picture = golden_picture(*size)
    assert picture.shape == (*size, 3) and picture.dtype == np.uint8


def test_channels_and_mirror_images_differ() -> None:
    picture = golden_picture(32, 32).astype(int)
    variants = [picture[:, ::-1], picture[::-1], picture.transpose(1, 0, 2), picture[..., ::-1]]
    assert min(abs(picture - other).mean() for other in variants) > 5
