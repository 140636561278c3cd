"""What the runtime costs over the engine alone: command, decoding, overlap, imports. Writes classify.csv
beside itself.

    python -m benchmarks.classify [--model models/flowers] [--engine auto] [--float32 FILE]

Every figure is compared within one run, and the two sides of a comparison take turns, so that a busy
machine slows both. Photos: twelve-megapixel JPEGs of about 4 MB, enlarged from the photos that
VGG_EDGE_PHOTOS names, with the grain of a sensor; without it, of drawn noise, for which no probabilities
are compared.
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
from PIL import Image

from benchmarks.machine import describe_machine
from runtime import Classifier
from runtime.inference.engine_cache import EngineSelection, save_selection
from runtime.model_file.selection import choose_model
from runtime.preprocess import picture
from runtime.preprocess.picture import read_picture

ROOT = Path(__file__).parents[1]
LARGE = (4000, 3000)  # twelve megapixels
PHOTOS = 50
REPEATS = 7


@dataclass(frozen=True)
class Row:
    what: str
    ours: float
    reference: float
    unit: str
    bar: str
    holds: bool
    detail: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=None)
    parser.add_argument("--engine", default="auto")
    parser.add_argument(
        "--float32",
        metavar="FILE",
        help="what the decode's effect on probabilities is measured with: an int8 file "
        "answers a rounding's difference in its pixels with one of its own (default: the model)",
    )
    arguments = parser.parse_args()
    classifier = Classifier(arguments.model, engine=arguments.engine)
    with tempfile.TemporaryDirectory() as folder:
        photos = make_photos(Path(folder), PHOTOS)
        size = statistics.mean(path.stat().st_size for path in photos) / 1e6
        print(f"{len(photos)} photos of 12 megapixels, {size:.1f} MB on average", file=sys.stderr)
        rows = [
            imports(),
            command(classifier, photos[0]),
            large_photo(classifier, photos[0]),
            *probabilities(Classifier(arguments.float32) if arguments.float32 else classifier, photos),
            *(overlap(classifier, photos, threads) for threads in sorted({1, classifier.threads})),
        ]
    # The load is that of other work on the machine meanwhile.
    load = f"load {os.getloadavg()[0]:.1f}"
    used = f"{classifier.model.path.name} on {classifier.session.engine}, {load}, {describe_machine()}"
    write(rows, used)


def imports() -> Row:
    """`import runtime` and its Classifier, over numpy's and Pillow's own import."""
    base = "import numpy, PIL.Image"
    ours, reference = in_turns(
        lambda: timed_python(f"{base}; import runtime; runtime.Classifier"), lambda: timed_python(base)
    )
    return Row("import over numpy and Pillow", ours - reference, 0, "ms", "≤ 60", ours - reference <= 60, "")


BARE = """
import sys
import numpy as np
from PIL import Image
{load}
image = Image.open(sys.argv[2]).convert("RGB").resize({size}, Image.Resampling.BILINEAR)
pixels = np.asarray(image)[np.newaxis]
{run}
print(probabilities.argmax(), probabilities.max())
"""
TFLITE = (
    "from {module}.interpreter import Interpreter\n"
    "interpreter = Interpreter(sys.argv[1], num_threads={threads})\n"
    "interpreter.allocate_tensors()",
    'interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels)\n'
    "interpreter.invoke()\n"
    'probabilities = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0]',
)
ONNX = (
    "import onnxruntime\n"
    "options = onnxruntime.SessionOptions()\n"
    "options.intra_op_num_threads = {threads}\n"
    "session = onnxruntime.InferenceSession(sys.argv[1], options)",
    'probabilities = session.run(["probabilities"], {{"image": pixels}})[0][0]',
)


def command(classifier: Classifier, photo: Path) -> Row:
    """One small photo on the command line, against the script that one would write without us.

    The command looks up and checks what `runtime.bench --save` kept; the script knows it.
    """
    engine = classifier.session.engine.split()[0]
    load, run = ONNX if engine == "onnx" else TFLITE
    module = {"litert": "ai_edge_litert", "tflite": "tflite_runtime"}.get(engine, "")
    size = classifier.model.contract.input_size[::-1]
    bare = BARE.format(load=load, run=run, size=size).format(module=module, threads=classifier.threads)
    small = photo.with_name("small.jpg")
    Image.open(photo).resize((400, 300)).save(small)
    model = str(classifier.model.path)
    os.environ["XDG_CACHE_HOME"] = str(photo.parent)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    save_selection(
        choose_model(model).candidates,
        EngineSelection(classifier.model.sha256, engine, classifier.threads, 0.0, now),
    )
    ours, reference = in_turns(
        lambda: timed(["-m", "runtime.classify", str(small), "--model", model]),
        lambda: timed(["-c", bare, model, str(small)]),
    )
    return Row(
        "one photo by the command / a bare script",
        ours,
        reference,
        "ms",
        "≤ 1.2",
        ours <= 1.2 * reference,
        "",
    )


def large_photo(classifier: Classifier, photo: Path) -> Row:
    """What twelve megapixels cost more than a small photo."""
    small, size = photo.with_name("small.jpg"), classifier.model.contract.input_size
    ours, reference = in_turns(
        lambda: clock(lambda: read_picture(photo, size)), lambda: clock(lambda: read_picture(small, size))
    )
    full = clock(lambda: read_full(photo, size))
    detail = f"{full:.0f} ms decoded in full"
    return Row(
        "decoding 12 megapixels / a small photo",
        ours,
        reference,
        "ms",
        "≤ 60 more",
        ours - reference <= 60,
        detail,
    )


def probabilities(classifier: Classifier, photos: Sequence[Path]) -> list[Row]:
    """How far the reduced decode moves the probabilities, at the scale we ask for and at its neighbours."""
    if "VGG_EDGE_PHOTOS" not in os.environ:
        return []
    rows, size = [], classifier.model.contract.input_size
    full = [answer(classifier, read_full(photo, size)) for photo in photos]
    chosen = picture.DRAFT_SCALE
    for draft in (1, 2, chosen, 4):
        picture.DRAFT_SCALE = draft
        moved = [
            np.abs(answer(classifier, read_picture(p, size)) - f).max()
            for p, f in zip(photos, full, strict=True)
        ]
        ms = statistics.median(clock(lambda p=p: read_picture(p, size)) for p in photos[:20])  # type: ignore[misc]
        picture.DRAFT_SCALE = chosen
        rows.append(
            Row(
                f"draft at {draft} times the input, {classifier.model.path.name}: max Δp"
                + (" (ours)" if draft == chosen else ""),
                float(max(moved)),
                0,
                "",
                "≤ 0.02",
                max(moved) <= 0.02,
                f"mean {statistics.mean(moved):.4f}, n {len(photos)}, {ms:.0f} ms a photo",
            )
        )
    return rows


def overlap(classifier: Classifier, photos: Sequence[Path], threads: int) -> Row:
    """All photos through `predict_many`, against decoding them alone and inferring them alone, seconds."""
    engine = classifier.session.engine.split()[0]
    classifier = Classifier(classifier.model.path, engine=engine, threads=threads)
    size = classifier.model.contract.input_size
    pixels = [read_picture(photo, size)[np.newaxis] for photo in photos]
    decode, infer, both, work = [], [], [], []
    for _ in range(3):
        cpu_before = time.process_time()
        decode.append(clock(lambda: [read_picture(photo, size) for photo in photos]) / 1e3)
        infer.append(clock(lambda: [classifier.session(image) for image in pixels]) / 1e3)
        work.append(time.process_time() - cpu_before)
        both.append(clock(lambda: list(classifier.predict_many(photos))) / 1e3)
    ours, larger = min(both), max(min(decode), min(infer))
    cores = len(os.sched_getaffinity(0))
    floor = min(work) / cores
    detail = f"decode {min(decode):.2f} s, infer {min(infer):.2f} s; work for {cores} cores {floor:.2f} s"
    name = f"{len(photos)} photos decoded and inferred / the slower alone, {threads} engine threads"
    return Row(name, ours, larger, "s", "≤ 1.15", ours <= 1.15 * larger, detail)


def answer(classifier: Classifier, pixels: np.ndarray) -> np.ndarray:
    return classifier.session(pixels[np.newaxis])["probabilities"][0]


def read_full(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Decoded whole, then brought to (height, width)."""
    image = Image.open(path).convert("RGB")
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))


def make_photos(folder: Path, count: int) -> list[Path]:
    chance = random.Random(0)
    grain = np.random.default_rng(0)
    root = os.environ.get("VGG_EDGE_PHOTOS")
    small = sorted(Path(root).glob("train/*/*.jpg")) if root else []
    made = []
    for number in range(count):
        if small:
            image = Image.open(chance.choice(small)).convert("RGB")
        else:
            image = Image.fromarray(grain.integers(0, 256, (30, 40, 3), np.uint8))
        pixels = np.asarray(image.resize(LARGE, Image.Resampling.BICUBIC)).astype(np.float32)
        pixels += grain.standard_normal((LARGE[1], LARGE[0], 1), np.float32) * 9
        path = folder / f"{number:02}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=88)
        made.append(path)
    return made


def in_turns(ours: Callable[[], float], reference: Callable[[], float]) -> tuple[float, float]:
    """The medians of both, measured alternately, the first of each left out."""
    pairs = [(ours(), reference()) for _ in range(REPEATS + 1)][1:]
    return statistics.median(one for one, _ in pairs), statistics.median(other for _, other in pairs)


def clock(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - started)


def timed(arguments: Sequence[str]) -> float:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # As installed: pip compiles what it installs, so the first of several runs may, too.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return clock(
        lambda: subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=True)
    )


def timed_python(code: str) -> float:
    return timed(["-c", code])


def write(rows: Sequence[Row], used: str) -> None:
    with (Path(__file__).with_suffix(".csv")).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*asdict(rows[0]), "measured_on"])
        writer.writeheader()
        for row in rows:
            figures = {"ours": f"{row.ours:.4g}", "reference": f"{row.reference:.4g}"}
            writer.writerow({**asdict(row), **figures, "measured_on": used})
    print(f"{used}\n")
    print("| | ours | against | ratio | bar | holds | |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        ratio = f"{row.ours / row.reference:.2f}" if row.reference else ""
        cells = [row.what, f"{row.ours:.4g} {row.unit}", f"{row.reference:.4g} {row.unit}" if ratio else ""]
        cells += [ratio, row.bar, "yes" if row.holds else "no", row.detail]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
