"""Export a trained run: convert it, compare every file with the trained model, and write a model folder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from export.contract import (
    ModelFacts,
    build_contract,
    check_contract,
    check_recorded_top1,
    next_release,
    run_statistics,
)
from export.model_folder import ExportedFile, model_folder
from export.operators import operators_report
from export.output_dir import check_output_dir, lock_output_dir, replace_dir
from export.parity.gates import FLOAT16_ARITHMETIC, failures
from export.parity.photo_counts import PhotoCounts, photo_counts
from export.parity.result import FileKey, ParityResult
from export.parity.runner import ParityReference, file_engine_pairs, limit_photos, run_parity
from export.parity.table import parity_report
from export.photos import Photos, read_photos, uncompressed_top1
from export.sign import Sign, open_key
from export.targets import stage
from export.targets.rk3588 import DEFAULT_PYTHON
from export.time_left import CALIBRATED, ExportClock, Task, compression_hint, parity_key, quantize_key
from runtime.common.errors import UserError
from runtime.common.terminal import print_error, suppress_native_stderr
from runtime.common.text import printable
from runtime.inference.engines import ENGINES, choose_engine, default_threads, require_engine
from runtime.model_file.contract import Contract
from runtime.model_file.files import SIGNATURE_NAME
from runtime.model_file.formats import FORMATS
from runtime.preprocess.picture import PICTURE_VERSION
from train.cli import require_packages
from train.progress import Progress
from train.run import Run, newest_run, open_run

if TYPE_CHECKING:
    import keras

    from export.parity.float16 import Float16Result
    from export.targets.target import CompiledTarget

SUCCESS, PARITY_FAILED = 0, 3
TFLITE_ONLY = ("dynamic", "full_int8")  # precisions without an ONNX file
FLOAT16_COST = 3.0  # one photo in float16 arithmetic, relative to the Keras model

# The packages of the extra `export`, by import name.
_PACKAGES = (
    "tensorflow",
    "tf2onnx",
    "onnx",
    "litert_quantizer",
    "flatbuffers",
    "ai_edge_litert",
    "onnxruntime",
)


@dataclass(frozen=True)
class ExportConfig:
    """The options of `python -m export`."""

    run: Path | None = None  # None: the newest run under runs/
    precisions: tuple[str, ...] = ("float32",)
    out: Path | None = None  # None: models/ and the name of the run
    engines: tuple[str, ...] | None = None  # None: all that are installed
    photos: int | None = None  # test photos to compare on; None: export/parity/photo_counts.py
    keep: tuple[str, ...] | None = None  # files to write, such as int8.tflite; None: all
    photos_root: Path | None = None  # None: where the photos were during training
    add: Path | None = None  # the same for the photos of --add
    signing_key: Path | None = None
    targets: tuple[str, ...] = ()  # of export.targets.registry
    target_python: Path = DEFAULT_PYTHON  # of the environment of rknn-toolkit2


@dataclass(frozen=True)
class _Job:
    """The checked options, with the run open."""

    config: ExportConfig
    run: Run
    out: Path
    files: tuple[FileKey, ...]  # to convert
    counts: PhotoCounts
    release: int  # of the contract
    sign: Sign | None

    @property
    def rejected(self) -> Path:
        return self.out.with_name(f"{self.out.name}.rejected")

    @property
    def formats(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(format for format, _ in self.files))


@dataclass(frozen=True)
class _Trained:
    """The trained model, its contract and statistics, and the test photos."""

    model: keras.Model
    contract: Contract
    statistics: bytes  # as each file holds them; maybe empty
    photos: Photos

    @property
    def size(self) -> tuple[int, int]:
        return self.contract.input_size


def export(config: ExportConfig) -> int:
    """Exports a run to a model folder. Returns the exit code: 0, or 3 if a file fails parity.

    After a failure the model folder stays as it was, and the files are in NAME.rejected. Raises UserError.
    """
    run = _open_run(config)
    out = config.out or Path("models") / run.name
    with lock_output_dir(out):
        return _export(_prepare(config, run, out))


def _export(job: _Job) -> int:
    config = job.config
    trained = _load(job)
    from export.parity.float16 import float16_failures  # loads onnx

    clock = _estimate(job, trained)
    reference = replace(
        _reference(job, trained, trained.photos, "test", clock),
        uncompressed=uncompressed_top1(job.run, job.counts.most),
        contract=trained.contract,
    )
    check_recorded_top1(job.run, reference.probabilities, reference.truth)
    files = _convert(job, trained, clock)
    results = _check_parity(job, reference, files, clock)
    float16 = _check_float16(trained, reference, files, clock)
    targets = _build_targets(job, trained, reference, results, files)
    failed = [*failures(results), *float16_failures(float16), *stage.targets_failures(targets)]
    written = [] if failed else [file for file in files if file.is_kept(config.keep)]
    names = {file.key: file.name for file in written}
    print(f"\n{parity_report(results, names, default_threads())}\n\n{float16.summary}\n")
    print(operators_report({file.key: file.data for file in files}), end="\n\n")
    if targets:
        print(stage.targets_report(targets), end="\n\n")
    contents = partial(
        model_folder, trained.contract, job.run, results=results, float16=float16.summary, targets=targets
    )
    if failed:
        return _reject(job, contents(files), failed)
    _write(job, contents(written), files)
    return SUCCESS


def file_keys(precisions: Sequence[str], engines: Sequence[str] | None) -> tuple[FileKey, ...]:
    """The files to make: each precision in each format that `engines` (None: every engine) support."""
    supported = FORMATS if engines is None else {ENGINES[engine].format for engine in engines}
    formats = [format for format in FORMATS if format in supported]
    keys = [FileKey(format, precision) for format in formats for precision in precisions]
    keys = [key for key in keys if key.format == "tflite" or key.precision not in TFLITE_ONLY]
    return tuple(
        sorted(keys, key=lambda key: CALIBRATED.index(key.precision) if key.precision in CALIBRATED else -1)
    )


def _open_run(config: ExportConfig) -> Run:
    """The run to export. Raises UserError for a missing package and for a run that cannot be exported."""
    require_packages(_PACKAGES, "train,export")
    stage.check_targets(config.targets, config.target_python)
    run = open_run(config.run or newest_run(), config.photos_root, added=config.add)
    if run.picture_version != PICTURE_VERSION:
        raise UserError(
            f"run {run.path}: was trained on pictures of version {run.picture_version}, and devices now make "
            f"pictures of version {PICTURE_VERSION}; train it again"
        )
    return run


def _prepare(config: ExportConfig, run: Run, out: Path) -> _Job:
    """Checks all that can be checked before TensorFlow is loaded, which takes seconds."""
    check_output_dir(out)  # first: the next lines read the folder
    job = _Job(
        config=config,
        run=run,
        out=out,
        files=file_keys(config.precisions, config.engines),
        counts=photo_counts(len(run.dataset.split("test")), config.photos, compressed=bool(run.compressed)),
        release=next_release(out),
        sign=open_key(config.signing_key) if config.signing_key else None,
    )
    check_output_dir(job.rejected)
    _check_engines(job)
    if "int8" in config.precisions and not run.dataset.split("val"):
        raise UserError(
            f"run {run.path}: has no val photos to choose an int8 recipe on; train with more photos per "
            "class, or export without --int8"
        )
    newest = "" if config.run else " (the newest run; to export another one: python -m export RUN)"
    print(printable(f"run: {run.path}{newest}"))
    if run.synthetic:
        print("note: this run was trained on generated pictures, not on photos")
    return job


def _check_engines(job: _Job) -> None:
    """Each format needs an engine to compare files in. Raises EngineError."""
    for engine in job.config.engines or ():
        require_engine(engine)
    for format in job.formats:
        choose_engine(format)  # its error names the package to install


def _load(job: _Job) -> _Trained:
    """Loads TensorFlow, the model and the test photos."""
    with suppress_native_stderr():
        import tensorflow  # noqa: F401 (here, because it takes 5 s to load)

    from export.serving_model import golden_answer, named_outputs, serving_model

    model = serving_model(job.run)
    size = (model.inputs[0].shape[1], model.inputs[0].shape[2])
    facts = ModelFacts(
        size,
        features=named_outputs(model)["features"].shape[-1],
        golden=golden_answer(model),
        statistics=run_statistics(job.run),
    )
    contract = build_contract(job.run, job.out.name, facts, job.release)
    check_contract(contract, job.files, job.run.path, job.out)
    with Progress("decode", job.counts.most, "photos") as progress:
        photos = read_photos(job.run.dataset, "test", size, job.counts.most, progress.step)
    return _Trained(model, contract, facts.statistics, photos)


def _estimate(job: _Job, trained: _Trained) -> ExportClock:
    """Prints how long the export takes, and how to make it quicker."""
    from export.estimate import measure_workload, print_estimate

    workload = measure_workload(
        job.run, trained.model, trained.photos.pixels, job.files, job.counts, job.config.engines
    )
    print_estimate(workload, job.files)
    return ExportClock(workload, workload.tasks(job.files))


def _convert(job: _Job, trained: _Trained, clock: ExportClock) -> list[ExportedFile]:
    """Every file, with the contract embedded."""
    from export.formats import FLOAT_CONVERTERS
    from export.int8.search import CALIBRATION_PHOTOS

    files = []
    precisions = {precision for _, precision in job.files}
    if precisions & set(CALIBRATED):  # first: a photo may be missing, and the conversions take minutes
        calibration = read_photos(job.run.dataset, "train", trained.size, CALIBRATION_PHOTOS).pixels
    for key in job.files:
        if key in FLOAT_CONVERTERS:
            with clock.conversion(key):
                data = FLOAT_CONVERTERS[key](trained.model)
            files.append(_exported(trained, key, data))
    if "int8" in precisions:
        files += _convert_int8(job, trained, calibration, clock)
    if "full_int8" in precisions:
        files += _convert_full_int8(job, trained, calibration, clock)
    return files


def _convert_int8(
    job: _Job, trained: _Trained, calibration: NDArray[np.uint8], clock: ExportClock
) -> list[ExportedFile]:
    """The int8 files. `calibration` is uint8 [n, H, W, 3]."""
    from export.formats import INT8_CONVERTERS
    from export.int8.search import VALIDATION_PHOTOS, find_int8

    validation = read_photos(job.run.dataset, "val", trained.size, VALIDATION_PHOTOS)
    reference = _reference(job, trained, validation, "validation", clock)
    converters = {format: INT8_CONVERTERS[format] for format in job.formats}
    found = find_int8(trained.model, converters, calibration, reference, job.config.engines, clock)
    return [
        _exported(trained, FileKey(format, "int8"), file.data, file.recipe) for format, file in found.items()
    ]


def _convert_full_int8(
    job: _Job, trained: _Trained, calibration: NDArray[np.uint8], clock: ExportClock
) -> list[ExportedFile]:
    """The full-int8 files. `calibration` is uint8 [n, H, W, 3]."""
    from export.formats import FULL_INT8_CONVERTERS
    from export.int8.quantize import quantize
    from export.int8.search import FULL_INT8_RECIPE

    recipe, task = FULL_INT8_RECIPE, quantize_key(FULL_INT8_RECIPE.name)
    with clock.stage(f"full-int8 recipe {recipe.name}", "layer runs", [task]) as step:
        quantized = quantize(trained.model, calibration, recipe, partial(step, task))
    files = []
    for key in (key for key in job.files if key.precision == "full_int8"):
        with clock.conversion(key):
            data = FULL_INT8_CONVERTERS[key.format](trained.model, quantized, calibration)
        files.append(_exported(trained, key, data, recipe.name))
    return files


def _exported(trained: _Trained, key: FileKey, data: bytes, recipe: str = "") -> ExportedFile:
    """A converted file, with the contract and the statistics embedded."""
    from export.metadata import embed_contract

    data = embed_contract(data, key.format, trained.contract, trained.statistics)
    return ExportedFile(trained.contract.name, key, data, recipe)


def _reference(
    job: _Job, trained: _Trained, photos: Photos, split: str, clock: ExportClock
) -> ParityReference:
    """The outputs of the trained model for these photos."""
    from export.serving_model import predict

    key = (f"{split} reference",)
    with clock.stage(f"trained model on {split} photos", "photos", [key]) as step:
        outputs = predict(trained.model, photos.pixels, lambda done: step(key, done))
    return ParityReference(
        photos.pixels,
        photos.truth,
        outputs["probabilities"],
        outputs.get("known"),
        job.run.thresholds.get("known", 0.0),
        outputs["features"],
    )


def _check_parity(
    job: _Job, reference: ParityReference, files: Sequence[ExportedFile], clock: ExportClock
) -> list[ParityResult]:
    """Runs each file in its engines on the test photos."""
    engines, counts = job.config.engines, job.counts
    data = {file.key: file.data for file in files}
    keys = [parity_key(file, engine) for file, engine in file_engine_pairs(data, engines)]
    with clock.stage("parity", "inferences", keys) as step:
        return [
            result
            for count in sorted({counts.of(file.precision) for file in data})
            for result in run_parity(
                {file: data[file] for file in data if counts.of(file.precision) == count},
                limit_photos(reference, count),
                engines,
                lambda file, engine: step(parity_key(file, engine), 1),
            )
        ]


def _check_float16(
    trained: _Trained, reference: ParityReference, files: Sequence[ExportedFile], clock: ExportClock
) -> Float16Result:
    """Runs the float32 model in float16 arithmetic on some of the test photos."""
    from export.formats import FLOAT_CONVERTERS
    from export.parity.float16 import PHOTOS, run_float16

    key = FileKey("onnx", "float32")
    data = {file.key: file.data for file in files}.get(key) or FLOAT_CONVERTERS[key](trained.model)
    task = (FLOAT16_ARITHMETIC,)
    seconds = FLOAT16_COST * clock.workload.photo_seconds
    clock.time_left.add({task: Task(min(PHOTOS, len(reference.photos)), seconds)})
    with clock.stage(task[0], "photos", [task]) as step:
        return run_float16(data, reference, partial(step, task))


def _build_targets(
    job: _Job,
    trained: _Trained,
    reference: ParityReference,
    results: Sequence[ParityResult],
    files: Sequence[ExportedFile],
) -> list[CompiledTarget]:
    """Compiles the files of --target, and compares each with the trained model."""

    def read(split: str, count: int) -> NDArray[np.uint8]:
        return read_photos(job.run.dataset, split, trained.size, count).pixels

    data = {file.key: file.data for file in files}
    model = stage.ExportedModel(trained.contract, data, reference, results, read, job.config.target_python)
    return stage.build_targets(job.config.targets, model)


def _reject(job: _Job, contents: Mapping[str, bytes], failed: Sequence[str]) -> int:
    """Writes the files to NAME.rejected and prints an error for each broken bound."""
    for line in failed:  # before the files: the disk may be full
        print_error(line)
    replace_dir(contents, job.rejected)
    state = f"{job.out} is unchanged" if job.out.exists() else f"{job.out} was not written"
    print_error(f"parity failed, so {state}; the rejected files are in {job.rejected}")
    return PARITY_FAILED


def _write(job: _Job, contents: dict[str, bytes], files: Sequence[ExportedFile]) -> None:
    """Replaces the model folder and prints the next steps."""
    if job.sign:
        contents |= {SIGNATURE_NAME: job.sign(job.out.name, contents)}
    replace_dir(contents, job.out)
    print(printable(f"model: {job.out}, release {job.release}"))
    if not job.run.compressed and set(CALIBRATED) & set(job.config.precisions):
        print(printable(compression_hint(job.run.path, max(file.macs for file in files))))
    print(printable(f"next: python -m runtime.classify PHOTO --model {shlex.quote(str(job.out))}"))
