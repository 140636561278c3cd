from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from export.int8 import search as ladder
from export.int8.quantize import Recipe
from train.run import Run, open_run

if TYPE_CHECKING:
    import keras


@pytest.fixture
def run(synthetic_run: Path) -> Run:
    return open_run(synthetic_run)


def test_the_first_recipe_that_holds_is_taken(
    model: keras.Model, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ladder, "AIM_MAX_DP", 1.0)
    monkeypatch.setattr(ladder, "AIM_AGREEMENT", 0.0)
    made = ladder.build_int8(model, run, ["tflite", "onnx"], ["litert", "onnx"])
    assert [name for _, name in made.values()] == [ladder.LADDER[0].name] * 2
    assert ladder.LADDER[1].name not in capsys.readouterr().out.replace(ladder.LADDER[0].name, "")


def test_no_recipe_is_good_enough_and_the_best_goes_to_the_gates(
    model: keras.Model, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A recipe that must lose, first: seven bits and activations clipped where they matter.
    bad = Recipe("bad", weights="7 bits", activations="percentile", float_first=False)
    monkeypatch.setattr(ladder, "LADDER", (bad, ladder.LADDER[0]))
    monkeypatch.setattr(ladder, "AIM_MAX_DP", 0.0)
    made = ladder.build_int8(model, run, ["onnx"], ["onnx"])
    assert made["onnx"][1] == ladder.LADDER[1].name
    said = capsys.readouterr().out
    assert "int8 onnx bad:" in said and "max |Δp| over 0" in said
    assert f"no recipe meets the aim; {ladder.LADDER[1].name} comes nearest" in said
