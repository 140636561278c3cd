from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from train.compress.allocation import VGG16, NetworkShape
from train.compress.config import CompressSettings
from train.compress.latency_table import LatencyTable
from train.compress.stage_cache import StageCache, compress_fingerprint
from train.run import open_run

TENSORS = {"block1_conv1/bias": np.arange(4, dtype=np.float32)}


def fail() -> NetworkShape:
    raise AssertionError("the stage ran again")


def test_a_stored_result_is_returned_without_running_its_stage_again(tmp_path: Path) -> None:
    first = StageCache(tmp_path / "out", "a", resume=False)
    assert first.shape(lambda: VGG16) == VGG16
    assert first.tensors(lambda: TENSORS).keys() == TENSORS.keys()
    resumed = StageCache(tmp_path / "out", "a", resume=True)
    assert resumed.shape(fail) == VGG16
    np.testing.assert_array_equal(resumed.tensors(dict)["block1_conv1/bias"], TENSORS["block1_conv1/bias"])


def test_another_fingerprint_or_no_resume_starts_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = replace(VGG16, size=64)
    for fingerprint, resume in (("b", True), ("b", False)):
        StageCache(tmp_path / "out", "a", resume=False).shape(lambda: VGG16)
        assert StageCache(tmp_path / "out", fingerprint, resume).shape(lambda: other) == other
        assert ("starts again" in capsys.readouterr().out) == resume
    cache = StageCache(tmp_path / "out", "a", resume=False)
    cache.remove()
    assert not list(tmp_path.iterdir())


def test_a_command_that_fails_before_its_first_result_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ran again"):
        StageCache(tmp_path / "out", "a", resume=False).shape(fail)
    assert not list(tmp_path.iterdir())


def test_the_fingerprint_depends_on_the_settings_and_the_table(synthetic_run: Path) -> None:
    run, settings = open_run(synthetic_run), CompressSettings()
    tables = [LatencyTable((1.0,), (ms,)) for ms in (10.0, 100.0)]
    assert len({compress_fingerprint(run, settings, table) for table in (None, *tables)}) == 3
    assert compress_fingerprint(run, settings) == compress_fingerprint(run, CompressSettings())
    assert compress_fingerprint(run, settings) != compress_fingerprint(run, replace(settings, seed=1))
