"""Runs the service: binds the address, loads the model, opens the camera, and serves until it is stopped."""

import logging
import sys
from asyncio import CancelledError
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from socket import socket
from typing import Any
from urllib.parse import quote

import uvicorn

from runtime.camera.camera import Camera
from runtime.camera.crop import Crop
from runtime.camera.flags import DEFAULT_CONFIRM
from runtime.camera.options import SaveOptions
from runtime.camera.saving import check_save_options
from runtime.camera.stream import WAITING, FramePrediction
from runtime.common.secret_file import permission_warning
from runtime.common.terminal import print_info, stop_on_sigterm
from runtime.common.text import printable
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.inference.prediction import Prediction
from runtime.publish.publishers import PublishOptions
from runtime.server.address import listen, resolve, url_of
from runtime.server.answer_callbacks import open_answer_callbacks
from runtime.server.app import make_app
from runtime.server.auth import AccessPolicy, make_access_policy
from runtime.server.connection_limits import BoundedHttpProtocol, close_timed_out_connections
from runtime.server.crop_setting import CropSetting
from runtime.server.file_worker import FileWorker
from runtime.server.health import CHECK_INTERVAL, HealthMonitor
from runtime.server.inference_queue import InferenceQueue
from runtime.server.learner import Learner
from runtime.server.live_view import LiveView
from runtime.server.malloc import return_large_blocks_to_system
from runtime.server.metrics import Metrics
from runtime.server.open_files import raise_file_limit
from runtime.server.review_collector import ReviewCollector
from runtime.server.review_tray import ReviewTray
from runtime.server.scene_adapter import SceneAdapter
from runtime.server.service_state import ServiceState
from runtime.server.systemd import notify, watchdog_interval
from runtime.server.token_file import read_token

SHUTDOWN_TIMEOUT = 3  # seconds that running requests get to finish
SWEEP_INTERVAL = 1  # seconds between two searches for timed-out connections


@dataclass(frozen=True)
class ServerConfig:
    """The flags of `python -m runtime.serve`."""

    host: str = "127.0.0.1"
    port: int = 8080  # 0: any free port
    token_file: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    camera: str | None = None
    every: float = 0.0  # seconds between two predictions of the camera
    crop: Crop | None = None
    confirm: int = DEFAULT_CONFIRM  # agreeing frames after which a new answer of the camera counts
    saving: SaveOptions = field(default_factory=SaveOptions)
    publishing: PublishOptions = field(default_factory=PublishOptions)
    model: str | None = None
    classifier_options: Mapping[str, Any] = field(default_factory=dict)
    queue_capacity: int = 64
    max_upload_bytes: int = 32_000_000


@dataclass(frozen=True)
class ReadyServer:
    """A server with a bound socket and a loaded model."""

    uvicorn_server: uvicorn.Server
    listener: socket
    url: str
    policy: AccessPolicy
    model: ReloadingClassifier

    def serve(self) -> None:
        """Answers requests until a signal arrives or `stop` is called."""
        try:
            self.uvicorn_server.run(sockets=[self.listener])
        finally:
            notify("STOPPING=1")

    def stop(self) -> None:
        """Ends `serve`, from any thread."""
        self.uvicorn_server.should_exit = True


def run_server(config: ServerConfig) -> None:
    """Serves until SIGTERM or Ctrl-C. Raises UserError before the first request."""
    _silence_libraries()
    with stop_on_sigterm(), open_server(config) as server:
        if config.token_file and (warning := permission_warning(config.token_file)):
            print_info(warning)
        print(printable(str(server.model.current())))
        # A terminal gets a link that signs in; other output may be a log, which must not hold the token.
        token = server.policy.token if sys.stdout.isatty() else ""
        link = f"/#token={quote(token, safe='')}" if token else ""
        print(f"{server.url}{link}  (stop with Ctrl-C)", flush=True)
        server.serve()


@contextmanager
def open_server(config: ServerConfig) -> Iterator[ReadyServer]:
    """Binds the address, loads the model and opens the camera. Raises UserError."""
    return_large_blocks_to_system()
    raise_file_limit()
    check_save_options(config.saving)
    token = read_token(config.token_file)
    family, address = resolve(config.host, config.port)
    make_access_policy(address[0], address[1], (), token)  # raises before the port is bound
    with ExitStack() as stack:
        listener = stack.enter_context(listen(family, address))
        port = listener.getsockname()[1]
        policy = make_access_policy(address[0], port, [*config.allowed_hosts, config.host], token)
        camera = Camera(config.camera, retry=True, on_message=print_info) if config.camera else None
        model = ReloadingClassifier(
            config.model,
            on_event=print_info,
            hides_native_stderr=True,
            parallel=True,
            **config.classifier_options,
        )
        view: LiveView | None = None

        def camera_problem() -> str:
            return view.answer_problem if view else WAITING

        callbacks = stack.enter_context(
            open_answer_callbacks(
                config.saving, config.publishing, config.every, model, camera_problem if camera else None
            )
        )
        learner = _make_learner(config, policy, model)
        collector = ReviewCollector(learner.review, model, lambda: not learner.unavailable())

        def on_frame(frame_prediction: FramePrediction) -> None:
            callbacks.on_frame(frame_prediction)
            collector.offer_frame(frame_prediction)

        def on_photo(prediction: Prediction, data: bytes) -> None:
            callbacks.on_photo(prediction, data)
            collector.offer_photo(prediction, data)

        if camera:
            crop = CropSetting(model, config.crop)
            opened = stack.enter_context(camera)
            view = LiveView(opened, model, config.every, crop, config.confirm, on_frame)
        service = _make_service(config, policy, model, learner, view)
        service.queue.on_photo = on_photo
        yield ReadyServer(_make_uvicorn_server(service), listener, url_of(address[0], port), policy, model)


def _make_service(
    config: ServerConfig,
    policy: AccessPolicy,
    model: ReloadingClassifier,
    learner: Learner,
    view: LiveView | None,
) -> ServiceState:
    queue = InferenceQueue(model, capacity=config.queue_capacity, max_upload_bytes=config.max_upload_bytes)
    health = HealthMonitor(
        queue,
        view,
        interval=min(CHECK_INTERVAL, watchdog_interval() or CHECK_INTERVAL),
        on_pass=lambda: notify("WATCHDOG=1"),
    )
    options = config.classifier_options
    adapter = SceneAdapter(
        model,
        correction=options.get("correction"),
        allow_correction=options.get("allow_correction", False),
    )
    return ServiceState(
        queue, policy, health, Metrics(queue, view), adapter, learner, FileWorker(), FileWorker(), view
    )


def _make_learner(config: ServerConfig, policy: AccessPolicy, model: ReloadingClassifier) -> Learner:
    options = config.classifier_options
    return Learner(
        model,
        ReviewTray(),
        learned=options.get("learned"),
        allow_learning=options.get("allow_learning", False),
        is_reachable=policy.is_networked or bool(config.allowed_hosts),  # --allow-host: behind a proxy
    )


def _make_uvicorn_server(service: ServiceState) -> uvicorn.Server:
    async def sweep() -> None:
        with suppress(MemoryError):  # the next one follows
            close_timed_out_connections(server)

    server = uvicorn.Server(
        uvicorn.Config(
            make_app(service, on_ready=lambda: notify("READY=1")),
            http=BoundedHttpProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_TIMEOUT,
            callback_notify=sweep,
            timeout_notify=SWEEP_INTERVAL,
        )
    )
    return server


def _silence_libraries() -> None:
    """Hides library logs except for exceptions: clients get their errors as answers already."""

    def is_exception(record: logging.LogRecord) -> bool:
        return record.exc_info is not None and not isinstance(record.exc_info[1], CancelledError)

    logging.getLogger("uvicorn.error").addFilter(is_exception)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
