"""The wheel in a new environment: one engine, the released model, and no training library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from runtime.model_file.files import INDEX_NAME
from runtime.model_file.index import read_index
from tests.helpers import RELEASED, ROOT

pytestmark = pytest.mark.slow

MAX_BYTES = 200_000_000


def run(*command: str | Path, cwd: Path | None = None) -> str:
    # Neither this checkout nor this environment may show through.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the files that git tracks, in another folder."""
    source = tmp_path_factory.mktemp("source")
    for name in run("git", "ls-files", "-z", cwd=ROOT).split("\0"):
        if name and not name.startswith(("tests/", "benchmarks/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, source)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment that holds the wheel with its extra `litert`."""
    folder = tmp_path_factory.mktemp("slim") / "venv"
    run(sys.executable, "-m", "venv", folder)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}[litert]")
    return python


def test_the_wheel_carries_the_released_model_and_no_file_for_training(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    listed = {file.file for file in read_index(RELEASED).files}
    expected = {*listed, INDEX_NAME, "parity.csv", "README.md"}
    assert {f"runtime/released/{name}" for name in expected} <= names
    unwanted = (".safetensors", ".jpg", ".png", ".zip")
    assert not [name for name in names if "vgg16" in name or name.endswith(unwanted)]


def test_the_wheel_classifies_from_an_empty_directory(python: Path, tmp_path: Path) -> None:
    Image.new("RGB", (640, 480), "gold").save(tmp_path / "photo.jpg")
    labels = read_index(RELEASED).contract.labels
    command = (python, "-W", "error", "-m", "runtime.classify", "photo.jpg")
    answer = json.loads(run(*command, "--json", cwd=tmp_path))
    assert answer["label"] in labels
    header, line = run(*command, cwd=tmp_path).splitlines()
    assert str(Path("runtime", "released")) in header and " on litert " in header
    assert line.startswith("photo.jpg  ")


def test_no_training_library_is_installed_or_imported(python: Path, tmp_path: Path) -> None:
    code = (
        "import importlib, json, pkgutil, sys, runtime; "
        "modules = [module.name for module in pkgutil.walk_packages(runtime.__path__, 'runtime.') "
        "if not module.name.startswith('runtime.server.')]; "  # the page needs its own extra
        "[importlib.import_module(name) for name in modules]; "
        "runtime.Classifier(); "
        "heavy = ('tensorflow', 'keras', 'onnx', 'tf2onnx'); "
        "installed = [name for name in heavy if importlib.util.find_spec(name)]; "
        "print(json.dumps([modules, installed, sorted({name.split('.')[0] for name in sys.modules})]))"
    )
    modules, installed, imported = json.loads(run(python, "-c", code, cwd=tmp_path))
    parts = ("classify", "inference.engines", "model_file.loader", "preprocess.picture", "camera.camera_cli")
    assert {f"runtime.{part}" for part in parts} <= set(modules)
    assert installed == []
    assert not {"tensorflow", "keras", "onnx", "tf2onnx", "train", "export"} & set(imported)


def test_the_console_script_classifies_and_names_what_to_install(python: Path, tmp_path: Path) -> None:
    script = python.with_name("vgg-edge.exe" if os.name == "nt" else "vgg-edge")
    Image.new("RGB", (64, 48), "gold").save(tmp_path / "photo.jpg")
    assert "photo.jpg" in run(script, "classify", "photo.jpg", cwd=tmp_path)
    assert "compress" in run(script, "--help", cwd=tmp_path)
    for command in ("train", "compress", "export"):
        done = subprocess.run([script, command, "photos"], cwd=tmp_path, capture_output=True, text=True)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2 and "keras" in line and "pip install '.[train,export]'" in line


def test_a_key_without_cryptography_names_the_extra(python: Path, tmp_path: Path) -> None:
    """A signature that cannot be checked is an error: the model does not run."""
    Image.new("RGB", (64, 48), "gold").save(tmp_path / "photo.jpg")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [python, "-m", "runtime.classify", "--key", "maker.pub", "photo.jpg"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "maker.pub" in line and "cryptography" in line and "pip install '.[verify]'" in line


def test_the_environment_takes_less_than_200_mb(python: Path) -> None:
    files = [path for path in python.parents[1].rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES


@pytest.mark.parametrize("package", ["train", "export"])
def test_a_missing_package_names_both_extras(package: str, python: Path, tmp_path: Path) -> None:
    for label in ("daisy", "roses"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(8):
            colour = (number, 99 * (label == "daisy"), 0)
            Image.new("RGB", (8, 8), colour).save(tmp_path / f"photos/{label}/{number}.png")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    argument = "photos" if package == "train" else str(ROOT / "models" / "flowers_run")
    done = subprocess.run(
        [python, "-m", package, argument], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "not installed" in line and "pip install '.[train,export]'" in line
