"""JAX trains the same model as TensorFlow, in an environment without TensorFlow."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.preprocess.picture import read_picture
from tests.helpers import ROOT
from train.data.find_photos import find_photos
from train.run import open_run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LIMIT = 20  # photos per class and split: 100 of test, so one photo is one point of top-1
TRAINING = ROOT / "tests" / "distributed_training.py"
CHECK_INPUTS = (
    "import sys; from train.distributed import check_same_inputs, init_distributed; "
    "check_same_inputs(init_distributed(), {'photos': sys.argv[1], 'seed': '0'})"
)


@pytest.fixture(scope="session")
def jax_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with the extra `jax` and without TensorFlow."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *extras["keras"], *extras["jax"]]
    folder = tmp_path_factory.mktemp("jax") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    packages = [name for name in requirements if not name.startswith("vgg-edge")]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    assert subprocess.run([python, "-c", "import tensorflow"], capture_output=True).returncode != 0
    return python


@pytest.fixture(scope="session")
def tensorflow_history() -> list[dict[str, float]]:
    """The history of fine-tuning by TensorFlow on one device."""
    done = subprocess.run([sys.executable, TRAINING, "1"], capture_output=True, text=True, check=True)
    return read_history(done)


def test_jax_trains_to_the_same_metrics(jax_python: Path, flower_photos: Path, tmp_path: Path) -> None:
    by_tensorflow = train(sys.executable, "tensorflow", tmp_path / "tensorflow", flower_photos)
    by_jax = train(jax_python, "jax", tmp_path / "jax", flower_photos)
    for split in ("val", "test"):
        one, two = by_tensorflow["metrics"][split], by_jax["metrics"][split]
        assert one["n"] == two["n"]
        # One point, but at least one photo.
        assert abs(one["top1"] - two["top1"]) * one["n"] <= max(1, 0.01 * one["n"]) + 1e-6
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-3)
    # Export loads a JAX run into TensorFlow: there it must give the same answers.
    run = open_run(tmp_path / "jax")
    test = find_photos(flower_photos, limit=LIMIT).split("test")
    assert run.dataset.split("test") == test
    model = run.load_model()
    correct = 0
    for start in range(0, len(test), 20):
        batch = test[start : start + 20]
        pixels = np.stack([read_picture(flower_photos / photo.path) for photo in batch])
        predicted = np.asarray(model(pixels)[0]).argmax(1)
        correct += sum(run.classes[at] == photo.label for at, photo in zip(predicted, batch, strict=True))
    assert abs(correct / len(test) - by_jax["metrics"]["test"]["top1"]) * len(test) <= 1


def train(python: Path | str, backend: str, out: Path, photos: Path) -> dict[str, Any]:
    """The run.json of a run trained with a backend."""
    command = [python, "-m", "train", photos, "--out", out, "--limit", str(LIMIT), "--views", "1"]
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    record: dict[str, Any] = json.loads((out / "run.json").read_text())
    assert record["device"].endswith(f"on {backend}")
    return record


def test_two_jax_devices_train_as_one(jax_python: Path, tensorflow_history: list[dict[str, float]]) -> None:
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    done = subprocess.run([jax_python, TRAINING, "2"], env=environment, capture_output=True, text=True)
    check_history(done, tensorflow_history)


def test_two_jax_processes_train_as_one(jax_python: Path, tensorflow_history: list[dict[str, float]]) -> None:
    for done in run_together([jax_python, TRAINING, "1"], [jax_python, TRAINING, "1"]):
        check_history(done, tensorflow_history)


def test_processes_with_different_photos_end_with_an_error(jax_python: Path) -> None:
    for done in run_together(
        [jax_python, "-c", CHECK_INPUTS, "one"], [jax_python, "-c", CHECK_INPUTS, "two"]
    ):
        assert done.returncode != 0
        assert "different photos" in done.stderr


def test_a_killed_process_ends_the_others_with_one_line(jax_python: Path) -> None:
    alive, killed = run_together([jax_python, TRAINING, "1", "1"], [jax_python, TRAINING, "1", "1"])
    assert killed.returncode == -signal.SIGKILL
    assert alive.returncode == 1
    assert "start all processes again" in alive.stderr.splitlines()[-1]


def check_history(done: subprocess.CompletedProcess[str], expected: list[dict[str, float]]) -> None:
    assert done.returncode == 0, done.stderr[-2000:]
    for row, right in zip(read_history(done), expected, strict=True):
        assert row == pytest.approx(right, rel=1e-3, abs=1e-4)


def read_history(done: subprocess.CompletedProcess[str]) -> list[dict[str, float]]:
    history: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return history


def run_together(*commands: list[Any]) -> list[subprocess.CompletedProcess[str]]:
    """Run each command as one process of a distributed run."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    shared = {
        "KERAS_BACKEND": "jax",
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
        "KERAS_DISTRIBUTION_NUM_PROCESSES": str(len(commands)),
    }
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **shared, "KERAS_DISTRIBUTION_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, command in enumerate(commands)
    ]
    with ThreadPoolExecutor(len(processes)) as readers:
        outputs = list(readers.map(lambda process: process.communicate(timeout=300), processes))
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(processes, outputs, strict=True)
    ]
