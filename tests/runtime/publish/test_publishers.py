"""The flags of publishers in the commands, on a real broker; and their errors."""

from __future__ import annotations

import io
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime.camera import camera, pyav_backend, stream
from runtime.camera.crop import Crop
from runtime.camera.options import SaveOptions
from runtime.camera.stream import WAITING
from runtime.classify import main
from runtime.common.errors import UserError
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.publish.address import parse_mqtt_address
from runtime.publish.flags import PASSWORD_VARIABLE
from runtime.publish.publishers import PublishOptions, open_publishers
from runtime.server.answer_callbacks import open_answer_callbacks
from runtime.watch.folder_watcher import IS_MISSING
from tests.helpers import PATIENCE, start_python, wait_for
from tests.runtime.camera.helpers import BLUE, RED, jpeg, mjpeg_server, plain
from tests.runtime.publish.broker import PASSWORD, USER, Broker, Subscriber
from tests.serving import serve_in_process, serve_in_thread

Capture = pytest.CaptureFixture[str]


def options(broker: Broker) -> PublishOptions:
    return PublishOptions(parse_mqtt_address(f"mqtt://127.0.0.1:{broker.port}/cam"))


@pytest.fixture(autouse=True)
def no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)


def labels(found: Subscriber) -> Iterator[str]:
    for topic, payload in found.order:
        if topic == "cam/state":
            yield json.loads(payload)["label"]


@pytest.mark.slow
def test_watch_publishes_each_photo_with_its_picture(
    broker: Broker, colours: Path, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "red.jpg").write_bytes((photos / "red.jpg").read_bytes())
    arguments = ("--watch", folder, "--model", colours, "--mqtt", f"mqtt://127.0.0.1:{broker.port}/cam")
    with broker.subscriber() as found:
        process = start_python("-m", "runtime.classify", *arguments)
        try:
            state = json.loads(found.wait("cam/state"))
            assert (state["label"], state["source"]) == ("红", "red.jpg")
            assert Image.open(io.BytesIO(found.latest["cam/picture"])).format == "JPEG"
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
            found.wait("cam/availability", b"offline")
        finally:
            process.kill()
            process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("is_deleted", [False, True])
def test_watch_publishes_the_picture_that_it_classified(
    broker: Broker, colours: Path, photos: Path, tmp_path: Path, is_deleted: bool
) -> None:
    """The photo is replaced by another one, or deleted, while the broker is away."""
    folder, red = tmp_path / "in", (photos / "red.jpg").read_bytes()
    folder.mkdir()
    (folder / "photo.jpg").write_bytes(red)
    broker.kill()
    arguments = ("--watch", folder, "--model", colours, "--mqtt", f"mqtt://127.0.0.1:{broker.port}/cam")
    process = start_python("-m", "runtime.classify", *arguments)
    try:
        lines = iter(process.stdout or ())
        assert "photo.jpg" not in next(lines) and "红" in next(lines)
        (folder / "photo.jpg").unlink() if is_deleted else (folder / "photo.jpg").write_bytes(
            jpeg(plain(BLUE))
        )
        broker.start()
        with broker.subscriber() as found:
            found.wait("cam/state")
            pictures = [payload for topic, payload in found.order if topic == "cam/picture"]
            red_level, _, blue_level = np.asarray(Image.open(io.BytesIO(pictures[0]))).mean((0, 1))
            assert red_level > blue_level
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_service_publishes_its_camera(broker: Broker, knowing: Path) -> None:
    red, blue = jpeg(plain(RED)), jpeg(plain(BLUE))
    with (
        broker.subscriber() as found,
        mjpeg_server(lambda number: blue if "红" in labels(found) else red) as server,
        serve_in_thread(knowing, camera=server.address, publishing=options(broker)) as service,
    ):
        while "blau" not in labels(found):
            assert service.classify(red)[0] == 200  # an uploaded photo is not the camera's answer
            found.wait("cam/state")
        assert list(dict.fromkeys(labels(found))) == ["红", "blau"]
        diagnostics = json.loads(found.wait("cam/diagnostics"))
        assert diagnostics["model"] == "colours" and "红" in diagnostics["labels"]


def problem_of(found: Subscriber) -> str:
    return str(json.loads(found.latest.get("cam/diagnostics", b'{"problem": ""}'))["problem"])


@contextmanager
def service_with_camera(source: str, broker: Broker, model: Path) -> Iterator[None]:
    with serve_in_thread(model, camera=source, publishing=options(broker)):
        yield


@contextmanager
def camera_command(source: str, broker: Broker, model: Path) -> Iterator[None]:
    arguments = ("--camera", source, "--model", model, "--mqtt", f"mqtt://127.0.0.1:{broker.port}/cam")
    code = (
        "import sys; from runtime.camera import camera, pyav_backend; from runtime.classify import main; "
        f"camera.FRAME_TIMEOUT = pyav_backend.FRAME_TIMEOUT = {2 * PATIENCE}; sys.exit(main())"
    )
    process = start_python("-c", code, *arguments)
    try:
        yield
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("start", [service_with_camera, camera_command])
def test_until_the_first_answer_there_is_a_problem(
    start: Callable[[str, Broker, Path], AbstractContextManager[None]],
    broker: Broker,
    knowing: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the retained answer of an earlier process counts as current."""
    for module in (camera, pyav_backend):
        monkeypatch.setattr(module, "FRAME_TIMEOUT", 2 * PATIENCE)
    red, starts = jpeg(plain(RED)), threading.Event()

    def send(number: int) -> bytes:
        starts.wait(PATIENCE)
        return red

    with broker.subscriber() as found, mjpeg_server(send) as server, start(server.address, broker, knowing):
        found.wait("cam/availability", b"online")
        assert problem_of(found) == WAITING and "cam/state" not in found.latest
        starts.set()
        wait_for(lambda: problem_of(found) == "")
        assert "cam/state" in found.latest


STRIP = Crop(0.0, 0.0, 1.0, 0.02)  # 2 pixels high in the frames below


@pytest.mark.slow
def test_the_service_publishes_that_frames_are_refused(
    broker: Broker, knowing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "FRAME_TIMEOUT", 0.2)
    wide = jpeg(plain(RED, (100, 2000)))
    with (
        broker.subscriber() as found,
        mjpeg_server(lambda number: wide) as server,
        serve_in_thread(knowing, camera=server.address, publishing=options(broker), crop=STRIP),
    ):
        wait_for(lambda: "--crop" in problem_of(found))


@pytest.mark.slow
def test_the_camera_command_publishes_that_frames_are_refused(broker: Broker, colours: Path) -> None:
    code = (
        "import sys; from runtime.camera import stream; from runtime.classify import main; "
        "stream.FRAME_TIMEOUT = 0.2; sys.exit(main())"
    )
    wide, narrow = jpeg(plain(RED, (100, 2000))), jpeg(plain(RED, (100, 100)))
    refused = threading.Event()
    with (
        broker.subscriber() as found,
        mjpeg_server(lambda number: narrow if refused.is_set() else wide) as server,
    ):
        arguments = ("--camera", server.address, "--crop", "0,0,1,0.02", "--model", colours)
        process = start_python("-c", code, *arguments, "--mqtt", f"mqtt://127.0.0.1:{broker.port}/cam")
        try:
            wait_for(lambda: "--crop" in problem_of(found))
            refused.set()
            wait_for(lambda: problem_of(found) == "")
        finally:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_watch_publishes_that_its_folder_is_missing(broker: Broker, colours: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    arguments = ("--watch", folder, "--model", colours, "--mqtt", f"mqtt://127.0.0.1:{broker.port}/cam")
    with broker.subscriber() as found:
        process = start_python("-m", "runtime.classify", *arguments)
        try:
            found.wait("cam/availability", b"online")
            assert problem_of(found) == ""
            folder.rmdir()
            wait_for(lambda: problem_of(found) == f"{folder}: {IS_MISSING}")
            folder.mkdir()
            wait_for(lambda: problem_of(found) == "")
        finally:
            process.kill()
            process.communicate()


def test_a_service_without_a_camera_publishes_uploaded_photos(broker: Broker, knowing: Path) -> None:
    with (
        broker.subscriber() as found,
        serve_in_thread(knowing, publishing=options(broker)) as service,
    ):
        assert service.classify(jpeg(plain(BLUE)))[0] == 200
        assert json.loads(found.wait("cam/state"))["label"] == "blau"
        assert found.wait("cam/picture")[:2] == b"\xff\xd8"


@pytest.mark.slow
def test_the_service_takes_options_and_password_from_the_environment(
    protected: Broker, knowing: Path
) -> None:
    """As the installed service does: neither is an argument, nor printed."""
    variables = {
        "OPTIONS": f"--mqtt mqtt://{USER}@127.0.0.1:{protected.port}/cam",
        PASSWORD_VARIABLE: PASSWORD,
    }
    with (
        protected.subscriber(login=True) as found,
        serve_in_process("--model", knowing, "--options-from", "OPTIONS", **variables) as service,
    ):
        found.wait("cam/availability", b"online")
        arguments = Path(f"/proc/{service.process.pid}/cmdline").read_bytes()
        assert PASSWORD.encode() not in arguments and b"mqtt://" not in arguments
        service.process.send_signal(signal.SIGTERM)
        out, err = service.process.communicate(timeout=PATIENCE)
        assert "publishing below cam" in err and PASSWORD not in out + err
        found.wait("cam/availability", b"offline")


@pytest.mark.parametrize(
    ("content", "fact"),
    [(None, "no such file"), (b"", "empty"), (b"\nx", "empty"), (b"\xff\xfe", "UTF-8")],
)
def test_a_password_file_without_a_password_is_one_line(
    content: bytes | None, fact: str, tmp_path: Path
) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        open_with(PublishOptions(parse_mqtt_address("mqtt://me@pi"), path))
    assert fact in str(raised.value) and str(path) in str(raised.value)


@pytest.mark.parametrize("end", ["", "\n", "\r\nsecond line\n"])
def test_the_first_line_of_a_file_is_the_password(end: str, protected: Broker, tmp_path: Path) -> None:
    path, messages = tmp_path / "password", list[str]()
    path.write_bytes(f"{PASSWORD}{end}".encode())
    path.chmod(0o600)
    address = parse_mqtt_address(f"mqtt://{USER}@127.0.0.1:{protected.port}/cam")
    with open_publishers(PublishOptions(address, path), dict, messages.append, 1):
        wait_for(lambda: messages)
    assert "publishing below cam" in messages[0]


def open_with(given: PublishOptions) -> list[str]:
    messages = list[str]()
    with open_publishers(given, dict, messages.append, 1):
        return messages


def test_a_password_needs_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "geheim")
    with pytest.raises(UserError, match="user") as raised:
        open_with(PublishOptions(parse_mqtt_address("mqtt://pi")))
    assert "geheim" not in str(raised.value)


def test_a_password_file_that_others_can_read_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("geheim\n")
    path.chmod(0o644)
    assert "chmod 600" in open_with(PublishOptions(parse_mqtt_address("mqtt://me@127.0.0.1:9"), path))[0]


def test_a_file_that_is_no_certificate_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nonsense")
    for path in (tmp_path / "ca.pem", tmp_path / "missing.pem"):
        with pytest.raises(UserError, match="--mqtt-ca"):
            open_with(PublishOptions(parse_mqtt_address("mqtts://pi"), mqtt_ca=path))


def test_without_paho_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "paho"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if "site-packages" not in place])
    sys.path_importer_cache.clear()
    with pytest.raises(UserError, match=r"\[mqtt\]"):
        open_with(PublishOptions(parse_mqtt_address("mqtt://pi")))


@pytest.mark.parametrize(
    ("flags", "needed"),
    [
        (["a.jpg", "--mqtt", "mqtt://pi"], "--camera"),
        (["a.jpg", "--webhook", "http://pi"], "--camera"),
        (["--camera", "--mqtt-ca", "x"], "--mqtt"),
        (["--camera", "--mqtt", "mqtt://pi", "--mqtt-ca", "x"], "mqtts"),
        (["--camera", "--mqtt", "mqtt://me:geheim@pi"], "--mqtt-password-file"),
    ],
)
def test_a_flag_that_would_do_nothing_is_a_usage_error(
    flags: list[str], needed: str, capsys: Capture
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(flags)
    line = capsys.readouterr().err.splitlines()[-1]
    assert needed in line and "geheim" not in line


def test_an_answer_that_waits_for_the_broker_does_not_hold_the_upload(colours: Path, photos: Path) -> None:
    """A hundred uploads of 32 MB would take 3.2 GB while the broker is away."""
    away = PublishOptions(parse_mqtt_address("mqtt://127.0.0.1:9/cam"))
    data = (photos / "red.jpg").read_bytes() + bytes(1_000_000)
    model = ReloadingClassifier(colours)
    prediction = model.current()(data)
    with open_answer_callbacks(SaveOptions(), away, 0.0, model, None) as callbacks:
        holders = sys.getrefcount(data)
        callbacks.on_photo(prediction, data)
        assert sys.getrefcount(data) == holders
