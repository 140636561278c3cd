"""/none and /adapt: marked photos, the correction that is fitted to them, and when they are refused."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from threading import Event, Thread

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime.inference.model_reloader import ReloadingClassifier
from runtime.inference.taught_photos import TaughtPhoto, TaughtPhotos
from runtime.server.multipart import Upload
from runtime.server.none_tray import NoneTray
from runtime.server.scene_adapter import SceneAdapter
from tests.helpers import PATIENCE
from tests.runtime.inference.test_correction import sign
from tests.runtime.scene import class_pictures, encode_png, scene_pictures
from tests.serving import Client, multipart_form, openapi_schema, serve_in_thread

MARKED = 20
NO_PHOTO = "20250131T120000000000Z_0123456789abcdef.jpg"  # an id that no photo has


def mark(service: Client, pictures: NDArray[np.uint8]) -> list[str]:
    """Puts the pictures into the tray; returns their ids."""
    ids = []
    for pixels in pictures:
        status, answer = service.call("POST", "/none", encode_png(pixels))
        assert status == 201
        ids.append(answer["id"])
    return ids


def count_named(service: Client, pictures: NDArray[np.uint8]) -> int:
    return sum(service.classify(encode_png(pixels))[1]["known"] for pixels in pictures)


def test_adapting_takes_effect_for_the_next_picture_until_it_is_reset(
    scene_service: Client, model: Path
) -> None:
    scene, flowers = scene_pictures(30, seed=5), class_pictures(30, seed=6)[0]
    before = count_named(scene_service, scene), count_named(scene_service, flowers)
    assert before[0] > 20 and before[1] > 27
    mark(scene_service, scene_pictures(MARKED, seed=1))
    status, adapted = scene_service.call("POST", "/adapt")
    assert status == 200
    jsonschema.validate(adapted, openapi_schema("Adaptation"))
    assert adapted["photos"] == MARKED and adapted["named_before"] > adapted["named_after"]
    assert adapted["warning"] == "" and f"{MARKED} photos" in adapted["text"]
    assert (
        count_named(scene_service, scene) < before[0] / 4
        and count_named(scene_service, flowers) >= before[1] - 2
    )
    correction = scene_service.status()["correction"]
    assert correction["photos"] == MARKED and correction == adapted["correction"]
    assert model.with_name("quarters.correction.json").is_file()
    assert scene_service.call("DELETE", "/adapt") == (204, None)
    assert scene_service.status()["correction"] is None
    assert (count_named(scene_service, scene), count_named(scene_service, flowers)) == before
    assert not model.with_name("quarters.correction.json").exists()


def test_adapting_again_starts_from_the_model(scene_service: Client) -> None:
    mark(scene_service, scene_pictures(MARKED, seed=1))
    first, second = (scene_service.call("POST", "/adapt")[1] for _ in range(2))
    assert {**first, "correction": 0} == {**second, "correction": 0} and second["named_before"] > 0


def test_photos_are_listed_shown_and_removed(scene_service: Client, model: Path) -> None:
    pictures = scene_pictures(3, seed=1)
    ids = mark(scene_service, pictures)
    status, tray = scene_service.call("GET", "/none")
    jsonschema.validate(tray, openapi_schema("Tray"))
    assert status == 200 and [photo["id"] for photo in tray["photos"]] == ids
    assert tray["folder"] == str(model.with_name("quarters.none"))
    status, headers, body = scene_service.request("GET", f"/none/{ids[1]}")
    shown = np.asarray(Image.open(io.BytesIO(body))).astype(int)
    assert status == 200 and headers["content-type"] == "image/jpeg" and "private" in headers["cache-control"]
    assert np.abs(shown - pictures[1]).mean() < 12
    assert scene_service.status()["tray"] == {"unavailable": "", "photos": 3, "newest": ids[2]}
    assert scene_service.call("DELETE", f"/none/{ids[1]}") == (204, None)
    assert [photo["id"] for photo in scene_service.call("GET", "/none")[1]["photos"]] == [ids[0], ids[2]]
    assert scene_service.call("DELETE", f"/none/{ids[1]}")[0] == 404
    assert scene_service.call("DELETE", "/none") == (204, None)
    assert scene_service.status()["tray"]["photos"] == 0


def test_a_request_for_thousands_of_ranges_gets_the_whole_photo(scene_service: Client) -> None:
    """A part for each range would take a second of the event loop, and keep other clients waiting."""
    (photo,) = mark(scene_service, scene_pictures(1, seed=1))
    whole = scene_service.request("GET", f"/none/{photo}")[2]
    ranges = ",".join(f"{2 * start}-{2 * start}" for start in range(5000))
    status, _, body = scene_service.request("GET", f"/none/{photo}", headers={"Range": f"bytes={ranges}"})
    assert (status, body) == (200, whole)


def test_a_marked_photo_loses_its_metadata(scene_service: Client, model: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "secret camera"
    photo = io.BytesIO()
    Image.new("RGB", (2000, 1000), "yellow").save(photo, "JPEG", exif=exif, comment=b"secret")
    body, content_type = multipart_form("yellow.jpg", photo.getvalue())
    status, answer = scene_service.call("POST", "/none", body, **{"Content-Type": content_type})
    jsonschema.validate(answer, openapi_schema("AddedPhoto"))
    stored = model.with_name("quarters.none") / answer["id"]
    assert status == 201 and Image.open(stored).size == (960, 480) and b"secret" not in stored.read_bytes()


def test_few_photos_are_accepted_with_a_warning(scene_service: Client) -> None:
    mark(scene_service, scene_pictures(3, seed=1))
    status, adapted = scene_service.call("POST", "/adapt")
    assert status == 200 and "10" in adapted["warning"] and len(adapted["warning"].splitlines()) == 1


def test_an_empty_tray_is_refused_in_one_line(scene_service: Client) -> None:
    status, answer = scene_service.call("POST", "/adapt")
    assert status == 409 and "empty" in answer["error"] and len(answer["error"].splitlines()) == 1
    assert scene_service.status()["correction"] is None


def test_photos_that_show_a_class_are_left_out_and_named(scene_service: Client) -> None:
    flowers = class_pictures(30, seed=6)[0]
    named = count_named(scene_service, flowers)
    ids = mark(scene_service, class_pictures(4, seed=7)[0])
    mark(scene_service, scene_pictures(MARKED, seed=1))
    status, adapted = scene_service.call("POST", "/adapt")
    assert status == 200 and set(adapted["left_out"]) <= set(ids) and "show a class" in adapted["warning"]
    assert adapted["photos"] == MARKED + len(ids)
    assert count_named(scene_service, flowers) >= named - 2


def test_a_refused_correction_changes_nothing(scene_service: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    mark(scene_service, scene_pictures(MARKED, seed=1))
    monkeypatch.setattr("runtime.inference.adaptation.bias_to_add", lambda *_: -100.0)
    status, answer = scene_service.call("POST", "/adapt")
    assert status == 409 and "would reject" in answer["error"] and len(answer["error"].splitlines()) == 1
    assert scene_service.status()["correction"] is None


@pytest.mark.parametrize(
    ("body", "status", "fact"),
    [
        (b"no picture", 415, "picture"),
        (b"\xff\xd8\xff" + bytes(99), 400, "damaged"),
        (b"", 400, "empty"),
        (bytes(1_000_001), 413, "1 MB"),
    ],
)
def test_hostile_bodies_get_the_answers_of_classify(
    scene_service: Client, body: bytes, status: int, fact: str
) -> None:
    got, answer = scene_service.call("POST", "/none", body)
    assert got == status == scene_service.request("POST", "/classify", body)[0] and fact in answer["error"]
    assert scene_service.status()["tray"]["photos"] == 0 and scene_service.metric("held_bytes") == 0


@pytest.mark.parametrize("path", ["/none/..%2f..%2fquarters%2fmodel.json", "/none/model.json", "/none/%00"])
def test_only_photos_of_the_tray_are_served(scene_service: Client, path: str) -> None:
    assert scene_service.request("GET", path)[0] == 404 and scene_service.request("DELETE", path)[0] in (
        404,
        405,
    )


def test_metrics_count_the_routes_and_not_the_ids(scene_service: Client) -> None:
    mark(scene_service, scene_pictures(1, seed=1))
    scene_service.request("GET", "/none/x")
    scene_service.request("GET", "/none/y")
    assert scene_service.metric('requests_total{path="/none",status="201"}') == 1
    assert scene_service.metric('requests_total{path="/none/{id}",status="404"}') == 2


def test_other_sites_cannot_mark_or_adapt(scene_service: Client) -> None:
    for method, path in (("POST", "/none"), ("DELETE", "/none"), ("POST", "/adapt"), ("DELETE", "/adapt")):
        assert scene_service.call(method, path, b"", Origin="http://evil.example")[0] == 403


def test_the_token_is_required(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGG_EDGE_TOKEN", "a-token-of-the-test")
    with serve_in_thread(model, host="0.0.0.0") as service:
        for method in ("POST", "GET", "DELETE"):
            for path in ("/none", "/none/x", "/adapt"):
                assert service.call(method, path, b"")[0] == 401


def test_the_tray_and_the_correction_survive_a_restart(model: Path) -> None:
    with serve_in_thread(model) as service:
        ids = mark(service, scene_pictures(MARKED, seed=1))
        adapted = service.call("POST", "/adapt")[1]
    with serve_in_thread(model) as service:
        assert [photo["id"] for photo in service.call("GET", "/none")[1]["photos"]] == ids
        assert service.status()["correction"] == adapted["correction"]
        assert service.call("POST", "/adapt")[1]["named_before"] == adapted["named_before"]


def test_the_folder_of_corrections_holds_the_tray_too(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    monkeypatch.setenv("VGG_EDGE_CORRECTIONS", str(state))
    with serve_in_thread(model) as service:
        mark(service, scene_pictures(MARKED, seed=1))
        assert service.call("POST", "/adapt")[0] == 200
    assert {path.name for path in state.iterdir()} == {"quarters.correction.json", "quarters.none"}
    assert {path.name for path in model.parent.iterdir()} == {"quarters"}


def test_a_correction_that_cannot_be_written_is_explained(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    options = {"correction": str(tmp_path / "file" / "scene.correction.json")}
    with serve_in_thread(model, classifier_options=options) as service:
        status, answer = service.call("POST", "/none", encode_png(scene_pictures(1, seed=1)[0]))
        assert status == 500 and "--correction" in answer["error"] and str(tmp_path) in answer["error"]


def test_a_failed_write_of_the_correction_is_500(scene_service: Client, model: Path) -> None:
    mark(scene_service, scene_pictures(MARKED, seed=1))
    model.with_name("quarters.correction.json").mkdir()
    for method in ("POST", "DELETE"):
        status, answer = scene_service.call(method, "/adapt")
        assert status == 500 and "--correction FILE chooses another place" in answer["error"]


def test_a_named_file_that_is_no_correction_stays(model: Path, tmp_path: Path) -> None:
    named = tmp_path / "notes.json"
    named.write_text("{}")
    with serve_in_thread(model, classifier_options={"correction": str(named)}) as service:
        mark(service, scene_pictures(MARKED, seed=1))
        for method in ("POST", "DELETE"):
            status, answer = service.call(method, "/adapt")
            assert status == 409 and "is not a correction" in answer["error"]
    assert named.read_text() == "{}"


def test_a_model_of_contract_version_1_cannot_be_adapted(knowing: Path) -> None:
    with serve_in_thread(knowing) as service:
        for method, path in (("POST", "/none"), ("GET", "/none"), ("POST", "/adapt"), ("DELETE", "/adapt")):
            status, answer = service.call(method, path, b"")
            assert status == 409 and "version 1" in answer["error"] and len(answer["error"].splitlines()) == 1
        assert "version 1" in service.status()["tray"]["unavailable"]


def test_a_service_that_requires_signatures_asks_for_a_flag(model: Path, tmp_path: Path) -> None:
    key = sign(model, tmp_path)
    photo = encode_png(scene_pictures(1, seed=1)[0])
    with serve_in_thread(model, classifier_options={"key": key}) as service:
        status, answer = service.call("POST", "/none", photo)
        assert status == 409 and "--allow-correction" in answer["error"]
        assert "--allow-correction" in service.status()["tray"]["unavailable"]
    with serve_in_thread(model, classifier_options={"key": key, "allow_correction": True}) as service:
        assert service.call("POST", "/none", photo)[0] == 201 and service.call("POST", "/adapt")[0] == 200
        assert service.status()["correction"] is not None


def test_corrections_can_be_turned_off(model: Path) -> None:
    with serve_in_thread(model, classifier_options={"correction": "none"}) as service:
        status, answer = service.call("POST", "/none", encode_png(scene_pictures(1, seed=1)[0]))
        assert status == 409 and "--correction none" in answer["error"]


def test_the_outputs_in_memory_are_those_of_the_photos_in_the_tray(model: Path) -> None:
    """A client that marks photo after photo, of which the tray keeps the newest, takes no memory."""
    loaded = ReloadingClassifier(model)
    adapter = SceneAdapter(loaded)
    tray = adapter._tray = NoneTray(adapter.tray().folder, max_photos=3)
    for pixels in scene_pictures(6, seed=1):
        adapter.mark(loaded.current(), Upload("-", encode_png(pixels)))
    assert {id for _, id in adapter._outputs} == set(tray.ids()) and len(tray.ids()) == 3


def test_a_tray_that_cannot_be_emptied_is_an_error_line(
    scene_service: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    mark(scene_service, scene_pictures(1, seed=1))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        status, answer = scene_service.call("DELETE", "/none")
    assert status == 500 and "--correction FILE chooses another place" in answer["error"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/status"),
        ("GET", "/none"),
        ("DELETE", "/none"),
        ("GET", f"/none/{NO_PHOTO}"),
        ("DELETE", f"/none/{NO_PHOTO}"),
    ],
)
def test_a_slow_folder_holds_up_no_other_request(
    method: str, path: str, scene_service: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a memory card, while another client stores a picture."""
    waits, is_over = Event(), Event()
    waited = list[bool]()

    def wait(tray: NoneTray, *_: object) -> list[str]:
        waits.set()
        waited.append(is_over.wait(PATIENCE / 2))  # False if the other request waits for the folder
        return []

    for name in ("ids", "read", "remove"):
        monkeypatch.setattr(NoneTray, name, wait)
    slow = Thread(target=scene_service.request, args=(method, path))
    slow.start()
    assert waits.wait(PATIENCE)
    assert scene_service.get_status("/healthz") == 200
    is_over.set()
    slow.join()
    assert all(waited)


@pytest.mark.parametrize("address", ["/none", "/taught?label=sky"])
def test_a_photo_that_another_client_removes_is_not_found(
    address: str, scene_service: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is removed after it was found and before it is read."""
    status, answer = scene_service.call("POST", address, encode_png(scene_pictures(1, seed=1)[0]))
    assert status == 201
    folder = address.partition("?")[0]
    found_by_tray, found_by_store = NoneTray.path, TaughtPhotos.find

    def find_in_tray(tray: NoneTray, id: str) -> Path:
        path = found_by_tray(tray, id)
        path.unlink()
        return path

    def find_in_store(store: TaughtPhotos, id: str) -> TaughtPhoto:
        photo = found_by_store(store, id)
        photo.path.unlink()
        return photo

    monkeypatch.setattr(NoneTray, "path", find_in_tray)
    monkeypatch.setattr(TaughtPhotos, "find", find_in_store)
    status, answer = scene_service.call("GET", f"{folder}/{answer['id']}")
    assert status == 404 and "lists" in answer["error"]


def test_a_photo_that_another_client_removes_at_once_was_marked(
    scene_service: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = NoneTray.add

    def add_and_lose(tray: NoneTray, pixels: NDArray[np.uint8]) -> str:
        id = add(tray, pixels)
        tray.clear()
        return id

    monkeypatch.setattr(NoneTray, "add", add_and_lose)
    status, answer = scene_service.call("POST", "/none", encode_png(scene_pictures(1, seed=1)[0]))
    assert status == 201 and answer["photos"] == 0
