"""The flags of `python -m runtime.classify --camera`."""

import argparse

from runtime.common.cli import duration, frames_or_duration, megabytes, path_name

# Flags that do nothing without --camera, by their names in the parsed arguments.
NEEDS_CAMERA = ("retry", "every", "on_change", "save_unknown", "capture", "new_class")
DEFAULT_SMOOTHING_SECONDS = 0.5
DEFAULT_MAX_MB = 1000.0


def add_camera_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --camera and the flags that need it."""
    camera = parser.add_argument_group("camera")
    add_source_flag(
        camera,
        "classify a camera's frames: the number or device of a USB camera (default: 0), picamera, "
        "an address (rtsp://, http://), or a video file",
    )
    camera.add_argument(
        "--retry", action="store_true", help="wait for a camera that is not connected or disconnects"
    )
    camera.add_argument(
        "--every", type=duration, metavar="TIME", default=0.0, help="classify at most once in this time"
    )
    camera.add_argument(
        "--on-change",
        action="store_true",
        help="print only when the answer changes; a change counts after 3 frames in a row that agree",
    )
    camera.add_argument(
        "--smooth",
        type=frames_or_duration,
        metavar="N|TIME",
        default=DEFAULT_SMOOTHING_SECONDS,
        help="average over N frames or a time; 0 for no average (default: 500ms)",
    )
    camera.add_argument(
        "--save-unknown", metavar="DIR", type=path_name, help="save the frames whose answer is unknown"
    )
    camera.add_argument(
        "--capture",
        nargs=2,
        metavar=("LABEL", "DIR"),
        help="save frames as photos of this class for the next training, in DIR/LABEL; DIR holds the class "
        "folders; the label none: photos of none of the classes; one photo per second, or as --every says",
    )
    camera.add_argument(
        "--new-class", action="store_true", help="let --capture add a class to the classes in DIR"
    )
    camera.add_argument(
        "--max-mb",
        type=megabytes,
        metavar="MB",
        default=DEFAULT_MAX_MB,
        help="stop saving when the folder holds this many megabytes (default: %(default)g)",
    )


def add_source_flag(group: argparse._ArgumentGroup, help: str) -> None:
    """Adds --camera; without a SOURCE it names the first USB camera."""
    group.add_argument("--camera", nargs="?", const="0", metavar="SOURCE", help=help)
