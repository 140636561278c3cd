"""Measures the service while one address attacks it: photos of another address, and the service's memory.

Each attack runs in a separate process, from 127.0.0.1 or from several of 127.0.0.0/8, and continues until it
is stopped. At the same time, a client at 127.0.0.2 sends photos, with a new connection for every tenth one.
"""

from __future__ import annotations

import http.client
import multiprocessing
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from benchmarks.machine import process_mb
from runtime.server.connection_limits import MAX_PIPELINED
from tests.runtime.preprocess.hostile import HOSTILE

GOOD_ADDRESS, ATTACKER = "127.0.0.2", "127.0.0.1"
PHOTOS_PER_CONNECTION = 10
WARM_UP = 1.0  # seconds that an attack runs before it is measured
BODY_BYTES = 32_000_000  # the service's limit


@dataclass(frozen=True)
class GoodClient:
    """Sends photos one after the other."""

    port: int
    token: str
    photos: list[bytes]

    def latencies(self, seconds: float) -> list[float]:
        """Seconds from the connection or the request to the answer. Raises OSError when it is refused."""
        found: list[float] = []
        started = time.perf_counter()
        connection = self._connect()
        while time.perf_counter() - started < seconds:
            before = time.perf_counter()
            if len(found) % PHOTOS_PER_CONNECTION == 0:
                connection.close()
                connection = self._connect()
            connection.request("POST", "/classify", random.choice(self.photos), self._headers())
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise OSError(f"{answer.status}: {body[:200].decode()}")
            found.append(time.perf_counter() - before)
        connection.close()
        return found

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, 30, source_address=(GOOD_ADDRESS, 0))

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", "Content-Type": "image/jpeg"}


@contextmanager
def attacking(name: str, port: int, token: str, photo: bytes) -> Iterator[None]:
    """Runs one of ATTACKS during the block."""
    process = multiprocessing.get_context("spawn").Process(
        target=_attack, args=(name, port, token, photo), daemon=True
    )
    process.start()
    time.sleep(WARM_UP)
    try:
        yield
    finally:
        process.terminate()
        process.join()


def process_tree(process_id: int) -> list[int]:
    """A process and its children, which decode pictures."""
    found = [process_id]
    with suppress(OSError):
        for thread in Path(f"/proc/{process_id}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += process_tree(int(child))
    return found


def peak_mb(process_id: int) -> float:
    """The sum of the highest resident memory of a process and of each of its children."""
    total = 0.0
    for process in process_tree(process_id):
        with suppress(OSError):  # it has ended
            total += process_mb(process, "VmHWM")
    return total


# --- the attacker's process ---


@dataclass(frozen=True)
class Target:
    port: int
    token: str
    photo: bytes

    def connect(self, address: str = ATTACKER) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), 30, source_address=(address, 0))
        connection.settimeout(30)
        return connection

    def head(self, request: str, *fields: str) -> bytes:
        """A request's head with the token."""
        lines = (f"{request} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", f"Authorization: Bearer {self.token}")
        return "\r\n".join((*lines, *fields, "\r\n")).encode()


def endless_trailer(target: Target, number: int) -> None:
    """Sends the trailer of a login's body, which never ends."""
    fields = b"".join(b"X-%d: %s\r\n" % (each, b"a" * 100) for each in range(5000))
    with target.connect() as connection:
        connection.sendall(
            b"POST /login HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
        )
        while True:
            connection.sendall(fields)


def pipelined_heads(target: Target, number: int) -> None:
    """Sends large heads and reads no answer."""
    head = b"GET /page.js HTTP/1.1\r\nHost: localhost\r\nX: %s\r\n\r\n" % (b"a" * 60_000)
    with target.connect() as connection:
        while True:
            connection.sendall(head)


def stalled_body(target: Target, number: int) -> None:
    """Sends a photo of the largest size, but for its last byte, and waits."""
    with target.connect() as connection:
        connection.sendall(target.head("POST /classify", f"Content-Length: {BODY_BYTES}"))
        connection.sendall(bytes(BODY_BYTES - 1))
        connection.recv(1)


def stalled_login(target: Target, number: int) -> None:
    """Opens a connection from one of six addresses, and sends a login without its body."""
    with target.connect(f"127.0.1.{number % 6 + 1}") as connection:
        connection.sendall(b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n")
        connection.recv(1)


def oversized_body(target: Target, number: int) -> None:
    """Sends three times as much as the service accepts, and never reads."""
    with target.connect() as connection:
        connection.sendall(target.head("POST /classify", f"Content-Length: {3 * BODY_BYTES}"))
        connection.sendall(bytes(3 * BODY_BYTES))


def photo_flood(target: Target, number: int) -> None:
    """Sends good photos, one after the other."""
    head = target.head("POST /classify", "Content-Type: image/jpeg", f"Content-Length: {len(target.photo)}")
    with target.connect() as connection:
        while True:
            connection.sendall(head + target.photo)
            connection.recv(100_000)


def request_flood(target: Target, number: int) -> None:
    """Sends small requests without the token."""
    _flood(target, b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 401")


def status_flood(target: Target, number: int) -> None:
    """Sends small requests with the token."""
    _flood(target, target.head("GET /status"), b"HTTP/1.1 200")


def damaged_flood(target: Target, number: int) -> None:
    """Sends photos of three bytes."""
    _flood(target, target.head("POST /classify", "Content-Length: 3") + b"abc", b"HTTP/1.1 4")


def hostile_pictures(target: Target, number: int) -> None:
    """Uploads pictures that take much time or memory to decode, each kind after the other."""
    for make in HOSTILE.values():
        data = make()
        head = target.head("POST /classify", "Content-Type: image/jpeg", f"Content-Length: {len(data)}")
        with suppress(OSError), target.connect() as connection:
            connection.sendall(head + data)
            connection.recv(100_000)


def large_forms(target: Target, number: int) -> None:
    """Uploads forms of almost the largest size without a picture, from four addresses."""
    _send_forms(target, bytes(BODY_BYTES - 1000), f"127.0.1.{number + 1}")


def delimiter_forms(target: Target, number: int) -> None:
    """Uploads forms full of delimiters, each of which takes a parser microseconds."""
    _send_forms(target, b"\r\n--bX" * (BODY_BYTES // 6 - 100))


def cookie_flood(target: Target, number: int) -> None:
    """Sends thousands of cookies without the token, each time on a new connection."""
    cookies = b"vgg_edge_%d=;" % target.port * 3_000
    with target.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nCookie: %s\r\n\r\n" % cookies)
        connection.recv(100_000)


def _send_forms(target: Target, data: bytes, address: str = ATTACKER) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="a"; filename="x"\r\n\r\n%s\r\n--b--\r\n' % data
    head = target.head(
        "POST /classify", "Content-Type: multipart/form-data; boundary=b", f"Content-Length: {len(body)}"
    )
    with target.connect(address) as connection:
        while True:
            connection.sendall(head + body)
            if not connection.recv(100_000):
                return


def _flood(target: Target, request: bytes, answer: bytes) -> None:
    """Sends as many requests at a time as the service accepts, and reads their answers."""
    with target.connect() as connection:
        while True:
            connection.sendall(request * MAX_PIPELINED)
            answers = 0
            while answers < MAX_PIPELINED:
                received = connection.recv(100_000)
                if not received:
                    return
                answers += received.count(answer)


# How many of each run at once.
ATTACKS: dict[Callable[[Target, int], None], int] = {
    endless_trailer: 4,
    pipelined_heads: 8,
    stalled_body: 4,
    stalled_login: 300,
    oversized_body: 2,
    photo_flood: 64,
    request_flood: 60,
    status_flood: 60,
    damaged_flood: 60,
    hostile_pictures: 4,
    large_forms: 4,
    delimiter_forms: 2,
    cookie_flood: 8,
}
ATTACK_NAMES = {attack.__name__.replace("_", " "): attack for attack in ATTACKS}
RETRY_AFTER = 0.5  # seconds until a closed connection is opened again


def _attack(name: str, port: int, token: str, photo: bytes) -> None:
    attack, target = ATTACK_NAMES[name], Target(port, token, photo)

    def repeat(number: int) -> None:
        while True:
            with suppress(OSError):
                attack(target, number)
            time.sleep(RETRY_AFTER)

    threads = [Thread(target=repeat, args=(number,), daemon=True) for number in range(ATTACKS[attack])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
