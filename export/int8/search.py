"""The int8 files: recipes are tried in turn, on validation photos in the engines, until one holds.

The book's way (the defaults of TFLiteConverter or quantize_static) moves the probabilities three to five
times as far. What each recipe gave, those that did not pay too, is in benchmarks/int8.csv.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np
from numpy.typing import NDArray

from export import onnx as to_onnx
from export import tflite as to_tflite
from export.int8.quantize import Quantized, Recipe, conv_chain, quantize
from export.parity.parity import NoveltyReference, ParityResult, broken_bounds, inference_count, run_parity
from export.photos import Photos, read_photos
from export.serving_model import predict
from train.progress import Progress
from train.run import Run

CALIBRATION_PHOTOS = 60  # of train: more change little, and each takes 50 MB while it is at work
VALIDATION_PHOTOS = 200  # of val, never of test
AIM_AGREEMENT = 0.995
AIM_MAX_DP = 0.05

LADDER = (
    Recipe("gptq-equalized", rounding="gptq", bias_correction=True, equalization=0.5),
    Recipe("gptq", rounding="gptq", bias_correction=True),
    Recipe("nearest", bias_correction=True),
)

# By format: the float model and its quantized convolutions → the file's bytes.
INT8: dict[str, Callable[[keras.Model, Quantized], bytes]] = {"tflite": to_tflite.int8, "onnx": to_onnx.int8}


def build_int8(
    model: keras.Model, run: Run, formats: Sequence[str], engines: Sequence[str] | None = None
) -> dict[str, tuple[bytes, str]]:
    """By format, the int8 file and the name of the recipe that it took.

    A recipe is taken when it meets the aim in every engine. If none does, the best one is, and the gates on
    the test photos judge it. Raises PhotosError and QuantizeError.
    """
    size = (model.inputs[0].shape[1], model.inputs[0].shape[2])
    calibration = read_photos(run.dataset, "train", size, CALIBRATION_PHOTOS)
    validation = read_photos(run.dataset, "val", size, VALIDATION_PHOTOS)
    with Progress("keras on val", len(validation.pixels), "photos") as progress:
        reference = predict(model, validation.pixels, progress.step)
    known = NoveltyReference(reference["known"], run.thresholds["known"]) if "known" in reference else None

    taken: dict[str, tuple[bytes, str]] = {}
    tried: dict[str, list[tuple[tuple[float, ...], bytes, str]]] = {format: [] for format in formats}
    for recipe in LADDER:
        left = [format for format in formats if format not in taken]
        if not left:
            break
        with Progress(
            f"int8 {recipe.name}", len(conv_chain(model)) * len(calibration.pixels), "layers of photos"
        ) as progress:
            quantized = quantize(model, calibration.pixels, recipe, progress.step)
        for format in left:
            data = INT8[format](model, quantized)
            rows = _on_validation(format, data, reference["probabilities"], validation, engines, known)
            missed = [line for row in rows if (line := _missed(row))]
            print(
                f"int8 {format} {recipe.name}: {_figures(rows)}: {'; '.join(missed) or 'taken'}", flush=True
            )
            if missed:
                tried[format].append((_rank(rows), data, recipe.name))
            else:
                taken[format] = data, recipe.name
    for format in formats:
        if format not in taken:
            _, data, name = min(tried[format])
            print(
                f"int8 {format}: no recipe meets the aim; {name} comes nearest and goes to the gates",
                flush=True,
            )
            taken[format] = data, name
    return {format: taken[format] for format in formats}


def _on_validation(
    format: str,
    data: bytes,
    reference: NDArray[np.float32],
    photos: Photos,
    engines: Sequence[str] | None,
    known: NoveltyReference | None,
) -> list[ParityResult]:
    files = {(format, "int8"): data}
    with Progress(
        f"int8 {format} on val", inference_count(files, len(reference), engines), "inferences"
    ) as progress:
        return run_parity(files, reference, photos.pixels, photos.truth, engines, progress.step, known)


def _missed(row: ParityResult) -> str:
    """What keeps a row from the aim, or nothing. The aim lies within the gates."""
    if row.error:
        return f"{row.engine}: {row.error}"
    over = [f"max |Δp| over {AIM_MAX_DP:g}"] if row.max_dp > AIM_MAX_DP else []
    over += [f"agreement under {AIM_AGREEMENT:.1%}"] if row.agreement < AIM_AGREEMENT else []
    return f"{row.engine}: {', '.join(over)}" if over else ""


def _rank(rows: Sequence[ParityResult]) -> tuple[float, ...]:
    """Less is better: first what the gates refuse, then photos that disagree, then the worst |Δp|."""
    return (
        sum(len(broken_bounds(row)) for row in rows),
        max(row.disagreements for row in rows),
        max(np.nan_to_num(row.max_dp, nan=np.inf) for row in rows),
    )


def _figures(rows: Sequence[ParityResult]) -> str:
    agreement, dp = min(row.agreement for row in rows), max(row.max_dp for row in rows)
    return f"agreement {agreement:.1%}, max |Δp| {dp:.3f} on {rows[0].n} photos"
