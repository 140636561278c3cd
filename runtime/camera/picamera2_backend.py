"""Frames of a CSI (ribbon cable) camera, captured with picamera2."""

import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.camera.raw_frame import FRAME_TIMEOUT, RawFrame, one_line
from runtime.common.errors import CameraError

CAPTURE_SIZE = (1280, 720)  # width, height
# Whether the arrays of a format are BGR: libcamera names formats by the order in a register, which is the
# reverse of the order in memory. picamera2 decodes MJPEG to RGB.
IS_BGR = {"RGB888": True, "XRGB8888": True, "BGR888": False, "XBGR8888": False, "MJPEG": False}


def capture_picamera2(name: str) -> Generator[RawFrame, None, None]:
    """Yields the frames of the first CSI camera. Raises CameraError.

    Source: Raspberry Pi, "The Picamera2 Library", sections 4.2 and 6.1.
    """
    camera = _open_camera(name)
    try:
        camera.configure(camera.create_video_configuration(main={"format": "RGB888", "size": CAPTURE_SIZE}))
        camera.start()
        format = camera.camera_configuration()["main"]["format"]  # the driver may choose another format
        if format not in IS_BGR:  # such as YUYV, whose arrays are no pictures
            raise CameraError(f"{name}: sends {format}: a USB camera needs its number instead, such as 0")
        while True:
            request = camera.capture_request(wait=FRAME_TIMEOUT)
            yield RawFrame(
                _sensor_time(request.get_metadata()),
                lambda request=request: _to_rgb(request.make_array("main"), format),  # type: ignore[misc]
                lambda request=request: _release(request),  # type: ignore[misc]
            )
    except TimeoutError:
        raise CameraError(
            f"{name}: sent no frame for {FRAME_TIMEOUT:.0f} s: check its ribbon cable"
        ) from None
    finally:
        camera.close()


def _open_camera(name: str) -> Any:
    try:
        from picamera2 import Picamera2

        return Picamera2()
    except IndexError:  # picamera2 raises it when no camera is connected
        raise CameraError(
            f"{name}: no camera found: check its ribbon cable; rpicam-hello tests the camera"
        ) from None
    except RuntimeError as error:
        raise CameraError(f"{name}: {one_line(error)}: stop any other program that uses the camera") from None


def _release(request: Any) -> None:
    """Gives the buffer back to the camera, which may be gone by now: then no further frame comes."""
    with suppress(RuntimeError):
        request.release()


def _to_rgb(pixels: NDArray[np.uint8], format: str) -> NDArray[np.uint8]:
    """Converts picamera2's array, uint8 [h, w, 3 or 4], to RGB, uint8 [h, w, 3]."""
    return np.ascontiguousarray(pixels[..., :3][..., :: -1 if IS_BGR[format] else 1])


def _sensor_time(metadata: dict[str, Any]) -> float:
    """Returns when the sensor started to read out the frame, in time.monotonic() seconds."""
    now = time.monotonic()
    timestamp = metadata.get("SensorTimestamp")  # CLOCK_BOOTTIME, nanoseconds
    if timestamp is None:
        return now
    age: float = time.clock_gettime(time.CLOCK_BOOTTIME) - timestamp / 1e9
    return now - max(0.0, age)
