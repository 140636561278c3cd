"""The endpoints /taught, /learn and /review: named and uncertain pictures, and learning from them.

static/openapi.json describes requests and answers.
"""

from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime.camera.stream import to_iso
from runtime.inference.review import review_reason
from runtime.server.adaptation_routes import PHOTO_HEADERS
from runtime.server.errors import RequestRejected
from runtime.server.review_tray import ReviewPicture
from runtime.server.service_state import NO_STORE, body_of, run_file_work, service_of


async def add_taught(request: Request) -> Response:
    service = service_of(request)
    label = await _check_label(request)  # before the body is read
    add = partial(service.learner.add, label=label)
    id = await service.queue.process(add, *body_of(request))
    return await _added(request, id, label)


async def list_taught(request: Request) -> Response:
    return JSONResponse(
        await run_file_work(request, service_of(request).learner.list_photos), headers=NO_STORE
    )


async def show_taught(request: Request) -> Response:
    data = await run_file_work(request, partial(service_of(request).learner.read, request.path_params["id"]))
    return Response(data, headers=PHOTO_HEADERS, media_type="image/jpeg")


async def remove_taught(request: Request) -> Response:
    await run_file_work(request, partial(service_of(request).learner.remove, request.path_params["id"]))
    return Response(status_code=204)


async def learn(request: Request) -> Response:
    return JSONResponse(await service_of(request).learner.learn())


async def undo(request: Request) -> Response:
    return JSONResponse(await service_of(request).learner.undo())


async def forget(request: Request) -> Response:
    await service_of(request).learner.forget()
    return Response(status_code=204)


async def list_review(request: Request) -> Response:
    learner = service_of(request).learner
    learner.require_available()
    fields = {
        "photos": [_review_fields(picture) for picture in learner.review.pictures()],
        "version": learner.review.version,
    }
    return JSONResponse(fields, headers=NO_STORE)


async def show_review(request: Request) -> Response:
    picture = _review_picture(request)
    return Response(picture.jpeg, media_type="image/jpeg", headers=PHOTO_HEADERS)


async def name_review(request: Request) -> Response:
    label = await _check_label(request)
    picture = _review_picture(request)
    id = await run_file_work(request, partial(service_of(request).learner.name_review, picture, label))
    return await _added(request, id, label)


async def skip_review(request: Request) -> Response:
    picture = _review_picture(request)
    service_of(request).learner.review.remove(picture.id)
    return Response(status_code=204)


def learning_routes() -> list[Route]:
    return [
        Route("/taught", add_taught, methods=["POST"]),
        Route("/taught", list_taught),
        Route("/taught/{id}", show_taught),
        Route("/taught/{id}", remove_taught, methods=["DELETE"]),
        Route("/learn", learn, methods=["POST"]),
        Route("/learn", forget, methods=["DELETE"]),
        Route("/learn/undo", undo, methods=["POST"]),
        Route("/review", list_review),
        Route("/review/{id}", show_review),
        Route("/review/{id}", name_review, methods=["POST"]),
        Route("/review/{id}", skip_review, methods=["DELETE"]),
    ]


async def _check_label(request: Request) -> str:
    label = request.query_params.get("label", "")
    if "\ufffd" in label:  # Starlette decodes invalid bytes to this character
        raise RequestRejected(400, "the label is not valid: percent-encode its text in UTF-8")
    return await run_file_work(request, partial(service_of(request).learner.check_label, label))


async def _added(request: Request, id: str, label: str) -> Response:
    photos = await run_file_work(request, service_of(request).learner.store().photos)
    return JSONResponse({"id": id, "label": label, "photos": len(photos)}, 201)


def _review_picture(request: Request) -> ReviewPicture:
    learner = service_of(request).learner
    learner.require_available()
    try:
        return learner.review.get(request.path_params["id"])
    except KeyError:
        raise RequestRejected(404, "the review has no such picture: GET /review lists its pictures") from None


def _review_fields(picture: ReviewPicture) -> dict[str, Any]:
    prediction = picture.prediction
    return {
        "id": picture.id,
        "time": to_iso(picture.time),
        "source": prediction.source,
        "answer": prediction.answer,
        "top": [vars(score) for score in prediction.top],
        "reason": review_reason(picture.item),
    }
