"""Keep a run in its smallest true form: what differs from the base, large tensors in float16.

    python -m train.pack_run RUN FOLDER

The folder is a run like any other to `python -m export`, which is told where its photos are by --photos-root.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.common.errors import UserError
from runtime.common.terminal import suppress_native_stderr
from train.run import PACKED_ARCHITECTURE, PACKED_WEIGHTS, UNCOMPRESSED_CSV, RunError, open_run
from train.run_writer import new_run_dir, write_record

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGE = 2**16  # numbers: a tensor of fewer is kept as it is
ALSO = ("metrics.json", "history.csv", "curves.png", "confusion.png", UNCOMPRESSED_CSV)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0 done, 2 a usage error."""
    parser = argparse.ArgumentParser(prog="python -m train.pack_run", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="replaced if it is a run")
    arguments = parser.parse_args(argv)
    try:
        pack_run(arguments.run, arguments.folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = sum(file.stat().st_size for file in arguments.folder.iterdir())
    print(f"kept: {arguments.folder}, {size / 1e6:.1f} MB")
    return 0


def pack_run(run_folder: Path, folder: Path) -> None:
    """Write the run to `folder`. Raises RunError when it is of another base than the bundled one, or
    `folder` is something else than a run.
    """
    with suppress_native_stderr():
        import keras  # noqa: F401
    from safetensors.numpy import save

    from train.network.vgg import read_weights

    run = open_run(run_folder)
    base = read_weights()
    if run.base_sha256 != base.sha256:
        raise RunError(f"run {run_folder}: was not trained on the bundled base; keep its model.keras instead")
    if folder.exists() and not (folder / "run.json").exists():
        raise RunError(f"{folder} is not a run, so it is not replaced; give another folder")
    model = run.load_model()
    changes: dict[str, NDArray[Any]] = {}
    for variable in model.variables:
        value = np.asarray(variable, np.float32)
        if not np.array_equal(value, base.tensors.get(variable.path, ())):
            changes[variable.path] = value.astype(np.float16) if value.size >= LARGE else value
    record = json.loads((run_folder / "run.json").read_text(encoding="utf-8"))
    record["name"] = folder.name
    with new_run_dir(folder, overwrite=True) as partial:
        (partial / PACKED_ARCHITECTURE).write_text(model.to_json(indent=1), encoding="utf-8")
        (partial / PACKED_WEIGHTS).write_bytes(save(changes))
        write_record(partial, record, run.dataset, root="")
        for name in ALSO:
            if (run_folder / name).is_file():
                (partial / name).write_bytes((run_folder / name).read_bytes())
        if (folder / "README.md").is_file():  # what is said of it there stays
            (partial / "README.md").write_bytes((folder / "README.md").read_bytes())


if __name__ == "__main__":
    sys.exit(main())
