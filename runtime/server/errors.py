"""Exceptions that end a request before it has an answer."""


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
