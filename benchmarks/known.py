"""Compare methods that separate pictures of the classes from unknown pictures. Writes known.csv too.

    VGG_EDGE_PHOTOS=dir python -m benchmarks.known RUN --choose NAME=DIR > benchmarks/known.md

All methods work on the channel means of one network, so the table compares detectors, not networks. Each
threshold rejects the share UNKNOWN_RATE of the validation photos. The columns:

- named: the share of unrelated pictures that is named as a class. Methods are chosen on the sets of --choose,
  and the sets of --report are only reported; both are folders of pictures without the classes. The sample
  pictures of scikit-image and scikit-learn are always reported. [95 % interval, Clopper & Pearson, 1934]
- test rejected: the share of test photos that is rejected as unknown.
- far: AUROC, the probability that a test photo scores higher than an unrelated picture, the mean over the
  sets.
- near: AUROC, the probability that a test photo of a class scores higher than a test photo of a class that
  is left out of the fit, the mean over the classes. The network itself has seen the class.

A second table fits the released method on each kind of default negatives (train/data/negative_pictures.py),
with the same number of pictures for each. The network itself was trained on the kind of its run. Also writes
known_kinds.csv.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import binomtest
from sklearn.cluster import KMeans
from sklearn.covariance import EmpiricalCovariance
from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from benchmarks.markdown_table import table_head, table_row
from runtime.common.errors import PictureError
from runtime.common.terminal import suppress_native_stderr
from runtime.preprocess.picture import read_picture

with suppress_native_stderr():
    import keras

from export.photos import read_photos
from train.data.negatives import (
    add_default_negatives,
    names_without_classes,
    restore_default_negatives,
    write_pictures,
)
from train.network.descriptor import channel_means, describe
from train.network.novelty import BACKGROUND_WEIGHT, UNKNOWN_RATE, NoveltyModel, fit_novelty
from train.network.vgg import POOLS
from train.run import Run, open_run

CROPS = 3  # of each sample picture
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
SAMPLES = "samples"
PROTOTYPES = 96  # of all classes together
Array = NDArray[Any]


@dataclass(frozen=True)
class Known:
    """What a method is fitted on: descriptors [N, D] with class indices [N], the descriptors of negatives
    [M, D], and the number W of channels of the last layer, which stands last in a descriptor.
    """

    train: Array
    labels: Array
    negatives: Array
    last: int

    def without(self, label: int) -> Known:
        """Without the photos of a class."""
        kept = self.labels != label
        return replace(self, train=self.train[kept], labels=self.labels[kept])

    def of_last_layer(self) -> Known:
        """With the last part of each descriptor alone."""
        last = slice(-self.last, None)
        return replace(self, train=self.train[:, last], negatives=self.negatives[:, last])


Method = Callable[[Known, Array], Array]  # (known, descriptors [N, D]) → scores [N], high for the classes


def maximum_probability(known: Known, photos: Array) -> Array:
    """Hendrycks & Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples", 2017."""
    logits = _logits(known, _unit(photos, known.last))
    return logits.max(1) - np.logaddexp.reduce(logits, axis=1)


def energy(known: Known, photos: Array) -> Array:
    """Liu et al., "Energy-based Out-of-distribution Detection", 2020."""
    return np.logaddexp.reduce(_logits(known, _unit(photos, known.last)), axis=1)


def scale(known: Known, photos: Array) -> Array:
    """SCALE: Xu et al., "Scaling for Training Time and Post-hoc Out-of-distribution Detection", 2024."""
    x = _unit(photos, known.last)
    strong = np.where(x >= np.quantile(x, 0.85, axis=1, keepdims=True), x, 0).sum(1)
    factor = np.exp(x.sum(1) / np.maximum(strong, 1e-6))
    return np.logaddexp.reduce(_logits(known, x) * factor[:, np.newaxis], axis=1)


def nearest_neighbour(known: Known, photos: Array) -> Array:
    """Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", 2022."""
    train, x = known.train[:, -known.last :], photos[:, -known.last :]
    return -NearestNeighbors(n_neighbors=1).fit(train).kneighbors(x)[0][:, 0]


def nearest_neighbour_of_all_layers(known: Known, photos: Array) -> Array:
    return -NearestNeighbors(n_neighbors=1).fit(known.train).kneighbors(photos)[0][:, 0]


def virtual_logit(known: Known, photos: Array) -> Array:
    """ViM: Wang et al., "ViM: Out-Of-Distribution with Virtual-logit Matching", 2022."""
    train, x = _unit(known.train, known.last), _unit(photos, known.last)
    center = train.mean(0)
    values, vectors = np.linalg.eigh(EmpiricalCovariance().fit(train).covariance_)
    residual = vectors[:, np.argsort(values)[: known.last // 2]]
    lengths = [np.linalg.norm((part - center) @ residual, axis=1) for part in (train, x)]
    alpha = _logits(known, train).max(1).mean() / lengths[0].mean()
    return energy(known, photos) - alpha * lengths[1]


def mahalanobis(background_weight: float, negatives: bool) -> Method:
    """The product's own detector with some of its parts.

    Without a background weight: Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution
    Samples and Adversarial Attacks", 2018.
    """

    def score(known: Known, photos: Array) -> Array:
        others = known.negatives if negatives else None
        return fit(known, others, background_weight).score(photos)

    return score


def fit(known: Known, negatives: Array | None, weight: float = BACKGROUND_WEIGHT) -> NoveltyModel:
    """The product's own detector; the training photos set its scales."""
    none = known.train[:0]
    return fit_novelty(
        known.train, known.labels, none, negatives, last_width=known.last, background_weight=weight
    )


def nearest_prototype(known: Known, photos: Array) -> Array:
    """Minus the squared distance to the nearest of PROTOTYPES centers of k-means within the classes."""
    classes = np.unique(known.labels)
    each = max(1, PROTOTYPES // len(classes))
    of_class = (
        KMeans(each, n_init=1, random_state=0).fit(known.train[known.labels == label]) for label in classes
    )
    centers = np.concatenate([fitted.cluster_centers_ for fitted in of_class])
    return -(NearestNeighbors(n_neighbors=1).fit(centers).kneighbors(photos)[0][:, 0] ** 2)


def of_last_layer(method: Method) -> Method:
    """The same method on the last part of each descriptor alone."""
    return lambda known, photos: method(known.of_last_layer(), photos[:, -known.last :])


def with_penalty(score: Method) -> Method:
    """A score minus the product's own penalty for the resemblance to negatives."""

    def penalized(known: Known, photos: Array) -> Array:
        model = fit(known, known.negatives)
        without = replace(model, negatives=np.zeros_like(model.negatives), negatives_offset=0.0)
        factor = score(known, known.train).std() / without.score(known.train).std()
        return score(known, photos) - factor * (without.score(photos) - model.score(photos))

    return penalized


def unbounded_negatives(known: Known, photos: Array) -> Array:
    """The product's own detector, with a score against negatives instead of the bounded penalty."""
    model = fit(known, known.negatives)
    resemblance = photos @ model.negatives + model.negatives_offset
    return model.score(photos) - np.minimum(resemblance, 0)


def negatives_alone(known: Known, photos: Array) -> Array:
    """Logistic regression of all photos against all negatives."""
    x = np.concatenate([known.train, known.negatives])
    truth = np.arange(len(x)) < len(known.train)
    return LogisticRegression(class_weight="balanced", max_iter=300).fit(x, truth).decision_function(photos)


WITHOUT_NEGATIVES = "relative Mahalanobis, all layers"
RELEASED_METHOD = "relative Mahalanobis, all layers, negatives"
METHODS: dict[str, Method] = {
    "maximum probability": maximum_probability,
    "energy": energy,
    "SCALE": scale,
    "ViM": virtual_logit,
    "nearest neighbour": nearest_neighbour,
    "nearest neighbour, all layers": nearest_neighbour_of_all_layers,
    "Mahalanobis": of_last_layer(mahalanobis(0.0, negatives=False)),
    "Mahalanobis, all layers": mahalanobis(0.0, negatives=False),
    WITHOUT_NEGATIVES: mahalanobis(BACKGROUND_WEIGHT, negatives=False),
    "nearest prototype, all layers": nearest_prototype,
    "logistic regression against negatives": negatives_alone,
    "relative Mahalanobis, last layer, negatives": of_last_layer(
        mahalanobis(BACKGROUND_WEIGHT, negatives=True)
    ),
    "nearest prototype, all layers, negatives": with_penalty(nearest_prototype),
    "the next row without the bound of the penalty": unbounded_negatives,
    RELEASED_METHOD: mahalanobis(BACKGROUND_WEIGHT, negatives=True),
}


# A row of the second table each. Two kinds have half of the pictures each.
NEGATIVE_KINDS: dict[str, tuple[str, ...]] = {
    "no negatives": (),
    "shapes on gradients": ("shapes",),
    "drawings on white": ("white",),
    "drawings on backgrounds (released)": ("composited",),
    "drawings on backgrounds, and shapes": ("composited", "shapes"),
}


def main() -> None:
    """Prints both tables and writes their CSV files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("--choose", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--report", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    arguments = parser.parse_args()
    run = open_run(arguments.run, Path(os.environ["VGG_EDGE_PHOTOS"]))
    network = Descriptors(run)
    known, val, test, truth = network.flowers()
    sets = {
        name: network(folder_pictures(Path(folder), network.size))
        for name, folder in (item.split("=", 1) for item in (*arguments.choose, *arguments.report))
    }
    sets[SAMPLES] = network(unrelated_pictures(network.size))
    rows = [measure(name, method, known, val, test, truth, sets) for name, method in METHODS.items()]
    chosen = ", ".join(item.split("=", 1)[0] for item in arguments.choose)
    print(
        f"{run.name}: {len(known.train):,} training photos, {len(known.negatives):,} negatives. "
        f"Methods were chosen on {chosen or 'no set'}.\n"
    )
    write_table(rows, arguments.csv)
    rows = []
    for name, kinds in NEGATIVE_KINDS.items():
        of_kinds = replace(known, negatives=network.negatives(kinds, len(known.negatives)))
        method = RELEASED_METHOD if kinds else WITHOUT_NEGATIVES
        rows.append(measure(name, METHODS[method], of_kinds, val, test, truth, sets))
    print("\nThe same detector, fitted on each kind of negatives:\n")
    write_table(rows, arguments.csv.with_stem(f"{arguments.csv.stem}_kinds"))


def write_table(rows: Sequence[Mapping[str, str]], file: Path) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(table_head(*rows[0]))
    for row in rows:
        print(table_row(*row.values()))


def measure(
    name: str, method: Method, known: Known, val: Array, test: Array, truth: Array, sets: Mapping[str, Array]
) -> dict[str, str]:
    """One row of the table."""
    scores = np.sort(method(known, val))
    threshold = scores[int(UNKNOWN_RATE * len(scores))]
    row = {"method": name}
    for set_name, pictures in sets.items():
        row[f"{set_name} named"] = with_interval(
            int((method(known, pictures) >= threshold).sum()), len(pictures)
        )
    row["test rejected"] = with_interval(int((method(known, test) < threshold).sum()), len(test))
    on_test = method(known, test)
    far = [
        roc_auc_score(np.arange(len(test) + len(x)) < len(test), [*on_test, *method(known, x)])
        for x in sets.values()
    ]
    row["far"] = f"{np.mean(far):.3f}"
    row["near"] = f"{near_auroc(method, known, test, truth):.3f}"
    return row


def near_auroc(method: Method, known: Known, photos: Array, truth: Array) -> float:
    """The mean AUROC over the classes, each left out of the fit once."""
    aurocs = [
        roc_auc_score(truth != label, method(known.without(label), photos))
        for label in np.unique(known.labels)
    ]
    return float(np.mean(aurocs))


def with_interval(count: int, total: int) -> str:
    low, high = binomtest(count, total).proportion_ci(method="exact")
    return f"{count / total:.1%} of {total} [{100 * low:.1f}, {100 * high:.1f}]"


class Descriptors:
    """Computes descriptors with the network of a run, whether or not its model has the output `features`."""

    def __init__(self, run: Run) -> None:
        self.run = run
        model = run.load_model()
        self.size = tuple(model.inputs[0].shape[1:3])
        pools = [model.get_layer(name).output for name in POOLS]
        self.widths = [int(pool.shape[-1]) for pool in pools]
        self.last = self.widths[-1]
        self.model = keras.Model(model.inputs[0], [channel_means(pool) for pool in pools])

    def __call__(self, pictures: Array) -> Array:
        """Pictures uint8 [N, H, W, 3] → descriptors [N, D]."""
        return describe(self.model.predict(pictures, batch_size=32, verbose=0))

    def flowers(self) -> tuple[Known, Array, Array, Array]:
        """The training photos with their mirror images and the negatives; val; test; test's classes."""
        splits = {
            split: read_photos(self.run.dataset, split, self.size) for split in ("train", "val", "test")
        }
        train = splits["train"]
        both = np.concatenate([train.pixels, train.pixels[:, :, ::-1]])
        dataset = self.run.dataset if self.run.dataset.negatives else add_default_negatives(self.run.dataset)
        restore_default_negatives(dataset)  # the cache of another machine does not hold them
        negatives = [photo for photo in dataset.negatives if photo.split == "train"]
        pixels = np.stack([read_picture(dataset.root / photo.path, self.size) for photo in negatives])
        known = Known(self(both), np.tile(train.truth, 2), self(pixels), self.last)
        return known, self(splits["val"].pixels), self(splits["test"].pixels), splits["test"].truth

    def negatives(self, kinds: Sequence[str], count: int) -> Array:
        """Descriptors of `count` default negatives, divided among the kinds."""
        names = names_without_classes(self.run.classes)[:count]
        files = write_pictures([(kinds[at % len(kinds)], name) for at, name in enumerate(names) if kinds])
        pixels = [read_picture(file, self.size) for file in files]
        return self(np.stack(pixels)) if pixels else np.empty((0, sum(self.widths)), np.float32)


def _unit(descriptors: Array, last: int) -> Array:
    """The features of the head: the last layer's means, scaled to length 1."""
    squares = descriptors[:, -last:] ** 2
    return squares / np.linalg.norm(squares, axis=1, keepdims=True)


def _logits(known: Known, x: Array) -> Array:
    head = LogisticRegression(C=300, max_iter=300).fit(_unit(known.train, known.last), known.labels)
    return head.decision_function(x)


def folder_pictures(folder: Path, size: Sequence[int]) -> Array:
    """All readable pictures below a folder, uint8 [N, H, W, 3]."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return np.stack([picture for path in paths if (picture := _readable(path, size)) is not None])


def _readable(path: Path, size: Sequence[int]) -> NDArray[np.uint8] | None:
    try:
        return read_picture(path, (size[0], size[1]))
    except PictureError as error:
        print(f"left out: {error}", file=sys.stderr)
        return None


def unrelated_pictures(size: Sequence[int]) -> NDArray[np.uint8]:
    """The sample pictures of the two packages, without scikit-learn's flower, and three crops of each."""
    folder = Path(skimage.data.__file__).parent
    pictures = [read_picture(path, (512, 512)) for path in sorted(folder.glob("*.[pj][np]g"))]
    samples = load_sample_images()
    pictures += [
        np.asarray(Image.fromarray(image).resize((512, 512)))
        for name, image in zip(samples.filenames, samples.images, strict=True)
        if "flower" not in Path(name).name
    ]
    rng = np.random.default_rng(0)
    views = []
    for picture in pictures:
        boxes = [(0, 0, 512, 512)]
        for _ in range(CROPS):
            side = int(rng.integers(170, 360))
            left, top = (int(corner) for corner in rng.integers(0, 512 - side, 2))
            boxes.append((left, top, left + side, top + side))
        image = Image.fromarray(picture)
        views += [
            np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box)) for box in boxes
        ]
    return np.stack(views)


if __name__ == "__main__":
    main()
