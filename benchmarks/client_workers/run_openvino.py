"""OpenVINO's frontends: run_openvino.py MODEL PIXELS.npy CLASSES OUT.npy."""

import sys

import numpy as np
import openvino

model, pixels, classes, out = sys.argv[1:]
core = openvino.Core()
compiled = core.compile_model(core.read_model(model), "CPU")
answers = []
for picture in np.load(pixels):
    results = [np.asarray(value) for value in compiled([picture[np.newaxis]]).values()]
    answers.append(next(result for result in results if result.shape == (1, int(classes)))[0])
np.save(out, np.array(answers, np.float32))
