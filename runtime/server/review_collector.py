"""Collects pictures with uncertain answers for the review: photos that clients send, and camera frames."""

import hashlib
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from runtime.camera.stream import FramePrediction
from runtime.common.errors import EngineError, PictureError
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.inference.prediction import Prediction
from runtime.inference.prefetch import DECODERS
from runtime.preprocess.preview import MAX_SIDE
from runtime.server.review_tray import ReviewTray

FRAME_INTERVAL = 1.0  # seconds between two frames that enter the review: encoding one takes up to 25 ms
PHOTOS_REMEMBERED = 200
CAMERA = "camera"  # the source of a frame; the camera's own name may be an address


class ReviewCollector:
    """Puts uncertain pictures into `tray` while `is_on()`. Its methods run in the threads that classify."""

    def __init__(self, tray: ReviewTray, model: ReloadingClassifier, is_on: Callable[[], bool]) -> None:
        self._tray, self._model, self._is_on = tray, model, is_on
        self._next_frame = 0.0
        self._photos: deque[bytes] = deque(maxlen=PHOTOS_REMEMBERED)  # digests

    def offer_photo(self, prediction: Prediction, data: bytes) -> None:
        """Runs the model again on an uncertain photo, for its features; the same bytes only once."""
        if not self._tray.wants(prediction) or not self._is_on():
            return
        digest = hashlib.blake2b(data, digest_size=16).digest()
        if digest in self._photos:
            return
        self._photos.append(digest)
        classifier = self._model.current()
        with suppress(PictureError, EngineError):  # such as too little memory; the photo has its answer
            features = classifier.infer_uncorrected(
                DECODERS.decode(data, classifier.model.contract.input_size)
            ).features
            if features is not None:
                size = (MAX_SIDE, MAX_SIDE)
                self._tray.add(lambda: DECODERS.decode(data, size, fit=True), prediction, features)

    def offer_frame(self, frame_prediction: FramePrediction) -> None:
        """Stores a frame whose own answer is uncertain or differs from the smoothed answer."""
        now = time.monotonic()
        if now < self._next_frame or frame_prediction.features is None:
            return
        prediction = replace(frame_prediction.unsmoothed, source=CAMERA)
        changed = prediction.answer != frame_prediction.prediction.answer
        if self._tray.wants(prediction, changed=changed) and self._is_on():
            self._next_frame = now + FRAME_INTERVAL
            self._tray.add(frame_prediction.picture, prediction, frame_prediction.features, changed=changed)
