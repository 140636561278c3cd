"""A run's charts: how it learned, what it confuses, and how far its probabilities can be trusted."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray
from PIL import Image

from train.metrics import SplitMetrics, confidence_interval

INK, GRID, KEPT = "#1c2b22", "#e5e8eb", "#c98a2b"
COLOURS = {"train": "#9aa5b1", "val": "#2f6f4f"}
# What each is on a page, which has other ones for the dark.
THEME = {INK: "ink", GRID: "line", KEPT: "amber", COLOURS["train"]: "grey", COLOURS["val"]: "green"}
CURVES = {"loss": "Loss", "accuracy": "Top-1"}
CHART = (4.6, 3.2)  # inches; its text is then as large as a page's on a phone
plt.rcParams.update(
    {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
        ),
        "text.parse_math": False,  # a $ in a class's name is no formula
        # matplotlib's own font lacks many scripts, and a class may be named in any.
        "font.family": ["DejaVu Sans", "Noto Sans CJK JP", "Noto Sans", "Arial Unicode MS"],
    }
)
# Of those fonts some are missing, and then some characters: a box stands for each.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")


def draw_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss and top-1 over the epochs, of the training and the validation photos, the epoch that was kept
    marked.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axis, name in zip(axes, CURVES, strict=True):
        _curve(axis, history, name)
    _save(figure, path)


def confusion_picture(shares: NDArray[Any]) -> Image.Image:
    """A pixel a pair of classes, for more of them than a table can hold. It is as see-through as its share
    [C, C] of the true class is small, so that it can lie on light and on dark.
    """
    diagonal = np.eye(len(shares), dtype=bool)[..., np.newaxis]
    colours = np.where(diagonal, to_rgb(COLOURS["val"]), to_rgb(KEPT))
    solid = np.sqrt(shares)[..., np.newaxis]  # one photo in a hundred is to be seen
    return Image.fromarray((255 * np.concatenate([colours, solid], 2)).round().astype(np.uint8))


def curve(history: Sequence[Mapping[str, Any]], name: str, alt: str) -> str:
    """One of CURVES as inline SVG."""
    figure, axis = plt.subplots(figsize=CHART, layout="constrained")
    _curve(axis, history, name)
    return _svg(figure, alt)


def reliability_diagram(bins: Sequence[tuple[float, float, float]], n: int, alt: str) -> str:
    """What train.calibrate.reliability gives for n photos, as inline SVG: each bin's share right over its
    mean probability, with the 95 % interval of that share.
    """
    figure, axis = plt.subplots(figsize=(CHART[0], CHART[0]), layout="constrained")
    axis.plot([0, 1], [0, 1], color=COLOURS["train"], linestyle="--", label="says what it means")
    each = round(n / len(bins))
    label = f"about {each:,} photos each" if each > 1 else "a photo each"
    for share, sure, right in bins:
        low, high = confidence_interval(round(right * share * n), round(share * n))
        axis.plot([sure, sure], [low, high], color=COLOURS["val"], linewidth=1, alpha=0.6)
        axis.plot([sure], [right], "o", color=COLOURS["val"], markersize=5, label=label)
        label = "_"
    axis.set(
        xlabel="how sure it was", ylabel="how often it was right", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02)
    )
    axis.legend(frameon=False, loc="lower right")
    axis.grid(color=GRID)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(PercentFormatter(1.0))
    return _svg(figure, alt)


def draw_confusion(metrics: Mapping[str, SplitMetrics | None], classes: Sequence[str], path: Path) -> None:
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
                colour = "white" if shares[row, column] > 0.5 else INK
                axis.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=size)
    _save(figure, path)


def _curve(axis: Axes, history: Sequence[Mapping[str, Any]], name: str) -> None:
    epochs = [row["epoch"] for row in history]
    for split, column in (("train", name), ("val", f"val_{name}")):
        if history and column in history[0]:
            axis.plot(
                epochs,
                [row[column] for row in history],
                color=COLOURS[split],
                label=split,
                marker="o" if len(epochs) < 15 else None,
            )
    if history:
        watched = "val_loss" if "val_loss" in history[0] else "loss"
        best = min(history, key=lambda row: row[watched])["epoch"]
        axis.axvline(best, color=KEPT, linewidth=1.4, linestyle=":", label=f"kept: epoch {best:.0f}")
        axis.legend(frameon=False)
    axis.set(xlabel="epoch", title=CURVES[name])
    axis.set_xlim(0.5, max(len(epochs), 1) + 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.grid(axis="y", color=GRID)
    if name == "accuracy":
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _svg(figure: Figure, alt: str) -> str:
    """The figure as inline SVG whose text is in the page's font, and whose colours are the page's own."""
    markup = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # Text stays text. What several figures on one page refer to must be called differently in each.
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": alt}):
        figure.savefig(markup, format="svg", transparent=True, metadata=nothing)
    plt.close(figure)
    svg = markup.getvalue()
    box = re.search(r'viewBox="[^"]*"', svg)
    body = re.sub(r' id="[\w.]+_\d+"', "", svg[svg.index("<defs") :])  # the ids that nothing refers to
    for colour, variable in THEME.items():
        body = body.replace(colour, f"var(--{variable})")
    return f'<svg role="img" aria-label="{escape(alt)}" {box.group() if box else ""}>{body}'
