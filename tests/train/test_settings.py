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
    add_flags(parser, parser)
    return settings_from_flags(parser.parse_args(flags))


def toml(folder: Path, text: str) -> str:
    file = folder / "settings.toml"
    file.write_text(text, encoding="utf-8")
    return f"--settings={file}"


def test_flags_override_the_file_and_the_file_overrides_the_recipe(tmp_path: Path) -> None:
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
def test_recorded_settings_are_read_back(recipe: str, tmp_path: Path) -> None:
    settings = replace(RECIPES[recipe], limit=5, learning_rate=1e-5)
    recorded = asdict(settings) | {"weights": "elsewhere"}
    assert parsed(toml(tmp_path, settings_to_toml(recorded))) == settings
    assert "limit" not in settings_to_toml(asdict(RECIPES[recipe]))


def test_every_setting_has_a_flag_that_accepts_its_defaults() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, parser)
    assert {setting.name for setting in fields(Settings)} < vars(parser.parse_args([])).keys()
    for recipe in RECIPES.values():
        flags = [
            f"--{'' if value is not False else 'no-'}{name.replace('_', '-')}"
            + ("" if isinstance(value, bool) else f"={value}")
            for name, value in asdict(recipe).items()
            if value is not None
        ]
        assert parsed(*flags) == recipe


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("epoch = 3", "no setting is called epoch; did you mean epochs?"),
        ("xyz = 3", "no setting is called xyz; `python -m train --help`"),
        ("epochs = 0", "epochs is 0; it must be from 1 to 1000000"),
        ("val-share = 0.9", "val-share is 0.9; it must be from 0 to 0.45"),
        ("epochs = 2.5", "epochs is 2.5; it must be a whole number"),
        ("epochs = true", "epochs is True; it must be a whole number"),
        ("known = 1", "known is 1; it must be true or false"),
        ("learning_rate = nan", "learning_rate is nan; it must be 0 or more"),
        ("learning_rate = inf", "learning_rate is too large a number"),
        ("learning_rate = -inf", "learning_rate is -inf; it must be 0 or more"),
        (f"learning_rate = 1{400 * '0'}", "learning_rate is too large a number"),
        (f"epochs = 0x{5000 * 'f'}", "epochs is too large a number"),
        (f"epochs = {5001 * '9'}", "a number is too long, or the nesting is too deep"),
        (f"epochs = {5000 * '['}", "a number is too long, or the nesting is too deep"),
        (r'"two\nlines" = 3', r"no setting is called two\nlines"),
        ('fine_tune = "block3"', "fine_tune is 'block3'; it must be one of none, block5, block4"),
        ("recipe = [1]", "recipe is [1]; it must be one of"),
        ("[pooled]\nepochs = 3", "no setting is called pooled"),
        ("epochs 3", "; fix the file"),
    ],
)
def test_a_mistake_in_the_settings_file_is_named(text: str, fact: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        parsed(toml(tmp_path, text))
    assert fact in str(error.value) and "\n" not in str(error.value)


def test_a_settings_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbfepochs = 3\n")
    assert read_settings(tmp_path / "bom.toml") == {"epochs": 3}


def test_a_flag_must_be_finite(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("inf", "nan", "1e999"):
        with pytest.raises(SystemExit):
            parsed("--learning-rate", text)
        assert "argument --learning-rate: is " in capsys.readouterr().err


def test_an_unreadable_settings_file_raises_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file or directory"):
        read_settings(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="not UTF-8"):
        read_settings(tmp_path / "binary.toml")
