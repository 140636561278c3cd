"""One process at a time holds a lock, also after another one was killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.common.file_lock import exclusive_lock
from tests.helpers import start_python, wait_for

HOLD = """
import sys, time
from pathlib import Path
from runtime.common.file_lock import exclusive_lock
with exclusive_lock(Path(sys.argv[1])):
    Path(sys.argv[2]).touch()
    time.sleep(1000)
"""


def test_a_lock_is_free_again_after_its_holder_was_killed(tmp_path: Path) -> None:
    path, held = tmp_path / "lock", tmp_path / "held"
    process = start_python("-c", HOLD, path, held)
    try:
        wait_for(held.exists)
        with pytest.raises(BlockingIOError), exclusive_lock(path):
            pass
    finally:
        process.kill()
        process.communicate()
    assert path.exists(), "the killed process could not remove it"
    with exclusive_lock(path), pytest.raises(BlockingIOError), exclusive_lock(path):
        pass
    assert not path.exists()


def test_a_lock_file_that_was_removed_while_it_was_opened_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its next user would lock a new file of that name, and both would hold the lock."""
    from runtime.common import file_lock

    path, removed = tmp_path / "lock", []
    lock = file_lock._lock

    def remove_first(file: int) -> None:
        if not removed:
            removed.append(path)
            path.unlink()
        lock(file)

    monkeypatch.setattr(file_lock, "_lock", remove_first)
    with exclusive_lock(path):
        assert removed and path.exists()
        with pytest.raises(BlockingIOError), exclusive_lock(path):
            pass


def test_a_file_that_cannot_be_created_raises_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), exclusive_lock(tmp_path / "none" / "lock"):
        pass
