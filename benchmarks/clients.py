"""Opens the released files in clients that nobody here wrote, and compares their answers with the runtime's.

    VGG_EDGE_PHOTOS=DIR python -m benchmarks.clients [--photos N] [--only NAME…] [--model FOLDER]

Each client has an environment of its own, kept in the user's cache. Writes clients.csv and clients.md beside
this file; with --only, the rows of the other clients stay as they are. A client that cannot be installed or
fails has its reason in the table.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime import Classifier
from runtime.common.user_cache import cache_home
from runtime.model_file.index import read_index
from runtime.preprocess.picture import read_picture
from tests.helpers import RELEASED

HERE = Path(__file__).parent
WORKERS = HERE / "client_workers"
TABLE, PAGE = HERE / "clients.csv", HERE / "clients.md"
INSTALL_TIMEOUT, RUN_TIMEOUT = 900.0, 600.0  # seconds
ENGINE_OF = {"tflite": "litert", "onnx": "onnx"}  # of the reference


@dataclass(frozen=True)
class Photos:
    """The model's inputs, and the place of the files that clients read and write."""

    folder: Path
    pixels: Path  # .npy, uint8 [N, H, W, 3]
    classes: int


@dataclass(frozen=True)
class ClientRow:
    """A line of clients.csv."""

    client: str
    version: str
    file: str
    photos: int  # whose answers were compared; 0 for a client that only reads the file
    agreement: float | None  # share of photos with the same label
    max_dp: float | None  # the largest difference of a probability
    problem: str  # why the client gave no answers


class ClientFailed(Exception):
    """A client that cannot be installed, or ended with an error."""


Outputs = tuple[str, NDArray[np.float32]]  # the client's version, and probabilities [N or 0, C]


def run_python(photos: Photos, model: Path, worker: str, package: str, *more: str) -> Outputs:
    """Runs a worker in a virtual environment with `package` and `more` from PyPI. Raises ClientFailed."""
    folder = cache_home() / "clients" / package
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        _call([sys.executable, "-m", "venv", "--without-pip", "--clear", str(folder)], INSTALL_TIMEOUT)
        names = [package, "numpy", *more]
        pip = [sys.executable, "-m", "pip", "--python", str(python)]
        install = [*pip, "install", "--quiet", "--only-binary", ":all:"]
        _call([*install, *(["--pre"] if package == "tflite-micro" else []), *names], INSTALL_TIMEOUT)
        (folder / "complete").touch()
    code = f"from importlib.metadata import version; print(version({package!r}))"
    version = _call([str(python), "-c", code], RUN_TIMEOUT).strip()
    out = photos.folder / "out.npy"
    arguments = [str(model), str(photos.pixels), str(photos.classes), str(out)]
    _call([str(python), str(WORKERS / worker), *arguments], RUN_TIMEOUT)
    return version, np.load(out)


def run_node(photos: Photos, model: Path, worker: str, package: str) -> Outputs:
    """Runs a worker with `package` from npm in Node. Raises ClientFailed."""
    folder = cache_home() / "clients" / package
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        # The package's script would download libraries for graphics cards.
        _call(
            ["npm", "install", "--silent", "--ignore-scripts", "--prefix", str(folder), package],
            INSTALL_TIMEOUT,
        )
        (folder / "complete").touch()
    fields = json.loads((folder / "node_modules" / package / "package.json").read_text("utf-8"))
    out = photos.folder / "out.json"
    arguments = [str(model), str(photos.pixels), str(photos.classes), str(out)]
    _call(["node", str(WORKERS / worker), *arguments], RUN_TIMEOUT, cwd=folder)
    return fields["version"], np.array(json.loads(out.read_text("utf-8")), np.float32)


def _call(command: list[str], timeout: float, cwd: Path | None = None) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=timeout)
    except FileNotFoundError:
        raise ClientFailed(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise ClientFailed(f"not done within {timeout:g} s") from None
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise ClientFailed((lines or [f"ended with status {done.returncode}"])[-1].strip()[:200])
    return done.stdout


@dataclass(frozen=True)
class Client:
    """A program that opens one of the released files."""

    format: str
    run: Callable[[Photos, Path], Outputs]


CLIENTS = {
    "OpenVINO, TFLite": Client("tflite", lambda p, m: run_python(p, m, "run_openvino.py", "openvino")),
    "OpenVINO, ONNX": Client("onnx", lambda p, m: run_python(p, m, "run_openvino.py", "openvino")),
    "tflite (parser)": Client("tflite", lambda p, m: run_python(p, m, "run_tflite_parser.py", "tflite")),
    "TFLite Micro": Client("tflite", lambda p, m: run_python(p, m, "run_tflite_micro.py", "tflite-micro")),
    "OpenCV dnn": Client("onnx", lambda p, m: run_python(p, m, "run_opencv.py", "opencv-python-headless")),
    "onnxslim": Client(
        "onnx", lambda p, m: run_python(p, m, "run_onnxslim.py", "onnxslim", "onnx", "onnxruntime")
    ),
    "onnxruntime-node": Client(
        "onnx", lambda p, m: run_node(p, m, "run_onnxruntime_node.mjs", "onnxruntime-node")
    ),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clients")
    parser.add_argument("--photos", type=int, default=50)
    parser.add_argument("--only", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--model", type=Path, default=RELEASED)
    arguments = parser.parse_args(argv)
    files = {file.format: arguments.model / file.file for file in read_index(arguments.model).files}
    folder = cache_home() / "clients"
    folder.mkdir(parents=True, exist_ok=True)
    photos, references = prepare(arguments.photos, files, folder)
    rows = {row.client: row for row in read_rows()}
    for name in arguments.only:
        client = CLIENTS[name]
        rows[name] = compare(name, client, photos, files[client.format], references[client.format])
        print(describe(rows[name]), flush=True)
        write_rows([rows[name] for name in CLIENTS if name in rows])


def prepare(
    count: int, files: dict[str, Path], folder: Path
) -> tuple[Photos, dict[str, NDArray[np.float32]]]:
    """Returns `count` test photos, as many of each class, and the runtime's answers by format."""
    test = Path(os.environ["VGG_EDGE_PHOTOS"]) / "test"
    by_class = [sorted(path.iterdir()) for path in sorted(test.iterdir()) if path.is_dir()]
    chosen = [paths[at] for at in range(count) for paths in by_class if at < len(paths)][:count]
    classifiers = {
        format: Classifier(path, engine=ENGINE_OF[format], correction="none", learned="none")
        for format, path in files.items()
    }
    contract = next(iter(classifiers.values())).model.contract
    pixels = np.stack([read_picture(path, contract.input_size) for path in chosen])
    np.save(folder / "pixels.npy", pixels)
    references = {
        format: np.stack([classifier.infer(picture).probabilities for picture in pixels])
        for format, classifier in classifiers.items()
    }
    return Photos(folder, folder / "pixels.npy", len(contract.labels)), references


def compare(
    name: str, client: Client, photos: Photos, model: Path, reference: NDArray[np.float32]
) -> ClientRow:
    """Returns the row of a client."""
    try:
        version, answers = client.run(photos, model)
    except ClientFailed as error:
        return ClientRow(name, "", model.name, 0, None, None, str(error))
    if not len(answers):
        return ClientRow(name, version, model.name, 0, None, None, "")
    agreement = float((answers.argmax(1) == reference.argmax(1)).mean())
    max_dp = float(np.abs(answers - reference).max())
    return ClientRow(name, version, model.name, len(answers), agreement, round(max_dp, 6), "")


def describe(row: ClientRow) -> str:
    return ", ".join(filter(None, cells(row)))


def cells(row: ClientRow) -> list[str]:
    """Returns the texts of a row of the page."""
    if row.problem:
        result = [f"fails: {row.problem}", ""]
    elif row.agreement is None or row.max_dp is None:
        result = ["reads the file", ""]
    else:
        result = [f"{100 * row.agreement:.1f} % of {row.photos}", f"{row.max_dp:.4f}"]
    return [row.client, row.version or "-", row.file, *result]


def read_rows() -> Iterator[ClientRow]:
    """Yields the recorded rows."""
    if not TABLE.exists():
        return
    with TABLE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            agreement, max_dp = (float(row[name]) if row[name] else None for name in ("agreement", "max_dp"))
            yield ClientRow(
                row["client"],
                row["version"],
                row["file"],
                int(row["photos"]),
                agreement,
                max_dp,
                row["problem"],
            )


def write_rows(rows: list[ClientRow]) -> None:
    """Writes clients.csv and clients.md."""
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(ClientRow.__annotations__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, rows))
    lines = ["| client | version | file | same label as the runtime | largest Δp |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
