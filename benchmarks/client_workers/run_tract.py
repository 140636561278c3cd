"""tract, an engine in Rust: run_tract.py MODEL PIXELS.npy CLASSES OUT.npy."""

import sys

import numpy as np
import tract

model, pixels, _, out = sys.argv[1:]
pictures = np.load(pixels)
loaded = tract.onnx().load(model)
runnable = loaded.into_model().into_runnable()
answers = [runnable.run([picture[np.newaxis]])[0].to_numpy()[0] for picture in pictures]
np.save(out, np.array(answers, np.float32))
