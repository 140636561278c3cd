"""--reject raises the threshold of `known` so that the wanted share of the classes' photos is rejected."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from runtime import Classifier
from runtime.adapt import main as adapt
from runtime.classify import main as classify
from runtime.common.errors import ModelError
from runtime.inference.learned_state import STATE_NAME
from runtime.inference.strictness import strict_threshold
from runtime.teach import main as teach
from tests.runtime.scene import EXAMPLES, class_pictures, save_pictures, scene_pictures


def rejected(classifier: Classifier, pictures: np.ndarray) -> float:
    return float(np.mean([not classifier(pixels).known for pixels in pictures]))


def test_about_the_wanted_share_of_the_classes_is_rejected_and_more_of_the_scene(model: Path) -> None:
    flowers, scene = class_pictures(180, seed=4)[0], scene_pictures(40, seed=5)
    plain, strict, stricter = (Classifier(model, reject=share) for share in (None, 0.2, 0.5))
    assert plain.threshold == 0.5 < strict.threshold < stricter.threshold
    assert rejected(plain, flowers) < 0.05
    assert rejected(strict, flowers) == pytest.approx(0.2, abs=0.15)  # the quantile of 40 examples
    assert rejected(stricter, flowers) == pytest.approx(0.5, abs=0.2)
    assert rejected(plain, scene) < rejected(strict, scene) < rejected(stricter, scene)
    assert strict.details()[-1].startswith("rejects about 20.0% of the photos of the classes")


def test_exactly_the_wanted_share_of_the_examples_is_below_the_threshold(model: Path) -> None:
    classifier = Classifier(model)
    known = classifier.model.read_statistics().positive_known
    for share in (0.05, 0.25, 0.975):
        below = known < strict_threshold(classifier.model, share)
        assert below.sum() == int(share * EXAMPLES)


def test_the_threshold_is_never_below_the_one_of_the_model(model: Path) -> None:
    classifier = Classifier(model)
    classifier.model.contract.thresholds["known"] = 1.0  # type: ignore[index]
    assert strict_threshold(classifier.model, 0.2) == 1.0


def test_a_correction_counts(model: Path, tmp_path: Path) -> None:
    scene = save_pictures(scene_pictures(50, seed=1), tmp_path / "scene")
    assert adapt(["--model", str(model), "--none", str(scene)]) == 0
    corrected = Classifier(model, reject=0.2)
    assert corrected.correction and rejected(corrected, class_pictures(90, seed=4)[0]) < 0.35
    plain = corrected.with_correction("none", allow_correction=False)
    assert plain.threshold == Classifier(model, correction="none", reject=0.2).threshold
    assert plain.threshold > corrected.threshold


def test_a_share_that_the_examples_cannot_show_is_an_error(model: Path) -> None:
    with pytest.raises(ModelError, match=r"40 examples .* choose a --reject of at least 2\.5%"):
        Classifier(model, reject=0.02)
    assert Classifier(model, reject=0.025).threshold > 0.5


@pytest.mark.parametrize("count", [3, 12, 30, 40])
def test_the_share_that_an_error_advises_is_accepted(model: Path, count: int) -> None:
    file = Classifier(model).model
    statistics = file.read_statistics()
    few = SimpleNamespace(
        path=file.path,
        contract=file.contract,
        read_statistics=lambda: replace(statistics, positive_known=statistics.positive_known[:count]),
    )
    with pytest.raises(ModelError) as refused:
        strict_threshold(few, 1e-6)
    advised = re.search(r"at least ([\d.]+)%", str(refused.value))
    assert advised and strict_threshold(few, float(advised[1]) / 100) > 0.5


def test_a_share_is_not_rounded_below_a_whole_number_of_examples(model: Path) -> None:
    file = Classifier(model).model
    known = np.arange(1, 101) / 101
    statistics = replace(file.read_statistics(), positive_known=known.astype(np.float32))
    hundred = SimpleNamespace(path=file.path, contract=file.contract, read_statistics=lambda: statistics)
    assert 0.57 * 100 < 57 == (known < strict_threshold(hundred, 0.57) - 1e-6).sum()


@pytest.mark.parametrize("share", [-0.1, 0.0, 1.0, 10.0, float("nan")])
def test_a_share_outside_of_0_to_1_is_an_error(model: Path, share: float) -> None:
    with pytest.raises(ModelError, match=r"such as 0\.1 for 10 %"):
        Classifier(model, reject=share)


def test_a_model_without_a_detector_or_examples_is_an_error(colours: Path, knowing: Path) -> None:
    for folder, problem in ((colours, "does not detect unknown pictures"), (knowing, "contract version 1")):
        with pytest.raises(ModelError, match=problem):
            Classifier(folder, reject=0.1)


def test_the_command_rejects_more_and_says_why(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = save_pictures(class_pictures(30, seed=4)[0], tmp_path / "flowers")
    counts = []
    for flags in ([], ["--reject", "50%", "-v"]):
        assert classify(["--model", str(model), str(photos), *flags]) == 0
        out, err = capsys.readouterr()
        counts.append(out.count("unknown (nearest"))
    assert counts[0] <= 1 and 8 <= counts[1] <= 22
    assert "rejects about 50.0% of the photos of the classes" in err


def test_taught_photos_are_known_at_the_threshold_of_the_answers(model: Path) -> None:
    strict = Classifier(model, reject=0.5)
    seen, unseen = (scene_pictures(count, count) // 3 for count in (20, 30))  # dark: far below the threshold
    strict.teach("scene", list(seen))
    assert np.mean([strict(pixels).answer == "scene" for pixels in unseen]) > 0.8
    assert strict.learned and strict.learned.measured.labels["scene"].right_after >= 19
    assert Classifier(model, reject=0.5).learned_problem == ""


def test_a_state_for_another_threshold_is_used_with_a_warning(model: Path, tmp_path: Path) -> None:
    Classifier(model).teach("scene", list(scene_pictures(8, seed=1)))
    strict = Classifier(model, reject=0.2)
    assert strict.learned and "--again" in strict.learned_problem
    strict.learn()
    assert strict.learned_problem == Classifier(model, reject=0.2).learned_problem == ""
    assert "--again" in Classifier(model).learned_problem
    path = Classifier(model).learning_folder() / STATE_NAME
    fields = json.loads(path.read_text())
    del fields["threshold"]  # as an earlier version wrote it
    path.write_text(json.dumps(fields))
    assert Classifier(model).learned_problem == ""


def test_teach_learns_for_the_flag(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = save_pictures(scene_pictures(8, seed=1), tmp_path / "photos")
    assert teach(["--model", str(model), "scene", str(photos), "--reject", "20%"]) == 0
    assert Classifier(model, reject=0.2).learned_problem == ""
    capsys.readouterr()
    assert teach(["--model", str(model), "--list"]) == 0
    listed = capsys.readouterr().out
    assert "new class scene (8)" in listed and "another threshold" in listed
