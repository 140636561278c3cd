"""Classifier: a model file in an inference engine, ready for pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import replace
from pathlib import Path
from threading import Lock, Thread
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from runtime.common.errors import EngineError, PictureError, UserError
from runtime.common.text import pluralize
from runtime.inference.correction import OpenedCorrection, open_correction
from runtime.inference.engine_cache import EngineSelection, load_selection
from runtime.inference.engines import (
    ENGINES,
    ORDER_WITHOUT_VNNI,
    OUTPUTS,
    BrokenEngineError,
    InferenceSession,
    choose_engine,
    default_threads,
    engine_order,
    import_engine,
    is_installed,
    load_session,
    require_engine,
)
from runtime.inference.learned_state import OpenedLearned, open_learned
from runtime.inference.parallel_sessions import MAX_PARALLEL_MODEL_BYTES, ParallelSessions
from runtime.inference.prediction import ClassScore, ModelOutput, Prediction
from runtime.inference.prefetch import DecodedPicture, decode, prefetch
from runtime.inference.strictness import strict_threshold
from runtime.model_file.formats import FORMATS
from runtime.model_file.loader import open_model
from runtime.model_file.releases import check_release, record_release
from runtime.model_file.selection import choose_model

if TYPE_CHECKING:
    from runtime.inference.learning import Learned
    from runtime.model_file.index import IndexedFile
    from runtime.preprocess.picture import Pixels, Source

_FORK_LOCK = Lock()  # of a forked process that loads its engine
_INHERITED = list[object]()  # engines of the parent of a forked process: freeing one waits for its threads
SAME_THRESHOLD = 1e-6  # a correction may give another machine another last digit


class Classifier:
    """Classifies pictures with one model in one engine.

    `model` is a folder that an export wrote, or one of its files; without it the newest model under ./models
    is used, else the released model. `engine` is "auto", "litert", "onnx", "openvino" or "tflite". "auto"
    takes the fastest file and engine that was measured on this machine, else the first that is installed, in
    an order that depends on the processor; `engine_reason` says which and why. An engine that cannot be
    imported is left out, and `engine_problem` says so. `threads` defaults to the
    fastest measured number, else to the number of cores. With `key`, a public key's PEM file (default: the
    file that VGG_EDGE_KEY names), only a model that this key signed is loaded, and none older than a release
    of its name that has run here, except with `allow_rollback`.

    `correction` names the file of `python -m runtime.adapt` to use, or "none"; without it the file next to
    the model is used, if there is one. A model that must be signed is corrected with `allow_correction` only.
    `correction_problem` says why a file next to the model is not used.

    `learned` names the folder of `python -m runtime.teach` to use, or "none"; without it the folder next to
    the model is used. A model that must be signed learns, and uses what it learned, with `allow_learning`
    only. `learned_problem` says why a learned state is not used, or that it was learned for another
    threshold.

    `reject` is the share (0 to 1) of photos of the classes that may get the answer "unknown", such as 0.1:
    the model then names fewer pictures of other things. Default: the share that it was trained with.

    With `parallel`, several threads classify pictures at the same time, each in a session of one thread, if
    the model file has at most 8 MB (MAX_PARALLEL_MODEL_BYTES). A forked process loads the model into the
    engine again for its first picture. Raises ModelError or EngineError.
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
        learned: str | Path | None = None,
        allow_learning: bool = False,
        allow_rollback: bool = False,
        reject: float | None = None,
        parallel: bool = False,
    ) -> None:
        self.top, self.reject = top, reject
        self._open(model, engine, threads, key, allow_rollback)
        self._allow_rollback, self._is_recorded = allow_rollback, False
        parallel = parallel and len(self.model.data) <= MAX_PARALLEL_MODEL_BYTES
        self._parallel_count = (threads or default_threads()) if parallel else 1
        self._sessions = ParallelSessions(self._load_single, self._parallel_count)
        self._process = os.getpid()
        self._set_correction(open_correction(self.model, correction, allowed=allow_correction))
        self._allow_learning = allow_learning
        self._set_learned(open_learned(self.model, learned, allowed=allow_learning))

    def __str__(self) -> str:
        reason = f" ({self.model.reason})" if self.model.reason else ""
        correction = f", corrected by {self.correction_path}" if self.correction else ""
        learned = f", with {self.learned_folder}" if self.learned else ""
        threads = pluralize(self.threads, "thread")
        return f"{self.model.path} on {self.session.engine}, {threads}{correction}{learned}{reason}"

    def _open(
        self,
        model: str | Path | None,
        engine: str,
        threads: int | None,
        key: str | Path | None,
        allow_rollback: bool,
        broken: Mapping[str, BrokenEngineError] = MappingProxyType({}),
    ) -> None:
        """Opens the model in the engine. For "auto", tries the next engine where one cannot be imported."""
        self.formats = _usable_formats(engine, broken)
        selection = choose_model(model, self.formats)
        measured = load_selection(selection.candidates) if engine == "auto" else ""
        if isinstance(measured, EngineSelection) and measured.engine in broken:
            measured = f"{measured.engine} was the fastest"
        fastest = measured if isinstance(measured, EngineSelection) else None
        self.preferred_sha256 = fastest.sha256 if fastest else ""
        # Reading and hashing a model releases the GIL: the imports run at the same time.
        imports = (fastest.engine if fastest else engine, selection.path.suffix.removeprefix("."), broken)
        Thread(target=_preload, args=imports, daemon=True).start()
        self.model = open_model(model, self.formats, prefer=self.preferred_sha256, key=key)
        if not allow_rollback:
            check_release(self.model)
        self.threads, self.engine_reason, chosen = threads or default_threads(), "", engine
        self.unmeasured: tuple[IndexedFile, ...] = ()  # to choose from, where the engine is chosen by rule
        # The folder may have been replaced since the selection: then the measurement is of another file.
        if fastest and self.model.sha256 == fastest.sha256:
            chosen, self.threads = fastest.engine, threads or fastest.threads
            self.engine_reason = f"auto: {fastest}"
        elif engine == "auto":
            chosen = choose_engine(self.model.format, broken)
            self.unmeasured = selection.candidates
            self.engine_reason = _explain_rule(chosen, str(measured))
        try:
            self.session = load_session(self.model, chosen, self.threads)
        except BrokenEngineError as error:
            if engine != "auto":
                raise
            self._open(model, engine, threads, key, allow_rollback, {**broken, chosen: error})
        else:
            problems = [str(error) for error in broken.values()]
            self.engine_problem = "; ".join([*problems, f"{chosen} runs instead"]) if broken else ""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the answers: the classes of the model, then those that it learned on this device."""
        return self.learned.labels if self.learned else self.model.contract.labels

    def _set_correction(self, opened: OpenedCorrection) -> None:
        self.correction, self.correction_problem = opened.correction, opened.problem
        self.correction_path = opened.path
        self.threshold = self.model.contract.thresholds.get("known", 0.0)
        if self.reject is not None:
            self.threshold = strict_threshold(self.model, self.reject, self.correction)

    def _set_learned(self, opened: OpenedLearned) -> None:
        self.learned, self.learned_problem = opened.state, opened.problem
        self.learned_folder = opened.folder
        learned_with = self.learned.threshold if self.learned else None
        if learned_with is not None and abs(learned_with - self.threshold) > SAME_THRESHOLD:
            self.learned_problem = (
                f"{self.learned_folder}: was learned for another threshold of `known`: run `python -m "
                "runtime.teach --again` with the --reject of this command"
            )

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

    def with_learned(self, learned: str | Path | None, *, allow_learning: bool) -> Classifier:
        """Returns a classifier with the same loaded model, and the learned state that is on the disk now.

        The arguments are those of the constructor. Raises ModelError.
        """
        classifier = copy(self)
        classifier._allow_learning = allow_learning
        classifier._set_learned(open_learned(self.model, learned, allowed=allow_learning))
        return classifier

    def with_additions_of(self, other: Classifier) -> Classifier:
        """Returns a classifier with the same loaded model, and `other`'s correction and learned state.

        `other` has another file of the same model.
        """
        classifier = copy(self)
        classifier._set_correction(
            OpenedCorrection(other.correction_path, other.correction, other.correction_problem)
        )
        classifier._allow_learning = other._allow_learning
        classifier._set_learned(OpenedLearned(other.learned_folder, other.learned, other.learned_problem))
        return classifier

    def learning_folder(self) -> Path:
        """Returns the folder of the learned state. Raises UserError where this classifier may not learn."""
        if self.learned_folder is None:
            raise UserError("--learned none: a learned state is neither read nor written: leave the flag out")
        if self.model.signature and not self._allow_learning:
            raise UserError(
                "this device accepts signed models only, and nobody signs a learned state: to learn "
                "anyway, pass --allow-learning here and to classify and serve"
            )
        return self.learned_folder

    def teach(self, label: str, photos: Source | Iterable[Source], *, max_mb: float | None = None) -> Learned:
        """Keeps photos of a label, learns all kept photos, and uses the result from the next picture on.

        A label that is not in `labels` becomes a new class; "none" are photos of none of the classes. The
        oldest photos make room when all files have over `max_mb` MB (default: 200, or their present size).
        The result names the photos that cannot be read; the others are learned. If this fails, or Ctrl-C
        stops it, no photo is kept. Raises UserError, such as for a name that cannot be a label, or without a
        readable photo.
        """
        from runtime.inference.learning import teach  # late: classifying does not need it

        folder = self.learning_folder()
        learned = teach(
            self.model,
            self.infer_uncorrected,
            folder,
            label,
            photos,
            self.labels,
            self.correction,
            threshold=self.threshold,
            max_mb=max_mb,
        )
        self._set_learned(OpenedLearned(folder, learned.state))
        return learned

    def learn(self, *, max_mb: float | None = None) -> Learned:
        """Learns all kept photos, such as for a new model, and uses the result from the next picture on.

        Raises UserError.
        """
        from runtime.inference.learning import learn  # late: classifying does not need it

        folder = self.learning_folder()
        learned = learn(
            self.model,
            self.infer_uncorrected,
            folder,
            self.correction,
            threshold=self.threshold,
            max_mb=max_mb,
        )
        self._set_learned(OpenedLearned(folder, learned.state))
        return learned

    def details(self) -> list[str]:
        """Returns a line each for engine, correction, learned state and threshold, for --verbose."""
        correction = f"{self.correction_path}: {self.correction}" if self.correction else ""
        learned = f"{self.learned_folder}: {self.learned}" if self.learned else ""
        strict = ""
        if self.reject is not None:
            strict = (
                f"rejects about {self.reject:.1%} of the photos of the classes: the threshold of `known` is "
                f"{self.threshold:.3f} instead of {self.model.contract.thresholds['known']:.3f}"
            )
        return [line for line in (self.engine_reason, correction, learned, strict) if line]

    def __call__(self, source: Source) -> Prediction:
        """Classifies a path, a picture's encoded bytes, a binary file, or pixels, uint8 [H, W, 3], RGB.

        Raises PictureError, DecoderError when the process that decodes does not start, and what `infer` does.
        """
        picture = decode(source, self.model.contract.input_size)
        if isinstance(picture.pixels, PictureError):
            raise picture.pixels
        return self._predict(picture, picture.pixels)

    def predict_many(self, sources: Iterable[Source]) -> Iterator[tuple[Source, Prediction | PictureError]]:
        """Yields each source with its prediction or its error.

        While it classifies a source, it decodes the next ones.
        Raises TypeError for a single source, whose characters, bytes or rows would be taken for sources.
        """
        if isinstance(sources, (str, bytes)) or (isinstance(sources, np.ndarray) and sources.ndim < 4):
            raise TypeError("predict_many takes several sources: put a single one in a list")
        return predict_many(lambda: self, sources)

    def infer(self, pixels: Pixels) -> ModelOutput:
        """Runs the model on pixels, uint8 [H, W, 3], RGB, of its input size.

        Threads run it one at a time, or with `parallel` on a core each, and their clients take turns
        (fair_semaphore.py). The time in the result is the engine's alone.
        Raises EngineError, and ModelError when the release of a signed model cannot be recorded.
        """
        output = self.infer_uncorrected(pixels)
        if self.correction and output.known is not None and output.features is not None:
            known = self.correction.apply(np.array([output.known]), output.features[np.newaxis])
            output = replace(output, known=known.item())
        return self._apply_learned(output) if self.learned else output

    def _apply_learned(self, output: ModelOutput) -> ModelOutput:
        state, features = self.learned, output.features
        if state is None or features is None:
            return output
        known = None if output.known is None else np.array(output.known)
        probabilities, known = state.apply(output.probabilities, known, features)
        changed = None if known is None else known.item()
        return replace(output, probabilities=probabilities, known=changed, labels=state.labels)

    def infer_uncorrected(self, pixels: Pixels) -> ModelOutput:
        """Returns the outputs that the model file computes, to learn from them. Raises as `infer` does."""
        if self._process != os.getpid():
            self._load_after_fork()
        with self._sessions.take(self.session) as session:
            started = time.perf_counter()
            outputs = session(pixels[np.newaxis])
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
            labels=self.model.contract.labels,
        )

    def to_prediction(self, source: str, output: ModelOutput, decode_ms: float) -> Prediction:
        """Returns the output with labels instead of positions, and with `known` decided by the threshold."""
        best = np.argsort(-output.probabilities, kind="stable")[: max(1, self.top)]
        labels = output.labels or self.labels
        scores = tuple(ClassScore(labels[i], round(float(output.probabilities[i]), 6)) for i in best)
        known = None if output.known is None else bool(output.known >= self.threshold)
        return Prediction(
            source=source,
            label=scores[0].label,
            probability=scores[0].probability,
            known=known,
            top=scores,
            ms={"decode": round(decode_ms, 1), "infer": round(output.ms, 1)},
        )

    def _load_after_fork(self) -> None:
        """Loads the model into the engine again, in a forked process.

        The threads of the engine, and those that hold its locks, are in the parent: it would wait for ever.
        """
        with _FORK_LOCK:
            if self._process != os.getpid():
                _INHERITED.append((self.session, self._sessions))
                self.session = load_session(self.model, self.session.name, self.threads)
                self._sessions = ParallelSessions(self._load_single, self._parallel_count)
                self._process = os.getpid()

    def _load_single(self) -> InferenceSession:
        return load_session(self.model, self.session.name, threads=1)

    def _predict(self, picture: DecodedPicture, pixels: Pixels) -> Prediction:
        return self.to_prediction(_source_name(picture.source), self.infer(pixels), picture.decode_ms)


def predict_many(
    current: Callable[[], Classifier], sources: Iterable[Source]
) -> Iterator[tuple[Source, Prediction | PictureError]]:
    """Yields what Classifier.predict_many does. `current` returns the classifier for each picture.

    All classifiers have the same input size.
    """
    with prefetch(sources, current().model.contract.input_size) as pictures:
        for picture in pictures:
            if isinstance(picture.pixels, PictureError):
                yield picture.source, picture.pixels
            else:
                yield picture.source, current()._predict(picture, picture.pixels)


def _usable_formats(engine: str, broken: Collection[str]) -> list[str]:
    """Returns the formats to open, best first. Raises EngineError."""
    if engine == "auto":
        usable = [name for name in engine_order() if is_installed(name) and name not in broken]
        # Formats without a usable engine come last: choose_engine() then says what to install.
        formats = [ENGINES[name].format for name in usable] + list(FORMATS)
    elif engine in ENGINES:
        require_engine(engine)
        formats = [ENGINES[engine].format]
    else:
        raise EngineError(f"no engine is called {engine!r}: choose auto, {', '.join(ENGINES)}")
    return list(dict.fromkeys(formats))


def _explain_rule(engine: str, reason: str) -> str:
    """Returns why `auto` takes the engine, where nothing was measured for this reason."""
    order = engine_order()
    processor = "on x86 without VNNI " if order == ORDER_WITHOUT_VNNI else ""
    return (
        f"auto: {engine}, by rule: {processor}the first installed of {', '.join(order)}, int8 first "
        f"({reason}); `python -m runtime.bench --save` finds the fastest"
    )


def _preload(engine: str, format: str, broken: Mapping[str, BrokenEngineError]) -> None:
    """Imports the engine. A failure is reported where the module is used."""
    with suppress(UserError):
        import_engine(choose_engine(format, broken) if engine == "auto" else engine)


def _source_name(source: Source) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    name = getattr(source, "name", None)  # of an open file; encoded bytes have none
    return name if isinstance(name, str) and name != "<stdin>" else "-"
