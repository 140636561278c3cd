"""`python -m runtime.classify --camera`: classifies the frames of a camera, and saves them as photos."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from runtime.camera.camera import Camera
from runtime.camera.capture_folder import check_capture_folder
from runtime.camera.options import CameraOptions
from runtime.camera.recorder import FrameRecorder
from runtime.camera.smoothing import smooth_over_frames, smooth_over_seconds
from runtime.camera.stream import FramePrediction, predict_stream
from runtime.camera.terminal_view import TerminalView
from runtime.common.errors import CameraError, UserError
from runtime.common.terminal import stop_on_sigterm
from runtime.inference.model_reloader import ReloadingClassifier

CAPTURE_INTERVAL = 1.0  # seconds between saved frames without --every: adjacent frames are nearly the same

EXIT_CAMERA_LOST = 1

OpenReloader = Callable[[Callable[[str], None]], ReloadingClassifier]  # its argument prints messages
Save = Callable[[FramePrediction], None]


def run_camera(options: CameraOptions, open_reloader: OpenReloader) -> int:
    """Classifies frames until SIGTERM or the end of a clip. Returns the exit code.

    0 after SIGTERM or the end of a clip, EXIT_CAMERA_LOST if the camera was lost after its first frame.
    Raises UserError before the first prediction.
    """
    if options.capture:
        check_capture_folder(*options.capture, new_class=options.new_class)
    view = TerminalView(json=options.json, on_change=options.on_change)
    with stop_on_sigterm(), ExitStack() as stack:
        camera = Camera(options.source, retry=options.retry, on_message=view.message)
        reloader = open_reloader(view.message)
        saves = _open_recorders(options, reloader, stack, view.message)
        stack.callback(view.close)  # before the recorders print their counts
        return _show_stream(options, camera, reloader, view, saves)
    return 0


def _show_stream(
    options: CameraOptions,
    camera: Camera,
    reloader: ReloadingClassifier,
    view: TerminalView,
    saves: list[Save],
) -> int:
    smoothing = smooth_over_frames if isinstance(options.smooth, int) else smooth_over_seconds
    stream = predict_stream(camera, reloader, every=options.every, smoothing=smoothing(options.smooth))
    started = False
    description = str(reloader.current())
    try:
        with camera:
            for shown in stream:
                if not started:
                    height, width = shown.frame.pixels.shape[:2]
                    view.heading(f"{camera.name}, {width} x {height}, classified by {description}")
                    started = True
                view.show(shown, reloader.current().model.contract.labels)
                for save in saves:
                    save(shown)
    except CameraError as error:
        if not started:
            raise
        view.error(camera.name, str(error))
        return EXIT_CAMERA_LOST
    return 0


def _open_recorders(
    options: CameraOptions, reloader: ReloadingClassifier, stack: ExitStack, on_message: Callable[[str], None]
) -> list[Save]:
    """Opens the recorders that the options ask for; returns their functions that save frames."""
    saves: list[Save] = []
    every = 0.0 if options.every else CAPTURE_INTERVAL  # --every limits the frames already

    def open_recorder(folder: Path) -> FrameRecorder:
        return stack.enter_context(FrameRecorder(folder, every, options.max_mb, on_message))

    if options.save_unknown:
        model = reloader.current().model
        if "known" not in model.contract.thresholds:
            raise UserError(
                f"--save-unknown: {model.path} does not detect unknown pictures: choose another --model"
            )
        unknown = open_recorder(options.save_unknown)
        saves.append(lambda shown: unknown.save(shown.frame) if shown.prediction.known is False else None)
    if options.capture:
        label, folder = options.capture
        captured = open_recorder(folder / label)
        saves.append(lambda shown: captured.save(shown.frame))
    return saves
