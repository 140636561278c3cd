"""Train a flower classifier, or one of anything else: a folder of photos in, a run folder out."""

from __future__ import annotations

import argparse
import atexit
import logging
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.common.errors import UserError
from runtime.common.terminal import suppress_native_stderr
from runtime.common.text import printable
from train.cache import CACHE_LIMIT, cache_folder
from train.cli import INTERRUPTED, run_cli
from train.data.class_weights import print_class_balance
from train.data.dataset import SPLITS, LeftOut, find_photos
from train.data.synthetic import SYNTHETIC_VERSION, draw_flowers
from train.data.tf_flowers import Unreachable, flower_photos
from train.features.ray_cluster import check, connected
from train.logs import TrainingLogger
from train.run_writer import (
    check_output_dir,
    checkpoint_dir,
    new_run_dir,
    package_versions,
    print_summaries,
    write_charts,
    write_record,
)
from train.settings import FIRST_TRAINED_BLOCK, Settings, add_flags, settings_from_flags

if TYPE_CHECKING:
    pass

NEEDED = "training needs, in a clone of this project: pip install '.[train]'"
DRAWN_PER_CLASS = 60  # pictures drawn when there is no photo and no --limit: about half a minute's work


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0 done, 2 a usage error, 130 stopped by Ctrl-C."""
    arguments = _parse(argv)

    def run() -> int:
        settings = settings_from_flags(arguments)
        started = datetime.now(timezone.utc)
        arguments.out = arguments.out or Path("runs") / f"{started:%Y%m%d-%H%M%S}-{settings.recipe}"
        return train(
            arguments.photos,
            settings,
            arguments.out,
            arguments.weights,
            arguments.overwrite,
            arguments.resume,
            arguments.cache,
            arguments.cache_limit,
            arguments.dry_run,
            arguments.logs,
            arguments.ray,
        )

    return run_cli(run, NEEDED, lambda: _left_by_ctrl_c(arguments.out))


def train(
    photos: Path | None,
    settings: Settings,
    out: Path,
    weights: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    cache: str | None = None,
    cache_limit: int = CACHE_LIMIT,
    dry_run: bool = False,
    logs: Path | None = None,
    ray: str | None = None,
) -> int:
    """Photos → features of the frozen layers → a trained head, maybe fine-tuned blocks → a run folder."""
    started = datetime.now(timezone.utc)
    overwrite = check_output_dir(out, overwrite, resume, dry_run)
    if ray:
        check(ray)  # before the photos are hashed
    dataset = find_photos(
        photos or _flowers(settings.limit),
        split_seed=settings.split_seed,
        val_share=settings.val_share,
        test_share=settings.test_share,
        limit=settings.limit,
    )
    counts = ", ".join(f"{len(dataset.split(split)):,} {split}" for split in SPLITS)
    classes = f"{len(dataset.classes)} classes: {', '.join(dataset.classes)}"
    print(printable(f"photos: {dataset.root}: {counts}; {classes}"))
    _tell_left_out(dataset.left_out)
    print_class_balance(dataset, settings.class_weight)

    # Here and not at the top: what is wrong with the photos is told before TensorFlow's five seconds of
    # start.
    with suppress_native_stderr():
        import keras
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of models that are made anew

    from runtime.preprocess.picture import PICTURE_VERSION
    from train.data.near_duplicates import check_near_duplicates, write_pairs
    from train.distributed import PROCESSES_VARIABLE, check_same_inputs, init_distributed, shutdown
    from train.dry_run import print_plan
    from train.evaluation import calibrate_and_evaluate
    from train.features.extraction import extract, find_devices, survey
    from train.finetune import fine_tune, upper_blocks
    from train.network.heads import build_classifier
    from train.network.vgg import POOLS, read_weights
    from train.report.report import write_report
    from train.train_head import train_head

    share = init_distributed()
    base = read_weights(weights)
    asked = settings, resume, dry_run
    check_same_inputs(share, {"photos": dataset.sha256, "weights": base.sha256, "settings": repr(asked)})
    if share.processes > 1 and resume:
        shutdown(share)
        raise UserError(f"--resume goes on in one process; give it without {PROCESSES_VARIABLE}")
    cache_at = _features_folder(cache)
    tuned = settings.fine_tune != "none"
    views = max(settings.views, settings.fine_tune_views if tuned else 1)
    layer = POOLS[FIRST_TRAINED_BLOCK[settings.fine_tune] - 2]  # of the block below
    with connected(ray) if ray else nullcontext() as cluster:
        devices = cluster.devices if cluster else find_devices()
        device = f"{', '.join(devices.names)}, {devices.dtype}, on {keras.backend.backend()}"
        device += f", {cluster}" if cluster else ""
        print(f"device: {device}")
        if dry_run:
            shutdown(share)
            work = survey(dataset, base, cache_at, views=views, layer=layer, devices=devices)
            print_plan(dataset, work, base, devices, settings)
            print(printable(f"would write: {out}"))
            return 0
        dataset, alike = check_near_duplicates(dataset, cache_at, settings.near_duplicates)
        log = TrainingLogger(None if share.process else logs, out)
        features = extract(
            dataset,
            base,
            cache_at,
            views=views,
            layer=layer,
            devices=devices,
            limit=cache_limit,
            cluster=cluster,
        )
    _tell_left_out(features.dataset.left_out, dataset.left_out)
    dataset = features.dataset
    val, test = features.of("val"), features.of("test")
    train_features = features.of("train", settings.views)
    kept = None if share.process else checkpoint_dir(out)
    if kept:
        if not resume:
            shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(exist_ok=True)  # before the first whole epoch too, --resume goes on with the run
    blocks = upper_blocks(base, settings)
    fitted = train_head(train_features, val, len(dataset.classes), settings, blocks, kept, log.log_epoch)
    history: list[Mapping[str, object]] = [{"stage": "head", **row} for row in fitted.history]
    if tuned and not fitted.interrupted:
        seen = features.of("train", settings.fine_tune_views)
        fitted, base = fine_tune(
            fitted, seen, val, len(dataset.classes), base, settings, kept, log.log_epoch, share
        )
        history += [{"stage": settings.fine_tune, **row} for row in fitted.history]

    if not fitted.interrupted:  # the others are at work still
        shutdown(share)
    if share.process:  # the first one writes the run
        return INTERRUPTED if fitted.interrupted else 0
    measured = calibrate_and_evaluate(fitted, train_features, val, test, dataset.classes, settings.known)
    record = {
        "name": out.name,
        "created": started.isoformat(timespec="seconds"),
        "recipe": settings.recipe,
        "settings": asdict(settings) | {"weights": base.source},
        "base_sha256": base.sha256,
        "picture_version": PICTURE_VERSION,
        "versions": package_versions(),
        "device": device,
        "temperature": measured.temperature,
        "thresholds": measured.thresholds,
        "metrics": measured.summaries,
    }
    log.log_final(measured.summaries)
    with new_run_dir(out, overwrite) as folder:
        build_classifier(base, fitted.head, measured.novelty_model).save(folder / "model.keras")
        write_record(folder, record, dataset)
        write_pairs(alike, folder)
        write_charts(folder, history, fitted.history, measured.metrics, dataset.classes)
        write_report(
            folder / "report.html", record, dataset, history, measured.metrics, measured.probabilities, alike
        )
    if fitted.interrupted:
        planned = settings.fine_tune_epochs if len(history) > len(fitted.history) else settings.epochs
        goes_on = f"--out {shlex.quote(str(out))} --resume goes on"
        stopped = f"stopped after {len(fitted.history)} of {planned} epochs; the best so far is kept"
        print(printable(f"{stopped}, and {goes_on}"))
    elif kept:
        shutil.rmtree(kept, ignore_errors=True)
    print_summaries(measured.summaries)
    print(printable(f"report: {out / 'report.html'}"))
    print(printable(f"run: {out}{' (synthetic: trained on drawings)' if dataset.synthetic else ''}"))
    print(printable(f"next: python -m export {shlex.quote(str(out))} --int8"))
    return INTERRUPTED if fitted.interrupted else 0


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
        "--resume",
        action="store_true",
        help="go on from the last whole epoch of a run of the same --out that was stopped or killed",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="tell what would be trained, on what, and for how long, and train nothing",
    )
    parser.add_argument(
        "--cache",
        metavar="DIR|none",
        help="where features are kept (~/.cache/vgg-edge); `python -m train.cache` tells and clears it",
    )
    parser.add_argument(
        "--cache-limit",
        type=_gigabytes,
        default=CACHE_LIMIT,
        metavar="GB",
        help=f"of what it keeps, the features used longest ago give way ({CACHE_LIMIT / 1e9:.0f})",
    )
    parser.add_argument(
        "--logs",
        type=Path,
        metavar="DIR",
        help="keep history.csv and TensorBoard's event files, epoch by epoch, in DIR, a folder a run",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS|local",
        help="compute features over a Ray cluster, HOST:PORT of its head; local starts one of this machine",
    )
    parser.add_argument(
        "--weights",
        metavar="PATH|imagenet",
        help="the base's weights: .safetensors, Keras's .h5, or Keras's own download (the bundled ones)",
    )

    add_flags(parser)
    arguments = parser.parse_args(argv)
    if arguments.resume and not arguments.out:
        parser.error("--resume goes on with a run that was stopped; give its --out too")
    return arguments


def _gigabytes(text: str) -> int:
    """Bytes."""
    try:
        found = round(float(text) * 1e9)
    except (ValueError, OverflowError):
        found = 0
    if found <= 0:
        raise argparse.ArgumentTypeError(f"{text} is no size in GB, such as 20")
    return found


def _left_by_ctrl_c(out: Path | None) -> str:
    if out and checkpoint_dir(out).is_dir():
        how = f"with --out {shlex.quote(str(out))} --resume the same command goes on from what is done"
    else:
        how = "the same command goes on from the features kept"
    return f"no run is written; {how}"


def _features_folder(cache: str | None) -> Path:
    """Where features are kept; for "none", a folder that is gone when Python ends."""
    if cache is None:
        return cache_folder("features")
    if cache == "none":
        folder = tempfile.mkdtemp(prefix="vgg-edge-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)
    return Path(cache)


def _flowers(limit: int | None) -> Path:
    """The tf_flowers photos or, with the network out of reach, drawn ones."""
    try:
        return flower_photos(cache_folder("photos"))
    except Unreachable as error:
        print(f"tf_flowers is out of reach ({error}): drawing flowers instead, the run is marked synthetic")
    count = limit or DRAWN_PER_CLASS
    return draw_flowers(cache_folder("photos") / f"drawn{SYNTHETIC_VERSION}-{count}", count)


def _tell_left_out(left_out: Sequence[LeftOut], told: Sequence[LeftOut] = ()) -> None:
    before = set(told)
    new = [item for item in left_out if item not in before]
    for item in new[:3]:
        print(printable(f"left out: {item.path}: {item.reason}"))
    if len(new) > 3:
        print(f"left out: {len(new) - 3:,} more; all are listed in left_out.csv")


if __name__ == "__main__":
    sys.exit(main())
