"""The fuzzer finds what it is there to find: planted in a parser of ours, each kind of failure is caught."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.fuzz.__main__ import main, run

ONE = "from tests.fuzz.one import *\n"

PLANTED = {
    # An exception that no user should see: of a field that lies in no seed's graph, cut in its length.
    "onnx": (
        "from runtime.model_file import contract, loader\n"
        "def careless(data):\n"
        "    text = original(data)\n"
        "    if b'keras' not in text: raise IndexError('planted')\n"
        "    return text\n"
        "original = loader._CONTRACT_TEXT['onnx']\n"
        "loader._CONTRACT_TEXT['onnx'] = careless\n",
        "IndexError: planted",
    ),
    # Memory by a number that the file gives.
    "tflite": (
        "from runtime.model_file import contract, loader\n"
        "def careless(data):\n"
        "    return original(data) + bytes(data[60] << 24)\n"
        "original = loader._CONTRACT_TEXT['tflite']\n"
        "loader._CONTRACT_TEXT['tflite'] = careless\n",
        "out-of-memory",
    ),
    # A loop that does not get on.
    "contract": (
        "from runtime.model_file import contract, loader\n"
        "def careless(text):\n"
        "    fields = original(text)\n"
        "    while fields.get('synthetic') == 0 and fields['synthetic'] is not False: pass\n"
        "    return fields\n"
        "original = contract.parse_json\n"
        "contract.parse_json = careless\n",
        "timeout",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_failure_is_found(name: str, tmp_path: Path) -> None:
    code, said = PLANTED[name]
    command = [sys.executable, "-c", f"{ONE}{code}fuzz(TARGETS[sys.argv[1]], sys.argv[2:])", name]
    outcome = run(command, name, tmp_path, 60)
    assert said in outcome.found, outcome.log.read_text(errors="replace")[-3000:]
    assert list((tmp_path / "found").glob(f"{name}-*-*")), "the input is kept"


def test_the_seeds_are_read_to_the_end() -> None:
    """Else the fuzzer would begin at the first check, and learn nothing of what lies behind it."""
    from runtime.model_file.contract import Contract
    from runtime.model_file.loader import read_contract
    from runtime.model_file.signature import signed_files
    from runtime.preprocess.picture import read_picture
    from tests.fuzz import targets

    for seed in targets.tflite_seeds():
        assert read_contract(seed, "tflite")
    for seed in targets.onnx_seeds():
        assert read_contract(seed, "onnx")
    for seed in targets.contract_seeds():
        assert Contract.from_json(seed)
    for seed in targets.bundle_seeds():
        assert len(signed_files(seed, targets._signer()[1])) == 2
    for seed in targets.picture_seeds():
        assert read_picture(seed).any()


def test_the_command_fails_where_something_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = PLANTED["onnx"]
    planted = [sys.executable, "-c", f"{ONE}{code}fuzz(TARGETS[sys.argv[1]], sys.argv[2:])", "onnx"]
    command = ["onnx", "--seconds", "60", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr("tests.fuzz.__main__.run", lambda _, *rest: run(planted, *rest))
        assert main(command) == 1
    assert said in capsys.readouterr().out
    assert main(["bundle", "--seconds", "2", "--out", str(tmp_path)]) == 0
    assert "nothing found" in capsys.readouterr().out
