"""python -m train [PHOTOS]: photos in, a run folder out."""

from __future__ import annotations

import argparse
import csv
import json
import platform
import sys
from dataclasses import asdict, fields, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from train.cache import cache_folder
from train.dataset import Dataset, find_photos
from train.quiet import quiet_import
from train.run import RunError, new_folder, write_record
from train.settings import RECIPES, Settings

INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        return train(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the features computed so far are kept, the same command goes on from there", file=sys.stderr)
        return INTERRUPTED


def train(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    created = datetime.now(timezone.utc)
    out = arguments.out or Path("runs") / f"{created:%Y%m%d-%H%M%S}-{settings.recipe}"
    if out.exists() and not arguments.overwrite:
        raise RunError(f"{out} exists; give another --out, or --overwrite to replace it")
    dataset = choose_photos(arguments.photos, settings)
    describe(dataset)

    # Here and not above: a wrong path is told before the five seconds of TensorFlow's start.
    with quiet_import():
        import keras  # noqa: F401

    from runtime.picture import PICTURE_VERSION
    from train.backbone import read_weights
    from train.evaluate import evaluate
    from train.features import extract, find_devices
    from train.fit import fit
    from train.head import classifier
    from train.report import draw_confusion, draw_curves

    devices = find_devices()
    print(f"device: {', '.join(devices.names)} ({devices.dtype})")
    weights = read_weights(arguments.weights)
    features = extract(dataset, weights, cache_folder("features"), mirror=settings.mirror, devices=devices)
    dataset = features.dataset
    fitted = fit(features.of("train"), features.of("val"), len(dataset.classes), settings)
    metrics = {
        split: evaluate(fitted.model, *features.of(split), dataset.classes) for split in ("val", "test")
    }
    model = classifier(weights, fitted.layers, "vgg16")
    with new_folder(out, arguments.overwrite) as folder:
        model.save(folder / "model.keras")
        write_record(
            folder,
            {
                "name": out.name,
                "created": created.isoformat(timespec="seconds"),
                "recipe": settings.recipe,
                "settings": asdict(settings) | {"weights": weights.source},
                "base_sha256": weights.sha256,
                "picture_version": PICTURE_VERSION,
                "versions": versions(),
                "metrics": {split: brief(figures) for split, figures in metrics.items()},
            },
            dataset,
        )
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        with (folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(fitted.history[0]) if fitted.history else ["epoch"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(fitted.history)
        draw_curves(fitted.history, folder / "curves.png")
        for split in ("test", "val"):
            if figures := metrics[split]:
                draw_confusion(figures, dataset.classes, split, folder / "confusion.png")
                break
    for split, figures in metrics.items():
        if figures:
            print(f"{split}: top-1 {figures['top1']:.1%} of {figures['n']} photos, loss {figures['loss']:.3f}")
    print(f"run: {out}")
    print(f"next: python -m export {out} --int8")
    return INTERRUPTED if fitted.stopped else 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    parser.add_argument("photos", nargs="?", type=Path, metavar="PHOTOS")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--recipe", choices=RECIPES, default="pooled")
    parser.add_argument("--weights")
    parser.add_argument("--mirror", action=argparse.BooleanOptionalAction, default=None)
    for field in fields(Settings):
        if field.name not in ("recipe", "mirror"):
            kind = float if "float" in str(field.type) else int
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind)
    return parser.parse_args(argv)


def settings_of(arguments: argparse.Namespace) -> Settings:
    given = {field.name: getattr(arguments, field.name) for field in fields(Settings)}
    return replace(RECIPES[arguments.recipe], **{name: value for name, value in given.items() if value is not None})


def choose_photos(photos: Path | None, settings: Settings) -> Dataset:
    if photos is None:
        raise UserError("give a folder of photos")
    return find_photos(
        photos,
        split_seed=settings.split_seed,
        val_share=settings.val_share,
        test_share=settings.test_share,
        limit=settings.limit,
    )


def describe(dataset: Dataset) -> None:
    counts = ", ".join(f"{len(dataset.split(split)):,} {split}" for split in ("train", "val", "test"))
    print(f"photos: {dataset.root}: {counts}; {len(dataset.classes)} classes: {', '.join(dataset.classes)}")
    for item in dataset.left_out[:3]:
        print(f"left out: {item.path}: {item.reason}")


def brief(figures: Any) -> dict[str, Any] | None:
    return {key: figures[key] for key in ("n", "top1", "loss")} if figures else None


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("vgg-edge", "tensorflow", "keras", "numpy", "pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
