"""The token file: created private, read strictly."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

import pytest

from runtime.common.errors import UserError
from runtime.common.secret_file import permission_warning
from runtime.serve import main
from runtime.server.token_file import (
    MIN_TOKEN_LENGTH,
    TOKEN_VARIABLE,
    make_token_file,
    read_token,
)


def test_a_new_token_file_is_private_and_readable_as_a_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    make_token_file(str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(read_token(str(path))) >= MIN_TOKEN_LENGTH
    assert permission_warning(str(path)) == ""


def test_an_existing_token_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        make_token_file(str(tmp_path / "token"))
    assert (tmp_path / "token").read_text() == "mine"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_token_file_that_others_can_read_gives_a_warning(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.touch()
    path.chmod(mode)
    assert f"chmod 600 {path}" in permission_warning(str(path))


def test_a_systemd_credential_gives_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "token").touch(0o440)
    assert permission_warning(str(tmp_path / "token")) == ""


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"hunter2", str(MIN_TOKEN_LENGTH)),
        ("пароль-пароль-пароль".encode(), "ASCII"),
        (b"a b " * 9, "spaces"),
    ],
)
def test_a_weak_token_is_refused_without_repeating_it(content: bytes, fact: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(UserError, match=fact) as refused:
        read_token(str(tmp_path / "token"))
    assert "hunter2" not in str(refused.value)


def test_the_environment_is_read_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(None) == ""
    monkeypatch.setenv(TOKEN_VARIABLE, "x" * MIN_TOKEN_LENGTH)
    assert read_token(None) == "x" * MIN_TOKEN_LENGTH


def test_a_missing_token_file_names_the_command_that_creates_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--make-token"):
        read_token(str(tmp_path / "token"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk as Linux simulates it")
def test_a_full_disk_leaves_no_empty_token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, mode: str) -> IO[str]:
        os.close(descriptor)
        return Path("/dev/full").open(mode)

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(UserError, match="token: no space left on device"):
        make_token_file(str(tmp_path / "token"))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_name_for_the_token_file_does_not_start_the_service(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--make-token", "", "--host", "0.0.0.0"]) == 2
    assert "no such file" in capsys.readouterr().err
