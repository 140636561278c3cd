"""Folders of photos that a benchmark keeps: a folder is complete if it exists."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path


def complete_folder(folder: Path, write: Callable[[Path], object]) -> Path:
    """The folder, unchanged if it exists. Else `write` fills another one, which is then renamed."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        write(partial)
        partial.rename(folder)
    return folder
