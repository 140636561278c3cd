from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import train.__main__ as command
from tests.helpers import ROOT
from train.cli import run_cli
from train.compress import pipeline as compress
from train.data.dataset import LeftOut, find_photos
from train.data.tf_flowers import Unreachable
from train.run import open_run


def test_the_same_seed_gives_the_same_metrics(
    synthetic_run: Path, synthetic_photos: Path, tmp_path: Path
) -> None:
    assert command.main([str(synthetic_photos), "--out", str(tmp_path / "again"), "--views", "1"]) == 0
    for name in ("metrics.json", "history.csv", "photos.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (synthetic_run / name).read_bytes(), name


def test_the_article_recipe_uses_the_same_features(
    synthetic_run: Path, synthetic_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "article"
    assert (
        command.main([str(synthetic_photos), "--recipe", "article", "--epochs", "3", "--out", str(out)]) == 0
    )
    printed = capsys.readouterr().out
    assert "features: 40 of 40 photos are in the cache" in printed
    assert printed.endswith(
        f"run: {out} (synthetic: trained on drawings)\nnext: python -m export {out} --int8\n"
    )
    run = open_run(out)
    assert [layer.name for layer in run.load_model().layers][-5:] == [
        *("flatten", "hidden", "dropout", "logits", "probabilities")
    ]
    assert run.load_model().get_layer("hidden").units == 256


def test_fine_tuning_makes_a_run_like_any_other(
    synthetic_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned"
    flags = ["--fine-tune", "block5", "--fine-tune-views", "1", "--fine-tune-epochs", "2"]
    flags += ["--logs", str(tmp_path / "logs")]
    assert command.main([str(synthetic_photos), "--limit", "4", "--out", str(out), *flags]) == 0
    run = open_run(out)
    assert run.settings["fine_tune"] == "block5" and run.thresholds == {"known": 0.5}
    model = run.load_model()
    assert model.output_names == ["probabilities", "known"]
    assert not any(layer.trainable_weights for layer in model.layers if layer.name.startswith("block"))
    with (out / "history.csv").open() as file:
        stages = [row["stage"] for row in csv.DictReader(file)]
    assert stages == ["head"] * 60 + ["block5"] * 2
    assert {*tmp_path.iterdir()} == {out, tmp_path / "logs"}, "what it would have gone on from is removed"
    logged = tmp_path / "logs" / "tuned"
    assert (logged / "history.csv").read_bytes() == (out / "history.csv").read_bytes()
    assert {file.parent.name for file in logged.rglob("events*")} == {"train", "val", "test"}
    report = (out / "report.html").read_text()
    assert "recipe pooled, fine-tuned from block5" in report and "Loss of block5 over 2 epochs" in report
    assert f"<b>{run.metrics['test']['top1']:.1%}</b>" in report
    for figures in run.metrics.values():
        assert 0 <= figures["ece"] <= 1 and 0 <= figures["unknown"] <= 1


def test_a_terminal_sees_our_lines_alone(synthetic_run: Path, synthetic_photos: Path, tmp_path: Path) -> None:
    """In a process of its own, where TensorFlow starts anew."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "train",
            synthetic_photos,
            "--views",
            "1",
            "--epochs",
            "1",
            "--out",
            tmp_path / "run",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    lines = (done.stdout + done.stderr).splitlines()
    names = ("photos", "device", "features", "head", "val", "test", "report", "run", "next")
    assert [
        line for line in lines if line.split(": ")[0].split(",")[0] not in (*names, "near-duplicates")
    ] == []


def test_photos_left_out_are_told_and_listed(
    synthetic_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(synthetic_photos, tmp_path / "photos")
    for number in range(4):
        (root / "daisy" / f"bad{number}.jpg").write_text(f"no picture {number}")
    shutil.copy(root / "roses" / "roses-000.jpg", root / "roses" / "zcopy.jpg")
    Image.open(root / "daisy" / "daisy-000.jpg").save(root / "tulips" / "again.jpg", quality=50)
    out = tmp_path / "run"
    assert command.main([str(root), "--out", str(out), "--views", "1", "--epochs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "left out: roses/zcopy.jpg: the same photo as roses/roses-000.jpg\n" in printed
    assert "left out: daisy/bad0.jpg: is not a picture" in printed
    assert "left out: 1 more; all are listed in left_out.csv\n" in printed
    assert len(open_run(out).dataset.left_out) == 5
    assert len(open_run(out).dataset.photos) == 41
    assert "near-duplicates: 1 pair in different classes, so that a label is wrong" in printed
    assert {"daisy/daisy-000.jpg", "tulips/again.jpg"} <= set(
        (out / "near_duplicates.csv").read_text().replace("\n", ",").split(",")
    )


def test_ctrl_c_while_fitting_writes_the_run_and_resume_goes_on(
    synthetic_run: Path,
    synthetic_photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from train.trainer import CheckpointCallback

    end = CheckpointCallback.on_epoch_end

    def then_stop(self: CheckpointCallback, epoch: int, logs: Any = None) -> None:
        end(self, epoch, logs)
        if epoch == 4:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(CheckpointCallback, "on_epoch_end", then_stop)
    out = tmp_path / "run"
    again = [str(synthetic_photos), "--out", str(out), "--views", "1", "--epochs", "8"]
    assert command.main(again) == 130
    told = f"of 8 epochs; the best so far is kept, and --out {out} --resume goes on"
    assert told in capsys.readouterr().out
    assert "of 8 epochs. What follows is of the best so far" in (out / "report.html").read_text()
    assert open_run(out).metrics["test"]["n"] > 0
    assert open_run(out).load_model().outputs[0].shape == (None, 5)
    assert command.main(again) == 2, "without --resume it is not replaced"
    assert command.main([*again, "--resume"]) == 0
    epochs = [row["epoch"] for row in csv.DictReader((out / "history.csv").open())]
    assert epochs == [f"{number:.1f}" for number in range(1, 9)]
    assert list(tmp_path.iterdir()) == [out]
    assert command.main([*again, "--resume"]) == 2, "nothing is left to go on from"
    assert "exists; --overwrite replaces it" in capsys.readouterr().err


def test_ctrl_c_while_measuring_names_resume(
    synthetic_photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("train.evaluation.calibrate_and_evaluate", interrupted)
    out = tmp_path / "a run"
    assert command.main([str(synthetic_photos), "--out", str(out), "--views", "1", "--epochs", "1"]) == 130
    assert (
        f"stopped: no run is written; with --out '{out}' --resume the same command goes on"
        in capsys.readouterr().err
    )
    assert (tmp_path / ".a run.resume" / "head.npz").exists() and not out.exists()


def test_compressing_goes_on_with_a_run_that_was_stopped_alone(
    synthetic_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(synthetic_run, tmp_path / "small")
    again = [str(synthetic_run), "--out", str(out), "--resume", "--reduce", "5000"]
    assert compress.main(again) == 2
    assert "exists; --overwrite replaces it" in capsys.readouterr().err
    (tmp_path / ".small.resume").mkdir()
    assert compress.main(again) == 2
    assert "no more channels can go" in capsys.readouterr().err, "it came past what is there"


def test_left_out_photos_are_told_once_and_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    before = [LeftOut(f"{number}.jpg", "is empty") for number in range(10_000)]
    started = time.perf_counter()
    command._tell_left_out(
        [*before, LeftOut("a\x1b[2J.jpg", "is\nempty"), LeftOut("\udce9.jpg", "x")], before
    )
    assert time.perf_counter() - started < 1, "each was looked for in all of them"
    assert capsys.readouterr().out == ("left out: a\\x1b[2J.jpg: is\\nempty\nleft out: \\udce9.jpg: x\n")


def test_resume_needs_the_name_of_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["photos", "--resume"])
    assert stop.value.code == 2
    assert "--resume goes on with a run that was stopped; give its --out too" in capsys.readouterr().err


def test_ctrl_c_while_extracting_keeps_the_features(
    synthetic_photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from train.features import extraction as features

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store, stored = features._store, []

    def then_stop(file: Path, feature: Any) -> None:
        store(file, feature)
        stored.append(file)
        if len(stored) == 4:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(features, "_store", then_stop)
    assert command.main([str(synthetic_photos), "--out", str(tmp_path / "run"), "--views", "1"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == len(stored) >= 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["file.jpg"], "file.jpg is a file"),
        (["empty"], "2 are needed"),
        (["photos", "--out", "taken"], "taken exists; --overwrite replaces it, or give another --out"),
        (["photos", "--out", "taken", "--overwrite"], "taken is not a run, so it is not replaced"),
        (["photos", "--out", "file.jpg/run"], "file.jpg/run: cannot be made there"),
        (["photos", "--out", "x" * 250], "x: cannot be made there (File name too long); give another --out"),
        (
            ["photos", "--out", "runs/" + "x" * 250],
            "x: cannot be made there (File name too long); give another --out",
        ),
        (["photos", "--out", "x" * 250, "--dry-run"], "x: cannot be made there (File name too long)"),
        (["photos", "--out", "."], ".: --out takes a folder of its own, such as runs/flowers"),
        (["photos", "--weights", "nowhere.safetensors"], "base weights nowhere.safetensors: No such file"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str],
    says: str,
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
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "runs") == [
        *("empty", "file.jpg", "photos", "taken")
    ]


def test_a_full_disk_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fill(path: Path) -> int:
        with path.open("wb", buffering=0) as file:
            return file.write(b"x")

    mended = "; make room there, or mend that, and try again\n"
    assert run_cli(lambda: fill(tmp_path / "gone" / "file"), "", str) == 2
    said = capsys.readouterr().err
    assert said == f"error: {tmp_path / 'gone' / 'file'}: no such file or directory{mended}"
    text = "import sys; from train.command import ended; sys.exit(ended(lambda: print(1) or 0, '', str))"
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", text], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr == f"error: the output: no space left on device{mended}"


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
def test_settings_out_of_bounds(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["photos", flag])
    assert stop.value.code == 2
    assert flag.split("=")[0] in capsys.readouterr().err


def test_without_a_network_flowers_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def out_of_reach(cache: Path) -> Path:
        raise Unreachable("its name cannot be looked up")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(command, "flower_photos", out_of_reach)
    dataset = find_photos(command._flowers(limit=2))
    assert dataset.synthetic and len(dataset.photos) == 10
    assert capsys.readouterr().out == (
        "tf_flowers is out of reach (its name cannot be looked up): "
        "drawing flowers instead, the run is marked synthetic\n"
    )
