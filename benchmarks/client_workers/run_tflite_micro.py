"""TFLite Micro's interpreter: run_tflite_micro.py MODEL PIXELS.npy CLASSES OUT.npy."""

import sys
from pathlib import Path

import numpy as np
from tflite_micro import runtime

ARENA_BYTES = 16_000_000

model, pixels, classes, out = sys.argv[1:]
interpreter = runtime.Interpreter.from_bytes(Path(model).read_bytes(), arena_size=ARENA_BYTES)
answers = []
for picture in np.load(pixels):
    interpreter.set_input(picture[np.newaxis], 0)
    interpreter.invoke()
    results = [interpreter.get_output(number) for number in range(3)]
    answers.append(next(result for result in results if result.shape == (1, int(classes)))[0])
np.save(out, np.array(answers, np.float32))
