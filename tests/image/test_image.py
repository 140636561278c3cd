"""The image of deploy/Containerfile, built by podman on a base image of mmdebstrap, and started read-only."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime import Classifier
from tests.helpers import ROOT, wait_for
from tests.programs import require_program

pytestmark = pytest.mark.timeout(1500)

IMAGE, BASE = "localhost/vgg-edge:test", "localhost/debian:bookworm"
MAX_IMAGE_BYTES = 550_000_000  # 452 MB were measured, of which the base image has 177
TOKEN = secrets.token_urlsafe(24)
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
# The tests run in a machine that may be a container itself: it can raise no limits and has no bridges.
NESTED = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--network", "host")
RESTRICTED = ("--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp")


class Podman:
    """podman with a storage of its own."""

    def __init__(self, folder: Path) -> None:
        self._command = [
            *("podman", "--root", str(folder / "store"), "--runroot", str(folder / "run")),
            *("--storage-driver", "vfs", "--runtime", "runc"),
            *("--cgroup-manager", "cgroupfs", "--events-backend", "none"),
        ]

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*self._command, *arguments], capture_output=True, text=True, timeout=1200)
        assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """Podman with the built image."""
    for program in ("podman", "runc", "mmdebstrap"):
        require_program(program, program)
    if os.geteuid() != 0:
        pytest.skip("building a base image needs root: run the tests as root")
    folder = tmp_path_factory.mktemp("podman")
    started = Podman(folder)
    base = folder / "base.tar"
    make_base = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates", "bookworm", base]
    subprocess.run(make_base, check=True, capture_output=True)
    started.run("import", "--quiet", str(base), BASE)
    base.unlink()
    (folder / "pip.conf").write_text(f"[global]\ncert = {CERTIFICATES}\n")  # for a network with its own
    started.run(
        *("build", "--quiet", "--isolation", "chroot", "--network", "host"),
        *("--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"),
        *("--volume", f"{folder / 'pip.conf'}:/etc/pip.conf:ro"),
        *(
            "--build-arg",
            f"BASE={BASE}",
            "--file",
            str(ROOT / "deploy/Containerfile"),
            "--tag",
            IMAGE,
            str(ROOT),
        ),
    )
    yield started
    started.run("rmi", "--all", "--force", check=False)


@contextmanager
def running(podman: Podman, *options: str) -> Iterator[tuple[str, int]]:
    """The container's name, and its port on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    name = f"test-{secrets.token_hex(4)}"
    token = ("--env", f"VGG_EDGE_TOKEN={TOKEN}")
    podman.run(
        *("run", "--detach", "--name", name, *NESTED, *RESTRICTED, *token, *options, IMAGE),
        *("--host", "127.0.0.1", "--port", str(port)),
    )
    try:
        wait_for(lambda: ask(port, "GET", "/healthz")[0] == 200, 60)
        yield name, port
    finally:
        podman.run("rm", "--force", name)


def ask(port: int, method: str, path: str, body: bytes | None = None, token: str = "") -> tuple[int, bytes]:
    """Status and body of an answer; 0 while nothing listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


def test_it_answers_as_the_runtime_without_root_and_without_writing(podman: Podman) -> None:
    photo = ROOT / "docs/sunflower.jpg"
    with running(podman) as (name, port):
        assert ask(port, "POST", "/classify", photo.read_bytes())[0] == 401
        status, body = ask(port, "POST", "/classify", photo.read_bytes(), TOKEN)
        answer, here = json.loads(body), Classifier(engine="litert")(photo)
        assert status == 200 and answer["label"] == here.label
        assert answer["probability"] == pytest.approx(here.probability, abs=0.001)
        assert podman.run("exec", name, "cat", "/proc/1/status").stdout.split("Uid:")[1].split()[0] == "10001"
        written = podman.run("exec", name, "touch", "/opt/vgg-edge/x", "/state/x", check=False)
        assert written.returncode != 0 and written.stderr.count("Read-only file system") == 2
        assert podman.run("exec", name, "/opt/vgg-edge/bin/python", "-m", "pip", check=False).returncode != 0
        podman.run("stop", "--time", "10", name)
        state = json.loads(podman.run("inspect", name).stdout)[0]["State"]
        assert state["ExitCode"] == 0  # SIGTERM stopped the service; else podman kills it with 137


def test_your_model_and_the_state_are_volumes(podman: Podman, tmp_path: Path) -> None:
    models, state = tmp_path / "models", tmp_path / "state"
    models.mkdir()
    state.mkdir()
    os.chown(state, 10001, 10001)
    (models / "mine.tflite").write_bytes((ROOT / "models/flowers/flowers_int8.tflite").read_bytes())
    volumes = ("--volume", f"{models}:/srv/vgg-edge/models:ro", "--volume", f"{state}:/state")
    with running(podman, *volumes) as (name, port):
        status = json.loads(ask(port, "GET", "/status", token=TOKEN)[1])
        assert status["model"]["file"] == "mine.tflite"
        podman.run("exec", name, "touch", "/state/x")
        assert podman.run("exec", name, "touch", "/srv/vgg-edge/models/x", check=False).returncode != 0


def test_without_a_token_it_ends_with_one_line(podman: Podman) -> None:
    done = podman.run("run", "--rm", *NESTED, *RESTRICTED, IMAGE, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "token" in line


def test_the_image_is_small(podman: Podman) -> None:
    assert int(podman.run("image", "inspect", "--format", "{{.Size}}", IMAGE).stdout) < MAX_IMAGE_BYTES
