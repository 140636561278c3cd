"""The settings of a training run, each with its reason. Flags and TOML files set them."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

from runtime.common.errors import UserError
from runtime.common.text import printable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# For each choice of --fine-tune, the first of VGG16's five blocks that is trained. 6: no block.
FIRST_TRAINED_BLOCK = {"none": 6, "block5": 5, "block4": 4}

MAX_EPOCHS = 1_000_000  # the steps of all epochs must fit into 64 bits


class SettingsError(UserError):
    """A setting that is unknown or out of its bounds."""


def _setting(
    default: object,
    description: str,
    low: float = 0,
    high: float = float("inf"),
    choices: tuple[str, ...] = (),
    common: bool = False,
) -> Any:
    """A dataclass field; `common` settings stand in the first group of --help."""
    bounds = {"low": low, "high": high, "choices": choices}
    return field(default=default, metadata={"description": description, "common": common, **bounds})


@dataclass(frozen=True)
class Settings:
    """The settings that run.json records. The flag of each one has the same name."""

    recipe: str = _setting(
        "pooled",
        "the kind of head, and the defaults of all settings",
        choices=("pooled", "article"),
        common=True,
    )
    seed: int = _setting(
        0, "seed of the first head weights, the order of photos, and dropout", high=2**32 - 1
    )
    # Apart from `seed`, so that runs with different seeds are measured on the same photos.
    split_seed: int = _setting(0, "seed of the splits, for a folder without train/ and test/")
    # 300 of 2,000 photos: a top-1 with a 95 % interval of about 2 points.
    val_share: float = _setting(
        0.15, "share of the photos used to choose the best epoch, without val/", high=0.45
    )
    test_share: float = _setting(
        0.15, "share of the photos used to measure the result, without test/", high=0.45
    )
    limit: int | None = _setting(
        None,
        "for a quick try: use at most N photos of each class, and of none, in each split",
        low=1,
        common=True,
    )
    # Dropping changes the training data, so it is not the default.
    near_duplicates: str = _setting(
        "report",
        "copies of one picture in several splits (cropped, mirrored, encoded again): report lists them, "
        "drop removes the copy from train (else from val), ignore does not search",
        choices=("report", "drop", "ignore"),
    )
    # Each view costs one extraction.
    views: int = _setting(
        2,
        "views per training photo: 1 is the photo, 2 adds its mirror image, more add random crops",
        low=1,
        high=8,
    )
    epochs: int = _setting(60, "epochs of the head", low=1, high=MAX_EPOCHS)
    batch: int = _setting(64, "batch size of the head", low=1)
    # Features of length 1 have small gradients.
    learning_rate: float = _setting(1e-2, "first learning rate of the head; a cosine lowers it to 0")
    weight_decay: float = _setting(1e-2, "weight decay of AdamW")
    label_smoothing: float = _setting(0.0, "share of each label that is spread over all classes", high=0.9)
    dropout: float = _setting(0.0, "share of the features that each step drops", high=0.9)
    # With a tenth of a class's photos, its recall rises from 50 % to 69 % (benchmarks/imbalance.md).
    class_weight: str = _setting(
        "balanced",
        "weights of the classes in training: balanced gives small classes larger weights",
        choices=("balanced", "none"),
    )
    negatives: bool = _setting(
        True, "learn to reject photos of none of the classes (--none, or else PHOTOS/none) and drawings"
    )
    known: bool = _setting(True, "add the output that detects pictures of none of the classes")
    fine_tune: str = _setting(
        "none",
        "also train the last block of VGG16 (block5) or the last two (block4): more accurate, takes longer",
        choices=tuple(FIRST_TRAINED_BLOCK),
        common=True,
    )
    # Blocks overfit sooner than a head, so they get three more crops per photo.
    fine_tune_views: int = _setting(5, "views per training photo in fine-tuning", low=1, high=8)
    fine_tune_epochs: int = _setting(6, "epochs of fine-tuning", low=1, high=MAX_EPOCHS)
    fine_tune_batch: int = _setting(32, "batch size of fine-tuning", low=1)
    # Reached after a tenth of the steps; then a cosine lowers it to 0.
    fine_tune_learning_rate: float = _setting(2e-4, "highest learning rate of fine-tuning")


RECIPES: dict[str, Settings] = {
    "pooled": Settings(),
    # The recipe of the article: frozen VGG16, Flatten, Dense 256, Dropout, Dense softmax.
    "article": replace(
        Settings(),
        recipe="article",
        views=1,
        epochs=10,
        batch=32,
        learning_rate=1e-4,
        weight_decay=0.0,
        dropout=0.5,
        class_weight="none",
        negatives=False,  # without `known`, nothing rejects them
        known=False,  # this needs pooled features, which the head lacks
    ),
}


class FlagGroup(Protocol):
    """An argparse parser or a group of one."""

    def add_argument(self, *names: str, **options: Any) -> argparse.Action: ...


def add_flags(common: FlagGroup, expert: FlagGroup) -> None:
    """Add --settings and one flag per setting, without defaults: `settings_from_flags` applies those."""
    expert.add_argument(
        "--settings", type=Path, metavar="FILE", help="a TOML file of settings, with the names of these flags"
    )
    for setting in fields(Settings):
        group = common if setting.metadata["common"] else expert
        options: dict[str, Any] = {"type": _flag_type(setting), "metavar": "N"}
        if setting.metadata["choices"]:
            options = {"choices": setting.metadata["choices"]}
        elif setting.type == "bool":
            options = {"action": argparse.BooleanOptionalAction}
        text = f"{setting.metadata['description']} ({_default_text(setting.name)})".replace("%", "%%")
        group.add_argument(_flag(setting.name), default=None, help=text, **options)


def _default_text(name: str) -> str:
    """The default of a setting, or of each recipe where the defaults differ."""
    words = {True: "yes", False: "no"}
    values = {recipe: getattr(settings, name) for recipe, settings in RECIPES.items()}
    defaults = {
        recipe: words[value] if isinstance(value, bool) else str(value) for recipe, value in values.items()
    }
    first = next(iter(defaults.values()))
    if name == "recipe" or len(set(defaults.values())) == 1:
        return f"default: {'all photos' if name == 'limit' else first}"
    return "default: " + ", ".join(f"{value} for {recipe}" for recipe, value in defaults.items())


def settings_from_flags(arguments: argparse.Namespace) -> Settings:
    """The settings of the flags; then of the --settings file; then of the recipe.

    Raises SettingsError for a file that cannot be read, an unknown name, or a value out of its bounds.
    """
    given = read_settings(arguments.settings) if arguments.settings else {}
    flags = {setting.name: getattr(arguments, setting.name) for setting in fields(Settings)}
    given |= {name: value for name, value in flags.items() if value is not None}
    return replace(RECIPES[given.get("recipe", "pooled")], **given)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, by name; names may have hyphens or underscores. Raises SettingsError."""
    found = _read_toml(path)
    settings = {setting.name: setting for setting in fields(Settings)}
    given: dict[str, Any] = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in settings:
            near = difflib.get_close_matches(name, settings, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; `python -m train --help` lists the settings"
            raise SettingsError(f"--settings {path}: no setting is called {printable(key)}{hint}")
        try:
            given[name] = _checked(settings[name], value)
        except ValueError as error:
            raise SettingsError(
                f"--settings {path}: {key} {error}; change it in the file, or remove it and use {_flag(name)}"
            ) from None
    return given


def recorded_settings(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run.json. An older run lacks some: they get their defaults.

    Raises ValueError for a value of another type or out of its bounds.
    """
    for setting in fields(Settings):
        value = recorded.get(setting.name, setting.default)
        if value is not None or setting.default is not None:
            try:
                _checked(setting, value)
            except ValueError as error:
                raise ValueError(f"settings.{setting.name} {error}") from None
    return {"weights": "", **asdict(Settings()), **recorded}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Notepad writes a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise SettingsError(f"--settings {path}: {reason}; give a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"--settings {path}: not valid TOML: {error}; fix the file") from None
    except (ValueError, RecursionError):  # Python's limits on digits and nesting
        raise SettingsError(
            f"--settings {path}: a number is too long, or the nesting is too deep; fix the file"
        ) from None


def settings_to_toml(settings: Mapping[str, Any]) -> str:
    """TOML text that --settings reads; settings that are None are left out."""
    names = [setting.name for setting in fields(Settings) if settings.get(setting.name) is not None]
    return "".join(f"{name} = {json.dumps(settings[name])}\n" for name in names)


def _flag_type(setting: Field[Any]) -> Callable[[str], float]:
    number_type = float if setting.type == "float" else int

    def parse(text: str) -> float:
        value = number_type(text)
        try:
            _checked(setting, value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    parse.__name__ = "number" if number_type is float else "whole number"  # argparse prints this name
    return parse


def _checked(setting: Field[Any], value: Any) -> Any:
    """The value, in the type of the setting. The text of the ValueError continues "NAME …"."""
    low, high, choices = (setting.metadata[name] for name in ("low", "high", "choices"))
    if choices:
        if value not in choices:
            raise ValueError(f"is {value!r}; it must be one of {', '.join(choices)}")
        return value
    if setting.type == "bool":
        if not isinstance(value, bool):
            raise ValueError(f"is {value!r}; it must be true or false")
        return value
    whole = setting.type != "float"
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise ValueError(f"is {value!r}; it must be a {'whole ' if whole else ''}number")
    if value > sys.float_info.max:  # also an integer that no float can hold
        raise ValueError("is too large a number")
    if not low <= value <= high:
        bounds = f"{low} or more" if high == float("inf") else f"from {low} to {high}"
        raise ValueError(f"is {value}; it must be {bounds}")
    return value if whole else float(value)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
