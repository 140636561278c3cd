"""Temporary folders with one-line errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from runtime.common.errors import UserError


@contextmanager
def temporary_dir() -> Iterator[Path]:
    """A temporary folder, deleted at the end. Raises UserError when it cannot be created or written to."""
    try:
        with TemporaryDirectory() as folder:
            yield Path(folder)
    except BrokenPipeError:  # the reader of the output has ended
        raise
    except OSError as error:
        raise UserError(
            f"{error.filename or 'temporary files'}: {error.strerror or error}; "
            "free space there, or set TMPDIR to another folder"
        ) from None
