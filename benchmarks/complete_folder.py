"""Folders that a benchmark keeps, so that the same command continues after an interruption."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
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


def complete_run(run: Path, command: Callable[[Sequence[str]], int], *arguments: str) -> Path:
    """Return the run folder `run`, which `command` makes or continues unless it is complete.

    Ctrl-C leaves a run with checkpoints, which is not complete. Ends the process if the command fails.
    """
    complete = (run / "run.json").exists() and not checkpoint_dir(run).exists()
    if not complete and (code := command([*arguments, "--out", str(run), "--resume"])):
        sys.exit(code)
    return run
