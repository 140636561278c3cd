"""Folders that a benchmark keeps, so that the same command continues after an interruption."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from train.run_writer import checkpoint_dir


def complete_folder(folder: Path, write: Callable[[Path], object]) -> Path:
    """Return `folder`. If it does not exist, `write` fills `FOLDER.partial`, which is then renamed."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        write(partial)
        partial.rename(folder)
    return folder


def is_complete_run(run: Path) -> bool:
    """Whether the run exists and --resume has nothing to continue: Ctrl-C leaves a run with checkpoints."""
    return (run / "run.json").exists() and not checkpoint_dir(run).exists()
