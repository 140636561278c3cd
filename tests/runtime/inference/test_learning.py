"""A classifier learns kept photos, uses the result at once, and survives a crash at any moment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import Classifier
from runtime.common.errors import ModelError, UserError
from runtime.common.file_lock import exclusive_lock
from runtime.inference import model_reloader
from runtime.inference.adaptation import SceneFeatures, fit_correction
from runtime.inference.correction import correction_path, write_correction
from runtime.inference.learned_state import STATE_NAME, read_state
from runtime.inference.learning import LOCK_NAME, check_teachable, pending_photos, reset, undo
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.inference.taught_photos import TaughtPhotos
from runtime.model_file.loader import open_model
from tests.helpers import PATIENCE, ROOT, wait_for
from tests.runtime.conftest import MakeFolder
from tests.runtime.inference.test_correction import sign
from tests.runtime.scene import class_pictures, compute_features, compute_known, save_pictures, scene_pictures


def share(classifier: Classifier, answer: str, seed: int = 2) -> float:
    return float(np.mean([classifier(pixels).answer == answer for pixels in scene_pictures(30, seed)]))


def test_the_next_picture_has_the_new_label(model: Path, learned: Path) -> None:
    before = {path: path.read_bytes() for path in model.iterdir()}
    classifier = Classifier(model)
    result = classifier.teach("scene", list(scene_pictures(20, seed=1)))
    assert classifier.labels == ("blau", "grün", "红", "scene") and result.problems == {}
    assert share(classifier, "scene") > 0.9
    prediction = classifier(scene_pictures(1, seed=3)[0])
    assert prediction.label == "scene" and prediction.known and len(prediction.top) == 3
    assert str(learned) in str(classifier)
    assert share(Classifier(model), "scene") > 0.9
    assert {path: path.read_bytes() for path in model.iterdir()} == before  # the model never changes
    assert Classifier(model, learned="none").labels == ("blau", "grün", "红")


def test_sources_of_every_kind_are_taught(model: Path, learned: Path, tmp_path: Path) -> None:
    folder = save_pictures(scene_pictures(4, seed=1), tmp_path / "photos")
    paths = sorted(folder.iterdir())
    classifier = Classifier(model)
    classifier.teach("scene", paths[0])
    classifier.teach("scene", str(paths[1]))
    with paths[2].open("rb") as file:
        classifier.teach("scene", [file, paths[3].read_bytes()])
    classifier.teach("none", class_pictures(1, seed=1)[0][0])
    assert TaughtPhotos(learned).labels() == {"none": 1, "scene": 4}
    assert classifier.learned is not None and len(classifier.learned.photos) == 5


def test_a_kept_file_that_is_taught_again_moves(model: Path, learned: Path, tmp_path: Path) -> None:
    """The page lists wrong photos, and --export copies them: their files are JPEG, encoded once."""
    classifier, store = Classifier(model), TaughtPhotos(learned)
    noise = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    classifier.teach("scene", list(noise))
    photos = store.photos()
    copy = shutil.copy(photos[1].path, tmp_path / "copy.jpg")
    classifier.teach("none", [photos[0].path, copy, photos[2].path.read_bytes()])
    assert store.labels() == {"none": 3, "scene": 1}
    assert [photo.id for photo in store.photos()] == [photo.id for photo in photos]


def test_unreadable_photos_are_reported_and_the_others_learned(model: Path, tmp_path: Path) -> None:
    folder = save_pictures(scene_pictures(6, seed=1), tmp_path / "photos")
    (folder / "002.png").write_bytes(b"no picture")
    classifier = Classifier(model)
    result = classifier.teach("scene", [*sorted(folder.iterdir()), b"neither"])
    assert list(result.problems) == [str(folder / "002.png"), "photo 7"]
    assert result.state.measured.labels["scene"].photos == 5
    for photos in ([b"neither"], []):
        with pytest.raises(UserError, match="nothing was learned"):
            classifier.teach("scene", photos)
    assert undo(classifier.learning_folder()) is None, "a failed attempt is not a step"


def test_a_kept_photo_that_was_damaged_is_reported(model: Path, learned: Path) -> None:
    classifier = Classifier(model)
    classifier.teach("scene", list(scene_pictures(5, seed=1)))
    photo = TaughtPhotos(learned).photos()[2]
    photo.path.write_bytes(b"damaged")
    shutil.rmtree(learned / "features")
    result = classifier.learn()
    assert list(result.problems) == [photo.id] and len(result.state.photos) == 4


def test_features_are_computed_once_and_damaged_ones_again(model: Path, learned: Path) -> None:
    classifier, calls = Classifier(model), list[int]()
    infer = classifier.infer_uncorrected
    classifier.infer_uncorrected = lambda pixels: (calls.append(1), infer(pixels))[1]  # type: ignore[method-assign]
    classifier.teach("scene", list(scene_pictures(5, seed=1)))
    classifier.teach("scene", list(scene_pictures(3, seed=5)))
    assert len(calls) == 8
    files = sorted((learned / "features").rglob("*.f32"))
    files[0].write_bytes(files[0].read_bytes()[:-1])
    files[1].write_bytes(b"\xff" * files[1].stat().st_size)  # NaN
    state = classifier.learned
    classifier.learn()
    assert len(calls) == 10 and classifier.learned is not None and state is not None
    assert np.array_equal(classifier.learned.weights, state.weights)


def test_features_that_are_a_pipe_are_not_read(model: Path, learned: Path) -> None:
    """Reading it would wait for ever, and the service would be learning until it is restarted."""
    classifier = Classifier(model)
    classifier.teach("scene", list(scene_pictures(5, seed=1)))
    path = next((learned / "features").rglob("*.f32"))
    path.unlink()
    os.mkfifo(path)
    with ThreadPoolExecutor(1) as threads:
        learning = threads.submit(classifier.learn)
        try:
            learning.result(timeout=PATIENCE)
        finally:
            os.close(os.open(path, os.O_RDWR))  # ends a thread that waits


def test_undo_restores_state_and_photos(model: Path, learned: Path) -> None:
    classifier = Classifier(model)
    classifier.teach("scene", list(scene_pictures(6, seed=1)))
    first = classifier.learned
    classifier.teach("none", [scene_pictures(6, seed=1)[0]])  # a kept photo gets another label
    classifier.teach("none", list(scene_pictures(4, seed=3)))
    assert TaughtPhotos(learned).labels() == {"none": 5, "scene": 5}
    undo(learned)
    assert TaughtPhotos(learned).labels() == {"none": 1, "scene": 5}
    with pytest.raises(ModelError, match="nothing to undo"):
        undo(learned)
    reset(learned)
    assert TaughtPhotos(learned).photos() == [] and Classifier(model).learned is None
    classifier.teach("scene", list(scene_pictures(6, seed=1)))
    assert undo(learned) is None
    assert first is not None and Classifier(model).labels == ("blau", "grün", "红")
    assert TaughtPhotos(learned).photos() == []


def test_what_fails_or_is_interrupted_keeps_no_photo(
    model: Path, learned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, pictures = Classifier(model), list(scene_pictures(6, seed=1))
    classifier.teach("scene", pictures[:3])

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("runtime.inference.learning.fit_learned", interrupt)
        classifier.teach("none", pictures)
    assert TaughtPhotos(learned).labels() == {"scene": 3}, "moved photos are back, and new ones are gone"


def test_photos_that_make_room_are_reported(model: Path, learned: Path) -> None:
    classifier = Classifier(model)
    classifier.teach("none", list(scene_pictures(5, seed=2)))
    present = sum(path.stat().st_size for path in learned.rglob("*") if path.is_file())
    result = classifier.teach("scene", list(scene_pictures(8, seed=1)), max_mb=present / 1e6)
    kept = len(TaughtPhotos(learned).photos())
    lost, deleted = result.warnings[-2:]
    assert f"deleted {13 - kept} of the oldest photos" in deleted and "no photo of none is left" in lost


def test_photos_make_room_after_the_state_is_written(
    model: Path, learned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = Classifier(model)
    classifier.teach("none", list(scene_pictures(5, seed=2)))
    before = TaughtPhotos(learned).photos()
    present = sum(path.stat().st_size for path in learned.rglob("*") if path.is_file())

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("runtime.inference.learning.fit_learned", interrupt)
        classifier.teach("scene", list(scene_pictures(8, seed=1)), max_mb=present / 1e6)
    assert TaughtPhotos(learned).photos() == before
    classifier.teach("scene", list(scene_pictures(8, seed=1)), max_mb=present / 1e6)
    assert classifier.learned and not {photo.id for photo in before} & classifier.learned.photos.keys()


def test_an_old_photo_that_is_taught_again_stays(model: Path, learned: Path) -> None:
    classifier, pictures = Classifier(model), list(scene_pictures(12, seed=1))
    classifier.teach("scene", pictures[:8])
    first = TaughtPhotos(learned).photos()[0]
    present = sum(path.stat().st_size for path in learned.rglob("*") if path.is_file())
    limit = present + (learned / STATE_NAME).stat().st_size  # which is kept for --undo
    result = classifier.teach("none", [pictures[0], *pictures[8:]], max_mb=limit / 1e6)
    assert any("make room" in line for line in result.warnings)
    assert TaughtPhotos(learned).find(first.id).label == "none"
    assert result.state.photos[first.id] == "none"


def test_other_folders_beside_the_features_stay(model: Path, learned: Path) -> None:
    own = learned / "features" / "plans"
    own.mkdir(parents=True)
    (own / "notes.txt").write_text("of the user")
    old = learned / "features" / ("0" * 16)
    old.mkdir()
    Classifier(model).teach("scene", list(scene_pictures(3, seed=1)))
    assert own.exists() and not old.exists()
    reset(learned)
    assert [path.name for path in (learned / "features").iterdir()] == ["plans"]


def test_a_photo_gets_the_spelling_of_the_models_label(model: Path, learned: Path) -> None:
    store = TaughtPhotos(learned)
    store.add("Blau", scene_pictures(1, seed=1)[0])
    classifier = Classifier(model)
    classifier.learn()
    assert store.labels() == {"blau": 1}
    assert pending_photos(classifier.learned, store.photos()) == []


def test_a_photo_that_waits_is_pending(model: Path, learned: Path) -> None:
    classifier = Classifier(model)
    classifier.teach("scene", list(scene_pictures(4, seed=1)))
    store = TaughtPhotos(learned)
    added = store.add("scene", scene_pictures(1, seed=9)[0])
    moved = store.move(store.photos()[0].id, "none")
    assert {photo.id for photo in pending_photos(classifier.learned, store.photos())} == {added.id, moved.id}
    assert len(pending_photos(None, store.photos())) == 5


def test_a_new_model_learns_the_kept_photos_again(
    model: Path, learned: Path, make_scene_model: MakeFolder
) -> None:
    """Photos of a class that the new model has, in another case, are photos of this class."""
    classifier = Classifier(model)
    classifier.teach("Scene", list(scene_pictures(12, seed=1)))
    classifier.teach("new", list(scene_pictures(12, seed=4)[:, ::-1]))
    shutil.rmtree(model)
    make_scene_model(model, labels=("scene", "grün", "红"))
    newer = Classifier(model)
    assert newer.learned is None and "runtime.teach --again" in newer.learned_problem
    newer.learn()
    assert newer.labels == ("scene", "grün", "红", "new") and share(newer, "scene") > 0.9
    assert len(list((learned / "features").iterdir())) == 1


def test_a_new_class_is_known_in_spite_of_a_correction(model: Path) -> None:
    opened = open_model(model)
    features = compute_features(scene_pictures(50, seed=7))
    scene = SceneFeatures([str(at) for at in range(50)], compute_known(features), features)
    fitted = fit_correction(opened.contract, opened.read_statistics(), scene)
    write_correction(correction_path(opened, None), fitted.correction)
    classifier = Classifier(model)
    assert share(classifier, "unknown") > 0.8
    classifier.teach("scene", list(scene_pictures(20, seed=1)))
    assert share(classifier, "scene") > 0.8


def test_a_device_for_signed_models_must_allow_it(model: Path, tmp_path: Path) -> None:
    key = sign(model, tmp_path)
    with pytest.raises(UserError, match="--allow-learning"):
        Classifier(model, key=key).teach("scene", list(scene_pictures(5, seed=1)))
    classifier = Classifier(model, key=key, allow_learning=True)
    classifier.teach("scene", list(scene_pictures(5, seed=1)))
    assert classifier.labels[-1] == "scene" and Classifier(model, key=key).learned is None


def test_models_and_places_that_cannot_learn_give_one_line(
    model: Path, knowing: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--learned none"):
        Classifier(model, learned="none").teach("scene", list(scene_pictures(1, seed=1)))
    with pytest.raises(ModelError, match="no features to learn from"):
        Classifier(knowing, learned=tmp_path / "x").teach("scene", list(scene_pictures(1, seed=1)))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file: --learned takes the folder"):
        Classifier(model, learned=tmp_path / "file").teach("scene", list(scene_pictures(1, seed=1)))


def test_one_program_learns_at_a_time(model: Path, learned: Path) -> None:
    classifier = Classifier(model)
    classifier.teach("scene", list(scene_pictures(5, seed=1)))
    with exclusive_lock(learned / LOCK_NAME), pytest.raises(UserError, match="another program is learning"):
        classifier.learn()
    classifier.learn()


def test_all_files_stay_within_the_bound(model: Path, learned: Path) -> None:
    classifier = Classifier(model)
    for at in range(12):
        classifier.teach(f"label {at % 2}", [np.full((64, 64, 3), 20 * at, np.uint8)], max_mb=0.05)
        assert sum(path.stat().st_size for path in learned.rglob("*") if path.is_file()) <= 50_000
    assert TaughtPhotos(learned).photos()


def test_a_running_classifier_follows_the_state(
    model: Path, learned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_reloader, "POLL_SECONDS", 0.01)
    events = list[str]()
    reloader = ReloadingClassifier(model, on_event=events.append)
    Classifier(model).teach("scene", list(scene_pictures(8, seed=1)))
    wait_for(lambda: reloader.current().learned is not None)
    wait_for(lambda: len(events) == 1)
    assert "learned state loaded" in events[0] and "new class scene (8)" in events[0]
    damaged = learned.with_name("damaged")
    damaged.write_text("{")
    damaged.replace(learned / STATE_NAME)
    wait_for(lambda: len(events) == 2)
    assert events[1].startswith("warning: ") and "answers without it" in events[1]
    reset(learned)
    wait_for(lambda: reloader.current().learned_problem == "")


def test_threads_may_classify_while_the_classifier_learns(model: Path) -> None:
    classifier, errors = Classifier(model), list[BaseException]()
    stopped = threading.Event()

    def classify() -> None:
        try:
            while not stopped.is_set():
                classifier(scene_pictures(1, seed=2)[0])
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=classify)
    thread.start()
    for label in ("one", "two", "three"):
        classifier.teach(label, list(scene_pictures(3, seed=len(label))))
    stopped.set()
    thread.join()
    assert errors == []


@pytest.mark.slow
def test_a_killed_process_leaves_the_old_or_the_new_state(model: Path, learned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for at, pixels in enumerate(scene_pictures(30, seed=1)):
        Image.fromarray(pixels).save(folder / f"{at:02}.png")
    code = """
import sys
from pathlib import Path
from runtime import Classifier
classifier = Classifier(sys.argv[1])
print("ready", flush=True)
for round in range(1000):
    for at, photo in enumerate(sorted(Path(sys.argv[2]).iterdir())):
        classifier.teach(f"label {(at + round) % 4}", [photo])
        print("taught", flush=True)
"""
    states = set()
    for round in range(6):
        arguments = [sys.executable, "-c", code, str(model), str(folder)]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=ROOT)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        if round % 2:  # on a busy machine, the others may be killed before the first state
            assert process.stdout.readline() == b"taught\n"
        time.sleep(0.3 + 0.17 * round)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        contract = open_model(model).contract
        state = read_state(learned, contract)  # raises for a state that is neither the old nor the new one
        assert state is None or Classifier(model).learned is not None
        states.add(None if state is None else state.to_bytes())
    assert len(states) > 1
    Classifier(model).learn()  # the next program may learn


def test_a_model_without_features_is_refused(knowing: Path) -> None:
    with pytest.raises(ModelError, match="contract version 1, which has no features"):
        check_teachable(open_model(knowing))
