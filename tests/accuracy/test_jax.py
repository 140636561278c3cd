"""Training is Keras's own, so that JAX trains what TensorFlow does: in an environment without TensorFlow."""

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
from train.data.dataset import find_photos
from train.run import open_run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LIMIT = 20  # photos a class and split: 100 of test, of which 1 point is 1


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
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-3)
    # What JAX has trained answers in TensorFlow, from where it is exported, as it did in JAX.
    run = open_run(tmp_path / "jax")
    test = find_photos(flower_photos, limit=LIMIT).split("test")
    assert run.dataset.split("test") == test
    model = run.load_model()
    right = 0
    for start in range(0, len(test), 20):
        part = test[start : start + 20]
        pixels = np.stack([read_picture(flower_photos / photo.path) for photo in part])
        named = np.asarray(model(pixels)[0])
        right += sum(run.classes[at] == photo.label for at, photo in zip(named.argmax(1), part, strict=True))
    assert abs(right / len(test) - theirs["metrics"]["test"]["top1"]) * len(test) <= 1


SPREAD = ROOT / "tests" / "spread.py"
AGREE = (
    "import sys; from train.distributed import check_same_inputs, init_distributed; "
    "check_same_inputs(init_distributed(), {'photos': sys.argv[1], 'seed': '0'})"
)


def together(*commands: list[Any]) -> list[subprocess.CompletedProcess[str]]:
    """Runs each in its process, all joined."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    joined = {
        "KERAS_BACKEND": "jax",
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
        "KERAS_DISTRIBUTION_NUM_PROCESSES": str(len(commands)),
    }
    running = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **joined, "KERAS_DISTRIBUTION_PROCESS_ID": str(process)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process, command in enumerate(commands)
    ]
    with ThreadPoolExecutor(len(running)) as readers:
        said = list(readers.map(lambda process: process.communicate(timeout=300), running))
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *told)
        for process, told in zip(running, said, strict=True)
    ]


@pytest.mark.parametrize("way", ["two devices", "two processes"])
def test_jax_spreads_a_step(way: str, jax_python: Path) -> None:
    """The same history as TensorFlow's on one device."""
    one = subprocess.run([sys.executable, SPREAD, "1"], capture_output=True, text=True, check=True)
    if way == "two devices":
        many = {**os.environ, "KERAS_BACKEND": "jax"}
        done = [subprocess.run([jax_python, SPREAD, "2"], env=many, capture_output=True, text=True)]
    else:
        done = together([jax_python, SPREAD, "1"], [jax_python, SPREAD, "1"])
    expected = json.loads(one.stdout.splitlines()[-1])
    for each in done:
        assert each.returncode == 0, each.stderr[-2000:]
        found = json.loads(each.stdout.splitlines()[-1])
        for row, right in zip(found, expected, strict=True):
            assert row == pytest.approx(right, rel=1e-3, abs=1e-4)


def test_processes_with_different_photos_are_told(jax_python: Path) -> None:
    for each in together([jax_python, "-c", AGREE, "one"], [jax_python, "-c", AGREE, "two"]):
        assert "the processes of this run have different photos; give each the same" in each.stderr


def test_a_process_that_is_killed_ends_the_others_with_a_word(jax_python: Path) -> None:
    alone, killed = together([jax_python, SPREAD, "1", "1"], [jax_python, SPREAD, "1", "1"])
    assert killed.returncode == -signal.SIGKILL
    assert alone.returncode == 1
    assert "another process of this run is gone; start all of them again" in alone.stderr.splitlines()[-1]
