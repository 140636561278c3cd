"""Train a flower classifier, or one of anything else: a folder of photos in, a run folder out."""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import UserError
from train.cache import cache_folder
from train.dataset import SPLITS, LeftOut, find_photos
from train.drawn import DRAWN_VERSION, draw_flowers
from train.flowers import Unreachable, flower_photos
from train.quiet import quiet_stderr
from train.run import RunError, new_folder, write_record
from train.settings import RECIPES, Settings

if TYPE_CHECKING:
    from train.evaluate import Figures
    from train.fit import Fitted

INTERRUPTED = 130  # what a shell reports of a command that Ctrl-C ended
DRAWN_PER_CLASS = 60  # pictures drawn when there is no photo and no --limit: about half a minute's work


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0 done, 2 a usage error, 130 stopped by Ctrl-C."""
    arguments = _parse(argv)
    settings = _settings(arguments)
    # A name that the terminal's encoding lacks is escaped, not fatal.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        return train(arguments.photos, settings, arguments.out, arguments.weights, arguments.overwrite)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: no run is written; the same command goes on from the features kept", file=sys.stderr)
        return INTERRUPTED


def train(
    photos: Path | None,
    settings: Settings,
    out: Path | None = None,
    weights: str | None = None,
    overwrite: bool = False,
) -> int:
    """Photos → features of the frozen base → a trained head → figures → a run folder."""
    started = datetime.now(timezone.utc)
    out = _free(out or Path("runs") / f"{started:%Y%m%d-%H%M%S}-{settings.recipe}", overwrite)
    dataset = find_photos(
        photos or _flowers(settings.limit),
        split_seed=settings.split_seed,
        val_share=settings.val_share,
        test_share=settings.test_share,
        limit=settings.limit,
    )
    counts = ", ".join(f"{len(dataset.split(split)):,} {split}" for split in SPLITS)
    print(f"photos: {dataset.root}: {counts}; {len(dataset.classes)} classes: {', '.join(dataset.classes)}")
    _tell_left_out(dataset.left_out)

    # Here and not at the top: what is wrong with the photos is told before TensorFlow's five seconds of
    # start.
    with quiet_stderr():
        import keras

    from runtime.picture import PICTURE_VERSION
    from train.backbone import read_weights
    from train.evaluate import evaluate
    from train.features import extract, find_devices
    from train.fit import fit
    from train.head import classifier

    devices = find_devices()
    device = f"{', '.join(devices.names)}, {devices.dtype}, on {keras.backend.backend()}"
    print(f"device: {device}")
    base = read_weights(weights)
    features = extract(dataset, base, cache_folder("features"), mirror=settings.mirror, devices=devices)
    _tell_left_out([item for item in features.dataset.left_out if item not in dataset.left_out])
    dataset = features.dataset
    fitted = fit(features.of("train"), features.of("val"), len(dataset.classes), settings)
    metrics = {
        split: evaluate(fitted.model, *features.of(split), dataset.classes) for split in ("val", "test")
    }
    record = {
        "name": out.name,
        "created": started.isoformat(timespec="seconds"),
        "recipe": settings.recipe,
        "settings": asdict(settings) | {"weights": base.source},
        "base_sha256": base.sha256,
        "picture_version": PICTURE_VERSION,
        "versions": _versions(),
        "device": device,
        "metrics": {split: _summary(figures) for split, figures in metrics.items()},
    }
    with new_folder(out, overwrite) as folder:
        classifier(base, fitted.layers).save(folder / "model.keras")
        write_record(folder, record, dataset)
        _write_figures(folder, fitted, metrics, dataset.classes)
    if fitted.stopped:
        print(f"stopped after {len(fitted.history)} of {settings.epochs} epochs; the best so far is kept")
    for split, figures in metrics.items():
        if figures is None:
            print(f"{split}: no photos, so nothing is known")
        else:
            print(
                f"{split}: top-1 {figures['top1']:.1%} of {figures['n']:,} photos, loss {figures['loss']:.3f}"
            )
    print(f"run: {out}{' (synthetic: trained on drawings)' if dataset.synthetic else ''}")
    print(f"next: python -m export {shlex.quote(str(out))} --int8")
    return INTERRUPTED if fitted.stopped else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    parser.add_argument(
        "photos",
        nargs="?",
        type=Path,
        metavar="PHOTOS",
        help="a folder of class folders, or one that holds train/ and test/ (val/ optional); "
        "without it the tf_flowers photos are downloaded",
    )
    parser.add_argument("--out", type=Path, metavar="RUN", help="the run folder (runs/TIME-RECIPE)")
    parser.add_argument("--overwrite", action="store_true", help="replace a run folder that is there already")
    parser.add_argument(
        "--recipe", choices=RECIPES, default="pooled", help="the head and its settings (pooled)"
    )
    parser.add_argument(
        "--weights",
        metavar="PATH|imagenet",
        help="the base's weights: .safetensors, Keras's .h5, or Keras's own download (the bundled ones)",
    )

    def setting(name: str, kind: Callable[[str], Any] | None, what: str) -> None:
        defaults = [str(getattr(recipe, name)) for recipe in RECIPES.values()]
        shown = (
            defaults[0]
            if len(set(defaults)) == 1
            else ", ".join(map(" ".join, zip(RECIPES, defaults, strict=True)))
        )
        how: dict[str, Any] = {"type": kind} if kind else {"action": argparse.BooleanOptionalAction}
        parser.add_argument(f"--{name.replace('_', '-')}", default=None, help=f"{what} ({shown})", **how)

    setting(
        "seed", _number(int, 0, 2**32 - 1), "of the head's first weights, the order of photos, and dropout"
    )
    setting("split_seed", _number(int, 0), "of the splits that the folder does not give")
    setting("val_share", _number(float, 0, 0.45), "of the training photos, to choose the best epoch on")
    setting("test_share", _number(float, 0, 0.45), "of the training photos, to measure the result on")
    setting("limit", _number(int, 1), "photos a class, of each split that is given, for a quick try")
    setting("mirror", None, "train on each photo's mirror image too")
    setting("epochs", _number(int, 1), "over the training photos")
    setting("batch", _number(int, 1), "photos a step")
    setting("learning_rate", _number(float, 0), "at the start; it falls to 0 by a cosine")
    setting("weight_decay", _number(float, 0), "of AdamW")
    setting("label_smoothing", _number(float, 0, 0.9), "share of a photo's label spread over all classes")
    setting("dropout", _number(float, 0, 0.9), "share of features dropped in a step")
    return parser.parse_args(argv)


def _number(kind: type[int] | type[float], low: float, high: float = float("inf")) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"{text} is not {f'{low} or more' if high == float('inf') else f'from {low} to {high}'}"
            )
        return value

    number.__name__ = "whole number" if kind is int else "number"  # argparse's word for it
    return number


def _settings(arguments: argparse.Namespace) -> Settings:
    given = {field.name: getattr(arguments, field.name) for field in fields(Settings)}
    return replace(
        RECIPES[arguments.recipe], **{name: value for name, value in given.items() if value is not None}
    )


def _free(out: Path, overwrite: bool) -> Path:
    if out.exists() and not (overwrite and (out / "run.json").exists()):
        what = "is not a run, so it is not replaced" if overwrite else "exists; --overwrite replaces it"
        raise RunError(f"{out} {what}, or give another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{out}: cannot be made there ({error.strerror}); give another --out") from None
    if not os.access(out.parent, os.W_OK):
        raise RunError(f"{out}: {out.parent} cannot be written; give another --out")
    return out


def _flowers(limit: int | None) -> Path:
    """The tf_flowers photos or, with the network out of reach, drawn ones."""
    try:
        return flower_photos(cache_folder("photos"))
    except Unreachable as error:
        print(f"tf_flowers is out of reach ({error}): drawing flowers instead, the run is marked synthetic")
    count = limit or DRAWN_PER_CLASS
    return draw_flowers(cache_folder("photos") / f"drawn{DRAWN_VERSION}-{count}", count)


def _tell_left_out(left_out: Sequence[LeftOut]) -> None:
    for item in left_out[:3]:
        print(f"left out: {item.path}: {item.reason}")
    if len(left_out) > 3:
        print(f"left out: {len(left_out) - 3:,} more; all are listed in left_out.csv")


def _write_figures(
    folder: Path, fitted: Fitted, metrics: dict[str, Figures | None], classes: tuple[str, ...]
) -> None:
    from train.report import draw_confusion, draw_curves

    (folder / "metrics.json").write_text(
        json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    columns = list(fitted.history[0]) if fitted.history else ["epoch"]
    with (folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(fitted.history)
    draw_curves(fitted.history, folder / "curves.png")
    draw_confusion(metrics, classes, folder / "confusion.png")


def _summary(figures: Figures | None) -> dict[str, float] | None:
    return {"n": figures["n"], "top1": figures["top1"], "loss": figures["loss"]} if figures else None


def _versions() -> dict[str, str]:
    """Of what a result can depend on."""
    found = {"python": platform.python_version()}
    for package in ("vgg-edge", "tensorflow", "keras", "numpy", "pillow"):
        # A clone may be run without being installed, and Keras without TensorFlow.
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


if __name__ == "__main__":
    sys.exit(main())
