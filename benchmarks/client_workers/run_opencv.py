"""OpenCV's dnn module: run_opencv.py MODEL PIXELS.npy CLASSES OUT.npy."""

import sys

import cv2
import numpy as np

model, pixels, _, out = sys.argv[1:]
net = cv2.dnn.readNetFromONNX(model)
answers = []
for picture in np.load(pixels):
    net.setInput(picture[np.newaxis], "image")
    answers.append(net.forward("probabilities")[0])
np.save(out, np.array(answers, np.float32))
