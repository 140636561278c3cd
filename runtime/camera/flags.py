"""The flags of `python -m runtime.classify --camera`."""

import argparse

from runtime.camera.crop import FORMAT, parse_crop
from runtime.common.cli import duration, frames_or_duration, megabytes, path_name, positive_int

# Flags that do nothing without --camera, by their names in the parsed arguments.
NEEDS_CAMERA = ("retry", "every", "on_change", "crop")
DEFAULT_SMOOTHING_SECONDS = 0.5
DEFAULT_CONFIRM = 3  # frames
DEFAULT_MAX_MB = 1000.0
SAVES = ("save_unknown", "save_all", "capture")  # flags that name a folder for pictures


def add_camera_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --camera and the flags that need it."""
    camera = parser.add_argument_group("camera")
    add_source_flag(
        camera,
        "classify a camera's frames: the number or device of a USB camera (default: 0), picamera, "
        "an address (rtsp://, http://), or a video file",
    )
    camera.add_argument(
        "--retry", action="store_true", help="wait for a camera that is not connected, or that disconnects"
    )
    camera.add_argument(
        "--every",
        type=duration,
        metavar="TIME",
        default=0.0,
        help="classify at most one frame per TIME, such as 500ms, 1s or 2m",
    )
    camera.add_argument(
        "--on-change",
        action="store_true",
        help="print only when the answer changes; a change counts after the frames of --confirm",
    )
    add_confirm_flag(camera)
    add_crop_flag(camera)
    camera.add_argument(
        "--smooth",
        type=frames_or_duration,
        metavar="N|TIME",
        default=DEFAULT_SMOOTHING_SECONDS,
        help="average over N frames or a time; 0 for no average (default: 500ms)",
    )


def add_confirm_flag(group: argparse._ArgumentGroup) -> None:
    """Adds --confirm."""
    group.add_argument(
        "--confirm",
        type=positive_int,
        metavar="N",
        default=DEFAULT_CONFIRM,
        help="count a new answer after N frames in a row that agree (default: %(default)s)",
    )


def add_crop_flag(group: argparse._ArgumentGroup) -> None:
    """Adds --crop."""
    group.add_argument(
        "--crop",
        type=parse_crop,
        metavar="X,Y,W,H",
        help=f"classify only this region of each frame: {FORMAT}",
    )


def add_save_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --save-unknown, --save-all, --capture, --new-class and --max-mb."""
    group = parser.add_argument_group(
        "saving pictures", "A camera's frames are saved once per second, or as --every says."
    )
    group.add_argument(
        "--save-unknown", metavar="DIR", type=path_name, help="save the pictures whose answer is unknown"
    )
    group.add_argument(
        "--save-all",
        metavar="DIR",
        type=path_name,
        help="save pictures with any answer; a full folder keeps a random sample of all pictures so far",
    )
    group.add_argument(
        "--capture",
        nargs=2,
        metavar=("LABEL", "DIR"),
        help="save pictures as photos of this class for the next training, in DIR/LABEL; DIR holds the class "
        "folders; use the label none for photos of none of the classes",
    )
    group.add_argument(
        "--new-class", action="store_true", help="let --capture add a class to the classes in DIR"
    )
    group.add_argument(
        "--max-mb",
        type=megabytes,
        metavar="MB",
        default=DEFAULT_MAX_MB,
        help="limit of each folder in megabytes (default: %(default)g)",
    )


def add_source_flag(group: argparse._ArgumentGroup, help: str) -> None:
    """Adds --camera; without a SOURCE it names the first USB camera."""
    group.add_argument("--camera", nargs="?", const="0", metavar="SOURCE", help=help)
