"""Soak test of the camera loop: is its memory flat, are its frames fresh? Writes soak.md beside this file.

    python -m benchmarks.soak [--minutes 10] [--engines litert,onnx] [--model models/flowers]

For each engine, `python -m runtime.classify --camera CLIP --json` runs unchanged on a 1080p H.264 clip of 30
frames per second with moving shapes and sensor noise. The age of a frame runs from its arrival to the start
of its inference. Exits with 1 if a limit is exceeded.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe_machine, process_cpu_seconds, process_mb
from benchmarks.markdown_table import table_head, table_row

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT, FPS = 1920, 1080, 30
SCENE_SECONDS = 10  # encoded once, then repeated

MAX_PEAK_MB = 200.0  # resident memory
MAX_GROWTH_MB = 4.0  # of the peak, from the first half of the run to the second
MAX_START_AGE = 1000 / FPS  # ms, for 99 % of the frames


@dataclass(frozen=True)
class SoakResult:
    """The measurements of one engine."""

    engine: str
    answers: int
    dropped: int  # frames
    start_ages: list[float]  # ms, at the start of the inference
    answer_ages: list[float]  # ms, at the end of the inference
    resident_mb: list[float]  # once per second
    peak_mb: float
    cores: float  # used, mean
    load: float  # of the machine, mean number of processes that run or wait for a core

    @property
    def half_peaks(self) -> tuple[float, float]:
        """The peak of resident memory in MB in either half of the run, without its first minute.

        The process warms up in that minute, in which frames of 8 MB are allocated and freed.
        """
        warm = self.resident_mb[min(60, len(self.resident_mb) // 4) :]
        return max(warm[: len(warm) // 2]), max(warm[len(warm) // 2 :])

    @property
    def passed(self) -> bool:
        """Whether the run stays within all limits."""
        first, second = self.half_peaks
        is_fresh = percentile(self.start_ages, 0.99) <= MAX_START_AGE
        return is_fresh and second - first <= MAX_GROWTH_MB and self.peak_mb <= MAX_PEAK_MB


def main() -> int:
    """Returns 1 if a limit is exceeded, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--engines", default="litert,onnx")
    parser.add_argument("--model", default="models/flowers")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        write_clip(clip, arguments.minutes)
        results = [run_soak(clip, engine, arguments.model) for engine in arguments.engines.split(",")]
    text = format_table(results, arguments.minutes)
    print(text)
    (ROOT / "benchmarks" / "soak.md").write_text(text, encoding="utf-8")
    return 0 if all(result.passed for result in results) else 1


def write_clip(path: Path, minutes: float) -> None:
    """Encodes ten seconds as a camera does (no B-frames, one key frame per second) and repeats them."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = FPS
        stream.options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "26"}
        packets = []
        for pixels in draw_scene():
            packets += stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24"))
        packets += stream.encode()
        data = [(bytes(packet), packet.is_keyframe) for packet in packets]
        for number in range(round(minutes * 60 * FPS)):
            content, is_keyframe = data[number % len(data)]
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.is_keyframe = stream, packets[0].time_base, is_keyframe
            packet.pts = packet.dts = round(number / FPS / packets[0].time_base)
            container.mux(packet)


def draw_scene() -> Iterator[NDArray[np.uint8]]:
    """Yields the frames of the scene, uint8 [HEIGHT, WIDTH, 3]: a circling disc with sensor noise."""
    random = np.random.default_rng(0)
    noise = random.normal(0, 4, (HEIGHT + 64, WIDTH + 64, 1)).astype(np.float32)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    background = np.stack([x / WIDTH * 200, y / HEIGHT * 200, np.full_like(x, 90)], axis=-1)
    for number in range(SCENE_SECONDS * FPS):
        angle = 2 * np.pi * number / (SCENE_SECONDS * FPS)
        center_x, center_y = WIDTH * (0.5 + 0.3 * np.cos(angle)), HEIGHT * (0.5 + 0.3 * np.sin(angle))
        picture = background.copy()
        picture[np.hypot(x - center_x, y - center_y) < 200] = (240, 180, 20)
        dy, dx = random.integers(0, 64, 2)
        picture += noise[dy : dy + HEIGHT, dx : dx + WIDTH]
        yield picture.clip(0, 255).astype(np.uint8)


def run_soak(clip: Path, engine: str, model: str) -> SoakResult:
    """Runs the command on the clip and samples its process once per second."""
    command = [sys.executable, "-m", "runtime.classify", "--camera", str(clip), "--json"]
    process = subprocess.Popen(
        [*command, "--engine", engine, "--model", model], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    answer_ages, start_ages, resident_mb, loads = [], [], [], []
    answers = dropped = 0
    peak_mb, cores, second = 0.0, 0.0, -1
    for line in process.stdout:
        answer = json.loads(line)
        answers, dropped = answers + 1, answer["dropped"]
        answer_ages.append(answer["age_ms"])
        start_ages.append(answer["age_ms"] - answer["ms"]["infer"])
        if answer["frame"] // FPS > second:
            second = answer["frame"] // FPS
            resident, peak, cpu_seconds = sample_process(process.pid)
            resident_mb.append(resident)
            peak_mb = max(peak, resident)  # the kernel updates the peak in batches
            cores = cpu_seconds / max(1, second)
            loads.append(os.getloadavg()[0])
            if second % 60 == 0:
                print(f"{engine}: {second // 60} min, {resident:.0f} MB", file=sys.stderr, flush=True)
    if process.wait() != 0:
        raise SystemExit(f"error: the command ended with exit code {process.returncode}")
    return SoakResult(
        engine, answers, dropped, start_ages, answer_ages, resident_mb, peak_mb, cores, fmean(loads)
    )


def sample_process(pid: int) -> tuple[float, float, float]:
    """Returns a process's resident memory and its peak in MB, and the CPU seconds that it used so far."""
    resident, peak = process_mb(pid, "VmRSS"), process_mb(pid, "VmHWM")
    return resident, peak, process_cpu_seconds(pid)


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the value below which `share` (0-1) of the values lie."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def format_table(results: Sequence[SoakResult], minutes: float) -> str:
    """Returns the results as Markdown."""
    lines = [
        f"{minutes:g} minutes each of 1080p H.264 at {FPS} frames per second, {describe_machine()}",
        "",
        table_head(
            *("engine", "answers", "frames dropped"),
            *("age at the start of the inference: median", "p99", "max", "older than a frame interval"),
            *("age of the answer: p99", "peak MB of the first half", "second half", "whole run"),
            *("cores used", "load of the machine", "passed"),
        ),
    ]
    for result in results:
        older = sum(age > MAX_START_AGE for age in result.start_ages) / len(result.start_ages)
        row = table_row(
            result.engine,
            f"{result.answers:,}",
            f"{result.dropped:,}",
            *(f"{percentile(result.start_ages, share):.1f} ms" for share in (0.5, 0.99, 1.0)),
            f"{older:.2%}",
            f"{percentile(result.answer_ages, 0.99):.1f} ms",
            *(f"{megabytes:.1f}" for megabytes in (*result.half_peaks, result.peak_mb)),
            f"{result.cores:.2f}",
            f"{result.load:.1f}",
            "yes" if result.passed else "no",
        )
        lines.append(row)
    lines += [
        "",
        f"Limits: p99 of the age at the start ≤ {MAX_START_AGE:.1f} ms, growth ≤ {MAX_GROWTH_MB:g} MB, "
        f"peak ≤ {MAX_PEAK_MB:g} MB.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
