"""What fine-tuning gives, from the records of runs that `python -m train` wrote: a row per run, and means.

    python -m benchmarks.finetune RUN… > benchmarks/finetune.md

Settings were chosen by top-1 on val. Runs with other settings show no test metrics.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.markdown_table import table_head, table_row
from train.run import Run, open_run

VARIED = ("fine_tune", "fine_tune_learning_rate", "label_smoothing")
HEAD = (
    "fine-tuned",
    "learning rate",
    "label smoothing",
    "seed",
    "val top-1",
    "val loss",
    "test top-1",
    "ECE before",
    "ECE after",
    "flowers rejected as unknown",
)


def main(*folders: str) -> int:
    runs = [open_run(Path(folder)) for folder in folders]
    groups: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        groups[tuple(run.settings[name] for name in VARIED)].append(run)
    best = {
        blocks: max(val_rank(group) for (other, *_), group in groups.items() if other == blocks)
        for blocks, *_ in groups
    }
    print(table_head(*HEAD))
    for (blocks, rate, smoothing), group in groups.items():
        chosen = val_rank(group) == best[blocks]
        values = ["", ""] if blocks == "none" else [f"{rate:g}", f"{smoothing:g}"]
        for run in group:
            print(run_row([blocks, *values, str(run.settings["seed"])], [run], chosen))
        if len(group) > 1:
            print(run_row([f"**{blocks}**", *values, f"mean of {len(group)}"], group, chosen))
    metrics = runs[0].metrics
    print(
        f"\n{metrics['val']['n']} photos in val, {metrics['test']['n']} in test; "
        "ECE: expected calibration error on test, 15 bins of equal mass."
    )
    return 0


def val_rank(runs: list[Run]) -> tuple[float, float]:
    """The best settings have the highest rank: top-1 on val, then the lower loss."""
    return mean_of(runs, "val", "top1"), -mean_of(runs, "val", "loss")


def run_row(first_cells: list[str], runs: list[Run], chosen: bool) -> str:
    cells = [*first_cells, f"{mean_of(runs, 'val', 'top1'):.1%}", f"{mean_of(runs, 'val', 'loss'):.3f}"]
    if chosen:
        cells += [
            f"{mean_of(runs, 'test', 'top1'):.1%}",
            f"{mean_of(runs, 'test', 'ece_before'):.3f}",
            f"{mean_of(runs, 'test', 'ece'):.3f}",
            f"{mean_of(runs, 'test', 'unknown'):.1%}",
        ]
    else:
        cells += [""] * 4
    return table_row(*cells)


def mean_of(runs: list[Run], split: str, name: str) -> float:
    return mean(run.metrics[split][name] for run in runs)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
