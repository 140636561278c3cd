"""A run's pictures: how the head learned, and what it confuses."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from train.evaluate import Figures

COLOURS = {"train": "#9aa5b1", "val": "#2f6f4f"}
plt.rcParams.update(
    {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "text.parse_math": False,  # a $ in a class's name is no formula
        # matplotlib's own font lacks many scripts, and a class may be named in any.
        "font.family": ["DejaVu Sans", "Noto Sans CJK JP", "Noto Sans", "Arial Unicode MS"],
    }
)
# Of those fonts some are missing, and then some characters: a box stands for each.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")


def draw_curves(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Loss and top-1 over the epochs, of the training and the validation photos, the epoch that was kept
    marked.
    """
    epochs = [row["epoch"] for row in history]
    watched = "val_loss" if history and "val_loss" in history[0] else "loss"
    best = min(history, key=lambda row: row[watched])["epoch"] if history else None
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axis, key, title in zip(axes, ("loss", "accuracy"), ("Loss", "Top-1"), strict=True):
        for split, name in (("train", key), ("val", f"val_{key}")):
            if history and name in history[0]:
                values = [row[name] for row in history]
                axis.plot(
                    epochs,
                    values,
                    color=COLOURS[split],
                    label=split,
                    marker="o" if len(values) < 15 else None,
                )
        if best is not None:
            axis.axvline(best, color="#c98a2b", linewidth=1, linestyle=":", label=f"kept: epoch {best:.0f}")
            axis.legend(frameon=False)
        axis.set(xlabel="epoch", title=title)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(axis="y", color="#e5e8eb")
    axes[1].yaxis.set_major_formatter(PercentFormatter(1.0))
    _save(figure, path)


def draw_confusion(metrics: Mapping[str, Figures | None], classes: Sequence[str], path: Path) -> None:
    """Of each split: a row a true class, a column a class named, the photos counted, shaded by their share
    of the row.
    """
    measured = {split: figures for split, figures in metrics.items() if figures}
    # Inches. Of more than 40 classes the text shrinks: a larger picture would not fit in memory.
    side = min(max(2.0 + 0.62 * len(classes), 4.0), 26.0)
    size = min(10.0, 400 / len(classes))
    figure, axes = plt.subplots(
        1,
        max(len(measured), 1),
        figsize=(side * max(len(measured), 1), side),
        layout="constrained",
        squeeze=False,
    )
    for axis, (split, figures) in zip(axes[0], measured.items(), strict=False):
        counts = np.array(figures["confusion"])
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(shares, cmap="Greens", vmin=0, vmax=1)
        axis.set_xticks(range(len(classes)), classes, rotation=40, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(classes)), classes)
        axis.tick_params(length=0, labelsize=size)
        axis.set(xlabel="named", ylabel="is")
        axis.set_title(f"{split}: {figures['top1']:.1%} of {figures['n']:,}")
        axis.spines[:].set_visible(False)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "#1c2b22"
                axis.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=size)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=130)
    plt.close(figure)
