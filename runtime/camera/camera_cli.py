"""`python -m runtime.classify --camera`: what the model sees, on a terminal, as JSON, and kept as photos."""

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from threading import Lock

from PIL import Image

from runtime.camera.camera import Camera, Frame, FramePrediction, over_frames, over_seconds, predict_stream
from runtime.common.atomic import atomic
from runtime.common.errors import CameraError, UserError
from runtime.common.terminal import print_error, stop_on_sigterm
from runtime.common.text import printable, truncate
from runtime.inference.model_reloader import open_reloader
from runtime.inference.prediction import answer_columns

REDRAW_EVERY = 0.1  # seconds; nobody reads faster, and a terminal may be at the end of a slow line
KEEP_EVERY = 1.0  # seconds between photos kept, without --every: neighbouring frames teach nothing new
JPEG_QUALITY = 95


def run_camera(arguments: argparse.Namespace) -> int:
    """Tells what the camera sees until it is told to end, or a clip ends. Gives the exit code.

    0 when ended by SIGTERM or a clip's end, 1 when the camera was lost on the way. Raises UserError before
    the first answer.
    """
    if arguments.capture:
        _check_label(arguments.capture[0])
    smooth = over_frames if isinstance(arguments.smooth, int) else over_seconds
    seen = False
    with stop_on_sigterm(), Screen(json=arguments.json, on_change=_on_change(arguments)) as screen:
        camera = Camera(arguments.camera, retry=arguments.retry, say=screen.say)
        live = open_reloader(arguments, screen.say)
        used = str(live.now())
        if arguments.save_unknown and "known" not in live.now().model.contract.thresholds:
            raise UserError(f"--save-unknown: {live.now().model.path} does not tell what is unknown")
        keepers = list(_keepers(arguments, screen.say))
        try:
            with camera:
                for sight in predict_stream(
                    camera, live, every=arguments.every, smooth=smooth(arguments.smooth)
                ):
                    if not seen:
                        seen = True
                        height, width = sight.frame.pixels.shape[:2]
                        screen.say(f"{camera.name}, {width} x {height}, by {used}", news=False)
                    screen.tell(sight, live.now().model.contract.labels)
                    for wanted, keep in keepers:
                        if wanted(sight):
                            keep(sight.frame)
        except CameraError as error:
            if not seen:
                raise
            screen.fail(camera.name, str(error))
            return 1
    return 0


def _on_change(arguments: argparse.Namespace) -> bool:
    """A log of thirty lines a second helps nobody: where no line can be redrawn, only changes are told."""
    return bool(arguments.on_change or not (arguments.json or arguments.every or sys.stdout.isatty()))


class Screen:
    """Where answers go: one line that is redrawn on a terminal, lines elsewhere, objects with `json`."""

    def __init__(self, *, json: bool, on_change: bool) -> None:
        self._json, self._on_change = json, on_change
        self._redraws = sys.stdout.isatty() and not json and not on_change
        self._told: str | None = None
        self._drawn = 0.0
        self._lock = Lock()  # the camera's and the model's threads have news
        self._labels: tuple[str, ...] = ()

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._redraws and self._drawn:
                print(flush=True)  # the last answer stays to be read

    def tell(self, sight: FramePrediction, labels: tuple[str, ...]) -> None:
        prediction = sight.prediction
        answer = "" if prediction.known is False else prediction.label  # no label is empty
        changed, self._told = answer != self._told, answer
        if self._on_change and not changed:
            return
        if self._json:
            self._print(sight.to_json())
            return
        if labels is not self._labels:
            self._labels, self._columns = labels, answer_columns(labels)
        remark = f"{f'{sight.fps:.1f}/s  ' if sight.fps else ''}{sight.age_ms:.0f} ms old"
        answered, *others = self._columns(prediction, remark)
        line = "  ".join([answered, *reversed(others)])
        if not self._redraws:
            self._print(f"{sight.time.astimezone():%H:%M:%S}  {line}")
        elif time.monotonic() - self._drawn >= REDRAW_EVERY:
            self._drawn = time.monotonic()
            columns = os.get_terminal_size().columns or 80  # a serial console tells of none
            self._print(f"\r{truncate(line, columns - 1)}\x1b[K", end="")

    def say(self, line: str, *, news: bool = True) -> None:
        """A line that stays: on standard error when it is for people beside objects, or news."""
        with self._lock:
            if self._redraws and self._drawn:
                print("\r\x1b[K", end="", flush=True)
            elsewhere = self._json or (news and not sys.stdout.isatty())
            print(printable(line), file=sys.stderr if elsewhere else sys.stdout, flush=True)

    def fail(self, name: str, reason: str) -> None:
        self.__exit__()
        self._drawn = 0.0
        print_error(reason)
        if self._json:
            self._print(json.dumps({"source": name, "error": reason.removeprefix(f"{name}: ")}))

    def _print(self, text: str, end: str = "\n") -> None:
        with self._lock:
            print(text, end=end, flush=True)


def _keepers(
    arguments: argparse.Namespace, say: Callable[[str], None]
) -> Iterator[tuple[Callable[[FramePrediction], bool], Callable[[Frame], None]]]:
    """What is kept of what is seen: a choice of sights, and what takes their frames."""
    every = 0.0 if arguments.every else KEEP_EVERY  # with --every, the frames that are seen are few enough
    if arguments.save_unknown:
        yield (
            lambda sight: sight.prediction.known is False,
            FrameRecorder(Path(arguments.save_unknown), every, arguments.max_mb, say),
        )
    if arguments.capture:
        label, folder = arguments.capture
        yield lambda sight: True, FrameRecorder(Path(folder, label), every, arguments.max_mb, say)


class FrameRecorder:
    """Writes frames as JPEG files into a folder, `every` seconds apart, until the folder holds `max_mb`."""

    def __init__(self, folder: Path, every: float, max_mb: float, say: Callable[[str], None]) -> None:
        self._folder, self._every, self._say = folder, every, say
        try:
            folder.mkdir(parents=True, exist_ok=True)
            there = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
        except OSError as error:
            raise UserError(f"{folder}: {str(error.strerror).lower()}: frames cannot be kept there") from None
        self._left = max_mb * 1e6 - there
        self._due = 0.0
        self._full = False

    def __call__(self, frame: Frame) -> None:
        if self._full or frame.taken < self._due:
            return
        self._due = frame.taken + self._every
        out = io.BytesIO()
        Image.fromarray(frame.pixels).save(out, "JPEG", quality=JPEG_QUALITY)
        data = out.getbuffer()
        self._left -= len(data)
        if self._left < 0:
            self._stop("holds as much as --max-mb allows")
            return
        name = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}_{frame.number:06}.jpg"
        try:
            with atomic(self._folder / name) as file:
                file.write(data)
        except OSError as error:
            self._stop(str(error.strerror).lower())

    def _stop(self, reason: str) -> None:
        self._full = True
        self._say(f"{self._folder}: {reason}: no more frames are kept")


def _check_label(label: str) -> None:
    """Raises UserError unless it is a folder's name everywhere, and not a way out of its place."""
    if (
        not label.isprintable()
        or not 1 <= len(label.encode()) <= 200
        or set(label) & set('/\\:*?"<>|')
        or label[0] in "._- "
        or label[-1] in ". "
    ):
        raise UserError(f"{printable(label)!r} cannot be a class: take a plain name, such as roses")
