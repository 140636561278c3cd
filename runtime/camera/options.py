"""The options of the camera command. Its flags are in another module, which every command line loads."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CameraOptions:
    """What the flags ask for."""

    source: str
    retry: bool
    every: float  # seconds
    smooth: int | float  # a number of frames (int), or seconds (float)
    on_change: bool
    json: bool
    save_unknown: Path | None
    capture: tuple[str, Path] | None  # label, and the folder of the data set
    new_class: bool
    max_mb: float


def camera_options(arguments: argparse.Namespace) -> CameraOptions:
    """Returns the options from the parsed flags, which include --json."""
    label, folder = arguments.capture or ("", "")
    return CameraOptions(
        source=arguments.camera,
        retry=arguments.retry,
        every=arguments.every,
        smooth=arguments.smooth,
        # 30 lines a second make a log useless: without a terminal, only changes are printed.
        on_change=arguments.on_change or not (arguments.json or arguments.every or sys.stdout.isatty()),
        json=arguments.json,
        save_unknown=arguments.save_unknown,
        capture=(label, Path(folder)) if arguments.capture else None,
        new_class=arguments.new_class,
        max_mb=arguments.max_mb,
    )
