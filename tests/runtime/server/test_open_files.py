"""A service that may open few files."""

from __future__ import annotations

import asyncio
import errno

import pytest

from runtime.server import open_files
from runtime.server.open_files import (
    FILES_OF_SERVICE,
    MIN_CONNECTIONS,
    FileLimitReporter,
    connections_within_limit,
    raise_file_limit,
)

resource = pytest.importorskip("resource")
INFINITY = resource.RLIM_INFINITY


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The soft and the hard limit; the newest of the list counts."""
    held = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: held[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limit: held.append(limit))
    return held


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((256, INFINITY), (4096, INFINITY)),
        ((1024, 524_288), (4096, 524_288)),
        ((40, 60), (60, 60)),
        ((8192, 8192), (8192, 8192)),
        ((INFINITY, INFINITY), (INFINITY, INFINITY)),
    ],
)
def test_the_limit_is_raised_as_far_as_it_may(
    before: tuple[int, int], after: tuple[int, int], limits: list[tuple[int, int]]
) -> None:
    limits.append(before)
    raise_file_limit()
    assert limits[-1] == after


@pytest.mark.parametrize(
    ("limit", "connections"),
    [(40, MIN_CONNECTIONS), (FILES_OF_SERVICE + 36, 36), (1024, 256), (INFINITY, 256)],
)
def test_connections_leave_files_to_the_service(
    limit: int, connections: int, limits: list[tuple[int, int]]
) -> None:
    limits.append((limit, limit))
    assert connections_within_limit(256) == connections


def test_refused_connections_print_one_line_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter, loop, others = FileLimitReporter(), asyncio.new_event_loop(), []
    monkeypatch.setattr(loop, "default_exception_handler", others.append)
    for _ in range(128):
        reporter(loop, {"exception": OSError(errno.EMFILE, "Too many open files")})
    (line,) = capsys.readouterr().err.splitlines()
    assert "ulimit -n" in line and others == []
    monkeypatch.setattr(open_files, "REPORT_INTERVAL", 0.0)
    reporter = FileLimitReporter()
    for _ in range(2):
        reporter(loop, {"exception": OSError(errno.EMFILE, "Too many open files")})
    assert len(capsys.readouterr().err.splitlines()) == 2
    for context in ({"message": "x"}, {"exception": ValueError()}):
        reporter(loop, context)
    assert len(others) == 2
    loop.close()
