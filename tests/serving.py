"""Starts the service, in a process or in a thread, and talks to it over real connections."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO, Any

from runtime.server.routes import STATIC
from runtime.server.token_file import MIN_TOKEN_LENGTH
from tests.helpers import PATIENCE, ROOT

OPENAPI = json.loads((STATIC / "openapi.json").read_text(encoding="utf-8"))
TOKEN = "t0ken-" + "x" * MIN_TOKEN_LENGTH
OWN_VARIABLES = ("VGG_EDGE_TOKEN", "VGG_EDGE_KEY", "NOTIFY_SOCKET", "WATCHDOG_USEC")


@dataclass(frozen=True)
class Client:
    """Requests to a service on this machine, each on a new connection."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers or {}, encode_chunked=True)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON of the answer; None without a body."""
        status, _, text = self.request(method, path, body, headers)
        return status, json.loads(text) if text else None

    def get_status(self, path: str, **headers: str) -> int:
        return self.request("GET", path, headers=headers)[0]

    def classify(self, data: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON of POST /classify; in the names of headers, _ stands for -."""
        status, _, body = self.request(
            "POST", "/classify", data, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        return status, json.loads(body)

    def status(self) -> dict[str, Any]:
        fields: dict[str, Any] = json.loads(self.request("GET", "/status")[2])
        return fields

    def live(self) -> dict[str, Any]:
        """The prediction of the camera's newest frame; {} if there is none."""
        text = self.request("GET", "/live.jpg")[1]["prediction"]
        return json.loads(text) if text else {}

    def metric(self, name: str) -> float:
        """The value of the metric vgg_edge_NAME; 0 if it is not listed."""
        text = self.request("GET", "/metrics")[2].decode()
        found = re.search(rf"^vgg_edge_{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def classified(self, status: int) -> float:
        """How many requests to /classify got this status so far."""
        return self.metric(f'requests_total{{path="/classify",status="{status}"}}')


@dataclass(frozen=True)
class ServiceProcess(Client):
    process: subprocess.Popen[str]
    start_line: str  # names the model and the engine


def serve_command(*arguments: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "runtime.serve", *arguments]


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's environment without the service's own variables, plus `changes`."""
    kept = {name: value for name, value in os.environ.items() if name not in OWN_VARIABLES}
    return {**kept, "PYTHONPATH": str(ROOT), **changes}


@contextmanager
def serve_in_process(
    *arguments: str | Path,
    address_space: int | None = None,
    stderr: int | IO[str] = subprocess.PIPE,
    **variables: str,
) -> Iterator[ServiceProcess]:
    """`python -m runtime.serve ARGUMENTS` on a free port, with these environment variables.

    `address_space` is the limit of each of its processes in bytes, as `ulimit -v` sets it.
    """
    limit = ["prlimit", f"--as={address_space}"] if address_space else []
    process = subprocess.Popen(
        [*limit, *serve_command("--port", "0", *arguments)],
        env=clean_environment(**variables),
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    try:
        assert process.stdout
        start_line = process.stdout.readline()
        assert " on " in start_line, process.stderr and process.stderr.read()
        url = process.stdout.readline().split()[0]
        yield ServiceProcess(int(url.rpartition(":")[2]), process, start_line)
    finally:
        process.kill()
        process.communicate()


@contextmanager
def serve_in_thread(model: Path, **config: Any) -> Iterator[Client]:
    """The same service in a thread of this process, on a free port; `config` are fields of ServerConfig."""
    from runtime.server.run import ServerConfig, open_server

    with open_server(ServerConfig(model=str(model), port=0, **config)) as server:
        thread = Thread(target=server.serve, name="service", daemon=True)
        client = Client(server.listener.getsockname()[1])
        thread.start()
        try:
            yield client
        finally:
            server.stop()
            thread.join(PATIENCE)
            assert not thread.is_alive()


def multipart_form(name: str, data: bytes) -> tuple[bytes, str]:
    """A form with one file: its body and its Content-Type."""
    head = f'--b\r\nContent-Disposition: form-data; name="photo"; filename="{name}"\r\n\r\n'
    return head.encode() + data + b"\r\n--b--\r\n", "multipart/form-data; boundary=b"


def openapi_schema(name: str) -> dict[str, Any]:
    """One schema of openapi.json, its references resolved within it."""
    return {"$ref": f"#/components/schemas/{name}", "components": OPENAPI["components"]}
