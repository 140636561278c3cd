"""The endpoints /none and /adapt: photos of none of the classes, and the correction fitted to them.

static/openapi.json describes requests and answers.
"""

from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime.camera.stream import to_iso
from runtime.common.atomic import reported_writes
from runtime.common.text import printable
from runtime.inference.correction import CORRECTION_FLAG
from runtime.preprocess.stored_photo import added_at
from runtime.server.errors import RequestRejected
from runtime.server.service_state import NO_STORE, body_of, run_file_work, service_of

# A photo does not change under its id. `private`: only the browser that showed the photo keeps it.
PHOTO_HEADERS = {"Cache-Control": "private, max-age=86400"}


async def add_photo(request: Request) -> Response:
    service = service_of(request)
    tray = service.adapter.tray()  # a rejection comes before the body is read
    id = await service.queue.process(service.adapter.mark, *body_of(request))
    return JSONResponse({**_photo_fields(id), "photos": len(await run_file_work(request, tray.ids))}, 201)


async def list_photos(request: Request) -> Response:
    tray = service_of(request).adapter.tray()
    fields = {
        "photos": [_photo_fields(id) for id in await run_file_work(request, tray.ids)],
        "max_photos": tray.max_photos,
        "folder": printable(str(tray.folder)),
    }
    return JSONResponse(fields, headers=NO_STORE)


async def clear_photos(request: Request) -> Response:
    tray = service_of(request).adapter.tray()
    with reported_writes(tray.folder, CORRECTION_FLAG):
        await run_file_work(request, tray.clear)
    return Response(status_code=204)


async def show_photo(request: Request) -> Response:
    tray = service_of(request).adapter.tray()
    try:
        data = await run_file_work(request, partial(tray.read, request.path_params["id"]))
    except KeyError:
        raise _no_photo() from None
    return Response(data, headers=PHOTO_HEADERS, media_type="image/jpeg")


async def remove_photo(request: Request) -> Response:
    tray = service_of(request).adapter.tray()
    try:
        with reported_writes(tray.folder, CORRECTION_FLAG):
            await run_file_work(request, partial(tray.remove, request.path_params["id"]))
    except KeyError:
        raise _no_photo() from None
    return Response(status_code=204)


async def adapt(request: Request) -> Response:
    return JSONResponse(await service_of(request).adapter.adapt())


async def reset(request: Request) -> Response:
    await service_of(request).adapter.reset()
    return Response(status_code=204)


def adaptation_routes() -> list[Route]:
    return [
        Route("/none", add_photo, methods=["POST"]),
        Route("/none", list_photos),
        Route("/none", clear_photos, methods=["DELETE"]),
        Route("/none/{id}", show_photo),
        Route("/none/{id}", remove_photo, methods=["DELETE"]),
        Route("/adapt", adapt, methods=["POST"]),
        Route("/adapt", reset, methods=["DELETE"]),
    ]


def _photo_fields(id: str) -> dict[str, Any]:
    return {"id": id, "time": to_iso(added_at(id))}


def _no_photo() -> RequestRejected:
    return RequestRejected(404, "the tray has no such photo: GET /none lists its photos")
