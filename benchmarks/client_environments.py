"""Environments for the clients of clients.py, each kept in the user's cache: Python, Node and Chromium.

Each function installs packages at the first call, runs a worker of client_workers/, and returns its answers.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime.common.user_cache import cache_home
from runtime.model_file.index import read_index
from tests.serving import serve_in_process

WORKERS = Path(__file__).parent / "client_workers"
INSTALL_TIMEOUT, RUN_TIMEOUT, NETRON_TIMEOUT = 900.0, 1800.0, 120.0  # seconds
OUTPUTS = ("probabilities", "known", "features")  # of a model file
MAX_REASON = 200  # characters


@dataclass(frozen=True)
class Photos:
    """The model's inputs, and the place of the files that clients read and write."""

    folder: Path
    pixels: Path  # .npy, uint8 [N, H, W, 3]
    classes: int


class ClientFailed(Exception):
    """A client that cannot be installed, or ended with an error."""


Outputs = tuple[str, NDArray[np.float32]]  # the client's version, and probabilities [N or 0, C]


def run_python(
    photos: Photos, model: Path, *, worker: str, packages: tuple[str, ...], options: tuple[str, ...] = ()
) -> Outputs:
    """Runs a worker in a virtual environment with `packages` from PyPI. The first package gives the version.

    `options` are pip's. Raises ClientFailed.
    """
    python, version = _install_python(packages, options)
    out = photos.folder / "out.npy"
    arguments = [str(model), str(photos.pixels), str(photos.classes), str(out)]
    _call([str(python), str(WORKERS / worker), *arguments], RUN_TIMEOUT)
    return version, np.load(out)


def run_node(photos: Photos, model: Path, *, worker: str, packages: tuple[str, ...]) -> Outputs:
    """Runs a worker with `packages` from npm in Node. The first package gives the version.

    Raises ClientFailed.
    """
    folder, version = _install_npm(packages)
    out = photos.folder / "out.json"
    arguments = [str(model), str(photos.pixels), str(photos.classes), str(out)]
    _call(["node", str(WORKERS / worker), *arguments], RUN_TIMEOUT, cwd=folder)
    return version, np.array(json.loads(out.read_text("utf-8")), np.float32)


def run_chromium(photos: Photos, model: Path, *, worker: str, packages: tuple[str, ...]) -> Outputs:
    """Runs a worker with `packages` from npm in headless Chromium. The first package gives the version.

    The worker is a module whose function `classify` gets the model's bytes, the pictures as objects
    {pixels, height, width} and the number of classes, and returns a list of probabilities per picture. Raises
    ClientFailed.
    """
    folder, version = _install_npm(packages)
    served = {
        "model": model,
        "pixels.npy": photos.pixels,
        "workers": WORKERS,
        "node_modules": folder / "node_modules",
    }
    with _serve(served) as url, _open_chromium() as browser:
        browser.get(f"{url}/workers/chromium.html")
        script = "const done = arguments[2]; classify(arguments[0], arguments[1]).then(done)"
        answer = browser.execute_async_script(script, f"./{worker}", photos.classes)
    if "error" in answer:
        raise ClientFailed(_reason(answer["error"]))
    return version, np.array(answer["rows"], np.float32)


def run_http(photos: Photos, model: Path, *, worker: str, packages: tuple[str, ...] = ()) -> Outputs:
    """Runs a worker that uploads the pictures to a service of the model. Without packages, it is curl.

    Raises ClientFailed.
    """
    python, version = _install_python(packages, ()) if packages else (Path(sys.executable), _curl_version())
    pictures, out = photos.folder / "pictures", photos.folder / "out.json"
    pictures.mkdir(exist_ok=True)
    for number, pixels in enumerate(np.load(photos.pixels)):
        Image.fromarray(pixels).save(pictures / f"{number:04}.png")
    labels = read_index(model.parent).contract.labels
    with serve_in_process("--model", model, "--top", str(len(labels))) as service:
        url = f"http://127.0.0.1:{service.port}"
        _call([str(python), str(WORKERS / worker), url, str(pictures), str(out)], RUN_TIMEOUT)
    answers = [
        {each["label"]: each["probability"] for each in answer["top"]}
        for answer in json.loads(out.read_text())
    ]
    return version, np.array([[answer[label] for label in labels] for answer in answers], np.float32)


def run_promtool(photos: Photos, model: Path) -> Outputs:
    """Checks the metrics of a service with promtool of Prometheus. Raises ClientFailed."""
    with serve_in_process("--model", model) as service, tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "metrics"
        with urlopen(f"http://127.0.0.1:{service.port}/metrics") as answer:
            metrics.write_bytes(answer.read())
        version = _call(["promtool", "--version"], RUN_TIMEOUT).split()[2]
        _call(["sh", "-c", f"promtool check metrics < {metrics}"], RUN_TIMEOUT)
    return version, np.empty((0, photos.classes), np.float32)


def run_netron(photos: Photos, model: Path) -> Outputs:
    """Opens a file in Netron's page in headless Chromium. Netron draws the graph and does not compute.

    Raises ClientFailed when the page draws no graph that ends in the three outputs.
    """
    python, version = _install_python(("netron",), ())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = [str(python), "-c", "import netron; netron.main()"]
    command = [*program, "--host", "127.0.0.1", "--port", str(port), str(model)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with _open_chromium() as browser:
            _open_netron(browser, f"http://127.0.0.1:{port}")
    finally:
        server.terminate()
        server.wait()
    return version, np.empty((0, photos.classes), np.float32)


def _curl_version() -> str:
    return _call(["curl", "--version"], RUN_TIMEOUT).split()[1]


def _open_netron(browser: Any, url: str) -> None:
    find = "return [...document.querySelectorAll('.graph-item-output text')].map((node) => node.textContent)"
    deadline = time.monotonic() + NETRON_TIMEOUT
    while time.monotonic() < deadline:
        with suppress(OSError):
            urlopen(url, timeout=NETRON_TIMEOUT).close()
            break
        time.sleep(1)
    browser.get(url)
    browser.add_cookie({"name": "consent", "value": "1"})  # to a use of cookies, about which the page asks
    browser.get(url)
    while time.monotonic() < deadline:
        if set(OUTPUTS) <= set(browser.execute_script(find)):
            return
        time.sleep(1)
    raise ClientFailed("draws no graph with the three outputs")


def _install_python(packages: tuple[str, ...], options: tuple[str, ...]) -> tuple[Path, str]:
    """Returns the Python of the environment, and the version of the first package."""
    folder = cache_home() / "clients" / packages[0]
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        _call([sys.executable, "-m", "venv", "--without-pip", "--clear", str(folder)], INSTALL_TIMEOUT)
        pip = [sys.executable, "-m", "pip", "--python", str(python)]
        install = [*pip, "install", "--quiet", "--only-binary", ":all:", *options]
        _call([*install, "numpy", *packages], INSTALL_TIMEOUT)
        (folder / "complete").touch()
    code = f"from importlib.metadata import version; print(version({packages[0]!r}))"
    return python, _call([str(python), "-c", code], RUN_TIMEOUT).strip()


def _install_npm(packages: tuple[str, ...]) -> tuple[Path, str]:
    """Returns the folder of node_modules, and the version of the first package."""
    folder = cache_home() / "clients" / packages[0].replace("/", "-")
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        # The scripts of onnxruntime-node would download libraries for graphics cards.
        install = ["npm", "install", "--silent", "--ignore-scripts", "--prefix", str(folder)]
        _call([*install, *packages], INSTALL_TIMEOUT)
        (folder / "complete").touch()
    fields = json.loads((folder / "node_modules" / packages[0] / "package.json").read_text("utf-8"))
    return folder, fields["version"]


def _call(command: list[str], timeout: float, cwd: Path | None = None) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=timeout)
    except FileNotFoundError:
        raise ClientFailed(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise ClientFailed(f"not done within {timeout:g} s") from None
    if done.returncode < 0:
        raise ClientFailed(f"ended with {signal.Signals(-done.returncode).name}")
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        # Python's last line names the error, and libraries may log lines after it.
        errors = [line for line in lines if re.match(r"[\w.]+: ", line)]
        raise ClientFailed(_reason((errors or lines or [f"ended with status {done.returncode}"])[-1]))
    return done.stdout


def _reason(text: str) -> str:
    return " ".join(text.split())[:MAX_REASON]


@contextmanager
def _serve(files: dict[str, Path]) -> Iterator[str]:
    """Serves files and folders by name on a free port of this machine. Yields the address."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Prints nothing."""

    with tempfile.TemporaryDirectory() as folder:
        for name, path in files.items():
            (Path(folder) / name).symlink_to(path.resolve())
        with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
            thread = Thread(target=server.serve_forever, daemon=True)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_address[1]}"
            finally:
                server.shutdown()
                thread.join()


@contextmanager
def _open_chromium() -> Iterator[Any]:
    """A headless Chromium with WebGL in software. Raises ClientFailed if it cannot start."""
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService
    from selenium.webdriver.remote.remote_connection import RemoteConnection

    options = ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "enable-unsafe-swiftshader"):
        options.add_argument(f"--{flag}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")  # no network
    try:
        browser = Chrome(options, ChromeService("/usr/bin/chromedriver"))
    except WebDriverException as error:
        raise ClientFailed(_reason(error.msg or "Chromium does not start")) from None
    try:
        browser.set_script_timeout(RUN_TIMEOUT)
        connection = browser.command_executor
        assert isinstance(connection, RemoteConnection)  # its type also allows the address of a server
        connection.client_config.timeout = RUN_TIMEOUT
        yield browser
    except WebDriverException as error:
        raise ClientFailed(_reason(error.msg or "Chromium ended")) from None
    finally:
        browser.quit()
