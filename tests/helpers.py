"""Helpers that tests of several packages share."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.model_file.contract import RESIZE, Contract

ROOT = Path(__file__).parents[1]  # of the checkout
RELEASED = ROOT / "models" / "flowers"
# Seconds after which a test fails instead of waiting: a loaded machine may be a hundred times slower than an
# idle one. A test that passes does not wait for it.
PATIENCE = 240.0


def wait_for(happened: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until `happened()` is true. Fails after `seconds`."""
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, f"did not happen within {seconds:g} s"
        time.sleep(0.02)


def start_python(*arguments: object) -> subprocess.Popen[str]:
    """Starts Python with these arguments and the checkout's code; its output is piped as text."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def nested_folders(top: Path, depth: int = 3000) -> Iterator[None]:
    """Creates folders in one another below `top`, more than a path can name, and removes them at the end."""
    here = os.open(top, os.O_RDONLY)
    try:
        for _ in range(depth):
            os.mkdir("a", dir_fd=here)
            above, here = here, os.open("a", os.O_RDONLY, dir_fd=here)
            os.close(above)
        yield
    finally:
        os.close(here)
        subprocess.run(["rm", "-r", str(top / "a")], check=True)  # shutil.rmtree is recursive


def make_contract(name: str, labels: tuple[str, ...], side: int, synthetic: bool = False) -> Contract:
    """The contract of a test model with pictures of side x side pixels and no thresholds."""
    return Contract(
        version=1,
        name=name,
        labels=labels,
        input_size=(side, side),
        resize=RESIZE,
        thresholds={},
        base_sha256="a" * 64,
        data_sha256="b" * 64,
        versions={"keras": "3"},
        created="2025-01-31T12:00:00Z",
        synthetic=synthetic,
    )
