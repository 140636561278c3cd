"""The ImageClassifier of MediaPipe Tasks reads the released file and gives the same labels."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from pathlib import Path

import pytest

from runtime import Classifier
from runtime.model_file.loader import open_model
from tests.helpers import RELEASED

MEDIAPIPE = "mediapipe==1.2.3"
PER_CLASS = 20

# Runs in MediaPipe's environment: reads photo paths from stdin and prints one label per photo.
CLIENT = """
import json, sys
from mediapipe import Image
from mediapipe.tasks.python import BaseOptions, vision

options = vision.ImageClassifierOptions(
    base_options=BaseOptions(model_asset_path=sys.argv[1]), max_results=1
)
with vision.ImageClassifier.create_from_options(options) as classifier:
    for photo in sys.stdin.read().splitlines():
        result = classifier.classify(Image.create_from_file(photo))
        top = result.classifications[0].categories[0]
        print(json.dumps({"label": top.category_name, "probability": top.score}))
"""


@pytest.fixture(scope="session")
def mediapipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with MediaPipe, which needs numpy 2; the export needs numpy 1."""
    folder = tmp_path_factory.mktemp("mediapipe") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", MEDIAPIPE], check=True)
    return python


def test_mediapipe_gives_the_same_labels_for_95_percent(mediapipe: Path, flower_photos: Path) -> None:
    model = open_model(RELEASED, ("tflite",))
    classes = sorted(folder for folder in (flower_photos / "test").iterdir() if folder.is_dir())
    photos = [photo for folder in classes for photo in sorted(folder.iterdir())[:PER_CLASS]]
    assert len(photos) >= 100
    client = subprocess.run(
        [mediapipe, "-c", CLIENT, str(model.path)],
        input="\n".join(map(str, photos)),
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert client.returncode == 0, client.stderr[-2000:]
    by_mediapipe = [json.loads(line) for line in client.stdout.splitlines()]
    assert {answer["label"] for answer in by_mediapipe} <= set(model.contract.labels)  # names, not numbers
    classify = Classifier(RELEASED)
    labels = [classify(photo).label for photo in photos]
    same = sum(answer["label"] == label for answer, label in zip(by_mediapipe, labels, strict=True))
    assert same >= 0.95 * len(photos)
