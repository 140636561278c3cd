"""Opens the publishers that the flags ask for."""

import argparse
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runtime.common.errors import UserError
from runtime.common.packages import install_command
from runtime.common.secret_file import permission_warning
from runtime.inference.classifier import Classifier
from runtime.publish.address import MqttAddress, WebhookAddress
from runtime.publish.answer import Answer, Publish
from runtime.publish.flags import PASSWORD_VARIABLE
from runtime.publish.mqtt import MqttConnection, MqttPublisher
from runtime.publish.webhook import WebhookPublisher

LATEST_ONLY = 1  # capacity of a queue in which only the present counts, such as that of a camera
EACH_PHOTO = 100  # capacity of a queue of photos, each of which counts
MAX_PASSWORD_BYTES = 10_000


@dataclass(frozen=True)
class PublishOptions:
    """Where answers are published."""

    mqtt: MqttAddress | None = None
    mqtt_password_file: Path | None = None
    mqtt_ca: Path | None = None
    webhook: WebhookAddress | None = None


def publish_options(arguments: argparse.Namespace) -> PublishOptions:
    """Returns the options from the parsed flags of add_publish_flags."""
    return PublishOptions(arguments.mqtt, arguments.mqtt_password_file, arguments.mqtt_ca, arguments.webhook)


@contextmanager
def open_publishers(
    options: PublishOptions,
    diagnostics: Callable[[], dict[str, Any]],
    on_message: Callable[[str], None],
    capacity: int,
) -> Iterator[Publish]:
    """Yields the function that publishes an answer. A network that fails later never raises.

    `capacity` is the number of answers that wait for the broker. Raises UserError.
    """
    with ExitStack() as stack:
        publishers: list[Publish] = []
        if options.mqtt:
            connection = _mqtt_connection(options, options.mqtt, on_message)
            mqtt = MqttPublisher(connection, diagnostics, on_message, capacity)
            publishers.append(stack.enter_context(mqtt).publish)
        if options.webhook:
            publishers.append(stack.enter_context(WebhookPublisher(options.webhook, on_message)).publish)

        def publish(answer: Answer) -> None:
            for to_publisher in publishers:
                to_publisher(answer)

        yield publish


def diagnostics_of(classifier: Classifier, problem: str) -> dict[str, Any]:
    """Returns the facts about a program that MQTT clients get; `problem` is "" or one line."""
    contract = classifier.model.contract
    return {
        "model": contract.name,
        "labels": list(classifier.labels),
        "created": contract.created,
        "file": classifier.model.path.name,
        "sha256": classifier.model.sha256,
        "engine": classifier.session.engine,
        "problem": problem,
    }


def _mqtt_connection(
    options: PublishOptions, address: MqttAddress, on_message: Callable[[str], None]
) -> MqttConnection:
    if find_spec("paho") is None:
        raise UserError(f"--mqtt needs paho-mqtt: {install_command('mqtt')}")
    password = _read_password(options.mqtt_password_file)
    if password and not address.user:
        raise UserError(f"--mqtt {address}: a password needs a user: mqtt://USER@{address.host}")
    if options.mqtt_password_file and (warning := permission_warning(options.mqtt_password_file)):
        on_message(warning)
    return MqttConnection(address, password, _tls_context(options.mqtt_ca) if address.is_encrypted else None)


def _read_password(path: Path | None) -> str | None:
    """Returns the first line of the file, or VGG_EDGE_MQTT_PASSWORD, or None. Raises UserError."""
    if path is None:
        return os.environ.get(PASSWORD_VARIABLE) or None
    try:
        with path.open("rb") as file:
            line = file.readline(MAX_PASSWORD_BYTES).decode()
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not text: write the password as UTF-8") from None
    except OSError as error:
        raise UserError(
            f"{path}: {str(error.strerror or error).lower()}: --mqtt-password-file names the password's file"
        ) from None
    if not (password := line.rstrip("\r\n")):
        raise UserError(f"{path}: the first line is empty: write the password there")
    return password


def _tls_context(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:  # ssl.SSLError is one
        reason = (
            str(error.strerror or error).lower()
            if not isinstance(error, ssl.SSLError)
            else "is no certificate"
        )
        raise UserError(f"{ca}: {reason}: --mqtt-ca names a file in PEM format") from None
