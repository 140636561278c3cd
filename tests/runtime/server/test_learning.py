"""/taught, /learn and /review: named pictures, what the service learns from them, and when it refuses."""

from __future__ import annotations

import io
import os
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import quote

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime import Classifier
from runtime.common.file_lock import exclusive_lock
from runtime.inference.learned_state import STATE_NAME
from runtime.inference.learning import LOCK_NAME
from runtime.inference.taught_photos import TaughtPhoto, TaughtPhotos
from runtime.server import learner, review_collector
from tests.helpers import PATIENCE, wait_for
from tests.runtime.camera.helpers import RED, jpeg, mjpeg_server, plain
from tests.runtime.conftest import MakeFolder
from tests.runtime.inference.test_correction import sign
from tests.runtime.scene import borderline_pictures, class_pictures, encode_png, scene_pictures
from tests.serving import Client, multipart_form, openapi_schema, serve_in_thread

TAUGHT = 12
NO_PHOTO = "20250131T120000000000Z_0123456789abcdef.jpg"  # an id that no picture has


def teach(service: Client, label: str, pictures: NDArray[np.uint8]) -> list[str]:
    """Names the pictures; returns their ids."""
    ids = []
    for pixels in pictures:
        status, answer = service.call("POST", f"/taught?label={quote(label)}", encode_png(pixels))
        assert status == 201, answer
        ids.append(answer["id"])
    return ids


def learn(service: Client) -> dict[str, Any]:
    status, lesson = service.call("POST", "/learn")
    assert status == 200, lesson
    jsonschema.validate(lesson, openapi_schema("Lesson"))
    assert len(lesson["text"].splitlines()) == 1
    return dict(lesson)


def answers(service: Client, pictures: NDArray[np.uint8]) -> list[str]:
    predictions = [service.classify(encode_png(pixels))[1] for pixels in pictures]
    return [found["label"] if found["known"] else "unknown" for found in predictions]


def test_a_new_class_is_learned_undone_and_forgotten(scene_service: Client, model: Path) -> None:
    seen, unseen = scene_pictures(TAUGHT, seed=1), scene_pictures(20, seed=5)
    flowers, _ = class_pictures(15, seed=6)
    before = answers(scene_service, flowers)
    assert "sky" not in answers(scene_service, unseen)
    teach(scene_service, "sky", seen)
    assert "sky" not in answers(scene_service, unseen)  # until "Learn"
    assert scene_service.status()["learning"]["labels"] == ["blau", "grün", "红", "sky"]
    lesson = learn(scene_service)
    assert "sky" in lesson["text"] and str(TAUGHT) in lesson["text"]
    assert answers(scene_service, unseen).count("sky") >= 17
    assert sum(np.array(answers(scene_service, flowers)) == before) >= 14
    status = scene_service.status()
    jsonschema.validate(status, openapi_schema("Status"))
    assert status["model"]["labels"] == ["blau", "grün", "红", "sky"]
    assert status["learning"]["learned"] == lesson["learned"]
    assert lesson["learned"]["new_labels"] == ["sky"] and lesson["learned"]["photos"] == TAUGHT
    status_code, undone = scene_service.call("POST", "/learn/undo")
    jsonschema.validate(undone, openapi_schema("Undone"))
    assert status_code == 200 and scene_service.status()["learning"]["learned"] is None
    assert scene_service.status()["learning"]["photos"] == 0  # of the step that was undone
    assert "sky" not in answers(scene_service, unseen) and answers(scene_service, flowers) == before
    teach(scene_service, "sky", seen)
    learn(scene_service)
    assert scene_service.call("DELETE", "/learn") == (204, None)
    assert "sky" not in answers(scene_service, unseen)
    assert scene_service.status()["learning"]["photos"] == 0


def test_a_corrected_picture_gets_its_name(scene_service: Client) -> None:
    wrong = borderline_pictures(1, seed=8)
    assert answers(scene_service, wrong) == ["blau"]
    ids = teach(scene_service, "grün", wrong)
    listed = scene_service.call("GET", "/taught")[1]
    jsonschema.validate(listed, openapi_schema("Taught"))
    assert [(photo["id"], photo["label"], photo["learned"]) for photo in listed["photos"]] == [
        (ids[0], "grün", False)
    ]
    assert listed["removed"] == 0 and listed["new_labels"] == []
    learn(scene_service)
    assert answers(scene_service, wrong) == ["grün"]
    listed = scene_service.call("GET", "/taught")[1]
    assert listed["photos"][0]["learned"]
    assert scene_service.call("DELETE", f"/taught/{ids[0]}") == (204, None)
    assert scene_service.call("GET", "/taught")[1]["removed"] == 1


def test_none_of_these_becomes_unknown(scene_service: Client) -> None:
    scene, flowers = scene_pictures(20, seed=5), class_pictures(15, seed=6)[0]
    assert answers(scene_service, scene).count("unknown") < 7
    teach(scene_service, "none", scene_pictures(20, seed=1))
    learn(scene_service)
    assert answers(scene_service, scene).count("unknown") > 13
    assert answers(scene_service, flowers).count("unknown") < 3


def test_named_pictures_are_listed_shown_renamed_and_removed(scene_service: Client, model: Path) -> None:
    pictures = scene_pictures(3, seed=1)
    ids = teach(scene_service, "sky", pictures)
    status, headers, body = scene_service.request("GET", f"/taught/{ids[1]}")
    shown = np.asarray(Image.open(io.BytesIO(body))).astype(int)
    assert status == 200 and headers["content-type"] == "image/jpeg" and "private" in headers["cache-control"]
    assert np.abs(shown - pictures[1]).mean() < 12
    status, answer = scene_service.call("POST", "/taught?label=cloud", encode_png(pictures[0]))
    jsonschema.validate(answer, openapi_schema("AddedTaught"))
    assert status == 201 and answer == {"id": ids[0], "label": "cloud", "photos": 3}
    labels = {photo["id"]: photo["label"] for photo in scene_service.call("GET", "/taught")[1]["photos"]}
    assert labels == {ids[1]: "sky", ids[2]: "sky", ids[0]: "cloud"}
    assert scene_service.call("DELETE", f"/taught/{ids[2]}") == (204, None)
    assert scene_service.call("DELETE", f"/taught/{ids[2]}")[0] == 404
    folder = model.with_name("quarters.learned") / "photos"
    assert sorted(path.parent.name for path in folder.rglob("*.jpg")) == ["cloud", "sky"]


def test_a_named_picture_loses_its_metadata(scene_service: Client, model: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "secret camera"
    photo = io.BytesIO()
    Image.new("RGB", (2000, 1000), "yellow").save(photo, "JPEG", exif=exif, comment=b"secret")
    body, content_type = multipart_form("yellow.jpg", photo.getvalue())
    status, _ = scene_service.call("POST", "/taught?label=sun", body, **{"Content-Type": content_type})
    (stored,) = (model.with_name("quarters.learned") / "photos" / "sun").iterdir()
    assert status == 201 and Image.open(stored).size == (960, 480) and b"secret" not in stored.read_bytes()


@pytest.mark.parametrize(
    "label", ["", "a%0Ab", "%1B[2J", "BLAU", "x" * 201, "unknown", "ros%E9", "%E2%80%8D"]
)
def test_a_label_that_is_no_name_is_refused_in_one_line(scene_service: Client, label: str) -> None:
    status, answer = scene_service.call(
        "POST", f"/taught?label={label}", encode_png(scene_pictures(1, seed=1)[0])
    )
    assert status == 400 and len(answer["error"].splitlines()) == 1 and answer["error"].isprintable()
    assert scene_service.status()["learning"]["photos"] == 0


def test_a_client_cannot_start_classes_without_end(
    scene_service: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.inference.taught_photos.MAX_NEW_LABELS", 2)
    pictures = [encode_png(picture) for picture in scene_pictures(3, seed=1)]
    for label, picture in zip(("sky", "sea", "sand"), pictures, strict=True):
        status, answer = scene_service.call("POST", f"/taught?label={label}", picture)
        assert status == (400 if label == "sand" else 201)
    assert "a device learns 2" in answer["error"]
    assert scene_service.call("POST", "/taught?label=sky", pictures[2])[0] == 201


@pytest.mark.parametrize("path", ["/status", "/taught", f"/taught/{NO_PHOTO}", "/taught?label=sky"])
def test_listing_many_pictures_holds_up_no_other_request(
    path: str, scene_service: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists, is_over = Event(), Event()
    waited = list[bool]()

    def list_slowly(store: TaughtPhotos) -> list[TaughtPhoto]:
        lists.set()
        waited.append(is_over.wait(PATIENCE / 2))  # False if the other request waits for the list
        return []

    monkeypatch.setattr(TaughtPhotos, "photos", list_slowly)
    picture = encode_png(scene_pictures(1, seed=1)[0]) if "label" in path else None
    slow = Thread(target=scene_service.request, args=("POST" if picture else "GET", path, picture))
    slow.start()
    assert lists.wait(PATIENCE)
    assert scene_service.get_status("/healthz") == 200
    is_over.set()
    slow.join()
    assert all(waited)


def test_an_address_has_a_limited_number_of_requests_for_lists(
    scene_service: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request waits for its turn although its client is gone."""
    monkeypatch.setattr("runtime.server.file_worker.MAX_WAITING", 1)
    lists, is_over = Event(), Event()

    def list_slowly(store: TaughtPhotos) -> list[TaughtPhoto]:
        lists.set()
        is_over.wait(PATIENCE)
        return []

    monkeypatch.setattr(TaughtPhotos, "photos", list_slowly)
    slow = Thread(target=scene_service.request, args=("GET", "/taught"))
    slow.start()
    assert lists.wait(PATIENCE)
    assert scene_service.get_status("/taught") == 503
    is_over.set()
    slow.join()
    wait_for(lambda: scene_service.get_status("/taught") == 200)


def test_a_label_cannot_leave_the_folder(scene_service: Client, model: Path) -> None:
    for label in ("..", "../..", "/etc", "C:"):
        teach(scene_service, label, scene_pictures(1, seed=1))
        (stored,) = model.parent.rglob("*.jpg")
        assert stored.parents[1] == model.with_name("quarters.learned") / "photos"
        assert scene_service.call("GET", "/taught")[1]["photos"][0]["label"] == label


@pytest.mark.parametrize(("body", "status"), [(b"no picture", 415), (b"\xff\xd8\xff" + bytes(99), 400)])
def test_hostile_bodies_get_the_answers_of_classify(scene_service: Client, body: bytes, status: int) -> None:
    got, answer = scene_service.call("POST", "/taught?label=sky", body)
    assert got == status == scene_service.request("POST", "/classify", body)[0] and answer["error"]
    assert scene_service.status()["learning"]["photos"] == 0


@pytest.mark.parametrize("path", ["/taught/..%2f..%2fstate.json", "/taught/state.json", "/review/x"])
def test_only_pictures_are_served(scene_service: Client, path: str) -> None:
    assert scene_service.request("GET", path)[0] == 404 and scene_service.request("DELETE", path)[0] == 404


def test_a_file_that_is_too_large_for_a_picture_is_not_served(scene_service: Client, model: Path) -> None:
    (id,) = teach(scene_service, "scene", scene_pictures(1, seed=1))
    os.truncate(next(model.parent.rglob(id)), 10**12)
    assert scene_service.request("GET", f"/taught/{id}")[0] == 404


def test_nothing_to_learn_or_to_undo_is_refused_in_one_line(scene_service: Client) -> None:
    for path, fact in (("/learn", "Wrong?"), ("/learn/undo", "undo")):
        status, answer = scene_service.call("POST", path)
        assert status == 409 and fact in answer["error"] and len(answer["error"].splitlines()) == 1


def test_a_failed_write_of_the_state_is_500(scene_service: Client, model: Path) -> None:
    teach(scene_service, "sky", scene_pictures(TAUGHT, seed=1))
    (model.with_name("quarters.learned") / STATE_NAME).mkdir()
    for method in ("POST", "DELETE"):
        status, answer = scene_service.call(method, "/learn")
        assert status == 500 and "--learned FOLDER chooses another place" in answer["error"]


def test_pictures_and_state_survive_a_restart(model: Path) -> None:
    unseen = scene_pictures(10, seed=5)
    with serve_in_thread(model) as service:
        ids = teach(service, "sky", scene_pictures(TAUGHT, seed=1))
        lesson = learn(service)
        before = answers(service, unseen)
    with serve_in_thread(model) as service:
        assert [photo["id"] for photo in service.call("GET", "/taught")[1]["photos"]] == ids
        assert service.status()["learning"]["learned"] == lesson["learned"]
        assert answers(service, unseen) == before and before.count("sky") > 7


def test_a_new_model_learns_the_named_pictures_again(
    make_scene_model: MakeFolder, model: Path, tmp_path: Path
) -> None:
    with serve_in_thread(model) as service:
        teach(service, "sky", scene_pictures(TAUGHT, seed=1))
        first = learn(service)["learned"]
        old = service.status()["model"]["sha256"]
    model.rename(tmp_path / "old")
    make_scene_model(model, seed=1, release=2)
    with serve_in_thread(model) as service:
        assert service.status()["model"]["sha256"] != old
        wait_for(lambda: service.status()["learning"]["learned"] is not None)
        assert service.status()["learning"]["learned"]["new_labels"] == first["new_labels"] == ["sky"]
        assert answers(service, scene_pictures(10, seed=5)).count("sky") > 7


def test_a_new_model_waits_for_another_program_that_learns(
    make_scene_model: MakeFolder, model: Path, learned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = list[str]()
    monkeypatch.setattr(learner, "print_error", errors.append)
    monkeypatch.setattr(learner, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(learner, "RETRY_SECONDS", 0.1)
    Classifier(model).teach("sky", list(scene_pictures(TAUGHT, seed=1)))
    model.rename(model.with_name("old"))
    make_scene_model(model, seed=1, release=2)
    with exclusive_lock(learned / LOCK_NAME), ExitStack() as stack:
        service = stack.enter_context(serve_in_thread(model))
        wait_for(lambda: bool(errors))
        served = stack.pop_all()
    with served:
        wait_for(lambda: service.status()["learning"]["learned"] is not None)
    (error,) = errors
    assert "another program is learning" in error


def test_the_page_learns_for_the_threshold_of_the_service(model: Path) -> None:
    with serve_in_thread(model, classifier_options={"reject": 0.5}) as service:
        teach(service, "sky", scene_pictures(TAUGHT, seed=1) // 3)
        learn(service)
        assert answers(service, scene_pictures(10, seed=5) // 3).count("sky") > 7
    assert Classifier(model, reject=0.5).learned_problem == ""


def test_other_sites_cannot_teach(scene_service: Client) -> None:
    requests = (
        ("POST", "/taught?label=sky"),
        ("POST", "/learn"),
        ("POST", "/learn/undo"),
        ("DELETE", "/learn"),
    )
    for method, path in requests:
        assert scene_service.call(method, path, b"", Origin="http://evil.example")[0] == 403


def test_the_token_is_required(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGG_EDGE_TOKEN", "a-token-of-the-test")
    with serve_in_thread(model) as service:
        for method in ("POST", "GET", "DELETE"):
            for path in ("/taught", "/taught/x", "/learn", "/learn/undo", "/review", "/review/x"):
                assert service.call(method, path, b"")[0] == 401


def test_a_service_that_other_machines_can_reach_asks_for_a_flag(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = {"Authorization": "Bearer a-token-of-the-test"}
    monkeypatch.setenv("VGG_EDGE_TOKEN", "a-token-of-the-test")
    photo = encode_png(scene_pictures(1, seed=1)[0])
    for config in ({"host": "0.0.0.0"}, {"allowed_hosts": ("pi.example.org",)}):
        with serve_in_thread(model, **config) as service:
            for method, path in (("POST", "/taught?label=sky"), ("POST", "/learn"), ("GET", "/review")):
                status, answer = service.call(method, path, photo, **token)
                assert status == 403 and "--allow-learning" in answer["error"]
                assert len(answer["error"].splitlines()) == 1
    with serve_in_thread(model, host="0.0.0.0", classifier_options={"allow_learning": True}) as service:
        assert service.call("POST", "/taught?label=sky", photo, **token)[0] == 201


def test_a_model_of_contract_version_1_cannot_learn(knowing: Path) -> None:
    with serve_in_thread(knowing) as service:
        for method, path in (("POST", "/taught?label=sky"), ("GET", "/taught"), ("POST", "/learn")):
            status, answer = service.call(method, path, b"")
            assert status == 409 and "version 1" in answer["error"] and len(answer["error"].splitlines()) == 1
        assert "version 1" in service.status()["learning"]["unavailable"]


def test_a_service_that_requires_signatures_asks_for_a_flag(model: Path, tmp_path: Path) -> None:
    key = sign(model, tmp_path)
    pictures = scene_pictures(TAUGHT, seed=1)
    with serve_in_thread(model, classifier_options={"key": key}) as service:
        status, answer = service.call("POST", "/taught?label=sky", encode_png(pictures[0]))
        assert status == 409 and "--allow-learning" in answer["error"]
    with serve_in_thread(model, classifier_options={"key": key, "allow_learning": True}) as service:
        teach(service, "sky", pictures)
        assert learn(service)["learned"]["new_labels"] == ["sky"]


def test_learning_can_be_turned_off(model: Path) -> None:
    with serve_in_thread(model, classifier_options={"learned": "none"}) as service:
        status, answer = service.call("POST", "/taught?label=sky", encode_png(scene_pictures(1, seed=1)[0]))
        assert status == 409 and "--learned none" in answer["error"]


def test_new_classes_appear_in_the_metrics(scene_service: Client) -> None:
    teach(scene_service, "sky", scene_pictures(TAUGHT, seed=1))
    learn(scene_service)
    named = answers(scene_service, scene_pictures(5, seed=5)).count("sky")
    assert named > 0 and scene_service.metric('answers_total{label="sky"}') == named
    assert scene_service.metric('learned_photos{label="sky"}') == TAUGHT
    scene_service.request("GET", "/taught/x")
    assert scene_service.metric('requests_total{path="/taught/{id}",status="404"}') == 1


def uncertain(service: Client) -> list[dict[str, Any]]:
    status, review = service.call("GET", "/review")
    jsonschema.validate(review, openapi_schema("Review"))
    assert status == 200 and service.status()["learning"]["review"] == review["version"]
    return list(review["photos"])


def test_uncertain_uploads_are_named_or_skipped(scene_service: Client) -> None:
    dark = class_pictures(2, seed=9)[0] // 6 + np.arange(0, 64, 32, dtype=np.uint8)[:, None, None, None]
    dark[1] = dark[1][::-1, ::-1]
    for pixels in (*dark, dark[0]):
        assert scene_service.classify(encode_png(pixels))[1]["known"] is False
    first, second = uncertain(scene_service)
    assert first["answer"] == "unknown" and first["reason"] == "unknown"
    status, headers, body = scene_service.request("GET", f"/review/{first['id']}")
    assert status == 200 and headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(body)).size == dark[0].shape[1::-1]
    status, answer = scene_service.call("POST", f"/review/{first['id']}?label=night")
    jsonschema.validate(answer, openapi_schema("AddedTaught"))
    assert status == 201 and answer["photos"] == 1
    assert scene_service.call("DELETE", f"/review/{second['id']}") == (204, None)
    assert uncertain(scene_service) == []
    for pixels in dark:  # a person decided about them
        scene_service.classify(encode_png(pixels))
    assert uncertain(scene_service) == []
    (photo,) = scene_service.call("GET", "/taught")[1]["photos"]
    assert photo["label"] == "night"


def test_another_program_teaches_pictures_of_the_review(
    scene_service: Client, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner, "POLL_SECONDS", 0.05)
    dark = class_pictures(12, seed=9)[0] // 6
    assert scene_service.classify(encode_png(dark[0]))[1]["known"] is False
    assert uncertain(scene_service)
    Classifier(model).teach("night", list(dark))
    wait_for(lambda: not scene_service.call("GET", "/review")[1]["photos"])
    assert uncertain(scene_service) == []


def test_uncertain_frames_are_collected_without_near_duplicates(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review_collector, "FRAME_INTERVAL", 0.0)
    black, red, is_red = jpeg(plain((0, 0, 0))), jpeg(plain(RED)), Event()
    with (
        mjpeg_server(lambda number: red if is_red.is_set() else black) as server,
        serve_in_thread(model, camera=server.address) as service,
    ):

        def pictures() -> list[tuple[str, str]]:
            photos = service.call("GET", "/review")[1]["photos"]
            return [(picture["source"], picture["reason"]) for picture in photos]

        for count in (1, 2):
            wait_for(lambda count=count: len(pictures()) == count)
            frame = service.live()["frame"]
            wait_for(lambda frame=frame: service.live()["frame"] > frame + 20)
            assert pictures() == [("camera", "unknown")] * count
            is_red.set()


def test_nothing_is_collected_while_learning_is_off(model: Path) -> None:
    dark = class_pictures(1, seed=9)[0] // 6
    with serve_in_thread(model, classifier_options={"learned": "none"}) as service:
        assert service.classify(encode_png(dark[0]))[1]["known"] is False
        assert service.status()["learning"]["review"] == "" and service.call("GET", "/review")[0] == 409
