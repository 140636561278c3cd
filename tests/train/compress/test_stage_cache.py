from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from train.compress.allocation import VGG16, NetworkShape
from train.compress.config import CompressSettings
from train.compress.latency_table import LatencyTable
from train.compress.stage_cache import INPUTS_FILE, StageCache, cache_inputs
from train.run import RunError, open_run

INPUTS = {"--views": 2, "the run's network": "a"}
TENSORS = {"block1_conv1/bias": np.arange(4, dtype=np.float32)}


def fail() -> NetworkShape:
    raise AssertionError("the stage ran again")


def test_a_stored_result_is_returned_without_running_its_stage_again(tmp_path: Path) -> None:
    first = StageCache(tmp_path / "out", INPUTS, resume=False)
    assert first.shape(lambda: VGG16) == VGG16
    assert first.tensors(lambda: TENSORS).keys() == TENSORS.keys()
    resumed = StageCache(tmp_path / "out", INPUTS, resume=True)
    assert resumed.shape(fail) == VGG16
    np.testing.assert_array_equal(resumed.tensors(dict)["block1_conv1/bias"], TENSORS["block1_conv1/bias"])


def test_without_resume_or_with_overwrite_a_changed_command_starts_empty(tmp_path: Path) -> None:
    other = replace(VGG16, size=64)
    for resume, overwrite in ((False, False), (False, True), (True, True)):
        StageCache(tmp_path / "out", INPUTS, resume=False).shape(lambda: VGG16)
        cache = StageCache(tmp_path / "out", {**INPUTS, "--views": 5}, resume, overwrite)
        assert cache.shape(lambda: other) == other
    cache.remove()
    assert not list(tmp_path.iterdir())


def test_resume_with_another_setting_names_it_and_deletes_nothing(tmp_path: Path) -> None:
    StageCache(tmp_path / "out", INPUTS, resume=False).shape(lambda: VGG16)
    for changed, reason in (
        ({"--views": 5}, "--views changed from 2 to 5"),
        ({"the run's network": "b"}, "the run's network changed"),
    ):
        with pytest.raises(RunError, match=reason):
            StageCache(tmp_path / "out", {**INPUTS, **changed}, resume=True)
    assert StageCache(tmp_path / "out", INPUTS, resume=True).shape(fail) == VGG16


@pytest.mark.parametrize("damage", ["", "[]", "{", None], ids=["empty", "list", "cut", "missing"])
def test_stages_that_do_not_name_their_inputs_are_not_deleted_silently(
    damage: str | None, tmp_path: Path
) -> None:
    cache = StageCache(tmp_path / "out", INPUTS, resume=False)
    cache.shape(lambda: VGG16)
    file = cache.folder / INPUTS_FILE
    file.unlink() if damage is None else file.write_text(damage)
    with pytest.raises(RunError, match="damaged, or another version"):
        StageCache(tmp_path / "out", INPUTS, resume=True)
    assert cache.folder.is_dir()


def test_a_command_that_fails_before_its_first_result_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ran again"):
        StageCache(tmp_path / "out", INPUTS, resume=False).shape(fail)
    assert not list(tmp_path.iterdir())


def test_the_inputs_hold_settings_table_and_run(synthetic_run: Path, compressed_run: Path) -> None:
    run, settings = open_run(synthetic_run), CompressSettings()
    given = cache_inputs(run, settings)
    assert given == cache_inputs(run, CompressSettings()) and given["--reconstruction-photos"] == 600
    assert given != cache_inputs(run, settings, LatencyTable((1.0,), (10.0,)))
    assert given != cache_inputs(run, replace(settings, seed=1))
    assert given != cache_inputs(open_run(compressed_run), settings)
