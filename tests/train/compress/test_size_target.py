"""--max-mb: the predicted size of the int8 files, and the largest network within a limit."""

from __future__ import annotations

import json

import pytest

from runtime.common.errors import UserError
from tests.helpers import RELEASED, ROOT
from tests.train.compress.test_allocation import EQUAL, equal_sensitivities
from train.compress.__main__ import parse_arguments
from train.compress.allocation import VGG16, NetworkShape, PruningCosts, narrowest_shape
from train.compress.size_target import check_size, choose_shape_within, int8_bytes

COSTS = PruningCosts(EQUAL, {224: 0.0, 160: 0.1})
CLASSES = 5


def shape_of(run: str) -> NetworkShape:
    record = json.loads((ROOT / "models" / run / "run.json").read_text())["compressed"]
    return NetworkShape(record["size"], record["widths"])


def test_the_prediction_is_the_size_of_the_released_files() -> None:
    shape = shape_of("flowers_compressed")
    sizes = [(RELEASED / f"flowers_int8.{format}").stat().st_size for format in ("tflite", "onnx")]
    assert max(sizes) <= int8_bytes(shape, CLASSES) <= 1.01 * max(sizes)


@pytest.mark.parametrize("max_mb", [1.0, 3.0])
def test_the_largest_network_within_the_size_is_chosen(max_mb: float) -> None:
    shape = choose_shape_within(max_mb, COSTS, VGG16, 1.0, CLASSES)
    assert 0.95 * max_mb <= int8_bytes(shape, CLASSES) / 1e6 <= max_mb
    assert shape.size == 224, "a smaller input does not shrink the file"


def test_both_limits_hold_when_they_are_combined() -> None:
    shape = choose_shape_within(1.0, COSTS, VGG16, 10.0, CLASSES)
    assert shape.macs <= VGG16.macs / 10 and int8_bytes(shape, CLASSES) <= 1e6
    loose = choose_shape_within(10.0, COSTS, VGG16, 10.0, CLASSES)
    assert loose == choose_shape_within(None, COSTS, VGG16, 10.0, CLASSES)
    assert loose.parameters > shape.parameters


def test_more_classes_leave_less_room_for_weights() -> None:
    few, many = (choose_shape_within(1.0, COSTS, VGG16, 1.0, classes) for classes in (2, 200))
    assert many.parameters < few.parameters and int8_bytes(many, 200) <= 1e6


def test_a_size_that_no_network_reaches_raises_an_error_with_the_smallest_size() -> None:
    with pytest.raises(UserError, match=r"--max-mb 0.05: .* file of 0\.\d\d MB"):
        choose_shape_within(0.05, COSTS, VGG16, 1.0, CLASSES)
    with pytest.raises(UserError, match=r"--max-mb 0.05: .* file of 0\.\d\d MB"):
        check_size(0.05, VGG16, CLASSES)  # before anything is measured
    for possible in (1.0, None):
        check_size(possible, VGG16, CLASSES)


@pytest.mark.parametrize("original", [VGG16, shape_of("flowers_small_run")], ids=["vgg16", "small"])
def test_the_smallest_possible_network_is_found(original: NetworkShape) -> None:
    narrowest = narrowest_shape(original, original.size)
    costs = PruningCosts(equal_sensitivities(original), {original.size: 0.0})
    smallest = int8_bytes(narrowest, CLASSES)
    assert choose_shape_within(smallest / 1e6, costs, original, 1.0, CLASSES) == narrowest
    with pytest.raises(UserError, match=f"file of {smallest / 1e6:.2f} MB"):
        check_size((smallest - 1) / 1e6, original, CLASSES)


@pytest.mark.parametrize(
    ("flags", "reduce"),
    [
        ([], 10.0),
        (["--max-mb", "1"], 1.0),
        (["--max-mb", "1", "--reduce", "4"], 4.0),
        (["--max-mb", "1", "--target-ms", "5"], 10.0),
    ],
)
def test_the_size_alone_does_not_limit_the_multiplications(flags: list[str], reduce: float) -> None:
    settings = parse_arguments(["runs/mine", *flags]).settings
    assert settings.reduce == reduce and settings.max_mb == (1.0 if flags else None)
