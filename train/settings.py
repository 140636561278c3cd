"""Every number that a training run depends on, with the reason for it: flags and TOML files set these."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from runtime.common.errors import UserError
from runtime.common.text import printable

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# By what --fine-tune is given, the first of VGG16's five blocks that is trained on.
FIRST_TRAINED_BLOCK = {"none": 6, "block5": 5, "block4": 4}


class SettingsError(UserError):
    """A setting that is unknown or out of its bounds."""


def _setting(
    default: object, what: str, low: float = 0, high: float = float("inf"), choices: tuple[str, ...] = ()
) -> Any:
    return field(default=default, metadata={"what": what, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """What is recorded in run.json. A flag of the same name changes each one."""

    recipe: str = _setting("pooled", "the head and its settings", choices=("pooled", "article"))
    seed: int = _setting(0, "of the head's first weights, the order of photos, and dropout", high=2**32 - 1)
    # Apart from `seed`, so that runs with other seeds answer for the same photos.
    split_seed: int = _setting(0, "of the splits that the folder does not give")
    # 300 of 2,000 photos: a top-1 known to about 2 points. Neither is used when the folder holds its own.
    val_share: float = _setting(0.15, "of the training photos, to choose the best epoch on", high=0.45)
    test_share: float = _setting(0.15, "of the training photos, to measure the result on", high=0.45)
    limit: int | None = _setting(None, "photos a class, of each split that is given, for a quick try", low=1)
    # Dropping changes what is trained on.
    near_duplicates: str = _setting(
        "report",
        "of one picture in several splits, cropped or encoded again; drop keeps the last of train, val, test",
        choices=("report", "drop", "ignore"),
    )
    # Each view costs extraction.
    views: int = _setting(
        2, "of a training photo: itself, its mirror image, then random crops of it", low=1, high=8
    )
    epochs: int = _setting(60, "over the training photos", low=1)
    batch: int = _setting(64, "photos a step", low=1)
    # Features of length 1 have small gradients.
    learning_rate: float = _setting(1e-2, "at the start; it falls to 0 by a cosine")
    weight_decay: float = _setting(1e-2, "of AdamW")
    label_smoothing: float = _setting(0.0, "share of a photo's label spread over all classes", high=0.9)
    dropout: float = _setting(0.0, "share of features dropped in a step", high=0.9)
    # Found more of a class with a tenth of the photos, 69 % of it against 50 % (benchmarks/imbalance.md).
    class_weight: str = _setting(
        "balanced",
        "of photos where classes are uneven: balanced lets one of a small class count for more",
        choices=("balanced", "none"),
    )
    known: bool = _setting(True, "also learn to tell a picture of none of the classes")
    fine_tune: str = _setting(
        "none", "after the head, train on from this block of the base", choices=tuple(FIRST_TRAINED_BLOCK)
    )
    # Three crops more than the head has: blocks learn photos by heart where a head cannot.
    fine_tune_views: int = _setting(5, "as --views, while fine-tuning", low=1, high=8)
    fine_tune_epochs: int = _setting(6, "over the training photos, while fine-tuning", low=1)
    fine_tune_batch: int = _setting(32, "photos a step, while fine-tuning", low=1)
    # After a tenth of the steps; then it falls to 0 by a cosine.
    fine_tune_learning_rate: float = _setting(2e-4, "the highest, while fine-tuning")


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
        class_weight="none",
        known=False,  # it has no pooled features to tell by
    ),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """--settings, and a flag a setting, without defaults: `settings_of` knows those."""
    parser.add_argument(
        "--settings", type=Path, metavar="FILE", help="a TOML file of settings, by the names of these flags"
    )
    for one in fields(Settings):
        defaults = [str(getattr(recipe, one.name)) for recipe in RECIPES.values()]
        shown = defaults[0]
        if len(set(defaults)) > 1 and one.name != "recipe":
            shown = ", ".join(map(" ".join, zip(RECIPES, defaults, strict=True)))
        how: dict[str, Any] = {"type": _parser(one), "metavar": "N"}
        if one.metadata["choices"]:
            how = {"choices": one.metadata["choices"]}
        elif one.type == "bool":
            how = {"action": argparse.BooleanOptionalAction}
        text = f"{one.metadata['what']} ({shown})".replace("%", "%%")
        parser.add_argument(_flag(one.name), default=None, help=text, **how)


def settings_from_flags(arguments: argparse.Namespace) -> Settings:
    """The recipe's settings, less what the file of --settings gives, less what flags give.

    Raises SettingsError for a file that cannot be read, an unknown name, or a value out of its bounds.
    """
    given = read_settings(arguments.settings) if arguments.settings else {}
    flags = {one.name: getattr(arguments, one.name) for one in fields(Settings)}
    given |= {name: value for name, value in flags.items() if value is not None}
    return replace(RECIPES[given.get("recipe", "pooled")], **given)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a TOML file, by name; hyphens and underscores in it are alike. Raises SettingsError."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8"
        raise SettingsError(f"--settings {path}: {reason}; give a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"--settings {path}: is not TOML: {error}") from None
    except (ValueError, RecursionError):  # Python's bounds on digits and on depth
        raise SettingsError(
            f"--settings {path}: holds a number that is too long, or is nested too deep; mend it"
        ) from None
    known = {one.name: one for one in fields(Settings)}
    given: dict[str, Any] = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; `python -m train --help` lists them"
            raise SettingsError(f"--settings {path}: there is no setting {printable(key)}{hint}")
        try:
            given[name] = _checked(known[name], value)
        except ValueError as error:
            raise SettingsError(
                f"--settings {path}: {key} {error}; change it, or give {_flag(name)}"
            ) from None
    return given


def settings_to_toml(settings: Mapping[str, Any]) -> str:
    """TOML that --settings reads; what is None is left out."""
    names = [one.name for one in fields(Settings) if settings.get(one.name) is not None]
    return "".join(f"{name} = {json.dumps(settings[name])}\n" for name in names)


def _parser(one: Field[Any]) -> Callable[[str], float]:
    kind = float if one.type == "float" else int

    def parse(text: str) -> float:
        value = kind(text)
        try:
            _checked(one, value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    parse.__name__ = "number" if kind is float else "whole number"  # argparse's word for it
    return parse


def _checked(one: Field[Any], value: Any) -> Any:
    """The value, of the field's type; raises ValueError that says what it must be."""
    low, high, choices = (one.metadata[name] for name in ("low", "high", "choices"))
    if choices:
        if value not in choices:
            raise ValueError(f"is {value!r}; it must be one of {', '.join(choices)}")
        return value
    if one.type == "bool":
        if not isinstance(value, bool):
            raise ValueError(f"is {value!r}; it must be true or false")
        return value
    whole = one.type != "float"
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise ValueError(f"is {value!r}; it must be a {'whole ' if whole else ''}number")
    if value > sys.float_info.max:  # so is a whole number that no float holds
        raise ValueError("is too large a number")
    if not low <= value <= high:
        bounds = f"{low} or more" if high == float("inf") else f"from {low} to {high}"
        raise ValueError(f"is {value}; it must be {bounds}")
    return value if whole else float(value)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
