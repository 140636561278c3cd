"""Build an .rknn file and run photos through it in rknn-toolkit2's simulator.

This script runs in the environment of rknn-toolkit2, whose packages do not fit beside those of this project:
it imports nothing of this project.

    PYTHON -I rknn_worker.py REQUEST.json

The request, whose files lie in its own folder:

    {"platform": "rk3588", "mean": [r, g, b], "calibration": FILE or null, "float16": [[from, to], …],
     "photos": FILE.npy, "outputs": FILE.npz, "names": [name of each output]}

The network is model.onnx, the result model.rknn. `calibration` is a text file with one picture file per line;
null builds a float16 model. In an int8 model, the operators between the tensors `from` and `to` stay in
float16. Prints one dot to stdout per photo, and the toolkit's own log to stderr.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

# A rule of rknn-toolkit2 2.5.0 that repeats without end on x * x where x is a matrix product.
ENDLESS_RULES = ["fuse_exmatmul_mul"]


def main(path: str) -> int:
    """Answers one request. Returns 0, or 1 after a line on stderr that names the failed step."""
    dots = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the toolkit prints its log to stdout
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    os.chdir(Path(path).parent)  # the toolkit writes its intermediate models to the current folder
    toolkit = _build(request)
    _require(toolkit.export_rknn("model.rknn"), "export_rknn")
    _require(toolkit.init_runtime(target=None), "init_runtime")  # None: the simulator
    found: dict[str, list[Any]] = {name: [] for name in request["names"]}
    ms = []
    for photo in np.load(request["photos"], mmap_mode="r"):
        start = time.perf_counter()
        outputs = toolkit.inference(inputs=[np.ascontiguousarray(photo[np.newaxis])], data_format=["nhwc"])
        ms.append(1000 * (time.perf_counter() - start))
        for name, output in zip(request["names"], outputs, strict=True):
            found[name].append(np.asarray(output, np.float32).reshape(-1))
        print(".", end="", file=dots, flush=True)
    np.savez(
        request["outputs"],
        engine=f"rknn-toolkit2 {version('rknn-toolkit2')}",
        ms=np.array(ms, np.float32),
        **{name: np.stack(parts) for name, parts in found.items()},
    )
    toolkit.release()
    return 0


def _build(request: dict[str, Any]) -> Any:
    """The toolkit's object with the built model."""
    from rknn.api import RKNN

    toolkit = RKNN(verbose=False)
    toolkit.config(
        mean_values=[request["mean"]],
        std_values=[[1, 1, 1]],
        target_platform=request["platform"],
        disable_rules=ENDLESS_RULES,
    )
    _require(toolkit.load_onnx(model="model.onnx"), "load_onnx")
    if request["calibration"] is None:
        _require(toolkit.build(do_quantization=False), "build")
        return toolkit
    done = toolkit.hybrid_quantization_step1(
        dataset=request["calibration"], proposal=False, custom_hybrid=request["float16"]
    )
    _require(done, "hybrid_quantization_step1")
    toolkit.release()
    toolkit = RKNN(verbose=False)  # the second step refuses an object with a loaded model
    done = toolkit.hybrid_quantization_step2(
        model_input="model.model",
        data_input="model.data",
        model_quantization_cfg="model.quantization.cfg",
    )
    _require(done, "hybrid_quantization_step2")
    return toolkit


def _require(status: int, step: str) -> None:
    if status != 0:
        sys.exit(f"rknn-toolkit2 failed in {step}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
