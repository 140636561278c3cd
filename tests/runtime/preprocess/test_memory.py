"""The memory that decoding may take."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread

import pytest

from runtime.preprocess import memory
from runtime.preprocess.memory import DecodeMemory, total_memory
from tests.helpers import PATIENCE


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    total_memory.cache_clear()
    yield
    total_memory.cache_clear()


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/system.slice/edge.service\n", "system.slice/edge.service/memory.max"),
        ("0::/system.slice/edge.service\n", "system.slice/memory.max"),  # of the group above
        ("0::/outside/of/the/container\n", "memory.max"),
        ("3:cpu:/x\n2:memory:/docker/1\n", "memory/docker/1/memory.limit_in_bytes"),  # version 1
        ("2:memory:/docker/1\n", "memory/memory.limit_in_bytes"),
    ],
)
def test_a_control_group_limits_the_memory(
    groups: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = total_memory()
    total_memory.cache_clear()
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "CGROUPS_OF_PROCESS", tmp_path / "groups")
    (tmp_path / "groups").write_text(groups)
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("max\n")
    assert total_memory() == machine
    total_memory.cache_clear()
    path.write_text("300000000\n")
    assert total_memory() == 300_000_000


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_the_limit_of_the_address_space_limits_the_memory() -> None:
    code = "from runtime.preprocess.memory import total_memory; print(total_memory())"
    command = f'ulimit -v 400000; exec "{sys.executable}" -c "{code}"'
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True, text=True)
    assert int(done.stdout) == 400_000 * 1024


def test_small_pictures_do_not_wait_for_large_ones() -> None:
    shared, half = DecodeMemory(), total_memory() // 2
    got_large, got_small = Event(), Event()

    def reserve(count: int, got: Event) -> None:
        with shared.reserve(count):
            got.set()

    with shared.reserve(half):
        large = Thread(target=reserve, args=(half, got_large))
        large.start()
        small = Thread(target=reserve, args=(half // 40, got_small))
        small.start()
        assert got_small.wait(PATIENCE) and not got_large.wait(0.1)
    large.join(PATIENCE)
    small.join(PATIENCE)
    assert got_large.is_set()


def test_small_pictures_use_the_memory_that_large_ones_leave() -> None:
    """Their own share holds two: two slow ones would keep all others waiting."""
    shared, small = DecodeMemory(), total_memory() // 70
    with ExitStack() as held:
        for _ in range(10):
            held.enter_context(shared.reserve(small))
