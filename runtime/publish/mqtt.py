"""MqttPublisher: publishes answers to an MQTT broker, from a thread that reconnects.

Topics below the topic of the address, all retained: `availability` ("online" or "offline", also as last
will), `state` (an answer as JSON), `picture` (a JPEG), `diagnostics` (JSON).
"""

import json
import math
import secrets
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any

from runtime.common.errors import UserError
from runtime.preprocess.preview import encode_preview
from runtime.publish.address import MqttAddress
from runtime.publish.answer import Answer
from runtime.publish.home_assistant import PREFIX as DISCOVERY_PREFIX
from runtime.publish.home_assistant import discovery_messages
from runtime.publish.outbox import REPORT_INTERVAL, Outbox, too_slow

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessageInfo

KEEPALIVE = 30  # seconds; the broker publishes the last will after one and a half of it
CONNECT_TIMEOUT = 5.0  # seconds for each of connecting and the broker's reply
LOOP_TIMEOUT = 0.1  # seconds that an answer may wait for the network's turn
RETRY_DELAY = 1.0  # seconds; doubles up to the maximum
MAX_RETRY_DELAY = 60.0
CONFIRM_TIMEOUT = 30.0  # seconds until a message that the broker has not confirmed is reported
CLOSE_TIMEOUT = 0.5  # seconds that closing waits for the last messages
DIAGNOSTICS_INTERVAL = 2.0  # seconds between two checks for a change
# Seconds between two messages "online": after a power cut, the broker may publish the last will of the
# earlier process when this process is connected already.
ONLINE_INTERVAL = 10.0

Diagnostics = Callable[[], dict[str, Any]]
Message = tuple[str, bytes]  # topic and payload


@dataclass(frozen=True)
class MqttConnection:
    """The address, the password and the encryption of a connection."""

    address: MqttAddress
    password: str | None = None
    tls: ssl.SSLContext | None = None  # None: not encrypted


class MqttPublisher:
    """A context manager whose `publish` puts an answer into a queue of `capacity` and never waits.

    A full queue drops its oldest answer. `diagnostics` returns "model", "engine", "problem" and other facts;
    they are published when they change. `on_message` gets a line at the first connection, when the connection
    is lost or refused or the broker confirms nothing, and when that is over.
    """

    def __init__(
        self,
        connection: MqttConnection,
        diagnostics: Diagnostics,
        on_message: Callable[[str], None],
        capacity: int,
    ) -> None:
        self._connection, self._address = connection, connection.address
        self._diagnostics, self._on_message = diagnostics, on_message
        self._outbox: Outbox[Answer] = Outbox(capacity)
        self._newest_only = capacity == 1
        self._messages: list[Message] = []  # to be sent, in this order
        self._announced = ""  # the model that the discovery messages name
        self._latest: dict[str, bytes] = {}  # by topic: sent again after a reconnect
        self._sending: MQTTMessageInfo | None = None  # the broker has not confirmed it yet
        self._sent_at = 0.0  # time.monotonic() seconds
        self._is_late = False  # a confirmation, and this was reported
        self._accepted = False  # by the broker
        self._refusal = ""
        self._reported: set[str] = set()  # problems since the connection was lost
        self._was_accepted = False  # by the broker, at any time
        self._is_working = False  # the broker has confirmed the first messages of this connection
        self._checked_diagnostics = self._sent_online = 0.0  # time.monotonic() seconds
        self._dropped, self._reported_dropped = 0, -math.inf  # answers, and time.monotonic() seconds
        self._closing = Event()
        self._thread = Thread(target=self._run, name="mqtt", daemon=True)

    def __enter__(self) -> "MqttPublisher":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        # A thread that hangs in connect() stays, as a daemon thread.
        self._thread.join(CLOSE_TIMEOUT + LOOP_TIMEOUT)

    def publish(self, answer: Answer) -> None:
        """Publishes an answer soon. An answer that is no change is left out while others wait."""
        if answer.is_change or self._outbox.is_empty():
            self._outbox.put(answer)

    def _run(self) -> None:
        delay = RETRY_DELAY
        while not self._closing.is_set():
            self._accepted, self._is_working, self._refusal = False, False, ""
            try:
                problem = self._connect_and_serve()
            except (OSError, ValueError, MemoryError, struct.error) as error:
                problem = _reason(error)
            if self._closing.is_set():
                return
            self._report(problem)
            delay = RETRY_DELAY if self._is_working else delay
            self._closing.wait(delay)
            delay = min(2 * delay, MAX_RETRY_DELAY)

    def _connect_and_serve(self) -> str:
        """Runs a connection until it ends. Returns why it ended. Raises the errors that _reason explains."""
        # A new client: the old one would keep each message that was not confirmed, and send it again.
        self._client = _make_client(self._connection)
        self._client.on_connect = self._on_connect
        self._client.connect(self._address.host, self._address.port, KEEPALIVE)
        self._serve()
        if self._accepted and not self._is_working:
            return (
                "the connection was lost before the broker confirmed the first messages: check that the user "
                f"may publish below {self._address.topic} and {DISCOVERY_PREFIX}"
            )
        return self._refusal or "the connection was lost"

    def _serve(self) -> None:
        """Runs the connection until it ends, or until closing has sent the last messages."""
        connected_at = time.monotonic()
        while not self._closing.is_set():
            if self._client.loop(LOOP_TIMEOUT):
                return
            if self._accepted:
                self._send_next()
            elif time.monotonic() - connected_at > CONNECT_TIMEOUT:
                self._refusal = f"no reply within {CONNECT_TIMEOUT:.0f} s"
                self._client.disconnect()
                return
        if self._accepted:
            self._close()

    def _close(self) -> None:
        deadline = time.monotonic() + CLOSE_TIMEOUT
        is_offline_queued = False
        while time.monotonic() < deadline:
            if not is_offline_queued and self._outbox.is_empty() and not self._messages:
                self._messages.append((f"{self._address.topic}/availability", b"offline"))
                is_offline_queued = True
            self._send_next()
            if is_offline_queued and not self._messages and self._is_confirmed():
                self._client.disconnect()
                return
            if self._client.loop(LOOP_TIMEOUT / 10):
                return
        # A connection that ends without a farewell has a last will: the broker publishes "offline" itself.
        if (connection := self._client.socket()) is not None:
            connection.close()

    def _on_connect(self, client: "Client", userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if self._accepted:  # a second reply to one connection
            return
        if reason.is_failure:
            self._refusal = (
                f"the broker refuses the connection: {str(reason).lower()}: check user and password"
            )
            return
        self._accepted = True
        if not self._was_accepted:
            self._on_message(f"{self._address}: publishing below {self._address.topic}")
            self._reported.clear()
        self._was_accepted = True
        self._sending = None
        self._checked_diagnostics = self._sent_online = time.monotonic()
        self._outbox.take_dropped()  # while the broker was away
        facts = self._diagnostics()
        self._retain(f"{self._address.topic}/diagnostics", json.dumps(facts).encode())
        if self._newest_only and (answer := self._outbox.get()):
            # Instead of the stale answer, which clients would take as current.
            self._latest.update(self._answer_messages(answer))
        # Also after a reconnect: the broker may have lost its retained messages. "online" follows the
        # diagnostics, which say whether the last answer is current.
        self._messages = [
            *self._latest.items(),
            (f"{self._address.topic}/availability", b"online"),
            *self._discovery(facts),
        ]

    def _send_next(self) -> None:
        """Sends the next message if the broker has confirmed the last one."""
        self._report_late()
        if not self._is_confirmed():
            return
        if not self._messages and not self._is_working:
            self._report_working()
        if not self._messages and not self._closing.is_set():  # "offline" is the last message
            self._messages.extend(self._periodic_messages())
        self._report_dropped()
        if not self._messages and (answer := self._outbox.get()):
            self._messages.extend(self._answer_messages(answer))
        if self._messages:
            topic, payload = self._messages.pop(0)
            self._sending = self._client.publish(topic, payload, qos=1, retain=True)
            self._sent_at = time.monotonic()

    def _report_late(self) -> None:
        """Reports that the broker, which may answer pings, confirms nothing, and that it confirms again."""
        if self._sending is None or self._sending.rc != 0:
            return
        is_confirmed = self._sending.is_published()
        if self._is_late and is_confirmed:
            self._is_late = False
            self._on_message(f"{self._address}: the broker confirms messages again")
        elif not self._is_late and not is_confirmed and time.monotonic() - self._sent_at > CONFIRM_TIMEOUT:
            self._is_late = True
            self._on_message(
                f"{self._address}: the broker has not confirmed a message for {CONFIRM_TIMEOUT:.0f} s, and "
                "the next ones wait: check the broker's log"
            )

    def _report_dropped(self) -> None:
        self._dropped += self._outbox.take_dropped()
        if self._dropped and time.monotonic() - self._reported_dropped > REPORT_INTERVAL:
            self._on_message(f"{self._address}: {too_slow(self._dropped)}")
            self._dropped, self._reported_dropped = 0, time.monotonic()

    def _is_confirmed(self) -> bool:
        """Whether the broker has the last message. One with an error follows in the next connection."""
        return self._sending is None or self._sending.rc != 0 or self._sending.is_published()

    def _answer_messages(self, answer: Answer) -> Iterator[Message]:
        """Yields the picture before the state, so that programs that react to the state find it."""
        topic = self._address.topic
        if answer.is_change:
            picture = b""  # removes the picture of the previous answer
            with suppress(UserError):  # such as a photo that is gone by now
                picture = encode_preview(answer.get_pixels())
            yield self._retain(f"{topic}/picture", picture)
        yield self._retain(f"{topic}/state", json.dumps(answer.fields()).encode())
        self._checked_diagnostics = -math.inf  # now: an answer may end a problem

    def _periodic_messages(self) -> Iterator[Message]:
        now = time.monotonic()
        if now - self._sent_online >= ONLINE_INTERVAL:
            self._sent_online = now
            yield f"{self._address.topic}/availability", b"online"
        if now - self._checked_diagnostics < DIAGNOSTICS_INTERVAL:
            return
        self._checked_diagnostics = now
        facts = self._diagnostics()
        topic, payload = f"{self._address.topic}/diagnostics", json.dumps(facts).encode()
        if self._latest.get(topic) != payload:
            yield self._retain(topic, payload)
        if facts.get("model", "") != self._announced:
            yield from self._discovery(facts)

    def _discovery(self, facts: dict[str, Any]) -> Iterator[Message]:
        self._announced = str(facts.get("model", ""))
        return discovery_messages(self._address.topic, self._announced)

    def _retain(self, topic: str, payload: bytes) -> Message:
        self._latest[topic] = payload
        return topic, payload

    def _report_working(self) -> None:
        self._is_working = True
        if self._reported:
            self._on_message(f"{self._address}: connected again")
        self._reported.clear()

    def _report(self, problem: str) -> None:
        if problem not in self._reported:
            self._on_message(f"{self._address}: {problem}; retrying in the background")
        self._reported.add(problem)


def _make_client(connection: MqttConnection) -> "Client":
    from paho.mqtt.client import Client  # late: an extra
    from paho.mqtt.enums import CallbackAPIVersion

    # Random: the broker would disconnect two processes with the same id again and again.
    client = Client(CallbackAPIVersion.VERSION2, client_id=f"vgg-edge-{secrets.token_hex(6)}")
    client.connect_timeout = CONNECT_TIMEOUT
    address = connection.address
    if address.user:
        client.username_pw_set(address.user, connection.password)
    if connection.tls:
        client.tls_set_context(connection.tls)
    client.will_set(f"{address.topic}/availability", b"offline", qos=1, retain=True)
    return client


def _reason(error: Exception) -> str:
    """Returns one line for an error of connecting."""
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, struct.error):  # from a client before paho-mqtt 2.2
        return "the reply is not MQTT"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not accepted ({error.verify_message}): --mqtt-ca names the broker's"
    if isinstance(error, ssl.SSLError):
        return f"no encrypted connection ({error.reason}): the port may be for mqtt:// only"
    if isinstance(error, TimeoutError):
        return f"no reply within {CONNECT_TIMEOUT:.0f} s"
    return f"cannot connect ({str(getattr(error, 'strerror', '') or error).lower()})"
