"""A correction changes `known` alone, belongs to one model, and is refused in one line where it is not."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from export.sign import sign_folder
from runtime import Classifier
from runtime.common.errors import EngineError, ModelError, WriteError
from runtime.inference import model_reloader
from runtime.inference.correction import (
    Correction,
    bias_to_add,
    correction_path,
    logit,
    open_correction,
    parse_correction,
    read_correction,
    write_correction,
)
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.model_file.index import read_index
from runtime.model_file.loader import open_model
from tests.helpers import wait_for
from tests.runtime.conftest import MakeFolder
from tests.runtime.make_models import FEATURES, SIDE
from tests.runtime.scene import class_pictures, scene_pictures


def sign(folder: Path, keys: Path) -> Path:
    """Signs the folder with a new key, as if an export had compared its files. Returns the public key."""
    rows = [f"{file.format},{file.precision},passed" for file in read_index(folder).files]
    (folder / "parity.csv").write_text("\n".join(["format,precision,verdict", *rows]))
    private = ec.generate_private_key(ec.SECP256R1())
    (keys / "key").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    key = keys / "key.pub"
    key.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    sign_folder(folder, keys / "key")
    return key


WHITE = np.full((SIDE, SIDE, 3), 255, np.uint8)


@pytest.fixture
def folder(make_scene_model: MakeFolder, tmp_path: Path) -> Path:
    return make_scene_model(tmp_path / "quarters")


def make_correction(model: Path, weight: float = -1.0, bias: float = 0.0) -> Correction:
    return Correction(
        model_id=open_model(model).contract.model_id,
        created="2026-11-28T12:00:00Z",
        photos=50,
        named_before=0.76,
        named_after=0.04,
        rejected_before=0.015,
        rejected_after=0.02,
        bias=bias,
        weights=np.full(FEATURES, weight, np.float32),
    )


def write(folder: Path, weight: float = -1.0) -> Path:
    path = folder.with_name(f"{folder.name}.correction.json")
    write_correction(path, make_correction(folder, weight))
    return path


def test_known_gets_the_features_times_the_weights_added_to_its_logit() -> None:
    correction = Correction("", "", 1, 0, 0, 0, 0, bias=0.5, weights=np.array([1, -2], np.float32))
    known, features = np.array([0.5, 0.9]), np.array([[1, 1], [0, 0.5]])
    expected = 1 / (1 + np.exp(-(np.log(known / (1 - known)) + features @ [1, -2] + 0.5)))
    assert np.allclose(correction.apply(known, features), expected)
    extremes = correction.apply(np.array([0.0, 1.0], np.float32), np.array([[1e4, 0], [0, 1e4]]))
    assert np.isfinite(logit(np.array([0.0, 1.0], np.float32))).all() and np.allclose(extremes, 0, atol=1e-6)
    assert np.allclose(correction.apply(known, np.array([[5, 0], [9, 0]])), known)  # it only rejects


def test_the_correction_next_to_the_model_is_applied(folder: Path) -> None:
    plain = Classifier(folder)
    assert plain.correction is None and plain(WHITE).known is True
    path = write(folder)
    corrected = Classifier(folder)
    assert corrected.correction and corrected.correction_path == path and corrected(WHITE).known is False
    assert str(path) in str(corrected) and any("76.0%" in line for line in corrected.details())
    one, other = plain.infer(WHITE), corrected.infer(WHITE)
    assert np.array_equal(one.probabilities, other.probabilities)
    assert one.features is not None and np.array_equal(one.features, other.features)
    assert logit(np.array(other.known)) == pytest.approx(logit(np.array(one.known)) - 12, abs=1e-3)


def test_none_answers_without_the_correction_and_a_file_names_another(folder: Path, tmp_path: Path) -> None:
    write(folder)
    assert Classifier(folder, correction="none")(WHITE).known is True
    write_correction(tmp_path / "mild.json", make_correction(folder, weight=-0.1))
    assert Classifier(folder, correction=tmp_path / "mild.json")(WHITE).known is True


def test_all_files_of_a_folder_share_its_correction(folder: Path) -> None:
    path = write(folder)
    for name in ("quarters_float32.tflite", "quarters_float32.onnx"):
        classifier = Classifier(folder / name)
        assert classifier.correction_path == path and classifier(WHITE).known is False


def test_the_old_folder_of_an_interrupted_swap_has_the_correction_of_the_new_one(
    folder: Path, tmp_path: Path
) -> None:
    path = write(folder)
    folder.rename(tmp_path / "quarters.old")
    classifier = Classifier(folder)
    assert classifier.model.path.parent == tmp_path / "quarters.old"
    assert classifier.correction_path == path and classifier(WHITE).known is False
    assert classifier.learned_folder == tmp_path / "quarters.learned"
    asked_for = Classifier(tmp_path / "quarters.old")  # a copy that its owner made
    assert asked_for.correction_path == tmp_path / "quarters.old.correction.json"


def test_a_lone_file_has_its_own_correction(folder: Path, tmp_path: Path) -> None:
    lone = tmp_path / "x.onnx"
    lone.write_bytes((folder / "quarters_float32.onnx").read_bytes())
    path = tmp_path / "x.onnx.correction.json"
    write_correction(path, make_correction(lone))
    assert Classifier(lone).correction_path == path and Classifier(lone)(WHITE).known is False


def test_a_variable_names_the_folder_of_all_corrections(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service may not write the folder of its models."""
    corrections = tmp_path / "state"
    corrections.mkdir()
    monkeypatch.setenv("VGG_EDGE_CORRECTIONS", str(corrections))
    path = corrections / f"{folder.name}.correction.json"
    write_correction(path, make_correction(folder))
    assert Classifier(folder).correction_path == path and Classifier(folder)(WHITE).known is False
    monkeypatch.chdir(folder)
    assert correction_path(open_model("."), None) == path


def test_the_current_folder_has_the_same_correction(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder)
    monkeypatch.chdir(folder)
    assert correction_path(open_model("."), None) == path
    assert Classifier(".")(WHITE).known is False


def test_a_correction_of_another_model_is_refused(
    folder: Path, make_scene_model: MakeFolder, tmp_path: Path
) -> None:
    other = make_scene_model(tmp_path / "other", release=2)
    path = folder.with_name("quarters.correction.json")
    write_correction(path, make_correction(other))
    classifier = Classifier(folder)
    assert classifier.correction is None and classifier(WHITE).known is True
    assert str(path) in classifier.correction_problem and "another model" in classifier.correction_problem
    with pytest.raises(ModelError, match="another model"):
        Classifier(folder, correction=path)


def test_a_named_file_that_does_not_exist_yet_is_a_problem_and_no_error(folder: Path, tmp_path: Path) -> None:
    classifier = Classifier(folder, correction=tmp_path / "later.json")
    assert classifier.correction is None and "no such correction yet" in classifier.correction_problem


def test_version_1_has_no_features_to_correct(knowing: Path, tmp_path: Path) -> None:
    path = tmp_path / "any.json"
    write_correction(path, make_correction(knowing))
    with pytest.raises(ModelError, match="another model"):
        Classifier(knowing, correction=path)
    assert Classifier(knowing).infer(WHITE).features is None


def test_a_device_for_signed_models_uses_a_correction_only_if_allowed(folder: Path, tmp_path: Path) -> None:
    key = sign(folder, tmp_path)
    path = write(folder)
    classifier = Classifier(folder, key=key)
    assert classifier.correction is None and "--allow-correction" in classifier.correction_problem
    with pytest.raises(ModelError, match=r"not signed.*--allow-correction"):
        Classifier(folder, key=key, correction=path)
    assert Classifier(folder, key=key, allow_correction=True)(WHITE).known is False


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(model_reloader, "POLL_SECONDS", 0.01)
    yield


@pytest.mark.usefixtures("quick")
def test_a_running_classifier_follows_its_correction(folder: Path) -> None:
    events = list[str]()
    classifier = ReloadingClassifier(folder, on_event=events.append)
    path = write(folder)
    wait_for(lambda: classifier.current()(WHITE).known is False)
    write(folder, weight=-0.1)
    wait_for(lambda: classifier.current()(WHITE).known is True)
    path.write_text("{")
    wait_for(lambda: classifier.current().correction is None)
    path.unlink()
    wait_for(lambda: classifier.current().correction_problem == "")
    write(folder)
    wait_for(lambda: len(events) == 4)
    path.unlink()
    wait_for(lambda: len(events) == 5)
    starts = (
        "correction loaded",
        "correction loaded",
        "warning: ",
        "correction loaded",
        "correction removed",
    )
    assert all(event.startswith(start) for event, start in zip(events, starts, strict=True)), events


@pytest.mark.usefixtures("quick")
def test_a_named_correction_of_the_old_model_does_not_stop_a_new_one(
    folder: Path, make_scene_model: MakeFolder, tmp_path: Path
) -> None:
    named, events = tmp_path / "scene.json", list[str]()
    write_correction(named, make_correction(folder))
    classifier = ReloadingClassifier(folder, on_event=events.append, correction=named)
    assert classifier.current()(WHITE).known is False
    make_scene_model(tmp_path / "new", release=2)
    folder.rename(tmp_path / "quarters.old")
    (tmp_path / "new").rename(folder)
    wait_for(lambda: classifier.current()(WHITE).known is True)
    wait_for(lambda: any("another model" in event for event in events))
    again = ReloadingClassifier(folder, on_event=events.append, correction=named)  # as after a restart
    assert again.current()(WHITE).known is True and "another model" in again.last_event
    write_correction(named, make_correction(folder))
    wait_for(lambda: classifier.current()(WHITE).known is False)
    named.unlink()
    wait_for(lambda: classifier.last_event == f"correction removed: {named}")


def test_a_correction_survives_writing_and_reading(folder: Path, tmp_path: Path) -> None:
    made = make_correction(folder, weight=0.1, bias=-2.5)
    write_correction(tmp_path / "c.json", made)
    read = read_correction(tmp_path / "c.json", open_model(folder).contract)
    assert np.array_equal(read.weights, made.weights)
    assert {**vars(read), "weights": None} == {**vars(made), "weights": None}


def test_a_place_that_cannot_be_written_gives_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="--correction FILE chooses another place") as caught:
        write_correction(tmp_path / "no" / "c.json", make_correction(folder))
    assert "\n" not in str(caught.value)


GOOD = json.loads(Correction("0a" * 32, "2026-11-28T12:00:00Z", 9, 0, 0, 0, 0, 0.5, np.ones(3)).to_json())


def changed(**fields: object) -> bytes:
    return json.dumps({**GOOD, **fields}).encode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (changed(version=2), "has version 2"),
        (changed(version=10**400), "has version 1000"),
        (changed(model_id="0a"), "model_id"),
        (changed(created="today\x1b[2J"), "UTC time"),
        (changed(photos=0), "number of photos"),
        (changed(photos=1.5), "'photos' is not of type int"),
        (changed(weights=[]), "weights"),
        (changed(weights=[1, "2"]), "weights"),
        (changed(weights=[True]), "weights"),
        (changed(weights=[float("nan")]), "weights"),
        (changed(weights=[10**400]), "weights"),
        (changed(weights=[0] * 70_000), "weights"),
        (changed(bias=None), "bias"),
        (changed(bias=float("inf")), "bias"),
        (changed(named_after=-0.1), "named_after"),
        (changed(rejected_after=2), "rejected_after"),
    ],
)
def test_a_damaged_correction_is_refused_in_one_line(data: bytes, reason: str, folder: Path) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        parse_correction(data)
    assert "\n" not in str(caught.value)
    path = folder.with_name("quarters.correction.json")
    path.write_bytes(data)
    opened = open_correction(open_model(folder))
    assert opened.correction is None and opened.problem.startswith(str(path))


def test_mutated_corrections_are_refused_or_valid() -> None:
    generator, good, refused = random.Random(0), json.dumps(GOOD).encode(), 0
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(generator.randint(1, 3)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        try:
            assert np.isfinite(parse_correction(bytes(data)).apply(np.array([0.5]), np.ones((1, 3)))).all()
        except ModelError:
            refused += 1
    assert 1000 < refused < 3000


def test_the_scene_is_mistaken_for_the_classes(folder: Path) -> None:
    """What the other tests of adapting rely on."""
    classifier = Classifier(folder)
    scene = [classifier(pixels).known for pixels in scene_pictures(30, seed=1)]
    pictures, labels = class_pictures(30, seed=1)
    answers = [classifier(pixels) for pixels in pictures]
    assert np.mean(scene) > 0.8 and np.mean([answer.known is True for answer in answers]) > 0.8
    names = classifier.model.contract.labels
    assert [answer.label for answer in answers] == [names[label] for label in labels]


def test_nan_features_raise_an_error_where_they_would_be_used(folder: Path) -> None:
    classifier = Classifier(folder)
    nothing = {
        **classifier.session(WHITE[np.newaxis]),
        "features": np.full((1, FEATURES), np.nan, np.float32),
    }
    classifier.session = replace(classifier.session, run=lambda image: nothing)
    with pytest.raises(EngineError, match="NaN or infinite features"):
        classifier.infer(WHITE)


def test_a_bias_rejects_no_more_than_its_share() -> None:
    """Rounding must not leave the last logit that the bias lifts below 0."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        logits, change = rng.normal(3, 2, 100), rng.normal(-1, 2, 100)
        bias = bias_to_add(logits, change, 0.02)
        rejected = [int((logits + np.minimum(change + each, 0) < 0).sum()) for each in (bias, bias - 1e-5)]
        assert rejected == [(logits < 0).sum() + allowed for allowed in (2, 3)]
    assert bias_to_add(np.ones(10), np.ones(10), 0.0) == 0
