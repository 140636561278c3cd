"""The adapt command: what it prints and writes, and how it refuses bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runtime import Classifier
from runtime.adapt import main
from runtime.model_file.loader import KEY_VARIABLE
from tests.helpers import ROOT
from tests.runtime.scene import EXAMPLES, class_pictures, save_pictures, scene_pictures

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def correction(model: Path) -> Path:
    """Where the model's correction is written."""
    return model.with_name("quarters.correction.json")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pictures(scene_pictures(50, seed=1), tmp_path_factory.mktemp("photos") / "scene")


def adapt(model: Path, *arguments: str | Path) -> int:
    return main(["--model", str(model), *map(str, arguments)])


def test_the_scene_is_named_before_and_unknown_after(
    model: Path, correction: Path, scene: Path, capsys: Capture
) -> None:
    before = {path: path.read_bytes() for path in model.iterdir()}
    pictures = [*scene_pictures(40, seed=2)]
    assert np.mean([Classifier(model)(pixels).known for pixels in pictures[:5]]) > 0.5
    assert adapt(model, "--none", scene) == 0
    out, err = capsys.readouterr()
    _, header, scene_row, classes_row, note, written = out.splitlines()
    assert header.split() == ["before", "after"] and err == "" and "did not use" in note
    assert f"wrote {correction}" in written and f"of {EXAMPLES}" in classes_row
    after = int(scene_row.split()[-3])
    assert scene_row.split()[-2:] == ["of", "50"] and after <= 5
    classifier = Classifier(model)
    assert np.mean([classifier(pixels).known for pixels in pictures]) < 0.15
    flowers = [classifier(pixels).known for pixels in class_pictures(60, seed=3)[0]]
    assert np.mean(flowers) > 0.9
    assert {path: path.read_bytes() for path in model.iterdir()} == before  # the model never changes


def test_json_has_the_documented_fields(model: Path, correction: Path, scene: Path, capsys: Capture) -> None:
    assert adapt(model, "--none", scene, "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    answer = json.loads(line)
    assert list(answer) == [
        "model", "correction", "photos", "named", "examples", "rejected", "left_out", "errors",
    ]  # fmt: skip
    assert answer["correction"] == str(correction) and (answer["photos"], answer["errors"]) == (50, {})
    written = json.loads(correction.read_text())
    assert written["named_after"] == answer["named"]["after"] / 50
    assert written["rejected_after"] == answer["rejected"]["after"] / answer["examples"]


def test_dry_run_writes_nothing(model: Path, correction: Path, scene: Path, capsys: Capture) -> None:
    assert adapt(model, "--none", scene, "--dry-run") == 0
    assert not correction.exists() and "nothing written" in capsys.readouterr().out
    assert adapt(model, "--none", scene, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["correction"] is None


def test_a_second_run_starts_anew(
    model: Path, correction: Path, scene: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert adapt(model, "--none", scene) == 0
    assert capsys.readouterr().err == ""
    other = save_pictures(scene_pictures(12, seed=5)[:, ::-1], tmp_path / "other")
    assert adapt(model, "--none", other) == 0
    assert (
        f"{correction}: the new correction, fitted to these photos only, replaces it"
        in capsys.readouterr().err
    )
    assert json.loads(correction.read_text())["photos"] == 12
    again = correction.read_text()
    correction.unlink()
    assert adapt(model, "--none", other) == 0
    first, second = json.loads(again), json.loads(correction.read_text())
    assert {**first, "created": ""} == {**second, "created": ""}


def test_show_and_reset(model: Path, correction: Path, scene: Path, capsys: Capture) -> None:
    assert adapt(model, "--show") == 0
    assert capsys.readouterr().out == f"{correction}: no correction\n"
    assert adapt(model, "--none", scene) == 0
    capsys.readouterr()
    assert adapt(model, "--show") == 0
    assert "50 photos" in capsys.readouterr().out
    assert adapt(model, "--reset") == 0 and not correction.exists()
    assert adapt(model, "--reset") == 0
    assert "no correction to remove" in capsys.readouterr().out


def test_correction_names_the_file(
    model: Path, correction: Path, scene: Path, tmp_path: Path, capsys: Capture
) -> None:
    named = tmp_path / "table.json"
    for _ in range(2):
        assert adapt(model, "--none", scene, "--correction", named) == 0
        assert f"pass --correction {named} to classify and serve" in capsys.readouterr().out
        assert named.exists() and not correction.exists()
        other = {**json.loads(named.read_text()), "model_id": "0a" * 32}
        named.write_text(json.dumps(other))  # that of another model may be replaced
    assert adapt(model, "--reset", "--correction", named) == 0 and not named.exists()


def test_a_named_file_that_is_no_correction_stays(
    model: Path, scene: Path, tmp_path: Path, capsys: Capture
) -> None:
    named = tmp_path / "notes.json"
    named.write_text('{"notes": 1}')
    for task in (["--none", scene], ["--reset"]):
        assert adapt(model, *task, "--correction", named) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {named}: ") and "--correction" in line
    assert adapt(model, "--none", scene, "--correction", named, "--dry-run") == 0
    assert named.read_text() == '{"notes": 1}'


def test_a_damaged_correction_next_to_the_model_is_replaced_and_removed(
    model: Path, correction: Path, scene: Path
) -> None:
    correction.write_text("{")
    assert adapt(model, "--none", scene) == 0 and Classifier(model).correction
    correction.write_text("{")
    assert adapt(model, "--reset") == 0 and not correction.exists()


def test_unreadable_photos_are_reported_and_the_others_used(
    model: Path, correction: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = save_pictures(scene_pictures(20, seed=1), tmp_path / "scene")
    (folder / "005.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not a photo")
    assert adapt(model, "--none", folder, tmp_path / "missing.png") == 1
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2 and all(line.startswith("error: ") for line in err)
    assert json.loads(correction.read_text())["photos"] == 19


def test_few_photos_give_a_warning(model: Path, tmp_path: Path, capsys: Capture) -> None:
    assert adapt(model, "--none", save_pictures(scene_pictures(9, seed=1), tmp_path / "few")) == 0
    assert "warning: the result of 9 photos is not reliable" in capsys.readouterr().err
    assert adapt(model, "--none", save_pictures(scene_pictures(10, seed=1), tmp_path / "enough")) == 0
    assert "reliable" not in capsys.readouterr().err


def test_photos_that_show_a_class_are_named(model: Path, tmp_path: Path, capsys: Capture) -> None:
    flowers = np.maximum(class_pictures(8, seed=4)[0], 150)
    folder = save_pictures(np.concatenate([scene_pictures(50, seed=1), flowers]), tmp_path / "mixed")
    assert adapt(model, "--none", folder) == 0
    err = capsys.readouterr().err
    assert "left out" in err and str(folder / "05") in err


@pytest.mark.parametrize("arguments", [["--none", "EMPTY"], ["--none", "nowhere"], ["--none", "CLASSES"]])
def test_photos_of_no_use_give_one_line(
    model: Path, correction: Path, tmp_path: Path, arguments: list[str], capsys: Capture
) -> None:
    (tmp_path / "EMPTY").mkdir()
    save_pictures(class_pictures(40, seed=3)[0], tmp_path / "CLASSES")
    assert adapt(model, arguments[0], tmp_path / arguments[1]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and len(err.splitlines()) == 1 and not correction.exists()


def test_a_model_without_features_gives_one_line(knowing: Path, scene: Path, capsys: Capture) -> None:
    assert adapt(knowing, "--none", scene) == 2
    assert "contract version 1" in capsys.readouterr().err


def test_a_device_for_signed_models_must_allow_it(
    model: Path, scene: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.runtime.inference.test_correction import sign

    monkeypatch.setenv(KEY_VARIABLE, str(sign(model, tmp_path)))
    assert adapt(model, "--none", scene) == 2
    assert "--allow-correction" in capsys.readouterr().err
    assert adapt(model, "--none", scene, "--allow-correction") == 0
    assert Classifier(model).correction is None
    assert Classifier(model, allow_correction=True).correction is not None


def test_frames_of_a_camera_are_used(
    model: Path, correction: Path, tmp_path: Path, write_clip: Callable[..., Path], capsys: Capture
) -> None:
    enlarged = [pixels.repeat(2, 0).repeat(2, 1) for pixels in scene_pictures(15, seed=1)]
    clip = write_clip(tmp_path / "scene.mp4", enlarged, fps=4)
    assert adapt(model, "--camera", clip, "--seconds", "30") == 0
    assert "show none of the classes" in capsys.readouterr().err
    assert 1 <= json.loads(correction.read_text())["photos"] <= 15  # a busy machine misses frames


def test_a_missing_camera_gives_one_line(model: Path, tmp_path: Path, capsys: Capture) -> None:
    assert adapt(model, "--camera", tmp_path / "none.mp4", "--seconds", "2") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


@pytest.mark.slow
def test_fifty_photos_take_under_ten_seconds_and_200_mb(tmp_path: Path) -> None:
    """Of the fit alone, with as many features as the released model has."""
    code = r"""
import re, time
import numpy as np
from types import SimpleNamespace
from runtime.inference.adaptation import SceneFeatures, fit_correction
from runtime.model_file.statistics import fit_statistics
random = np.random.default_rng(0)
features, labels = random.normal(1, 0.3, (300, 608)), np.arange(300) % 5
statistics = fit_statistics(features, labels, features[:100], labels[:100], random.uniform(0.5, 1, 100))
scene = SceneFeatures([str(at) for at in range(50)], np.full(50, 0.7), random.normal(1.1, 0.3, (50, 608)))
contract = SimpleNamespace(thresholds={"known": 0.5}, model_id="0" * 64, labels=("a",) * 5)
started = time.process_time()
fit_correction(contract, statistics, scene)
seconds = time.process_time() - started
# Not getrusage: its maximum includes the process that started this one.
print(seconds, re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, kibibytes = map(float, done.stdout.split())
    assert seconds < 10 and kibibytes < 200 * 1024
