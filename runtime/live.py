"""A model that may be replaced while it is in use: the camera, the page and the watched folder run one."""

import argparse
import hashlib
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from runtime.classify import Classifier, options
from runtime.errors import UserError
from runtime.model import choose_model
from runtime.signature import SIGNATURE_NAME
from runtime.terminal import without_engine_chatter

LOOK_EVERY = 1.0  # seconds


def follow(arguments: argparse.Namespace, tell: Callable[[str], None]) -> "LiveClassifier":
    """The one that a command's flags ask for; `tell` gets its news, and with --verbose what auto went by."""
    with nullcontext() if arguments.verbose else without_engine_chatter():
        live = LiveClassifier(arguments.model, say=tell, **options(arguments))
    if arguments.verbose and live.now().why:
        tell(live.now().why)
    return live


class LiveClassifier:
    """A Classifier that follows its model on disk.

    `now()` gives the one to use. When another model lies where the first one lay, it is loaded on a thread
    of its own and taken up once it is ready; one that cannot be used is refused, and the old one goes on.
    `say` gets a line for either, which stays in `news`. `options` are Classifier's, and the first model
    raises its errors.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        say: Callable[[str], None] = lambda line: None,
        **options: Any,
    ) -> None:
        self.news = ""
        self._path, self._options, self._say = model, options, say
        self._classifier, self._tried = self._open()
        self._seen = self._tried  # what lay there at the last look
        self._looked = time.monotonic()
        self._loading: Thread | None = None
        self._looking = Lock()

    def now(self) -> Classifier:
        """The classifier for the next picture, for any thread. Looks at the disk once a second at most."""
        if self._looking.acquire(blocking=False):
            try:
                self._look_again()
            finally:
                self._looking.release()
        return self._classifier

    def _look_again(self) -> None:
        if time.monotonic() - self._looked < LOOK_EVERY or (self._loading and self._loading.is_alive()):
            return
        self._looked = time.monotonic()
        there = self._look(self._classifier)
        # Twice the same before it is read: a file that is being copied changes from look to look.
        if there != self._tried and there == self._seen:
            self._loading = Thread(target=self._replace, args=(there,), name="load-model", daemon=True)
            self._loading.start()
        self._seen = there

    def _replace(self, there: object) -> None:
        old = self._classifier.model.sha256
        try:
            self._classifier, self._tried = self._open()
        except UserError as error:
            self._tried = there  # not again before it changes
            self._tell(f"new model refused, the old one goes on: {error}")
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
            there = self._look(classifier)
            with suppress(OSError):
                data = classifier.model.path.read_bytes()
                if hashlib.sha256(data).hexdigest() == classifier.model.sha256:
                    return classifier, there

    def _look(self, classifier: Classifier) -> object:
        """What would be opened, as something to compare: the same as long as nothing changed."""
        try:
            choice = choose_model(self._path, classifier.formats, prefer=classifier.prefer)
            path = choice.path
            signatures = (path.with_name(f"{path.name}.sig"), path.with_name(SIGNATURE_NAME))
            return (
                choice,
                _state(path),
                *(_state(signature) for signature in signatures if signature.exists()),
            )
        except (UserError, OSError) as error:
            return str(error)


def _state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
