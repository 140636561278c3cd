"""What fine-tuning gives, from the records of runs that `python -m train` made: a row a run, and the means.

    python -m benchmarks.finetune RUN… > benchmarks/finetune.md

Settings were chosen by the column val. Runs of settings that were not chosen show no test figures.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

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
    "calibration error before",
    "after",
    "flowers called unknown",
)


def main(*folders: str) -> int:
    runs = [open_run(Path(folder)) for folder in folders]
    groups: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        groups[tuple(run.settings[name] for name in VARIED)].append(run)
    best = {
        way[0]: max(map(merit, (found for key, found in groups.items() if key[0] == way[0])))
        for way in groups
    }
    print(f"| {' | '.join(HEAD)} |")
    print("|---" * len(HEAD) + "|")
    for (way, rate, smoothing), found in groups.items():
        chosen = merit(found) == best[way]
        tried = ["", ""] if way == "none" else [f"{rate:g}", f"{smoothing:g}"]
        for run in found:
            print(row([way, *tried, str(run.settings["seed"])], [run], chosen))
        if len(found) > 1:
            print(row([f"**{way}**", *tried, f"mean of {len(found)}"], found, chosen))
    of = runs[0].metrics
    print(
        f"\n{of['val']['n']} photos of val, {of['test']['n']} of test; "
        "calibration error: on test, 15 bins of equal mass."
    )
    return 0


def merit(runs: list[Run]) -> tuple[float, float]:
    """By what the best is chosen: top-1 on val, and the lower loss where that is the same."""
    return mean_of(runs, "val", "top1"), -mean_of(runs, "val", "loss")


def row(what: list[str], runs: list[Run], chosen: bool) -> str:
    cells = [*what, f"{mean_of(runs, 'val', 'top1'):.1%}", f"{mean_of(runs, 'val', 'loss'):.3f}"]
    if chosen:
        cells += [
            f"{mean_of(runs, 'test', 'top1'):.1%}",
            f"{mean_of(runs, 'test', 'ece_before'):.3f}",
            f"{mean_of(runs, 'test', 'ece'):.3f}",
            f"{mean_of(runs, 'test', 'unknown'):.1%}",
        ]
    else:
        cells += [""] * 4
    return f"| {' | '.join(cells)} |"


def mean_of(runs: list[Run], split: str, name: str) -> float:
    return mean(run.metrics[split][name] for run in runs)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
