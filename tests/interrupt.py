"""Ctrl-C at a known point of the training."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from train.trainer import CheckpointCallback


def press_ctrl_c_after_epoch(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGINT to this process at the end of every epoch with this number, from 0, of any training."""
    on_epoch_end = CheckpointCallback.on_epoch_end

    def then_interrupt(self: CheckpointCallback, ended: int, logs: Any = None) -> None:
        on_epoch_end(self, ended, logs)
        if ended == epoch:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(CheckpointCallback, "on_epoch_end", then_interrupt)
