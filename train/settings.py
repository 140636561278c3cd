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
    views: int = 2  # of a training photo: itself, its mirror image, then random crops; each costs extraction
    epochs: int = 60
    batch: int = 64
    learning_rate: float = 1e-2  # features of length 1 have small gradients
    weight_decay: float = 1e-2
    label_smoothing: float = 0.0
    dropout: float = 0.0
    known: bool = True  # also tell a picture that is of none of the classes
    fine_tune: str = "none"  # the first block that is trained on, after the head: a key of TRAINED_FROM
    fine_tune_views: int = 5  # as `views`: three crops, for blocks learn photos by heart where a head cannot
    fine_tune_epochs: int = 6
    fine_tune_batch: int = 32
    fine_tune_learning_rate: float = 2e-4  # the highest, after a tenth of the steps; then to 0 by a cosine


RECIPES: dict[str, Settings] = {
    "pooled": Settings(),
    # The article's own: frozen VGG16, Flatten, Dense 256, Dropout, Dense softmax.
    "article": replace(
        Settings(),
        recipe="article",
        views=1,
        epochs=10,
        batch=32,
        learning_rate=1e-4,
        weight_decay=0.0,
        dropout=0.5,
        known=False,  # it has no pooled features to tell by
    ),
}
# By what --fine-tune is given, the first of VGG16's five blocks that is trained on.
TRAINED_FROM = {"none": 6, "block5": 5, "block4": 4}
