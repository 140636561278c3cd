"""A run's figures while it is under way: history.csv and TensorBoard's event files, written epoch by epoch.

A run folder appears at the end, whole, so that nothing can be looked at in it before. The logs have a folder
of their own, one for all runs: TensorBoard is pointed at it once, and shows new runs beside the old ones as
they train. They stay there, since moving files away under TensorBoard makes it forget them.
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
from train.data.dataset import SPLITS

EVENTS = "events.out.tfevents."  # what an event file's name begins with

Add = Callable[[Mapping[str, float], int], None]


class TrainingLogger:
    """The logs of `run` in a folder of its name in `logs`, replacing those that one of that name left there.

    Of no `logs`, none are kept. Raises UserError when they cannot be written there.
    """

    def __init__(self, logs: Path | None, run: Path) -> None:
        self.folder = folder = logs / run.name if logs else None
        self.events: dict[str, Add] = {}  # by split, each in a folder: TensorBoard draws them in one chart
        if folder is None:
            return
        if run.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise UserError(f"{logs}: logs there would be in the way of the run; give --logs {logs}/logs")
        try:
            for split in SPLITS:
                (folder / split).mkdir(parents=True, exist_ok=True)
                for file in (folder / split).glob(f"{EVENTS}*"):
                    file.unlink()
            (folder / "history.csv").write_text("", encoding="utf-8")
            self.events = _event_files(folder)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written ({error.strerror or error}); give another --logs"
            ) from None
        if self.events:
            print(f"logs: {folder}; look at them with: tensorboard --logdir {shlex.quote(str(logs))}")
        else:
            print(f"logs: {folder}/history.csv; for TensorBoard's too: pip install 'vgg-edge[tensorboard]'")

    def log_epoch(self, stage: str, row: Mapping[str, float]) -> None:
        """An epoch's figures, as {"epoch", "loss", "accuracy", "val_loss", …}."""
        self._write(partial(self._epoch, stage, row))

    def log_final(self, metrics: Mapping[str, Mapping[str, float] | None]) -> None:
        """The run's figures in the end, of each split that was measured."""
        for split, figures in metrics.items():
            self._write(partial(self._add, split, "final", figures or {}, 0))

    def _epoch(self, stage: str, row: Mapping[str, float]) -> None:
        assert self.folder is not None
        with (self.folder / "history.csv").open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["stage", *row], lineterminator="\n")
            if not file.tell():
                writer.writeheader()
            writer.writerow({"stage": stage, **row})
        figures = {name: value for name, value in row.items() if name != "epoch"}
        val = {name: figures.pop(name) for name in list(figures) if name.startswith("val_")}
        self._add("train", stage, figures, int(row["epoch"]))
        self._add(
            "val", stage, {n.removeprefix("val_"): value for n, value in val.items()}, int(row["epoch"])
        )

    def _add(self, split: str, group: str, figures: Mapping[str, float], step: int) -> None:
        if split in self.events:
            self.events[split]({f"{group}/{name}": value for name, value in figures.items()}, step)

    def _write(self, write: Callable[[], object]) -> None:
        """A log that cannot be written any more is told of once; hours of training go on without it."""
        if self.folder is None:
            return
        try:
            write()
        except OSError as error:
            print(f"logs: {self.folder}: {error.strerror or error}; going on without", file=sys.stderr)
            self.folder = None


def _event_files(folder: Path) -> dict[str, Add]:
    """By split, what adds scalars at a step, on disk when it returns; nothing without tensorboardX.

    TensorBoard's own writer would load TensorFlow wherever it is installed, beside whatever backend trains.
    """
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar
    except ImportError:
        return {}

    def open_one(split: str) -> Add:
        # And not its SummaryWriter, whose thread would die of a full disk unseen, and training wait for it.
        writer = EventsWriter(str(folder / split / "events"))

        def add(scalars: Mapping[str, float], step: int) -> None:
            for name, value in scalars.items():
                writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            writer.flush()

        return add

    return {split: open_one(split) for split in SPLITS}
