"""TerminalView: prints the predictions of a camera on a terminal, in a log, or as JSON."""

import json
import os
import sys
import time
from contextlib import suppress
from threading import Lock

from runtime.camera.stream import FramePrediction
from runtime.common.terminal import print_error
from runtime.common.text import printable, truncate
from runtime.inference.prediction import answer_columns

REDRAW_INTERVAL = 0.1  # seconds; a serial console is slow, and nobody reads faster
DEFAULT_COLUMNS = 80  # of a serial console, which reports 0


class TerminalView:
    """Prints predictions: one line that is redrawn on a terminal, lines elsewhere, or JSON objects.

    With `on_change`, only predictions that change the answer are printed.
    """

    def __init__(self, *, json: bool, on_change: bool) -> None:
        self._json = json
        self._on_change = on_change
        self._redraws = sys.stdout.isatty() and not json and not on_change
        self._drawn_at = 0.0  # time.monotonic() of the latest redraw; 0 while no line is drawn
        self._lock = Lock()  # the threads of the camera and the model print messages
        self._labels: tuple[str, ...] = ()

    def show(self, frame_prediction: FramePrediction, labels: tuple[str, ...]) -> None:
        """Prints a prediction; `labels` are all labels of its model, for the width of the columns."""
        if self._on_change and not frame_prediction.is_change:
            return
        if self._json:
            self._print(frame_prediction.to_json())
        elif not self._redraws:
            self._print(
                f"{frame_prediction.time.astimezone():%H:%M:%S}  {self._line(frame_prediction, labels)}"
            )
        elif time.monotonic() - self._drawn_at >= REDRAW_INTERVAL:
            self._drawn_at = time.monotonic()
            columns = os.get_terminal_size().columns or DEFAULT_COLUMNS
            self._print(f"\r{truncate(self._line(frame_prediction, labels), columns - 1)}\x1b[K", end="")

    def heading(self, line: str) -> None:
        """Prints the line with camera and model above the predictions; with JSON, on standard error."""
        if self._json:
            self.message(line)
        else:
            self._print(printable(line))

    def message(self, line: str) -> None:
        """Prints news of the camera or the model: on standard error, or on the terminal between redraws.

        A line that cannot be written, such as on a full disk, is dropped: it must not end the thread that
        reads the camera.
        """
        with self._lock, suppress(OSError, ValueError):
            if self._redraws and self._drawn_at:
                print("\r\x1b[K", end="", flush=True)
            file = sys.stdout if sys.stdout.isatty() and not self._json else sys.stderr
            print(printable(line), file=file, flush=True)

    def error(self, name: str, reason: str) -> None:
        """Prints an error, which starts with the camera's name, and as the last JSON object."""
        self.close()
        print_error(reason)
        if self._json:
            self._print(json.dumps({"source": name, "error": reason.removeprefix(f"{name}: ")}))

    def close(self) -> None:
        """Ends the redrawn line, so that the last prediction stays on the terminal."""
        with self._lock:
            if self._redraws and self._drawn_at:
                print(flush=True)
                self._drawn_at = 0.0

    def _line(self, frame_prediction: FramePrediction, labels: tuple[str, ...]) -> str:
        if labels is not self._labels:
            self._labels, self._columns = labels, answer_columns(labels)
        rate = f"{frame_prediction.fps:.1f}/s  " if frame_prediction.fps else ""
        answer, *details = self._columns(
            frame_prediction.prediction, f"{rate}{frame_prediction.age_ms:.0f} ms old"
        )
        return "  ".join([answer, *reversed(details)])

    def _print(self, text: str, end: str = "\n") -> None:
        with self._lock:
            print(text, end=end, flush=True)
