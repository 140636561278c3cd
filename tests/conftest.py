"""Fixtures that the tests of several packages share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Drawings are told apart by colour, so 64 x 64 pixels show enough of them.
QUICK = ("--size", "64", "--photos", "12", "--views", "2", "--epochs", "2", "--reduce", "30")
QUICK_AT_ONCE = 4  # instead of prune.AT_ONCE: an eighth of the steps that channels go in

# A shell starts background jobs with SIGINT ignored; the Ctrl-C tests need Python's own handler.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty user cache for each test process, so that no test reads or writes the real one."""
    home = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def synthetic_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight drawn pictures of each of five flowers, in class folders."""
    from train.data.synthetic import draw_flowers

    return draw_flowers(tmp_path_factory.mktemp("photos") / "drawn", 8)


@pytest.fixture(scope="session")
def synthetic_run(synthetic_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder that `python -m train` makes of them, with the default recipe less the mirroring."""
    from train.__main__ import main

    out = tmp_path_factory.mktemp("runs") / "drawn"
    assert main([str(synthetic_photos), "--out", str(out), "--views", "1"]) == 0
    return out


@pytest.fixture(scope="session")
def compressed_run(synthetic_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python -m train.compress` makes of it with QUICK settings, named small."""
    from train.compress import pipeline as compress
    from train.compress import pruning as prune

    out = tmp_path_factory.mktemp("compressed") / "small"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prune, "AT_ONCE", QUICK_AT_ONCE)
        patch.setattr(compress, "PROBE", 64)
        assert compress.main([str(synthetic_run), "--out", str(out), *QUICK]) == 0
    return out
