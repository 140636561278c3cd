"""Pack a run into a small folder: the tensors that differ from the base, the large ones in float16.

    python -m train.pack_run RUN FOLDER

`python -m export` reads a packed run like any other; pass --photos-root, because the path is not stored.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.common.cli import ArgumentParser, path_name
from runtime.common.terminal import suppress_native_stderr
from train.cli import run_cli
from train.run import PACKED_ARCHITECTURE, PACKED_WEIGHTS, STATISTICS, UNCOMPRESSED_CSV, RunError, open_run
from train.run_writer import check_replaceable, lock_output, new_run_dir, write_record

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLOAT16_FROM = 2**16  # values; smaller tensors stay in float32
COPIED_FILES = ("metrics.json", "history.csv", "curves.png", "confusion.png", STATISTICS, UNCOMPRESSED_CSV)

DESCRIPTION = "README.md"  # added by hand: `--overwrite` keeps it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit code: 0 success, 2 error."""
    parser = ArgumentParser(prog="python -m train.pack_run", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=path_name, metavar="RUN", help="run folder to read")
    parser.add_argument("folder", type=path_name, metavar="FOLDER", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in FOLDER if it exists")
    arguments = parser.parse_args(argv)

    def run() -> int:
        with lock_output(arguments.folder):
            pack_run(arguments.run, arguments.folder, arguments.overwrite)
        size = sum(file.stat().st_size for file in arguments.folder.iterdir())
        print(f"packed run: {arguments.folder}, {size / 1e6:.1f} MB")
        return 0

    return run_cli(run, lambda: "no folder was written")


def pack_run(run_folder: Path, folder: Path, overwrite: bool = False) -> None:
    """Write a packed copy of a run to `folder`; `overwrite` replaces the run that is there.

    Raises RunError when the run was not trained on the bundled weights, or `folder` must not be replaced.
    """
    if folder.resolve() == run_folder.resolve():
        raise RunError(f"{folder}: is the run to pack; choose another FOLDER")
    check_replaceable(folder, overwrite, "FOLDER", kept=(DESCRIPTION,))
    with suppress_native_stderr():
        import keras  # noqa: F401
    from safetensors.numpy import save

    from train.network.vgg import read_weights

    run = open_run(run_folder)
    base = read_weights()
    if run.base_sha256 != base.sha256:
        raise RunError(f"run {run_folder}: not trained on the bundled weights; keep its model.keras instead")
    model = run.load_model()
    packed: dict[str, NDArray[Any]] = {}
    for variable in model.variables:
        value = np.asarray(variable, np.float32)
        if not np.array_equal(value, base.tensors.get(variable.path, ())):
            packed[variable.path] = value.astype(np.float16) if value.size >= FLOAT16_FROM else value
    record = json.loads((run_folder / "run.json").read_text(encoding="utf-8"))
    record["name"] = folder.name
    with new_run_dir(folder, overwrite) as partial:
        (partial / PACKED_ARCHITECTURE).write_text(model.to_json(indent=1), encoding="utf-8")
        (partial / PACKED_WEIGHTS).write_bytes(save(packed))
        write_record(partial, record, run.dataset, private=True)
        for name in COPIED_FILES:
            if (run_folder / name).is_file():
                (partial / name).write_bytes((run_folder / name).read_bytes())
        if (folder / DESCRIPTION).is_file():
            (partial / DESCRIPTION).write_bytes((folder / DESCRIPTION).read_bytes())


if __name__ == "__main__":
    sys.exit(main())
