"""The stage of an export that builds its targets, with its report and its files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.output_dir import TARGETS_NAME
from export.parity.result import FileKey, ParityResult
from export.parity.runner import ParityReference, limit_photos
from export.targets.registry import TARGETS
from export.targets.target import CompiledTarget, TargetInput
from runtime.common.text import printable
from runtime.model_file.contract import Contract
from train.progress import Progress


@dataclass(frozen=True)
class ExportedModel:
    """The files, the outputs and the photos that the targets are built from."""

    contract: Contract
    files: Mapping[FileKey, bytes]  # with the contract inside
    reference: ParityReference  # on test photos
    results: Sequence[ParityResult]
    photos: Callable[[str, int], NDArray[np.uint8]]  # a split and a number → [n, H, W, 3]
    python: Path  # see TargetInput


def check_targets(names: Sequence[str], python: Path) -> None:
    """Raises UserError for the first target whose compiler is missing."""
    for name in names:
        TARGETS[name].check(python)


def build_targets(names: Sequence[str], model: ExportedModel) -> list[CompiledTarget]:
    """Compiles and compares each target. Raises UserError when a compiler or a simulator fails."""
    compiled = []
    for name in names:
        target = TARGETS[name]
        reference = limit_photos(model.reference, target.photos or len(model.reference.photos))
        source = TargetInput(
            name=name,
            file=target.file,
            data=model.files[target.file],
            contract=model.contract,
            reference=reference,
            results=model.results,
            photos=model.photos,
            python=model.python,
        )
        if target.photos:
            with Progress(f"target {name}", len(reference.photos), "photos") as progress:
                compiled.append(target.build(source, lambda: progress.step(1)))
        else:
            print(f"target {name}: compile", flush=True)
            compiled.append(target.build(source, lambda: None))
    return compiled


def targets_report(compiled: Sequence[CompiledTarget]) -> str:
    """A paragraph per target for a terminal."""
    return "\n\n".join(map(_paragraph, compiled))


def targets_failures(compiled: Sequence[CompiledTarget]) -> list[str]:
    """One line for each target that breaks a bound."""
    return [
        f"target {result.target}: {'; '.join(result.failures)}; {result.next_step}"
        for result in compiled
        if result.failures
    ]


def targets_files(compiled: Sequence[CompiledTarget]) -> dict[str, bytes]:
    """The compiled files by name, and targets.json; nothing without targets."""
    if not compiled:
        return {}
    files = {name: data for result in compiled for name, data in result.files.items()}
    return files | {TARGETS_NAME: json.dumps([_fields(result) for result in compiled], indent=1).encode()}


def _paragraph(result: CompiledTarget) -> str:
    lines = dict(result.report) | {"compared in": result.compared_in, "parity": parity_text(result.parity)}
    width = max(map(len, [*lines, "verdict"]))
    title = f"target {result.target}: {', '.join(result.files)} ({result.compiler})"
    rows = [f"  {name.ljust(width)}  {text}" for name, text in (lines | {"verdict": result.verdict}).items()]
    return "\n".join(map(printable, [title, *rows]))


def parity_text(parity: ParityResult) -> str:
    """The parity in one sentence."""
    if parity.error:
        return parity.error
    n, same = parity.n, parity.n - parity.disagreements
    text = f"{same} of {n} photos get the same label, max |Δp| {parity.max_dp:.4f}"
    if parity.known_disagreements is None:
        return text
    return f"{text}, {n - parity.known_disagreements} of {n} the same decision between known and unknown"


def _fields(result: CompiledTarget) -> dict[str, object]:
    parity = result.parity
    figures = {
        name: getattr(parity, name) for name in ("n", "top1", "agreement", "known_agreement", "max_dp")
    }
    return {
        "target": result.target,
        "compiler": result.compiler,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in result.files.items()},
        "report": dict(result.report),
        "compared_in": result.compared_in,
        "parity": {name: None if _is_nan(value) else value for name, value in figures.items()},
        "verdict": result.verdict,
    }


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
