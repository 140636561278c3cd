"""A model that may be replaced while it is in use: the camera, the page and the watched folder run one."""

import argparse
import hashlib
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Thread
from typing import Any
from weakref import ref

from runtime.common.errors import UserError
from runtime.common.terminal import suppress_native_stderr
from runtime.inference.classifier import Classifier
from runtime.inference.model_options import classifier_options
from runtime.model_file.files import SIGNATURE_NAME
from runtime.model_file.selection import choose_model

LOOK_EVERY = 1.0  # seconds


def open_reloader(arguments: argparse.Namespace, tell: Callable[[str], None]) -> "ReloadingClassifier":
    """The one that a command's flags ask for; `tell` gets its news, and with --verbose what auto went by."""
    with nullcontext() if arguments.verbose else suppress_native_stderr():
        live = ReloadingClassifier(arguments.model, say=tell, **classifier_options(arguments))
    if arguments.verbose and live.now().engine_reason:
        tell(live.now().engine_reason)
    return live


class ReloadingClassifier:
    """A Classifier that follows its model on disk.

    `now()` gives the one to use. A thread looks at the disk once a second, as long as this is referred to.
    When another model lies where the first one lay, the thread loads it, and it is taken up once it is ready;
    one that cannot be used is refused, and the old one goes on. `say` gets a line for either, which stays in
    `news`. `options` are Classifier's, and the first model raises its errors.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        say: Callable[[str], None] = lambda line: None,
        **classifier_options: Any,
    ) -> None:
        self.news = ""
        self._path, self._options, self._say = model, classifier_options, say
        self._classifier, self._tried = self._open()
        self._seen = self._tried  # what lay there at the last look
        Thread(target=_keep_looking, args=(ref(self),), name="model", daemon=True).start()

    def now(self) -> Classifier:
        """The classifier for the next picture, for any thread."""
        return self._classifier

    def look(self) -> None:
        """At the disk, and takes up another model that has come to rest there."""
        there = self._lies_there(self._classifier)
        # Twice the same before it is read: a file that is being copied changes from look to look.
        if there != self._tried and there == self._seen:
            self._replace(there)
        self._seen = there

    def _replace(self, there: object) -> None:
        old = self._classifier.model.sha256
        try:
            self._classifier, self._tried = self._open()
        except Exception as error:  # whatever is wrong with the new one, the old one goes on
            self._tried = there  # not again before it changes
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self._tell(f"new model refused, the old one goes on: {reason}")
        else:
            if self._classifier.model.sha256 != old:
                self._tell(f"model replaced: {self._classifier.model.path}")

    def _tell(self, line: str) -> None:
        self.news = line
        self._say(line)

    def _open(self) -> tuple[Classifier, object]:
        """The model, and what lay on disk when it was read: looked at again, for it may change meanwhile."""
        while True:
            classifier = Classifier(self._path, **self._options)
            there = self._lies_there(classifier)
            with suppress(OSError):
                data = classifier.model.path.read_bytes()
                if hashlib.sha256(data).hexdigest() == classifier.model.sha256:
                    return classifier, there

    def _lies_there(self, classifier: Classifier) -> object:
        """What would be opened, as something to compare: the same as long as nothing changed."""
        try:
            choice = choose_model(self._path, classifier.formats, prefer=classifier.preferred_sha256)
            path = choice.path
            signatures = (path.with_name(f"{path.name}.sig"), path.with_name(SIGNATURE_NAME))
            return (
                choice,
                _state(path),
                *(_state(signature) for signature in signatures if signature.exists()),
            )
        except (UserError, OSError) as error:
            return str(error)


def _keep_looking(live: "ref[ReloadingClassifier]") -> None:
    while (followed := live()) is not None:
        followed.look()
        del followed
        time.sleep(LOOK_EVERY)


def _state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
