"""The options of the watch command. Its flags are in another module, which every command line loads."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from runtime.publish.publishers import PublishOptions, publish_options


@dataclass(frozen=True)
class WatchOptions:
    """What the flags ask for."""

    folder: Path
    out: Path | None
    json: bool
    publishing: PublishOptions


def watch_options(arguments: argparse.Namespace) -> WatchOptions:
    """Returns the options from the parsed flags, which include --json."""
    return WatchOptions(arguments.watch, arguments.out, arguments.json, publish_options(arguments))
