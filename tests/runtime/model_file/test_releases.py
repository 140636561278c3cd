"""A signed model that is older than one that has run is refused, until its owner accepts it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from export.output_dir import replace_dir
from export.sign import open_key
from runtime import Classifier
from runtime.browser_page import main as write_page
from runtime.classify import main
from runtime.common.errors import ModelError
from runtime.common.file_lock import exclusive_lock
from runtime.inference.model_reloader import ReloadingClassifier
from runtime.model_file import releases
from runtime.model_file.files import SIGNATURE_NAME
from runtime.model_file.releases import FILE_NAME
from tests.runtime.conftest import MakeFolder
from tests.runtime.make_models import SIDE
from tests.runtime.model_file.test_signature import held, new_key

WHITE = np.full((SIDE, SIDE, 3), 255, np.uint8)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The record of an empty state."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "vgg-edge" / FILE_NAME


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return new_key(tmp_path)


@pytest.fixture
def install(tmp_path: Path, key: Path, make_scene_model: MakeFolder) -> Callable[..., Path]:
    """Puts a signed release in the place of the last one."""

    def make(release: int, **changes: object) -> Path:
        new = make_scene_model(
            tmp_path / f"release {release} {len(list(tmp_path.iterdir()))}", release=release, **changes
        )
        files = held(new)
        replace_dir(
            {**files, SIGNATURE_NAME: open_key(key.with_suffix(".key"))("model", files)}, tmp_path / "model"
        )
        return tmp_path / "model"

    return make


def run(model: Path, key: Path | None, **options: bool) -> None:
    Classifier(model, key=key, engine="litert", **options)(WHITE)


def test_an_older_release_is_refused_after_a_newer_one_ran(
    install: Callable[..., Path], key: Path, state: Path
) -> None:
    run(install(1), key)
    run(install(3), key)
    run(install(3), key)
    with pytest.raises(ModelError, match=r"is release 2 of .* release 3 has run here.*--allow-rollback"):
        run(install(2), key)
    assert state.stat().st_size < 200


def test_the_owner_accepts_an_older_release_for_good(
    install: Callable[..., Path], key: Path, state: Path
) -> None:
    run(install(3), key)
    run(install(2), key, allow_rollback=True)
    run(install(2), key)
    with pytest.raises(ModelError, match="is release 1 "):
        run(install(1), key)


def test_names_keys_and_unsigned_models_have_counters_of_their_own(
    install: Callable[..., Path], key: Path, state: Path, make_scene_model: MakeFolder, tmp_path: Path
) -> None:
    run(install(3), key)
    run(install(1, name="another"), key)
    run(make_scene_model(tmp_path / "unsigned", release=1), None)
    run(install(2), None)
    new_key(tmp_path)  # replaces the key
    run(install(2), key)
    assert sorted(map(len, json.loads(state.read_text()).values())) == [1, 2]


def test_a_release_counts_once_it_has_run(install: Callable[..., Path], key: Path, state: Path) -> None:
    """A new model that fails its proof must not lock out the old one."""
    Classifier(install(3), key=key)
    assert not state.exists()
    run(install(2), key)


def test_a_reloader_counts_a_proved_model_and_refuses_an_older_one(
    install: Callable[..., Path], key: Path, state: Path
) -> None:
    events: list[str] = []
    running = ReloadingClassifier(install(2), key=key, on_event=events.append)
    assert '": 2' in state.read_text()
    install(1)
    for _ in range(2):
        running.check()
    assert "rejected" in events[-1] and "is release 1 " in events[-1]
    assert running.current().model.contract.release == 2


def test_the_flag_and_verify(
    install: Callable[..., Path], key: Path, state: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(install(2), key)
    flags = ["--model", str(install(1)), "--key", str(key)]
    for arguments in (["--verify"], [str(photos / "red.jpg")]):
        assert main([*arguments, *flags]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "is release 1 " in line
    assert main(["--verify", *flags, "--allow-rollback"]) == 0
    assert main(["--verify", *flags]) == 2, "to verify is not to run"
    assert main([str(photos / "red.jpg"), *flags, "--allow-rollback"]) == 0
    assert main([str(photos / "red.jpg"), *flags]) == 0


def test_a_browser_page_gets_no_older_release(
    install: Callable[..., Path], key: Path, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(install(2), key)
    arguments = ["--model", str(install(1)), "--key", str(key), "--engine-package", str(tmp_path / "none")]
    for flag, reason in (([], "is release 1 "), (["--allow-rollback"], "none: no such file")):
        assert write_page([*arguments, *flag, "--out", str(tmp_path / "page.html")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line.lower()


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"k": 1}', '{"k": {"n": "1"}}', '{"k": {"n": true}}', "x" * 2_000_000]
)
def test_a_damaged_record_is_one_line(
    text: str, install: Callable[..., Path], key: Path, state: Path
) -> None:
    state.parent.mkdir(parents=True)
    state.write_text(text)
    with pytest.raises(ModelError, match=f"{state}: .*: remove it") as error:
        run(install(1), key)
    assert "\n" not in str(error.value)


def test_a_place_that_cannot_be_written_is_one_line(
    install: Callable[..., Path], key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set XDG_STATE_HOME to a folder that you may write"):
        run(install(1), key)


def test_two_services_that_record_at_once_keep_both_releases(
    install: Callable[..., Path], key: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Classifier(install(3), key=key, engine="litert")
    second = Classifier(install(2, name="other"), key=key, engine="litert")
    read, started = releases._read, threading.Barrier(2, timeout=20)

    def read_together(path: Path) -> dict[str, dict[str, int]]:
        found = read(path)
        with suppress(threading.BrokenBarrierError):  # under the lock, the other service is not there
            started.wait(0.3)
        return found

    monkeypatch.setattr(releases, "_read", read_together)
    threads = [threading.Thread(target=classifier.record_release) for classifier in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (recorded,) = json.loads(state.read_text()).values()
    assert recorded == {"quarters": 3, "other": 2}
    assert list(state.parent.iterdir()) == [state]


def test_a_service_does_not_overwrite_a_newer_release_that_another_one_recorded_meanwhile(
    install: Callable[..., Path], key: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = Classifier(install(3), key=key, engine="litert")
    older = Classifier(install(2), key=key, engine="litert")
    read = releases._read

    def read_before_the_other_records(path: Path) -> dict[str, dict[str, int]]:
        monkeypatch.setattr(releases, "_read", read)
        found = read(path)
        newer.record_release()
        return found

    monkeypatch.setattr(releases, "_read", read_before_the_other_records)
    older.record_release()
    (recorded,) = json.loads(state.read_text()).values()
    assert recorded == {"quarters": 3}


def test_a_lock_that_is_not_released_is_an_error_of_one_line(
    install: Callable[..., Path], key: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releases, "LOCK_SECONDS", 0.05)
    classifier = Classifier(install(3), key=key, engine="litert")
    state.parent.mkdir(parents=True)
    with exclusive_lock(state.with_name(f"{FILE_NAME}.lock")), pytest.raises(ModelError, match="in use by"):
        classifier.record_release()
    classifier.record_release()
