"""A run's pictures: how the head learned, and what it confuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from train.evaluate import Figures


def draw_curves(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Loss and top-1 over the epochs, of the training and the validation photos."""
    epochs = [row["epoch"] for row in history]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, key, title in zip(axes, ("loss", "accuracy"), ("loss", "top-1"), strict=True):
        for name, label in ((key, "train"), (f"val_{key}", "val")):
            if history and name in history[0]:
                axis.plot(epochs, [row[name] for row in history], label=label)
        axis.set(xlabel="epoch", title=title)
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_confusion(figures: Figures, classes: Sequence[str], split: str, path: Path) -> None:
    """Photos of each class (rows) by what they were named (columns)."""
    counts = np.array(figures["confusion"])
    side = 2.5 + 0.7 * len(classes)
    figure, axis = plt.subplots(figsize=(side, side), layout="constrained")
    axis.imshow(counts, cmap="Blues")
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axis.set_yticks(range(len(classes)), classes)
    axis.set(xlabel="named", ylabel="is", title=f"{split}: top-1 {figures['top1']:.1%} of {figures['n']}")
    for (row, column), count in np.ndenumerate(counts):
        axis.text(column, row, str(count), ha="center", va="center", color="w" if count > counts.max() / 2 else "k")
    figure.savefig(path, dpi=120)
    plt.close(figure)
