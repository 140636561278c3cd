from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.runtime.camera.helpers import Clock
from train.compress import estimate
from train.compress.allocation import VGG16
from train.compress.estimate import BATCH, Workload, count_gmacs, estimate_seconds

WORK = Workload(
    train_photos=1400,
    train_negatives=1000,
    pictures=8600,
    missing=600,
    first_block=5,
    reconstruction_photos=600,
    epochs=40,
    reduction=10,
)


def test_each_part_of_the_work_adds_its_multiplications() -> None:
    gmacs = VGG16.macs / 1e9
    total = count_gmacs(VGG16, WORK)
    block5 = 3 * 14 * 14 * 9 * 512 * 512 / 1e9
    assert total - count_gmacs(VGG16, replace(WORK, missing=0)) == pytest.approx(600 * (gmacs - block5))
    assert total - count_gmacs(VGG16, replace(WORK, pictures=7200)) == pytest.approx(1400 * block5)
    without_fine_tuning = count_gmacs(VGG16, replace(WORK, first_block=6, pictures=0))
    assert total - without_fine_tuning == pytest.approx((8600 - 600) * block5)
    assert total - count_gmacs(VGG16, replace(WORK, epochs=39)) == pytest.approx(3 * 2100 * gmacs / 10)
    without_negatives = 40 * 3 * 700 * gmacs / 10
    assert total - count_gmacs(VGG16, replace(WORK, train_negatives=0)) == pytest.approx(without_negatives)
    assert total > count_gmacs(VGG16, replace(WORK, reconstruction_photos=100))


def test_the_second_batch_gives_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(estimate, "time", clock)

    class Teacher:
        calls = 0

        def predict_on_batch(self, pictures: Any) -> None:
            assert pictures.shape == (BATCH, 224, 224, 3)
            clock.sleep((0.2, 0.05)[self.calls])
            self.calls += 1

    seconds = estimate_seconds(Teacher(), VGG16, WORK)
    gmacs_per_second = BATCH * VGG16.macs / 1e9 / 0.05
    assert seconds == pytest.approx(count_gmacs(VGG16, WORK) / gmacs_per_second)
