"""The first stage of compression: read the run and check its photos, before TensorFlow is loaded.

TensorFlow needs about five seconds to start. Errors in paths, photos and tables appear before that.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from runtime.inference.engines import require_engine
from train.cache import features_in_use
from train.compress.config import CompressConfig
from train.compress.latency_table import LatencyTable, estimated_latency_table, read_latency_table
from train.data.dataset import read_verified
from train.data.negatives import own_negatives, restore_default_negatives
from train.progress import Progress
from train.run import Run, RunError, open_run
from train.run_writer import check_output_dir, lock_output


@dataclass(frozen=True)
class Inputs:
    """The run to compress, the latencies of another board, and where the result is written."""

    run: Run
    latency_table: LatencyTable | None  # None: no --latency-table and no --board
    out: Path
    overwrite: bool  # whether the run that exists at `out` is replaced
    started: datetime  # UTC


def find_inputs(config: CompressConfig, stack: ExitStack) -> Inputs:
    """Read the run and the latency table, and compare each photo with its hash.

    Until `stack` is closed, no other command writes to the output folder or evicts features of this run.
    Raises RunError for the run and the output folder, PhotosError for a missing or changed photo, UserError
    for the table or a missing engine.
    """
    started = datetime.now(timezone.utc)
    settings = config.settings
    run = open_run(config.run, config.photos_root, config.none, config.add)
    for flag, folder, is_used in (
        ("--none", config.none, any(Path(photo.path).is_absolute() for photo in own_negatives(run.dataset))),
        ("--add", config.add, bool(run.dataset.added)),
    ):
        if folder and not is_used:
            raise RunError(f"{flag} {folder}: {run.path} was trained without this flag; leave it out")
    table = None
    if settings.latency_table:
        table = read_latency_table(Path(settings.latency_table), settings.engine)
    elif settings.board:
        table = estimated_latency_table(settings.board, settings.engine)
    elif settings.target_ms is not None:
        require_engine(settings.engine)
    out = config.out or Path("runs") / f"{run.name}-compressed"
    stack.enter_context(features_in_use(config.cache))
    # Before the check, to which the files of a command that still runs look like an interrupted run.
    stack.enter_context(lock_output(out))
    overwrite = check_output_dir(out, config.overwrite, config.resume)
    if out.resolve() == run.path.resolve():
        raise RunError(f"{out}: is the run to compress; choose another --out")
    restore_default_negatives(run.dataset)
    photos = (*run.dataset.photos, *run.dataset.negatives)
    with Progress("checking photos", len(photos), "photos") as progress:
        for photo in photos:
            read_verified(run.dataset, photo)
            progress.step(1)
    return Inputs(run, table, out, overwrite, started)
