"""Measures the service under load and under attack: throughput beside the engine alone, latency and memory.

    python -m benchmarks.serve [--seconds 60]
    python -m benchmarks.serve --attack "photo flood"  # prints the rows of one attack, and writes no report

The load generator (benchmarks/load_generator.py) has 32 clients. Each sends its next photo when the last one
is answered, and waits for the seconds of Retry-After when the queue is full. Each answer is compared with the
prediction of the classifier in this process.

The engine alone decodes and classifies the same photos in this process, in as many threads as the service,
without HTTP: in one session that uses all cores, as the classifier of a program does, and for comparison with
a session on each core, as the service does. Short turns alternate between all of them, so that other work on
the machine affects each. During a turn of the engine alone, the load generator runs as fast as before, but
against a sink. The sink needs processor time too: the engine's figure is scaled up as if it had that time.

One client alone then sends photos over one connection: the time of an answer beyond the decoder's and the
engine's is the service's own. benchmarks/serve_attacks.py describes the attacks.

Photos: small ones of VGG_EDGE_PHOTOS/test, else drawn ones. All connections stay on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import csv
import http.client
import io
import json
import os
import secrets
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.load_generator import CLIENTS, LoadGenerator, LoadResult, start_load_generator, start_sink
from benchmarks.machine import describe_machine, process_cpu_seconds, process_mb
from benchmarks.markdown_table import table_head, table_row
from benchmarks.serve_attacks import ATTACK_NAMES, GoodClient, attacking, peak_mb, process_tree
from runtime.inference.classifier import Classifier
from runtime.inference.engines import default_threads
from runtime.preprocess.picture import read_picture
from tests.helpers import RELEASED
from tests.serving import serve_in_process

PHOTOS = 200
TURNS = 30
WARM_UP = 3.0  # seconds
MIN_RATIO = 0.95  # of the service's throughput to the engine's
MAX_GROWTH_MB = 5.0
SMALL_QUEUE = CLIENTS // 4
MAX_OVERHEAD_MS = 2.0  # of an answer over a kept connection, beyond decoding and inference
OVERHEAD_ROUNDS, PHOTOS_PER_ROUND = 20, 25
SECONDS_PER_ATTACK = 10.0
MAX_SLOWDOWN = 3.0  # of good photos during an attack
MAX_PEAK_MB = 512.0
# Otherwise the service times other engines too, and may switch to one.
serve_one_engine = partial(serve_in_process, VGG_EDGE_ENGINE_TIMING="off")


@dataclass(frozen=True)
class Measurement:
    name: str
    value: float
    unit: str = ""
    limit: str = ""
    passed: bool | None = None
    detail: str = ""


@dataclass(frozen=True)
class Turns:
    """One entry per turn."""

    served: list[LoadResult]
    service_cpu: list[float]  # seconds per photo
    service_mb: list[float]  # resident memory
    engine: list[float]  # photos per second, with decoding
    engine_cpu: list[float]  # seconds per photo
    engine_per_core: list[float]  # photos per second, with decoding, as `engine` with an engine for each core
    inference: list[float]  # photos per second, decoded before
    sink_cores: list[float]  # used by the sink


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load on the service")
    parser.add_argument(
        "--attack", choices=ATTACK_NAMES, help="measure this attack only, and write no report"
    )
    arguments = parser.parse_args(argv)
    photos = small_photos()
    if arguments.attack:
        print("\n".join(table(list(measure_attacks(photos, [arguments.attack])))))
        return
    seconds = arguments.seconds
    classifier = Classifier(RELEASED)
    expected = [(prediction.label, prediction.probability) for prediction in map(classifier, photos)]
    with start_load_generator(photos, expected) as generator:
        turns = run_turns(generator, classifier, photos, seconds / TURNS)
        rows = [*compare_with_engine(turns, seconds), *measure_small_queue(generator, seconds)]
    rows += [measure_overhead(photos), *measure_attacks(photos, ATTACK_NAMES)]
    used = f"{classifier.model.path.name} on {classifier.session.engine}, {classifier.threads} threads"
    write_report(rows, used)


def run_turns(generator: LoadGenerator, classifier: Classifier, photos: list[bytes], seconds: float) -> Turns:
    """Alternates between the service and the engine alone, `seconds` each."""
    turns = Turns([], [], [], [], [], [], [], [])
    parallel = Classifier(RELEASED, parallel=True)
    pixels = [read_picture(photo, classifier.model.contract.input_size) for photo in photos]
    with (
        serve_one_engine("--model", RELEASED) as service,
        start_sink() as (sink_id, sink_port, set_sink_rate),
    ):
        generator.run(service.port, WARM_UP)
        for _ in range(TURNS):
            cpu = cpu_seconds(service.process.pid)
            result = generator.run(service.port, seconds)
            turns.served.append(result)
            turns.service_cpu.append((cpu_seconds(service.process.pid) - cpu) / result.answered)
            turns.service_mb.append(resident_mb(service.process.pid))
            set_sink_rate(result.photos_per_second)
            sink_cpu, own_cpu = cpu_seconds(sink_id), time.process_time()
            generator.start(sink_port, seconds)
            turns.engine.append(classify_for(seconds, classifier, photos))
            turns.engine_cpu.append((time.process_time() - own_cpu) / (turns.engine[-1] * seconds))
            generator.result()
            turns.sink_cores.append((cpu_seconds(sink_id) - sink_cpu) / seconds)
            generator.start(sink_port, seconds)
            turns.engine_per_core.append(classify_for(seconds, parallel, photos))
            generator.result()
            generator.start(sink_port, seconds)
            turns.inference.append(infer_for(seconds, classifier, pixels))
            generator.result()
    return turns


def compare_with_engine(turns: Turns, seconds: float) -> Iterator[Measurement]:
    cores = default_threads()
    scale = cores / (cores - statistics.median(turns.sink_cores))
    throughput = [result.photos_per_second for result in turns.served]
    ratios = sorted(ours / (theirs * scale) for ours, theirs in zip(throughput, turns.engine, strict=True))
    per_core_ratio, inference_ratio = (
        statistics.median(ours / (theirs * scale) for ours, theirs in zip(throughput, alone, strict=True))
        for alone in (turns.engine_per_core, turns.inference)
    )
    ratio = statistics.median(ratios)
    total = sum(result.answered for result in turns.served)
    wrong = sum(result.wrong for result in turns.served)
    failed = sum(result.failed for result in turns.served)
    generator_cores = sum(result.cpu_seconds for result in turns.served) / sum(
        result.seconds for result in turns.served
    )
    engine = statistics.median(turns.engine)
    quartiles = f"{TURNS} turns, half of them from {ratios[TURNS // 4]:.2f} to {ratios[3 * TURNS // 4]:.2f}"
    sink = f"{engine:.0f} measured, the sink used {statistics.median(turns.sink_cores):.2f} cores"
    generator = f"the load generator used {generator_cores:.2f} cores"
    yield Measurement("photos answered", total, "", "all", failed == 0, f"{CLIENTS} clients, {seconds:.0f} s")
    yield Measurement("wrong answers", wrong, "", "0", wrong == 0, "label and probability")
    yield Measurement("throughput", statistics.median(throughput), "photos/s", detail=generator)
    yield Measurement("engine alone, with decoding", engine * scale, "photos/s", detail=sink)
    yield Measurement(
        "throughput / engine alone, with decoding",
        ratio,
        "",
        f"≥ {MIN_RATIO}",
        ratio >= MIN_RATIO,
        quartiles,
    )
    yield Measurement("throughput / an engine alone on each core, with decoding", per_core_ratio)
    yield Measurement("throughput / engine alone, photos decoded before", inference_ratio)
    yield Measurement(
        "processor time per photo, the service", 1000 * statistics.median(turns.service_cpu), "ms"
    )
    yield Measurement(
        "processor time per photo, the engine alone, with decoding",
        1000 * statistics.median(turns.engine_cpu),
        "ms",
    )
    latencies = [latency for result in turns.served for latency in result.latencies]
    for share in (50, 95, 99):
        yield Measurement(f"latency p{share}", 1000 * percentile(latencies, share), "ms")
    yield memory_growth("memory growth", turns.service_mb[0], turns.service_mb[-1])


def measure_small_queue(generator: LoadGenerator, seconds: float) -> Iterator[Measurement]:
    """The same load on a queue with a slot for one of four clients; the others get 503 and retry."""
    with serve_one_engine("--model", RELEASED, "--queue", str(SMALL_QUEUE)) as service:
        generator.run(service.port, WARM_UP)
        before = resident_mb(service.process.pid)
        result = generator.run(service.port, seconds)
        after = resident_mb(service.process.pid)
    queue = f"{SMALL_QUEUE} slots: "
    retried = f"{result.retried:,} retries after 503"
    yield Measurement(f"{queue}photos answered", result.answered, "", "all", result.failed == 0, retried)
    yield Measurement(f"{queue}wrong answers", result.wrong, "", "0", result.wrong == 0)
    yield Measurement(f"{queue}throughput", result.photos_per_second, "photos/s")
    yield Measurement(
        f"{queue}latency p99", 1000 * percentile(result.latencies, 99), "ms", detail="includes waiting"
    )
    yield memory_growth(f"{queue}memory growth", before, after)


def measure_overhead(photos: list[bytes]) -> Measurement:
    """The time of an answer that neither the decoder nor the engine needs.

    It is the median of the fastest round: other work on the machine can only make a round slower.
    """
    rounds = []
    with serve_one_engine("--model", RELEASED) as service:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
        for _ in range(OVERHEAD_ROUNDS):
            overheads = []
            for photo in photos[:PHOTOS_PER_ROUND]:
                started = time.perf_counter()
                connection.request("POST", "/classify", photo, {"Content-Type": "image/jpeg"})
                answer = json.loads(connection.getresponse().read())
                overheads.append(1000 * (time.perf_counter() - started) - sum(answer["ms"].values()))
            rounds.append(statistics.median(overheads))
        connection.close()
    value = min(rounds)
    detail = f"fastest of {OVERHEAD_ROUNDS} rounds, the slowest took {max(rounds):.1f} ms"
    name = "one client: answer without decoding and inference, p50"
    limit = f"≤ {MAX_OVERHEAD_MS:g}"
    return Measurement(name, value, "ms", limit, value <= MAX_OVERHEAD_MS, detail)


def measure_attacks(photos: list[bytes], names: Iterable[str]) -> Iterator[Measurement]:
    """Photos from another address during each attack, compared with the seconds before and after it."""
    token = secrets.token_hex(16)
    with TemporaryDirectory() as folder:
        token_file = Path(folder) / "token"
        token_file.touch(mode=0o600)
        token_file.write_text(token)
        with serve_one_engine("--model", RELEASED, "--token-file", token_file) as service:
            client = GoodClient(service.port, token, photos)
            client.latencies(WARM_UP)
            for name in names:
                usual = client.latencies(SECONDS_PER_ATTACK / 2)
                with attacking(name, service.port, token, photos[0]):
                    attacked = client.latencies(SECONDS_PER_ATTACK)
                usual += client.latencies(SECONDS_PER_ATTACK / 2)
                yield slowdown(name, usual, attacked)
            peak = peak_mb(service.process.pid)
    limit = f"≤ {MAX_PEAK_MB:g}"
    yield Measurement("attacks: peak memory", peak, "MB", limit, peak <= MAX_PEAK_MB)


def slowdown(attack: str, usual: list[float], attacked: list[float]) -> Measurement:
    """The factor by which an attack slows photos of another address down."""
    factor = statistics.median(attacked) / statistics.median(usual)
    p95 = [1000 * percentile(latencies, 95) for latencies in (attacked, usual)]
    detail = f"{len(attacked)} photos; p95 {p95[0]:.0f} ms, usually {p95[1]:.0f} ms"
    name = f"{attack}: slowdown of photos from another address, p50"
    return Measurement(name, factor, "", f"≤ {MAX_SLOWDOWN:g}", factor <= MAX_SLOWDOWN, detail)


def memory_growth(name: str, before_mb: float, after_mb: float) -> Measurement:
    growth = after_mb - before_mb
    limit = f"≤ {MAX_GROWTH_MB:g}"
    return Measurement(name, growth, "MB", limit, growth <= MAX_GROWTH_MB, f"{after_mb:.0f} MB at the end")


def percentile(values: Sequence[float], share: int) -> float:
    return sorted(values)[int(share / 100 * len(values))]


def small_photos() -> list[bytes]:
    root = os.environ.get("VGG_EDGE_PHOTOS")
    if root:
        return [path.read_bytes() for path in sorted(Path(root).glob("test/*/*.jpg"))[:: 500 // PHOTOS]]
    from train.data.synthetic import FLOWERS, draw_flower

    photos = []
    for number in range(PHOTOS):
        out = io.BytesIO()
        draw_flower(sorted(FLOWERS)[number % len(FLOWERS)], number).save(out, "JPEG", quality=90)
        photos.append(out.getvalue())
    return photos


# --- the engine alone ---


def classify_for(seconds: float, classifier: Classifier, photos: list[bytes]) -> float:
    """Photos per second, decoded and classified in as many threads as the service uses."""
    done = [0] * default_threads()
    started = time.perf_counter()

    def work(thread: int) -> None:
        photo = thread
        while time.perf_counter() - started < seconds:
            classifier(photos[photo % len(photos)])
            photo += len(done)
            done[thread] += 1

    with ThreadPoolExecutor(len(done)) as pool:
        list(pool.map(work, range(len(done))))
    return sum(done) / (time.perf_counter() - started)


def infer_for(seconds: float, classifier: Classifier, pixels: list[NDArray[np.uint8]]) -> float:
    """Photos per second, without decoding."""
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        classifier.infer(pixels[done % len(pixels)])
        done += 1
    return done / (time.perf_counter() - started)


# --- processes and the report ---


def resident_mb(process_id: int) -> float:
    """Resident memory of the process and its children."""
    return sum(process_mb(process, "VmRSS") for process in process_tree(process_id))


def cpu_seconds(process_id: int) -> float:
    """Processor time that the process and its children used so far."""
    return sum(map(process_cpu_seconds, process_tree(process_id)))


def write_report(rows: Sequence[Measurement], used: str) -> None:
    """Writes serve.csv and serve.md beside this file, and prints the table."""
    here = Path(__file__)
    machine = describe_machine()
    with here.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*asdict(rows[0]), "measured_on"])
        writer.writeheader()
        for row in rows:
            writer.writerow({**asdict(row), "value": f"{row.value:.4g}", "measured_on": f"{used}, {machine}"})
    lines = [f"{used}, load {os.getloadavg()[0]:.1f}. {machine}", "", *table(rows)]
    here.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def table(rows: Sequence[Measurement]) -> list[str]:
    lines = [table_head("measurement", "value", "limit", "passed", "detail")]
    for row in rows:
        is_whole = row.value == int(row.value) or row.value >= 1000
        value = f"{row.value:,.0f}" if is_whole else f"{row.value:.3g}"
        passed = "" if row.passed is None else "yes" if row.passed else "no"
        lines.append(table_row(row.name, f"{value} {row.unit}", row.limit, passed, row.detail))
    return lines


if __name__ == "__main__":
    main()
