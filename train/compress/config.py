"""The options of `python -m train.compress`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from train.cache import CACHE_LIMIT


@dataclass(frozen=True)
class CompressSettings:
    """The options that change the compressed network; run.json records them."""

    reduce: float = 10.0  # the uncompressed network's MACs over the compressed network's
    target_ms: float | None = None  # instead of `reduce`: the latency limit in milliseconds
    max_mb: float | None = None  # besides: the size limit of an int8 file in MB (10⁶ bytes)
    engine: str = "litert"  # that `target_ms` applies to
    latency_table: str | None = None  # a CSV with another board's latencies; None: measure on this machine
    board: str | None = None  # instead of `latency_table`: a board with built-in estimates of its latencies
    size: int | None = None  # pixels a side of the input; None: choose it
    reconstruction_photos: int = 600
    views: int = 5  # augmented views of each training photo, whose features --fine-tune has stored
    epochs: int = 40  # of distillation; 0: none
    batch: int = 32
    learning_rate: float = 5e-4  # the peak
    seed: int = 0


@dataclass(frozen=True)
class CompressConfig:
    """All options: the settings, the run to compress, and where to write."""

    run: Path
    settings: CompressSettings = field(default_factory=CompressSettings)
    out: Path | None = None  # None: runs/NAME-compressed
    photos_root: Path | None = None  # None: where the photos were at training
    none: Path | None = None  # the same for photos of none of the classes outside `photos_root`
    add: Path | None = None  # the same for the photos of --add
    overwrite: bool = False
    resume: bool = False
    cache: str | None = None  # a folder, "none" for a temporary one, or None for the user's cache
    cache_limit: int = CACHE_LIMIT  # bytes
    logs: Path | None = None
