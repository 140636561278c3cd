"""A learned state is checked like any input, belongs to one model, and is written in one step."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime import Classifier
from runtime.common.errors import ModelError, WriteError
from runtime.inference.learned_fit import TaughtOutputs, fit_learned
from runtime.inference.learned_state import (
    STATE_NAME,
    LearnedState,
    learned_folder,
    open_learned,
    read_previous,
    read_state,
    restore_state,
    write_state,
)
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.model_file.loader import open_model
from tests.runtime.conftest import MakeFolder
from tests.runtime.inference.test_correction import sign
from tests.runtime.scene import compute_features, compute_known, scene_pictures
from tests.runtime.taught import compute_probabilities


@pytest.fixture
def folder(make_scene_model: MakeFolder, tmp_path: Path) -> Path:
    return make_scene_model(tmp_path / "quarters")


def make_state(model: Path, label: str = "scene") -> LearnedState:
    """Returns the state of a model that learned twelve pictures of a scene as a new class."""
    opened = open_model(model)
    features = compute_features(scene_pictures(12, seed=1))
    taught = TaughtOutputs(
        [f"{at}.jpg" for at in range(12)],
        [label] * 12,
        compute_probabilities(features),
        compute_known(features),
        features,
    )
    return fit_learned(opened.contract, opened.read_statistics(), taught).state


def test_bytes_hold_the_state(folder: Path) -> None:
    state = make_state(folder)
    read = LearnedState.from_bytes(state.to_bytes())
    features = compute_features(scene_pictures(5, seed=2))
    before = compute_probabilities(features), compute_known(features), features
    for one, other in zip(read.apply(*before), state.apply(*before), strict=True):
        assert one is not None and np.array_equal(one, other)
    assert (read.labels, read.photos, read.measured) == (state.labels, dict(state.photos), state.measured)
    assert str(read) == str(state) and "new class scene (12)" in str(read)


def test_one_photo_and_many_give_the_same(folder: Path) -> None:
    state = make_state(folder)
    features = compute_features(scene_pictures(5, seed=2))
    probabilities, known = compute_probabilities(features), compute_known(features)
    many, many_known = state.apply(probabilities, known, features)
    assert many.shape == (5, 4) and np.allclose(many.sum(1), 1) and many_known is not None
    for at in range(5):
        one, one_known = state.apply(probabilities[at], known[at], features[at])
        assert np.allclose(one, many[at]) and one_known == pytest.approx(many_known[at])


def test_a_model_without_known_gets_probabilities_alone(folder: Path) -> None:
    features = compute_features(scene_pictures(5, seed=2))
    probabilities, known = make_state(folder).apply(compute_probabilities(features), None, features)
    assert known is None and (probabilities.argmax(1) == 3).all()


def test_every_damaged_field_is_refused(folder: Path) -> None:
    fields = json.loads(make_state(folder).to_bytes())

    def refused(change: object) -> bool:
        changed = json.loads(json.dumps(fields))
        change(changed)  # type: ignore[operator]
        with pytest.raises(ModelError) as caught:
            LearnedState.from_bytes(json.dumps(changed).encode())
        return "\n" not in str(caught.value)

    for name in fields:
        # The first version of this file had no threshold.
        assert name == "threshold" or refused(lambda changed, name=name: changed.pop(name))
        for value in (None, True, "x", -1, [], {}, 1e300):
            if (name, value) in (("photos", {}), ("reject_bias", -1)):
                continue
            assert refused(lambda changed, name=name, value=value: changed.update({name: value}))
    for name in fields["arrays"]:
        assert refused(lambda changed, name=name: changed["arrays"].pop(name))
        assert refused(lambda changed, name=name: changed["arrays"][name].update(float32="AAAA"))
        assert refused(lambda changed, name=name: changed["arrays"][name].update(float32="?"))
        assert refused(lambda changed, name=name: changed["arrays"][name].update(shape=[10**12]))
        assert refused(lambda changed, name=name: changed["arrays"][name].update(shape=[]))
    nan = "AADAfw==" * (len(fields["arrays"]["bias"]["float32"]) // 8 or 1)
    assert refused(lambda changed: changed["arrays"]["bias"].update(float32=nan))
    assert refused(lambda changed: changed.update(labels=["a\x1b[2J", *changed["labels"][1:]]))
    assert refused(lambda changed: changed.update(labels=[*changed["labels"][:3], changed["labels"][0]]))
    for name in ("rows", "groups"):
        assert refused(lambda changed, name=name: changed.update({name: [9]}))
        assert refused(lambda changed, name=name: changed.update({name: [3, 3]}))
    for photo in ({"../x": "scene"}, {"x.jpg": 1}, {"x.jpg": "a\nb"}):
        assert refused(lambda changed, photo=photo: changed["photos"].update(photo))
    for change in ({"examples": 0}, {"examples_right_before": 10**8}, {"examples_right_after": 10**8}):
        assert refused(lambda changed, change=change: changed["measured"].update(change))
    for result in ({"scene": []}, {"scene": {}}, {"a\nb": fields["measured"]["labels"]["scene"]}):
        assert refused(lambda changed, result=result: changed["measured"]["labels"].update(result))


def test_a_later_version_says_what_to_do(folder: Path) -> None:
    fields = json.loads(make_state(folder).to_bytes())
    with pytest.raises(ModelError, match="has version 2, this runtime reads version 1: upgrade vgg-edge"):
        LearnedState.from_bytes(json.dumps({**fields, "version": 2}).encode())


@pytest.mark.parametrize("damage", ["truncated", "flipped", "random"])
def test_damaged_bytes_never_end_in_another_error(folder: Path, damage: str) -> None:
    whole, rng = make_state(folder).to_bytes(), random.Random(0)
    for _ in range(60):
        data = bytearray(whole)
        if damage == "truncated":
            data = data[: rng.randrange(len(data))]
        elif damage == "flipped":
            data[rng.randrange(400)] ^= 1 << rng.randrange(8)
        else:
            data = bytearray(rng.randbytes(rng.randrange(200)))
        try:
            LearnedState.from_bytes(bytes(data))
        except ModelError:
            continue
        assert damage == "flipped"  # a digit may have changed into another


def test_a_state_that_cannot_be_used_is_a_problem_and_the_model_answers(
    folder: Path, make_scene_model: MakeFolder, tmp_path: Path
) -> None:
    other = make_scene_model(tmp_path / "other", seed=5)
    place = learned_folder(open_model(folder))
    assert place == folder.with_name("quarters.learned")
    write_state(place, make_state(other))
    whole = (place / STATE_NAME).read_bytes()
    later = json.dumps({**json.loads(whole), "version": 7}).encode()
    for data, reason in ((whole, "another model"), (whole[:-9], "is not JSON"), (later, "has version 7")):
        (place / STATE_NAME).write_bytes(data)
        classifier = Classifier(folder)
        problem = classifier.learned_problem
        assert reason in problem and str(place) in problem and "answers without it" in problem
        assert "\n" not in problem and classifier.learned is None
        assert classifier(scene_pictures(1, seed=2)[0]).label in classifier.model.contract.labels


def test_another_folder_may_hold_the_state(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, model = make_state(folder), open_model(folder)
    named = tmp_path / "elsewhere"
    write_state(named, state)
    assert Classifier(folder).learned is None
    assert Classifier(folder, learned=named).labels[-1] == "scene"
    monkeypatch.setenv("VGG_EDGE_LEARNED", str(tmp_path / "states"))
    assert learned_folder(model) == tmp_path / "states" / "quarters.learned"
    write_state(learned_folder(model), state)
    assert Classifier(folder).labels[-1] == "scene"
    assert Classifier(folder, learned="none").labels == model.contract.labels
    assert open_learned(model, "none").folder is None


def test_a_named_place_without_a_state_is_reported(folder: Path, tmp_path: Path) -> None:
    assert Classifier(folder).learned_problem == ""
    missing = tmp_path / "lerned"
    problem = Classifier(folder, learned=missing).learned_problem
    assert problem == f"{missing}: no learned state here yet: `python -m runtime.teach` writes it"
    write_state(missing, make_state(folder))
    assert Classifier(folder, learned=missing).learned_problem == ""
    with pytest.raises(ModelError, match=r"state\.json: is a file: --learned takes the folder"):
        Classifier(folder, learned=missing / STATE_NAME)


def test_a_service_starts_with_a_learned_path_that_is_a_file(folder: Path, tmp_path: Path) -> None:
    events = list[str]()
    (tmp_path / "file").touch()
    reloader = ReloadingClassifier(folder, on_event=events.append, learned=tmp_path / "file")
    assert reloader.current().learned is None and "file: is a file" in events[0]


def test_a_file_without_an_index_has_its_own_state(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.tflite"
    file.write_bytes((folder / "quarters_float32.tflite").read_bytes())
    assert learned_folder(open_model(file)) == tmp_path / "x.tflite.learned"


def test_a_signed_model_uses_it_only_where_that_is_allowed(folder: Path, tmp_path: Path) -> None:
    write_state(learned_folder(open_model(folder)), make_state(folder))
    key = sign(folder, tmp_path)
    classifier = Classifier(folder, key=key)
    assert classifier.learned is None and "--allow-learning" in classifier.learned_problem
    assert Classifier(folder, key=key, allow_learning=True).labels[-1] == "scene"


def test_the_state_before_can_be_restored_once(folder: Path, tmp_path: Path) -> None:
    place, contract = tmp_path / "state", open_model(folder).contract
    first, second = make_state(folder, "one"), make_state(folder, "two")
    write_state(place, first)
    assert read_previous(place) is None
    write_state(place, second)
    before = read_previous(place)
    assert before is not None and before.labels == first.labels
    restore_state(place, before)
    now = read_state(place, contract)
    assert now is not None and now.labels == first.labels
    with pytest.raises(ModelError, match="nothing to undo"):
        read_previous(place)
    restore_state(place, None)
    assert read_state(place, contract) is None


def test_a_state_of_another_model_is_not_restored(folder: Path, tmp_path: Path) -> None:
    place, first = tmp_path / "state", make_state(folder, "one")
    write_state(place, first)
    write_state(place, replace(make_state(folder, "two"), model_id="f" * 64))
    with pytest.raises(ModelError, match="learned for another model"):
        read_previous(place)


def test_a_place_that_cannot_be_written_gives_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="--learned FOLDER chooses another place"):
        write_state(tmp_path / "file", make_state(folder))


def test_a_state_that_could_not_be_read_again_is_not_written(folder: Path, tmp_path: Path) -> None:
    state = replace(make_state(folder), bias=np.array([np.inf], np.float32))
    with pytest.raises(ModelError, match="not finite"):
        write_state(tmp_path / "state", state)
    assert not (tmp_path / "state" / STATE_NAME).exists()
