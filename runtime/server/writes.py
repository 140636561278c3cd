"""Writes of the service's own files, which a client caused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.common.text import printable
from runtime.server.errors import RequestRejected


@contextmanager
def refused_writes(path: Path, flag: str) -> Iterator[None]:
    """Turns an OSError of the block into RequestRejected (500), which names the flag for another place."""
    try:
        yield
    except OSError as error:
        reason = str(error.strerror or error).lower()
        raise RequestRejected(
            500, f"{printable(str(path))}: {reason}: {flag} chooses another place"
        ) from None
