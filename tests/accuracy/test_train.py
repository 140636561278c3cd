"""What the two recipes reach on the real photos of test/, which no setting was chosen on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.photos import read_photos
from export.serving_model import predict
from train.network.calibration import expected_calibration_error
from train.network.novelty import unknown_rate
from train.run import open_run

KEPT = Path(__file__).parents[2] / "models" / "flowers_run"


def test_the_pooled_head(flowers_run: Path) -> None:
    test = open_run(flowers_run).metrics["test"]
    assert test["n"] >= 250
    assert test["top1"] >= 0.87


def test_the_article_s_recipe(article_run: Path) -> None:
    test = open_run(article_run).metrics["test"]
    assert test["n"] >= 250
    assert test["top1"] >= 0.82


def test_the_kept_fine_tuned_run(flower_photos: Path) -> None:
    """As it is kept, in float16, and from the photos themselves."""
    run = open_run(KEPT, flower_photos)
    photos = read_photos(run.dataset, "test", (224, 224))
    said = predict(run.load_model(), photos.pixels, lambda done: None)
    assert len(photos.truth) == 500
    top1 = float((said["probabilities"].argmax(1) == photos.truth).mean())
    assert top1 >= 0.93
    assert abs(top1 - run.metrics["test"]["top1"]) <= 0.004
    assert expected_calibration_error(said["probabilities"], photos.truth) <= 0.05
    assert unknown_rate(said["known"][:, 0], run.thresholds) <= 0.05
    assert np.isfinite(said["known"]).all()
