"""Prove that a model file is the trained model: run it in its device engines and compare with Keras.

One photo's |Δp| is the largest difference over all its class probabilities: the strictest reading. Mean, 99th
percentile and maximum are taken over the photos.
"""

from __future__ import annotations

import csv
import io
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from export.parity.engine_worker import run_in_engine
from export.tempdir import temporary_dir
from runtime.common.errors import EngineError
from runtime.inference.engines import ENGINES, FORMATS_OF, default_threads, is_installed

MIN_PHOTOS = 250  # photos: the gates on rates and percentiles need as many
TIMED = 11  # photos that the latency is the median of


@dataclass(frozen=True)
class Gate:
    """What a file must hold. Shares are of the photos; None asks nothing."""

    max_dp: float | None = None
    p99_dp: float | None = None
    agreement: float | None = None  # the least share of photos with the float32 model's top-1
    top1_loss: float | None = None  # the most that top-1 accuracy may lose, as a share
    next_step: str = ""  # what to do about a file that does not


GATES: dict[str, Gate] = {
    "float32": Gate(max_dp=1e-4, next_step="the conversion changed the model: report it with this table"),
    "float16": Gate(
        max_dp=5e-3, next_step="weights too large or too small for float16: export without --float16"
    ),
    "dynamic": Gate(agreement=0.98, next_step="export --int8, which is calibrated, or without --dynamic"),
    "int8": Gate(
        max_dp=0.25,
        p99_dp=0.12,
        agreement=0.98,
        top1_loss=0.01,
        next_step="train on more photos, since calibration uses them, or export --float16 instead",
    ),
}
ALLOWED_SHARE = 0.02  # of fewer than ENOUGH photos, ⌈2 %⌉ may disagree


@dataclass(frozen=True)
class NoveltyReference:
    """The float32 Keras model's `known`, [n, 1]; a photo under `threshold` is called unknown."""

    reference: NDArray[np.float32]
    threshold: float


@dataclass(frozen=True)
class ParityResult:
    """One file in one engine against the float32 Keras model, over the same n photos."""

    format: str
    precision: str
    engine: str  # with its version
    n: int
    bytes: int
    top1: float  # the file's own accuracy, a share of n
    reference_top1: float  # the float32 Keras model's
    disagreements: int  # photos whose top-1 is not the float32 Keras model's
    mean_dp: float
    p99_dp: float
    max_dp: float
    ms: float  # median, one photo, all cores
    error: str = ""  # why there are no figures, or none to trust
    known_disagreements: int | None = None  # photos that only one of the two calls unknown; None: not told
    max_dknown: float | None = None  # the largest |Δ| of `known`
    uncompressed_disagreements: int | None = None  # photos whose top-1 is not the uncompressed model's

    @property
    def agreement(self) -> float:
        return 1 - self.disagreements / self.n

    @property
    def uncompressed_agreement(self) -> float | None:
        """The share of photos with the top-1 of the model that was compressed; None of one that was not."""
        if self.uncompressed_disagreements is None:
            return None
        return 1 - self.uncompressed_disagreements / self.n


def run_parity(
    files: Mapping[tuple[str, str], bytes],
    reference: NDArray[np.float32],
    photos: NDArray[np.uint8],
    truth: NDArray[np.int64],
    engines: Sequence[str] | None = None,
    step: Callable[[int], None] = lambda done: None,
    known: NoveltyReference | None = None,
    uncompressed: NDArray[np.int64] | None = None,
) -> list[ParityResult]:
    """Runs each file, by (format, precision), in each of `engines` (None: those installed) that take it.

    `reference` is what the float32 Keras model says, [n, C], and `known`, if it has that output;
    `uncompressed` the top-1 [n] of the model that it was compressed from, if it was; `photos` uint8
    [n, H, W, 3]; `truth` the index of each photo's label, [n]. `step` is called with 1 after each of
    `steps(…)` inferences. A file that an engine cannot run, or that breaks the contract, makes a row with an
    error. Raises UserError when the photos or a file cannot be put where engines read them.
    """
    lock, stop = threading.Lock(), threading.Event()

    def count() -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        with lock:
            step(1)

    with temporary_dir() as folder:
        path = folder / "photos.npy"
        np.save(path, photos)

        def one(file: tuple[str, str], engine: str) -> ParityResult:
            data = files[file]
            try:
                said = run_in_engine(data, engine, path, len(photos), 1, count)
            except EngineError as error:
                return _row(file, engine, data, reference * np.nan, reference, truth, str(error))
            wrong = _malformed(said.probabilities, reference.shape)
            found = said.probabilities if said.probabilities.shape == reference.shape else reference * np.nan
            row = _row(file, said.engine, data, found, reference, truth, wrong)
            if uncompressed is not None and not wrong:
                differ = found.argmax(axis=1) != uncompressed
                row = replace(row, uncompressed_disagreements=int(differ.sum()))
            return row if known is None or wrong else _with_known(row, said.known, known)

        # One thread each and several at once: quicker than one after the other on all cores.
        work = file_engine_pairs(files, engines)
        with ThreadPoolExecutor(default_threads()) as pool:
            try:
                rows = list(pool.map(lambda pair: one(*pair), work))
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        # As on a device, in contrast: alone, on all cores.
        timed = min(TIMED, len(photos))
        for i, (file, engine) in enumerate(work):
            if not rows[i].error:
                ms = run_in_engine(files[file], engine, path, timed, default_threads(), count).ms
                rows[i] = replace(rows[i], ms=float(np.median(ms)))
    return rows


def _with_known(row: ParityResult, said: NDArray[np.float32] | None, known: NoveltyReference) -> ParityResult:
    if said is None or said.shape != known.reference.shape or not np.isfinite(said).all():
        return replace(row, error="gives no `known` that is a finite number a photo")
    return replace(
        row,
        known_disagreements=int(((said >= known.threshold) != (known.reference >= known.threshold)).sum()),
        max_dknown=float(np.abs(said.astype(np.float64) - known.reference).max()),
    )


def inference_count(files: Iterable[tuple[str, str]], n: int, engines: Sequence[str] | None = None) -> int:
    """How many inferences `measure` makes."""
    return len(file_engine_pairs(files, engines)) * (n + min(TIMED, n))


def file_engine_pairs(
    files: Iterable[tuple[str, str]], engines: Sequence[str] | None = None
) -> list[tuple[tuple[str, str], str]]:
    """Which file runs in which engine."""
    chosen = [engine for engine in ENGINES if is_installed(engine)] if engines is None else engines
    return [(file, engine) for file in files for engine in chosen if FORMATS_OF[engine] == file[0]]


def _row(
    file: tuple[str, str],
    engine: str,
    data: bytes,
    said: NDArray[np.float32],
    reference: NDArray[np.float32],
    truth: NDArray[np.int64],
    error: str,
) -> ParityResult:
    dp = np.abs(said.astype(np.float64) - reference).max(axis=1)
    # argmax calls the first NaN the largest: such a photo agrees with nothing.
    top = np.where(np.isfinite(said).all(axis=1), said.argmax(axis=1), -1)
    return ParityResult(
        format=file[0],
        precision=file[1],
        engine=engine,
        n=len(reference),
        bytes=len(data),
        top1=float((top == truth).mean()),
        reference_top1=float((reference.argmax(axis=1) == truth).mean()),
        disagreements=int((top != reference.argmax(axis=1)).sum()),
        mean_dp=float(dp.mean()),
        p99_dp=float(np.percentile(dp, 99)),
        max_dp=float(dp.max()),
        ms=math.nan,
        error=error,
    )


def _malformed(said: NDArray[np.float32], shape: tuple[int, ...]) -> str:
    """What breaks the contract in an engine's answers, or nothing."""
    if said.shape != shape:
        return f"gives {list(said.shape[1:])} probabilities a photo, not {list(shape[1:])}"
    if said.dtype != np.float32:
        return f"gives {said.dtype}, not float32"
    if not np.isfinite(said).all():
        return f"gives no finite number for {int((~np.isfinite(said)).any(axis=1).sum())} photos"
    sums = said.astype(np.float64).sum(axis=1)
    if said.min() < 0 or np.abs(sums - 1).max() > 0.01:  # int8 softmax steps by 1/256
        return f"gives probabilities that sum to {sums.min():.3f} to {sums.max():.3f}, not 1"
    return ""


def failures(rows: Iterable[ParityResult]) -> list[str]:
    """One line for each row that does not hold: file, engine, figures, bounds, and the next step."""
    return [
        f"{row.format} {row.precision} in {row.engine}: {'; '.join(broken)}: {_next_step(row)}"
        for row in rows
        if (broken := broken_bounds(row))
    ]


def _next_step(row: ParityResult) -> str:
    return "report it with the versions of both" if row.error else GATES[row.precision].next_step


def verdict(row: ParityResult) -> str:
    return "; ".join(broken_bounds(row)) or "holds"


def broken_bounds(row: ParityResult) -> list[str]:
    """The bounds that a row does not hold, each with its figure.

    A bound on the largest |Δp| counts however few the photos: fewer make it easier to hold. One on a share or
    a percentile does not: of 40 photos one is 2.5 %, and their 99th percentile is nearly their maximum.
    """
    if row.error:
        return [row.error]
    gate, broken = GATES[row.precision], []
    if gate.max_dp is not None and not row.max_dp <= gate.max_dp:
        broken.append(f"max |Δp| {row.max_dp:.2g} is over {gate.max_dp:g}")
    exact = gate.agreement is None  # a float file: held to the same bound in both its outputs
    if exact and row.max_dknown is not None and gate.max_dp is not None and not row.max_dknown <= gate.max_dp:
        broken.append(f"max |Δ known| {row.max_dknown:.2g} is over {gate.max_dp:g}")
    allowed = math.ceil(ALLOWED_SHARE * row.n)
    if row.known_disagreements is not None and row.known_disagreements > allowed:
        broken.append(f"{row.known_disagreements} of {row.n} photos are known to one alone, {allowed} may be")
    if row.n < MIN_PHOTOS:
        if row.disagreements > allowed:
            broken.append(f"{row.disagreements} of {row.n} photos have another top-1, {allowed} may")
        return broken
    if gate.p99_dp is not None and not row.p99_dp <= gate.p99_dp:
        broken.append(f"99th percentile |Δp| {row.p99_dp:.3f} is over {gate.p99_dp:g}")
    if gate.agreement is not None and not row.agreement >= gate.agreement:
        broken.append(f"agreement {row.agreement:.1%} is under {gate.agreement:.1%}")
    # In whole photos, so that a loss of exactly the bound is not lost to rounding.
    if gate.top1_loss is not None and round((row.reference_top1 - row.top1) * row.n) > gate.top1_loss * row.n:
        loss = 100 * (row.reference_top1 - row.top1)
        broken.append(f"top-1 falls by {loss:.1f} points, over {100 * gate.top1_loss:.1f}")
    return broken


def table(rows: Sequence[ParityResult]) -> str:
    """The rows for a terminal, and under them what so many photos prove."""
    tells = any(row.known_disagreements is not None for row in rows)
    compressed = any(row.uncompressed_disagreements is not None for row in rows)
    head = [
        "format",
        "precision",
        "engine",
        "MB",
        "top-1",
        "agree",
        "mean |Δp|",
        "p99",
        "max",
        *(["known"] if tells else []),
        *(["uncompressed"] if compressed else []),
        "ms",
        "verdict",
    ]
    lines = [head]
    for row in rows:
        dp = [f"{value:.6f}" for value in (row.mean_dp, row.p99_dp, row.max_dp)]
        shares = [f"{row.top1:.1%}", f"{row.agreement:.1%}"]
        size = f"{row.bytes / 1e6:.1f}"
        lines.append(
            [
                row.format,
                row.precision,
                row.engine,
                size,
                *shares,
                *dp,
                *([known_agreement(row)] if tells else []),
                *([percent(row.uncompressed_agreement)] if compressed else []),
                f"{row.ms:.1f}" if compressed else f"{row.ms:.0f}",
                "FAILS" if broken_bounds(row) else "holds",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if i < 3 or i == len(head) - 1 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    if rows:
        text += [
            "",
            f"against the float32 Keras model: top-1 {rows[0].reference_top1:.1%} on {rows[0].n} photos",
        ]
        text += [confidence_note(rows)]
    return "\n".join(text)


def known_agreement(row: ParityResult) -> str:
    """The share of photos that both call known, or both unknown, for a table."""
    return percent(None if row.known_disagreements is None else 1 - row.known_disagreements / row.n)


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def confidence_note(rows: Sequence[ParityResult]) -> str:
    """How little n photos prove, in one line, by the row that agrees least of those with figures."""
    n = rows[0].n
    worst = max((row.disagreements for row in rows if not row.error), default=n)
    few = f"; the gates on rates apply from {MIN_PHOTOS} photos on" if n < MIN_PHOTOS else ""
    seen = f"n = {n}: with {worst or 'none'} seen to differ"
    return f"{seen}, up to {upper_bound(n, worst):.1%} of all photos could (95 % confidence){few}"


def upper_bound(n: int, k: int, confidence: float = 0.95) -> float:
    """The one-sided upper bound on a share of which k in n were seen (Clopper and Pearson 1934).

    The share p at which k or fewer would be seen with a chance of 1 - confidence; for k = 0 about 3 / n.
    """
    low, high = k / n, 1.0
    for _ in range(50):
        p = (low + high) / 2
        chance = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))
        low, high = (p, high) if chance > 1 - confidence else (low, p)
    return high


def to_csv(rows: Iterable[ParityResult]) -> str:
    """parity.csv: a row's fields, the agreements, and whether it holds."""
    file = io.StringIO()
    names = [field.name for field in fields(ParityResult)]
    told = ("agreement", "uncompressed_agreement")
    writer = csv.DictWriter(file, [*names, *told, "verdict"], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {**asdict(row), **{name: getattr(row, name) for name in told}, "verdict": verdict(row)}
        )
    return file.getvalue()
