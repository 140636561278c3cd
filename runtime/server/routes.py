"""The HTTP API: one function per endpoint. static/openapi.json describes requests and answers."""

import json
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime.inference.prediction import json_line
from runtime.server.adaptation_routes import adaptation_routes
from runtime.server.crop_routes import crop_routes
from runtime.server.errors import RequestRejected
from runtime.server.learning_routes import learning_routes
from runtime.server.request_body import read_body
from runtime.server.service_state import NO_STORE, address_of, body_of, service_of
from runtime.server.status import read_file_status, service_status

STATIC = Path(__file__).parent / "static"
JAVASCRIPT = "text/javascript; charset=utf-8"
STATIC_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    **{f"/{path.name}": (path.name, JAVASCRIPT) for path in STATIC.glob("*.js")},
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/openapi.json": ("openapi.json", "application/json"),
}
CLASSIFY = "/classify"
# Endpoints that need no token: they reveal nothing about the model, the photos or the camera.
PUBLIC_PATHS = frozenset({*STATIC_FILES, "/healthz", "/login"})

VIEWER_TIMEOUT = 5.0  # seconds that a viewer waits for the next frame before it gets 204
MAX_LOGIN_BYTES = 4096

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


async def classify(request: Request) -> Response:
    prediction = await service_of(request).queue.classify(*body_of(request))
    return Response(json_line(prediction), media_type="application/json")


async def status(request: Request) -> Response:
    service = service_of(request)
    # ASCII, unlike JSONResponse: a file name may hold a lone surrogate, which UTF-8 cannot encode.
    files = await service.status_files.run(address_of(request), partial(read_file_status, service))
    text = json.dumps(service_status(service, files), allow_nan=False)
    return Response(text, media_type="application/json", headers=NO_STORE)


async def live_frame(request: Request) -> Response:
    view = service_of(request).live_view
    if view is None:
        raise RequestRejected(404, "there is no camera: start the service with --camera")
    after = request.query_params.get("after", "0")
    if not after.isdecimal() or len(after) > 18:
        raise RequestRejected(400, "after is not a frame number")
    frame_prediction = await view.newer_than(int(after), VIEWER_TIMEOUT, address_of(request))
    if frame_prediction is None:
        return Response(status_code=204, headers=NO_STORE)
    return Response(
        await view.jpeg(frame_prediction, whole="whole" in request.query_params),
        media_type="image/jpeg",
        headers={"Prediction": frame_prediction.to_json(), **NO_STORE},
    )


async def login(request: Request) -> Response:
    """Exchanges the token for a cookie that scripts cannot read."""
    policy = service_of(request).policy
    body = await read_body(request.receive, MAX_LOGIN_BYTES)
    try:
        token = json.loads(body)["token"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RequestRejected(400, 'the body is not {"token": "…"}') from None
    if not isinstance(token, str) or not policy.is_token(token.strip()):
        raise RequestRejected(401, "wrong token")
    return Response(status_code=204, headers={"Set-Cookie": policy.set_cookie_header})


async def healthz(request: Request) -> Response:
    healthy = service_of(request).health.is_healthy()
    return JSONResponse({"status": "ok" if healthy else "stuck"}, 200 if healthy else 503)


async def metrics(request: Request) -> Response:
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def static_file(name: str, media_type: str) -> Endpoint:
    """An endpoint that serves one file of static/ from memory."""
    content = (STATIC / name).read_bytes()

    async def serve_file(request: Request) -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return serve_file


def make_routes() -> list[Route]:
    return [
        Route(CLASSIFY, classify, methods=["POST"]),
        Route("/status", status),
        Route("/live.jpg", live_frame),
        *learning_routes(),
        *crop_routes(),
        *adaptation_routes(),
        Route("/login", login, methods=["POST"]),
        Route("/healthz", healthz),
        Route("/metrics", metrics),
        *(Route(path, static_file(name, media_type)) for path, (name, media_type) in STATIC_FILES.items()),
    ]
