"""WebhookPublisher and a real HTTP server."""

from __future__ import annotations

import json
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, tzinfo
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, repeat
from typing import Any

import pytest

from runtime.publish import webhook
from runtime.publish.address import parse_webhook_address
from runtime.publish.webhook import CAPACITY, STALE_AFTER, WebhookPublisher
from tests.helpers import PATIENCE, wait_for
from tests.runtime.publish.broker import free_port
from tests.runtime.publish.conftest import MakeAnswer


@dataclass
class Receiver:
    """What an HTTP server got; it answers with the statuses in turn, and then with 200."""

    statuses: list[int] = field(default_factory=list)
    got: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    port: int = 0
    is_endless: bool = False  # a reply has no end before the server ends

    def address(self, path: str = "/api/webhook/geheim?key=geheim") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    @contextmanager
    def serve(self) -> Iterator[None]:
        outer, stops = self, threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = outer.statuses.pop(0) if outer.statuses else 200
                outer.paths.append(self.path)
                if status == 200:
                    outer.got.append(json.loads(body))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(b"O")
                if outer.is_endless:
                    stops.wait()

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", self.port), Handler) as server:
            self.port = server.server_port
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            yield
            stops.set()
            server.shutdown()


@pytest.fixture
def open_publisher(monkeypatch: pytest.MonkeyPatch) -> Callable[..., WebhookPublisher]:
    monkeypatch.setattr(webhook, "RETRY_DELAY", 0.02)
    monkeypatch.setattr(webhook, "TIMEOUT", 2 * PATIENCE)  # no test waits for it
    return lambda address, messages: WebhookPublisher(parse_webhook_address(address), messages.append)


Open = Callable[..., WebhookPublisher]


def test_each_change_is_one_post_of_json(open_publisher: Open, make_answer: MakeAnswer) -> None:
    receiver, messages = Receiver(), list[str]()
    with receiver.serve(), open_publisher(receiver.address(), messages) as publisher:
        publisher.publish(make_answer("roses"))
        publisher.publish(make_answer("roses", is_change=False))
        publisher.publish(make_answer("tulips", known=False))
        wait_for(lambda: len(receiver.got) == 2)
    assert [(one["label"], one["known"]) for one in receiver.got] == [("roses", True), ("tulips", False)]
    assert receiver.got[0]["time"].endswith("Z") and receiver.paths[0] == "/api/webhook/geheim?key=geheim"
    assert messages == []


def test_a_failed_request_is_repeated_and_reported_once_without_the_path(
    open_publisher: Open, make_answer: MakeAnswer
) -> None:
    receiver, messages = Receiver([503, 503, 429]), list[str]()
    with receiver.serve(), open_publisher(receiver.address(), messages) as publisher:
        publisher.publish(make_answer("roses"))
        wait_for(lambda: len(messages) == 3)
    assert [one["label"] for one in receiver.got] == ["roses"] and len(receiver.paths) == 4
    assert "503" in messages[0] and "429" in messages[1] and "works again" in messages[2]
    assert all("geheim" not in line and f"127.0.0.1:{receiver.port}" in line for line in messages)


def test_a_reply_that_never_ends_counts_by_its_status(open_publisher: Open, make_answer: MakeAnswer) -> None:
    receiver, messages = Receiver(is_endless=True), list[str]()
    with receiver.serve(), open_publisher(receiver.address(), messages) as publisher:
        publisher.publish(make_answer("roses"))
        publisher.publish(make_answer("tulips"))
        wait_for(lambda: len(receiver.got) == 2)
    assert [one["label"] for one in receiver.got] == ["roses", "tulips"] and messages == []


def test_a_request_that_another_try_would_not_help_is_dropped(
    open_publisher: Open, make_answer: MakeAnswer
) -> None:
    receiver, messages = Receiver([404, 301]), list[str]()
    with receiver.serve(), open_publisher(receiver.address(), messages) as publisher:
        for label in ("roses", "tulips", "daisy"):
            publisher.publish(make_answer(label))
        wait_for(lambda: len(messages) == 3)
    assert [one["label"] for one in receiver.got] == ["daisy"]
    assert "404" in messages[0] and "301" in messages[1] and "2 answers were dropped" in messages[2]


def test_while_the_server_is_away_the_newest_answers_wait(
    open_publisher: Open, make_answer: MakeAnswer
) -> None:
    receiver, messages = Receiver(port=free_port()), list[str]()
    with open_publisher(receiver.address(), messages) as publisher:
        publisher.publish(make_answer("first"))
        wait_for(lambda: messages)
        for number in range(CAPACITY + 50):
            publisher.publish(make_answer(str(number)))
        with receiver.serve():
            wait_for(lambda: len(receiver.got) == CAPACITY + 1)
    labels = [one["label"] for one in receiver.got]
    assert labels == ["first", *(str(number) for number in range(50, CAPACITY + 50))]
    assert "refused" in messages[0] and "50 answers were dropped" in messages[1] and len(messages) == 2


def test_a_stale_answer_is_dropped(open_publisher: Open, make_answer: MakeAnswer) -> None:
    receiver, messages = Receiver(), list[str]()
    old = make_answer("old")
    with receiver.serve(), open_publisher(receiver.address(), messages) as publisher:
        publisher.publish(replace(old, time=old.time - STALE_AFTER - timedelta(seconds=1)))
        publisher.publish(make_answer("new"))
        wait_for(lambda: receiver.got)
    assert [one["label"] for one in receiver.got] == ["new"]


def test_the_clock_may_be_set_while_an_answer_waits(
    open_publisher: Open, make_answer: MakeAnswer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A board without a battery starts with the time of its end."""
    receiver, messages = Receiver(statuses=[503]), list[str]()

    class LaterClock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + 2 * STALE_AFTER

    with receiver.serve(), open_publisher(receiver.address(), messages) as publisher:
        publisher.publish(make_answer("roses"))
        wait_for(lambda: messages)
        monkeypatch.setattr(webhook, "datetime", LaterClock)
        wait_for(lambda: receiver.got)


def test_answers_that_are_dropped_without_a_failure_are_reported(
    open_publisher: Open, make_answer: MakeAnswer
) -> None:
    """Such as those of a folder of photos, which are classified faster than they are sent."""
    receiver, messages = Receiver(), list[str]()
    with receiver.serve(), open_publisher(receiver.address(), messages) as publisher:
        for number in range(20 * CAPACITY):
            publisher.publish(make_answer(str(number)))
        wait_for(lambda: messages)
    assert "answers were dropped: sending is slower" in messages[0] and len(messages) == 1


def test_a_server_that_never_answers_holds_up_neither_the_camera_nor_the_end(
    open_publisher: Open, make_answer: MakeAnswer
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        started = time.perf_counter()
        with open_publisher(address, []) as publisher:
            for _ in range(1000):
                publisher.publish(make_answer("roses"))
        assert time.perf_counter() - started < PATIENCE


def test_the_end_waits_until_the_last_answers_are_sent(
    open_publisher: Open, make_answer: MakeAnswer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a command that classifies a few photos and ends."""
    receiver, messages = Receiver(), list[str]()
    monkeypatch.setattr(webhook, "JOIN_TIMEOUT", PATIENCE)
    with receiver.serve():
        with open_publisher(receiver.address(), messages) as publisher:
            for number in range(10):
                publisher.publish(make_answer(str(number)))
        assert [one["label"] for one in receiver.got] == [str(number) for number in range(10)]


def test_answers_that_wait_hold_no_pictures(open_publisher: Open, make_answer: MakeAnswer) -> None:
    """A hundred uploads of 32 MB would take 3.2 GB while the address is away."""
    with open_publisher("http://127.0.0.1:9/", list[str]()) as publisher:
        for label in ("roses", "tulips"):
            answer = make_answer(label)
            picture = weakref.ref(answer.get_pixels)
            publisher.publish(answer)
            del answer
            assert picture() is None


@contextmanager
def replies(make_reply: Callable[[int], Iterator[bytes]]) -> Iterator[str]:
    """A server that answers request n with the parts of `make_reply(n)`."""

    def answer() -> None:
        with suppress(OSError):
            for number in count():
                connection = server.accept()[0]
                with connection, suppress(OSError):
                    request = b""
                    # To its end: bytes that stay unread would reset the connection.
                    while not request.endswith(b"}") and (part := connection.recv(10_000)):
                        request += part
                    for part in make_reply(number):
                        connection.sendall(part)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        server.shutdown(socket.SHUT_RDWR)  # ends accept()


def slowly(parts: Iterator[bytes]) -> Iterator[bytes]:
    for part in parts:
        time.sleep(0.05)
        yield part


@pytest.mark.parametrize("part", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_reply_that_comes_in_parts_without_an_end_does_not_hold_up_the_next_answers(
    part: bytes, open_publisher: Open, make_answer: MakeAnswer, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = list[str]()

    def make_reply(number: int) -> Iterator[bytes]:
        return slowly(repeat(part)) if number == 0 else iter([b"HTTP/1.1 200 OK\r\n\r\n"])

    monkeypatch.setattr(webhook, "TIMEOUT", 0.5)
    with replies(make_reply) as address, open_publisher(address, messages) as publisher:
        publisher.publish(make_answer("roses"))
        wait_for(lambda: len(messages) == 2)
    assert "timed out" in messages[0] and "works again" in messages[1]


@pytest.mark.parametrize("rest", [(), repeat(bytes(10_000))], ids=["short", "endless"])
def test_another_kind_of_server_is_one_line(
    rest: Iterable[bytes], open_publisher: Open, make_answer: MakeAnswer
) -> None:
    """Such as one that greets with the time, or with a key that differs each time."""
    messages, numbers = list[str](), list[int]()

    def make_reply(number: int) -> Iterator[bytes]:
        numbers.append(number)
        yield b"220 at %d\r\n" % number
        yield from rest

    with replies(make_reply) as address, open_publisher(address, messages) as publisher:
        publisher.publish(make_answer("roses"))
        wait_for(lambda: len(numbers) > 3)
    assert len(messages) == 1 and "the reply is not http" in messages[0]


def test_a_reply_that_says_continue_counts_by_its_last_status(
    open_publisher: Open, make_answer: MakeAnswer
) -> None:
    messages = list[str]()

    def make_reply(number: int) -> Iterator[bytes]:
        return slowly(
            iter([b"HTTP/1.1 100 Continue\r\nA: HTTP/1.1 200\r\n", b"\r\nHTTP/1.1 4", b"04 No\r\n"])
        )

    with replies(make_reply) as address, open_publisher(address, messages) as publisher:
        publisher.publish(make_answer("roses"))
        wait_for(lambda: messages)
    assert "404" in messages[0]
