"""Metrics of a run that is still training: history.csv and TensorBoard event files, written every epoch.

The logs have a folder of their own (docs/decisions.md), with a subfolder per run. TensorBoard then shows new
runs beside old ones.
"""

from __future__ import annotations

import csv
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from runtime.common.errors import UserError
from runtime.common.packages import install_command
from train.data.dataset import SPLITS

EVENTS = "events.out.tfevents."  # prefix of event files

AddScalars = Callable[[Mapping[str, float], int], None]  # values by name, and their step


class TrainingLogger:
    """Writes the logs of `run` to `logs`/NAME; logs of an earlier run with this name are replaced.

    Without `logs` nothing is written. Raises UserError when the folder cannot be written.
    """

    def __init__(self, logs: Path | None, run: Path) -> None:
        self.folder = folder = logs / run.name if logs else None
        self.events: dict[str, AddScalars] = {}  # by split; TensorBoard draws folders as curves of one chart
        if folder is None:
            return
        if run.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise UserError(
                f"--logs {logs}: the logs and the run would share a folder; use --logs {logs}/logs"
            )
        try:
            for split in SPLITS:
                (folder / split).mkdir(parents=True, exist_ok=True)
                for file in (folder / split).glob(f"{EVENTS}*"):
                    file.unlink()
            (folder / "history.csv").write_text("", encoding="utf-8")
            self.events = _event_files(folder)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written ({error.strerror or error}); choose another --logs"
            ) from None
        if self.events:
            print(f"logs: {folder}; to see them, run: tensorboard --logdir {shlex.quote(str(logs))}")
        else:
            print(f"logs: {folder}/history.csv; for TensorBoard files, {install_command('tensorboard')}")

    def log_epoch(self, stage: str, row: Mapping[str, float]) -> None:
        """Write the metrics of an epoch: {"epoch", "loss", "accuracy", "val_loss", …}."""
        self._write(partial(self._add_epoch, stage, row))

    def log_final(self, metrics: Mapping[str, Mapping[str, float] | None]) -> None:
        """Write the metrics of the finished run, by split; None for a split without photos."""
        for split, values in metrics.items():
            self._write(partial(self._add_scalars, split, "final", values or {}, 0))

    def _add_epoch(self, stage: str, row: Mapping[str, float]) -> None:
        assert self.folder is not None
        with (self.folder / "history.csv").open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["stage", *row], lineterminator="\n")
            if not file.tell():
                writer.writeheader()
            writer.writerow({"stage": stage, **row})
        values = {name: value for name, value in row.items() if name != "epoch"}
        train = {name: value for name, value in values.items() if not name.startswith("val_")}
        val = {name.removeprefix("val_"): values[name] for name in values if name not in train}
        self._add_scalars("train", stage, train, int(row["epoch"]))
        self._add_scalars("val", stage, val, int(row["epoch"]))

    def _add_scalars(self, split: str, group: str, values: Mapping[str, float], step: int) -> None:
        if split in self.events:
            self.events[split]({f"{group}/{name}": value for name, value in values.items()}, step)

    def _write(self, write: Callable[[], object]) -> None:
        """Report the first failure once; hours of training continue without logs."""
        if self.folder is None:
            return
        try:
            write()
        except OSError as error:
            print(
                f"logs: {self.folder}: {error.strerror or error}; training continues without logs",
                file=sys.stderr,
            )
            self.folder = None


def _event_files(folder: Path) -> dict[str, AddScalars]:
    """By split, a function that writes scalars of a step to disk; empty without tensorboardX.

    TensorBoard's own writer would load TensorFlow beside the backend that trains.
    """
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar
    except ImportError:
        return {}

    def open_writer(split: str) -> AddScalars:
        # Not its SummaryWriter: on a full disk its thread ends silently, and training waits for it.
        writer = EventsWriter(str(folder / split / "events"))

        def add(scalars: Mapping[str, float], step: int) -> None:
            for name, value in scalars.items():
                writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            writer.flush()

        return add

    return {split: open_writer(split) for split in SPLITS}
