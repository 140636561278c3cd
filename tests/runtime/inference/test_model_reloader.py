"""A model is replaced while a classifier is running."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.common.errors import ModelError
from runtime.inference import learned_state, model_reloader
from runtime.inference.learned_state import STATE_NAME
from runtime.inference.model_reloader import ReloadingClassifier
from tests.helpers import wait_for
from tests.runtime.inference.test_learned_state import make_state

NAMES = ("blue", "green", "red")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_reloader, "POLL_SECONDS", 0.01)


def test_a_new_model_is_loaded(make_folder: Callable[..., Path], photos: Path, tmp_path: Path) -> None:
    folder, events = make_folder(tmp_path / "colours"), list[str]()
    classifier = ReloadingClassifier(folder, on_event=events.append)
    first = classifier.current()
    assert first(photos / "red.jpg").label == "红"
    swap(make_folder(tmp_path / "new", labels=NAMES), folder)
    wait_for(lambda: classifier.current() is not first)
    assert classifier.current()(photos / "red.jpg").label == "red"
    wait_for(lambda: bool(events))
    assert events == [classifier.last_event] and "replaced" in events[0] and str(folder) in events[0]


def test_a_damaged_model_is_rejected_until_it_is_replaced(
    make_folder: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    folder, events = make_folder(tmp_path / "colours"), list[str]()
    classifier = ReloadingClassifier(folder, on_event=events.append, engine="onnx")
    first = classifier.current()
    file = first.model.path
    damaged = tmp_path / "damaged"
    damaged.write_bytes(file.read_bytes()[:-1])
    damaged.replace(file)
    wait_for(lambda: classifier.current() is first and bool(events))
    assert "rejected" in events[0] and "copy it again" in events[0]
    for _ in range(20):  # nor is it tried again and again
        time.sleep(0.02)
        assert classifier.current() is first
    assert len(events) == 1 and first(photos / "red.jpg").label == "红"
    shutil.rmtree(folder)
    make_folder(folder, labels=NAMES)
    wait_for(lambda: classifier.current()(photos / "red.jpg").label == "red")


def test_a_file_that_is_being_copied_is_loaded_when_it_is_complete(
    make_folder: Callable[..., Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_reloader, "_poll", lambda reference: None)  # the checks are those below

    def file_of(name: str, **changes: object) -> bytes:
        return (make_folder(tmp_path / name, **changes) / "colours_float32.tflite").read_bytes()

    path, events = tmp_path / "model.tflite", list[str]()
    path.write_bytes(file_of("one"))
    classifier = ReloadingClassifier(path, on_event=events.append)
    first, new = classifier.current(), file_of("two", labels=NAMES)
    with path.open("wb") as out:
        for at in range(0, len(new), len(new) // 20):
            out.write(new[at : at + len(new) // 20])
            out.flush()
            classifier.check()
            assert classifier.current() is first and events == []
    classifier.check()
    assert classifier.current()(photos / "red.jpg").label == "red" and len(events) == 1


def swap(new: Path, folder: Path) -> None:
    """As an export exchanges them, at no moment without a model."""
    folder.rename(folder.with_name(f"{folder.name}.old"))
    new.rename(folder)


def test_a_new_model_is_loaded_without_any_request(
    make_folder: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    """Photos of a watched folder may be hours apart: the first one is the new model's."""
    folder, events = make_folder(tmp_path / "colours"), list[str]()
    classifier = ReloadingClassifier(folder, on_event=events.append)
    swap(make_folder(tmp_path / "new", labels=NAMES), folder)
    wait_for(lambda: bool(events))
    assert classifier.current()(photos / "red.jpg").label == "red"


def test_an_unexpected_error_is_logged_once(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, events = make_folder(tmp_path / "colours"), list[str]()
    classifier = ReloadingClassifier(folder, on_event=events.append)
    first = classifier.current()

    def odd(*_: object, **__: object) -> None:
        raise IndexError("no such output")

    new = make_folder(tmp_path / "new", labels=NAMES)
    monkeypatch.setattr(model_reloader, "Classifier", odd)
    swap(new, folder)
    wait_for(lambda: bool(events))
    time.sleep(0.1)
    assert len(events) == 1 and "rejected" in events[0] and "IndexError: no such output" in events[0]
    assert classifier.current() is first


def test_an_unexpected_error_of_a_check_is_reported_once_and_the_thread_continues(
    make_folder: Callable[..., Path], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, events = make_folder(tmp_path / "colours"), list[str]()
    classifier = ReloadingClassifier(folder, on_event=events.append)

    def odd(*_: object, **__: object) -> None:
        raise IndexError("no such entry")

    with monkeypatch.context() as patched:
        patched.setattr(model_reloader, "choose_model", odd)
        wait_for(lambda: bool(events))
        time.sleep(0.1)
        assert len(events) == 1 and "IndexError: no such entry" in events[0]
    swap(make_folder(tmp_path / "new", labels=NAMES), folder)
    wait_for(lambda: classifier.current()(photos / "red.jpg").label == "red")


def test_a_learned_state_of_the_largest_size_does_not_end_the_thread(
    make_scene_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers may be longer when they are written again: the file has no spaces."""
    folder, events = make_scene_model(tmp_path / "quarters"), list[str]()
    data = json.dumps(json.loads(make_state(folder).to_bytes()), separators=(",", ":")).encode()
    monkeypatch.setattr(learned_state, "MAX_STATE_BYTES", len(data))
    classifier = ReloadingClassifier(folder, on_event=events.append)
    path = tmp_path / "quarters.learned" / STATE_NAME
    path.parent.mkdir()
    path.write_bytes(data)
    wait_for(lambda: "learned state loaded" in classifier.last_event)
    path.unlink()
    wait_for(lambda: "learned state removed" in classifier.last_event)


def test_the_thread_ends_with_the_classifier(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    before = threading.enumerate()
    classifier = ReloadingClassifier(make_folder(tmp_path / "colours"))
    (thread,) = [new for new in threading.enumerate() if new.name == "model-reloader" and new not in before]
    del classifier
    wait_for(lambda: not thread.is_alive())


def test_an_error_of_the_first_model_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        ReloadingClassifier(tmp_path / "none")
