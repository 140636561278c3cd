from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from runtime.common.errors import UserError
from runtime.common.file_lock import exclusive_lock
from tests.helpers import ROOT
from tests.interrupt import press_ctrl_c_after_epoch
from train import inputs
from train.__main__ import main
from train.cli import run_cli
from train.config import PROCESS_ID_VARIABLE, TrainConfig
from train.data import negatives
from train.data.dataset import LeftOut
from train.data.find_photos import find_photos
from train.data.tf_flowers import Unreachable
from train.run import open_run
from train.settings import RECIPES


@pytest.fixture
def small(synthetic_photos: Path, small_weights: Path) -> list[str]:
    """Arguments that train on small pictures with a small backbone."""
    return [str(synthetic_photos), "--weights", str(small_weights), "--views", "1", "--no-negatives"]


def test_the_same_seed_gives_the_same_metrics(synthetic_run: Path, small: list[str], tmp_path: Path) -> None:
    same = ["--epochs", "10", "--learning-rate", "0.1"]
    assert main([*small, "--out", str(tmp_path / "again"), *same]) == 0
    for name in ("metrics.json", "history.csv", "photos.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (synthetic_run / name).read_bytes(), name


def test_the_article_recipe_reuses_the_stored_features(
    synthetic_run: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "article"
    assert main([*small, "--recipe", "article", "--epochs", "3", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "features: 40 of 40 photos are in the cache" in printed
    assert f"run: {out} (synthetic" in printed
    assert f"next: python -m export {out} --int8\n" in printed and f"train.compress {out} " in printed
    run = open_run(out)
    assert [layer.name for layer in run.load_model().layers][-6:] == [
        *("flatten", "hidden", "dropout", "features", "logits", "probabilities")
    ]
    assert run.load_model().get_layer("hidden").units == 256


def test_fine_tuning_writes_a_run_with_logs_and_removes_its_checkpoints(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned"
    flags = ["--fine-tune", "block5", "--fine-tune-views", "1", "--fine-tune-epochs", "2"]
    flags += ["--logs", str(tmp_path / "logs")]
    assert main([*small, "--epochs", "3", "--out", str(out), *flags]) == 0
    run = open_run(out)
    assert run.settings["fine_tune"] == "block5" and run.thresholds == {"known": 0.5}
    model = run.load_model()
    assert model.output_names == ["probabilities", "known", "features"]
    assert not any(layer.trainable_weights for layer in model.layers if layer.name.startswith("block"))
    with (out / "history.csv").open() as file:
        stages = [row["stage"] for row in csv.DictReader(file)]
    assert stages == ["head"] * 3 + ["block5"] * 2
    assert {*tmp_path.iterdir()} == {out, tmp_path / "logs"}, "the checkpoints are removed"
    logged = tmp_path / "logs" / "tuned"
    assert (logged / "history.csv").read_bytes() == (out / "history.csv").read_bytes()
    assert {file.parent.name for file in logged.rglob("events*")} == {"train", "val", "test"}
    report = (out / "report.html").read_text()
    assert "fine-tuned" in report and "Loss of block5 over 2 epochs" in report
    assert f"<b>{run.metrics['test']['top1']:.1%}</b>" in report
    for summary in run.metrics.values():
        assert 0 <= summary["ece"] <= 1 and 0 <= summary["unknown"] <= 1


@pytest.mark.slow
def test_fine_tuning_that_does_not_lower_the_loss_is_recorded(small: list[str], tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    flags = ["--fine-tune", "block5", "--fine-tune-views", "1", "--fine-tune-epochs", "1"]
    flags += ["--fine-tune-learning-rate", "1"]
    assert main([*small, "--epochs", "3", "--out", str(out), *flags]) == 0
    assert open_run(out).fine_tuning_discarded
    assert "recipe pooled, not fine-tuned" in (out / "report.html").read_text()


@pytest.mark.slow
def test_the_output_of_a_new_process_holds_only_our_lines(
    synthetic_run: Path, small: list[str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "train", *small, "--epochs", "1", "--out", tmp_path / "run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    lines = (done.stdout + done.stderr).splitlines()
    ours = ("photos", "device", "features", "head", "val", "test", "report", "run", "next", "near-duplicates")
    assert [line for line in lines if line.split(": ")[0].split(",")[0] not in ours] == []


def test_few_negatives_are_recorded_with_a_warning(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(5):
        Image.new("RGB", (40, 40), (50 * number, 0, 0)).save(frames / f"{number}.png")
    (frames / "bad.jpg").write_text("no picture")
    out = tmp_path / "run"
    monkeypatch.setattr(negatives, "MIN_NEGATIVES", 30)
    monkeypatch.setattr(negatives, "MAX_NEGATIVES", 30)
    arguments = [*small[:-1], "--none", str(frames), "--epochs", "1", "--out", str(out)]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "none of the classes: 6 photos: 4 train, 1 val, 1 test" in lines
    assert "none of the classes: 30 drawings: 22 train, 4 val, 4 test" in lines
    (warning,) = [line for line in lines if line.startswith("warning: ")]
    # For the photo in test, if it is not named, the upper end of the 95 % Wilson interval is 79 %.
    assert "6 photos of none of the classes are few" in warning and "may name 79%" in warning
    run = open_run(out)
    own = negatives.own_negatives(run.dataset)
    assert {Path(photo.path).parent for photo in own} == {frames}
    assert len(own) == 5 and len(run.dataset.negatives) == 35  # without the one that cannot be read
    test = run.metrics["test"]
    assert (test["negatives"], test["default_negatives"]) == (1, 4)
    assert len(run.dataset.photos) == 40 and run.dataset.classes == open_run(out).classes
    assert run.data_sha256 == run.dataset.sha256


def test_without_own_negatives_the_default_ones_are_recorded(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main([*small[:-1], "--limit", "5", "--epochs", "1", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "none of the classes: 5 drawings: 3 train, 1 val, 1 test; photos of your scene" in printed
    assert [photo.label for photo in open_run(out).dataset.negatives] == ["none"] * 5
    assert (out / "photos.csv").read_text().count("\ndefault:composited-") == 5


def test_photos_left_out_are_printed_and_listed(
    synthetic_photos: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(synthetic_photos, tmp_path / "photos")
    for number in range(4):
        (root / "daisy" / f"bad{number}.jpg").write_text(f"no picture {number}")
    shutil.copy(root / "roses" / "roses-000.jpg", root / "roses" / "zcopy.jpg")
    Image.open(root / "daisy" / "daisy-000.jpg").save(root / "tulips" / "again.jpg", quality=50)
    out = tmp_path / "run"
    assert main([str(root), *small[1:], "--out", str(out), "--epochs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "left out: roses/zcopy.jpg: is the same photo as roses/roses-000.jpg\n" in printed
    assert "left out: daisy/bad0.jpg: " in printed
    assert "left out: 1 more; left_out.csv" in printed
    assert len(open_run(out).dataset.left_out) == 5
    assert len(open_run(out).dataset.photos) == 41
    assert re.search(r"near-duplicates: 1 pair .*different classes", printed)
    assert {"daisy/daisy-000.jpg", "tulips/again.jpg"} <= set(
        (out / "near_duplicates.csv").read_text().replace("\n", ",").split(",")
    )


def test_ctrl_c_in_training_writes_the_run_and_resume_continues_it(
    synthetic_run: Path,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    press_ctrl_c_after_epoch(4, monkeypatch)
    out = tmp_path / "run"
    again = [*small, "--out", str(out), "--epochs", "8"]
    assert main(again) == 130
    printed = capsys.readouterr().out
    assert re.search(r"after \d of 8 epochs", printed) and f"--out {out} --resume" in printed
    assert re.search(r"after \d of 8 epochs", (out / "report.html").read_text())
    assert open_run(out).metrics["test"]["n"] > 0
    assert open_run(out).load_model().outputs[0].shape == (None, 5)
    assert main(again) == 2, "without --resume the run is not replaced"
    assert main([*again, "--resume"]) == 0
    epochs = [row["epoch"] for row in csv.DictReader((out / "history.csv").open())]
    assert epochs == [f"{number:.1f}" for number in range(1, 9)]
    assert list(tmp_path.iterdir()) == [out]
    assert main([*again, "--resume"]) == 2, "a finished run cannot be resumed"
    assert "--overwrite" in capsys.readouterr().err


def test_neither_an_interrupted_nor_a_second_command_replaces_a_finished_run(
    synthetic_run: Path,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = shutil.copytree(synthetic_run, tmp_path / "done")
    before = (out / "run.json").read_bytes()
    command = [*small, "--out", str(out), "--overwrite", "--epochs", "8"]
    with exclusive_lock(tmp_path / ".done.lock"):
        assert main(command) == 2
        assert "another command is writing it" in capsys.readouterr().err
        assert main([*command, "--dry-run"]) == 0, "a plan writes nothing"
        with monkeypatch.context() as patch, ExitStack() as stack:
            patch.setenv(PROCESS_ID_VARIABLE, "1")  # process 0 of the same run holds the lock
            inputs.find_inputs(TrainConfig(RECIPES["pooled"], out, Path(small[0]), overwrite=True), stack)
    press_ctrl_c_after_epoch(4, monkeypatch)
    assert main(command) == 130
    assert "is unchanged" in capsys.readouterr().out and (out / "run.json").read_bytes() == before


def test_ctrl_c_in_evaluation_names_the_resume_flag(
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("train.pipeline.calibrate_and_evaluate", interrupted)
    out = tmp_path / "a run"
    assert main([*small, "--out", str(out), "--epochs", "1"]) == 130
    assert f"--out '{out}' --resume" in capsys.readouterr().err
    checkpoint = tmp_path / ".a run.resume" / "head.npz"
    assert checkpoint.exists() and not out.exists()
    assert main([*small, "--out", str(out), "--epochs", "1"]) == 2
    assert "add --resume to continue" in capsys.readouterr().err and checkpoint.exists()


def test_left_out_photos_are_printed_once_and_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    before = [LeftOut(f"{number}.jpg", "is empty") for number in range(10_000)]
    started = time.thread_time()
    inputs.print_left_out([*before, LeftOut("a\x1b[2J.jpg", "is\nempty"), LeftOut("\udce9.jpg", "x")], before)
    assert time.thread_time() - started < 1, "the time must not grow with the square of the list"
    assert capsys.readouterr().out == ("left out: a\\x1b[2J.jpg: is\\nempty\nleft out: \\udce9.jpg: x\n")


def test_resume_needs_the_name_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["photos", "--resume"])
    assert stop.value.code == 2
    assert "--out" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("kept", [True, False])
def test_ctrl_c_in_extraction_keeps_the_features_except_of_a_temporary_cache(
    kept: bool,
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from train.features import extraction as features

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store, stored = features.write_feature, []

    def then_stop(file: Path, feature: Any) -> None:
        store(file, feature)
        stored.append(file)
        if len(stored) == 4:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(features, "write_feature", then_stop)
    cache = [] if kept else ["--cache", "none"]
    assert main([*small, *cache, "--out", str(tmp_path / "run")]) == 130
    assert ("the same command" in capsys.readouterr().err) == kept
    assert not (tmp_path / "run").exists()
    assert len(stored) >= 4
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == kept * len(stored)


@pytest.mark.parametrize("flag", ["", "--none=", "--add=", "--out=", "--logs=", "--cache="])
def test_an_empty_path_is_a_usage_error(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A shell makes one of a variable that is not set; it must not mean the current folder."""
    with pytest.raises(SystemExit, match="2"):
        main([flag])
    assert "the path is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["file.jpg"], "file.jpg is a file"),
        (["empty"], "empty: "),
        (["photos", "--out", "taken"], "taken: exists and is not a run"),
        *(
            (["photos", flag, f"{folder}/a", *more], f"{folder}/a: is inside the folder of photos {folder};")
            for flag in ("--out", "--logs", "--cache")
            for folder, more in (
                ("photos", ()),
                ("empty", ("--none", "empty")),
                ("empty", ("--add", "empty")),
            )
        ),
        (
            ["photos", "--out", "taken", "--overwrite"],
            "taken: exists and is not a run, so it is not replaced",
        ),
        (["photos", "--out", "file.jpg/run"], "file.jpg/run: cannot be created"),
        (["photos", "--out", "x" * 250], "x: cannot be created (File name too long)"),
        (
            ["photos", "--out", "runs/" + "x" * 250],
            "x: cannot be created (File name too long)",
        ),
        (["photos", "--out", "x" * 250, "--dry-run"], "x: cannot be created (File name too long)"),
        (["photos", "--out", "."], ".: is not the name of a folder"),
        (
            ["photos", "--no-negatives", "--weights", "nowhere.safetensors"],
            "base weights nowhere.safetensors: No such file",
        ),
        (["photos", "--none", "nowhere"], "nowhere: no such folder; give --none a folder of photos of none"),
        (["photos", "--none", "empty"], "--none empty: no readable photo in this folder; add some, or use"),
        (["photos", "--none", "empty", "--no-negatives"], "--none empty: has no effect with --no-negatives"),
        (["photos", "--none", "empty", "--recipe", "article"], "has no effect with --no-negatives, the"),
    ],
)
def test_an_error_is_one_line_and_writes_nothing(
    arguments: list[str],
    fact: str,
    tmp_path: Path,
    synthetic_photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.jpg").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "photos").symlink_to(synthetic_photos)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and fact in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "runs") == [
        *("empty", "file.jpg", "photos", "taken")
    ]


def test_a_full_disk_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fill(path: Path) -> int:
        with path.open("wb", buffering=0) as file:
            return file.write(b"x")

    assert run_cli(lambda: fill(tmp_path / "gone" / "file"), str) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'gone' / 'file'}: no such file or directory;")
    assert error.count("\n") == 1
    text = "import sys; from train.cli import run_cli; sys.exit(run_cli(lambda: print(1) or 0, str))"
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", text], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert "the output: no space left on device" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "flag",
    [
        "--cache-limit=0",
        "--cache-limit=inf",
        "--cache-limit=nan",
        "--cache-limit=x",
        "--epochs=0",
        "--val-share=0.9",
        "--limit=-1",
        "--recipe=other",
        "--seed=x",
        "--seed=4294967296",
    ],
)
def test_a_setting_out_of_bounds_is_a_usage_error(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["photos", flag])
    assert stop.value.code == 2
    assert flag.split("=")[0] in capsys.readouterr().err


def test_without_a_network_flowers_are_synthetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def out_of_reach(cache: Path) -> Path:
        raise Unreachable("its name cannot be looked up")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(inputs, "flower_photos", out_of_reach)
    dataset = find_photos(inputs.default_photos(limit=2))
    assert dataset.synthetic and len(dataset.photos) == 10
    printed = capsys.readouterr().out
    assert "its name cannot be looked up" in printed and "synthetic" in printed


def test_a_missing_package_is_one_line_with_the_install_command_of_train_and_export(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run() -> int:
        raise ModuleNotFoundError(name="tensorflow")

    assert run_cli(run, str) == 2
    error = capsys.readouterr().err
    assert "tensorflow is not installed" in error and "pip install '.[train,export]'" in error
    assert error.count("\n") == 1


def test_ctrl_c_in_native_code_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> int:
        raise RuntimeError("KeyboardInterrupt: <EMPTY MESSAGE>\n\nAt:\n  trainer.py(1): fit")

    assert run_cli(run, lambda: "no run was written") == 130
    assert capsys.readouterr().err == "stopped: no run was written\n"


def test_an_unexpected_error_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_cli(lambda: 1 // 0, str)


def test_help_groups_the_flags_and_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    common, advanced = text.split("storage and hardware (advanced)")
    assert "--fine-tune {" in common and "--dry-run" in common
    assert "--weight-decay" not in common and "--weight-decay" in advanced
    assert text.count("  python -m train ") == 4


def test_the_processes_connect_before_weights_are_read(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JAX cannot connect once it has computed something, as reading an .h5 file does."""
    from train import pipeline

    calls = []

    def connect() -> None:
        calls.append("connect")
        raise UserError("no other process")

    monkeypatch.setattr(pipeline, "init_distributed", connect)
    monkeypatch.setattr(pipeline, "read_weights", lambda source: calls.append("read"))
    assert main([*small, "--out", str(tmp_path / "run")]) == 2
    assert calls == ["connect"]
