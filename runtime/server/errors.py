"""Exceptions that end a request before it has an answer."""

from collections.abc import Iterator
from contextlib import contextmanager

from runtime.common.errors import EngineError, UserError, WriteError


class RequestRejected(Exception):
    """A request that is refused: its HTTP status and a one-line reason for the client."""

    def __init__(
        self, status: int, reason: str, *, source: str = "-", retry_after: int | None = None
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.source = source  # the uploaded file's name; "-" when it has none
        self.retry_after = retry_after  # seconds


class ClientDisconnected(Exception):
    """The client closed the connection before its request was complete."""


@contextmanager
def reject_user_errors() -> Iterator[None]:
    """Turns a UserError into RequestRejected 409, except for errors of the engine and of the disk."""
    try:
        yield
    except (EngineError, WriteError):  # the client cannot fix them: app.py answers 500
        raise
    except UserError as error:
        raise RequestRejected(409, str(error)) from None
