"""The service's addresses: the page, POST /classify, and what the page and monitors ask."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.common.errors import EngineError
from runtime.common.terminal import print_error
from runtime.inference.prediction import json_line
from runtime.server.auth import AccessPolicy, RequestRejected
from runtime.server.inference_queue import BEAT_EVERY, Disconnected, InferenceQueue, card, read_body, speed
from runtime.server.live_view import LiveView
from runtime.server.metrics import Metrics

PAGE = Path(__file__).parent / "static"
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/openapi.json": ("openapi.json", "application/json"),
}
# What says nothing of the model, the photos or the camera, and what the token is asked with.
PUBLIC = frozenset({*FILES, "/healthz", "/login"})

WAIT_FOR_FRAME = 5.0  # seconds that a viewer waits for the next frame before it asks again
MAX_LOGIN = 4096  # bytes

HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
)


def make_app(
    service: InferenceQueue,
    door: AccessPolicy,
    view: LiveView | None = None,
    *,
    beat_every: float = BEAT_EVERY,
    ready: Callable[[], object] = lambda: None,
    beating: Callable[[], object] = lambda: None,
) -> ASGIApp:
    """The service behind its door. `ready` is called at its start, `beating` while photos get answers."""
    metrics = Metrics(service, view)

    async def classify(request: Request) -> Response:
        length = request.headers.get("content-length")
        if length is not None and not length.isdecimal():
            raise RequestRejected(400, "Content-Length is no number")
        prediction = await service.classify(
            request.headers.get("content-type", ""), int(length) if length else None, request.receive
        )
        return Response(json_line(prediction), media_type="application/json")

    async def status(request: Request) -> Response:
        classifier = service.live.now()
        answer = {
            "model": card(classifier),
            "engine": classifier.session.engine,
            "threads": classifier.threads,
            "news": service.live.news,
            "speed": speed(service),
            "camera": None if view is None else camera_status(view),
            "history": [] if view is None else list(view.history),
            "max_bytes": service.max_bytes,
        }
        # In ASCII: JSONResponse's UTF-8 knows no half of a surrogate pair, which a file's name may hold.
        return Response(
            json.dumps(answer, allow_nan=False),
            media_type="application/json",
            headers={"Cache-Control": "no-store"},
        )

    async def live(request: Request) -> Response:
        if view is None:
            raise RequestRejected(404, "there is no camera: start the service with --camera")
        after = request.query_params.get("after", "0")
        if not after.isdecimal() or len(after) > 18:
            raise RequestRejected(400, "after is not a frame's number")
        sight = await view.newer(int(after), WAIT_FOR_FRAME)
        if sight is None:
            return Response(status_code=204, headers={"Cache-Control": "no-store"})
        return Response(
            await view.jpeg(sight),
            media_type="image/jpeg",
            headers={"Sight": sight.to_json(), "Cache-Control": "no-store"},
        )

    async def login(request: Request) -> Response:
        """A browser gives the token once and gets a cookie for it, which no script can read."""
        body = await read_body(request.receive, MAX_LOGIN)
        try:
            token = json.loads(body)["token"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise RequestRejected(400, 'is not {"token": "…"}') from None
        if not isinstance(token, str) or not door.is_token(token.strip()):
            raise RequestRejected(401, "is not the token")
        return Response(status_code=204, headers={"Set-Cookie": door.set_cookie})

    async def healthz(request: Request) -> Response:
        well = service.is_well() and (view is None or view.is_alive())
        return JSONResponse({"status": "ok" if well else "stuck"}, 200 if well else 503)

    async def read_metrics(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        if view is not None:
            view.start()
        beat = asyncio.create_task(
            service.beat(beat_every, lambda: view is None or view.is_alive(), beating), name="beat"
        )
        beat.add_done_callback(_tell_end)
        ready()
        yield
        beat.cancel()
        service.close()

    app = Starlette(
        routes=[
            Route("/classify", classify, methods=["POST"]),  # they are tried in this order
            Route("/status", status),
            Route("/live.jpg", live),
            Route("/login", login, methods=["POST"]),
            Route("/healthz", healthz),
            Route("/metrics", read_metrics),
            *(Route(path, _file(*file)) for path, file in FILES.items()),
        ],
        exception_handlers={
            RequestRejected: _refused,
            Disconnected: _gone,
            HTTPException: _no_such,
            EngineError: _engine_failed,
        },
        lifespan=life,
    )
    paths = {route.path for route in app.routes if isinstance(route, Route)}
    return AccessMiddleware(
        app, door, lambda path, status: metrics.count(path if path in paths else "other", status)
    )


class AccessMiddleware:
    """Checks each request at the door, gives each answer its headers, and counts it."""

    def __init__(self, app: ASGIApp, door: AccessPolicy, count: Callable[[str, int], None]) -> None:
        self._app, self._door, self._count = app, door, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
                self._count(scope["path"], message["status"])
            await send(message)

        app = self._app
        try:
            self._door.check(scope["method"], scope["headers"], public=scope["path"] in PUBLIC)
        except RequestRejected as refused:
            app = _response(refused)
        await app(scope, receive, send_with_headers)


def camera_status(view: LiveView) -> dict[str, Any]:
    sight = view.sight
    height, width = sight.frame.pixels.shape[:2] if sight else (None, None)
    return {
        "name": view.camera.name,
        "problem": view.problem,
        "width": width,
        "height": height,
        "fps": sight.fps if sight else None,
        "age_ms": sight.age_ms if sight else None,
    }


def _file(name: str, media_type: str) -> Callable[[Request], Any]:
    content = (PAGE / name).read_bytes()

    async def answer(request: Request) -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return answer


def _response(refused: RequestRejected) -> JSONResponse:
    headers = {}
    if refused.status in (408, 413, 503):  # what is left of the body is not read
        headers["Connection"] = "close"
    if refused.retry_after is not None:
        headers["Retry-After"] = str(refused.retry_after)
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"source": refused.source, "error": refused.reason}, refused.status, headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRejected)
    return _response(error)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody gets it; nginx's number for it, in the metrics


async def _no_such(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = {"source": "-", "error": f"{request.method} {request.url.path}: {error.detail.lower()}"}
    return JSONResponse(answer, error.status_code, error.headers)


async def _engine_failed(request: Request, error: Exception) -> Response:
    print_error(str(error))
    return JSONResponse({"source": "-", "error": "the engine failed; the service's own log says why"}, 500)


def _tell_end(beat: "asyncio.Task[None]") -> None:
    with suppress(asyncio.CancelledError):
        if error := beat.exception():
            print_error(f"no proof of life any more: {error}")
