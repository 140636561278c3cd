"""WebhookPublisher: sends each new answer as JSON in an HTTP POST, from a thread that retries."""

import json
import math
import re
import socket
import ssl
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import Event, Thread
from types import TracebackType

from runtime.publish.address import WebhookAddress
from runtime.publish.answer import Answer
from runtime.publish.outbox import REPORT_INTERVAL, Outbox, too_slow

TIMEOUT = 5.0  # seconds for connecting, and for the status of the reply
MAX_REPLY = 10_000  # bytes in which the status must be
RETRY_DELAY = 1.0  # seconds; doubles up to the maximum
MAX_RETRY_DELAY = 60.0
STALE_AFTER = timedelta(minutes=5)  # an older answer is not sent: it could open a door for a guest who left
CAPACITY = 100  # answers
RETRIED = (408, 425, 429)  # and all from 500 on; other statuses stay the same at the next try
JOIN_TIMEOUT = 0.3  # seconds that closing waits for a request

# The status of the reply; replies with a status below 200 may come before it.
_STATUS = re.compile(rb"^HTTP/1\.[01] ([2-9]\d\d)", re.MULTILINE)


class WebhookPublisher:
    """A context manager whose `publish` puts an answer into a bounded queue and never waits.

    A full queue drops its oldest answer. `on_message` gets a line when requests fail, and when they work
    again.
    """

    def __init__(self, address: WebhookAddress, on_message: Callable[[str], None]) -> None:
        self._address, self._on_message = address, on_message
        self._tls = ssl.create_default_context() if address.scheme == "https" else None
        self._outbox: Outbox[tuple[float, bytes]] = Outbox(CAPACITY)  # until when, and JSON of an answer
        self._dropped = 0
        self._reported_dropped = -math.inf  # time.monotonic() seconds
        self._reported: set[str] = set()  # problems since the last success
        self._closing = Event()
        self._thread = Thread(target=self._run, name="webhook", daemon=True)

    def __enter__(self) -> "WebhookPublisher":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        deadline = time.monotonic() + JOIN_TIMEOUT
        while not self._outbox.is_empty() and not self._reported and time.monotonic() < deadline:
            time.sleep(0.01)
        self._closing.set()
        self._thread.join(JOIN_TIMEOUT)

    def publish(self, answer: Answer) -> None:
        """Sends an answer soon, if it is a change."""
        if answer.is_change:
            # By the monotonic clock: a board without a battery sets its clock when the network is up.
            age = max(datetime.now(timezone.utc) - answer.time, timedelta())
            sent_until = time.monotonic() + (STALE_AFTER - age).total_seconds()
            # Without its picture, which may take many megabytes: the address may be away for hours.
            self._outbox.put((sent_until, json.dumps(answer.fields()).encode()))

    def _run(self) -> None:
        while not self._closing.is_set():
            if answer := self._outbox.get(timeout=0.1):
                self._deliver(*answer)

    def _deliver(self, sent_until: float, body: bytes) -> None:
        delay = RETRY_DELAY
        while True:  # one try at least: the end waits for it
            if time.monotonic() > sent_until:
                self._dropped += 1
                return
            problem, is_final = self._post(body)
            if not problem:
                self._report_success()
                return
            self._report(problem, is_final)
            if is_final:
                self._dropped += 1
                return
            if self._closing.wait(delay):
                return
            delay = min(2 * delay, MAX_RETRY_DELAY)

    def _post(self, body: bytes) -> tuple[str, bool]:
        """Sends one request. Returns the problem, or "", and whether another try would not help."""
        address = self._address
        connection = (
            HTTPSConnection(address.host, address.port, timeout=TIMEOUT, context=self._tls)
            if self._tls
            else HTTPConnection(address.host, address.port, timeout=TIMEOUT)
        )
        try:
            headers = {
                "Content-Type": "application/json",
                "User-Agent": "vgg-edge",
                "Connection": "close",
            }
            connection.request("POST", address.target, body, headers)
            status = _read_status(connection.sock)
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "strerror", "") or str(error) or type(error).__name__
            return " ".join(str(reason).split()).lower()[:200], False
        finally:
            connection.close()
        if status < 300:
            return "", False
        return f"the answer has HTTP status {status}", status < 500 and status not in RETRIED

    def _report(self, problem: str, is_final: bool) -> None:
        if problem not in self._reported:
            then = "the answer is dropped" if is_final else "retrying in the background"
            self._on_message(f"webhook {self._address}: {problem}; {then}")
        self._reported.add(problem)

    def _report_success(self) -> None:
        self._dropped += self._outbox.take_dropped()
        if self._reported:
            dropped = f"; {self._dropped} answers were dropped" if self._dropped else ""
            self._on_message(f"webhook {self._address}: works again{dropped}")
        elif self._dropped and time.monotonic() - self._reported_dropped > REPORT_INTERVAL:
            self._on_message(f"webhook {self._address}: {too_slow(self._dropped)}")
            self._reported_dropped = time.monotonic()
        else:
            return
        self._reported.clear()
        self._dropped = 0


def _read_status(connection: socket.socket) -> int:
    """Returns the HTTP status of the reply, whose rest is not read: it may never end. Raises OSError.

    http.client has no limit for the whole reply: one of single bytes could take days.
    """
    deadline, reply = time.monotonic() + TIMEOUT, b""
    while not (found := _STATUS.search(reply)):
        if (seconds_left := deadline - time.monotonic()) <= 0:
            raise TimeoutError("timed out")
        connection.settimeout(seconds_left)
        part = connection.recv(MAX_REPLY)
        reply += part
        if not part or len(reply) > MAX_REPLY:
            raise OSError("the reply is not HTTP" if reply else "the connection ended without a reply")
    return int(found[1])
