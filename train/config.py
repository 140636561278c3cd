"""The options of one call of `train.pipeline.train`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from train.cache import CACHE_LIMIT
from train.settings import Settings

PROCESS_ID_VARIABLE = "KERAS_DISTRIBUTION_PROCESS_ID"  # Keras reads it


@dataclass(frozen=True)
class TrainConfig:
    """`settings` decide what the model learns; the other fields decide where and how it runs."""

    settings: Settings
    out: Path
    photos: Path | None = None  # None: the tf_flowers photos, or synthetic ones without a network
    none: Path | None = None  # a folder of photos of none of the classes, outside `photos`
    add: Path | None = None  # class folders of photos to learn besides `photos`
    weights: str | None = None  # a file, "imagenet", or None for the bundled weights
    overwrite: bool = False
    resume: bool = False
    dry_run: bool = False
    cache: str | None = None  # a folder, "none" for a temporary one, or None for the user's cache
    cache_limit: int = CACHE_LIMIT  # bytes
    logs: Path | None = None
    ray: str | None = None  # HOST:PORT of a Ray cluster's head, "auto" or "local"

    @property
    def fine_tunes(self) -> bool:
        return self.settings.fine_tune != "none"

    @property
    def writes_run(self) -> bool:
        """Whether this process writes the run folder: of several processes, only process 0 does."""
        is_first = os.environ.get(PROCESS_ID_VARIABLE, "0") in ("", "0")
        return is_first and not self.dry_run

    @property
    def views(self) -> int:
        """Views of each training photo that head and fine-tuning need together."""
        return max(self.settings.views, self.settings.fine_tune_views if self.fine_tunes else 1)
