"""The ASGI application: routes behind access control, security headers, and one-line JSON errors."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.common.errors import EngineError, WriteError
from runtime.common.terminal import print_error
from runtime.common.text import printable
from runtime.server.connection_limits import mark_authorized
from runtime.server.error_response import SECURITY_HEADERS, error_response
from runtime.server.errors import ClientDisconnected, RequestRejected
from runtime.server.lingering import LingeringClose
from runtime.server.open_files import FileLimitReporter
from runtime.server.request_rate import (
    PHOTOS_PER_SECOND,
    REQUESTS_PER_SECOND,
    REQUESTS_WITHOUT_TOKEN_PER_SECOND,
    RequestRate,
)
from runtime.server.routes import CLASSIFY, PUBLIC_PATHS, make_routes
from runtime.server.service_state import ServiceState, address_of

MAX_QUERY_BYTES = 4096  # a label of 100 characters takes 1,200; its parser takes 30 ms for 60 kB

_STOPPING = RequestRejected(503, "the service is stopping: retry in 5 s", retry_after=5)


def make_app(service: ServiceState, on_ready: Callable[[], object] = lambda: None) -> ASGIApp:
    """The application. `on_ready` is called when it starts to answer requests."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_exception_handler(FileLimitReporter())
        if service.live_view is not None:
            service.live_view.start()
        health_checks = asyncio.create_task(service.health.run(), name="health-checks")
        health_checks.add_done_callback(_report_failure)
        following = asyncio.create_task(service.learner.follow_model(), name="follow-model")
        on_ready()
        yield
        health_checks.cancel()
        following.cancel()
        service.queue.close()
        service.adapter.close()
        service.learner.close()
        service.files.close()
        service.status_files.close()

    routes = make_routes()
    app = Starlette(routes=routes, exception_handlers=EXCEPTION_HANDLERS, lifespan=lifespan)
    app.router.redirect_slashes = False  # its redirect names http:// behind a proxy with TLS
    app.state.service = service
    return LingeringClose(AccessMiddleware(app, service, routes))


class AccessMiddleware:
    """Checks each request against the access policy, adds security headers, and counts the answers.

    The requests of an address are spaced: each kind has its rate.
    """

    def __init__(self, app: ASGIApp, service: ServiceState, routes: Sequence[Route]) -> None:
        self._app, self._service, self._routes = app, service, routes
        self._photo_rate = RequestRate(PHOTOS_PER_SECOND)
        self._rate = RequestRate(REQUESTS_PER_SECOND)
        self._rate_without_token = RequestRate(REQUESTS_WITHOUT_TOKEN_PER_SECOND)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, has_begun = scope["path"], False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                message["headers"] = [*message.get("headers", ()), *SECURITY_HEADERS]
                self._service.metrics.count_request(self._counted_path(path), message["status"])
            await send(message)

        try:
            await self._answer(scope, receive, send_with_headers)
        except asyncio.CancelledError:  # the service stops, and the answer takes too long
            if has_begun:
                raise
            await error_response(_STOPPING)(scope, receive, send_with_headers)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        app, is_public = self._app, path in PUBLIC_PATHS
        rate = self._rate_without_token
        try:
            if len(scope["query_string"]) > MAX_QUERY_BYTES:
                raise RequestRejected(414, "the address is too long")
            policy, headers = self._service.policy, scope["headers"]
            if policy.check(scope["method"], headers, requires_token=not is_public):
                rate = self._photo_rate if path == CLASSIFY else self._rate
            if not is_public:
                mark_authorized(scope)
        except RequestRejected as rejection:
            app = error_response(rejection)
        if (delay := rate.delay(address_of(Request(scope)))) is None:
            app = error_response(RequestRejected(429, "too many requests: retry in 2 s", retry_after=2))
        elif delay:
            await asyncio.sleep(delay)
        await app(scope, receive, send)

    def _counted_path(self, path: str) -> str:
        """The route's path, such as /none/{id}: clients choose the rest, and a metric has few paths."""
        return next((route.path for route in self._routes if route.path_regex.match(path)), "other")


async def _on_rejection(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRejected)
    return error_response(error)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's code; only the metrics show it


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = {"Allow": _allowed_methods(request)} if error.status_code == 405 else error.headers
    reason = f"{request.method} {request.url.path}: {error.detail.lower()}"
    return JSONResponse({"source": "-", "error": reason}, error.status_code, headers)


def _allowed_methods(request: Request) -> str:
    """The methods of all routes for the path; Starlette lists those of the first one."""
    routes = (route for route in request.app.routes if route.path_regex.match(request.scope["path"]))
    return ", ".join(sorted({method for route in routes for method in route.methods}))


async def _on_write_error(request: Request, error: Exception) -> Response:
    return error_response(RequestRejected(500, printable(str(error))))


async def _on_engine_error(request: Request, error: Exception) -> Response:
    print_error(str(error))
    return JSONResponse({"source": "-", "error": "the engine failed: see the service's log"}, 500)


EXCEPTION_HANDLERS = {
    RequestRejected: _on_rejection,
    ClientDisconnected: _on_disconnect,
    HTTPException: _on_http_exception,
    WriteError: _on_write_error,
    EngineError: _on_engine_error,
}


def _report_failure(health_checks: "asyncio.Task[None]") -> None:
    with suppress(asyncio.CancelledError):
        if error := health_checks.exception():
            print_error(f"health checks stopped: {error}")
