"""Fixtures that the tests of several packages share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# The flags of `compressed_run`.
QUICK = ("--reconstruction-photos", "12", "--views", "2", "--epochs", "2", "--reduce", "2")
CRASHED = pytest.StashKey[bool]()

# A shell starts background jobs with SIGINT ignored; the Ctrl-C tests need Python's own handler.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist there are no workers
def pytest_testnodedown(node: Any, error: object) -> None:
    """A crash of a test process ends the tests early; pytest alone would report it as a failed test."""
    if error:
        node.config.stash[CRASHED] = True


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.stash.get(CRASHED, False):
        session.exitstatus = pytest.ExitCode.INTERRUPTED


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty user cache and state for each test process, so that no test reads or writes the real ones.

    No engine is timed in the background: a test would get another engine than the one before it.
    """
    home = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("VGG_EDGE_ENGINE_TIMING", "off")
        yield home


@pytest.fixture(scope="session")
def synthetic_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight drawn pictures of each of five flowers, in class folders."""
    from train.data.synthetic import draw_flowers

    return draw_flowers(tmp_path_factory.mktemp("photos") / "drawn", 8)


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for `--weights`: a sixteenth of VGG16's channels, 8 or more, and an input of 64 x 64."""
    from tests.backbone import small_backbone, write_weights

    file = tmp_path_factory.mktemp("weights") / "small.safetensors"
    write_weights(file, small_backbone())
    return file


@pytest.fixture(scope="session")
def synthetic_run(
    synthetic_photos: Path, small_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run folder that `python -m train --weights small_weights` makes of `synthetic_photos`, with the
    default recipe but in ten epochs, without mirrored views.
    """
    from train.__main__ import main

    out = tmp_path_factory.mktemp("runs") / "drawn"
    quick = ["--views", "1", "--epochs", "10", "--learning-rate", "0.1", "--weights", str(small_weights)]
    quick.append("--no-negatives")
    assert main([str(synthetic_photos), "--out", str(out), *quick]) == 0
    return out


@pytest.fixture(scope="session")
def compressed_run(synthetic_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python -m train.compress` makes of it with QUICK settings, named small."""
    from train.compress.__main__ import main

    out = tmp_path_factory.mktemp("compressed") / "small"
    assert main([str(synthetic_run), "--out", str(out), *QUICK]) == 0
    return out
