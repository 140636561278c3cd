"""What `python -m runtime.adapt` does on scenes: shares of pictures named, and of flowers rejected.

    python -m benchmarks.adapt PHOTOS MODEL NAME=DIR... > benchmarks/adapt.md

PHOTOS holds test/ with class folders, each DIR the pictures of a scene without any of the classes. The model
is adapted with 50 pictures of a scene, chosen --draws times, and measured on its other pictures, on the
pictures of all other scenes, and on all test photos. "after" is the column before it after adapting. Shares
are means over the draws. The sample pictures of scikit-image and scikit-learn are one more scene.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.known import folder_pictures, unrelated_pictures
from benchmarks.machine import describe_machine
from benchmarks.markdown_table import table_head, table_row
from benchmarks.teach import Outputs, photo_outputs, picture_outputs
from runtime import Classifier
from runtime.inference.adaptation import SceneFeatures, fit_correction

PHOTOS_OF_SCENE = 50
COLUMNS = (
    "scene", "pictures", "named before", "after", "other scenes named", "after", "flowers rejected", "after",
)  # fmt: skip


def main() -> int:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("photos", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("scenes", nargs="+", metavar="NAME=DIR")
    parser.add_argument("--draws", type=int, default=5)
    arguments = parser.parse_args()
    classifier = Classifier(arguments.model, correction="none", learned="none")
    size = classifier.model.contract.input_size
    folders = dict(item.split("=", 1) for item in arguments.scenes)
    pictures = {name: folder_pictures(Path(folder), size) for name, folder in folders.items()}
    pictures["samples"] = unrelated_pictures(size)
    scenes = {name: picture_outputs(classifier, ["none"] * len(x), x) for name, x in pictures.items()}
    flowers = photo_outputs(classifier, (arguments.photos / "test").glob("*/*"))
    rows = [(name, *measure(classifier, name, scenes, flowers, arguments.draws)) for name in scenes]
    print(f"Measured on {describe_machine()}.\n")
    print(table_head(*COLUMNS))
    for name, *shares in [*rows, ("mean", *np.mean([row[1:] for row in rows], axis=0).tolist())]:
        count = str(len(scenes[name].known)) if name in scenes else ""
        print(table_row(name, count, *(f"{share:.1%}" for share in shares)))
    return 0


def measure(
    classifier: Classifier, name: str, scenes: dict[str, Outputs], flowers: Outputs, draws: int
) -> Sequence[float]:
    """The shares of a row of the table."""
    model, scene = classifier.model, scenes[name]
    threshold, statistics = model.contract.thresholds["known"], model.read_statistics()
    others = [other for key, other in scenes.items() if key != name]
    shares = []
    for seed in range(draws):
        order = np.random.default_rng(seed).permutation(len(scene.known))
        chosen, unseen = scene.take(order[:PHOTOS_OF_SCENE]), scene.take(order[PHOTOS_OF_SCENE:])
        names = [f"{at}.jpg" for at in range(len(chosen.known))]
        fitted = SceneFeatures(names, chosen.known, chosen.features)
        correction = fit_correction(model.contract, statistics, fitted).correction
        row = []
        for group in ([unseen], others, [flowers]):
            before = np.concatenate([outputs.known for outputs in group])
            after = np.concatenate([correction.apply(outputs.known, outputs.features) for outputs in group])
            row += [float((known >= threshold).mean()) for known in (before, after)]
        shares.append([*row[:4], 1 - row[4], 1 - row[5]])
    return [float(share) for share in np.mean(shares, axis=0)]


if __name__ == "__main__":
    sys.exit(main())
