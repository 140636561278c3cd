"""What the flag --reject changes: the released int8 models with higher thresholds of `known`.

    VGG_EDGE_PHOTOS=dir python -m benchmarks.reject > benchmarks/reject.md

"flowers unknown" is the share of test photos that are rejected, and "named flowers right" the top-1 of the
others. "others named" is the share of the pictures without flowers of benchmarks/known.py that get a name.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from benchmarks.known import unrelated_pictures
from benchmarks.markdown_table import table_head, table_row
from runtime import Classifier
from runtime.preprocess.picture import read_picture

MODELS = Path(__file__).parents[1] / "models"
SHARES = (None, 0.05, 0.1, 0.2)


def main() -> int:
    """Prints the Markdown table."""
    test = sorted(Path(os.environ["VGG_EDGE_PHOTOS"], "test").glob("*/*"))
    print(table_head("model", "--reject", "flowers unknown", "named flowers right", "others named"))
    for name in ("flowers", "flowers_small"):
        print_rows(name, test)
    return 0


def print_rows(name: str, test: list[Path]) -> None:
    model = MODELS / name / f"{name}_int8.tflite"
    classifiers = [
        Classifier(model, engine="litert", correction="none", learned="none", reject=share)
        for share in SHARES
    ]
    classifier, size = classifiers[0], classifiers[0].model.contract.input_size
    outputs = [classifier.infer(read_picture(path, size)) for path in test]
    names = np.array(classifier.labels)[[int(output.probabilities.argmax()) for output in outputs]]
    right = names == [path.parent.name for path in test]
    known = np.array([output.known for output in outputs], np.float64)
    others = np.array([classifier.infer(picture).known for picture in unrelated_pictures(size)], np.float64)
    for share, strict in zip(SHARES, classifiers, strict=True):
        named = known >= strict.threshold
        row = table_row(
            f"{name}, int8",
            f"{share:.0%}" if share else "not given",
            f"{(~named).mean():.1%}",
            f"{right[named].mean():.1%}",
            f"{(others >= strict.threshold).mean():.1%} of {len(others)}",
        )
        print(row)


if __name__ == "__main__":
    sys.exit(main())
