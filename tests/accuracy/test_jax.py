"""Training is Keras's own, so that JAX trains what TensorFlow does: in an environment without TensorFlow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.picture import read_picture
from train.dataset import find_photos
from train.run import open_run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
LIMIT = 40  # photos a class and split: 200 of test, of which 1 point is 2


@pytest.fixture(scope="session")
def jax_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with what the extra `jax` asks for, and no TensorFlow."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["keras"], *extras["jax"]]
    folder = tmp_path_factory.mktemp("jax") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    packages = [name for name in wanted if not name.startswith("vgg-edge")]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    assert subprocess.run([python, "-c", "import tensorflow"], capture_output=True).returncode != 0
    return python


def trained(python: Path | str, backend: str, out: Path, photos: Path, *flags: str) -> dict[str, Any]:
    """The run.json of a run under a backend."""
    command = [python, "-m", "train", photos, "--out", out, "--limit", str(LIMIT), *flags]
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    assert record["device"].endswith(f"on {backend}")
    return record


def test_jax_trains_to_the_same_metrics(jax_python: Path, flower_photos: Path, tmp_path: Path) -> None:
    ours = trained(sys.executable, "tensorflow", tmp_path / "tensorflow", flower_photos)
    theirs = trained(jax_python, "jax", tmp_path / "jax", flower_photos)
    for split in ("val", "test"):
        one, two = ours["metrics"][split], theirs["metrics"][split]
        assert one["n"] == two["n"]
        # A point, and never less than one photo.
        assert abs(one["top1"] - two["top1"]) * one["n"] <= max(1, 0.01 * one["n"]) + 1e-6
        assert one["loss"] == pytest.approx(two["loss"], abs=0.02)
    # What JAX has trained answers in TensorFlow, from where it is exported, as it did in JAX.
    run = open_run(tmp_path / "jax")
    test = find_photos(flower_photos, limit=LIMIT).split("test")
    assert run.dataset.split("test") == test
    model = run.model()
    right = 0
    for start in range(0, len(test), 20):
        part = test[start : start + 20]
        pixels = np.stack([read_picture(flower_photos / photo.path) for photo in part])
        named = np.asarray(model(pixels)[0])
        right += sum(run.classes[at] == photo.label for at, photo in zip(named.argmax(1), part, strict=True))
    assert abs(right / len(test) - theirs["metrics"]["test"]["top1"]) * len(test) <= 1
