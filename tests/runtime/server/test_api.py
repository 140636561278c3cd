"""The HTTP API over real connections."""

from __future__ import annotations

import http.client
import json
import select
import socket
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event

import jsonschema
import pytest
from openapi_spec_validator import validate

from runtime.classify import main as classify_main
from runtime.inference.classifier import Classifier
from runtime.inference.engines import ENGINES, engine_name
from runtime.inference.prediction import Prediction
from runtime.server import request_body, run
from runtime.server.inference_queue import InferenceQueue
from runtime.server.multipart import Upload
from runtime.server.request_body import BodyBuffer
from runtime.server.routes import MAX_LOGIN_BYTES
from tests.helpers import PATIENCE, wait_for
from tests.serving import OPENAPI, Client, multipart_form, openapi_schema, serve_in_thread


def test_predictions_equal_those_of_the_classify_command(
    service: Client, knowing: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [photos / "red.jpg", photos / "green.jpg", photos / "blue.png"]
    assert classify_main([*map(str, paths), "--json", "--model", str(knowing)]) == 0
    for path, line in zip(paths, capsys.readouterr().out.splitlines(), strict=True):
        expected = json.loads(line)
        raw = service.classify(path.read_bytes())
        body, content_type = multipart_form(path.name, path.read_bytes())
        named = service.classify(body, Content_Type=content_type)
        for (status, answer), source in ((raw, "-"), (named, path.name)):
            assert status == 200 and set(answer["ms"]) == set(expected["ms"])
            assert answer | {"ms": 0} == expected | {"source": source, "ms": 0}


def test_answers_match_their_openapi_schemas(service: Client, red_jpeg: bytes) -> None:
    status, headers, text = service.request("GET", "/openapi.json")
    spec = json.loads(text)
    assert status == 200 and headers["content-type"] == "application/json"
    validate(spec)
    _, answer = service.classify(red_jpeg)
    jsonschema.validate(answer, openapi_schema("Prediction"))
    with pytest.raises(jsonschema.ValidationError):  # the schema can fail
        jsonschema.validate({**answer, "label": 1}, openapi_schema("Prediction"))
    jsonschema.validate(service.classify(b"no picture")[1], openapi_schema("Error"))
    jsonschema.validate(service.status(), openapi_schema("Status"))
    for path, methods in spec["paths"].items():
        for method in methods:
            status = service.request(method.upper(), path)[0]
            assert str(status) in methods[method]["responses"] and status != 405, (path, status)


def test_the_description_has_the_bodies_that_generated_clients_can_send() -> None:
    """openapi-python-client 0.29 writes a `classify` that does not import if it knows two kinds of body."""
    content = OPENAPI["paths"]["/classify"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "image/*"}  # it ignores image/*
    form = content["multipart/form-data"]["schema"]
    assert form["properties"]["file"] == {"type": "string", "format": "binary"}


@pytest.mark.parametrize(
    ("data", "content_type", "status", "fact"),
    [
        (b"no picture at all", "image/jpeg", 415, "picture"),
        (b"\xff\xd8\xff" + bytes(99), "image/jpeg", 400, "damaged"),
        (b"{}", "application/json", 415, "application/json"),
        (b"", "image/jpeg", 400, "empty"),
        (b"nonsense", "multipart/form-data; boundary=b", 400, "form"),
    ],
)
def test_a_body_without_a_picture_gets_a_one_line_error(
    service: Client, data: bytes, content_type: str, status: int, fact: str
) -> None:
    got, answer = service.classify(data, Content_Type=content_type)
    assert got == status and set(answer) == {"source", "error"}
    assert fact in answer["error"] and len(answer["error"].splitlines()) == 1


def test_a_length_of_thousands_of_digits_gets_a_one_line_error(service: Client, red_jpeg: bytes) -> None:
    status, answer = service.classify(red_jpeg, Content_Length=f"{len(red_jpeg):05000}")
    assert status == 400 and "Content-Length" in answer["error"]


def test_a_long_query_is_rejected(service: Client) -> None:
    for path in ("/healthz", "/classify", "/taught"):
        status, answer = service.call("GET", f"{path}?{'a&' * 10_000}")
        assert status == 414 and "too long" in answer["error"]
    assert service.get_status(f"/healthz?{'a' * 4000}") == 200


def test_a_picture_of_too_many_pixels_is_rejected(service: Client) -> None:
    header = struct.pack(">4sIIBBBBB", b"IHDR", 20_000, 20_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I17sI", 13, header, zlib.crc32(header))
    status, answer = service.classify(png + struct.pack(">I4sI", 0, b"IDAT", zlib.crc32(b"IDAT")))
    assert status == 400 and "400 megapixels" in answer["error"]


def test_a_body_over_the_limit_is_rejected_with_or_without_content_length(service: Client) -> None:
    limit = 1_000_000
    status, answer = service.classify(b"", Content_Length=str(limit + 1))
    assert status == 413 and "1 MB" in answer["error"]
    sent = 0
    with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as connection:
        connection.sendall(
            b"POST /classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"10000\r\n" + bytes(2**16) + b"\r\n"
        with suppress(ConnectionError):  # the service closes the connection before the body ends
            while not select.select([connection], [], [], 0)[0]:
                connection.sendall(chunk)
                sent += 2**16
        with suppress(ConnectionError):
            assert b" 413 " in connection.recv(100)
    assert limit <= sent < 20 * limit  # includes the sockets' buffers
    wait_for(lambda: service.metric("held_bytes") == 0)


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
def test_only_own_host_names_are_accepted(service: Client, host: str, status: int, path: str) -> None:
    assert service.get_status(path, Host=host) == status


def test_pages_of_other_sites_cannot_post(service: Client, red_jpeg: bytes) -> None:
    assert service.classify(red_jpeg, Origin="http://evil.example")[0] == 403
    assert service.classify(red_jpeg, Origin="null")[0] == 403
    assert service.classify(red_jpeg, Origin=service.url)[0] == 200
    assert service.classify(red_jpeg, **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert service.classify(red_jpeg, **{"Sec-Fetch-Site": "same-origin"})[0] == 200


def test_every_answer_carries_the_security_headers(service: Client) -> None:
    for path in ("/", "/page.js", "/status", "/nowhere"):
        headers = service.request("GET", path)[1]
        policy = headers["content-security-policy"]
        for directive in ("default-src", "form-action", "base-uri", "frame-ancestors"):
            assert f"{directive} 'self'" in policy or f"{directive} 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        for name in ("cross-origin-resource-policy", "cross-origin-opener-policy"):
            assert headers[name] == "same-origin"
        assert headers["permissions-policy"] == "camera=(), microphone=(), geolocation=()"
        assert "server" not in headers


@pytest.mark.parametrize("path", ["/status/", "/classify/", "//status"])
def test_another_spelling_of_an_address_is_not_found(service: Client, path: str) -> None:
    for method in ("GET", "POST"):
        status, answer = service.call(method, path)
        assert status == 404 and set(answer) == {"source", "error"}


def test_a_wrong_method_names_all_methods_of_the_address(service: Client) -> None:
    for path, allowed in (
        ("/none", "DELETE, GET, HEAD, POST"),
        ("/classify", "POST"),
        ("/none/1", "DELETE, GET, HEAD"),
    ):
        status, headers, _ = service.request("PATCH", path)
        assert status == 405 and headers["Allow"] == allowed


def test_a_request_that_the_end_of_the_service_cuts_off_gets_503(
    knowing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "SHUTDOWN_TIMEOUT", 0)
    with socket.socket() as connection:
        connection.settimeout(PATIENCE)
        with serve_in_thread(knowing) as stopping:
            connection.connect(("127.0.0.1", stopping.port))
            connection.sendall(b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
            wait_for(lambda: stopping.metric("receiving") == 1)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 503 and int(answer.headers["Retry-After"]) > 0
        assert "stopping" in json.loads(answer.read())["error"]


def test_a_small_limit_is_named_in_bytes(service: Client) -> None:
    status, answer = service.call("POST", "/login", bytes(MAX_LOGIN_BYTES + 1))
    assert status == 413 and f"{MAX_LOGIN_BYTES} bytes" in answer["error"]


def test_status_describes_model_and_latency(service: Client, red_jpeg: bytes) -> None:
    service.classify(red_jpeg)
    status = service.status()
    assert status["model"]["name"] == "colours" and status["model"]["labels"] == ["blau", "grün", "红"]
    assert engine_name(status["engine"]) in ENGINES and status["speed"]["photos"] >= 1
    # The small model of the tests takes less than 0.05 ms on a fast machine, which is 0.0 in the answer.
    assert 0 <= status["speed"]["infer_ms"] <= status["speed"]["p95_ms"] and status["camera"] is None
    assert status["speed"]["p95_ms"] > 0


def test_metrics_count_requests_by_status(service: Client, red_jpeg: bytes) -> None:
    before = service.classified(200), service.classified(415), service.metric("infer_seconds_count")
    service.classify(red_jpeg)
    service.classify(b"no picture")
    after = service.classified(200), service.classified(415), service.metric("infer_seconds_count")
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 1]


def test_stalled_uploads_take_no_slots(
    service: Client, red_jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six stalled uploads leave the four slots free, and get their predictions when they are complete."""
    monkeypatch.setattr(request_body, "BODY_TIMEOUT", 2 * PATIENCE)
    head = f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(red_jpeg)}\r\n\r\n".encode()
    uploads = [socket.create_connection(("127.0.0.1", service.port), PATIENCE) for _ in range(6)]
    for connection in uploads:
        connection.sendall(head + red_jpeg[:100])
    wait_for(lambda: service.metric("held_bytes") == 600)
    assert service.metric("receiving") == 6 and service.metric("in_flight") == 0
    assert service.classify(red_jpeg)[0] == 200
    uploads.pop().close()
    wait_for(lambda: service.metric("receiving") == 5)
    for connection in uploads:
        connection.sendall(red_jpeg[100:])
        assert b" 200 " in connection.recv(100)
        connection.close()
    wait_for(lambda: service.metric("held_bytes") == 0)
    assert service.metric("receiving") == 0


def test_stalled_uploads_give_their_memory_to_a_photo(
    service: Client, red_jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bodies that were sent but for their last byte fill the memory for bodies, 2 MB."""
    monkeypatch.setattr(request_body, "BODY_TIMEOUT", 2 * PATIENCE)  # the photo does not wait for their end
    size = 1_000_000
    head = f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode()
    uploads = [socket.create_connection(("127.0.0.1", service.port), PATIENCE) for _ in range(2)]
    for connection in uploads:
        connection.sendall(head + bytes(size - 1))
    wait_for(lambda: service.metric("held_bytes") == 2 * (size - 1))
    photo = red_jpeg + bytes(size // 2)
    wait_for(lambda: service.classify(photo)[0] == 200)
    uploads[0].sendall(b"1")  # one of both was rejected, the other still has its place
    uploads[1].sendall(b"1")
    answers = [connection.recv(100).split(b" ")[1] for connection in uploads]
    assert sorted(answers) == [b"415", b"503"]
    for connection in uploads:
        connection.close()


def test_concurrent_clients_each_get_their_own_prediction(
    service: Client, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen clients share four slots; every third upload is damaged and affects no other."""
    is_full, classify = Event(), InferenceQueue._classify

    def classify_when_full(queue: InferenceQueue, classifier: Classifier, upload: Upload) -> Prediction:
        assert is_full.wait(PATIENCE)
        return classify(queue, classifier, upload)

    monkeypatch.setattr(InferenceQueue, "_classify", classify_when_full)
    labels = {"red.jpg": "红", "green.jpg": "grün", "blue.png": "blau"}
    data = {name: (photos / name).read_bytes() for name in labels}

    def run_client(number: int) -> None:
        for turn in range(12):
            name = list(labels)[(number + turn) % 3]
            body, content_type = multipart_form(f"{number}-{turn}.jpg", data[name])
            while True:
                if turn % 3 == 0:
                    assert service.classify(b"\x89PNG\r\n\x1a\n" + bytes(50))[0] in (400, 503)
                status, answer = service.classify(body, Content_Type=content_type)
                if status != 503:
                    break
                is_full.set()
                time.sleep(0.05)
            assert (status, answer["label"], answer["source"]) == (200, labels[name], f"{number}-{turn}.jpg")

    with ThreadPoolExecutor(16) as clients:
        list(clients.map(run_client, range(16)))
    assert is_full.is_set() and service.metric("in_flight") == 0


@pytest.mark.parametrize("step", ["add", "take"])
def test_a_body_without_memory_for_it_is_answered_with_503(
    step: str, service: Client, red_jpeg: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under `ulimit -v`, when a part of a body, or its copy for the decoder, has no room."""

    def fail(buffer: BodyBuffer, *part: bytes) -> bytes:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(BodyBuffer, step, fail)
        status, headers, body = service.request("POST", "/classify", red_jpeg)
    assert status == 503 and headers["Retry-After"] == "1" and "memory" in json.loads(body)["error"]
    assert service.classify(red_jpeg)[0] == 200
