"""Adaptation to a scene: photos that people mark on the page, and the correction that is fitted to them."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from runtime.common.atomic import reported_writes
from runtime.common.errors import ModelError, PictureError
from runtime.common.terminal import print_info
from runtime.common.text import pluralize
from runtime.inference.adaptation import (
    FEW_PHOTOS,
    Adaptation,
    SceneFeatures,
    check_adaptable,
    fit_correction,
)
from runtime.inference.classifier import Classifier
from runtime.inference.correction import (
    CORRECTION_FLAG,
    NONE,
    SUFFIX,
    Correction,
    check_replaceable,
    correction_path,
    write_correction,
)
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.inference.prediction import ModelOutput
from runtime.inference.prefetch import DECODERS
from runtime.preprocess.stored_photo import MAX_SIDE
from runtime.server.errors import RequestRejected, reject_user_errors
from runtime.server.exclusive_worker import ExclusiveWorker
from runtime.server.multipart import Upload
from runtime.server.none_tray import NoneTray

TRAY_SUFFIX = ".none"  # of the tray's folder, beside the correction


class SceneAdapter:
    """The tray and the correction of the model in use.

    `correction` and `allow_correction` are those of the Classifier. The tray is a folder beside the
    correction: each model has its own, because a photo of none of its classes may show a class of another.
    """

    def __init__(
        self,
        model: ReloadingClassifier,
        *,
        correction: str | Path | None = None,
        allow_correction: bool = False,
    ) -> None:
        self._model, self._allow_correction = model, allow_correction
        self._correction_option = correction
        self._tray: NoneTray | None = None
        self._outputs: dict[tuple[str, str], ModelOutput] = {}  # by the model's sha256 and the photo's id
        self._worker = ExclusiveWorker("adapt", "the service is adapting already")

    def unavailable(self) -> str:
        """One line on why the model in use cannot be adapted; "" if it can."""
        model = self._model.current().model
        if self._correction_option == NONE:
            return "the service runs with --correction none: start it without this flag"
        if model.signature and not self._allow_correction:
            return (
                "this service accepts signed models only, and nobody signs a correction: start it with "
                "--allow-correction"
            )
        try:
            check_adaptable(model)
        except ModelError as error:
            return str(error)
        return ""

    def tray(self) -> NoneTray:
        """The tray of the model in use. Raises RequestRejected (409) if the model cannot be adapted."""
        if reason := self.unavailable():
            raise RequestRejected(409, reason)
        path = self._correction_path()
        folder = path.with_name(path.name.removesuffix(SUFFIX) + TRAY_SUFFIX)
        if self._tray is None or self._tray.folder != folder:
            self._tray = NoneTray(folder)
        return self._tray

    def mark(self, classifier: Classifier, upload: Upload) -> str:
        """Stores an uploaded picture in the tray and returns its id. Raises PictureError and WriteError."""
        tray = self.tray()
        with reported_writes(tray.folder, CORRECTION_FLAG):
            id = tray.add(DECODERS.decode(upload.data, (MAX_SIDE, MAX_SIDE), fit=True))
        with suppress(PictureError, KeyError):  # removed by another viewer meanwhile
            self._output(classifier, tray, id)  # here, so that adapting takes little time
        kept = set(tray.ids())  # the tray is bounded, and so are the outputs
        self._outputs = {key: output for key, output in self._outputs.copy().items() if key[1] in kept}
        return id

    async def adapt(self) -> dict[str, Any]:
        """Fits a correction to the photos in the tray, writes it and uses it for the next picture.

        Returns the fields of openapi.json's schema Adaptation. Raises RequestRejected (409, 503),
        WriteError and EngineError.
        """
        return await self._worker.run(self._adapt)

    async def reset(self) -> None:
        """Removes the correction. Raises RequestRejected (409, 503) and WriteError."""
        await self._worker.run(self._reset)

    def close(self) -> None:
        self._worker.close()

    def _adapt(self) -> dict[str, Any]:
        tray, classifier = self.tray(), self._model.current()
        scene = self._scene_features(classifier, tray)
        if not scene.names:
            raise RequestRejected(409, "the tray is empty: press “None of these”, or POST a photo to /none")
        model = classifier.model
        with reject_user_errors():
            adaptation = fit_correction(model.contract, model.read_statistics(), scene)
            path = correction_path(model, self._correction_option)
            check_replaceable(path, self._correction_option)
        write_correction(path, adaptation.correction)
        self._model.reload_additions()
        print_info(describe(adaptation))
        return adaptation_fields(adaptation)

    def _correction_path(self) -> Path:
        return correction_path(self._model.current().model, self._correction_option)

    def _reset(self) -> None:
        self.tray()  # raises if the model cannot be adapted
        path = self._correction_path()
        with reject_user_errors():
            check_replaceable(path, self._correction_option)
        with reported_writes(path, CORRECTION_FLAG):
            path.unlink(missing_ok=True)
        self._model.reload_additions()

    def _scene_features(self, classifier: Classifier, tray: NoneTray) -> SceneFeatures:
        """The outputs for all photos in the tray; a photo that cannot be read is left out."""
        outputs: dict[str, ModelOutput] = {}
        for id in tray.ids():
            with suppress(PictureError, KeyError):  # damaged, or removed by another viewer
                outputs[id] = self._output(classifier, tray, id)
        self._outputs = {(classifier.model.sha256, id): output for id, output in outputs.items()}
        return SceneFeatures(
            names=list(outputs),
            known=np.array([output.known for output in outputs.values()]),
            features=np.array([output.features for output in outputs.values()]),
        )

    def _output(self, classifier: Classifier, tray: NoneTray, id: str) -> ModelOutput:
        """The outputs for a photo of the tray, computed once. Raises PictureError, KeyError, EngineError."""
        key = classifier.model.sha256, id
        if (output := self._outputs.get(key)) is None:
            pixels = DECODERS.decode(tray.path(id), classifier.model.contract.input_size)
            self._outputs[key] = output = classifier.infer_uncorrected(pixels)
        return output


def adaptation_fields(adaptation: Adaptation) -> dict[str, Any]:
    """The fields of openapi.json's schema Adaptation."""
    names = ("photos", "named_before", "named_after", "left_out")
    return {name: getattr(adaptation, name) for name in names} | {
        "correction": correction_fields(adaptation.correction),
        "text": describe(adaptation),
        "warning": warnings(adaptation),
    }


def describe(adaptation: Adaptation) -> str:
    """One line with the effect of a correction, for the page."""
    correction, named = adaptation.correction, adaptation.named_before
    photos, were = pluralize(adaptation.photos, "photo"), "was" if named == 1 else "were"
    return (
        f"{photos}: {named} {were} named as a class, "
        f"now {adaptation.named_after}; photos of the classes rejected: {correction.rejected_before:.1%} → "
        f"{correction.rejected_after:.1%}"
    )


def warnings(adaptation: Adaptation) -> str:
    """Possible problems of the photos in the tray; "" without a problem."""
    texts = []
    if left_out := len(adaptation.left_out):
        texts.append(f"Left out, because they seem to show a class: {pluralize(left_out, 'photo')}.")
    if adaptation.photos < FEW_PHOTOS:
        texts.append(f"The result of few photos is not reliable: add more, at least {FEW_PHOTOS}, better 50.")
    elif 2 * adaptation.named_after > adaptation.photos:
        texts.append("Most of the photos are still named: add more, or train again with them.")
    return " ".join(texts)


def correction_fields(correction: Correction) -> dict[str, Any]:
    """The fields of openapi.json's schema Correction."""
    names = ("created", "photos", "rejected_before", "rejected_after")
    return {name: getattr(correction, name) for name in names}
