"""Make a trained run a smaller one of the same kind: the same answers for a tenth of the multiplications.

    python -m train.compress RUN --reduce 10

Whole channels go, so every engine gains: which ones and how many of each layer is measured (train/budget.py),
what is left is solved to give what the whole network gives (train/prune.py), and then learns from the whole
network's answers (train/distill.py).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import logging
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.common.atomic import atomic_write
from runtime.common.errors import UserError
from runtime.common.terminal import suppress_native_stderr
from runtime.preprocess.picture import read_picture
from train.cli import INTERRUPTED, run_cli
from train.data.dataset import Dataset, Photo, read_verified
from train.logs import TrainingLogger
from train.progress import Progress
from train.run import PACKED_WEIGHTS, Run, RunError, open_run
from train.run_writer import (
    check_output_dir,
    checkpoint_dir,
    new_run_dir,
    package_versions,
    print_summaries,
    write_charts,
    write_record,
    write_uncompressed,
)
from train.settings import RECIPES, Settings

if TYPE_CHECKING:
    from train.compress.allocation import Original, Sensitivity
    from train.network.vgg import Weights

SIZES = (224, 192, 160, 128)  # pixels a side that --size auto chooses from
PROBE = 160  # pixels a side that sensitivities are measured at: they hold for the others
PROBED = 100  # photos that answers are seen to move on
# An int8 weight is a byte. Weights may shrink by this much less than multiplications do: with the tenth of
# these, a file has about 2.8 of 14.9 MB.
WEIGHTS = 1.8
REDUCTIONS = (2, 2.5, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64)  # that --target-ms tries
NEEDED = "compressing needs, in a clone of this project: pip install '.[export]'"


@dataclass(frozen=True)
class Compression:
    """What a compressed run depends on, beside the run it is made from."""

    reduce: float = 10.0  # times fewer multiplications than VGG16 at 224x224
    target_ms: float | None = None  # instead of `reduce`: the largest network of at most this latency
    engine: str = "litert"
    measured: str | None = None  # a CSV of another board's timings; None: those of this machine
    size: int | None = None  # pixels a side; None: of SIZES, where the least is lost
    photos: int = 600  # that layers are solved on
    views: int = 8  # of a training photo, as in train.settings
    epochs: int = 40  # of distillation; 0: reconstruction and a new head alone
    batch: int = 32
    learning_rate: float = 5e-4  # the highest
    seed: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0 done, 2 a usage error, 130 stopped by Ctrl-C."""
    arguments = _parse(argv)
    how = Compression(**{one.name: getattr(arguments, one.name) for one in fields(Compression)})
    return run_cli(
        lambda: compress(
            arguments.run,
            how,
            arguments.out,
            arguments.photos_root,
            arguments.overwrite,
            arguments.resume,
            arguments.logs,
        ),
        NEEDED,
        lambda: "no run is written; --resume goes on from what is done",
    )


def compress(
    run_folder: Path,
    how: Compression,
    out: Path | None = None,
    photos_root: Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    logs: Path | None = None,
) -> int:
    """A run → how many channels each layer keeps → their weights → what the run teaches them → a run."""
    started = datetime.now(timezone.utc)
    run = open_run(run_folder, photos_root)
    if run.compressed:
        raise RunError(
            f"run {run.path}: was compressed already, from {run.compressed['from']}; compress that"
        )
    board = read_board(Path(how.measured), how.engine) if how.measured else None
    out = out or Path("runs") / f"{run.name}-compressed"
    overwrite = check_output_dir(out, overwrite, resume)
    if out.resolve() == run.path.resolve():
        raise RunError(f"{out}: is the run to compress; give another --out")
    dataset = run.dataset
    with Progress("photos", len(dataset.photos), "photos") as progress:
        for photo in dataset.photos:
            read_verified(dataset, photo)
            progress.step(1)

    # Here and not at the top: what is wrong so far is told before TensorFlow's five seconds of start.
    with suppress_native_stderr():
        import keras
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of models that are made anew

    from train.compress.allocation import LAST, Original, macs, most_reduction, unreachable
    from train.compress.distillation import Distillation, distill
    from train.compress.pruning import reconstruct, shorten
    from train.compress.teacher_cache import collect_teacher_outputs, with_pooled_features
    from train.evaluation import calibrate_and_evaluate
    from train.features.extraction import find_devices
    from train.finetune import compute_dtype, view_schedule
    from train.network.heads import build_classifier
    from train.network.vgg import CONVOLUTIONS, Weights, tensors_of
    from train.report.report import write_report
    from train.train_head import train_head

    model = run.load_model()
    tensors = tensors_of(model.layers)
    own_size = model.input_shape[1]
    original = Original({name: len(tensors[f"{name}/bias"]) for name in CONVOLUTIONS}, own_size)
    if how.size and how.size > own_size:
        raise UserError(f"--size {how.size}: the run's own size is {own_size}; give that or a smaller size")
    smallest = how.size or min(sizes_up_to(own_size))
    if how.target_ms is None and how.reduce > most_reduction(smallest, original):
        raise UserError(unreachable(smallest, original))
    fingerprint = fingerprint_of(run, how)
    kept = _begin(out, fingerprint, resume)
    drawn = np.random.default_rng(how.seed).permutation(len(dataset.split("train")))[: how.photos]
    sample = [dataset.split("train")[at] for at in drawn]

    size, widths = _planned(kept, run, tensors, original, sample, how, board)
    reduced = original.macs / macs(widths, size)
    print(
        f"plan: {size}x{size} pixels, channels {' '.join(map(str, widths.values()))}: "
        f"{macs(widths, size) / 1e9:.2f} GMAC a photo, {reduced:.1f} times fewer"
    )

    views = {"train": how.views, "val": 1, "test": 1}
    total = sum(count * len(dataset.split(split)) for split, count in views.items())
    with Progress("lessons", total, "pictures") as progress:
        looks = with_pooled_features(model)
        lessons = {
            split: collect_teacher_outputs(dataset, split, count, size, looks, kept, progress.step)
            for split, count in views.items()
        }

    def solve() -> dict[str, NDArray[Any]]:
        pictures = read(dataset, sample, size)
        with Progress("reconstruct", len(CONVOLUTIONS) * len(pictures), "layers of photos") as progress:
            found, explained = reconstruct(tensors, pictures, widths, progress.step)
        least = min(explained, key=lambda name: explained[name])
        print(f"reconstructed: {explained[least]:.1%} of the variance before {least}'s ReLU, more elsewhere")
        shown = slice(0, len(dataset.split("train")))  # their first view
        pooled = features(Weights(found, "", ""), lessons["train"].pictures[shown], "all channels")
        wanted = pruning_targets(lessons["train"].features[shown], lessons["train"].probabilities[shown])
        return dict(shorten(found, pooled, wanted, widths[LAST]))

    solved = _kept_tensors(kept / "reconstructed.safetensors", solve)
    weights = Weights(solved, run.base_sha256, "compressed", (size, size))
    settings = _head_settings(run, how)
    labels = {split: of.labels for split, of in lessons.items()}
    count = min(settings.views, how.views) * len(dataset.split("train"))

    def seen(split: str) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Of the network as it is now: what the head takes, and the classes."""
        rows = slice(0, count if split == "train" else len(labels[split]))
        pooled = features(weights, lessons[split].pictures[rows], split)
        return pooled[:, np.newaxis, np.newaxis, :], labels[split][rows]

    log = TrainingLogger(logs, out)
    train, val = seen("train"), seen("val")
    fitted = train_head(
        train, val, len(dataset.classes), settings, checkpoint_dir=kept, on_epoch=log.log_epoch
    )
    history: list[Mapping[str, object]] = [{"stage": "head", **row} for row in fitted.history]
    last_stage = fitted.history
    stopped = fitted.interrupted
    if how.epochs and not stopped:
        order = view_schedule(len(dataset.split("train")), replace(settings, fine_tune_views=how.views))
        lesson = Distillation(
            how.epochs, how.batch, how.learning_rate, settings.weight_decay, how.seed, order
        )
        shown = train[0][: len(dataset.split("train")), 0, 0, :]
        weights, last_stage, stopped = distill(
            fitted, weights, shown, lessons["train"], lessons["val"], lesson, kept, fingerprint, log.log_epoch
        )
        history += [{"stage": "distill", **row} for row in last_stage]
        train, val = seen("train"), seen("val")
    measured = calibrate_and_evaluate(fitted, train, val, seen("test"), dataset.classes, settings.known)

    uncompressed = {split: of.probabilities.argmax(1) for split, of in lessons.items() if split != "train"}
    record = {
        "name": out.name,
        "created": started.isoformat(timespec="seconds"),
        "recipe": settings.recipe,
        "settings": asdict(settings) | {"weights": run.settings.get("weights")},
        "base_sha256": run.base_sha256,
        "picture_version": run.picture_version,
        "versions": package_versions(),
        "device": f"{', '.join(find_devices().names)}, {compute_dtype()}, on {keras.backend.backend()}",
        "temperature": measured.temperature,
        "thresholds": measured.thresholds,
        "metrics": measured.summaries,
        "compressed": {
            "from": run.name,
            **asdict(how),
            "size": size,
            "widths": widths,
            "macs": macs(widths, size),
            "of_macs": original.macs,
            "of_size": own_size,
            "uncompressed_top1": {
                split: float((said == labels[split]).mean()) if len(said) else None
                for split, said in uncompressed.items()
            },
        },
    }
    log.log_final(measured.summaries)
    with new_run_dir(out, overwrite) as folder:
        build_classifier(weights, fitted.head, measured.novelty_model).save(folder / "model.keras")
        write_record(folder, record, dataset)
        write_uncompressed(folder, dataset, uncompressed)
        write_charts(folder, history, measured.metrics, dataset.classes)
        write_report(
            folder / "report.html", record, dataset, history, measured.metrics, measured.probabilities
        )
    if stopped:
        print("stopped early; the best so far is kept, and --resume goes on")
    else:
        shutil.rmtree(kept, ignore_errors=True)
    print_summaries(measured.summaries)
    for split, top1 in record["compressed"]["uncompressed_top1"].items():  # type: ignore[index]
        if top1 is not None:
            print(f"{split}: the uncompressed model has {top1:.1%}")
    print(f"report: {out / 'report.html'}")
    print(f"run: {out}{' (synthetic: trained on drawings)' if dataset.synthetic else ''}")
    print(f"next: python -m export {shlex.quote(str(out))} --int8")
    return INTERRUPTED if stopped else 0


def features(weights: Weights, pictures: NDArray[np.uint8], what: str = "") -> NDArray[np.float32]:
    """The network's pooled features, float32 [n, D], for pictures uint8 [n, H, W, 3]."""
    import keras

    from train.network.vgg import base_layers, load_weights, picture_input

    image = picture_input((pictures.shape[1], pictures.shape[2]))
    base = base_layers(image, widths=weights.widths)
    model = keras.Model(image, keras.layers.GlobalAveragePooling2D()(base))
    load_weights(model, weights)
    found = np.empty((len(pictures), weights.widths["block5_conv3"]), np.float32)
    with Progress(f"features of {what}", len(pictures), "pictures") as progress:
        for start in range(0, len(pictures), 16):
            batch = np.asarray(pictures[start : start + 16])
            found[start : start + 16] = keras.ops.convert_to_numpy(model.predict_on_batch(batch))
            progress.step(len(batch))
    return found


def read_board(path: Path, engine: str) -> list[tuple[float, float]]:
    """(GMAC, ms) of models measured on another board, rising, from a CSV with columns engine, gmacs, ms.

    Raises UserError when it has no such row.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if (row.get("engine") or "").split(" ")[0] == engine]
        found = sorted((float(row["gmacs"]), float(row["ms"])) for row in rows)
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or f"{error!r}"
        raise UserError(
            f"--measured {path}: cannot be read ({reason}); its columns must be engine, gmacs, ms"
        ) from None
    if not found or not all(0 < number < float("inf") for row in found for number in row):
        raise UserError(f"--measured {path}: has no timing of {engine}; give another --engine or file")
    return found


def _planned(
    kept: Path,
    run: Run,
    tensors: Mapping[str, NDArray[Any]],
    original: Original,
    sample: Sequence[Photo],
    how: Compression,
    board: list[tuple[float, float]] | None,
) -> tuple[int, dict[str, int]]:
    """Pixels a side, and channels by convolution, as kept or made now."""
    file = kept / "plan.json"
    if file.exists():
        found = json.loads(file.read_text())
        return found["size"], found["widths"]
    sizes = (how.size,) if how.size else sizes_up_to(original.size)
    prices = price(run.dataset, tensors, original, sample, sizes)
    if how.target_ms is None:
        size, widths = cheapest(prices, how.reduce, original)
        for side, moved in prices.sizes.items():
            print(f"plan: {side}x{side} pixels alone move answers by {moved:.3f}")
    else:
        size, widths = _within(how, board, prices, len(run.classes), original)
    with atomic_write(file) as stream:
        stream.write(json.dumps({"size": size, "widths": widths}).encode())
    return size, widths


@dataclass(frozen=True)
class PruningCosts:
    """How far answers move, as mean squared distances of features of length 1: for fewer channels of a
    convolution, by its name, and for an input of fewer pixels, by its side.
    """

    channels: Mapping[str, Sensitivity]
    sizes: Mapping[int, float]


def price(
    dataset: Dataset,
    tensors: Mapping[str, NDArray[Any]],
    original: Original,
    sample: Sequence[Photo],
    sizes: Sequence[int],
) -> PruningCosts:
    """What channels and pixels cost: solved on `sample`, seen on photos of val."""
    from train.compress.pruning import pooled_features, sensitivities
    from train.network.vgg import CONVOLUTIONS

    val = dataset.split("val") or dataset.split("train")
    probe = min(PROBE, original.size)
    unseen = val[:: max(len(val) // PROBED, 1)][:PROBED]
    with Progress("sensitivity", len(CONVOLUTIONS) * len(sample), "layers of photos") as progress:
        channels = sensitivities(
            tensors, read(dataset, sample, probe), read(dataset, unseen, probe), progress.step
        )
    own = original.size
    whole = pooled_features(tensors, read(dataset, unseen, own))
    moved = {}
    for size in sizes:
        small = whole if size == own else pooled_features(tensors, read(dataset, unseen, size))
        moved[size] = float(np.square(small - whole).sum(1).mean())
    return PruningCosts(channels, moved)


def sizes_up_to(own: int) -> tuple[int, ...]:
    """The sizes that --size auto chooses from for a run of `own` pixels a side."""
    return tuple(size for size in SIZES if size <= own) or (own,)


def cheapest(
    prices: PruningCosts, reduce: float, original: Original | None = None
) -> tuple[int, dict[str, int]]:
    """Pixels a side and channels by convolution that move answers least. Raises UserError: see `plan`."""
    from train.compress.allocation import VGG16, parameters, plan

    original = original or VGG16
    most = original.macs / reduce, WEIGHTS * parameters(original.widths) / reduce
    found: list[tuple[float, int, dict[str, int]]] = []
    for size, moved in sorted(prices.sizes.items(), reverse=True):
        try:
            widths, cost = plan(prices.channels, size, *most, original)
        except UserError:
            if size == min(prices.sizes) and not found:
                raise
            continue
        found.append((moved + cost, size, widths))
    return min(found, key=lambda one: one[0])[1:]


def _within(
    how: Compression,
    board: list[tuple[float, float]] | None,
    prices: PruningCosts,
    classes: int,
    original: Original | None = None,
) -> tuple[int, dict[str, int]]:
    """The largest network of at most how.target_ms, by halving the list of reductions."""
    from export.latency import latency
    from train.compress.allocation import macs

    def takes(size: int, widths: Mapping[str, int]) -> float:
        if board is None:
            return latency(widths, size, classes, how.engine)
        gmacs, ms = zip(*board, strict=True)
        return float(np.interp(macs(widths, size) / 1e9, (0.0, *gmacs), (0.0, *ms)))

    assert how.target_ms is not None
    low, high, found = 0, len(REDUCTIONS), None
    while low < high:
        middle = (low + high) // 2
        size, widths = cheapest(prices, REDUCTIONS[middle], original)
        ms = takes(size, widths)
        print(f"plan: {REDUCTIONS[middle]:g} times fewer multiplications take {ms:.1f} ms in {how.engine}")
        if ms <= how.target_ms:
            found, high = (size, widths), middle
        else:
            low = middle + 1
    if found is None:
        raise UserError(
            f"--target-ms {how.target_ms:g}: even {REDUCTIONS[-1]:g} times fewer multiplications take "
            f"{ms:.1f} ms in {how.engine}; give a longer one"
        )
    return found


def fingerprint_of(run: Run, how: Compression) -> str:
    """Of all that a compressed run depends on."""
    file = run.path / (PACKED_WEIGHTS if (run.path / PACKED_WEIGHTS).exists() else "model.keras")
    told = [asdict(how), run.data_sha256, run.picture_version, hashlib.sha256(file.read_bytes()).hexdigest()]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _begin(out: Path, fingerprint: str, resume: bool) -> Path:
    """The folder of what is done so far, emptied unless it is of the same run and settings."""
    kept = checkpoint_dir(out)
    noted = kept / "fingerprint"
    if not (resume and noted.exists() and noted.read_text() == fingerprint):
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        noted.write_text(fingerprint)
    return kept


def read(dataset: Dataset, photos: Sequence[Photo], size: int) -> NDArray[np.uint8]:
    """The photos as recorded, uint8 [n, size, size, 3]. Raises PhotosError as `recorded`, PictureError."""
    with ThreadPoolExecutor() as pool:
        return np.stack(
            list(pool.map(lambda photo: read_picture(read_verified(dataset, photo), (size, size)), photos))
        )


def pruning_targets(taught: NDArray[Any], probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """What the last layer's channels are chosen by: the trained model's features and log-probabilities, each
    of the two with a variance of 1 in all.
    """
    from train.compress.pruning import unit

    parts = [unit(taught), np.log(np.maximum(probabilities, 1e-4))]
    return np.concatenate([part / np.sqrt(part.var(0).sum()) for part in parts], axis=1)


def _kept_tensors(file: Path, solve: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Those in the file, or `solve`d now and kept there."""
    from safetensors.numpy import load, save

    if file.exists():
        return dict(load(file.read_bytes()))
    found = {name: np.ascontiguousarray(value, np.float32) for name, value in solve().items()}
    with atomic_write(file) as stream:
        stream.write(save(found))
    return found


def _head_settings(run: Run, how: Compression) -> Settings:
    """Those of the run, but for a pooled head: it takes a picture of any size."""
    known = {one.name for one in fields(Settings)}
    own = Settings(**{name: value for name, value in run.settings.items() if name in known})
    if own.recipe != "pooled":
        own = replace(RECIPES["pooled"], split_seed=own.split_seed, limit=own.limit)
    return replace(own, seed=how.seed)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    default = Compression()
    parser = argparse.ArgumentParser(prog="python -m train.compress", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, made by python -m train")
    wanted = parser.add_mutually_exclusive_group()
    wanted.add_argument(
        "--reduce",
        type=_over(1),
        default=default.reduce,
        metavar="X",
        help=f"times fewer multiplications than VGG16 at 224x224 ({default.reduce:g})",
    )
    wanted.add_argument(
        "--target-ms", type=_over(0), metavar="MS", help="instead: the largest network that takes at most MS"
    )
    parser.add_argument(
        "--engine",
        choices=("litert", "onnx", "tflite"),
        default=default.engine,
        help=f"that --target-ms is of, int8, on all cores ({default.engine})",
    )
    parser.add_argument(
        "--measured",
        metavar="CSV",
        help="for --target-ms, another board's timings instead of this machine's: engine, gmacs, ms",
    )
    parser.add_argument(
        "--size",
        type=_size,
        metavar="PIXELS|auto",
        help=f"a side of the input; auto: of {', '.join(map(str, SIZES))}, where the least is lost (auto)",
    )
    for name, kind, what in (
        ("photos", _count(10), "training photos that layers are solved on"),
        ("views", _count(1, 8), "of a training photo to learn from: itself, its mirror image, random crops"),
        ("epochs", _count(0), "over the training photos, learning from the run's answers; 0: none"),
        ("batch", _count(1), "photos a step"),
        ("learning_rate", _over(0), "the highest, while learning from the run's answers"),
        ("seed", _count(0), "of the photos solved on, and of the order of photos"),
    ):
        value = getattr(default, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, default=value, metavar="N", help=f"{what} ({value:g})"
        )
    parser.add_argument("--out", type=Path, metavar="RUN", help="the run folder (runs/NAME-compressed)")
    parser.add_argument("--overwrite", action="store_true", help="replace a run folder that is there already")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the same --out and settings, stopped or killed before",
    )
    parser.add_argument(
        "--photos-root",
        type=Path,
        metavar="DIR",
        help="where the run's photos are now, if not where they were when it was trained",
    )
    parser.add_argument(
        "--logs", type=Path, metavar="DIR", help="keep history.csv and TensorBoard's event files in DIR"
    )
    arguments = parser.parse_args(argv)
    if arguments.measured and arguments.target_ms is None:
        parser.error("--measured is for --target-ms; give that too")
    return arguments


def _over(least: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not least < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not more than {least:g}")
        return value

    return number


def _count(least: int, most: int = 2**32 - 1) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"{text} is not {least} or more" if value < least else f"{text} is over {most}"
            )
        return value

    whole_number.__name__ = "whole number"
    return whole_number


def _size(text: str) -> int | None:
    if text == "auto":
        return None
    value = int(text)
    if not 64 <= value <= 224 or value % 32:
        raise argparse.ArgumentTypeError(f"{text} is not a multiple of 32 from 64 to 224, nor auto")
    return value


if __name__ == "__main__":
    sys.exit(main())
