"""The options of the camera command. Its flags are in another module, which every command line loads."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from runtime.camera.crop import Crop
from runtime.camera.flags import DEFAULT_MAX_MB
from runtime.publish.publishers import PublishOptions, publish_options


@dataclass(frozen=True)
class SaveOptions:
    """Which pictures are saved, and where."""

    save_unknown: Path | None = None
    save_all: Path | None = None
    capture: tuple[str, Path] | None = None  # label, and the folder of the data set
    new_class: bool = False
    max_mb: float = DEFAULT_MAX_MB  # of each folder


@dataclass(frozen=True)
class CameraOptions:
    """What the flags ask for."""

    source: str
    retry: bool
    every: float  # seconds
    smooth: int | float  # a number of frames (int), or seconds (float)
    on_change: bool
    confirm: int  # agreeing frames after which a new answer counts
    crop: Crop | None
    json: bool
    saving: SaveOptions
    publishing: PublishOptions


def save_options(arguments: argparse.Namespace) -> SaveOptions:
    """Returns the options from the parsed flags of add_save_flags."""
    label, folder = arguments.capture or ("", "")
    return SaveOptions(
        save_unknown=arguments.save_unknown,
        save_all=arguments.save_all,
        capture=(label, Path(folder)) if arguments.capture else None,
        new_class=arguments.new_class,
        max_mb=arguments.max_mb,
    )


def camera_options(arguments: argparse.Namespace) -> CameraOptions:
    """Returns the options from the parsed flags, which include --json."""
    return CameraOptions(
        source=arguments.camera,
        retry=arguments.retry,
        every=arguments.every,
        smooth=arguments.smooth,
        # 30 lines a second make a log useless: without a terminal, only changes are printed.
        on_change=arguments.on_change or not (arguments.json or arguments.every or sys.stdout.isatty()),
        confirm=arguments.confirm,
        crop=arguments.crop,
        json=arguments.json,
        saving=save_options(arguments),
        publishing=publish_options(arguments),
    )
