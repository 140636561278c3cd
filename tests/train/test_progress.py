from __future__ import annotations

import pytest

from train import progress
from train.progress import Progress, Rate


def test_the_rate_ignores_the_first_step_and_follows_the_recent_ones() -> None:
    now = [0.0]
    rate = Rate(clock=lambda: now[0])
    assert rate.per_second() == 0.0
    now[0] = 20.0  # the first step took 20 s, because it compiled a model
    rate.add(10)
    assert rate.per_second() == 0.0
    for _ in range(10):
        now[0] += 1
        rate.add(10)
    assert rate.per_second() == pytest.approx(10)
    for _ in range(80):  # the work becomes ten times slower
        now[0] += 1
        rate.add(1)
    assert rate.per_second() == pytest.approx(1, rel=0.05)


def test_plain_lines_show_count_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress("features", 100, "photos") as bar:
        bar.rate.clock = lambda: now[0]
        for _ in range(5):
            now[0] += 10
            bar.step(20, "epoch 1")
    lines = capsys.readouterr().err.splitlines()
    assert "features: 20 of 100 photos, starting, epoch 1" in lines[0]
    assert "2.0 photos/s, 00:30 left" in lines[1]
    assert "100 of 100" in lines[-1] and "took 00:50" in lines[-1]
    assert len(lines) == 5


def test_another_estimate_can_replace_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_EVERY", 0.0)
    with Progress("parity", 2, "photos", left=lambda: "2 min left in all") as bar:
        bar.step(1)
    assert "2 min left in all" in capsys.readouterr().err
