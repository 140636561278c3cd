"""The teach command: what it prints and writes, and how it refuses bad input."""

from __future__ import annotations

import json
from datetime import datetime, tzinfo
from pathlib import Path

import pytest

from runtime import Classifier
from runtime.inference.learned_state import STATE_NAME
from runtime.inference.taught_photos import TaughtPhotos
from runtime.model_file.loader import KEY_VARIABLE
from runtime.teach import main
from tests.runtime.conftest import MakeFolder
from tests.runtime.scene import EXAMPLES, LABELS, class_pictures, save_pictures, scene_pictures

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pictures(scene_pictures(12, seed=1), tmp_path_factory.mktemp("photos") / "scene")


def teach(model: Path, *arguments: str | Path) -> int:
    return main(["--model", str(model), *map(str, arguments)])


def test_a_new_class_is_taught(model: Path, learned: Path, scene: Path, capsys: Capture) -> None:
    assert teach(model, "scene", scene) == 0
    out, err = capsys.readouterr()
    _, summary, header, row, note, written = out.splitlines()
    assert summary.startswith("learned 12 photos in ") and "new class scene (12)" in summary
    assert "known photos still right: " in summary and header.split()[0] == "taught"
    assert row.split()[:5] == ["scene", "(new)", "12", "0", "12"] and "unseen" in note
    assert f"wrote {learned}" in written and err == ""
    assert Classifier(model)(scene_pictures(1, seed=2)[0]).answer == "scene"


def test_json_has_the_documented_fields(model: Path, learned: Path, scene: Path, capsys: Capture) -> None:
    assert teach(model, "scene", scene, "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    answer = json.loads(line)
    assert list(answer) == [
        "model", "learned", "created", "labels", "new", "taught", "examples", "right", "seconds", "errors",
    ]  # fmt: skip
    assert answer["learned"] == str(learned) and answer["labels"] == [*LABELS, "scene"]
    assert answer["new"] == ["scene"] and answer["examples"] == EXAMPLES and answer["errors"] == {}
    assert (
        answer["taught"]["scene"]
        == json.loads((learned / STATE_NAME).read_text())["measured"]["labels"]["scene"]
    )
    assert teach(model, "--list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["kept"] == {"scene": 12} and listed["pending"] == 0 and listed["taught"] == answer["taught"]
    assert teach(model, "--undo", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"learned": str(learned)}


def test_list_undo_and_reset(model: Path, learned: Path, scene: Path, capsys: Capture) -> None:
    assert teach(model, "--list") == 0
    assert capsys.readouterr().out == f"{learned}: nothing learned\n"
    assert teach(model, "scene", scene / "000.png", scene / "001.png") == 0
    assert "scene: the result of 2 photos is not reliable" in capsys.readouterr().err
    assert teach(model, "none", scene) == 0
    capsys.readouterr()
    assert teach(model, "--list") == 0
    assert "none 12" in capsys.readouterr().out
    assert teach(model, "--undo") == 0
    assert "new class scene (2)" in capsys.readouterr().out
    assert teach(model, "--undo") == 2
    err = capsys.readouterr().err
    assert "nothing to undo" in err and len(err.splitlines()) == 1
    assert teach(model, "--reset") == 0
    assert "removed 2 photos" in capsys.readouterr().out
    assert Classifier(model).learned is None


def test_export_writes_class_folders(model: Path, scene: Path, tmp_path: Path, capsys: Capture) -> None:
    teach(model, "a/b", scene)
    teach(model, "none", save_pictures(class_pictures(3, seed=1)[0], tmp_path / "others"))
    capsys.readouterr()
    for _ in range(2):  # again: the same files
        assert teach(model, "--export", tmp_path / "out") == 0
        assert capsys.readouterr().out == f"copied 15 photos to {tmp_path / 'out'}: a/b 12, none 3\n"
        found = {path.name: len(list(path.iterdir())) for path in (tmp_path / "out").iterdir()}
        assert found == {"a%2Fb": 12, "none": 3}
    assert teach(model, "--reset") == 0 and teach(model, "--export", tmp_path / "other") == 2


def test_an_export_has_each_photo_in_one_class(
    model: Path, scene: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    teach(model, "scene", scene)
    teach(model, "--export", out)
    teach(model, "none", scene / "000.png")
    teach(model, "--export", out)
    found = {path.name: len(list(path.iterdir())) for path in out.iterdir()}
    assert found == {"none": 1, "scene": 11}
    teach(model, "--reset")
    teach(model, "scene", scene / "001.png")
    capsys.readouterr()
    assert teach(model, "--export", out) == 0
    assert f"{out} has 12 more photos" in capsys.readouterr().err


def test_undo_waits_for_photos_that_are_not_learned(
    model: Path, learned: Path, scene: Path, capsys: Capture
) -> None:
    """A power cut may come between the photos and the state."""
    teach(model, "scene", scene)
    TaughtPhotos(learned).add("none", class_pictures(1, seed=1)[0][0])
    capsys.readouterr()
    assert teach(model, "--undo") == 2
    assert "1 kept photos are not learned yet: --again" in capsys.readouterr().err
    assert teach(model, "--again") == 0 and teach(model, "--undo") == 0
    assert TaughtPhotos(learned).labels() == {"scene": 12}


def test_undo_waits_for_such_photos_after_the_clock_was_set_back(
    model: Path, learned: Path, scene: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    class Future(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Future:
            return cls(2101, 1, 1, tzinfo=tz)

    class Later(Future):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Later:
            return cls(2101, 1, 2, tzinfo=tz)

    with monkeypatch.context() as patch:
        patch.setattr("runtime.preprocess.stored_photo.datetime", Future)
        patch.setattr("runtime.inference.learned_fit.datetime", Later)
        teach(model, "scene", scene)
    TaughtPhotos(learned).add("none", class_pictures(1, seed=1)[0][0])
    capsys.readouterr()
    assert teach(model, "--undo") == 2
    assert "1 kept photos are not learned yet: --again" in capsys.readouterr().err


def test_undo_and_list_count_photos_that_are_no_longer_kept(
    model: Path, learned: Path, scene: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The next step then forgets their class."""
    teach(model, "scene", scene)
    others = save_pictures(class_pictures(3, seed=1)[0], tmp_path / "others")
    teach(model, "blau", others)
    store = TaughtPhotos(learned)
    for photo in store.photos():
        if photo.label == "scene":
            store.remove(photo.id)  # as another photo makes room for itself
    capsys.readouterr()
    assert teach(model, "--undo") == 0
    assert "12 of these photos are no longer kept" in capsys.readouterr().out
    assert teach(model, "--list") == 0
    assert "12 of these photos are no longer kept" in capsys.readouterr().out
    assert teach(model, "--list", "--json") == 0
    assert json.loads(capsys.readouterr().out)["removed"] == 12
    assert teach(model, "blau", others) == 0
    assert "warning: no photo of scene is left" in capsys.readouterr().err


def test_a_photo_in_place_of_the_label_is_refused(model: Path, scene: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        teach(model, scene / "000.png", scene / "001.png")
    assert "give its label first" in capsys.readouterr().err


def test_photos_of_a_new_model_are_learned_again(
    model: Path, make_scene_model: MakeFolder, scene: Path, capsys: Capture
) -> None:
    import shutil

    assert teach(model, "scene", scene) == 0
    shutil.rmtree(model)
    make_scene_model(model, seed=3)
    capsys.readouterr()
    assert teach(model, "--list") == 0
    assert "another model" in capsys.readouterr().out
    assert teach(model, "--again") == 0
    assert "new class scene (12)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("label", "reason"),
    [("Blau", "the label blau exists"), ("a\x1b[2J", "is not a label"), ("unknown", "teach them as none")],
)
def test_a_bad_label_gives_one_line(
    model: Path, learned: Path, scene: Path, label: str, reason: str, capsys: Capture
) -> None:
    assert teach(model, label, scene) == 2
    err = capsys.readouterr().err
    assert reason in err and len(err.splitlines()) == 1 and "\x1b" not in err
    assert not (learned / "photos").exists()


def test_unreadable_photos_are_reported_and_the_rest_learned(
    model: Path, learned: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = save_pictures(scene_pictures(6, seed=1), tmp_path / "scene")
    (folder / "003.png").write_bytes(b"no picture")
    assert teach(model, "scene", folder, tmp_path / "missing.png") == 1
    err = capsys.readouterr().err.splitlines()
    assert [line for line in err if line.startswith("error: ")] == err and len(err) == 2
    assert len(json.loads((learned / STATE_NAME).read_text())["photos"]) == 5
    assert teach(model, "scene", folder / "003.png") == 2
    assert "nothing was learned" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["scene"], ["scene", "x.jpg", "--list"], ["--undo", "--reset"], ["--list", "--again"]]
)
def test_wrong_flags_give_a_usage_error(model: Path, arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        teach(model, *arguments)
    assert ended.value.code == 2 and "Traceback" not in capsys.readouterr().err


def test_a_device_for_signed_models_must_allow_it(
    model: Path, scene: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.runtime.inference.test_correction import sign

    monkeypatch.setenv(KEY_VARIABLE, str(sign(model, tmp_path)))
    assert teach(model, "scene", scene) == 2
    assert "--allow-learning" in capsys.readouterr().err
    assert teach(model, "scene", scene, "--allow-learning") == 0
    assert Classifier(model).learned is None
    assert Classifier(model, allow_learning=True).learned is not None


def test_a_model_without_features_gives_one_line(
    knowing: Path, scene: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert teach(knowing, "scene", scene, "--learned", tmp_path / "x") == 2
    err = capsys.readouterr().err
    assert "no features to learn from" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "x").exists()


def test_classify_prints_the_learned_label(model: Path, scene: Path, capsys: Capture) -> None:
    from runtime.classify import main as classify

    teach(model, "a new scene", scene)
    capsys.readouterr()
    assert classify(["--model", str(model), str(scene / "000.png"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["label"] == "a new scene" and answer["known"] is True
    assert classify(["--model", str(model), str(scene / "000.png"), "--learned", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] in LABELS
