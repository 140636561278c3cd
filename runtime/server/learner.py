"""Learning on the page: pictures that people name, and the state that is fitted to them."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from runtime.camera.stream import to_iso
from runtime.common.atomic import reported_writes
from runtime.common.errors import ModelError, UserError
from runtime.common.terminal import print_error, print_info
from runtime.common.text import pluralize, printable
from runtime.inference.classifier import Classifier
from runtime.inference.correction import NONE
from runtime.inference.learned_state import (
    LEARNED_FLAG,
    MAX_STATE_BYTES,
    STATE_NAME,
    LearnedState,
    describe_learning,
    learned_folder,
    read_previous,
)
from runtime.inference.learning import check_teachable, count_removed, learn, pending_photos, reset, undo
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.inference.prefetch import DECODERS
from runtime.inference.taught_photos import TaughtPhoto, TaughtPhotos, check_label
from runtime.model_file.files import is_file, read_bytes
from runtime.model_file.loader import ModelFile
from runtime.preprocess.photo_files import NONE_LABEL
from runtime.preprocess.stored_photo import MAX_PHOTO_BYTES, MAX_SIDE, added_at
from runtime.server.errors import RequestRejected, reject_user_errors
from runtime.server.exclusive_worker import ExclusiveWorker
from runtime.server.multipart import Upload
from runtime.server.review_tray import ReviewPicture, ReviewTray

POLL_SECONDS = 2.0
RETRY_SECONDS = 20.0
FLAG = "start it with --allow-learning"


class Learner:
    """The named pictures and the learned state of the model in use, and the pictures to review.

    `learned` and `allow_learning` are those of the Classifier. A service that other machines can reach,
    `is_reachable`, learns only with `allow_learning`.
    """

    def __init__(
        self,
        model: ReloadingClassifier,
        review: ReviewTray,
        *,
        learned: str | Path | None = None,
        allow_learning: bool = False,
        is_reachable: bool = False,
    ) -> None:
        self.review = review
        self._model, self._learned_option = model, learned
        self._allow_learning, self._is_reachable = allow_learning, is_reachable
        self._store: tuple[Path, TaughtPhotos] | None = None
        self._reviewed = model.current()  # the classifier of the answers in the review
        self._checked = "", ""  # the sha256 of a model, and why it cannot learn
        self._worker = ExclusiveWorker("learn", "the service is learning already")

    def unavailable(self) -> str:
        """One line on why the service does not learn; "" if it does."""
        return self._forbidden() or self._unable()

    def require_available(self) -> None:
        """Raises RequestRejected: 403 if learning is not allowed, 409 if the model cannot learn."""
        if reason := self._forbidden():
            raise RequestRejected(403, reason)
        if reason := self._unable():
            raise RequestRejected(409, reason)

    def store(self) -> TaughtPhotos:
        """The named pictures of the model in use. Raises RequestRejected (403, 409)."""
        self.require_available()
        folder = self._folder()
        if self._store is None or self._store[0] != folder:
            self._store = folder, TaughtPhotos(folder)
        return self._store[1]

    def check_label(self, label: str) -> str:
        """The label as it is stored. Raises RequestRejected: 400 if it is no name, 403 and 409."""
        labels = self._labels(self.store().photos())
        try:
            return check_label(label.strip(), labels, self._model.current().model.contract.labels)
        except UserError as error:
            raise RequestRejected(400, str(error)) from None

    def add(self, classifier: Classifier, upload: Upload, *, label: str) -> str:
        """Stores an uploaded picture and returns its id.

        Raises RequestRejected (403, 409), WriteError, PictureError and EngineError.
        """
        label = self.check_label(label)  # again: other requests may have started classes since
        id = self._add(label, upload.data)
        pixels = DECODERS.decode(upload.data, classifier.model.contract.input_size)
        if (features := classifier.infer_uncorrected(pixels).features) is not None:
            self.review.decide(features)
        return id

    def name_review(self, picture: ReviewPicture, label: str) -> str:
        """Stores a picture of the review under a label and returns its id. Raises as `add`."""
        id = self._add(label, picture.jpeg)
        with suppress(KeyError):  # named or removed by another viewer
            self.review.remove(picture.id)
        return id

    def read(self, id: str) -> bytes:
        """The JPEG of a named picture. Raises RequestRejected (403, 404, 409)."""
        try:
            return read_bytes(self.store().find(id).path, MAX_PHOTO_BYTES)
        except (KeyError, ModelError):
            raise _no_picture() from None

    def remove(self, id: str) -> None:
        """Deletes a named picture. Raises RequestRejected (403, 404, 409) and WriteError."""
        store = self.store()
        try:
            with reported_writes(store.folder, LEARNED_FLAG):
                store.remove(id)
        except KeyError:
            raise _no_picture() from None

    async def learn(self) -> dict[str, Any]:
        """Fits a state to the named pictures, writes it and uses it for the next picture.

        Returns the fields of openapi.json's schema Lesson. Raises RequestRejected (403, 409, 503),
        WriteError and EngineError.
        """
        return dict(await self._change(self._learn))

    async def undo(self) -> dict[str, Any]:
        """Restores the state before the last change; returns the fields of openapi.json's schema Undone."""
        return dict(await self._change(self._undo))

    async def forget(self) -> None:
        """Deletes the learned state and the named pictures. Raises the exceptions of `learn`."""
        await self._change(lambda: reset(self._folder()))

    async def follow_model(self) -> None:
        """Learns the named pictures again for each new model, and classifies the review again, forever.

        An error is reported once, and the attempt is repeated: another program may be learning for a while.
        """
        retry_at, reported = 0.0, ""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if self._model.current() is not self._reviewed:  # such as taught by another program
                await asyncio.to_thread(self._refresh_review)
            if time.monotonic() < retry_at or self.unavailable():
                continue
            if not await asyncio.to_thread(self._is_of_other_model):
                continue
            try:
                await self._change(self._learn)
            except (RequestRejected, UserError) as error:
                retry_at, reason = time.monotonic() + RETRY_SECONDS, printable(str(error))
                if reason != reported:
                    print_error(f"the named pictures are not learned for the new model yet: {reason}")
                reported = reason

    def close(self) -> None:
        self._worker.close()

    def list_photos(self) -> dict[str, Any]:
        """The fields of openapi.json's schema Taught. Raises RequestRejected (403, 409)."""
        classifier, store = self._model.current(), self.store()
        photos, state = store.photos(), classifier.learned
        pending = {photo.id for photo in pending_photos(state, photos)}
        labels = self._labels(photos)
        return {
            "photos": [
                {
                    "id": photo.id,
                    "label": photo.label,
                    "time": to_iso(added_at(photo.id)),
                    "learned": photo.id not in pending,
                }
                for photo in photos
            ],
            "removed": count_removed(state, photos) if state else 0,
            "labels": labels,
            "new_labels": labels[len(classifier.model.contract.labels) :],
            "folder": printable(str(store.folder)),
            "learned": learned_fields(state),
            "can_undo": self._can_undo(),
        }

    def status(self) -> dict[str, Any]:
        """The field `learning` of openapi.json's schema Status."""
        reason, classifier = self.unavailable(), self._model.current()
        photos = [] if reason else self.store().photos()
        return {
            "unavailable": reason,
            "photos": len(photos),
            "newest": photos[-1].id if photos else None,
            "labels": self._labels(photos),
            "learned": learned_fields(classifier.learned),
            "can_undo": not reason and self._can_undo(),
            "review": "" if reason else self.review.version,
        }

    def _forbidden(self) -> str:
        if self._is_reachable and not self._allow_learning:
            return f"other machines can reach this service, so it does not learn: {FLAG}"
        return ""

    def _unable(self) -> str:
        model = self._model.current().model
        if self._learned_option == NONE:
            return "the service runs with --learned none: start it without this flag"
        if model.signature and not self._allow_learning:
            return f"this service accepts signed models only, and nobody signs what it learns: {FLAG}"
        if self._checked[0] != model.sha256:  # reading its statistics takes milliseconds
            self._checked = model.sha256, _teaching_problem(model)
        return self._checked[1]

    def _folder(self) -> Path:
        return learned_folder(self._model.current().model, self._learned_option)

    def _labels(self, photos: list[TaughtPhoto]) -> list[str]:
        """The classes in use, and the names that wait to be learned."""
        waiting = (photo.label for photo in photos if photo.label != NONE_LABEL)
        return list(dict.fromkeys([*self._model.current().labels, *waiting]))

    def _is_of_other_model(self) -> bool:
        path = self._folder() / STATE_NAME
        try:
            state = LearnedState.from_bytes(read_bytes(path, MAX_STATE_BYTES)) if is_file(path) else None
        except (ModelError, OSError):  # damaged, or of a later version: it stays as it is
            return False
        return state is not None and state.model_id != self._model.current().model.contract.model_id

    def _can_undo(self) -> bool:
        try:
            read_previous(self._folder())
        except ModelError:
            return False
        return True

    def _add(self, label: str, data: bytes) -> str:
        """Stores an encoded picture and returns its id. Raises as `add`."""
        store = self.store()
        pixels = DECODERS.decode(data, (MAX_SIDE, MAX_SIDE), fit=True)
        with reject_user_errors(), reported_writes(store.folder, LEARNED_FLAG):
            return store.add(label, pixels, data).id

    async def _change(self, work: Callable[[], Any]) -> Any:
        """Runs a job that changes the state, and uses the state for the next picture."""
        self.require_available()

        def change() -> Any:
            with reject_user_errors():
                fields = work()
            self._model.reload_additions()
            return fields

        fields = await self._worker.run(change)
        asyncio.get_running_loop().run_in_executor(None, self._refresh_review)
        return fields

    def _learn(self) -> dict[str, Any]:
        if not self.store().photos():
            if self._model.current().learned:
                raise RequestRejected(
                    409, "no picture is left to learn: press “Forget all”, or DELETE /learn"
                )
            raise RequestRejected(409, "no picture has a name: press “Wrong?”, or POST a picture to /taught")
        started, classifier = time.perf_counter(), self._model.current()
        learned = learn(
            classifier.model,
            classifier.infer_uncorrected,
            self._folder(),
            classifier.correction,
            threshold=classifier.threshold,
        )
        state, seconds = learned.state, time.perf_counter() - started
        photos = pluralize(len(state.photos), "photo")
        text = f"learned {photos} in {seconds:.1f} s: {describe_learning(state)}"
        print_info(printable(text))
        unread = [f"{pluralize(len(learned.problems), 'photo')} cannot be read."] if learned.problems else []
        return {
            "text": text,
            "learned": learned_fields(state),
            "seconds": round(seconds, 3),
            "warning": " ".join([*unread, *(f"{warning}." for warning in learned.warnings)]),
        }

    def _undo(self) -> dict[str, Any]:
        state = undo(self._folder())
        return {"text": f"restored: {describe_learning(state)}" if state else "restored: nothing is learned"}

    def _refresh_review(self) -> None:
        self._reviewed = self._model.current()
        try:
            self.review.refresh(self._reviewed)
        except UserError as error:
            print_error(f"the pictures in the review keep their answers: {error}")


def learned_fields(state: LearnedState | None) -> dict[str, Any] | None:
    """The fields of openapi.json's schema Learned; None if nothing is learned."""
    if state is None:
        return None
    return {"created": state.created, "photos": len(state.photos), "new_labels": list(state.new_labels)}


def _teaching_problem(model: ModelFile) -> str:
    try:
        check_teachable(model)
    except ModelError as error:
        return str(error)
    return ""


def _no_picture() -> RequestRejected:
    return RequestRejected(404, "no picture has this id: GET /taught lists the named pictures")
