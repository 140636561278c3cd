"""Measures the peak resident memory of the released int8 model: a Raspberry Pi Zero 2 has 512 MB.

    python -m benchmarks.memory [SECONDS] > benchmarks/memory.md

Inputs: photos of 12 megapixels, as from a Pi's camera, and a clip of 1920 x 1080 pixels that plays for
SECONDS (60). The engine has 4 threads, because a Pi has 4 cores. The figures are the kernel's (VmHWM) and
include shared libraries.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.machine import describe_machine, kilobytes_to_mb
from benchmarks.markdown_table import table_head, table_row
from tests.helpers import RELEASED
from train.data.synthetic import FLOWERS, draw_flower

ENGINES = ("litert", "onnx")
MAX_MB = 200
PHOTO, VIDEO = (4608, 2592), (1920, 1080)
FPS = 30

# Reads its own VmHWM: getrusage() would report the peak of the parent for a child that used less.
CHILD = """
import atexit, sys
from pathlib import Path
from runtime.classify import main
status = Path("/proc/self/status")
peak = lambda: next(line for line in status.open() if line.startswith("VmHWM"))
atexit.register(lambda: sys.stderr.write(peak()))
sys.exit(main(sys.argv[1:]))
"""


def main(seconds: str = "60") -> int:
    print(f"Measured on {describe_machine()}.\n")
    print(table_head("engine", "source", "pictures", "peak MB", "limit", "passed"))
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        photos = draw_photos(Path(folder), 20)
        clip = draw_clip(Path(folder) / "clip.mp4", int(seconds))
        for engine in ENGINES:
            sources = {
                "photos, 4608 x 2592": [str(photo) for photo in photos],
                "camera, 1920 x 1080": ["--camera", str(clip)],
            }
            for source, arguments in sources.items():
                peak, pictures = peak_mb(engine, *arguments)
                passed = "yes" if peak <= MAX_MB else "**no**"
                failed += peak > MAX_MB
                row = table_row(engine, source, str(pictures), f"{peak:.0f}", f"≤ {MAX_MB}", passed)
                print(row, flush=True)
    return 1 if failed else 0


def peak_mb(engine: str, *arguments: str) -> tuple[float, int]:
    """Peak memory of `python -m runtime.classify ARGUMENTS` in MB of 10⁶ bytes, and its number of answers."""
    command = [sys.executable, "-c", CHILD, "--json", "--engine", engine, "--threads", "4"]
    command += ["--model", str(RELEASED), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {engine} ended with exit code {done.returncode}: {done.stderr.strip()}")
    _, kilobytes, _ = done.stderr.splitlines()[-1].split()  # "VmHWM:    104332 kB"
    return kilobytes_to_mb(int(kilobytes)), len(done.stdout.splitlines())


def draw_photos(folder: Path, count: int) -> list[Path]:
    names = sorted(FLOWERS)
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        draw_flower(names[number % len(names)], number).resize(PHOTO).save(path, quality=92)
    return paths


def draw_clip(path: Path, seconds: int) -> Path:
    """A clip of flowers that move through the picture, a new flower each second."""
    import av

    width, height = VIDEO
    names = sorted(FLOWERS)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for second in range(seconds):
            flower = draw_flower(names[second % len(names)], second).resize((width, height))
            pixels = np.asarray(flower)
            for frame in range(FPS):
                moved = np.roll(pixels, 8 * frame, axis=1)
                for packet in stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")):
                    container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
