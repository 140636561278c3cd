"""The console script `vgg-edge`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runtime import __main__ as console
from runtime.__main__ import COMMANDS, main
from tests.helpers import ROOT

Capture = pytest.CaptureFixture[str]


def test_help_lists_every_command_on_one_line(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for name in ("train", "compress", "export", "classify", "serve", "bench"):
        (line,) = (line for line in lines if line[:1] == [name])
        assert len(line) > 3
    assert main([]) == 0


def test_a_command_gets_the_remaining_arguments(colours: Path, photos: Path, capsys: Capture) -> None:
    assert main(["classify", str(photos / "red.jpg"), "--model", str(colours)]) == 0
    assert "红" in capsys.readouterr().out
    assert main(["classify", str(photos / "nothing.jpg"), "--model", str(colours)]) == 1


def test_an_unknown_command_exits_with_2_and_names_the_commands(capsys: Capture) -> None:
    assert main(["clasify"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'clasify'" in line and "classify" in line and "--help" in line


@pytest.mark.parametrize("name", ["train", "compress", "export"])
def test_a_slim_install_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(console, "find_spec", lambda package: None)
    assert main([name, "photos"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "keras" in line and "pip install '.[train,export]'" in line


def test_every_command_has_a_main_function() -> None:
    code = "import sys; from importlib import import_module; import_module(sys.argv[1]).main(['--help'])"
    for command in COMMANDS.values():
        done = subprocess.run(
            [sys.executable, "-c", code, command.module], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0 and done.stdout.startswith("usage: "), done.stderr


def test_the_console_script_imports_no_command_for_its_help() -> None:
    code = (
        "import sys; from runtime.__main__ import main; "
        "main(['--help']); print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, text=True)
    assert not {"numpy", "runtime.classify", "train", "export"} & set(done.stderr.split())


def test_ctrl_c_while_a_command_is_imported_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def interrupt(module: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(console, "import_module", interrupt)
    monkeypatch.setattr(sys, "argv", ["vgg-edge", "bench"])
    with pytest.raises(SystemExit, match="130"):
        console.run()
    assert capsys.readouterr().err == ""
