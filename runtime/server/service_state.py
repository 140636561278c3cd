"""The state that all endpoints share, and their access to a request's body."""

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request

from runtime.server.auth import AccessPolicy
from runtime.server.connection_limits import network_of
from runtime.server.errors import RequestRejected
from runtime.server.file_worker import FileWorker, Result
from runtime.server.health import HealthMonitor
from runtime.server.inference_queue import InferenceQueue
from runtime.server.learner import Learner
from runtime.server.live_view import LiveView
from runtime.server.metrics import Metrics
from runtime.server.request_body import Receive
from runtime.server.scene_adapter import SceneAdapter

NO_STORE = {"Cache-Control": "no-store"}
MAX_LENGTH_DIGITS = 20  # of a Content-Length: 2 to the power of 64


@dataclass(frozen=True)
class ServiceState:
    """The objects that requests share."""

    queue: InferenceQueue
    policy: AccessPolicy
    health: HealthMonitor
    metrics: Metrics
    adapter: SceneAdapter
    learner: Learner
    files: FileWorker
    status_files: FileWorker  # its own: every page asks for the status, and changes of others may be slow
    live_view: LiveView | None = None


def service_of(request: Request) -> ServiceState:
    """The state of the application that got the request."""
    service = request.app.state.service
    assert isinstance(service, ServiceState)
    return service


async def run_file_work(request: Request, work: Callable[[], Result]) -> Result:
    """The result of `work` with files, in a thread where clients take turns. Raises RequestRejected (503)."""
    return await service_of(request).files.run(address_of(request), work)


def body_of(request: Request) -> tuple[str, int | None, Receive, str]:
    """The Content-Type, the Content-Length and the source of a body, and the client's address.

    Raises RequestRejected (400).
    """
    length = request.headers.get("content-length")
    # A parser may accept thousands of leading zeros, which int() refuses.
    if length is not None and not (length.isdecimal() and len(length) <= MAX_LENGTH_DIGITS):
        raise RequestRejected(400, "Content-Length is not a number")
    return (
        request.headers.get("content-type", ""),
        int(length) if length else None,
        request.receive,
        address_of(request),
    )


def address_of(request: Request) -> str:
    """The client's address that limits count."""
    return network_of(request.client.host if request.client else "")
