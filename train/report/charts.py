"""Charts of a run: learning curves, confusion matrix, reliability diagram."""

from __future__ import annotations

import io
import logging
import re
import unicodedata
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

from train.intervals import confidence_interval
from train.metrics import SplitMetrics

INK, GRID, BEST = "#1c2b22", "#e5e8eb", "#c98a2b"
COLOURS = {"train": "#9aa5b1", "val": "#2f6f4f"}
# The CSS variable that replaces each colour on the page, which has a dark theme.
THEME = {INK: "ink", GRID: "line", BEST: "amber", COLOURS["train"]: "grey", COLOURS["val"]: "green"}
CURVES = {"loss": "Loss", "accuracy": "Top-1"}
MAX_NAME = 24  # columns of a class name beside the confusion matrix; a CJK character takes two
CHART = (4.6, 3.2)  # inches; on a phone its text is as large as the page's
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
        "text.parse_math": False,  # a $ in a class name does not start a formula
        # matplotlib's own font lacks many scripts that class names may use.
        "font.family": ["DejaVu Sans", "Noto Sans CJK JP", "Noto Sans", "Arial Unicode MS"],
    }
)
# Where fonts are missing, a box replaces each missing character.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")


def draw_curves(history: Sequence[Mapping[str, Any]], path: Path, *, mark_best: bool = True) -> None:
    """Save loss and top-1 of train and val over the epochs; with `mark_best`, a line marks the best epoch."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for axis, name in zip(axes, CURVES, strict=True):
        _curve(axis, history, name, mark_best)
    _save(figure, path)


def confusion_picture(shares: NDArray[Any]) -> Image.Image:
    """The confusion matrix as a picture, with one pixel per pair of classes.

    `shares` [C, C] are shares of each true class; they become the opacity, so the picture fits both themes.
    """
    diagonal = np.eye(len(shares), dtype=bool)[..., np.newaxis]
    colours = np.where(diagonal, to_rgb(COLOURS["val"]), to_rgb(BEST))
    solid = np.sqrt(shares)[..., np.newaxis]  # so that one photo in a hundred is visible
    return Image.fromarray((255 * np.concatenate([colours, solid], 2)).round().astype(np.uint8))


def curve(history: Sequence[Mapping[str, Any]], name: str, alt: str, *, mark_best: bool = True) -> str:
    """One of CURVES as inline SVG; `alt` is its text for screen readers."""
    figure, axis = plt.subplots(figsize=CHART, layout="constrained")
    _curve(axis, history, name, mark_best)
    return _svg(figure, alt)


def reliability_diagram(bins: Sequence[tuple[float, float, float]], n: int, alt: str) -> str:
    """The bins of train.network.calibration.reliability for n photos as inline SVG: the share of correct
    predictions over the mean probability, with its 95 % interval.
    """
    figure, axis = plt.subplots(figsize=(CHART[0], CHART[0]), layout="constrained")
    axis.plot([0, 1], [0, 1], color=COLOURS["train"], linestyle="--", label="perfectly calibrated")
    each = round(n / len(bins))
    label = f"about {each:,} photos per dot" if each > 1 else "one photo per dot"
    for share, probability, correct in bins:
        low, high = confidence_interval(round(correct * share * n), round(share * n))
        axis.plot([probability, probability], [low, high], color=COLOURS["val"], linewidth=1, alpha=0.6)
        axis.plot([probability], [correct], "o", color=COLOURS["val"], markersize=5, label=label)
        label = "_"
    axis.set(
        xlabel="predicted probability", ylabel="correct predictions", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02)
    )
    axis.legend(frameon=False, loc="lower right")
    axis.grid(color=GRID)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(PercentFormatter(1.0))
    return _svg(figure, alt)


def draw_confusion(metrics: Mapping[str, SplitMetrics | None], classes: Sequence[str], path: Path) -> None:
    """Save the confusion matrix of each split: rows are true classes, columns predicted classes. The shade
    is the share of the row.
    """
    measured = {split: figures for split, figures in metrics.items() if figures}
    names = [shorten(name) for name in classes]
    # Inches. Above 40 classes the text shrinks, because a larger picture would not fit in memory.
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
        axis.set_xticks(range(len(classes)), names, rotation=40, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(classes)), names)
        axis.tick_params(length=0, labelsize=size)
        axis.set(xlabel="predicted", ylabel="true")
        axis.set_title(f"{split}: {figures['top1']:.1%} of {figures['n']:,}")
        axis.spines[:].set_visible(False)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else INK
                axis.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=size)
    _save(figure, path)


def shorten(name: str) -> str:
    """The name in at most MAX_NAME columns, with … for its middle: similar names often differ at the end."""
    if _columns(name) <= MAX_NAME:
        return name
    start, end = "", ""
    for first, last in zip(name, reversed(name), strict=True):
        if _columns(start + first + "…" + last + end) > MAX_NAME:
            break
        start, end = start + first, last + end
    return f"{start}…{end}"


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _curve(axis: Axes, history: Sequence[Mapping[str, Any]], name: str, mark_best: bool) -> None:
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
    if history and mark_best:
        watched = "val_loss" if "val_loss" in history[0] else "loss"
        best = min(history, key=lambda row: row[watched])["epoch"]
        axis.axvline(best, color=BEST, linewidth=1.4, linestyle=":", label=f"best: epoch {best:.0f}")
    if history:
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
    """The figure as inline SVG with the font and the colours of the page."""
    markup = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # Text stays text; the salt makes ids unique among the figures of a page.
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": alt}):
        figure.savefig(markup, format="svg", transparent=True, metadata=nothing)
    plt.close(figure)
    svg = markup.getvalue()
    box = re.search(r'viewBox="[^"]*"', svg)
    body = re.sub(r' id="[\w.]+_\d+"', "", svg[svg.index("<defs") :])  # unused ids
    for colour, variable in THEME.items():
        body = body.replace(colour, f"var(--{variable})")
    return f'<svg role="img" aria-label="{escape(alt)}" {box.group() if box else ""}>{body}'
