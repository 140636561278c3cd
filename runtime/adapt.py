"""Adapts a model to its scene: `python -m runtime.adapt --none DIR`, with photos of none of the classes.

Writes a small correction next to the model, which classify, serve and Classifier use from then on. With
`--correction FILE` it is written to this file, which they use when it is named to them too. The model file
never changes, and `--reset` removes the correction.
"""

import argparse
import json
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from runtime.camera.flags import add_source_flag
from runtime.common.cli import EXIT_SOME_FAILED, ArgumentParser, duration, exit_process, run_cli
from runtime.common.errors import PictureError, UserError
from runtime.common.terminal import print_error, print_info, suppress_native_stderr
from runtime.common.text import align_columns, pluralize, printable
from runtime.inference.adaptation import (
    FEW_PHOTOS,
    Adaptation,
    SceneFeatures,
    check_adaptable,
    fit_correction,
)
from runtime.inference.classifier import Classifier
from runtime.inference.correction import (
    NONE,
    check_replaceable,
    correction_path,
    read_correction,
    write_correction,
)
from runtime.inference.model_options import add_model_options, classifier_options
from runtime.inference.prefetch import prefetch
from runtime.preprocess.photo_files import find_photo_files

DEFAULT_SECONDS = 60.0
FRAME_INTERVAL = 0.5  # seconds between two frames of the camera: nearer ones are nearly the same
MAX_PHOTOS = 2000  # keep the fit below 200 MB
MAX_LISTED = 5  # names of photos in a message


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 success, 1 some photos could not be read, 2 usage error, no model, nothing to fit."""
    warnings.filterwarnings("ignore", module="PIL")  # about a picture's tags, which the user cannot change
    return run_cli(lambda: _run(_parse_arguments(argv)))


def _run(arguments: argparse.Namespace) -> int:
    options = {**classifier_options(arguments), "correction": NONE, "learned": NONE}
    with nullcontext() if arguments.verbose else suppress_native_stderr():
        classifier = Classifier(arguments.model, **options)
    if classifier.engine_problem:
        print_info(f"warning: {classifier.engine_problem}")
    path = correction_path(classifier.model, arguments.correction)
    if arguments.show:
        return _show(classifier, path)
    if not arguments.dry_run:
        check_replaceable(path, arguments.correction)
    if arguments.reset:
        return _reset(path)
    if classifier.model.signature and not arguments.allow_correction:
        raise UserError(
            "this device accepts signed models only, and nobody signs corrections: to use one anyway, "
            "pass --allow-correction here and to classify and serve"
        )
    return _adapt(classifier, path, arguments)


def _adapt(classifier: Classifier, path: Path, arguments: argparse.Namespace) -> int:
    check_adaptable(classifier.model)
    statistics = classifier.model.read_statistics()
    if not arguments.json:
        print(printable(str(classifier)), flush=True)
    problems: dict[str, str] = {}
    if arguments.camera:
        sources = _camera_frames(arguments.camera, arguments.seconds)
    else:
        photos, problems = find_photo_files(arguments.none)
        sources = ((photo, photo) for photo in _thin_out(photos))
    scene = read_scene(classifier, sources, problems)
    if not scene.names:
        reason = "; ".join(f"{name}: {problem}" for name, problem in list(problems.items())[:MAX_LISTED])
        raise UserError(f"{reason or 'no frame arrived'}: give photos of none of the classes")
    for name, problem in problems.items():
        print_error(f"{name}: {problem}")
    adaptation = fit_correction(classifier.model.contract, statistics, scene)
    for line in _warnings(adaptation):
        print_info(f"warning: {line}")
    if not arguments.dry_run:
        if path.exists():
            print_info(f"{path}: the new correction, fitted to these photos only, replaces it")
        write_correction(path, adaptation.correction)
    written = None if arguments.dry_run else str(path)
    if arguments.json:
        print(json.dumps(_json_fields(adaptation, str(classifier.model.path), written, problems)))
    else:
        for line in _report(adaptation):
            print(printable(line))
        print(printable(_next_step(path, arguments)))
    return EXIT_SOME_FAILED if problems else 0


def read_scene(
    classifier: Classifier, sources: Iterable[tuple[str, Any]], problems: dict[str, str]
) -> SceneFeatures:
    """Returns the model's outputs for sources with their names, and adds unreadable ones to `problems`."""
    names: list[str] = []
    known: list[float] = []
    features: list[Any] = []
    pending: list[str] = []  # the names of the sources that prefetch has taken

    def remember(pairs: Iterable[tuple[str, Any]]) -> Iterator[Any]:
        for name, source in pairs:
            pending.append(name)
            yield source

    with prefetch(remember(sources), classifier.model.contract.input_size) as pictures:
        for picture in pictures:
            name = pending.pop(0)
            if isinstance(picture.pixels, PictureError):
                problems[name] = str(picture.pixels).removeprefix(f"{name}: ")
                continue
            output = classifier.infer(picture.pixels)
            names.append(name)
            known.append(output.known or 0.0)
            features.append(output.features)
    return SceneFeatures(names, np.array(known), np.array(features))


def _thin_out(photos: list[str]) -> list[str]:
    """Returns at most MAX_PHOTOS photos, evenly spaced."""
    if len(photos) <= MAX_PHOTOS:
        return photos
    print_info(f"uses {MAX_PHOTOS:,} of {len(photos):,} photos, evenly spaced")
    return [photos[at * len(photos) // MAX_PHOTOS] for at in range(MAX_PHOTOS)]


def _camera_frames(source: str, seconds: float) -> Iterator[tuple[str, Any]]:
    """Yields frames of a camera for a time, or to the end of a clip. Raises CameraError."""
    from runtime.camera.camera import Camera

    interval = max(FRAME_INTERVAL, seconds / MAX_PHOTOS)
    with Camera(source) as camera:
        print_info(f"{camera.name}: watching for {seconds:g} s; show none of the classes")
        last, until = 0, time.monotonic() + seconds
        while (started := time.monotonic()) < until:
            frame = camera.newest(last)
            if frame is not None:
                last = frame.number
                yield f"frame {frame.number}", frame.pixels
            elif camera.ended:
                return
            time.sleep(max(0.0, min(started + interval, until) - time.monotonic()))


def _warnings(adaptation: Adaptation) -> Iterator[str]:
    left_out = adaptation.left_out
    if left_out:
        more = f" and {len(left_out) - MAX_LISTED} more" if len(left_out) > MAX_LISTED else ""
        yield (
            f"left out, because the model is sure of a class: {', '.join(left_out[:MAX_LISTED])}{more}; "
            "check that they show none"
        )
    if adaptation.photos < FEW_PHOTOS:
        yield (
            f"the result of {pluralize(adaptation.photos, 'photo')} is not reliable: give "
            f"{FEW_PHOTOS} or more, better 50, in daylight and in the evening"
        )
    if 2 * adaptation.named_after > adaptation.photos:
        yield "most photos are still named: give more photos, or train again with them in a folder none"


def _report(adaptation: Adaptation) -> list[str]:
    rows = (
        ("", "before", "after"),
        (
            "photos of none of the classes that are named",
            f"{adaptation.named_before} of {adaptation.photos}",
            f"{adaptation.named_after} of {adaptation.photos}",
        ),
        (
            "photos of the classes that are rejected",
            f"{adaptation.rejected_before} of {adaptation.examples}",
            f"{adaptation.rejected_after} of {adaptation.examples}",
        ),
    )
    note = '"after" counts photos that the fit did not use (5-fold cross-validation)'
    return [*align_columns(rows), note]


def _next_step(path: Path, arguments: argparse.Namespace) -> str:
    if arguments.dry_run:
        return "nothing written (--dry-run)"
    if arguments.correction is not None:
        flag = f"--correction {path}"
        return f"wrote {path}: pass {flag} to classify and serve; --reset {flag} removes it"
    return f"wrote {path}: classify and serve use it from now on; --reset removes it"


def _json_fields(
    adaptation: Adaptation, model: str, written: str | None, problems: dict[str, str]
) -> dict[str, Any]:
    return {
        "model": model,
        "correction": written,
        "photos": adaptation.photos,
        "named": {"before": adaptation.named_before, "after": adaptation.named_after},
        "examples": adaptation.examples,
        "rejected": {"before": adaptation.rejected_before, "after": adaptation.rejected_after},
        "left_out": list(adaptation.left_out),
        "errors": problems,
    }


def _reset(path: Path) -> int:
    if not path.exists():
        print(printable(f"{path}: no correction to remove"))
        return 0
    path.unlink()
    print(printable(f"removed {path}: nothing is corrected"))
    return 0


def _show(classifier: Classifier, path: Path) -> int:
    if not path.exists():
        print(printable(f"{path}: no correction"))
        return 0
    print(printable(f"{path}: {read_correction(path, classifier.model.contract)}"))
    return 0


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m runtime.adapt",
        description="Let a model answer unknown for the scene in front of its camera. It learns from photos "
        "of the scene without the classes. Each run replaces the correction: give all photos at once.",
        epilog="Exit codes: 0 success, 1 some photos could not be read, 2 usage error, no model, or a "
        "correction that would reject too many photos of the classes.",
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument(
        "--none",
        nargs="+",
        metavar="DIR",
        help="photos of none of the classes, such as the empty scene: folders, files or patterns",
    )
    add_source_flag(task, "take such photos from a camera (SOURCE as in runtime.classify) for --seconds")
    task.add_argument("--show", action="store_true", help="print the correction that the model has")
    task.add_argument("--reset", action="store_true", help="remove the correction")
    parser.add_argument(
        "--seconds",
        type=duration,
        default=DEFAULT_SECONDS,
        metavar="TIME",
        help="duration of --camera (default: %(default)g)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the result, and write nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    parser.add_argument("-v", "--verbose", action="store_true", help="print the engine's own log")
    add_model_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.correction == NONE:
        parser.error("--correction takes the file to write here, not none")
    return arguments


if __name__ == "__main__":
    exit_process(main())
