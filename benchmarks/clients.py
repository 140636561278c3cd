"""Checks the model files of a folder in other programs, which also read TFLite or ONNX files.

    VGG_EDGE_PHOTOS=DIR python -m benchmarks.clients [--photos N] [--only NAME…] [--model FOLDER]

Each program (client) classifies the same test photos as this project's runtime. The table states how many
photos get the same label, and how much the probabilities differ. A client that fails has its reason in the
table. Some clients compute without integers: their rows need a folder with float32 files, which
`python -m export models/flowers_compressed --all --out FOLDER` writes.

Writes clients.csv and clients.md beside this file. With --only, the rows of the other clients do not change.
The operators of a file that gave the right answers go to export/operators.csv: exports are checked with it.
client_environments.py installs the clients.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.client_environments import (
    ClientFailed,
    Outputs,
    Photos,
    run_chromium,
    run_http,
    run_netron,
    run_node,
    run_promtool,
    run_python,
)
from benchmarks.markdown_table import table_head, table_row
from export.operators import file_operators, read_table, write_table
from runtime import Classifier
from runtime.model_file.formats import FORMATS
from runtime.model_file.index import read_index
from runtime.preprocess.picture import read_picture
from tests.helpers import RELEASED

HERE = Path(__file__).parent
TABLE, PAGE = HERE / "clients.csv", HERE / "clients.md"
ENGINE_OF = {"tflite": "litert", "onnx": "onnx"}  # of the reference
MIN_AGREEMENT = 0.99  # share of photos with the label of the reference, from which a program is correct


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


@dataclass(frozen=True)
class Client:
    """A program that reads one of the model files."""

    file: str  # precision and format
    run: Callable[[Photos, Path], Outputs]


def _python(worker: str, *packages: str, options: tuple[str, ...] = ()) -> Callable[[Photos, Path], Outputs]:
    return partial(run_python, worker=worker, packages=packages, options=options)


def _npm(run: Callable[..., Outputs], worker: str, *packages: str) -> Callable[[Photos, Path], Outputs]:
    return partial(run, worker=worker, packages=packages)


ONNX, TFLITE, FLOAT_ONNX, FULL_INT8 = "int8.onnx", "int8.tflite", "float32.onnx", "full_int8.tflite"
OPENVINO = _python("run_openvino.py", "openvino")
MICRO = _python("run_tflite_micro.py", "tflite-micro", options=("--pre",))
MEDIAPIPE = _python("run_mediapipe.py", "mediapipe")
TVM = _python("run_tvm.py", "apache-tvm", "onnx", "tflite")
MNN = _python("run_mnn.py", "MNN")
TFJS = ("@tensorflow/tfjs-tflite", "@tensorflow/tfjs-core@4.9.0", "@tensorflow/tfjs-backend-cpu@4.9.0")

CLIENTS = {
    "OpenVINO, TFLite": Client(TFLITE, OPENVINO),
    "OpenVINO, full int8": Client(FULL_INT8, OPENVINO),
    "OpenVINO, ONNX": Client(ONNX, OPENVINO),
    "tflite (parser)": Client(TFLITE, _python("run_tflite_parser.py", "tflite")),
    "TFLite Micro": Client(TFLITE, MICRO),
    "TFLite Micro, full int8": Client(FULL_INT8, MICRO),
    "MediaPipe for Python": Client(TFLITE, MEDIAPIPE),
    "MediaPipe for Python, full int8": Client(FULL_INT8, MEDIAPIPE),
    "MediaPipe in the browser": Client(
        TFLITE, _npm(run_chromium, "mediapipe_web.mjs", "@mediapipe/tasks-vision")
    ),
    "LiteRT.js": Client(TFLITE, _npm(run_chromium, "litert_web.mjs", "@litertjs/core")),
    "tfjs-tflite": Client(TFLITE, _npm(run_chromium, "tfjs_tflite.mjs", *TFJS)),
    "TVM, TFLite": Client(TFLITE, TVM),
    "TVM, full int8": Client(FULL_INT8, TVM),
    "TVM, ONNX": Client(ONNX, TVM),
    "OpenCV dnn": Client(ONNX, _python("run_opencv.py", "opencv-python-headless")),
    "onnxslim": Client(ONNX, _python("run_onnxslim.py", "onnxslim", "onnx", "onnxruntime")),
    "ONNX reference evaluator": Client(ONNX, _python("run_onnx_reference.py", "onnx")),
    "tract": Client(ONNX, _python("run_tract.py", "tract")),
    "onnxruntime-node": Client(ONNX, _npm(run_node, "run_onnxruntime_node.mjs", "onnxruntime-node")),
    "onnxruntime-web": Client(ONNX, _npm(run_chromium, "onnxruntime_web.mjs", "onnxruntime-web")),
    "MNN, TFLite": Client(TFLITE, MNN),
    "MNN, ONNX": Client(ONNX, MNN),
    "MNN, float32 ONNX": Client(FLOAT_ONNX, MNN),
    "ncnn, float32 ONNX": Client(FLOAT_ONNX, _python("run_ncnn.py", "ncnn", "pnnx", options=("--no-deps",))),
    "curl": Client(TFLITE, partial(run_http, worker="run_curl.py")),
    "HTTPie": Client(TFLITE, partial(run_http, worker="run_httpie.py", packages=("httpie",))),
    "openapi-python-client": Client(
        TFLITE,
        partial(
            run_http, worker="run_openapi_client.py", packages=("openapi-python-client", "httpx", "attrs")
        ),
    ),
    "promtool": Client(TFLITE, run_promtool),
    "Netron, TFLite": Client(TFLITE, run_netron),
    "Netron, ONNX": Client(ONNX, run_netron),
}


SERVICE_CLIENTS = ("curl", "HTTPie", "openapi-python-client", "promtool")  # which read no model file


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clients")
    parser.add_argument("--photos", type=int, default=50)
    parser.add_argument("--only", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--model", type=Path, default=RELEASED)
    arguments = parser.parse_args(argv)
    index = read_index(arguments.model)
    files = {f"{file.precision}.{file.format}": arguments.model / file.file for file in index.files}
    needed = {CLIENTS[name].file for name in arguments.only}
    files = {name: path for name, path in files.items() if name in needed}
    if not files:
        parser.error(f"{arguments.model} has no {' or '.join(needed)}")
    rows = {row.client: row for row in read_rows()}
    with TemporaryDirectory() as folder:
        photos, references = prepare(arguments.photos, files, Path(folder))
        for name in arguments.only:
            file = CLIENTS[name].file
            if file not in files:
                print(f"{name}: skipped, because {arguments.model} has no {file}")
                continue
            rows[name] = compare(name, CLIENTS[name], photos, files[file], references[file])
            print(describe(rows[name]), flush=True)
            write_rows([rows[name] for name in CLIENTS if name in rows])
            if (rows[name].agreement or 0.0) >= MIN_AGREEMENT and name not in SERVICE_CLIENTS:
                record_operators(name, files[file])


def prepare(
    count: int, files: dict[str, Path], folder: Path
) -> tuple[Photos, dict[str, NDArray[np.float32]]]:
    """Returns `count` test photos, as many of each class, and the runtime's answers by file."""
    test = Path(os.environ["VGG_EDGE_PHOTOS"]) / "test"
    by_class = [sorted(path.iterdir()) for path in sorted(test.iterdir()) if path.is_dir()]
    chosen = [paths[at] for at in range(count) for paths in by_class if at < len(paths)][:count]
    classifiers = {
        name: Classifier(path, engine=ENGINE_OF[path.suffix[1:]], correction="none", learned="none")
        for name, path in files.items()
    }
    contract = next(iter(classifiers.values())).model.contract
    pixels = np.stack([read_picture(path, contract.input_size) for path in chosen])
    np.save(folder / "pixels.npy", pixels)
    references = {
        name: np.stack([classifier.infer(picture).probabilities for picture in pixels])
        for name, classifier in classifiers.items()
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


def record_operators(client: str, model: Path) -> None:
    """Adds the operators of a file that a client computed to export/operators.csv."""
    format = model.suffix[1:]
    table = {each: read_table(each) for each in FORMATS}
    program = re.sub(r", (TFLite|ONNX|float32 ONNX|full int8)$", "", client)
    known = table[format].setdefault(program, {})
    for name, version in file_operators(format, model.read_bytes()).items():
        known[name] = max(version, known.get(name, 0))
    write_table(table)


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
    lines = [table_head("client", "version", "file", "same label as the runtime", "largest Δp")]
    lines += [table_row(*cells(row)) for row in rows]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
