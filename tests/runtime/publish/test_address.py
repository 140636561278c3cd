"""The addresses of --mqtt and --webhook: what is accepted, and that no message repeats a secret."""

from __future__ import annotations

import socket
from argparse import ArgumentTypeError
from collections.abc import Callable

import pytest

from runtime.publish.address import MqttAddress, parse_mqtt_address, parse_webhook_address


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        (
            "mqtt://pi",
            MqttAddress("pi", 1883, False, "", f"vgg-edge/{socket.gethostname()}"),
            "mqtt://pi:1883",
        ),
        (
            "mqtts://me@pi.local/a/b/",
            MqttAddress("pi.local", 8883, True, "me", "a/b"),
            "mqtts://me@pi.local:8883",
        ),
        ("mqtt://[::1]:99/k%C3%BCche", MqttAddress("::1", 99, False, "", "küche"), "mqtt://[::1]:99"),
        ("mqtt://a%40b@h/t", MqttAddress("h", 1883, False, "a@b", "t"), "mqtt://a@b@h:1883"),
    ],
)
def test_the_parts_of_a_broker_s_address(text: str, address: MqttAddress, shown: str) -> None:
    assert parse_mqtt_address(text) == address and str(address) == shown


@pytest.mark.parametrize(
    "text",
    [
        *("", "pi", "mqtt://", "http://pi/geheim", "mqtt://me:geheim@pi", "mqtt://pi:x/geheim"),
        *("mqtt://pi/geheim/#", "mqtt://pi/geheim?x", "mqtt://pi:99999/geheim", "mqtt://pi/geheim+"),
        *("mqtt://pi/geheim%00", "mqtt://pi/" + "geheim" * 40, "mqtt://[::1/geheim", "mqtt://p i/geheim"),
    ],
)
def test_a_text_that_is_no_broker_s_address(text: str) -> None:
    check_refused(parse_mqtt_address, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pi",
        "ftp://pi/geheim",
        "http:///geheim",
        "http://me:geheim@pi/",
        "http://pi/ge heim",
        "file:///geheim",
    ],
)
def test_a_text_that_is_no_webhook(text: str) -> None:
    check_refused(parse_webhook_address, text)


def check_refused(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(ArgumentTypeError) as raised:
        parse(text)
    message = str(raised.value)
    assert "geheim" not in message and len(message.splitlines()) == 1


def test_a_webhook_is_printed_without_its_path() -> None:
    address = parse_webhook_address("https://pi:8123/api/geheim?a=1")
    assert (address.host, address.port, address.target) == ("pi", 8123, "/api/geheim?a=1")
    assert str(address) == "https://pi:8123" and parse_webhook_address("http://pi").target == "/"
