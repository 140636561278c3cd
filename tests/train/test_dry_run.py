from __future__ import annotations

import re
from pathlib import Path

import pytest

from train import dry_run as plan
from train.__main__ import main


def test_a_dry_run_tells_and_leaves_nothing(
    synthetic_photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(plan, "PROBE", 4)
    out, cache = tmp_path / "runs" / "run", tmp_path / "cache"
    flags = ["--dry-run", "--fine-tune", "block5", "--fine-tune-views", "1", "--views", "1", "--epochs", "3"]
    assert main([str(synthetic_photos), "--out", str(out), "--cache", str(cache), *flags]) == 0
    told = capsys.readouterr()
    lines = [line for line in told.out.splitlines() if line.startswith("would")]
    train = int(re.findall(r"(\d+) train", told.out)[0])
    assert f"would compute: features of 40 pictures, 0.01 GB, in {cache}" in lines[0]
    assert lines[1:3] == [
        f"would train: the pooled head for 3 epochs of {train} pictures, {train} photos in 1 views",
        f"would fine-tune: from block5 on, for 6 epochs of {train} photos, each in one of 1 views",
    ]
    for line, what in zip(lines[3:], ("features at", "head at", "block5 at", "in all"), strict=False):
        assert re.match(r"would take: [\d.:e+-]+( s)?,? ", line) and what in line
    assert lines[-1] == f"would write: {out}"
    assert "head" not in told.err and "WARNING" not in told.err
    assert not out.parent.exists() and not list(cache.rglob("*.npy"))


def test_pace_tells_the_start_from_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    def run(count: int) -> None:
        clock[0] += 5 + 0.5 * count

    assert plan._pace(run, 10, 30) == (5.0, 0.5)
