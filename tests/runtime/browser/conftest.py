"""The engine of the browser page, and a static file server that notes what a browser requests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from runtime.browser.engine_package import PACKAGE, EnginePackage, load_engine_package
from runtime.common.errors import UserError
from tests.programs import require_program


@pytest.fixture(scope="session")
def engine() -> EnginePackage:
    """ONNX Runtime Web from npm. Where npm reaches no registry, the test is skipped."""
    npm = require_program("npm", "npm")
    try:
        return load_engine_package()
    except UserError:
        if subprocess.run([npm, "view", PACKAGE, "version"], capture_output=True).returncode == 0:
            raise  # the package is there, and is not the expected one
        pytest.skip(f"npm finds no {PACKAGE}")


@dataclass
class StaticServer:
    """A folder on a free port of this machine."""

    folder: Path
    url: str = ""
    requested: list[str] = field(default_factory=list)  # the paths, in order


@contextmanager
def serve_folder(folder: Path) -> Iterator[StaticServer]:
    """Serves a folder as `python -m http.server` does."""
    static = StaticServer(folder)

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, code: object = "-", size: object = "-") -> None:
            static.requested.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        static.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield static
        finally:
            server.shutdown()
            thread.join(10)


@pytest.fixture(scope="module")
def static_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StaticServer]:
    with serve_folder(tmp_path_factory.mktemp("static")) as server:
        yield server
