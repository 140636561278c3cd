"""A second domain: defective solar cells in grey pictures, with --fine-tune block5 and compression.

    pip download --no-deps --dest WORK elpv-dataset==1.0.0.post1
    python -m benchmarks.solar_cells WORK > benchmarks/solar_cells.md

2,624 electroluminescence pictures of 300x300 pixels (CC BY-NC-SA 4.0, for measuring only; they stay in WORK).
As in Deitsch et al., "Automatic classification of defective photovoltaic module cells in electroluminescence
images", 2019, a cell with a probability of a defect over 0.5 is defective, and a quarter of the cells of each
type and probability is for testing. Their choice of cells is not published, so this one is random. The
compression has the short budget of benchmarks/leave_one_out.py. WORK keeps the runs: the same command
continues after an interruption. This takes about an hour on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections import defaultdict
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np

from benchmarks.complete_folder import complete_folder, complete_run
from benchmarks.leave_one_out import COMPRESS_FLAGS, export_int8
from benchmarks.machine import describe_machine
from benchmarks.markdown_table import table_head, table_row
from runtime.model_file.index import read_index
from train.__main__ import main as train
from train.compress.__main__ import main as compress
from train.run import open_run

TEST_SHARE = 0.25
DEFECTIVE_ABOVE = 0.5
PUBLISHED = (("support vector machine", 0.8244), ("fine-tuned network", 0.8842))  # accuracy, Deitsch et al.
COMPRESSED = "--fine-tune block5, compressed to a tenth"
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
    print(table_head(*COLUMNS))
    for name, run in runs.items():
        classes = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["test"]["per_class"]
        metrics = open_run(run).metrics
        shares = [metrics[split]["top1"] for split in ("val", "test")]
        shares += [classes[label]["recall"] for label in ("defective", "functional")]
        shares.append(metrics["test"]["unknown"])
        print(table_row(name, *(f"{share:.1%}" for share in shares)))
    with redirect_stdout(sys.stderr):
        model = export_int8(runs[COMPRESSED], work / "model")
    print(table_row("the same as int8 file", "", f"{int8_accuracy(model):.1%}", "", "", ""))
    for name, accuracy in PUBLISHED:
        print(table_row(f"published: {name}", "", f"{accuracy:.1%}", "", "", ""))
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
    default = complete_run(work / "run", train, str(photos))
    block5 = complete_run(work / "block5", train, str(photos), "--fine-tune", "block5")
    compressed = complete_run(work / "compressed", compress, str(block5), *COMPRESS_FLAGS)
    return {"default": default, "--fine-tune block5": block5, COMPRESSED: compressed}


def int8_accuracy(model: Path) -> float:
    """The top-1 of the int8 file on the test cells, as the export has measured it."""
    (file,) = [file for file in read_index(model).files if file.precision == "int8"]
    (parity,) = file.metrics["parity"].values()
    return float(parity["top1"])


if __name__ == "__main__":
    sys.exit(main())
