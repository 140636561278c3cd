"""Fixtures of the runtime: a tiny model that names a picture by its mean color, photos and clips."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from runtime.inference import engines, model_proof
from runtime.inference.engines import ENGINES
from runtime.model_file.contract import Contract
from runtime.model_file.files import INDEX_NAME
from runtime.model_file.index import Index, IndexedFile
from tests.helpers import PATIENCE, make_contract
from tests.runtime.make_models import FORMATS, FORMATS_WITH_KNOWN, MODELS, SIDE, model_path
from tests.runtime.scene import add_statistics, make_scene_contract, make_scene_statistics

LABELS = ("blau", "grün", "红")  # by the strongest channel of B, G, R

CONTRACT = make_contract("colours", LABELS, SIDE)


MakeFolder = Callable[..., Path]

HAS_TFLITE = sys.version_info < (3, 12)  # in every environment of `make setup`, as in continuous integration
needs_tflite = pytest.mark.skipif(not HAS_TFLITE, reason="tflite-runtime has no wheel for this Python")
EACH_ENGINE = [pytest.param(each, marks=needs_tflite if each == "tflite" else ()) for each in ENGINES]


def rewrite_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the fields of a folder's model.json."""
    path = folder / INDEX_NAME
    fields = json.loads(path.read_text(encoding="utf-8"))
    change(fields)
    path.write_text(json.dumps(fields), encoding="utf-8")


def write_folder(
    folder: Path, files: dict[tuple[str, str], bytes], contract: Contract, statistics: bytes = b""
) -> Path:
    """A model folder as an export leaves it, of converted files that get contract and statistics here."""
    from export.metadata import embed_contract

    folder.mkdir(parents=True)
    listed = []
    for (format, precision), data in files.items():
        path = folder / f"{contract.name}_{precision}.{format}"
        embedded = embed_contract(data, format, contract)
        path.write_bytes(add_statistics(embedded, format, statistics) if statistics else embedded)
        listed.append(
            IndexedFile(
                file=path.name,
                format=format,
                precision=precision,
                bytes=path.stat().st_size,
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                metrics={},
            )
        )
    (folder / INDEX_NAME).write_text(Index(contract, tuple(listed)).to_json(), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def same_engine_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--engine auto` chooses by the same rule on every processor that runs the tests."""
    monkeypatch.setattr(engines, "is_x86_without_vnni", lambda: False)


@pytest.fixture(autouse=True)
def patient_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loaded machine starts the process that tests a new model slowly: that is no fault of the model."""
    monkeypatch.setattr(model_proof, "PROOF_TIMEOUT", PATIENCE)


@pytest.fixture(scope="session")
def converted() -> dict[tuple[str, str], bytes]:
    """The network's files without a contract, by format and precision."""
    return {key: model_path(False, *key).read_bytes() for key in FORMATS}


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory, converted: dict[tuple[str, str], bytes]) -> Path:
    """The folder of a model in both formats, not to be changed."""
    return write_folder(tmp_path_factory.mktemp("models") / "colours", converted, CONTRACT)


@pytest.fixture(scope="session")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the output `known`."""
    files = {key: model_path(True, *key).read_bytes() for key in FORMATS_WITH_KNOWN}
    contract = replace(CONTRACT, thresholds={"known": 0.5})
    return write_folder(tmp_path_factory.mktemp("models") / "knowing", files, contract)


@pytest.fixture(scope="session")
def make_scene_model() -> Callable[..., Path]:
    """Writes the folder of a model of contract version 2, whose classes `tests.runtime.scene` draws."""

    def make(folder: Path, seed: int = 0, **changes: object) -> Path:
        files = {key: (MODELS / f"features_{key[1]}.{key[0]}").read_bytes() for key in FORMATS_WITH_KNOWN}
        statistics = make_scene_statistics(seed)
        contract = replace(make_scene_contract(statistics), **changes)  # type: ignore[arg-type]
        return write_folder(folder, files, contract, statistics.to_bytes())

    return make


@pytest.fixture
def model(make_scene_model: MakeFolder, tmp_path: Path) -> Path:
    """A scene model of its own for a test that adapts or teaches it."""
    return make_scene_model(tmp_path / "models" / "quarters")


@pytest.fixture
def learned(model: Path) -> Path:
    """Where the learned state of `model` is written."""
    return model.with_name("quarters.learned")


@pytest.fixture
def make_folder(converted: dict[tuple[str, str], bytes]) -> Callable[..., Path]:
    """Writes a folder of its own for a test that damages it."""

    def make(folder: Path, *keys: tuple[str, str], **changes: object) -> Path:
        files = {key: converted[key] for key in keys or converted}
        return write_folder(folder, files, replace(CONTRACT, **changes))  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """red.jpg, green.jpg and blue.png, and 10 blue ones in a folder below."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for name, colour in (("red.jpg", "red"), ("green.jpg", "lime"), ("blue.png", "blue")):
        Image.new("RGB", (64, 48), colour).save(folder / name)
    for number in range(1, 11):
        Image.new("RGB", (64, 48), "blue").save(folder / "more" / f"{number}.png")
    return folder


def _write_clip(
    path: Path, pictures: list[NDArray[np.uint8]], fps: int | Fraction = 30, codec: str = "libx264"
) -> Path:
    import av

    height, width = pictures[0].shape[:2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for pixels in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def write_clip() -> Callable[..., Path]:
    """Writes pictures, uint8 [h, w, 3], as a clip."""
    return _write_clip


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Red, green and blue for a third of a second each, as H.264, also without timestamps, and as MJPEG."""
    folder = tmp_path_factory.mktemp("clips")
    colours = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    pictures = [np.full((48, 64, 3), colour, np.uint8) for colour in colours for _ in range(10)]
    return {
        "h264": _write_clip(folder / "colours.mp4", pictures),
        "mjpeg": _write_clip(folder / "colours.avi", pictures, codec="mjpeg"),
        "mpegts": _write_clip(folder / "colours.ts", pictures),
        "raw": _write_clip(folder / "colours.h264", pictures),
    }


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., Path]:
    """Writes a clip of plain colours, each for so many frames of a 25th of a second."""

    def make(path: Path, colours: list[tuple[str, int]]) -> Path:
        import av

        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for colour, frames in colours:
                for _ in range(frames):
                    frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), colour))
                    container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return make
