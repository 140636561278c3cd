"""Classifier: a model file in an inference engine, ready for pictures."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from copy import copy
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING

import numpy as np

from runtime.common.errors import EngineError, PictureError
from runtime.inference.correction import OpenedCorrection, open_correction
from runtime.inference.engine_cache import EngineSelection, load_selection
from runtime.inference.engines import (
    ENGINE_FORMATS,
    ENGINE_MODULES,
    ENGINES,
    OUTPUTS,
    choose_engine,
    count_threads,
    default_threads,
    is_installed,
    load_session,
    require_engine,
)
from runtime.inference.prediction import ClassScore, ModelOutput, Prediction
from runtime.inference.prefetch import DecodedPicture, decode, prefetch
from runtime.model_file.formats import FORMATS
from runtime.model_file.loader import open_model
from runtime.model_file.releases import check_release, record_release
from runtime.model_file.selection import choose_model

if TYPE_CHECKING:
    from runtime.preprocess.picture import Pixels, Source


class Classifier:
    """Classifies pictures with one model in one engine.

    `model` is a folder that an export wrote, or one of its files; without it the newest model under ./models
    is used, else the released model. `engine` is "auto", "litert", "onnx" or "tflite". "auto" takes the
    fastest file and engine that `python -m runtime.bench --save` measured, else the first that is installed;
    `engine_reason` says which and why. `threads` defaults to the fastest measured number, else to the number
    of cores. With `key`, a public key's PEM file (default: the file that VGG_EDGE_KEY names), only a model
    that this key signed is loaded, and none older than a release of its name that has run here, except with
    `allow_rollback`.

    `correction` names the file of `python -m runtime.adapt` to use, or "none"; without it the file next to
    the model is used, if there is one. A model that must be signed is corrected with `allow_correction` only.
    `correction_problem` says why a file next to the model is not used. Raises ModelError or EngineError.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        engine: str = "auto",
        threads: int | None = None,
        top: int = 3,
        key: str | Path | None = None,
        correction: str | Path | None = None,
        allow_correction: bool = False,
        allow_rollback: bool = False,
    ) -> None:
        self.top = top
        self.formats = _usable_formats(engine)
        selection = choose_model(model, self.formats)
        measured = load_selection(selection.candidates) if engine == "auto" else ""
        fastest = measured if isinstance(measured, EngineSelection) else None
        self.preferred_sha256 = fastest.sha256 if fastest else ""
        # Reading and hashing a model releases the GIL: the imports run at the same time.
        imports = (fastest.engine if fastest else engine, selection.path.suffix.removeprefix("."))
        Thread(target=_preload, args=imports, daemon=True).start()
        self.model = open_model(model, self.formats, prefer=self.preferred_sha256, key=key)
        if not allow_rollback:
            check_release(self.model)
        self._allow_rollback, self._is_recorded = allow_rollback, False
        self.engine_reason = ""
        # The folder may have been replaced since the selection: then the measurement is of another file.
        if fastest and self.model.sha256 == fastest.sha256:
            engine, threads = fastest.engine, threads or fastest.threads
            self.engine_reason = f"auto: {fastest}"
        self.threads = threads or default_threads()
        self.session = load_session(self.model, engine, self.threads)
        self._lock = Lock()  # interpreters are not thread-safe
        self._set_correction(open_correction(self.model, correction, allowed=allow_correction))
        if engine == "auto":
            self.engine_reason = (
                f"auto: {self.session.engine.split()[0]}, by rule: the first installed of "
                f"{', '.join(ENGINES)}, int8 first ({measured}); "
                "`python -m runtime.bench --save` finds the fastest"
            )

    def __str__(self) -> str:
        reason = f" ({self.model.reason})" if self.model.reason else ""
        correction = f", corrected by {self.correction_path}" if self.correction else ""
        threads = count_threads(self.threads)
        return f"{self.model.path} on {self.session.engine}, {threads}{correction}{reason}"

    def _set_correction(self, opened: OpenedCorrection) -> None:
        self.correction, self.correction_problem = opened.correction, opened.problem
        self.correction_path = opened.path

    def record_release(self) -> None:
        """Records that a signed model has run, so that no older one runs after it. Raises ModelError."""
        record_release(self.model, allow_rollback=self._allow_rollback)
        self._is_recorded = True

    def with_correction(self, correction: str | Path | None, *, allow_correction: bool) -> Classifier:
        """Returns a classifier with the same loaded model, and the correction that is on the disk now.

        The arguments are those of the constructor. Raises ModelError.
        """
        classifier = copy(self)
        classifier._set_correction(open_correction(self.model, correction, allowed=allow_correction))
        return classifier

    def details(self) -> list[str]:
        """Returns a line each for the choice of the engine and for the correction, for --verbose."""
        correction = f"{self.correction_path}: {self.correction}" if self.correction else ""
        return [line for line in (self.engine_reason, correction) if line]

    def __call__(self, source: Source) -> Prediction:
        """Classifies a path, a picture's encoded bytes, a binary file, or pixels, uint8 [H, W, 3], RGB.

        Raises PictureError.
        """
        picture = decode(source, self.model.contract.input_size)
        if isinstance(picture.pixels, PictureError):
            raise picture.pixels
        return self._predict(picture, picture.pixels)

    def predict_many(self, sources: Iterable[Source]) -> Iterator[tuple[Source, Prediction | PictureError]]:
        """Yields each source with its prediction, or with its error, and decodes the next ones meanwhile."""
        with prefetch(sources, self.model.contract.input_size) as pictures:
            for picture in pictures:
                if isinstance(picture.pixels, PictureError):
                    yield picture.source, picture.pixels
                else:
                    yield picture.source, self._predict(picture, picture.pixels)

    def infer(self, pixels: Pixels) -> ModelOutput:
        """Runs the model on pixels, uint8 [H, W, 3], RGB, of its input size.

        One thread at a time runs it; the time in the result is the engine's alone. Raises EngineError, and
        ModelError when the release of a signed model cannot be recorded.
        """
        output = self.infer_uncorrected(pixels)
        if not self.correction or output.known is None or output.features is None:
            return output
        known = self.correction.apply(np.array([output.known]), output.features[np.newaxis])
        return replace(output, known=known.item())

    def infer_uncorrected(self, pixels: Pixels) -> ModelOutput:
        """Returns the outputs that the model file computes, to fit a correction. Raises as `infer` does."""
        with self._lock:
            started = time.perf_counter()
            outputs = self.session(pixels[np.newaxis])
            ms = 1000 * (time.perf_counter() - started)
        for name, output in outputs.items():
            if name in OUTPUTS and not np.isfinite(output).all():
                raise EngineError(f"{self.model.path}: {self.session.engine} computed NaN or infinite {name}")
        if not self._is_recorded:
            self.record_release()
        return ModelOutput(
            probabilities=outputs["probabilities"][0],
            known=outputs["known"].item() if "known" in outputs else None,
            ms=ms,
            features=outputs["features"][0] if self.model.contract.features else None,
        )

    def to_prediction(self, source: str, output: ModelOutput, decode_ms: float) -> Prediction:
        """Returns the output with labels instead of positions, and with `known` decided by the threshold."""
        contract = self.model.contract
        best = np.argsort(-output.probabilities, kind="stable")[: max(1, self.top)]
        scores = tuple(ClassScore(contract.labels[i], round(float(output.probabilities[i]), 6)) for i in best)
        known = None if output.known is None else bool(output.known >= contract.thresholds["known"])
        return Prediction(
            source=source,
            label=scores[0].label,
            probability=scores[0].probability,
            known=known,
            top=scores,
            ms={"decode": round(decode_ms, 1), "infer": round(output.ms, 1)},
        )

    def _predict(self, picture: DecodedPicture, pixels: Pixels) -> Prediction:
        return self.to_prediction(_source_name(picture.source), self.infer(pixels), picture.decode_ms)


def _usable_formats(engine: str) -> list[str]:
    """Returns the formats to open, best first. Raises EngineError."""
    if engine == "auto":
        # Formats without an installed engine come last: load_session() then says what to install.
        formats = [ENGINE_FORMATS[name] for name in ENGINES if is_installed(name)] + list(FORMATS)
    elif engine in ENGINES:
        require_engine(engine)
        formats = [ENGINE_FORMATS[engine]]
    else:
        raise EngineError(f"no engine is called {engine!r}: choose auto, {', '.join(ENGINES)}")
    return list(dict.fromkeys(formats))


def _preload(engine: str, format: str) -> None:
    """Imports the engine. A failure is reported where the module is used."""
    with suppress(Exception):
        engine = choose_engine(format) if engine == "auto" else engine
        import_module(ENGINE_MODULES[engine] if engine == "onnx" else f"{ENGINE_MODULES[engine]}.interpreter")


def _source_name(source: Source) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    name = getattr(source, "name", None)  # of an open file; encoded bytes have none
    return name if isinstance(name, str) and source is not sys.stdin.buffer else "-"
