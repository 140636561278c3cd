"""The reference implementation of ONNX's operators: run_onnx_reference.py MODEL PIXELS CLASSES OUT (.npy)."""

import sys

import numpy as np
from onnx.reference import ReferenceEvaluator

model, pixels, _, out = sys.argv[1:]
evaluator = ReferenceEvaluator(model)
answers = [evaluator.run(["probabilities"], {"image": x[np.newaxis]})[0][0] for x in np.load(pixels)]
np.save(out, np.array(answers, np.float32))
