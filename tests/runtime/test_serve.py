"""The server, run as people run it, and spoken to over real connections."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate
from PIL import Image

from runtime.model_file.files import INDEX_NAME
from runtime.server.app import PAGE
from runtime.server.auth import MIN_TOKEN
from runtime.server.connection_limits import HEAD_SECONDS, MAX_PIPELINED
from runtime.server.inference_queue import BODY_SECONDS
from tests.helpers import ROOT, wait_for

MAX_BYTES = 1_000_000
TOKEN = "t0ken-" + "x" * MIN_TOKEN
RETRIED = 1  # the exit code after which deploy/vgg-edge.service is started again
SPEC = json.loads((PAGE / "openapi.json").read_text())
PIPELINED = b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
LOGIN = b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n"


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    port: int

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {}, encode_chunked=True)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def classify(self, data: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
        status, _, body = self.ask(
            "POST", "/classify", data, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        return status, json.loads(body)

    def metric(self, name: str) -> float:
        _, _, text = self.ask("GET", "/metrics")
        found = re.search(rf"^vgg_edge_{re.escape(name)} (\S+)$", text.decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def answered(self, status: int) -> float:
        return self.metric(f'requests_total{{path="/classify",status="{status}"}}')


def command(*arguments: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "runtime.serve", *arguments]


def environment(**changes: str) -> dict[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if name not in ("VGG_EDGE_TOKEN", "NOTIFY_SOCKET")
    }
    return {**kept, "PYTHONPATH": str(ROOT), **changes}


@contextmanager
def serving(*arguments: str | Path, **changes: str) -> Iterator[Server]:
    process = subprocess.Popen(
        command("--port", "0", *arguments),
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        assert " on " in process.stdout.readline(), process.stderr and process.stderr.read()
        yield Server(process, int(process.stdout.readline().split()[0].rstrip("/").rpartition(":")[2]))
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server(knowing: Path) -> Iterator[Server]:
    with serving("--model", knowing, "--queue", "4", "--max-upload", "1") as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def silent(server: Server) -> Iterator[list[socket.socket]]:
    """One that says nothing, one that stops in a head, one before its body, one that never reads."""
    opened = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4)]
    opened[1].sendall(b"GET / HTTP/1.1\r\nHost: loc")
    opened[2].sendall(LOGIN)
    for _ in range(40):  # more answers than the sockets' buffers take, few at a time
        opened[3].sendall(PIPELINED * (MAX_PIPELINED // 5))
        time.sleep(0.03)
    yield opened
    for connection in opened:
        connection.close()


@pytest.fixture(scope="module")
def red(photos: Path) -> bytes:
    return (photos / "red.jpg").read_bytes()


def form(name: str, data: bytes) -> tuple[bytes, str]:
    head = f'--b\r\nContent-Disposition: form-data; name="photo"; filename="{name}"\r\n\r\n'
    return head.encode() + data + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"


def test_the_answers_are_the_commands(server: Server, knowing: Path, photos: Path) -> None:
    paths = [photos / "red.jpg", photos / "green.jpg", photos / "blue.png"]
    done = subprocess.run(
        [sys.executable, "-m", "runtime.classify", *paths, "--json", "--model", knowing],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    for path, line in zip(paths, done.stdout.splitlines(), strict=True):
        expected = json.loads(line)
        bare = server.classify(path.read_bytes())
        data, kind = form(path.name, path.read_bytes())
        named = server.classify(data, Content_Type=kind)
        for (status, answer), source in ((bare, "-"), (named, path.name)):
            assert status == 200 and set(answer["ms"]) == set(expected["ms"])
            assert answer | {"ms": 0} == expected | {"source": source, "ms": 0}


def test_openapi_describes_what_is_sent(server: Server, red: bytes) -> None:
    status, headers, text = server.ask("GET", "/openapi.json")
    spec = json.loads(text)
    assert status == 200 and headers["content-type"] == "application/json" and spec == SPEC
    validate(spec)
    _, answer = server.classify(red)
    jsonschema.validate(answer, schema("Prediction"))
    with pytest.raises(jsonschema.ValidationError):  # the schema can fail
        jsonschema.validate({**answer, "label": 1}, schema("Prediction"))
    jsonschema.validate(server.classify(b"no picture")[1], schema("Error"))
    jsonschema.validate(json.loads(server.ask("GET", "/status")[2]), schema("Status"))
    for path, methods in spec["paths"].items():
        for method in methods:
            status = server.ask(method.upper(), path)[0]
            assert str(status) in methods[method]["responses"] and status != 405, (path, status)


def schema(name: str) -> Any:
    """One of the document's, its references resolved within it."""
    return {"$ref": f"#/components/schemas/{name}", "components": SPEC["components"]}


@pytest.mark.parametrize(
    ("data", "kind", "status", "reason"),
    [
        (b"no picture at all", "image/jpeg", 415, "is not a picture of a kind that is known here"),
        (b"\xff\xd8\xff" + bytes(99), "image/jpeg", 400, "is damaged"),
        (b"{}", "application/json", 415, "application/json"),
        (b"", "image/jpeg", 400, "is empty"),
        (b"nonsense", "multipart/form-data; boundary=b", 400, "is no form"),
    ],
)
def test_what_is_no_photo(server: Server, data: bytes, kind: str, status: int, reason: str) -> None:
    got, answer = server.classify(data, Content_Type=kind)
    assert got == status and set(answer) == {"source", "error"} and reason in answer["error"]


def test_a_picture_of_too_many_pixels(server: Server) -> None:
    header = struct.pack(">4sIIBBBBB", b"IHDR", 20_000, 20_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I17sI", 13, header, zlib.crc32(header))
    status, answer = server.classify(png + struct.pack(">I4sI", 0, b"IDAT", zlib.crc32(b"IDAT")))
    assert status == 400 and "400 megapixels" in answer["error"]


def test_a_body_is_bounded_told_or_not(server: Server) -> None:
    status, answer = server.classify(b"", Content_Length=str(MAX_BYTES + 1))
    assert status == 413 and "is over 1 MB" in answer["error"]
    sent = 0
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        connection.sendall(
            b"POST /classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"10000\r\n" + bytes(2**16) + b"\r\n"
        with suppress(ConnectionError):  # it hangs up on what goes on and on
            while not select.select([connection], [], [], 0)[0]:
                connection.sendall(chunk)
                sent += 2**16
        with suppress(ConnectionError):
            assert b" 413 " in connection.recv(100)
    assert MAX_BYTES <= sent < 20 * MAX_BYTES  # what lies in the sockets' buffers included
    assert server.metric("held_bytes") == 0


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 421),
        ("evil.example:8080", 421),
        ("localhost.evil.example", 421),
        ("", 421),
        ("[", 421),
        ("localhost", 200),
        ("LOCALHOST.:99", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
    ],
)
@pytest.mark.parametrize("path", ["/", "/status", "/healthz", "/metrics"])
def test_other_host_names_are_refused(server: Server, host: str, status: int, path: str) -> None:
    assert server.ask("GET", path, headers={"Host": host})[0] == status


def test_other_sites_cannot_post(server: Server, red: bytes) -> None:
    assert server.classify(red, Origin="http://evil.example")[0] == 403
    assert server.classify(red, Origin="null")[0] == 403
    assert server.classify(red, Origin=f"http://127.0.0.1:{server.port}")[0] == 200


def test_every_answer_carries_the_policy(server: Server) -> None:
    for path in ("/", "/page.js", "/status", "/nowhere"):
        headers = server.ask("GET", path)[1]
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers


def test_status_tells_the_model_and_the_speed(server: Server, red: bytes) -> None:
    server.classify(red)
    status = json.loads(server.ask("GET", "/status")[2])
    assert status["model"]["name"] == "colours" and status["model"]["labels"] == ["blau", "grün", "红"]
    assert status["engine"].startswith("litert ") and status["speed"]["photos"] >= 1
    assert 0 < status["speed"]["infer_ms"] <= status["speed"]["p95_ms"] and status["camera"] is None


def test_status_of_a_model_whose_index_is_odd(knowing: Path, tmp_path: Path) -> None:
    """Names of engines that are empty or no UTF-8, figures beyond any float, a file's name of other bytes."""
    folder = shutil.copytree(knowing, tmp_path / "odd")
    index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
    figures = {"": {"n": 1}, "litert \ud800": {"n": 7, "top1": 10**400, "max_dp": True, "mean_dp": 0.5}}
    for file in index["files"]:
        file["metrics"]["parity"] = figures
    (folder / INDEX_NAME).write_text(json.dumps(index))
    (model,) = folder.glob("*.tflite")
    model = model.rename(folder / "caf\udce9.tflite")
    with serving("--model", model) as server:
        status, _, body = server.ask("GET", "/status")
        assert status == 200 and server.ask("GET", "/metrics")[0] == 200
    card = json.loads(body)["model"]
    assert card["file"] == model.name
    assert card["parity"] == {"engine": "litert \ud800", "n": 7, "mean_dp": 0.5}


def test_metrics_count(server: Server, red: bytes) -> None:
    before = server.answered(200), server.answered(415), server.metric("infer_seconds_count")
    server.classify(red)
    server.classify(b"no picture")
    after = server.answered(200), server.answered(415), server.metric("infer_seconds_count")
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 1]


def test_a_full_queue_says_when_to_come_again(server: Server, red: bytes) -> None:
    """Four slow uploads take the four places; they are answered when they are complete."""
    head = f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(red)}\r\n\r\n".encode()
    slow = [socket.create_connection(("127.0.0.1", server.port), 20) for _ in range(4)]
    for connection in slow:
        connection.sendall(head + red[:100])
    wait_for(lambda: server.metric("in_flight") == 4)
    status, headers, body = server.ask("POST", "/classify", red)
    assert status == 503 and int(headers["retry-after"]) >= 1 and "try again in" in json.loads(body)["error"]
    slow.pop().close()  # one gives up: its place is free again
    wait_for(lambda: server.metric("in_flight") == 3)
    assert server.classify(red)[0] == 200
    for connection in slow:
        connection.sendall(red[100:])
        assert b" 200 " in connection.recv(100)
        connection.close()
    wait_for(lambda: server.metric("in_flight") == 0)
    assert server.metric("held_bytes") == 0


def test_many_at_once_each_get_their_own_answer(server: Server, photos: Path) -> None:
    """Sixteen clients and four places; every third upload is bad and harms no other."""
    labels = {"red.jpg": "红", "green.jpg": "grün", "blue.png": "blau"}
    data = {name: (photos / name).read_bytes() for name in labels}
    waited = []

    def client(number: int) -> None:
        for turn in range(12):
            name = list(labels)[(number + turn) % 3]
            body, kind = form(f"{number}-{turn}.jpg", data[name])
            while True:
                if turn % 3 == 0:
                    assert server.classify(b"\x89PNG\r\n\x1a\n" + bytes(50))[0] in (400, 503)
                status, answer = server.classify(body, Content_Type=kind)
                if status != 503:
                    break
                waited.append(number)
                time.sleep(0.05)
            assert (status, answer["label"], answer["source"]) == (200, labels[name], f"{number}-{turn}.jpg")

    with ThreadPoolExecutor(16) as clients:
        list(clients.map(client, range(16)))
    assert waited and server.metric("in_flight") == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_beyond_this_machine_only_with_a_token(host: str, knowing: Path) -> None:
    done = subprocess.run(
        command("--host", host, "--port", "0", "--model", knowing),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: --host {host}: ") and "--token-file" in line


def test_with_a_token(knowing: Path, red: bytes, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    with serving("--model", knowing, "--host", "0.0.0.0", "--token-file", tmp_path / "token") as server:
        for path in ("/status", "/metrics", "/live.jpg"):
            status, headers, _ = server.ask("GET", path)
            assert status == 401 and headers["www-authenticate"] == "Bearer"
        for path in ("/", "/page.js", "/page.css", "/healthz"):
            assert server.ask("GET", path)[0] == 200
        assert server.classify(red)[0] == 401
        assert server.classify(red, Authorization=f"Bearer {TOKEN[:-1]}")[0] == 401
        assert server.classify(red, Authorization=f"Bearer {TOKEN}")[0] == 200
        assert server.ask("POST", "/login", json.dumps({"token": TOKEN[:-1]}))[0] == 401
        status, headers, _ = server.ask("POST", "/login", json.dumps({"token": TOKEN}))
        cookie = headers["set-cookie"]
        assert status == 204 and "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie
        name = cookie.partition("=")[0]
        assert server.ask("GET", "/status", headers={"Cookie": cookie.partition(";")[0]})[0] == 200
        assert server.ask("GET", "/status", headers={"Cookie": f"{name}=wrong"})[0] == 401
        server.process.terminate()
        out, err = server.process.communicate(timeout=10)
        assert TOKEN not in out + err  # no log keeps it


def test_who_leaves_during_login_leaves_no_trace(knowing: Path) -> None:
    with serving("--model", knowing, VGG_EDGE_TOKEN=TOKEN) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as leaving:
            leaving.sendall(LOGIN)
        left = 'vgg_edge_requests_total{path="/login",status="499"} 1.0'
        key = {"Authorization": f"Bearer {TOKEN}"}
        wait_for(lambda: left in server.ask("GET", "/metrics", headers=key)[2].decode())
        server.process.terminate()
        assert server.process.communicate(timeout=10)[1] == ""


def has_ipv6() -> bool:
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return socket.has_dualstack_ipv6()
    return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_all_addresses_of_both_kinds(knowing: Path) -> None:
    with serving("--model", knowing, "--host", "::", VGG_EDGE_TOKEN=TOKEN) as server:
        assert server.ask("GET", "/healthz")[0] == 200  # by IPv4
        with socket.create_connection(("::1", server.port), 20) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: [::1]\r\n\r\n")
            assert b" 200 " in connection.recv(100)


@pytest.mark.parametrize("port", ["65536", "-1", "80a"])
def test_what_is_no_port(port: str) -> None:
    done = subprocess.run(
        command("--port", port), env=environment(), capture_output=True, text=True, timeout=60
    )
    *_, line = done.stderr.splitlines()
    assert done.returncode == 2 and line.endswith(f"{port} is no port: give one from 0 to 65535")


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--model", "nowhere"], 2, "nowhere: no such file or folder"),
        (["--host", "no.such.host.invalid"], RETRIED, "--host no.such.host.invalid: "),
        (["--host", "192.0.2.1"], 2, "--token-file"),
        (["--host", "192.0.2.1", "--token-file", "given"], RETRIED, "assign requested address: --host takes"),
        (["--token-file", "token"], 2, "token: no such file"),
    ],
)
def test_what_cannot_start_says_why(arguments: list[str], code: int, reason: str, tmp_path: Path) -> None:
    (tmp_path / "given").write_text(TOKEN)
    done = subprocess.run(
        command("--port", "0", *arguments),
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and reason in line


def test_a_port_in_use(server: Server, knowing: Path) -> None:
    done = subprocess.run(
        command("--port", str(server.port), "--model", knowing),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == RETRIED and "in use: --port takes another" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_systemd_tries_again_what_may_be_mended() -> None:
    unit = (ROOT / "deploy" / "vgg-edge.service").read_text()
    assert "\nRestart=on-failure\n" in unit and "\nRestartPreventExitStatus=2\n" in unit


def test_short_tokens_are_refused(knowing: Path) -> None:
    done = subprocess.run(
        command("--model", knowing),
        env=environment(VGG_EDGE_TOKEN="hunter2"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and "VGG_EDGE_TOKEN" in done.stderr and "hunter2" not in done.stderr


def test_sigterm_ends_it_cleanly_and_systemd_hears(knowing: Path, red: bytes, tmp_path: Path) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(address))
        systemd.settimeout(20)
        with serving("--model", knowing, NOTIFY_SOCKET=str(address), WATCHDOG_USEC="200000") as server:
            heard = [systemd.recv(100), systemd.recv(100), systemd.recv(100)]
            assert heard == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
            assert server.classify(red)[0] == 200
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(5) == 0
            with suppress(TimeoutError):
                systemd.settimeout(0.5)
                while (word := systemd.recv(100)) == b"WATCHDOG=1":
                    pass
            assert word == b"STOPPING=1"


def test_it_ends_without_a_word_in_the_middle_of_requests(knowing: Path, red: bytes) -> None:
    """A body that still comes, a frame that is waited for, and what the libraries would have remarked."""
    broken = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nbegun"
    waiting = b"GET /live.jpg HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with serving("--model", knowing, "--camera", "rtsp://127.0.0.1:9/x") as server, ExitStack() as stack:
        data, kind = form("a.jpg", red)
        assert server.classify(data.replace(b"--b\r\n", b"-!b\r\n"), Content_Type=kind)[0] == 400
        for sent in (b"GET nonsense\r\n\r\n", broken, waiting):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            connection.sendall(sent)
        wait_for(lambda: server.metric("in_flight") == 1)
        server.process.terminate()
        _, err = server.process.communicate(timeout=15)
        assert server.process.returncode == 0
        assert [line for line in err.splitlines() if "nothing answers" not in line] == []


def test_ctrl_c(knowing: Path) -> None:
    with serving("--model", knowing) as server:
        assert server.ask("GET", "/healthz")[0] == 200
        server.process.send_signal(signal.SIGINT)
        _, err = server.process.communicate(timeout=5)
        assert server.process.returncode == 130 and err == ""


def test_the_camera_is_shown(knowing: Path, make_clip: Callable[..., Path], tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", [("red", 40), ("blue", 60)])
    with serving("--model", knowing, "--camera", clip) as server:
        slow = socket.create_connection(("127.0.0.1", server.port))  # who never reads holds nobody up
        slow.sendall(b"GET /live.jpg HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
        labels, shown, until = [], 0, time.monotonic() + 20
        while "blau" not in labels and time.monotonic() < until:
            status, headers, body = server.ask("GET", f"/live.jpg?after={shown}")
            assert status == 200
            sight = json.loads(headers["sight"])
            assert sight["frame"] > shown and set(sight) >= {
                "source",
                "label",
                "top",
                "age_ms",
                "fps",
                "time",
            }
            shown = sight["frame"]
            labels.append(sight["label"])
            red, _, blue = Image.open(io.BytesIO(body)).resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
            assert (red > 200, blue > 200) in ((True, False), (False, True))
        assert set(labels) == {"红", "blau"} and labels[0] == "红"
        history = json.loads(server.ask("GET", "/status")[2])["history"]
        assert [seen["label"] for seen in history] == ["红", "blau"]
        assert server.metric("camera_up") == 1
        wait_for(lambda: "has ended" in json.loads(server.ask("GET", "/status")[2])["camera"]["problem"])
        assert server.ask("GET", "/healthz")[0] == 200
        slow.close()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(5) == 0


def test_a_camera_that_is_away_is_told_and_photos_go_on(knowing: Path, red: bytes) -> None:
    with serving("--model", knowing, "--camera", "rtsp://me:hunter2@127.0.0.1:9/x") as server:
        wait_for(lambda: json.loads(server.ask("GET", "/status")[2])["camera"]["problem"] != "")
        camera = json.loads(server.ask("GET", "/status")[2])["camera"]
        assert "hunter2" not in json.dumps(camera) and "nothing answers" in camera["problem"]
        assert server.classify(red)[0] == 200 and server.ask("GET", "/healthz")[0] == 200
        server.process.terminate()
        out, err = server.process.communicate(timeout=10)
        assert "hunter2" not in out + err and "nothing answers" in err


def hung_up(connection: socket.socket, seconds: float) -> bool:
    """Whether the server does so in this time. Nothing is read."""
    poll = select.poll()
    poll.register(connection, select.POLLHUP)
    return bool(poll.poll(1000 * seconds))


def test_too_many_requests_without_waiting_for_answers(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        with suppress(ConnectionError):
            connection.sendall(PIPELINED * 100 * MAX_PIPELINED)
        assert hung_up(connection, 3)


def test_silent_connections_are_closed(server: Server, silent: list[socket.socket]) -> None:
    *idle, login, unread = silent  # opened when the server was, for this takes a while
    for connection in idle:
        connection.settimeout(HEAD_SECONDS + 5)
        with suppress(ConnectionError):
            assert connection.recv(100) == b""
    assert hung_up(unread, HEAD_SECONDS + 5)
    login.settimeout(BODY_SECONDS + 5)
    answer = b""
    while part := login.recv(10_000):
        answer += part
    assert answer.startswith(b"HTTP/1.1 408 ") and b"came too slowly" in answer
