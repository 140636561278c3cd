"""The package tflite, which converters use: run_tflite_parser.py MODEL PIXELS.npy CLASSES OUT.npy.

It parses and does not compute, so OUT.npy has no rows. Fails when a reader of the older field for operators
would see another operator.
"""

import sys
from pathlib import Path

import numpy as np
import tflite

LAST_OLD_CODE = 127  # the older field is one byte

path, _, classes, out = sys.argv[1:]
model = tflite.Model.GetRootAsModel(Path(path).read_bytes(), 0)
codes = [model.OperatorCodes(number) for number in range(model.OperatorCodesLength())]
for code in codes:
    if code.DeprecatedBuiltinCode() != min(code.BuiltinCode(), LAST_OLD_CODE):
        sys.exit(f"{tflite.opcode2name(code.BuiltinCode())} has no code for older readers")
graph = model.Subgraphs(0)
for number in range(graph.OperatorsLength()):
    graph.Operators(number).BuiltinOptions()
np.save(out, np.empty((0, int(classes)), np.float32))
