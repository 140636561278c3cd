"""Every number that a training run depends on, with the reason for it."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Settings:
    """What is recorded in run.json. A flag of the same name changes each one."""

    recipe: str = "pooled"
    seed: int = 0  # of the head's weights, the order of photos and dropout
    split_seed: int = 0  # apart from `seed`, so that runs with other seeds answer for the same photos
    val_share: float = 0.15  # 300 of 2,000 photos: a top-1 known to about 2 points
    test_share: float = 0.15  # as many again; neither is used when the folder holds its own val/ or test/
    limit: int | None = None  # photos a class, of each split that is given; None takes all
    mirror: bool = True  # also train on each photo's mirror image: +3 points for twice the extraction
    epochs: int = 60
    batch: int = 64
    learning_rate: float = 1e-2  # features of length 1 have small gradients
    weight_decay: float = 1e-2
    label_smoothing: float = 0.0
    dropout: float = 0.0


RECIPES: dict[str, Settings] = {
    "pooled": Settings(),
    # The article's own: frozen VGG16, Flatten, Dense 256, Dropout, Dense softmax.
    "article": replace(
        Settings(),
        recipe="article",
        mirror=False,
        epochs=10,
        batch=32,
        learning_rate=1e-4,
        weight_decay=0.0,
        dropout=0.5,
    ),
}
