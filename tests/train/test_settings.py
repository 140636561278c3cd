from __future__ import annotations

import argparse
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from train.settings import (
    RECIPES,
    Settings,
    SettingsError,
    add_flags,
    read_settings,
    settings_from_flags,
    settings_to_toml,
)


def parsed(*flags: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return settings_from_flags(parser.parse_args(flags))


def toml(folder: Path, text: str) -> str:
    file = folder / "settings.toml"
    file.write_text(text, encoding="utf-8")
    return f"--settings={file}"


def test_a_flag_goes_before_the_file_and_the_file_before_the_recipe(tmp_path: Path) -> None:
    file = toml(
        tmp_path, 'recipe = "article"\nepochs = 7\nfine-tune-views = 3\nlearning_rate = 1\nknown = true\n'
    )
    expected = replace(
        RECIPES["article"], epochs=9, fine_tune_views=3, learning_rate=1.0, known=True, weight_decay=0.5
    )
    found = parsed(file, "--epochs", "9", "--weight-decay", "0.5")
    assert found == expected
    assert isinstance(found.learning_rate, float)
    assert parsed(file, "--recipe", "pooled", "--no-known").batch == RECIPES["pooled"].batch


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_recorded_is_read_again(recipe: str, tmp_path: Path) -> None:
    settings = replace(RECIPES[recipe], limit=5, learning_rate=1e-5)
    recorded = asdict(settings) | {"weights": "elsewhere"}
    assert parsed(toml(tmp_path, settings_to_toml(recorded))) == settings
    assert "limit" not in settings_to_toml(asdict(RECIPES[recipe]))


def test_every_setting_has_its_flag_and_bounds_that_its_defaults_keep() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    assert {one.name for one in fields(Settings)} < vars(parser.parse_args([])).keys()
    for recipe in RECIPES.values():
        flags = [
            f"--{name.replace('_', '-')}={value}"
            for name, value in asdict(recipe).items()
            if value is not None and name != "known"
        ]
        assert parsed(*flags, "--known" if recipe.known else "--no-known") == recipe


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch = 3", "there is no setting epoch; did you mean epochs?"),
        ("xyz = 3", "there is no setting xyz; `python -m train --help` lists them"),
        ("epochs = 0", "epochs is 0; it must be 1 or more; change it, or give --epochs"),
        ("val-share = 0.9", "val-share is 0.9; it must be from 0 to 0.45; change it, or give --val-share"),
        ("epochs = 2.5", "epochs is 2.5; it must be a whole number"),
        ("epochs = true", "epochs is True; it must be a whole number"),
        ("known = 1", "known is 1; it must be true or false"),
        ("learning_rate = nan", "learning_rate is nan; it must be 0 or more"),
        ("learning_rate = inf", "learning_rate is too large a number; change it, or give --learning-rate"),
        ("learning_rate = -inf", "learning_rate is -inf; it must be 0 or more"),
        (f"learning_rate = 1{400 * '0'}", "learning_rate is too large a number; change it"),
        (f"epochs = 0x{5000 * 'f'}", "epochs is too large a number; change it"),
        (f"epochs = {5001 * '9'}", "holds a number that is too long, or is nested too deep; mend it"),
        (f"epochs = {5000 * '['}", "holds a number that is too long, or is nested too deep; mend it"),
        (r'"two\nlines" = 3', r"there is no setting two\nlines"),
        ('fine_tune = "block3"', "fine_tune is 'block3'; it must be one of none, block5, block4"),
        ("recipe = [1]", "recipe is [1]; it must be one of"),
        ("[pooled]\nepochs = 3", "there is no setting pooled"),
        ("epochs 3", "is not TOML"),
    ],
)
def test_what_a_file_gets_wrong_is_named(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        parsed(toml(tmp_path, text))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_flag_must_be_finite(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("inf", "nan", "1e999"):
        with pytest.raises(SystemExit):
            parsed("--learning-rate", text)
        assert "argument --learning-rate: is " in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file or directory; give a TOML file"):
        read_settings(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="is not UTF-8"):
        read_settings(tmp_path / "binary.toml")
