"""A Classifier that follows its model on disk: the camera, the web page and the watched folder use it."""

import argparse
import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from weakref import ref

from runtime.common.errors import ModelError, UserError
from runtime.common.terminal import suppress_native_stderr
from runtime.inference.classifier import Classifier
from runtime.inference.correction import NONE, correction_path
from runtime.inference.engine_timing import start_timing
from runtime.inference.learned_state import STATE_NAME, learned_folder
from runtime.inference.model_options import classifier_options
from runtime.inference.model_proof import check_answer, prove_model
from runtime.model_file.files import MAX_MODEL_BYTES, SIGNATURE_NAME, read_bytes
from runtime.model_file.selection import choose_model

POLL_SECONDS = 1.0


def _ignore(line: str) -> None:
    pass


OpenReloader = Callable[[Callable[[str], None]], "ReloadingClassifier"]  # its argument prints messages


def open_reloader(arguments: argparse.Namespace, on_event: Callable[[str], None]) -> "ReloadingClassifier":
    """Returns the reloader for a command's flags. With --verbose, it reports engine and correction."""
    reloader = ReloadingClassifier(
        arguments.model,
        on_event=on_event,
        on_detail=on_event if arguments.verbose else _ignore,
        hides_native_stderr=not arguments.verbose,
        **classifier_options(arguments),
    )
    if arguments.verbose:
        for line in reloader.current().details():
            on_event(line)
    return reloader


class ReloadingClassifier:
    """A Classifier whose model may be replaced while it is in use.

    `current()` returns the classifier to use. As long as the reloader is referenced, a thread checks the disk
    once per second. It loads a changed model, which is then used once it has proved itself on the golden
    picture; any other model is rejected, and the old model stays in use. It also loads a changed correction
    and a changed learned state. Where `--engine auto` chose an engine by rule, the engines are timed in the
    background, and the model continues in the fastest one.
    `on_event` gets a line for each, and `last_event` keeps the last line. `on_detail` gets the lines of
    --verbose about the timing. `hides_native_stderr` hides what the engine prints while the first model is
    loaded. `options` are Classifier's keyword arguments. Errors of the first model are raised: ModelError or
    EngineError.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        on_event: Callable[[str], None] = _ignore,
        on_detail: Callable[[str], None] = _ignore,
        hides_native_stderr: bool = False,
        **options: Any,
    ) -> None:
        self.last_event = ""
        self._path, self._options = model, options
        self._on_event, self._on_detail = on_event, on_detail
        self._replacing = Lock()  # the page and the poll thread may both replace the classifier
        with suppress_native_stderr() if hides_native_stderr else nullcontext():
            # A correction for another model is a warning, at the start as later: a service must start again.
            classifier, self._loaded = self._open({**options, "correction": NONE, "learned": NONE})
            check_answer(classifier)
            self._classifier = self._open_additions(classifier)
        self._classifier.record_release()
        self._last_seen = self._loaded
        self._last_additions: object = None  # their fingerprint
        opened = self._classifier
        for problem in (opened.engine_problem, opened.correction_problem, opened.learned_problem):
            if problem:
                self._report(f"warning: {problem}")
        Thread(target=_poll, args=(ref(self),), name="model-reloader", daemon=True).start()
        self._start_timing()

    def current(self) -> Classifier:
        """Returns the classifier for the next picture, for any thread."""
        return self._classifier

    def check(self) -> None:
        """Checks the disk, and loads another model that has stopped changing."""
        found = self._model_fingerprint(self._classifier)
        # A file that is being copied differs from check to check: it is loaded once two checks are equal.
        if found != self._loaded and found == self._last_seen:
            self._reload(found)
        self._last_seen = found
        if (additions := self._additions_fingerprint()) != self._last_additions:
            self._last_additions = additions
            self.reload_additions()

    def reload_additions(self) -> None:
        """Uses the correction and the learned state that are on the disk now for the next picture."""
        with self._replacing:
            old, new = self._classifier, self._open_additions(self._classifier)
            if _correction_text(new) == _correction_text(old) and _learned_bytes(new) == _learned_bytes(old):
                return
            self._classifier = new
        self._report_changes(old, new)

    def _reload(self, found: object) -> None:
        old, options = self._classifier, {**self._options, "correction": NONE, "learned": NONE}
        try:
            proved = prove_model(self._path, options)
            classifier, loaded = self._open(options)
            if classifier.model.sha256 != proved:
                return  # replaced since the proof: the next check finds the newer model
            classifier.record_release()
        except Exception as error:  # whatever is wrong with the new model, the old one stays in use
            self._loaded = found  # not tried again until it changes
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self._report(f"new model rejected, the old model stays in use: {reason}")
        else:
            with self._replacing:
                new = self._open_additions(classifier)
                self._classifier, self._loaded = new, loaded
            self._report_changes(old, new)
            self._start_timing()

    def _start_timing(self) -> None:
        reference = ref(self)  # the thread does not keep a reloader that is no longer used

        def switch(old: Classifier, faster: dict[str, Any]) -> None:
            if (reloader := reference()) is not None:
                reloader._switch_engine(old, faster)

        start_timing(self._classifier, self._path, self._options, switch, self._on_detail)

    def _switch_engine(self, old: Classifier, options: Mapping[str, Any]) -> None:
        """Uses the model in another engine from the next picture on, unless it was replaced meanwhile."""
        new, loaded = self._open({**options, "correction": NONE, "learned": NONE})
        check_answer(new)
        new.record_release()
        with self._replacing:
            current = self._classifier
            if current.model is not old.model or new.model.contract.model_id != old.model.contract.model_id:
                return
            self._classifier = new.with_additions_of(current)
            self._loaded = self._last_seen = loaded
        self._report(f"engine switched: {new.model.path} on {new.session.engine}, the fastest of those timed")

    def _report_changes(self, old: Classifier, new: Classifier) -> None:
        if new.model.sha256 != old.model.sha256:
            self._report(f"model replaced: {new.model.path}")
        if _correction_text(new) != _correction_text(old):
            if new.correction:
                self._report(f"correction loaded: {new.correction_path}: {new.correction}")
            elif old.correction and not _exists(new.correction_path):
                self._report(_no_longer_used("correction", old.correction_path, new.correction_path))
            elif new.correction_problem:
                self._report(f"warning: {new.correction_problem}")
        if _learned_bytes(new) != _learned_bytes(old):
            self._report_learned(old, new)

    def _report_learned(self, old: Classifier, new: Classifier) -> None:
        if new.learned:
            self._report(f"learned state loaded: {new.learned_folder}: {new.learned}")
        elif old.learned and not _exists(new.learned_folder, STATE_NAME):
            self._report(_no_longer_used("learned state", old.learned_folder, new.learned_folder))
            return
        if new.learned_problem:
            self._report(f"warning: {new.learned_problem}")

    def _open_additions(self, classifier: Classifier) -> Classifier:
        """Returns the classifier with the correction and the learned state on the disk."""
        options = self._options
        try:
            allow = options.get("allow_correction", False)
            classifier = classifier.with_correction(options.get("correction"), allow_correction=allow)
        except UserError as error:
            self._report(f"warning: {error}")
        try:
            allow = options.get("allow_learning", False)
            return classifier.with_learned(options.get("learned"), allow_learning=allow)
        except UserError as error:
            self._report(f"warning: {error}")
            return classifier

    def _additions_fingerprint(self) -> object:
        """Returns a value that is equal as long as the same correction and state would be read."""
        model, paths = self._classifier.model, list[Path]()
        if (named := self._options.get("correction")) != NONE:
            paths.append(correction_path(model, named))
        if (named := self._options.get("learned")) != NONE:
            paths.append(learned_folder(model, named) / STATE_NAME)
        return [(path, _existing_state(path)) for path in paths]

    def _report(self, line: str) -> None:
        self.last_event = line
        self._on_event(line)

    def _open(self, options: Mapping[str, Any]) -> tuple[Classifier, object]:
        """Returns the classifier and its fingerprint, taken again if the file changed while it was loaded."""
        while True:
            classifier = Classifier(self._path, **options)
            found = self._model_fingerprint(classifier)
            with suppress(ModelError):
                data = read_bytes(classifier.model.path, MAX_MODEL_BYTES)
                if hashlib.sha256(data).hexdigest() == classifier.model.sha256:
                    return classifier, found

    def _model_fingerprint(self, classifier: Classifier) -> object:
        """Returns a value that is equal as long as the same model would be opened, without reading it."""
        try:
            selection = choose_model(self._path, classifier.formats, prefer=classifier.preferred_sha256)
            path = selection.path
            signatures = (path.with_name(f"{path.name}.sig"), path.with_name(SIGNATURE_NAME))
            existing = (signature for signature in signatures if signature.exists())
            return (selection, _file_state(path), *map(_file_state, existing))
        except (UserError, OSError) as error:
            return str(error)


def _exists(path: Path | None, name: str = "") -> bool:
    return path is not None and (path / name).exists()


def _poll(reference: "ref[ReloadingClassifier]") -> None:
    reported = ""
    while (reloader := reference()) is not None:
        problem = ""
        try:
            reloader.check()
        except Exception as error:  # without this thread, a service would never see a new model
            problem = f"the files cannot be checked, the model stays in use: {type(error).__name__}: {error}"
            if problem != reported:
                reloader._report(problem)
        reported = problem
        del reloader
        time.sleep(POLL_SECONDS)


def _file_state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _existing_state(path: Path) -> tuple[int, int, int] | None:
    with suppress(OSError):
        return _file_state(path)
    return None


def _no_longer_used(name: str, old: Path | None, new: Path | None) -> str:
    """What to report. A model of another name has its own files, and those of the old model stay."""
    return f"{name} removed: {old}" if old == new else f"{name} of the old model is not used: {old}"


def _correction_text(classifier: Classifier) -> str:
    """Returns a text that is equal for two classifiers with the same correction, or the same problem."""
    return classifier.correction.to_json() if classifier.correction else classifier.correction_problem


def _learned_bytes(classifier: Classifier) -> bytes:
    """Returns bytes that are equal for two classifiers with the same learned state, or the same problem."""
    return classifier.learned.to_json() if classifier.learned else classifier.learned_problem.encode()
