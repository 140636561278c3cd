"""Run model files in their device engines and compare the outputs with the float32 Keras model."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import chain, pairwise, repeat
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from export.parity.engine_worker import EngineHangError, EngineOutputs, join_outputs, run_in_engine
from export.parity.result import FileKey, ParityResult
from export.tempdir import temporary_dir
from runtime.common.errors import EngineError, ModelError
from runtime.common.text import pluralize
from runtime.inference.engines import ENGINES, default_threads, is_installed
from runtime.inference.model_proof import check_outputs
from runtime.model_file.contract import Contract
from runtime.model_file.golden import golden_picture

TIMED = 11  # photos whose median is the latency
# Starting an engine for fewer photos costs more than it saves.
MIN_PART = 25

_Arrays = TypeVar("_Arrays", "ParityReference", EngineOutputs)
Step = Callable[[FileKey, str], None]  # called with the file and the engine after each inference


@dataclass(frozen=True)
class ParityReference:
    """Photos, and the outputs of the trained model for them."""

    photos: NDArray[np.uint8]  # [n, H, W, 3]
    truth: NDArray[np.int64]  # [n], the index of each photo's label
    probabilities: NDArray[np.float32]  # [n, C], of the float32 Keras model
    known: NDArray[np.float32] | None = None  # [n, 1], if the model has that output
    known_threshold: float = 0.0  # a photo with a lower `known` is unknown
    features: NDArray[np.float32] | None = None  # [n, D]; None: features are not compared
    uncompressed: NDArray[np.int64] | None = None  # [n], top-1 of the uncompressed model, if compressed
    contract: Contract | None = None  # of the files; None: their answer to the golden picture is not checked


def run_parity(
    files: Mapping[FileKey, bytes],
    reference: ParityReference,
    engines: Sequence[str] | None = None,
    step: Step = lambda file, engine: None,
) -> list[ParityResult]:
    """Runs each file in each of `engines` (None: all that are installed) that supports its format.

    Calls `step` after each inference: of every photo on one thread, then of the first TIMED photos on all
    cores, for the latency and for the largest differences. With the contract, each file also classifies the
    golden picture, and its answer is checked as a service does. A file that an engine cannot run, or that
    breaks the contract, gets a result with an error. Raises UserError when there is no room for temporary
    files, and EngineHangError when an engine hangs.
    """
    lock, stop = threading.Lock(), threading.Event()

    def locked_step(file: FileKey, engine: str) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        with lock:
            step(file, engine)

    pairs = file_engine_pairs(files, engines)
    parts = photo_parts(len(reference.photos), default_threads())
    # The first parts of all pairs come first. Every process runs one inference at a time, so the second parts
    # keep all cores busy to the end.
    tasks = [(pair, part) for part in parts for pair in pairs]
    with temporary_dir() as folder:
        photos = folder / "photos.npy"
        np.save(photos, reference.photos)

        def run(task: tuple[tuple[FileKey, str], range]) -> EngineOutputs | EngineError:
            (file, engine), part = task
            step_of_pair = partial(locked_step, file, engine)
            try:
                with _name_in_hang(file):
                    return run_in_engine(files[file], engine, photos, len(part), 1, step_of_pair, part.start)
            except EngineError as error:
                return error

        # One thread per inference and several at once is faster than one after the other on all cores.
        with ThreadPoolExecutor(default_threads()) as pool:
            try:
                outputs = list(pool.map(run, tasks))
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        results = [
            compare_outputs(file, files[file], engine, outputs[number :: len(pairs)], reference)
            for number, (file, engine) in enumerate(pairs)
        ]
        pictures = _pictures_as_on_a_device(reference, folder)
        for i, (file, engine) in enumerate(pairs):
            if not results[i].error:
                step_of_pair = partial(locked_step, file, engine)
                results[i] = _run_as_a_device(
                    results[i], files[file], engine, pictures, reference, step_of_pair
                )
    return results


@contextmanager
def _name_in_hang(file: FileKey) -> Iterator[None]:
    """Adds the file to an EngineHangError."""
    try:
        yield
    except EngineHangError as error:
        raise EngineHangError(f"{file.format} {file.precision}: {error}") from None


def _pictures_as_on_a_device(reference: ParityReference, folder: Path) -> Path:
    """Writes the golden picture, if the reference has a contract, and the first TIMED photos, as a .npy."""
    path, photos = folder / "device.npy", reference.photos[:TIMED]
    if reference.contract is not None:
        photos = np.concatenate([golden_picture(*reference.contract.input_size)[np.newaxis], photos])
    np.save(path, photos)
    return path


def _run_as_a_device(
    result: ParityResult,
    data: bytes,
    engine: str,
    pictures: Path,
    reference: ParityReference,
    step: Callable[[], None],
) -> ParityResult:
    """The result with the latency, the largest differences on all cores too, and the verdict of a service
    about the golden answer.

    As on a device, one inference at a time uses all cores.
    """
    golden, threads = int(reference.contract is not None), default_threads()
    steps = chain([lambda: None] * golden, repeat(step))  # the golden picture is no photo
    n = golden + min(TIMED, len(reference.photos))
    try:
        with _name_in_hang(result.file):
            outputs = run_in_engine(data, engine, pictures, n, threads, lambda: next(steps)())
    except EngineError as error:
        return replace(result, error=f"on {pluralize(threads, 'thread')}: {error}")
    first = compare_outputs(
        result.file,
        data,
        engine,
        [select_rows(outputs, slice(golden, n))],
        select_rows(reference, slice(n - golden)),
    )
    result = replace(
        result,
        ms=float(np.median(outputs.ms[golden:])),
        error=first.error and f"on {pluralize(threads, 'thread')}: {first.error}",
        max_dp=max(result.max_dp, first.max_dp),
        max_dknown=_largest(result.max_dknown, first.max_dknown),
        max_dfeatures=_largest(result.max_dfeatures, first.max_dfeatures),
    )
    if reference.contract is None:
        return result
    found = {"probabilities": outputs.probabilities[:1]}
    if outputs.known is not None:
        found["known"] = outputs.known[:1]
    try:
        check_outputs(found, reference.contract)
    except ModelError as error:
        return replace(result, refusal=str(error))
    return result


def select_rows(arrays: _Arrays, photos: slice | list[int]) -> _Arrays:
    """The arrays of these photos alone; the other fields stay."""
    selected: dict[str, Any] = {
        field.name: value[photos]
        for field in fields(arrays)
        if isinstance(value := getattr(arrays, field.name), np.ndarray)
    }
    return replace(arrays, **selected)


def _largest(first: float | None, second: float | None) -> float | None:
    return max(first, second) if first is not None and second is not None else first


def file_engine_pairs(
    files: Iterable[FileKey], engines: Sequence[str] | None = None
) -> list[tuple[FileKey, str]]:
    """Each file with each of `engines` (None: all that are installed) that supports its format.

    The order is that of ENGINES: the int8 search runs most photos in the first engine of a format, and others
    may take many times longer.
    """
    chosen = [name for name in ENGINES if (is_installed(name) if engines is None else name in engines)]
    return [(file, engine) for file in files for engine in chosen if ENGINES[engine].format == file.format]


def limit_photos(reference: ParityReference, count: int) -> ParityReference:
    """At most `count` photos of the reference, from the classes in turn."""
    if len(reference.photos) <= count:
        return reference
    seen: Counter[int] = Counter()
    ranked = []
    for i, label in enumerate(reference.truth.tolist()):
        ranked.append((seen[label], label, i))
        seen[label] += 1
    return select_rows(reference, [i for _, _, i in sorted(ranked)[:count]])


def photo_parts(photos: int, workers: int) -> list[range]:
    """The photos as at most `workers` ranges of at least MIN_PART photos."""
    count = max(min(workers, photos // MIN_PART), 1)
    bounds = [number * photos // count for number in range(count + 1)]
    return [range(start, stop) for start, stop in pairwise(bounds)]


def compare_outputs(
    file: FileKey,
    data: bytes,
    engine: str,
    parts: Sequence[EngineOutputs | EngineError],
    reference: ParityReference,
) -> ParityResult:
    """The result of a file in an engine, from the outputs for each part of the photos."""
    found_parts = []
    for part in parts:
        if isinstance(part, EngineError):
            return _result(file, engine, data, reference.probabilities * np.nan, reference, str(part))
        found_parts.append(part)
    outputs = join_outputs(found_parts)
    found, error_text = outputs.probabilities, contract_error(outputs, reference)
    if found.shape != reference.probabilities.shape:
        found = reference.probabilities * np.nan
    result = _result(file, outputs.engine, data, found, reference, error_text)
    if error_text:
        return result
    if reference.uncompressed is not None:
        different = found.argmax(axis=1) != reference.uncompressed
        result = replace(result, uncompressed_disagreements=int(different.sum()))
    return _with_features(_with_known(result, outputs.known, reference), outputs.features, reference)


def _result(
    file: FileKey,
    engine: str,
    data: bytes,
    found: NDArray[np.float32],
    reference: ParityReference,
    error: str,
) -> ParityResult:
    expected = reference.probabilities
    dp = np.abs(found.astype(np.float64) - expected).max(axis=1)
    # argmax returns the first NaN: a photo without finite outputs agrees with no class.
    top = np.where(np.isfinite(found).all(axis=1), found.argmax(axis=1), -1)
    return ParityResult(
        format=file.format,
        precision=file.precision,
        engine=engine,
        n=len(expected),
        bytes=len(data),
        top1=float((top == reference.truth).mean()),
        reference_top1=float((expected.argmax(axis=1) == reference.truth).mean()),
        disagreements=int((top != expected.argmax(axis=1)).sum()),
        mean_dp=float(dp.mean()),
        p99_dp=float(np.percentile(dp, 99)),
        max_dp=float(dp.max()),
        ms=math.nan,
        error=error,
    )


def _with_known(
    result: ParityResult, found: NDArray[np.float32] | None, reference: ParityReference
) -> ParityResult:
    if reference.known is None:
        return result
    if found is None or found.shape != reference.known.shape or not np.isfinite(found).all():
        return replace(result, error="output `known` is missing, or not one finite number per photo")
    threshold = reference.known_threshold
    return replace(
        result,
        known_disagreements=int(((found >= threshold) != (reference.known >= threshold)).sum()),
        max_dknown=float(np.abs(found.astype(np.float64) - reference.known).max()),
    )


def _with_features(
    result: ParityResult, found: NDArray[np.float32] | None, reference: ParityReference
) -> ParityResult:
    if reference.features is None or result.error:
        return result
    if found is None or found.shape != reference.features.shape or not np.isfinite(found).all():
        width = reference.features.shape[1]
        return replace(result, error=f"output `features` is missing, or not {width} finite numbers per photo")
    return replace(result, max_dfeatures=features_error(found, reference.features))


def features_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest relative error of a photo's features [n, D]: |found - expected| / |expected|, as lengths.

    The largest error of a single feature proves little: the square root enlarges that of one near 0.
    """
    difference = np.linalg.norm(found.astype(np.float64) - expected, axis=1)
    return float((difference / np.maximum(np.linalg.norm(expected, axis=1), 1e-6)).max())


def contract_error(outputs: EngineOutputs, reference: ParityReference) -> str:
    """Why `probabilities` break the contract; empty if they do not."""
    found, shape = outputs.probabilities, reference.probabilities.shape
    if found.shape != shape:
        return f"returns {list(found.shape[1:])} probabilities per photo, not {list(shape[1:])}"
    if found.dtype != np.float32:
        return f"returns {found.dtype}, not float32"
    if not np.isfinite(found).all():
        return f"returns no finite number for {int((~np.isfinite(found)).any(axis=1).sum())} photos"
    sums = found.astype(np.float64).sum(axis=1)
    if found.min() < 0 or np.abs(sums - 1).max() > 0.01:  # an int8 softmax has steps of 1/256
        return f"returns probabilities that sum to {sums.min():.3f} to {sums.max():.3f}, not 1"
    return ""
