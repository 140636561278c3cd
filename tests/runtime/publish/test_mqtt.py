"""MqttPublisher and a real broker: retained state, last will, outages, refusals, TLS."""

from __future__ import annotations

import io
import json
import signal
import socket
import ssl
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from paho.mqtt.client import Client
from PIL import Image

from runtime.common.errors import PictureError
from runtime.publish import mqtt
from runtime.publish.address import parse_mqtt_address
from runtime.publish.answer import Answer
from runtime.publish.mqtt import MqttConnection, MqttPublisher
from tests.helpers import PATIENCE, start_python, wait_for
from tests.programs import require_program
from tests.runtime.camera.helpers import RED, jpeg, mjpeg_server, plain
from tests.runtime.publish.broker import ACCEPTED, PASSWORD, USER, Broker, RudeBroker, make_refused_client
from tests.runtime.publish.conftest import MakeAnswer

TOPIC = "home/garden"


@dataclass
class Program:
    """What a publisher reads and prints."""

    diagnostics: dict[str, Any] = field(default_factory=lambda: {"model": "flowers", "problem": ""})
    messages: list[str] = field(default_factory=list)

    @contextmanager
    def publisher(
        self, address: str, password: str | None = None, tls: ssl.SSLContext | None = None, capacity: int = 1
    ) -> Iterator[MqttPublisher]:
        connection = MqttConnection(parse_mqtt_address(address), password, tls)
        with MqttPublisher(connection, lambda: self.diagnostics, self.messages.append, capacity) as opened:
            yield opened


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setattr(mqtt, "RETRY_DELAY", 0.05)
    monkeypatch.setattr(mqtt, "MAX_RETRY_DELAY", 0.2)
    return Program()


def url(broker: Broker, user: str = "", scheme: str = "mqtt") -> str:
    return f"{scheme}://{user}127.0.0.1:{broker.port}/{TOPIC}"


def test_everything_is_retained_and_the_end_is_announced(
    broker: Broker, program: Program, make_answer: MakeAnswer
) -> None:
    with program.publisher(url(broker)) as publisher:
        publisher.publish(make_answer("roses"))
        with broker.subscriber() as first:
            first.wait(f"{TOPIC}/state")
            wait_for(lambda: sum(topic.startswith("homeassistant/") for topic in first.latest) == 6)
        with broker.subscriber() as late:  # such as Home Assistant after its restart
            state = json.loads(late.wait(f"{TOPIC}/state"))
            assert (state["label"], state["probability"], state["known"]) == ("roses", 0.9, True)
            picture = Image.open(io.BytesIO(late.wait(f"{TOPIC}/picture")))
            assert picture.format == "JPEG" and picture.size == (960, 480)
            assert json.loads(late.wait(f"{TOPIC}/diagnostics")) == program.diagnostics
            late.wait(f"{TOPIC}/availability", b"online")
            wait_for(lambda: any(topic.startswith("homeassistant/") for topic in late.latest))
            wait_for(lambda: late.retained == set(late.latest))
            program.diagnostics = {"model": "flowers", "problem": "the camera is lost"}
            wait_for(lambda: json.loads(late.latest[f"{TOPIC}/diagnostics"])["problem"] != "")
    with broker.subscriber() as after:
        after.wait(f"{TOPIC}/availability", b"offline")
    assert program.messages == [f"mqtt://127.0.0.1:{broker.port}: publishing below {TOPIC}"]


def test_an_end_without_time_for_the_last_message_is_announced_by_the_broker(
    broker: Broker, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "CLOSE_TIMEOUT", 0.0)
    with broker.subscriber() as found:
        with program.publisher(url(broker)):
            found.wait(f"{TOPIC}/availability", b"online")
        found.wait(f"{TOPIC}/availability", b"offline")


def test_the_picture_of_a_change_comes_before_its_state(
    broker: Broker, program: Program, make_answer: MakeAnswer
) -> None:
    with program.publisher(url(broker), capacity=10) as publisher, broker.subscriber() as found:
        publisher.publish(make_answer("roses"))
        publisher.publish(make_answer("tulips", known=False))
        wait_for(lambda: sum(topic == f"{TOPIC}/state" for topic, _ in found.order) == 2)
        parts = [topic.rpartition("/")[2] for topic, _ in found.order]
        assert [part for part in parts if part in ("state", "picture")] == ["picture", "state"] * 2
        publisher.publish(make_answer("tulips", is_change=False))
        wait_for(lambda: sum(topic == f"{TOPIC}/state" for topic, _ in found.order) == 3)
        assert sum(topic == f"{TOPIC}/picture" for topic, _ in found.order) == 2


def test_another_model_is_announced(broker: Broker, program: Program) -> None:
    def models() -> list[str]:
        configs = (json.loads(data) for topic, data in found.order if topic.startswith("homeassistant/"))
        return [config["device"]["model"] for config in configs]

    with broker.subscriber() as found, program.publisher(url(broker)):
        wait_for(lambda: models() == ["flowers"] * 6)
        program.diagnostics = {"model": "flowers", "problem": "the camera is lost"}
        wait_for(lambda: json.loads(found.latest[f"{TOPIC}/diagnostics"])["problem"] != "")
        program.diagnostics = {"model": "trees", "problem": ""}
        wait_for(lambda: models() == ["flowers"] * 6 + ["trees"] * 6)


def test_an_answer_without_its_picture_removes_the_picture_before(
    broker: Broker, program: Program, make_answer: MakeAnswer
) -> None:
    def fail() -> NoReturn:
        raise PictureError("is gone")

    with program.publisher(url(broker), capacity=10) as publisher, broker.subscriber() as found:
        publisher.publish(make_answer("roses"))
        publisher.publish(replace(make_answer("tulips"), get_pixels=fail))
        wait_for(lambda: json.loads(found.wait(f"{TOPIC}/state"))["label"] == "tulips")
        assert found.latest[f"{TOPIC}/picture"] == b""
        with broker.subscriber() as late:
            late.wait(f"{TOPIC}/state")
            assert f"{TOPIC}/picture" not in late.latest


def test_a_problem_is_published_before_the_program_is_online(broker: Broker, program: Program) -> None:
    """Else Home Assistant shows the answer of the previous process as a new one."""
    program.diagnostics["problem"] = "the camera is lost"
    with broker.subscriber() as found, program.publisher(url(broker)):
        found.wait(f"{TOPIC}/availability", b"online")
        topics = [topic for topic, _ in found.order]
        assert topics.index(f"{TOPIC}/diagnostics") < topics.index(f"{TOPIC}/availability")
        assert json.loads(found.latest[f"{TOPIC}/diagnostics"]) == program.diagnostics


def test_the_end_of_a_problem_follows_the_answer_that_ends_it(
    broker: Broker, program: Program, make_answer: MakeAnswer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "DIAGNOSTICS_INTERVAL", 1000.0)
    program.diagnostics["problem"] = "waiting"
    with program.publisher(url(broker)) as publisher, broker.subscriber() as found:
        found.wait(f"{TOPIC}/availability", b"online")
        program.diagnostics = {"model": "flowers", "problem": ""}
        publisher.publish(make_answer("roses"))
        found.wait(f"{TOPIC}/diagnostics", json.dumps(program.diagnostics).encode())
        assert [topic for topic, _ in found.order[-2:]] == [f"{TOPIC}/state", f"{TOPIC}/diagnostics"]


def seconds_of(act: Callable[[Answer], None], answer: Answer) -> float:
    started = time.perf_counter()
    act(answer)
    return time.perf_counter() - started


def test_a_killed_broker_gets_the_newest_answer_when_it_is_back(
    broker: Broker, program: Program, make_answer: MakeAnswer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with program.publisher(url(broker)) as publisher:
        publisher.publish(make_answer("roses"))
        with broker.subscriber() as found:
            found.wait(f"{TOPIC}/state")
        make_client = mqtt._make_client
        monkeypatch.setattr(mqtt, "_make_client", make_refused_client)
        broker.kill()
        wait_for(lambda: len(program.messages) >= 2)
        seconds = [seconds_of(publisher.publish, make_answer(f"label {number}")) for number in range(500)]
        assert sorted(seconds)[250] < 0.1  # not one of them: another program may have the processor
        broker.start()
        with broker.subscriber() as found:
            monkeypatch.setattr(mqtt, "_make_client", make_client)
            wait_for(lambda: json.loads(found.wait(f"{TOPIC}/state"))["label"] == "label 499")
            found.wait(f"{TOPIC}/availability", b"online")
            wait_for(lambda: any(topic.startswith("homeassistant/sensor/") for topic in found.latest))
            labels = [json.loads(data)["label"] for topic, data in found.order if topic == f"{TOPIC}/state"]
            assert set(labels) == {"label 499"}  # stale answers are dropped
            parts = [topic.rpartition("/")[2] for topic, _ in found.order]
            assert parts.index("picture") < parts.index("state") < parts.index("availability")
            wait_for(lambda: "connected again" in program.messages[-1])
    assert len(program.messages) < 6
    assert all(message.startswith("mqtt://127.0.0.1:") for message in program.messages)
    assert not any("dropped" in message for message in program.messages)  # while the broker was away


def test_a_broker_that_forgot_everything_gets_the_last_answer_again(
    broker: Broker, program: Program, make_answer: MakeAnswer
) -> None:
    with program.publisher(url(broker)) as publisher:
        publisher.publish(make_answer("roses"))
        with broker.subscriber() as found:
            found.wait(f"{TOPIC}/state")
        broker.kill()
        broker.start()
        with broker.subscriber() as found:
            assert json.loads(found.wait(f"{TOPIC}/state"))["label"] == "roses"
            assert found.wait(f"{TOPIC}/picture")[:2] == b"\xff\xd8"


def test_photos_wait_for_the_broker_up_to_the_capacity(
    broker: Broker, program: Program, make_answer: MakeAnswer
) -> None:
    broker.kill()
    with program.publisher(url(broker), capacity=3) as publisher:
        for number in range(10):
            publisher.publish(make_answer(str(number)))
        broker.start()
        with broker.subscriber() as found:
            wait_for(lambda: json.loads(found.wait(f"{TOPIC}/state"))["label"] == "9")
            labels = [json.loads(data)["label"] for topic, data in found.order if topic == f"{TOPIC}/state"]
            assert labels[-1] == "9" and set(labels) <= {"7", "8", "9"}


def test_a_wrong_password_is_one_line_and_the_right_one_publishes(
    protected: Broker, program: Program, make_answer: MakeAnswer
) -> None:
    with program.publisher(url(protected, f"{USER}@"), "wrong-geheim") as publisher:
        publisher.publish(make_answer("roses"))
        wait_for(lambda: program.messages)
        time.sleep(0.5)  # several attempts
    (line,) = program.messages
    assert line.startswith(f"mqtt://{USER}@127.0.0.1:{protected.port}: the broker refuses the connection: ")
    assert "geheim" not in line and "\n" not in line
    program.messages.clear()
    with program.publisher(url(protected, f"{USER}@"), PASSWORD) as publisher:
        publisher.publish(make_answer("roses"))
        with protected.subscriber(login=True) as found:
            assert json.loads(found.wait(f"{TOPIC}/state"))["label"] == "roses"
    assert "publishing" in program.messages[0]


def test_the_delays_between_attempts_double_until_the_broker_works(
    broker: Broker, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited, make_client = list[float](), mqtt._make_client

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 5:
            monkeypatch.setattr(mqtt, "_make_client", make_client)

    monkeypatch.setattr(mqtt, "_make_client", make_refused_client)
    publisher = MqttPublisher(MqttConnection(parse_mqtt_address(url(broker))), dict, print, capacity=1)
    monkeypatch.setattr(publisher._closing, "wait", wait)
    with publisher:
        wait_for(lambda: publisher._is_working)
        monkeypatch.setattr(mqtt, "_make_client", make_refused_client)
        at = len(waited)
        broker.kill()
        wait_for(lambda: len(waited) > at + 1)
    assert waited[:5] == [0.05, 0.1, 0.2, 0.2, 0.2] and waited[at : at + 2] == [0.05, 0.1]


def test_a_server_that_never_replies_does_not_hold_up_the_camera(
    program: Program, make_answer: MakeAnswer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "CONNECT_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"mqtt://127.0.0.1:{silent.getsockname()[1]}"
        with program.publisher(address) as publisher:
            for _ in range(1000):
                publisher.publish(make_answer("roses"))
            wait_for(lambda: program.messages)
            monkeypatch.setattr(mqtt, "CONNECT_TIMEOUT", 2 * PATIENCE)  # nothing waits for it from now on
            publisher.publish(make_answer("roses"))
            started = time.perf_counter()
        assert time.perf_counter() - started < PATIENCE
    assert "no reply" in program.messages[0]


def test_a_broker_that_confirms_nothing_is_one_line_and_so_is_the_end_of_it(
    broker: Broker, program: Program, make_answer: MakeAnswer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert broker.process
    with program.publisher(url(broker)) as publisher, broker.subscriber() as found:
        publisher.publish(make_answer("roses"))
        found.wait(f"{TOPIC}/state")
        broker.process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(mqtt, "CONFIRM_TIMEOUT", 0.2)
        publisher.publish(make_answer("tulips"))
        wait_for(lambda: len(program.messages) > 1)
        time.sleep(0.5)  # time for a second line
        monkeypatch.setattr(mqtt, "CONFIRM_TIMEOUT", 2 * PATIENCE)
        broker.process.send_signal(signal.SIGCONT)
        wait_for(lambda: len(program.messages) > 2)
    _, late, again = program.messages
    assert "has not confirmed" in late and "confirms messages again" in again


def test_a_slow_broker_gets_no_answers_between_changes_and_drops_are_counted(
    broker: Broker, program: Program, make_answer: MakeAnswer
) -> None:
    assert broker.process
    with program.publisher(url(broker), capacity=3) as publisher, broker.subscriber() as found:
        publisher.publish(make_answer("first"))
        found.wait(f"{TOPIC}/state")
        broker.process.send_signal(signal.SIGSTOP)
        for number in range(9):
            publisher.publish(make_answer(str(number)))
            publisher.publish(make_answer(str(number), is_change=False))
        broker.process.send_signal(signal.SIGCONT)
        wait_for(lambda: json.loads(found.wait(f"{TOPIC}/state"))["label"] == "8")
        wait_for(lambda: len(program.messages) > 1)
        labels = [json.loads(data)["label"] for topic, data in found.order if topic == f"{TOPIC}/state"]
    assert labels[-3:] == ["6", "7", "8"]
    assert "answers were dropped: sending is slower" in program.messages[1]


def test_a_broker_that_ends_each_connection_is_one_line_and_gets_each_message_once(program: Program) -> None:
    """Such as one that ends the connection of a user who may not publish."""
    broker = RudeBroker(ACCEPTED)
    with broker.serve(TOPIC) as address, program.publisher(address):
        wait_for(lambda: len(broker.got) > 5)
    assert [data.count(b"/diagnostics") for data in broker.got[:5]] == [1] * 5
    published, lost = program.messages
    assert "publishing" in published and "confirmed" in lost and TOPIC in lost


def test_a_broker_that_accepts_a_connection_again_and_again_is_one_line(program: Program) -> None:
    broker = RudeBroker(ACCEPTED * 1000)
    with broker.serve(TOPIC) as address, program.publisher(address):
        wait_for(lambda: len(broker.got) > 2)
    assert len(program.messages) == 2


def test_a_reply_that_the_client_cannot_read_does_not_end_the_publisher(
    broker: Broker,
    program: Program,
    make_answer: MakeAnswer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """paho-mqtt before 2.2 raises struct.error for a message that is too short."""
    make_client = mqtt._make_client

    def make_failing_client(connection: MqttConnection) -> Client:
        monkeypatch.setattr(mqtt, "_make_client", make_client)
        client = make_client(connection)
        monkeypatch.setattr(client, "loop", raise_error)
        return client

    def raise_error(_: float) -> NoReturn:
        raise struct.error("bad char in struct format")

    monkeypatch.setattr(mqtt, "_make_client", make_failing_client)
    with program.publisher(url(broker)) as publisher, broker.subscriber() as found:
        publisher.publish(make_answer("roses"))
        found.wait(f"{TOPIC}/state")
    assert "retrying" in program.messages[0]


@pytest.fixture
def encrypted(broker: Broker) -> Broker:
    """The broker, which now speaks TLS with a certificate of its own authority, broker.folder/ca.pem."""
    require_program("openssl", "openssl")
    ca, key = broker.folder / "ca.pem", broker.folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-keyout", key, "-out", ca, "-days", "2", "-subj", "/CN=broker"]
    subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    key.chmod(0o644)
    broker.kill()
    broker.settings = f"allow_anonymous true\nuser root\ncertfile {ca}\nkeyfile {key}"
    broker.start()
    return broker


def test_an_encrypted_connection_needs_a_certificate_that_is_accepted(
    encrypted: Broker, program: Program, make_answer: MakeAnswer
) -> None:
    tls = ssl.create_default_context(cafile=encrypted.folder / "ca.pem")
    with program.publisher(url(encrypted, scheme="mqtts"), tls=tls) as publisher:
        publisher.publish(make_answer("roses"))
        wait_for(lambda: "publishing" in "".join(program.messages))
    for scheme, context, fact in [
        ("mqtts", ssl.create_default_context(), "--mqtt-ca"),
        ("mqtt", None, "mqtt"),
    ]:
        program.messages.clear()
        with program.publisher(url(encrypted, scheme=scheme), tls=context):
            wait_for(lambda: program.messages)
        assert fact in program.messages[0] and "retrying" in program.messages[0]


def test_mqtts_to_a_port_without_encryption_is_one_line(broker: Broker, program: Program) -> None:
    with program.publisher(url(broker, scheme="mqtts"), tls=ssl.create_default_context()):
        wait_for(lambda: program.messages)
    assert "retrying" in program.messages[0] and "\n" not in program.messages[0]


@pytest.mark.slow
def test_the_last_will_of_a_killed_program_is_offline(broker: Broker, colours: Path) -> None:
    red = jpeg(plain(RED))
    with mjpeg_server(lambda number: red) as server, broker.subscriber() as found:
        arguments = ("--camera", server.address, "--model", colours, "--mqtt", url(broker))
        process = start_python("-m", "runtime.classify", *arguments)
        try:
            assert json.loads(found.wait(f"{TOPIC}/state"))["label"] == "红"
            assert found.wait(f"{TOPIC}/availability") == b"online"
        finally:
            process.kill()
            process.communicate()
        found.wait(f"{TOPIC}/availability", b"offline")
    with broker.subscriber() as late:  # such as Home Assistant, when it starts after the crash
        late.wait(f"{TOPIC}/availability", b"offline")
        assert f"{TOPIC}/availability" in late.retained


# Connects to argv[1], as a process that a power cut or SIGSTOP ends without a message.
OTHER_PROCESS = """
import sys, time
from runtime.publish.address import parse_mqtt_address
from runtime.publish.mqtt import MqttConnection, MqttPublisher

with MqttPublisher(MqttConnection(parse_mqtt_address(sys.argv[1])), dict, print, 1):
    time.sleep(1000)
"""


def test_the_last_will_of_an_earlier_process_is_corrected(
    broker: Broker, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "ONLINE_INTERVAL", 1.0)
    earlier = start_python("-c", OTHER_PROCESS, url(broker))
    try:
        with broker.subscriber() as found:
            found.wait(f"{TOPIC}/availability", b"online")
            earlier.send_signal(signal.SIGSTOP)
            with program.publisher(url(broker)):
                wait_for(lambda: "publishing" in "".join(program.messages))
                earlier.kill()  # the broker notices its end only now
                wait_for(lambda: (f"{TOPIC}/availability", b"offline") in found.order)
                found.wait(f"{TOPIC}/availability", b"online")
            with broker.subscriber() as late:
                late.wait(f"{TOPIC}/availability", b"offline")
    finally:
        earlier.kill()
        earlier.communicate()
