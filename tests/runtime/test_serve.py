"""The command: its flags, exit codes and signals. The HTTP API is tested in tests/runtime/server."""

from __future__ import annotations

import errno
import http.client
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread

import pytest

from benchmarks.serve_attacks import GOOD_ADDRESS, attacking
from runtime.serve import main
from runtime.server.address import AddressError, listen
from runtime.server.token_file import MIN_TOKEN_LENGTH
from tests.helpers import PATIENCE, RELEASED, ROOT, wait_for
from tests.runtime.preprocess.hostile import GOOD
from tests.runtime.scene import encode_png, scene_pictures
from tests.serving import OWN_VARIABLES, TOKEN, multipart_form, serve_in_process, serve_in_thread

ADDRESS_SPACE = 512 * 2**20  # the service maps 230 MiB before the first attack, and about 400 in one
ADDRESS_UNAVAILABLE, USAGE = 1, 2  # exit codes


@pytest.fixture(autouse=True)
def no_service_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OWN_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def error_of(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The single line of the error that the command ends with, and this exit code."""
    assert main(arguments) == code
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ") and printed.out == ""
    return line


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_an_address_beyond_this_machine_requires_a_token(
    host: str, knowing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_of(["--host", host, "--port", "0", "--model", str(knowing)], USAGE, capsys)
    assert f"--host {host}" in line and "--token-file" in line and "--make-token" in line


@pytest.mark.parametrize(
    ("arguments", "code", "facts"),
    [
        (["--model", "nowhere"], USAGE, ["nowhere"]),
        (["--host", "no.such.host.invalid"], ADDRESS_UNAVAILABLE, ["--host no.such.host.invalid"]),
        (["--host", "192.0.2.1", "--token-file", "given"], ADDRESS_UNAVAILABLE, ["192.0.2.1", "--host"]),
        (["--token-file", "token"], USAGE, ["token", "--make-token"]),
    ],
)
def test_a_failed_start_is_explained_in_one_line(
    arguments: list[str],
    code: int,
    facts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "given").write_text(TOKEN)
    monkeypatch.chdir(tmp_path)
    line = error_of(["--port", "0", *arguments], code, capsys)
    assert all(fact in line for fact in facts)


def test_a_port_in_use_is_exit_code_1(knowing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = error_of(["--port", port, "--model", str(knowing)], ADDRESS_UNAVAILABLE, capsys)
    assert port in line and "--port" in line


@pytest.mark.parametrize(("address", "fact"), [("fe80::1", "--host fe80::1%eth0"), ("240.0.0.1", "--host")])
def test_an_address_that_the_system_refuses_is_no_matter_of_the_port(
    address: str, fact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(AddressError, match=fact) as failed:
        listen(socket.AF_INET6, (address, 8080))
    assert "--port" not in str(failed.value)


def test_systemd_restarts_the_service_after_exit_code_1_only() -> None:
    unit = (ROOT / "deploy" / "vgg-edge.service").read_text()
    assert "\nRestart=on-failure\n" in unit and f"\nRestartPreventExitStatus={USAGE}\n" in unit


def test_a_short_token_is_refused_and_not_printed(
    knowing: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VGG_EDGE_TOKEN", "hunter2")
    line = error_of(["--model", str(knowing)], USAGE, capsys)
    assert "VGG_EDGE_TOKEN" in line and "hunter2" not in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "65536"],
        ["--port", "-1"],
        ["--port", "80a"],
        ["--max-upload", "0"],
        ["--max-upload", "1001"],
        ["--max-upload", "nan"],
        ["--every", "-1"],
        ["--every", "soon"],
        ["--queue", "0"],
        ["--allow-host", "http://pi.example.org"],
    ],
)
def test_a_value_out_of_range_is_a_usage_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--model", "nowhere"])  # never serves, even if the value is accepted
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == USAGE and arguments[0] in last_line


def test_options_from_a_variable_are_added_to_the_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The service's options may hold the password of a camera, which arguments show to every user."""
    monkeypatch.setenv("OPTIONS", f"--host 127.0.0.1 --top 2 --model '{tmp_path / 'no model'}'")
    line = error_of(["--options-from", "OPTIONS"], USAGE, capsys)
    assert str(tmp_path / "no model") in line


@pytest.mark.parametrize("value", [None, "--port 'x", "--port 0 --camera rtsp://me:secret@camera --what"])
def test_a_variable_without_valid_options_is_a_usage_error(
    value: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPTIONS", raising=False)
    if value is not None:
        monkeypatch.setenv("OPTIONS", value)
    with pytest.raises(SystemExit, match="2"):
        main(["--options-from", "OPTIONS"])
    error = capsys.readouterr().err
    assert "error: " in error.splitlines()[-1] and "secret" not in error


def test_make_token_writes_a_private_file_and_exits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "token"
    assert main(["--make-token", str(path)]) == 0
    token = path.read_text().strip()
    printed = capsys.readouterr().out
    assert path.stat().st_mode & 0o777 == 0o600 and len(token) >= MIN_TOKEN_LENGTH
    assert f"--token-file {path}" in printed and token not in printed
    error_of(["--make-token", str(path)], USAGE, capsys)


def test_the_name_of_a_token_file_is_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--make-token", str(tmp_path / "a\x1b[2J")]) == 0
    assert "a\\x1b[2J" in capsys.readouterr().out


def test_the_start_names_the_model_and_logs_hold_no_token(knowing: Path, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(f"{TOKEN}\n")
    token_file.chmod(0o644)
    with serve_in_process("--model", knowing, "--token-file", token_file) as service:
        assert "colours_float32.tflite" in service.start_line and "litert" in service.start_line
        assert service.get_status("/status", Authorization=f"Bearer {TOKEN}") == 200
        service.process.terminate()
        out, err = service.process.communicate(timeout=PATIENCE)
        assert TOKEN not in out + err
        assert f"chmod 600 {token_file}" in err


def has_ipv6() -> bool:
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return socket.has_dualstack_ipv6()
    return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_the_ipv6_wildcard_accepts_ipv4_too(knowing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGG_EDGE_TOKEN", TOKEN)
    with serve_in_thread(knowing, host="::") as service:
        assert service.get_status("/healthz") == 200  # by IPv4
        with socket.create_connection(("::1", service.port), PATIENCE) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: [::1]\r\n\r\n")
            assert b" 200 " in connection.recv(100)


def test_sigterm_is_exit_code_0_and_systemd_is_notified(knowing: Path, photos: Path, tmp_path: Path) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(address))
        received = list[bytes]()

        def receive() -> None:  # as they come: a full socket takes no further message
            while not received or received[-1] != b"STOPPING=1":
                received.append(systemd.recv(100))

        receiver = Thread(target=receive, daemon=True)
        receiver.start()
        variables = {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": "200000"}
        with serve_in_process("--model", knowing, **variables) as service:
            wait_for(lambda: received[:3] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"])
            assert service.classify((photos / "red.jpg").read_bytes())[0] == 200
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(PATIENCE) == 0
            receiver.join(PATIENCE)
            assert received[-1] == b"STOPPING=1" and set(received[3:-1]) <= {b"WATCHDOG=1"}


@pytest.mark.slow  # waits for SHUTDOWN_TIMEOUT
def test_sigterm_during_requests_prints_nothing(knowing: Path, photos: Path) -> None:
    """Unfinished uploads, waiting viewers, malformed requests and clients that left are not logged."""
    unfinished = b"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nbegun"
    login = b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n"
    viewer = b"GET /live.jpg HTTP/1.1\r\nHost: localhost\r\n\r\n"
    arguments = ("--model", knowing, "--camera", "rtsp://127.0.0.1:9/x")
    with serve_in_process(*arguments) as service, ExitStack() as stack:
        data, content_type = multipart_form("red.jpg", (photos / "red.jpg").read_bytes())
        malformed = data.replace(b"--b\r\n", b"-!b\r\n")
        assert service.classify(malformed, Content_Type=content_type)[0] == 400
        with socket.create_connection(("127.0.0.1", service.port)) as leaving:
            leaving.sendall(login)
        wait_for(lambda: service.metric('requests_total{path="/login",status="499"}') == 1)
        for sent in (b"GET nonsense\r\n\r\n", unfinished, viewer):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
            connection.sendall(sent)
        wait_for(lambda: service.metric("receiving") == 1)
        service.process.terminate()
        _, err = service.process.communicate(timeout=PATIENCE)
        assert service.process.returncode == 0
        assert [line for line in err.splitlines() if "127.0.0.1:9" not in line] == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_a_log_that_cannot_be_written_does_not_stop_the_service(model: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full, serve_in_process("--model", model, stderr=full) as service:
        picture = encode_png(scene_pictures(1, seed=1)[0])
        assert service.call("POST", "/taught?label=sky", picture)[0] == 201
        assert service.call("POST", "/learn")[0] == 200
        service.process.terminate()
        assert service.process.wait(PATIENCE) == 0


def test_a_correction_that_is_missing_is_a_warning_at_the_start(knowing: Path, tmp_path: Path) -> None:
    """The engine's own lines are hidden at the start, but not this one."""
    with serve_in_process("--model", knowing, "--correction", tmp_path / "missing.json") as service:
        assert service.get_status("/healthz") == 200  # uvicorn warns when a signal stops it at its start
        service.process.terminate()
        _, err = service.process.communicate(timeout=PATIENCE)
    (line,) = err.splitlines()
    assert line.startswith("warning: ") and "missing.json" in line


def test_ctrl_c_is_exit_code_130_and_prints_nothing(knowing: Path) -> None:
    with serve_in_process("--model", knowing) as service:
        assert service.get_status("/healthz") == 200
        service.process.send_signal(signal.SIGINT)
        _, err = service.process.communicate(timeout=PATIENCE)
        assert service.process.returncode == 130 and err == ""


def classify_from_another_address(port: int, photo: bytes) -> tuple[int, str]:
    """Status and label, or error, for a photo of a client that is not the attacker."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "image/jpeg"}
    connection = http.client.HTTPConnection("127.0.0.1", port, PATIENCE, source_address=(GOOD_ADDRESS, 0))
    try:
        connection.request("POST", "/classify", photo, headers)
        answer = connection.getresponse()
        fields = json.loads(answer.read())
        return answer.status, fields.get("label") or fields.get("error")
    finally:
        connection.close()


@pytest.fixture
def two_cores() -> Iterator[None]:
    """Limits the processes that this test starts: more cores have more threads, which need address space."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:2])
    yield
    os.sched_setaffinity(0, cores)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has every 127.x address, and prlimit")
def test_a_service_in_512_mb_answers_while_a_client_attacks_its_memory(two_cores: None) -> None:
    """The attacks follow each other on one service, so that memory that one of them kept would be missed."""
    attackers = {"oversized body": 1, "hostile pictures": 1, "large forms": 1, "photo flood": 1}
    attackers |= {"endless trailer": 1, "stalled body": 4}  # 16 bodies of 32 MB
    with serve_in_process("--model", RELEASED, address_space=ADDRESS_SPACE, VGG_EDGE_TOKEN=TOKEN) as service:
        right = classify_from_another_address(service.port, GOOD)
        assert right[0] == 200
        for attack, count in attackers.items():
            answers = []
            with ExitStack() as stack:
                for _ in range(count):
                    stack.enter_context(attacking(attack, service.port, TOKEN, GOOD))
                until = time.monotonic() + 4
                while time.monotonic() < until:
                    answers.append(classify_from_another_address(service.port, GOOD))
            assert answers and set(answers) == {right}, attack
        assert classify_from_another_address(service.port, GOOD) == right
        assert service.process.poll() is None
