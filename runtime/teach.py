"""Teaches a model on the device: `python -m runtime.teach LABEL PHOTO…`.

Keeps the photos and what was learned in a folder next to the model, which classify, serve and Classifier use
from then on. The model file never changes; `--undo` and `--reset` restore its answers.
"""

import argparse
import json
import shutil
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from runtime.common.cli import EXIT_SOME_FAILED, ArgumentParser, exit_process, megabytes, path_name, run_cli
from runtime.common.errors import ModelError, UserError
from runtime.common.terminal import print_error, print_info, suppress_native_stderr
from runtime.common.text import align_columns, pluralize, printable
from runtime.inference.classifier import Classifier
from runtime.inference.learned_state import (
    MAX_MB,
    STATE_NAME,
    LearnedState,
    describe_learning,
    read_state,
)
from runtime.inference.learning import Learned, count_removed, nothing_learned, pending_photos, reset, undo
from runtime.inference.model_options import add_model_options, add_reject_option, classifier_options
from runtime.inference.taught_photos import TaughtPhotos, folder_label, label_folder
from runtime.preprocess.photo_files import NONE_LABEL, SUFFIXES, find_photo_files
from runtime.preprocess.stored_photo import is_id


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 success, 1 some photos could not be read, 2 usage error, no model, nothing to learn."""
    warnings.filterwarnings("ignore", module="PIL")  # about a picture's tags, which the user cannot change
    return run_cli(lambda: _run(_parse_arguments(argv)))


def _run(arguments: argparse.Namespace) -> int:
    with nullcontext() if arguments.verbose else suppress_native_stderr():
        classifier = Classifier(arguments.model, **classifier_options(arguments))
    if classifier.engine_problem:
        print_info(f"warning: {classifier.engine_problem}")
    folder = classifier.learning_folder()
    if arguments.list:
        return _list(classifier, folder, arguments.json)
    if arguments.undo:
        return _undo(folder, arguments.json)
    if arguments.reset:
        return _reset(folder, arguments.json)
    if arguments.export:
        return _export(folder, arguments.export, arguments.json)
    return _teach(classifier, folder, arguments)


def _teach(classifier: Classifier, folder: Path, arguments: argparse.Namespace) -> int:
    problems: dict[str, str] = {}
    if not arguments.json:
        print(printable(str(classifier)), flush=True)
    started = time.perf_counter()
    if arguments.again:
        learned = classifier.learn(max_mb=arguments.max_mb)
    else:
        photos, problems = find_photo_files(arguments.photos)
        if not photos:
            raise nothing_learned(problems)
        learned = classifier.teach(arguments.label, photos, max_mb=arguments.max_mb)
    seconds = time.perf_counter() - started
    problems |= {
        f"{folder}: {name}" if is_id(name) else name: problem for name, problem in learned.problems.items()
    }
    for name, problem in problems.items():
        print_error(f"{name}: {problem}")
    for warning in learned.warnings:
        print_info(f"warning: {warning}")
    if arguments.json:
        fields = {**_state_fields(learned.state), "seconds": round(seconds, 2), "errors": problems}
        print(json.dumps({"model": str(classifier.model.path), "learned": str(folder), **fields}))
    else:
        for line in _report(learned, folder, seconds):
            print(printable(line))
    return EXIT_SOME_FAILED if problems else 0


def _report(learned: Learned, folder: Path, seconds: float) -> list[str]:
    state = learned.state
    photos = pluralize(len(state.photos), "photo")
    return [
        f"learned {photos} in {seconds:.1f} s: {describe_learning(state)}",
        *_table(state),
        '"unseen" counts the right answers of fits that did not use the photo (5-fold cross-validation)',
        f"wrote {folder}: classify and serve use it from now on; --undo restores the state before",
    ]


def _table(state: LearnedState) -> list[str]:
    """Returns a row for each label: photos that are right before, after, and unseen."""
    rows: list[tuple[str, ...]] = [("taught", "photos", "right before", "after", "unseen")]
    for label, result in state.measured.labels.items():
        counts = (result.photos, result.right_before, result.right_after, result.right_unseen)
        rows.append((f"{label} (new)" if label in state.new_labels else label, *map(str, counts)))
    return align_columns(rows)


def _list(classifier: Classifier, folder: Path, as_json: bool) -> int:
    store, state = TaughtPhotos(folder), classifier.learned
    photos = store.photos()
    pending, removed = len(pending_photos(state, photos)), count_removed(state, photos) if state else 0
    problem = classifier.learned_problem if (folder / STATE_NAME).exists() else ""
    if as_json:
        fields: dict[str, Any] = _state_fields(state) if state else {}
        fields |= {"kept": store.labels(), "pending": pending, "removed": removed, "problem": problem}
        print(json.dumps({"model": str(classifier.model.path), "learned": str(folder), **fields}))
        return 0
    lines = [f"{folder}: {state}", *_table(state)] if state else [f"{folder}: nothing learned"]
    if problem:
        lines = [*lines, problem] if state else [problem]
    if removed:
        lines.append(_removed_line(removed))
    if pending:
        counts = ", ".join(f"{label} {count}" for label, count in store.labels().items())
        lines.append(f"kept photos: {counts}; {pending} not learned yet: --again learns them")
    for line in lines:
        print(printable(line))
    return 0


def _undo(folder: Path, as_json: bool) -> int:
    if pending := _count_photos_after_state(folder):
        # Such as after a power cut: they would stay, and the step before them would be undone.
        raise UserError(
            f"{folder}: {pending} kept photos are not learned yet: --again learns them, and --undo then "
            "deletes them"
        )
    state = undo(folder)
    removed = count_removed(state, TaughtPhotos(folder).photos()) if state else 0
    if as_json:
        fields = {**_state_fields(state), "removed": removed} if state else {}
        print(json.dumps({"learned": str(folder), **fields}))
        return 0
    print(printable(f"{folder}: restored{f' the state {state}' if state else ': nothing is learned'}"))
    if removed:
        print(_removed_line(removed))
    return 0


def _removed_line(removed: int) -> str:
    return f"{removed} of these photos are no longer kept: the next step learns without them"


def _count_photos_after_state(folder: Path) -> int:
    """Returns the number of photos that were kept after the last step and are not learned."""
    with suppress(ModelError):  # a damaged state can be undone
        if state := read_state(folder):
            newest = max(state.photos, default="")  # a new id is larger, also after the clock was set back
            pending = pending_photos(state, TaughtPhotos(folder).photos())
            return sum(photo.id > newest for photo in pending)
    return 0


def _reset(folder: Path, as_json: bool) -> int:
    count = len(TaughtPhotos(folder).photos())
    reset(folder)
    if as_json:
        print(json.dumps({"learned": str(folder), "removed": count}))
    else:
        print(printable(f"{folder}: removed {pluralize(count, 'photo')}: nothing is learned"))
    return 0


def _export(folder: Path, target: Path, as_json: bool) -> int:
    """Copies the kept photos into class folders. Other photos that are there stay."""
    photos = TaughtPhotos(folder).photos()
    if not photos:
        raise UserError(f"{folder}: no photos are kept: teach some first")
    for photo in photos:
        path = target / label_folder(photo.label) / photo.id
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo.path, path)
    folders = {photo.id: label_folder(photo.label) for photo in photos}
    exported = [path for path in target.glob("*/*") if is_id(path.name) and folder_label(path.parent.name)]
    moved = [path for path in exported if folders.get(path.name, path.parent.name) != path.parent.name]
    for path in moved:
        path.unlink()  # of an earlier export: training leaves out a photo that is in two classes
    counts = TaughtPhotos(folder).labels()
    if as_json:
        print(json.dumps({"folder": str(target), "photos": counts}))
        return 0
    text = ", ".join(f"{label} {count}" for label, count in counts.items())
    print(printable(f"copied {pluralize(len(photos), 'photo')} to {target}: {text}"))
    if moved:
        print_info(f"{len(moved)} of them were in another class folder there, and were removed from it")
    if gone := len({path.name for path in exported} - folders.keys()):
        print_info(printable(f"warning: {target} has {gone} more photos, which are not kept here any longer"))
    return 0


def _state_fields(state: LearnedState) -> dict[str, Any]:
    measured = state.measured
    return {
        "created": state.created,
        "labels": list(state.labels),
        "new": list(state.new_labels),
        "taught": {label: vars(result) for label, result in measured.labels.items()},
        "examples": measured.examples,
        "right": {"before": measured.examples_right_before, "after": measured.examples_right_after},
    }


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m runtime.teach",
        description="Teach a model on this device, without training: name photos that it got wrong, and add "
        "classes. This takes seconds, and can be undone.",
        epilog="Exit codes: 0 success, 1 some photos could not be read, 2 usage error, no model, or nothing "
        "to learn.",
    )
    parser.add_argument(
        "label",
        nargs="?",
        metavar="LABEL",
        help=f"a class, a new class, or {NONE_LABEL} for photos of none of the classes",
    )
    parser.add_argument(
        "photos", nargs="*", metavar="PHOTO", help="photos of this label: files, folders or patterns"
    )
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--list", action="store_true", help="print the learned labels and the kept photos")
    task.add_argument(
        "--again", action="store_true", help="learn the kept photos again, such as for a new model"
    )
    task.add_argument("--undo", action="store_true", help="undo the last step, and delete its photos")
    task.add_argument("--reset", action="store_true", help="delete the learned state and the kept photos")
    task.add_argument(
        "--export",
        type=path_name,
        metavar="DIR",
        help="copy the kept photos into class folders, for training",
    )
    parser.add_argument(
        "--max-mb",
        type=megabytes,
        metavar="MB",
        help="limit of all kept files; at this limit, and at 3,000 photos, new photos replace the oldest "
        f"(default: {MAX_MB:g}, or the present size if it is larger)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    parser.add_argument("-v", "--verbose", action="store_true", help="print the engine's own log")
    add_reject_option(parser)
    add_model_options(parser)
    arguments = parser.parse_args(argv)
    has_task = any((arguments.list, arguments.again, arguments.undo, arguments.reset, arguments.export))
    if has_task == bool(arguments.label):
        parser.error("give either LABEL and photos, or --list, --again, --undo, --reset or --export DIR")
    if arguments.label and Path(arguments.label).suffix.lower() in SUFFIXES:
        parser.error(f"{arguments.label}: is a photo: give its label first, such as roses")
    if arguments.label and not arguments.photos:
        parser.error(f"{arguments.label}: give photos of this label")
    return arguments


if __name__ == "__main__":
    exit_process(main())
