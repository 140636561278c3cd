"""`python -m runtime.classify --camera`: classifies the frames of a camera, and saves them as photos."""

from collections.abc import Callable
from contextlib import ExitStack

from runtime.camera.camera import Camera
from runtime.camera.frame_publisher import frame_publisher
from runtime.camera.options import CameraOptions
from runtime.camera.saving import check_save_options, frame_saver, open_recorders
from runtime.camera.smoothing import smooth_over_frames, smooth_over_seconds
from runtime.camera.stream import FramePrediction, describe_refusal, describe_wait, predict_stream
from runtime.camera.terminal_view import TerminalView
from runtime.common.errors import CameraError
from runtime.common.terminal import stop_on_sigterm
from runtime.inference.model_reloader import OpenReloader, ReloadingClassifier
from runtime.publish.publishers import LATEST_ONLY, diagnostics_of, open_publishers

EXIT_CAMERA_LOST = 1


def run_camera(options: CameraOptions, open_reloader: OpenReloader) -> int:
    """Classifies frames until SIGTERM or the end of a clip. Returns the exit code.

    0 after SIGTERM or the end of a clip, EXIT_CAMERA_LOST if the camera was lost after its first frame.
    Raises UserError before the first prediction.
    """
    check_save_options(options.saving)
    view = TerminalView(json=options.json, on_change=options.on_change)
    refusal, answered = "", 0
    with stop_on_sigterm(), ExitStack() as stack:
        camera = Camera(options.source, retry=options.retry, on_message=view.message)

        def on_refused(problem: str) -> None:
            nonlocal refusal
            refusal = problem
            view.message(describe_refusal(camera.name, problem))

        def set_answered(frame_prediction: FramePrediction) -> None:
            nonlocal answered
            answered = frame_prediction.frame.number

        def problem() -> str:
            return camera.problem or refusal or describe_wait(camera, answered)

        reloader = open_reloader(view.message)
        model = reloader.current().model
        save = stack.enter_context(open_recorders(options.saving, model, options.every, view.message))
        publish = stack.enter_context(
            open_publishers(
                options.publishing,
                lambda: diagnostics_of(reloader.current(), problem()),
                view.message,
                LATEST_ONLY,
            )
        )
        stack.callback(view.close)  # before the recorders print their counts
        callbacks = [set_answered, frame_saver(save), frame_publisher(publish)]
        return _show_stream(options, camera, reloader, view, on_refused, callbacks)
    return 0  # after SIGTERM


def _show_stream(
    options: CameraOptions,
    camera: Camera,
    reloader: ReloadingClassifier,
    view: TerminalView,
    on_refused: Callable[[str], None],
    callbacks: list[Callable[[FramePrediction], None]],
) -> int:
    smoothing = smooth_over_frames if isinstance(options.smooth, int) else smooth_over_seconds
    stream = predict_stream(
        camera,
        reloader,
        every=options.every,
        smoothing=smoothing(options.smooth),
        confirm=options.confirm,
        crop=lambda: options.crop,
        on_refused=on_refused,
    )
    started = False
    description = str(reloader.current())
    try:
        with camera:
            for frame_prediction in stream:
                if not started:
                    height, width = frame_prediction.picture().shape[:2]
                    view.heading(f"{camera.name}, {width} x {height}, classified by {description}")
                    started = True
                view.show(frame_prediction, reloader.current().labels)
                for callback in callbacks:
                    callback(frame_prediction)
    except CameraError as error:
        if not started:
            raise
        view.error(camera.name, str(error))
        return EXIT_CAMERA_LOST
    return 0
