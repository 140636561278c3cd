"""Times the engines that can run a model, in the background, where `python -m runtime.bench --save` did not.

The first start of a camera, of a service or of a folder of photos does so once per model and machine. Each
engine runs in a process of the lowest priority, on one thread, and the time is that of the processor: neither
the answers nor the timing wait for the other. Such a process must also pass the proof of a new model.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from runtime.common.errors import UserError
from runtime.inference.classifier import Classifier
from runtime.inference.correction import NONE
from runtime.inference.engine_cache import EngineSelection, load_selection, save_selection
from runtime.inference.engines import ENGINES, default_threads, engine_order, is_installed
from runtime.inference.model_proof import check_answer, print_proof, run_proof
from runtime.model_file.golden import golden_picture

VARIABLE = "VGG_EDGE_ENGINE_TIMING"  # "off" keeps the choice by rule
DELAY = 5.0  # seconds after the start, which has the processor for itself
MIN_RUNS, MAX_RUNS, MAX_SECONDS = 3, 20, 2.0  # per engine; seconds of processor time, after MIN_RUNS
TIMEOUT = 300.0  # seconds per engine; on a busy machine, the process waits for most of it
MIN_GAIN = 1.1  # a smaller ratio of two times may be chance
# tflite-runtime does not work beside another engine in one process. `runtime.bench --save` measures it too.
NOT_TIMED = frozenset({"tflite"})

START = (
    "import os\n"
    "from contextlib import suppress\n"
    "with suppress(AttributeError, OSError): os.nice(19)\n"  # before the imports, which take most of the time
    "from runtime.inference.engine_timing import main; main()"
)


@dataclass(frozen=True)
class EngineTiming:
    """The file that an engine opens, and its time for a picture."""

    sha256: str
    ms: float  # of the processor, on 1 thread


def start_timing(
    classifier: Classifier,
    path: str | Path | None,
    options: Mapping[str, Any],
    on_faster: Callable[[Classifier, dict[str, Any]], None],
    on_detail: Callable[[str], None],
) -> None:
    """Times the engines of Classifier(path, **options), which is `classifier`, in a thread.

    If another engine is faster, calls `on_faster` with `classifier` and the arguments that open the model in
    that engine. `on_detail` gets a line for each result. Does nothing where the engine was named or measured,
    is the only one, or replaces one that cannot be imported.
    """
    if os.environ.get(VARIABLE) == "off" or classifier.engine_problem:
        return
    if len(_engines_to_time(classifier)) < 2:
        return

    def work() -> None:
        time.sleep(DELAY)
        try:
            if (faster := _find_faster(classifier, path, options, on_detail)) is not None:
                on_faster(classifier, faster)
        except Exception as error:  # whatever fails, the engine in use stays
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            on_detail(f"the engine stays: {reason}")

    Thread(target=work, name="engine-timing", daemon=True).start()


class SwitchingClassifier:
    """A Classifier, replaced by one in a faster engine as soon as the timing in the background finds it.

    The arguments are those of `start_timing`.
    """

    def __init__(
        self,
        classifier: Classifier,
        path: str | Path | None,
        options: Mapping[str, Any],
        on_detail: Callable[[str], None],
    ) -> None:
        self._classifier = classifier

        def switch(old: Classifier, faster: dict[str, Any]) -> None:
            new = Classifier(path, **{**faster, "correction": NONE, "learned": NONE})
            check_answer(new)
            if new.model.contract.model_id != old.model.contract.model_id:
                return  # the model was replaced meanwhile
            self._classifier = new.with_additions_of(old)

        start_timing(classifier, path, options, switch, on_detail)

    def current(self) -> Classifier:
        """Returns the classifier for the next picture."""
        return self._classifier


def main() -> None:
    """Proves and times an engine, for `_time_engines` in another process."""
    print_proof(lambda classifier: {"ms": _shortest_ms(classifier)})


def _find_faster(
    classifier: Classifier,
    path: str | Path | None,
    options: Mapping[str, Any],
    on_detail: Callable[[str], None],
) -> dict[str, Any] | None:
    """Times the engines and saves the fastest.

    Returns the arguments that open the model in it; None if `classifier` uses it, or if the timing failed. A
    cache that cannot be written is no error: then the next start times the engines again.
    """
    timings = _time_engines(classifier, path, options, on_detail)
    current = classifier.session.name
    if current not in timings or len(timings) < 2:
        return None
    fastest = min(timings, key=lambda engine: timings[engine].ms)
    if timings[current].ms < MIN_GAIN * timings[fastest].ms:
        fastest = current
    selection = _to_selection(timings, fastest)
    faster = dict(options)  # the engine "auto", which takes the saved selection
    stored = load_selection(classifier.unmeasured)
    if isinstance(stored, EngineSelection) and not stored.others:
        # `runtime.bench --save` ran meanwhile: it is more exact, and knows the best number of threads.
        on_detail(f"auto: {stored}")
        is_used = (stored.engine, stored.threads) == (current, classifier.threads)
        return None if is_used else faster
    try:
        save_selection(classifier.unmeasured, selection)
    except (OSError, RuntimeError) as error:
        on_detail(f"the timing of the engines is not saved: {error}")
        faster["engine"] = fastest
    on_detail(f"auto: {selection}")
    return None if fastest == current else faster


def _engines_to_time(classifier: Classifier) -> list[str]:
    """Returns the installed engines that can run a file of the model; none if there is a measurement."""
    formats = {file.format for file in classifier.unmeasured}
    return [
        engine
        for engine in engine_order()
        if engine not in NOT_TIMED and ENGINES[engine].format in formats and is_installed(engine)
    ]


def _time_engines(
    classifier: Classifier,
    path: str | Path | None,
    options: Mapping[str, Any],
    on_detail: Callable[[str], None],
) -> dict[str, EngineTiming]:
    """Returns the times by engine, without the engines that fail."""
    timings = {}
    sha256s = {file.sha256 for file in classifier.unmeasured}
    for engine in _engines_to_time(classifier):
        alone = {**options, "engine": engine, "threads": 1, "correction": NONE, "learned": NONE}
        try:
            result = run_proof(START, path, alone, TIMEOUT)
        except UserError as error:
            on_detail(f"{engine} is not timed: {error}")
            continue
        timing = EngineTiming(str(result["sha256"]), float(result["ms"]))
        if timing.sha256 in sha256s:  # else the model was replaced meanwhile
            timings[engine] = timing
    return timings


def _to_selection(timings: Mapping[str, EngineTiming], fastest: str) -> EngineSelection:
    others = {engine: timing.ms for engine, timing in timings.items() if engine != fastest}
    return EngineSelection(
        sha256=timings[fastest].sha256,
        engine=fastest,
        threads=default_threads(),
        median_ms=timings[fastest].ms,
        measured=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        others=others,
    )


def _shortest_ms(classifier: Classifier) -> float:
    """Returns the shortest time of the processor for a picture: other work on its caches only adds to it.

    Ends the process when its parent has ended.
    """
    picture = golden_picture(*classifier.model.contract.input_size)[np.newaxis]
    parent, seconds = os.getppid(), list[float]()
    while len(seconds) < MIN_RUNS or (len(seconds) < MAX_RUNS and sum(seconds) < MAX_SECONDS):
        if os.getppid() != parent:  # the camera, service or folder of photos is done
            sys.exit()
        started = time.process_time()  # of all threads of this process, without the time that others use
        classifier.session(picture)
        seconds.append(time.process_time() - started)
    return round(1000 * min(seconds), 3)
