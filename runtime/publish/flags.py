"""The flags that publish answers to other programs."""

import argparse

from runtime.common.cli import path_name
from runtime.publish.address import parse_mqtt_address, parse_webhook_address

PASSWORD_VARIABLE = "VGG_EDGE_MQTT_PASSWORD"
PUBLISHES = ("mqtt", "webhook")  # flags that need answers to publish, by their names in the parsed arguments


def add_publish_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --mqtt, --mqtt-password-file, --mqtt-ca and --webhook."""
    group = parser.add_argument_group("home automation")
    group.add_argument(
        "--mqtt",
        metavar="URL",
        type=parse_mqtt_address,
        help="publish answers, also for Home Assistant, to the MQTT broker mqtt[s]://USER@HOST[:PORT][/TOPIC]",
    )
    group.add_argument(
        "--mqtt-password-file",
        metavar="FILE",
        type=path_name,
        help=f"file with the password of USER (default: the password in {PASSWORD_VARIABLE}, if set)",
    )
    group.add_argument(
        "--mqtt-ca",
        metavar="FILE",
        type=path_name,
        help="certificate authority of the broker of mqtts://, a PEM file (default: those of the system)",
    )
    group.add_argument(
        "--webhook",
        metavar="URL",
        type=parse_webhook_address,
        help="send each new answer as JSON in an HTTP POST to this address",
    )


def check_publish_flags(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends the command with a usage error if a flag does nothing without another one."""
    for flag in ("mqtt_password_file", "mqtt_ca"):
        if getattr(arguments, flag) and not arguments.mqtt:
            parser.error(f"--{flag.replace('_', '-')} needs --mqtt")
    if arguments.mqtt_ca and not arguments.mqtt.is_encrypted:
        parser.error("--mqtt-ca needs an encrypted connection: mqtts:// instead of mqtt://")
