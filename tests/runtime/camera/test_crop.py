"""Crop: which texts are regions, and which pixels they select."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.camera.crop import Crop, make_crop, parse_crop
from runtime.classify import main
from tests.runtime.camera.conftest import Pictures
from tests.runtime.camera.helpers import BLUE, RED, plain


def test_a_region_selects_the_pixels_between_its_edges() -> None:
    frame = np.arange(8 * 10, dtype=np.uint8).reshape(8, 10, 1).repeat(3, axis=2)
    region = parse_crop("0.2,0.5,0.3,0.25").apply(frame)
    assert region.shape == (2, 3, 3) and np.shares_memory(region, frame)
    assert region[..., 0].tolist() == [[42, 43, 44], [52, 53, 54]]


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (48, 64), (4320, 7680)])
@pytest.mark.parametrize("text", ["0,0,1,1", "0.98,0.98,0.02,0.02", "0,0,0.02,0.02", "0.3333,0.1,0.6667,0.9"])
def test_a_region_of_any_frame_has_pixels_and_is_inside(size: tuple[int, int], text: str) -> None:
    region = parse_crop(text).apply(np.zeros((*size, 3), np.uint8))
    assert min(region.shape[:2]) >= 1 and region.shape[0] <= size[0] and region.shape[1] <= size[1]
    if text == "0,0,1,1":
        assert region.shape[:2] == size


@pytest.mark.parametrize(
    "text",
    [
        *("", "0,0,1", "0,0,1,1,1", "a,b,c,d", "0.5,0,0.6,1", "0,0,0.01,1", "0,0,0,0", "-0.1,0,1,1"),
        *("0,0.5,1,0.6", "nan,0,1,1", "inf,0,1,1", "100,100,640,480", "0,0,1e999,1"),
    ],
)
def test_a_text_that_is_no_region_is_one_line(text: str) -> None:
    with pytest.raises(ArgumentTypeError) as raised:
        parse_crop(text)
    assert repr(text) in str(raised.value) and len(str(raised.value).splitlines()) == 1


def test_numbers_of_json_are_checked_too() -> None:
    assert make_crop([0, 0, 1, 1]) == Crop(0.0, 0.0, 1.0, 1.0)
    for numbers in ([10**400, 0, 1, 1], [True, 0, 1, "1"], [None] * 4, [[0], 0, 1, 1]):
        with pytest.raises(ValueError):
            make_crop(numbers)


def test_the_command_classifies_and_saves_the_region(
    colours: Path, play: Callable[[Pictures], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = plain(RED)
    frame[24:, 32:] = BLUE
    arguments = ["--camera", play([frame] * 3), "--model", str(colours), "--every", "1ms"]
    assert main([*arguments, "--crop", "0.5,0.5,0.5,0.5", "--capture", "blau", str(tmp_path / "photos")]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert "32 x 24" in heading and {line.split()[1] for line in lines} == {"blau"}
    assert Image.open(next((tmp_path / "photos" / "blau").iterdir())).size == (32, 24)
    assert main(arguments) == 0  # without the region, red prevails
    assert {line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]} == {"红"}
