"""A real MQTT broker, Debian's Mosquitto, a client that collects its messages, and brokers that fail."""

from __future__ import annotations

import errno
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any, NoReturn

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from runtime.publish.mqtt import MqttConnection
from tests.helpers import PATIENCE, wait_for

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin")
USER, PASSWORD = "camera", "geheim-päss"
ACCEPTED = b"\x20\x02\x00\x00"  # the reply to a connection


def free_port() -> int:
    """A free port below those of connections: none of them takes it while the broker is away."""
    while True:
        port = random.SystemRandom().randrange(15_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@dataclass
class Broker:
    """A broker in its own folder; it keeps nothing when it is killed."""

    folder: Path
    settings: str = "allow_anonymous true"
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        text = f"listener {self.port} 127.0.0.1\npersistence false\n{self.settings}\n"
        (self.folder / "mosquitto.conf").write_text(text)
        command = [MOSQUITTO or "mosquitto", "-c", str(self.folder / "mosquitto.conf")]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self._accepts)

    def _accepts(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()

    @contextmanager
    def subscriber(self, **login: Any) -> Iterator[Subscriber]:
        """A client that is subscribed to all topics: it gets each message from now on."""
        client = Client(CallbackAPIVersion.VERSION2)
        if login:
            client.username_pw_set(USER, PASSWORD)
        found, is_subscribed = Subscriber(), Event()
        client.on_message = found.add
        client.on_subscribe = lambda *_: is_subscribed.set()
        client.on_connect = lambda connected, *_: connected.subscribe("#", qos=1)
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        try:
            assert is_subscribed.wait(PATIENCE)
            yield found
        finally:
            client.disconnect()
            client.loop_stop()


@dataclass
class Subscriber:
    """All messages so far: the last one of each topic, and all in their order.

    A thread adds them. `latest` is another dict after each message, the last thing that `add` changes.
    """

    latest: dict[str, bytes] = field(default_factory=dict)
    retained: set[str] = field(default_factory=set)  # topics whose message was there before the subscription
    order: list[tuple[str, bytes]] = field(default_factory=list)

    def add(self, client: Client, userdata: Any, message: MQTTMessage) -> None:
        self.order.append((message.topic, message.payload))
        if message.retain:
            self.retained = self.retained | {message.topic}
        self.latest = {**self.latest, message.topic: message.payload}

    def wait(self, topic: str, payload: bytes | None = None) -> bytes:
        """Returns the last payload of a topic, once there is one, or once it is `payload`."""
        wait_for(lambda: topic in self.latest and payload in (None, self.latest[topic]))
        return self.latest[topic]


@dataclass
class RudeBroker:
    """A broker that sends `reply` to each connection, reads the first message, and ends the connection."""

    reply: bytes
    got: list[bytes] = field(default_factory=list)  # the first message of each connection

    @contextmanager
    def serve(self, topic: str) -> Iterator[str]:
        """Gives the address of the broker with the topic."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            Thread(target=self._answer, args=(server,), daemon=True).start()
            yield f"mqtt://127.0.0.1:{server.getsockname()[1]}/{topic}"
            server.shutdown(socket.SHUT_RDWR)  # ends accept()

    def _answer(self, server: socket.socket) -> None:
        with suppress(OSError):
            while connection := server.accept()[0]:
                with connection, suppress(OSError):
                    connection.recv(1000)
                    connection.sendall(self.reply)
                    connection.settimeout(0.1)
                    data = b""
                    with suppress(TimeoutError):
                        while part := connection.recv(100_000):
                            data += part
                    self.got.append(data)


def make_refused_client(_: MqttConnection) -> Client:
    """Returns a client that no broker accepts; stands in for mqtt._make_client."""

    def refuse(*_: object) -> NoReturn:
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))

    client = Client(CallbackAPIVersion.VERSION2)
    client.connect = refuse  # type: ignore[method-assign]
    return client
