"""Classifies photos, a camera's frames, or a folder's new photos: `python -m runtime.classify PHOTO…`."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from runtime.camera.flags import NEEDS_CAMERA, SAVES, add_camera_flags, add_save_flags
from runtime.common.cli import EXIT_SOME_FAILED, ArgumentParser, VersionAction, exit_process, run_cli
from runtime.common.errors import ModelError, PictureError, UserError
from runtime.common.terminal import print_error, print_info, suppress_native_stderr
from runtime.common.text import display_width, pad, printable
from runtime.inference.model_options import add_answer_options, add_model_options, classifier_options
from runtime.inference.prediction import Prediction, answer_columns, json_line
from runtime.inference.prefetch import DECODERS
from runtime.model_file.loader import KEY_VARIABLE, open_model
from runtime.model_file.releases import check_release
from runtime.preprocess.photo_files import find_photo_files
from runtime.publish.flags import PUBLISHES, add_publish_flags, check_publish_flags
from runtime.watch.flags import NEEDS_WATCH, add_watch_flags

if TYPE_CHECKING:
    from runtime.inference.classifier import Classifier
    from runtime.preprocess.decode import EncodedSource
    from runtime.preprocess.picture import Source

# Flags, the flags of which they need one, and how an error names these.
NEEDS = (
    (NEEDS_CAMERA, ("camera",), "--camera"),
    (NEEDS_WATCH, ("watch",), "--watch"),
    (SAVES, ("photos", "camera"), "photos or --camera"),
    (("new_class",), ("capture",), "--capture"),
    (PUBLISHES, ("camera", "watch"), "--camera or --watch"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 success, 1 some photos failed, 2 usage, no model, no engine, no camera."""
    warnings.filterwarnings("ignore", module="PIL")  # about a picture's tags, which the user cannot change
    return run_cli(lambda: _run(_parse_arguments(argv)))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.verify:
        return verify_signature(arguments)
    if arguments.camera:
        from runtime.camera.camera_cli import run_camera
        from runtime.camera.options import camera_options
        from runtime.inference.model_reloader import open_reloader

        return run_camera(camera_options(arguments), partial(open_reloader, arguments))
    if arguments.watch:
        from runtime.inference.model_reloader import open_reloader
        from runtime.watch.options import watch_options
        from runtime.watch.watch_cli import run_watch

        return run_watch(watch_options(arguments), partial(open_reloader, arguments))
    return classify_photos(arguments)


def classify_photos(arguments: argparse.Namespace) -> int:
    """Prints a line for each photo. Returns 1 if some could not be read or saved, else 0.

    Raises UserError.
    """
    saves = any(getattr(arguments, flag) for flag in SAVES)
    if saves:
        _check_saves(arguments)
    DECODERS.start_one()  # it is ready when numpy, the engine and the model are loaded
    classifier = _open_classifier(arguments)
    photos, problems = find_photo_files(arguments.photos)
    line: Callable[[Prediction], str]
    if arguments.json:
        line = json_line
        if arguments.verbose or classifier.model.reason:  # a choice by default is never silent
            print_info(str(classifier))
    else:
        print(printable(str(classifier)), flush=True)
        line = _table_line(photos, classifier.labels, arguments.verbose)

    def fail(name: str, reason: str) -> None:
        problems[name] = reason
        print_error(f"{name}: {reason}")
        if arguments.json:
            print(json.dumps({"source": name, "error": reason}), flush=True)

    for name, reason in list(problems.items()):
        fail(name, reason)
    sources, all_saved = [_source(name, saves) for name in photos], True
    with _open_recorders(arguments, classifier) if saves else nullcontext() as save:
        results = _predict_many(arguments, classifier, sources)
        for name, source, (_, result) in zip(photos, sources, results, strict=True):
            if isinstance(result, PictureError):
                fail(name, str(result).removeprefix(f"{name}: "))
                continue
            print(line(result), flush=True)
            if save:
                all_saved &= save(source, result)
    return 0 if all_saved and not problems else EXIT_SOME_FAILED


def _predict_many(
    arguments: argparse.Namespace, classifier: Classifier, sources: Sequence[EncodedSource]
) -> Iterator[tuple[Source, Prediction | PictureError]]:
    """Yields each source with its result. Several photos continue in a faster engine, if there is one."""
    if len(sources) < 2:
        return classifier.predict_many(sources)
    from runtime.inference.classifier import predict_many
    from runtime.inference.engine_timing import SwitchingClassifier

    on_detail = print_info if arguments.verbose else lambda line: None
    switching = SwitchingClassifier(
        classifier, arguments.model, classifier_options(arguments), on_detail=on_detail
    )
    return predict_many(switching.current, sources)


def _source(name: str, saves: bool) -> EncodedSource:
    """Returns what to classify. Standard input can be read once, so a picture to save is read here."""
    if name != "-":
        return name
    return sys.stdin.buffer.read() if saves else sys.stdin.buffer


def _check_saves(arguments: argparse.Namespace) -> None:
    from runtime.camera.options import save_options
    from runtime.camera.saving import check_save_options

    check_save_options(save_options(arguments))


@contextmanager
def _open_recorders(
    arguments: argparse.Namespace, classifier: Classifier
) -> Iterator[Callable[[EncodedSource, Prediction], bool]]:
    """Gives the function that saves a photo in the folders of the flags, and says whether it could.

    Raises UserError.
    """
    from runtime.camera.options import save_options
    from runtime.camera.saving import open_recorders, photo_pixels

    numbers = count(1)
    with open_recorders(save_options(arguments), classifier.model, 0.0, print_info) as save:
        yield lambda source, prediction: save(prediction, partial(photo_pixels, source), next(numbers), None)


def _open_classifier(arguments: argparse.Namespace) -> Classifier:
    """Returns the classifier for the flags, and prints what the user should know about it."""
    from runtime.inference.classifier import Classifier  # late: it loads numpy

    with nullcontext() if arguments.verbose else suppress_native_stderr():
        classifier = Classifier(arguments.model, **classifier_options(arguments))
    for problem in (classifier.engine_problem, classifier.correction_problem, classifier.learned_problem):
        if problem:
            print_info(f"warning: {problem}")
    if arguments.verbose:
        for detail in classifier.details():
            print_info(detail)
    return classifier


def verify_signature(arguments: argparse.Namespace) -> int:
    """Prints which key signed the model, and the state of each file.

    Raises ModelError if one differs, or is not signed.
    """
    model = open_model(arguments.model, key=arguments.key)
    if model.signature is None:
        raise UserError(f"--verify needs the signer's public key: --key PUBLIC.pem, or {KEY_VARIABLE}")
    if not arguments.allow_rollback:
        check_release(model)
    from runtime.model_file.signature import NOT_SIGNED, verify_files

    states = verify_files(model.signature)
    print(printable(f"{model.signature.path}: valid signature by the key {model.signature.key}"))
    name_width = max(display_width(printable(name)) for name in states)
    for name, state in states.items():
        print(f"  {pad(printable(name), name_width)}  {state}")
    if unsigned := [name for name, state in states.items() if state == NOT_SIGNED]:
        raise ModelError(
            f"{model.signature.path}: does not cover {', '.join(unsigned)}: remove what you did not add, or "
            "sign the folder again"
        )
    return 0


def _table_line(names: Sequence[str], labels: Sequence[str], verbose: bool) -> Callable[[Prediction], str]:
    """Returns a function that prints a prediction as one line; the lines of these names and labels align."""
    name_width = max((display_width(printable(name)) for name in names), default=0)
    columns = answer_columns(labels)

    def line(prediction: Prediction) -> str:
        times = ", ".join(f"{step} {ms:.0f} ms" for step, ms in prediction.ms.items()) if verbose else ""
        return "  ".join([pad(printable(prediction.source), name_width), *columns(prediction, times)])

    return line


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m runtime.classify",
        description="Classify photos, a camera's frames, or the photos that arrive in a folder.",
        epilog="Exit codes: 0 success, 1 some photos failed or the camera was lost, 2 usage error, no model, "
        "no engine, no camera.",
    )
    parser.add_argument(
        "photos",
        nargs="*",
        metavar="PHOTO",
        help="file, folder, pattern such as '*.jpg', or - for one picture on standard input",
    )
    add_model_options(parser)
    add_answer_options(parser)
    parser.add_argument(
        "--verify",
        action="store_true",
        help="check the model's signature and every file that it covers, without photos",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line, for programs")
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="print times, the choice of engine, the correction, what was learned, and the engine's own log",
    )
    parser.add_argument("--version", action=VersionAction, nargs=0, help="print the version and exit")
    add_camera_flags(parser)
    add_save_flags(parser)
    add_watch_flags(parser)
    add_publish_flags(parser)
    arguments = parser.parse_args(argv)
    _check_combination(parser, arguments)
    return arguments


def _check_combination(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if sum(map(bool, (arguments.photos, arguments.camera, arguments.watch, arguments.verify))) != 1:
        parser.error("give either photos, or --camera, or --watch DIR, or --verify")
    for flags, needed, text in NEEDS:
        for flag in flags:
            if getattr(arguments, flag) and not any(getattr(arguments, name) for name in needed):
                parser.error(f"--{flag.replace('_', '-')} needs {text}")
    check_publish_flags(parser, arguments)
    if any("://" in photo for photo in arguments.photos):  # not repeated here: it may hold a password
        parser.error("an address needs --camera")


if __name__ == "__main__":
    exit_process(main())
