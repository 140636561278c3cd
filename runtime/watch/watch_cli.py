"""`python -m runtime.classify --watch DIR`: classifies photos as they arrive, and saves the results."""

import json
import os
from contextlib import ExitStack, suppress
from datetime import datetime, timezone
from functools import partial

from runtime.camera.saving import photo_pixels
from runtime.common.errors import UserError
from runtime.common.terminal import print_error, print_info, stop_on_sigterm
from runtime.common.text import printable
from runtime.inference.model_reloader import OpenReloader
from runtime.inference.prediction import Prediction, answer_columns, json_line
from runtime.preprocess.stored_photo import encode_photo
from runtime.publish.answer import Answer
from runtime.publish.publishers import EACH_PHOTO, diagnostics_of, open_publishers
from runtime.watch.folder_watcher import FolderWatcher, WatchedPhoto, stat_photo
from runtime.watch.options import WatchOptions
from runtime.watch.sinks import open_sink


def run_watch(options: WatchOptions, open_reloader: OpenReloader) -> int:
    """Classifies the photos in the folder and those that arrive, until SIGTERM. Returns the exit code, 0.

    Skips the photos that have a result in `options.out`. Raises UserError.
    """
    if not os.path.isdir(options.folder):
        raise UserError(f"{options.folder}: no such folder, or no permission to open it: check its path")
    with stop_on_sigterm(), ExitStack() as stack:
        sink = stack.enter_context(open_sink(options.out, print_info))
        reloader = open_reloader(print_info)

        def show(photo: WatchedPhoto, result: Prediction | str) -> None:
            if isinstance(result, Prediction):
                # For MQTT only, and first: a program that reads the answer may move the photo away.
                picture = _read_copy(photo) if options.publishing.mqtt else b""
                publish(Answer(result, datetime.now(timezone.utc), partial(photo_pixels, picture)))
            _show(photo, result, reloader.current().labels, options.json)

        watcher = FolderWatcher(options.folder, reloader, sink, show, print_info)
        opened = open_publishers(
            options.publishing,
            lambda: diagnostics_of(reloader.current(), watcher.problem),
            print_info,
            EACH_PHOTO,
        )
        publish = stack.enter_context(opened)
        if not options.json:
            print(printable(f"{options.folder}, classified by {reloader.current()}"), flush=True)
        watcher.run()
    return 0  # after SIGTERM


def _read_copy(photo: WatchedPhoto) -> bytes:
    """Returns a small JPEG of a photo; b"" if the photo is gone or replaced by now.

    The answer may wait for the broker for hours, in which another photo may get the same name.
    """
    with suppress(UserError):
        data = encode_photo(photo_pixels(photo.path))
        if stat_photo(photo.path, photo.source) == photo:
            return data
    return b""


def _show(photo: WatchedPhoto, result: Prediction | str, labels: tuple[str, ...], as_json: bool) -> None:
    if isinstance(result, str):
        print_error(f"{photo.source}: {result}")
        if as_json:
            print(json.dumps({"source": photo.source, "error": result}), flush=True)
    elif as_json:
        print(json_line(result), flush=True)
    else:
        print("  ".join([photo.source, *answer_columns(labels)(result, "")]), flush=True)
