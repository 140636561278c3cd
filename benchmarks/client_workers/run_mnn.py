"""MNN, after its converter: run_mnn.py MODEL PIXELS.npy CLASSES OUT.npy."""

import sys
import tempfile
from pathlib import Path

import _tools  # MNN's command mnnconvert also installs a package that reports its use
import MNN
import numpy as np

model, pixels, _, out = sys.argv[1:]
format = "ONNX" if model.endswith(".onnx") else "TFLITE"
with tempfile.TemporaryDirectory() as folder:
    converted = str(Path(folder) / "model.mnn")
    _tools.mnnconvert(["mnnconvert", "-f", format, "--modelFile", model, "--MNNModel", converted])
    if not Path(converted).exists():
        sys.exit("MNN's converter fails")
    module = MNN.nn.load_module_from_file(converted, ["image"], ["probabilities"])
layout = MNN.expr.NCHW if format == "ONNX" else MNN.expr.NHWC  # of the format's convolutions
answers = []
for picture in np.load(pixels):
    value = MNN.expr.const(picture[np.newaxis], [1, *picture.shape], layout, MNN.expr.uint8)
    results = module.forward([value])
    if not results:
        sys.exit("MNN computes a wrong shape of a convolution behind QuantizeLinear")
    answers.append(results[0].read()[0].copy())
np.save(out, np.array(answers, np.float32))
