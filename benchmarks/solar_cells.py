"""A second domain: defective solar cells in grey pictures, with --fine-tune block5 and compression.

    pip download --no-deps --dest WORK elpv-dataset==1.0.0.post1
    python -m benchmarks.solar_cells WORK > benchmarks/solar_cells.md

2,624 electroluminescence pictures of 300x300 pixels (CC BY-NC-SA 4.0, for measuring only; they stay in WORK).
As in Deitsch et al., "Automatic classification of defective photovoltaic module cells in electroluminescence
images", 2019, a cell with a probability of a defect over 0.5 is defective, and a quarter of the cells of each
type and probability is for testing. Their choice of cells is not published, so this one is random. WORK
keeps the runs: the same command continues after an interruption. This takes about 2 hours on 2 cores, by an
estimate.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections import defaultdict
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.complete_folder import complete_folder, is_complete_run
from benchmarks.machine import describe_machine
from export.__main__ import main as export
from train.__main__ import main as train
from train.compress.__main__ import main as compress

TEST_SHARE = 0.25
DEFECTIVE_ABOVE = 0.5
PUBLISHED = (("support vector machine", 0.8244), ("fine-tuned network", 0.8842))  # accuracy, Deitsch et al.
COLUMNS = ("network", "val", "test", "defective found", "functional right", "test cells rejected")


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work
    wheel = next(work.glob("elpv_dataset-*.whl"))
    photos = complete_folder(work / "photos", lambda partial: unpack(wheel, partial))
    with redirect_stdout(sys.stderr):
        runs = make_runs(photos, work)
    print(f"Measured on {describe_machine()}.\n")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for name, run in runs.items():
        classes = read_json(run / "metrics.json")["test"]["per_class"]
        val, test = (read_json(run / "run.json")["metrics"][split] for split in ("val", "test"))
        shares = [val["top1"], test["top1"]]
        shares += [classes[label]["recall"] for label in ("defective", "functional")]
        print(f"| {name} | " + " | ".join(f"{share:.1%}" for share in (*shares, test["unknown"])) + " |")
    with redirect_stdout(sys.stderr):
        model = export_int8(runs["--fine-tune block5, compressed to a tenth"], work / "model")
    print(f"| the same as int8 file |  | {int8_accuracy(model):.1%} |  |  |  |")
    for name, accuracy in PUBLISHED:
        print(f"| published: {name} |  | {accuracy:.1%} |  |  |  |")
    return 0


def unpack(wheel: Path, partial: Path) -> None:
    """Write the pictures to train/ and test/ with a folder for each class."""
    with zipfile.ZipFile(wheel) as archive:
        cells: dict[tuple[str, float], list[str]] = defaultdict(list)  # by type and probability
        for line in archive.read("elpv_dataset/data/labels.csv").decode().splitlines():
            name, share, kind = line.split()
            cells[kind, float(share)].append(name)
        rng = np.random.default_rng(0)
        for (_, probability), names in sorted(cells.items()):
            label = "defective" if probability > DEFECTIVE_ABOVE else "functional"
            for row, index in enumerate(rng.permutation(len(names))):
                split = "test" if row < int(TEST_SHARE * len(names)) else "train"
                path = partial / split / label / Path(names[index]).name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(f"elpv_dataset/data/{names[index]}"))


def make_runs(photos: Path, work: Path) -> dict[str, Path]:
    """The run folders by the name of the network; trains those that are not there."""
    runs = {
        "default": work / "run",
        "--fine-tune block5": work / "block5",
        "--fine-tune block5, compressed to a tenth": work / "compressed",
    }
    default, block5, compressed = runs.values()
    for run, command, arguments in (
        (default, train, (str(photos),)),
        (block5, train, (str(photos), "--fine-tune", "block5")),
        (compressed, compress, (str(block5),)),
    ):
        if not is_complete_run(run) and command([*arguments, "--out", str(run), "--resume"]):
            sys.exit(1)
    return runs


def export_int8(run: Path, model: Path) -> Path:
    """The folder of the int8 model; an existing one is kept."""
    if not (model / "model.json").exists() and export(
        [str(run), "--int8", "--engines", "litert", "--out", str(model)]
    ):
        sys.exit(1)
    return model


def int8_accuracy(model: Path) -> float:
    """The top-1 of the int8 file on the test cells, as the export has measured it."""
    (file,) = [file for file in read_json(model / "model.json")["files"] if file["precision"] == "int8"]
    (parity,) = file["metrics"]["parity"].values()
    return float(parity["top1"])


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
