"""Turn a trained run into deployable files, each proven equal to the trained model in a device's engines."""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.model_card import card
from export.output_dir import check_output_dir, replace_dir
from export.parity.parity import (
    MIN_PHOTOS,
    NoveltyReference,
    ParityResult,
    failures,
    file_engine_pairs,
    inference_count,
    run_parity,
    table,
    to_csv,
)
from export.photos import read_photos, select_photos
from export.sign import open_key
from export.tempdir import temporary_dir
from runtime.common.errors import ModelError, UserError
from runtime.common.terminal import print_error, suppress_native_stderr
from runtime.common.text import printable
from runtime.inference.engines import ENGINES, choose_engine, require_engine
from runtime.model_file.contract import CONTRACT_VERSION, RESIZE, Contract
from runtime.model_file.files import INDEX_NAME, SIGNATURE_NAME
from runtime.model_file.index import FORMATS, Index, IndexedFile, read_index
from train.cli import run_cli
from train.progress import Progress
from train.run import UNCOMPRESSED_CSV, Run, newest_run, open_run

if TYPE_CHECKING:
    import keras

NEEDED = "export needs, in a clone of this project: pip install '.[export]'"
NOT_PROVEN = 3


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0 done, 2 a usage error, 3 a file failed parity, 130 stopped."""
    arguments = _parse(argv)
    precisions = _precisions(arguments)
    return run_cli(
        lambda: export(
            arguments.run,
            precisions,
            arguments.out,
            arguments.engines,
            arguments.photos,
            arguments.keep,
            arguments.photos_root,
            arguments.sign,
        ),
        NEEDED,
        lambda: "nothing is exported, and nothing old is replaced",
    )


def export(
    run_folder: Path | None = None,
    precisions: Sequence[str] = ("float32",),
    out: Path | None = None,
    engines: Sequence[str] | None = None,
    limit: int | None = None,
    keep: Sequence[str] | None = None,
    photos_root: Path | None = None,
    signing_key: Path | None = None,
) -> int:
    """A run → its files, each with the contract inside → parity → models/NAME, or NAME.rejected."""
    if find_spec("tensorflow") is None:  # told before engines that are lacking: its extra brings those too
        raise ModuleNotFoundError(name="tensorflow")
    run = open_run(run_folder or newest_run(), photos_root)
    out = out or Path("models") / run.name
    rejected = out.with_name(f"{out.name}.rejected")
    check_output_dir(out)
    check_output_dir(rejected)
    _check_engines(engines)
    sign = (
        open_key(signing_key) if signing_key else None
    )  # the passphrase is asked for now, not after the work
    if "int8" in precisions and not run.dataset.split("val"):
        raise UserError(
            f"run {run.path}: has no val photos to choose an int8 recipe on; train with more photos a class, "
            "or export without --int8"
        )
    print(printable(f"run: {run.path}{' (synthetic: trained on drawings)' if run.synthetic else ''}"))

    # Here and not at the top: what is wrong so far is told before TensorFlow's five seconds of start.
    with suppress_native_stderr():
        import tensorflow  # noqa: F401

    from export.metadata import embed
    from export.serving_model import predict, serving_model

    model = serving_model(run)
    size = (model.inputs[0].shape[1], model.inputs[0].shape[2])
    contract = _contract(run, out.name, size)
    _check_readable(contract, precisions, run.path, out)
    count = min(limit or sys.maxsize, len(run.dataset.split("test")))
    with Progress("decode", count, "photos") as progress:
        photos = read_photos(run.dataset, "test", size, limit, progress.step)

    files: dict[tuple[str, str], bytes] = {}
    recipes: dict[tuple[str, str], str] = {}
    for key, (data, recipe) in _convert(model, run, precisions, engines).items():
        files[key], recipes[key] = embed(data, key[0], contract), recipe

    with Progress("keras", count, "photos") as progress:
        reference = predict(model, photos.pixels, progress.step)
    with Progress("parity", inference_count(files, count, engines), "inferences") as progress:
        said, known = reference["probabilities"], None
        if "known" in reference:
            known = NoveltyReference(reference["known"], run.thresholds["known"])
        rows = run_parity(
            files, said, photos.pixels, photos.truth, engines, progress.step, known, _uncompressed(run, limit)
        )
    print(table(rows))
    broken = failures(rows)

    if keep and not broken:
        files = {key: data for key, data in files.items() if f"{key[1]}.{key[0]}" in keep}
    contents = _contents(contract, run, files, recipes, rows)
    if broken:
        replace_dir(contents, rejected)
        for line in broken:
            print_error(line)
        kept = f"{out} is as it was" if out.exists() else f"{out} is not written"
        print_error(f"{kept}; the rejected files are in {rejected}")
        return NOT_PROVEN
    if sign:
        contents[SIGNATURE_NAME] = sign(out.name, contents)
    replace_dir(contents, out)
    print(printable(f"model: {out}"))
    print(printable(f"next: python -m runtime.classify PHOTO --model {shlex.quote(str(out))}"))
    return 0


def _convert(
    model: keras.Model, run: Run, precisions: Sequence[str], engines: Sequence[str] | None
) -> dict[tuple[str, str], tuple[bytes, str]]:
    """By format and precision, the file's bytes and how it was quantized, if it was."""
    from export.formats import FLOAT_FORMATS

    made: dict[tuple[str, str], tuple[bytes, str]] = {}
    for (format, precision), convert in FLOAT_FORMATS.items():
        if precision in precisions:
            print(f"convert: {format} {precision}", flush=True)
            made[format, precision] = convert(model), ""
    if "int8" in precisions:
        from export.int8.search import build_int8

        for format, (data, recipe) in build_int8(model, run, FORMATS, engines).items():
            print(f"convert: {format} int8: {recipe}", flush=True)
            made[format, "int8"] = data, recipe
    return made


def _uncompressed(run: Run, limit: int | None) -> NDArray[np.int64] | None:
    """By the photos of read_photos, the top-1 of the model that the run was compressed from, if it was."""
    said = run.uncompressed_labels()
    photos = select_photos(run.dataset.split("test"), limit)
    try:
        return np.array([run.classes.index(said[photo.path]) for photo in photos]) if said else None
    except (KeyError, ValueError) as error:
        raise UserError(f"run {run.path}: {UNCOMPRESSED_CSV} lacks {error}; compress it again") from None


def _check_engines(engines: Sequence[str] | None) -> None:
    """Each format needs an engine to be proven in. Raises EngineError."""
    for engine in engines or ():
        require_engine(engine)
    for format in FORMATS:
        if not file_engine_pairs([(format, "float32")], engines):
            if engines is not None:
                raise UserError(f"--engines {' '.join(engines)}: none of them runs {format} files; add one")
            choose_engine(format)  # says what to install


def _contract(run: Run, name: str, size: tuple[int, int]) -> Contract:
    versions = dict(run.versions)
    for package in ("tensorflow", "tf2onnx", "onnx", "litert-quantizer"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return Contract(
        version=CONTRACT_VERSION,
        name=name,
        labels=run.classes,
        input_size=size,
        resize=RESIZE,
        thresholds=run.thresholds,
        base_sha256=run.base_sha256,
        data_sha256=run.data_sha256,
        versions=versions,
        created=f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
        synthetic=run.synthetic,
    )


def _check_readable(contract: Contract, precisions: Sequence[str], run: Path, out: Path) -> None:
    """What is to be written must open on a device: told before the work. Raises UserError."""
    if reason := _refusal(Index(replace(contract, name="model"), ())):  # whatever --out is called
        raise UserError(_unfit(run, reason))
    files = (
        IndexedFile(_file_name(contract, format, precision), format, precision, 0, "", {})
        for format in FORMATS
        for precision in precisions
    )
    if reason := _refusal(Index(contract, tuple(files))):
        raise UserError(f"{out}: a model and its files are called after it: {reason}; give another --out")


def _refusal(index: Index) -> str:
    """Why a device would not read this index, by its own reader; nothing, when it would."""
    with temporary_dir() as folder:
        path = folder / INDEX_NAME
        path.write_bytes(index.to_json().encode("utf-8", "surrogatepass"))  # to be refused by that reader
        try:
            read_index(folder)
        except ModelError as error:
            return str(error).removeprefix(f"{path}: ")
    return ""


def _unfit(run: Path, reason: str) -> str:
    return (
        f"run {run}: no device would read its {INDEX_NAME}: {reason}; "
        "give its classes other names, or fewer and shorter ones, and train again"
    )


def _file_name(contract: Contract, format: str, precision: str) -> str:
    return f"{contract.name}_{precision}.{format}"


def _contents(
    contract: Contract,
    run: Run,
    files: Mapping[tuple[str, str], bytes],
    recipes: Mapping[tuple[str, str], str],
    rows: Sequence[ParityResult],
) -> dict[str, bytes]:
    """The whole folder, by file name."""
    from export.macs import macs

    names = {key: _file_name(contract, *key) for key in files}
    index = Index(
        contract,
        tuple(
            IndexedFile(
                file=names[key],
                format=key[0],
                precision=key[1],
                bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                metrics={
                    "macs": macs(data, key[0]),
                    **_metrics(recipes[key], [row for row in rows if (row.format, row.precision) == key]),
                },
            )
            for key, data in files.items()
        ),
    )
    if reason := _refusal(index):  # with all its figures it is longer than was foreseen
        raise UserError(_unfit(run.path, reason))
    text = card(index, run, rows, {name: recipes[key] for key, name in names.items()})
    return {
        **{names[key]: data for key, data in files.items()},
        INDEX_NAME: index.to_json().encode(),
        "parity.csv": to_csv(rows).encode(),
        "README.md": text.encode(),
    }


def _metrics(recipe: str, rows: Sequence[ParityResult]) -> dict[str, Any]:
    """What model.json says of a file: its recipe, and by engine what parity found."""
    names = ("n", "top1", "agreement", "uncompressed_agreement", "mean_dp", "p99_dp", "max_dp", "ms")
    figures = {
        row.engine: {name: value for name in names if (value := getattr(row, name)) is not None}
        for row in rows
        if not row.error
    }
    return {"parity": figures} | ({"recipe": recipe} if recipe else {})


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m export", description=__doc__)
    parser.add_argument(
        "run", nargs="?", type=Path, metavar="RUN", help="a run folder (the newest under runs/)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the folder to write (models/ and the run's name)"
    )
    parser.add_argument("--int8", action="store_true", help="add int8 files, calibrated on the run's photos")
    parser.add_argument("--float16", action="store_true", help="add files with float16 weights")
    parser.add_argument("--dynamic", action="store_true", help="add a dynamic-range TFLite file")
    parser.add_argument("--all", action="store_true", help="all of these; float32 is always made")
    parser.add_argument(
        "--engines",
        nargs="+",
        choices=ENGINES,
        metavar="ENGINE",
        help=f"prove parity in these alone, of {', '.join(ENGINES)} (every one installed)",
    )
    parser.add_argument(
        "--photos",
        type=_positive,
        metavar="N",
        help=f"prove parity on N test photos, evenly over the classes (all); every gate needs {MIN_PHOTOS}",
    )
    parser.add_argument(
        "--photos-root",
        type=Path,
        metavar="DIR",
        help="where the run's photos are now, if not where they were when it was trained",
    )
    parser.add_argument(
        "--keep",
        nargs="+",
        metavar="FILE",
        help="write these alone once all are proven, such as int8.tflite, to keep a folder small",
    )
    parser.add_argument(
        "--sign",
        type=Path,
        metavar="KEY",
        help="sign the folder with this private key (PEM): devices that hold the public one can check it",
    )
    arguments = parser.parse_args(argv)
    if arguments.all:
        arguments.int8 = arguments.float16 = arguments.dynamic = True
    made = _precisions(arguments)
    files = {f"{precision}.{format}" for precision in made for format in FORMATS} - {"dynamic.onnx"}
    for name in arguments.keep or ():
        if name not in files:
            parser.error(f"--keep {name}: not made; made are float32.tflite, float32.onnx and what flags add")
    return arguments


def _precisions(arguments: argparse.Namespace) -> list[str]:
    """float32, and what the flags add."""
    return ["float32", *(name for name in ("float16", "dynamic", "int8") if getattr(arguments, name))]


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


if __name__ == "__main__":
    sys.exit(main())
