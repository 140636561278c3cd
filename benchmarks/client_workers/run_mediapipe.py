"""The ImageClassifier of MediaPipe Tasks: run_mediapipe.py MODEL PIXELS.npy CLASSES OUT.npy."""

import sys

import mediapipe
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision

model, pixels, classes, out = sys.argv[1:]
options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=model))
pictures = np.load(pixels)
answers = np.zeros((len(pictures), int(classes)), np.float32)
with vision.ImageClassifier.create_from_options(options) as classifier:
    for picture, answer in zip(pictures, answers, strict=True):
        result = classifier.classify(mediapipe.Image(mediapipe.ImageFormat.SRGB, picture))
        for category in result.classifications[0].categories:
            answer[category.index] = category.score
np.save(out, answers)
