"""The reference implementation of ONNX's operators: run_onnx_reference.py MODEL PIXELS CLASSES OUT (.npy)."""

import sys

import numpy as np
from onnx.reference import ReferenceEvaluator

model, pixels, _, out = sys.argv[1:]
evaluator = ReferenceEvaluator(model)
answers = []
for picture in np.load(pixels):
    outputs = evaluator.run(["probabilities"], {"image": picture[np.newaxis]})
    assert isinstance(outputs, list)  # a dict only with `intermediate=True`
    answers.append(outputs[0][0])
np.save(out, np.array(answers, np.float32))
