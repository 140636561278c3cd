"""TVM compiles the file for this processor: run_tvm.py MODEL PIXELS.npy CLASSES OUT.npy."""

import sys
from pathlib import Path

import numpy as np
import onnx
import tflite
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx
from tvm.relax.frontend.tflite import from_tflite

path, pixels, classes, out = sys.argv[1:]
pictures = np.load(pixels)
if path.endswith(".onnx"):
    module = from_onnx(onnx.load(path), shape_dict={"image": [1, *pictures.shape[1:]]})
else:
    module = from_tflite(tflite.Model.GetRootAsModel(Path(path).read_bytes(), 0))
machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())
answers = []
for picture in pictures:
    results = [result.numpy() for result in machine["main"](tvm.runtime.tensor(picture[np.newaxis]))]
    answers.append(next(result for result in results if result.shape == (1, int(classes)))[0])
np.save(out, np.array(answers, np.float32))
