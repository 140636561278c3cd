"""A model that does not fit its run, or computes no numbers, is refused before the conversions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest

from export.serving_model import ServingModelError, golden_answer, predict, serving_model
from tests.export.conftest import LABELS, small_model

if TYPE_CHECKING:
    from train.run import Run


@pytest.mark.parametrize(
    ("known", "thresholds", "fact"),
    [(True, {}, "has the output known, but .* no threshold"), (False, {"known": 0.5}, "has no output known")],
)
def test_the_output_known_and_its_threshold_belong_together(
    known: bool, thresholds: dict[str, float], fact: str
) -> None:
    model = small_model(known)
    run = SimpleNamespace(load_model=lambda: model, path=Path("r"), classes=LABELS, thresholds=thresholds)
    with pytest.raises(ServingModelError, match=rf"^run r: the model {fact}.*train it again"):
        serving_model(cast("Run", run))


def test_a_model_with_damaged_weights_is_refused() -> None:
    model = small_model()
    kernel, bias = model.get_layer("logits").get_weights()
    model.get_layer("logits").set_weights([np.full_like(kernel, np.nan), bias])
    with pytest.raises(ServingModelError, match=r"not finite.*train it again"):
        golden_answer(model)


def test_predict_logs_no_warning_of_tensorflow(caplog: pytest.LogCaptureFixture) -> None:
    model = small_model()
    for count in range(1, 10):
        photos = np.zeros((count, *model.inputs[0].shape[1:]), np.uint8)
        assert len(predict(model, photos, lambda _: None)["probabilities"]) == count
    assert not caplog.records
