"""The fuzzer finds each kind of failure when it is planted behind a parser."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from runtime.common.errors import ModelError
from runtime.model_file.contract import Contract
from runtime.model_file.formats import read_contract
from runtime.model_file.signature import signed_files
from runtime.preprocess.picture import read_picture
from runtime.server.connection_limits import BoundedHttpProtocol
from tests.fuzz import targets
from tests.fuzz.__main__ import FuzzResult, main, run_target

SETUP = """
import sys
from tests.fuzz.worker import fuzz  # first, because it instruments what the targets import
from tests.fuzz.targets import TARGETS
from runtime.model_file import contract, formats
readers, parse_json = formats._CONTRACT_TEXT, contract.parse_json
"""
RUN = "\nfuzz(TARGETS[sys.argv[1]], sys.argv[2:])"

# Target: code that plants a failure, and a part of the fuzzer's report.
PLANTED = {
    "onnx": (
        """
def with_exception(data, read=readers["onnx"]):
    text = read(data)
    if b"keras" not in text:
        raise IndexError("planted")
    return text
readers["onnx"] = with_exception
""",
        "IndexError: planted",
    ),
    "tflite": (
        """
def with_large_allocation(data, read=readers["tflite"]):
    return read(data) + bytes(data[60] << 24)
readers["tflite"] = with_large_allocation
""",
        "out-of-memory",
    ),
    "contract": (
        """
def with_endless_loop(text):
    fields = parse_json(text)
    while fields.get("synthetic") == 0 and fields["synthetic"] is not False:
        pass
    return fields
contract.parse_json = with_endless_loop
""",
        "timeout",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_failure_is_found(name: str, tmp_path: Path) -> None:
    planted, report = PLANTED[name]
    result = run_target(name, tmp_path, 300, [sys.executable, "-c", SETUP + planted + RUN, name])
    assert report in result.failure, result.log.read_text(errors="replace")[-3000:]
    assert list((tmp_path / "found").glob(f"{name}-*-*")), "the failing input is not kept"


def test_every_seed_is_parsed_to_its_end() -> None:
    """Otherwise the fuzzer would start at the first check and never reach the code behind it."""
    whole, forged = targets.tflite_seeds()
    assert read_contract(whole, "tflite")
    with pytest.raises(ModelError):  # the forged one has to be refused
        read_contract(forged, "tflite")
    for seed in targets.onnx_seeds():
        assert read_contract(seed, "onnx")
    for seed in targets.contract_seeds():
        assert Contract.from_json(seed)
    for seed in targets.bundle_seeds():
        assert len(signed_files(seed, targets._signer()[1])) == 2
    for seed in targets.picture_seeds():
        assert read_picture(seed).any()


def test_the_command_exits_1_if_a_target_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = FuzzResult(1, 50, 0, "FAILED IndexError: planted", tmp_path / "onnx.log")
    with monkeypatch.context() as patch:
        patch.setattr("tests.fuzz.__main__.run_target", lambda *_: failed)
        assert main(["onnx", "--out", str(tmp_path)]) == 1
    assert "IndexError: planted" in capsys.readouterr().out


def test_the_command_exits_0_if_every_target_passed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bundle", "--seconds", "2", "--out", str(tmp_path)]) == 0
    assert "passed" in capsys.readouterr().out


def test_the_target_of_connections_finds_an_uncounted_trailer(monkeypatch: pytest.MonkeyPatch) -> None:
    chunked = targets.connection_seeds()[2].partition(b"0\r\n")[0]
    endless = chunked + b"0\r\n" + b"X: %s\r\n" % (b"y" * 90) * 20
    targets.connection(endless)
    monkeypatch.setattr(BoundedHttpProtocol, "data_received", HttpToolsProtocol.data_received)
    with pytest.raises(AssertionError):
        targets.connection(endless)
