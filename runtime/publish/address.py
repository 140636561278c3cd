"""The addresses of --mqtt and --webhook."""

import argparse
import re
import socket
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

PORTS = {"mqtt": 1883, "mqtts": 8883}  # registered with IANA
MAX_TOPIC_BYTES = 200
DEFAULT_TOPIC = "vgg-edge"


@dataclass(frozen=True)
class MqttAddress:
    """A broker, the user, and the topic below which everything is published."""

    host: str
    port: int
    is_encrypted: bool
    user: str  # "" for none
    topic: str

    def __str__(self) -> str:
        scheme = "mqtts" if self.is_encrypted else "mqtt"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{f'{self.user}@' if self.user else ''}{host}:{self.port}"


@dataclass(frozen=True)
class WebhookAddress:
    """An HTTP address. Only `str()` may be printed: the path of a webhook is often its secret."""

    scheme: str
    host: str
    port: int
    target: str  # path and query

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def parse_mqtt_address(text: str) -> MqttAddress:
    """Parses mqtt://user@host:1883/topic; mqtts is encrypted. Raises ArgumentTypeError."""
    parts, port = _split(
        text, PORTS, "mqtt://HOST/TOPIC or mqtts://HOST/TOPIC, and the user and @ before HOST"
    )
    if parts.password is not None:
        raise argparse.ArgumentTypeError(
            "the address holds a password, which every user of this machine can read in the list of "
            "processes: put the password into a file and add --mqtt-password-file FILE"
        )
    topic = unquote(parts.path).strip("/") or f"{DEFAULT_TOPIC}/{socket.gethostname()}"
    if (
        set(topic) & set("+#")
        or set(text) & set("?#")
        or not topic.isprintable()
        or len(topic.encode()) > MAX_TOPIC_BYTES
    ):
        raise argparse.ArgumentTypeError(
            f"the topic has +, # or ?, signs that cannot be printed, or over {MAX_TOPIC_BYTES} bytes: "
            "use a name such as home/garden"
        )
    return MqttAddress(
        parts.hostname or "", port, parts.scheme == "mqtts", unquote(parts.username or ""), topic
    )


def parse_webhook_address(text: str) -> WebhookAddress:
    """Parses http://host:8123/path; https is encrypted. Raises ArgumentTypeError."""
    parts, port = _split(text, {"http": 80, "https": 443}, "http://HOST/PATH or https://HOST/PATH")
    if parts.username is not None:
        raise argparse.ArgumentTypeError("the address holds a user, which webhooks do not support")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not re.fullmatch(r"[!-~]+", target):
        raise argparse.ArgumentTypeError("the path has spaces or signs that are not ASCII: write them as %20")
    return WebhookAddress(parts.scheme, parts.hostname or "", port, target)


def _split(text: str, ports: dict[str, int], form: str) -> tuple[SplitResult, int]:
    """Returns the parts and the port. The message does not repeat the text, which may hold a secret."""
    try:
        parts = urlsplit(text)
        port = parts.port or ports[parts.scheme]
        host = (parts.hostname or "").encode("idna")
    except (ValueError, KeyError):  # UnicodeError is a ValueError
        host = b""
    if not host or not re.fullmatch(r"[A-Za-z0-9._:%-]+", host.decode("ascii", "replace")):
        raise argparse.ArgumentTypeError(f"not an address: give {form}")
    return parts, port
