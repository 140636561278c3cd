"""The memory of this machine or container, and the share of it that decoding may take."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Condition, Lock

CGROUPS = Path("/sys/fs/cgroup")
CGROUPS_OF_PROCESS = Path("/proc/self/cgroup")


class DecodeMemory:
    """The memory that this process may use to decode: half of the machine's, and a 32nd for small pictures.

    Small pictures need at most a 64th, as JPEGs of phones do. They never wait for large ones.
    """

    def __init__(self) -> None:
        self._large, self._small = _Share(), _Share()

    def reserve(self, count: int) -> AbstractContextManager[None]:
        """Waits until `count` bytes are free, and holds them in the block."""
        total = total_memory()
        if count <= total // 64 and not self._large.has_room(count, total // 2):
            return self._small.reserve(count, total // 32)
        return self._large.reserve(count, total // 2)


class _Share:
    """A part of the memory that threads share, first come, first served."""

    def __init__(self) -> None:
        self._used = 0  # bytes
        self._queue = Lock()  # held by the thread that waits: small pictures cannot overtake a large one
        self._released = Condition()

    def has_room(self, count: int, limit: int) -> bool:
        """Whether `count` bytes fit now, and no thread waits."""
        return not self._queue.locked() and (not self._used or self._used + count <= limit)

    @contextmanager
    def reserve(self, count: int, limit: int) -> Iterator[None]:
        """Waits until `count` bytes fit into `limit`, and holds them in the block.

        A picture that is alone always gets its memory.
        """
        if not count:
            yield
            return
        with self._queue, self._released:
            self._released.wait_for(lambda: not self._used or self._used + count <= limit)
            self._used += count
        try:
            yield
        finally:
            with self._released:
                self._used -= count
                self._released.notify()


DECODE_MEMORY = DecodeMemory()


@cache
def total_memory() -> int:
    """Returns the bytes of memory that this process may use, 1 TiB where the system does not report it.

    The smallest of the machine's memory, the limits of the process's control groups (containers and systemd
    set them) and the process's own limit of address space (`ulimit -v`).
    """
    limits = [2**40, *_cgroup_limits()]
    with suppress(AttributeError, ValueError, OSError):  # Windows
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if sys.platform != "win32":
        import resource

        limits += [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit > 0]
    return min(limits)


def _cgroup_limits() -> Iterator[int]:
    """Yields the memory limits of this process's control groups, of both versions of Linux's interface."""
    try:
        lines = CGROUPS_OF_PROCESS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top, name = (CGROUPS / "memory", "memory.limit_in_bytes") if controllers else (CGROUPS, "memory.max")
        folder = top / group.lstrip("/")
        # A container sees its own group as the root, under a name that exists outside only.
        for path in (folder, *folder.parents, top):
            with suppress(OSError, ValueError):  # "max": no limit
                yield int((path / name).read_text())
            if path == top:
                break
