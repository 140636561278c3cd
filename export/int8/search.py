"""Find an int8 recipe: try recipes in order, in the engines, on validation photos.

The default quantization of TFLiteConverter and quantize_static moves probabilities 3 to 5 times as far.
benchmarks/int8.csv has the figures of these recipes and of others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import keras
import numpy as np
from numpy.typing import NDArray

from export.int8.gptq import gptq
from export.int8.quantize import Quantized, Recipe, quantize
from export.parity.gates import allowed_disagreements, broken_bounds
from export.parity.result import FileKey, ParityResult
from export.parity.runner import ParityReference, file_engine_pairs, limit_photos, run_parity
from export.time_left import ExportClock, quantize_key, validate_key

CALIBRATION_PHOTOS = 60  # of train: more photos change little and take 50 MB of memory each
VALIDATION_PHOTOS = 200  # of val, never of test
# Engines of one format compute the same codes, but for ties, and a slow one would take most of an export.
OTHER_ENGINES_PHOTOS = 50
AIM_AGREEMENT = 0.995
AIM_MAX_DP = 0.05

RECIPES = (
    Recipe("gptq-equalized", rounding=gptq, bias_correction=True, equalization=0.5),
    # For pictures that activate the last layer less than others do, such as grey ones.
    Recipe(
        "gptq-equalized, last layer too",
        rounding=gptq,
        bias_correction=True,
        equalization=0.5,
        equalize_last=True,
    ),
    Recipe("gptq", rounding=gptq, bias_correction=True),
    Recipe("nearest", bias_correction=True),
)

FULL_INT8_RECIPE = Recipe(
    "gptq-equalized, all layers",
    rounding=gptq,
    bias_correction=True,
    equalization=0.5,
    float_first=False,
    equalize_last=True,
)

Int8Converter = Callable[[keras.Model, Quantized], bytes]


@dataclass(frozen=True)
class Int8File:
    """An int8 file, before the contract is embedded."""

    data: bytes
    recipe: str  # the name of the chosen recipe


@dataclass(frozen=True)
class _Candidate:
    file: Int8File
    results: Sequence[ParityResult]

    @property
    def misses(self) -> list[str]:
        return [line for result in self.results if (line := _missed_aim(result))]

    @property
    def rank(self) -> tuple[float, ...]:
        """Lower is better: broken gates first, then photos that disagree, then the largest |Δp|."""
        return (
            sum(len(broken_bounds(result)) for result in self.results),
            max(result.disagreements for result in self.results),
            max(np.nan_to_num(result.max_dp, nan=np.inf) for result in self.results),
        )


def find_int8(
    model: keras.Model,
    converters: Mapping[str, Int8Converter],
    calibration: NDArray[np.uint8],
    validation: ParityReference,
    engines: Sequence[str] | None,
    clock: ExportClock,
) -> dict[str, Int8File]:
    """The int8 file of each format in `converters`.

    A format takes the first recipe that meets the aim in every engine: on all validation photos in its first
    engine, and on OTHER_ENGINES_PHOTOS of them in the others. If no recipe does, it takes the best one, and
    the gates on the test photos decide. `calibration` is uint8 [n, H, W, 3]. Raises QuantizeError.
    """
    accepted: dict[str, Int8File] = {}
    candidates: dict[str, list[_Candidate]] = {format: [] for format in converters}
    for recipe in RECIPES:
        remaining = [format for format in converters if format not in accepted]
        if not remaining:
            break
        clock.time_left.add(clock.workload.recipe_tasks(recipe.name, remaining))
        key = quantize_key(recipe.name)
        with clock.stage(f"int8 recipe {recipe.name}", "layer runs", [key]) as step:
            quantized = quantize(model, calibration, recipe, partial(step, key))
        for format in remaining:
            with clock.conversion(FileKey(format, "int8"), recipe.name):
                data = converters[format](model, quantized)
            results = _validate(recipe.name, format, data, validation, engines, clock)
            candidate = _Candidate(Int8File(data, recipe.name), results)
            candidates[format].append(candidate)
            outcome = "; ".join(candidate.misses) or "accepted"
            print(f"int8 {format}, recipe {recipe.name}: {_figures(results)}: {outcome}", flush=True)
            if not candidate.misses:
                accepted[format] = candidate.file
    for format in converters:
        if format not in accepted:
            accepted[format] = min(candidates[format], key=lambda candidate: candidate.rank).file
            print(
                f"int8 {format}: no recipe reaches the aim; the gates now check the best one, "
                f"{accepted[format].recipe}",
                flush=True,
            )
    return {format: accepted[format] for format in converters}


def _validate(
    recipe: str,
    format: str,
    data: bytes,
    validation: ParityReference,
    engines: Sequence[str] | None,
    clock: ExportClock,
) -> list[ParityResult]:
    file = FileKey(format, "int8")
    first, *others = (engine for _, engine in file_engine_pairs([file], engines))
    keys = {engine: validate_key(recipe, format, engine) for engine in (first, *others)}
    few = limit_photos(validation, OTHER_ENGINES_PHOTOS)
    with clock.stage(f"int8 {format} on val", "inferences", list(keys.values())) as step:

        def compare(photos: ParityReference, engines: Sequence[str]) -> list[ParityResult]:
            return run_parity({file: data}, photos, engines, lambda file, engine: step(keys[engine], 1))

        return compare(validation, [first]) + (compare(few, others) if others else [])


def _missed_aim(result: ParityResult) -> str:
    """How a result misses the aim; empty if it does not.

    The aim is stricter than the gates on labels and probabilities. `known` and features have their gates.
    """
    misses = broken_bounds(result)
    if not result.error:
        misses += [f"max |Δp| over {AIM_MAX_DP:g}"] if result.max_dp > AIM_MAX_DP else []
        allowed = allowed_disagreements(result, AIM_AGREEMENT)  # one of few photos may be at a tie
        misses += [f"agreement under {AIM_AGREEMENT:.1%}"] if result.disagreements > allowed else []
    return f"{result.engine}: {', '.join(misses)}" if misses else ""


def _figures(results: Sequence[ParityResult]) -> str:
    least, dp = min(results, key=lambda result: result.agreement), max(result.max_dp for result in results)
    return f"agreement {least.agreement:.1%} of {least.n} photos, max |Δp| {dp:.3f}"
