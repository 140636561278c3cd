"""Measure the cost of the runtime beyond the engine: the command, decoding, prefetching and imports.

    python -m benchmarks.classify [--model DIR] [--engine NAME] [--float32 FILE] > benchmarks/classify.md

Both sides of a comparison run alternately, so that other work on the machine slows both. The photos are
12-megapixel JPEGs of about 4 MB, enlarged from the photos in VGG_EDGE_PHOTOS, with the noise of a sensor.
Without VGG_EDGE_PHOTOS they show noise only, and probabilities are not compared. Also writes classify.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.machine import describe_machine
from benchmarks.markdown_table import table_head, table_row
from runtime import Classifier
from runtime.inference.engine_cache import EngineSelection, save_selection
from runtime.model_file.selection import choose_model
from runtime.preprocess import render
from runtime.preprocess.picture import read_picture

ROOT = Path(__file__).parents[1]
LARGE = (4000, 3000)  # 12 megapixels
PHOTOS = 50
REPEATS = 7


@dataclass(frozen=True)
class Measurement:
    name: str
    value: float
    reference: float
    unit: str
    limit: str
    passed: bool
    detail: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=None)
    parser.add_argument("--engine", default="auto")
    parser.add_argument(
        "--float32",
        metavar="FILE",
        help="the model file that compares probabilities between decoders; an int8 file adds its own "
        "rounding (default: the model)",
    )
    arguments = parser.parse_args()
    classifier = Classifier(arguments.model, engine=arguments.engine)
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(Path(folder), PHOTOS)
        size = statistics.mean(path.stat().st_size for path in photos) / 1e6
        print(f"{len(photos)} photos of 12 megapixels, {size:.1f} MB on average", file=sys.stderr)
        rows = [
            import_time(),
            command_time(classifier, photos[0]),
            decode_time(classifier, photos[0]),
            *draft_errors(Classifier(arguments.float32) if arguments.float32 else classifier, photos),
            *(prefetch_time(classifier, photos, threads) for threads in sorted({1, classifier.threads})),
        ]
    engine = classifier.session.engine
    machine = f"{classifier.model.path.name} on {engine}, load {os.getloadavg()[0]:.1f}, {describe_machine()}"
    write_csv(rows, machine)
    print_table(rows, machine)


def import_time() -> Measurement:
    """`from runtime import Classifier` beyond the import of numpy and Pillow."""
    base = "import numpy, PIL.Image"
    ours, reference = alternate(
        lambda: python_time("-c", f"{base}; import runtime; runtime.Classifier"),
        lambda: python_time("-c", base),
    )
    extra = ours - reference
    return Measurement("import beyond numpy and Pillow", extra, 0, "ms", "≤ 60", extra <= 60)


BARE_SCRIPT = """
import sys
import numpy as np
from PIL import Image
{load}
image = Image.open(sys.argv[2]).convert("RGB").resize({size}, Image.Resampling.BILINEAR)
pixels = np.asarray(image)[np.newaxis]
{run}
print(probabilities.argmax(), probabilities.max())
"""
TFLITE_CALLS = (
    "from {module}.interpreter import Interpreter\n"
    "interpreter = Interpreter(sys.argv[1], num_threads={threads})\n"
    "interpreter.allocate_tensors()",
    'interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels)\n'
    "interpreter.invoke()\n"
    'probabilities = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0]',
)
ONNX_CALLS = (
    "import onnxruntime\n"
    "options = onnxruntime.SessionOptions()\n"
    "options.intra_op_num_threads = {threads}\n"
    "session = onnxruntime.InferenceSession(sys.argv[1], options)",
    'probabilities = session.run(["probabilities"], {{"image": pixels}})[0][0]',
)


def command_time(classifier: Classifier, photo: Path) -> Measurement:
    """A cold start of the command with one small photo, against a minimal script for the same engine.

    The command also finds and validates the saved benchmark of `runtime.bench --save`.
    """
    engine = classifier.session.name
    load, run = ONNX_CALLS if engine == "onnx" else TFLITE_CALLS
    module = {"litert": "ai_edge_litert", "tflite": "tflite_runtime"}.get(engine, "")
    size = classifier.model.contract.input_size[::-1]
    script = BARE_SCRIPT.format(load=load, run=run, size=size)
    script = script.format(module=module, threads=classifier.threads)
    small = photo.with_name("small.jpg")
    Image.open(photo).resize((400, 300)).save(small)
    model = str(classifier.model.path)
    os.environ["XDG_CACHE_HOME"] = str(photo.parent)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    selection = EngineSelection(classifier.model.sha256, engine, classifier.threads, 0.0, now)
    save_selection(choose_model(model).candidates, selection)
    ours, reference = alternate(
        lambda: python_time("-m", "runtime.classify", str(small), "--model", model),
        lambda: python_time("-c", script, model, str(small)),
    )
    name, passed = "one photo with the command / with a bare script", ours <= 1.15 * reference
    return Measurement(name, ours, reference, "ms", "≤ 1.15", passed)


def decode_time(classifier: Classifier, photo: Path) -> Measurement:
    """The decoding of a 12-megapixel photo, against that of a small one."""
    small, size = photo.with_name("small.jpg"), classifier.model.contract.input_size
    large_ms, small_ms = alternate(
        lambda: milliseconds(lambda: read_picture(photo, size)),
        lambda: milliseconds(lambda: read_picture(small, size)),
    )
    full_ms = milliseconds(lambda: read_full(photo, size))
    name, passed = "decode 12 megapixels / a small photo", large_ms - small_ms <= 60
    detail = f"{full_ms:.0f} ms at full resolution"
    return Measurement(name, large_ms, small_ms, "ms", "≤ 60 more", passed, detail)


def draft_errors(classifier: Classifier, photos: Sequence[Path]) -> list[Measurement]:
    """The change of probabilities by the JPEG decoder's draft mode, at our scale and at its neighbours."""
    if "VGG_EDGE_PHOTOS" not in os.environ:
        return []
    size, default = classifier.model.contract.input_size, render.DRAFT_SCALE
    full = [probabilities(classifier, read_full(photo, size)) for photo in photos]
    rows = []
    for scale in (1, 2, default, 4):
        render.DRAFT_SCALE = scale
        drafts = [probabilities(classifier, read_picture(photo, size)) for photo in photos]
        ms = statistics.median(milliseconds(lambda p=p: read_picture(p, size)) for p in photos[:20])  # type: ignore[misc]
        render.DRAFT_SCALE = default
        changes = [float(np.abs(one - two).max()) for one, two in zip(drafts, full, strict=True)]
        name = f"draft at {scale} times the input, {classifier.model.path.name}: max Δp"
        detail = f"mean {statistics.mean(changes):.4f}, n {len(photos)}, {ms:.0f} ms per photo"
        if scale == default:
            name += " (default)"
        rows.append(Measurement(name, max(changes), 0, "", "≤ 0.02", max(changes) <= 0.02, detail))
    return rows


def prefetch_time(classifier: Classifier, photos: Sequence[Path], threads: int) -> Measurement:
    """All photos through `predict_many`, against the slower of decoding and inference alone, in seconds."""
    engine = classifier.session.name
    classifier = Classifier(classifier.model.path, engine=engine, threads=threads)
    size = classifier.model.contract.input_size
    pixels = [read_picture(photo, size)[np.newaxis] for photo in photos]
    decode, infer, together, cpu = [], [], [], []
    for _ in range(3):
        cpu_before = time.process_time()
        decode.append(milliseconds(lambda: [read_picture(photo, size) for photo in photos]) / 1e3)
        infer.append(milliseconds(lambda: [classifier.session(image) for image in pixels]) / 1e3)
        cpu.append(time.process_time() - cpu_before)
        together.append(milliseconds(lambda: list(classifier.predict_many(photos))) / 1e3)
    ours, slower = min(together), max(min(decode), min(infer))
    cores = len(os.sched_getaffinity(0))
    cpu_share = f"CPU time / {cores} cores {min(cpu) / cores:.2f} s"
    detail = f"decode {min(decode):.2f} s, infer {min(infer):.2f} s; {cpu_share}"
    name = f"decode and infer {len(photos)} photos / the slower step alone, {threads} engine threads"
    return Measurement(name, ours, slower, "s", "≤ 1.15", ours <= 1.15 * slower, detail)


def probabilities(classifier: Classifier, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    answer: NDArray[np.float32] = classifier.session(pixels[np.newaxis])["probabilities"][0]
    return answer


def read_full(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The photo decoded at full resolution, then resized to (height, width)."""
    image = Image.open(path).convert("RGB")
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))


def make_photos(folder: Path, count: int) -> list[Path]:
    rng, noise = random.Random(0), np.random.default_rng(0)
    root = os.environ.get("VGG_EDGE_PHOTOS")
    small = sorted(Path(root).glob("train/*/*.jpg")) if root else []
    paths = []
    for number in range(count):
        if small:
            image = Image.open(rng.choice(small)).convert("RGB")
        else:
            image = Image.fromarray(noise.integers(0, 256, (30, 40, 3), np.uint8))
        pixels = np.asarray(image.resize(LARGE, Image.Resampling.BICUBIC)).astype(np.float32)
        pixels += noise.standard_normal((LARGE[1], LARGE[0], 1), np.float32) * 9
        path = folder / f"{number:02}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=88)
        paths.append(path)
    return paths


def alternate(one: Callable[[], float], other: Callable[[], float]) -> tuple[float, float]:
    """The medians of both, measured alternately, without the first pair."""
    pairs = [(one(), other()) for _ in range(REPEATS + 1)][1:]
    return statistics.median(first for first, _ in pairs), statistics.median(second for _, second in pairs)


def milliseconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - started)


def python_time(*arguments: str) -> float:
    """Milliseconds of a Python process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # pip compiles the files that it installs, so the first run may compile them here too.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return milliseconds(
        lambda: subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=True)
    )


def write_csv(rows: Sequence[Measurement], machine: str) -> None:
    with (Path(__file__).with_suffix(".csv")).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*asdict(rows[0]), "machine"])
        writer.writeheader()
        for row in rows:
            figures = {"value": f"{row.value:.4g}", "reference": f"{row.reference:.4g}"}
            writer.writerow({**asdict(row), **figures, "machine": machine})


def print_table(rows: Sequence[Measurement], machine: str) -> None:
    print(f"{machine}\n")
    print(table_head("measurement", "value", "reference", "ratio", "limit", "passed", "detail"))
    for row in rows:
        ratio = f"{row.value / row.reference:.2f}" if row.reference else ""
        reference = f"{row.reference:.4g} {row.unit}" if ratio else ""
        value, passed = f"{row.value:.4g} {row.unit}".strip(), "yes" if row.passed else "no"
        print(table_row(row.name, value, reference, ratio, row.limit, passed, row.detail))


if __name__ == "__main__":
    main()
