"""The bounds that every exported file must pass."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from export.parity.result import ParityResult

MIN_PHOTOS = 250  # bounds on shares and percentiles apply from this many photos on
ALLOWED_SHARE = 0.02  # of photos with another answer, where a gate has no bound

FLOAT16_ARITHMETIC = "float16 arithmetic"  # no file, but a processor that computes in float16

# Of quantized files. Nearly all test photos are known, so a file whose `known` is always 1 changes few
# decisions; but it moves rejected photos by over a half.
MAX_DKNOWN = 0.5

PASSED, FAILED, TOO_FEW_PHOTOS = "passed", "failed", "too few photos"


@dataclass(frozen=True)
class Gate:
    """The bounds of one precision. None: no bound."""

    max_dp: float | None = None  # largest change of a probability
    max_dknown: float | None = None  # largest change of `known`
    max_dfeatures: float | None = None  # largest relative error of a photo's features
    p99_dp: float | None = None
    agreement: float | None = None  # smallest share of photos with the float32 model's top-1
    known_agreement: float | None = None  # smallest share of photos with its decision on unknown pictures
    top1_loss: float | None = None  # largest loss of top-1 accuracy, as a share
    next_step: str = ""  # the advice for a file that fails

    @property
    def needs_many_photos(self) -> bool:
        bounds = (self.p99_dp, self.agreement, self.known_agreement, self.top1_loss)
        return any(bound is not None for bound in bounds)


GATES: dict[str, Gate] = {
    "float32": Gate(
        max_dp=1e-4,
        max_dknown=1e-4,
        max_dfeatures=1e-3,
        next_step="the conversion changed the model; report this with the table",
    ),
    "float16": Gate(
        max_dp=5e-3,
        max_dknown=5e-3,
        max_dfeatures=0.02,
        next_step="float16 cannot represent these weights; export without --float16",
    ),
    "dynamic": Gate(
        max_dp=0.5,  # 0.1 for the smaller released network
        max_dknown=MAX_DKNOWN,
        max_dfeatures=0.2,
        agreement=0.98,
        next_step="export --int8, which is calibrated, or without --dynamic",
    ),
    FLOAT16_ARITHMETIC: Gate(
        max_dp=0.05,
        max_dfeatures=0.02,
        known_agreement=0.98,
    ),
    "int8": Gate(
        max_dp=0.25,
        max_dknown=MAX_DKNOWN,
        max_dfeatures=0.2,  # 0.04 for the released network, 0.13 for one of 8 channels per layer
        p99_dp=0.12,
        agreement=0.98,
        known_agreement=0.99,
        top1_loss=0.01,
        next_step="train on more photos, which calibration also uses, or export --float16 instead",
    ),
    # Its clients show a label, so the label and the decision must stay. Probabilities may move as far as by
    # the defaults of TFLiteConverter (docs/export-and-parity.md).
    "full_int8": Gate(
        max_dp=0.25,
        max_dknown=MAX_DKNOWN,
        max_dfeatures=0.2,
        p99_dp=0.06,
        agreement=0.99,
        known_agreement=0.99,
        top1_loss=0.01,
        next_step="train on more photos, which calibration also uses, or export --int8 without --full-int8",
    ),
}


def verdict(result: ParityResult) -> str:
    """PASSED, FAILED or TOO_FEW_PHOTOS: no bound is broken, but some bounds need MIN_PHOTOS photos."""
    if broken_bounds(result):
        return FAILED
    if result.n < MIN_PHOTOS and GATES[result.precision].needs_many_photos:
        return TOO_FEW_PHOTOS
    return PASSED


def failures(results: Iterable[ParityResult]) -> list[str]:
    """One line for each failed result: file, engine, broken bounds and the next step."""
    return [
        f"{result.format} {result.precision} in {result.engine}: {'; '.join(broken)}; {_next_step(result)}"
        for result in results
        if (broken := broken_bounds(result))
    ]


def broken_bounds(result: ParityResult) -> list[str]:
    """The bounds that a result breaks, each with its figure.

    A bound on the largest |Δp| applies to any number of photos. Bounds on shares and percentiles apply from
    MIN_PHOTOS photos on: with 40 photos, one photo is 2.5 %, and the 99th percentile is nearly the maximum.
    With fewer photos, the number of other answers is rounded up.
    """
    if result.error:
        return [result.error]
    gate = GATES[result.precision]
    broken = [f"a device would refuse it: {result.refusal}"] if result.refusal else []
    if gate.max_dp is not None and not result.max_dp <= gate.max_dp:
        broken.append(f"max |Δp| {result.max_dp:.2g} is over {gate.max_dp:g}")
    broken += _broken_known(result, gate)
    features = result.max_dfeatures
    if gate.max_dfeatures is not None and features is not None and not features <= gate.max_dfeatures:
        broken.append(f"features differ by {features:.2g} of their length, over {gate.max_dfeatures:g}")
    return broken + (_broken_rates(result, gate) if result.n >= MIN_PHOTOS else _broken_count(result, gate))


def _broken_known(result: ParityResult, gate: Gate) -> list[str]:
    broken = []
    moved, limit = result.max_dknown, gate.max_dknown
    if limit is not None and moved is not None and not moved <= limit:
        broken.append(f"max |Δ known| {moved:.2g} is over {limit:g}")
    allowed = allowed_disagreements(result, gate.known_agreement)
    if gate.known_agreement is not None and result.n >= MIN_PHOTOS:
        allowed = int((1 - gate.known_agreement) * result.n + 1e-9)
    if result.known_disagreements is not None and result.known_disagreements > allowed:
        broken.append(
            f"{result.known_disagreements} of {result.n} photos differ in the unknown decision "
            f"(limit {allowed})"
        )
    return broken


def _broken_count(result: ParityResult, gate: Gate) -> list[str]:
    allowed = allowed_disagreements(result, gate.agreement)
    if result.disagreements <= allowed:
        return []
    return [f"{result.disagreements} of {result.n} photos have another top-1 (limit {allowed})"]


def _broken_rates(result: ParityResult, gate: Gate) -> list[str]:
    broken = []
    if gate.p99_dp is not None and not result.p99_dp <= gate.p99_dp:
        broken.append(f"99th percentile |Δp| {result.p99_dp:.3f} is over {gate.p99_dp:g}")
    if gate.agreement is not None and not result.agreement >= gate.agreement:
        broken.append(f"agreement {result.agreement:.1%} is under {gate.agreement:.1%}")
    loss = result.reference_top1 - result.top1
    # Compared in whole photos, because rounding could turn a loss of exactly the bound into a failure.
    if gate.top1_loss is not None and round(loss * result.n) > gate.top1_loss * result.n:
        broken.append(f"top-1 falls by {100 * loss:.1f} points, over {100 * gate.top1_loss:.1f}")
    return broken


def allowed_disagreements(result: ParityResult, agreement: float | None) -> int:
    """How many photos of a small number may have another answer."""
    share = ALLOWED_SHARE if agreement is None else 1 - agreement
    return math.ceil(share * result.n - 1e-9)


def _next_step(result: ParityResult) -> str:
    return "report it with the versions of both" if result.error else GATES[result.precision].next_step
