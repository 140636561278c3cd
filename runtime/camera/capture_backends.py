"""Capture backends: opens a USB camera, a CSI camera, a network stream or a clip."""

from collections.abc import Generator
from importlib.util import find_spec

from runtime.camera.picamera2_backend import capture_picamera2
from runtime.camera.pyav_backend import capture_pyav
from runtime.camera.raw_frame import RawFrame, one_line
from runtime.common.errors import CameraError
from runtime.common.packages import install_command, picamera2_command


def open_source(source: str, name: str) -> Generator[RawFrame, None, None]:
    """Opens `source` and yields its frames as they arrive; returns at the end of a clip.

    `name` is the source without its password, for messages. Raises CameraError.
    """
    try:
        yield from capture_picamera2(name) if source == "picamera" else capture_pyav(source, name)
    except CameraError:
        raise
    except Exception as error:  # a driver's own exception; its text may hold the address with its password
        raise CameraError(f"{name}: {one_line(error).replace(source, name)}") from None


def require_backend(source: str) -> None:
    """Raises CameraError if the package that captures from `source` is not installed."""
    if source == "picamera" and find_spec("picamera2") is None:
        raise CameraError(f"picamera needs picamera2: {picamera2_command()}")
    if source != "picamera" and find_spec("av") is None:
        raise CameraError(f"a camera needs PyAV: {install_command('camera')}")
