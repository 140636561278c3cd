"""The camera's loop for ten minutes: is its memory flat, are its frames fresh? Writes soak.md beside itself.

    python -m benchmarks.soak [--minutes 10] [--engines litert,onnx] [--model models/flowers]

`python -m runtime.classify --camera CLIP --json` runs as it is, on a 1080p H.264 clip of 30 frames a second
with moving shapes and a sensor's grain, once with each engine. Ages are from the frame's arrival to the
engine's start. Exits with 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from benchmarks.machine import describe_machine

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT, FPS = 1920, 1080, 30
SCENE = 10  # seconds, encoded once and then repeated

MAX_MB = 200.0  # resident, at its highest
MAX_GROWTH_MB = 4.0  # of the highest, from the first half to the second
MAX_START_AGE = 1000 / FPS  # ms, 99 % of the frames


@dataclass(frozen=True)
class Soak:
    engine: str
    answers: int
    dropped: int
    start_ages: list[float]  # ms
    ages: list[float]  # ms, of the answers
    resident: list[float]  # MB, once a second
    peak: float  # MB
    cores: float  # used, on average
    load: float  # of the machine, on average: processes that ran or waited to


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--engines", default="litert,onnx")
    parser.add_argument("--model", default="models/flowers")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        write_clip(clip, arguments.minutes)
        soaks = [soak(clip, engine, arguments.model) for engine in arguments.engines.split(",")]
    text = table(soaks, arguments.minutes)
    print(text)
    (ROOT / "benchmarks" / "soak.md").write_text(text, encoding="utf-8")
    return 1 if "no" in [verdict(one) for one in soaks] else 0


def write_clip(path: Path, minutes: float) -> None:
    """Ten seconds, encoded as a camera does (no B-frames, a key frame a second), and again and again."""
    import av

    random = np.random.default_rng(0)
    grain = random.normal(0, 4, (HEIGHT + 64, WIDTH + 64, 1)).astype(np.float32)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = FPS
        stream.options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "26"}
        packets = []
        for number in range(SCENE * FPS):
            turn = 2 * np.pi * number / (SCENE * FPS)
            ball = (
                np.hypot(x - WIDTH * (0.5 + 0.3 * np.cos(turn)), y - HEIGHT * (0.5 + 0.3 * np.sin(turn)))
                < 200
            )
            picture = np.stack([x / WIDTH * 200, y / HEIGHT * 200, np.full_like(x, 90)], axis=-1)
            picture[ball] = (240, 180, 20)
            dy, dx = random.integers(0, 64, 2)
            picture += grain[dy : dy + HEIGHT, dx : dx + WIDTH]
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
            packets += stream.encode(frame)
        packets += stream.encode()
        data = [(bytes(packet), packet.is_keyframe) for packet in packets]
        for number in range(round(minutes * 60 * FPS)):
            content, key = data[number % len(data)]
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.is_keyframe = stream, packets[0].time_base, key
            packet.pts = packet.dts = round(number / FPS / packets[0].time_base)
            container.mux(packet)


def soak(clip: Path, engine: str, model: str) -> Soak:
    command = [sys.executable, "-m", "runtime.classify", "--camera", str(clip), "--json"]
    process = subprocess.Popen(
        [*command, "--engine", engine, "--model", model], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    ages, start_ages, resident, loads = [], [], [], []
    answers = dropped = 0
    peak, cores, second = 0.0, 0.0, -1
    for line in process.stdout:
        answer = json.loads(line)
        answers, dropped = answers + 1, answer["dropped"]
        ages.append(answer["age_ms"])
        start_ages.append(answer["age_ms"] - answer["ms"]["infer"])
        if answer["frame"] // FPS > second:
            second = answer["frame"] // FPS
            status = Path(f"/proc/{process.pid}/status").read_text()
            fields = dict(line.split(":", 1) for line in status.splitlines())
            resident.append(int(fields["VmRSS"].split()[0]) / 1e3)
            loads.append(os.getloadavg()[0])
            peak = max(int(fields["VmHWM"].split()[0]) / 1e3, resident[-1])  # the kernel counts in batches
            times = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            cores = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK") / max(1, second)
            if second % 60 == 0:
                print(f"{engine}: {second // 60} min, {resident[-1]:.0f} MB", file=sys.stderr, flush=True)
    if process.wait() != 0:
        raise SystemExit(f"error: the command ended with {process.returncode}")
    return Soak(engine, answers, dropped, start_ages, ages, resident, peak, cores, fmean(loads))


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def halves(one: Soak) -> tuple[float, float]:
    """MB at the highest in either half, less the first minute, for warming up: frames of 8 MB come and go."""
    warm = one.resident[min(60, len(one.resident) // 4) :]
    return max(warm[: len(warm) // 2]), max(warm[len(warm) // 2 :])


def verdict(one: Soak) -> str:
    first, second = halves(one)
    fresh = percentile(one.start_ages, 0.99) <= MAX_START_AGE
    return "yes" if fresh and second - first <= MAX_GROWTH_MB and one.peak <= MAX_MB else "no"


def table(soaks: Sequence[Soak], minutes: float) -> str:
    lines = [
        f"{minutes:g} minutes each of 1080p H.264 at {FPS} frames a second, {describe_machine()}",
        "",
        "| engine | answers | frames dropped | age at the engine's start: median | p99 | max "
        "| over an interval | age of the answer: p99 | MB, highest of the first half | second half | peak "
        "| cores used | machine's load | holds |",
        "|---" * 14 + "|",
    ]
    for one in soaks:
        first, second = halves(one)
        over = sum(age > MAX_START_AGE for age in one.start_ages) / len(one.start_ages)
        cells = [
            one.engine,
            f"{one.answers:,}",
            f"{one.dropped:,}",
            *(f"{percentile(one.start_ages, share):.1f} ms" for share in (0.5, 0.99, 1.0)),
            f"{over:.2%}",
            f"{percentile(one.ages, 0.99):.1f} ms",
            *(f"{megabytes:.1f}" for megabytes in (first, second, one.peak)),
            f"{one.cores:.2f}",
            f"{one.load:.1f}",
            verdict(one),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Bars: p99 at the engine's start ≤ {MAX_START_AGE:.1f} ms, growth ≤ {MAX_GROWTH_MB:g} MB, "
        f"peak ≤ {MAX_MB:g} MB.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
