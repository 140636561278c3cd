"""The endpoint /crop: the region of the camera's frames that is classified."""

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime.server.crop_setting import CropSetting, parse_crop_json
from runtime.server.errors import RequestRejected
from runtime.server.request_body import read_body
from runtime.server.service_state import NO_STORE, service_of

MAX_BODY_BYTES = 1000


async def show_crop(request: Request) -> Response:
    return _response(_setting(request))


async def save_crop(request: Request) -> Response:
    setting = _setting(request)  # a rejection comes before the body is read
    body = await read_body(request.receive, MAX_BODY_BYTES)
    try:
        crop = parse_crop_json(body)
    except ValueError as error:
        raise RequestRejected(400, str(error)) from None
    await asyncio.to_thread(setting.save, crop)
    return _response(setting)


def crop_routes() -> list[Route]:
    return [Route("/crop", show_crop), Route("/crop", save_crop, methods=["PUT"])]


def _setting(request: Request) -> CropSetting:
    view = service_of(request).live_view
    if view is None:
        raise RequestRejected(404, "there is no camera: start the service with --camera")
    return view.crop


def _response(setting: CropSetting) -> Response:
    crop = setting.current
    return JSONResponse(
        {"crop": crop.to_list() if crop else None, "fixed": setting.is_fixed}, headers=NO_STORE
    )
