from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runtime.common.errors import UserError
from train.logs import TrainingLogger

ROW = {"epoch": 1.0, "loss": 0.5, "accuracy": 0.75, "val_loss": 0.25, "val_accuracy": 1.0}


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads there."""
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_every_epoch_is_on_disk_as_soon_as_it_is_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = TrainingLogger(tmp_path / "logs", Path("runs/mine"))
    folder = tmp_path / "logs" / "mine"
    printed = capsys.readouterr().out
    assert f"logs: {folder};" in printed and f"tensorboard --logdir {tmp_path / 'logs'}\n" in printed
    logs.log_epoch("head", ROW)
    assert scalars(folder / "train") == {"head/loss": [(1, 0.5)], "head/accuracy": [(1, 0.75)]}
    assert scalars(folder / "val") == {"head/loss": [(1, 0.25)], "head/accuracy": [(1, 1.0)]}
    logs.log_epoch("block5", ROW | {"loss": 0.125})
    assert scalars(folder / "train")["block5/loss"] == [(1, 0.125)]
    assert (folder / "history.csv").read_text() == (
        "stage,epoch,loss,accuracy,val_loss,val_accuracy\n"
        "head,1.0,0.5,0.75,0.25,1.0\n"
        "block5,1.0,0.125,0.75,0.25,1.0\n"
    )
    logs.log_final({"val": None, "test": {"n": 8, "top1": 0.5}})
    assert scalars(folder / "test") == {"final/n": [(0, 8.0)], "final/top1": [(0, 0.5)]}


def test_the_logs_of_an_earlier_run_with_the_same_name_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("not ours")
    for loss in (0.5, 0.25):
        TrainingLogger(tmp_path, Path("runs/mine")).log_epoch("head", {"epoch": 1.0, "loss": loss})
        (written,) = (tmp_path / "mine" / "train").iterdir()
        written.rename(written.with_name(f"events.out.tfevents.{loss}"))  # another second
    assert scalars(tmp_path / "mine" / "train") == {"head/loss": [(1, 0.25)]}
    assert (tmp_path / "mine" / "history.csv").read_text() == "stage,epoch,loss\nhead,1.0,0.25\n"
    assert (tmp_path / "mine" / "notes.txt").exists()


def test_without_tensorboard_only_the_csv_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    logs = TrainingLogger(tmp_path, Path("runs/mine"))
    printed = capsys.readouterr().out
    assert f"logs: {tmp_path}/mine/history.csv;" in printed and "[tensorboard]" in printed
    logs.log_epoch("head", ROW)
    logs.log_final({"test": {"n": 8}})
    assert (tmp_path / "mine" / "history.csv").read_text().count("\n") == 2
    assert not list(tmp_path.rglob("events*"))


def test_a_full_disk_stops_the_logs_and_not_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = TrainingLogger(tmp_path, Path("runs/mine"))
    (tmp_path / "mine" / "history.csv").unlink()
    (tmp_path / "mine" / "history.csv").mkdir()
    logs.log_epoch("head", ROW)
    logs.log_epoch("head", ROW)
    assert capsys.readouterr().err.startswith(f"logs: {tmp_path}/mine: Is a directory;")


@pytest.mark.parametrize("logs", ["runs", "runs/mine", "runs/mine/logs"])
def test_logs_in_the_folder_of_the_run_raise_user_error(
    logs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--logs"):
        TrainingLogger(Path(logs), Path("runs/mine"))
    assert not (tmp_path / "runs").exists()


def test_an_unwritable_logs_folder_raises_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Not a directory.*--logs"):
        TrainingLogger(tmp_path / "file", Path("mine"))
