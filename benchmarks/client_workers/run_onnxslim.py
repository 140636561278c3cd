"""ONNX Runtime after onnxslim simplified the graph: run_onnxslim.py MODEL PIXELS.npy CLASSES OUT.npy."""

import sys

import numpy as np
import onnx
import onnxruntime
import onnxslim

model, pixels, _, out = sys.argv[1:]
slim = onnxslim.slim(onnx.load(model)).SerializeToString()
session = onnxruntime.InferenceSession(slim, providers=["CPUExecutionProvider"])
answers = [session.run(["probabilities"], {"image": x[np.newaxis]})[0][0] for x in np.load(pixels)]
np.save(out, np.array(answers, np.float32))
