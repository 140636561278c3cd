"""Files that are needed for a moment only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from runtime.common.errors import UserError


@contextmanager
def temporary_dir() -> Iterator[Path]:
    """A temporary folder, gone at the end. Raises UserError when it cannot be made or written to."""
    try:
        with TemporaryDirectory() as there:
            yield Path(there)
    except BrokenPipeError:  # whoever read the output has gone
        raise
    except OSError as error:
        raise UserError(
            f"{error.filename or 'temporary files'}: {error.strerror or error}; "
            "make room there, or name another folder in TMPDIR"
        ) from None
